"""Where the song model's weights are, and what they are.

They are looked for without torch and without the network: the folder that ACE_STUDIO_MODEL names, ./models beside this
file, the Hugging Face cache. What is found is checked before it is used, down to the length of every weights file, so
that a copy that broke off is known before minutes are spent on loading it. `hub.py` fetches what is not here.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, try_to_load_from_cache

import preview
from bootstrap import REPOSITORIES, on_zerogpu
from events import Problem
from hub import INDEX, PARTS, is_repo_id
from limits import shown

DEFAULT_MODEL_GB = 11.5
PREVIEW = "preview"
PREVIEW_HIDDEN_SIZE = 96
VARIABLE = "ACE_STUDIO_MODEL"
(DEFAULT_MODEL,) = REPOSITORIES[VARIABLE]
MODELS_FOLDER = Path(__file__).with_name("models")
OPTIONAL_PARTS = ("audio_tokenizer", "audio_token_detokenizer")
LARGEST_HEADER = 100_000_000
"""The limit of the safetensors format for its header, in bytes."""


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
    problem = missing_model(wanted)
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


def snapshot_revision(folder: Path) -> str:
    """Return the commit of the snapshot that `folder` is, lies in or leads to; "" where it is none."""
    parts = folder.resolve().parts
    for storage, name, commit in zip(parts, parts[1:], parts[2:], strict=False):
        if storage.startswith("models--") and name == "snapshots":
            return commit
    return ""


def is_turbo(weights: Weights) -> bool:
    """Tell whether the checkpoint is distilled (8 steps, no guidance), as its transformer's config says."""
    config = transformer_config(weights)
    return bool(config.get("is_turbo")) or config.get("model_version") == "turbo"


def checkpoint_kind(weights: Weights) -> Literal["base", "sft", "turbo", "preview"]:
    """Tell which tasks the checkpoint was trained for; the name decides between base and sft, else its config."""
    if weights.engine == "preview":
        return "preview"
    if is_turbo(weights):
        return "turbo"
    version = str(transformer_config(weights).get("model_version") or "")
    name = weights.model_id.lower()
    return next((kind for text in (name, version) for kind in ("sft", "base") if kind in text), "sft")


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


def missing_model(wanted: str) -> Problem:
    """Say that the song model `wanted` is not here, and how it gets here."""
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
    flaw = weights_flaw(folder / part, "model" if part == "text_encoder" else "diffusion_pytorch_model")
    return f"{part}/{flaw}" if flaw else None


def weights_flaw(folder: Path, stem: str = "model") -> str | None:
    """Return what is wrong with the weights in `folder`: one file called `stem`, or the shards that its index lists.

    None where all of them are whole; else a clause that begins with the file's name.
    """
    names, index = [f"{stem}.safetensors"], folder / f"{stem}.safetensors.index.json"
    if index.exists():
        shards = (read_json(index) or {}).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            return f"{index.name} cannot be read"
        names = sorted({str(name) for name in shards.values()})
    return next((f"{name} {flaw}" for name in names if (flaw := _file_flaw(folder / name))), None)


def _file_flaw(path: Path) -> str | None:
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


def transformer_config(weights: Weights) -> dict[str, Any]:
    """Return the transformer's config.json, empty where it cannot be read; what the name tells of weights not here."""
    if weights.folder is None:
        return {"is_turbo": "turbo" in weights.model_id.lower()}
    return read_json(weights.folder / "transformer" / "config.json") or {}
