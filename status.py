"""The studio's status: its models, its device, what they can do, and its workers.

`Backend.status` builds a `Status`. The page reads its attributes, and `/capabilities` publishes
most of them as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from events import Problem

State = Literal["off", "none", "ready", "loaded", "failed"]  # "none": the weights are missing


@dataclass(frozen=True)
class LanguageModelStatus:
    """The planner or the songwriter: `model` is its name, "" if it is off; `source` as in `model_weights.Weights`."""

    state: State
    model: str
    source: str = ""
    problem: Problem | None = None

    @property
    def available(self) -> bool:
        """Whether it can be used; it can after it failed for lack of memory, because it may fit the next time."""
        if self.state == "failed":
            return self.problem is not None and self.problem.code == "out_of_memory"
        return self.state in ("ready", "loaded")

    @property
    def is_built_in(self) -> bool:
        """Whether it is the small model that comes with the studio."""
        return self.source == "preview" and self.model == "preview"

    def reason(self, hint: bool = True) -> str:
        """Return why it cannot be used and, with `hint`, what to do about it; "" if nothing is wrong."""
        if self.problem is None:
            return ""
        if hint:
            return self.problem.text()
        return self.problem.message

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "problem": problem_facts(self.problem)}


@dataclass(frozen=True)
class SongwriterStatus(LanguageModelStatus):
    engine: str = "transformers"  # or "mlx"


@dataclass(frozen=True)
class SongModelStatus:
    """A song model that a request can name.

    `kind` is what it was trained for, `model` its id, `size_gb` what its files take, about so much
    where they are missing. `own` is the one that the studio was started for. `download_gb` is what the
    page's download would fetch, at most so much before the hub was asked; 0 if none is offered.
    """

    name: str
    kind: str
    model: str
    state: Literal["ready", "loaded", "missing"]
    own: bool
    size_gb: float
    tasks: Mapping[str, str]  # task -> official, experimental or unsupported
    problem: Problem | None = None
    gpu_seconds: int = 0  # on ZeroGPU, for a minute of music
    download_gb: float = 0.0

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "problem": problem_facts(self.problem)}


@dataclass(frozen=True)
class WorkerStatus:
    """A process that makes songs; `node` is its machine's id in a Ray cluster, "" if songs are made in this process.

    `models` are the ids of the song models that it holds; it took another one than before in
    `switches` of its songs.
    """

    id: str
    node: str
    pid: int
    device: str
    busy: bool
    models: tuple[str, ...] = ()
    switches: int = 0


@dataclass(frozen=True)
class TimedLyrics:
    """Whether the lines of a song can be timed with this checkpoint, or the `reason` why not."""

    available: bool
    reason: str


@dataclass(frozen=True)
class Status:
    """Facts about the models and the machine; those that need torch are "" until it is loaded.

    The song model has a `model` id, a `revision` and a `source` as in `model_weights.Weights`;
    `problem` says why something else runs, or why nothing does.
    """

    engine: Literal["xl", "preview"]
    model: str
    revision: str
    source: str
    kind: str  # what the checkpoint was trained for: base, sft, turbo or preview
    turbo: bool
    problem: Problem | None
    download_gb: float  # of the default model
    device: str
    device_reason: str
    dtype: str
    memory_plan: str  # in words
    memory_plans: tuple[str, ...]  # the plans that can be chosen
    selfcheck: str  # what is switched off on this machine, in a sentence; "" if nothing is
    planner: LanguageModelStatus
    songwriter: SongwriterStatus
    song_models: tuple[SongModelStatus, ...]
    tasks: Mapping[str, str]  # task -> official, experimental or unsupported
    unsupported: Mapping[str, str]  # task -> why
    timed_lyrics: TimedLyrics
    workers: tuple[WorkerStatus, ...]

    @property
    def is_built_in(self) -> bool:
        return self.engine == "preview"

    def kind_of(self, name: str) -> str:
        """Return what the song model called `name` was trained for, the studio's own by default."""
        for model in self.song_models:
            if name == model.name:
                return model.kind
        return self.kind

    def to_get(self, name: str) -> SongModelStatus | None:
        """Return the song model called `name` if it is missing and its download is offered."""
        for model in self.song_models:
            if name == model.name and model.download_gb:
                return model
        return None

    @property
    def uses_workers(self) -> bool:
        """Whether songs are made by Ray workers instead of this process."""
        return not self.workers or len(self.workers) > 1 or bool(self.workers[0].node)

    def facts(self) -> dict[str, Any]:
        """Return what `/capabilities` publishes, in the order in which it does."""
        return {
            "model": self.model,
            "revision": self.revision,
            "engine": self.engine,
            "turbo": self.turbo,
            "problem": problem_facts(self.problem),
            "device": self.device,
            "device_reason": self.device_reason,
            "dtype": self.dtype,
            "memory_plan": self.memory_plan,
            "selfcheck": self.selfcheck,
            "planner": self.planner.facts(),
            "lyrics": self.songwriter.facts(),
            "models": [model.facts() for model in self.song_models],
            "tasks": dict(self.tasks),
            "unsupported": dict(self.unsupported),
            "timed_lyrics": asdict(self.timed_lyrics),
            "workers": [asdict(worker) for worker in self.workers],
        }


# Before any model has been looked for.
UNKNOWN = Status(
    engine="xl",
    model="",
    revision="",
    source="none",
    kind="sft",
    turbo=False,
    problem=None,
    download_gb=0.0,
    device="",
    device_reason="",
    dtype="",
    memory_plan="",
    memory_plans=(),
    selfcheck="",
    planner=LanguageModelStatus("none", ""),
    songwriter=SongwriterStatus("none", ""),
    song_models=(),
    tasks={},
    unsupported={},
    timed_lyrics=TimedLyrics(available=False, reason=""),
    workers=(),
)


def problem_facts(problem: Problem | None) -> dict[str, str] | None:
    if problem is None:
        return None
    return problem.facts()
