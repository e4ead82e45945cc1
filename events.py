"""What a run says while it works, and how it says what went wrong.

All of it is plain picklable data, because it crosses the border between the GPU worker and the page.
"""

from __future__ import annotations

from dataclasses import dataclass
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


class StudioError(Exception):
    """Carries a `Problem` up to the border where it becomes a value."""

    def __init__(self, code: str, message: str, field: str = "", hint: str = ""):
        super().__init__(code, message, field, hint)
        self.problem = Problem(code, message, field, hint)

    @classmethod
    def of(cls, problem: Problem) -> StudioError:
        """Return the exception that carries `problem`."""
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
