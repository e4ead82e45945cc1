"""The memory plan: which of the three models lie on the device while a job runs, and in how many bits.

A 24 GB card cannot hold the song model, the planner and the lyrics writer at once. `choose` decides from numbers alone,
before anything is loaded; `Placing` carries it out. Sizes are bytes as the weights lie in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

import bootstrap
import models
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
"""What status and capabilities call each plan."""

XL_PARTS_GB = {
    **{"transformer": 8.34, "condition_encoder": 1.22, "text_encoder": 1.19, "vae": 0.34},
    **{"audio_tokenizer": 0.21, "audio_token_detokenizer": 0.21},
}
"""In bfloat16, by the number of parameters."""

GB = 10**9
# The plans by which the song model moves as a whole.
WHOLE = ("swap", FAST8)
# The song that the status describes before there was a job.
USUAL_SECONDS = 60.0
TOKENS_PER_SECOND = 12.5
# The longest condition: lyrics, timbre and prompt.
CONDITION_TOKENS = 2_305
# The VAE encodes 30 s at a time, with 5 tensors of 128 channels at once; it decodes 20 s at a time, with 4.5 (counted).
CODING_NUMBERS = 30 * 48_000 * 128 * 5
# What kernels and the allocator take beside the tensors (assumed).
SPARE_BYTES = GB // 4
# A token in the planner's cache: 28 layers of 8 heads of 128, keys and values, 2 bytes.
PLANNER_TOKEN_BYTES, PLANNER_PROMPT_TOKENS = 115_000, 1_000
WRITER_WORK_BYTES = 1 * GB


@dataclass(frozen=True)
class Sizes:
    """What each model takes: the song `pipeline`, its `transformer`, the `largest` of its other parts; 0: not here."""

    pipeline: int
    transformer: int
    largest: int
    planner: int = 0
    writer: int = 0


@dataclass(frozen=True)
class Shape:
    """The transformer's widths: of its hidden states, its feed-forward layers, all query heads and all key heads."""

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
    """What a song costs beside the weights; `shape` is the transformer's, `wide` means 32-bit numbers.

    `condition` are the tokens whose keys and values every layer keeps for all steps.
    """

    duration: float
    takes: int = 1
    guided: bool = True
    shape: Shape = XL
    wide: bool = False
    condition: int = CONDITION_TOKENS


@dataclass(frozen=True)
class Choice:
    """The plan, or the problem where none fits; `need` are the bytes that it takes at its height."""

    plan: Plan
    need: int
    problem: Problem | None = None


def choose(kind: str, free: int | None, sizes: Sizes, song: Song | None, forced: str = "auto") -> Choice:
    """Choose the fastest plan that fits into `free` bytes of the device `kind`; None bytes are no limit.

    `free` counts our own models as free memory. `song` is None for a job that only writes words. `forced` names a
    plan that is taken whether it fits or not.
    """
    if forced != "auto":
        return Choice(forced, needed(forced, sizes, song))
    for plan in LADDERS[kind]:
        need = needed(plan, sizes, song)
        if free is None or need <= free:
            return Choice(plan, need)
    return Choice(plan, need, _too_small(kind, free, need, sizes, song))


def lower(kind: str, plan: str) -> Plan | None:
    """Return the plan that needs less than `plan`, None below the last one."""
    ladder = LADDERS[kind]
    if plan == FAST8:
        return ladder[-1]
    place = ladder.index(plan) + 1 if plan in ladder else len(ladder)
    return ladder[place] if place < len(ladder) else None


def not_above(kind: str, plan: Plan, limit: str) -> Plan:
    """Return `plan`, or `limit` where that one needs less: what ran out of memory once is not tried again."""
    ladder = LADDERS[kind]
    return limit if limit in ladder and (plan == FAST8 or ladder.index(limit) > ladder.index(plan)) else plan


def needed(plan: str, sizes: Sizes, song: Song | None) -> int:
    """Return the bytes that `plan` takes at its height."""
    loop = song_bytes(song) + SPARE_BYTES if song else 0
    coding = coding_bytes(song) + SPARE_BYTES if song else 0
    writing = WRITER_WORK_BYTES if sizes.writer else 0
    planning = planner_bytes(song) if sizes.planner else 0
    if plan == "resident":
        return sizes.pipeline + sizes.planner + sizes.writer + max(loop, coding, planning, writing)
    # Where parts take turns, the transformer is gone while the VAE, one of the others, works.
    parts = {
        "swap": sizes.pipeline + max(loop, coding),
        FAST8: sizes.pipeline - sizes.transformer // 2 + max(loop, coding),
        "offload": max(sizes.transformer + loop, sizes.largest + coding),
        "fp8": max(sizes.transformer // 2 + loop, sizes.largest + coding),
    }
    at_once = [sizes.planner + planning, parts[plan]]
    # The writer runs by itself, so a song does not have to leave it room.
    return max(at_once) if song else max(sizes.planner + planning, sizes.writer + writing)


def song_bytes(song: Song) -> int:
    """Return the working memory of the loop, counted; attention in windows adds nothing that grows by the square."""
    shape, size = song.shape, 4 if song.wide else 2
    # A layer's input and residual stay while its feed-forward part, or its attention in windows, has the most tensors.
    feed_forward = 3 * shape.hidden + 2 * shape.intermediate
    windows = 2 * shape.hidden + 3 * shape.queries + 8 * shape.keys
    token = max(feed_forward, windows) + 7 * shape.channels
    rows = song.takes * (2 if song.guided else 1)
    kept = 2 * shape.layers * shape.keys * song.condition
    return int(size * (rows * TOKENS_PER_SECOND * song.duration * token + kept))


def coding_bytes(song: Song) -> int:
    """Return the working memory of the VAE, which works tile by tile; a smaller model has a smaller one."""
    return int(CODING_NUMBERS * song.shape.hidden / XL.hidden * (4 if song.wide else 2))


def _work_bytes(song: Song | None) -> int:
    """Return the working memory of a whole song: the loop's or the VAE's, whichever is more."""
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
    """Return the planner's cache for a song: a row for each take, and one more where it is guided."""
    takes, seconds = (song.takes, song.duration) if song else (1, 0.0)
    return int(2 * takes * (PLANNER_PROMPT_TOKENS + 5 * seconds) * PLANNER_TOKEN_BYTES)


# --- carried out ---------------------------------------------------------------------------------------------------


class Placing:
    """Chooses the memory plan of each job, and moves the models of the studio as it says."""

    def __init__(self, loaded: models.Models):
        self._models = loaded
        self._limit = ""
        self._fell = False
        self._away = False
        self._sizes = Sizes(0, 0, 0)
        self._song: Song | None = None

    def text(self) -> str:
        """Return the plan in words; before the first job the one that a usual song would get."""
        return TEXTS[self._models.plan or self._choice(self._song_for(USUAL_SECONDS), "auto").plan]

    @staticmethod
    def plans(device: models.Device | None) -> tuple[str, ...]:
        """Return the plans that may be asked for on `device`; all of them before it is known."""
        return models.plans_on(device) if device or bootstrap.on_zerogpu() else tuple(TEXTS)

    def begin(self, request: Any, source: float, at_most: str | None = None) -> str:
        """Choose and take the plan for `request`, whose source has `source` seconds; returns its name.

        `at_most` is the best plan that may still be taken. Raises StudioError where nothing fits.
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
        """Return the next plan below the one in force, to which later jobs keep as well; None where there is none."""
        lower = self._lower()
        if lower:
            self._limit = lower
        return lower

    def may_fall(self) -> bool:
        """Tell whether a lack of memory in this job leads to a second try by a lower plan."""
        return not self._fell and self._lower() is not None

    def too_large(self) -> StudioError:
        """Return what is said where memory ran out and there is no lower plan: what would fit."""
        return StudioError.of(too_large(self._song))

    def for_planning(self) -> None:
        """Make room for the planner beside the song model, or in its place where both do not fit."""
        if not self._moves():
            return
        self._models.lyrics.let_go()
        # Elsewhere the song model would have to be read again for every song.
        if self._models.plan in WHOLE and is_apart(self._models.device().kind) and not self._both_fit():
            self._send_away()

    def for_song(self) -> None:
        """Give the device to the song model alone."""
        if self._moves():
            self._models.lyrics.let_go()
            if self._models.plan != FAST8 or not self._both_fit():
                self._models.planner.let_go()
        self._bring_back()

    def for_words(self, slot: models.Slot) -> None:
        """Give the device to the language model of `slot` alone."""
        if not self._moves():
            return
        for other in (self._models.planner, self._models.lyrics):
            if other is not slot:
                other.let_go()
        self._send_away()

    # --- what comes and goes ----------------------------------------------------------------------------------

    def _lower(self) -> str | None:
        return None if bootstrap.on_zerogpu() else lower(self._models.device().kind, self._models.plan)

    def _moves(self) -> bool:
        return self._models.plan not in ("", "resident")

    def _both_fit(self) -> bool:
        """Tell whether the planner fits beside the song model as the plan in force keeps it."""
        room, sizes, song = room_for_models(self._models.device().kind), self._sizes, self._song
        work = planner_bytes(song)
        if self._models.plan == FAST8:
            sizes, work = replace(sizes, pipeline=sizes.pipeline - sizes.transformer // 2), max(work, _work_bytes(song))
        return room is None or sizes.pipeline + sizes.planner + work <= room

    def _take(self, plan: str) -> None:
        """Take `plan`; a pipeline that was built for other places or numbers is let go and built again at its use."""
        alike = ("", "resident", "swap")
        if plan != self._models.plan and not (plan in alike and self._models.plan in alike):
            self._models.let_go_of_pipeline()
            self._away = False
        self._models.plan = plan

    def _send_away(self) -> None:
        """Take the song model off the device: to the machine's own memory, or, where that is the same, altogether."""
        if not self._models.loaded or self._away:
            return
        if not is_apart(self._models.device().kind):
            self._models.let_go_of_pipeline()
        elif self._models.plan in WHOLE:
            self._models.pipeline().to("cpu")
            self._away = True
            models.free_memory()
        else:
            models.leave(self._models.pipeline())

    def _bring_back(self) -> None:
        if self._away:
            self._away = False
            self._models.pipeline().to(self._models.device().kind)

    # --- numbers ----------------------------------------------------------------------------------------------

    def _choice(self, song: Song | None, forced: str) -> Choice:
        device, weights = self._models.device(), self._models.weights
        if bootstrap.on_zerogpu():
            return Choice("resident", 0)
        sizes = sizes_of(weights, device)
        # A planner's weights are in bfloat16, the built-in one's in float32.
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
    """Return the bytes that the pipeline of `weights` takes on `device`, as far as its files tell."""
    if weights.folder is None or not weights.folder.exists():
        # Not here yet: XL's, or the preview's, which are nothing.
        share = 0.001 if weights.engine == "preview" else 1.0
        parts = {name: int(share * size * 10**9) for name, size in XL_PARTS_GB.items()}
    else:
        parts = {part: bytes_in(weights.folder / part) for part in PARTS}
    # The checkpoint is in bfloat16; the built-in one is in float32 already.
    factor = 2 if device.storage_dtype == "float32" and weights.engine != "preview" else 1
    parts = {part: size * factor for part, size in parts.items()}
    largest = max(size for part, size in parts.items() if part != "transformer")
    return Sizes(sum(parts.values()), parts["transformer"], largest)


def song_of(weights: Weights, device: Device, duration: float, takes: int, guided: bool) -> Song:
    """Return what the memory plan has to know about a song that `weights` make on `device`."""
    try:
        shape = shape_of(transformer_config(weights))
    except KeyError:
        # Not here yet; the built-in checkpoint is small in any case.
        shape = PREVIEW if weights.engine == "preview" else XL
    return Song(duration, takes, guided, shape, wide=device.dtype == "float32")


def room_for_models(kind: Kind) -> int | None:
    """Return the bytes that our models may take together on the device: what is free, and what they have already.

    None on ZeroGPU, where each call gets the whole card, whatever torch reports in the main process.
    """
    if bootstrap.on_zerogpu():
        return None
    if kind == "cpu":
        return models.available_memory() + psutil.Process().memory_info().rss
    import torch

    if kind == "mps":
        # Apple's GPU shares the machine's memory; this is the part of it that one process may have.
        return int(torch.mps.recommended_max_memory())
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())


def vram_limit_for(kind: Kind) -> int | None:
    """Return the graphics memory in bytes that plans may count with; None where it is no limit of its own.

    On MPS the GPU shares the machine's memory. On ZeroGPU each call gets the whole card, whatever torch reports here.
    """
    if kind != "cuda" or bootstrap.on_zerogpu():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


# --- sentences ----------------------------------------------------------------------------------------------------


def fallback_note(before: str, after: str) -> str:
    """Return what page and record say after a lack of memory."""
    return f"The memory was full with {TEXTS[before]}, so it was made again with {TEXTS[after]}."


def too_large(song: Song | None) -> Problem:
    """Return what is said of a job that ran out of memory for good, with what needs half as much beside the weights."""
    fits = _smaller(song, lambda smaller: song_bytes(smaller) <= song_bytes(song) / 2) if song else []
    hint = f"It should fit with {', or with '.join(fits)}." if fits else "Make a shorter song or fewer takes."
    return Problem("out_of_memory", "There was not enough memory for this.", hint=hint)


def _unknown(kind: str, plan: str, known: tuple[str, ...]) -> Problem:
    devices = {"cuda": "this NVIDIA card", "mps": "Apple's GPU", "cpu": "the processor"}
    device = "ZeroGPU" if bootstrap.on_zerogpu() else devices[kind]
    message = f"Memory plan on {device} must be one of {', '.join(('auto', *known))}, not {plan}."
    hint = "Use an NVIDIA card of the Ada, Hopper or Blackwell generation, or another plan." if plan == FAST8 else ""
    return Problem("unsupported", message, "options.memory_plan", hint)


def _too_small(kind: str, free: int, need: int, sizes: Sizes, song: Song | None) -> Problem:
    return Problem(
        "out_of_memory",
        f"This needs {need / GB:.1f} GB of memory at least, and {free / GB:.1f} GB are free ({kind}).",
        hint=_what_fits(LADDERS[kind][-1], free, sizes, song),
    )


def _what_fits(plan: Plan, free: int, sizes: Sizes, song: Song | None) -> str:
    """Return a sentence with the most takes or seconds that fit by themselves, or that the model does not."""
    if song is None:
        return "Close other programs, or name a smaller model."
    ways = _smaller(song, lambda smaller: needed(plan, sizes, smaller) <= free)
    if not ways:
        return "Close other programs that use it, or use a smaller checkpoint."
    return f"It fits with {', or with '.join(ways)}."


def _smaller(song: Song, fits: Callable[[Song], bool]) -> list[str]:
    return [way for way in (fewer_takes(song, fits), shorter(song, fits, int(LIMITS["duration"].low))) if way]


# --- what would fit ------------------------------------------------------------------------------------------------


def fewer_takes(work: Any, fits: Callable[[Any], bool]) -> str:
    """Return the most `takes` with which `work` fits, as a sentence names them; "" where none does."""
    takes = most(1, work.takes, lambda count: fits(replace(work, takes=count)))
    return f"{takes} take{'s' if takes > 1 else ''}" if takes else ""


def shorter(work: Any, fits: Callable[[Any], bool], shortest: int) -> str:
    """Return the longest `duration` from `shortest` on, in steps of 5 seconds, with which `work` fits."""
    fives = most(shortest // 5, int(work.duration // 5), lambda count: fits(replace(work, duration=count * 5.0)))
    return f"{fives * 5} seconds of music" if fives else ""


def most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest whole number from `low` to `high` that fits, 0 where none does."""
    return next((number for number in range(high, low - 1, -1) if fits(number)), 0)


def trim_heap() -> None:
    """Give back to Linux what its C library keeps of a song's arrays, hundreds of MB in pieces between others."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
