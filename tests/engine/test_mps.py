"""What Apple's GPU refuses: long convolutions before macOS 15.1, on a pipeline that lies on a card of tests/card.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models
import modes
import song_codec
import song_vae
from gpu_job import SongJob
from params import parse_request, settle
from tests.card import KIND, OnCard
from tests.engine.songs import result_of
from tests.weights import CPU, weights_in


def job(folder, steps):
    values = {"prompt": "calm piano", "duration": 10, "options": {"steps": steps}}
    request = parse_request("generate", values)
    return SongJob(request, (7,), (8,), str(folder), {}, settings=settle(request, "sft"))


@pytest.fixture
def refusing(tiny):
    """Return a pipeline whose VAE refuses convolutions of over 65,536 samples, but not on the processor."""
    pipe = models.build_pipeline(weights_in(tiny), CPU)

    def refuse(module, inputs, output):
        if isinstance(output, OnCard) and output.shape[-1] > 65_536:
            raise NotImplementedError("Output channels > 65536 not supported at the MPS device.")

    for module in pipe.vae.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            module.register_forward_hook(refuse)
    return pipe.to(KIND)


def encoded(pipe, samples):
    return result_of(song_codec.encode(pipe, samples, "reading"))


def decoded(pipe, latents):
    return np.concatenate(
        [tile.numpy() for _, _, tile in song_codec.decode_latents(pipe, latents)], axis=1
    )


@pytest.mark.slow
def test_short_tiles_are_never_refused_and_give_the_same_sound(refusing, pipe):
    samples = np.random.default_rng(1).standard_normal((2, 3 * 48_000)).astype(np.float32) * 0.1
    song_vae.use_tiles(refusing.vae, short=True)
    expected = encoded(pipe, samples)
    assert torch.allclose(encoded(refusing, samples).cpu(), expected, atol=1e-4)
    assert np.allclose(decoded(refusing, expected.to(KIND)), decoded(pipe, expected), atol=1e-4)
    assert song_codec.refusal(refusing) == ""


@pytest.mark.slow
def test_the_processor_does_what_is_refused_all_the_same_and_a_note_says_so(
    refusing, tmp_path, monkeypatch
):
    with pytest.raises(NotImplementedError):
        list(modes.run(refusing, job(tmp_path, 1)))
    monkeypatch.setattr(song_codec, "REFUSING_DEVICE", torch.device(KIND).type)
    *_, outcome = modes.run(refusing, job(tmp_path, 1))
    assert outcome.takes[0].problem is None
    assert [note for note in outcome.notes if "processor" in note and "65536" in note]
    assert refusing._execution_device == torch.device(KIND)


@pytest.mark.parametrize(("newer", "frames"), [(False, 34), (True, 512)])
def test_the_tiles_are_short_where_macos_needs_it(tiny, monkeypatch, newer, frames):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: newer)
    monkeypatch.setattr("diffusers.AceStepPipeline.to", lambda pipe, *_: pipe)
    pipe = models.build_pipeline(
        weights_in(tiny), models.Device("mps", "float32", "float32", "float32", "a test")
    )
    assert pipe.vae.tile_latent_min_length == frames


def test_the_planner_computes_in_32_bits_on_apples_gpu():
    device = models.Device("mps", "bfloat16", "bfloat16", "float32", "a test")
    assert models.planner_dtype(device) == "float32"


def test_memory_that_the_allocator_holds_without_need_is_freed_after_each_step(
    pipe, tmp_path, monkeypatch
):
    for held, freed in ((2_000, 1), (1_200, 0)):
        calls = []
        monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda held=held: held)
        monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 1_000)
        monkeypatch.setattr(torch.mps, "empty_cache", lambda calls=calls: calls.append(1))
        models.trim_memory(torch.device("mps"))
        models.trim_memory(torch.device("cpu"))
        assert len(calls) == freed, held
    asked = []
    monkeypatch.setattr(models, "trim_memory", asked.append)
    list(modes.run(pipe, job(tmp_path, 2)))
    assert asked == [pipe._execution_device] * 2
