"""A visitor makes songs on the preview engine: the whole way from the prompt to a file."""

from __future__ import annotations

import re

import pytest
import soundfile
from playwright.sync_api import Page, expect

# Collects every progress sentence that was on the page.
WATCH_PROGRESS = """() => {
  window.said = [];
  new MutationObserver(() => {
    const text = document.querySelector('#generate-progress .progress-line')?.textContent;
    if (text && window.said.at(-1) !== text) window.said.push(text);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
SONG_MS = 90_000


@pytest.fixture
def page(studio: str, visit) -> Page:
    """Open the page of the running studio, with a short song asked for."""
    page = visit(studio)
    page.locator("#generate-prompt textarea").fill("warm lo-fi piano")
    page.locator("#generate-duration input").fill("10")
    page.get_by_role("button", name="Song details").click()
    page.get_by_label("Draft, 20 steps").check()
    return page


def test_a_first_song(page: Page):
    # Long enough for several of the four updates a second.
    page.locator("#generate-duration input").fill("60")
    page.get_by_label("Best, 80 steps").check()
    page.evaluate(WATCH_PROGRESS)
    page.locator("#generate-go").click()
    take = page.locator("#generate-take-1")
    expect(take).to_be_visible(timeout=SONG_MS)
    steps = {int(step) for text in page.evaluate("said") for step in re.findall(r"step (\d+) of 80", text)}
    assert len(steps) >= 3, page.evaluate("said")

    expect(take.locator("time").last).to_have_text("1:00")
    take.get_by_role("button", name="Play", exact=True).click()
    expect(take.locator("time").first).to_have_text(re.compile("0:0[1-9]"))

    with page.expect_download() as download:
        take.get_by_role("button", name="Download WAV").click()
    assert re.fullmatch(r"warm-lo-fi-piano-seed-\d+\.wav", download.value.suggested_filename)
    info = soundfile.info(download.value.path())
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (48_000, 2, 2_880_000, "PCM_24")


@pytest.mark.slow
def test_cancel_and_the_next_song(page: Page):
    page.get_by_role("button", name="Advanced").click()
    page.locator("#generate-steps input").fill("200")
    page.locator("#generate-duration input").fill("600")
    page.evaluate(WATCH_PROGRESS)
    page.locator("#generate-go").click()
    expect(page.locator("#generate-progress")).to_contain_text("of 200", timeout=SONG_MS)
    expect(page.locator("#generate-go")).to_be_disabled()
    page.locator("#generate-cancel").click()
    expect(page.locator("#generate-progress")).to_contain_text("Cancelled", timeout=5_000)
    expect(page.locator("#generate-cancel")).to_be_disabled()
    expect(page.locator("#generate-prompt textarea")).to_have_value("warm lo-fi piano")

    page.locator("#generate-steps input").fill("2")
    page.locator("#generate-duration input").fill("10")
    page.locator("#generate-go").click()
    expect(page.locator("#generate-take-1")).to_be_visible(timeout=SONG_MS)


@pytest.mark.slow
def test_three_takes_have_players_and_seeds_of_their_own(page: Page):
    page.locator("#generate-takes").get_by_label("3", exact=True).check()
    page.locator("#generate-seed input").fill("41")
    page.locator("#generate-go").click()
    for number in (1, 2, 3):
        take = page.locator(f"#generate-take-{number}")
        expect(take).to_be_visible(timeout=SONG_MS)
        expect(take.get_by_role("button", name=f"Copy seed {40 + number}")).to_be_visible()
        expect(take.get_by_role("button", name="Play", exact=True)).to_be_visible()
    expect(page.locator("#generate-take-4")).to_be_hidden()
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#generate-record")).to_contain_text("warm lo-fi piano")
