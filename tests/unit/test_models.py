"""Choosing a device and building the pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import memory
import models
from events import StudioError
from tests.weights import CPU, weights_in
from weights import Weights


@pytest.fixture
def machine(home, monkeypatch):
    """Return a function that gives this machine other hardware, as far as torch tells."""
    import torch

    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)

    def become(cuda: str = "", native: bool = True, mps: bool = False, macos: int = 15) -> None:
        def bf16(including_emulation: bool = True) -> bool:
            return native or including_emulation

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", bf16)
        card = SimpleNamespace(total_memory=24 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index=0: card)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (macos, 0) >= (major, minor))

    return become


REAL = Weights("real", None, "hub", "", "xl", None, "real")
PREVIEW = Weights("preview", None, "preview", "", "preview", None, "real")


def device_of(weights) -> tuple[tuple[str, str, str, str], str]:
    """Return the device that is picked for weights: its kind and three number formats, and why."""
    device = models.pick_device(weights)
    return (device.kind, device.dtype, device.storage_dtype, device.vae_dtype), device.reason


NARROW = ("bfloat16",) * 3
WIDE = ("float32",) * 3


def test_cuda_comes_first(machine):
    machine(cuda="NVIDIA H200", mps=True)
    device, reason = device_of(REAL)
    assert device == ("cuda", *NARROW) and "NVIDIA H200" in reason and "bfloat16" in reason
    assert device_of(PREVIEW)[0] == ("cuda", *WIDE)
    assert memory.vram_limit_for("cuda") == 24 * 2**30
    # An old card stores small and computes exactly.
    machine(cuda="Tesla T4", native=False)
    device, reason = device_of(REAL)
    assert device == ("cuda", "float32", "float16", "float32")
    assert all(words in reason for words in ("Tesla T4", "float16", "float32"))


def test_apple(machine):
    machine(mps=True)
    assert device_of(REAL)[0] == ("mps", "bfloat16", "bfloat16", "float32")
    assert device_of(PREVIEW)[0] == ("mps", *WIDE)
    assert memory.vram_limit_for("mps") is None
    machine(mps=True, macos=13)
    device, reason = device_of(REAL)
    assert device[1] == "float32" and "macOS 14" in reason


def test_the_processor_is_last_and_follows_the_memory(machine, monkeypatch):
    machine()
    assert device_of(PREVIEW)[0] == ("cpu", *WIDE)
    monkeypatch.setattr(models, "_container_memory", lambda: None)
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 10**9))
    assert device_of(REAL)[0] == ("cpu", *WIDE)
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * 10**9))
    device, reason = device_of(REAL)
    assert device == ("cpu", "bfloat16", "bfloat16", "float32")
    assert "no NVIDIA or Apple GPU" in reason and "16 GB" in reason
    assert memory.vram_limit_for("cpu") is None


def test_zerogpu_asks_nothing_of_a_card_that_is_not_there_yet(machine, monkeypatch):
    machine(cuda="should not be asked", native=False)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    device, reason = device_of(REAL)
    assert device == ("cuda", *NARROW) and "should not be asked" not in reason
    assert memory.vram_limit_for("cuda") is None


def play(pipe, **changes):
    """Return the latents of a short song."""
    import torch

    words = {"prompt": "warm lofi piano", "lyrics": "[Instrumental]", "audio_duration": 4, "guidance_scale": 7.0}
    generator = torch.Generator().manual_seed(1)
    return pipe(**{**words, **changes}, generator=generator, output_type="latent").audios


def test_the_pipeline_tiles_and_says_nothing(pipe, capfd):
    assert pipe.vae.use_tiling
    assert not any(parameter.requires_grad for parameter in pipe.transformer.parameters())
    play(pipe)
    assert "it/s" not in capfd.readouterr().err


def test_narrow_storage_computes_in_float32_and_sounds_alike(pipe, tiny):
    import torch

    narrow = models.build_pipeline(weights_in(tiny), models.Device("cpu", "float32", "float16", "float32", ""))
    assert narrow.transformer.dtype == torch.float32  # the loop's own dtype
    assert narrow.transformer.layers[0].mlp.up_proj.weight.dtype == torch.float16
    assert narrow.text_encoder.embed_tokens.weight.dtype == torch.float16
    wide, close = play(pipe), play(narrow)
    assert close.dtype == torch.float32
    assert float((wide - close).square().mean().sqrt() / wide.std()) < 0.005
    sounds = {"task_type": "cover", "src_audio": 0.1 * torch.randn(2, 48_000)}
    assert play(narrow, **sounds).isfinite().all()


def test_a_checkpoint_that_cannot_be_loaded_is_an_error_in_words(checkpoint):
    config = checkpoint / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 96', '"hidden_size": 100'))
    with pytest.raises(StudioError) as caught:
        models.build_pipeline(weights_in(checkpoint), CPU)
    assert caught.value.problem.code == "weights_broken"
    assert "my-model" in str(caught.value) and "\n" not in caught.value.problem.message
