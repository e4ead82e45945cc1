"""Attention in windows and conditions read once: the stock result, with fast kernels and little memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import estimate
import song_attention
from tools import bench_models

TAKES = 2
# Velocities of about unit spread: float32 rounds windows and the dense mask apart by 3e-6 (measured with SSE, AVX2 and
# AVX-512), and a window that is one token off moves them by more than 1e-2.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return bench_models.build("small", 3)


def step(transformer, frames, windows=True, guided=True, inputs=None):
    """Return a step's velocities, in windows or by the stock transformer."""
    torch.manual_seed(1)
    inputs = inputs or bench_models.inputs_of(transformer, frames, TAKES)
    return (bench_models.studio_step if windows else bench_models.stock_step)(
        transformer, inputs, guided
    )


# 25 frames a second, 2 per token: the first length with windows, odd ones, whole blocks, 60 s.
@pytest.mark.numbers
@pytest.mark.parametrize(
    ("frames", "guided"), [(514, True), (515, False), (997, True), (1024, True), (1500, False)]
)
def test_windows_and_one_null_token_give_what_the_dense_mask_gives(transformer, frames, guided):
    stock = step(transformer, frames, windows=False, guided=guided)
    assert stock.shape[0] == TAKES * (1 + guided)
    assert torch.allclose(step(transformer, frames, guided=guided), stock, atol=TOLERANCE)


@pytest.mark.numbers
@pytest.mark.parametrize("frames", [512, 514, 1500])
def test_a_view_gives_the_layers_without_windows_a_wider_one(transformer, monkeypatch, frames):
    # With a view as wide as the windows, the stock transformer does the same if all its layers have windows. Up to
    # two of them the view changes nothing.
    window = transformer.config.sliding_window
    in_view = frames > 2 * window * transformer.config.patch_size
    if in_view:
        monkeypatch.setattr(transformer, "layer_types", ["sliding_attention"] * 3)
    stock = step(transformer, frames, windows=False)
    monkeypatch.setattr(transformer, "view", window)
    assert torch.allclose(step(transformer, frames), stock, atol=TOLERANCE)


@pytest.mark.numbers
def test_queries_in_parts_give_what_they_give_together(transformer, monkeypatch):
    together = step(transformer, 600)
    monkeypatch.setitem(song_attention.MOST_SCORES, "cpu", 50_000)
    assert torch.allclose(step(transformer, 600), together, atol=TOLERANCE)


@pytest.mark.numbers
def test_a_condition_that_is_not_cached_gives_the_same(transformer):
    """As the alignment of lyrics calls the transformer, with hooks on the cross-attention."""
    inputs, heard = bench_models.inputs_of(transformer, 600, TAKES), []
    cross = transformer.layers[1].cross_attn
    hook = cross.register_forward_pre_hook(
        lambda _, __, named: heard.append(sorted(named)), with_kwargs=True
    )
    with hook:
        ours = bench_models.call(transformer, inputs, inputs.condition.rows(TAKES), 1)
    assert torch.allclose(
        ours, step(transformer, 600, windows=False, guided=False, inputs=inputs), atol=TOLERANCE
    )
    assert len(heard) == 1 and "encoder_hidden_states" in heard[0]


def test_no_call_of_attention_is_one_that_fast_kernels_refuse(transformer, monkeypatch):
    """On CUDA flash refuses a mask, memory-efficient shared heads; without MATH a refused call raises."""
    seen, real = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **more):
        seen.append(
            (
                query.shape[1] == key.shape[1] and not more,
                attn_mask is not None and attn_mask.numel(),
            )
        )
        return real(query, key, value, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        step(transformer, 1500)
    heads, masks = zip(*seen, strict=True)
    assert all(heads)
    # Two windowed layers with three masks each, as small as a block; one full layer and all conditions without.
    assert sum(mask is not False for mask in masks) == 6
    shared = transformer.config.num_attention_heads // transformer.config.num_key_value_heads
    assert max(masks) <= shared * 256 * 384


@pytest.fixture
def one_thread():
    """Compute with one thread: each has scratch memory of its own, which is no part of the song."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Memory grows with the length, not with its square.
@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_the_memory_estimate_is_what_a_step_takes(transformer, one_thread, seconds):
    config = transformer.config
    song = estimate.SongSize(
        seconds, TAKES, config=config, number_bytes=4, condition=bench_models.CONDITION_TOKENS
    )
    measured = bench_models.peak_bytes(lambda: step(transformer, 25 * seconds))
    assert estimate.song_bytes(song) == pytest.approx(measured, rel=0.25)


def test_the_condition_is_projected_once_and_the_unconditional_half_asks_nothing(transformer):
    inputs, keys, queries = bench_models.inputs_of(transformer, 600, TAKES), [], []
    attn = transformer.layers[1].cross_attn
    with (
        attn.to_k.register_forward_hook(lambda *_: keys.append(1)),
        attn.to_q.register_forward_hook(lambda _, inputs, __: queries.append(inputs[0].shape[0])),
    ):
        for _ in range(3):
            step(transformer, 600, inputs=inputs)
    assert len(keys) == 1 and queries == [TAKES] * 3
