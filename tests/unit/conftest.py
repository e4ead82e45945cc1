"""Fixtures of the unit tests: a machine without weights, a checkpoint to break, LoRA files, fake programs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.unit.clone import Clone
from tests.unit.lora_bytes import blob


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a machine without any weights: no variable, an empty ./models, an empty hub cache."""
    monkeypatch.delenv("ACE_STUDIO_MODEL", raising=False)
    monkeypatch.setattr("model_weights.MODELS_FOLDER", tmp_path / "models")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    """A whole checkpoint that a test may break."""
    return Path(shutil.copytree(tiny, tmp_path / "my-model"))


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a LoRA file of these bytes, or of these tensors."""

    def write(content: bytes | dict, name: str = "my-lora.safetensors") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else blob(content))
        return path

    return write


@pytest.fixture
def bare(tmp_path: Path) -> Clone:
    """A copy of the set-up scripts among fake programs, without a Python."""
    return Clone(tmp_path)


@pytest.fixture
def clone(bare: Clone) -> Clone:
    """A copy of the set-up scripts among fake programs, with Python 3.12."""
    bare.python("python3.12", "3.12.4")
    return bare
