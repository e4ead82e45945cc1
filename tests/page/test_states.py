"""What the page shows around a song: running, cancelled, failed, messages, leaving, the engine, the layout."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

import tooltips
from events import Event, Progress
from tests.page.steps import MARKUP, violations


def start(page: Page, prompt: str = "a song") -> None:
    """Ask for a song."""
    page.locator("#generate-prompt textarea").fill(prompt)
    page.locator("#generate-go").click()


def expect_idle(page: Page) -> None:
    """Expect the buttons as they are between songs."""
    expect(page.locator("#generate-go")).to_be_enabled()
    expect(page.locator("#generate-cancel")).to_be_disabled()


def made(page: Page, fake: Any, prompt: str = "a song") -> Locator:
    """Ask for a song and return its first take once it is there."""
    seed = 100 * (fake.songs + 1)
    start(page, prompt)
    take = page.locator("#generate-take-1")
    expect(take).to_have_attribute("data-seed", str(seed))
    return take


def test_an_opened_page_lets_the_studio_get_ready_for_the_first_song(fake, fake_address, visit):
    fake.reset()
    visit(fake_address[0])
    assert fake.prepared.wait(90)


def test_while_a_song_is_made_and_cancelled(lasting: Page, fake):
    page = lasting
    fake.script = fake.endless
    start(page)
    line = page.locator("#generate-progress")
    expect(line).to_contain_text(re.compile(r"Making the music, step 3 of 50, 0:0\d so far, at least 0:19 left\."))
    expect(line.locator("[aria-live=polite]")).to_be_visible()
    expect(page.locator("#generate-go")).to_be_disabled()
    page.locator("#generate-cancel").click()
    expect(line).to_contain_text("Cancelled.")
    expect_idle(page)
    assert fake.closed.wait(90)
    fake.script = fake.song
    made(page, fake)
    expect_idle(page)


@pytest.mark.long
@pytest.mark.slow
def test_a_song_that_waits_can_be_cancelled(page: Page, fake, fake_address, visit):
    fake.script = fake.endless
    other = visit(fake_address[0])
    start(other)
    expect(other.locator("#generate-progress")).to_contain_text("step 3 of 50")
    start(page)
    expect(page.locator("#generate-progress")).to_contain_text("Waiting for its turn")
    page.locator("#generate-cancel").click()
    expect(page.locator("#generate-progress")).to_contain_text("Cancelled.")
    expect_idle(page)
    assert len(fake.requests) == 1
    other.locator("#generate-cancel").click()
    expect_idle(other)


def test_the_next_song_can_be_asked_for_while_the_last_one_tidies_up(lasting: Page, fake):
    asked = threading.Event()

    def slow_to_end(request):
        yield from fake.song(request)
        assert asked.wait(60)

    fake.script = slow_to_end
    made(lasting, fake)
    seed = 100 * (fake.songs + 1)
    start(lasting)
    expect(lasting.locator("#generate-progress")).to_contain_text("Waiting for its turn")
    asked.set()
    expect(lasting.locator("#generate-take-1")).to_have_attribute("data-seed", str(seed))


# Lets the page's calls reach the queue, or their answers the page, a second late.
LATE = """(where) => {
  const real = window.fetch;
  const late = () => new Promise((resolve) => setTimeout(resolve, 1000));
  window.fetch = async (address, options) => {
    const joins = String(address).includes("queue/join");
    if (joins && where === "call") await late();
    const answer = await real(address, options);
    if (joins && where === "answer") await late();
    return answer;
  };
}"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["call", pytest.param("answer", marks=pytest.mark.long)])
def test_a_cancel_is_heard_before_the_page_knows_its_run(page: Page, fake, where):
    page.evaluate(LATE, where)
    fake.script = fake.endless
    start(page)
    page.locator("#generate-cancel:enabled").click()
    expect_idle(page)
    assert not fake.requests or fake.closed.wait(60)
    start(page)
    expect(page.locator("#generate-progress")).to_contain_text("step 3 of 50")
    page.locator("#generate-cancel").click()
    expect_idle(page)


@pytest.mark.slow
def test_closing_the_page_ends_the_song(page: Page, fake):
    fake.script = fake.endless
    start(page)
    expect(page.locator("#generate-progress")).to_contain_text("step 3 of 50")
    page.close()
    assert fake.closed.wait(90)


@pytest.mark.long
@pytest.mark.slow
def test_leaving_asks_only_while_a_song_is_made(page: Page, fake, forgiven):
    # Gradio notes the connection that leaving cuts.
    forgiven += ["aborted", "Connection errored out"]
    asked: list[str] = []

    def answer(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", answer)
    page.locator("#generate-prompt textarea").fill("typed")
    page.reload()
    expect(page.locator("#generate-go")).to_be_visible()
    assert asked == []
    fake.script = fake.endless
    start(page)
    expect(page.locator("#generate-progress")).to_contain_text("step 3 of 50")
    page.reload()
    expect(page.locator("#generate-go")).to_be_visible()
    assert asked == ["beforeunload"]
    fake.script = fake.song
    start(page)
    expect(page.locator("#generate-take-1")).to_be_visible()
    page.reload()
    expect(page.locator("#generate-go")).to_be_visible()
    assert asked == ["beforeunload"]


def crash(request: Any) -> Iterator[Event]:
    """Break in the middle of a song."""
    yield Progress("preparing")
    raise RuntimeError("secret detail")


def test_an_error_says_what_happened_and_keeps_the_form(lasting: Page, fake):
    page = lasting
    page.locator("#generate-lyrics textarea").fill("[Verse]\nkept")
    message = page.locator("#generate-message").get_by_role("alert")
    for script, words, hint in (
        (fake.fail, "There was <b>no memory</b> left.", "Try"),
        (crash, "Something unexpected went wrong.", "try again"),
    ):
        fake.script = script
        start(page, MARKUP)
        expect(message).to_contain_text(words)
        expect(message).to_contain_text("Generation failed")
        expect(message).to_contain_text(hint)
        expect(message).not_to_contain_text("secret detail")
        expect_idle(page)
        expect(page.locator("#generate-prompt textarea")).to_have_value(MARKUP)
        expect(page.locator("#generate-lyrics textarea")).to_have_value("[Verse]\nkept")
    # The next run takes the message away.
    fake.script = fake.song
    made(page, fake, MARKUP)
    expect(message).to_have_count(0)


@pytest.mark.slow
def test_notes_warnings_and_failed_takes_are_shown_as_text(lasting: Page, fake):
    page = lasting
    take = {"seed": 9, "name": "a.wav", "sha256": "", "duration": 1.0, "peak_dbfs": -1.04, "loudness_lufs": None}
    errors = [{"take": 2, "seed": 8, "message": f"Silent {MARKUP}."}]
    fake.script = partial(fake.song, takes=[{**take, "warnings": [MARKUP]}], notes=[f"Cut {MARKUP}."], errors=errors)
    start(page, MARKUP)
    box = page.locator("#generate-take-1")
    expect(box).to_contain_text(MARKUP)
    expect(box).to_contain_text("peak -1.0 dBFS")
    expect(page.locator("#generate-message")).to_contain_text(f"Take 2 (seed 8) failed: Silent {MARKUP}.")
    expect(page.locator("#generate-message")).to_contain_text(f"Cut {MARKUP}.")
    page.locator("#generate-record summary").click()
    expect(page.locator("#generate-record")).to_contain_text("bold")
    expect(page.locator(".gradio-container b, .gradio-container img[src=x]")).to_have_count(0)
    expect(page).to_have_title("ACE Music Studio")


@pytest.mark.slow
def test_a_seed_is_copied(lasting: Page, fake):
    page = lasting
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seed = 100 * (fake.songs + 1)
    made(page, fake).locator(".menu summary").click()
    page.get_by_role("button", name=f"Copy seed {seed}").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == str(seed)


def test_the_header_is_one_line_with_its_facts_on_a_click(lasting: Page):
    page = lasting
    status = page.locator("#studio-status")
    line, facts = status.locator("summary"), status.get_by_role("listitem")
    expect(line).to_have_text("Built-in engine · CPU")
    assert status.bounding_box()["height"] <= 48
    assert page.locator("#studio-banner").bounding_box()["height"] <= 60
    expect(facts.first).to_be_hidden()
    line.press("Enter")
    expect(facts).to_contain_text(["Model: built in", "Planner:", "Lyrics writer:", "Device: CPU, float32"])
    expect(facts.first).to_be_visible()


@pytest.mark.slow
def test_the_facts_stay_open_when_the_status_is_told_anew(page: Page, fake):
    line = page.locator("#studio-status summary")
    line.press("Enter")
    facts = page.locator("#studio-status").get_by_role("listitem")
    expect(facts.first).to_be_visible()
    start(page)
    expect(page.locator("#generate-take-1")).to_be_visible()
    # Each run tells the status once more, with what it has loaded.
    fake.facts = {"planner": {"state": "loaded", "model": "org/planner-after-the-song", "problem": None}}
    line.focus()
    seed = 100 * (fake.songs + 1)
    page.locator("#generate-go").evaluate("(button) => button.click()")
    expect(page.locator("#generate-take-1")).to_have_attribute("data-seed", str(seed))
    expect(page.locator("#studio-status")).to_contain_text("planner-after-the-song")
    expect(facts.first).to_be_visible()
    expect(line).to_be_focused()
    line.press("Enter")
    expect(facts.first).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_the_banner_is_a_strip_with_its_text_on_a_click(fake, fake_address, visit, width: int, height: int):
    missing = "The model ACE-Step/acestep-v15-xl-sft-diffusers is not on this machine."
    fake.facts = {"problem": {"code": "weights_missing", "message": missing, "hint": "Get it, or name a folder."}}
    page = visit(fake_address[0], width, height)
    banner, status = page.locator("#studio-banner"), page.locator("#studio-status")
    expect(banner.get_by_role("button", name="Get the real model (11.5 GB)")).to_be_visible()
    assert banner.bounding_box()["height"] <= 60
    assert status.bounding_box()["height"] <= 48
    expect(banner.get_by_text(missing)).to_be_hidden()
    line = banner.locator("summary")
    assert line.bounding_box()["height"] >= 44
    line.press("Enter")
    expect(banner.get_by_text(missing)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
    line.press("Enter")
    assert banner.bounding_box()["height"] <= 60


def test_the_preview_banner_and_its_download(lasting: Page, fake):
    page = lasting
    banner = page.locator("#studio-banner")
    expect(banner).to_contain_text("Built-in engine:")
    expect(banner).to_contain_text("simple instrumental music")
    expect(page.locator("#studio-status")).to_contain_text("Device: CPU, float32")
    button = banner.get_by_role("button", name="Get the real model (11.5 GB)")
    button.click()
    expect(banner).to_contain_text("step 3 of 50")
    expect(button).to_be_disabled()
    expect_idle(page)
    banner.get_by_role("button", name="Cancel").click()
    expect(banner).to_contain_text("goes on from there")
    expect(button).to_be_enabled()


@pytest.mark.slow
def test_the_banner_tells_of_the_engine_and_of_a_problem_with_the_weights(fake, fake_address, visit):
    fake.facts = {"engine": "xl", "source": "cache", "model": "ACE-Step/acestep-v15-xl-sft-diffusers"}
    page = visit(fake_address[0])
    expect(page.locator("#studio-status")).to_contain_text("Model: ACE-Step/acestep-v15-xl-sft-diffusers")
    expect(page.locator("#studio-banner")).to_be_hidden()

    problem = {"code": "weights_broken", "message": "The copy in ./models broke off.", "hint": "Fetch it <b>again</b>."}
    fake.facts = {"problem": problem}
    page.reload()
    expect(page.locator("#studio-banner")).to_contain_text("The copy in ./models broke off. Fetch it <b>again</b>.")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_the_layout(fake, fake_address, visit, width: int, theme: str):
    page = visit(f"{fake_address[0]}?__theme={theme}", width)
    page.get_by_role("button", name="Song details").click()
    page.get_by_role("button", name="Advanced").click()
    start(page)
    expect(page.locator("#generate-take-1")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    places = {name: page.locator(selector).bounding_box() for name, selector in PLACES.items()}
    assert places["prompt"]["y"] < places["details"]["y"]
    if width == 1280:
        # Side by side, 5 to 4.
        assert places["result"]["x"] > places["prompt"]["x"] + places["prompt"]["width"]
        share = places["details"]["width"] / places["result"]["width"]
        assert share == pytest.approx(5 / 4, abs=0.02)
    else:
        assert places["prompt"]["y"] < places["result"]["y"] < places["details"]["y"]
    size = page.locator("#generate-prompt textarea").evaluate("e => getComputedStyle(e).fontSize")
    assert size == "16px"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(250, 248, 245)", "dark": "rgb(19, 18, 17)"}[theme]


PLACES = {
    "prompt": "#generate-prompt",
    "result": ".columns .result",
    "details": "#generate-details",
}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_run_bar_stays_in_sight(fake, fake_address, visit, tab, width: int, height: int):
    page = visit(fake_address[0], width, height)
    for mode in tooltips.TABS:
        opened = tab(page, mode)
        for share in (0, 0.5, 1):
            page.evaluate("(share) => scrollTo(0, share * document.documentElement.scrollHeight)", share)
            assert page.evaluate(SEEN, f"{mode}-go"), (mode, share)
        # What the keyboard comes to is not behind it.
        opened.part("advanced").locator("> button").focus()
        assert page.evaluate("document.activeElement.getBoundingClientRect().bottom") <= opened.go.bounding_box()["y"]


# Whether all of a button can be clicked where it is now.
SEEN = """(id) => {
  const button = document.getElementById(id);
  const { left, right, top, bottom } = button.getBoundingClientRect();
  return [top + 4, bottom - 4].every((y) => button.contains(document.elementFromPoint((left + right) / 2, y)));
}"""


@pytest.mark.slow
def test_a_refused_song_puts_the_buttons_back(page: Page, forgiven):
    forgiven.append("status of 503")
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    start(page)
    expect(page.locator("#generate-progress")).to_contain_text("please try again")
    expect_idle(page)


# --- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_what_is_wrong_stays_beside_its_field_while_a_song_is_made_elsewhere(fake, fake_address, visit, tab):
    page = visit(fake_address[0], 390)
    fake.script = fake.endless
    generate = tab(page, "generate")
    generate.set("prompt", "type", "a song")
    generate.go.click()
    expect(generate.progress).to_contain_text("step 3 of 50")
    edit = tab(page, "edit")
    edit.unfold()
    edit.set("bpm", "type", "999")
    edit.set("prompt", "type", MARKUP * 60)
    edit.go.click()
    sentences = {"bpm": "BPM must be", "source": "Source must be an audio file", "prompt": "Prompt may have up to"}
    expect(edit.part("problems")).to_contain_text("Please check")
    # The page is told of the song four times a second.
    page.wait_for_function("() => document.querySelectorAll('#edit-panel .told').length === 3")
    for name, sentence in sentences.items():
        expect(edit.field(name)).to_contain_text(sentence)
        expect(edit.field(name).get_by_text(sentence)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert violations(page) == []
    # They go with the next change, and what is still wrong comes again.
    edit.set("bpm", "type", "90")
    for name, sentence in sentences.items():
        expect(edit.field(name)).not_to_contain_text(sentence)
    expect(edit.part("problems")).to_be_hidden()
    edit.go.click()
    expect(edit.field("source")).to_contain_text(sentences["source"])
    page.wait_for_function("() => document.querySelectorAll('#edit-panel .told').length === 2")
    expect(edit.field("bpm")).not_to_contain_text(sentences["bpm"])
    # A button that fills fields in is a change as well.
    edit.part("reset").click()
    expect(edit.field("source")).not_to_contain_text(sentences["source"])
    expect(edit.text("prompt")).to_have_value("")
