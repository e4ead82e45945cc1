"""Processors that are slow in bfloat16: weights stay in it and are widened as they work, bit for bit as in float32."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

import lyrics
import model_offload
import models
import planner as planning
from model_weights import Weights
from params import parse_request
from planner_layers import CachedLayers
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


@pytest.mark.slow
@pytest.mark.numbers
def test_the_planner_is_widened_bit_for_bit():
    weights = Weights("planner", PLANNER, "variable", "", "transformers", None, "planner")
    narrow = planning.load_planner(weights, SLOW)
    assert narrow.model.get_decoder().layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    wide = planning.load_planner(weights, CPU)
    rounded(wide.model)
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    states = []
    for each in (narrow, wide):
        layers = CachedLayers(each.model, [0, 1], 8)
        states.append([layers.read(tokens), layers.read(tokens[:, :1])])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    song = parse_request(
        "generate",
        {
            "prompt": "calm piano",
            "duration": 10,
            "bpm": 90,
            "key": "A minor",
            "time_signature": "4",
        },
    )
    plans = [list(planning.plan(each, song, (3,)))[-1] for each in (narrow, wide)]
    assert plans[0] == plans[1]


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
    monkeypatch.setattr(models, "bfloat16_pace", lambda: 2.0)
    native = scores(narrow_songwriter)
    wide = scores(narrow_songwriter, torch.float32)
    monkeypatch.setattr(models, "bfloat16_pace", lambda: WIDE_AND_SLOW)
    widened = scores(narrow_songwriter)
    assert native[0].dtype == torch.bfloat16
    assert widened[0].dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(widened, wide, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_a_large_matrix_is_widened_in_parts(bias, monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 50, bias=bias).to(torch.bfloat16)
    x = torch.randn(3, 8)
    with torch.no_grad():
        whole = model_offload.wide_linear(x, layer.weight, layer.bias)
        monkeypatch.setattr(model_offload, "MOST_WIDENED", 64)
        widened: list[int] = []
        split = torch.Tensor.split
        monkeypatch.setattr(
            torch.Tensor,
            "split",
            lambda tensor, rows: widened.append(rows * 8) or split(tensor, rows),
        )
        parts = model_offload.wide_linear(x, layer.weight, layer.bias)
    assert max(widened) == 64
    # Eight products of numbers around one are summed, in whatever order.
    assert torch.allclose(parts, whole, atol=8 * torch.finfo(torch.float32).eps * 8)


def test_a_planner_that_is_widened_counts_with_its_stored_size(make_studio, monkeypatch):
    weights = Weights("planner", PLANNER, "variable", "", "transformers", None, "planner")
    studio = make_studio()
    sizes = {}
    for name, device in {"stored": SLOW, "wide": CPU}.items():
        monkeypatch.setattr(studio.models, "known_device", device)
        monkeypatch.setattr(studio.models.planner, "weights", weights)
        sizes[name] = studio.placing._sizes().planner
    assert sizes["wide"] == 2 * sizes["stored"]


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
