"""The memory plan: which of the three models are on the device during a job, and in how many bits.

A 24 GB card cannot hold the song model, the planner and the lyrics writer at once. `choose` decides from numbers alone,
before anything is loaded; `Placing` moves the models accordingly. Sizes are bytes in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

import bootstrap
import models
import offload
from events import Problem, StudioError
from hub import PARTS
from limits import LIMITS
from models import FAST8, LADDERS, Device, Kind, Plan, is_apart
from params import SongRequest, sampling_settings
from weights import Weights, bytes_in, checkpoint_kind, transformer_config

TEXTS: dict[str, str] = {
    "resident": "everything resident",
    "swap": "one model at a time",
    "offload": "one part of a model at a time",
    "fp8": "one part of a model at a time, the transformer in 8 bits",
    "fast8": "the transformer computed in 8 bits",
}
"""The plans, as status and capabilities name them."""

XL_PARTS_GB = {
    **{"transformer": 8.34, "condition_encoder": 1.22, "text_encoder": 1.19, "vae": 0.34},
    **{"audio_tokenizer": 0.21, "audio_token_detokenizer": 0.21},
}
"""In bfloat16, from the parameter counts."""

GB = 10**9
# Plans that move the song model as a whole.
WHOLE = ("swap", FAST8)
# The song that the status assumes before the first job.
USUAL_SECONDS = 60.0
TOKENS_PER_SECOND = 12.5
# The longest condition: lyrics, timbre and prompt.
CONDITION_TOKENS = 2_305
# The VAE encodes 30 s at a time, with 5 tensors of 128 channels at once; it decodes 20 s at a time, with 4.5 (counted).
CODING_NUMBERS = 30 * 48_000 * 128 * 5
# Kernels and the allocator's overhead (assumed).
SPARE_BYTES = GB // 4
# A token in the planner's cache: 28 layers of 8 heads of 128, keys and values, 2 bytes.
PLANNER_TOKEN_BYTES, PLANNER_PROMPT_TOKENS = 115_000, 1_000
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
class Shape:
    """The transformer's widths; `queries` and `keys` count all heads together."""

    hidden: int
    intermediate: int
    queries: int
    keys: int
    layers: int
    channels: int


XL = Shape(hidden=2560, intermediate=9728, queries=4096, keys=1024, layers=32, channels=64)
PREVIEW = Shape(hidden=96, intermediate=192, queries=96, keys=48, layers=2, channels=6)


@dataclass(frozen=True)
class Song:
    """What a song's working memory depends on; `wide` means 32-bit numbers.

    Every layer keeps the keys and values of `condition` tokens for all steps.
    """

    duration: float
    takes: int = 1
    guided: bool = True
    shape: Shape = XL
    wide: bool = False
    condition: int = CONDITION_TOKENS


@dataclass(frozen=True)
class Choice:
    """A plan and its peak memory `need` in bytes, with a problem if not even the smallest plan fits."""

    plan: Plan
    need: int
    problem: Problem | None = None


def choose(kind: str, free: int | None, sizes: Sizes, song: Song | None, forced: str = "auto") -> Choice:
    """Choose the fastest plan that fits into `free` bytes of the device `kind`; None means no limit.

    `free` is the free memory, not counting our own models. `song` is None for a job that only writes text. A `forced`
    plan is taken whether it fits or not.
    """
    if forced != "auto":
        return Choice(forced, needed(forced, sizes, song))
    for plan in LADDERS[kind]:
        need = needed(plan, sizes, song)
        if free is None or need <= free:
            return Choice(plan, need)
    return Choice(plan, need, _too_small(kind, free, need, sizes, song))


def lower(kind: str, plan: str) -> Plan | None:
    """Return the next smaller plan, None below the smallest."""
    ladder = LADDERS[kind]
    if plan == FAST8:
        return ladder[-1]
    place = ladder.index(plan) + 1 if plan in ladder else len(ladder)
    return ladder[place] if place < len(ladder) else None


def not_above(kind: str, plan: Plan, limit: str) -> Plan:
    """Return `plan`, or `limit` if that needs less."""
    ladder = LADDERS[kind]
    return limit if limit in ladder and (plan == FAST8 or ladder.index(limit) > ladder.index(plan)) else plan


def needed(plan: str, sizes: Sizes, song: Song | None) -> int:
    """Return the peak memory of `plan` in bytes."""
    loop = song_bytes(song) + SPARE_BYTES if song else 0
    coding = coding_bytes(song) + SPARE_BYTES if song else 0
    writing = WRITER_WORK_BYTES if sizes.writer else 0
    planning = planner_bytes(song) if sizes.planner else 0
    if plan == "resident":
        return sizes.pipeline + sizes.planner + sizes.writer + max(loop, coding, planning, writing)
    # With offloading, the transformer is away while the VAE works.
    parts = {
        "swap": sizes.pipeline + max(loop, coding),
        FAST8: sizes.pipeline - sizes.transformer // 2 + max(loop, coding),
        "offload": max(sizes.transformer + loop, sizes.largest + coding),
        "fp8": max(sizes.transformer // 2 + loop, sizes.largest + coding),
    }
    at_once = [sizes.planner + planning, parts[plan]]
    # The writer never runs during a song.
    return max(at_once) if song else max(sizes.planner + planning, sizes.writer + writing)


def song_bytes(song: Song) -> int:
    """Return the loop's working memory, counted by tensor; attention in windows adds nothing quadratic."""
    shape, size = song.shape, 4 if song.wide else 2
    # The peak is in the feed-forward part or in the attention in windows, with the layer's input and residual.
    feed_forward = 3 * shape.hidden + 2 * shape.intermediate
    windows = 2 * shape.hidden + 3 * shape.queries + 8 * shape.keys
    token = max(feed_forward, windows) + 7 * shape.channels
    rows = song.takes * (2 if song.guided else 1)
    kept = 2 * shape.layers * shape.keys * song.condition
    return int(size * (rows * TOKENS_PER_SECOND * song.duration * token + kept))


def coding_bytes(song: Song) -> int:
    """Return the working memory of the VAE for a tile, scaled with the size of the model."""
    return int(CODING_NUMBERS * song.shape.hidden / XL.hidden * (4 if song.wide else 2))


def _work_bytes(song: Song | None) -> int:
    """Return the working memory of a song: the loop's or the VAE's, whichever is larger."""
    return max(song_bytes(song), coding_bytes(song)) + SPARE_BYTES if song else 0


def shape_of(config: Mapping[str, Any]) -> Shape:
    size = config["head_dim"]
    return Shape(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        queries=size * config["num_attention_heads"],
        keys=size * config["num_key_value_heads"],
        layers=config["num_hidden_layers"],
        channels=config["audio_acoustic_hidden_dim"],
    )


def planner_bytes(song: Song | None) -> int:
    """Return the planner's cache for a song: two rows a take, since plans are guided."""
    takes, seconds = (song.takes, song.duration) if song else (1, 0.0)
    return int(2 * takes * (PLANNER_PROMPT_TOKENS + 5 * seconds) * PLANNER_TOKEN_BYTES)


# --- moving the models ----------------------------------------------------------------------------------------------


class Placing:
    """Chooses the memory plan of each job and moves the models accordingly."""

    def __init__(self, loaded: models.Models):
        self._models = loaded
        self._limit = ""
        self._fell = False
        self._away = False
        self._sizes = Sizes(0, 0, 0)
        self._song: Song | None = None

    def text(self) -> str:
        """Return the plan in words; before the first job, the one for a typical song."""
        return TEXTS[self._models.plan or self._choice(self._song_for(USUAL_SECONDS), "auto").plan]

    @staticmethod
    def plans(device: models.Device | None) -> tuple[str, ...]:
        """Return the plans that can be forced on `device`, or all of them while it is unknown."""
        return models.plans_on(device) if device or bootstrap.on_zerogpu() else tuple(TEXTS)

    def begin(self, request: Any, source: float, at_most: str | None = None) -> str:
        """Choose and adopt the plan for `request`, whose source is `source` seconds long; return its name.

        `at_most` is the largest plan still allowed. Raises StudioError if nothing fits.
        """
        self._fell = at_most is not None
        self._song = self._song_of(request, source)
        forced = getattr(getattr(request, "options", None), "memory_plan", "auto")
        device = self._models.device()
        if forced not in ("auto", *self.plans(device)):
            raise StudioError.of(_unknown(device.kind, forced, self.plans(device)))
        if bootstrap.on_zerogpu():
            self._models.plan = "resident"
            return self._models.plan
        choice = self._choice(self._song, forced)
        if choice.problem and not at_most:
            raise StudioError.of(choice.problem)
        limit = at_most or (self._limit if forced == "auto" else "")
        self._take(not_above(device.kind, choice.plan, limit))
        return self._models.plan

    def lower(self) -> str | None:
        """Return the next smaller plan, None if there is none. Later jobs will not use a larger one."""
        lower = self._lower()
        if lower:
            self._limit = lower
        return lower

    def may_fall(self) -> bool:
        """Return whether running out of memory in this job leads to a retry with a smaller plan."""
        return not self._fell and self._lower() is not None

    def too_large(self) -> StudioError:
        """Return the error for a job that ran out of memory under the smallest plan, with what would fit."""
        return StudioError.of(too_large(self._song))

    def for_planning(self) -> None:
        """Make room for the planner next to the song model, or in its place if both do not fit."""
        if not self._moves():
            return
        self._models.lyrics.unload()
        # On a shared-memory device the song model would have to be loaded again for every song.
        if self._models.plan in WHOLE and is_apart(self._models.device().kind) and not self._both_fit():
            self._send_away()

    def for_song(self) -> None:
        """Give the device to the song model alone."""
        if self._moves():
            self._models.lyrics.unload()
            if self._models.plan != FAST8 or not self._both_fit():
                self._models.planner.unload()
        self._bring_back()

    def for_words(self, slot: models.Slot) -> None:
        """Give the device to the language model of `slot` alone."""
        if not self._moves():
            return
        for other in (self._models.planner, self._models.lyrics):
            if other is not slot:
                other.unload()
        self._send_away()

    def _lower(self) -> str | None:
        return None if bootstrap.on_zerogpu() else lower(self._models.device().kind, self._models.plan)

    def _moves(self) -> bool:
        return self._models.plan not in ("", "resident")

    def _both_fit(self) -> bool:
        """Return whether the planner fits next to the song model under the current plan."""
        room, sizes, song = room_for_models(self._models.device().kind), self._sizes, self._song
        work = planner_bytes(song)
        if self._models.plan == FAST8:
            sizes, work = replace(sizes, pipeline=sizes.pipeline - sizes.transformer // 2), max(work, _work_bytes(song))
        return room is None or sizes.pipeline + sizes.planner + work <= room

    def _take(self, plan: str) -> None:
        """Adopt `plan`; a pipeline that was built differently is unloaded and built again on its next use."""
        alike = ("", "resident", "swap")
        if plan != self._models.plan and not (plan in alike and self._models.plan in alike):
            self._models.unload_pipeline()
            self._away = False
        self._models.plan = plan

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
            offload.send_away(self._models.pipeline())
        models.free_memory()

    def _bring_back(self) -> None:
        if self._away:
            self._away = False
            self._models.pipeline().to(self._models.device().kind)

    def _choice(self, song: Song | None, forced: str) -> Choice:
        device, weights = self._models.device(), self._models.weights
        if bootstrap.on_zerogpu():
            return Choice("resident", 0)
        sizes = sizes_of(weights, device)
        # Planner checkpoints are bfloat16, the built-in one float32.
        planner = self._models.planner.weights
        factor = 2 if models.planner_dtype(device) == "float32" and planner.source != "preview" else 1
        self._sizes = Sizes(
            sizes.pipeline,
            sizes.transformer,
            sizes.largest,
            planner=factor * bytes_in(planner.folder),
            writer=bytes_in(self._models.lyrics.weights.folder),
        )
        return choose(device.kind, room_for_models(device.kind), self._sizes, song, forced)

    def _song_of(self, request: Any, source: float) -> Song | None:
        if not isinstance(request, SongRequest):
            return None
        settings, _ = sampling_settings(request, checkpoint_kind(self._models.weights))
        return self._song_for(request.song_seconds(source), request.takes, settings.guidance > 1)

    def _song_for(self, seconds: float, takes: int = 1, guided: bool = True) -> Song:
        return song_of(self._models.weights, self._models.device(), seconds, takes, guided)


# --- what there is -------------------------------------------------------------------------------------------------


def sizes_of(weights: Weights, device: Device) -> Sizes:
    """Return the bytes of the pipeline of `weights` on `device`, from the sizes of its files."""
    if weights.folder is None or not weights.folder.exists():
        # Not downloaded yet: XL's sizes, or next to nothing for the preview.
        share = 0.001 if weights.engine == "preview" else 1.0
        parts = {name: int(share * size * 10**9) for name, size in XL_PARTS_GB.items()}
    else:
        parts = {part: bytes_in(weights.folder / part) for part in PARTS}
    # Checkpoints are bfloat16, the built-in one float32.
    factor = 2 if device.storage_dtype == "float32" and weights.engine != "preview" else 1
    parts = {part: size * factor for part, size in parts.items()}
    largest = max(size for part, size in parts.items() if part != "transformer")
    return Sizes(sum(parts.values()), parts["transformer"], largest)


def song_of(weights: Weights, device: Device, duration: float, takes: int, guided: bool) -> Song:
    try:
        shape = shape_of(transformer_config(weights))
    except KeyError:
        # Not downloaded yet.
        shape = PREVIEW if weights.engine == "preview" else XL
    return Song(duration, takes, guided, shape, wide=device.dtype == "float32")


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


# --- sentences ----------------------------------------------------------------------------------------------------


def fallback_note(before: str, after: str) -> str:
    """Return the note for page and record after a retry with a smaller plan."""
    return f"Memory ran out with {TEXTS[before]}, so the studio tried again with {TEXTS[after]}."


def too_large(song: Song | None) -> Problem:
    """Return the problem of a job that ran out of memory for good; the hint halves its working memory."""
    fits = _smaller(song, lambda smaller: song_bytes(smaller) <= song_bytes(song) / 2) if song else []
    hint = f"It should fit with {', or with '.join(fits)}." if fits else "Make a shorter song or fewer takes."
    return Problem("out_of_memory", "There was not enough memory.", hint=hint)


def _unknown(kind: str, plan: str, known: tuple[str, ...]) -> Problem:
    devices = {"cuda": "this NVIDIA card", "mps": "Apple's GPU", "cpu": "the processor"}
    device = "ZeroGPU" if bootstrap.on_zerogpu() else devices[kind]
    message = f"Memory plan on {device} must be one of {', '.join(('auto', *known))}, not {plan}."
    hint = "Use an NVIDIA card of the Ada, Hopper or Blackwell generation, or another plan." if plan == FAST8 else ""
    return Problem("unsupported", message, "options.memory_plan", hint)


def _too_small(kind: str, free: int, need: int, sizes: Sizes, song: Song | None) -> Problem:
    return Problem(
        "out_of_memory",
        f"This needs at least {need / GB:.1f} GB of memory; {free / GB:.1f} GB are free ({kind}).",
        hint=_what_fits(LADDERS[kind][-1], free, sizes, song),
    )


def _what_fits(plan: Plan, free: int, sizes: Sizes, song: Song | None) -> str:
    """Return a sentence that names the most takes or seconds that fit, if any do."""
    if song is None:
        return "Close other programs, or choose a smaller model."
    ways = _smaller(song, lambda smaller: needed(plan, sizes, smaller) <= free)
    if not ways:
        return "Close other programs, or use a smaller checkpoint."
    return f"It fits with {', or with '.join(ways)}."


def _smaller(song: Song, fits: Callable[[Song], bool]) -> list[str]:
    return [way for way in (fewer_takes(song, fits), shorter(song, fits, int(LIMITS["duration"].low))) if way]


# --- what would fit ------------------------------------------------------------------------------------------------


def fewer_takes(work: Any, fits: Callable[[Any], bool]) -> str:
    """Return the most takes with which `work` fits, as "2 takes", or "" if none do."""
    takes = most(1, work.takes, lambda count: fits(replace(work, takes=count)))
    return f"{takes} take{'s' if takes > 1 else ''}" if takes else ""


def shorter(work: Any, fits: Callable[[Any], bool], shortest: int) -> str:
    """Return the longest duration in steps of 5 s, at least `shortest`, with which `work` fits, or ""."""
    fives = most(shortest // 5, int(work.duration // 5), lambda count: fits(replace(work, duration=count * 5.0)))
    return f"{fives * 5} seconds of music" if fives else ""


def most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest whole number from `low` to `high` that fits, 0 if none does."""
    return next((number for number in range(high, low - 1, -1) if fits(number)), 0)


def trim_heap() -> None:
    """Let glibc return a song's freed arrays to the system, which it otherwise keeps: hundreds of MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
