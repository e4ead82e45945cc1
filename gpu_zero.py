"""ZeroGPU: the seconds to ask for, the worker's heartbeat, the one retry, and its errors as
sentences.

When a worker dies, ZeroGPU only says "GPU task aborted", whatever the cause. So a worker keeps a
heartbeat file in its job's folder, which tells when its time began. Only if that time is used up is
the job retried, with twice the seconds. Nothing here imports gradio or spaces: their errors are
recognized by title and text.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import beat
import estimate
from estimate import Work
from events import Draft, Outcome, Problem, Progress, StudioError, first_line
from record import GpuEntry

log = logging.getLogger("studio")

BEAT = "beat"  # the name of its file
# A worker that lived for this share of its seconds was stopped by the limit: the platform's clock
# starts earlier.
LIMIT_SHARE = 0.9
# Until the first heartbeat, which has to wait for the queue and a cold start.
START_SECONDS = 240.0

# When this process was forked, until its first job consumes that; empty in the main process.
_forked_at: list[float] = []
# How long it then took until the job began: CUDA's start, and weights that go onto the card.
_start: list[float] = []
os.register_at_fork(after_in_child=lambda: _forked_at.append(time.time()))


class Beat:
    """A worker's heartbeat: a file that holds when its time began, which for a fresh worker is its fork."""

    def __init__(self, folder: str | Path):
        self._path = Path(folder, BEAT)
        self._began = time.time()
        if _forked_at:
            now = self._began
            self._began = _forked_at.pop()
            _start[:] = [now - self._began]

    def write(self) -> None:
        new = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):  # the folder of an abandoned job is gone
            new.write_text(str(self._began))
            new.replace(self._path)


def start_seconds() -> float:
    """Return how long this worker took to start, 0 if it is none."""
    return sum(_start)


def used_seconds(folder: str | Path) -> float:
    """Return how long the worker whose heartbeat is in `folder` has had its card, 0 if it has not begun."""
    try:
        return time.time() - float(Path(folder, BEAT).read_text())
    except (OSError, ValueError):
        return 0.0


def used_up(folder: str | Path, seconds: int) -> bool:
    """Whether the worker whose heartbeat is in `folder`, and which just died, had used up its `seconds`."""
    return used_seconds(folder) >= LIMIT_SHARE * seconds


def lent(call: Callable[[int], Generator[Any]], folder: str | Path, seconds: int) -> Generator[Any]:
    """Yield the events of a job that `call(seconds)` starts on a lent card; raises StudioError for ZeroGPU's errors.

    A job that used up its seconds is started once more, with twice as many.
    """
    yield Progress("lending")
    try:
        yield from _attempt(call, folder, estimated=seconds, asked=seconds, tries=1)
        return
    except _TimeIsUp:
        if seconds >= MOST_SECONDS:
            raise StudioError.from_problem(_too_slow(seconds)) from None
    asked = clamped(2 * seconds, seconds)
    note = f"{seconds} GPU seconds were not enough, so the studio tries again with {asked}."
    yield Progress("lending", note=note)
    try:
        yield from _attempt(call, folder, estimated=seconds, asked=asked, tries=2)
    except _TimeIsUp:
        raise StudioError.from_problem(_too_slow(asked, " It was tried twice.")) from None


class _TimeIsUp(Exception):
    """The worker was stopped because its seconds were used up."""


def _too_slow(seconds: int, addition: str = "") -> Problem:
    message = (
        f"This took longer than the {seconds} seconds of GPU time that it was given.{addition}"
    )
    return Problem("gpu_time", message, hint=f"{LESS_WORK}.")


def _attempt(
    call: Callable[[int], Generator[Any]],
    folder: str | Path,
    estimated: int,
    asked: int,
    tries: int,
) -> Generator[Any]:
    """Yield the events of a job that is started once, with the seconds that are `asked` for.

    Its outcome gets these numbers, and the seconds that it used. Raises StudioError, or _TimeIsUp.
    """
    Path(folder, BEAT).unlink(missing_ok=True)
    has_begun = False
    try:
        with contextlib.closing(_watched(call(asked), folder)) as events:
            for event in events:
                has_begun = has_begun or getattr(event, "stage", "") != "lending"
                if isinstance(event, Outcome):
                    used = round(used_seconds(folder), 1)
                    entry = GpuEntry(estimated=estimated, asked=asked, tries=tries, used=used)
                    event = event.with_facts(gpu=entry)
                yield event
        return
    except (StudioError, pickle.PicklingError):
        raise
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            if has_begun:
                raise
            # `spaces` parses ZeroGPU's answers without checking that they are complete.
            log.warning("ZeroGPU's answer could not be read: %s", first_line(error))
            problem = UNREACHABLE
    if problem.code == "gpu_aborted" and used_up(folder, asked):
        raise _TimeIsUp
    raise StudioError.from_problem(problem)


def _watched(events: Generator[Any], folder: str | Path) -> Generator[Any]:
    """Yield `events`; raises StudioError once the worker with its heartbeat in `folder` has fallen
    silent.

    Until the worker starts this yields progress, so that it can be closed. Closing waits for a busy
    worker.
    """
    is_left = threading.Event()
    # In a thread: `spaces` may not report a worker's death or end for 20 minutes if the card cannot
    # be returned.
    read, thread = beat.in_thread(events, "card", is_left.is_set)
    began = time.time()
    is_working = False
    try:
        for event in read:
            if event is not beat.QUIET:
                is_working = isinstance(event, Progress | Draft)
                yield event
            elif _silent(folder, began):
                is_working = False
                raise StudioError.from_problem(SILENT)
            elif not is_working:
                yield Progress("lending")
    finally:
        is_left.set()
        if is_working:
            thread.join(beat.SILENT_SECONDS)


def _silent(folder: str | Path, began: float) -> bool:
    """Tell whether the heartbeat in `folder` stopped long ago, or did not come since the time `began`."""
    try:
        return time.time() - Path(folder, BEAT).stat().st_mtime > beat.SILENT_SECONDS
    except OSError:
        return time.time() - began > START_SECONDS


AGAIN = "Please try again"
LESS_WORK = "Try fewer steps, fewer takes or a shorter song"
AGAIN_OR_LESS = f"{AGAIN}; if it happens again, try fewer takes or a shorter song."
RELOAD = "Reload the page and try again."
PRO = "A PRO account on Hugging Face gets more at once."
SIGN_IN = "Sign in to Hugging Face for more GPU time"
SILENT = Problem("gpu_silent", "The GPU worker stopped answering.", hint=AGAIN_OR_LESS)
UNREACHABLE = Problem(
    "gpu_unreachable", "ZeroGPU could not be asked for a GPU.", hint=f"{AGAIN} in a minute."
)
BUSY = (
    "gpu_busy",
    "No GPU became free within 60 seconds.",
    f"{AGAIN} in a minute. {SIGN_IN} and queue priority.",
)
QUOTA = "Your GPU time on ZeroGPU is used up for now."

# How an error begins ("title: text" or "module.type: text"), then the code, message and hint of its
# problem, in which {0}, {1} ... are the pattern's groups. The first row that matches counts.
ERRORS = (
    ("ZeroGPU worker error: GPU task aborted$",
     "gpu_aborted", "The GPU worker ended unexpectedly, perhaps because it ran out of memory.", AGAIN_OR_LESS),
    ("ZeroGPU worker error: (.{0,80})",
     "gpu_failed", "The GPU worker failed with an unexpected error ({0}).",
     f"{AGAIN}; the log of the Space has the details."),
    (r"ZeroGPU illegal duration: .*?\((\d+)s\)",
     "gpu_duration", "ZeroGPU does not give you {0} seconds of GPU time at once.",
     f"{LESS_WORK}. {PRO}"),
    ("ZeroGPU illegal duration",
     "gpu_duration", "ZeroGPU does not give you that much GPU time at once.", f"{LESS_WORK}. {PRO}"),
    ("ZeroGPU (quota exceeded: .*No GPU was available|queue timeout)", *BUSY),
    ("ZeroGPU quota exceeded: Space app has reached its GPU limit",
     "gpu_quota", "This Space has used up its GPU time for visitors without an account.",
     f"{SIGN_IN}, or come back later."),
    ("ZeroGPU quota exceeded: .*runs limit",
     "gpu_quota", "You have used up your ZeroGPU runs for now.", f"{AGAIN} later."),
    (r"ZeroGPU quota exceeded: .*?\((\d+)s requested vs\. (-?\d+)s left\)\. Try again in ([^.]*\d)",
     "gpu_quota", QUOTA + " This needs {0} seconds, and {1} are left.", "Try again in {2}, or make a shorter song."),
    ("ZeroGPU quota exceeded", "gpu_quota", QUOTA, "Make a shorter song, or try again tomorrow."),
    ("ZeroGPU pending credits exceeded",
     "gpu_credits", "Your other songs in progress hold too many of your ZeroGPU credits.",
     "Wait until one of them is done."),
    ("ZeroGPU client error: .*token", "gpu_session", "Your session with Hugging Face has expired.", RELOAD),
    ("ZeroGPU client error: No GPU", "gpu_busy", "No GPU is free at the moment.", f"{AGAIN} in a minute."),
    ("ZeroGPU client error", UNREACHABLE.code, UNREACHABLE.message, RELOAD),
    ("builtins.RuntimeError: Connection closed by visitor",
     "cancelled", "The page was closed while the song waited for a GPU.", ""),
    ("builtins.RuntimeError: (Unexpected end of stream|Error while re-trying after queue disconnect)$",
     "gpu_queue", "The connection to ZeroGPU's queue was lost.", f"{AGAIN}."),
    ("builtins.RuntimeError: ZeroGPU API|httpx|httpcore", UNREACHABLE.code, UNREACHABLE.message, UNREACHABLE.hint),
)  # fmt: skip


def problem_of(error: Exception) -> Problem | None:
    """Return the problem behind an error of ZeroGPU, None for any other error."""
    title = getattr(error, "title", "") or f"{type(error).__module__}.{type(error).__name__}"
    text = f"{title}: {getattr(error, 'message', error)}"
    for pattern, code, message, hint in ERRORS:
        found = re.match(pattern, text, re.DOTALL)
        if found:
            parts = found.groups()
            return Problem(code, message.format(*parts), hint=hint.format(*parts))
    return None


# --- the seconds to ask for -----------------------------------------------------------------------

LEAST_SECONDS = 60  # so that a busy card cuts no short job off
LEAST_LEARNED_SECONDS = 15  # once earlier jobs have shown how long such a one takes
MOST_SECONDS = 300  # that ZeroGPU lends at once

NOTHING_FITS = "Use fewer steps, fewer morph averages or a shorter source."


def gpu_seconds(work: Work, more: int = 0) -> int:
    """Return the seconds to ask for `work`, with so many `more` for what else the job has to do."""
    least = LEAST_LEARNED_SECONDS if experience.knows(work) else LEAST_SECONDS
    return clamped(experience.seconds(work) + more, least)


def learn(work: Work, facts: GpuEntry) -> None:
    """Learn from what a job took, the last try alone."""
    if facts["used"] > 0:
        experience.learn(work, facts["used"])


experience = estimate.Experience()


def clamped(seconds: float, least: int = LEAST_SECONDS) -> int:
    """Return `seconds` as an int from `least` to 300: ZeroGPU refuses numpy numbers and wraps negative ones around."""
    return int(min(max(math.ceil(seconds), least), MOST_SECONDS))


def refusal(work: Work) -> Problem | None:
    """Return the problem if `work` is too much for one call, going by what earlier jobs took.

    The hint has what would fit.
    """
    needed = experience.seconds(work)
    if needed <= MOST_SECONDS:
        return None
    changes = estimate.changes_that_fit(work, MOST_SECONDS, experience.seconds)
    if not changes:
        one_take = replace(work, takes=1)
        fitting = estimate.changes_that_fit(one_take, MOST_SECONDS, experience.seconds)
        changes = [f"1 take and {change}" for change in fitting]
    hint = NOTHING_FITS
    if changes:
        hint = f"It fits with {', or with '.join(changes)}."
    message = f"This would take about {needed:,.0f} seconds of GPU time; one call gets up to {MOST_SECONDS}."
    return Problem("too_much_gpu_time", message, hint=hint)
