"""What makes the page pleasant: keys, settings that are still there, the token budget, sentences while one waits."""

from __future__ import annotations

import re
import threading

import httpx
import pytest
from playwright.sync_api import Page, expect

import page_hints
import page_settings
from events import Progress
from tests.page.conftest import FakeBackend
from tests.page.steps import SHARED, Tab


def expect_idle(opened: Tab) -> None:
    """Expect the buttons of a tab as they are between runs."""
    expect(opened.go).to_be_enabled()
    expect(opened.part("cancel")).to_be_disabled()


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_start_and_cancel_a_run(page: Page, fake, tab):
    opened = tab(page, "generate")
    fake.script = fake.endless
    opened.text("prompt").fill("a song")
    opened.text("prompt").press("Control+Enter")
    expect(opened.progress).to_contain_text("step 3 of 50")
    # The key is held down: one song.
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Escape")
    expect(opened.progress).to_contain_text("Cancelled.")
    expect_idle(opened)
    expect(opened.text("prompt")).to_have_value("a song")
    assert len(fake.requests) == 1
    fake.script = fake.play
    page.keyboard.press("Meta+Enter")
    expect(opened.take()).to_be_visible()


def test_a_press_counts_though_the_page_moves_beneath_the_pointer(page: Page, fake, tab):
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

    page.add_style_tag(content="#generate-go { transition: none; } .moved #generate-go { translate: 0 -200px; }")
    away, back = (f"document.body.classList.{how}('moved')" for how in ("add", "remove"))
    # Who drags the pointer off a button thinks better of it.
    press(600, back)
    press(600, away)
    page.evaluate(back)
    assert fake.requests == []
    fake.script = fake.endless
    press(1, away)
    page.evaluate(back)
    expect(opened.part("cancel")).to_be_enabled()
    opened.part("cancel").click()
    assert fake.closed.wait(60)
    # A button that stayed where it was is pressed once.
    fake.closed.clear()
    expect(opened.go).to_be_enabled()
    press(1, back)
    expect(opened.part("cancel")).to_be_enabled()
    opened.part("cancel").click()
    assert fake.closed.wait(60)
    assert len(fake.requests) == 2


@pytest.mark.slow
def test_keys_belong_to_an_open_list(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.set("prompt", "type", "a song")
    opened.unfold()
    key = opened.text("key")
    key.click()
    key.press_sequentially("F#m")
    expect(page.get_by_role("option")).to_have_text([re.compile(r"F# minor \(F#m\)")])
    key.press("Control+Enter")
    expect(key).to_have_value("F# minor (F#m)")
    assert fake.requests == []
    fake.script = fake.endless
    opened.go.click()
    expect(opened.progress).to_contain_text("step 3 of 50")
    key.click()
    key.press("Escape")
    expect(page.get_by_role("option")).to_have_count(0)
    expect(opened.part("cancel")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(opened.progress).to_contain_text("Cancelled.")


# --- controls that hold no nonsense -------------------------------------------------------------------------------


@pytest.mark.slow
def test_numbers_take_no_letters(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.set("prompt", "type", "a song")
    opened.unfold()
    bpm = opened.text("bpm")
    bpm.press_sequentially("9x6")
    expect(bpm).to_have_value("96")
    bpm.fill("about 120 bpm")
    expect(bpm).to_have_value("120")
    seed = opened.text("seed")
    seed.fill("-1")
    expect(seed).to_have_value("-1")
    length = opened.text("duration")
    length.fill("12,5 s")
    expect(length).to_have_value("12,5")
    request = opened.made(fake)
    assert (request.bpm, request.seed, request.duration) == (120, -1, 12.5)


# --- settings that are still there --------------------------------------------------------------------------------


def reload(page: Page, opened: Tab) -> None:
    """Come back to the page, and to the tab."""
    page.reload()
    expect(page.locator("#studio-status")).to_contain_text("Model:")
    page.get_by_role("tab", name=opened.mode.capitalize(), exact=True).click()


KINDS = ("prompt", "lyrics", "instrumental", "bpm", "key", "takes", "seed", "options.fade_out", "options.loras")


@pytest.mark.slow
def test_settings_survive_a_reload_and_can_be_reset(page: Page, fake, tab):
    opened = tab(page, "generate")
    # One control of each kind; tests/unit/test_page_settings.py has them all.
    opened.set_all({name: SHARED[name] for name in KINDS})
    opened.set("duration", "type", "90")
    before = opened.made(fake)
    reload(page, opened)
    expect(opened.text("prompt")).to_have_value("brass band")
    expect(opened.text("duration")).to_have_value("90")
    assert opened.made(fake) == before

    opened.part("reset").click()
    expect(opened.text("prompt")).to_have_value("")
    expect(opened.text("duration")).to_have_value("60")
    opened.set("prompt", "type", "a song")
    plain = opened.made(fake)
    assert (plain.bpm, plain.key, plain.takes, plain.seed) == (None, "", 1, -1)
    assert plain.options == type(plain.options)()
    opened.part("reset-undo").click()
    expect(opened.text("prompt")).to_have_value("brass band")
    assert opened.made(fake) == before
    # The defaults survive as well.
    opened.part("reset").click()
    expect(opened.text("prompt")).to_have_value("")
    reload(page, opened)
    expect(opened.text("duration")).to_have_value("60")
    expect(opened.text("prompt")).to_have_value("")


def test_what_is_typed_last_survives_a_reload_at_once(page: Page, fake, tab):
    opened = tab(page, "generate")
    opened.text("lyrics").fill("la la")
    reload(page, opened)
    expect(opened.text("lyrics")).to_have_value("la la")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["edit", "lyrics"])
def test_each_tab_keeps_its_own_settings(page: Page, fake, tab, song, mode: str):
    opened = tab(page, mode)
    name = "brief" if mode == "lyrics" else "prompt"
    if mode != "lyrics":
        opened.set("source", "upload", song)
    if mode == "edit":
        opened.set("action", "pick", "Add a layer (experimental)")
        opened.set("track", "pick", "Drums")
    opened.set(name, "type", "two old friends")
    opened.unfold()
    opened.set("seed", "type", "7")
    reload(page, opened)
    expect(opened.text(name)).to_have_value("two old friends")
    opened.unfold()
    expect(opened.text("seed")).to_have_value("7")
    if mode == "edit":
        expect(opened.field("track").get_by_label("Drums", exact=True)).to_be_checked()
    if mode != "lyrics":
        # A file is not kept: the browser has no business with it.
        expect(opened.field("source").locator("input[type=file]")).to_have_count(1)
    reload(page, Tab(page, "generate"))
    expect(page.locator("#generate-prompt textarea")).to_have_value("")


@pytest.mark.slow
def test_what_is_typed_early_is_not_overwritten(page: Page, fake, tab, monkeypatch: pytest.MonkeyPatch):
    opened = tab(page, "generate")
    opened.set("prompt", "type", "of the last visit")
    opened.set("lyrics", "type", "la la")
    looked, held = threading.Event(), threading.Event()

    def late() -> FakeBackend:
        looked.set()
        held.wait(60)
        return fake

    monkeypatch.setattr(page_settings, "get_backend", late)
    page.reload()
    opened.text("prompt").fill("typed at once")
    assert looked.wait(60)
    held.set()
    expect(opened.text("lyrics")).to_have_value("la la")
    expect(opened.text("prompt")).to_have_value("typed at once")


def test_the_page_is_sent_compressed(fake_address):
    answer = httpx.get(fake_address[0], headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.num_bytes_downloaded < 120_000 < len(answer.content)


# --- the token budget ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_budget_is_told_while_it_is_typed(page: Page, fake, tab, tiny, monkeypatch: pytest.MonkeyPatch):
    opened = tab(page, "generate")
    line = opened.part("tokens")
    monkeypatch.setattr(page_hints, "token_counter", lambda: None)
    opened.text("prompt").fill("a song")
    expect(line).to_contain_text("once the model is downloaded")
    counter = page_hints.TokenCounter(tiny / "tokenizer" / "tokenizer.json")
    monkeypatch.setattr(page_hints, "token_counter", lambda: counter)
    opened.text("prompt").fill("a long song")
    used, _ = page_hints.prompt_budget(counter, "generate", {"prompt": "a long song", "options.plan": True})
    expect(line).to_have_text(f"{used} of 256 tokens, song details included.")
    opened.unfold()
    opened.set("key", "choose", "F# minor")
    expect(line).not_to_have_text(f"{used} of 256 tokens, song details included.")
    opened.text("prompt").fill("brushed drums, " * 120 + "the very end")
    expect(line).to_contain_text('The model does not read "')
    expect(line).to_contain_text('the very end".')
    opened.text("prompt").fill("")
    expect(line.locator(".shown")).to_have_count(0)
    opened.text("lyrics").fill("[Verse]\n" + "warm tape hiss all night\n" * 380)
    expect(opened.part("advice")).to_contain_text("2,048")


# --- waiting ------------------------------------------------------------------------------------------------------


def stages(request):
    """Go through the stages of a song, many steps in each."""
    for stage in ("loading", "planning", "steps", "decoding"):
        for step in range(1, 13):
            yield Progress(stage, step, 12, step / 10, 1.2 - step / 10)


@pytest.mark.slow
def test_a_screen_reader_hears_stages_and_quarters(page: Page, fake, tab):
    opened = tab(page, "generate")
    page.evaluate("""() => {
        window.heard = [];
        const live = document.querySelector("#generate-progress [aria-live=polite]");
        new MutationObserver(() => window.heard.push(live.textContent)).observe(live, { childList: true });
    }""")

    def script(request):
        yield from stages(request)
        yield from fake.song(request)

    fake.script = script
    opened.text("prompt").fill("a song")
    opened.made(fake)
    expect(opened.progress).to_contain_text("1 take made")
    heard = page.evaluate("window.heard")
    assert 6 <= len(heard) <= 26, heard
    for start in ("Loading the model", "Planning the song", "Making the music", "Turning it into sound", "1 take made"):
        assert any(sentence.startswith(start) for sentence in heard), (start, heard)
    assert len([sentence for sentence in heard if sentence.startswith("Making the music")]) <= 5 + 2


@pytest.mark.long
@pytest.mark.slow
def test_another_tab_may_be_used_while_a_song_is_made(page: Page, fake, tab):
    generate = tab(page, "generate")
    fake.script = fake.endless
    generate.text("prompt").fill("a song")
    generate.go.click()
    expect(generate.progress).to_contain_text("step 3 of 50")
    cover = tab(page, "cover")
    cover.set("prompt", "type", "a brass band")
    cover.unfold()
    cover.set("takes", "pick", "3")
    expect(cover.go).to_be_enabled()
    page.keyboard.press("Escape")  # cancels nothing: nothing runs in this tab
    lyrics = tab(page, "lyrics")
    lyrics.set("brief", "type", "a lighthouse")
    lyrics.go.click()
    expect(lyrics.progress).to_contain_text("Waiting for its turn")
    tab(page, "generate")
    expect(generate.progress).to_contain_text("step 3 of 50")
    fake.script = fake.play
    generate.part("cancel").click()
    expect_idle(generate)
    tab(page, "lyrics")
    expect(page.locator("#lyrics-text textarea")).to_have_value(re.compile("The lamp goes round"))
    expect(tab(page, "cover").text("prompt")).to_have_value("a brass band")
