"""Cover and Extend, the ways between the tabs, and settings that come back from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

import export
import tabs
import tooltips
from limits import LIMITS, SAMPLE_RATE
from params import SONG_REQUESTS, parse_request
from tests.page.steps import MARKUP, SHARED, read

OWN = {
    "cover": {"strength": ("slide", "0.35", 0.35), "options.noise_strength": ("slide", "0.15", 0.15)},
    "extend": {
        "before": ("type", "1.5", 1.5),
        "after": ("type", "2,25", 2.25),
        "options.overlap": ("slide", "0.7", 0.7),
    },
}


# --- the forms ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", OWN)
def test_each_control_changes_its_part_of_the_request(page: Page, fake, tab, song: Path, tmp_path: Path, mode: str):
    opened = tab(page, mode)
    opened.set("source", "upload", song)
    opened.set("prompt", "type", "a song")
    plain = opened.made(fake)
    assert plain == parse_request(mode, {"source": plain.source, "prompt": "a song"})
    assert Path(plain.source).read_bytes() == song.read_bytes()

    controls = {**SHARED, **OWN[mode]}
    opened.set_all(controls | ({"reference": ("upload", song, None)} if mode == "cover" else {}))
    request = opened.made(fake)
    for name, (_, _, expected) in controls.items():
        assert read(request, name) == expected != read(plain, name), name
    if mode == "cover":
        assert Path(request.reference).read_bytes() == song.read_bytes()


@pytest.mark.parametrize("mode", [mode for mode in SONG_REQUESTS if mode != "edit"])
def test_every_field_of_a_request_has_a_control(mode: str):
    with gr.Blocks():
        form = getattr(tabs, f"{mode}_tab")().form
    fields = SONG_REQUESTS[mode].model_fields
    options = {f"options.{name}" for name in fields["options"].annotation.model_fields}
    assert set(form.fields) == set(fields) - {"mode", "options"} | options
    if mode != "generate":
        assert next(iter(form.fields)) == "source"


WRONG_SOURCES = {
    "none": "Source must be an audio file of 1 to 600 seconds; none was given.",
    "text": "This is a text file, not audio.",
    "short": "at least 1 second",
    "empty": "The file is empty",
}


@pytest.mark.slow
def test_a_source_that_cannot_be_used(page: Page, fake, tab, tmp_path: Path, forgiven):
    # The player in the browser says so in its own way.
    forgiven += ["Waveform load error", "RANGE_NOT_SATISFIABLE", "status of 416"]
    for name, content in {"text": b"These are words. " * 99, "empty": b""}.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    soundfile.write(tmp_path / "short.wav", np.zeros((24_000, 2)), SAMPLE_RATE)
    for mode in ("cover", "extend", "edit"):
        opened = tab(page, mode)
        opened.set("prompt", "type", "a song")
        for wrong, sentence in WRONG_SOURCES.items():
            if wrong != "none":
                opened.clear("source")
                opened.field("source").locator("input[type=file]").set_input_files(tmp_path / f"{wrong}.wav")
                # It is told as soon as it is there.
                expect(page.locator(f"#{mode}-offer")).to_contain_text(sentence)
            opened.go.click()
            expect(page.locator(f"#{mode}-problems")).to_contain_text("Please look at Source audio.")
            expect(opened.field("source")).to_contain_text(sentence)
            expect(opened.text("prompt")).to_have_value("a song")
            expect(opened.go).to_be_enabled()
    assert fake.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "field", "sentence"),
    [
        ("0", "0", "after", "Seconds before and Seconds after, each from 0 to 300, must not both be 0."),
        pytest.param(
            "0", "-1", "after", "Seconds after must be from 0 to 300 seconds, not -1.", marks=pytest.mark.long
        ),
        ("300", "300", "after", "Seconds before and after together must be from 0 to 597"),
        pytest.param("1-2", "0", "before", 'not "1-2".', marks=pytest.mark.long),
    ],
)
def test_an_extension_that_does_not_fit(
    lasting: Page, fake, tab, song: Path, before: str, after: str, field: str, sentence: str
):
    opened = tab(lasting, "extend")
    opened.set("source", "upload", song)
    for name, value in {"prompt": "a song", "before": before, "after": after}.items():
        opened.set(name, "type", value)
    opened.go.click()
    expect(opened.field(field)).to_contain_text(sentence)
    expect(opened.text("before")).to_have_value(before)
    assert fake.requests == []
    opened.set("before", "type", "1")
    opened.set("after", "type", "")
    assert (opened.made(fake).before, fake.requests[-1].after) == (1.0, LIMITS["after"].default)


def test_extend_says_how_long_the_song_gets(lasting: Page, fake, tab, song: Path):
    opened = tab(lasting, "extend")
    total = lasting.locator("#extend-total")
    opened.clear("source")
    opened.set("before", "type", "")
    opened.set("after", "type", "")
    expect(total).to_have_text("")
    opened.set("source", "upload", song)
    expect(total).to_have_text("In all 0:33 (3 s of source + 30 s = 33 s).")
    opened.set("before", "type", "12.5")
    expect(total).to_have_text("In all 0:46 (12.5 s + 3 s of source + 30 s = 45.5 s).")
    opened.set("before", "type", "1.2.3")
    expect(total).to_have_text("")
    opened.set("before", "type", "0")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cover", pytest.param("extend", marks=pytest.mark.long)])
def test_examples_fill_the_form(lasting: Page, fake, tab, song: Path, mode: str):
    examples = getattr(tooltips, f"{mode.upper()}_EXAMPLES")
    assert len(examples) == 3
    opened = tab(lasting, mode)
    opened.set("source", "upload", song)
    opened.set("prompt", "type", "")
    for name, example in examples.items():
        lasting.get_by_role("button", name=name).click()
        expect(opened.text("prompt")).to_have_value(example["prompt"])
        request = opened.made(fake)
        for field, value in example.items():
            assert read(request, field) == value, field


def test_an_example_leaves_the_words_of_an_extended_song(lasting: Page, tab):
    opened = tab(lasting, "extend")
    opened.set("prompt", "type", "my own song")
    lasting.get_by_role("button", name="An intro").click()
    expect(opened.text("before")).to_have_value("15")
    expect(opened.text("prompt")).to_have_value("my own song")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cover", pytest.param("extend", marks=pytest.mark.long)])
def test_cancel(lasting: Page, fake, tab, song: Path, mode: str):
    fake.script = fake.endless
    opened = tab(lasting, mode)
    opened.set("source", "upload", song)
    opened.set("prompt", "type", "a song")
    opened.go.click()
    expect(opened.progress).to_contain_text("step 3 of 50")
    lasting.locator(f"#{mode}-cancel").click()
    expect(opened.progress).to_contain_text("Cancelled.")
    assert fake.closed.wait(5)
    expect(opened.text("prompt")).to_have_value("a song")
    expect(opened.field("source").locator("time").last).to_have_text("0:03")


# --- the tabs -----------------------------------------------------------------------------------------------------


def test_arrow_keys_move_between_the_tabs(lasting: Page):
    page = lasting

    def expect_tab(name: str) -> None:
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"#{name.lower()}-go")).to_be_visible()

    page.get_by_role("tab", name="Generate").focus()
    for key, name in {"ArrowRight": "Cover", "End": "Lyrics", "ArrowLeft": "Edit", "Home": "Generate"}.items():
        page.keyboard.press(key)
        expect_tab(name)
    page.keyboard.press("ArrowLeft")
    expect_tab("Lyrics")
    page.keyboard.press("ArrowRight")
    expect_tab("Generate")


@pytest.mark.slow
@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.long), 390])
def test_nothing_is_cut_off(fake, fake_address, visit, tab, width: int):
    page = visit(fake_address[0], width)
    for mode in (*SONG_REQUESTS, "lyrics"):
        tab(page, mode).unfold()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    places = [page.get_by_role("tab", name=name).bounding_box() for name in tooltips.TABS.values()]
    assert all(place["x"] >= 0 and place["x"] + place["width"] <= width for place in places)
    assert len({place["y"] for place in places}) == 1
    assert min(place["height"] for place in places) >= 44


@pytest.mark.slow
def test_what_is_typed_survives_a_look_at_another_tab(page: Page, fake, tab, song: Path):
    opened = tab(page, "cover")
    opened.set("source", "upload", song)
    opened.set("prompt", "type", "a song")
    opened.unfold()
    opened.set("bpm", "type", "90")
    tab(page, "extend")
    opened = tab(page, "cover")
    request = opened.made(fake)
    assert (request.prompt, request.bpm, request.strength) == ("a song", 90, 0.8)


# --- a take goes to another tab -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cover", pytest.param("extend", marks=pytest.mark.long), "edit"])
def test_a_take_goes_to_a_tab_in_one_click(lasting: Page, fake, tab, mode: str):
    page = lasting
    words = {"prompt": MARKUP, "lyrics": "[Verse]\nla", "bpm": 90, "key": "A minor", "strength": "high"}

    def script(request: Any):
        return fake.song(request, request=words)

    fake.script = script
    generate = tab(page, "generate")
    generate.unfold()
    generate.set("prompt", "type", "a song")
    generate.set("takes", "pick", "2")
    generate.made(fake)
    name = f"song-seed-{100 * fake.songs + 1}.wav"
    generate.take(2).get_by_role("button", name=f"Use in {mode.capitalize()}").click()

    expect(page.locator(f"#{mode}-go")).to_be_visible()
    expect(page.locator("#studio-tabs")).to_be_in_viewport()
    opened = tab(page, mode)
    expect(opened.text("prompt")).to_have_value(MARKUP)
    expect(opened.text("lyrics")).to_have_value("[Verse]\nla")
    expect(opened.field("source").locator("time").last).to_have_text("0:01")
    if mode == "edit":
        page.locator("#edit-action").get_by_label("Morph into something else").check()
        expect(opened.text("source_prompt")).to_have_value(MARKUP)
    request = opened.made(fake)
    assert Path(request.source).name == name
    assert (request.prompt, request.bpm, request.key, request.takes) == (MARKUP, 90, "A minor", 1)
    expect(page).to_have_title("ACE Music Studio")


@pytest.mark.slow
def test_a_cover_goes_on_to_be_extended(page: Page, fake, tab, song: Path):
    cover = tab(page, "cover")
    expect(page.get_by_role("button", name="Use in Extend")).to_have_count(0)
    cover.set("source", "upload", song)
    cover.set("prompt", "type", "as a waltz")
    cover.made(fake)
    name = f"song-seed-{100 * fake.songs}.wav"
    cover.take().get_by_role("button", name="Use in Extend").click()
    expect(page.locator("#extend-total")).to_have_text("In all 0:31 (1 s of source + 30 s = 31 s).")
    extend = tab(page, "extend")
    request = extend.made(fake)
    assert (Path(request.source).name, request.prompt) == (name, "as a waltz")


# --- settings that come back --------------------------------------------------------------------------------------


@pytest.fixture
def made_here(song: Path) -> Path:
    """Return a song with the record of a cover in its tags."""
    request = {"prompt": MARKUP, "lyrics": "la", "bpm": 90, "time_signature": "3", "language": "fr", "strength": 0.3}
    request |= {"options": {"steps": 7, "loudness": -14.0, "noise_strength": 9}, "unheard-of": MARKUP}
    record = {"mode": "cover", "request": request, "takes": [{"seed": 4294967295}], "audio": {"reference": {}}}
    export.write_tags(song, MARKUP, record)
    return song


def test_a_source_with_settings_offers_them(page: Page, fake, tab, made_here: Path):
    opened = tab(page, "cover")
    opened.set("prompt", "type", "mine")
    button = page.get_by_role("button", name="Restore its settings")
    expect(button).to_have_count(0)
    opened.set("source", "upload", made_here)
    expect(page.locator("#cover-offer")).to_contain_text("carries its settings")
    # It is the source; the form is as it was until the button is pressed.
    expect(opened.text("prompt")).to_have_value("mine")
    button.click()
    expect(page.locator("#cover-offer")).to_contain_text("10 settings restored; 2 left out")
    expect(page.locator("#cover-offer")).to_contain_text("reference audio is not in the file")
    expect(button).to_have_count(0)
    request = opened.made(fake)
    assert Path(request.source).read_bytes() == made_here.read_bytes()
    assert (request.prompt, request.lyrics, request.bpm, request.strength) == (MARKUP, "la", 90, 0.3)
    assert (request.time_signature, request.language) == ("3", "fr")
    assert (request.seed, request.takes, request.options.steps, request.options.loudness) == (4294967295, 1, 7, -14.0)
    assert request.options.noise_strength == 0
    expect(page).to_have_title("ACE Music Studio")
    expect(page.locator(".gradio-container b, .gradio-container img[src=x]")).to_have_count(0)


@pytest.mark.slow
def test_generate_takes_settings_from_a_dropped_file(page: Page, fake, tab, made_here: Path, tmp_path: Path):
    opened = tab(page, "generate")
    opened.unfold()
    page.locator("#generate-settings input[type=file]").set_input_files(made_here)
    expect(page.locator("#generate-offer")).to_contain_text("settings restored; 3 left out")
    request = opened.made(fake)
    assert (request.prompt, request.bpm, request.seed, request.duration) == (MARKUP, 90, 4294967295, 60)
    page.locator("#generate-settings").get_by_role("button", name=re.compile("Clear|Remove")).first.click()
    plain = tmp_path / "plain.wav"
    soundfile.write(plain, np.zeros((SAMPLE_RATE, 2)), SAMPLE_RATE)
    page.locator("#generate-settings input[type=file]").set_input_files(plain)
    expect(page.locator("#generate-offer")).to_have_text("This file carries no settings of the studio.")
    expect(opened.text("prompt")).to_have_value(MARKUP)


@pytest.mark.slow
def test_a_file_without_settings_is_just_a_source(lasting: Page, tab, song: Path):
    opened = tab(lasting, "extend")
    opened.clear("source")
    expect(lasting.locator("#extend-total")).to_have_text("")
    opened.set("source", "upload", song)
    expect(lasting.locator("#extend-total")).to_contain_text("3 s of source")
    expect(lasting.locator("#extend-offer")).to_have_text("")


# --- on the preview engine ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cover_is_as_long_as_its_source(studio: str, visit, tab, song: Path):
    opened = tab(visit(studio), "cover")
    opened.set("source", "upload", song)
    opened.set("prompt", "type", "as a waltz")
    opened.unfold()
    opened.set("options.steps", "type", "2")
    file = opened.download()
    assert soundfile.info(file).frames == 3 * SAMPLE_RATE
    # Its settings come back into another tab.
    record = export.read_record(file)
    assert record["mode"] == "cover"
    generate = tab(opened.page, "generate")
    generate.unfold()
    opened.page.locator("#generate-settings input[type=file]").set_input_files(file)
    expect(generate.text("prompt")).to_have_value("as a waltz")
    expect(generate.text("options.steps")).to_have_value("2")
    expect(generate.text("seed")).to_have_value(str(record["takes"][0]["seed"]))


@pytest.mark.slow
def test_an_extended_song_has_the_length_to_the_sample(studio: str, visit, tab, song: Path):
    opened = tab(visit(studio), "extend")
    opened.set("source", "upload", song)
    opened.set_all({"prompt": ("type", "a song", 0), "options.steps": ("type", "2", 0)})
    opened.set("before", "type", "1.234")
    opened.set("after", "type", "2")
    opened.set("options.overlap", "slide", "0.5")
    file = opened.download()
    samples, source = (soundfile.read(path, dtype="int32")[0] for path in (file, song))
    before = round(1.234 * SAMPLE_RATE)
    assert len(samples) == before + 3 * SAMPLE_RATE + 2 * SAMPLE_RATE
    kept = slice(int(0.6 * SAMPLE_RATE), int(2.4 * SAMPLE_RATE))
    assert np.array_equal(samples[before:][kept], source[kept])
