"""The words of a song: whose they are, who writes them, and what the song is called by them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import page_words
from events import InvalidRequest
from params import parse_request, with_sketch
from status import UNKNOWN, LanguageModelStatus, SongwriterStatus, Status

BUILT_IN = SongwriterStatus("ready", "preview", "preview")
CHOSEN = SongwriterStatus("ready", "org/a-larger-one")
PLANNER = LanguageModelStatus("ready", "org/planner")


def studio(**facts: Any) -> Status:
    return replace(UNKNOWN, **facts)


def test_the_chosen_writer_comes_before_the_built_in_one_which_writes_english_only():
    assert page_words.writing_mode(studio()) == ""
    assert page_words.writing_mode(studio(songwriter=BUILT_IN)) == "lyrics"
    assert page_words.writing_mode(studio(songwriter=BUILT_IN), "fr") == ""
    assert page_words.writing_mode(studio(songwriter=BUILT_IN, planner=PLANNER), "en") == "inspire"
    assert page_words.writing_mode(studio(songwriter=CHOSEN, planner=PLANNER), "fr") == "lyrics"


@pytest.mark.parametrize(
    ("expected", "facts", "values"),
    [
        ("none", {}, {}),
        ("none", {"songwriter": BUILT_IN, "engine": "preview"}, {}),
        ("write", {"songwriter": BUILT_IN}, {}),
        ("own", {"songwriter": BUILT_IN}, {"lyrics": "la"}),
        ("write", {"songwriter": BUILT_IN}, {"lyrics": "la", "words": "write"}),
        ("write", {"songwriter": BUILT_IN, "engine": "preview"}, {"words": "write"}),
        ("none", {"songwriter": BUILT_IN}, {"words": "write", "instrumental": True}),
        ("own", {}, {"words": "own"}),
        # The writer of the last visit is gone, or what the browser kept is no choice.
        ("none", {}, {"words": "write"}),
        ("own", {}, {"words": "write", "lyrics": "la"}),
        ("none", {"songwriter": BUILT_IN}, {"words": "<b>", "lyrics": None}),
    ],
)
def test_whose_words_are_sung(expected: str, facts: dict[str, Any], values: dict[str, Any]):
    blank = {"words": "", "lyrics": "", "instrumental": False, "language": "unknown"}
    assert page_words.choice({**blank, **values}, studio(**facts)) == expected


def test_a_song_whose_words_are_written_first_keeps_what_was_given():
    values = {"prompt": "pop about my cat", "bpm": 90, "takes": 2, "seed": 5, "duration": None}
    song: Any = parse_request("generate", values)
    asked = page_words.written_first(song, studio(songwriter=CHOSEN))
    assert (asked.words.brief, asked.words.seed) == ("pop about my cat", 5)
    made: Any = with_sketch(asked, {"lyrics": "[Verse]\nla"})
    assert made == song.model_copy(update={"lyrics": "[Verse]\nla"})
    # The planner turns the idea into a prompt, too.
    asked = page_words.written_first(song, studio(planner=PLANNER))
    assert asked.words.idea == "pop about my cat"
    sketch = {"prompt": "pop, bright", "lyrics": "[Verse]\nla", "bpm": 120, "key": "C major"}
    record: Any = {"request": {**sketch, "options": {}, "takes": 4}, "takes": []}
    made = page_words.as_made(asked, record)
    assert (made.prompt, made.bpm, made.key, made.takes) == ("pop, bright", 90, "C major", 2)
    assert page_words.as_made(song, record) is song


def test_a_brief_that_the_songwriter_does_not_read_is_refused():
    song: Any = parse_request("generate", {"prompt": "pop", "language": "de"})
    with pytest.raises(InvalidRequest):
        page_words.written_first(song.model_copy(update={"prompt": ""}), studio(songwriter=CHOSEN))
