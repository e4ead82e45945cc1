"""Which songwriter is found, and the sentence that says why another one is not used."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import lyrics
import models
import preview
import writers
from events import StudioError
from tests.weights import CPU
from weights import Weights, find_writer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tmp_path) -> Path:
    """Return a copy of the tiny Qwen2 that a test may break."""
    return Path(shutil.copytree(preview.language_model_folder("qwen2"), tmp_path / "my-writer"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Be a machine without any weights and without a network; return its folder."""
    monkeypatch.delenv("ACE_STUDIO_LYRICS", raising=False)
    monkeypatch.setattr("weights.MODELS_FOLDER", tmp_path / "models")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr("weights._writer_engine", lambda: "transformers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> Weights:
    """Weights in `folder`, as if a variable had named it."""
    return Weights(folder.name, folder, "variable", "", "transformers", None, folder.name)


def put_into_cache(folder: Path, home: Path, repo: str) -> Path:
    """Lay a copy of `folder` into the cache as huggingface_hub does; return its snapshot."""
    storage = home / "hub" / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, storage / "snapshots" / COMMIT))


def test_without_weights_there_is_a_sentence_and_no_download(home):
    found = find_writer()
    assert found.folder is None
    assert found.wanted == "Qwen/Qwen2.5-7B-Instruct"
    assert "15.2 GB" in found.problem.message
    assert "models/Qwen/Qwen2.5-7B-Instruct/" in found.problem.hint
    with pytest.raises(StudioError, match="not on this machine"):
        lyrics.build_writer(found, "cpu")


def test_models_beside_the_studio_come_before_the_cache(home, copy):
    snapshot = put_into_cache(copy, home, "Qwen/Qwen2.5-7B-Instruct")
    found = find_writer()
    assert (found.source, found.folder, found.revision) == ("cache", snapshot, COMMIT)
    beside = home / "models" / "Qwen" / "Qwen2.5-7B-Instruct"
    shutil.copytree(copy, beside)
    found = find_writer()
    assert (found.source, found.folder) == ("models", beside)


def test_a_hub_id_that_is_not_here_is_to_be_fetched(home, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_LYRICS", "someone/writer")
    found = find_writer()
    assert (found.source, found.folder) == ("hub", None)
    assert "someone/writer" in found.problem.message
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    found = find_writer()
    assert (found.source, found.folder) == ("none", None)
    assert "preload_from_hub" in found.problem.hint


def test_a_copy_in_the_cache_that_broke_off_is_completed_where_it_was_asked_for(home, copy, monkeypatch):
    snapshot = put_into_cache(copy, home, "someone/writer")
    monkeypatch.setenv("ACE_STUDIO_LYRICS", "someone/writer")
    assert find_writer().source == "cache"
    cut(snapshot / "model.safetensors")
    assert find_writer().source == "hub"


def test_nonsense_in_the_variable(home, monkeypatch):
    for value in ["not a model", "./nowhere"]:
        monkeypatch.setenv("ACE_STUDIO_LYRICS", value)
        found = find_writer()
        assert found.folder is None
        assert "ACE_STUDIO_LYRICS" in found.problem.text()


def change(folder: Path, **values: Any) -> None:
    """Change entries of the model's configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def remove_template(folder: Path) -> None:
    """Take the chat template out, wherever it stands."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))


def cut(path: Path) -> None:
    """Cut the end off a file."""
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: change(folder, architectures=["Qwen2ForSequenceClassification"]), "no language model"),
        (lambda folder: change(folder, quantization={"bits": 4}), "MLX"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (remove_template, "chat template"),
        (lambda folder: cut(folder / "model.safetensors"), "damaged or incomplete"),
        (lambda folder: shutil.rmtree(folder) or folder.write_text("x"), "not a folder"),
        (lambda folder: shutil.rmtree(folder), "There is no folder"),
    ],
)
def test_a_folder_that_cannot_write_is_a_sentence(home, copy, monkeypatch, damage, words):
    monkeypatch.setenv("ACE_STUDIO_LYRICS", str(copy))
    damage(copy)
    found = find_writer()
    assert found.folder is None
    assert words in found.problem.message
    with pytest.raises(StudioError, match=words):
        lyrics.build_writer(found, "cpu")


def test_weights_that_look_whole_and_do_not_fit(copy):
    change(copy, hidden_size=64)
    with pytest.raises(StudioError) as caught:
        lyrics.build_writer(weights(copy), "cpu")
    assert caught.value.problem.code == "weights_broken"
    assert "my-writer" in str(caught.value)


def test_a_model_that_does_not_fit_is_a_sentence(copy, monkeypatch):
    import torch

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lyrics, "TorchModel", full)
    for room in (10**12, 1_000):  # too little is known before anything is loaded
        monkeypatch.setattr(models, "available_memory", lambda room=room: room)
        slot = writers.lyrics_slot(lambda: CPU)
        slot.weights = weights(copy)
        with pytest.raises(StudioError, match="my-writer does not fit into the free memory") as caught:
            slot.get()
        assert caught.value.problem.code == "out_of_memory"
        monkeypatch.setattr(lyrics, "TorchModel", lambda *_: pytest.fail("it was loaded"))
