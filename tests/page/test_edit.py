"""The Edit tab: each action shows its controls and sends no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

import page_edit
import page_fields
from backend import get_backend
from events import InvalidRequest
from limits import ACTIONS
from params import ACTION_OPTIONS
from tests.files import tag_file
from tests.page.steps import read, reload

# What each action adds to the form: how a visitor sets it, and what the request has then.
CONTROLS = {
    "repaint": {
        "start": ("type", "0,5", 0.5),
        "end": ("type", "2.5", 2.5),
        "regions": ("type", "", ()),
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
        **{"track": ("pick", "Strings", ("strings",)), "options.mix": ("tick", True, True)},
        **{"part": ("tick", True, None), "start": ("type", "1", 1.0), "end": ("type", "2", 2.0)},
        "regions": ("type", "", ()),
    },
    "extract": {"track": ("pick", "Vocals", ("vocals",))},
    "complete": {"tracks": ("pick", "FX", ("fx",))},
}


@pytest.fixture
def edit(lasting: Page, tab, song: Path) -> Any:
    """Open the Edit tab with a new song to repaint, and no words."""
    opened = tab(lasting, "edit")
    opened.clear("source")
    expect(opened.text("start")).to_have_value("0")
    opened.reset()
    opened.set("prompt", "type", "")
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
        assert (
            request.options.model_fields_set & set().union(*ACTION_OPTIONS.values())
            == ACTION_OPTIONS[action]
        )
    # An action's settings are still there when a visitor comes back to it.
    edit.choose("layer")
    expect(edit.field("track").get_by_label("Vocals", exact=True)).to_be_checked()
    expect(edit.field("part").get_by_role("checkbox")).to_be_checked()


@pytest.fixture(scope="module")
def form() -> Any:
    with gr.Blocks():
        return page_edit.edit_tab(get_backend()).form


def request_of(form: Any, **there: Any) -> Any:
    """Return the request of the defaults with the values `there`."""
    there = {"source": "a.wav", "start": "1", "end": "2", **there}
    return form.request([there.get(name, field.value) for name, field in form.fields.items()])


@pytest.mark.parametrize("action", ACTIONS)
def test_a_request_has_only_what_its_action_uses(form, action: str):
    # As if a visitor had used every action.
    every = {
        "part": True,
        "tracks": ["bass"],
        "track": "drums",
        "source_prompt": "a",
        "source_lyrics": "b",
    }
    request = request_of(form, action=action, **every)
    assert request.action == action
    assert (
        request.options.model_fields_set & set().union(*ACTION_OPTIONS.values())
        == ACTION_OPTIONS[action]
    )


def test_further_regions_come_with_the_first_one(form, song: Path):
    there = {"source": str(song), "start": "0", "end": "0:01", "regions": "1.2-1.8, 0:02-3"}
    assert request_of(form, **there).regions == ((0, 1), (1.2, 1.8), (2, 3))
    to_the_end = {**there, "start": "2", "end": "0", "regions": "0-1"}
    assert request_of(form, **to_the_end).regions == ((0, 1), (2, 3))
    assert request_of(form, **there, action="layer", track="drums").regions == ()
    part = request_of(form, **there, action="layer", track="drums", part=True)
    assert part.regions == ((0, 1), (1.2, 1.8), (2, 3))
    with pytest.raises(InvalidRequest, match="Regions must be a list"):
        request_of(form, **{**there, "regions": "the chorus"})
    # A record brings them back.
    shown = form.show({"start": 0, "end": 0, "regions": ((1.0, 2.0), (3.5, 4.0), (65.0, 70.0))})
    texts = {name: shown[form.fields[name]]["value"] for name in ("start", "end", "regions")}
    assert texts == {"start": "1", "end": "2", "regions": "3.5-4, 65-70"}


def test_every_example_is_a_request_of_its_action(form):
    for name, example in page_fields.EXAMPLES["edit"].items():
        request = request_of(form, **example)
        assert request.action == example["action"], name
        assert request.tracks == ((example["track"],) if "track" in example else ()), name
    for name, numbers in page_fields.EXAMPLES["morph"].items():
        request = request_of(
            form, action="morph", prompt="a waltz", source_prompt="a march", **numbers
        )
        assert {key: read(request, key) for key in numbers} == numbers, name


@pytest.mark.slow
def test_actions_that_the_checkpoint_was_not_trained_for_are_marked(page: Page, fake, tab):
    opened = tab(page, "edit")
    actions, hints = opened.field("action"), opened.part("hints")
    layer, more = (
        actions.locator("label", has_text="Add a layer (experimental)"),
        hints.locator("summary"),
    )
    expect(actions.locator("label", has_text="Morph into something else")).to_be_visible()
    expect(layer).to_be_hidden()
    more.press("Enter")
    layer.click()
    # The chosen action stays visible.
    more.press("Enter")
    expect(layer).to_be_visible()
    expect(actions.locator("label", has_text="Extract a track")).to_be_hidden()
    expect(hints).to_contain_text("This checkpoint was not trained for this")
    fake.facts = {"tasks": dict.fromkeys(ACTIONS, "official")}
    reload(page)
    opened = tab(page, "edit")
    expect(actions.locator("label", has_text="Add a layer")).to_be_visible()
    expect(more).to_have_count(0)
    opened.choose("layer")
    expect(hints).not_to_contain_text("was not trained")


def test_the_source_comes_first_and_its_waveform_marks_regions_and_plays(
    page: Page, fake, tab, song: Path
):
    tag_file(song, "a song", {"request": {"bpm": 90}, "plan": {"used": True, "bpm": 120}})
    edit = tab(page, "edit")
    edit.set("source", "upload", song)
    region, snap = edit.part("region"), page.get_by_role("button", name="Snap to beats (120 BPM)")
    expect(snap).to_be_visible()
    # The source is a card and one waveform; the actions come first.
    card = edit.field("source").locator(".source-card")
    expect(card).to_contain_text(song.name)
    # Only what the chosen action needs.
    expect(edit.field("start")).to_be_hidden()
    assert edit.controls_in_sight() <= 24
    edit.fine_tune()
    expect(card).to_contain_text("0:03")
    assert 64 <= card.bounding_box()["height"] <= 72
    expect(edit.field("source").locator("[data-testid=waveform-controls]")).to_be_hidden()
    places = [
        part.bounding_box()["y"]
        for part in (card, edit.field("action"), region, edit.field("start"))
    ]
    assert places == sorted(places)
    region.locator(".stage").scroll_into_view_if_needed()
    box = region.locator(".track").bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 12)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 12, steps=5)
    page.mouse.up()
    expect(edit.text("start")).to_have_value("1.8")
    expect(edit.text("end")).to_have_value("2.4")
    request = edit.made(fake)
    assert (request.start, request.end) == (1.8, 2.4)
    # With Shift, a drag marks a further region, and a click on one removes it.
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 12)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 12, steps=5)
    page.mouse.up()
    page.keyboard.up("Shift")
    expect(edit.text("regions")).to_have_value("0.3-0.9")
    expect(edit.text("start")).to_have_value("1.8")
    expect(region.locator(".other")).to_have_count(1)
    assert edit.made(fake).regions == ((0.3, 0.9), (1.8, 2.4))
    page.keyboard.down("Shift")
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 12)
    page.keyboard.up("Shift")
    expect(region.locator(".other")).to_have_count(0)
    expect(edit.text("regions")).to_have_value("")
    edit.set("regions", "type", "0:00-0:01")
    expect(region.locator(".other")).to_have_count(1)
    edit.set("regions", "type", "")
    edit.unfold("details")
    edit.set("bpm", "type", "96")
    expect(page.get_by_role("button", name="Snap to beats (96 BPM)")).to_be_visible()
    edit.choose("morph")
    expect(region.get_by_role("slider")).to_have_count(0)
    region.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("() => document.querySelector('#edit-region audio').currentTime > 0.1")
    edit.choose("repaint")
    expect(region.get_by_role("slider")).to_have_count(2)
    edit.clear("source")
    expect(edit.field("source").get_by_test_id("upload-text")).to_be_visible()


WRONG = [
    (
        "repaint",
        {"start": "50", "end": "10"},
        "end",
        "End must be at least 0.5 seconds after Start (50)",
    ),
    (
        "repaint",
        {"start": "1", "end": "5"},
        "end",
        "End must be from 0 to 3 seconds, the length of this source",
    ),
    ("layer", {}, "track", "Choose the track to add."),
    ("complete", {}, "tracks", "Choose the tracks to add."),
]


@pytest.mark.slow
def test_wrong_values_have_messages_beside_their_fields(edit, fake):
    edit.set("prompt", "type", "kept")
    for action, values, field, sentence in WRONG:
        edit.choose(action)
        for name, value in values.items():
            edit.set(name, "type", value)
        edit.fine_tune(False)
        edit.go.click()
        expect(edit.field(field)).to_contain_text(sentence)
        for name, value in values.items():
            expect(edit.text(name)).to_have_value(value)
    expect(edit.text("prompt")).to_have_value("kept")
    assert fake.requests == []
