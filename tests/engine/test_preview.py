"""The random checkpoint of the tests: the same everywhere, and sound at every length."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model_weights import LYRICS_VARIABLE, PLANNER_VARIABLE
from tests.program import ROOT
from tests.weights import PLANNER, SONGWRITER
from tools import random_models
from tools.random_models import DECODED_DBFS, make_checkpoint

LYRICS = "[Verse 1]\nSoft notes in the morning light\n[Chorus]\nMusic fills the air tonight"
WORDS = {"prompt": "warm lofi piano with soft drums", "lyrics": LYRICS, "vocal_language": "en"}


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def in_new_process(code: str) -> subprocess.Popen:
    """Start Python on `code` in the repository's root."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def song(pipe, seconds: float, steps: int) -> torch.Tensor:
    """Return the latents [1, frames, channels] of a song."""
    torch.manual_seed(0)  # the VAE draws from the global generator when it encodes
    return pipe(
        **{**WORDS, "bpm": 90, "keyscale": "C major", "audio_duration": seconds},
        **{"num_inference_steps": steps, "guidance_scale": 7.0, "shift": 1.0},
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).audios


def decibels(samples: torch.Tensor) -> float:
    """Return the RMS of `samples` in dBFS."""
    return 20 * math.log10(float(samples.square().mean().sqrt()))


# --- on disk ------------------------------------------------------------------------------------------------------


def test_it_has_the_real_layout_and_stays_small(tiny):
    index = json.loads((tiny / "model_index.json").read_text())
    assert index["_class_name"] == "AceStepPipeline"
    parts = {"transformer", "vae", "text_encoder", "tokenizer", "condition_encoder", "scheduler"}
    assert {name for name in index if not name.startswith("_")} == parts | {
        "audio_tokenizer",
        "audio_token_detokenizer",
    }
    assert sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file()) < 10e6
    vae = json.loads((tiny / "vae" / "config.json").read_text())
    assert vae["downsampling_ratios"] == [2, 4, 4, 6, 10]
    assert (vae["sampling_rate"], vae["audio_channels"]) == (48_000, 2)
    assert vae["encoder_hidden_size"] == 2 * vae["decoder_input_channels"]


def test_the_xl_shape_has_narrower_conditions(pipe, pipe_xl):
    def widths(pipeline) -> tuple[int, int]:
        return (
            pipeline.transformer.config.hidden_size,
            pipeline.transformer.config.encoder_hidden_size,
        )

    assert widths(pipe)[0] == widths(pipe)[1]
    assert widths(pipe_xl)[0] != widths(pipe_xl)[1]
    assert song(pipe_xl, 2, steps=2).isfinite().all()


@pytest.mark.slow
def test_it_has_equal_bytes_everywhere_and_leaves_the_global_generator_alone(tiny, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "a"
    other = in_new_process(
        f"from pathlib import *; from tools.random_models import *; make_checkpoint({elsewhere!r})"
    )
    torch.manual_seed(5)
    state = torch.get_rng_state()
    make_checkpoint(tmp_path / "here")
    assert torch.equal(torch.get_rng_state(), state)
    assert hashes(tmp_path / "here") == hashes(tiny)
    assert other.wait(800) == 0
    assert hashes(elsewhere) == hashes(tiny)
    text = "".join(path.read_text() for path in tiny.rglob("*.json"))
    assert str(tiny.parent) not in text and "_name_or_path" not in text


@pytest.mark.numbers
@pytest.mark.slow
def test_the_language_models_in_assets_are_those_that_the_tool_makes(tmp_path, monkeypatch):
    for variable, shipped in ((PLANNER_VARIABLE, PLANNER), (LYRICS_VARIABLE, SONGWRITER)):
        monkeypatch.setitem(random_models.RANDOM_MODELS, variable, tmp_path / shipped.name)
    random_models.main()
    for shipped in (PLANNER, SONGWRITER):
        made, kept = (
            load_file(folder / "model.safetensors") for folder in (tmp_path / shipped.name, shipped)
        )
        assert made.keys() == kept.keys()
        for name in kept:
            # The normal draws are made from equal bits by logarithms and cosines, which processors round differently.
            assert made[name].dtype == kept[name].dtype
            assert torch.allclose(made[name], kept[name], rtol=1e-5, atol=1e-6), name
        words = [
            AutoTokenizer.from_pretrained(folder).get_vocab()
            for folder in (tmp_path / shipped.name, shipped)
        ]
        assert words[0] == words[1]


# --- sound --------------------------------------------------------------------------------------------------------


# The stock pipeline holds every pair of tokens at once: gigabytes for 600 s.
@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "steps"), [(2, 20), (60, 8)])
def test_songs_of_every_length_are_sound(pipe, seconds, steps):
    latents = song(pipe, seconds, steps)
    assert latents.shape[1] == 25 * seconds
    assert latents.isfinite().all()
    assert 0.3 < float(latents.std()) < 3
    with torch.no_grad():
        sound = pipe.vae.decode(latents[:, :1500].transpose(1, 2)).sample
    assert -30 < decibels(sound) < -10
    assert float(sound.abs().max()) < 2


@pytest.mark.slow
def test_random_latents_are_heard_and_differ_and_silence_has_a_latent(pipe):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(
        2, pipe.transformer.config.audio_acoustic_hidden_dim, 250, generator=generator
    )
    with torch.no_grad():
        sounds = pipe.vae.decode(latents).sample
        silence = pipe.vae.encode(torch.zeros(1, 2, 480_000)).latent_dist.mode()
    assert sounds.shape == (2, 2, 480_000)
    for sound in sounds:
        assert abs(decibels(sound) - DECODED_DBFS) < 2
        assert abs(float(sound.mean())) < 1e-4
    # No hum that all songs share, and two channels that are not one.
    for one in (sounds.flatten(1), sounds[0]):
        assert abs(float(torch.corrcoef(one)[0, 1])) < 0.4
    held = pipe.condition_encoder.silence_latent
    assert held.shape[1] == 15_000
    # Its channels differ by far more than the rounding.
    assert float(held.std()) > 10 / 256
    assert float((silence[0, :, 10:-10].T - held[0, :230]).abs().max()) < 0.01
