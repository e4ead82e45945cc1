"""The memory plan: which of the three models are on the device at each stage of a job, and in how
many bits.

A 24 GB card cannot hold all three at once. `choose` decides from numbers alone, before anything is
loaded; `Placing` carries out what it counted, stage by stage: planning, the song, words. No other
file knows the plans. Sizes are bytes.

Where the device has memory of its own (`has_own_memory`), the song model waits in the machine's; where
both share it, a model that is not needed has to be unloaded. Language models are always unloaded
and read again.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil

import bootstrap
import estimate
import model_offload
import models
from estimate import SongSize, coding_bytes, planner_bytes, song_bytes, song_of
from events import Problem, StudioError
from model_hub import PARTS
from model_weights import Weights, bytes_in, transformer_config
from models import Device, Kind, Layout
from params import OF_SONGWRITER, Settings

GB = 10**9

# The plans, as the record names them, and as the status does in words.
RESIDENT = "resident"
SWAP = "swap"
OFFLOAD = "offload"
FP8 = "fp8"
FAST8 = "fast8"  # computes in 8 bits, which changes the song, so it is never chosen automatically
TEXTS: dict[str, str] = {
    RESIDENT: "everything resident",
    SWAP: "one model at a time",
    OFFLOAD: "one part of a model at a time",
    FP8: "one part of a model at a time, the transformer in 8 bits",
    FAST8: "the transformer computed in 8 bits",
}
# From the fastest to the one that needs least. Offloading frees nothing where the device shares the
# machine's memory (MPS, CPU), and MPS has no 8-bit floats.
LADDERS: dict[str, tuple[str, ...]] = {
    "cuda": (RESIDENT, SWAP, OFFLOAD, FP8),
    "mps": (RESIDENT, SWAP),
    "cpu": (RESIDENT, SWAP, FP8),
}

# The parts of a checkpoint that is not here yet, in bfloat16, from the parameter counts.
XL_PARTS_GB = {
    "transformer": 8.34,
    "condition_encoder": 1.22,
    "text_encoder": 1.19,
    "vae": 0.34,
    "audio_tokenizer": 0.21,
    "audio_token_detokenizer": 0.21,
}
USUAL_SECONDS = 60.0  # of the song that the status assumes before the first job
SPARE_BYTES = GB // 4  # kernels and the allocator's overhead (assumed)
SONGWRITER_WORK_BYTES = 1 * GB
# So much more room than when a plan ran out of memory means that somebody has given memory back;
# less comes and goes.
MORE_ROOM = 1.15


# --- counting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Bytes of the song `pipeline`, its `transformer`, the `largest` other part, and the other
    models (0: missing).

    `eight_bits` are those of the transformer with one byte a number, its scales included.
    """

    pipeline: int
    transformer: int
    largest: int
    planner: int = 0
    songwriter: int = 0
    eight_bits: int = 0


@dataclass(frozen=True)
class Use:
    """What a job does: with the song model a whole `song` (`loops`) or only its coding, with the
    others words.

    `song` gives the length for the planner's cache as well; without one the planner writes a short
    text. `loras` are the bytes of those that lie on the device at any stage.
    """

    song: SongSize | None = None
    loras: int = 0
    loops: bool = False
    plans: bool = False
    writes: bool = False


@dataclass(frozen=True)
class Choice:
    """A plan, and its peak memory `need` in bytes; `beside` means that the planner works beside the
    song model.

    There is a problem if not even the smallest plan fits.
    """

    plan: str
    need: int
    beside: bool = False
    problem: Problem | None = None


def choose(
    kind: str,
    free: int | None,
    sizes: Sizes,
    use: Use,
    forced: str = "auto",
    distrusted: Collection[str] = (),
) -> Choice:
    """Choose the fastest plan that fits into `free` bytes of the device `kind`; None means no
    limit.

    `free` is the free memory, and what our own models take of it. A `forced` plan is used whether
    it fits or not. `distrusted` plans gave other results on this machine.
    """
    if forced != "auto":
        return _roomiest(kind, forced, free, sizes, use)
    for plan in ladder(kind, distrusted):
        choice = _roomiest(kind, plan, free, sizes, use)
        if free is None or choice.need <= free:
            return choice
    assert free is not None
    hint = "Close other programs, or choose a smaller model."
    changes = _smaller(choice, kind, free, sizes, use)
    if changes:
        hint = f"It fits with {changes}."
    message = f"This needs at least {choice.need / GB:.1f} GB of memory; {free / GB:.1f} GB are free ({kind})."
    return replace(choice, problem=Problem("out_of_memory", message, hint=hint))


def _roomiest(kind: str, plan: str, free: int | None, sizes: Sizes, use: Use) -> Choice:
    """Return `plan` with the planner beside the song model if the room allows that, which saves moving them."""
    if plan in (SWAP, FAST8):
        need = needed(kind, plan, sizes, use, beside=True)
        if free is None or need <= free:
            return Choice(plan, need, beside=True)
    return Choice(plan, needed(kind, plan, sizes, use))


def _smaller(choice: Choice, kind: str, free: int, sizes: Sizes, use: Use) -> str:
    def fits(song: SongSize) -> bool:
        return needed(kind, choice.plan, sizes, replace(use, song=song)) <= free

    if use.song:
        return estimate.smaller(use.song, fits)
    return ""


def needed(kind: str, plan: str, sizes: Sizes, use: Use, beside: bool = False) -> int:
    """Return the most bytes that lie on the device `kind` at any stage of a job under `plan`."""
    loop = 0
    if use.song and use.loops:
        loop = song_bytes(use.song) + SPARE_BYTES
    coding = coding_bytes(use.song) + SPARE_BYTES if use.song else 0
    planning = 0
    if use.plans and sizes.planner:
        planning = planner_bytes(use.song)
    writing = SONGWRITER_WORK_BYTES if use.writes else 0
    if plan == RESIDENT:
        working = max(loop, coding, planning, writing)
        return sizes.pipeline + sizes.planner + sizes.songwriter + use.loras + working
    stages = [0]
    if use.plans:
        waiting = song_model(kind, plan, sizes) if beside and use.loops else 0
        stages.append(waiting + sizes.planner + planning)
    if use.writes:
        stages.append(sizes.songwriter + writing)
    if use.song is not None and layout_of(kind, plan).in_parts:
        # The transformer is away while another part works.
        stages.append(transformer_in(plan, sizes) + loop)
        stages.append(sizes.largest + coding)
    elif use.song is not None:
        waiting = sizes.planner if beside and plan == FAST8 else 0
        stages.append(song_model(kind, plan, sizes) + waiting + max(loop, coding))
    return use.loras + max(stages)


def song_model(kind: str, plan: str, sizes: Sizes) -> int:
    """Return the bytes of the song model on the device while it waits there; in parts, it does not."""
    if layout_of(kind, plan).in_parts:
        return 0
    return sizes.pipeline - sizes.transformer + transformer_in(plan, sizes)


def transformer_in(plan: str, sizes: Sizes) -> int:
    if plan in (FP8, FAST8):
        return sizes.eight_bits
    return sizes.transformer


# --- other song models ----------------------------------------------------------------------------

# Where a song model waits that another one has taken the place of.
Place = Literal["device", "machine", "gone"]


def places(sizes: Sequence[int], on_device: int | None, in_machine: int) -> list[Place]:
    """Return where other song models wait, of so many bytes each, that used last first.

    So many bytes are left `on_device` (None: without a limit), and `in_machine` if the device has
    memory of its own.
    """
    found: list[Place] = []
    for size in sizes:
        if on_device is None:
            found.append("device")
        elif size <= on_device:
            on_device -= size
            found.append("device")
        elif size <= in_machine:
            in_machine -= size
            found.append("machine")
        else:
            found.append("gone")
    return found


# --- the plans' order -----------------------------------------------------------------------------


def ladder(kind: str, distrusted: Collection[str] = ()) -> tuple[str, ...]:
    """Return the plans of a device from the fastest to the one that needs least."""
    return tuple(plan for plan in LADDERS[kind] if plan not in distrusted)


def plans_on(device: Device | None, distrusted: Collection[str] = ()) -> tuple[str, ...]:
    """Return the memory plans of `device`, all of them while it is unknown."""
    if bootstrap.on_zerogpu():
        return (RESIDENT,)
    if device is None:
        return (*LADDERS["cuda"], FAST8)
    fast = device.kind == "cuda" and model_offload.float8_is_supported()
    if fast and FAST8 not in distrusted:
        return (*ladder(device.kind, distrusted), FAST8)
    return ladder(device.kind, distrusted)


def has_own_memory(kind: str) -> bool:
    """Return whether the device has memory of its own, so that models can wait in the machine's."""
    return OFFLOAD in LADDERS[kind]


def layout_of(kind: str, plan: str) -> Layout:
    if plan == FAST8:
        return Layout(eight_bits="computed")
    if plan == FP8:
        return Layout(in_parts=has_own_memory(kind), eight_bits="stored")
    return Layout(in_parts=plan == OFFLOAD)


def lower(kind: str, plan: str, distrusted: Collection[str] = ()) -> str | None:
    """Return the next plan that needs less, None after the last."""
    plans = ladder(kind, distrusted)
    if plan == FAST8:
        return plans[-1]
    return dict(pairwise(plans)).get(plan)


def not_above(kind: str, plan: str, limit: str) -> str:
    """Return `plan`, or `limit` if that needs less."""
    order = (FAST8, *LADDERS[kind])
    if limit in order:
        return max(plan, limit, key=order.index)
    return plan


# --- placing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanLimit:
    """The largest plan that later jobs may use, since a larger one ran out of memory when there were `room` bytes."""

    plan: str
    room: int | None


class Placing:
    """Chooses the memory plan of each job, and moves the models before each of its stages as the
    plan counted on.

    `plan` is the one in force, "" before the first job; `use` is what the job does.
    """

    def __init__(self, loaded: models.Models):
        self._models = loaded
        self._limit: PlanLimit | None = None
        self._fell = False
        self._remembered: dict[Path, int] = {}
        self._loras: dict[str, int] = {}  # the bytes of those that act, by hash
        self.choice = Choice("", 0)
        self.use = Use()
        self.note = ""  # a sentence about what the job's song model has displaced

    @property
    def plan(self) -> str:
        return self.choice.plan

    @property
    def song(self) -> SongSize | None:
        """What the job makes; None for words."""
        if self.use.loops:
            return self.use.song
        return None

    @property
    def keeps_all(self) -> bool:
        """Whether all models may lie on the device at any time."""
        return self.plan in ("", RESIDENT)

    def text(self) -> str:
        """Return the plan in words; before the first job, the one for a typical song."""
        return TEXTS[self.plan or self._choose(self._typical(), "auto").plan]

    def _typical(self) -> Use:
        loaded = self._models
        song = song_of(loaded.weights, loaded.device(), USUAL_SECONDS)
        return Use(song, loops=True, plans=True)

    def begin_typical(self) -> None:
        """Choose and adopt the plan for a typical song with a plan; raises StudioError if it does not fit."""
        self.use = self._typical()
        choice = self._choose(self.use, "auto")
        if choice.problem:
            raise StudioError.from_problem(choice.problem)
        self._adopt(self._models.device().kind, choice)

    def begin(
        self,
        request: Any,
        settings: Settings | None,
        source: float,
        at_most: str | None = None,
        loras: Mapping[str, int] | None = None,
    ) -> str:
        """Choose and adopt the plan for `request`, whose source is `source` seconds long; return
        its name.

        `settings` are those of a song, None for words; `loras` are the numbers of
        those that are to act on it, by the hash of their file. `at_most` is the largest plan still allowed,
        for later jobs too until there is more room. A pipeline that was built for a different plan
        is unloaded and built again on its next use. Raises StudioError if nothing fits.
        """
        device = self._models.device()
        kind = device.kind
        self._fell = at_most is not None
        self.use = Use()
        if at_most:
            self._limit = PlanLimit(at_most, free_room(kind))
        else:
            self._lift_limit(kind)
        lora_bytes = self._lora_bytes(loras or {}, replaced=settings is not None)
        use = replace(self._use_of(request, settings, source), loras=lora_bytes)
        self.use = use
        forced = getattr(getattr(request, "options", None), "memory_plan", "auto")
        plans = plans_on(device, self._models.distrusted)
        if forced not in ("auto", *plans):
            raise StudioError.from_problem(_unknown(kind, forced, plans))
        choice = self._choose(use, forced)
        if choice.problem and not at_most:
            raise StudioError.from_problem(choice.problem)
        if self._limit and (at_most or forced == "auto"):
            plan = not_above(kind, choice.plan, self._limit.plan)
            if plan != choice.plan:
                choice = self._choose(use, plan)
        self._adopt(kind, choice)
        self._place_others(kind, keep=not at_most)
        return choice.plan

    def lower(self) -> str | None:
        """Return the plan for the one retry of a job that runs out of memory, None if there is none."""
        if self._fell or bootstrap.on_zerogpu():
            return None
        return lower(self._models.device().kind, self.plan, self._models.distrusted)

    def for_planning(self) -> None:
        """Make room for the planner: beside the song model if the plan counted that, else in its place."""
        if self.keeps_all:
            return
        self._models.lyrics.unload()
        if not self.choice.beside:
            self._set_song_aside()

    def for_song(self) -> None:
        """Make room for the song model, and have it on the device if it is loaded."""
        if not self.keeps_all:
            self._models.lyrics.unload()
            if not (self.choice.beside and self.plan == FAST8):
                self._models.planner.unload()
        self._models.bring_back()

    def for_words(self, slot: models.Slot) -> None:
        """Make room for one of the language models in place of all others."""
        if self.keeps_all:
            return
        if slot is self._models.planner:
            other = self._models.lyrics
        else:
            other = self._models.planner
        other.unload()
        self._set_song_aside()

    def _set_song_aside(self) -> None:
        if has_own_memory(self._models.device().kind):
            self._models.set_aside()
        else:
            self._models.unload_pipeline()

    def _adopt(self, kind: str, choice: Choice) -> None:
        self.choice = choice
        layout = layout_of(kind, choice.plan)
        if layout != self._models.layout:
            self._models.unload_pipeline()
            self._models.layout = layout

    def _place_others(self, kind: Kind, keep: bool) -> None:
        """Let the other loaded song models wait where there is room, and unload those that find none."""
        loaded = self._models
        self.note = ""
        others = loaded.others
        plan = self.plan
        sizes = self._sizes_of_others(others)
        on_device: int | None = 0
        in_machine = 0
        if keep and plan == RESIDENT and bootstrap.on_zerogpu():
            on_device = None
        elif keep and (
            plan == RESIDENT or (has_own_memory(kind) and not layout_of(kind, plan).in_parts)
        ):
            room = room_for_models(kind)
            on_device = None if room is None else max(room - self.choice.need, 0)
        if keep and has_own_memory(kind):
            in_machine = models.available_memory() + sum(
                loaded.waiting_bytes(each) for each in others
            )
            if plan != RESIDENT:  # the current one may have to wait there, too
                in_machine -= self.sizes().pipeline
        displaced = []
        for weights, size, place in zip(
            others, sizes, places(sizes, on_device, in_machine), strict=True
        ):
            if place == "device":
                self.choice = replace(self.choice, need=self.choice.need + size)
            elif place == "machine":
                loaded.move_off(weights)
            else:
                loaded.unload(weights)
                displaced.append(weights.model_id)
        if displaced:
            self.note = DISPLACED.format(names=", ".join(displaced), model=loaded.current.model_id)

    def _sizes_of_others(self, others: Sequence[Weights]) -> list[int]:
        """Return the bytes that each of the other song models has for itself: what none before it has."""
        loaded = self._models
        device = loaded.device()
        if not others:
            return []
        counted = set(loaded.keys_of(loaded.current).items())
        sizes = []
        for weights in others:
            own = 0
            folders = loaded.folders_of(weights)
            for part, key in loaded.keys_of(weights).items():
                if (part, key) not in counted:
                    counted.add((part, key))
                    own += self._part_bytes(part, folders[part], device)
            sizes.append(own)
        return sizes

    def _part_bytes(self, part: str, folder: Path, device: Device) -> int:
        size = self._bytes_in(folder)
        if part == "transformer" and self.plan in (FP8, FAST8):
            return size // 2
        return size * _bytes_a_number(part, device) // 2

    def _lift_limit(self, kind: Kind) -> None:
        """Forget that a plan ran out of memory once there is clearly more room than there was."""
        if self._limit is None or self._limit.room is None:
            return
        room = free_room(kind)
        if room is None or room > MORE_ROOM * self._limit.room:
            self._limit = None

    def _use_of(self, request: Any, settings: Settings | None, source: float) -> Use:
        loaded = self._models
        sized = functools.partial(song_of, loaded.current, loaded.device())
        if settings is not None:
            song = sized(request.song_seconds(source), request.songs, settings.guided)
            if getattr(request, "action", "") == "morph":
                song = replace(song, conditions=2)
            return Use(song, loops=True, plans=getattr(request.options, "plan", False))
        if request.mode == "align":
            return Use(sized(source, 1, False), loops=True)
        if request.mode == "describe":
            return Use(sized(source, 1, False), plans=True)
        writes = request.mode in OF_SONGWRITER
        return Use(plans=not writes, writes=writes)

    def _lora_bytes(self, loras: Mapping[str, int], replaced: bool) -> int:
        """Return the bytes of `loras` and of those that still act, which go when `loras` have been loaded.

        A LoRA is loaded in the transformer's dtype (`lora_apply`), and stays on the device while
        the song model waits elsewhere. They are not `replaced` by a job without a song.
        """
        number_bytes = estimate.bytes_a_number(self._models.device().dtype)
        acting = self._loras if self._models.loaded else {}
        wanted = {name: numbers * number_bytes for name, numbers in loras.items()}
        self._loras = wanted if replaced else acting
        return sum({**acting, **wanted}.values())

    def _choose(self, use: Use, forced: str) -> Choice:
        if bootstrap.on_zerogpu():
            # `spaces` deletes the files, whose sizes count below, once they are packed
            return Choice(RESIDENT, 0)
        kind = self._models.device().kind
        return choose(
            kind, room_for_models(kind), self.sizes(), use, forced, self._models.distrusted
        )

    def sizes(self) -> Sizes:
        """Return what the three models take in memory."""
        loaded = self._models
        device = loaded.device()
        folders = loaded.folders_of(loaded.current)
        sizes = sizes_of(loaded.current, device, self._bytes_in, folders)
        return replace(
            sizes,
            planner=planner_size(device, loaded.planner.weights, self._bytes_in),
            songwriter=self._bytes_in(loaded.lyrics.weights.folder),
        )

    def _bytes_in(self, folder: Path | None) -> int:
        """Return the size of a model, as long as its files are there and after that: it may be loaded still."""
        if folder is None:
            return 0
        found = bytes_in(folder)
        if found:
            self._remembered[folder] = found
        return self._remembered.get(folder, 0)


def sizes_of(
    weights: Weights,
    device: Device,
    bytes_in: Any = bytes_in,
    folders: Mapping[str, Path] | None = None,
) -> Sizes:
    """Return the sizes of `weights` on `device`, from those of the files, which are in bfloat16.

    `folders` are those of its parts if some of them are another model's.
    """
    parts = {}
    if folders:
        parts = {part: bytes_in(folder) for part, folder in folders.items()}
    elif weights.folder:
        parts = {part: bytes_in(weights.folder / part) for part in PARTS}
    if not parts.get("transformer"):  # not downloaded yet, or gone by now
        parts = {name: int(size * GB) for name, size in XL_PARTS_GB.items()}
    sizes = {part: size * _bytes_a_number(part, device) // 2 for part, size in parts.items()}
    others = [size for part, size in sizes.items() if part != "transformer"]
    config = {**estimate.XL, **transformer_config(weights)}
    number_bytes = estimate.bytes_a_number(device.dtype)
    return Sizes(
        pipeline=sum(sizes.values()),
        transformer=sizes["transformer"],
        largest=max(others),
        eight_bits=parts["transformer"] // 2 + estimate.bytes_beyond_8_bits(config, number_bytes),
    )


def planner_size(device: Device, weights: Weights, bytes_in: Any = bytes_in) -> int:
    """Return what the planner takes on `device`: planner checkpoints are bfloat16, the tests' is float32."""
    size = bytes_in(weights.folder)
    if not size or weights.comes_along:
        return size
    storage = models.planner_storage(device)
    if storage == models.planner_dtype(device):
        return size * estimate.bytes_a_number(storage) // 2
    return size + 4 * model_offload.MOST_WIDENED


def _bytes_a_number(part: str, device: Device) -> int:
    return estimate.bytes_a_number(device.vae_dtype if part == "vae" else device.storage_dtype)


def room_for_models(kind: Kind) -> int | None:
    """Return the bytes that our models may use on the device: the free memory and what they use
    already.

    None on ZeroGPU, where each call gets a whole card that the main process cannot see.
    """
    if bootstrap.on_zerogpu():
        return None
    if kind == "cpu":
        return models.available_memory() + _own_memory()
    import torch

    if kind == "mps":
        # The share of the machine's memory that one process may use.
        return int(torch.mps.recommended_max_memory())
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())


def _own_memory() -> int:
    """Return this process's memory in bytes, without pages of files (weights), which count as available anyway."""
    facts = psutil.Process().memory_info()
    return facts.rss - getattr(facts, "shared", 0)


def free_room(kind: Kind) -> int | None:
    """Return the room that there is right now: on Apple's GPU `room_for_models` is a share that never changes."""
    if kind != "mps":
        return room_for_models(kind)
    import torch

    return models.available_memory() + int(torch.mps.driver_allocated_memory())


def vram_limit_for(kind: Kind) -> int | None:
    """Return the card's memory in bytes; None if the device shares the machine's, and on ZeroGPU."""
    if kind != "cuda" or bootstrap.on_zerogpu():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def trim_heap() -> None:
    """Return a song's freed arrays, hundreds of MB that glibc would keep, to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


# --- problems -------------------------------------------------------------------------------------


DISPLACED = "There is no room for {names} beside {model}, so its next song has to load it again."


def fallback_note(before: str, after: str) -> str:
    return f"Memory ran out with {TEXTS[before]}, so the studio tried again with {TEXTS[after]}."


def too_large(song: SongSize | None) -> Problem:
    """Return the problem of a job that no plan could fit; its hint halves the working memory."""
    changes = ""
    if song:
        changes = estimate.smaller(song, lambda less: song_bytes(less) <= song_bytes(song) / 2)
    hint = "Make a shorter song or fewer takes."
    if changes:
        hint = f"It should fit with {changes}."
    return Problem("out_of_memory", "There was not enough memory.", hint=hint)


def _unknown(kind: str, plan: str, known: tuple[str, ...]) -> Problem:
    devices = {"cuda": "this NVIDIA card", "mps": "Apple's GPU", "cpu": "the processor"}
    device = "ZeroGPU" if bootstrap.on_zerogpu() else devices[kind]
    message = f"Memory plan on {device} must be one of {', '.join(('auto', *known))}, not {plan}."
    hint = ""
    if plan == FAST8:
        hint = "Use an NVIDIA card of the Ada, Hopper or Blackwell generation, or another plan."
    return Problem("unsupported", message, "options.memory_plan", hint)
