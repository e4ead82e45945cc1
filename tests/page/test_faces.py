"""Generate's two faces: Simple fits on one screen, Custom has everything, and both are one form."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.steps import Tab, fits, violations


def choose(page: Page, face: str) -> None:
    button = page.locator("#generate-faces").get_by_role("button", name=face)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")


def length(page: Page, name: str):
    return page.locator("#generate-lengths").get_by_role("button", name=name, exact=True)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_simple_fits_on_the_first_screen(fake, fake_address, visit, width: int, height: int):
    page = visit(fake_address[0], width, height, face="simple")
    opened = Tab(page, "generate")
    expect(length(page, "1 min")).to_have_attribute("aria-pressed", "true")
    foot = opened.go.bounding_box()["y"]
    for part in (opened.text("prompt"), opened.field("instrumental"), length(page, "30 s"), length(page, "3 min")):
        box = part.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= foot
    for hidden in ("lyrics", "duration", "details", "advanced", "polish", "reset"):
        expect(opened.part(hidden)).to_be_hidden()
    assert page.evaluate("scrollY") == 0
    assert fits(page)
    assert violations(page) == []


def test_the_faces_are_one_form(page: Page, fake, tab):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened = tab(page, "generate")
    choose(page, "Simple")
    choose(page, "Custom")
    assert [url for url in asked if "queue/join" in url] == []
    opened.unfold()
    opened.set("bpm", "type", "90")
    opened.set("takes", "pick", "2")
    choose(page, "Simple")
    expect(opened.part("also")).to_have_text("Set in Custom: BPM, Takes.")
    opened.set("prompt", "type", "a song")
    length(page, "2 min").click()
    expect(length(page, "2 min")).to_have_attribute("aria-pressed", "true")
    request = opened.made(fake)
    assert (request.prompt, request.duration, request.bpm, request.takes) == ("a song", 120, 90, 2)

    choose(page, "Custom")
    expect(opened.text("duration")).to_have_value("120")
    opened.set("duration", "type", "75")
    opened.set("lyrics", "type", "[Verse]\nla")
    choose(page, "Simple")
    expect(opened.text("lyrics")).to_have_value("[Verse]\nla")
    # The choice of the face is kept too.
    page.reload()
    expect(length(page, "1:15")).to_have_attribute("aria-pressed", "true")
    expect(opened.text("lyrics")).to_be_visible()
    expect(opened.part("also")).to_have_text("Set in Custom: BPM, Takes.")
    expect(opened.part("details")).to_be_hidden()


@pytest.mark.slow
def test_a_wrong_field_hidden_in_simple_is_shown(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.unfold()
    opened.set("prompt", "type", "a song")
    opened.set("bpm", "type", "9")
    choose(page, "Simple")
    opened.go.click()
    expect(opened.part("problems")).to_contain_text("Please check BPM.")
    expect(opened.text("bpm")).to_be_focused()
    assert fake.requests == []
