"""The LoRA panel: added, ordered, weighted and removed in the browser, and what a song is made with then."""

from __future__ import annotations

import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import lora_format
import lora_sources
import page_loras
import tooltips
from events import Failed, Problem
from tests.page.loras import MODULES, Panel, write
from tests.page.steps import MARKUP, fits


@pytest.fixture
def panel(lasting: Page, tab) -> Panel:
    """Open the panel of Generate on the fake backend, empty."""
    panel = Panel(tab(lasting, "generate").reset())
    expect(panel.items).to_have_count(0)
    return panel


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    """Write a small LoRA for the XL model."""
    return write(tmp_path / "xl.safetensors", lora_format.KNOWN_MODELS["XL"], MODULES[:1], rank=2)


def chosen(request: Any) -> list[tuple[str, float]]:
    return [(Path(lora.source).name, lora.weight) for lora in request.options.loras]


# --- the list -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_uploads_and_repositories_are_added_in_order_with_their_weights(
    panel: Panel, fake, xl: Path, tmp_path: Path
):
    expect(panel.list).to_contain_text("No LoRAs added")
    panel.upload(xl)
    panel.has("xl.safetensors")
    facts = panel.items.first.locator(".facts span")
    expect(facts).to_have_text(["ComfyUI", "rank 2", "1 layer", re.compile("kB$|MB$"), "for XL"])
    expect(panel.said).to_have_text("Added xl.safetensors. There is 1 LoRA.")
    panel.name("org/jazz")
    panel.has("xl.safetensors", "org/jazz")
    panel.name("org/choir:high.safetensors")
    panel.has("xl.safetensors", "org/jazz", "org/choir:high.safetensors")
    expect(panel.box).to_have_value("")
    archive = tmp_path / "folder.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(xl, "adapter_model.safetensors")
    panel.upload(archive)
    expect(panel.items).to_have_count(4)
    for name, typed in (
        ("xl.safetensors", "0.35"),
        ("org/jazz", "7"),
        ("org/choir:high.safetensors", "0"),
    ):
        panel.weight(name).fill(typed)
        panel.weight(name).blur()
    expect(panel.weight("org/jazz")).to_have_value("2")
    request = panel.tab.made(fake)
    others = [("jazz", 2.0), ("choir:high.safetensors", 0.0), ("folder.zip", 1.0)]
    assert chosen(request) == [("xl.safetensors", 0.35), *others]
    assert Path(request.options.loras[0].source).read_bytes() == xl.read_bytes()

    panel.press("Move up", "org/choir:high.safetensors")
    panel.has("xl.safetensors", "org/choir:high.safetensors", "org/jazz", "folder.zip")
    expect(panel.weight("org/choir:high.safetensors")).to_have_value("0")
    panel.press("Move down", "xl.safetensors")
    panel.press("Remove", "folder.zip")
    assert chosen(panel.tab.made(fake)) == [
        ("choir:high.safetensors", 0.0),
        ("xl.safetensors", 0.35),
        ("jazz", 2.0),
    ]

    panel.list.get_by_role("button", name="Remove all").click()
    expect(panel.items).to_have_count(0)
    expect(panel.said).to_have_text("Removed all. There are 0 LoRAs.")
    # What was removed can be added again.
    panel.upload(xl)
    panel.has("xl.safetensors")
    assert chosen(panel.tab.made(fake)) == [("xl.safetensors", 1.0)]


@pytest.mark.slow
def test_hostile_names_and_facts_are_text(panel: Panel, monkeypatch: pytest.MonkeyPatch, xl: Path):
    info = lora_sources.LoraInfo(MARKUP, MARKUP, (4,), (), 2, 10, note=MARKUP)
    monkeypatch.setattr(lora_sources, "inspect", lambda *_: info)
    panel.upload(xl)
    panel.has(MARKUP)
    expect(panel.items.first.locator(".note")).to_have_text(MARKUP)
    expect(panel.list.locator("img, b")).to_have_count(0)
    expect(panel.list.get_by_role("button", name=f"Remove {MARKUP}", exact=True)).to_be_visible()
    expect(panel.page).to_have_title("ACE Music Studio")


def test_the_panel_is_worked_by_keys(panel: Panel, fake):
    keyboard = panel.page.keyboard
    for name in ("org/one", "org/two", "org/three"):
        panel.box.fill(name)
        panel.box.press("Enter")
        expect(panel.items.last).to_contain_text(name)
    panel.list.get_by_role("slider", name="Weight of org/one").press("ArrowLeft")
    expect(panel.weight("org/one")).to_have_value("0.95")
    panel.list.get_by_role("button", name="Move down org/one").press("Enter")
    expect(panel.said).to_have_text("org/one is now number 2. There are 3 LoRAs.")
    # The focus goes with it, and to the other way at the end.
    keyboard.press("Enter")
    panel.has("org/two", "org/three", "org/one")
    expect(panel.list.get_by_role("button", name="Move up org/one")).to_be_focused()
    panel.list.get_by_role("button", name="Remove org/two").press("Space")
    expect(panel.said).to_have_text("Removed org/two. There are 2 LoRAs.")
    expect(panel.list.get_by_role("button", name="Remove org/three")).to_be_focused()
    assert chosen(panel.tab.made(fake)) == [("three", 1.0), ("one", 0.95)]
    panel.list.get_by_role("button", name="Remove org/three").press("Enter")
    keyboard.press("Enter")
    expect(panel.items).to_have_count(0)
    expect(panel.list.locator(".empty")).to_be_focused()
    assert panel.tab.made(fake).options.loras == ()


@pytest.mark.slow
def test_what_a_run_finds_wrong_stands_at_the_panel_too(panel: Panel, fake):
    problem = Problem(
        "lora_unknown", "There is no <b>org/none</b>.", page_loras.LORAS, "Look at its name."
    )
    fake.script = lambda request: iter([Failed(problem)])
    panel.name("org/none")
    panel.has("org/none")
    panel.tab.unfold(opened=False)
    panel.tab.go.click()
    expect(panel.line).to_have_text("There is no <b>org/none</b>.Look at its name.")
    expect(panel.list).to_be_visible()
    expect(panel.tab.part("message")).to_contain_text("org/none")
    panel.press("Remove", "org/none")
    fake.script = fake.play
    panel.tab.made(fake)
    expect(panel.line).to_have_text("")


DROP_TEXT = "(text) => getComputedStyle(text, '::after').content"


@pytest.mark.slow
def test_the_box_for_files_fits_a_phone(
    panel: Panel, xl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    size = panel.page.viewport_size
    panel.page.set_viewport_size({"width": 390, "height": 844})
    box = panel.tab.part("lora-file")
    text = box.get_by_test_id("upload-text")
    assert text.evaluate(DROP_TEXT) == f'"{tooltips.LORA_DROP}"'
    # Gradio's own words take no room.
    assert text.evaluate("(text) => getComputedStyle(text).fontSize") == "0px"
    # The files are seen while they are looked at.
    looked = threading.Event()
    inspect = lora_sources.inspect

    def late(*given: Any) -> lora_sources.LoraInfo:
        looked.wait(100)
        return inspect(*given)

    monkeypatch.setattr(lora_sources, "inspect", late)
    other = write(
        tmp_path / "other.safetensors", lora_format.KNOWN_MODELS["XL"], MODULES[:1], rank=2
    )
    panel.upload(xl, other)
    removers = box.get_by_role("button", name="Remove this file")
    expect(removers).to_have_count(2)
    whole = box.bounding_box()
    for remover in removers.all():
        place = remover.bounding_box()
        assert min(place["width"], place["height"]) >= 44
        # Nothing lies over it.
        remover.click(trial=True)
        assert place["x"] + place["width"] <= whole["x"] + whole["width"]
    assert fits(panel.page)
    looked.set()
    panel.has("xl.safetensors", "other.safetensors")
    panel.page.set_viewport_size(size)


@pytest.mark.slow
def test_the_list_fits_a_phone(panel: Panel):
    panel.name("organization/" + "a-very-long-name-" * 4 + "x")
    expect(panel.items).to_have_count(1)
    size = panel.page.viewport_size
    panel.page.set_viewport_size({"width": 390, "height": 844})
    assert fits(panel.page)
    item = panel.items.first.bounding_box()
    for control in panel.items.first.locator("button, input").all():
        box = control.bounding_box()
        assert box["height"] >= 44
        assert item["x"] < box["x"] and box["x"] + box["width"] < item["x"] + item["width"] - 8
    panel.page.set_viewport_size(size)
