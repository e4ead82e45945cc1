"""Processors that are slow in bfloat16: weights stay in it and are widened as they work, bit for bit as in float32."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
import torch

import lyrics
import model_memory
import model_offload
import models
import planner
import planner_decoding
import planner_layers
from model_weights import Weights
from params import parse_request
from tests.program import python
from tests.weights import CPU, PLANNER, SONGWRITER, round_weights, weights_in

SLOW = models.Device("cpu", "float32", "bfloat16", "float32", "a test")
WIDE_AND_SLOW = 0.02  # the pace of an AMD processor with AVX2


def rounded(module: torch.nn.Module) -> torch.nn.Module:
    """Give the weights of `module` the values that bfloat16 can store."""
    round_weights(module, torch.bfloat16)
    return module


def latents(pipe):
    generator = torch.Generator().manual_seed(1)
    words = {"prompt": "warm lofi piano", "lyrics": "[Verse]\nSoft light", "audio_duration": 4}
    return pipe(**words, guidance_scale=7.0, generator=generator, output_type="latent").audios


@pytest.mark.slow
@pytest.mark.numbers
def test_the_song_model_and_its_text_encoder_are_widened_bit_for_bit(tiny):
    stored = models.build_pipeline(weights_in(tiny), SLOW)
    assert stored.transformer.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert stored.text_encoder.embed_tokens.weight.dtype == torch.bfloat16
    wide = models.build_pipeline(weights_in(tiny), CPU)
    for name in ("transformer", "text_encoder", "condition_encoder"):
        rounded(getattr(wide, name))
    assert torch.equal(latents(stored), latents(wide))


@pytest.fixture
def narrow_songwriter(tmp_path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(SONGWRITER).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(SONGWRITER, dtype=torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def scores(folder: Path, dtype: torch.dtype | None = None):
    """Return the scores after two reads, of a songwriter whose weights are made `dtype` if one is given."""
    from transformers import DynamicCache

    writer = lyrics.TorchModel(folder, "cpu", None)
    if dtype:
        writer.language_model.to(dtype)
    cache = DynamicCache(config=writer.config)
    return [writer.scores([ids], cache) for ids in ([3, 4, 5], [6])]


@pytest.mark.slow
@pytest.mark.numbers
def test_the_songwriter_is_widened_bit_for_bit_only_where_bfloat16_is_slow(
    narrow_songwriter, monkeypatch
):
    monkeypatch.setattr(models, "bfloat16_pace", lambda rows=64: 2.0)
    native = scores(narrow_songwriter)
    wide = scores(narrow_songwriter, torch.float32)
    monkeypatch.setattr(models, "bfloat16_pace", lambda rows=64: WIDE_AND_SLOW)
    widened = scores(narrow_songwriter)
    assert native[0].dtype == torch.bfloat16
    assert widened[0].dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(widened, wide, strict=True))
    # Where a single row is fast, only several are widened.
    monkeypatch.setattr(models, "bfloat16_pace", lambda rows=64: WIDE_AND_SLOW if rows > 1 else 1.0)
    prompt, token = scores(narrow_songwriter)
    assert not torch.equal(token, wide[1])
    # The scores of a prompt's last token are a single row, too; bfloat16 has 8 bits.
    for made, exact in zip((prompt, token), wide, strict=True):
        assert torch.allclose(made, exact, atol=2**-5 * float(exact.abs().max()))


@pytest.mark.parametrize("bias", [False, True])
def test_a_large_matrix_is_widened_in_parts(bias, monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 50, bias=bias).to(torch.bfloat16)
    x = torch.randn(3, 8)
    with torch.no_grad():
        whole = layer.float()(x)
        model = torch.nn.Sequential(layer.to(torch.bfloat16))
        monkeypatch.setattr(model_offload, "MOST_WIDENED", 64)
        model_offload.widen_on_use(model)
        widened: list[int] = []
        copy = torch.Tensor.copy_
        monkeypatch.setattr(
            torch.Tensor,
            "copy_",
            lambda tensor, other: widened.append(other.numel()) or copy(tensor, other),
        )
        parts = model(x)
    assert max(widened) == 64
    assert sum(widened) == 50 * 8
    # Eight products of numbers around one are summed, in whatever order.
    assert torch.allclose(parts, whole, atol=8 * torch.finfo(torch.float32).eps * 8)


def planner_weights(folder: Path) -> Weights:
    return Weights("planner", folder, "variable", "", "transformers", None, "planner")


@pytest.fixture
def narrow_planner(tmp_path) -> Path:
    from transformers import AutoModelForCausalLM

    shutil.copytree(PLANNER, tmp_path, dirs_exist_ok=True)
    AutoModelForCausalLM.from_pretrained(PLANNER, dtype=torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def finished(work):
    """Return what a generator returns, or else the last that it yields."""
    last = None
    while True:
        try:
            last = next(work)
        except StopIteration as end:
            return last if end.value is None else end.value


def planned(found: planner.Planner) -> list[object]:
    """Return what the planner's own layers, those of transformers, its codes, a plan and its judgement come to."""
    tokens = torch.arange(5, 25).reshape(2, 10)
    pads = [0, 4]
    made: list[object] = []
    ours = planner_layers.CachedLayers(found.model, pads, 12)
    for reader in (ours, planner_layers.PlainLayers(found.model, pads)):
        made += [reader.read(tokens), reader.read(tokens[:, :1])]
    ids = found.vocabulary.code_ids
    draw = planner_decoding.Draw(1.0)
    writer = planner_decoding.CodeWriter(found.model, ids, ([5, 6, 7], [8]), (1, 2), 12, draw)
    made.append(finished(writer.run()))
    request = parse_request("generate", {"prompt": "warm lofi piano", "lyrics": "Soft light"})
    plan = finished(planner.plan(found, request, (7,)))
    made += [plan.codes, plan.words()]
    made.append(planner.recognition(found, request, "warm lofi piano", range(1, 50), 10.0))
    return made


@pytest.mark.slow
@pytest.mark.numbers
def test_the_planner_is_widened_bit_for_bit_on_a_processor_that_is_short_of_memory(narrow_planner):
    widened = planner.load_planner(planner_weights(narrow_planner), SLOW)
    layer = widened.model.get_decoder().layers[0]
    assert layer.mlp.down_proj.weight.dtype == torch.bfloat16
    assert layer.self_attn.q_proj.weight.dtype == torch.bfloat16
    wide = planner.load_planner(planner_weights(narrow_planner), CPU)
    assert wide.model.get_decoder().layers[0].mlp.down_proj.weight.dtype == torch.float32
    for made, exact in zip(planned(widened), planned(wide), strict=True):
        if isinstance(exact, torch.Tensor):
            assert made.dtype == exact.dtype
            assert torch.equal(made, exact)
        else:
            assert made == exact


def test_the_planner_is_counted_as_it_lies_in_memory(make_studio, monkeypatch):
    studio = make_studio()
    monkeypatch.setattr(studio.models.planner, "weights", planner_weights(PLANNER))
    monkeypatch.setattr(model_memory, "bytes_in", lambda folder: 3_710_000_000)
    monkeypatch.setattr(studio.models, "known_device", CPU)
    assert studio.placing.sizes().planner == 2 * 3_710_000_000
    monkeypatch.setattr(studio.models, "known_device", SLOW)
    widened_at_once = 4 * model_offload.MOST_WIDENED
    assert studio.placing.sizes().planner == 3_710_000_000 + widened_at_once


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only these processors can pose")
def test_a_processor_without_bfloat16_is_found_to_be_slow_in_it():
    result = python(
        "-c",
        "import models; print(models.bfloat16_pace())",
        ATEN_CPU_CAPABILITY="avx2",
        ONEDNN_MAX_CPU_ISA="AVX2",
        OMP_NUM_THREADS="1",
    )
    assert result.returncode == 0, result.stderr
    # Without instructions for it each product costs those of float32 and the widening of its factors.
    assert float(result.stdout) < 1
