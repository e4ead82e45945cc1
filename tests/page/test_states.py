"""What the page shows around a song: running, cancelled, failed, messages, leaving, the engine, the layout."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import tooltips
from events import Done, Event, Problem, Progress
from runs import runs_of
from status import LanguageModelStatus
from tests.page.steps import (
    MARKUP,
    UNEVEN,
    Tab,
    cut_rings,
    expect_plain,
    expect_tappable,
    fits,
    reload,
    violations,
)
from tests.waiting import until
from tools import screenshots

PHONE, DESK = (390, 844), (1280, 900)


def made(generate: Tab, fake: Any, prompt: str = "a song") -> None:
    seed = 100 * (fake.songs + 1)
    generate.start(prompt)
    generate.has(seed)


# Presses Ctrl and Enter so many milliseconds after the press before.
PRESS = """(box, later) => {
    const event = new KeyboardEvent("keydown", { key: "Enter", ctrlKey: true, bubbles: true });
    window.before ??= event.timeStamp;
    Object.defineProperty(event, "timeStamp", { value: window.before + later });
    box.dispatchEvent(event);
}"""


# --- a run --------------------------------------------------------------------------------------------------------


def test_while_a_song_is_made_and_cancelled(lasting: Page, fake, tab):
    generate = tab(lasting, "generate")
    settled = tooltips.LENGTH_SETTLED.format(length="3:05")

    def automatic(request: Any) -> Iterator[Event]:
        yield Progress("preparing", note=settled)
        yield from fake.endless(request)

    fake.script = automatic
    generate.text("prompt").fill("a song")
    generate.text("prompt").evaluate(PRESS, 0)
    # An automatic length is told once it is known, and for as long as the song is made.
    expect(generate.progress).to_contain_text(settled)
    line = re.compile(r"Making the music, step 3 of 50, 0:0\d so far, at least 0:19 left\.")
    expect(generate.progress).to_contain_text(line)
    expect(generate.progress.locator("[aria-live=polite]")).to_be_visible()
    # A double click is one song, and not meant for Cancel, which comes beneath the pointer perhaps.
    expect(generate.go).to_be_enabled()
    generate.go.dispatch_event("click", {"detail": 2})
    generate.part("cancel").dispatch_event("click", {"detail": 2})
    # Nor are two presses of the keys in the time of a double click.
    generate.text("prompt").evaluate(PRESS, 150)
    taken = fake.taken
    until(lambda: fake.taken > taken + 10)
    assert not fake.closed.is_set()
    assert len(runs_of(fake).active()) == 1
    generate.cancel()
    expect(generate.part("cancel")).to_be_hidden()
    expect(generate.progress).to_contain_text("Cancelled.")
    assert fake.closed.wait(100)
    fake.script = fake.song
    # What became of it goes with the next change.
    expect(generate.progress.locator(".progress-line")).to_be_visible()
    generate.text("prompt").fill("a song of rain")
    expect(generate.progress).to_be_hidden()
    made(generate, fake)
    generate.idle()
    expect(generate.progress.locator(".progress-line")).to_be_visible()


@pytest.mark.slow
def test_a_song_that_waits_can_be_cancelled(lasting: Page, fake, tab):
    fake.script = fake.endless
    generate = tab(lasting, "generate")
    generate.start()
    generate.runs()
    lyrics = tab(lasting, "lyrics")
    lyrics.start()
    expect(lyrics.progress).to_contain_text("Next in the queue")
    lyrics.cancel()
    expect(lyrics.progress).to_contain_text(tooltips.LYRICS_STOPPED)
    assert len(fake.requests) == 1
    tab(lasting, "generate").cancel()


def test_the_next_song_can_be_started_while_the_last_one_tidies_up(lasting: Page, fake, tab):
    generate, asked = tab(lasting, "generate"), threading.Event()

    def slow_to_end(request: Any) -> Iterator[Event]:
        yield from fake.song(request)
        assert asked.wait(100)

    fake.script = slow_to_end
    made(generate, fake)
    seed = 100 * (fake.songs + 1)
    generate.start()
    expect(generate.part("takes-made").locator(".making")).to_have_count(1)
    asked.set()
    generate.has(seed)


@pytest.mark.slow
@pytest.mark.alters_page
def test_leaving_asks_only_while_the_model_is_fetched_for_songs_go_on(
    page: Page, fake, tab, forgiven
):
    forgiven.append("aborted")
    generate, asked = tab(page, "generate"), []
    page.on("dialog", lambda dialog: asked.append(dialog.type) or dialog.accept())
    fake.script = fake.endless
    generate.start()
    generate.runs()
    generate.text("prompt").fill("typed")
    reload(page)
    assert asked == []
    generate.runs()
    page.locator("#download-go").click(click_count=2)
    expect(page.locator("#download-progress")).to_contain_text("step 3 of 50")
    reload(page)
    assert asked == ["beforeunload"]


@pytest.mark.slow
def test_a_refused_song_resets_the_buttons(page: Page, tab, forgiven):
    forgiven.append("status of 503")
    page.route(
        "**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."})
    )
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
    for script, words in (
        (fake.fail, "There was <b>no memory</b> left."),
        (crash, "An unexpected error occurred (RuntimeError)."),
    ):
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


# The warning of modes.py (test_planner.py).
STUCK = "The plan of take 1 repeats itself from 12 s on. Another seed often helps."


@pytest.mark.slow
def test_seeds_notes_warnings_and_failed_takes_are_shown_as_text(lasting: Page, fake, tab):
    page, generate = lasting, tab(lasting, "generate")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    take = {
        "seed": 9,
        "name": "a.wav",
        "sha256": "",
        "duration": 1.0,
        "peak_dbfs": -1.04,
        "loudness_lufs": None,
    }
    errors = [{"take": 2, "seed": 8, "message": f"Silent {MARKUP}."}]
    fake.script = partial(
        fake.song,
        takes=[{**take, "warnings": [MARKUP, STUCK]}],
        notes=[f"Cut {MARKUP}."],
        errors=errors,
    )
    generate.start(MARKUP)
    expect(generate.take()).to_contain_text(MARKUP)
    expect(generate.take()).to_contain_text(STUCK)
    expect(generate.part("message")).to_contain_text(f"Left out: take 2 (seed 8). Silent {MARKUP}.")
    expect(generate.part("message")).to_contain_text(f"Cut {MARKUP}.")
    generate.part("record").locator("summary").click()
    expect(generate.part("record")).to_contain_text("bold")
    expect_plain(page)
    expect(generate.way("Retake")).to_be_visible()
    expect(generate.take()).to_contain_text("peak -1.0 dBFS")
    page.get_by_role("button", name="Copy seed 9").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "9"


@pytest.mark.slow
def test_a_message_stays_beside_its_field_while_a_song_is_made_elsewhere(lasting: Page, fake, tab):
    fake.script = fake.endless
    generate = tab(lasting, "generate")
    generate.start()
    generate.runs()
    edit = tab(lasting, "edit")
    edit.unfold("details")
    edit.set("bpm", "type", "999")
    edit.set("prompt", "type", MARKUP * 60)
    edit.go.click()
    sentences = {
        "bpm": "BPM must be",
        "source": "Source is missing: add an audio file",
        "prompt": "Prompt may have up to",
    }
    for name, sentence in sentences.items():
        expect(edit.field(name).get_by_text(sentence)).to_have_count(1)
    # The next change removes them; pressing again shows what is still wrong.
    edit.set("bpm", "type", "90")
    for name, sentence in sentences.items():
        expect(edit.field(name)).not_to_contain_text(sentence)
    expect(edit.part("problems")).to_be_hidden()
    edit.go.click()
    expect(edit.field("source")).to_contain_text(sentences["source"])
    expect(edit.field("bpm")).not_to_contain_text(sentences["bpm"])
    # A button that fills in fields is a change too.
    edit.part("reset").click()
    expect(edit.field("source")).not_to_contain_text(sentences["source"])
    expect(edit.text("prompt")).to_have_value("")
    tab(lasting, "generate").cancel()


# --- the engine ---------------------------------------------------------------------------------------------------


def test_the_header_is_one_line_and_its_facts_stay_open_when_they_change(lasting: Page, fake, tab):
    generate, status = tab(lasting, "generate"), lasting.locator("#studio-status")
    line, facts = status.locator("summary"), status.get_by_role("listitem")
    expect(line).to_have_text("Built-in engine · CPU")
    assert status.bounding_box()["height"] <= 48
    assert lasting.locator("#studio-banner").bounding_box()["height"] <= 60
    expect(facts.first).to_be_hidden()
    line.press("Enter")
    expect(facts).to_contain_text(
        ["Model: built in", "Planner:", "Songwriter:", "Device: CPU, float32"]
    )
    expect(facts.first).to_be_visible()
    # Each run updates the status with the models it has loaded.
    fake.facts = {"planner": LanguageModelStatus("loaded", "org/planner-after-the-song")}
    generate.text("prompt").fill("a song")
    line.focus()
    seed = 100 * (fake.songs + 1)
    generate.go.evaluate("(button) => button.click()")
    generate.has(seed)
    expect(status).to_contain_text("planner-after-the-song")
    expect(facts.first).to_be_visible()
    expect(line).to_be_focused()
    line.press("Enter")
    expect(facts.first).to_be_hidden()


def test_the_banner_of_the_built_in_engine_and_its_download(lasting: Page, fake, tab):
    banner = lasting.locator("#studio-banner")
    expect(banner).to_contain_text("Built-in engine:")
    expect(banner).to_contain_text("simple instrumental music")
    button = banner.get_by_role("button", name="Get the real model (11.5 GB)")
    # So many gigabytes begin with a second click.
    button.click()
    go = lasting.locator("#download-go")
    expect(go).to_have_accessible_name("Download it now?")
    lasting.keyboard.press("Tab")
    expect(button).to_be_visible()
    button.click()
    go.click()
    expect(banner).to_contain_text("step 3 of 50")
    expect(go).to_be_disabled()
    tab(lasting, "generate").idle()
    banner.get_by_role("button", name="Cancel").click()
    expect(banner).not_to_contain_text("step 3 of 50")
    expect(button).to_be_enabled()
    lasting.get_by_role("button", name=tooltips.DISMISS).click()
    expect(banner).to_be_hidden()
    # Another visit shows it again, and prepares the studio.
    fake.prepared.clear()
    lasting.reload()
    expect(banner).to_be_visible()
    assert fake.prepared.wait(100)


@pytest.mark.slow
def test_a_model_that_is_not_here_is_offered_where_it_is_chosen_and_fetched(
    fake, fake_address, visit, tab, monkeypatch
):
    own, stems = fake.status().song_models
    fast = replace(stems, name="turbo", kind="turbo", model="org/fast", state="missing")
    fast = replace(fast, download_gb=11.5)
    fake.facts = {"song_models": (own, stems, fast)}
    asked = []

    def ask_size(name: str) -> None:
        fake.facts = {"song_models": (own, stems, replace(fast, download_gb=8.3))}

    def download(name: str) -> Iterator[Event]:
        asked.append(name)
        fake.facts = {"song_models": (own, stems, replace(fast, state="ready", download_gb=0.0))}
        yield Done((), {})

    monkeypatch.setattr(fake, "ask_size", ask_size)
    monkeypatch.setattr(fake, "download", download)
    real = partial(type(fake).__mro__[1].song_model, fake)
    monkeypatch.setattr(fake, "song_model", real)
    page = visit(fake_address[0], *DESK)
    # It comes back for an offer.
    page.get_by_role("button", name=tooltips.DISMISS).click()
    generate = tab(page, "generate")
    generate.set("options.model", "pick", "Fast")
    banner, go = page.locator("#studio-banner"), page.locator("#download-go")
    expect(go).to_have_text("Get Fast (8.3 GB)")
    expect(banner).to_contain_text("Fast is not here yet")
    link = generate.field("options.model").get_by_role("link")
    expect(link).to_have_text("get it at the top of the page")
    generate.start()
    expect(generate.field("options.model")).to_contain_text("Fast is not here yet: get it")
    expect(generate.part("problems")).to_have_text("Please check “Model”.")
    for width, height in (DESK, PHONE):
        page.set_viewport_size({"width": width, "height": height})
        screenshots.settle(page)
        assert violations(page) == [] and fits(page), width
    assert not fake.requests and not asked
    # The offer goes with the choice.
    generate.set("options.model", "pick", "Built-in")
    expect(go).to_have_text("Get the real model (11.5 GB)")
    expect(banner).not_to_contain_text("Fast is not here yet")
    generate.set("options.model", "pick", "Fast")
    expect(go).to_have_text("Get Fast (8.3 GB)")
    link.click()
    expect(go).to_be_focused()
    expect(go).to_be_in_viewport()
    # So many gigabytes begin with a second click.
    go.click()
    expect(go).to_have_accessible_name(tooltips.SCRIPT_TEXTS["really"])
    assert not asked
    go.click()
    expect(banner).to_contain_text("Fast is ready.")
    assert asked == ["turbo"]
    monkeypatch.undo()
    assert generate.made(fake).options.model == "turbo"


@pytest.mark.slow
def test_a_finished_download_changes_the_status(page: Page, fake, monkeypatch):
    def download(name: str) -> Iterator[Event]:
        fake.facts = {"engine": "xl", "source": "cache", "model": "org/model"}
        yield Done((), {})

    monkeypatch.setattr(fake, "download", download)
    page.locator("#download-go").click(click_count=2)
    expect(page.locator("#studio-status")).to_contain_text("Model: org/model")
    expect(page.locator("#studio-banner")).to_be_hidden()


@pytest.mark.slow
def test_a_problem_with_the_weights_is_a_strip_with_its_text_on_a_click(fake, fake_address, visit):
    missing = "The copy in ./models is incomplete."
    fake.facts = {"problem": Problem("weights_broken", missing, hint="Fetch it <b>again</b>.")}
    page = visit(fake_address[0], *PHONE)
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
    fake.facts = {
        "engine": "xl",
        "source": "cache",
        "model": "ACE-Step/acestep-v15-xl-sft-diffusers",
    }
    reload(page)
    expect(status).to_contain_text("Model: ACE-Step/acestep-v15-xl-sft-diffusers")
    expect(banner).to_be_hidden()


# --- the layout ---------------------------------------------------------------------------------------------------

# Whether all of a button can be clicked where it is now.
CLICKABLE = """(button) => {
  const { left, right, top, bottom } = button.getBoundingClientRect();
  return [top + 4, bottom - 4].every((y) => button.contains(document.elementFromPoint((left + right) / 2, y)));
}"""


# So far down that a share of the form has passed the foot of the window.
SCROLLED = """(form, share) => {
  const { bottom } = form.getBoundingClientRect();
  scrollTo(0, share * (scrollY + bottom - innerHeight));
}"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "theme", "colour"),
    [(DESK, "light", "rgb(250, 248, 245)"), (PHONE, "dark", "rgb(19, 18, 17)")],
)
def test_the_layout_and_the_run_bar_that_stays_in_sight(
    fake, fake_address, visit, tab, size, theme: str, colour: str
):
    page = visit(f"{fake_address[0]}?__theme={theme}", *size)
    generate = tab(page, "generate")
    generate.unfold()
    made(generate, fake)
    assert fits(page)
    parts = (
        generate.part("prompt"),
        generate.part("sound"),
        page.locator(".columns .result").first,
    )
    # At once: the page may still be on its way to the new song.
    boxes = page.evaluate(
        "(parts) => parts.map((part) => part.getBoundingClientRect().toJSON())",
        [part.element_handle() for part in parts],
    )
    prompt, details, result = boxes
    assert prompt["y"] < details["y"]
    if size == PHONE:
        expect_tappable(*page.locator(".field [data-testid=reset-button]").all())
        expect_tappable(
            *page.locator(".label-wrap, .field input:is([type=number], [role=combobox])").all()
        )
    if size == DESK:
        assert not page.evaluate(UNEVEN)
        # Side by side, 5 to 4.
        assert result["x"] > prompt["x"] + prompt["width"]
        assert details["width"] / result["width"] == pytest.approx(5 / 4, abs=0.02)
    else:
        # The form first, whose button then never covers the songs.
        assert prompt["y"] < details["y"] < result["y"]
    assert generate.text("prompt").evaluate("e => getComputedStyle(e).fontSize") == "16px"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colour
    for mode in tooltips.TABS:
        opened = tab(page, mode)
        for share in (0, 0.5, 1):
            opened.part("columns").locator(".form-column").evaluate(SCROLLED, share)
            assert opened.go.evaluate(CLICKABLE), (mode, share)
        # It does not hide what the keyboard reaches.
        opened.part("advanced" if mode == "lyrics" else "engine").locator("> button").focus()
        assert (
            page.evaluate("document.activeElement.getBoundingClientRect().bottom")
            <= opened.go.bounding_box()["y"]
        )
        assert not cut_rings(page)
