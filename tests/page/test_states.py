"""What the page shows around a song: running, cancelled, failed, messages, leaving, the engine, the layout."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import tooltips
from events import Event, Progress
from tests.page.steps import MARKUP, Tab, expect_plain, expect_tappable, fits, reload, violations

PHONE, DESK = (390, 844), (1280, 900)


def made(generate: Tab, fake: Any, prompt: str = "a song") -> None:
    """Make a song and wait for its take."""
    seed = 100 * (fake.songs + 1)
    generate.start(prompt)
    generate.has(seed)


# --- a run --------------------------------------------------------------------------------------------------------


def test_an_opened_page_prepares_the_studio_for_the_first_song(fake, fake_address, visit):
    visit(fake_address[0])
    assert fake.prepared.wait(100)


def test_while_a_song_is_made_and_cancelled(lasting: Page, fake, tab):
    generate = tab(lasting, "generate")
    fake.script = fake.endless
    generate.start()
    line = re.compile(r"Making the music, step 3 of 50, 0:0\d so far, at least 0:19 left\.")
    expect(generate.progress).to_contain_text(line)
    expect(generate.progress.locator("[aria-live=polite]")).to_be_visible()
    expect(generate.go).to_be_disabled()
    generate.cancel()
    expect(generate.progress).to_contain_text("Cancelled.")
    assert fake.closed.wait(100)
    fake.script = fake.song
    made(generate, fake)
    generate.idle()


@pytest.mark.long
@pytest.mark.slow
def test_a_song_that_waits_can_be_cancelled(page: Page, fake, fake_address, visit, tab):
    fake.script = fake.endless
    other, generate = tab(visit(fake_address[0]), "generate"), tab(page, "generate")
    other.start()
    other.runs()
    generate.start()
    expect(generate.progress).to_contain_text(tooltips.QUEUED)
    generate.cancel()
    expect(generate.progress).to_contain_text("Cancelled.")
    assert len(fake.requests) == 1
    other.cancel()


def test_the_next_song_can_be_started_while_the_last_one_tidies_up(lasting: Page, fake, tab):
    generate, asked = tab(lasting, "generate"), threading.Event()

    def slow_to_end(request):
        yield from fake.song(request)
        assert asked.wait(100)

    fake.script = slow_to_end
    made(generate, fake)
    seed = 100 * (fake.songs + 1)
    generate.start()
    expect(generate.progress).to_contain_text(tooltips.QUEUED)
    asked.set()
    generate.has(seed)


# Delays the page's calls on their way to the queue, or the answers on their way back.
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
def test_cancel_works_before_the_page_knows_its_run(page: Page, fake, tab, where):
    generate = tab(page, "generate")
    page.evaluate(LATE, where)
    fake.script = fake.endless
    generate.start()
    page.locator("#generate-cancel:enabled").click()
    generate.idle()
    assert not fake.requests or fake.closed.wait(100)
    generate.start()
    generate.runs()
    generate.cancel()


@pytest.mark.slow
def test_closing_the_page_ends_the_song(page: Page, fake, tab):
    generate = tab(page, "generate")
    fake.script = fake.endless
    generate.start()
    generate.runs()
    page.close()
    assert fake.closed.wait(100)


@pytest.mark.long
@pytest.mark.slow
def test_leaving_asks_only_while_a_song_is_made(page: Page, fake, tab, forgiven):
    # Gradio logs the connection that leaving cuts.
    forgiven += ["aborted", "Connection errored out"]
    generate, asked = tab(page, "generate"), []
    page.on("dialog", lambda dialog: asked.append(dialog.type) or dialog.accept())

    def left() -> list[str]:
        reload(page)
        expect(generate.go).to_be_visible()
        return asked

    generate.text("prompt").fill("typed")
    assert left() == []
    fake.script = fake.endless
    generate.start()
    generate.runs()
    assert left() == ["beforeunload"]
    fake.script = fake.song
    made(generate, fake)
    assert left() == ["beforeunload"]


@pytest.mark.slow
def test_a_refused_song_resets_the_buttons(page: Page, tab, forgiven):
    forgiven.append("status of 503")
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    generate = tab(page, "generate")
    generate.start()
    expect(generate.progress).to_contain_text("please try again")
    generate.idle()


# --- messages -----------------------------------------------------------------------------------------------------


def crash(request: Any) -> Iterator[Event]:
    yield Progress("preparing")
    raise RuntimeError("secret detail")


def test_an_error_explains_itself_and_keeps_the_form(lasting: Page, fake, tab):
    generate = tab(lasting, "generate")
    generate.text("lyrics").fill("[Verse]\nkept")
    message = generate.part("message").get_by_role("alert")
    for script, words in ((fake.fail, "There was <b>no memory</b> left."), (crash, "Something unexpected went wrong.")):
        fake.script = script
        generate.start(MARKUP)
        expect(message).to_contain_text(words)
        expect(message).to_contain_text("Generation failed")
        expect(message).to_contain_text(re.compile("try", re.IGNORECASE))
        expect(message).not_to_contain_text("secret detail")
        generate.idle()
        expect(generate.text("prompt")).to_have_value(MARKUP)
        expect(generate.text("lyrics")).to_have_value("[Verse]\nkept")
    # The next run removes the message.
    fake.script = fake.song
    made(generate, fake, MARKUP)
    expect(message).to_have_count(0)


@pytest.mark.slow
def test_notes_warnings_and_failed_takes_are_shown_as_text(lasting: Page, fake, tab):
    generate = tab(lasting, "generate")
    take = {"seed": 9, "name": "a.wav", "sha256": "", "duration": 1.0, "peak_dbfs": -1.04, "loudness_lufs": None}
    errors = [{"take": 2, "seed": 8, "message": f"Silent {MARKUP}."}]
    fake.script = partial(fake.song, takes=[{**take, "warnings": [MARKUP]}], notes=[f"Cut {MARKUP}."], errors=errors)
    generate.start(MARKUP)
    expect(generate.take()).to_contain_text(MARKUP)
    expect(generate.take()).to_contain_text("peak -1.0 dBFS")
    expect(generate.part("message")).to_contain_text(f"Take 2 (seed 8) failed: Silent {MARKUP}.")
    expect(generate.part("message")).to_contain_text(f"Cut {MARKUP}.")
    generate.part("record").locator("summary").click()
    expect(generate.part("record")).to_contain_text("bold")
    expect_plain(lasting)


@pytest.mark.slow
def test_a_seed_is_copied(lasting: Page, fake, tab):
    page, generate = lasting, tab(lasting, "generate")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    made(generate, fake)
    expect(generate.way("Retake")).to_be_visible()
    page.get_by_role("button", name=f"Copy seed {100 * fake.songs}").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == str(100 * fake.songs)


@pytest.mark.long
@pytest.mark.slow
def test_a_message_stays_beside_its_field_while_a_song_is_made_elsewhere(fake, fake_address, visit, tab):
    page = visit(fake_address[0], 390)
    fake.script = fake.endless
    generate = tab(page, "generate")
    generate.start()
    generate.runs()
    edit = tab(page, "edit")
    edit.unfold()
    edit.set("bpm", "type", "999")
    edit.set("prompt", "type", MARKUP * 60)
    edit.go.click()
    sentences = {"bpm": "BPM must be", "source": "Source must be an audio file", "prompt": "Prompt may have up to"}
    messages = "(count) => document.querySelectorAll('#edit-panel .told').length === count"
    expect(edit.part("problems")).to_contain_text("Please check")
    page.wait_for_function(messages, arg=3)
    for name, sentence in sentences.items():
        expect(edit.field(name).get_by_text(sentence)).to_have_count(1)
    assert fits(page)
    assert violations(page) == []
    # The next change removes them; pressing again shows what is still wrong.
    edit.set("bpm", "type", "90")
    for name, sentence in sentences.items():
        expect(edit.field(name)).not_to_contain_text(sentence)
    expect(edit.part("problems")).to_be_hidden()
    edit.go.click()
    expect(edit.field("source")).to_contain_text(sentences["source"])
    page.wait_for_function(messages, arg=2)
    expect(edit.field("bpm")).not_to_contain_text(sentences["bpm"])
    # A button that fills in fields is a change too.
    edit.part("reset").click()
    expect(edit.field("source")).not_to_contain_text(sentences["source"])
    expect(edit.text("prompt")).to_have_value("")


# --- the engine ---------------------------------------------------------------------------------------------------


def test_the_header_is_one_line_with_its_facts_on_a_click(lasting: Page):
    status = lasting.locator("#studio-status")
    line, facts = status.locator("summary"), status.get_by_role("listitem")
    expect(line).to_have_text("Built-in engine · CPU")
    assert status.bounding_box()["height"] <= 48
    assert lasting.locator("#studio-banner").bounding_box()["height"] <= 60
    expect(facts.first).to_be_hidden()
    line.press("Enter")
    expect(facts).to_contain_text(["Model: built in", "Planner:", "Lyrics writer:", "Device: CPU, float32"])
    expect(facts.first).to_be_visible()


@pytest.mark.slow
def test_the_facts_stay_open_when_the_status_is_updated(page: Page, fake, tab):
    generate, status = tab(page, "generate"), page.locator("#studio-status")
    line, first = status.locator("summary"), status.get_by_role("listitem").first
    line.press("Enter")
    expect(first).to_be_visible()
    made(generate, fake)
    # Each run updates the status with the models it has loaded.
    fake.facts = {"planner": {"state": "loaded", "model": "org/planner-after-the-song", "problem": None}}
    line.focus()
    seed = 100 * (fake.songs + 1)
    generate.go.evaluate("(button) => button.click()")
    generate.has(seed)
    expect(status).to_contain_text("planner-after-the-song")
    expect(first).to_be_visible()
    expect(line).to_be_focused()
    line.press("Enter")
    expect(first).to_be_hidden()


def test_the_banner_of_the_built_in_engine_and_its_download(lasting: Page, fake, tab):
    banner = lasting.locator("#studio-banner")
    expect(banner).to_contain_text("Built-in engine:")
    expect(banner).to_contain_text("simple instrumental music")
    button = banner.get_by_role("button", name="Get the real model (11.5 GB)")
    button.click()
    expect(banner).to_contain_text("step 3 of 50")
    expect(button).to_be_disabled()
    tab(lasting, "generate").idle()
    banner.get_by_role("button", name="Cancel").click()
    expect(banner).not_to_contain_text("step 3 of 50")
    expect(button).to_be_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_a_problem_with_the_weights_is_a_strip_with_its_text_on_a_click(fake, fake_address, visit, size):
    missing = "The copy in ./models is incomplete."
    fake.facts = {"problem": {"code": "weights_broken", "message": missing, "hint": "Fetch it <b>again</b>."}}
    page = visit(fake_address[0], *size)
    banner, status = page.locator("#studio-banner"), page.locator("#studio-status")
    text, line = banner.get_by_text(f"{missing} Fetch it <b>again</b>."), banner.locator("summary")
    expect(banner.get_by_role("button", name="Get the real model (11.5 GB)")).to_be_visible()
    assert banner.bounding_box()["height"] <= 60
    assert status.bounding_box()["height"] <= 48
    expect(text).to_be_hidden()
    expect_tappable(line)
    line.press("Enter")
    expect(text).to_be_visible()
    assert fits(page)
    assert violations(page) == []
    line.press("Enter")
    assert banner.bounding_box()["height"] <= 60
    fake.facts = {"engine": "xl", "source": "cache", "model": "ACE-Step/acestep-v15-xl-sft-diffusers"}
    reload(page)
    expect(status).to_contain_text("Model: ACE-Step/acestep-v15-xl-sft-diffusers")
    expect(banner).to_be_hidden()


# --- the layout ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_the_layout(fake, fake_address, visit, tab, width: int, theme: str):
    page = visit(f"{fake_address[0]}?__theme={theme}", width)
    generate = tab(page, "generate")
    generate.unfold()
    made(generate, fake)
    assert fits(page)
    parts = generate.part("prompt"), generate.part("details"), page.locator(".columns .result").first
    prompt, details, result = (part.bounding_box() for part in parts)
    assert prompt["y"] < details["y"]
    if width == 1280:
        # Side by side, 5 to 4.
        assert result["x"] > prompt["x"] + prompt["width"]
        assert details["width"] / result["width"] == pytest.approx(5 / 4, abs=0.02)
    else:
        assert prompt["y"] < result["y"] < details["y"]
    assert generate.text("prompt").evaluate("e => getComputedStyle(e).fontSize") == "16px"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(250, 248, 245)", "dark": "rgb(19, 18, 17)"}[theme]


# Whether all of a button can be clicked where it is now.
CLICKABLE = """(button) => {
  const { left, right, top, bottom } = button.getBoundingClientRect();
  return [top + 4, bottom - 4].every((y) => button.contains(document.elementFromPoint((left + right) / 2, y)));
}"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_the_run_bar_stays_in_sight(fake, fake_address, visit, tab, size):
    page = visit(fake_address[0], *size)
    for mode in tooltips.TABS:
        opened = tab(page, mode)
        for share in (0, 0.5, 1):
            page.evaluate("(share) => scrollTo(0, share * document.documentElement.scrollHeight)", share)
            assert opened.go.evaluate(CLICKABLE), (mode, share)
        # It does not hide what the keyboard reaches.
        opened.part("advanced").locator("> button").focus()
        assert page.evaluate("document.activeElement.getBoundingClientRect().bottom") <= opened.go.bounding_box()["y"]
