"""ZeroGPU: the seconds to ask for, the worker's heartbeat, the one retry, and its errors as sentences.

When a worker dies, ZeroGPU only says "GPU task aborted", whatever the cause. So a worker keeps a heartbeat file in its
job's folder, which tells when its time began. Only if that time is used up is the job retried, with twice the seconds.
Nothing here imports gradio or spaces: their errors are recognized by title and text.

The duration of a job is counted and estimated, not measured. Each number is in one table with its origin, until it is
measured (docs/performance.md). Seconds are those of an H200, in which ZeroGPU counts; on slower cards it gives more
real time by itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import pickle
import queue
import re
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from events import Draft, Problem, Progress, StudioError, first_line
from limits import LIMITS, QUALITY_STEPS
from memory import fewer_takes, most, shorter
from params import sampling_settings

log = logging.getLogger("studio")

BEAT = "beat.json"
# A worker that lived for this share of its seconds was stopped by the limit: the platform's clock starts earlier.
LIMIT_SHARE = 0.9
# Seconds between two checks by the parent, without a heartbeat until a worker counts as dead (it writes one every 0.4
# seconds), and until the first heartbeat, which has to wait for the queue and a cold start.
LISTEN_SECONDS, SILENT_SECONDS, START_SECONDS = 0.5, 30.0, 240.0
ABORTED = "GPU task aborted"
SIGN_IN = "Sign in to Hugging Face for more GPU time"

# Fork time of this process; consumed by its first job. None in the main process.
_forked_at: float | None = None


def _remember_the_fork() -> None:
    global _forked_at
    _forked_at = time.time()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_the_fork)


class Beat:
    """The heartbeat that a worker writes. A fresh worker's time began with its fork."""

    def __init__(self, folder: str | Path):
        global _forked_at
        self._path = Path(folder, BEAT)
        self._began, _forked_at = _forked_at or time.time(), None

    def at(self, stage: str, step: int = 0) -> None:
        """Write a heartbeat, unless the folder is gone because the job was abandoned."""
        text = json.dumps({"began": self._began, "now": time.time(), "stage": stage, "step": step})
        new = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            new.write_text(text)
            new.replace(self._path)


def used_up(folder: str | Path, seconds: int) -> bool:
    """Whether the worker with its heartbeat in `folder`, which just died, had used up its `seconds`."""
    try:
        began = float(json.loads(Path(folder, BEAT).read_text())["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return time.time() - began >= LIMIT_SHARE * seconds


def watched(events: Iterator[Any], folder: str | Path) -> Iterator[Any]:
    """Yield `events`; raises queue.Empty once the worker with its heartbeat in `folder` has fallen silent.

    A thread reads them, because `spaces` may not report a worker's death or end for 20 minutes if the card cannot be
    returned. Until the worker starts this yields progress, so that it can be closed. Closing waits for a busy worker.
    """
    pending: queue.Queue = queue.Queue()
    left = threading.Event()

    def read() -> None:
        try:
            with contextlib.closing(events):
                for event in events:
                    if left.is_set():
                        break
                    pending.put((event, None))
            pending.put((None, None))
        except Exception as error:
            pending.put((None, error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(read,), name="card", daemon=True)
    thread.start()
    began = time.time()
    working = False
    try:
        while True:
            try:
                event, error = pending.get(timeout=LISTEN_SECONDS)
            except queue.Empty:
                if _silent(folder, began):
                    working = False
                    raise
                if not working:
                    yield Progress("lending")
                continue
            working = isinstance(event, Progress | Draft)
            if error:
                raise error
            if event is None:
                return
            yield event
    finally:
        left.set()
        if working:
            thread.join(SILENT_SECONDS)


def _silent(folder: str | Path, began: float) -> bool:
    """Whether the last heartbeat, or `began` before the first one, is too long ago."""
    try:
        return time.time() - Path(folder, BEAT).stat().st_mtime > SILENT_SECONDS
    except OSError:
        return time.time() - began > START_SECONDS


class Lending:
    """One job on a card lent by ZeroGPU: `first` are the seconds of the first try, `asked` those of the last.

    `call(seconds)` starts the job.
    """

    def __init__(self, call: Callable[[int], Iterator[Any]], folder: str | Path, seconds: int):
        self._call, self._folder, self.first = call, folder, seconds
        self.asked, self.tries = seconds, 0

    def facts(self) -> dict[str, int]:
        """Return the record's entry."""
        return {"estimated": self.first, "asked": self.asked, "tries": self.tries}

    def events(self) -> Iterator[Any]:
        """Yield the job's events; raises StudioError for all of ZeroGPU's errors."""
        while True:
            self.tries += 1
            Path(self._folder, BEAT).unlink(missing_ok=True)
            begun = False
            try:
                with contextlib.closing(self._call(self.asked)) as events:
                    for event in events:
                        begun = begun or getattr(event, "stage", "") != "lending"
                        yield event
                return
            except (StudioError, pickle.PicklingError):
                raise
            except Exception as error:
                spent = is_abort(error) and used_up(self._folder, self.asked)
                problem = _time_is_up(self.asked, self.tries) if spent else problem_of(error)
                if problem is None and begun:
                    raise
                if problem is None:
                    # `spaces` parses ZeroGPU's answers without checking that they are complete.
                    log.warning("ZeroGPU's answer could not be read: %s", first_line(error))
                    problem = UNREACHABLE
            if not spent or self.tries > 1 or self.first >= MOST_SECONDS:
                raise StudioError.of(problem)
            self.asked = clamped(2 * self.first)
            note = f"{self.first} seconds on the GPU were not enough, so the studio tries once more with {self.asked}."
            yield Progress("lending", note=note)


def is_abort(error: Exception) -> bool:
    """Whether `error` means that a worker died."""
    return getattr(error, "title", "") == "ZeroGPU worker error" and _text(error) == ABORTED


# --- problems -----------------------------------------------------------------------------------------------------


def problem_of(error: Exception) -> Problem | None:
    """Return the problem behind an error of ZeroGPU, None for any other error."""
    if found := PROBLEMS.get(str(getattr(error, "title", ""))):
        return found(_text(error))
    text = str(error)
    if isinstance(error, queue.Empty):
        return Problem(
            "gpu_silent",
            "The GPU worker stopped answering.",
            hint=AGAIN_OR_LESS,
        )
    if isinstance(error, RuntimeError) and text.startswith("Connection closed by visitor"):
        return Problem("cancelled", "The page was closed while the song waited for a GPU.")
    if isinstance(error, RuntimeError) and text in ("Unexpected end of stream", RECONNECTED):
        return Problem("gpu_queue", "The connection to ZeroGPU's queue was lost.", hint="Please try again.")
    if (isinstance(error, RuntimeError) and text.startswith("ZeroGPU API")) or _is_http(error):
        return UNREACHABLE
    return None


AGAIN_OR_LESS = "Please try again; if it happens again, try fewer takes or a shorter song."
UNREACHABLE = Problem("gpu_unreachable", "ZeroGPU could not be asked for a GPU.", hint="Please try again in a minute.")
RECONNECTED = "Error while re-trying after queue disconnect"


def _time_is_up(seconds: int, tries: int) -> Problem:
    again = " It was tried twice." if tries > 1 else ""
    return Problem(
        "gpu_time",
        f"This took longer than the {seconds} seconds of GPU time that it was given.{again}",
        hint="Try fewer steps, fewer takes or a shorter song.",
    )


def _worker(text: str) -> Problem:
    if text == ABORTED:
        return Problem(
            "gpu_aborted",
            "The GPU worker ended unexpectedly, maybe because its memory was full.",
            hint=AGAIN_OR_LESS,
        )
    return Problem(
        "gpu_failed",
        f"The GPU worker failed with an unexpected error ({text[:80]}).",
        hint="Please try again; the log of the Space has the details.",
    )


def _illegal_duration(text: str) -> Problem:
    found = re.search(r"\((\d+)s\)", text)
    asked = f"{found[1]} seconds of GPU time at once" if found else "that much GPU time at once"
    return Problem(
        "gpu_duration",
        f"ZeroGPU does not give you {asked}.",
        hint="Try fewer steps, fewer takes or a shorter song. A PRO account on Hugging Face gets more at once.",
    )


def _quota(text: str) -> Problem:
    if "No GPU was available" in text:
        return _queue(text)
    if "Space app has reached its GPU limit" in text:
        return Problem(
            "gpu_quota",
            "This Space has used up its GPU time for visitors without an account.",
            hint=f"{SIGN_IN}, or come back later.",
        )
    if "runs limit" in text:
        return Problem("gpu_quota", "You have used up your ZeroGPU runs for now.", hint="Please try again later.")
    numbers = re.search(r"\((\d+)s requested vs\. (-?\d+)s left\)", text)
    wait = re.search(r"Try again in ([^.]*\d)", text)
    left = f" This needs {numbers[1]} seconds, and {numbers[2]} are left." if numbers else ""
    hint = f"Try again in {wait[1]}, or make a shorter song." if wait else "Make a shorter song, or try again tomorrow."
    return Problem("gpu_quota", f"Your GPU time on ZeroGPU is used up for now.{left}", hint=hint)


def _queue(text: str) -> Problem:
    return Problem(
        "gpu_busy",
        "No GPU became free within 60 seconds.",
        hint=f"Please try again in a minute. {SIGN_IN} and queue priority.",
    )


def _client(text: str) -> Problem:
    if "token" in text:
        return Problem(
            "gpu_session", "Your session with Hugging Face has expired.", hint="Reload the page and try again."
        )
    if "No GPU" in text:
        return Problem("gpu_busy", "No GPU is free at the moment.", hint="Please try again in a minute.")
    return replace(UNREACHABLE, hint="Reload the page and try again.")


CREDITS = Problem(
    "gpu_credits",
    "Your other songs in progress hold too many of your ZeroGPU credits.",
    hint="Wait until one of them is done.",
)
# By the titles of ZeroGPU's errors.
PROBLEMS: dict[str, Callable[[str], Problem]] = {
    "ZeroGPU worker error": _worker,
    "ZeroGPU illegal duration": _illegal_duration,
    "ZeroGPU quota exceeded": _quota,
    "ZeroGPU pending credits exceeded": lambda text: CREDITS,
    "ZeroGPU queue timeout": _queue,
    "ZeroGPU client error": _client,
}


def _text(error: Exception) -> str:
    return str(getattr(error, "message", error))


def _is_http(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("httpx", "httpcore")


# --- the seconds to ask for ------------------------------------------------------------------------------------------

LEAST_SECONDS, MOST_SECONDS = 60, 300
"""The least to ask for, so that a busy card does not cut a short job off, and the most."""

# Each with its unit and origin.
CONSTANTS = {
    "tflop_per_second": 390.0,  # TFLOP/s; assumed: 40 % of the 989 that an H200 has in bfloat16
    "cold_seconds": 20.0,  # s; assumed: 30 GB of packed weights at 2 GB/s, and 5 s for CUDA to start
    "encode_per_minute": 0.5,  # s per minute of source; assumed: half of decoding, whose FLOPs it has
    "decode_per_minute": 1.0,  # s per minute and take; assumed from 29 TFLOP for 240 s, bound by memory
    "plan_tokens_per_second": 40.0,  # tokens/s; assumed: a 1.7B model step by step in transformers
    "plan_metadata_tokens": 200.0,  # tokens; the planner's budget for metadata
    "codes_per_second": 5.0,  # tokens per second of music; the planner's 5 Hz codes
    "sketch_tokens": 1_500.0,  # tokens; assumed: metadata and the lyrics of a long song
    "writer_tokens_per_second": 25.0,  # tokens/s; assumed: a 7B model step by step in transformers
    "margin": 1.5,  # x; assumed: real over counted; shared cards, first kernels
}
FORWARD_TFLOP = ((0, 0.0), (30, 3.33), (60, 6.59), (120, 13.6), (240, 29.3), (600, 90.6))
"""Seconds of music -> TFLOP of one forward pass: counted on XL's configuration with 600 condition tokens."""


@dataclass(frozen=True)
class Work:
    """The GPU work of a job, as far as it costs time.

    `duration` is the length in seconds to denoise, `source` that of the uploads to encode. A step is `passes` forward
    passes, twice as many with guidance. `planner`: the song is planned first. `tokens`: the most that a language model
    may write for a text. Loading the weights onto the card is always added.
    """

    mode: str
    duration: float = 0.0
    steps: int = 0
    takes: int = 1
    guidance: float = 1.0
    planner: bool = False
    tokens: int = 0
    source: float = 0.0
    passes: float = 1.0


def work_of(request: Any, *, kind: str = "sft", source: float = 0.0, planner: bool = False) -> Work:
    """Return the work of any request; `source` is the length of its source in seconds (0 while there is none).

    `planner`: there is a planner to plan the song.
    """
    if not hasattr(request, "takes"):
        tokens = getattr(getattr(request, "options", None), "max_tokens", int(CONSTANTS["sketch_tokens"]))
        return Work(request.mode, source=source, tokens=tokens)
    settings, _ = sampling_settings(request, kind)
    options, passes = request.options, 1.0
    if getattr(request, "action", "") == "morph":
        # Every averaged draw runs source and target, later steps the target alone.
        passes = (options.n_max - options.n_min) * 2 * options.n_avg + (1 - options.n_max)
    return Work(
        mode=request.mode,
        duration=request.song_seconds(source),
        steps=settings.steps,
        takes=request.takes,
        guidance=settings.guidance,
        planner=planner and getattr(options, "plan", False),
        source=source,
        passes=passes,
    )


def seconds_needed(work: Work) -> float:
    """Return the estimated seconds for `work`, without bounds."""
    minutes = work.duration / 60
    forwards = work.steps * work.passes * work.takes * (2 if work.guidance > 1 else 1)
    seconds = forwards * forward_tflop(work.duration) / CONSTANTS["tflop_per_second"]
    seconds += work.takes * minutes * CONSTANTS["decode_per_minute"]
    seconds += work.source / 60 * CONSTANTS["encode_per_minute"]
    if work.planner:
        tokens = CONSTANTS["plan_metadata_tokens"] + work.duration * CONSTANTS["codes_per_second"]
        seconds += tokens / CONSTANTS["plan_tokens_per_second"]
    if work.tokens:
        writer = "writer_tokens_per_second" if work.mode == "lyrics" else "plan_tokens_per_second"
        seconds += work.tokens / CONSTANTS[writer]
    return CONSTANTS["cold_seconds"] + CONSTANTS["margin"] * seconds


def gpu_seconds(work: Work) -> int:
    """Return the seconds to ask for, from 60 to 300."""
    return clamped(seconds_needed(work))


def clamped(seconds: float) -> int:
    """Return `seconds` as an int from 60 to 300: ZeroGPU refuses numpy numbers and wraps negative ones around."""
    return int(min(max(float(seconds), LEAST_SECONDS), MOST_SECONDS))


def refusal(work: Work) -> Problem | None:
    """Return the problem if `work` is too much for one call, with what would fit as its hint."""
    needed = seconds_needed(work)
    if needed <= MOST_SECONDS:
        return None
    return Problem(
        "too_much_gpu_time",
        f"This would take about {needed:,.0f} seconds of GPU time; one call gets up to {MOST_SECONDS}.",
        hint=_what_fits(work),
    )


def forward_tflop(duration: float) -> float:
    """Return the TFLOP of one forward pass over `duration` seconds of music, by linear interpolation."""
    lengths = [length for length, _ in FORWARD_TFLOP]
    right = min(max(bisect_left(lengths, duration), 1), len(lengths) - 1)
    (x0, y0), (x1, y1) = FORWARD_TFLOP[right - 1], FORWARD_TFLOP[right]
    return y0 + (y1 - y0) * (duration - x0) / (x1 - x0)


# --- what would fit -----------------------------------------------------------------------------------------------


def _what_fits(work: Work) -> str:
    """Return a sentence with the most takes, steps or seconds that would fit, each alone; combined if none would."""
    ways = [fewer_takes(work, _fits), _steps(work), _length(work)]
    ways = [way for way in ways if way]
    if not ways and work.takes > 1:
        one = replace(work, takes=1)
        ways = [f"1 take and {way}" for way in (_steps(one), _length(one)) if way]
    if not ways:
        return "Use fewer steps, fewer morph averages or a shorter source."
    return f"It fits with {', or with '.join(ways)}."


def _steps(work: Work) -> str:
    least = min(QUALITY_STEPS["draft"], work.steps)
    steps = most(least, work.steps, lambda count: _fits(replace(work, steps=count)))
    return f"{steps} steps" if steps else ""


def _length(work: Work) -> str:
    if work.mode in ("edit", "cover"):
        return ""  # the source decides
    return shorter(work, _fits, int(work.source) // 5 * 5 + 5 if work.source else int(LIMITS["duration"].low))


def _fits(work: Work) -> bool:
    return seconds_needed(work) <= MOST_SECONDS
