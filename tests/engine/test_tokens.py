"""The token budget on the page: counted and cut exactly as the pipeline does, by the tokenizer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import conditions
import modes
import tokens
from limits import MAX_TEXT_TOKENS, TEXT_LIMITS
from tests.program import python

LONG = "warm tape hiss, brushed drums, Glühwürmchen, " * 40
PROMPTS = ("a song", "Lo-fi «Nacht»: 🌙 東京 <|endoftext|>", LONG, "x" * 2_000)


@pytest.fixture(scope="module")
def counter(tiny: Path) -> tokens.TokenCounter:
    """Return the counter of the preview's checkpoint."""
    return tokens.TokenCounter(tiny / "tokenizer" / "tokenizer.json")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "facts", [{}, {"bpm": 96, "key": "F# minor", "time_signature": "6"}], ids=["blank", "song details"]
)
def test_a_prompt_is_counted_and_cut_as_in_the_pipeline(pipe: Any, counter, prompt: str, facts: dict[str, Any]):
    words = conditions.Words(prompt, "", "en", 123.9, modes.REPAINT, **facts)
    assert conditions.prompt_tokens(counter, words, prompt) == conditions.prompt_tokens(pipe, words, prompt)
    assert conditions.fit_prompt(counter, words) == conditions.fit_prompt(pipe, words)


def test_lyrics_are_counted_as_in_the_pipeline(pipe: Any, counter):
    words = conditions.Words("", "[Verse]\nTourne, tourne, ô nuit légère\n" * 30, "fr", 60, "")
    assert conditions.lyric_tokens(counter, words) == conditions.lyric_tokens(pipe, words)


@pytest.mark.parametrize(
    ("mode", "there", "instruction", "seconds"),
    [
        ("generate", {"duration": "75", "options.plan": True}, modes.COVER, 75),
        ("generate", {"duration": "", "options.plan": False}, modes.TEXT2MUSIC, 60),
        ("generate", {"duration": "inf", "options.plan": False}, modes.TEXT2MUSIC, 60),
        ("cover", {"source": None}, modes.COVER, 60),
        ("extend", {"source": None, "before": "1", "after": "2"}, modes.REPAINT, 60),
        ("edit", {"action": "repaint", "source": None}, modes.REPAINT, 60),
        ("edit", {"action": "morph", "source": None}, modes.TEXT2MUSIC, 60),
        ("edit", {"action": "layer", "track": "drums", "source": None}, modes.LAYER.format("DRUMS"), 60),
        ("edit", {"action": "extract", "track": None, "source": None}, modes.EXTRACT.format(""), 60),
        (
            "edit",
            {"action": "complete", "tracks": ["drums", "bass"], "source": None},
            modes.COMPLETE.format("DRUMS | BASS"),
            60,
        ),
    ],
)
def test_the_budget_follows_the_form(counter, mode: str, there: dict[str, Any], instruction: str, seconds: float):
    there = {"prompt": "a song", "bpm": "96", "key": "F#m", "time_signature": "3", **there}
    words = conditions.Words("a song", "", "en", seconds, instruction, 96, "F# minor", "3")
    assert tokens.prompt_budget(counter, mode, there) == (conditions.prompt_tokens(counter, words, "a song"), "")


@pytest.mark.parametrize("nonsense", ["fast", "nan", "9" * 400, "-1e999", None])
def test_nonsense_in_other_fields_does_not_matter(counter, nonsense: str | None):
    there = {"prompt": "a song", "bpm": nonsense, "key": nonsense, "time_signature": "", "duration": nonsense}
    used, dropped = tokens.prompt_budget(counter, "generate", there)
    assert used > 20 and dropped in ("", "a song")


def test_what_is_cut_is_named(counter):
    used, dropped = tokens.prompt_budget(counter, "generate", {"prompt": LONG, "duration": "60"})
    assert used > MAX_TEXT_TOKENS
    assert dropped and LONG.strip().endswith(dropped)


def test_a_pasted_book_is_counted_up_to_the_limit(counter):
    used, _ = tokens.prompt_budget(counter, "generate", {"prompt": "word " * 100_000, "duration": "60"})
    assert used < 2 * TEXT_LIMITS["prompt"]


def test_before_there_is_a_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Nowhere:
        folder = tmp_path / "none"

    class Backend:
        weights = Nowhere

    monkeypatch.setattr(tokens, "get_backend", lambda: Backend)
    assert tokens.token_counter() is None
    assert tokens.lyric_tokens("la la", "en") is None
    # One that is broken counts nothing either.
    (tmp_path / "none" / "tokenizer").mkdir(parents=True)
    (tmp_path / "none" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert tokens.token_counter() is None
    Nowhere.folder = None
    assert tokens.token_counter() is None


def test_no_model_code_is_loaded_to_count(tiny: Path):
    code = (
        f"import sys, pathlib, tokens; counter = tokens.TokenCounter(pathlib.Path({str(tiny)!r}, 'tokenizer', "
        "'tokenizer.json')); print(tokens.prompt_budget(counter, 'generate', {'prompt': 'a song'})[1], "
        "[m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules])"
    )
    result = python("-c", code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
