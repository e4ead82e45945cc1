"""Everybody can use the page: axe-core in every state, keyboard focus, labels, zoom, reduced motion."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import tooltips
from tests.page.steps import fits, violations
from tools.screenshots import TABS, THEMES, WIDTHS, walk

# A window of 640 px is one of 1280 px at 200 % zoom.
LOOKS = [*itertools.product(WIDTHS, (900,), THEMES), (640, 450, "light")]
STATES = [
    pytest.param(
        mode,
        *look,
        marks=() if (mode, look) == ("generate", (1280, 900, "light")) else pytest.mark.matrix,
    )
    for mode in TABS
    for look in LOOKS
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "width", "height", "theme"), STATES)
def test_axe_finds_nothing_in_any_state(
    fake, fake_address, visit, song: Path, mode, width, height, theme
):
    page, wrong = visit(f"{fake_address[0]}?__theme={theme}", width, height), {}

    def script(name: str) -> Callable[[Page, str], None]:
        return lambda page, mode: setattr(fake, "script", getattr(fake, name))

    for state in walk(page, mode, song, script("endless"), script("play")):
        wrong[state] = violations(page)
        assert fits(page), state
    assert not any(wrong.values()), wrong


FOCUSED = """() => {
  const at = document.activeElement;
  const looks = [at, at.closest("label"), at.parentElement].filter(Boolean).map((each) => getComputedStyle(each));
  return {
    name: at.closest('[id^="generate-"]')?.id ?? "",
    seen: looks.some((look) => (look.outlineStyle !== "none" && parseFloat(look.outlineWidth) >= 1) ||
      look.boxShadow !== "none"),
    inside: at !== document.body,
  };
}"""


# Of the form, from its first field to its last.
PARTS = ("prompt", "lyrics", "strip", "sound", "plan-fold", "engine", "reset")


@pytest.mark.slow
def test_the_focus_is_visible_and_follows_the_page_to_cancel_and_back(page: Page, fake, tab):
    opened = tab(page, "generate")
    seen = sorted(PARTS, key=lambda part: opened.part(part).bounding_box()["y"])
    page.locator('#studio-tabs [data-tab-id="generate"]').focus()
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if not at["inside"]:
            break
        names.append(at["name"])
        assert at["seen"], at
    places = {
        part: next(i for i, name in enumerate(names) if name.startswith(f"generate-{part}"))
        for part in (*PARTS, "go")
    }
    # The button stands below the form, wherever that is scrolled to.
    assert sorted(places, key=lambda part: places[part]) == [*seen, "go"], names
    fake.script = fake.endless
    opened.set("prompt", "type", "a song")
    # Generate stays usable for the next song, so the focus stays there.
    opened.go.press("Enter")
    expect(opened.part("cancel")).to_be_enabled()
    expect(opened.go).to_be_focused()
    opened.part("cancel").press("Enter")
    expect(opened.go).to_be_focused()
    inspire, cancel = opened.part("inspire"), opened.part("assist-cancel")
    inspire.press("Enter")
    expect(cancel).to_be_focused()
    cancel.press("Enter")
    expect(inspire).to_be_focused()


def test_arrows_move_between_tabs_which_have_one_main_button_each(lasting: Page):
    expect(lasting.get_by_role("heading", level=1)).to_have_count(1)
    tabs = lasting.get_by_role("tab")
    order = list(tooltips.TABS.values())
    tabs.first.focus()
    for name in [*order[1:], order[0]]:
        lasting.keyboard.press("ArrowRight")
        chosen = lasting.get_by_role("tab", name=name, exact=True)
        expect(chosen).to_be_focused()
        expect(chosen).to_have_attribute("aria-selected", "true")
        # Tab stops at the open one alone.
        expect(lasting.locator('[role="tab"][tabindex="0"]')).to_have_text([name])
        panel = lasting.locator(f"#{chosen.get_attribute('aria-controls')}")
        expect(panel).to_be_visible()
        expect(panel.locator("button.primary")).to_have_count(1)
        expect(panel.locator("button.primary")).to_have_attribute("id", re.compile("-go$"))
    lasting.keyboard.press("End")
    expect(tabs.last).to_be_focused()
    lasting.keyboard.press("Home")
    expect(tabs.first).to_be_focused()


MOVING = """() => [...document.querySelectorAll("*")].filter((each) => {
  const look = getComputedStyle(each);
  const lasts = (text) => text.split(",").some((part) => parseFloat(part) > 0);
  return each.closest(".gradio-container") &&
    ((look.animationName !== "none" && lasts(look.animationDuration)) ||
      (look.transitionProperty !== "none" && lasts(look.transitionDuration)));
}).map((each) => each.outerHTML.slice(0, 120))"""


@pytest.mark.slow
def test_nothing_moves_with_reduced_motion(lasting: Page, fake, tab):
    lasting.emulate_media(reduced_motion="reduce")
    opened = tab(lasting, "generate")
    fake.script = fake.endless
    opened.start()
    opened.runs()
    assert lasting.evaluate(MOVING) == []
    opened.cancel()
