"""Where the song model's weights are, which device runs them in which numbers, and the pipeline built from both.

Weights are looked for without torch and without the network: the folder that ACE_STUDIO_MODEL names, ./models beside
this file, the Hugging Face cache. What is found is checked before it is used, down to the length of every weights file,
so that a copy that broke off is known before minutes are spent on loading it. `hub.py` fetches what is not here.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from huggingface_hub import constants, try_to_load_from_cache

import attention
import memory
import preview
from events import Problem, StudioError
from hub import INDEX, PARTS, download, is_repo_id
from limits import shown

if TYPE_CHECKING:
    import torch
    from diffusers import AceStepPipeline

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_MODEL_GB",
    "Device",
    "Weights",
    "available_memory",
    "build_pipeline",
    "checkpoint_kind",
    "download",
    "find_weights",
    "free_memory",
    "is_turbo",
    "leave",
    "looks_like_folder",
    "on_zerogpu",
    "pick_device",
    "place_of",
    "read_json",
    "room_for_models",
    "sizes_of",
    "snapshot_revision",
    "song_of",
    "take_turns",
    "vram_limit_for",
    "weights_flaw",
]

DEFAULT_MODEL = "ACE-Step/acestep-v15-xl-sft-diffusers"
DEFAULT_MODEL_GB = 11.5
PREVIEW = "preview"
PREVIEW_HIDDEN_SIZE = 96
VARIABLE = "ACE_STUDIO_MODEL"
MODELS_FOLDER = Path(__file__).with_name("models")

XL_PARTS_GB = {
    **{"transformer": 8.34, "condition_encoder": 1.22, "text_encoder": 1.19, "vae": 0.34},
    **{"audio_tokenizer": 0.21, "audio_token_detokenizer": 0.21},
}
"""In bfloat16, by the number of parameters."""
OPTIONAL_PARTS = ("audio_tokenizer", "audio_token_detokenizer")
LARGEST_HEADER = 100_000_000
"""The limit of the safetensors format for its header, in bytes."""

Kind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True)
class Weights:
    """Which checkpoint runs: `wanted` names the one that was asked for, `problem` tells why it is not the one in use.

    `source` is where `folder` comes from: the variable's own folder, ./models, the cache, the built-in "preview"; "hub"
    is still to be fetched (folder None), "none" cannot be had (folder None). The preview's folder is made when the
    pipeline is built. `revision` is the commit on the hub, where it is known.
    """

    model_id: str
    folder: Path | None
    source: Literal["variable", "models", "cache", "preview", "hub", "none"]
    revision: str
    engine: Literal["xl", "preview"]
    problem: Problem | None
    wanted: str


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


def find_weights() -> Weights:
    """Look for the weights that ACE_STUDIO_MODEL names (a folder, a hub id, "preview"; by default the XL SFT model).

    Where nobody asked for a certain model and the default one is not here, the preview stands in, with the problem.
    What was asked for by name is never replaced, nor is anything on ZeroGPU. Never asks the network.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked.lower() == PREVIEW:
        return _preview(None)
    if asked and (looks_like_folder(asked) or not is_repo_id(asked)):
        return _from_variable(asked)
    wanted = asked or DEFAULT_MODEL
    problem = _missing(wanted)
    for source, folder in (("models", MODELS_FOLDER.joinpath(*wanted.split("/"))), ("cache", _cached(wanted))):
        if folder is None or not os.path.lexists(folder):
            continue
        flaw = _flaw(folder)
        if flaw is None:
            return Weights(wanted, folder, source, snapshot_revision(folder), "xl", None, wanted)
        if source == "models" or not asked:
            problem = flaw
    if asked and problem.code == "weights_missing":
        return Weights(wanted, None, "hub", "", "xl", None, wanted)
    if asked or on_zerogpu():
        return Weights(wanted, None, "none", "", "xl", problem, wanted)
    return _preview(problem)


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
        problem = weights.problem or _missing(weights.wanted)
        raise StudioError(problem.code, problem.message, problem.field, problem.hint)
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StudioError(
            "weights_broken",
            f"The model {weights.model_id} could not be loaded: {reason}",
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
    width = float(_transformer_config(weights).get("hidden_size") or usual) / memory.XL_HIDDEN_SIZE
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


def snapshot_revision(folder: Path) -> str:
    """Return the commit of the snapshot that `folder` is, lies in or leads to; "" where it is none."""
    parts = folder.resolve().parts
    for storage, name, commit in zip(parts, parts[1:], parts[2:], strict=False):
        if storage.startswith("models--") and name == "snapshots":
            return commit
    return ""


def vram_limit_for(kind: Kind) -> int | None:
    """Return the graphics memory in bytes that plans may count with; None where it is no limit of its own.

    On MPS the GPU shares the machine's memory. On ZeroGPU each call gets the whole card, whatever torch reports here.
    """
    if kind != "cuda" or on_zerogpu():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def is_turbo(weights: Weights) -> bool:
    """Tell whether the checkpoint is distilled (8 steps, no guidance), as its transformer's config says."""
    config = _transformer_config(weights)
    return bool(config.get("is_turbo")) or config.get("model_version") == "turbo"


def checkpoint_kind(weights: Weights) -> Literal["base", "sft", "turbo", "preview"]:
    """Tell which tasks the checkpoint was trained for; the name decides between base and sft, else its config."""
    if weights.engine == "preview":
        return "preview"
    if is_turbo(weights):
        return "turbo"
    version = str(_transformer_config(weights).get("model_version") or "")
    name = weights.model_id.lower()
    return next((kind for text in (name, version) for kind in ("sft", "base") if kind in text), "sft")


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


def on_zerogpu() -> bool:
    """Tell whether this is a ZeroGPU Space, by the rule of the `spaces` package."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


# --- finding ------------------------------------------------------------------------------------------------------


def _preview(problem: Problem | None) -> Weights:
    return Weights(PREVIEW, preview.expected_folder(), "preview", "", "preview", problem, DEFAULT_MODEL)


def looks_like_folder(text: str) -> bool:
    """Tell whether `text` means a folder, not a model on the hub."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.lexists(text)


def _from_variable(asked: str) -> Weights:
    folder = Path(os.path.expanduser(asked)).absolute()  # unlike Path.expanduser, lets an unknown ~user stand
    problem = _flaw(folder)
    if problem and not looks_like_folder(asked):
        problem = Problem(
            "weights_missing",
            f'{VARIABLE} must be a folder, a model on Hugging Face like "{DEFAULT_MODEL}", or preview, '
            f"not {shown(asked)}.",
        )
    if problem:
        return Weights(asked, None, "none", "", "xl", problem, asked)
    return Weights(folder.name, folder, "variable", "", "xl", None, folder.name)


def _missing(wanted: str) -> Problem:
    hint = f"Fetch it from Hugging Face, or put it into models/{wanted}/ beside app.py."
    if on_zerogpu():
        hint = f"Name it under preload_from_hub in the Space's README.md: {wanted}."
    return Problem("weights_missing", f"The model {wanted} is not on this machine.", hint=hint)


def _cached(repo_id: str) -> Path | None:
    """Return the folder of the newest known snapshot in the Hugging Face cache, complete or not."""
    index = try_to_load_from_cache(repo_id, INDEX, cache_dir=constants.HF_HUB_CACHE)
    return Path(index).parent if isinstance(index, str) else None


def _flaw(folder: Path) -> Problem | None:
    """Return what keeps `folder` from being a whole ACE-Step checkpoint in diffusers layout, or None."""
    if folder.is_symlink() and not folder.exists():
        return _broken(folder, f"it is a link to {os.readlink(folder)}, and nothing is there")
    if not folder.exists():
        return Problem("weights_missing", f"There is no folder {folder}.", hint=f"Check {VARIABLE}.")
    if not folder.is_dir():
        return _broken(folder, "it is not a folder")
    index = read_json(folder / INDEX)
    if index is None:
        missing = f"{INDEX} is missing" if not (folder / INDEX).is_file() else f"{INDEX} cannot be read"
        return _broken(folder, f"{missing}; a checkpoint in diffusers layout is needed")
    if index.get("_class_name") != "AceStepPipeline":
        return _broken(folder, f"{INDEX} describes {shown(index.get('_class_name'))}, not AceStepPipeline")
    for part in PARTS:
        listed = isinstance(index.get(part), list) and all(index[part])
        if not listed and part in OPTIONAL_PARTS:
            continue
        reason = _part_flaw(folder, part) if listed else f"{INDEX} does not list {part}"
        if reason:
            return _broken(folder, reason)
    return None


def _broken(folder: Path, reason: str) -> Problem:
    return Problem(
        "weights_broken",
        f"The model in {place_of(folder)} cannot be used: {reason}.",
        hint="Complete it, or remove it and fetch the model again.",
    )


def place_of(folder: Path) -> str:
    """Return the folder as a visitor may see it: relative to the studio where it lies inside."""
    home = MODELS_FOLDER.parent
    return str(folder.relative_to(home)) if folder.is_relative_to(home) else str(folder)


def _part_flaw(folder: Path, part: str) -> str | None:
    config = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")
    if read_json(folder / part / config) is None:
        return f"{part}/{config} is missing or cannot be read"
    if part == "scheduler":
        return None
    if part == "tokenizer":
        spellings = (("tokenizer.json",), ("vocab.json", "merges.txt"))
        whole = any(all((folder / part / name).is_file() for name in names) for names in spellings)
        return None if whole else f"{part}/tokenizer.json is missing"
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    names = [f"{stem}.safetensors"]
    if (folder / part / f"{stem}.safetensors.index.json").exists():
        shards = (read_json(folder / part / f"{stem}.safetensors.index.json") or {}).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            return f"{part}/{stem}.safetensors.index.json cannot be read"
        names = sorted({str(name) for name in shards.values()})
    for name in names:
        if reason := weights_flaw(folder / part / name):
            return f"{part}/{name} {reason}"
    return None


def weights_flaw(path: Path) -> str | None:
    """Compare a safetensors file's length with what its header announces; the tensors themselves are not read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                return "is a Git LFS pointer, not the weights (git lfs pull fetches them)"
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
            if length > min(LARGEST_HEADER, size - 8):
                return "is not a safetensors file, or is cut off"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "is damaged"
    return None if size == expected else f"is not whole ({size:,} of {expected:,} bytes)"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _transformer_config(weights: Weights) -> dict[str, Any]:
    if weights.folder is None:
        # Not here yet; the official names tell.
        return {"is_turbo": "turbo" in weights.model_id.lower()}
    return read_json(weights.folder / "transformer" / "config.json") or {}


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
