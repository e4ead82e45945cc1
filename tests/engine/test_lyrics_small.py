"""The built-in songwriter as it is shipped: where it stands in, and what its real weights write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import lyrics_small
import model_weights
import writers
from lyrics_form import content_words, count_syllables, mentions
from params import parse_request
from tests.weights import CPU

REAL = lyrics_small.missing
pytestmark = pytest.mark.skipif(
    bool(REAL()), reason=f"the built-in songwriter is not here: {REAL()}"
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Have it back, on a bare machine."""
    monkeypatch.setattr(lyrics_small, "missing", REAL)
    for name in ("ACE_STUDIO_LYRICS", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch


def test_it_stands_in_on_a_bare_machine_and_nowhere_else(installed, tmp_path):
    found = model_weights.find_songwriter()
    assert (found.model_id, found.source, found.engine) == ("preview", "preview", "small")
    assert (
        found.wanted in (model_weights.DEFAULT_SONGWRITER, model_weights.DEFAULT_MLX_SONGWRITER)
        and found.problem is None
    )
    installed.setenv("ACE_STUDIO_LYRICS", "preview")
    assert model_weights.find_songwriter().engine == "small"
    for value, source in (("off", "off"), ("nobody/nothing", "hub"), (str(tmp_path), "none")):
        installed.setenv("ACE_STUDIO_LYRICS", value)
        assert model_weights.find_songwriter().source == source
    installed.delenv("ACE_STUDIO_LYRICS")
    installed.setattr(model_weights, "on_zerogpu", lambda: True)
    assert model_weights.find_songwriter().source == "none"
    installed.setattr(model_weights, "on_zerogpu", lambda: False)
    installed.setattr(lyrics_small, "missing", lambda: "its package gguf is not installed")
    assert model_weights.find_songwriter().source == "none"
    installed.setenv("ACE_STUDIO_LYRICS", "preview")
    assert "its package gguf is not installed" in model_weights.find_songwriter().problem.message


@pytest.mark.slow
def test_it_writes_a_song_about_the_brief_in_the_form_that_was_asked_for(installed, tmp_path):
    installed.setattr(constants, "HF_HOME", str(tmp_path))
    weights = model_weights.find_songwriter()
    songwriter = writers.load_songwriter(weights, CPU)
    assert weights.folder.is_dir() and weights.folder.is_relative_to(Path(tmp_path))
    brief = "a lighthouse keeper who misses the sea"
    request = parse_request("lyrics", {"brief": brief, "structure": "[Verse 1] [Chorus] [Chorus]"})
    *_, draft = songwriter.write(request, 1)
    blocks = [block.split("\n") for block in draft.text.split("\n\n")]
    assert [tag for tag, *_ in blocks] == ["[Verse 1]", "[Chorus]", "[Chorus]"]
    assert blocks[1] == blocks[2] != blocks[0] and draft.end == "stop"
    lines = [line for _, *lines in blocks for line in lines]
    assert all(3 <= count_syllables(line) <= 12 for line in lines)
    assert any(mentions(line, word) for line in lines for word in content_words(brief))
    # A line of it that is written again is shorter, rhymes as before, and leaves the others alone.
    fields = {"task": "shorter", "lyrics": draft.text, "lines": [3, 3]}
    *_, last = songwriter.rewrite(parse_request("rewrite", fields), 1)
    before, after = draft.text.split("\n"), last.text.split("\n")
    assert count_syllables(after[2]) < count_syllables(before[2])
    assert after[:2] == before[:2] and after[3:] == before[3:]
