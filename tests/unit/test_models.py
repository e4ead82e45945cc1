"""Choosing a device and building the pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import checkpoints
import models
from events import StudioError
from tests.weights import CPU, weights_in

# --- devices ------------------------------------------------------------------------------------------------------


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
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda index=0: SimpleNamespace(total_memory=24 * 2**30)
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (macos, 0) >= (major, minor))

    return become


REAL = checkpoints.Weights("real", None, "hub", "", "xl", None, "real")
PREVIEW = checkpoints.Weights("preview", None, "preview", "", "preview", None, "real")


def numbers(device: models.Device) -> tuple[str, str, str, str]:
    """Return all but the reason."""
    return device.kind, device.dtype, device.storage_dtype, device.vae_dtype


def test_cuda_comes_first(machine):
    machine(cuda="NVIDIA H200", mps=True)
    device = models.pick_device(REAL)
    assert numbers(device) == ("cuda", "bfloat16", "bfloat16", "bfloat16")
    assert "NVIDIA H200" in device.reason and "bfloat16" in device.reason
    assert numbers(models.pick_device(PREVIEW)) == ("cuda", "float32", "float32", "float32")
    assert models.vram_limit_for("cuda") == 24 * 2**30


def test_an_old_nvidia_card_stores_small_and_computes_exactly(machine):
    machine(cuda="Tesla T4", native=False)
    device = models.pick_device(REAL)
    assert numbers(device) == ("cuda", "float32", "float16", "float32")
    assert "Tesla T4" in device.reason and "float16" in device.reason and "float32" in device.reason


def test_apple(machine):
    machine(mps=True)
    assert numbers(models.pick_device(REAL)) == ("mps", "bfloat16", "bfloat16", "float32")
    assert numbers(models.pick_device(PREVIEW)) == ("mps", "float32", "float32", "float32")
    assert models.vram_limit_for("mps") is None
    machine(mps=True, macos=13)
    device = models.pick_device(REAL)
    assert device.dtype == "float32" and "macOS 14" in device.reason


def test_the_processor_is_last_and_follows_the_memory(machine, monkeypatch):
    machine()
    assert numbers(models.pick_device(PREVIEW)) == ("cpu", "float32", "float32", "float32")
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 10**9))
    monkeypatch.setattr(models, "_container_memory", lambda: None)
    assert numbers(models.pick_device(REAL)) == ("cpu", "float32", "float32", "float32")
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * 10**9))
    device = models.pick_device(REAL)
    assert numbers(device) == ("cpu", "bfloat16", "bfloat16", "float32")
    assert "no NVIDIA or Apple GPU" in device.reason and "16 GB" in device.reason
    assert models.vram_limit_for("cpu") is None


def test_zerogpu_asks_nothing_of_a_card_that_is_not_there_yet(machine, monkeypatch):
    machine(cuda="should not be asked", native=False)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    device = models.pick_device(REAL)
    assert numbers(device) == ("cuda", "bfloat16", "bfloat16", "bfloat16")
    assert "should not be asked" not in device.reason
    assert models.vram_limit_for("cuda") is None


# --- building -----------------------------------------------------------------------------------------------------


def play(pipe, **changes):
    """Return the latents of a short song."""
    import torch

    return pipe(
        **{
            "prompt": "warm lofi piano",
            "lyrics": "[Instrumental]",
            "audio_duration": 4,
            "guidance_scale": 7.0,
            **changes,
        },
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).audios


def test_the_pipeline_is_ready_for_songs(pipe, capfd):
    assert pipe.vae.use_tiling
    assert not any(
        p.requires_grad for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for p in part.parameters()
    )
    assert not pipe.transformer.training and not pipe.condition_encoder.training
    play(pipe)
    assert "it/s" not in capfd.readouterr().err


def test_the_preview_is_built_by_the_same_code(monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    weights = checkpoints.find_weights()
    pipe = models.build_pipeline(weights, models.pick_device(weights))
    assert weights.folder.is_dir() and play(pipe).isfinite().all()


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


def test_bfloat16_with_a_float32_vae(tiny):
    import torch

    pipe = models.build_pipeline(weights_in(tiny), models.Device("cpu", "bfloat16", "bfloat16", "float32", ""))
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert play(pipe).isfinite().all()


def test_a_checkpoint_that_cannot_be_loaded_is_an_error_in_words(checkpoint):
    config = checkpoint / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 96', '"hidden_size": 100'))
    with pytest.raises(StudioError) as caught:
        models.build_pipeline(weights_in(checkpoint), CPU)
    assert caught.value.problem.code == "weights_broken"
    assert "my-model" in str(caught.value) and "\n" not in caught.value.problem.message
