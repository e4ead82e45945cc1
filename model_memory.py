"""The memory plan: which of the three models are on the device during a job, and in how many bits.

A 24 GB card cannot hold all three at once. `choose` decides from numbers alone, before anything is loaded; `Placing`
moves the models accordingly. Sizes are bytes in memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import psutil

import bootstrap
import estimate
import model_offload
import models
from estimate import Song, coding_bytes, planner_bytes, song_bytes, song_of
from events import Problem, StudioError
from model_hub import PARTS
from model_weights import Weights, bytes_in
from models import FAST8, LADDERS, Device, Kind, Plan, is_apart
from params import Settings

# The plans, as status and capabilities name them.
TEXTS: dict[str, str] = {
    "resident": "everything resident",
    "swap": "one model at a time",
    "offload": "one part of a model at a time",
    "fp8": "one part of a model at a time, the transformer in 8 bits",
    "fast8": "the transformer computed in 8 bits",
}
# In bfloat16, from the parameter counts.
XL_PARTS_GB = {
    **{"transformer": 8.34, "condition_encoder": 1.22, "text_encoder": 1.19, "vae": 0.34},
    **{"audio_tokenizer": 0.21, "audio_token_detokenizer": 0.21},
}

GB = 10**9
WHOLE = ("swap", FAST8)  # plans that move the song model as a whole
USUAL_SECONDS = 60.0  # of the song that the status assumes before the first job
SPARE_BYTES = GB // 4  # kernels and the allocator's overhead (assumed)
WRITER_WORK_BYTES = 1 * GB


@dataclass(frozen=True)
class Sizes:
    """Bytes of the song `pipeline`, its `transformer`, the `largest` other part, and the other models (0: missing)."""

    pipeline: int
    transformer: int
    largest: int
    planner: int = 0
    writer: int = 0


@dataclass(frozen=True)
class Choice:
    """A plan and its peak memory `need` in bytes, with a problem if not even the smallest plan fits."""

    plan: Plan
    need: int
    problem: Problem | None = None


def choose(kind: str, free: int | None, sizes: Sizes, song: Song | None, forced: str = "auto") -> Choice:
    """Choose the fastest plan that fits into `free` bytes of the device `kind`; None means no limit.

    `free` is the free memory, not counting our own models. `song` is None for a job that only writes text. A `forced`
    plan is used whether it fits or not.
    """
    if forced != "auto":
        return Choice(forced, needed(forced, sizes, song))
    for plan in LADDERS[kind]:
        need = needed(plan, sizes, song)
        if free is None or need <= free:
            return Choice(plan, need)
    hint = "Close other programs, or choose a smaller model."
    ways = estimate.smaller(song, lambda smaller: needed(plan, sizes, smaller) <= free) if song else ""
    if ways:
        hint = f"It fits with {ways}."
    message = f"This needs at least {need / GB:.1f} GB of memory; {free / GB:.1f} GB are free ({kind})."
    return Choice(plan, need, Problem("out_of_memory", message, hint=hint))


def lower(kind: str, plan: str) -> Plan | None:
    ladder = LADDERS[kind]
    return ladder[-1] if plan == FAST8 else dict(pairwise(ladder)).get(plan)


def not_above(kind: str, plan: Plan, limit: str) -> Plan:
    """Return `plan`, or `limit` if that needs less."""
    order = (FAST8, *LADDERS[kind])
    return max(plan, limit, key=order.index) if limit in order else plan


def needed(plan: str, sizes: Sizes, song: Song | None) -> int:
    loop = song_bytes(song) + SPARE_BYTES if song else 0
    coding = coding_bytes(song) + SPARE_BYTES if song else 0
    writing = WRITER_WORK_BYTES if sizes.writer else 0
    planning = planner_bytes(song) if sizes.planner else 0
    if plan == "resident":
        return sizes.pipeline + sizes.planner + sizes.writer + max(loop, coding, planning, writing)
    if song is None:
        return max(sizes.planner + planning, sizes.writer + writing)
    # The writer never runs during a song.
    transformer = sizes.transformer // 2 if plan in ("fp8", FAST8) else sizes.transformer
    if plan in WHOLE:
        own = sizes.pipeline - sizes.transformer + transformer + max(loop, coding)
    else:
        # The transformer is away while the VAE works.
        own = max(transformer + loop, sizes.largest + coding)
    return max(sizes.planner + planning, own)


class Placing:
    """Chooses the memory plan of each job and moves the models accordingly; `song` is the job's, None for words."""

    def __init__(self, loaded: models.Models):
        self._models = loaded
        self._limit = ""
        self._fell = False
        self._away = False
        self._sizes = Sizes(0, 0, 0)
        self.song: Song | None = None

    def text(self) -> str:
        """Return the plan in words; before the first job, the one for a typical song."""
        loaded = self._models
        return TEXTS[loaded.plan or self._choice(song_of(loaded.weights, loaded.device(), USUAL_SECONDS), "auto").plan]

    def begin(self, request: Any, settings: Settings | None, source: float, at_most: str | None = None) -> str:
        """Choose and adopt the plan for `request`, whose source is `source` seconds long; return its name.

        `settings` are those of a song, None for words. `at_most` is the largest plan still allowed, for later jobs too.
        A pipeline that was built for a different plan is unloaded and built again on its next use. Raises StudioError
        if nothing fits.
        """
        loaded, device = self._models, self._models.device()
        self._fell, self.song = at_most is not None, None
        self._limit = at_most or self._limit
        if settings is not None:
            seconds = request.song_seconds(source)
            self.song = song_of(loaded.weights, device, seconds, request.takes, settings.guided)
        forced = getattr(getattr(request, "options", None), "memory_plan", "auto")
        if forced not in ("auto", *(plans := models.plans_on(device))):
            raise StudioError.of(_unknown(device.kind, forced, plans))
        choice = self._choice(self.song, forced)
        if choice.problem and not at_most:
            raise StudioError.of(choice.problem)
        plan = not_above(device.kind, choice.plan, self._limit if at_most or forced == "auto" else "")
        if plan != loaded.plan and not {plan, loaded.plan} <= {"", "resident", "swap"}:
            loaded.unload_pipeline()
            self._away = False
        loaded.plan = plan
        return plan

    def lower(self) -> str | None:
        """Return the plan for the one retry of a job that runs out of memory, None if there is none."""
        if self._fell or bootstrap.on_zerogpu():
            return None
        return lower(self._models.device().kind, self._models.plan)

    def for_planning(self) -> None:
        """Make room for the planner next to the song model, or in its place if both do not fit."""
        if not self._moves():
            return
        self._models.lyrics.unload()
        # On a shared-memory device the song model would have to be loaded again for every song.
        if self._models.plan in WHOLE and is_apart(self._models.device().kind) and not self._both_fit():
            self._send_away()

    def for_song(self) -> None:
        if self._moves():
            self._models.lyrics.unload()
            if self._models.plan != FAST8 or not self._both_fit():
                self._models.planner.unload()
        if self._away:
            self._away = False
            self._models.pipeline().to(self._models.device().kind)

    def for_words(self, slot: models.Slot) -> None:
        if self._moves():
            (self._models.lyrics if slot is self._models.planner else self._models.planner).unload()
            self._send_away()

    def _moves(self) -> bool:
        return self._models.plan not in ("", "resident")

    def _both_fit(self) -> bool:
        """Return whether the planner fits next to the song model under the current plan."""
        room, sizes, song = room_for_models(self._models.device().kind), self._sizes, self.song
        pipeline, work = sizes.pipeline, planner_bytes(song)
        if self._models.plan == FAST8:
            pipeline -= sizes.transformer // 2
            work = max(work, needed(FAST8, Sizes(0, 0, 0), song))
        return room is None or pipeline + sizes.planner + work <= room

    def _send_away(self) -> None:
        """Move the song model to the machine's memory, or unload it if the device shares that memory."""
        if not self._models.loaded or self._away:
            return
        if not is_apart(self._models.device().kind):
            self._models.unload_pipeline()
        elif self._models.plan in WHOLE:
            self._models.pipeline().to("cpu")
            self._away = True
        else:
            model_offload.bring(self._models.pipeline(), "")
        models.free_memory()

    def _choice(self, song: Song | None, forced: str) -> Choice:
        if bootstrap.on_zerogpu():
            return Choice("resident", 0)  # `spaces` deletes the files, whose sizes count below, once they are packed
        device, planner = self._models.device(), self._models.planner.weights
        # Planner checkpoints are bfloat16, the tests' is float32.
        factor = 2 if models.planner_dtype(device) == "float32" and planner.source != "preview" else 1
        words = factor * bytes_in(planner.folder), bytes_in(self._models.lyrics.weights.folder)
        self._sizes = replace(sizes_of(self._models.weights, device), planner=words[0], writer=words[1])
        return choose(device.kind, room_for_models(device.kind), self._sizes, song, forced)


def sizes_of(weights: Weights, device: Device) -> Sizes:
    """Return the sizes of `weights` on `device`, from those of the files."""
    if weights.folder is None or not weights.folder.exists():  # not downloaded yet, or gone by now
        parts = {name: int(size * GB) for name, size in XL_PARTS_GB.items()}
    else:
        parts = {part: bytes_in(weights.folder / part) for part in PARTS}
    factor = 2 if device.storage_dtype == "float32" else 1  # checkpoints are bfloat16
    transformer, others = factor * parts.pop("transformer"), [factor * size for size in parts.values()]
    return Sizes(transformer + sum(others), transformer, max(others))


def room_for_models(kind: Kind) -> int | None:
    """Return the bytes that our models may use on the device: the free memory and what they use already.

    None on ZeroGPU, where each call gets a whole card that the main process cannot see.
    """
    if bootstrap.on_zerogpu():
        return None
    if kind == "cpu":
        return models.available_memory() + psutil.Process().memory_info().rss
    import torch

    if kind == "mps":
        # The share of the machine's memory that one process may use.
        return int(torch.mps.recommended_max_memory())
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())


def vram_limit_for(kind: Kind) -> int | None:
    """Return the card's memory in bytes; None if the device shares the machine's, and on ZeroGPU."""
    if kind != "cuda" or bootstrap.on_zerogpu():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def trim_heap() -> None:
    """Return a song's freed arrays, hundreds of MB that glibc would keep, to the system."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def fallback_note(before: str, after: str) -> str:
    return f"Memory ran out with {TEXTS[before]}, so the studio tried again with {TEXTS[after]}."


def too_large(song: Song | None) -> Problem:
    """Return the problem of a job that ran out of memory for good; the hint halves its working memory."""
    ways = estimate.smaller(song, lambda less: song_bytes(less) <= song_bytes(song) / 2) if song else ""
    hint = f"It should fit with {ways}." if ways else "Make a shorter song or fewer takes."
    return Problem("out_of_memory", "There was not enough memory.", hint=hint)


def _unknown(kind: str, plan: str, known: tuple[str, ...]) -> Problem:
    devices = {"cuda": "this NVIDIA card", "mps": "Apple's GPU", "cpu": "the processor"}
    device = "ZeroGPU" if bootstrap.on_zerogpu() else devices[kind]
    message = f"Memory plan on {device} must be one of {', '.join(('auto', *known))}, not {plan}."
    hint = "Use an NVIDIA card of the Ada, Hopper or Blackwell generation, or another plan." if plan == FAST8 else ""
    return Problem("unsupported", message, "options.memory_plan", hint)
