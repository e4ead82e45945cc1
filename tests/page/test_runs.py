"""Runs that outlive the page: found again after a reload, a lost connection, sleep and a restart; several at once."""

from __future__ import annotations

import re
import signal
import threading
import time

import httpx
import pytest
from playwright.sync_api import Page, expect

import limits
import tooltips
from events import Progress
from params import parse_request
from runs import runs_of
from tests.engine.test_runs import detached, finished, state, streamed
from tests.page import held
from tests.page.steps import making, reload, songs, takes
from tests.page.test_song import SONG_MS, fill_in, long_song
from tests.program import serving
from tests.waiting import until

TITLE = "ACE Music Studio"


class Gate:
    """Holds the songs of a fake backend at step 3 until `go`, or one of `asked` until its prompt is let through."""

    def __init__(self, fake):
        self.fake = fake
        self.go = threading.Event()
        fake.script = self.play

    def play(self, request):
        while not self.go.wait(0.2):
            yield Progress("steps", 3, 50, 1.0, 19.0)
        yield from self.fake.play(request)


@pytest.fixture
def gate(fake):
    return Gate(fake)


def asked(page: Page) -> list[str]:
    """Return the list to which every question about runs is added."""
    found: list[str] = []
    page.on("request", lambda request: "/runs?" in request.url and found.append(request.url))
    return found


# --- coming back --------------------------------------------------------------------------------------------------


def test_a_reload_in_mid_song_finds_the_song_again_and_it_comes_once(
    lasting: Page, fake, gate, tab
):
    page, generate = lasting, tab(lasting, "generate")
    before = songs(page).count()
    generate.start("calm piano")
    expect(making(page).locator(".stage")).to_contain_text("step 3 of 50")
    expect(page).to_have_title(f"3/50 · {TITLE}")
    reload(page)
    expect(making(page).locator(".stage")).to_contain_text("step 3 of 50")
    expect(making(page).locator(".name")).to_have_text("calm piano")
    generate.runs()
    expect(generate.part("cancel")).to_be_enabled()
    gate.go.set()
    expect(page.get_by_text(tooltips.FINISHED_MEANWHILE)).to_be_visible()
    expect(songs(page)).to_have_count(before + 1)
    expect(making(page)).to_have_count(0)
    expect(generate.part("cancel")).to_be_disabled()
    reload(page)
    expect(songs(page)).to_have_count(before + 1)
    assert len(fake.requests) == 1 and not fake.closed.is_set()


@pytest.mark.slow
def test_a_song_whose_page_is_closed_goes_on_and_two_new_tabs_show_it(
    page: Page, fake, gate, fake_address, tab
):
    tab(page, "generate").start("calm piano")
    expect(making(page)).to_have_count(1)
    first, second = page.context.new_page(), page.context.new_page()
    page.close()
    for each in (first, second):
        each.goto(fake_address[0])
        expect(making(each).locator(".stage")).to_contain_text("step 3 of 50")
    gate.go.set()
    for each in (second, first):
        each.bring_to_front()
        expect(takes(each)).to_have_count(1)
    # Each hears of the take twice: from the studio and from the other one.
    for each in (first, second):
        expect(takes(each)).to_be_visible()
        each.route("**/runs/*/takes/*", lambda route: route.abort())
        takes(each).get_by_role("button", name="Download MP3").click()
        expect(takes(each).get_by_role("alert")).to_have_text(tooltips.TAKES["not_prepared"])
        each.close()
    assert len(fake.requests) == 1 and not fake.closed.is_set()


def test_a_tab_of_the_same_browser_shows_what_another_one_starts(
    lasting: Page, fake, gate, fake_address, tab
):
    page, other = lasting, lasting.context.new_page()
    other.goto(fake_address[0])
    expect(other.locator("#studio-status")).to_contain_text("Model:")
    generate = tab(page, "generate")
    generate.start("calm piano")
    other.bring_to_front()
    expect(making(other).locator(".name")).to_have_text("calm piano")
    making(other).get_by_role("button", name="Cancel: calm piano").click()
    expect(making(other)).to_have_count(0)
    assert fake.closed.wait(100)
    page.bring_to_front()
    expect(making(page)).to_have_count(0)
    expect(generate.progress).to_contain_text(tooltips.CANCELLED)
    other.close()


@pytest.mark.slow
def test_the_page_asks_once_a_second_at_most_and_not_at_all_while_it_is_hidden(
    lasting: Page, fake, gate, tab
):
    page, generate = lasting, tab(lasting, "generate")
    made = songs(page).count()
    questions = asked(page)
    generate.start()
    until(lambda: len(questions) >= 4 or page.wait_for_timeout(100))
    began = time.monotonic()
    before = len(questions)
    until(lambda: len(questions) >= before + 4 or page.wait_for_timeout(100))
    assert time.monotonic() - began > 3 * 0.9
    page.evaluate(HIDE)
    until(lambda: any("hidden" in url for url in questions) or page.wait_for_timeout(100))
    while_hidden = len(questions)
    gate.go.set()
    # The studio tells by itself.
    expect(page).to_have_title("▶ Ready")
    assert len(questions) == while_hidden and songs(page).count() == made
    page.evaluate(SHOW)
    expect(songs(page)).to_have_count(made + 1)
    expect(page).to_have_title(TITLE)


def test_a_hidden_page_keeps_one_connection_however_many_songs_it_waits_for(
    lasting: Page, fake, gate, tab
):
    page, generate = lasting, tab(lasting, "generate")
    before = songs(page).count()
    for name in ("first", "second", "third"):
        generate.start(name)
        expect(making(page).last.locator(".name")).to_have_text(name)
    generate.runs()
    heard: list[str] = []
    page.on("request", lambda request: "/events" in request.url and heard.append(request.url))
    questions = asked(page)
    page.evaluate(HIDE)
    until(
        lambda: (heard and any("hidden" in url for url in questions)) or page.wait_for_timeout(50)
    )
    assert len(heard) == 1 and heard[0].count("&also=") == 2
    gate.go.set()
    # The end of each is heard in its turn.
    until(lambda: len(heard) == 3 or page.wait_for_timeout(50))
    expect(page).to_have_title("▶ Ready")
    page.evaluate(SHOW)
    expect(making(page)).to_have_count(0)
    expect(songs(page)).to_have_count(before + 3)


HIDE = """() => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
SHOW = """() => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => false });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_notification_comes_only_if_it_was_asked_for(page: Page, fake, gate, tab):
    page.context.grant_permissions(["notifications"])
    page.evaluate("""() => {
      window.notified = [];
      window.Notification = class {
        static permission = "granted";
        static requestPermission = async () => "granted";
        constructor(title, { body }) { window.notified.push([title, body]); }
      };
    }""")
    generate = tab(page, "generate")
    for wanted, expected in ((False, []), (True, [["▶ Ready", "calm piano"]])):
        gate.go.clear()
        generate.start("calm piano")
        box = page.locator("#generate-takes-made .notify input")
        box.set_checked(wanted)
        generate.runs()
        page.evaluate(HIDE)
        gate.go.set()
        expect(page).to_have_title("▶ Ready")
        page.evaluate(SHOW)
        expect(making(page)).to_have_count(0)
        assert page.evaluate("notified") == expected


@pytest.mark.slow
def test_words_and_ideas_outlive_the_page_too(lasting: Page, fake, gate, tab):
    page, lyrics = lasting, tab(lasting, "lyrics")
    lyrics.start("a lighthouse")
    expect(lyrics.progress).to_contain_text("step 3 of 50")
    generate = tab(page, "generate")
    generate.text("prompt").fill("an idea")
    generate.part("inspire").click()
    expect(generate.part("assist-progress")).to_contain_text("Next in the queue")
    reload(page)
    expect(page.locator("#generate-assist-progress")).to_contain_text("Next in the queue")
    gate.go.set()
    expect(generate.text("prompt")).to_have_value("sea shanty, male choir")
    lyrics = tab(page, "lyrics")
    expect(lyrics.text("text")).to_have_value(re.compile("Good night"))
    assert [request.mode for request in fake.requests] == ["lyrics", "inspire"]


# --- several ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_songs_wait_each_with_place_title_and_cancel_and_a_fourth_is_a_sentence(
    lasting: Page, fake, gate, tab
):
    page, generate = lasting, tab(lasting, "generate")
    before = songs(page).count()
    generate.text("lyrics").fill("")  # words would name all of them
    for name in ("first", "second", "third", "fourth"):
        generate.start(name)
        expect(making(page).last.locator(".name")).to_have_text(name)
    places = ["step 3 of 50", "Next in the queue", "Place 2 in the queue", "Place 3 in the queue"]
    for card, place in zip(making(page).all(), places, strict=True):
        expect(card.locator(".stage")).to_contain_text(place)
    generate.start("one too many")
    expect(generate.part("message")).to_contain_text("3 runs waiting already")
    expect(making(page)).to_have_count(4)
    making(page).nth(1).get_by_role("button", name="Cancel: second").click()
    expect(making(page)).to_have_count(3)
    expect(making(page).nth(1).locator(".stage")).to_contain_text("Next in the queue")
    gate.go.set()
    expect(making(page)).to_have_count(0)
    # The latest one is open.
    expect(takes(page)).to_have_count(1)
    expect(songs(page)).to_have_count(before + 3)
    assert [request.prompt for request in fake.requests] == ["first", "third", "fourth"]


def test_a_song_that_is_done_elsewhere_is_a_dot_on_its_tab(lasting: Page, fake, gate, tab):
    page, generate = lasting, tab(lasting, "generate")
    seed = 100 * (fake.songs + 1)
    generate.start()
    generate.runs()
    tab(page, "lyrics")
    dotted = page.locator('#studio-tabs [role="tab"][data-news]:visible')
    expect(dotted).to_have_count(0)
    gate.go.set()
    expect(dotted).to_have_text("Generate")
    dotted.click()
    expect(dotted).to_have_count(0)
    generate.has(seed)


def test_the_queue_of_others_is_told_in_a_sentence(lasting: Page, fake, gate, tab):
    page, runs = lasting, runs_of(fake)
    asked = parse_request("generate", {"prompt": "another"})
    for number in range(limits.MOST_WAITING_OF_AN_ADDRESS + 1):
        runs.start(asked, f"visitor {number}").address = "127.0.0.1"
    generate = tab(page, "generate")
    generate.start()
    expect(generate.part("message")).to_contain_text("24 runs from your network are waiting")
    while not runs.is_full():
        runs.start(asked, "elsewhere")
    generate.start()
    expect(generate.part("message")).to_contain_text("32 runs are waiting already")
    expect(making(page)).to_have_count(0)


def test_a_place_in_the_queue_is_seen_once_and_heard_once(lasting: Page, fake, gate, tab):
    page, lyrics = lasting, tab(lasting, "lyrics")
    lyrics.start("a lighthouse")  # from now on it is known how long lyrics take
    lyrics.runs()
    gate.go.set()
    expect(lyrics.progress).to_contain_text("Written in")
    gate.go.clear()
    generate = tab(page, "generate")
    generate.start()
    generate.runs()  # so that the lyrics come second, however slowly the page asks
    tab(page, "lyrics").start("another lighthouse")
    seen = lyrics.progress.locator(".shown")
    expect(seen).to_contain_text("Next in the queue, starts in")
    assert seen.inner_text().count("starts in") == 1
    heard = lyrics.progress.aria_snapshot()
    assert heard.count("Next in the queue, starts in") == heard.count("starts in") == 1
    gate.go.set()
    expect(lyrics.progress).to_contain_text("Written in")


# --- a studio that is killed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_after_a_studio_was_killed_a_finished_song_is_there_and_one_that_was_cut_off_is_made_again(
    tmp_path, tiny, visit, tab, forgiven
):
    """Two pages and a program had songs in a studio that is killed."""
    forgiven += ["ERR_", "Failed to fetch", "network error", "Could not", "404"]
    environ = {
        "ACE_STUDIO_MODEL": str(tiny),
        "ACE_STUDIO_PLANNER": "off",
        "ACE_STUDIO_LYRICS": "off",
    }
    hold = held.hold_file(tmp_path / "songs")
    hold.touch()
    with serving(tmp_path, program=held.PROGRAM, **environ) as (process, address):
        program = detached(address.rstrip("/"))
        with httpx.Client(base_url=address, timeout=120) as web:
            (take,) = finished(web, program)["takes"]
            song = web.get(take).content
        (file,) = (tmp_path / "songs").glob("*.wav")
        absent = visit(address)
        steps = str(held.HELD_STEPS)
        generate = fill_in(tab(absent, "generate"), prompt="finished song", steps=steps)
        generate.set("takes", "pick", "2")
        generate.go.click()
        expect(making(absent)).to_have_count(1)
        absent.close()
        hold.unlink()
        until(lambda: len([*(tmp_path / "songs").glob("finished-song-*.wav")]) == 2)
        hold.touch()
        page = visit(address)
        long_song(page, tab)
        generate = fill_in(tab(page, "generate"), prompt="waiting song", steps="2")
        generate.go.click()
        expect(making(page)).to_have_count(2)
        cut_off = detached(address.rstrip("/"))
        # Left while it is away: an open page would learn of the end by itself, at a time of its own.
        page.goto("about:blank")
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        port = address.rstrip("/").rpartition(":")[2]
    with serving(tmp_path, GRADIO_SERVER_PORT=port, **environ) as (process, address):
        with httpx.Client(base_url=address, timeout=120) as web:
            facts = state(web, cut_off)
            assert facts["state"] == "cut_off" and "restarted. Make it again." in facts["sentence"]
            assert streamed(web, cut_off)[-1][1] == "failed"
            assert state(web, program)["state"] == "finished"
            assert web.get(take).content == song == file.read_bytes()
            file.unlink()
            assert web.get(take).status_code == 404
        page.goto(address)
        expect(page.locator("#studio-status")).to_contain_text("Model:")
        expect(page.locator("#generate-message")).to_contain_text(tooltips.CUT_OFF)
        again = page.locator(".cut-off").get_by_role("button", name=tooltips.MAKE_AGAIN)
        expect(again.last).to_be_visible()
        page.locator(".cut-off", has_text="waiting song").get_by_role("button").click()
        expect(takes(page)).to_have_count(1, timeout=SONG_MS)
        expect(songs(page).first).to_contain_text("waiting song")
        back = absent.context.new_page()
        back.goto(address)
        expect(takes(back)).to_have_count(2)
        expect(songs(back).first.locator("h3")).to_have_text("finished song")
        takes(back).first.locator(".play").click()
        expect(takes(back).first.locator(".play")).to_have_attribute("data-state", "pause")
        expect(making(back)).to_have_count(0)
        back.close()
        process.terminate()
        assert process.wait(300) == 0
