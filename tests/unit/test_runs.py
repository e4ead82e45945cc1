"""Runs on scripted generators: states, events, the queue's limits, leaving, cutting off, and what stays in memory."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import os
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext

import api_runs
import beat
import limits
import runs
import runs_journal
from events import Done, Draft, Failed, Problem, Progress, StudioError
from params import parse_request
from runs import Cancelled, Runs, Waiting
from tests.waiting import result_of, until

BEAT = 0.01


def request(prompt="calm piano", **given):
    return parse_request("generate", {"prompt": prompt, **given})


def song(*names):
    """Return the end of a run whose takes have these names."""
    return Done(
        tuple(f"/cache/{name}" for name in names), {"takes": [{"name": name} for name in names]}
    )


class Studio:
    """Plays a script: each run says its steps when it is let go on, and ends with a song of its prompt's name."""

    def __init__(self):
        self.started: list[str] = []
        self.closed: list[str] = []
        self.open: dict[str, threading.Semaphore] = {}

    def gate(self, prompt: str) -> threading.Semaphore:
        return self.open.setdefault(prompt, threading.Semaphore(0))

    def stream(self, asked):
        self.started.append(asked.prompt)
        try:
            step = 0
            while not self.gate(asked.prompt).acquire(timeout=BEAT):
                yield Progress("steps", 1, 3)
            for step in (2, 3):
                yield Progress("steps", step, 3)
            yield song(f"{asked.prompt}.wav")
        except GeneratorExit:
            self.closed.append(asked.prompt)
            raise

    def finish(self, prompt: str) -> None:
        self.gate(prompt).release()


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def studio():
    return Studio()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(tmp_path, studio, clock):
    """Return a function that makes the runs of a studio, which all end with the test."""
    with contextlib.ExitStack() as ends:

        def make(stream=studio.stream, weigh=lambda asked: 10.0, **settings):
            found = Runs(
                stream, weigh, runs_journal.Journal(lambda: tmp_path), clock=clock, **settings
            )
            ends.callback(found.stop, 10)
            return found

        yield make


@pytest.fixture
def all_runs(made):
    return made()


def ended(run):
    until(lambda: run.ended)
    return run


def states(*found):
    return [run.state for run in found]


# --- a run --------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_without_a_listener_and_its_events_can_be_read_from_any_point(
    all_runs, studio
):
    run = all_runs.start(request("song"), "me")
    assert len(run.id) == 32 and run.id != all_runs.start(request("other"), "me").id
    until(lambda: any(isinstance(event, Progress) for _, event in run.since(0)))
    studio.finish("song")
    ended(run)
    facts = all_runs.facts(run.id)
    assert (facts["state"], facts["title"], facts["takes"]) == (
        "finished",
        "song",
        [f"/runs/{run.id}/takes/1"],
    )
    assert facts["record"] == {"takes": [{"name": "song.wav"}]} and facts["problem"] is None
    numbers = [number for number, _ in run.since(0)]
    assert numbers == sorted(set(numbers)) and numbers[-1] == run.last == facts["last"]
    steps = [event.step for _, event in run.since(0) if isinstance(event, Progress)]
    assert steps == [1, 2, 3]  # the same step was said many times
    *_, (before, _), (last, end) = run.since(0)
    assert run.since(before) == [(last, end)] and isinstance(end, Done)
    assert run.since(last) == []


def test_a_listener_hears_every_number_once_until_the_end(all_runs, studio):
    run = all_runs.start(request("song"), "me")

    async def listen(after):
        heard = []
        async for news in all_runs.follow(run, after, patience=BEAT):
            if news is not beat.QUIET:
                heard.append(news)
                studio.finish("song")
        return heard

    heard = result_of(listen(0))
    assert [number for number, _ in heard] == sorted({number for number, _ in heard})
    assert isinstance(heard[-1][1], Done)
    assert result_of(listen(heard[-2][0])) == heard[-1:]
    assert run.listeners == []
    assert all_runs.wait(run, run.last - 1, seconds=0) == heard[-1:]


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_that_comes_with_news_is_not_lost(all_runs, studio, turns):
    """However many turns of the loop lie between both: lost, Gradio's cancel waits for the end of the song."""
    run = all_runs.start(request(), "me")

    async def listen():
        async for _news in all_runs.follow(run, patience=60):
            pass

    async def cancelled():
        task = asyncio.ensure_future(listen())
        while not run.listeners:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)  # until it waits for news
        run.listeners[0]()
        for _turn in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        return task.cancelled()

    assert result_of(cancelled())
    studio.finish("calm piano")


def test_a_draft_replaces_the_one_before_it_and_events_are_bounded(made):
    def write(asked):
        for number in range(500):
            yield Draft("la " * number, number)
            yield Progress("writing", number)
        yield Done((), {"text": "la"})

    all_runs = made(write)
    run = ended(all_runs.start(request(), "me"))
    assert len(run.events) <= runs.MOST_EVENTS_OF_AN_ENDED
    assert len([event for _, event in run.events if isinstance(event, Draft)]) <= 1
    assert run.last == 1_000 + 1
    assert all_runs.facts(run.id)["takes"] == []


def test_a_failure_is_told_and_so_is_one_that_nobody_foresaw(made):
    def fail(asked):
        yield Progress("steps", 1, 2)
        if asked.prompt == "raise":
            raise ValueError("a secret")
        yield Failed(Problem("disk", "The disk is full.", hint="Free some."))

    all_runs = made(fail)
    run = ended(all_runs.start(request(), "me"))
    assert all_runs.facts(run.id)["problem"] == {
        "code": "disk",
        "message": "The disk is full.",
        "hint": "Free some.",
    }
    assert run.state == "failed"
    other = ended(all_runs.start(request("raise"), "me"))
    assert other.problem.code == "internal" and "secret" not in other.problem.text()


# --- the queue ----------------------------------------------------------------------------------------------------


def test_owners_take_turns_and_everybody_knows_place_and_start(made, studio, clock):
    all_runs = made(weigh=lambda asked: asked.duration)
    names = [("a", "A1"), ("a", "A2"), ("a", "A3"), ("b", "B1"), ("c", "C1")]
    found = {name: all_runs.start(request(name, duration=10), owner) for owner, name in names}
    until(lambda: studio.started == ["A1"])
    assert [run.title for run in all_runs.waiting()] == ["A2", "B1", "C1", "A3"]
    # How long a song takes here is not known before the first one is done.
    assert all_runs.facts(found["B1"].id)["starts_in"] is None
    clock.now += 20
    studio.finish("A1")
    ended(found["A1"])
    until(lambda: studio.started == ["A1", "A2"])
    told = {name: all_runs.facts(found[name].id) for name in ("B1", "C1", "A3")}
    assert {name: facts["place"] for name, facts in told.items()} == {"B1": 1, "C1": 2, "A3": 3}
    # Ten seconds of estimate took twenty: each one before it takes as long.
    assert {name: facts["starts_in"] for name, facts in told.items()} == {
        "B1": 20,
        "C1": 40,
        "A3": 60,
    }
    assert all_runs.facts(found["A2"].id)["place"] is None
    for name in ("A2", "B1", "C1", "A3"):
        studio.finish(name)
        ended(found[name])
    assert studio.started == ["A1", "A2", "B1", "C1", "A3"]


def test_the_33rd_waiting_run_is_refused_with_a_sentence_and_an_owner_has_a_limit(all_runs, studio):
    all_runs.start(request("now"), "first")
    page = [all_runs.start(request("mine"), "page", most=3) for _ in range(3)]
    with pytest.raises(StudioError, match="3 runs waiting already") as caught:
        all_runs.start(request("mine"), "page", most=3)
    assert caught.value.problem.code == "too_many"
    for number in range(limits.MOST_WAITING - 3):
        all_runs.start(request(str(number)), f"visitor {number}")
    assert all_runs.is_full() and all_runs.counts() == {"waiting": 32, "running": 1, "ended": 0}
    with pytest.raises(StudioError, match="32 runs are waiting already") as caught:
        all_runs.start(request("too late"), "the 33rd")
    assert caught.value.problem.code == "queue_full"
    assert all_runs.cancel(page[0].id)
    assert all_runs.start(request("in time"), "the 33rd").state == "waiting"


def test_the_work_of_an_owner_is_bounded_in_minutes_but_for_the_first_run(
    made, studio, monkeypatch
):
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    all_runs = made(weigh=lambda asked: asked.duration * 60)  # minutes in seconds of song
    all_runs.start(request("now"), "other")
    all_runs.start(request("long", duration=120), "me")
    with pytest.raises(StudioError, match="about 130 minutes; the limit is 60") as caught:
        all_runs.start(request("more", duration=10), "me")
    assert caught.value.problem.code == "too_much"
    for _ in range(6):
        all_runs.start(request("short", duration=10), "careful")
    with pytest.raises(StudioError, match="about 70 minutes"):
        all_runs.start(request("short", duration=10), "careful")


class Visitor(gr.Request):
    """A request from an address, as its server sees it, with the headers of a proxy."""

    def __init__(self, address, **headers):
        self.client = SimpleNamespace(host=address)
        self.headers = headers


def start_from(all_runs, visitor, asked, owner, most=limits.MOST_WAITING_OF_A_PAGE):
    """Start a run as an event of this visitor's page does."""

    def start():
        LocalContext.request.set(visitor)
        return all_runs.start(asked, owner, most)

    return contextvars.copy_context().run(start)


def test_one_address_leaves_room_for_others_whatever_names_it_uses(all_runs, studio):
    all_runs.start(request("now"), "first")
    home, elsewhere = Visitor("10.0.0.7"), Visitor("10.0.0.8")
    found = [
        start_from(all_runs, home, request("song"), f"page {number // 3}")
        for number in range(limits.MOST_WAITING_OF_AN_ADDRESS)
    ]
    with pytest.raises(StudioError, match="24 runs from your network are waiting") as caught:
        start_from(all_runs, home, request("one more"), "another page")
    assert caught.value.problem.code == "too_many"
    assert "own" not in caught.value.problem.hint
    for number in range(4):
        start_from(all_runs, elsewhere, request("song"), f"visitor {number}")
    all_runs.start(request("song"), "of no address")
    assert all_runs.cancel(found[0].id)
    start_from(all_runs, home, request("one more"), "another page")


def test_the_work_of_an_address_is_bounded_in_minutes_too(made, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    all_runs = made(weigh=lambda asked: asked.duration * 60)  # minutes in seconds of song
    all_runs.start(request("now"), "other")
    # What a visitor writes into the header stands before what the Space's proxy adds.
    home = [
        Visitor("10.1.1.1", **{"x-forwarded-for": f"9.9.9.{number}, 203.0.113.5"})
        for number in range(4)
    ]
    other = Visitor("10.1.1.1", **{"x-forwarded-for": "203.0.113.6"})
    # A single run is never too much.
    start_from(all_runs, home[0], request("long", duration=200), "page 0")
    with pytest.raises(StudioError, match=r"from your network .* 210 minutes; .* is 120") as caught:
        start_from(all_runs, home[1], request("short", duration=10), "page 1")
    assert caught.value.problem.code == "too_much"
    start_from(all_runs, other, request("short", duration=60), "page 2")
    start_from(all_runs, other, request("short", duration=60), "page 3")
    with pytest.raises(StudioError, match="about 130 minutes; the limit is 120"):
        start_from(all_runs, other, request("short", duration=10), "page 4")


def test_as_many_run_at_once_as_there_are_workers(all_runs, studio):
    found = [all_runs.start(request(str(number)), "me") for number in range(5)]
    until(lambda: studio.started == ["0"])
    all_runs.allow(3)
    until(lambda: sorted(studio.started) == ["0", "1", "2"])
    all_runs.allow(0)
    studio.finish("0")
    ended(found[0])
    assert all_runs.counts() == {"waiting": 2, "running": 2, "ended": 1}


def test_a_run_that_still_tidies_up_counts_as_ended_and_only_once(made):
    tidied = threading.Event()

    def stream(asked):
        yield Failed(Problem("internal", "Nothing was made."))
        tidied.wait(10)

    all_runs = made(stream)
    ended(all_runs.start(request(), "me"))
    assert all_runs.counts() == {"waiting": 0, "running": 0, "ended": 1}
    tidied.set()


# --- cancelling and leaving ---------------------------------------------------------------------------------------


def test_cancel_takes_a_waiting_run_out_and_closes_a_running_one_within_a_step(all_runs, studio):
    running = all_runs.start(request("running"), "me")
    waiting = all_runs.start(request("waiting"), "me")
    third = all_runs.start(request("third"), "me")
    until(lambda: studio.started == ["running"])
    assert all_runs.cancel(waiting.id) and waiting.state == "cancelled"
    assert all_runs.facts(third.id)["place"] == 1
    assert all_runs.cancel(running.id)
    ended(running)
    assert studio.closed == ["running"] and isinstance(running.outcome, Cancelled)
    assert all_runs.facts(running.id)["problem"]["code"] == "cancelled"
    assert not all_runs.cancel(running.id) and not all_runs.cancel("f" * 32)
    until(lambda: studio.started == ["running", "third"])


def test_a_song_that_is_done_while_it_is_cancelled_is_kept(made):
    started, go = threading.Event(), threading.Event()

    def make(asked):
        yield Progress("finishing")
        started.set()
        go.wait(60)
        yield song("song.wav")

    all_runs = made(make)
    run = all_runs.start(request(), "me")
    started.wait(60)
    all_runs.cancel(run.id)
    go.set()
    assert ended(run).state == "finished"


def lending(asked):
    """Wait for a card until told otherwise, then work until told otherwise."""
    yield Progress("lending")
    while asked.prompt not in lending.cards:
        yield Progress("lending")
    while asked.prompt not in lending.done:
        yield Progress("steps", 1, 2)
    yield song("song.wav")


@pytest.fixture
def cards():
    lending.cards, lending.done = set(), set()
    return lending


def test_on_zerogpu_a_visitor_who_leaves_before_the_card_costs_nothing_and_afterwards_gets_the_song(
    made, cards, clock
):
    all_runs = made(lending, at_once=3, drops_absent=True)
    gone, back, paid = (all_runs.start(request(name), name) for name in ("gone", "back", "paid"))
    cards.cards.add("paid")
    until(lambda: paid.has_card)
    clock.now += runs.GONE_SECONDS - 1
    all_runs.note_visitor(back.id)
    clock.now += 2
    ended(gone)
    assert gone.state == "cancelled" and gone.problem == runs.LEFT
    # The page would say that its visitor cancelled it, or that the studio was restarted.
    assert runs.LEFT.code not in (runs.CANCELLED.code, runs.STOPPING.code)
    cards.cards.add("back")
    until(lambda: back.has_card)
    clock.now += 10_000
    cards.done |= {"back", "paid"}
    assert states(ended(back), ended(paid)) == ["finished", "finished"]


def test_on_zerogpu_a_run_that_waits_for_its_turn_is_dropped_too_and_a_hidden_page_may_be_silent(
    made, cards, clock
):
    all_runs = made(lending, at_once=1, drops_absent=True)
    first = all_runs.start(request("first"), "first")
    until(lambda: first.state == "running")
    cards.cards.add("first")
    until(lambda: first.has_card)
    gone, hidden = (all_runs.start(request(name), name) for name in ("gone", "hidden"))
    all_runs.note_visitor(hidden.id, hidden=True)
    clock.now += runs.GONE_SECONDS + 1
    assert not all_runs.is_full()
    assert states(gone, hidden) == ["cancelled", "waiting"]
    clock.now += runs.HIDDEN_SECONDS
    cards.done.add("first")
    assert states(ended(first), ended(hidden)) == ["finished", "cancelled"]


def test_somebody_who_listens_is_there(made, cards, clock):
    all_runs = made(lending, drops_absent=True)
    run = all_runs.start(request("song"), "me")
    with all_runs.listening(run, lambda: None):
        clock.now += 10 * runs.GONE_SECONDS
        cards.cards.add("song")
        until(lambda: run.has_card)
    cards.done.add("song")
    assert ended(run).state == "finished"


def test_who_hears_of_one_run_is_there_for_the_others_that_it_names(made, cards, clock):
    all_runs = made(lending, drops_absent=True)
    first, second, gone = (all_runs.start(request(name), name) for name in "abc")

    async def hear():
        async with contextlib.aclosing(
            api_runs._events(all_runs, first, 0, also=[second.id])
        ) as stream:
            for _ in range(3):
                await anext(stream)
                clock.now += runs.HIDDEN_SECONDS - 1
                assert not all_runs.is_full()
            return states(second, gone)

    assert result_of(hear()) == ["waiting", "cancelled"]


def test_elsewhere_a_run_waits_for_nobody(all_runs, studio, clock):
    run, other = all_runs.start(request("song"), "me"), all_runs.start(request("other"), "you")
    clock.now += 10 * runs.GONE_SECONDS
    for name in ("song", "other"):
        studio.finish(name)
    assert states(ended(run), ended(other)) == ["finished", "finished"]


def test_a_run_has_the_visitors_request_as_long_as_it_needs_one(made):
    seen, go = [], threading.Event()

    def look(asked):
        seen.append((LocalContext.request.get(None), LocalContext.event_id.get(None)))
        while not go.wait(BEAT):
            yield Progress("steps", 1, 2)
        yield song("song.wav")

    class Headers(gr.Request):
        """A request that can be told from others, and watched."""

    all_runs = made(look)
    first, second, later = Headers(), Headers(), Headers()
    runs_of_two = []
    for each in (first, second):
        LocalContext.request.set(each)
        LocalContext.event_id.set("an event of Gradio's queue")
        runs_of_two.append(all_runs.start(request(), "me"))
    LocalContext.request.set(None)
    all_runs.renew(runs_of_two[1].id, later)
    watched = weakref.ref(later)
    go.set()
    for run in runs_of_two:
        ended(run)
    assert [each[1] for each in seen] == [None, None]
    assert seen[0][0] is first and seen[1][0] is later
    seen.clear()
    del later
    until(lambda: gc.collect() is not None and watched() is None)


# --- ends of the process, and memory ------------------------------------------------------------------------------


def test_stop_ends_everything_and_the_next_process_tells_what_was_cut_off(
    made, studio, tmp_path, monkeypatch
):
    all_runs = made()
    finished, running, waiting, cancelled = (
        all_runs.start(request(name), "me")
        for name in ("finished", "running", "waiting", "cancelled")
    )
    (tmp_path / "finished.wav").touch()
    studio.finish("finished")
    ended(finished)
    all_runs.cancel(cancelled.id)
    until(lambda: studio.started == ["finished", "running"])
    all_runs.stop(10)
    assert studio.closed == ["running"] and all_runs.counts()["running"] == 0
    with pytest.raises(StudioError, match="being stopped"):
        all_runs.start(request(), "me")
    monkeypatch.setattr(runs_journal, "PROCESS", "the next one")
    after = made()
    assert [after.facts(run.id)["state"] for run in (finished, running, waiting, cancelled)] == [
        *("finished", "cut_off", "cut_off", "cancelled")
    ]
    assert (
        after.facts(waiting.id)["problem"]["message"]
        == "This run was cut off when the studio restarted."
    )
    assert after.take(finished.id, 1) == tmp_path / "finished.wav"


@pytest.mark.parametrize(
    "strange", ["", "f" * 32, "../" * 5 + "etc/passwd", "F" * 32, "a" * 32 + "/b", "\0" * 32]
)
def test_an_id_that_is_none_finds_nothing(all_runs, strange):
    assert all_runs.find(strange) is None and not all_runs.cancel(strange)
    for ask in (all_runs.facts, lambda each: all_runs.take(each, 1)):
        with pytest.raises(StudioError, match="no such run"):
            ask(strange)


def test_a_take_is_served_by_number_and_only_while_its_file_is_there(all_runs, studio, tmp_path):
    run = all_runs.start(request("song"), "me")
    studio.finish("song")
    ended(run)
    with pytest.raises(StudioError, match="not in the output folder any more"):
        all_runs.take(run.id, 1)
    (tmp_path / "song.wav").write_bytes(b"RIFF")
    assert all_runs.take(run.id, 1) == tmp_path / "song.wav"
    for number in (0, 2, -1):
        with pytest.raises(StudioError, match="1 takes"):
            all_runs.take(run.id, number)


def test_the_journal_holds_no_word_of_the_visitor_and_goes_with_the_songs(tmp_path):
    journal = runs_journal.Journal(lambda: tmp_path)
    (tmp_path / "kept.wav").touch()
    entries = {"a": ("kept.wav",), "b": ("gone.wav",), "c": ()}
    for name, songs in entries.items():
        journal.write(
            name * 32, runs_journal.Entry("generate", runs_journal.PROCESS, "finished", songs)
        )
    journal.write("d" * 32, runs_journal.Entry("generate", "another", "waiting"))
    text = (tmp_path / runs_journal.FOLDER / f"{'a' * 32}.json").read_text()
    assert json.loads(text).keys() == {"mode", "process", "state", "songs", "problem"}
    journal.prune()
    assert [journal.find(name * 32) is not None for name in "abcd"] == [True, False, True, True]
    assert journal.find("d" * 32).is_cut_off()
    for damaged in ("{", "[]", '{"mode": 1}', "null"):
        (tmp_path / runs_journal.FOLDER / f"{'e' * 32}.json").write_text(damaged)
        assert journal.find("e" * 32) is None
    # One that goes on, and the newest of those that left no song.
    journal.write("e" * 32, runs_journal.Entry("generate", runs_journal.PROCESS, "waiting"))
    now = time.time()
    for age in range(runs_journal.MOST_WITHOUT_SONGS + 20):
        name = f"{age:032x}"
        journal.write(name, runs_journal.Entry("lyrics", runs_journal.PROCESS, "failed"))
        os.utime(tmp_path / runs_journal.FOLDER / f"{name}.json", (now - age - 10,) * 2)
    journal.prune()
    left = {path.stem for path in (tmp_path / runs_journal.FOLDER).iterdir()}
    songless = {*("c" * 32, "d" * 32), *(f"{age:032x}" for age in range(498))}
    assert left == {"a" * 32, "e" * 32, *songless}
    # A name in a file that somebody changed leads nowhere else.
    journal.write(
        "f" * 32, runs_journal.Entry("generate", "another", "finished", ("../../etc/passwd",))
    )
    assert journal.song(journal.find("f" * 32).songs[0]) is None


def test_a_studio_without_room_for_its_journal_works(tmp_path, studio, clock):
    blocked = tmp_path / "a file"
    blocked.touch()
    all_runs = Runs(
        studio.stream, lambda asked: 1.0, runs_journal.Journal(lambda: blocked), clock=clock
    )
    run = all_runs.start(request("song"), "me")
    studio.finish("song")
    assert ended(run).state == "finished" and all_runs.facts(run.id)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("total", [1_000, pytest.param(5_000, marks=pytest.mark.matrix)])
def test_thousands_of_runs_leave_nothing_behind_but_a_bounded_number(made, tmp_path, capsys, total):
    def quick(asked):
        yield Progress("steps", 1, 1)
        yield Done((), {"mode": "lyrics", "text": "la"})

    all_runs = made(quick)
    first = ended(all_runs.start(request(), "0"))
    watched = weakref.ref(first)
    known = first.id
    del first
    table = []
    for fifth in range(1, 6):
        for _ in range(total // 5 // 50):
            batch = [all_runs.start(request(), str(owner)) for owner in range(25)]
            ended(batch[-1])
            batch += [all_runs.start(request(), str(owner)) for owner in range(25)]
            ended(batch[-1])
        until(lambda: not [each for each in threading.enumerate() if each.name == "run"])
        gc.collect()
        files = len([*(tmp_path / runs_journal.FOLDER).iterdir()])
        table.append((total * fifth // 5, sys.getallocatedblocks(), len(gc.get_objects()), files))
    assert all_runs.counts() == {"waiting": 0, "running": 0, "ended": runs.MOST_ENDED}
    assert watched() is None
    with pytest.raises(StudioError, match="no such run"):
        all_runs.facts(known)
    with capsys.disabled():
        for line in (("runs", "blocks", "objects", "journal"), *table):
            print("\n" + "".join(f"{each:>10}" for each in line), end="")
    # By the second fifth as many ended runs are remembered as ever are. One object kept of each would be twice as many.
    done, blocks, objects, _ = table[1]
    last, last_blocks, last_objects, files = table[-1]
    assert max(last_blocks - blocks, last_objects - objects) < (last - done) / 2
    assert files <= runs_journal.MOST_WITHOUT_SONGS + runs.PRUNE_RUNS


def test_an_ended_run_is_forgotten_with_age(all_runs, studio, clock):
    run = all_runs.start(request("song"), "me")
    studio.finish("song")
    ended(run)
    clock.now += runs.ENDED_SECONDS
    other = all_runs.start(request("other"), "me")
    studio.finish("other")
    ended(other)
    assert all_runs.find(run.id) is None and all_runs.find(other.id) is other


def test_the_runs_of_one_caller_do_not_make_those_of_others_forgotten(made, monkeypatch):
    monkeypatch.setattr(runs, "MOST_ENDED", 6)

    def write(asked):
        yield Done((), {"mode": "lyrics", "text": "la"})

    all_runs = made(write)
    of_a_page = [ended(all_runs.start(request(), "a page")) for _ in range(2)]
    of_a_program = [ended(all_runs.start(request(), "a program")) for _ in range(20)]
    house = Visitor("10.0.0.7")
    of_a_house = [
        ended(start_from(all_runs, house, request(), str(number))) for number in range(20)
    ]
    assert all_runs.ended() == [*of_a_page, *of_a_program[-2:], *of_a_house[-2:]]


def test_places_are_told_to_those_who_wait(all_runs, studio):
    first, second, third = (all_runs.start(request(name), name) for name in "abc")
    assert third.since(0)[-1][1] == Waiting(2, None)
    studio.finish("a")
    ended(first)
    until(lambda: third.since(0)[-1][1].place == 1)
    assert second.state == "running"
    assert Path(all_runs._journal.folder).is_dir()
