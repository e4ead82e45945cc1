"""The GPU seconds on ZeroGPU: shown before the click, and refused on the page and by the API if they are too many."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile

import api
import backend
import bootstrap
import estimate
import gpu_zero
import page_desk
import page_hints
import page_tabs
from events import InvalidRequest
from page_form import Form
from params import SongRequest, parse_request, settle
from status import UNKNOWN, Status


def work_of(request, source=0.0):
    settings = settle(request, "sft") if isinstance(request, SongRequest) else None
    return estimate.work_of(request, settings, source=source, planner=True)


class Studio:
    """Estimates, and makes nothing."""

    work_of = staticmethod(work_of)

    def status(self) -> Status:
        return UNKNOWN

    def stream(self, request: Any) -> Any:
        return iter(())


STUDIO = Studio()
TOO_MUCH = {"prompt": "a song", "duration": "600", "takes": 4, "quality": "best"}


@pytest.fixture
def on_zerogpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "on_zerogpu", lambda: True)


def build() -> dict[str, tuple[Form, dict[str, Any]]]:
    """Return each tab's form and its defaults."""
    with gr.Blocks():
        forms = [tab.form for tab in page_tabs.build_tabs(STUDIO)]
    return {
        form.mode: (form, {name: field.value for name, field in form.fields.items()})
        for form in forms
    }


def shows_seconds(form: Form) -> bool:
    return f"{form.mode}-seconds" in [line.elem_id for line in form.lines]


def test_elsewhere_nothing_is_shown_or_refused():
    form, values = build()["generate"]
    assert not shows_seconds(form)
    assert form.problems([*{**values, **TOO_MUCH}.values()]) == {}
    backend.check(parse_request("generate", {**TOO_MUCH, "duration": 600}), STUDIO)


def test_the_seconds_are_those_of_the_call(on_zerogpu, tmp_path: Path):
    built = build()
    for mode, (form, values) in built.items():
        assert shows_seconds(form), mode
        text = page_hints.seconds_text(form, values.values())
        seconds = int(re.fullmatch(r"This asks ZeroGPU for (\d+) seconds of GPU time\.", text)[1])
        assert gpu_zero.LEAST_SECONDS <= seconds < gpu_zero.MOST_SECONDS, mode
    form, values = built["generate"]
    values |= {"prompt": "a song", "duration": "240", "takes": 2, "quality": "best"}
    asked = gpu_zero.gpu_seconds(STUDIO.work_of(form.request(values.values())))
    assert asked > gpu_zero.LEAST_SECONDS
    assert f" {asked} seconds" in page_hints.seconds_text(form, values.values())
    assert form.problems([*values.values()]) == {}
    # Nothing is claimed while a field is wrong.
    assert page_hints.seconds_text(form, {**values, "duration": "9"}.values()) == ""
    # The source counts.
    path = tmp_path / "song.wav"
    soundfile.write(path, np.zeros((8_000 * 300, 1)), 8_000)
    form, values = built["cover"]
    texts = {
        page_hints.seconds_text(form, {**values, "takes": 4, "source": each}.values())
        for each in ("", str(path))
    }
    assert len(texts) == 2


def test_what_does_not_fit_is_refused_at_the_length(on_zerogpu):
    form, values = build()["generate"]
    values |= TOO_MUCH
    text = form.problems([*values.values()])["duration"]
    assert "seconds of GPU time; one call gets up to 300." in text and "It fits with" in text
    assert page_hints.seconds_text(form, values.values()) == text
    with pytest.raises(InvalidRequest):
        backend.check(form.request(values.values()), STUDIO)
    given = {**TOO_MUCH, "duration": 600}
    parameters = api.ENDPOINTS["generate"].parameters
    verdicts = api.validator_of("generate", STUDIO)(
        *(given.get(each.name, each.default) for each in parameters)
    )
    wrong = {
        each.name: verdict["message"]
        for each, verdict in zip(parameters, verdicts, strict=True)
        if not verdict["is_valid"]
    }
    assert list(wrong) == ["duration"] and "It fits with" in wrong["duration"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (
            {"prompt": "thrash metal, 190 bpm", "bpm": "76", "key": "D minor"},
            ["190 BPM, but BPM is set to 76"],
        ),
        (
            {"prompt": "a waltz in F# Major", "key": "D minor"},
            ["F# major, but Key is set to D minor"],
        ),
        ({"prompt": "190 BPM in D minor", "bpm": "190", "key": "D minor"}, []),
        ({"prompt": "190 BPM in D minor", "bpm": "", "key": ""}, []),
        ({"prompt": "190 BPM", "bpm": "fast"}, []),
        ({"prompt": "90 to 110 bpm", "bpm": "96"}, []),
        ({"prompt": "400 BPM", "bpm": "96"}, []),
        ({"prompt": "ein Walzer in d-Moll", "key": "A minor"}, ["D minor, but Key is set to A"]),
        ({"prompt": "a minor key change, 1985", "bpm": "90", "key": "A minor"}, []),
    ],
)
def test_a_prompt_that_contradicts_a_field_gets_a_remark(values: dict[str, Any], found: list[str]):
    said = page_hints.contradictions(values)
    assert len(said) == len(found) and all(
        part in hint.text for part, hint in zip(found, said, strict=True)
    )


def test_a_hint_brings_what_mends_it():
    def fixes(found: list[page_hints.Hint]) -> list[tuple[str, str]]:
        return [(hint.field, hint.value) for hint in found]

    values = {"prompt": "fast polka, 190 bpm", "bpm": "76"}
    assert fixes(page_hints.contradictions(values)) == [("bpm", "190")]
    for prompt, mended in {
        "a waltz in F# Major, strings": "a waltz, strings",
        "F# major": "",
        "polka, F# major, tuba": "polka, tuba",
    }.items():
        values = {"prompt": prompt, "key": "D minor"}
        assert fixes(page_hints.contradictions(values)) == [("prompt", mended)]
    sung = {"prompt": "an instrumental waltz", "lyrics": "la la", "instrumental": False}
    assert fixes(page_hints.misunderstandings(sung, "sft")) == [("instrumental", "true")]
    for other in (
        {"lyrics": ""},
        {"instrumental": True},
        {"prompt": "a waltz with an instrumental break"},
    ):
        assert page_hints.misunderstandings({**sung, **other}, "sft") == []
    long = {"prompt": "x" * 301}
    assert len(page_hints.misunderstandings(long, "sft")) == 1
    assert page_hints.misunderstandings({"prompt": "x" * 300}, "sft") == []
    assert page_hints.misunderstandings(long, "preview") == []
    assert fixes(page_hints.pasted("[00:01.00]Am\nla", "lyrics")) == [("lyrics", "Am\nla")]
    assert fixes(page_hints.pasted("Am F\nla", "source_lyrics")) == [("source_lyrics", "la")]
    assert page_hints.pasted("[Verse]\nla", "lyrics") == []


LINE = "The rain is falling on the town tonight"


@pytest.mark.parametrize(
    ("song", "told"),
    [
        ({}, "Sung in about 0:24 at 100 BPM, with intro and outro."),
        (
            {"bpm": "50", "time_signature": "4"},
            "Sung in about 0:48 at 50 BPM, with intro and outro.",
        ),
        (
            {"prompt": "pop, 120 bpm", "duration": "1:00"},
            "0:20 at 120 BPM, with intro and outro; the song is 1:00.",
        ),
        ({"duration": "10"}, "Sung in about 0:24 at 100 BPM"),
        # Generate's fields are a visitor's.
        (
            {"bpm": "fast", "time_signature": [], "duration": "x", "prompt": None},
            "100 BPM, with intro and outro.",
        ),
    ],
)
def test_lyrics_are_told_their_length_at_the_tempo_of_the_song(song, told, monkeypatch):
    monkeypatch.setattr(page_hints, "token_counter", lambda *_: None)
    lyrics = f"[Verse]\n{LINE}\n{LINE}"
    assert told in page_hints.advise_for(STUDIO, lyrics, "en", song)
    assert "Sung" not in page_hints.advise_for(STUDIO, "[Verse]\n", "en", song)


def test_the_selected_lines_are_those_of_the_request():
    def lines_of(before, lines, after):
        request = page_desk.rewriting("rhyme", before, lines, after, {"brief": "rain"})
        assert (request.task, request.brief) == ("rhyme", "rain")
        return request.passage.lines

    assert lines_of("[Verse]\none\n", "two\nthree", "\nfour") == ["two", "three"]
    assert lines_of("\n\n[Verse]\n", "one", "\ntwo") == ["one"]
    assert lines_of("\r\n  \n", "\n[Verse]\none", "") == ["one"]
    for passage in (
        ("[Verse]\none", "", ""),
        ("", "[Verse]", "\none"),
        ("", "\n\n", "one"),
        ("", "", ""),
        ("", "\n".join(["la"] * 17), ""),
    ):
        with pytest.raises(InvalidRequest, match="Select from 1 to 16 lines with words"):
            page_desk.rewriting("rewrite", *passage, {})
