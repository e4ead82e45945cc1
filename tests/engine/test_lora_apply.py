"""LoRAs in every format on the tiny checkpoints, against the dense computation W + weight * alpha / r * B A."""

import gc
import math
import weakref
from pathlib import Path

import pytest
import torch

import lora_apply
import lora_format
import lora_sources
import model_memory
import model_offload
import models
import song_codec
import song_conditions
import song_loop
from events import StudioError
from tests.engine.adapters import (
    FORMATS,
    MODULES,
    RANK,
    deltas,
    lokr,
    lora,
    matrices,
    pairs,
    peft,
    put,
)
from tests.weights import weights_in

WORDS = {"prompt": "warm lofi piano", "lyrics": "[Verse]\nla la la", "audio_duration": 2.0}
LONG = {**WORDS, "audio_duration": 22.0}
WEIGHT = 0.7
FAST_FORMATS = ("PEFT folder", "kohya", "LoKr with DoRA")
# Latents of about unit spread after three guided steps: the LoRAs move them by 2 to 4, and float32 rounds the hooks and
# the dense matrices apart by 1e-5 (measured with SSE, AVX2 and AVX-512).
TOLERANCE = 1e-4
# A weight at which a LoRA outweighs the layers that it changes, whatever their numbers are rounded to.
LARGE = 20.0
# How often a LoRA's part of an output is rounded on its way (its three factors, their three products, alpha / r, the
# weight, the sum), at half an epsilon each, and twice that for sums in which terms cancel.
ROUNDINGS = 18


def spec(pipe, path, weight=WEIGHT):
    """Prepare an uploaded file as the backend does; a PEFT folder only counts next to its file."""
    path = path / "adapter_model.safetensors" if path.is_dir() else path
    widths, specs = lora_apply.widths_of_pipe(pipe), []

    def run():
        found = yield from lora_sources.prepare(
            str(path), weight, folder=path.parent, widths=widths, uploads=[path.parent]
        )
        specs.append(found)

    list(run())
    return specs[0]


def song(pipe, words=WORDS):
    """Return the final latents [1, T, C] of a guided run."""
    frames = song_codec.frames_for(pipe, words["audio_duration"])
    generators = song_loop.generators_for((7,))
    condition = song_conditions.encode_condition(
        pipe, words, song_conditions.silent_context(pipe, frames)
    )
    start = song_loop.draw_noise(
        generators, frames, pipe.transformer.config.audio_acoustic_hidden_dim
    )
    run = song_loop.Denoising(
        condition, start, generators, song_loop.schedule(3, 1.0), guidance=7.0
    )
    *_, last = song_loop.denoise(pipe, run)
    return last.latents


def dense(pipe, *changes, words=WORDS):
    """Return the latents without LoRAs, with the changes added to the weights themselves, which are put back."""
    lora_apply.reconcile(pipe, ())
    before = {}
    try:
        for change, weight in changes:
            for module, delta in change.items():
                parameter = pipe.transformer.get_submodule(module).weight
                before.setdefault(module, parameter.data.clone())
                parameter.data += weight * delta
        return song(pipe, words)
    finally:
        for module, data in before.items():
            pipe.transformer.get_submodule(module).weight.data.copy_(data)


@pytest.fixture(autouse=True)
def no_loras_left(pipe):
    yield
    lora_apply.reconcile(pipe, ())
    assert not any(module._forward_hooks for module in pipe.transformer.modules())


@pytest.fixture(scope="module")
def plain(pipe):
    return song(pipe)


def numbers_on_the_device(pipe):
    adapters, _ = lora_apply._acting[pipe.transformer]
    count = 0
    for adapter in adapters.values():
        for change in adapter.values():
            count += sum(matrix.numel() for factor in change.factors for matrix in factor)
            if change.stretch is not None:
                count += change.stretch.numel()
    return count


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.numbers if kind in FAST_FORMATS else pytest.mark.slow)
        for kind in FORMATS
    ],
)
def test_each_format_gives_what_the_dense_weights_give(pipe, plain, tmp_path, kind):
    write, name = FORMATS[kind]
    path, change = write(pipe, tmp_path)
    info = lora_sources.inspect(path, lora_apply.widths_of_pipe(pipe))
    assert (info.format, info.modules, info.fits, info.problem) == (name, len(MODULES), True, None)
    (fact,) = lora_apply.reconcile(pipe, [spec(pipe, path)])
    assert numbers_on_the_device(pipe) == info.numbers > 0
    with_lora = song(pipe)
    expected = dense(pipe, (change, WEIGHT))
    assert (expected - plain).abs().max() > 0.05
    assert (with_lora - expected).abs().max() < TOLERANCE
    assert (fact["format"], fact["modules"], fact["weight"]) == (name, len(MODULES), WEIGHT)
    assert torch.equal(song(pipe), plain)


@pytest.mark.numbers
@pytest.mark.slow
def test_every_linear_layer_can_be_adapted(pipe_xl, tmp_path):
    """On the XL shape, whose queries are wider than its hidden states, in a song with attention in windows."""
    modules = tuple(lora_apply.widths_of_pipe(pipe_xl))
    made = matrices(pipe_xl, rank=1, modules=modules)
    path = put(tmp_path / "all.safetensors", pairs(made))
    (fact,) = lora_apply.reconcile(pipe_xl, [spec(pipe_xl, path, 0.3)])
    changed = song(pipe_xl, LONG)
    assert fact["modules"] == len(modules) == 2 * 11 + 3 + 3 + 1
    assert (changed - dense(pipe_xl, (deltas(made, 1.0), 0.3), words=LONG)).abs().max() < TOLERANCE


@pytest.mark.numbers
def test_two_add_up_in_their_order_and_removing_one_leaves_the_other(pipe, tmp_path):
    first_path, first = peft(pipe, tmp_path / "one")
    second_path, second = lokr(pipe, tmp_path / "two")
    one, two = spec(pipe, first_path, 0.5), spec(pipe, second_path, 0.8)

    def order(*wanted):
        return [fact["sha256"] for fact in lora_apply.reconcile(pipe, wanted)]

    assert order(two, one) == [two.info.sha256, one.info.sha256]
    assert order(one, two) == [one.info.sha256, two.info.sha256]
    both = song(pipe)
    lora_apply.reconcile(pipe, [two])
    alone = song(pipe)
    assert (both - dense(pipe, (first, 0.5), (second, 0.8))).abs().max() < TOLERANCE
    lora_apply.reconcile(pipe, [two])
    assert torch.equal(song(pipe), alone)


def test_only_other_bytes_or_another_config_are_read_again(pipe, tmp_path, monkeypatch):
    path, change = peft(pipe, tmp_path / "one")
    copy, _ = peft(pipe, tmp_path / "two")
    other, _ = peft(pipe, tmp_path / "three", lora_alpha=1.0)
    expected = [
        dense(pipe, (change, 1.5)),
        dense(pipe, (deltas(matrices(pipe), 1.0 / RANK), WEIGHT)),
    ]
    lora_apply.reconcile(pipe, [spec(pipe, path, 0.2)])
    with monkeypatch.context() as patch:
        patch.setattr(lora_apply, "_load", None)  # nothing can be loaded
        (fact,) = lora_apply.reconcile(pipe, [spec(pipe, copy, 1.5)])
    assert fact["weight"] == 1.5
    assert (song(pipe) - expected[0]).abs().max() < TOLERANCE
    chosen = spec(pipe, other)
    assert chosen.info.sha256 == fact["sha256"] and list(chosen.info.alphas) != fact["alphas"]
    lora_apply.reconcile(pipe, [chosen])
    assert (song(pipe) - expected[1]).abs().max() < TOLERANCE


def test_a_failure_is_a_sentence_and_leaves_the_previous_set_active(pipe, pipe_xl, tmp_path):
    good = spec(pipe, peft(pipe, tmp_path / "good")[0])
    lora_apply.reconcile(pipe, [good])
    before = song(pipe)
    other = spec(pipe, FORMATS["kohya"][0](pipe, tmp_path / "other")[0])
    gone, changed = (
        spec(pipe, lora(pipe, tmp_path / name, scale=1.0)[0]) for name in ("gone", "changed")
    )
    Path(gone.path).unlink()
    Path(changed.path).write_bytes(Path(other.path).read_bytes())
    failing = {"lora_missing": gone, "lora_changed": changed}
    for code, value in {"lora_broken": math.nan, "lora_empty": 0.0}.items():
        made = {module: (a, torch.full_like(b, value)) for module, (a, b) in matrices(pipe).items()}
        failing[code] = spec(pipe, put(tmp_path / f"{code}.safetensors", pairs(made)))
    for code, bad in failing.items():
        with pytest.raises(StudioError) as caught:
            lora_apply.reconcile(pipe, [other, bad])
        assert (caught.value.problem.code, caught.value.problem.field) == (code, "options.loras")
        assert f'"{bad.info.name}"' in caught.value.problem.message
        assert torch.equal(song(pipe), before), code
    # The worker looks itself whether a LoRA fits.
    with pytest.raises(StudioError, match="96 by 64"):
        lora_apply.reconcile(pipe_xl, [good])


def test_a_lora_of_the_other_size_is_refused_with_the_places_that_differ(pipe, pipe_xl, tmp_path):
    path, _ = peft(pipe, tmp_path)
    with pytest.raises(StudioError) as caught:
        spec(pipe_xl, path)
    problem = caught.value.problem
    assert (problem.code, problem.field) == ("lora_unfit", "options.loras")
    assert (
        "96 by 96" in problem.message
        and "96 by 64" in problem.message
        and "condition_embedder" in problem.message
    )
    assert lora_sources.inspect(path, lora_apply.widths_of_pipe(pipe_xl)).problem == problem


def inputs_of(pipe, modules, dtype):
    """Return an input [4, in] for each module, of about unit spread."""
    generator, widths = torch.Generator().manual_seed(1), lora_apply.widths_of_pipe(pipe)
    return {
        module: torch.randn(4, widths[module][1], generator=generator).to(dtype)
        for module in modules
    }


def outputs_of(pipe, inputs):
    """Return what each module makes of its input, in float64."""
    with torch.no_grad():
        return {
            module: pipe.transformer.get_submodule(module)(x).double()
            for module, x in inputs.items()
        }


def build(folder, dtype, plan="resident"):
    device = models.Device("cpu", dtype, dtype, "float32", "a test")
    return models.build_pipeline(weights_in(folder), device, model_memory.layout_of("cpu", plan))


@pytest.mark.numbers
@pytest.mark.parametrize(
    "dtype, plan",
    [
        ("bfloat16", "resident"),
        ("bfloat16", "fast8"),
        *(pytest.param("float32", plan, marks=pytest.mark.slow) for plan in ("fp8", "turns")),
    ],
)
def test_narrow_numbers_and_parts_that_take_turns_work_as_before(pipe, tiny, tmp_path, dtype, plan):
    """A layer's output gains what the LoRA means, as exactly as its numbers are, and loses it without a trace."""
    other = build(tiny, dtype, "resident" if plan == "turns" else plan)
    if plan == "turns":
        model_offload.Offload(other, "cpu")
    kept = {name: parameter.dtype for name, parameter in other.transformer.named_parameters()}
    path, change = lokr(pipe, tmp_path)
    inputs = inputs_of(pipe, change, getattr(torch, dtype))
    without, song_without = outputs_of(other, inputs), song(other)
    lora_apply.reconcile(other, [spec(other, path, LARGE)])
    acting = outputs_of(other, inputs)
    for module, x in inputs.items():
        expected = LARGE * x.double() @ change[module].double().T
        error = acting[module] - without[module] - expected
        assert expected.norm() > without[module].norm(), module
        assert error.norm() < ROUNDINGS * torch.finfo(x.dtype).eps * expected.norm(), module
    # In a song the layers are called in the same way: at this weight hardly anything else is heard.
    assert (song(other) - song_without).norm() > song_without.norm() / 2
    lora_apply.reconcile(other, ())
    assert torch.equal(song(other), song_without)
    assert {
        name: parameter.dtype for name, parameter in other.transformer.named_parameters()
    } == kept
    transformer = weakref.ref(other.transformer)
    lora_apply.reconcile(other, [spec(other, path)])
    del other
    gc.collect()
    assert transformer() is None  # its adapters do not keep it


def test_the_widths_are_the_same_from_files_and_from_the_model(pipe, pipe_xl, tiny, tiny_xl):
    assert lora_format.widths_of(tiny) == lora_apply.widths_of_pipe(pipe)
    assert lora_format.widths_of(tiny_xl) == lora_apply.widths_of_pipe(pipe_xl)
    assert lora_format.widths_of(Path("/not/there")) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["XL", "2B"])
def test_the_known_models_are_those_of_the_reference(kind):
    """The names and widths of the real transformers, built without memory."""
    from diffusers import AceStepTransformer1DModel

    shapes = {
        "XL": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        "2B": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
    }
    with torch.device("meta"):
        model = AceStepTransformer1DModel(
            num_key_value_heads=8,
            head_dim=128,
            in_channels=192,
            encoder_hidden_size=2048,
            **shapes[kind],
        )
    modules = model.named_modules()
    linear = {
        name: (m.out_features, m.in_features)
        for name, m in modules
        if isinstance(m, torch.nn.Linear)
    }
    assert linear == lora_format.KNOWN_MODELS[kind]
