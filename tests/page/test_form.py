"""The form: every control reaches the request, wrong values have messages beside their fields, examples fill it in."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

import page_form
import page_panels
import page_tabs
import tooltips
from limits import INSTRUMENTAL
from params import REQUESTS, SONG_REQUESTS, parse_request
from tests.page.steps import SHARED, Tab, read, reload

REQUESTS_OF_TABS = (*SONG_REQUESTS, "lyrics")
CONTROLS = {
    **SHARED,
    "duration": ("type", "12.345", 12.345),
    "options.plan": ("tick", False, False),
    "options.rewrite": ("tick", True, True),
    "options.plan_temperature": ("slide", "0.5", 0.5),
    "options.plan_cfg": ("slide", "3.5", 3.5),
    "options.plan_seed": ("type", "0", 0),
}


@pytest.fixture
def form(lasting: Page, tab) -> Tab:
    """Return the Generate tab with its defaults and "a song" as the prompt."""
    opened = tab(lasting, "generate")
    opened.set("prompt", "type", "a song")
    return opened


def test_each_control_changes_the_request(form: Tab, fake, tmp_path: Path):
    plain = parse_request("generate", {"prompt": "a song"})
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, np.zeros((96_000, 2)), 48_000)
    # These two switch others off.
    last = {name: CONTROLS.pop(name) for name in ("instrumental", "options.plan")}
    form.unfold()
    form.set("reference", "upload", voice)
    for controls in (CONTROLS, last):
        form.set_all(controls)
        request = form.made(fake)
        for name, (_, _, expected) in controls.items():
            assert read(request, name) == expected != read(plain, name), name
    assert Path(request.reference).read_bytes() == voice.read_bytes()
    assert request.sung_lyrics() == INSTRUMENTAL
    form.part("reset").click()
    expect(form.text("prompt")).to_have_value("")
    form.clear("reference")
    form.set("prompt", "type", "a song")
    assert form.made(fake) == plain


@pytest.mark.parametrize("mode", REQUESTS_OF_TABS)
def test_every_field_of_a_request_has_a_control(mode: str):
    with gr.Blocks():
        form = page_tabs.lyrics_tab()[0] if mode == "lyrics" else getattr(page_tabs, f"{mode}_tab")().form
    fields = REQUESTS[mode].model_fields
    options = {f"options.{name}" for name in fields["options"].annotation.model_fields}
    own = {"track", "part"} if mode == "edit" else set()
    assert set(form.fields) == set(fields) - {"mode", "options"} | options | own


WRONG = {
    "prompt": ("x" * 100_000, "Prompt may have up to 2,000 characters; this has 100,000."),
    "duration": ("9", "Length must be from 10 to 600 seconds, not 9."),
    "bpm": ("9-9", 'not "9-9".'),
    "options.steps": ("201", "Steps must be a whole number from 1 to 200"),
}


def test_wrong_values_have_messages_beside_their_fields_and_the_first_gets_the_focus(form: Tab, fake):
    form.unfold()
    before = {name: form.set(name, "type", value) for name, (value, _) in WRONG.items()}
    form.unfold(False)
    form.go.click()
    # The groups open by themselves, and the line at the button names the fields.
    for name, (value, sentence) in WRONG.items():
        expect(form.field(name).get_by_text(sentence)).to_be_visible()
        expect(form.text(name)).to_have_value(value)
    expect(form.part("problems")).to_contain_text("Please check Prompt, Length, BPM and Steps.")
    expect(form.text("prompt")).to_be_focused()
    form.set("prompt", "type", before["prompt"])
    form.set("duration", "type", before["duration"])
    form.unfold(False)
    form.go.click()
    expect(form.part("problems")).to_contain_text("Please check BPM and Steps.")
    expect(form.text("bpm")).to_be_focused()
    expect(form.text("bpm")).to_be_in_viewport()
    expect(form.go).to_be_enabled()
    assert fake.requests == []
    for name in ("bpm", "options.steps"):
        form.set(name, "type", before[name])
    assert form.made(fake) == parse_request("generate", {"prompt": "a song"})
    for name, (_, sentence) in WRONG.items():
        expect(form.field(name).get_by_text(sentence)).to_have_count(0)
    expect(form.part("problems").get_by_role("alert")).to_have_count(0)


@pytest.mark.slow
def test_instrumental_switches_the_lyrics_off_and_keeps_them(page: Page, fake, tab):
    opened = tab(page, "generate")
    lyrics = opened.text("lyrics")
    lyrics.fill("[Verse]\nla la")
    opened.set("instrumental", "tick", True)
    expect(lyrics).to_be_disabled()
    expect(lyrics).to_have_value("[Verse]\nla la")
    opened.set("instrumental", "tick", False)
    expect(lyrics).to_be_enabled()


@pytest.mark.slow
def test_an_example_plays_fills_the_form_and_makes_a_song(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.unfold()
    opened.set("bpm", "type", "200")
    for name, example in page_panels.EXAMPLES["generate"].items():
        page.get_by_role("button", name=name).click()
        expect(opened.text("prompt")).to_have_value(example["prompt"])
        expect(page.locator(".foot-player")).to_contain_text(name)
        page.wait_for_function("() => document.querySelector('#studio-audio').currentTime > 0")
        request = opened.made(fake)
        for field, value in {**page_form.SONG, "duration": 60, **example}.items():
            expected = int(value) if field == "bpm" and value else value
            assert (read(request, field) or "") == (expected or ""), field


@pytest.mark.slow
def test_a_turbo_checkpoint_has_its_own_defaults_and_no_guidance(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.unfold()
    expect(opened.field("options.steps")).to_contain_text("draft 20, standard 50, best 80")
    for name, value in {"guidance": "7", "shift": "1"}.items():
        expect(opened.text(name)).to_have_attribute("placeholder", value)
    fake.facts = {"kind": "turbo", "turbo": True}
    reload(page)
    opened.unfold()
    expect(opened.text("options.guidance")).to_be_disabled()
    expect(opened.field("options.guidance")).to_contain_text(tooltips.TURBO_GUIDANCE)
    expect(opened.field("options.cfg_end").locator("input[type=number]")).to_be_disabled()
    expect(opened.field("options.steps")).to_contain_text("Blank: 8.")
    expect(opened.text("options.shift")).to_have_attribute("placeholder", "3")
