"""What makes the page pleasant: keys, kept settings, the token budget, news of a run."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import page_hints
import page_settings
import tooltips
from events import Progress
from tests.page.steps import SHARED, Tab, copies_of, reload

# --- keys ---------------------------------------------------------------------------------------------------------

# Keeps the moment at which Enter is pressed, and presses it with Cmd a millisecond later.
NOTE_ENTER = """() => addEventListener("keydown", (event) => {
    if (event.key === "Enter") window.entered ??= event.timeStamp;
}, true)"""
META_ENTER = """(box) => {
    const event = new KeyboardEvent("keydown", { key: "Enter", metaKey: true, bubbles: true });
    Object.defineProperty(event, "timeStamp", { value: window.entered + 1 });
    box.dispatchEvent(event);
}"""


@pytest.mark.slow
def test_keys_start_and_cancel_a_run_but_belong_to_an_open_list(lasting: Page, fake, tab):
    page, opened = lasting, tab(lasting, "generate").reset()
    opened.unfold()
    key = opened.text("key")
    key.click()
    key.press_sequentially("F#m")
    expect(page.get_by_role("option")).to_have_text([re.compile(r"F# minor \(F#m\)")])
    key.press("Control+Enter")
    expect(key).to_have_value("F# minor (F#m)")
    assert fake.requests == []
    fake.script = fake.endless
    opened.text("prompt").fill("a song")
    page.evaluate(NOTE_ENTER)
    opened.text("prompt").press("Control+Enter")
    opened.runs()
    key.click()
    key.press("Escape")
    expect(page.get_by_role("option")).to_have_count(0)
    expect(opened.part("cancel")).to_be_enabled()
    # In a box it leaves the box, and the song goes on.
    opened.text("prompt").press("Escape")
    expect(opened.text("prompt")).not_to_be_focused()
    expect(opened.part("cancel")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(opened.progress).to_contain_text("Cancelled.")
    opened.idle()
    expect(opened.text("prompt")).to_have_value("a song")
    assert len(fake.requests) == 1
    fake.script = fake.play
    seed = 100 * (fake.songs + 1)
    # However soon after the first.
    opened.text("prompt").evaluate(META_ENTER)
    opened.has(seed)
    opened.reset()


@pytest.mark.slow
def test_a_press_counts_when_the_page_moves_beneath_the_pointer(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.set("prompt", "type", "a song")

    def press(by: float, move: str) -> None:
        box = opened.go.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.evaluate(move)
        page.mouse.move(x + by, y)
        page.mouse.up()

    page.add_style_tag(
        content="#generate-go { transition: none; } .moved #generate-go { translate: 0 -200px; }"
    )
    away, back = (f"document.body.classList.{how}('moved')" for how in ("add", "remove"))
    # Dragging the pointer off a button takes the press back.
    press(600, back)
    press(600, away)
    page.evaluate(back)
    assert fake.requests == []
    fake.script = fake.endless
    # The button moves away, then stays where it is: one press each.
    for move in (away, back):
        fake.closed.clear()
        press(1, move)
        page.evaluate(back)
        opened.runs()
        opened.cancel()
        assert fake.closed.wait(100)
    assert len(fake.requests) == 2


OWN_SETTINGS = "sessionStorage.getItem('ace-music-studio-own-generate')"
# A change is kept a tenth of a second after it.
KEPT_A_WHILE_LATER = f"new Promise((done) => setTimeout(() => done({OWN_SETTINGS}), 1000))"


# --- kept settings ------------------------------------------------------------------------------------------------


def come_back(opened: Tab) -> None:
    """Reload the page and return to the tab."""
    reload(opened.page)
    opened.page.get_by_role("tab", name=opened.mode.capitalize(), exact=True).click()


# One control of each kind; tests/unit/test_page_settings.py has them all.
KINDS = (
    "prompt",
    "lyrics",
    "instrumental",
    "bpm",
    "key",
    "takes",
    "seed",
    "options.fade_out",
    "options.loras",
)


@pytest.mark.slow
def test_settings_survive_a_reload_and_can_be_reset(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.set_all({name: SHARED[name] for name in KINDS})
    opened.set("duration", "type", "90")
    before = opened.made(fake)
    come_back(opened)
    expect(opened.text("prompt")).to_have_value("brass band")
    expect(opened.text("duration")).to_have_value("90")
    assert opened.made(fake) == before

    opened.part("reset").click()
    expect(opened.text("prompt")).to_have_value("")
    expect(opened.text("duration")).to_have_value("")
    opened.set("prompt", "type", "a song")
    plain = opened.made(fake)
    assert (plain.bpm, plain.key, plain.takes, plain.seed) == (None, "", 1, -1)
    assert plain.options == type(plain.options)()
    opened.part("reset-undo").click()
    expect(opened.text("prompt")).to_have_value("brass band")
    assert opened.made(fake) == before
    # The defaults survive, too.
    opened.part("reset").click()
    expect(opened.text("prompt")).to_have_value("")
    # The latest keystrokes are kept.
    opened.text("lyrics").fill("la la")
    come_back(opened)
    expect(opened.text("duration")).to_have_value("")
    expect(opened.text("prompt")).to_have_value("")
    expect(opened.text("lyrics")).to_have_value("la la")


@pytest.mark.slow
def test_each_tab_keeps_its_own_settings_and_its_source(page: Page, fake, tab, song, forgiven):
    forgiven.append("status of 404")  # of the source that is gone
    edit, lyrics = tab(page, "edit"), tab(page, "lyrics")
    lyrics.set("brief", "type", "two old friends")
    tab(page, "edit")
    edit.set("source", "upload", song)
    edit.choose("layer")
    edit.set("track", "pick", "Drums")
    edit.set("part", "tick", True)
    edit.set("start", "type", "0.5")
    edit.set("prompt", "type", "a drum solo")
    come_back(edit)
    expect(edit.text("prompt")).to_have_value("a drum solo")
    expect(edit.field("track").get_by_label("Drums", exact=True)).to_be_checked()
    # The studio still has the source, and its region is as it was marked.
    expect(edit.field("source").locator(".source-card")).to_contain_text(song.name)
    expect(edit.part("region").get_by_label("Start of the region")).to_have_attribute(
        "aria-valuenow", "0.5"
    )
    expect(edit.text("start")).to_have_value("0.5")
    expect(tab(page, "lyrics").text("brief")).to_have_value("two old friends")
    expect(tab(page, "generate").text("prompt")).to_have_value("")
    # One that is deleted by then is named, not dropped without a word.
    for copy in copies_of(song.name):
        copy.unlink()
    come_back(edit)
    expect(edit.field("source")).to_contain_text(tooltips.SOURCE_GONE)
    expect(edit.field("source").locator("input[type=file]")).to_have_count(1)
    come_back(edit)
    expect(edit.field("source").locator("input[type=file]")).to_have_count(1)
    expect(edit.field("source")).not_to_contain_text(tooltips.SOURCE_GONE)


@pytest.mark.slow
def test_restored_settings_come_back_beside_early_typing_and_clicks_that_fill_nothing(
    page: Page, fake, tab, monkeypatch: pytest.MonkeyPatch
):
    opened = tab(page, "generate")
    opened.set("prompt", "type", "of the last visit")
    opened.set("lyrics", "type", "la la")
    opened.set("duration", "type", "90")
    looked, held = threading.Event(), threading.Event()

    restored = page_settings.restored

    def late(*given: Any) -> dict[Any, Any]:
        looked.set()
        held.wait(100)
        return restored(*given)

    monkeypatch.setattr(page_settings, "restored", late)
    page.reload()
    opened.text("prompt").fill("typed at once")
    opened.part("strip").locator("[data-opens=duration]").click()
    assert looked.wait(100)
    # What the fields hold by then is not kept in the place of what comes back: it would be lost in another reload.
    assert "la la" in page.evaluate(KEPT_A_WHILE_LATER)
    held.set()
    expect(opened.text("lyrics")).to_have_value("la la")
    expect(opened.text("duration")).to_have_value("90")
    expect(opened.text("prompt")).to_have_value("typed at once")
    page.wait_for_function(f"{OWN_SETTINGS}.includes('typed at once')")


# --- the token budget ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_budget_follows_the_typing(
    lasting: Page, fake, tab, tiny, monkeypatch: pytest.MonkeyPatch
):
    opened = tab(lasting, "generate").reset()
    line = opened.part("tokens")
    monkeypatch.setattr(page_hints, "token_counter", lambda *of: None)
    opened.text("prompt").fill("a song")
    expect(line).to_contain_text("once the model is downloaded")
    counter = page_hints.TokenCounter(tiny / "tokenizer" / "tokenizer.json")
    monkeypatch.setattr(page_hints, "token_counter", lambda *of: counter)
    # A prompt with room to spare needs no number.
    opened.text("prompt").fill("a long song")
    expect(line.locator(".shown")).to_have_count(0)
    long = "brushed drums, " * 40
    used, _ = page_hints.prompt_budget(counter, "generate", {"prompt": long, "options.plan": True})
    opened.text("prompt").fill(long)
    expect(line).to_contain_text(f"{used} of 256 tokens")
    opened.unfold()
    opened.set("key", "choose", "F# minor")
    expect(line).not_to_contain_text(f"{used} of 256 tokens")
    opened.text("prompt").fill("brushed drums, " * 120 + "the very end")
    expect(line).to_contain_text(re.compile(r"the last \d+ words, from \"[^\"]+ \.\.\.\" on"))
    opened.text("prompt").fill("")
    expect(line.locator(".shown")).to_have_count(0)
    opened.text("lyrics").fill("[Verse]\n" + "warm tape hiss all night\n" * 380)
    expect(opened.part("advice")).to_contain_text("2,048")
    opened.reset()


# --- waiting ------------------------------------------------------------------------------------------------------

SPOKEN = """() => {
  window.spoken = [];
  const live = document.querySelector("#generate-progress [aria-live=polite]");
  new MutationObserver(() => window.spoken.push(live.textContent)).observe(live, { childList: true });
}"""
STAGES = ("loading", "planning", "steps", "decoding")


@pytest.mark.slow
def test_a_screen_reader_hears_stages_and_quarters(lasting: Page, fake, tab):
    page, opened = lasting, tab(lasting, "generate")
    page.evaluate(SPOKEN)

    heard = {stage: threading.Event() for stage in STAGES}

    def script(request):
        for stage in STAGES:
            for step in range(1, 13):
                yield Progress(stage, step, 12, step / 10, 1.2 - step / 10)
            # The page asks once a second; a real stage lasts longer than that.
            heard[stage].wait(300)
        yield from fake.song(request)

    fake.script = script
    opened.start()
    for stage in STAGES:
        page.wait_for_function(
            "(start) => window.spoken.some((sentence) => sentence.startsWith(start))",
            arg=tooltips.STAGES[stage],
        )
        heard[stage].set()
    expect(opened.progress).to_contain_text("1 take made")
    spoken = page.evaluate("window.spoken")
    # Whether it has anything to say between stages is up to when the page asks.
    assert len(STAGES) + 1 <= len(spoken) <= 26, spoken
    for start in (*(tooltips.STAGES[stage] for stage in STAGES), "1 take made"):
        assert any(sentence.startswith(start) for sentence in spoken), (start, spoken)
    assert (
        len([sentence for sentence in spoken if sentence.startswith(tooltips.STAGES["steps"])])
        <= 5 + 2
    )


@pytest.mark.slow
def test_other_tabs_work_while_a_song_is_made(lasting: Page, fake, tab):
    page, generate = lasting, tab(lasting, "generate")
    fake.script = fake.endless
    generate.start()
    generate.runs()
    cover = tab(page, "cover")
    cover.set("prompt", "type", "a brass band")
    cover.unfold("details")
    cover.set("takes", "pick", "3")
    expect(cover.go).to_be_enabled()
    page.keyboard.press("Escape")  # cancels nothing: nothing runs in this tab
    lyrics = tab(page, "lyrics")
    lyrics.start("a lighthouse")
    expect(lyrics.progress).to_contain_text("in the queue")
    tab(page, "generate")
    generate.runs()
    fake.script = fake.play
    generate.cancel()
    tab(page, "lyrics")
    expect(lyrics.text("text")).to_have_value(re.compile("The lamp goes round"))
    expect(tab(page, "cover").text("prompt")).to_have_value("a brass band")
