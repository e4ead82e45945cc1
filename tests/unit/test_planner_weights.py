"""Which planner is found, and the sentence that says why another one is not used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from events import StudioError
from model_weights import (
    BUILT_IN,
    DEFAULT_PLANNER,
    MODEL_VARIABLE,
    PLANNER_VARIABLE,
    find_planner,
)
from planner import load_planner
from tests.weights import CPU, PLANNER, SONGWRITER


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """Be a machine without planner weights, not even the built-in ones."""
    monkeypatch.delenv(PLANNER_VARIABLE, raising=False)
    monkeypatch.setattr("model_weights.MODELS_FOLDER", tmp_path / "models")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BUILT_IN, PLANNER_VARIABLE, tmp_path / "nowhere")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a copy of a tiny planner that a test may damage."""
    return Path(shutil.copytree(PLANNER, tmp_path / "my-planner"))


def in_cache(source: Path, home: Path, repo: str, subfolder: str = "") -> None:
    """Lay `source` into the Hugging Face cache as a snapshot of `repo`."""
    storage = home / "cache" / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, storage / "snapshots" / ("a" * 40) / subfolder)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("a" * 40)


def test_a_bare_machine_has_none_and_says_how_to_get_one():
    weights = find_planner()
    assert (weights.source, weights.folder, weights.wanted) == ("none", None, DEFAULT_PLANNER)
    assert weights.problem.code == "planner_missing"
    assert (
        'hf download ACE-Step/Ace-Step1.5 --include "acestep-5Hz-lm-1.7B/*"' in weights.problem.hint
    )
    assert "not on this machine" in weights.problem.message


def test_the_built_in_planner_stands_in_where_none_was_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(BUILT_IN, PLANNER_VARIABLE, folder)
    assert (find_planner().source, find_planner().folder) == ("preview", folder)
    assert find_planner().wanted == DEFAULT_PLANNER
    elsewhere = (
        ("SPACES_ZERO_GPU", "1"),
        (PLANNER_VARIABLE, DEFAULT_PLANNER),
        # The codes of another song model are not the ones that it writes.
        (MODEL_VARIABLE, "nobody/nothing"),
    )
    for name, value in elsewhere:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert find_planner().folder is None
    in_cache(folder, tmp_path, "ACE-Step/Ace-Step1.5", "acestep-5Hz-lm-1.7B")
    assert find_planner().source == "cache"


def test_models_beside_the_app_come_before_the_cache(folder, tmp_path, monkeypatch):
    in_cache(folder, tmp_path, "ACE-Step/Ace-Step1.5", "acestep-5Hz-lm-1.7B")
    assert (find_planner().source, find_planner().revision) == ("cache", "a" * 40)
    # The umbrella repository needs no folder named.
    with monkeypatch.context() as patch:
        patch.setenv(PLANNER_VARIABLE, "ACE-Step/Ace-Step1.5")
        assert find_planner().folder.name == "acestep-5Hz-lm-1.7B"
    beside = shutil.copytree(folder, tmp_path / "models/ACE-Step/Ace-Step1.5/acestep-5Hz-lm-1.7B")
    weights = find_planner()
    assert (weights.source, weights.folder, weights.problem) == ("models", Path(beside), None)


@pytest.mark.parametrize("asked", ["ACE-Step/acestep-5Hz-lm-0.6B", "someone/many/inside/planner"])
def test_other_repositories_and_folders_inside_them(folder, tmp_path, monkeypatch, asked):
    monkeypatch.setenv(PLANNER_VARIABLE, asked)
    weights = find_planner()
    repo, inside = "/".join(asked.split("/")[:2]), "/".join(asked.split("/")[2:])
    assert weights.problem.message == f"The planner {asked} is not on this machine."
    assert (weights.source, weights.repo, weights.inside) == ("hub", repo, inside)
    in_cache(folder, tmp_path, repo, inside)
    weights = find_planner()
    assert (weights.source, weights.model_id, weights.revision) == ("cache", asked, "a" * 40)


def test_off_is_off_and_on_zerogpu_nothing_is_fetched(monkeypatch):
    monkeypatch.setenv(PLANNER_VARIABLE, "OFF")
    weights = find_planner()
    assert weights.source == "off" and "switched off" in weights.problem.message
    monkeypatch.setenv(PLANNER_VARIABLE, "ACE-Step/acestep-5Hz-lm-0.6B")
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    weights = find_planner()
    assert weights.source == "none" and "preload_from_hub" in weights.problem.hint


def test_a_copy_in_the_cache_that_broke_off_is_completed_where_it_was_asked_for(
    folder, tmp_path, monkeypatch
):
    cut(folder)
    in_cache(folder, tmp_path, "ACE-Step/Ace-Step1.5", "acestep-5Hz-lm-1.7B")
    weights = find_planner()
    assert (
        weights.source == "none"
        and "model.safetensors is damaged or incomplete" in weights.problem.message
    )
    monkeypatch.setenv(PLANNER_VARIABLE, "ACE-Step/Ace-Step1.5")
    weights = find_planner()
    assert (weights.source, weights.repo, weights.inside) == (
        "hub",
        "ACE-Step/Ace-Step1.5",
        "acestep-5Hz-lm-1.7B",
    )


def test_a_folder_is_used_as_it_is_or_by_the_planner_inside_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(PLANNER_VARIABLE, str(folder))
    assert (find_planner().source, find_planner().folder) == ("variable", folder)
    (tmp_path / "whole").mkdir()
    shutil.move(folder, tmp_path / "whole" / "acestep-5Hz-lm-1.7B")
    monkeypatch.setenv(PLANNER_VARIABLE, str(tmp_path / "whole"))
    assert find_planner().folder == tmp_path / "whole" / "acestep-5Hz-lm-1.7B"


def damage_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def without_think(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<think>", "<other>"))


DAMAGES = {
    "there is no such folder": shutil.rmtree,
    "config.json is missing": lambda folder: (folder / "config.json").unlink(),
    "not a causal language model": lambda f: damage_config(
        f, architectures=["Qwen3ForSequenceClassification"]
    ),
    "no audio tokens": lambda f: shutil.copy(SONGWRITER / "tokenizer.json", f / "tokenizer.json"),
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors is damaged or incomplete": cut,
    "index.json cannot be read": lambda folder: (
        folder / "model.safetensors.index.json"
    ).write_text("[]"),
}


@pytest.mark.parametrize("sentence", DAMAGES)
def test_a_folder_that_is_no_planner_gets_its_sentence(folder, monkeypatch, sentence):
    DAMAGES[sentence](folder)
    monkeypatch.setenv(PLANNER_VARIABLE, str(folder))
    weights = find_planner()
    assert weights.source == "none" and weights.folder is None
    assert (
        sentence in weights.problem.message and "cannot be the planner" in weights.problem.message
    )


def test_a_planner_need_not_know_every_code(folder, monkeypatch):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|audio_code_0|>", "<|audio_code_63999|>"))
    monkeypatch.setenv(PLANNER_VARIABLE, str(folder))
    assert find_planner().folder == folder


LOADING = {
    "could not be loaded": lambda folder: damage_config(folder, hidden_size=64),
    "no chat template": lambda folder: (folder / "chat_template.jinja").unlink(),
    "no <think>": without_think,
}


@pytest.mark.parametrize("sentence", LOADING)
def test_what_only_loading_shows_gets_its_sentence(folder, monkeypatch, sentence):
    LOADING[sentence](folder)
    monkeypatch.setenv(PLANNER_VARIABLE, str(folder))
    with pytest.raises(StudioError, match=sentence) as caught:
        load_planner(find_planner(), CPU)
    assert caught.value.problem.code == "planner_unfit"


@pytest.mark.parametrize("asked", ["just words", "a/../../etc", "org/repo/"])
def test_a_setting_that_names_nothing_gets_a_sentence(monkeypatch, asked):
    monkeypatch.setenv(PLANNER_VARIABLE, asked)
    weights = find_planner()
    assert weights.source == "none" and PLANNER_VARIABLE in weights.problem.message
