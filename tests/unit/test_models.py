"""Choosing a device and building the pipeline."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

import model_memory
import models
from events import StudioError
from model_weights import Weights
from tests.weights import CPU, round_weights, weights_in

REAL = Weights("real", None, "hub", "", "xl", None, "real")
PREVIEW = Weights("preview", None, "preview", "", "preview", None, "real")
NARROW, WIDE = ("bfloat16",) * 3, ("float32",) * 3
GIB = 2**30

# The hardware, the weights, the free memory in GB; the device with its three dtypes, and words of the reason.
DEVICES = {
    "cuda first": (
        {"cuda": "NVIDIA H200", "mps": True},
        REAL,
        0,
        ("cuda", *NARROW),
        ("NVIDIA H200", "bfloat16"),
    ),
    "cuda preview": ({"cuda": "NVIDIA H200"}, PREVIEW, 0, ("cuda", *WIDE), ("built-in engine",)),
    "old card": (
        *({"cuda": "Tesla T4", "native": False}, REAL, 0),
        *(("cuda", "float32", "float16", "float32"), ("Tesla T4", "float16", "float32")),
    ),
    "zerogpu": (
        {"cuda": "not asked", "native": False, "zerogpu": True},
        REAL,
        0,
        ("cuda", *NARROW),
        ("ZeroGPU",),
    ),
    "apple": ({"mps": True}, REAL, 0, ("mps", "bfloat16", "bfloat16", "float32"), ("Apple",)),
    "apple preview": ({"mps": True}, PREVIEW, 0, ("mps", *WIDE), ("built-in engine",)),
    "old macOS": ({"mps": True, "macos": 13}, REAL, 0, ("mps", *WIDE), ("macOS 14",)),
    "processor preview": ({}, PREVIEW, 0, ("cpu", *WIDE), ("no NVIDIA or Apple GPU",)),
    "processor": ({}, REAL, 64, ("cpu", *WIDE), ("float32",)),
    "little memory": (
        {"pace": 2.0},
        REAL,
        16,
        ("cpu", "bfloat16", "bfloat16", "float32"),
        ("no NVIDIA or Apple GPU", "16 GB"),
    ),
    "little memory, slow in bfloat16": (
        {"pace": 0.02},
        REAL,
        16,
        ("cpu", "float32", "bfloat16", "float32"),
        ("stored in bfloat16", "16 GB", "computed in float32"),
    ),
    "products of matrices in bfloat16": (
        {"pace": 6.0},
        REAL,
        64,
        ("cpu", "bfloat16", "bfloat16", "float32"),
        ("6 times as fast",),
    ),
}


@pytest.mark.parametrize(
    "hardware, weights, free, device, words", DEVICES.values(), ids=DEVICES.keys()
)
def test_the_device_follows_the_hardware_and_the_weights(
    home, monkeypatch, hardware, weights, free, device, words
):
    import torch

    usual = {"cuda": "", "native": True, "mps": False, "macos": 15, "zerogpu": False, "pace": 1.0}
    here = {**usual, **hardware}
    if here["zerogpu"]:
        monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(here["cuda"]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: here["cuda"])
    native = here["native"]
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index=0: SimpleNamespace(total_memory=24 * GIB)
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: here["mps"])
    newer = (here["macos"], 0)
    monkeypatch.setattr(
        torch.backends.mps, "is_macos_or_newer", lambda major, minor: newer >= (major, minor)
    )
    monkeypatch.setattr(models, "available_memory", lambda: free * 10**9)
    monkeypatch.setattr(models, "bfloat16_pace", lambda: here["pace"])
    picked = models.pick_device(weights)
    assert (picked.kind, picked.dtype, picked.storage_dtype, picked.vae_dtype) == device
    assert all(word in picked.reason for word in words) and "not asked" not in picked.reason
    card = device[0] == "cuda" and not here["zerogpu"]
    assert model_memory.vram_limit_for(device[0]) == (24 * GIB if card else None)


def play(pipe, **changes):
    """Return the latents of a short song."""
    import torch

    words = {
        "prompt": "warm lofi piano",
        "lyrics": "[Instrumental]",
        "audio_duration": 4,
        "guidance_scale": 7.0,
    }
    generator = torch.Generator().manual_seed(1)
    return pipe(**{**words, **changes}, generator=generator, output_type="latent").audios


@pytest.mark.numbers
@pytest.mark.slow
def test_narrow_storage_computes_in_float32_and_plays_the_rounded_weights(pipe, tiny, capfd):
    import torch

    narrow = models.build_pipeline(
        weights_in(tiny), models.Device("cpu", "float32", "float16", "float32", "")
    )
    assert narrow.transformer.dtype == torch.float32  # the loop's own dtype
    assert narrow.transformer.layers[0].mlp.up_proj.weight.dtype == torch.float16
    assert narrow.text_encoder.embed_tokens.weight.dtype == torch.float16
    rounded = models.build_pipeline(weights_in(tiny), CPU)
    for name, part in rounded.components.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            round_weights(part, torch.float16)
    close = play(narrow)
    assert close.dtype == torch.float32
    # The same numbers in the same order; rounding the weights moves latents of about unit spread by more than 1e-3.
    assert torch.allclose(close, play(rounded), atol=1e-5)
    assert not torch.allclose(close, play(pipe), atol=1e-4)
    sounds = {"task_type": "cover", "src_audio": 0.1 * torch.randn(2, 48_000)}
    assert play(narrow, **sounds).isfinite().all()
    assert pipe.vae.use_tiling
    assert not any(parameter.requires_grad for parameter in pipe.transformer.parameters())
    assert "it/s" not in capfd.readouterr().err  # no progress bar


def test_a_checkpoint_that_cannot_be_loaded_is_an_error_in_words(checkpoint):
    config = checkpoint / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 96', '"hidden_size": 100'))
    with pytest.raises(StudioError) as caught:
        models.build_pipeline(weights_in(checkpoint), CPU)
    assert caught.value.problem.code == "weights_broken"
    assert "my-model" in str(caught.value) and "\n" not in caught.value.problem.message


MB = 2**20
GROUPS = {
    # A container of version 2, a service of systemd with a limit on its slice, and containers of version 1.
    "0::/\n": {
        "memory.max": 1000,
        "memory.current": 900,
        "memory.stat": "anon 100\ninactive_file 700\n",
    },
    "0::/user.slice/studio.service\n": {
        "user.slice/memory.max": 1000,
        "user.slice/memory.current": 900,
        "user.slice/memory.stat": "inactive_file 700\n",
        "user.slice/studio.service/memory.max": "max\n",
        "user.slice/studio.service/memory.current": 100,
    },
    "11:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n": {
        "memory/memory.limit_in_bytes": 1000,
        "memory/memory.usage_in_bytes": 900,
        "memory/memory.stat": "cache 800\ntotal_inactive_file 700\n",
    },
    "9:memory:/docker/x\n": {
        "memory/docker/x/memory.limit_in_bytes": 1000,
        "memory/docker/x/memory.usage_in_bytes": 900,
        "memory/docker/x/memory.stat": "total_inactive_file 700\n",
    },
}


@pytest.mark.parametrize("text", GROUPS)
def test_what_was_read_from_files_does_not_count_as_used_in_a_container(
    text, tmp_path, monkeypatch
):
    for name, value in GROUPS[text].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"\d+", lambda number: str(int(number[0]) * MB), str(value)))
    monkeypatch.setattr(models, "CGROUPS", tmp_path)
    monkeypatch.setattr(models, "CGROUP_OF_PROCESS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(text)
    assert models.available_memory() == 800 * MB


def test_a_model_whose_folder_is_gone_says_so_and_is_loaded_once_it_is_back(tiny, tmp_path):
    place = tmp_path / "my-model"
    shutil.copytree(tiny, place)
    weights = weights_in(place)
    slot = models.Slot("The planner", lambda: weights, lambda found: found.folder.name, None, "")
    place.rename(tmp_path / "unmounted")
    for load in (slot.get, lambda: models.build_pipeline(weights, CPU)):
        with pytest.raises(
            StudioError, match=f"The folder of my-model is gone: {place}. Put it back"
        ):
            load()
    (tmp_path / "unmounted").rename(place)
    assert slot.get() == "my-model"


def test_the_built_in_songwriter_is_loaded_before_it_is_unpacked(tmp_path):
    weights = replace(weights_in(tmp_path / "not unpacked yet"), engine="small")
    slot = models.Slot("The songwriter", lambda: weights, lambda found: found.folder.name, None, "")
    assert slot.get() == "not unpacked yet"
