"""The form: every control reaches the request, wrong values are told beside their field, examples fill it in."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

import tabs
import tooltips
from form import label
from params import GenerateOptions, parse_request
from tests.page.steps import SHARED, Tab, read

# How a visitor sets each control, and what the request has then.
CONTROLS = {
    **SHARED,
    "duration": ("type", "12.345", 12.345),
    "reference": ("upload", None, None),
    "options.plan": ("tick", False, False),
    "options.rewrite": ("tick", True, True),
    "options.plan_temperature": ("slide", "0.5", 0.5),
    "options.plan_cfg": ("slide", "3.5", 3.5),
    "options.plan_seed": ("type", "0", 0),
}


@pytest.fixture
def form(lasting: Page, tab) -> Tab:
    """Return the tab with its defaults and "a song" as the prompt."""
    opened = tab(lasting, "generate")
    if opened.text("prompt").input_value() != "a song":
        opened.set("prompt", "type", "a song")
    return opened


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_changes_the_request(form: Tab, fake, tmp_path: Path, name: str):
    how, value, expected = CONTROLS[name]
    form.unfold()
    if how == "upload":
        value = tmp_path / "voice.wav"
        soundfile.write(value, np.zeros((96_000, 2)), 48_000)
    before = form.set(name, how, value)
    request = form.made(fake)
    plain = parse_request("generate", {"prompt": "a song"})
    if how == "upload":
        assert Path(request.reference).read_bytes() == value.read_bytes()
    else:
        assert read(request, name) == expected != read(plain, name)
    assert {each for each in CONTROLS if read(request, each) != read(plain, each)} == {name}
    form.set(name, how, before)


def test_every_field_of_the_request_has_a_control():
    with gr.Blocks():
        form = tabs.generate_tab().form
    fields = set(parse_request("generate", {"prompt": "a song"}).model_dump()) - {"mode", "options"}
    assert fields | {f"options.{name}" for name in GenerateOptions.model_fields} == set(form.fields) == set(CONTROLS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("prompt", "", "Prompt must have from 1 to 2,000 characters"),
        ("prompt", "x" * 100_000, "Prompt may have up to 2,000 characters; this has 100,000."),
        ("lyrics", "x" * 100_000, "Lyrics may have up to 10,000 characters; this has 100,000."),
        ("duration", "9", "Length must be from 10 to 600 seconds, not 9."),
        pytest.param("duration", "601", "Length must be from 10 to 600 seconds, not 601.", marks=pytest.mark.long),
        ("duration", "1,2,3", 'Length must be from 10 to 600 seconds, not "1,2,3".'),
        ("bpm", "0", "BPM must be a whole number from 30 to 300"),
        ("bpm", "9-9", 'not "9-9".'),
        ("seed", "-2", "Seed must be a whole number from -1 to 4294967295"),
        pytest.param("options.steps", "201", "Steps must be a whole number from 1 to 200", marks=pytest.mark.long),
        pytest.param("options.guidance", "0.5", "Guidance must be from 1 to 15", marks=pytest.mark.long),
        pytest.param("options.shift", "6", "Shift must be from 1 to 5", marks=pytest.mark.long),
        pytest.param("options.loudness", "0", "Loudness must be from -30 to -6 LUFS", marks=pytest.mark.long),
        pytest.param("options.variation_seed", "-2", "Variation seed must be a whole number", marks=pytest.mark.long),
    ],
)
def test_a_wrong_value_is_told_beside_its_field(form: Tab, fake, name: str, value: str, sentence: str):
    form.unfold()
    field = form.text(name)
    before = field.input_value()
    field.fill(value)
    field.blur()
    form.unfold(False)
    form.go.click()

    # The group of the field opens by itself, and the line at the button names it.
    expect(form.field(name).get_by_text(sentence)).to_be_visible()
    expect(form.part("problems")).to_contain_text(f"look at {label(name.rpartition('.')[2])}.")
    expect(field).to_have_value(value)
    expect(form.go).to_be_enabled()
    assert fake.requests == []
    # Put right, it works.
    field.fill(before)
    field.blur()
    assert form.made(fake) == parse_request("generate", {"prompt": before if name == "prompt" else "a song"})
    expect(form.field(name).get_by_text(sentence)).to_have_count(0)
    expect(form.part("problems").get_by_role("alert")).to_have_count(0)


def test_guidance_that_ends_before_it_starts_is_told(form: Tab, fake):
    form.unfold()
    form.set("options.cfg_start", "slide", "0.8")
    form.set("options.cfg_end", "slide", "0.2")
    form.go.click()
    expect(form.field("options.cfg_end")).to_contain_text("must not be below Guidance starts at (0.8)")
    assert fake.requests == []
    form.set("options.cfg_start", "slide", "0")
    form.set("options.cfg_end", "slide", "1")


@pytest.mark.slow
def test_what_fills_the_form_takes_back_that_nothing_was_started(page: Page, fake, tab):
    opened = tab(page, "generate")
    for button in (page.get_by_role("button", name="Folk duet"), opened.part("reset"), opened.part("reset-undo")):
        for name in ("prompt", "lyrics"):
            opened.set(name, "type", "")
        opened.go.click()
        expect(opened.part("problems")).to_contain_text("Please look at Prompt.")
        button.click()
        expect(opened.part("problems")).to_be_hidden()
    assert fake.requests == []


@pytest.mark.slow
def test_instrumental_switches_the_lyrics_off_and_keeps_them(page: Page, fake, tab):
    opened = tab(page, "generate")
    lyrics = opened.field("lyrics").locator("textarea")
    lyrics.fill("[Verse]\nla la")
    opened.field("instrumental").get_by_role("checkbox").check()
    expect(lyrics).to_be_disabled()
    expect(lyrics).to_have_value("[Verse]\nla la")
    opened.field("instrumental").get_by_role("checkbox").uncheck()
    expect(lyrics).to_be_enabled()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if at else ()) for at, name in enumerate(tooltips.EXAMPLES)]
)
def test_each_example_makes_a_song(page: Page, fake, tab, name: str):
    opened = tab(page, "generate")
    opened.unfold()
    opened.set("bpm", "type", "200")
    page.get_by_role("button", name=name).click()
    expect(opened.field("prompt").locator("textarea")).to_have_value(tooltips.EXAMPLES[name]["prompt"])
    request = opened.made(fake)
    for field, value in {**tooltips.EXAMPLE_DEFAULTS, **tooltips.EXAMPLES[name]}.items():
        expected = int(value) if field == "bpm" else value
        assert read(request, field) == expected, field


@pytest.mark.slow
def test_a_turbo_checkpoint_has_its_own_defaults_and_no_guidance(page: Page, fake, tab):
    opened = tab(page, "generate")
    fake.facts = {"turbo": True}
    page.reload()
    opened.unfold()
    expect(opened.field("options.guidance").locator("input")).to_be_disabled()
    expect(opened.field("options.guidance")).to_contain_text("this turbo checkpoint has guidance built in")
    expect(opened.field("options.cfg_end").locator("input[type=number]")).to_be_disabled()
    expect(opened.field("options.steps")).to_contain_text("Blank: 8.")
    expect(opened.field("options.shift").locator("input")).to_have_attribute("placeholder", "3")


def test_blank_boxes_say_what_the_checkpoint_uses(page: Page, tab):
    opened = tab(page, "generate")
    opened.unfold()
    expect(opened.field("options.steps")).to_contain_text("draft 20, standard 50, best 80")
    expect(opened.field("options.guidance").locator("input")).to_have_attribute("placeholder", "7")
    expect(opened.field("options.shift").locator("input")).to_have_attribute("placeholder", "1")
