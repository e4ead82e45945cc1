"""Runs belong to the server: a request becomes a run, which continues when nobody is listening.

`Runs.start` gives a run its unguessable id at once, and only the id leads to it: whoever has it may
read the run's events, cancel it, and fetch its takes. The page, named endpoints, MCP and other
programs' APIs share one queue. The events come from the generator `Backend.stream`, which only the
run's own thread reads and closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import secrets
import textwrap
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.context import LocalContext

import limits
import lyrics_tags
import runs_journal
import served
import takes
from backend import SONGS_AT_ONCE, Backend, seconds_of
from beat import QUIET, Quiet
from events import (
    Done,
    Draft,
    DraftOffer,
    Event,
    Failed,
    Problem,
    Progress,
    SongDraft,
    StudioError,
)
from gpu import ON_ZEROGPU, problem_of
from jobs import UPLOADS
from params import INSTRUMENTAL, Request, SongWords
from record import take_names
from runs_queue import FairQueue, starts_in

log = logging.getLogger("studio")

State = Literal["waiting", "running", "finished", "failed", "cancelled", "cut_off"]
MOST_EVENTS = 100  # that a run remembers; repeated progress counts once
MOST_EVENTS_OF_AN_ENDED = 20
MOST_ENDED = 200  # ended runs that are remembered with their records
ENDED_SECONDS = 24 * 3600.0
# On ZeroGPU, how long a run that has no card yet waits for a visitor who is gone, and for one whose
# page is only hidden.
GONE_SECONDS = 60.0
HIDDEN_SECONDS = 600.0
# When the journal is pruned again: after so many seconds, or so many runs.
PRUNE_SECONDS = 3600.0
PRUNE_RUNS = 200
PACE_MEMORY = 0.3  # the weight of the latest run in the pace

NO_RUN = Problem("no_run", "There is no such run, or it ended too long ago.", hint="Check its id.")
NO_TAKE = Problem(
    "no_take", "This take is not in the output folder any more.", hint="Make the song again."
)
NO_DRAFT = Problem(
    "no_draft",
    "This song cannot be heard yet.",
    hint="It can be heard from half of its steps on, in a studio whose own machine makes it.",
)
CANCELLED = Problem("cancelled", "The run was cancelled.")
CUT_OFF = Problem(
    "cut_off", "This run was cut off when the studio restarted.", hint="Make it again."
)
LEFT = Problem(
    "left",
    "The visitor left before a GPU was free, so nothing was made.",
    hint="Make it again.",
)
STOPPING = Problem(
    "stopping", "The studio is being stopped.", hint="Try again once it is running again."
)
FULL = Problem(
    "queue_full",
    f"{limits.MOST_WAITING} runs are waiting already, and the queue has no more room.",
    hint="Try again in a few minutes.",
)


class Crowd(NamedTuple):
    """How a refusal speaks of the waiting runs that are too many: their number, themselves as a subject, and a hint."""

    number: str
    subject: str
    hint: str


YOURS = Crowd(
    "You have {} runs waiting already",
    "your waiting runs",
    "Wait until one of them has started, or cancel one.",
)
OF_YOUR_NETWORK = Crowd(
    "{} runs from your network are waiting already",
    "the waiting runs from your network",
    "Wait until one of them has started.",
)


@dataclass(frozen=True)
class Waiting:
    """The run is at `place` in the queue, 1 for the next; it starts in about so many seconds, None if unknown."""

    place: int
    starts_in: float | None


@dataclass(frozen=True)
class Cancelled:
    problem: Problem = CANCELLED


RunEvent = Waiting | Progress | Draft | Done | Failed | Cancelled
ENDS = (Done, Failed, Cancelled)
_STATES_AT_THE_END: dict[type[RunEvent], State] = {
    Done: "finished",
    Failed: "failed",
    Cancelled: "cancelled",
}


class Run:
    """One request and what becomes of it. Only `Runs` changes it, under its lock."""

    def __init__(self, request: Request, owner: str, weight: float, now: float, tag: Any = None):
        self.id = secrets.token_hex(16)
        self.request = request
        self.owner = owner
        self.address = ""  # that it was started from, "" if unknown
        self.weight = weight
        self.tag = tag  # the caller's own
        self.state: State = "waiting"
        self.title = title_of(request)
        self.events: deque[tuple[int, RunEvent]] = deque(maxlen=MOST_EVENTS)
        self.last = 0  # the number of the latest event
        self.note = ""  # the latest note to the visitor; an event has it only once
        self.silent_until = now + GONE_SECONDS  # until then the visitor counts as present
        self.listeners: list[Callable[[], None]] = []
        self.started_at = 0.0
        self.ended_at = 0.0
        self.has_card = False  # ZeroGPU has lent a card, which is paid for
        self.cancelling: Problem | None = None
        self.draft_ask = (
            ""  # the file that asks to hear the song half-way, "" if that is not offered
        )
        self.asked_draft = False
        self.song_draft: SongDraft | None = None
        # Holds the visitor's request, by whose headers ZeroGPU lends a card; None once the run has
        # ended.
        self.context: contextvars.Context | None = None

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "running")

    @property
    def seconds(self) -> float:
        """Return how long it has been running, or ran."""
        if self.started_at:
            return max(self.ended_at - self.started_at, 0.0)
        return 0.0

    @property
    def outcome(self) -> Done | Failed | Cancelled | None:
        latest = self.events[-1][1] if self.events else None
        return latest if isinstance(latest, ENDS) else None

    @property
    def problem(self) -> Problem | None:
        return getattr(self.outcome, "problem", None)

    def add(self, event: RunEvent) -> None:
        """Append `event`, which replaces an earlier one that it makes redundant."""
        if isinstance(event, Draft):  # each holds the whole text so far
            others = [each for each in self.events if not isinstance(each[1], Draft)]
            self.events = deque(others, MOST_EVENTS)
        elif self.events and _repeats(self.events[-1][1], event):
            self.events.pop()
        self.note = getattr(event, "note", "") or self.note
        self.last += 1
        self.events.append((self.last, event))

    def since(self, number: int) -> list[tuple[int, RunEvent]]:
        return [each for each in self.events if each[0] > number]


class SongDraftFacts(TypedDict):
    """Whether a song can be heard while it is being made."""

    state: Literal["offered", "asked", "ready", "failed"]
    step: int  # that it was heard at, 0 before
    url: str  # where it is asked for, and then served
    problem: dict[str, str] | None


class RunFacts(TypedDict):
    """What there is to know about a run, as programs get it (docs/api.md)."""

    run: str
    state: State
    mode: str
    title: str
    last: int  # the number of the latest event
    place: int | None  # in the queue, 1 for the next
    starts_in: float | None  # seconds
    progress: dict[str, Any] | None  # an `events.Progress`
    draft: str | None
    tokens: int  # of the draft
    note: str
    song_draft: SongDraftFacts | None  # None if the song cannot be heard half-way
    problem: dict[str, str] | None
    takes: list[str]  # the addresses of its takes
    record: Any


def _repeats(latest: RunEvent, event: RunEvent) -> bool:
    if isinstance(latest, Progress) and isinstance(event, Progress):
        return (latest.stage, latest.step, latest.note) == (event.stage, event.step, event.note)
    return isinstance(latest, Waiting) and isinstance(event, Waiting)


def title_of(request: Request) -> str:
    """Return a few words that tell a run from others: those that its song will be called by, if they are known."""
    if isinstance(request, SongWords) and song_title(request):
        return song_title(request)
    for name in ("prompt", "brief", "idea", "lyrics"):
        words = getattr(request, name, "")
        if words:
            return _shortened(words)
    return request.mode.capitalize()


def song_title(request: SongWords) -> str:
    """Return what a song is called: as its words are if it is sung, or what its prompt says; "" without either."""
    sung = request.sung_lyrics()
    words = "" if sung == INSTRUMENTAL else lyrics_tags.title(sung)
    return _shortened(words or request.prompt)


def _shortened(words: str) -> str:
    return textwrap.shorten(words, 60, placeholder=" ...")


def files_of(request: Request) -> list[str]:
    """Return the paths that a request names; a LoRA's may also be the name of a repository."""
    named = [getattr(request, name, None) for name in UPLOADS]
    options = getattr(request, "options", None)
    named += [lora.source for lora in getattr(options, "loras", ())]
    return [str(path) for path in named if path and os.path.isabs(path)]


class Runs:
    """All runs of this studio.

    `stream` yields the events of a request, `weigh` estimates its seconds on one fixed machine, and
    `clock` counts seconds. `at_once` runs work at the same time. With `drops_absent`, a run whose
    visitor has left is cancelled unless it has a card.
    """

    def __init__(
        self,
        stream: Callable[[Request], Generator[Event]],
        weigh: Callable[[Request], float],
        journal: runs_journal.Journal,
        *,
        at_once: int = 1,
        drops_absent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = stream
        self._weigh = weigh
        self._journal = journal
        self._clock = clock
        self._at_once = at_once
        self._drops_absent = drops_absent
        self._lock = threading.RLock()
        self._ended_one = threading.Condition(self._lock)
        self._queue = FairQueue()
        self._running: list[Run] = []
        self._known: dict[str, Run] = {}  # waiting and running
        self._ended: OrderedDict[str, Run] = OrderedDict()  # the oldest first
        self._pace: dict[str, float] = {}  # by mode: real seconds for a second of `weigh`
        self._pruned_at = clock()
        self._ended_since_pruned = 0  # runs
        self._stopping = False

    # --- for callers ------------------------------------------------------------------------------

    def start(self, request: Request, owner: str, most: int | None = None, tag: Any = None) -> Run:
        """Queue `request` for `owner`; raises StudioError if there is no room.

        The owner may have `most` runs waiting, by default as many as a program. The run keeps `tag`
        for its caller.
        """
        weight = self._weigh(request)
        for path in files_of(request):
            served.touch(path)
        if most is None:
            most = limits.MOST_WAITING_OF_AN_ADDRESS
        address = address_of(LocalContext.request.get(None))
        with self._lock:
            if self._stopping:
                raise StudioError.from_problem(STOPPING)
            self._drop_absent()
            self._check_room(request, weight, owner, most, address)
            run = Run(request, owner, weight, self._clock(), tag)
            run.address = address
            run.context = contextvars.copy_context()
            # Otherwise `spaces` would look for the event of Gradio's queue, which ends long before
            # the run.
            run.context.run(LocalContext.event_id.set, None)
            self._known[run.id] = run
            self._queue.add(run)
            self._journal.write(run.id, _entry(run))
            self._start_waiting()
        return run

    def fail(self, mode: str, problem: Problem) -> str:
        """Note a run that failed before it began, for whoever asks about it later; return its id."""
        run_id = secrets.token_hex(16)
        entry = runs_journal.Entry(mode, runs_journal.PROCESS, "failed", problem=problem.facts())
        self._journal.write(run_id, entry)
        return run_id

    def find(self, run_id: str) -> Run | None:
        """Return a run that is waiting, running, or has ended lately."""
        with self._lock:
            return self._known.get(run_id) or self._ended.get(run_id)

    def facts(self, run_id: str) -> RunFacts:
        """Return the facts of a run of this process or an earlier one; raises StudioError if there is none."""
        with self._lock:
            run = self.find(run_id)
            if run:
                return _facts(run, self._place_of(run))
        entry = self._journal.find(run_id)
        if entry is None:
            raise StudioError.from_problem(NO_RUN)
        return _former_facts(run_id, entry, self._journal)

    def take(self, run_id: str, number: int) -> Path:
        """Return the path of take `number` of a run; raises StudioError if there is none."""
        entry = self._journal.find(run_id)
        if entry is None:
            raise StudioError.from_problem(NO_RUN)
        if not 1 <= number <= len(entry.songs):
            raise StudioError(
                "no_take", f"This run has {len(entry.songs)} takes, so there is no take {number}."
            )
        path = self._journal.song(entry.songs[number - 1]) or self._copy_of(run_id, number)
        if path is None:
            raise StudioError.from_problem(NO_TAKE)
        return path

    def kept(self, run_id: str) -> dict[int, Path]:
        """Return the takes of a run that are still in the output folder, by their numbers."""
        entry = self._journal.find(run_id)
        names = entry.songs if entry else ()
        kept = {}
        for number, name in enumerate(names, 1):
            path = self._journal.song(name)
            if path:
                kept[number] = path
        return kept

    def _copy_of(self, run_id: str, number: int) -> Path | None:
        """Return Gradio's copy of a take that has left the output folder early."""
        run = self.find(run_id)
        copies: tuple[str, ...] = ()
        if run and isinstance(run.outcome, Done):
            copies = run.outcome.files
        if number > len(copies) or not Path(copies[number - 1]).is_file():
            return None
        return Path(copies[number - 1])

    def cancel(self, run_id: str, problem: Problem = CANCELLED) -> bool:
        """Cancel a run within a step; return whether there was anything to cancel."""
        with self._lock:
            run = self._known.get(run_id)
            if run is None:
                return False
            if self._queue.remove(run):
                self._end(run, Cancelled(problem))
                self._tell_places()
            elif run.cancelling is None:
                run.cancelling = problem
            return True

    def ask_draft(self, run_id: str) -> None:
        """Ask to hear a song half-way; raises StudioError if that is not offered."""
        with self._lock:
            run = self._known.get(run_id)
            if run is None or _song_draft_of(run) is None:
                raise StudioError.from_problem(NO_DRAFT)
            if run.asked_draft:
                return
            try:
                Path(run.draft_ask).touch()
            except OSError:  # the job has just ended
                raise StudioError.from_problem(NO_DRAFT) from None
            run.asked_draft = True

    def draft(self, run_id: str) -> Path:
        """Return the file in which a song is heard half-way; raises StudioError if there is none."""
        run = self.find(run_id)
        if run is None or run.song_draft is None or not Path(run.song_draft.file).is_file():
            raise StudioError.from_problem(NO_DRAFT)
        return Path(run.song_draft.file)

    def note_visitor(self, run_id: str, hidden: bool = False) -> None:
        """Note that the visitor is there; a page that is hidden asks for nothing, so it may be silent for longer."""
        patience = HIDDEN_SECONDS if hidden else GONE_SECONDS
        with self._lock:
            run = self._known.get(run_id)
            if run:
                run.silent_until = self._clock() + patience

    def renew(self, run_id: str, request: gr.Request) -> None:
        """Use the headers of a later request of the same visitor, while the run still waits: a token may expire."""
        with self._lock:
            run = self._known.get(run_id)
            if run and run.state == "waiting" and run.context:
                run.context.run(LocalContext.request.set, request)

    def allow(self, at_once: int) -> None:
        """Let so many runs work at the same time, at least one."""
        with self._lock:
            self._at_once = max(at_once, 1)
            self._start_waiting()

    def is_full(self) -> bool:
        with self._lock:
            self._drop_absent()
            return len(self._queue) >= limits.MOST_WAITING

    def counts(self) -> dict[str, int]:
        """Count the runs by state; one that has ended but still tidies up has ended."""
        with self._lock:
            return {
                "waiting": len(self._queue),
                "running": sum(not run.ended for run in self._running),
                "ended": len(self._ended),
            }

    def ended(self) -> list[Run]:
        """Return the runs that have ended lately, the oldest first."""
        with self._lock:
            return list(self._ended.values())

    def active(self) -> list[Run]:
        """Return the waiting and the running runs."""
        with self._lock:
            return list(self._known.values())

    def files(self) -> set[str]:
        """Return the uploads that the waiting and running runs need."""
        return {path for run in self.active() for path in files_of(run.request)}

    def waiting(self) -> list[Run]:
        with self._lock:
            return self._queue.order()

    def stop(self, seconds: float) -> None:
        """Cancel all runs, refuse new ones, and wait up to `seconds` until none is running.

        The journal keeps the runs as they are, so that the next process tells their visitors.
        """
        with self._lock:
            self._stopping = True
            for run in self._queue.order():
                self._queue.remove(run)
                self._end(run, Cancelled(STOPPING))
            for run in self._running:
                run.cancelling = STOPPING
            self._ended_one.wait_for(lambda: not self._running, seconds)

    # --- listening --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, run: Run, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` at every event of `run`, from another thread; a listening visitor counts as present."""
        with self._lock:
            run.listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                run.listeners.remove(listener)
                self.note_visitor(run.id)

    async def follow(
        self, run: Run, after: int = 0, patience: float = 1.0
    ) -> AsyncGenerator[tuple[int, RunEvent] | Quiet]:
        """Yield the numbered events of `run` after `after` until it ends.

        After `patience` seconds without one, yield `QUIET`.
        """
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(news.set)

        with self.listening(run, tell):
            while True:
                news.clear()
                with self._lock:
                    found = run.since(after)
                    ended = run.ended
                for number, event in found:
                    after = number
                    yield number, event
                if ended:
                    return
                # Not `asyncio.wait_for`: before Python 3.12 a cancellation that comes with the news
                # gets lost in it, and Gradio's cancel waits for the end of the song.
                try:
                    async with asyncio.timeout(patience):
                        await news.wait()
                except TimeoutError:
                    yield QUIET

    def wait(self, run: Run, after: int, seconds: float) -> list[tuple[int, RunEvent]]:
        """Return the events after the one with the number `after`; waits up to `seconds` for the first."""
        news = threading.Event()
        with self.listening(run, news.set):
            if not run.since(after) and not run.ended:
                news.wait(seconds)
            with self._lock:
                return run.since(after)

    # --- the queue --------------------------------------------------------------------------------

    def _check_room(
        self, request: Request, weight: float, owner: str, most: int, address: str
    ) -> None:
        """Raise StudioError if there is no room for a request of this owner, who calls from this address.

        A page invents its owner's name, so one visitor could have many names. Many visitors may share
        an address.
        """
        goes_at_once = len(self._running) < self._at_once and not len(self._queue)
        if goes_at_once:
            return
        if len(self._queue) >= limits.MOST_WAITING:
            raise StudioError.from_problem(FULL)
        more = self._seconds(request, weight) / 60
        bound = most_minutes()
        self._check_share(self._queue.waiting_of(owner), most, more, bound, YOURS)
        if address:
            from_address = [run for run in self._queue.order() if run.address == address]
            self._check_share(
                from_address,
                limits.MOST_WAITING_OF_AN_ADDRESS,
                more,
                bound * limits.OWNERS_OF_AN_ADDRESS,
                OF_YOUR_NETWORK,
            )

    def _check_share(
        self, waiting: list[Run], most: int, more: float, bound: int, crowd: Crowd
    ) -> None:
        """Raise StudioError if one more run of `more` minutes is too much beside those that are `waiting`.

        There may be `most` of them, and together they may take `bound` minutes.
        """
        if len(waiting) >= most:
            message = f"{crowd.number.format(most)}, which is the limit."
            raise StudioError("too_many", message, hint=crowd.hint)
        minutes = more + sum(self._seconds(run.request, run.weight) for run in waiting) / 60
        if waiting and minutes > bound:
            message = (
                f"With this, {crowd.subject} would take about {minutes:.0f} minutes; "
                f"the limit is {bound}."
            )
            raise StudioError("too_much", message, hint=crowd.hint)

    def _seconds(self, request: Request, weight: float) -> float:
        """Estimate the real seconds of a request from those that earlier ones took."""
        paces = self._pace.values()
        usual = 1.0
        if paces:
            usual = sum(paces) / len(paces)
        return weight * self._pace.get(request.mode, usual)

    def _drop_absent(self) -> None:
        if self._drops_absent:
            for run in self._queue.order():
                if self._is_absent(run):
                    self.cancel(run.id, LEFT)

    def _is_absent(self, run: Run) -> bool:
        return not run.listeners and self._clock() > run.silent_until

    def _start_waiting(self) -> None:
        self._drop_absent()
        while len(self._running) < self._at_once:
            run = self._queue.take()
            if run is None:
                break
            run.state = "running"
            run.started_at = self._clock()
            self._running.append(run)
            thread = threading.Thread(
                target=run.context.run, args=(self._drive, run), name="run", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads
                self._running.remove(run)
                self._end(run, Failed(problem_of(error)))
        self._tell_places()

    def _tell_places(self) -> None:
        for run, waiting in self._places():
            self._add(run, waiting)

    def _place_of(self, run: Run) -> Waiting | None:
        """Return the present place of `run`; its latest event may be a while ago."""
        if run.state != "waiting":
            return None
        for queued, waiting in self._places():
            if queued is run:
                return waiting
        return None

    def _places(self) -> list[tuple[Run, Waiting]]:
        order = self._queue.order()
        if not self._pace:  # nothing has been measured yet
            return [(run, Waiting(place, None)) for place, run in enumerate(order, 1)]
        left = [self._seconds_left(run) for run in self._running]
        needed = [self._seconds(run.request, run.weight) for run in order]
        starts = starts_in(left, needed, self._at_once)
        places = [Waiting(place, round(start, 1)) for place, start in enumerate(starts, 1)]
        return list(zip(order, places, strict=True))

    def _seconds_left(self, run: Run) -> float:
        """Estimate the seconds that a running run still takes, at least those that it reports itself."""
        estimate = self._seconds(run.request, run.weight) - (self._clock() - run.started_at)
        latest = run.events[-1][1] if run.events else None
        reported = getattr(latest, "left", None)
        return max(estimate, reported or 0.0, 0.0)

    # --- a run ------------------------------------------------------------------------------------

    def _drive(self, run: Run) -> None:
        """Read the one generator of a run until its end, in the run's own thread.

        The run has ended with its result; the next one starts once the generator has tidied up.
        """
        try:
            with contextlib.closing(self._stream(run.request)) as events:
                for event in events:
                    self._note_event(run, event)
                    if isinstance(run.outcome, Cancelled):
                        break
        except Exception as error:
            self._finish(run, Failed(problem_of(error)))
        self._finish(run, Cancelled(run.cancelling or CANCELLED))
        with self._lock:
            self._running.remove(run)
            self._ended_one.notify_all()
            if not self._stopping:
                self._start_waiting()
            is_due = self._is_prune_due()
        if is_due:
            self._journal.prune()  # reads every file, so nobody waits for it

    def _finish(self, run: Run, end: Done | Failed | Cancelled) -> None:
        """End `run` unless it has ended already."""
        with self._lock:
            if not run.ended:
                self._end(run, end)

    def _note_event(self, run: Run, event: Event) -> None:
        """Note an event of the generator; it may be the end of the run."""
        with self._lock:
            if run.ended:
                return
            if isinstance(event, Done):
                self._end(run, event)
            elif run.cancelling:
                self._end(run, Cancelled(run.cancelling))
            elif isinstance(event, Failed):
                self._end(run, event)
            elif isinstance(event, DraftOffer):
                run.draft_ask = event.ask
            elif isinstance(event, SongDraft):
                run.song_draft = event
            else:
                self._note_card(run, event)
                self._add(run, event)
                if self._drops_absent and not run.has_card and self._is_absent(run):
                    self._end(run, Cancelled(LEFT))

    def _note_card(self, run: Run, event: Event) -> None:
        """Note that ZeroGPU has lent a card: the first event after the wait for one comes from the card."""
        latest = run.events[-1][1] if run.events else None
        was_lending = getattr(latest, "stage", "") == "lending"
        is_lending = getattr(event, "stage", "") == "lending"
        if was_lending and not is_lending:
            run.has_card = True

    def _add(self, run: Run, event: RunEvent) -> None:
        run.add(event)
        for listener in run.listeners:
            listener()

    def _end(self, run: Run, end: Done | Failed | Cancelled) -> None:
        run.add(end)
        while len(run.events) > MOST_EVENTS_OF_AN_ENDED:
            run.events.popleft()
        run.ended_at = self._clock()
        run.context = None
        run.state = _STATES_AT_THE_END[type(end)]
        if isinstance(end, Done):
            self._learn_pace(run)
        is_cut_off = isinstance(end, Cancelled) and end.problem.code == STOPPING.code
        if not is_cut_off:
            self._journal.write(run.id, _entry(run))
        del self._known[run.id]
        self._ended[run.id] = run
        self._forget_old()
        for listener in run.listeners:
            listener()

    def _learn_pace(self, run: Run) -> None:
        pace = 0.0
        if run.weight:
            pace = (run.ended_at - run.started_at) / run.weight
        before = self._pace.get(run.request.mode, pace)
        self._pace[run.request.mode] = before + PACE_MEMORY * (pace - before)

    def _is_prune_due(self) -> bool:
        now = self._clock()
        self._ended_since_pruned += 1
        if now - self._pruned_at > PRUNE_SECONDS or self._ended_since_pruned >= PRUNE_RUNS:
            self._pruned_at = now
            self._ended_since_pruned = 0
            return True
        return False

    def _forget_old(self) -> None:
        """Forget ended runs by age; beyond `MOST_ENDED`, the oldest runs of the caller who has most.

        So a visitor who comes back finds the lyrics again, however many calls a program has made.
        """
        now = self._clock()
        for run in list(self._ended.values()):
            if now - run.ended_at < ENDED_SECONDS:
                break
            del self._ended[run.id]
        while len(self._ended) > MOST_ENDED:
            callers = {run.id: run.address or run.owner for run in self._ended.values()}
            busiest = Counter(callers.values()).most_common(1)[0][0]
            oldest = next(run_id for run_id, caller in callers.items() if caller == busiest)
            del self._ended[oldest]


def _entry(run: Run) -> runs_journal.Entry:
    songs: tuple[str, ...] = ()
    if isinstance(run.outcome, Done):
        songs = tuple(take_names(run.outcome.record))
    problem = run.problem.facts() if run.problem else None
    state = run.state if run.ended else "waiting"
    return runs_journal.Entry(run.request.mode, runs_journal.PROCESS, state, songs, problem)


def _facts(run: Run, waiting: Waiting | None) -> RunFacts:
    progress = _latest(run, Progress)
    draft = _latest(run, Draft)
    record = None
    takes_made = 0
    if isinstance(run.outcome, Done):
        record = run.outcome.record
        takes_made = len(take_names(record))
    return {
        "run": run.id,
        "state": run.state,
        "mode": run.request.mode,
        "title": run.title,
        "last": run.last,
        "place": waiting.place if waiting else None,
        "starts_in": waiting.starts_in if waiting else None,
        "progress": asdict(progress) if progress else None,
        "draft": draft.text if draft else None,
        "tokens": draft.tokens if draft else 0,
        "note": run.note,
        "song_draft": _song_draft_of(run),
        "problem": run.problem.facts() if run.problem else None,
        "takes": addresses(run.id, takes_made),
        "record": record,
    }


def _song_draft_of(run: Run) -> SongDraftFacts | None:
    """Return whether a song can be heard now, while it is being made."""
    if run.state != "running" or not run.draft_ask:
        return None
    facts = SongDraftFacts(state="offered", step=0, url=f"/runs/{run.id}/draft", problem=None)
    made = run.song_draft
    if made:
        facts["step"] = made.step
        facts["state"] = "failed" if made.problem else "ready"
        facts["problem"] = made.problem.facts() if made.problem else None
        return facts
    progress = _latest(run, Progress)
    if progress is None or progress.stage != "steps":
        return None  # the loop, which would make it, is over
    if run.asked_draft:
        facts["state"] = "asked"
    return facts


EventKind = TypeVar("EventKind", Progress, Draft)


def _latest(run: Run, kind: type[EventKind]) -> EventKind | None:
    """Return the latest event of a kind that the run remembers."""
    for _, event in reversed(run.events):
        if isinstance(event, kind):
            return event
    return None


def _former_facts(
    run_id: str, entry: runs_journal.Entry, journal: runs_journal.Journal
) -> RunFacts:
    """Return the facts of a run that only the journal knows; its record is in its files."""
    state = cast(State, entry.state)
    problem = entry.problem
    if entry.is_cut_off():
        state = "cut_off"
        problem = CUT_OFF.facts()
    return {
        "run": run_id,
        "state": state,
        "mode": entry.mode,
        "title": "",
        "last": 0,
        "place": None,
        "starts_in": None,
        "progress": None,
        "draft": None,
        "tokens": 0,
        "note": "",
        "song_draft": None,
        "problem": problem,
        "takes": addresses(run_id, len(entry.songs)),
        "record": None,
    }


def addresses(run_id: str, count: int) -> list[str]:
    """Return where the takes of a run are served."""
    return [address(run_id, number) for number in range(1, count + 1)]


def address(run_id: str, number: int) -> str:
    return f"/runs/{run_id}/takes/{number}"


def address_of(request: gr.Request | None) -> str:
    """Return the network address that a request comes from, "" if unknown. On a Space a proxy's header has it."""
    if request is None:
        return ""
    forwarded = ""
    if os.environ.get("SPACE_ID"):
        forwarded = request.headers.get("x-forwarded-for", "")
    if forwarded:
        return str(forwarded).split(",")[-1].strip()
    client = getattr(request, "client", None)
    return str(getattr(client, "host", ""))


def most_minutes() -> int:
    if os.environ.get("SPACE_ID"):
        return limits.MOST_MINUTES_ON_A_SPACE
    return limits.MOST_MINUTES


_by_studio: WeakKeyDictionary[Backend, Runs] = WeakKeyDictionary()


def runs_of(studio: Backend) -> Runs:
    """Return the runs of `studio`, always the same ones."""
    if studio not in _by_studio:
        _by_studio[studio] = Runs(
            lambda request: studio.stream(request),
            partial(seconds_of, studio=studio),
            runs_journal.Journal(takes.songs_folder),
            at_once=SONGS_AT_ONCE,
            drops_absent=ON_ZEROGPU,
        )
    return _by_studio[studio]
