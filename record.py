"""The record of a job: what it takes to make the result again, and what really ran.

It is JSON. The API and the page get it with the files, and every file has it in its tags, there
with the entry of that take alone. No object in it has a key "path", "url" or "meta": clients would
try to download it. A record that comes back, in a file's tags or from a browser, is untrusted;
`Stored` reads it.

A new field needs a line in `SongRecord` or `WordsRecord`, one in `Ran` if the machine that does the
work knows it, and one in `song_record` or `words_record`. The texts here are those of the table in
docs/api.md.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Annotated, Any, NotRequired, TypedDict, TypeGuard, TypeVar

from limits import STUDIO_VERSION

HERE = "here"  # the worker's name if this process does the work
# The packages whose versions the record holds: they may change the sound.
PACKAGES = ("torch", "diffusers", "transformers", "gradio", "huggingface_hub", "soundfile")

Part = TypeVar("Part")


# --- its parts ------------------------------------------------------------------------------------


class ModelEntry(TypedDict):
    id: Annotated[str, "its name on Hugging Face, or its folder"]
    revision: Annotated[str, "the commit, if it is known"]
    engine: Annotated[str, "`xl` or `preview`; for text `transformers` or `mlx`"]
    borrowed: NotRequired[
        Annotated[
            dict[str, str], "the parts that it took from another model, with that model's name"
        ]
    ]


class UploadEntry(TypedDict):
    name: Annotated[str, "the name of the file"]
    sha256: Annotated[str, "its hash"]


class SamplingEntry(TypedDict):
    steps: Annotated[int, "how many there were"]
    guidance: Annotated[float, "its scale"]
    shift: Annotated[float, "of the schedule"]
    sampler: Annotated[str, "`ode` or `sde`"]
    timbre_token: Annotated[bool, "whether it was used"]
    turbo: Annotated[bool, "whether the checkpoint is a turbo one"]


class LoraEntry(TypedDict):
    name: Annotated[str, "the name of the file"]
    source: Annotated[str, "the repository, or `upload`"]
    revision: Annotated[str, "the commit in the repository"]
    weight: Annotated[float, "the weight it acted with"]
    sha256: Annotated[str, "the hash of the file"]
    format: Annotated[str, "how it is stored"]
    ranks: Annotated[list[int], "the ranks that occur in it"]
    alphas: Annotated[list[float], "the alphas that occur in it"]
    modules: Annotated[int, "how many layers it changes"]


class PlanEntry(TypedDict):
    used: Annotated[bool, "whether the song was planned"]
    reason: NotRequired[Annotated[str, "why it was not"]]
    missed: NotRequired[Annotated[bool, "true if one was expected and there was no planner"]]
    failed: NotRequired[Annotated[bool, "true if there was a planner and it could not plan"]]
    bpm: NotRequired[Annotated[int, "the tempo"]]
    key: NotRequired[Annotated[str, "the key"]]
    time_signature: NotRequired[Annotated[str, "the beats per bar"]]
    language: NotRequired[Annotated[str, "the code of the language"]]
    caption: NotRequired[Annotated[str, "the prompt of the song"]]
    rewritten: NotRequired[Annotated[bool, "whether the planner wrote it"]]
    seed: NotRequired[Annotated[int, "pass it as `plan_seed` for the same plan"]]
    layout: NotRequired[Annotated[str, "how the planner was asked"]]
    model: NotRequired[Annotated[str, "the planner"]]
    temperature: NotRequired[Annotated[float, "the one it was drawn with"]]
    cfg: NotRequired[Annotated[float, "the guidance of its codes"]]


class DetailEntry(TypedDict):
    value: Annotated[int | str, "what the song was made with"]
    source: Annotated[
        str,
        "what decided it: `prompt`, `lyrics` by their script, or `engine` where the built-in engine drew it",
    ]


class LengthEntry(TypedDict):
    seconds: Annotated[float, "how long the song became"]
    source: Annotated[str, "what decided it: `planner`, `lyrics` or `style`"]


class GpuEntry(TypedDict):
    estimated: Annotated[int, "the seconds that were thought to be needed"]
    asked: Annotated[int, "the seconds that were asked for last"]
    tries: Annotated[int, "1, or 2 if the first seconds were used up"]
    used: Annotated[float, "the seconds for which the worker had its card"]


class LineEntry(TypedDict):
    start: Annotated[float, "seconds"]
    end: Annotated[float, "seconds"]
    text: Annotated[str, "the line"]


class TakeEntry(TypedDict):
    seed: Annotated[int, "used alone, it makes this take again"]
    duration: Annotated[float, "seconds"]
    peak_dbfs: Annotated[float, "the highest sample"]
    loudness_lufs: Annotated[float | None, "the integrated loudness; null for silence"]
    warnings: Annotated[list[str], "what may be wrong with it"]
    score: NotRequired[
        Annotated[
            float, "how good it is, 0 to 100; only what `score` in the options asks for counts"
        ]
    ]
    score_parts: NotRequired[
        Annotated[dict[str, float], "what it is put together from, 0 to 100 each"]
    ]
    alignment: NotRequired[
        Annotated[float, "how far the lyrics can be followed, 0 to 1, if the checkpoint can tell"]
    ]
    lines: NotRequired[Annotated[list[LineEntry], "when each line of the lyrics is sung"]]
    gain_reduction_db: NotRequired[
        Annotated[float, "how far the limiter turned peaks down to reach `loudness`"]
    ]
    name: NotRequired[Annotated[str, "the name of its file; not in the file's own tags"]]
    sha256: NotRequired[Annotated[str, "the hash of its file; not in the file's own tags"]]


class TakeFailure(TypedDict):
    take: Annotated[int, "its number, from 1"]
    seed: Annotated[int, "its seed"]
    message: Annotated[str, "what happened, and what to try"]


class PassedOver(TypedDict):
    seed: Annotated[int, "its seed"]
    score: Annotated[float | None, "its score; null if it failed"]


# --- the record -----------------------------------------------------------------------------------


class JobRecord(TypedDict):
    studio: Annotated[str, "the version of the studio"]
    mode: Annotated[str, "`generate`, `cover`, `extend`, `edit`, `lyrics` ..."]
    request: Annotated[dict[str, Any], "every parameter but the files"]
    model: Annotated[ModelEntry, "the model that did the work"]
    device: Annotated[str, "`cuda`, `mps` or `cpu`"]
    versions: Annotated[dict[str, str], "of Python and of the libraries"]
    worker: Annotated[str, "`here`, or the name of a Ray worker"]
    memory_plan: Annotated[str, "the memory plan that was in force"]
    seconds: Annotated[
        dict[str, float], "how long each stage took, and a `draft` that somebody asked for"
    ]
    gpu: NotRequired[Annotated[GpuEntry, "on ZeroGPU"]]


class SongRecord(JobRecord):
    audio: Annotated[dict[str, UploadEntry], "the uploads, by parameter"]
    seeds: Annotated[list[int], "one for each take"]
    variation_seeds: Annotated[list[int], "one for each take, if `variation` is above 0"]
    sampling: Annotated[SamplingEntry, "the settings after defaults"]
    dtype: Annotated[str, "the numbers that were computed with"]
    instruction: Annotated[str, "what the model was told to do"]
    prompt_used: Annotated[str, "the prompt that the model read"]
    prompt_dropped: Annotated[str, "its end, if that did not fit"]
    lyric_tokens: Annotated[int, "the length of the lyrics; the model reads the first 2,048"]
    length: NotRequired[Annotated[LengthEntry, "of a song whose length was automatic"]]
    details: NotRequired[
        Annotated[
            dict[str, DetailEntry],
            "BPM, key, time signature and language that were left open and that the prompt, the lyrics' script or the "
            "built-in engine decided",
        ]
    ]
    switch_step: NotRequired[
        Annotated[int, "the step from which a cover's source or a plan no longer counts"]
    ]
    plan: Annotated[PlanEntry | None, "for `/generate`; null for the others"]
    loras: Annotated[list[LoraEntry], "the LoRAs that acted, in order"]
    notes: Annotated[list[str], "what else is worth knowing"]
    errors: Annotated[list[TakeFailure], "the takes that failed"]
    takes: Annotated[list[TakeEntry], "the takes, in the order of the files"]
    passed_over: NotRequired[
        Annotated[list[PassedOver], "with `best_of`, the songs that were not kept"]
    ]


class WordsResult(TypedDict, total=False):
    """What a job other than a song makes: lyrics, a song in words, or the times of the lines."""

    text: str
    end: str
    tokens: int
    sketch: dict[str, Any]
    lines: list[LineEntry]
    lrc: str
    score: float


class WordsRecord(JobRecord, WordsResult):
    """What the page gets of lyrics, ideas, descriptions and timed lyrics."""

    seed: int


def is_song(record: SongRecord | WordsResult) -> TypeGuard[SongRecord]:
    return "takes" in record


def take_names(record: SongRecord | WordsResult) -> tuple[str, ...]:
    """Return the names of the files of a run, one for each good take."""
    if is_song(record):
        return tuple(take["name"] for take in record["takes"])
    return ()


# --- written --------------------------------------------------------------------------------------


class Instructions(TypedDict):
    """The words that the song model was given."""

    instruction: str
    prompt_used: str
    prompt_dropped: str
    lyric_tokens: int


@dataclass(frozen=True)
class Ran:
    """What really ran. On the way out the mode, the GPU entry point, ZeroGPU and the worker each add what they know."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    sampling: SamplingEntry | None = None
    instructions: Instructions | None = None
    switch_step: int | None = None
    length: LengthEntry | None = None
    details: Mapping[str, DetailEntry] = field(default_factory=dict)
    plan: PlanEntry | None = None
    loras: Sequence[LoraEntry] = ()
    kind: str = ""  # what the song's checkpoint was trained for; not in the record
    model: ModelEntry | None = None
    device: str = ""
    dtype: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    memory_plan: str = ""
    gpu: GpuEntry | None = None
    worker: str = HERE


def song_record(
    ran: Ran,
    *,
    mode: str,
    request: dict[str, Any],
    audio: dict[str, UploadEntry],
    seeds: Sequence[int],
    variation_seeds: Sequence[int],
    notes: Sequence[str],
) -> SongRecord:
    """Return the record of a song before its takes are saved, which fill in "takes" and "errors"."""
    instructions = _known(ran.instructions)
    record = SongRecord(
        studio=STUDIO_VERSION,
        mode=mode,
        request=request,
        audio=audio,
        seeds=list(seeds),
        variation_seeds=list(variation_seeds),
        plan=ran.plan,
        loras=list(ran.loras),
        sampling=_known(ran.sampling),
        instruction=instructions["instruction"],
        prompt_used=instructions["prompt_used"],
        prompt_dropped=instructions["prompt_dropped"],
        lyric_tokens=instructions["lyric_tokens"],
        model=_known(ran.model),
        device=ran.device,
        dtype=ran.dtype,
        versions=dict(ran.versions),
        worker=ran.worker,
        memory_plan=ran.memory_plan,
        seconds=dict(ran.seconds),
        notes=list(notes),
        errors=[],
        takes=[],
    )
    if ran.length is not None:
        record["length"] = ran.length
    if ran.details:
        record["details"] = dict(ran.details)
    if ran.switch_step is not None:
        record["switch_step"] = ran.switch_step
    if ran.gpu is not None:
        record["gpu"] = ran.gpu
    return record


def words_record(
    ran: Ran, *, mode: str, request: dict[str, Any], seed: int, result: WordsResult
) -> WordsRecord:
    """Return the record of a job other than a song."""
    record = WordsRecord(
        studio=STUDIO_VERSION,
        mode=mode,
        request=request,
        seed=seed,
        model=_known(ran.model),
        device=ran.device,
        versions=dict(ran.versions),
        worker=ran.worker,
        memory_plan=ran.memory_plan,
        seconds=dict(ran.seconds),
    )
    if ran.gpu is not None:
        record["gpu"] = ran.gpu
    return {**record, **result}


def _known(part: Part | None) -> Part:
    """Return `part` of a `Ran`, which every record has; raises ValueError if nobody has filled it in."""
    if part is None:
        raise ValueError("what ran is not known")
    return part


def library_versions() -> dict[str, str]:
    return dict(_library_versions())


@functools.cache
def _library_versions() -> Mapping[str, str]:
    # Each version is read from a file of a hundred kilobytes.
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of `stage`."""
    started = time.monotonic()
    yield
    seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - started, 3)


# --- read back ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """The parts of an untrusted record, empty where it does not have a record's form. The values may be anything."""

    mode: Any
    request: Mapping[str, Any]
    options: Mapping[str, Any]
    audio: Mapping[str, Any]
    sampling: Mapping[str, Any]
    plan: Mapping[str, Any]
    takes: Sequence[Mapping[str, Any]]
    notes: Sequence[Any]
    details: Mapping[str, Any]
    model: Any  # the id of the song model
    seed: Any  # None unless the record is of a single take, as that in a file is
    variation_seed: Any

    @classmethod
    def from_record(cls, record: Any) -> Stored:
        record = _mapping(record)
        request = _mapping(record.get("request"))
        takes = [_mapping(take) for take in _sequence(record.get("takes"))]
        seed = None
        if len(takes) == 1:
            seed = takes[0].get("seed")
        seeds = _sequence(record.get("seeds"))
        variation_seeds = _sequence(record.get("variation_seeds"))
        return cls(
            mode=record.get("mode"),
            request=request,
            options=_mapping(request.get("options")),
            audio=_mapping(record.get("audio")),
            sampling=_mapping(record.get("sampling")),
            plan=_mapping(record.get("plan")),
            takes=takes,
            notes=_sequence(record.get("notes")),
            details=_mapping(record.get("details")),
            model=_mapping(record.get("model")).get("id"),
            seed=seed,
            variation_seed=_paired(seeds, variation_seeds, seed),
        )

    @property
    def is_planned(self) -> bool:
        return self.plan.get("used") is True

    @property
    def key(self) -> str:
        """The key of the song, or ""."""
        key = self.song_detail("key")
        return key if isinstance(key, str) else ""

    def song_detail(self, name: str) -> Any:
        """Return the BPM, key, time signature or language that the song was made with, None or "" if it had none."""
        detail = _mapping(self.details.get(name)).get("value")
        return detail or self.plan.get(name) or self.request.get(name)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _paired(seeds: Sequence[Any], others: Sequence[Any], seed: Any) -> Any:
    """Return the one of `others` at the index of `seed` in `seeds`, None if there is none."""
    if seed not in seeds:
        return None
    index = seeds.index(seed)
    if index < len(others):
        return others[index]
    return None
