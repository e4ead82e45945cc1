"""The models of the studio: on which device and in which numbers they run, and each one once it is loaded."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

import attention
import codec
import compilation
import float8
import preview
from bootstrap import on_zerogpu
from events import Problem, Progress, StudioError, as_dict, first_line, is_out_of_memory
from weights import Weights, find_weights, missing_model, stored_bytes

if TYPE_CHECKING:
    import torch
    from diffusers import AceStepPipeline


Kind = Literal["cuda", "mps", "cpu"]
Plan = Literal["resident", "swap", "offload", "fp8", "fast8"]

# What a plan can do there: on MPS and the CPU a part that leaves the device would stay in the same memory, and MPS has
# no 8-bit floating-point numbers.
LADDERS: dict[str, tuple[Plan, ...]] = {
    "cuda": ("resident", "swap", "offload", "fp8"),
    "mps": ("resident", "swap"),
    "cpu": ("resident", "swap", "fp8"),
}
# Computes in 8 bits, so it is never chosen, only asked for.
FAST8 = "fast8"


@dataclass(frozen=True)
class Device:
    """Where and in which numbers the model runs; dtypes are torch's names, `reason` is a sentence for people.

    `dtype` is what is computed in, `storage_dtype` how the weights lie in memory, `vae_dtype` the VAE's.
    """

    kind: Kind
    dtype: str
    storage_dtype: str
    vae_dtype: str
    reason: str


class Models:
    """The song model's weights, the device, and each model once it is loaded; `turn` is held while a job uses them.

    `plan` is the memory plan in force, "" before the first job. `planner` and `lyrics` make the slots of the two
    language models for a device that is picked later.
    """

    def __init__(self, planner: Callable[[Callable[[], Device]], Slot], lyrics: Callable[[Callable[[], Device]], Slot]):
        self.turn = threading.Lock()
        self.preparing = False
        self._building = threading.Lock()
        self._picking = threading.Lock()
        self.known_device: Device | None = None
        self._pipe: Any = None
        self.plan = ""
        self.weights = find_weights()
        self.planner = planner(self.device)
        self.lyrics = lyrics(self.device)

    @property
    def loaded(self) -> bool:
        return self._pipe is not None

    def pipeline(self) -> Any:
        """Return the pipeline, built at the first call however many ask for it at once."""
        # A ZeroGPU worker may have been forked while another thread held the lock, so what is there needs none.
        if (pipe := self._pipe) is not None:
            return pipe
        with self._building:
            if self._pipe is None:
                self._pipe = build_pipeline(self.weights, self.device(), self.plan or "resident")
            return self._pipe

    def let_go_of_pipeline(self) -> None:
        """Give the pipeline's memory back; the next use builds it again."""
        with self._building:
            self._pipe = None
        free_memory()

    def device(self) -> Device:
        """Return the device that is used; the first call imports torch."""
        if (device := self.known_device) is not None:
            return device
        with self._picking:
            if self.known_device is None:
                self.known_device = pick_device(self.weights)
            return self.known_device

    def load_all(self) -> None:
        """Load everything that is here now; a planner or a writer that cannot be loaded says so in the status."""
        self.pipeline()
        for slot in (self.planner, self.lyrics):
            with contextlib.suppress(StudioError):
                slot.get()

    def prepare(self) -> None:
        """Load the built-in engine, and import what loads another one, while the visitor fills in the form."""
        if self.loaded or not self.turn.acquire(blocking=False):
            return
        self.preparing = True
        try:
            if self.weights.engine == "preview":
                self.pipeline()
            else:
                from diffusers import AceStepPipeline  # noqa: F401
        finally:
            self.preparing = False
            self.turn.release()

    def refresh(self) -> None:
        """Look for all weights again; a change lets go of the model once the job that uses it is done."""
        weights = find_weights()
        if weights != self.weights:
            with self.turn:
                with self._building:
                    self.weights, self._pipe, self.known_device = weights, None, None
                # They may have been loaded in the numbers that suited the old weights.
                self.planner.let_go()
                self.lyrics.let_go()
        self.planner.refresh(self.turn)
        self.lyrics.refresh(self.turn)


class Slot:
    """The planner or the lyrics writer: its `weights`, the model once it is loaded, or the `problem` of loading it.

    `smaller` is what to try where it does not fit into memory.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], Any],
        build: Callable[[Any], Any],
        fetch: Callable[[Any], Iterator[Progress]],
        smaller: str,
    ):
        self.name, self._find, self._build, self._fetch, self._smaller = name, find, build, fetch, smaller
        self._building = threading.Lock()
        self._model: Any = None
        self.weights = find()
        self.problem: Problem | None = None

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def get(self) -> Any:
        """Return the model, loaded at the first call; raises StudioError where it is not here or cannot be loaded.

        What failed is not tried again before `refresh`, except for a lack of memory, which may be gone by now.
        """
        # A ZeroGPU worker may have been forked while another thread held the lock, so what is there needs none.
        if (model := self._model) is not None:
            return model
        with self._building:
            if self._model is None:
                problem = self._missing() or self.problem
                if problem and problem.code != "out_of_memory":
                    raise StudioError.of(problem)
                self._model, self.problem = self._load()
                if self.problem:
                    # Out here the exception is gone, and with it what it held of the model.
                    free_memory()
                    raise StudioError.of(self.problem)
            return self._model

    def fetch(self) -> Iterator[Progress]:
        """Fetch what was named on purpose and is not here yet; the caller looks again afterwards."""
        if self.weights.source != "hub":
            return
        try:
            yield from self._fetch(self.weights)
        except StudioError as error:
            self.problem = error.problem
            raise

    def check(self) -> None:
        """Raise StudioError where the weights are not on this machine."""
        if problem := self._missing():
            raise StudioError.of(problem)

    def refresh(self, turn: threading.Lock) -> None:
        """Look for the weights again and forget what failed; others let go of the model, once `turn` is free."""
        found = self._find()
        if found == self.weights:
            self.problem = None
            return
        with turn:
            self.let_go()
            self.weights, self.problem = found, None

    def let_go(self) -> None:
        """Give the model's memory back; the next use loads it again."""
        with self._building:
            if close := getattr(self._model, "close", None):
                close()
            self._model = None
        free_memory()

    def status(self) -> dict[str, Any]:
        """Return whether it is "off", not here ("none"), "ready" to be loaded, "loaded" or "failed", and why."""
        weights, state = self.weights, "ready"
        to_fetch = weights.source == "hub" and not self.problem
        if weights.source == "off":
            state = "off"
        elif self.loaded:
            state = "loaded"
        elif self.problem:
            state = "failed"
        elif weights.folder is None and not to_fetch:
            state = "none"
        return {
            "state": state,
            "model": "" if state == "off" else weights.model_id,
            "source": weights.source,
            "problem": None if to_fetch else as_dict(self.problem or weights.problem),
        }

    def _missing(self) -> Problem | None:
        if self.weights.folder is not None:
            return None
        return (
            self.problem or self.weights.problem or Problem("weights_missing", f"{self.name} is not on this machine.")
        )

    def _load(self) -> tuple[Any, Problem | None]:
        try:
            return self._build(self.weights), None
        except StudioError as error:
            return None, error.problem
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None, _no_room(f"{self.name} {self.weights.model_id}", self._smaller)


def pick_device(weights: Weights) -> Device:
    """Choose CUDA, else MPS, else the CPU, and the numbers that suit it and `weights`."""
    import torch

    small = weights.engine == "preview"
    if on_zerogpu() or torch.cuda.is_available():
        return _cuda(torch, small)
    if torch.backends.mps.is_available():
        return _mps(torch, small)
    return _cpu(weights, small)


def build_pipeline(weights: Weights, device: Device, plan: str = "resident") -> AceStepPipeline:
    """Load the pipeline of `weights` onto `device`: VAE tiling on, evaluation only, no progress bars of its own.

    `plan` is a memory plan: with "offload" its parts take turns on the device, with "fp8" the transformer's layers
    are kept in 8 bits as well, which the processor, where nothing can take turns, does alone. With "fast8" they are
    computed in 8 bits.

    Raises StudioError where there are no weights, they cannot be loaded, or memory does not suffice.
    """
    if weights.engine != "preview" and weights.folder is None:
        raise StudioError.of(weights.problem or missing_model(weights.wanted))
    import torch
    from diffusers import AceStepPipeline

    preview.quiet_libraries()
    dtypes = {"default": getattr(torch, device.storage_dtype), "vae": getattr(torch, device.vae_dtype)}
    try:
        folder = preview.checkpoint_folder() if weights.engine == "preview" else weights.folder
        pipe = AceStepPipeline.from_pretrained(folder, dtype=dtypes, use_safetensors=True, local_files_only=True)
        attention.use_windows(pipe.transformer)
        compilation.set_up(pipe.transformer)
        codec.skip_idle_units(pipe.vae)
        codec.use_pieces(pipe.vae)
        if device.storage_dtype != device.dtype:
            parts = [
                part for part in pipe.components if part != "vae" and not (plan == "fp8" and part == "transformer")
            ]
            _cast_when_used(pipe, parts, getattr(torch, device.storage_dtype), getattr(torch, device.dtype))
        if plan == "fp8":
            _cast_when_used(pipe, ["transformer"], torch.float8_e4m3fn, getattr(torch, device.dtype))
        if plan == FAST8:
            float8.use(pipe.transformer.layers, device.kind)
        if plan in ("offload", "fp8") and is_apart(device.kind):
            take_turns(pipe, device.kind)
        else:
            pipe.to(device.kind)
    except Exception as error:
        if is_out_of_memory(error):
            free_memory()
            hint = "Close other programs that use it, and start the studio again."
            raise StudioError.of(_no_room(f"{weights.model_id} ({device.kind})", hint)) from None
        raise StudioError(
            "weights_broken",
            f"The model {weights.model_id} could not be loaded: {first_line(error)}",
            hint=f"Look at the folder {weights.folder}, or remove it and fetch the model again.",
        ) from error
    pipe.vae.enable_tiling()
    if device.kind == "mps" and not torch.backends.mps.is_macos_or_newer(15, 1):
        codec.use_short_tiles(pipe.vae)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def _no_room(name: str, hint: str) -> Problem:
    return Problem("out_of_memory", f"{name} does not fit into the memory that is free.", hint=hint)


def plans_on(device: Device) -> tuple[str, ...]:
    """Return the memory plans that can be carried out on `device`."""
    if on_zerogpu():
        return ("resident",)
    fast = device.kind == "cuda" and float8.is_supported()
    return (*LADDERS[device.kind], *((FAST8,) if fast else ()))


def is_apart(kind: str) -> bool:
    """Tell whether the device has memory of its own, so that what leaves it can wait in the machine's."""
    return "offload" in LADDERS[kind]


def planner_dtype(device: Device) -> str:
    """Return the numbers that the planner computes in: on MPS those of upstream, not the song model's."""
    return "float32" if device.kind == "mps" else device.dtype


def trim_memory(device: torch.device) -> None:
    """Give back between two steps what the allocator of Apple's GPU holds beyond half of what is in use."""
    import torch

    if device.type == "mps" and torch.mps.driver_allocated_memory() > 1.5 * torch.mps.current_allocated_memory():
        torch.mps.empty_cache()


def free_memory() -> None:
    """Give back what Python and the GPU's allocator hold without need; imports nothing."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


# --- devices ------------------------------------------------------------------------------------------------------


def _cuda(torch: Any, small: bool) -> Device:
    if on_zerogpu():
        # The card comes with each call; there is nothing to ask here.
        name, native = "a ZeroGPU card", True
    else:
        name = torch.cuda.get_device_name(0)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    if small:
        return Device("cuda", "float32", "float32", "float32", f"Runs on {name}, in float32: the preview is small.")
    if native:
        return Device("cuda", "bfloat16", "bfloat16", "bfloat16", f"Runs on {name}, in bfloat16.")
    reason = (
        f"Runs on {name}, which has no bfloat16 of its own: the weights are kept in float16 and computed in float32, "
        "which is slower and exact."
    )
    return Device("cuda", "float32", "float16", "float32", reason)


def _mps(torch: Any, small: bool) -> Device:
    name = "the Apple GPU (MPS)"
    if small:
        return Device("mps", "float32", "float32", "float32", f"Runs on {name}, in float32: the preview is small.")
    if not torch.backends.mps.is_macos_or_newer(14, 0):
        reason = f"Runs on {name}, in float32: bfloat16 needs macOS 14. That takes twice the memory."
        return Device("mps", "float32", "float32", "float32", reason)
    reason = f"Runs on {name}, in bfloat16; the VAE, which turns latents into sound, in float32."
    return Device("mps", "bfloat16", "bfloat16", "float32", reason)


def _cpu(weights: Weights, small: bool) -> Device:
    reason = "Runs on the processor: no NVIDIA or Apple GPU was found."
    if small:
        return Device("cpu", "float32", "float32", "float32", reason)
    # The checkpoint is bfloat16; float32 takes twice its size, and a song needs some room beside it.
    needed = 2 * stored_bytes(weights) + 4 * 10**9
    available = available_memory()
    if available < needed:
        reason += (
            f" In bfloat16, because float32 would need {needed / 10**9:.0f} GB of memory and "
            f"{available / 10**9:.0f} GB are free. A song takes very long here."
        )
        return Device("cpu", "bfloat16", "bfloat16", "float32", reason)
    return Device("cpu", "float32", "float32", "float32", f"{reason} In float32. A song takes very long here.")


def available_memory() -> int:
    """Return the free memory in bytes; a container's own limit counts where it is lower than the machine's."""
    available, container = psutil.virtual_memory().available, _container_memory()
    return available if container is None else min(available, container)


def _container_memory() -> int | None:
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return limit - int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return None


# --- building -----------------------------------------------------------------------------------------------------


class Turns:
    """Lets the parts of a pipeline take turns on the device: one is there, the others wait in the machine's memory.

    A part comes when it, or a module right inside it, is called; the loop calls some of those by themselves, which
    the hooks of accelerate, on whole parts, would not see. What uses weights without calling a module, as reading audio
    codes does, which diffusers' group offloading would miss as well, says so with `enter`. What reads the device from
    the pipeline gets the true one.
    """

    def __init__(self, parts: dict[str, torch.nn.Module], device: str):
        import torch

        self.execution_device = torch.device(device)
        self.inside = ""
        self._parts = parts
        for name, part in parts.items():
            part.to("cpu")
            # Where diffusers looks for the device.
            part._hf_hook = self
            embeddings = [part.get_input_embeddings()] if hasattr(part, "get_input_embeddings") else []
            for module in (part, *part.children(), *embeddings):
                module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))

    def enter(self, name: str) -> None:
        """Bring the part `name` onto the device and send the one that is there away."""
        if name == self.inside:
            return
        if self.inside:
            self._parts[self.inside].to("cpu")
        self.inside = name
        self._parts[name].to(self.execution_device)

    def leave(self) -> None:
        """Send the part that is on the device away."""
        if self.inside:
            self._parts[self.inside].to("cpu")
            self.inside = ""


def take_turns(pipe: AceStepPipeline, device: str) -> Turns:
    """Keep one part of `pipe` on `device` at a time; returns who has the turn."""
    import torch

    return Turns({name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}, device)


def enter(pipe: AceStepPipeline, name: str) -> None:
    """Bring the part `name` of `pipe` onto the device where parts take turns."""
    if turns := _turns(pipe):
        turns.enter(name)


def leave(pipe: AceStepPipeline) -> None:
    """Take the part of `pipe` that has the turn off the device."""
    if turns := _turns(pipe):
        turns.leave()
        free_memory()


def _turns(pipe: AceStepPipeline) -> Turns | None:
    turns = getattr(pipe.transformer, "_hf_hook", None)
    return turns if isinstance(turns, Turns) else None


def _cast_when_used(pipe: AceStepPipeline, parts: Iterable[str], storage: torch.dtype, compute: torch.dtype) -> None:
    """Keep the large layers' weights of `parts` in `storage` and widen each to `compute` while it works.

    What is no layer of its own (norms, learnt tokens, the latent of silence) is small and held in `compute`.
    """
    import torch
    from diffusers.hooks import apply_layerwise_casting

    layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.ConvTranspose1d, torch.nn.Embedding)
    for name in parts:
        part = pipe.components[name]
        if not isinstance(part, torch.nn.Module):
            continue
        apply_layerwise_casting(part, storage, compute, skip_modules_pattern=())
        for module in part.modules():
            if isinstance(module, layers):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(compute)
            for key, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_floating_point():
                    setattr(module, key, buffer.to(compute))
