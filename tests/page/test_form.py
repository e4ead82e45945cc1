"""The form of Generate: its controls, messages at wrong values, examples, and its two faces."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from playwright.sync_api import Locator, Page, expect

import page_fields
import page_form
import page_generate
import tooltips
from limits import INSTRUMENTAL, KEYS, LANGUAGES
from params import parse_request
from tests.page.steps import SHARED, Tab, fits, read, violations

# Letters typed into a number are dropped.
CONTROLS = {
    **SHARED,
    "bpm": ("type", "about 90 bpm", 90),
    "duration": ("type", "about 1:23,4 min", 83.4),
    "options.rewrite": ("tick", True, True),
    "options.exclude": ("type", "no brass", "no brass"),
    "options.plan_strength": ("slide", "0.6", 0.6),
    "options.plan_temperature": ("slide", "0.5", 0.5),
    "options.plan_cfg": ("slide", "3.5", 3.5),
    "options.plan_seed": ("type", "1,024", 1024),
}
SWITCHES = {"instrumental": CONTROLS.pop("instrumental"), "options.plan": ("tick", False, False)}


@pytest.fixture
def form(lasting: Page, tab) -> Tab:
    """Return the Generate tab with its defaults and "a song" as the prompt."""
    opened = tab(lasting, "generate")
    opened.set("prompt", "type", "a song")
    return opened


def choose(page: Page, face: str) -> None:
    button = page.locator("#generate-faces").get_by_role("button", name=face)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")


def length(page: Page, name: str) -> Locator:
    return page.locator("#generate-lengths").get_by_role("button", name=name, exact=True)


@pytest.mark.slow
def test_each_control_changes_the_request(form: Tab, fake, tmp_path: Path):
    plain = parse_request("generate", {"prompt": "a song", "duration": None})
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, np.zeros((96_000, 2)), 48_000)
    form.unfold()
    form.text("bpm").press_sequentially("9x6")
    expect(form.text("bpm")).to_have_value("96")
    form.set("reference", "upload", voice)
    for controls in (CONTROLS, SWITCHES):
        form.set_all(controls)
        request = form.made(fake)
        for name, (_, _, expected) in controls.items():
            assert read(request, name) == expected != read(plain, name), name
    assert Path(request.reference).read_bytes() == voice.read_bytes()
    assert request.sung_lyrics() == INSTRUMENTAL
    for name in ("lyrics", "options.plan_seed"):
        expect(form.text(name)).to_be_disabled()
    form.set("instrumental", "tick", False)
    expect(form.text("lyrics")).to_be_enabled()
    expect(form.text("lyrics")).to_have_value("[Verse]\nla la")
    form.part("reset").click()
    expect(form.text("prompt")).to_have_value("")
    form.clear("reference")
    form.set("prompt", "type", "a song")
    assert form.made(fake) == plain


WRONG = {
    "prompt": ("x" * 100_000, "Prompt may have up to 2,000 characters; this has 100,000."),
    "duration": ("9", "Length must be from 10 to 600 seconds, not 9."),
    "bpm": ("9-9", 'not "9-9".'),
    "options.steps": ("201", "Steps must be a whole number from 1 to 200"),
}


def test_wrong_values_have_messages_beside_their_fields_and_the_first_gets_the_focus(
    form: Tab, fake
):
    form.unfold()
    before = {name: form.set(name, "type", value) for name, (value, _) in WRONG.items()}
    form.unfold(opened=False)
    form.go.click()
    # The groups open by themselves, and the line at the button names the fields.
    for name, (value, sentence) in WRONG.items():
        expect(form.field(name).get_by_text(sentence)).to_be_visible()
        expect(form.text(name)).to_have_value(value)
    expect(form.part("problems")).to_contain_text(
        "Please check “Prompt”, “Length”, “BPM” and “Steps”."
    )
    expect(form.text("prompt")).to_be_focused()
    form.set("prompt", "type", before["prompt"])
    form.set("duration", "type", before["duration"])
    form.unfold(opened=False)
    # A wrong field that Simple hides is shown, too.
    choose(form.page, "Simple")
    form.go.click()
    expect(form.part("problems")).to_contain_text("Please check “BPM” and “Steps”.")
    expect(form.text("bpm")).to_be_focused()
    expect(form.text("bpm")).to_be_in_viewport()
    expect(form.go).to_be_enabled()
    assert fake.requests == []
    for name in ("bpm", "options.steps"):
        form.set(name, "type", before[name])
    assert form.made(fake) == parse_request("generate", {"prompt": "a song", "duration": None})
    for name, (_, sentence) in WRONG.items():
        expect(form.field(name).get_by_text(sentence)).to_have_count(0)
    expect(form.part("problems").get_by_role("alert")).to_have_count(0)


@pytest.mark.slow
def test_an_example_plays_and_fills_the_form_only_if_it_is_asked_to(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.set("prompt", "type", "my own words")
    opened.set("bpm", "type", "200")
    shelf = opened.part("shelf")
    undo = page.locator("#generate-examples-undo")
    covers = shelf.get_by_role("button", name=re.compile("^(Play|Pause) "))
    expect(covers).to_have_count(6)
    for name, example in page_fields.EXAMPLES["generate"].items():
        shelf.get_by_role("button", name=f"Play {name}", exact=True).press("Enter")
        expect(page.locator(".foot-player")).to_contain_text(name)
        page.wait_for_function("() => document.querySelector('#studio-audio').currentTime > 0")
        expect(opened.text("prompt")).to_have_value("my own words")
        page.keyboard.press("Tab")
        expect(shelf.get_by_role("button", name=f"Make one like “{name}”")).to_be_focused()
        page.keyboard.press("Enter")
        expect(opened.text("prompt")).to_have_value(example["prompt"])
        expect(opened.part("message")).to_contain_text("of this example")
        undo.click()
        expect(opened.text("prompt")).to_have_value("my own words")
        expect(opened.text("bpm")).to_have_value("200")
        expect(undo).to_be_hidden()
    # On a phone the form is above the examples, and comes into sight.
    page.set_viewport_size({"width": 390, "height": 844})
    covers.last.scroll_into_view_if_needed()
    expect(opened.text("prompt")).not_to_be_in_viewport()
    shelf.get_by_text("Make one like this").and_(shelf.locator(":visible")).click()
    expect(opened.text("prompt")).to_be_in_viewport()
    undo.click()
    expect(opened.text("prompt")).to_have_value("my own words")
    # The dice writes into the box, which the browser can undo.
    opened.part("dice").get_by_role("button").click()
    assert opened.text("prompt").input_value() in page_generate.IDEAS
    page.keyboard.press("Control+z")
    expect(opened.text("prompt")).to_have_value("my own words")
    shelf.get_by_text("Make one like this").and_(shelf.locator(":visible")).click()
    expect(opened.text("prompt")).to_have_value(example["prompt"])
    request = opened.made(fake)
    for field, value in {**page_form.SONG, "duration": None, **example}.items():
        expected = int(value) if field == "bpm" and value else value
        if field == "lyrics":
            # Section names of other languages are sent as the model knows them.
            expected = parse_request("generate", {"prompt": "a song", "lyrics": value}).lyrics
        assert (read(request, field) or "") == (expected or ""), field
    # The songs take its place.
    expect(shelf).to_be_hidden()


@pytest.mark.slow
def test_a_file_that_is_no_song_has_no_settings(lasting: Page, fake, tab, tmp_path: Path):
    opened = tab(lasting, "generate").reset()
    opened.set("bpm", "type", "90")
    picture, notes = tmp_path / "cover.png", tmp_path / "notes.txt"
    Image.new("RGB", (8, 8)).save(picture)
    notes.write_text("bpm: 120")
    opened.part("settings-fold").locator("> button").click()
    box = opened.part("settings")
    for file in (picture, notes):
        box.locator("input[type=file]").set_input_files(file)
        expect(box).to_contain_text(file.stem)
        expect(opened.part("offer")).to_have_text(tooltips.NOTHING_TO_RESTORE)
        expect(lasting.get_by_test_id("toast-body")).to_have_count(0)
        box.get_by_role("button", name="Clear").click()
        expect(opened.part("offer")).to_have_text("")
    expect(opened.text("bpm")).to_have_value("90")
    expect(opened.text("prompt")).to_have_value("a song")
    opened.part("settings-fold").locator("> button").click()
    opened.reset()


def test_every_idea_and_every_example_is_a_song():
    assert len(set(page_generate.IDEAS)) == 40
    assert len(page_fields.EXAMPLES["generate"]) == 6
    for idea in page_generate.IDEAS:
        assert parse_request("generate", {"prompt": idea}).prompt == idea
    for example in page_fields.EXAMPLES["generate"].values():
        assert parse_request("generate", example).prompt


# Until the page has been laid out for another size of its window.
NEXT_FRAMES = (
    "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
)

# --- two faces ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_simple_fits_on_the_first_screen(fake, fake_address, visit):
    page = visit(fake_address[0], 1280, 900, face="simple")
    opened = Tab(page, "generate")
    expect(length(page, "Auto")).to_have_attribute("aria-pressed", "true")
    for hidden in (
        "lyrics",
        "duration",
        "strip",
        "styles",
        "sound",
        "engine",
        "polish",
        "inspire",
        "reset",
    ):
        expect(opened.part(hidden)).to_be_hidden()
    expect(opened.part("shelf").get_by_role("button", name="Play Folk duet")).to_be_visible()
    expect(opened.part("dice").get_by_role("button")).to_be_visible()
    first_controls = (
        opened.text("prompt"),
        opened.words("No voice"),
        length(page, "30 s"),
        length(page, "3 min"),
    )
    for width, height in ((1280, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate(NEXT_FRAMES)
        foot = opened.go.bounding_box()["y"]
        for control in first_controls:
            box = control.bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= foot, (width, control)
        assert opened.controls_in_sight() <= 20
        assert page.evaluate("scrollY") == 0
        assert fits(page)
        assert violations(page) == []


@pytest.mark.slow
def test_simple_is_a_face_of_generate_alone(fake, fake_address, visit, tab):
    page = visit(fake_address[0], 1280, 900, face="simple")
    cover = tab(page, "cover")
    expect(cover.part("describe")).to_be_visible()
    cover.unfold()
    # Help waits until it is asked for there, as in Custom.
    help_of_steps = cover.field("options.steps").get_by_text("How many times the sound is refined")
    help_of_variation = cover.field("options.variation").get_by_text("Blends in a second seed")
    assert help_of_steps.bounding_box()["height"] <= 1
    cover.part("panel").get_by_role("button", name=tooltips.EXPLAIN).click()
    assert help_of_steps.bounding_box()["height"] > 10
    # A slider's help is as wide as the slider, below its name and its number.
    field = cover.field("options.variation")
    number = field.locator("input[type=number]").bounding_box()
    box = help_of_variation.bounding_box()
    assert box["width"] > 0.8 * field.bounding_box()["width"]
    assert box["y"] >= number["y"] + number["height"]
    # What is chosen at first is not cut off.
    for name in ("options.memory_plan", "language"):
        chosen = cover.field(name).get_by_role("combobox")
        assert chosen.evaluate("(box) => box.scrollWidth <= box.clientWidth"), name


@pytest.mark.slow
def test_custom_is_short_and_a_chip_opens_its_field(fake, fake_address, visit, tab):
    page = visit(fake_address[0], 1280, 900)
    form = tab(page, "generate")
    folds = [form.part(name).locator("> button") for name in ("sound", "plan-fold", "engine")]
    for fold in folds:
        # A turn more closes it.
        for _ in ("open", "closed"):
            fold.click()
            height = page.evaluate("document.documentElement.scrollHeight")
            assert height <= 2.5 * page.viewport_size["height"], fold
    # A chip puts its style into the prompt and takes it out again.
    style = form.part("styles").get_by_role("button", name="jazz")
    form.text("prompt").fill("a slow song, Soul")
    style.click()
    expect(form.text("prompt")).to_have_value("a slow song, Soul, jazz")
    expect(style).to_have_attribute("aria-pressed", "true")
    form.part("styles").get_by_role("button", name="soul").click()
    expect(form.text("prompt")).to_have_value("a slow song, jazz")
    style.click()
    expect(form.text("prompt")).to_have_value("a slow song")
    form.text("prompt").fill("jazz, late")
    expect(style).to_have_attribute("aria-pressed", "true")
    chip = form.part("strip").get_by_role("button", name="BPM")
    expect(form.field("bpm")).to_be_hidden()
    chip.press("Enter")
    expect(chip).to_have_attribute("aria-expanded", "true")
    expect(form.text("bpm")).to_be_focused()
    # It comes up softly, unless that is not wanted.
    comes = "(field) => getComputedStyle(field).animationName"
    assert form.field("bpm").evaluate(comes) != "none"
    page.emulate_media(reduced_motion="reduce")
    assert form.field("bpm").evaluate(comes) == "none"
    page.emulate_media(reduced_motion="no-preference")
    page.keyboard.type("76")
    expect(chip).to_have_text("BPM 76")
    chip.press("Enter")
    expect(form.field("bpm")).to_be_hidden()
    # A length is said in minutes and seconds, whatever was typed.
    form.set("duration", "type", "90")
    expect(form.part("strip").get_by_role("button", name="Length")).to_have_text("Length 1:30")
    # The chosen one of several gets the focus, and the chip says no more than its name.
    form.set("quality", "pick", "Best, 80 steps")
    chip = form.part("strip").get_by_role("button", name="Quality")
    expect(chip).to_have_text("Quality Best")
    chip.press("Enter")
    chip.press("Enter")
    expect(form.field("quality").get_by_label("Best, 80 steps")).to_be_focused()
    # Help comes when it is asked for; what surprises says so at once.
    form.unfold()
    tempo = form.field("bpm").get_by_text("Tempo in beats per minute")
    assert tempo.bounding_box()["height"] <= 1
    assert (
        form.field("options.memory_plan").get_by_text("reloads the model").bounding_box()["height"]
        > 10
    )
    explain = form.part("panel").get_by_role("button", name=tooltips.EXPLAIN)
    explain.click()
    expect(explain).to_have_attribute("aria-pressed", "true")
    assert tempo.bounding_box()["height"] > 10
    # Also in a tab that is opened later.
    shown = page.locator("[data-explain]:visible")
    tab(page, "cover")
    expect(shown).to_have_attribute("aria-pressed", "true")
    tab(page, "generate")
    explain.click()
    assert tempo.bounding_box()["height"] <= 1


# To where the run bar would cover the field that it opens.
TO_FOOT = "(chip) => scrollBy(0, chip.getBoundingClientRect().bottom - innerHeight + 80)"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("key", 1 + len(KEYS)), ("language", len(LANGUAGES))])
def test_a_list_that_a_chip_opens_has_all_choices_and_stays(page: Page, tab, name, count):
    form = tab(page, "generate")
    # What moves at first is held there.
    page.add_style_tag(content=".opened [data-open] { animation-duration: 900s !important; }")
    chip = form.part("strip").locator(f"[data-opens={name}]")
    box = form.field(name).locator("input")
    options = form.field(name).get_by_role("option")
    before = box.input_value()
    chip.evaluate(TO_FOOT)
    # The list is over the chip by the second click, which chooses nothing.
    chip.dblclick()
    expect(options).to_have_count(count)
    expect(box).to_have_value(before)
    field = box.bounding_box()
    assert field["y"] + field["height"] <= form.go.bounding_box()["y"]
    shown = form.field(name).get_by_role("listbox").bounding_box()
    assert shown["y"] >= 0
    assert abs(shown["y"] + shown["height"] - field["y"]) <= 8
    options.nth(3).click()
    expect(box).not_to_have_value(before)
    expect(chip).to_have_attribute("data-set", "")
    # Opened again, it has the others as well.
    for _ in ("closed", "open"):
        chip.click()
    expect(options).to_have_count(count)
    page.keyboard.press("Escape")
    expect(options).to_have_count(0)


@pytest.mark.slow
def test_the_faces_are_one_form(page: Page, fake, tab):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened = tab(page, "generate")
    choose(page, "Simple")
    choose(page, "Custom")
    assert [url for url in asked if "queue/join" in url] == []
    opened.set("bpm", "type", "90")
    opened.set("takes", "pick", "2")
    choose(page, "Simple")
    chips = opened.part("also").get_by_role("button")
    expect(chips).to_have_text(["BPM 90 \u00d7", "Takes 2 \u00d7"])
    opened.set("prompt", "type", "a song")
    length(page, "2 min").click()
    expect(length(page, "2 min")).to_have_attribute("aria-pressed", "true")
    request = opened.made(fake)
    assert (request.prompt, request.duration, request.bpm, request.takes) == ("a song", 120, 90, 2)
    choose(page, "Custom")
    expect(opened.text("duration")).to_have_value("120")
    opened.set("duration", "type", "1:15")
    opened.set("lyrics", "type", "[Verse]\nla")
    choose(page, "Simple")
    expect(opened.text("lyrics")).to_have_value("[Verse]\nla")
    # The choice of the face is kept, too.
    page.reload()
    expect(length(page, "1:15")).to_have_attribute("aria-pressed", "true")
    expect(opened.text("lyrics")).to_be_visible()
    expect(chips).to_have_text(["BPM 90 \u00d7", "Takes 2 \u00d7"])
    expect(opened.part("sound")).to_be_hidden()
    # What nobody sees does not rule the song: each is taken back with a click.
    chips.first.click()
    expect(chips).to_have_text(["Takes 2 \u00d7"])
    length(page, "Auto").click()
    expect(length(page, "Auto")).to_have_attribute("aria-pressed", "true")
    request = opened.made(fake)
    assert (request.duration, request.bpm, request.takes) == (None, None, 2)
