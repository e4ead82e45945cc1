"""The studio's models: the device and number formats they run in, and each model once it is loaded."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

import model_offload
import model_parts
import song_attention
import song_clock
import song_compilation
import song_vae
from beat import BEAT_SECONDS
from bootstrap import on_zerogpu
from events import Problem, Progress, Stage, StudioError, first_line, is_out_of_memory
from model_hub import PARTS
from model_weights import (
    DEFAULT_MODEL_GB,
    OPTIONAL_PARTS,
    Weights,
    bytes_in,
    check_folder,
    find_model,
    find_weights,
    has_audio_codes,
    missing_model,
    names_to_place,
    not_placed,
)
from record import ModelEntry
from status import LanguageModelStatus, State

if TYPE_CHECKING:
    import torch
    from diffusers import AceStepPipeline


Kind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True)
class Layout:
    """How a pipeline lies in memory, which model_memory.py decides when it chooses a plan.

    `in_parts`: one part at a time is on the device, the others wait in the machine's memory.
    `eight_bits`: the transformer's layers are "stored" in 8 bits and widened as they work, or
    "computed" in them.
    """

    in_parts: bool = False
    eight_bits: Literal["", "stored", "computed"] = ""


@dataclass(frozen=True)
class Device:
    """Where the song model runs and in which dtypes (torch's names); `reason` explains the choice
    to the user.

    `dtype` is the compute dtype, `storage_dtype` that of the weights in memory, `vae_dtype` the
    VAE's.
    """

    kind: Kind
    dtype: str
    storage_dtype: str
    vae_dtype: str
    reason: str


@dataclass(frozen=True)
class Given:
    """What a pipeline gets from those that are loaded already: `parts`, and the `offload` that keeps them apart.

    The parts for audio codes come from the folder of `lender` if none of these has them.
    """

    parts: Mapping[str, Any] = field(default_factory=dict)
    offload: model_offload.Offload | None = None
    lender: Weights | None = None


class Models:
    """The song models, the planner and the songwriter. A job holds `turn` while it uses them.

    `weights` are the song model that the studio was started for, `current` is the one of the job
    that holds the turn. Several may be loaded: they share what is equal, and each has its own
    transformer. `layout` is how one is built the next time. The arguments make the slots of the two
    language models; they get a function, because the device is picked later.
    """

    def __init__(
        self,
        planner: Callable[[Callable[[], Device]], Slot],
        lyrics: Callable[[Callable[[], Device]], Slot],
    ):
        self.turn = threading.Lock()
        self._building = threading.RLock()
        self.preparing = False  # `prepare` holds the turn
        self.known_device: Device | None = None
        self._pipe: Any = None  # that of `current`
        self._is_aside = False  # some of it may wait in the machine's memory
        self._others: dict[Weights, Any] = {}  # the pipelines of others, that used last at the end
        self._chosen: Weights | None = None
        self._found: dict[str, Weights] = {}  # by the name in a request
        self._bytes: dict[Weights, int] = {}
        self.switches = 0  # how often a job took another song model than the one before
        self._placed: tuple[Weights, ...] | None = None  # on ZeroGPU, once it has been done
        self.load_seconds = 0.0  # that building the pipeline took
        self.layout = Layout()
        # What selfcheck.py has switched off on this machine: the name of each, and why in words.
        self.distrusted: dict[str, str] = {}
        self.weights = find_weights()
        self.planner = planner(self.device)
        self.lyrics = lyrics(self.device)

    @property
    def current(self) -> Weights:
        return self._chosen or self.weights

    @property
    def loaded(self) -> bool:
        return self._pipe is not None

    def is_loaded(self, weights: Weights) -> bool:
        if weights == self.current:
            return self.loaded
        return weights in self._others

    @property
    def held(self) -> tuple[Weights, ...]:
        """The song models that are loaded, the current one first."""
        if self.loaded:
            return (self.current, *self.others)
        return self.others

    @property
    def others(self) -> tuple[Weights, ...]:
        """The song models that are loaded beside the current one, that used last first."""
        return tuple(reversed(self._others))

    def find(self, name: str) -> Weights:
        """Return the song model that a request calls `name`, with its problem if it is not here."""
        found = self._look_for(name)
        if self._placed is None or found.folder is None or found in self._placed:
            return found
        return not_placed(found)

    def _look_for(self, name: str) -> Weights:
        found = self._found.get(name)
        if not name or found is None or found.folder is None:
            found = find_model(name, self.weights)
            self._found[name] = found
        return found

    def lender(self, weights: Weights) -> Weights | None:
        """Return the checkpoint whose parts for audio codes `weights` uses, None if it has its own or there is none."""
        if weights.folder is None or has_audio_codes(weights):
            return None
        sft = self._look_for("sft")
        if model_parts.can_lend(sft, weights):
            return sft
        return None

    def has_audio_codes(self, weights: Weights) -> bool:
        return has_audio_codes(weights) or self.lender(weights) is not None

    def folders_of(self, weights: Weights) -> dict[str, Path]:
        """Return the folder of each part of a song model, of borrowed ones, too."""
        return model_parts.folders_of(weights, self.lender(weights))

    def bytes_of(self, weights: Weights) -> int:
        """Return the bytes of a song model's files; those of its last look, if they are gone."""
        found = sum(bytes_in(folder) for folder in self.folders_of(weights).values())
        if found:
            self._bytes[weights] = found
        return self._bytes.get(weights, 0)

    def keys_of(self, weights: Weights) -> dict[str, str]:
        """Return a key for each part of a song model; song models share parts whose keys are equal."""
        return model_parts.keys_of(weights, self.lender(weights))

    def entry(self) -> ModelEntry:
        """Return the entry of the current song model in a record."""
        entry = self.current.entry()
        lender = self.lender(self.current)
        if lender is not None:
            name = f"{lender.model_id} {lender.revision}".strip()
            entry["borrowed"] = dict.fromkeys(OPTIONAL_PARTS, name)
        return entry

    @property
    def dtype(self) -> str:
        """Return the dtype in which the song model computes: in half precision another one than the device's."""
        transformer = getattr(self._pipe, "transformer", None)
        if getattr(transformer, "half_precision", False):
            return "float16"
        return self.device().dtype

    def pipeline(self) -> Any:
        """Return the pipeline, built by the first call; raises StudioError if that is not possible."""
        # No lock if it is there: a ZeroGPU worker may have been forked while another thread held
        # the lock.
        pipe = self._pipe
        if pipe is not None:
            return pipe
        # before the lock, so that a page that asks for the device need not wait for the pipeline
        device = self.device()
        with self._building:
            if self._pipe is None:
                started = time.perf_counter()
                self._pipe = self._build(device)
                self._is_aside = False
                self.load_seconds = round(time.perf_counter() - started, 2)
            return self._pipe

    def _build(self, device: Device) -> Any:
        """Build the pipeline of the current song model, with parts of the others where they are equal."""
        lender = self.lender(self.current)
        if lender is None and not self._others:
            return build_pipeline(self.current, device, self.layout)
        parts: dict[str, Any] = {}
        offload = None
        keys = self.keys_of(self.current)
        for weights, pipe in self._others.items():
            offload = model_offload.offload_of(pipe)
            for part, key in self.keys_of(weights).items():
                if keys.get(part) == key and hasattr(pipe, part):
                    parts[part] = getattr(pipe, part)
        return build_pipeline(self.current, device, self.layout, Given(parts, offload, lender))

    def use(self, weights: Weights) -> Any:
        """Make `weights` the current song model; return the pipeline in whose place it is, None if there is none.

        What is loaded stays, but for a model that needs another device or other numbers there. The
        caller holds the turn.
        """
        former = self.current
        if weights == former:
            return None
        self.switches += 1
        if weights.engine != former.engine:
            # Another device, or other numbers on it.
            self._forget_all()
            self._chosen = weights
            return None
        with self._building:
            pipe = self._pipe
            if pipe is not None:
                self._others[former] = pipe
            self._pipe = self._others.pop(weights, None)
            # A lent card has all of them at any time.
            stays = self.layout.in_parts or on_zerogpu()
            self._is_aside = self._pipe is not None and not stays
            self._chosen = weights
            return pipe

    def move_off(self, weights: Weights) -> None:
        """Move what another song model has for itself off the device; it waits in the machine's memory."""
        if self.layout.in_parts:
            return  # it waits there anyway
        keys = self.keys_of(self.current)
        self._move_off(weights, lambda part, key: keys.get(part) != key)
        free_memory()

    def _move_off(self, weights: Weights, is_meant: Callable[[str, str], bool]) -> None:
        """Move the parts of another song model that are meant off the device, given their names and keys."""
        pipe = self._others[weights]
        for part, key in self.keys_of(weights).items():
            module: Any = getattr(pipe, part, None)
            if hasattr(module, "to") and is_meant(part, key):
                module.to("cpu")

    def waiting_bytes(self, weights: Weights) -> int:
        """Return the bytes of another song model's transformer that are in the machine's memory."""
        numbers = self._others[weights].transformer.parameters()
        return sum(each.nbytes for each in numbers if each.device.type == "cpu")

    def unload(self, weights: Weights) -> None:
        """Unload what another song model has for itself."""
        del self._others[weights]
        free_memory()

    def unload_pipeline(self) -> None:
        """Unload all song models."""
        with self._building:
            self._pipe = None
            self._is_aside = False
            self._others.clear()
        free_memory()

    def set_aside(self) -> None:
        """Move the song model, if it is loaded, off a device that has memory of its own."""
        pipe = self._pipe
        if self.layout.in_parts:
            for each in (pipe, *self._others.values()):
                if each is not None:
                    model_offload.bring(each, "")
        elif pipe is None:
            # What it will share lies there for the others.
            keys = self.keys_of(self.current)
            for weights in self._others:
                self._move_off(weights, lambda part, key: keys.get(part) == key)
        else:
            # Also if some of it is off already, because another model was used meanwhile.
            self._is_aside = True  # first: a move that fails has moved some of it
            pipe.to("cpu")
        free_memory()

    def bring_back(self) -> None:
        """Move the song model onto the device again if it was set aside as a whole."""
        if self._pipe is not None and self._is_aside:
            self._pipe.to(self.device().kind)
            self._is_aside = False

    def device(self) -> Device:
        """Return the device; the first call imports torch."""
        device = self.known_device
        if device is not None:
            return device
        with self._building:
            if self.known_device is None:
                self.known_device = pick_device(self.current)
            return self.known_device

    def load_all(self) -> None:
        """Load every model; the status reports a planner or a songwriter that cannot be loaded.

        Later songs are made by the song models that were placed now, and by no others.
        """
        self.pipeline()
        own = self.weights
        for name in names_to_place():
            weights = self._look_for(name)
            if weights.folder is not None and weights.engine == own.engine:
                self.use(weights)
                self.pipeline()
        if on_zerogpu():
            self._placed = (self.current, *self.others)
        self.use(own)
        for slot in (self.planner, self.lyrics):
            with contextlib.suppress(StudioError):
                slot.get()

    def prepare(self) -> None:
        """Load the built-in engine, or import what loads another one, while the visitor fills in the form."""
        if self.loaded or self.preparing:
            return
        # Set before the turn is taken and until after its release: a waiting song must not mistake
        # this for a song.
        self.preparing = True
        try:
            if self.turn.acquire(blocking=False):
                try:
                    if self.current.is_built_in_engine:
                        self.pipeline()
                    else:
                        from diffusers import AceStepPipeline  # noqa: F401
                finally:
                    self.turn.release()
        finally:
            self.preparing = False

    def refresh(self) -> None:
        """Look for all weights again; models whose weights changed are unloaded once the current job ends."""
        for _ in self.refreshing():
            pass

    def refreshing(self) -> Iterator[Progress]:
        """Do what `refresh` does, and yield progress at every beat while the current job is running."""
        weights = find_weights()
        self._found.clear()
        if weights != self.weights:
            yield from self.taking_turn()
            try:
                self._use(weights)
            finally:
                self.turn.release()
        for slot in (self.planner, self.lyrics):
            found = slot.look()
            if found == slot.weights:
                slot.problem = None
                continue
            yield from self.taking_turn()
            try:
                slot.use(found)
            finally:
                self.turn.release()

    def _use(self, weights: Weights) -> None:
        """Take other weights for the song model; the caller holds the turn."""
        self.weights = weights
        self._chosen = None
        self._found.clear()
        self._forget_all()

    def _forget_all(self) -> None:
        """Unload everything, and choose the device again; the caller holds the turn."""
        with self._building:
            self._pipe = None
            self._is_aside = False
            self._others.clear()
            self.known_device = None
        # Their dtype may have depended on the old weights.
        self.planner.unload()
        self.lyrics.unload()

    def taking_turn(self) -> Iterator[Progress]:
        """Wait until the models are free, with progress at every beat; the caller then holds `turn`."""
        while True:
            # read before trying: the load may end meanwhile
            stage: Stage = "loading" if self.preparing else "waiting"
            if self.turn.acquire(timeout=BEAT_SECONDS):
                return
            yield Progress(stage)


class Slot:
    """The planner or the songwriter: its `weights`, and the model once loaded or the `problem` that
    prevented it.

    `smaller` is the advice for a model that does not fit into memory.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], Any],
        build: Callable,
        fetch: Callable[..., Iterator[Progress]],
        smaller: str,
    ):
        self.name = name
        self._find = find
        self._build = build
        self._fetch = fetch
        self._smaller = smaller
        self._building = threading.Lock()
        self._model: Any = None
        self.weights = find()
        self.problem: Problem | None = None
        self.load_seconds = 0.0

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def get(self) -> Any:
        """Return the model, loaded by the first call; raises StudioError if it is missing or cannot
        be loaded.

        A failure is final until `refresh`, except for a lack of memory, which may have passed.
        """
        model = self._model
        if model is not None:
            return model
        with self._building:
            if self._model is None:
                self.check()
                check_folder(self.weights)  # not a failure to remember: the folder may come back
                if self.problem and self.problem.code != "out_of_memory":
                    raise StudioError.from_problem(self.problem)
                started = time.perf_counter()
                self.problem = self._load()
                self.load_seconds = round(time.perf_counter() - started, 2)
                if self.problem:
                    # The exception, which held parts of the model, is gone by now.
                    free_memory()
                    raise StudioError.from_problem(self.problem)
            return self._model

    def _load(self) -> Problem | None:
        """Build the model; return what prevented it, if anything did."""
        try:
            self._model = self._build(self.weights)
        except StudioError as error:
            return error.problem
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return _no_room(f"{self.name} {self.weights.model_id}", self._smaller)
        return None

    def fetch(self) -> Iterator[Progress]:
        """Download weights that the user named (source "hub"); the caller must `refresh` afterwards."""
        try:
            yield from self._fetch(self.weights)
        except StudioError as error:
            self.problem = error.problem
            raise

    def check(self) -> None:
        if self.weights.folder is None:
            raise StudioError.from_problem(self.problem or self.weights.problem)

    def look(self) -> Any:
        """Look for the weights again and return what is found, for `use`."""
        return self._find()

    def use(self, found: Any) -> None:
        """Take other weights and forget failures; the caller holds the models' turn."""
        self.unload()
        self.weights = found
        self.problem = None

    def unload(self) -> None:
        with self._building:
            self._model = None
        free_memory()

    def status(self) -> LanguageModelStatus:
        weights = self.weights
        to_fetch = weights.source == "hub" and not self.problem
        state: State
        if weights.source == "off":
            state = "off"
        elif self.loaded:
            state = "loaded"
        elif self.problem:
            state = "failed"
        elif weights.folder or to_fetch:
            state = "ready"
        else:
            state = "none"
        return LanguageModelStatus(
            state=state,
            model="" if state == "off" else weights.model_id,
            source=weights.source,
            problem=None if to_fetch else self.problem or weights.problem,
        )


# The three dtypes of a device, if they are the same.
IN_FLOAT32 = ("float32",) * 3
IN_BFLOAT16 = ("bfloat16",) * 3
SMALL = "in float32: the built-in engine is small."
NO_GPU = "Runs on the processor: no NVIDIA or Apple GPU was found."


def pick_device(weights: Weights) -> Device:
    """Choose CUDA, else MPS, else the CPU, and the dtypes that suit it and `weights`."""
    import torch

    is_small = weights.is_built_in_engine
    if on_zerogpu() or torch.cuda.is_available():
        return _nvidia_device(is_small)
    if torch.backends.mps.is_available():
        return _apple_device(is_small)
    if is_small:
        return Device("cpu", *IN_FLOAT32, NO_GPU)
    return _processor_for(weights)


def _nvidia_device(is_small: bool) -> Device:
    import torch

    # Outside a call, ZeroGPU has no card to ask.
    name = "a ZeroGPU card" if on_zerogpu() else torch.cuda.get_device_name(0)
    if is_small:
        return Device("cuda", *IN_FLOAT32, f"Runs on {name} {SMALL}")
    if on_zerogpu() or torch.cuda.is_bf16_supported(including_emulation=False):
        return Device("cuda", *IN_BFLOAT16, f"Runs on {name} in bfloat16.")
    reason = (
        f"Runs on {name}, which has no native bfloat16: weights are stored in float16. They are "
        "computed in half precision if the self-check finds that near float32 here, else in float32, which is slower."
    )
    return Device("cuda", "float32", "float16", "float32", reason)


def _apple_device(is_small: bool) -> Device:
    import torch

    name = "the Apple GPU (MPS)"
    if is_small:
        return Device("mps", *IN_FLOAT32, f"Runs on {name} {SMALL}")
    if not torch.backends.mps.is_macos_or_newer(14, 0):
        reason = (
            f"Runs on {name} in float32, which takes twice the memory: bfloat16 needs macOS 14."
        )
        return Device("mps", *IN_FLOAT32, reason)
    reason = f"Runs on {name} in bfloat16; the VAE, which turns latents into sound, in float32."
    return Device("mps", "bfloat16", "bfloat16", "float32", reason)


def _processor_for(weights: Weights) -> Device:
    """Return the processor with the dtypes in which it is fastest, and for which there is enough memory."""
    slow = "Songs take very long to make here."
    pace = bfloat16_pace()
    if pace >= MUCH_FASTER:
        reason = f"{NO_GPU} Uses bfloat16, in which this processor multiplies {pace:.0f} times as fast. {slow}"
        return Device("cpu", "bfloat16", "bfloat16", "float32", reason)
    needed = _bytes_in_float32(weights)
    free = available_memory()
    if free >= needed:
        return Device("cpu", *IN_FLOAT32, f"{NO_GPU} Uses float32. {slow}")
    shortage = f"float32 needs {needed / 10**9:.0f} GB of memory and {free / 10**9:.0f} GB are free"
    if pace >= 1:
        reason = f"{NO_GPU} Uses bfloat16, because {shortage}. {slow}"
        return Device("cpu", "bfloat16", "bfloat16", "float32", reason)
    reason = (
        f"{NO_GPU} Weights are stored in bfloat16, because {shortage}, and computed in float32, "
        f"which is faster. {slow}"
    )
    return Device("cpu", "float32", "bfloat16", "float32", reason)


def _bytes_in_float32(weights: Weights) -> int:
    """Return the memory that the bfloat16 checkpoint takes in float32, twice its size, with 4 GB for a song."""
    stored = DEFAULT_MODEL_GB * 10**9
    if weights.folder is not None:
        stored = sum(bytes_in(weights.folder / part) for part in PARTS)
    return int(2 * stored + 4 * 10**9)


# From this pace on, bfloat16 is worth its coarser numbers: processors with units for products of
# matrices reach it, those that only have instructions for dot products do not.
MUCH_FASTER = 3.0
TRIALS = 5
TRIAL_ROWS = 64
TRIAL_WIDTH = 512


@functools.cache
def bfloat16_pace(rows: int = TRIAL_ROWS) -> float:
    """Return how many times as fast as in float32 the processor multiplies so many rows in
    bfloat16.

    Many processors have no instructions for bfloat16 and take up to fifty times as long. The trial
    takes some milliseconds where they have them, else at most a third of a second.
    """
    import torch

    return _seconds_of_products(torch.float32, rows) / _seconds_of_products(torch.bfloat16, rows)


def _seconds_of_products(dtype: torch.dtype, rows: int) -> float:
    """Return the shortest time that a layer's product took; the first one sets things up."""
    import torch

    weight = torch.ones(TRIAL_WIDTH, TRIAL_WIDTH, dtype=dtype)
    x = torch.ones(rows, TRIAL_WIDTH, dtype=dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(TRIALS):
            started = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def build_pipeline(
    weights: Weights, device: Device, layout: Layout = Layout(), given: Given = Given()
) -> AceStepPipeline:
    """Load the pipeline of `weights` onto `device`, with what `layout` says about its parts and
    bits. What is `given` is not loaded again.

    Raises StudioError if the weights are missing or cannot be loaded, or if memory runs out.
    """
    if weights.folder is None:
        raise StudioError.from_problem(weights.problem or missing_model(weights.wanted))
    check_folder(weights)
    import torch

    # not within `try`: a broken installation is not a broken checkpoint
    from diffusers import AceStepPipeline  # noqa: F401

    quiet_libraries()
    try:
        pipe = _read_pipeline(weights, device, layout, given)
        if layout.eight_bits == "computed":
            model_offload.use_float8(pipe.transformer.layers, device.kind)
        if given.offload is not None:
            given.offload.take(pipe)
        elif layout.in_parts:
            model_offload.Offload(pipe, device.kind)
        else:
            pipe.to(device.kind)
    except Exception as error:
        if is_out_of_memory(error):
            free_memory()
            hint = "Close other programs that use it, then restart the studio."
            raise StudioError.from_problem(
                _no_room(f"{weights.model_id} ({device.kind})", hint)
            ) from None
        raise StudioError.from_problem(_unreadable(weights, error)) from error
    if "vae" not in given.parts:
        is_old_macos = device.kind == "mps" and not torch.backends.mps.is_macos_or_newer(15, 1)
        song_vae.use_tiles(pipe.vae, short=is_old_macos)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def _read_pipeline(
    weights: Weights, device: Device, layout: Layout, given: Given
) -> AceStepPipeline:
    """Read the checkpoint into the machine's memory, with the studio's faster layers and narrower weights."""
    import torch
    from diffusers import AceStepPipeline

    storage = getattr(torch, device.storage_dtype)
    compute = getattr(torch, device.dtype)
    reading = {"use_safetensors": True, "local_files_only": True}
    read_before = dict(given.parts)
    if given.lender is not None:  # its index does not list what it borrows
        for part in OPTIONAL_PARTS:
            read_before.pop(part, None)
    if layout.eight_bits == "stored":
        # At its full size the transformer takes as much as the other parts and its smaller form together.
        read_before["transformer"] = _narrow_transformer(weights, storage, compute, reading)
    pipe = AceStepPipeline.from_pretrained(
        weights.folder,
        dtype={"default": storage, "vae": getattr(torch, device.vae_dtype)},
        **reading,
        **read_before,
    )
    if given.lender is not None:
        pipe.register_modules(**_lent_parts(given, storage, reading))
    song_attention.use_windows(pipe.transformer)
    song_clock.set_up(pipe, weights.local_folder)
    song_compilation.set_up(pipe.transformer)
    if "vae" not in given.parts:
        song_vae.skip_idle_units(pipe.vae)
        song_vae.use_pieces(pipe.vae)
    if storage != compute:
        for name, part in pipe.components.items():
            is_ready = name in {"vae", *given.parts, *read_before}
            if isinstance(part, torch.nn.Module) and not is_ready:
                model_offload.cast_on_use(part, storage, compute)
    return pipe


def _lent_parts(given: Given, storage: torch.dtype, reading: dict[str, bool]) -> dict[str, Any]:
    """Return the parts for audio codes, from another pipeline or from the lender's folder."""
    from diffusers.pipelines import ace_step

    assert given.lender is not None
    classes = (ace_step.AceStepAudioTokenizer, ace_step.AceStepAudioTokenDetokenizer)
    lent = {}
    for part, part_class in zip(OPTIONAL_PARTS, classes, strict=True):
        lent[part] = given.parts.get(part) or part_class.from_pretrained(
            given.lender.local_folder / part, dtype=storage, **reading
        )
    return lent


def _unreadable(weights: Weights, error: Exception) -> Problem:
    message = f"The model {weights.model_id} could not be loaded: {first_line(error)}"
    hint = f"Check the folder {weights.folder}, or delete it and download the model again."
    if weights.is_built_in_engine:
        hint = "Copy the studio's folder again, with assets/ in it."
    return Problem("weights_broken", message, hint=hint)


def _narrow_transformer(
    weights: Weights, storage: torch.dtype, compute: torch.dtype, reading: dict[str, bool]
) -> Any:
    """Read the transformer alone, and store its layers in 8 bits."""
    from diffusers import AceStepTransformer1DModel

    transformer = AceStepTransformer1DModel.from_pretrained(
        weights.local_folder / "transformer", dtype=storage, **reading
    )
    model_offload.store_in_8_bits(transformer, compute)
    return transformer


def quiet_libraries() -> None:
    """Keep progress bars, and a warning about old weight norms that no visitor can act on, off the console."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings(
        "ignore", message=".*torch.nn.utils.weight_norm", category=FutureWarning
    )


def _no_room(name: str, hint: str) -> Problem:
    return Problem("out_of_memory", f"{name} does not fit into the free memory.", hint=hint)


def planner_dtype(device: Device) -> str:
    """Return the dtype in which the planner computes: on MPS upstream's, not the song model's."""
    if device.kind == "mps":
        return "float32"
    return device.dtype


def planner_storage(device: Device) -> str:
    """Return the dtype of the planner's weights in memory.

    On a processor that is short of memory they are narrow, as the song model's, and widened one by
    one, for which a token takes 1.6 times as long. A card widens them when they are loaded.
    """
    if device.kind == "cpu":
        return device.storage_dtype
    return planner_dtype(device)


def trim_memory(device: torch.device) -> None:
    """Shrink the cache of Apple's GPU allocator if it exceeds half of the memory in use; called between steps."""
    import torch

    if (
        device.type == "mps"
        and torch.mps.driver_allocated_memory() > 1.5 * torch.mps.current_allocated_memory()
    ):
        torch.mps.empty_cache()


def free_memory() -> None:
    """Collect garbage and empty the GPU's cache; imports nothing."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    # not imported, or another thread is still importing it
    with contextlib.suppress(AttributeError):
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()


CGROUPS = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
# Of version 2 and of version 1: the files with the limit and with what is used, and the statistic of
# what was read from files.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory() -> int:
    """Return the free memory in bytes, within the container's limit."""
    free = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError):
        for folder in control_groups(CGROUP_OF_PROCESS.read_text()):
            free += _free_in(folder)
    return max(min(free), 0)


def control_groups(text: str) -> list[Path]:
    """Return the folders of this process's control groups, from `CGROUP_OF_PROCESS`, and of those above them."""
    # of version 2 and 1; a container usually sees its own group as the root
    found = [CGROUPS, CGROUPS / "memory"]
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / controllers
        folder = root / path.strip("/")
        while folder != root:
            found.append(folder)
            folder = folder.parent
    return found


def _free_in(folder: Path) -> list[int]:
    """Return the bytes that the limit of a control group leaves, [] if there is none.

    What was read from files counts as used there, although it goes as soon as the memory is needed.
    """
    for limit_file, used_file, cached in MEMORY_FILES:
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
            limit = int((folder / limit_file).read_text())
            used = int((folder / used_file).read_text())
            return [limit - used + _statistic(folder, cached)]
    return []


def _statistic(folder: Path, name: str) -> int:
    """Return the number called `name` in a control group's memory.stat, 0 if there is none."""
    with contextlib.suppress(OSError):
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
