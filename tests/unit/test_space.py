"""What a Hugging Face Space reads of this repository: the front matter of README.md, and the requirements."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import bootstrap
from model_weights import DEFAULT_MODEL, DEFAULT_SONGWRITER, SUBFOLDER, TOKEN_FILES, UMBRELLA
from tests.program import ROOT

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


def requirements(file: str, python: str, machine: str = "x86_64") -> list[Requirement]:
    """Return the requirements of a file that hold on Linux."""
    lines = (ROOT / file).read_text().splitlines()
    found = [
        Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-r "))
    ]
    place = {"python_version": python, "sys_platform": "linux", "platform_machine": machine}
    return [each for each in found if each.marker is None or each.marker.evaluate(place)]


PACKAGES = {each.name: each for each in requirements("requirements.txt", "3.12")}


def test_the_card_is_one_that_the_hub_takes(card):
    assert card["sdk"] == "gradio" and card["license"] == "mit"
    assert card["sdk_version"] in PACKAGES["gradio"].specifier
    # Unquoted, YAML would make the number 3.12 of it, and 3.1 of a 3.10.
    assert card["python_version"] == "3.12"
    assert (ROOT / card["app_file"]).is_file()
    # The hub refuses a push with a longer one, and other colours.
    assert 0 < len(card["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colours
    # There is no value for ZeroGPU, and another one would offer visitors paid hardware.
    assert not {"hardware", "suggested_hardware", "suggested_storage"} & card.keys()
    # Loading and packing takes longer than the usual 30 minutes.
    assert card["startup_duration_timeout"] == "1h"


def test_the_three_models_are_preloaded_and_of_the_umbrella_repository_the_planner_alone(card):
    wanted = {DEFAULT_MODEL, UMBRELLA, DEFAULT_SONGWRITER}
    files = {
        name: rest for name, _, rest in (entry.partition(" ") for entry in card["preload_from_hub"])
    }
    assert files.keys() == wanted == set(card["models"])
    # Whatever is preloaded is linked beside app.py at start.
    assert wanted <= set(bootstrap.wanted_repositories({}))
    paths = [Path(name) for name in files[UMBRELLA].split(",")]
    assert {path.parent.name for path in paths} == {SUBFOLDER}
    assert {"config.json", "model.safetensors", *TOKEN_FILES} <= {path.name for path in paths}


def test_torch_is_one_that_zerogpu_takes_and_what_it_brings_along_is_not_pinned():
    (pin,) = PACKAGES["torch"].specifier
    assert (pin.operator, pin.version) in {("==", version) for version in ZEROGPU_TORCH}
    assert not [name for name in BROUGHT_ALONG & PACKAGES.keys() if PACKAGES[name].specifier]
    # These have to match torch and declare no dependency on it.
    assert not {"torchaudio", "torchvision", "torchcodec"} & PACKAGES.keys()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("requirements.txt", "gradio"),
        ("requirements-dev.txt", "ruff"),
        ("requirements-dev.txt", "pytest"),
        ("requirements-dev.txt", "playwright"),
    ],
)
def test_what_draws_the_page_or_judges_the_code_is_held_to_a_minor_version(file, name):
    (wanted,) = [each for each in requirements(file, "3.12") if each.name == name]
    bounds = {bound.operator: Version(bound.version) for bound in wanted.specifier}
    lowest, next_minor = bounds[">="], bounds["<"]
    assert next_minor.release == (lowest.major, lowest.minor + 1)
