"""What goes to the GPU and what comes back: the job, its progress and outcome, and what went wrong.

All of it is plain picklable data, because it crosses the border between the GPU worker and the page.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong, for a person: `code` for programs, `field` where it belongs, `message`, `hint`."""

    code: str
    message: str
    field: str = ""
    hint: str = ""

    def text(self) -> str:
        """Return the message and, where there is one, the hint."""
        return f"{self.message} {self.hint}".strip()


def as_dict(problem: Problem | None) -> dict[str, str] | None:
    """Return `problem` as a status shows it."""
    return None if problem is None else {"code": problem.code, "message": problem.message, "hint": problem.hint}


class StudioError(Exception):
    """Carries a `Problem` up to the border where it becomes a value."""

    def __init__(self, code: str, message: str, field: str = "", hint: str = ""):
        super().__init__(code, message, field, hint)
        self.problem = Problem(code, message, field, hint)

    @classmethod
    def of(cls, problem: Problem) -> StudioError:
        return StudioError(problem.code, problem.message, problem.field, problem.hint)

    def __str__(self) -> str:
        return self.problem.text()


class InvalidRequest(StudioError):
    """Some fields hold what they may not; `problems` has one entry for each."""

    def __init__(self, problems: tuple[Problem, ...]):
        first = problems[0]
        super().__init__(first.code, first.message, first.field, first.hint)
        self.problems = problems

    def __reduce__(self):
        return InvalidRequest, (self.problems,)


def first_line(error: Exception) -> str:
    """Return what an exception says, in a line: its text's first one, or the name of its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether `error`, or one that it was raised for or carries, says that a disk or a quota is full."""
    while error is not None:
        inside = next((each for each in error.args if isinstance(each, OSError)), error)
        if isinstance(inside, OSError) and inside.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether `error` is a lack of memory: Python's, torch's (not imported for it), or one that became a value."""
    if isinstance(error, StudioError):
        return error.problem.code == "out_of_memory"
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


# --- what a run says ----------------------------------------------------------------------------------------------

Stage = Literal[
    *("waiting", "lending", "downloading", "loading", "preparing", "writing", "planning"),
    *("reading", "steps", "decoding", "finishing", "aligning"),
]


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` of `steps` within `stage`; `elapsed` and `left` in seconds (None: not known yet).

    `note` says something once that the visitor should know, such as why the model is loaded again.
    """

    stage: Stage
    step: int = 0
    steps: int = 0
    elapsed: float = 0.0
    left: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Draft:
    """The lyrics so far: `text`, the number of `tokens` drawn, and why it ended: "" not yet, "stop" or "length".

    "stop" is the model's own end; at "length" the lyrics were cut after `max_tokens`.
    """

    text: str
    tokens: int
    end: Literal["", "stop", "length"] = ""


@dataclass(frozen=True)
class Done:
    """A finished run: paths of the audio files, one per good take, and the record; words alone have no files."""

    files: tuple[str, ...]
    record: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A run that ended without a song."""

    problem: Problem


Event = Progress | Draft | Done | Failed


# --- a job ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One picklable piece of GPU work: the request, a seed a take, and the folder that it reads from and writes to.

    `audio` maps a field ("reference") to a float WAV in `folder`. The job counts as cancelled once `folder/running` is
    gone, which a ZeroGPU worker in another process sees as well. `loras` are LoraSpecs, in the order in which they act.
    """

    request: Any
    seeds: tuple[int, ...]
    variation_seeds: tuple[int, ...]
    folder: str
    audio: dict[str, str] = field(default_factory=dict)
    loras: tuple[Any, ...] = ()

    @property
    def running(self) -> Path:
        """The file that stands as long as the job is wanted."""
        return Path(self.folder, "running")

    def cancelled(self) -> bool:
        """Tell whether nobody waits for the job any more."""
        return not self.running.exists()


@dataclass(frozen=True)
class Take:
    """One take: its seed and either the float WAV that it was written to or the problem that it ended with."""

    seed: int
    file: str = ""
    problem: Problem | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run made: the takes, what really ran (`facts`, for the record), and sentences for the visitor."""

    takes: tuple[Take, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...]
