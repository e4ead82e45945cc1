"""What a Hugging Face Space reads of this repository: the front matter of README.md, and the requirements."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import bootstrap
import checkpoints
import lyrics
import plan_weights
from tests.program import ROOT

COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# Every key that the Hub documents for a Space.
KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "app_port"),
    *("suggested_hardware", "suggested_storage", "base_path", "fullWidth", "header", "short_description", "models"),
    *("datasets", "tags", "thumbnail", "pinned", "hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes"),
    *("hf_oauth_authorized_org", "disable_embedding", "startup_duration_timeout", "custom_headers"),
    *("preload_from_hub", "license"),
}
# ZeroGPU takes these and no others (reference of August 2026).
ZEROGPU_TORCH = {"2.8.0", "2.9.1", "2.10.0", "2.11.0"}
# ZeroGPU brings these in the versions of its own; gradio is bounded, not pinned, and sdk_version lies within.
BROUGHT_ALONG = {"spaces", "huggingface_hub", "huggingface-hub"}


@pytest.fixture(scope="module")
def card() -> dict:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start, matter, rest = text.split("---\n", 2)
    assert start == "" and rest.startswith("\n# ")
    return yaml.safe_load(matter)


def requirements(python: str) -> dict[str, Requirement]:
    """Return the requirements that hold on Linux with `python`."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    place = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64"}
    return {each.name: each for each in found if each.marker is None or each.marker.evaluate(place)}


def test_the_card_has_only_keys_that_the_hub_knows(card):
    assert card.keys() <= KEYS


def test_it_is_a_gradio_space_of_the_version_that_the_studio_was_made_for(card):
    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == "6.31.0"
    assert card["sdk_version"] in requirements("3.12")["gradio"].specifier
    # Unquoted, YAML would make the number 3.12 of it, and 3.1 of a 3.10.
    assert card["python_version"] == "3.12"


def test_the_file_that_is_run_is_here(card):
    assert (ROOT / card["app_file"]).is_file()


def test_the_description_is_short_enough_to_be_pushed(card):
    assert 0 < len(card["short_description"]) <= 60


def test_the_colors_are_of_the_palette(card):
    assert {card["colorFrom"], card["colorTo"]} <= COLORS


def test_hardware_is_not_asked_for(card):
    # There is no value for ZeroGPU, and another one would offer visitors paid hardware.
    assert not {"hardware", "suggested_hardware", "suggested_storage"} & card.keys()


def test_loading_and_packing_gets_more_time_than_the_usual_30_minutes(card):
    assert card["startup_duration_timeout"] == "1h"


def test_the_licence_is_that_of_the_repository(card):
    assert card["license"] == "mit"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


@pytest.fixture(scope="module")
def preloaded(card) -> dict[str, list[str]]:
    """Return the repositories with the files that are asked of each."""
    entries = {}
    for entry in card["preload_from_hub"]:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+( [\w./-]+(,[\w./-]+)*( [0-9a-f]{40})?)?", entry), entry
        repository, *rest = entry.split(" ")
        entries[repository] = rest[0].split(",") if rest else []
    return entries


def test_the_three_models_are_preloaded_and_named(card, preloaded):
    assert len(card["preload_from_hub"]) <= 10
    wanted = {checkpoints.DEFAULT_MODEL, plan_weights.UMBRELLA, lyrics.DEFAULT_WRITER}
    assert preloaded.keys() == wanted == set(card["models"])
    # Whatever is preloaded is linked beside app.py at start.
    assert wanted <= set(bootstrap.wanted_repositories({}))


def test_of_the_umbrella_repository_the_planner_alone_is_preloaded(preloaded):
    files = preloaded[plan_weights.UMBRELLA]
    assert {Path(name).parent.name for name in files} == {plan_weights.SUBFOLDER}
    names = {Path(name).name for name in files}
    assert {"config.json", "model.safetensors", *plan_weights.TOKEN_FILES} <= names
    assert "chat_template.jinja" in names


def test_what_zerogpu_brings_along_is_not_pinned():
    for python in ("3.10", "3.12"):
        for name, requirement in requirements(python).items():
            assert name not in BROUGHT_ALONG or not requirement.specifier, requirement


def test_torch_is_one_that_zerogpu_takes():
    (pin,) = requirements("3.12")["torch"].specifier
    assert (pin.operator, pin.version) in {("==", version) for version in ZEROGPU_TORCH}
    # These have to match torch and declare no dependency on it.
    assert not {"torchaudio", "torchvision", "torchcodec"} & requirements("3.12").keys()


def test_nothing_has_to_be_compiled_or_comes_from_elsewhere_than_the_index():
    text = (ROOT / "requirements.txt").read_text()
    assert not re.search(r"^\s*-|git\+|https?:|flash.?attn|xformers|bitsandbytes", text, re.MULTILINE)
