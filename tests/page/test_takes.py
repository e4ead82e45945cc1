"""What a visitor does with finished takes: compares them, makes them again, downloads them, reads along."""

from __future__ import annotations

import re
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
from mutagen.mp3 import MP3
from playwright.sync_api import Locator, Page, expect

import audio_export
import jobs
import planner
import tooltips
from events import Done, DraftOffer, Failed, Problem, Progress, SongDraft
from status import TimedLyrics
from tests.page.conftest import LINES, LRC
from tests.page.steps import (
    copies_of,
    expect_tappable,
    fits,
    reload,
    song_without_copy,
    violations,
)

SECONDS = 7
# Keeps what the page does for each media key.
MEDIA_KEYS = """() => {
  window.keys = {};
  navigator.mediaSession.setActionHandler = (name, act) => (keys[name] = act);
}"""
AUDIO = "document.querySelector('#studio-audio')"
# Undo is offered until the test lets its time be over: a slow machine may need more than these eight seconds.
UNDO_WAITS = """(() => {
  const start = window.setTimeout;
  window.setTimeout = (act, ms, ...more) => (ms === 8000 ? (window.undoIsOver = act) && 0 : start(act, ms, ...more));
})()"""
KEPT = "JSON.parse(localStorage.getItem('ace-music-studio-takes-generate'))"
# Has another window keep as many old takes, all of them with a star.
STARRED = f"""(count) => {{
  const key = "ace-music-studio-takes-generate";
  const [card, ...more] = {KEPT};
  const old = {{ ...card, art: "", peaks: "", title: "old", star: true }};
  const all = Array.from({{ length: count }}, (_, at) => ({{ ...old, url: `/runs/old${{at}}/takes/1`, at: at + 1 }}));
  localStorage.setItem(key, JSON.stringify([card, ...more, ...all]));
  dispatchEvent(new StorageEvent("storage", {{ key }}));
}}"""
# Counts how often a song was cancelled.
COUNT_CANCELS = """() => {
  window.cancels = 0;
  document.querySelector("#generate-cancel").addEventListener("click", () => window.cancels++);
}"""
PLAN = {
    **{"used": True, "bpm": 104, "key": "D minor", "time_signature": "4", "language": "en"},
    **{"caption": "a song", "rewritten": False, "seed": 5},
}


@pytest.fixture(autouse=True)
def long_songs(fake):
    """Make songs long enough to listen to."""
    fake.seconds = SECONDS


@pytest.fixture
def generate(lasting: Page, tab) -> Any:
    """Open the Generate tab on the lasting page, with a prompt and lyrics and nothing that another test set."""
    generate = tab(lasting, "generate").reset()
    generate.set("lyrics", "type", "[Verse]\nThe lamp goes round\nGood night, good night")
    return generate


def make(generate: Any, fake: Any, takes: int) -> Any:
    generate.set("takes", "pick", str(takes))
    return generate.made(fake)


def player(page: Page) -> dict[str, Any]:
    """Return the state of the page's one player."""
    facts = "(p) => ({paused: p.paused, at: p.currentTime, volume: p.volume, rate: p.playbackRate, src: p.src})"
    return page.locator("#studio-audio").evaluate(facts)


def play(take: Locator) -> Locator:
    return take.locator(".play")


def at_two_seconds(take: Locator) -> None:
    """Move the player there without playing."""
    wave = take.get_by_role("slider", name="Position")
    wave.press("ArrowRight")
    wave.press("ArrowRight")
    expect(wave).to_have_attribute("aria-valuetext", "0:02 of 0:07")


def option(generate: Any, name: str) -> Locator:
    """Return a box of the list's menu, which it opens."""
    options = generate.part("panel").locator(".tools .menu")
    if options.get_attribute("open") is None:
        options.locator("summary").click()
    return options.get_by_role("checkbox", name=name)


def titles(page: Page) -> list[str]:
    """Return what the songs in sight are called, from the top."""
    return page.locator(".library .song:visible h3").all_inner_texts()


# --- listening ----------------------------------------------------------------------------------------------------


def test_keys_switch_takes_at_the_same_place_and_loudness(generate, fake):
    page = generate.page
    make(generate, fake, 2)
    at_two_seconds(generate.take(1))
    there = player(page)
    page.keyboard.press("2")
    expect(play(generate.take(2))).to_have_attribute("aria-label", "Pause take B")
    expect(play(generate.take(1))).to_have_attribute("aria-label", "Play take A")
    page.wait_for_function(f"{AUDIO}.currentTime > 2")
    here = player(page)
    assert there["src"] != here["src"]
    assert (there["volume"], here["volume"]) == (pytest.approx(10 ** (-6 / 20), abs=1e-3), 1)
    generate.plays("Take A").click()
    expect(generate.plays("Take A")).to_have_attribute("aria-pressed", "true")
    option(generate, "Play at equal loudness").uncheck()
    assert player(page)["volume"] == 1
    option(generate, "Play at equal loudness").check()
    # Where the page cannot set the volume there is nothing to choose.
    root = page.locator("html")
    root.evaluate("(root) => root.classList.add('one-volume')")
    expect(option(generate, "Play at equal loudness")).to_be_hidden()
    expect(option(generate, "Best take first")).to_be_visible()
    root.evaluate("(root) => root.classList.remove('one-volume')")
    expect(option(generate, "Play at equal loudness")).to_be_visible()
    page.keyboard.press("Escape")
    # Typing a digit switches nothing.
    generate.text("prompt").press("2")
    expect(generate.plays("Take A")).to_have_attribute("aria-pressed", "true")


def test_a_song_keeps_playing_in_another_tab_and_beside_the_next_one(generate, fake, tab):
    page = generate.page
    make(generate, fake, 1)
    play(generate.take()).click()
    expect(generate.plays()).to_be_visible()
    bar = page.get_by_role("region", name="Player")
    at = player(page)["at"]
    cover = tab(page, "cover")
    page.wait_for_function(f"(at) => {AUDIO}.currentTime > at + 0.5", arg=at)
    expect(bar).to_contain_text("Take A")
    assert cover.go.bounding_box()["y"] + 44 <= bar.bounding_box()["y"]
    src = player(page)["src"]
    generate = tab(page, "generate")
    generate.made(fake)
    assert player(page)["src"] == src
    expect(generate.take()).not_to_have_class(re.compile("current"))
    bar.get_by_role("button", name="Close the player").click()
    expect(bar).to_be_hidden()
    assert player(page)["paused"]


def test_a_take_is_compared_with_its_source_at_the_same_place(lasting: Page, fake, tab, song: Path):
    page, opened = lasting, tab(lasting, "extend")
    opened.set("source", "upload", song)
    opened.set("prompt", "type", "brass band")
    opened.set("before", "type", "2")
    opened.made(fake)
    # The source's own player and ours never play at once.
    listened, paused = (
        opened.part("timeline").get_by_role("button", name=name, exact=True)
        for name in ("Play", "Pause")
    )
    listened.click()
    expect(listened).to_have_count(0)
    play(opened.take()).click()
    expect(listened).to_have_count(1)
    listened.click()
    expect(play(opened.take())).to_have_attribute("aria-label", "Play take A")
    paused.click()
    at_two_seconds(opened.take())
    taken = player(page)
    page.evaluate(
        f"{AUDIO}.addEventListener('playing', () => (window.began = {AUDIO}.currentTime), {{ once: true }})"
    )
    page.keyboard.press("0")
    source = opened.plays("Source")
    expect(source).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("() => window.began < 1.5")
    assert player(page)["src"].endswith("song.wav")
    source.click()
    expect(source).to_have_attribute("aria-pressed", "false")
    assert player(page)["src"] == taken["src"]


def test_a_song_is_a_compact_card_whose_takes_seek_by_keys_and_by_clicking(generate, fake):
    page = generate.page
    make(generate, fake, 3)
    expect(generate.song().locator(".take")).to_have_count(3)
    picture = generate.song().locator(".cover img").get_attribute("src")
    assert picture.startswith("data:image/webp;base64,")
    assert generate.song().bounding_box()["height"] <= 300
    expect(generate.way("Retake", 3)).to_be_visible()
    page.keyboard.press("Escape")
    expect(generate.take(3).locator(".sheet")).to_be_hidden()
    expect(generate.take(3).locator("summary")).to_be_focused()
    wave = generate.take().get_by_role("slider", name="Position, take A")
    for key, shown in {
        "ArrowRight": "0:01",
        "PageUp": "0:06",
        "Shift+ArrowLeft": "0:01",
        "End": "0:07",
    }.items():
        wave.press(key)
        expect(wave).to_have_attribute("aria-valuetext", f"{shown} of 0:07")
    wave.press("Home")
    assert player(page)["paused"]
    box = wave.bounding_box()
    wave.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    expect(generate.plays()).to_be_visible()
    assert player(page)["at"] >= SECONDS / 2 - 0.5
    bar = page.get_by_role("region", name="Player")
    speed = bar.get_by_label("Speed")
    speed.select_option("1.5")
    assert player(page)["rate"] == 1.5
    speed.select_option("1")
    expect_tappable(
        *bar.get_by_role("button").all(),
        speed,
        *generate.song().locator(".take, .verbs, .star, .fold").get_by_role("button").all(),
    )


# Whether nothing covers an element.
SEEN = """(element) => {
  const { x, y, width, height } = element.getBoundingClientRect();
  return element.contains(document.elementFromPoint(x + width / 2, y + height / 2));
}"""


def test_a_song_in_the_making_is_a_card_and_then_plays_with_the_space_bar(
    fake, fake_address, visit, tab
):
    page = visit(fake_address[0], 390, 844)
    generate = tab(page, "generate")
    card, empty = (generate.part("panel").locator(place) for place in (".making", ".takes .empty"))
    expect(card).to_have_count(0)
    before = empty.inner_text()
    fake.script = fake.endless
    generate.set("prompt", "type", "a song")
    generate.go.press("Enter")
    expect(card).to_contain_text(re.compile(r"step 3 of 50, .* left\."))
    expect(empty).not_to_have_text(before)
    generate.part("cancel").press("Enter")
    expect(card).to_have_count(0)
    expect(empty).to_have_text(before)
    fake.script = fake.song
    page.evaluate("scrollTo(0, 0)")
    generate.go.press("Enter")
    button = play(generate.take())
    expect(button).to_be_focused()
    expect(button).to_be_in_viewport()
    button.press("Space")
    expect(button).to_have_attribute("aria-label", "Pause take A")
    expect(card).to_have_count(0)
    # The button of the form is above the songs, and the player is a strip that comes up below what is tapped.
    assert generate.go.bounding_box()["y"] + 44 <= button.bounding_box()["y"]
    strip = page.get_by_role("region", name="Player")
    strip.get_by_role("button", name="Close the player").click()
    button.evaluate("(button) => scrollBy(0, button.getBoundingClientRect().bottom - innerHeight)")
    button.click()
    expect(strip.get_by_role("button", name="Pause", exact=True)).to_be_visible()
    assert strip.bounding_box()["height"] == 56
    assert button.evaluate(SEEN)
    expect_tappable(*strip.get_by_role("button").all())
    # The rest is in the sheet.
    strip.get_by_role("button", name="Take A").click()
    sheet = page.get_by_role("dialog", name="Now playing")
    sheet.get_by_label("Speed").select_option("1.5")
    assert player(page)["rate"] == 1.5
    assert fits(page) and violations(page) == []
    page.keyboard.press("Escape")
    expect(strip.get_by_label("Speed")).to_be_hidden()


@pytest.mark.slow
def test_a_song_that_arrives_in_sight_moves_nothing(fake, fake_address, visit, tab):
    """The window cuts its card off at the foot: what is above it stays under the pointer."""
    page = visit(fake_address[0], 1280, 900)
    # No player comes up at the foot.
    page.evaluate("localStorage.setItem('ace-music-studio-plays', 'false')")
    page.reload()
    generate = tab(page, "generate")
    generate.set("prompt", "type", "a song")
    generate.go.press("Enter")
    button = play(generate.take())
    expect(button).to_be_focused()
    card = page.locator(".library .song:visible").first.bounding_box()
    page.set_viewport_size({"width": 1280, "height": round(card["y"] + card["height"]) - 10})
    page.evaluate("scrollTo(0, 0)")
    generate.go.press("Enter")
    expect(page.locator(".library .song:visible")).to_have_count(2)
    expect(button).to_be_focused()
    expect(button).to_be_in_viewport()
    assert page.evaluate("scrollY") == 0


# Notes each place of the bar on the card of a song that is being made, in percent.
WATCH_BAR = """() => {
  window.places = [];
  new MutationObserver(() => {
    const bar = document.querySelector(".making .wave");
    if (bar) places.push(parseFloat(bar.style.getPropertyValue("--at")));
  }).observe(document.querySelector(".library"), { subtree: true, attributeFilter: ["style"] });
}"""
# Resolves to the loudest sample of what the player has.
PEAK = f"""async () => {{
  const file = await (await fetch({AUDIO}.src)).arrayBuffer();
  const sound = await new OfflineAudioContext(2, 1, 48000).decodeAudioData(file);
  return sound.getChannelData(0).reduce((one, other) => Math.max(one, other));
}}"""
# Holds the draft at its first second, and notes where the song begins in its place and which copies the page gives up.
STANDS_AT_ONE = f"""() => {{
  const audio = {AUDIO};
  audio.currentTime = 1;
  audio.playbackRate = 0;
  const release = URL.revokeObjectURL;
  window.released = [];
  URL.revokeObjectURL = (copy) => released.push(copy) && release.call(URL, copy);
  audio.addEventListener("playing", () => audio.src.startsWith("blob:") || (window.songBegan ??= audio.currentTime));
}}"""
RISING = tuple(range(100))


class Shaping:
    """A song that stays at its first step until `half`, then can be heard, and stays at the third until `end`."""

    def __init__(self, fake: Any, draft: Path):
        self.fake, self.draft, self.ask = fake, draft, draft.with_suffix(".ask")
        self.half, self.end = threading.Event(), threading.Event()

    def __call__(self, request: Any) -> Any:
        return jobs.with_times(self.events(request))

    def events(self, request: Any) -> Any:
        yield Progress("loading")
        while not self.half.wait(0.05):
            yield Progress("steps", 1, 4, outline=RISING)
        yield DraftOffer(str(self.ask))
        while not self.ask.exists():
            yield Progress("steps", 2, 4, outline=RISING[::-1])
            time.sleep(0.05)
        yield SongDraft(2, str(self.draft))
        while not self.end.wait(0.05):
            yield Progress("steps", 3, 4, outline=RISING[::-1])
        yield from self.fake.song(request)


@pytest.mark.slow
def test_a_song_takes_shape_is_heard_half_way_and_then_plays_in_place_of_its_draft(
    generate, fake, song: Path, tmp_path: Path
):
    page = generate.page
    bar = page.get_by_role("region", name="Player")
    close = bar.get_by_role("button", name="Close the player")
    if close.is_visible():  # another test was here
        close.click()
    make(generate, fake, 1)
    # Unless the visitor wants it, nothing plays by itself.
    assert player(page)["paused"]
    expect(bar).to_be_hidden()
    option(generate, "Play a new song when it is ready").check()
    page.keyboard.press("Escape")
    page.evaluate(WATCH_BAR)
    draft = tmp_path / "draft.flac"
    soundfile.write(draft, *soundfile.read(song))
    fake.script = shaping = Shaping(fake, draft)
    seed = 100 * (fake.songs + 1)
    generate.start()
    card = generate.part("panel").locator(".making")
    bars = card.locator(".wave > svg path")
    # Its outline is that of the song, which gets louder, and then becomes another.
    expect(bars).to_have_attribute(
        "d", re.compile(r"^M0\.5,-4V4M1\.5,-5\.2V5\.2.*M99\.5,-122\.8V122\.8$")
    )
    listen = card.get_by_role("button", name="Listen to the draft")
    expect(listen).to_be_hidden()
    shaping.half.set()
    expect(bars).to_have_attribute("d", re.compile(r"^M0\.5,-122\.8V122\.8"))
    expect(listen).to_be_visible()
    expect_tappable(listen)
    assert violations(page) == []
    page.evaluate(f"{AUDIO}.loop = true")
    listen.press("Enter")
    pause = card.get_by_role("button", name="Pause the draft")
    expect(pause).to_be_focused()
    expect(bar).to_contain_text("Draft")
    page.wait_for_function(f"{AUDIO}.currentTime > 0.5 && {AUDIO}.duration === 3")
    assert page.evaluate(PEAK) > 0.1
    pause.press("Enter")
    expect(listen).to_be_focused()
    listen.press("Enter")
    expect(pause).to_be_visible()
    copy = player(page)["src"]
    page.evaluate(STANDS_AT_ONE)
    page.emulate_media(reduced_motion="reduce")
    shaping.end.set()
    generate.has(seed)
    expect(play(generate.take())).to_have_attribute("aria-label", "Pause take A")
    page.wait_for_function("window.songBegan >= 1")
    # The page does not keep its copy of the draft.
    page.wait_for_function("(copy) => released.includes(copy)", arg=copy)
    for motion, name in {"reduce": "none", "no-preference": "studio-fresh"}.items():
        page.emulate_media(reduced_motion=motion)
        generate.page.wait_for_function(
            "([song, name]) => getComputedStyle(song, '::after').animationName === name",
            arg=[generate.song().element_handle(), name],
        )
    places = page.evaluate("places")
    assert places == sorted(places) and 0 <= places[0] < 20 and places[-1] > 60
    # What plays is left alone.
    src = player(page)["src"]
    fake.script = fake.play
    generate.made(fake)
    assert (player(page)["src"], player(page)["paused"]) == (src, False)
    bar.get_by_role("button", name="Close the player").click()
    page.evaluate(f"{AUDIO}.loop = false")
    # After silence a new song plays from its start.
    generate.made(fake)
    expect(play(generate.take())).to_have_attribute("aria-label", "Pause take A")
    bar.get_by_role("button", name="Close the player").click()
    option(generate, "Play a new song when it is ready").uncheck()
    page.keyboard.press("Escape")


WORDS = ("The lamp goes round", "Good night, good night")


@pytest.mark.slow
def test_what_plays_is_a_sheet_with_its_words_and_parts_from_which_it_goes_on(
    page: Page, fake, tab, monkeypatch
):
    generate = tab(page, "generate")
    lines = [{**line, "text": text} for line, text in zip(LINES, WORDS, strict=True)]
    timed = {"mode": "align", "lines": lines, "lrc": LRC, "score": 0.8, "seconds": {}}
    waits = threading.Event()

    def align(request: Any) -> Any:
        waits.wait(100)
        yield Done((), timed)

    monkeypatch.setattr(fake, "align", align)
    generate.set("lyrics", "type", f"[Verse]\n{WORDS[0]}\n[Chorus]\n{WORDS[1]}")
    generate.set("takes", "pick", "2")
    generate.made(fake)
    play(generate.take(2)).click()
    opens = page.get_by_role("region", name="Player").get_by_role("button", name="Take B").first
    opens.click()
    sheet = page.get_by_role("dialog", name="Now playing")
    expect(sheet.get_by_role("heading")).to_have_text("Good night, good night")
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    expect(opens).to_be_focused()
    # Esc closes it, and cancels no song; the next one does.
    fake.script = fake.endless
    generate.go.click()
    generate.runs()
    opens.click()
    page.evaluate(COUNT_CANCELS)
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    assert page.evaluate("cancels") == 0
    page.keyboard.press("Escape")
    assert page.evaluate("cancels") == 1
    generate.idle()
    fake.script = fake.play
    opens.click()
    sheet.get_by_role("button", name="Time the words").click()
    expect(sheet.get_by_role("status")).to_have_text(tooltips.PLAYER["timing"])
    waits.set()
    words = sheet.locator(".words").get_by_role("button")
    expect(words).to_have_text([*WORDS])
    assert violations(page) == []
    expect_tappable(*sheet.get_by_role("button").all())
    words.nth(1).click()
    expect(words.nth(1)).to_have_attribute("aria-current", "true")
    assert player(page)["at"] >= LINES[1]["start"]
    # A part is heard again and again, in the other take as well, and the last one although the song ends with it.
    verse, chorus = (sheet.get_by_role("button", name=name) for name in ("Verse", "Chorus"))
    loop = sheet.get_by_role("button", name="Loop this part")
    chorus.click()
    loop.click()
    for _ in range(2):
        # It may have come to its end before it was to be repeated.
        page.evaluate(f"{AUDIO}.currentTime = 6.8; {AUDIO}.play()")
        page.wait_for_function(f"{AUDIO}.currentTime < 6 && !{AUDIO}.paused")
    verse.click()
    for _ in range(2):
        page.evaluate(f"{AUDIO}.currentTime = 3.8")
        page.wait_for_function(f"{AUDIO}.currentTime < 2")
    page.keyboard.press("1")
    expect(sheet.get_by_role("button", name="Take A")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("2")
    expect(sheet.get_by_role("button", name="Take B")).to_have_attribute("aria-pressed", "true")
    expect(loop).to_have_attribute("aria-pressed", "true")
    loop.click()
    # The focus stays at a switch although another take is drawn.
    for letter in "AB":
        sheet.get_by_role("button", name=f"Take {letter}").click()
        expect(sheet.get_by_role("button", name=f"Take {letter}")).to_be_focused()
    # Before the first part it is the first that is meant.
    verse.click()
    page.evaluate(f"{AUDIO}.pause(); {AUDIO}.currentTime = 0.2")
    loop.click()
    expect(verse).to_have_attribute("aria-pressed", "true")
    loop.click()
    sheet.get_by_role("button", name="Replace this part").click()
    edit = tab(page, "edit")
    expect(edit.text("start")).to_have_value("1")
    expect(edit.text("end")).to_have_value("4")
    source = Path(edit.made(fake).source).name
    assert source == f"song-seed-{fake.requests[0].takes - 1 + 100 * (fake.songs - 3)}.wav"
    # What goes on from a moment hangs under its take, too.
    opens.click()
    page.evaluate(f"{AUDIO}.pause(); {AUDIO}.currentTime = 5")
    sheet.get_by_role("button", name="Continue from here").click()
    extend = tab(page, "extend")
    expect(extend.field("source").locator("time").last).to_have_text("0:05")
    extend.set("after", "type", "2")
    extend.made(fake)
    names = ["Good night, good night", "1 to 4 s of B replaced", "B + 2 s"]
    expect(page.locator(".library .song h3")).to_have_text(names)


# --- again --------------------------------------------------------------------------------------------------------


# A line of 40 pixels above the panel.
GROW = """() => {
  const line = document.createElement("div");
  line.style.height = "40px";
  document.querySelector("#generate-panel").before(line);
}"""


def test_a_menu_opens_on_top_of_the_page_and_moves_nothing(generate, fake):
    page = generate.page
    make(generate, fake, 4)
    button = generate.take(4).locator(".menu summary")
    for block in ("end", "start"):
        # The button at the foot of the window, then at its head.
        button.evaluate(f"(button) => button.scrollIntoView({{ block: '{block}' }})")
        at = button.bounding_box()
        button.click()
        sheet = generate.take(4).locator(".sheet")
        expect(sheet).to_be_visible()
        expect(sheet).to_be_in_viewport(ratio=1)
        box = sheet.bounding_box()
        assert box["y"] + box["height"] <= at["y"] or box["y"] >= at["y"] + at["height"]
        assert button.bounding_box() == at
        assert page.evaluate(
            "([x, y]) => document.elementFromPoint(x, y).closest('.sheet') !== null", middle(box)
        )
        # The second click of a double click closes it.
        button.click()
        expect(sheet).to_be_hidden()
    sheet = generate.take(4).locator(".sheet")
    button.click()
    expect(sheet).to_be_visible()
    # What grows above it moves nothing in the window, though the browser scrolls to keep it there.
    scrolled = page.evaluate("scrollY")
    page.evaluate(GROW)
    page.wait_for_function(f"scrollY === {scrolled} + 40")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    expect(sheet).to_be_visible()
    # To the top: a column of few songs stays where it is while the page moves a little.
    page.mouse.wheel(0, -5000)
    expect(sheet).to_be_hidden()


def middle(box: dict[str, float]) -> list[float]:
    return [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]


def test_the_space_bar_and_media_keys_play_and_pause(generate, fake):
    page = generate.page
    make(generate, fake, 2)
    page.evaluate(MEDIA_KEYS)
    play(generate.take(1)).click()
    page.wait_for_function(f"!{AUDIO}.paused")
    name = generate.song().locator("h3").inner_text()
    assert page.evaluate("navigator.mediaSession.metadata.title") == name == "The lamp goes round"
    page.evaluate("document.activeElement.blur()")
    scrolled = page.evaluate("scrollY")
    page.keyboard.press("Space")
    page.wait_for_function(f"{AUDIO}.paused")
    page.keyboard.press("Space")
    page.wait_for_function(f"!{AUDIO}.paused && navigator.mediaSession.playbackState === 'playing'")
    assert page.evaluate("scrollY") == scrolled
    # Where the space bar means something else it does that.
    generate.text("prompt").press("End")
    page.keyboard.press("Space")
    expect(generate.text("prompt")).to_have_value("a song ")
    assert not player(page)["paused"]
    page.evaluate("keys.pause()")
    page.wait_for_function(f"{AUDIO}.paused")
    page.evaluate("keys.nexttrack()")
    expect(generate.plays("Take B")).to_have_attribute("aria-pressed", "true")
    page.evaluate("keys.seekto({ seekTime: 3 })")
    page.wait_for_function(f"{AUDIO}.currentTime >= 3")
    page.evaluate("keys.stop()")
    expect(page.get_by_role("region", name="Player")).to_be_hidden()
    assert page.evaluate(
        "[navigator.mediaSession.metadata, navigator.mediaSession.playbackState]"
    ) == [None, "none"]


@pytest.mark.slow
def test_the_menu_makes_takes_again_and_more_like_one_and_leaves_the_form(generate, fake):
    fake.script = partial(fake.song, plan=PLAN)
    generate.set("seed", "type", "41")
    first = make(generate, fake, 3)
    generate.set("prompt", "type", "something else by now")
    liked, new = 100 * fake.songs + 1, 100 * (fake.songs + 1)
    generate.way("More like this", 2).click()
    generate.has(new)
    expect(generate.take(2)).to_have_count(0)
    # It hangs under the song of its take, and says what it is to it.
    expect(generate.song()).to_have_class(re.compile("child"))
    expect(generate.song().locator("h3")).to_have_text("like B, 25 % varied")
    parent = generate.page.locator(".song:has(> .children)")
    expect(parent.locator("> .take")).to_have_count(3)
    assert (fake.requests[-1].seed, fake.requests[-1].options.plan_seed) == (liked, 5)
    expect(generate.part("message")).to_contain_text(tooltips.CHILD_MADE)
    generate.way("Retake").click()
    generate.has(new + 100)
    varied = first.options.model_copy(
        update={"variation": 0.25, "plan_seed": 5, "variation_seed": -1, "best_of": None}
    )
    again = {"seed": -1, "takes": 1, "options": varied}
    assert (first.seed, fake.requests[-1]) == (41, first.model_copy(update=again))
    expect(generate.text("prompt")).to_have_value("something else by now")
    expect(generate.part("message")).to_contain_text("a new seed")
    # Its settings can be had in the form.
    generate.way("Use these settings").click()
    expect(generate.text("prompt")).to_have_value(first.prompt)
    generate.part("undo").click()
    expect(generate.text("prompt")).to_have_value("something else by now")
    # A link brings them to a friend, whatever the browser has kept.
    page = generate.page
    page.evaluate("() => { studio.copy = (text) => (window.copied = text); }")
    generate.way("Copy a link to its recipe").click()
    page.wait_for_function("window.copied")
    link = page.evaluate("copied")
    assert "#recipe=generate." in link and first.prompt not in link
    generate.set("bpm", "type", "77")
    page.goto("about:blank")
    page.goto(link)
    expect(generate.text("prompt")).to_have_value(first.prompt)
    expect(generate.part("message")).to_contain_text(tooltips.FROM_LINK)
    expect(generate.text("bpm")).to_have_value("")
    assert "#" not in page.url
    generate.text("prompt").fill("something else by now")
    page.evaluate("location.hash = '#recipe=generate.broken'")
    expect(generate.part("message")).to_contain_text(tooltips.BAD_LINK)
    page.evaluate("(link) => { location.href = link; }", link)
    expect(generate.text("prompt")).to_have_value(first.prompt)
    generate.part("undo").click()
    expect(generate.text("prompt")).to_have_value("something else by now")
    # A draft is finished with its own seed.
    generate.set("quality", "pick", "Draft, 20 steps")
    draft = generate.made(fake)
    best = 100 * (fake.songs + 1)
    generate.way("Finish in best quality").click()
    generate.has(best)
    asked = {"quality": "best", "seed": best - 100, "takes": 1}
    assert fake.requests[-1].model_copy(update={"options": draft.options}) == draft.model_copy(
        update=asked
    )
    expect(generate.song().locator("h3")).to_have_text("A in best quality")
    generate.set("quality", "pick", "Standard, 50 steps")
    # It can be cancelled, and fail, and the takes stay.
    fake.script = fake.endless
    generate.way("Retake").click()
    generate.runs()
    expect(generate.way("Retake")).to_be_enabled()
    generate.cancel()
    assert fake.closed.wait(100)
    fake.script = fake.fail
    generate.way("Retake").click()
    expect(generate.part("message")).to_contain_text("There was <b>no memory</b> left.")
    expect(generate.take()).to_be_visible()


@pytest.mark.slow
def test_an_upload_is_used_again_until_it_is_gone(lasting: Page, fake, song, tab):
    cover = tab(lasting, "cover")
    cover.clear("source")
    cover.set("source", "file", str(song))
    cover.set("prompt", "type", "two brass bands")
    cover.made(fake)
    source = fake.requests[-1].source
    cover.clear("source")
    seed = 100 * (fake.songs + 1)
    cover.way("Retake").click()
    cover.has(seed)
    assert fake.requests[-1].source == source
    Path(source).unlink()
    # After a reload the browser has the settings and not the file.
    reload(lasting)
    cover = tab(lasting, "cover")
    cover.way("Retake").click()
    expect(cover.part("message")).to_contain_text("The file was not found")
    cover.way("Use these settings").click()
    cover.go.click()
    expect(cover.field("source")).to_contain_text("Source is missing")
    expect(cover.text("prompt")).to_have_value("two brass bands")
    assert len(fake.requests) == 2


@pytest.mark.slow
@pytest.mark.alters_page
def test_songs_stay_in_the_browser_for_every_tab_and_can_be_found_named_and_removed(
    page: Page, fake, tab, forgiven
):
    forgiven += ["status of 403", "status of 404"]
    generate = tab(page, "generate")
    for prompt in ("sea shanty", "brass band", "a <b>waltz</b>"):
        generate.set("takes", "pick", "2" if prompt == "sea shanty" else "1")
        generate.set("prompt", "type", prompt)
        generate.made(fake)
    seed = 100 * (fake.songs - 2)  # of the first
    find = page.get_by_role("searchbox", name="Search your songs")
    expect(find).to_be_hidden()
    generate.set("prompt", "type", "slow waltz")
    generate.made(fake)
    assert titles(page) == ["slow waltz", "a <b>waltz</b>", "brass band", "sea shanty"]
    find.fill("waltz")
    assert titles(page) == ["slow waltz", "a <b>waltz</b>"]
    find.fill("nothing like it")
    expect(page.get_by_text("No song matches.")).to_be_visible()
    find.fill("")
    page.get_by_role("button", name="Star brass band").click()
    page.get_by_role("button", name="Starred", exact=True).click()
    assert titles(page) == ["brass band"]
    page.get_by_role("button", name="All", exact=True).click()
    # All can be removed at once. What is removed can be had back for a while.
    page.evaluate(UNDO_WAITS)
    undo = page.locator(".library .removed").get_by_role("button", name="Undo", exact=True)
    generate.part("panel").locator(".tools .menu summary").click()
    page.get_by_role("button", name="Remove all songs").click()
    expect(page.locator(".library .song")).to_have_count(0)
    undo.click()
    assert titles(page) == ["slow waltz", "a <b>waltz</b>", "brass band", "sea shanty"]
    expect(undo).to_be_hidden()
    # A title goes along with what is downloaded later.
    page.get_by_role("button", name="sea shanty", exact=True).click()
    title = page.get_by_role("textbox", name="Title")
    title.fill("Heave <i>away</i>")
    # The Enter that chooses a character of Chinese or Japanese is none for the title.
    title.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(title).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Heave <i>away</i>", exact=True)).to_be_focused()
    # The same list is in every tab, and there on the next visit.
    page.add_init_script(UNDO_WAITS)
    reload(page)
    tab(page, "cover")
    named = ["slow waltz", "a <b>waltz</b>", "brass band", "Heave <i>away</i>"]
    expect(page.locator("#cover-takes-made .song h3")).to_have_text(named)
    expect(page.get_by_role("button", name="Star brass band")).to_have_attribute(
        "aria-pressed", "true"
    )
    shanty = page.locator(".song", has_text="Heave")
    shanty.get_by_role("button", name="Takes of Heave").click()
    with page.expect_download() as found:
        shanty.get_by_role("button", name="Download MP3, take B").click()
    assert found.value.suggested_filename == "Heave -i-away--i- B.mp3"
    tags = MP3(found.value.path()).tags
    assert tags["TIT2"].text == ["Heave <i>away</i> B"]
    assert tags.getall("APIC")[0].mime == "image/jpeg"
    assert audio_export.read_record(found.value.path())["takes"][0]["seed"] == seed + 1
    # A single one leaves, too.
    shanty.locator(".take").first.locator("summary").click()
    remove = shanty.get_by_role("button", name="Remove from this list, take A")
    remove.click()
    expect(shanty).to_have_count(0)
    # It is in sight however far the list is scrolled.
    expect(undo).to_be_focused()
    page.set_viewport_size({"width": 1280, "height": 300})
    page.locator(".library .song").last.scroll_into_view_if_needed()
    expect(undo).to_be_in_viewport(ratio=1)
    undo.click()
    expect(shanty).to_have_count(1)
    expect(shanty.locator(".name")).to_be_focused()
    page.set_viewport_size({"width": 1280, "height": 900})
    shanty.locator(".take").first.locator("summary").click()
    remove.click()
    expect(undo).to_be_visible()
    # It goes once nobody is at it any more.
    page.evaluate("undoIsOver()")
    expect(undo).to_be_focused()
    undo.blur()
    expect(undo).to_be_hidden()
    expect(shanty).to_have_count(0)
    # Starred takes are kept for longer, but not without an end.
    page.evaluate(STARRED, 250)
    page.get_by_role("button", name="Star slow waltz").click()
    page.wait_for_function(f"100 < {KEPT}.length && {KEPT}.length <= 200")
    assert page.evaluate(f"{KEPT}[0].title") == "slow waltz"


@pytest.mark.slow
def test_a_song_of_an_earlier_visit_has_every_action_in_every_tab(page: Page, fake, tab):
    generate = tab(page, "generate")
    fake.script = partial(fake.song, plan={**PLAN, "layout": "closed turn"})
    generate.set("takes", "pick", "2")
    generate.set("prompt", "type", "sea shanty")
    first = generate.made(fake)
    seed = 100 * fake.songs
    reload(page)
    # What is made of it anywhere hangs under it, and says what it is and what is new in it.
    generate.way("Use in Extend", 2).click()
    extend = tab(page, "extend")
    expect(extend.field("source").locator("time").last).to_have_text("0:07")
    extend.set("after", "type", "3")
    extend.made(fake)
    song = page.locator("#extend-takes-made .song")
    expect(song.locator("h3")).to_have_text(["sea shanty", "B + 3 s"])
    new = extend.take().locator(".wave i")
    box, wave = new.bounding_box(), extend.take().locator(".wave").bounding_box()
    assert box["x"] - wave["x"] == pytest.approx(wave["width"] * (SECONDS - 3) / SECONDS, abs=2)
    assert box["x"] + box["width"] == pytest.approx(wave["x"] + wave["width"], abs=2)
    # A run of the other tab's song can be started here.
    page.locator("#generate-take-2 summary").focus()
    song.get_by_role("button", name="More like B").click()
    expect(song.locator("h3")).to_have_text(["sea shanty", "B + 3 s", "like B, 25 % varied"])
    assert (fake.requests[-1].mode, fake.requests[-1].seed) == ("generate", seed + 1)
    # Its settings are those of its own tab, which they open.
    extend.part("prompt").locator("textarea").fill("something else")
    page.locator("#extend-takes-made .head .fold").first.click()
    page.locator("#extend-takes-made .head .fold").first.click()
    page.locator(".song .take").first.locator("summary").click()
    page.get_by_role("button", name="Use these settings, take A").click()
    expect(page.locator("#generate-go")).to_be_visible()
    expect(generate.part("message")).to_contain_text(tooltips.FILLED_IN)
    expect(generate.text("prompt")).to_have_value(first.prompt)


@pytest.mark.slow
def test_a_take_whose_file_is_gone_is_made_again(page: Page, fake, tab, forgiven):
    forgiven += ["status of 403", "status of 404"]
    generate = tab(page, "generate")
    seeds = {}
    # The plan of the second one was drawn by another version.
    for prompt, layout in {"brass band": planner.LAYOUT, "sea shanty": "closed turn"}.items():
        fake.script = partial(fake.song, plan={**PLAN, "layout": layout})
        generate.set("prompt", "type", prompt)
        generate.made(fake)
        seeds[prompt] = 100 * fake.songs
        name = f"song-seed-{seeds[prompt]}.wav"
        for file in (*copies_of(name), fake.folder / name):
            file.unlink()
    reload(page)
    song = page.locator(".library .song", has_text="sea shanty")
    song.get_by_role("button", name="Takes of sea shanty").click()
    song.get_by_role("button", name="Takes of sea shanty").click()
    expect(song).to_contain_text("This file has been deleted.")
    expect(song.get_by_role("button", name=re.compile("Download"))).to_have_count(0)
    # With its own settings, whatever the form holds.
    generate = tab(page, "generate")
    generate.set("prompt", "type", "something else")
    fake.script = fake.endless
    song.get_by_role("button", name="Make it again, take A").first.click()
    generate.runs()
    request = fake.requests[-1]
    assert (request.prompt, request.seed, request.takes) == ("sea shanty", seeds["sea shanty"], 1)
    expect(generate.part("plan-kept")).to_have_text(tooltips.OLD_PLAN)
    generate.cancel()
    fake.script = fake.play
    new = 100 * (fake.songs + 1)
    song = page.locator(".library .song", has_text="brass band")
    song.get_by_role("button", name="Takes of brass band").click()
    song.get_by_role("button", name="Make it again, take A").first.click()
    generate.has(new)
    request = fake.requests[-1]
    assert (request.prompt, request.seed) == ("brass band", seeds["brass band"])
    expect(generate.part("plan-kept")).to_have_text("")


@pytest.mark.slow
def test_calls_of_programs_cost_a_page_nothing_of_what_it_shows(generate, fake, tab, monkeypatch):
    make(generate, fake, 1)
    sessions = fake.sessions()
    monkeypatch.setattr(sessions, "capacity", 2)
    server = generate.page.url.rstrip("/")
    for _ in range(3):
        event = call(server, "lyrics", brief="a lighthouse").json()["event_id"]
        assert "Good night" in httpx.get(f"{server}/gradio_api/call/v2/lyrics/{event}").text
    name = f"song-seed-{100 * (fake.songs - 3)}.wav"
    generate.way("Use in Cover").click()
    expect(generate.page.locator("#cover-go")).to_be_visible()
    cover = tab(generate.page, "cover")
    expect(cover.field("source").locator("time").last).to_have_text("0:07")
    assert Path(cover.made(fake).source).name == name


@pytest.mark.slow
def test_a_take_outlives_its_copy_and_not_its_file(page: Page, fake, tab, forgiven):
    forgiven += ["status of 403", "status of 404"]
    generate = tab(page, "generate")
    song = song_without_copy(generate, fake)
    play(generate.take()).click()
    page.wait_for_function(f"{AUDIO}.currentTime > 0")
    assert generate.downloaded("WAV").read_bytes() == song.read_bytes()
    assert audio_export.read_record(generate.downloaded("FLAC"))["takes"][0]["name"] == song.name
    generate.way("Use in Cover").click()
    cover = tab(page, "cover")
    expect(cover.field("source").locator("time").last).to_have_text("0:07")
    # One that a visitor of the disk has deleted.
    generate = tab(page, "generate")
    generate.made(fake)
    name = f"song-seed-{100 * fake.songs}.wav"
    for file in (*copies_of(name), fake.folder / name):
        file.unlink()
    play(generate.take()).click()
    expect(generate.take()).to_contain_text("This file has been deleted.")
    expect(generate.way("Make it again")).to_be_visible()
    expect(generate.way("Use in Cover")).to_have_count(0)


def call(server: str, name: str, **given: Any) -> httpx.Response:
    address = f"{server}/gradio_api/call/v2/{name}"
    return httpx.post(address, json=given, timeout=300).raise_for_status()


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_take_is_downloaded_in_another_format(generate, fake):
    make(generate, fake, 1)
    seed = 100 * fake.songs
    path = generate.downloaded("FLAC")
    assert path.name == "The lamp goes round.flac"
    assert audio_export.read_record(path)["takes"][0]["seed"] == seed
    assert len(fake.requests) == 1
    generate.unfold("sound")
    generate.set("options.format", "pick", "MP3, 320 kbit/s")
    fake.script = partial(fake.song, kind="mp3")
    make(generate, fake, 1)
    generate.downloaded("WAV")
    expect(generate.take()).to_contain_text("Converted from MP3")
    generate.downloaded("MP3")
    expect(generate.take()).not_to_contain_text("Converted from")


SHARING = """() => {
  window.shared = [];
  navigator.canShare = ({ files }) => files.length === 1;
  navigator.share = async ({ title, files }) => {
    if (!window.patient) {
      window.patient = true;
      throw new DOMException("too late", "NotAllowedError");
    }
    window.shared.push([title, files[0].name, files[0].type, files[0].size]);
  };
  const media = window.matchMedia;
  window.matchMedia = (query) => (query.includes("coarse") ? { matches: true } : media(query));
}"""


@pytest.mark.slow
def test_a_phone_hands_the_song_itself_to_another_app(page: Page, fake, tab):
    page.evaluate(SHARING)
    generate = tab(page, "generate")
    generate.set("prompt", "type", "sea shanty")
    generate.made(fake)
    share = generate.song().get_by_role("button", name="Share", exact=True)
    share.click()
    # The phone asks for a click of its own if the file took long.
    generate.song().get_by_role("button", name="Share it now").click()
    page.wait_for_function("shared.length === 1")
    title, name, kind, size = page.evaluate("shared[0]")
    assert (title, name, kind) == ("sea shanty", "sea shanty.mp3", "audio/mpeg")
    assert size > 100_000


# --- scores -------------------------------------------------------------------------------------------------------

SCORES = ({"tempo": 40.0, "noise": 100.0}, {"tempo": 100.0, "noise": 90.0}, {"tempo": 60.0})


@pytest.mark.slow
def test_the_best_take_is_marked_and_comes_first_on_request(generate, fake):
    def scored(request: Any) -> Any:
        for event in fake.song(request):
            if isinstance(event, Done):
                for take, parts in zip(event.record["takes"], SCORES, strict=False):
                    take.update(score=parts["tempo"], score_parts=parts)
                    take.update(lines=LINES, alignment=0.61)
            yield event

    fake.script = scored
    make(generate, fake, 3)
    panel = generate.part("panel")
    expect(panel.locator(".best")).to_have_count(1)
    expect(generate.take(2)).to_contain_text(
        "Take B is the best of 3, with 100 of 100: it keeps to the tempo best."
    )
    expect(generate.take(1).get_by_role("img", name="Score 40 of 100")).to_have_text("40")
    cards = generate.song().locator(".take")
    # However many digits the score beside it has.
    assert len({wave.bounding_box()["width"] for wave in cards.locator(".wave").all()}) == 1

    def order() -> list[str]:
        return [card.get_attribute("id") for card in cards.all()]

    assert order() == [f"generate-take-{number}" for number in (1, 2, 3)]
    option(generate, "Best take first").check()
    assert order() == [f"generate-take-{number}" for number in (2, 3, 1)]
    # Lines that were timed on the way need no run.
    asked = len(fake.requests)
    generate.way("Timed lyrics", 2).click()
    expect(generate.take(2).locator("ol.timed button")).to_have_count(2)
    expect(generate.take(2)).to_contain_text("Alignment score 0.61 of 1")
    assert len(fake.requests) == asked
    option(generate, "Best take first").uncheck()
    assert order() == [f"generate-take-{number}" for number in (1, 2, 3)]
    generate.page.keyboard.press("Escape")


# --- timed lyrics -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_timed_lyrics_follow_the_song(generate, fake):
    make(generate, fake, 1)
    song = fake.requests[-1]
    page, take, seed = generate.page, generate.take(), 100 * fake.songs
    play(take).click()
    generate.way("Timed lyrics").click()
    lines = take.locator("ol.timed button")
    expect(lines).to_have_text(
        [re.compile("0:01.*The <b>lamp</b> goes round"), re.compile("0:04.*Good night")]
    )
    asked = fake.requests[-1]
    assert (asked.mode, asked.lyrics, asked.seed) == ("align", song.lyrics, seed)
    assert Path(asked.source).name == f"song-seed-{seed}.wav"
    expect(take).to_contain_text("Alignment score 0.83 of 1")
    expect(generate.progress).to_contain_text("2 lines timed.")
    lines.nth(1).click()
    expect(lines.nth(1)).to_have_attribute("aria-current", "true")
    # The player highlights the line too, in whichever tab.
    sung = page.get_by_role("region", name="Player").locator(".sung b")
    expect(sung).to_have_text("Good night, good night")
    expect(sung).to_have_class("lit")
    lines.nth(0).click()
    expect(lines.nth(0)).to_have_attribute("aria-current", "true")
    expect(lines.nth(1)).not_to_have_attribute("aria-current", "true")
    expect(sung).to_have_text("The <b>lamp</b> goes round")
    with page.expect_download() as found:
        take.get_by_role("link", name="Timed lyrics as LRC").click()
    assert found.value.suggested_filename == f"song-seed-{seed}.lrc"
    assert Path(found.value.path()).read_text() == LRC
    # They stay with another file format; the next song has none yet, and an instrumental nothing to time.
    generate.downloaded("FLAC")
    expect(lines).to_have_count(2)
    generate.set("instrumental", "tick", True)
    generate.made(fake)
    expect(take.locator("ol.timed")).to_have_count(0)
    expect(generate.way("Timed lyrics")).to_have_count(0)
    # What goes wrong stands at the take.
    generate.set("instrumental", "tick", False)
    generate.made(fake)
    fake.script = lambda request: iter(
        [Failed(Problem("internal", "It <i>broke</i>.", hint="Try again."))]
    )
    generate.way("Timed lyrics").click()
    expect(take.get_by_role("alert")).to_contain_text("It <i>broke</i>. Try again.")
    fake.facts = {"timed_lyrics": TimedLyrics(available=False, reason="There are no heads.")}
    fake.script = fake.play
    generate.made(fake)
    expect(generate.way("Timed lyrics")).to_have_count(0)
