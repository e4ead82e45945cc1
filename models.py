"""Which device runs the song model in which numbers, and the pipeline built from weights and device."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

import attention
import memory
import preview
from bootstrap import on_zerogpu
from checkpoints import DEFAULT_MODEL_GB, PREVIEW_HIDDEN_SIZE, Weights, missing_model, transformer_config
from events import StudioError, first_line
from hub import PARTS

if TYPE_CHECKING:
    import torch
    from diffusers import AceStepPipeline


XL_PARTS_GB = {
    **{"transformer": 8.34, "condition_encoder": 1.22, "text_encoder": 1.19, "vae": 0.34},
    **{"audio_tokenizer": 0.21, "audio_token_detokenizer": 0.21},
}
"""In bfloat16, by the number of parameters."""

Kind = Literal["cuda", "mps", "cpu"]


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
    are kept in 8 bits as well, which the processor, where nothing can take turns, does alone.

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
        if device.storage_dtype != device.dtype:
            parts = [
                part for part in pipe.components if part != "vae" and not (plan == "fp8" and part == "transformer")
            ]
            _cast_when_used(pipe, parts, getattr(torch, device.storage_dtype), getattr(torch, device.dtype))
        if plan == "fp8":
            _cast_when_used(pipe, ["transformer"], torch.float8_e4m3fn, getattr(torch, device.dtype))
        if plan in ("offload", "fp8") and "offload" in memory.LADDERS[device.kind]:
            take_turns(pipe, device.kind)
        else:
            pipe.to(device.kind)
    except (torch.OutOfMemoryError, MemoryError):
        free_memory()
        raise StudioError(
            "out_of_memory",
            f"{weights.model_id} does not fit into this machine's memory ({device.kind}).",
            hint="Close other programs that use it, and start the studio again.",
        ) from None
    except Exception as error:
        raise StudioError(
            "weights_broken",
            f"The model {weights.model_id} could not be loaded: {first_line(error)}",
            hint=f"Look at the folder {weights.folder}, or remove it and fetch the model again.",
        ) from error
    attention.use(pipe.transformer, attention.CHOSEN)
    pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def sizes_of(weights: Weights, device: Device) -> memory.Sizes:
    """Return the bytes that the pipeline of `weights` takes on `device`, as far as its files tell."""
    if weights.folder is None or not weights.folder.exists():
        # Not here yet: XL's, or the preview's, which are nothing.
        share = 0.001 if weights.engine == "preview" else 1.0
        parts = {name: int(share * size * 10**9) for name, size in XL_PARTS_GB.items()}
    else:
        parts = {part: _part_bytes(weights.folder / part) for part in PARTS}
    # The checkpoint is in bfloat16; the built-in one is in float32 already.
    factor = 2 if device.storage_dtype == "float32" and weights.engine != "preview" else 1
    parts = {part: size * factor for part, size in parts.items()}
    largest = max(size for part, size in parts.items() if part != "transformer")
    return memory.Sizes(sum(parts.values()), parts["transformer"], largest)


def song_of(weights: Weights, device: Device, duration: float, takes: int, guided: bool) -> memory.Song:
    """Return what the memory plan has to know about a song that `weights` make on `device`."""
    # The built-in checkpoint may not be made yet, and is small in any case.
    usual = PREVIEW_HIDDEN_SIZE if weights.engine == "preview" else memory.XL_HIDDEN_SIZE
    width = float(transformer_config(weights).get("hidden_size") or usual) / memory.XL_HIDDEN_SIZE
    return memory.Song(duration, takes, guided, width, wide=device.dtype == "float32")


def room_for_models(kind: Kind) -> int | None:
    """Return the bytes that our models may take together on the device: what is free, and what they have already.

    None on ZeroGPU, where each call gets the whole card, whatever torch reports in the main process.
    """
    if on_zerogpu():
        return None
    if kind == "cpu":
        return available_memory() + psutil.Process().memory_info().rss
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
    if kind != "cuda" or on_zerogpu():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


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
    needed = 2 * _stored_bytes(weights) + 4 * 10**9
    available = available_memory()
    if available < needed:
        reason += (
            f" In bfloat16, because float32 would need {needed / 10**9:.0f} GB of memory and "
            f"{available / 10**9:.0f} GB are free. A song takes very long here."
        )
        return Device("cpu", "bfloat16", "bfloat16", "float32", reason)
    return Device("cpu", "float32", "float32", "float32", f"{reason} In float32. A song takes very long here.")


def _stored_bytes(weights: Weights) -> int:
    if weights.folder is None:
        return int(DEFAULT_MODEL_GB * 10**9)
    return sum(_part_bytes(weights.folder / part) for part in PARTS)


def _part_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


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
    the hooks of accelerate, on whole parts, would not see. What reads the device from the pipeline gets the true one.
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


def leave(pipe: AceStepPipeline) -> None:
    """Take the part of `pipe` that has the turn off the device."""
    turns = getattr(pipe.transformer, "_hf_hook", None)
    if isinstance(turns, Turns):
        turns.leave()
        free_memory()


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
