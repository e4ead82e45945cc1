"""Everybody can use the page: axe-core in every state, keyboard focus, labels, zoom, reduced motion."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import tooltips
from tests.page.steps import fits, violations
from tools.screenshots import TABS, THEMES, WIDTHS, walk


def check_states(page: Page, fake: Any, mode: str, song: Path) -> None:
    """Run axe-core on each state of a tab."""
    wrong: dict[str, list[str]] = {}

    def last(page: Page, mode: str) -> None:
        fake.script = fake.endless

    def end(page: Page, mode: str) -> None:
        fake.script = fake.play

    for state in walk(page, mode, song, last, end):
        if found := violations(page):
            wrong[state] = found
        assert fits(page), state
    assert not wrong, wrong


# A window of 640 px is one of 1280 px at 200 % zoom.
LOOKS = [*itertools.product(WIDTHS, (900,), THEMES), (640, 450, "light")]
STATES = [
    pytest.param(mode, *look, marks=() if (mode, look) == ("generate", (1280, 900, "light")) else pytest.mark.long)
    for mode in TABS
    for look in LOOKS
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "width", "height", "theme"), STATES)
def test_axe_finds_nothing_in_any_state(fake, fake_address, visit, song: Path, mode, width, height, theme):
    check_states(visit(f"{fake_address[0]}?__theme={theme}", width, height), fake, mode, song)


FOCUSED = """() => {
  const at = document.activeElement;
  const looks = [at, at.closest("label"), at.parentElement].filter(Boolean).map((each) => getComputedStyle(each));
  const box = at.getBoundingClientRect();
  return {
    name: at.id || at.closest("[id]")?.id || "",
    text: (at.innerText || at.getAttribute("aria-label") || at.type || "").trim().slice(0, 30),
    seen: looks.some((look) => (look.outlineStyle !== "none" && parseFloat(look.outlineWidth) >= 1) ||
      look.boxShadow !== "none"),
    y: box.top + scrollY,
    inside: at !== document.body,
  };
}"""


@pytest.mark.slow
def test_the_focus_is_visible_and_follows_the_page(page: Page, fake, tab):
    opened = tab(page, "generate")
    page.locator('#studio-tabs [data-tab-id="generate"]').focus()
    order = []
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if not at["inside"]:
            break
        order.append(at)
        assert at["seen"], at
    names = [at["name"] for at in order]
    places = [next(i for i, name in enumerate(names) if name.startswith(f"generate-{part}")) for part in PARTS]
    assert places == sorted(places), names
    expect(opened.go).to_be_visible()


PARTS = ("prompt", "lyrics", "instrumental", "duration", "details", "advanced", "reset", "go")


@pytest.mark.slow
def test_the_focus_goes_to_cancel_and_comes_back(page: Page, fake, tab):
    fake.script = fake.endless
    opened = tab(page, "generate")
    opened.set("prompt", "type", "a song")
    for start, cancel in ((opened.go, opened.part("cancel")), (opened.part("inspire"), opened.part("assist-cancel"))):
        start.press("Enter")
        expect(cancel).to_be_focused()
        cancel.press("Enter")
        expect(start).to_be_focused()


@pytest.mark.slow
def test_arrows_move_between_tabs(page: Page):
    tabs = page.get_by_role("tab")
    order = list(tooltips.TABS.values())
    tabs.first.focus()
    for name in [*order[1:], order[0]]:
        page.keyboard.press("ArrowRight")
        chosen = page.get_by_role("tab", name=name, exact=True)
        expect(chosen).to_be_focused()
        expect(chosen).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"#{chosen.get_attribute('aria-controls')}")).to_be_visible()
    page.keyboard.press("End")
    expect(tabs.last).to_be_focused()
    page.keyboard.press("Home")
    expect(tabs.first).to_be_focused()


MOVING = """() => [...document.querySelectorAll("*")].filter((each) => {
  const look = getComputedStyle(each);
  const lasts = (text) => text.split(",").some((part) => parseFloat(part) > 0);
  return each.closest(".gradio-container") &&
    ((look.animationName !== "none" && lasts(look.animationDuration)) ||
      (look.transitionProperty !== "none" && lasts(look.transitionDuration)));
}).map((each) => each.outerHTML.slice(0, 120))"""


@pytest.mark.slow
def test_nothing_moves_with_reduced_motion(page: Page, fake, tab):
    page.emulate_media(reduced_motion="reduce")
    opened = tab(page, "generate")
    fake.script = fake.endless
    opened.start()
    opened.runs()
    assert page.evaluate(MOVING) == []


@pytest.mark.slow
def test_there_is_one_main_heading_and_one_main_button(page: Page, tab):
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for mode in TABS:
        opened = tab(page, mode)
        primary = opened.part("panel").locator("button.primary")
        expect(primary).to_have_count(1)
        expect(primary).to_have_attribute("id", re.compile(f"^{mode}-go$"))
