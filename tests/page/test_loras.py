"""The LoRA panel: added, ordered, weighted and removed in the browser, and what a song is made with then."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect
from safetensors.numpy import save_file

import audio_export
import lora_format
import lora_sources
import page_loras
from events import Failed, Problem
from tests.page.steps import MARKUP, Tab, fits

MODULES = ("layers.0.self_attn.to_q", "layers.0.mlp.down_proj", "layers.1.cross_attn.to_k")


def write(path: Path, widths: Any, modules: Sequence[str] = MODULES, rank: int = 4) -> Path:
    """Write an adapter for these modules as a safetensors file."""
    random, tensors = np.random.default_rng(0), {}
    for module in modules:
        out, into = widths[module]
        for name, shape, scale in (("lora_A", (rank, into), into**-0.5), ("lora_B", (out, rank), 1)):
            values = (scale * random.standard_normal(shape)).astype(np.float32)
            tensors[f"diffusion_model.{module}.{name}.weight"] = values
    save_file(tensors, path)
    return path


class Panel:
    """The panel of a tab, used as a visitor would."""

    def __init__(self, tab: Tab):
        self.tab, self.page, self.list = tab, tab.page, tab.part("loras")
        self.items, self.said = self.list.get_by_role("listitem"), self.list.locator(".said")
        self.line, self.box = tab.part("lora-line"), tab.part("lora-hub").locator("input, textarea")
        tab.unfold()
        if not self.list.is_visible():
            tab.part("loras-fold").locator("> button").click()
        expect(self.list).to_be_visible()

    def upload(self, *paths: Path) -> None:
        self.tab.part("lora-file").locator("input[type=file]").set_input_files(paths)

    def name(self, text: str) -> None:
        """Type a repository and press Add."""
        self.box.fill(text)
        self.tab.part("lora-hub-add").click()

    def has(self, *names: str) -> None:
        """Expect these LoRAs in this order."""
        expect(self.items.locator(".name")).to_have_text([*names])

    def weight(self, name: str) -> Locator:
        return self.list.get_by_role("spinbutton", name=f"Weight of {name}", exact=True)

    def press(self, action: str, name: str) -> None:
        """Press "Move up", "Move down" or "Remove" of a LoRA."""
        self.list.get_by_role("button", name=f"{action} {name}", exact=True).click()


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
def test_uploads_and_repositories_are_added_in_order_with_their_weights(panel: Panel, fake, xl: Path, tmp_path: Path):
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
    for name, typed in (("xl.safetensors", "0.35"), ("org/jazz", "7"), ("org/choir:high.safetensors", "0")):
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
    assert chosen(panel.tab.made(fake)) == [("choir:high.safetensors", 0.0), ("xl.safetensors", 0.35), ("jazz", 2.0)]

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
    problem = Problem("lora_unknown", "There is no <b>org/none</b>.", page_loras.LORAS, "Look at its name.")
    fake.script = lambda request: iter([Failed(problem)])
    panel.name("org/none")
    panel.has("org/none")
    panel.tab.unfold(False)
    panel.tab.go.click()
    expect(panel.line).to_have_text("There is no <b>org/none</b>.Look at its name.")
    expect(panel.list).to_be_visible()
    expect(panel.tab.part("message")).to_contain_text("org/none")
    panel.press("Remove", "org/none")
    fake.script = fake.play
    panel.tab.made(fake)
    expect(panel.line).to_have_text("")


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


# --- on the built-in engine ----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_a_song_with_a_lora_and_the_one_without_it(studio: str, tiny, visit, tab, tmp_path: Path):
    widths = lora_format.widths_of(tiny)
    mine, wide = tmp_path / "mine.safetensors", tmp_path / "wide.safetensors"
    write(mine, widths)
    write(wide, {name: (out, into + 8) for name, (out, into) in widths.items()})
    opened = Panel(tab(visit(studio), "generate"))
    opened.tab.set_all({"prompt": ("type", "a song", 0), "options.steps": ("type", "2", 0), "seed": ("type", "7", 0)})
    opened.tab.set("duration", "type", "10")
    opened.tab.set("options.plan", "tick", False)

    def made() -> tuple[np.ndarray, list[dict[str, Any]]]:
        path = opened.tab.download()
        return soundfile.read(path)[0], audio_export.read_record(path)["loras"]

    plain, none = made()
    assert none == []
    opened.upload(wide, mine)
    opened.has("mine.safetensors")
    expect(opened.items.first.locator(".facts")).to_contain_text("fits this model")
    expect(opened.line).to_contain_text("wide.safetensors")
    opened.weight("mine.safetensors").fill("0.8")
    changed, (lora,) = made()
    assert (lora["name"], lora["source"], lora["weight"], lora["modules"]) == ("mine.safetensors", "upload", 0.8, 3)
    assert not np.array_equal(changed, plain)
    message = opened.tab.part("message")
    expect(message).to_contain_text("LoRA mine.safetensors: weight 0.8, acted on 3 layers.")
    opened.press("Remove", "mine.safetensors")
    again, none = made()
    assert none == []
    assert np.array_equal(again, plain)
    expect(message).not_to_contain_text("LoRA")
