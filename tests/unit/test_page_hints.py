"""ZeroGPU's seconds on the page: told before the click, refused where one call cannot last that long."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile

import api
import backend
import bootstrap
import page_hints
import page_tabs
import zerogpu
from events import InvalidRequest
from page_form import Form
from params import parse_request

BACKEND = SimpleNamespace(work_of=lambda request, source=0.0: zerogpu.work_of(request, source=source, planner=True))


@pytest.fixture
def on_zerogpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on ZeroGPU, as far as the page asks."""
    monkeypatch.setattr(bootstrap, "on_zerogpu", lambda: True)
    for module in (backend, page_hints):
        monkeypatch.setattr(module, "get_backend", lambda: BACKEND)


def build(mode: str) -> tuple[Form, dict[str, Any]]:
    """Return the form of a tab and its defaults."""
    with gr.Blocks():
        form = getattr(page_tabs, f"{mode}_tab")().form if mode != "lyrics" else page_tabs.lyrics_tab()[0]
    return form, {name: field.value for name, field in form.fields.items()}


def test_nobody_is_asked_elsewhere():
    backend.check(parse_request("generate", {"prompt": "a song", "duration": 600, "takes": 4}))
    form, values = build("generate")
    assert form.problems([*{**values, "prompt": "a song", "duration": "600", "takes": 4}.values()]) == {}


@pytest.mark.parametrize("mode", ["generate", "cover", "extend", "edit", "lyrics"])
def test_an_empty_form_tells_what_its_defaults_take(on_zerogpu, mode: str):
    form, values = build(mode)
    text = page_hints.seconds_text(form, values.values())
    seconds = int(re.fullmatch(r"This asks ZeroGPU for (\d+) seconds of GPU time\.", text)[1])
    assert zerogpu.LEAST_SECONDS <= seconds < zerogpu.MOST_SECONDS


def test_the_seconds_are_those_of_the_call(on_zerogpu):
    form, values = build("generate")
    values |= {"prompt": "a song", "duration": "240", "takes": 2, "quality": "best"}
    request = form.request(values.values())
    asked = zerogpu.gpu_seconds(BACKEND.work_of(request))
    assert asked > zerogpu.LEAST_SECONDS
    assert f" {asked} seconds" in page_hints.seconds_text(form, values.values())
    assert form.problems([*values.values()]) == {}
    # While a field is wrong, nothing is claimed.
    assert page_hints.seconds_text(form, {**values, "duration": "9"}.values()) == ""


def test_the_source_counts(on_zerogpu, tmp_path: Path):
    path = tmp_path / "song.wav"
    soundfile.write(path, np.zeros((8_000 * 300, 1)), 8_000)
    form, values = build("cover")
    values |= {"takes": 4}
    before = page_hints.seconds_text(form, values.values())
    assert page_hints.seconds_text(form, {**values, "source": str(path)}.values()) != before


def test_what_does_not_fit_is_refused_beside_the_length(on_zerogpu):
    form, values = build("generate")
    values |= {"prompt": "a song", "duration": "600", "takes": 4, "quality": "best"}
    text = form.problems([*values.values()])["duration"]
    assert "seconds of GPU time; one call gets up to 300." in text and "It fits with" in text
    assert page_hints.seconds_text(form, values.values()) == text
    with pytest.raises(InvalidRequest):
        backend.check(form.request(values.values()))


def test_the_api_refuses_it_before_anything_is_queued(on_zerogpu):
    parameters = api.ENDPOINTS["generate"].parameters
    given = {"prompt": "a song", "duration": 600, "takes": 4, "quality": "best"}
    values = [given.get(each.name, each.default) for each in parameters]
    verdicts = dict(zip((each.name for each in parameters), api.validator_of("generate")(*values), strict=True))
    assert [name for name, verdict in verdicts.items() if not verdict["is_valid"]] == ["duration"]
    assert "It fits with" in verdicts["duration"]["message"]
