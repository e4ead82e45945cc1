"""What comes back from the GPU, progress and outcome, and problems: plain picklable data."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal, cast

from record import Ran, SongRecord, WordsRecord, WordsResult, is_song


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong: a code for programs, the field it concerns, message and hint for people."""

    code: str
    message: str
    field: str = ""
    hint: str = ""

    def text(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def facts(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UnknownName(Problem):
    """A name that is not a field; the message quotes it."""


class StudioError(Exception):
    """Carries a `Problem` to the place that turns it into a value."""

    def __init__(self, code: str, message: str, field: str = "", hint: str = ""):
        super().__init__(code, message, field, hint)
        self.problem = Problem(code, message, field, hint)

    @classmethod
    def from_problem(cls, problem: Problem) -> StudioError:
        return StudioError(*astuple(problem))

    def __str__(self) -> str:
        return self.problem.text()


class InvalidRequest(StudioError):
    """A request with wrong fields, at least one; `problems` has one entry for each."""

    def __init__(self, *problems: Problem):
        super().__init__(*astuple(problems[0]))
        self.problems = problems

    def __reduce__(self):
        return InvalidRequest, self.problems


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    return type(error).__name__


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether `error`, its cause or an error in its arguments means a full disk or quota."""
    while error is not None:
        for candidate in (error, *error.args):
            if isinstance(candidate, OSError) and candidate.errno in (errno.ENOSPC, errno.EDQUOT):
                return True
        error = error.__cause__ or error.__context__
    return False


# Messages of torch, its libraries, MLX and the system when memory runs out and the error's class
# does not say so.
NO_MEMORY = re.compile(
    "DefaultCPUAllocator: (can't allocate|not enough) memory|out of memory|Cannot allocate memory|"
    r"(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|\[metal::malloc\]|std::bad_alloc"
)
NO_THREAD = "can't start new thread"


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether Python, torch (known by name, to avoid its import), the system or a `Problem` ran out of memory."""
    if isinstance(error, StudioError):
        return error.problem.code == "out_of_memory"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError":
        return bool(NO_MEMORY.search(str(error)))
    return False


NO_THREADS = Problem(
    "no_threads",
    "The system does not let the studio start any more threads.",
    hint="Close other programs, or raise the limit (ulimit -u; pids in a container), and try again.",
)


def is_out_of_threads(error: Exception) -> bool:
    """Tell whether the system does not let this process start any more threads."""
    return isinstance(error, RuntimeError) and NO_THREAD in str(error)


Stage = Literal[
    "waiting",
    "starting",
    "lending",
    "downloading",
    "loading",
    "checking",
    "preparing",
    "writing",
    "planning",
    "reading",
    "steps",
    "decoding",
    "finishing",
    "aligning",
]


@dataclass(frozen=True)
class Progress:
    """Step `step` of `steps` within `stage`; `elapsed` and `left` in seconds, `left` None if still unknown."""

    stage: Stage
    step: int = 0
    steps: int = 0
    elapsed: float = 0.0
    left: float | None = None
    note: str = ""  # a sentence for the visitor, such as why the model is loaded again
    share: float | None = (
        None  # of the whole run that is done, 0 to 1; None if nobody has weighed its stages
    )
    # How strong 100 equal parts of the first take promise to be, 0 to 100; () before its first step.
    outline: tuple[int, ...] = ()


# How far a run is where a stage begins, and how much of it the stage is.
Shares = Mapping[Stage, tuple[float, float]]
# Those of a usual run.
SHARES: Shares = {
    "waiting": (0.0, 0.0),
    "starting": (0.01, 0.0),
    "lending": (0.01, 0.0),
    "downloading": (0.01, 0.01),
    "loading": (0.02, 0.0),
    "checking": (0.02, 0.01),
    "preparing": (0.03, 0.0),
    "writing": (0.03, 0.05),
    "planning": (0.08, 0.17),
    "reading": (0.25, 0.02),
    "steps": (0.27, 0.6),
    "decoding": (0.87, 0.08),
    "finishing": (0.96, 0.03),
    "aligning": (0.9, 0.0),
}
# The stages whose seconds can be estimated, in their order, and what they share.
WEIGHED: tuple[Stage, ...] = ("writing", "planning", "reading", "steps", "decoding", "finishing")
FIRST_SHARE = 0.03
LAST_SHARE = 0.99
# A source is read in seconds or less, but for the first one or beside other work. Expecting as much again would put the
# next bar far ahead of its steps, and it never goes back.
MOST_OF_READING = 0.1


def shares_by(seconds: Mapping[str, float]) -> Shares:
    """Return the shares of a run whose stages take so many seconds; others begin it."""
    weighed = {stage: seconds.get(stage, 0.0) for stage in WEIGHED}
    others = sum(weighed.values()) - weighed["reading"]
    weighed["reading"] = min(weighed["reading"], others * MOST_OF_READING)
    total = sum(weighed.values())
    if total <= 0:
        return SHARES
    shares = dict(SHARES)
    start = FIRST_SHARE
    for stage in WEIGHED:
        share = (LAST_SHARE - FIRST_SHARE) * weighed[stage] / total
        shares[stage] = (start, share)
        start += share
    return shares


def share_done(progress: Progress, shares: Shares = SHARES) -> float:
    """Return how far a run is, from 0 to 1: as it says itself, or by its stage."""
    if progress.share is not None:
        return progress.share
    start, share = shares[progress.stage]
    if progress.steps:
        start += share * min(progress.step / progress.steps, 1.0)
    return round(start, 3)


@dataclass(frozen=True)
class Draft:
    """The lyrics so far, and why they ended: "" not yet, "stop" by the model, "length" cut off after `max_tokens`."""

    text: str
    tokens: int
    end: Literal["", "stop", "length"] = ""


@dataclass(frozen=True)
class Done:
    """The end of a job or a download: `files` has the path of one audio file for each good take, none for words."""

    files: tuple[str, ...]
    # Of a program's call only the text is known; it is empty for a download.
    record: SongRecord | WordsRecord | WordsResult

    @property
    def song(self) -> SongRecord:
        """The record of a song; raises TypeError if the job was another one."""
        if not is_song(self.record):
            raise TypeError("this is not the record of a song")
        return self.record

    @property
    def words(self) -> WordsResult:
        """What a job other than a song made; raises TypeError for a song."""
        if is_song(self.record):
            raise TypeError("this is the record of a song")
        return cast(WordsResult, self.record)


@dataclass(frozen=True)
class Failed:
    problem: Problem


@dataclass(frozen=True)
class DraftOffer:
    """From now on the song can be heard as it is by then; creating the file `ask` asks for that, once."""

    ask: str


@dataclass(frozen=True)
class SongDraft:
    """The first take as it promises to sound at `step`: the path of an audio file, "" if a problem prevented it."""

    step: int
    file: str = ""
    problem: Problem | None = None


NO_SONG_DRAFT = Problem("no_draft", "The song could not be heard half-way.", hint="It continues.")

Event = Progress | Draft | DraftOffer | SongDraft | Done | Failed


@dataclass(frozen=True)
class Take:
    seed: int
    file: str = ""  # the path of its float WAV, unless a problem ended it
    problem: Problem | None = None
    warnings: tuple[str, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)  # of its score, 0 to 1 each
    words: WordsResult = field(default_factory=WordsResult)  # its timed lyrics, if they were timed


@dataclass(frozen=True)
class Outcome:
    """What a job made on the GPU: the takes of a song, or for another job the `result`, which goes into its record."""

    ran: Ran
    takes: tuple[Take, ...] = ()
    result: WordsResult = field(default_factory=WordsResult)
    notes: tuple[str, ...] = ()  # for the visitor

    def with_facts(self, **facts: Any) -> Outcome:
        """Return the outcome with more fields of `ran`."""
        return replace(self, ran=replace(self.ran, **facts))
