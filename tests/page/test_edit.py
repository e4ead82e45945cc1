"""The Edit tab: each action shows its controls and sends no others, and each makes a song on the preview engine."""

from __future__ import annotations

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
from limits import ACTIONS, SAMPLE_RATE
from params import ACTION_OPTIONS, REQUESTS, parse_request
from tests.page.steps import SHARED, read

# What each action adds to the form: how a visitor sets it, and what the request has then.
CONTROLS = {
    "repaint": {
        "start": ("type", "0,5", 0.5),
        "end": ("type", "2.5", 2.5),
        "options.repaint_mode": ("pick", "Balanced", "balanced"),
        "options.repaint_strength": ("slide", "0.25", 0.25),
    },
    "morph": {
        "source_prompt": ("type", "what it is", "what it is"),
        "source_lyrics": ("type", "its words", "its words"),
        "options.n_min": ("slide", "0.25", 0.25),
        "options.n_max": ("slide", "0.75", 0.75),
        "options.n_avg": ("slide", "3", 3),
    },
    "layer": {
        "track": ("pick", "Strings", ("strings",)),
        "options.mix": ("tick", True, True),
        "part": ("tick", True, None),
        "start": ("type", "1", 1.0),
        "end": ("type", "2", 2.0),
    },
    "extract": {"track": ("pick", "Vocals", ("vocals",))},
    "complete": {"tracks": ("pick", "FX", ("fx",))},
}
LEAST = {"layer": {"tracks": ["drums"]}, "extract": {"tracks": ["drums"]}, "complete": {"tracks": ["bass"]}}


def choose(page: Page, action: str) -> None:
    """Choose an action."""
    page.locator(f"#edit-action input[value={action}]").check()


@pytest.fixture
def edit(lasting: Page, tab, song: Path) -> Any:
    """Open the Edit tab with a new song to repaint in it, and no words."""
    opened = tab(lasting, "edit")
    choose(lasting, "repaint")
    opened.clear("source")
    expect(opened.text("start")).to_have_value("0")
    opened.field("instrumental").get_by_role("checkbox").uncheck()
    expect(opened.text("lyrics")).to_be_enabled()
    for name in ("prompt", "lyrics"):
        opened.set(name, "type", "")
    opened.set("source", "upload", song)
    expect(opened.text("start")).to_have_value("1")
    return opened


# --- the form -----------------------------------------------------------------------------------------------------


def test_each_action_shows_its_controls_and_sends_no_others(edit, fake):
    every = {name for controls in CONTROLS.values() for name in controls}
    edit.unfold()
    for action, controls in CONTROLS.items():
        choose(edit.page, action)
        for name, (how, value, _) in controls.items():
            edit.set(name, how, value)
        for name in every:
            expect(edit.field(name)).to_be_visible(visible=name in controls)
        request = edit.made(fake)
        for name, (_, _, expected) in controls.items():
            assert name == "part" or read(request, name) == expected, (action, name)
        assert request.options.model_fields_set & set().union(*ACTION_OPTIONS.values()) == ACTION_OPTIONS[action]
    # What was set for an action is there when a visitor comes back to it.
    choose(edit.page, "layer")
    expect(edit.field("track").get_by_label("Vocals", exact=True)).to_be_checked()
    expect(edit.field("part").get_by_role("checkbox")).to_be_checked()


@pytest.mark.slow
def test_the_controls_that_all_tabs_have_reach_the_request(edit, fake):
    plain = parse_request("edit", {"source": "a.wav"})
    edit.set_all(SHARED)
    request = edit.made(fake)
    for name, (_, _, expected) in SHARED.items():
        assert read(request, name) == expected != read(plain, name), name


def test_every_field_of_the_request_has_a_control():
    with gr.Blocks():
        form = tabs.edit_tab().form
    fields = REQUESTS["edit"].model_fields
    options = {f"options.{name}" for name in fields["options"].annotation.model_fields}
    assert set(form.fields) == set(fields) - {"mode", "options"} | options | {"track", "part"}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_request_has_only_what_its_action_uses(action: str):
    with gr.Blocks():
        form = tabs.edit_tab().form
    # As if a visitor had set everything before.
    there = {**LEAST.get(action, {}), "source": "a.wav", "action": action, "start": "1", "end": "2", "part": True}
    there |= {"tracks": ["bass"], "track": "drums", "source_prompt": "a", "source_lyrics": "b", "options.mix": True}
    values = [there.get(name, field.value) for name, field in form.fields.items()]
    request = form.request(values)
    assert request.action == action
    assert request.options.model_fields_set & set().union(*ACTION_OPTIONS.values()) == ACTION_OPTIONS[action]


@pytest.mark.slow
def test_the_strength_belongs_to_the_balanced_repaint(edit, fake):
    edit.set("options.repaint_strength", "slide", "0.9")
    edit.field("options.repaint_mode").get_by_label("Aggressive: start afresh").check()
    expect(edit.field("options.repaint_strength")).to_be_hidden()
    request = edit.made(fake)
    assert (request.options.repaint_mode, request.options.repaint_strength) == ("aggressive", 0.5)


@pytest.mark.slow
def test_help_follows_the_action(edit):
    expect(edit.field("lyrics")).to_contain_text("The lyrics of the whole song, with the new words in place.")
    choose(edit.page, "morph")
    expect(edit.field("lyrics")).to_contain_text("The words the song gets")
    expect(edit.field("prompt")).to_contain_text("What the song becomes.")
    edit.field("instrumental").get_by_role("checkbox").check()
    expect(edit.field("lyrics")).to_contain_text("Switched off by Instrumental.")


@pytest.mark.slow
def test_actions_that_the_checkpoint_was_not_trained_for_are_marked(page: Page, fake, tab):
    opened = tab(page, "edit")
    expect(opened.field("action").get_by_label("Add a layer (experimental)")).to_be_visible()
    choose(page, "layer")
    expect(page.locator("#edit-hints")).to_contain_text("This checkpoint was not trained for it")
    fake.facts = {"tasks": dict.fromkeys(ACTIONS, "official")}
    page.reload()
    opened = tab(page, "edit")
    expect(opened.field("action").get_by_label("Add a layer", exact=True)).to_be_visible()
    choose(page, "layer")
    expect(page.locator("#edit-hints")).not_to_contain_text("was not trained")


def test_a_region_is_dragged_and_typed(edit, fake):
    drag(edit.page, 0.2, 0.6)
    expect(edit.text("start")).to_have_value("0.6")
    expect(edit.text("end")).to_have_value("1.8")
    request = edit.made(fake)
    assert (request.start, request.end) == (0.6, 1.8)
    edit.set("end", "type", "1.5")
    expect(edit.page.get_by_role("slider", name="End of the region")).to_have_attribute("aria-valuenow", "1.5")
    assert edit.made(fake).end == 1.5


def drag(page: Page, start: float, end: float) -> None:
    """Mark a region on the waveform, from and to a share of its width, outside of the present one."""
    page.get_by_role("slider", name="Start of the region").scroll_into_view_if_needed()
    handle = page.get_by_role("slider", name="Start of the region")
    # To the whole file first, so that a drag marks a new region.
    handle.press("Home")
    page.get_by_role("slider", name="End of the region").press("End")
    expect(page.locator("#edit-end input, #edit-end textarea")).to_have_value("0")
    box = page.locator("#edit-region .track").bounding_box()
    height = box["y"] + 20
    page.mouse.move(box["x"] + start * box["width"], height)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], height, steps=5)
    page.mouse.up()


WRONG = [
    ("repaint", {"start": "50", "end": "10"}, "end", "End must be at least 0.5 seconds after Start (50)"),
    ("repaint", {"start": "-5", "end": "9999"}, "start", "Start must be from 0 to 600 seconds, not -5."),
    (
        "repaint",
        {"start": "1", "end": "5"},
        "end",
        "End must be from 0 to 3 seconds, the length of this source",
    ),
    ("repaint", {"start": "2.9", "end": ""}, "start", "Start must be from 0 to 2.5 seconds in this source, not 2.9."),
    ("repaint", {"start": "0", "end": "0"}, "end", "Start and End must leave some of the source"),
    ("layer", {}, "track", "Tracks must name exactly one track for layer, not 0"),
    ("extract", {}, "track", "Tracks must name exactly one track for extract, not 0"),
    ("complete", {}, "tracks", "Tracks must name one or more tracks for complete, not 0"),
]


@pytest.mark.slow
def test_wrong_values_are_told_beside_their_fields(page: Page, fake, tab, song: Path):
    edit = tab(page, "edit")
    edit.set("source", "upload", song)
    expect(edit.text("start")).to_have_value("1")
    edit.set("prompt", "type", "kept")
    for action, values, field, sentence in WRONG:
        choose(edit.page, action)
        for name, value in values.items():
            edit.set(name, "type", value)
        edit.go.click()
        expect(edit.field(field)).to_contain_text(sentence)
        for name, value in values.items():
            expect(edit.text(name)).to_have_value(value)
    choose(edit.page, "morph")
    edit.unfold()
    edit.set("options.n_min", "slide", "0.8")
    edit.set("options.n_max", "slide", "0.2")
    edit.page.locator("#edit-advanced > button").click()
    edit.go.click()
    expect(edit.field("options.n_max")).to_contain_text("must be from 0 to 1 and above Morph starts at (0.8), not 0.2.")
    expect(edit.text("prompt")).to_have_value("kept")
    assert fake.requests == []


def test_a_missing_source_is_told_at_its_field(page: Page, fake, tab):
    opened = tab(page, "edit")
    opened.go.click()
    expect(opened.field("source")).to_contain_text("Source must be an audio file")
    assert fake.requests == []


@pytest.mark.slow
def test_examples_and_presets_choose_what_they_say(edit, fake):
    for name, example in tooltips.EDIT_EXAMPLES.items():
        edit.page.get_by_role("button", name=name).click()
        expect(edit.text("prompt")).to_have_value(example.get("prompt", ""))
        request = edit.made(fake)
        assert request.action == example["action"]
        assert request.tracks == ((example["track"],) if "track" in example else ())
    edit.set("prompt", "type", "in another style")
    choose(edit.page, "morph")
    for name, numbers in tooltips.MORPHS.items():
        edit.page.get_by_role("button", name=name).click()
        expect(edit.page.locator("#edit-morph-plan")).to_contain_text(f"from {numbers['options.n_min']:.0%}")
        request = edit.made(fake)
        assert {key: read(request, key) for key in numbers} == numbers
        assert request.prompt == "in another style"


@pytest.mark.slow
def test_settings_of_an_edit_come_back(page: Page, fake, tab, song: Path):
    request = {"action": "layer", "tracks": ["synth"], "start": 0.5, "end": 1.5, "prompt": "a"}
    request["options"] = {"mix": True}
    export.write_tags(song, "a", {"mode": "edit", "request": request})
    opened = tab(page, "edit")
    opened.set("source", "upload", song)
    page.get_by_role("button", name="Restore its settings").click()
    expect(page.locator("#edit-offer")).to_contain_text("6 settings restored.")
    made_again = opened.made(fake)
    assert (made_again.action, made_again.tracks, made_again.options.mix) == ("layer", ("synth",), True)
    assert (made_again.start, made_again.end, made_again.prompt) == (0.5, 1.5, "a")


@pytest.mark.slow
def test_cancel(edit, fake):
    fake.script = fake.endless
    edit.go.click()
    expect(edit.progress).to_contain_text("step 3 of 50")
    edit.page.locator("#edit-cancel").click()
    expect(edit.progress).to_contain_text("Cancelled.")
    assert fake.closed.wait(5)
    expect(edit.text("start")).to_have_value("1")


@pytest.mark.slow
@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.long), 390])
def test_nothing_is_cut_off(fake, fake_address, visit, tab, song: Path, width: int):
    page = visit(fake_address[0], width)
    opened = tab(page, "edit")
    opened.set("source", "upload", song)
    opened.unfold()
    for action in ACTIONS:
        choose(page, action)
        expect(page.locator(f"#edit-hints .{action}-only")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# --- on the preview engine ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_action_makes_a_song(studio: str, visit, tab, song: Path):
    edit = tab(visit(studio), "edit")
    edit.set("source", "upload", song)
    edit.unfold()
    edit.set("options.steps", "type", "2")
    source = soundfile.read(song, dtype="int32", always_2d=True)[0]
    files: dict[str, Path] = {}
    for action in ACTIONS:
        choose(edit.page, action)
        if action == "repaint":
            drag(edit.page, 0.4, 0.7)
        elif action in ("layer", "extract"):
            edit.field("track").get_by_label("Drums").check()
        elif action == "complete":
            for track in ("Bass", "Synth"):
                edit.field("tracks").get_by_label(track).check()
        elif action == "morph":
            edit.set("source_prompt", "type", "noise")
            edit.set("prompt", "type", "music")
            edit.page.get_by_role("button", name="New lyrics").click()
        files[action] = edit.download()
        samples = soundfile.read(files[action], dtype="int32", always_2d=True)[0]
        assert samples.shape == (3 * SAMPLE_RATE, 2), action
        if action == "repaint":
            # Half a second of it is the least; a crossfade lies outside of it.
            same = (samples == source).all(axis=1)
            assert same[:SAMPLE_RATE].all() and same[int(2.3 * SAMPLE_RATE) :].all()
            assert not same[int(1.4 * SAMPLE_RATE) : 2 * SAMPLE_RATE].all()
        else:
            assert np.abs(samples).max() > 0
    assert len({path.read_bytes() for path in files.values()}) == len(ACTIONS)
