"""Processors that are slow in bfloat16: weights stay in it and are widened as they work, bit for bit as in float32."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

import lyrics
import model_memory
import model_offload
import models
from model_weights import Weights
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


def test_the_planner_computes_in_float32_and_takes_less_than_the_song_model(
    make_studio, monkeypatch
):
    weights = Weights("planner", PLANNER, "variable", "", "transformers", None, "planner")
    studio = make_studio()
    monkeypatch.setattr(studio.models, "known_device", SLOW)
    monkeypatch.setattr(studio.models.planner, "weights", weights)
    assert models.planner_dtype(SLOW) == "float32"
    monkeypatch.setattr(model_memory, "bytes_in", lambda folder: 3_710_000_000)
    assert studio.placing.sizes().planner == 2 * 3_710_000_000
    real = sum(size * model_memory.GB for size in model_memory.XL_PARTS_GB.values())
    assert studio.placing.sizes().planner < real


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
