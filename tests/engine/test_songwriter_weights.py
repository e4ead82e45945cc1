"""Which songwriter is found, and why another one is not used."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import lyrics
import models
import writers
from events import StudioError
from model_weights import Weights, find_songwriter
from tests.weights import CPU, SONGWRITER

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "Qwen/Qwen2.5-7B-Instruct"


@pytest.fixture
def copy(tmp_path) -> Path:
    """Return a copy of the tiny Qwen2 that a test may break."""
    return Path(shutil.copytree(SONGWRITER, tmp_path / "my-writer"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Be a machine without any weights and without a network; return its folder."""
    monkeypatch.delenv("ACE_STUDIO_LYRICS", raising=False)
    monkeypatch.setattr("model_weights.MODELS_FOLDER", tmp_path / "models")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr("model_weights._songwriter_engine", lambda: "transformers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put_into_cache(folder: Path, home: Path, repo: str) -> Path:
    """Lay a copy of `folder` into the cache as huggingface_hub does; return its snapshot."""
    storage = home / "hub" / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, storage / "snapshots" / COMMIT))


def test_models_beside_the_studio_come_before_the_cache_and_nothing_is_downloaded(home, copy):
    found = find_songwriter()
    assert (found.folder, found.wanted) == (None, REPO)
    assert "15.2 GB" in found.problem.message and f"models/{REPO}/" in found.problem.hint
    with pytest.raises(StudioError, match="not on this machine"):
        writers.lyrics_slot(lambda: CPU).get()
    snapshot = put_into_cache(copy, home, REPO)
    found = find_songwriter()
    assert (found.source, found.folder, found.revision) == ("cache", snapshot, COMMIT)
    shutil.copytree(copy, home / "models" / REPO)
    found = find_songwriter()
    assert (found.source, found.folder) == ("models", home / "models" / REPO)


def test_a_named_model_is_downloaded_unless_it_is_in_the_cache_and_whole(home, copy, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_LYRICS", "someone/writer")
    found = find_songwriter()
    assert (found.source, found.folder) == ("hub", None)
    assert "someone/writer" in found.problem.message
    with monkeypatch.context() as patch:
        patch.setenv("SPACES_ZERO_GPU", "1")
        found = find_songwriter()
        assert (found.source, found.folder) == ("none", None)
        assert "preload_from_hub" in found.problem.hint
    snapshot = put_into_cache(copy, home, "someone/writer")
    assert find_songwriter().source == "cache"
    cut(snapshot / "model.safetensors")
    assert find_songwriter().source == "hub"


def change(folder: Path, **values: Any) -> None:
    """Change entries of the model's configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def remove_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "config.json is missing": lambda folder: (folder / "config.json").unlink(),
    "not a language model": lambda folder: change(
        folder, architectures=["Qwen2ForSequenceClassification"]
    ),
    "MLX": lambda folder: change(folder, quantization={"bits": 4}),
    "tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "chat template": remove_template,
    "damaged or incomplete": lambda folder: cut(folder / "model.safetensors"),
    "not a folder": lambda folder: shutil.rmtree(folder) or folder.write_text("x"),
    "There is no folder": shutil.rmtree,
}


def test_a_folder_that_cannot_write_is_an_error(home, monkeypatch):
    for number, (words, damage) in enumerate(DAMAGES.items()):
        folder = Path(shutil.copytree(SONGWRITER, home / f"writer-{number}"))
        monkeypatch.setenv("ACE_STUDIO_LYRICS", str(folder))
        damage(folder)
        found = find_songwriter()
        assert found.folder is None and words in found.problem.message
    for value in ("not a model", "./nowhere"):
        monkeypatch.setenv("ACE_STUDIO_LYRICS", value)
        found = find_songwriter()
        assert found.folder is None and "ACE_STUDIO_LYRICS" in found.problem.text()


def test_weights_that_do_not_load_or_fit_are_an_error(copy, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    weights = Weights("my-writer", copy, "variable", "", "transformers", None, "my-writer")
    with monkeypatch.context() as patch:
        patch.setattr(lyrics, "TorchModel", full)
        for room in (10**12, 1_000):  # too little is known before anything is loaded
            patch.setattr(models, "available_memory", lambda room=room: room)
            slot = writers.lyrics_slot(lambda: CPU)
            slot.weights = weights
            with pytest.raises(
                StudioError, match="my-writer does not fit into the free memory"
            ) as caught:
                slot.get()
            assert caught.value.problem.code == "out_of_memory"
            patch.setattr(lyrics, "TorchModel", lambda *_: pytest.fail("it was loaded"))
    change(copy, hidden_size=64)
    with pytest.raises(StudioError, match="my-writer") as caught:
        lyrics.load_songwriter(weights, "cpu")
    assert caught.value.problem.code == "weights_broken"
