"""The Edit tab: each action shows its controls and sends no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

import export
import page_panels
import page_tabs
from limits import ACTIONS
from params import ACTION_OPTIONS
from tests.page.steps import read, reload

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


@pytest.fixture
def edit(lasting: Page, tab, song: Path) -> Any:
    """Open the Edit tab with a new song to repaint, and no words."""
    opened = tab(lasting, "edit")
    opened.choose("repaint")
    opened.clear("source")
    expect(opened.text("start")).to_have_value("0")
    opened.field("instrumental").get_by_role("checkbox").uncheck()
    expect(opened.text("lyrics")).to_be_enabled()
    for name in ("prompt", "lyrics"):
        opened.set(name, "type", "")
    opened.set("source", "upload", song)
    expect(opened.text("start")).to_have_value("1")
    return opened


@pytest.mark.slow
def test_each_action_shows_its_controls_and_sends_no_others(edit, fake):
    every = {name for controls in CONTROLS.values() for name in controls}
    edit.unfold()
    for action, controls in CONTROLS.items():
        edit.choose(action)
        for name, (how, value, _) in controls.items():
            edit.set(name, how, value)
        for name in every:
            expect(edit.field(name)).to_be_visible(visible=name in controls)
        request = edit.made(fake)
        for name, (_, _, expected) in controls.items():
            assert name == "part" or read(request, name) == expected, (action, name)
        assert request.options.model_fields_set & set().union(*ACTION_OPTIONS.values()) == ACTION_OPTIONS[action]
    # An action's settings are still there when a visitor comes back to it.
    edit.choose("layer")
    expect(edit.field("track").get_by_label("Vocals", exact=True)).to_be_checked()
    expect(edit.field("part").get_by_role("checkbox")).to_be_checked()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_request_has_only_what_its_action_uses(action: str):
    with gr.Blocks():
        form = page_tabs.edit_tab().form
    # As if a visitor had used every action.
    there = {**LEAST.get(action, {}), "source": "a.wav", "action": action, "start": "1", "end": "2", "part": True}
    there |= {"tracks": ["bass"], "track": "drums", "source_prompt": "a", "source_lyrics": "b", "options.mix": True}
    values = [there.get(name, field.value) for name, field in form.fields.items()]
    request = form.request(values)
    assert request.action == action
    assert request.options.model_fields_set & set().union(*ACTION_OPTIONS.values()) == ACTION_OPTIONS[action]


@pytest.mark.long
@pytest.mark.slow
def test_actions_that_the_checkpoint_was_not_trained_for_are_marked(page: Page, fake, tab):
    opened = tab(page, "edit")
    layer = opened.field("action").locator("label", has_text="Add a layer (experimental)")
    expect(opened.field("action").locator("label", has_text="Morph into something else")).to_be_visible()
    expect(layer).to_be_hidden()
    hints = opened.part("hints")
    more = hints.locator("summary")
    more.press("Enter")
    expect(layer).to_be_visible()
    layer.click()
    # The chosen action stays visible.
    more.press("Enter")
    expect(layer).to_be_visible()
    expect(opened.field("action").locator("label", has_text="Extract a track")).to_be_hidden()
    expect(hints).to_contain_text("This checkpoint was not trained for this")
    fake.facts = {"tasks": dict.fromkeys(ACTIONS, "official")}
    reload(page)
    opened = tab(page, "edit")
    expect(opened.field("action").locator("label", has_text="Add a layer")).to_be_visible()
    expect(more).to_have_count(0)
    opened.choose("layer")
    expect(hints).not_to_contain_text("was not trained")


@pytest.mark.slow
def test_a_region_is_dragged_and_typed(edit, fake):
    drag(edit.page, 0.2, 0.6)
    expect(edit.text("start")).to_have_value("0.6")
    expect(edit.text("end")).to_have_value("1.8")
    request = edit.made(fake)
    assert (request.start, request.end) == (0.6, 1.8)
    edit.set("end", "type", "1.5")
    expect(edit.page.get_by_role("slider", name="End of the region")).to_have_attribute("aria-valuenow", "1.5")
    assert edit.made(fake).end == 1.5


def test_the_waveform_comes_first_and_plays_for_every_action(page: Page, fake, tab, song: Path):
    export.write_tags(song, "a song", {"request": {"bpm": 90}, "plan": {"used": True, "bpm": 120}})
    edit = tab(page, "edit")
    edit.set("source", "upload", song)
    region, snap = edit.part("region"), page.get_by_role("button", name="Snap to beats (120 BPM)")
    expect(snap).to_be_visible()
    # The source has one player, above the actions.
    expect(edit.field("source").locator("[data-testid=waveform-controls]")).to_be_hidden()
    assert region.bounding_box()["y"] < edit.field("action").bounding_box()["y"]
    edit.unfold()
    edit.set("bpm", "type", "96")
    expect(page.get_by_role("button", name="Snap to beats (96 BPM)")).to_be_visible()
    edit.choose("morph")
    expect(region.get_by_role("slider")).to_have_count(0)
    region.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("() => document.querySelector('#edit-region audio').currentTime > 0.1")
    edit.choose("repaint")
    expect(region.get_by_role("slider")).to_have_count(2)
    edit.clear("source")
    expect(edit.field("source").get_by_text("Drop Audio Here")).to_be_visible()


def drag(page: Page, start: float, end: float) -> None:
    """Mark a new region on the waveform, between two shares of its width."""
    first, last = (page.get_by_role("slider", name=f"{edge} of the region") for edge in ("Start", "End"))
    first.scroll_into_view_if_needed()
    # The whole file first, so that a drag marks a new region.
    first.press("Home")
    last.press("End")
    expect(page.locator("#edit-end input, #edit-end textarea")).to_have_value("0")
    box = page.locator("#edit-region .track").bounding_box()
    height = box["y"] + 20
    page.mouse.move(box["x"] + start * box["width"], height)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], height, steps=5)
    page.mouse.up()


WRONG = [
    ("repaint", {"start": "50", "end": "10"}, "end", "End must be at least 0.5 seconds after Start (50)"),
    ("repaint", {"start": "1", "end": "5"}, "end", "End must be from 0 to 3 seconds, the length of this source"),
    ("layer", {}, "track", "Choose the track to add."),
    ("complete", {}, "tracks", "Choose the tracks to add."),
]


@pytest.mark.slow
def test_wrong_values_have_messages_beside_their_fields(page: Page, fake, tab, song: Path):
    edit = tab(page, "edit")
    edit.set("source", "upload", song)
    expect(edit.text("start")).to_have_value("1")
    edit.set("prompt", "type", "kept")
    for action, values, field, sentence in WRONG:
        edit.choose(action)
        for name, value in values.items():
            edit.set(name, "type", value)
        edit.go.click()
        expect(edit.field(field)).to_contain_text(sentence)
        for name, value in values.items():
            expect(edit.text(name)).to_have_value(value)
    expect(edit.text("prompt")).to_have_value("kept")
    assert fake.requests == []


@pytest.mark.long
@pytest.mark.slow
def test_examples_and_presets_fill_in_the_form(edit, fake):
    for name, example in page_panels.EXAMPLES["edit"].items():
        edit.page.get_by_role("button", name=name).click()
        expect(edit.text("prompt")).to_have_value(example.get("prompt", ""))
        request = edit.made(fake)
        assert request.action == example["action"]
        assert request.tracks == ((example["track"],) if "track" in example else ())
    edit.set("prompt", "type", "in another style")
    edit.choose("morph")
    for name, numbers in page_panels.EXAMPLES["morph"].items():
        edit.page.get_by_role("button", name=name).click()
        expect(edit.page.locator("#edit-morph-plan")).to_contain_text(f"from {numbers['options.n_min']:.0%}")
        request = edit.made(fake)
        assert {key: read(request, key) for key in numbers} == numbers
        assert request.prompt == "in another style"
