"""The token budget on the page: counted and cut exactly as the pipeline does, by the tokenizer alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import conditions
import modes
import page_hints
from limits import MAX_TEXT_TOKENS, TEXT_LIMITS

LONG = "warm tape hiss, brushed drums, Glühwürmchen, " * 40
PROMPTS = ("a song", "Lo-fi «Nacht»: 🌙 東京 <|endoftext|>", LONG, "x" * 2_000)


@pytest.fixture(scope="module")
def counter(tiny: Path) -> page_hints.TokenCounter:
    """Return the counter of the preview's checkpoint."""
    return page_hints.TokenCounter(tiny / "tokenizer" / "tokenizer.json")


def test_words_are_counted_and_cut_as_in_the_pipeline(pipe: Any, counter):
    for prompt, facts in itertools.product(PROMPTS, ({}, {"bpm": 96, "key": "F# minor", "time_signature": "6"})):
        words = conditions.Words(prompt, "", "en", 123.9, modes.REPAINT, **facts)
        assert conditions.prompt_tokens(counter, words, prompt) == conditions.prompt_tokens(pipe, words, prompt)
        assert conditions.fit_prompt(counter, words) == conditions.fit_prompt(pipe, words)
    words = conditions.Words("", "[Verse]\nTourne, tourne, ô nuit légère\n" * 30, "fr", 60, "")
    assert conditions.lyric_tokens(counter, words) == conditions.lyric_tokens(pipe, words)


def test_the_budget_follows_the_form(counter):
    for mode, there, instruction, seconds in [
        ("generate", {"duration": "75", "options.plan": True}, modes.COVER, 75),
        ("generate", {"duration": "", "options.plan": False}, modes.TEXT2MUSIC, 60),
        ("cover", {"source": None}, modes.COVER, 60),
        ("extend", {"source": None, "before": "1", "after": "2"}, modes.REPAINT, 60),
        ("edit", {"action": "repaint", "source": None}, modes.REPAINT, 60),
        ("edit", {"action": "morph", "source": None}, modes.TEXT2MUSIC, 60),
        ("edit", {"action": "layer", "track": "drums", "source": None}, modes.LAYER.format("DRUMS"), 60),
        ("edit", {"action": "complete", "tracks": ["drums", "bass"]}, modes.COMPLETE.format("DRUMS | BASS"), 60),
    ]:
        there = {"prompt": "a song", "bpm": "96", "key": "F#m", "time_signature": "3", **there}
        words = conditions.Words("a song", "", "en", seconds, instruction, 96, "F# minor", "3")
        assert page_hints.prompt_budget(counter, mode, there) == (
            conditions.prompt_tokens(counter, words, "a song"),
            "",
        )


def test_nonsense_in_other_fields_does_not_matter(counter):
    for nonsense in ["fast", "nan", "9" * 400, "-1e999", None]:
        there = {"prompt": "a song", "bpm": nonsense, "key": nonsense, "time_signature": "", "duration": nonsense}
        used, dropped = page_hints.prompt_budget(counter, "generate", there)
        assert used > 20 and dropped in ("", "a song")


def test_what_is_cut_is_named_and_a_book_is_counted_up_to_the_limit(counter):
    used, dropped = page_hints.prompt_budget(counter, "generate", {"prompt": LONG, "duration": "60"})
    assert used > MAX_TEXT_TOKENS
    assert dropped and LONG.strip().endswith(dropped)
    used, _ = page_hints.prompt_budget(counter, "generate", {"prompt": "word " * 100_000, "duration": "60"})
    assert used < 2 * TEXT_LIMITS["prompt"]


def test_before_there_is_a_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Nowhere:
        folder = tmp_path / "none"

    studio = SimpleNamespace(models=SimpleNamespace(weights=Nowhere))
    monkeypatch.setattr(page_hints, "get_backend", lambda: studio)
    assert page_hints.token_counter() is None
    assert page_hints.lyric_tokens("la la", "en") is None
    # One that is broken counts nothing either.
    (tmp_path / "none" / "tokenizer").mkdir(parents=True)
    (tmp_path / "none" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert page_hints.token_counter() is None
    Nowhere.folder = None
    assert page_hints.token_counter() is None
