"""ZeroGPU from the studio's side: its errors as sentences, the beat of a worker, and the one second try.

"GPU task aborted" is all that ZeroGPU says when a worker dies, whatever it died of. So a worker leaves a beat in its
job's folder, a file that tells when its time began. Only where that time was used up is the job tried again, with
twice the seconds. Nothing here imports gradio or spaces: their errors are known by title and text.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from estimate import MOST_SECONDS, clamped
from events import Problem, Progress, StudioError

BEAT = "beat.json"
# A worker that lived for this share of its seconds was ended by the limit; the platform's own clock starts earlier.
LIMIT_SHARE = 0.9
ABORTED = "GPU task aborted"
SIGN_IN = "Sign in to Hugging Face for more GPU time"

# When this process was forked, until its first job has used that; None in the main process.
_forked_at: float | None = None


def _remember_the_fork() -> None:
    global _forked_at
    _forked_at = time.time()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_the_fork)


class Beat:
    """Written by the worker: when its time began, and where it is. The time of a fresh worker began with its fork."""

    def __init__(self, folder: str | Path):
        global _forked_at
        self._path = Path(folder, BEAT)
        self._began, _forked_at = _forked_at or time.time(), None

    def at(self, stage: str, step: int = 0) -> None:
        """Note where the work is; a folder that is gone means that nobody waits for it any more."""
        text = json.dumps({"began": self._began, "now": time.time(), "stage": stage, "step": step})
        aside = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            aside.write_text(text)
            aside.replace(self._path)


def used_up(folder: str | Path, seconds: int) -> bool:
    """Tell whether the worker whose beat is in `folder`, and that died just now, had used its `seconds` up."""
    try:
        began = float(json.loads(Path(folder, BEAT).read_text())["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return time.time() - began >= LIMIT_SHARE * seconds


class Lending:
    """One job on a card that ZeroGPU lends: `first` are the seconds of the first try, `asked` those of the last.

    `call(seconds)` starts the job. Off ZeroGPU nothing is ever raised that leads to a second try.
    """

    def __init__(self, call: Callable[[int], Iterator[Any]], folder: str | Path, seconds: int):
        self._call, self._folder, self.first = call, folder, seconds
        self.asked, self.tries = seconds, 0

    def facts(self) -> dict[str, int]:
        """Return what the record says about it."""
        return {"estimated": self.first, "asked": self.asked, "tries": self.tries}

    def events(self) -> Iterator[Any]:
        """Yield the job's events; raises StudioError with a sentence for every error that ZeroGPU has."""
        while True:
            self.tries += 1
            Path(self._folder, BEAT).unlink(missing_ok=True)
            try:
                yield from self._call(self.asked)
                return
            except StudioError:
                raise
            except Exception as error:
                spent = is_abort(error) and used_up(self._folder, self.asked)
                problem = _time_is_up(self.asked, self.tries) if spent else problem_of(error)
                if problem is None:
                    raise
            if not spent or self.tries > 1 or self.first >= MOST_SECONDS:
                raise StudioError.of(problem)
            self.asked = clamped(2 * self.first)
            yield Progress("lending", note=retry_note(self.first, self.asked))


def retry_note(first: int, second: int) -> str:
    """Return what the page says when it tries again."""
    return f"{first} seconds on the GPU were not enough, so it is tried once more with {second}."


def is_abort(error: Exception) -> bool:
    """Tell whether `error` says that a worker died."""
    return getattr(error, "title", "") == "ZeroGPU worker error" and _text(error) == ABORTED


# --- sentences ----------------------------------------------------------------------------------------------------


def problem_of(error: Exception) -> Problem | None:
    """Return the sentence for an error of ZeroGPU; None where it is not one of its own."""
    sentence = SENTENCES.get(str(getattr(error, "title", "")))
    if sentence:
        return sentence(_text(error))
    text = str(error)
    if isinstance(error, queue.Empty):
        return Problem(
            "gpu_silent",
            "The GPU worker has said nothing for 20 minutes.",
            hint="Please try again with a shorter song.",
        )
    if isinstance(error, RuntimeError) and text.startswith("Connection closed by visitor"):
        return Problem("cancelled", "The page was closed while the song waited for a GPU.")
    if isinstance(error, RuntimeError) and text in ("Unexpected end of stream", RECONNECTED):
        return Problem("gpu_queue", "The connection to ZeroGPU's queue was lost.", hint="Please try again.")
    if (isinstance(error, RuntimeError) and text.startswith("ZeroGPU API")) or _is_http(error):
        return Problem("gpu_unreachable", "ZeroGPU could not be asked for a GPU.", hint="Please try again in a minute.")
    return None


RECONNECTED = "Error while re-trying after queue disconnect"


def _time_is_up(seconds: int, tries: int) -> Problem:
    again = " It was tried twice." if tries > 1 else ""
    return Problem(
        "gpu_time",
        f"This took longer than the {seconds} seconds that a GPU was lent for.{again}",
        hint="Try fewer steps, fewer takes or a shorter song.",
    )


def _worker(text: str) -> Problem:
    if text == ABORTED:
        return Problem(
            "gpu_aborted",
            "The GPU worker ended unexpectedly, maybe because its memory was full.",
            hint="Please try again; if it happens again, try fewer takes or a shorter song.",
        )
    return Problem(
        "gpu_failed",
        f"The GPU worker failed with an unexpected error ({text[:80]}).",
        hint="Please try again; the log of the Space has the details.",
    )


def _illegal_duration(text: str) -> Problem:
    found = re.search(r"\((\d+)s\)", text)
    asked = f"{found[1]} seconds of GPU time at once" if found else "so much GPU time at once"
    return Problem(
        "gpu_duration",
        f"ZeroGPU does not lend {asked} to this visitor.",
        hint="Try fewer steps, fewer takes or a shorter song. A PRO account on Hugging Face gets more at once.",
    )


def _quota(text: str) -> Problem:
    if "No GPU was available" in text:
        return _queue(text)
    if "Space app has reached its GPU limit" in text:
        return Problem(
            "gpu_quota",
            "The GPU time that this Space has for visitors without an account is used up for now.",
            hint=f"{SIGN_IN}, or come back later.",
        )
    if "runs limit" in text:
        return Problem("gpu_quota", "You have used up your ZeroGPU runs for now.", hint="Please try again later.")
    numbers = re.search(r"\((\d+)s requested vs\. (-?\d+)s left\)", text)
    wait = re.search(r"Try again in ([^.]*\d)", text)
    left = f" This needs {numbers[1]} seconds, and {numbers[2]} are left." if numbers else ""
    when = f"Try again in {wait[1]}, or make a shorter song." if wait else "Make a shorter song, or try again tomorrow."
    return Problem("gpu_quota", f"Your GPU time on ZeroGPU is used up for now.{left}", hint=when)


def _credits(text: str) -> Problem:
    return Problem(
        "gpu_credits",
        "Too many of your ZeroGPU credits are held by songs that are still being made.",
        hint="Wait until one of them is done.",
    )


def _queue(text: str) -> Problem:
    return Problem(
        "gpu_busy",
        "No GPU became free within 60 seconds.",
        hint=f"Please try again in a minute. {SIGN_IN} and a better place.",
    )


def _client(text: str) -> Problem:
    if "token" in text:
        return Problem(
            "gpu_session", "Hugging Face does not know this visit any more.", hint="Reload the page and try again."
        )
    if "No GPU" in text:
        return Problem("gpu_busy", "No GPU is free at the moment.", hint="Please try again in a minute.")
    return Problem("gpu_unreachable", "ZeroGPU could not be asked for a GPU.", hint="Reload the page and try again.")


# The titles that ZeroGPU's errors have.
SENTENCES: dict[str, Callable[[str], Problem]] = {
    "ZeroGPU worker error": _worker,
    "ZeroGPU illegal duration": _illegal_duration,
    "ZeroGPU quota exceeded": _quota,
    "ZeroGPU pending credits exceeded": _credits,
    "ZeroGPU queue timeout": _queue,
    "ZeroGPU client error": _client,
}


def _text(error: Exception) -> str:
    return str(getattr(error, "message", error))


def _is_http(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("httpx", "httpcore")
