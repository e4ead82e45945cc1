"""The token budget on the page: counted and cut by the tokenizer alone, exactly as in the pipeline."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import modes
import page_hints
import song_conditions
from limits import MAX_TEXT_TOKENS, TEXT_LIMITS

LONG = "warm tape hiss, brushed drums, Glühwürmchen, " * 40
PROMPTS = ("a song", "Lo-fi «Nacht»: 🌙 東京 <|endoftext|>", LONG, "x" * 2_000)


@pytest.fixture(scope="module")
def counter(tiny: Path) -> page_hints.TokenCounter:
    return page_hints.TokenCounter(tiny / "tokenizer" / "tokenizer.json")


def test_words_are_counted_and_cut_as_in_the_pipeline(pipe: Any, counter):
    for prompt, facts in itertools.product(
        PROMPTS, ({}, {"bpm": 96, "keyscale": "F# minor", "timesignature": "6"})
    ):
        words = {"prompt": prompt, "audio_duration": 123.9, "instruction": modes.REPAINT, **facts}
        assert song_conditions.count_tokens(counter, words) == song_conditions.count_tokens(
            pipe, words
        )
        assert song_conditions.fit_prompt(counter, words) == song_conditions.fit_prompt(pipe, words)
    words = {
        "prompt": "",
        "lyrics": "[Verse]\nTourne, tourne, ô nuit légère\n" * 30,
        "vocal_language": "fr",
    }
    assert (
        song_conditions.count_tokens(counter, words)[1]
        == song_conditions.count_tokens(pipe, words)[1]
        > 100
    )


def test_the_budget_follows_the_form(counter):
    for mode, there, instruction, seconds in [
        ("generate", {"duration": "75", "options.plan": True}, modes.COVER, 75),
        ("generate", {"duration": "", "options.plan": False}, modes.TEXT2MUSIC, 60),
        ("cover", {"source": None}, modes.COVER, 60),
        ("extend", {"source": None, "before": "1", "after": "2"}, modes.REPAINT, 60),
        ("edit", {"action": "repaint", "source": None}, modes.REPAINT, 60),
        ("edit", {"action": "morph", "source": None}, modes.TEXT2MUSIC, 60),
        (
            "edit",
            {"action": "layer", "track": "drums", "source": None},
            modes.LAYER.format("DRUMS"),
            60,
        ),
        (
            "edit",
            {"action": "complete", "tracks": ["drums", "bass"]},
            modes.COMPLETE.format("DRUMS | BASS"),
            60,
        ),
    ]:
        there = {"prompt": "a song", "bpm": "96", "key": "F#m", "time_signature": "3", **there}
        words = {"prompt": "a song", "audio_duration": seconds, "instruction": instruction}
        words |= {"bpm": 96, "keyscale": "F# minor", "timesignature": "3"}
        expected = song_conditions.count_tokens(counter, words)[0], ""
        assert page_hints.prompt_budget(counter, mode, there) == expected, there
    # Nonsense in other fields does not matter.
    for nonsense in ["fast", "nan", "9" * 400, "-1e999", None]:
        there = {
            "prompt": "a song",
            "bpm": nonsense,
            "key": nonsense,
            "time_signature": "",
            "duration": nonsense,
        }
        used, dropped = page_hints.prompt_budget(counter, "generate", there)
        assert used > 20 and dropped in ("", "a song"), nonsense


def test_what_is_cut_is_named_and_a_book_is_counted_up_to_the_limit(counter):
    used, dropped = page_hints.prompt_budget(
        counter, "generate", {"prompt": LONG, "duration": "60"}
    )
    assert used > MAX_TEXT_TOKENS
    assert dropped and LONG.strip().endswith(dropped)
    used, _ = page_hints.prompt_budget(
        counter, "generate", {"prompt": "word " * 100_000, "duration": "60"}
    )
    assert used < 2 * TEXT_LIMITS["prompt"]


def test_before_there_is_a_tokenizer(tmp_path: Path):
    place = SimpleNamespace(folder=tmp_path / "none")
    studio = SimpleNamespace(models=SimpleNamespace(find=lambda name: place))
    assert page_hints.token_counter(studio) is None
    assert "tokens" not in page_hints.advise(studio, "la la la la\n" * 800, "en")
    # A broken one counts nothing either.
    (tmp_path / "none" / "tokenizer").mkdir(parents=True)
    (tmp_path / "none" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert page_hints.token_counter(studio) is None
    place.folder = None
    assert page_hints.token_counter(studio) is None
