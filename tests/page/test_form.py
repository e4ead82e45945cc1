"""The form: every control reaches the request, wrong values are told beside their field, examples fill it in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect

import panels
import tabs
import tooltips
from params import Options, parse_request

# How a visitor sets each control, and what the request has then.
CONTROLS = {
    "prompt": ("type", "brass band", "brass band"),
    "lyrics": ("type", "[Verse]\nla la", "[Verse]\nla la"),
    "instrumental": ("tick", True, True),
    "duration": ("type", "12.345", 12.345),
    "bpm": ("type", "90", 90),
    "key": ("choose", "F# minor", "F# minor"),
    "time_signature": ("pick", "3/4", "3"),
    "language": ("choose", "Japanese", "ja"),
    "takes": ("pick", "2", 2),
    "quality": ("pick", "Draft, 20 steps", "draft"),
    "seed": ("type", "0", 0),
    "reference": ("upload", None, None),
    "options.steps": ("type", "8", 8),
    "options.guidance": ("type", "3.5", 3.5),
    "options.shift": ("type", "2,5", 2.5),
    "options.sampler": ("pick", "With fresh noise (SDE)", "sde"),
    "options.cfg_start": ("slide", "0.25", 0.25),
    "options.cfg_end": ("slide", "0.75", 0.75),
    "options.format": ("pick", "FLAC, 24 bit", "flac"),
    "options.loudness": ("type", "-14", -14.0),
    "options.fade_out": ("slide", "2.5", 2.5),
    "options.variation": ("slide", "0.3", 0.3),
    "options.variation_seed": ("type", "11", 11),
    "options.timbre_token": ("tick", False, False),
}


@pytest.fixture
def form(lasting_page: Page, fake, request) -> Iterator[Page]:
    """Return the page with its defaults and "a song" as the prompt; anew after a test that failed half-way."""
    page = lasting_page
    if getattr(request.module, "used", False):
        page.reload()
    request.module.used = True
    if box(page, "prompt").locator("textarea").input_value() != "a song":
        box(page, "prompt").locator("textarea").fill("a song")
    yield page
    request.module.used = False


def box(page: Page, name: str) -> Locator:
    """Return a field of the Generate tab."""
    return page.locator(f"#generate-{name.rpartition('.')[2].replace('_', '-')}")


def fold(page: Page, opened: bool) -> None:
    """Open or close both folded groups."""
    for title, inside in ((tooltips.DETAILS, "seed"), (tooltips.ADVANCED, "options.timbre_token")):
        if box(page, inside).is_visible() != opened:
            page.get_by_role("button", name=title).click()
            expect(box(page, inside)).to_be_visible(visible=opened)


def set_control(page: Page, name: str, how: str, value: Any) -> Any:
    """Set a control as a visitor would; return what it was before, to set it back."""
    field = box(page, name)
    if how == "type":
        control = field.locator("textarea, input")
        before = control.input_value()
        control.fill(value)
    elif how == "tick":
        control = field.get_by_role("checkbox")
        before = control.is_checked()
        control.set_checked(value)
    elif how == "pick":
        before = field.locator("label:has(input:checked)").inner_text()
        field.get_by_label(value, exact=True).check()
    elif how == "slide":
        control = field.locator("input[type=number]")
        before = control.input_value()
        control.fill(value)
        control.blur()
    elif how == "choose":
        control = field.get_by_role("combobox")
        before = control.input_value()
        control.fill(value)
        control.press("Enter")
    elif value is None:
        before = field.get_by_role("button", name="Clear").click()
    else:
        before = field.locator("input[type=file]").set_input_files(value)
        expect(field.locator("time").last).to_have_text("0:02")
    return before


def made(page: Page, fake: Any) -> Any:
    """Press the button and return the request that reached the backend."""
    seed = 100 * (fake.songs + 1)
    page.locator("#generate-go").click()
    expect(page.get_by_role("button", name=f"Copy seed {seed}", exact=True)).to_be_visible()
    return fake.requests[-1]


def read(request: Any, name: str) -> Any:
    """Return a field of a request, such as "options.steps"."""
    for part in name.split("."):
        request = getattr(request, part)
    return request


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_changes_the_request(form: Page, fake, tmp_path: Path, name: str):
    how, value, expected = CONTROLS[name]
    fold(form, opened=True)
    if how == "upload":
        value = tmp_path / "voice.wav"
        soundfile.write(value, np.zeros((96_000, 2)), 48_000)
    before = set_control(form, name, how, value)
    request = made(form, fake)
    plain = parse_request("generate", {"prompt": "a song"})
    if how == "upload":
        assert Path(request.reference).read_bytes() == value.read_bytes()
    else:
        assert read(request, name) == expected != read(plain, name)
    assert {each for each in CONTROLS if read(request, each) != read(plain, each)} == {name}
    set_control(form, name, how, before)


def test_every_field_of_the_request_has_a_control():
    with gr.Blocks():
        form, _ = tabs.generate_tab()
    fields = set(parse_request("generate", {"prompt": "a song"}).model_dump()) - {"mode", "options"}
    assert fields | {f"options.{name}" for name in Options.model_fields} == set(form.fields) == set(CONTROLS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("prompt", "", "Prompt must have from 1 to 2,000 characters"),
        ("prompt", "x" * 100_000, "Prompt may have up to 2,000 characters; this has 100,000."),
        ("lyrics", "x" * 100_000, "Lyrics may have up to 10,000 characters; this has 100,000."),
        ("duration", "9", "Length must be from 10 to 600 seconds, not 9."),
        ("duration", "601", "Length must be from 10 to 600 seconds, not 601."),
        ("duration", "nan", "Length must be from 10 to 600 seconds, not nan."),
        ("bpm", "0", "BPM must be a whole number from 30 to 300"),
        ("bpm", "fast", 'not "fast".'),
        ("key", "H major", "Key must be a note from A to G"),
        ("seed", "-2", "Seed must be a whole number from -1 to 4294967295"),
        ("options.steps", "201", "Steps must be a whole number from 1 to 200"),
        ("options.guidance", "0.5", "Guidance must be from 1 to 15"),
        ("options.shift", "6", "Shift must be from 1 to 5"),
        ("options.loudness", "0", "Loudness must be from -30 to -6 LUFS"),
        ("options.variation_seed", "-2", "Variation seed must be a whole number"),
    ],
)
def test_a_wrong_value_is_told_beside_its_field(form: Page, fake, name: str, value: str, sentence: str):
    fold(form, opened=True)
    field = box(form, name).locator("textarea, input")
    before = field.input_value()
    field.fill(value)
    field.blur()
    fold(form, opened=False)
    form.locator("#generate-go").click()

    # The group of the field opens by itself, and the line at the button names it.
    expect(box(form, name).get_by_text(sentence)).to_be_visible()
    expect(form.locator("#generate-problems")).to_contain_text(f"look at {panels.label(name.split('.')[-1])}.")
    expect(field).to_have_value(value)
    expect(form.locator("#generate-go")).to_be_enabled()
    assert fake.requests == []
    # Put right, it works.
    field.fill(before)
    field.blur()
    assert made(form, fake) == parse_request("generate", {"prompt": before if name == "prompt" else "a song"})
    expect(box(form, name).get_by_text(sentence)).to_have_count(0)
    expect(form.locator("#generate-problems").get_by_role("alert")).to_have_count(0)


def test_guidance_that_ends_before_it_starts_is_told(form: Page, fake):
    fold(form, opened=True)
    set_control(form, "options.cfg_start", "slide", "0.8")
    set_control(form, "options.cfg_end", "slide", "0.2")
    form.locator("#generate-go").click()
    expect(box(form, "options.cfg_end")).to_contain_text("must not be below Guidance starts at (0.8)")
    assert fake.requests == []
    set_control(form, "options.cfg_start", "slide", "0")
    set_control(form, "options.cfg_end", "slide", "1")


def test_instrumental_switches_the_lyrics_off_and_keeps_them(page: Page, fake):
    lyrics = box(page, "lyrics").locator("textarea")
    lyrics.fill("[Verse]\nla la")
    box(page, "instrumental").get_by_role("checkbox").check()
    expect(lyrics).to_be_disabled()
    expect(lyrics).to_have_value("[Verse]\nla la")
    box(page, "instrumental").get_by_role("checkbox").uncheck()
    expect(lyrics).to_be_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("name", tooltips.EXAMPLES)
def test_each_example_makes_a_song(page: Page, fake, name: str):
    fold(page, opened=True)
    set_control(page, "bpm", "type", "200")
    page.get_by_role("button", name=name).click()
    expect(box(page, "prompt").locator("textarea")).to_have_value(tooltips.EXAMPLES[name]["prompt"])
    request = made(page, fake)
    for field, value in {**tooltips.EXAMPLE_DEFAULTS, **tooltips.EXAMPLES[name]}.items():
        expected = int(value) if field == "bpm" else value
        assert read(request, field) == expected, field


def test_a_turbo_checkpoint_has_its_own_defaults_and_no_guidance(page: Page, fake):
    fake.facts = {"turbo": True}
    page.reload()
    fold(page, opened=True)
    expect(box(page, "options.guidance").locator("input")).to_be_disabled()
    expect(box(page, "options.guidance")).to_contain_text("this turbo checkpoint has guidance built in")
    expect(box(page, "options.cfg_end").locator("input[type=number]")).to_be_disabled()
    expect(box(page, "options.steps")).to_contain_text("Blank: 8.")
    expect(box(page, "options.shift").locator("input")).to_have_attribute("placeholder", "3")


def test_blank_boxes_say_what_the_checkpoint_uses(page: Page):
    fold(page, opened=True)
    expect(box(page, "options.steps")).to_contain_text("draft 20, standard 50, best 80")
    expect(box(page, "options.guidance").locator("input")).to_have_attribute("placeholder", "7")
    expect(box(page, "options.shift").locator("input")).to_have_attribute("placeholder", "1")
