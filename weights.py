"""Where the weights of the song model, the planner and the lyrics writer are, and what they are.

They are looked for without torch and without the network: the folder that the model's variable names, ./models beside
this file, the Hugging Face cache. What is found is checked before it is used, down to the length of every weights file,
so that a truncated copy is noticed before minutes are spent on loading it. `hub.py` fetches what is not here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

import preview
from bootstrap import REPOSITORIES, on_zerogpu
from events import Problem
from hub import INDEX, PARTS, is_repo_id
from limits import ACTIONS, shown

MODEL_VARIABLE, PLANNER_VARIABLE, LYRICS_VARIABLE = "ACE_STUDIO_MODEL", "ACE_STUDIO_PLANNER", "ACE_STUDIO_LYRICS"
PREVIEW, OFF = "preview", "off"
(DEFAULT_MODEL,) = REPOSITORIES[MODEL_VARIABLE]
DEFAULT_MODEL_GB = 11.5
(UMBRELLA,) = REPOSITORIES[PLANNER_VARIABLE]
SUBFOLDER = "acestep-5Hz-lm-1.7B"
"""The umbrella holds other models too; its planner is in a folder of its own, which need not be named."""
DEFAULT_PLANNER = f"{UMBRELLA}/{SUBFOLDER}"
DEFAULT_WRITER, DEFAULT_MLX_WRITER = REPOSITORIES[LYRICS_VARIABLE]
WRITER_GB = {DEFAULT_WRITER: 15.2, DEFAULT_MLX_WRITER: 4.3}
MODELS_FOLDER = Path(__file__).with_name("models")
OPTIONAL_PARTS = ("audio_tokenizer", "audio_token_detokenizer")
PREVIEW_CODES = 1_000
TOKEN_FILES = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Weights:
    """Which weights a model has: `wanted` is what was asked for, `problem` tells why that is not what runs.

    `source` is where `folder` comes from: the folder that the variable names, ./models, the cache, or the built-in
    "preview", whose folder is made when it is loaded; "hub" is still to be downloaded, "off" was switched off, "none"
    cannot be had, and all three have no folder. `revision` is the commit on the hub, where it is known. The planner may
    be in a folder `inside` its `repo`.
    """

    model_id: str
    folder: Path | None
    source: Literal["variable", "models", "cache", "preview", "hub", "off", "none"]
    revision: str
    engine: Literal["xl", "preview", "transformers", "mlx"]
    problem: Problem | None
    wanted: str
    repo: str = ""
    inside: str = ""


def find_weights() -> Weights:
    """Look for the song model that ACE_STUDIO_MODEL names (a folder, a hub id, "preview"; by default XL SFT).

    Where nobody asked for a certain model and the default one is not here, the preview stands in, with the problem.
    What was asked for by name is never replaced, nor is anything on ZeroGPU.
    """
    asked = os.environ.get(MODEL_VARIABLE, "").strip()
    if asked.lower() == PREVIEW:
        return _preview(None)
    if asked and (looks_like_folder(asked) or not is_repo_id(asked)):
        folder = _folder_named(asked)
        return _from_variable(asked, folder, "xl", _flaw(folder), MODEL_VARIABLE, DEFAULT_MODEL)
    wanted = asked or DEFAULT_MODEL
    nothing = Weights(wanted, None, "none", "", "xl", missing_model(wanted), wanted, wanted)
    found = _search(nothing, INDEX, _flaw, asked)
    if asked and found.problem and found.problem.code == "weights_missing":
        return replace(found, source="hub", problem=None)
    return found if found.folder or asked or on_zerogpu() else _preview(found.problem)


def find_planner() -> Weights:
    """Look for the planner that ACE_STUDIO_PLANNER names: "org/repo", "org/repo/folder", a folder, "preview", "off"."""
    asked = os.environ.get(PLANNER_VARIABLE, "").strip()
    if asked.lower() == OFF:
        problem = Problem("planner_off", f"The planner is switched off ({PLANNER_VARIABLE}=off).")
        return Weights(OFF, None, "off", "", "transformers", problem, OFF)
    if asked.lower() == PREVIEW:
        folder = preview.expected_language_model_folder("qwen3", PREVIEW_CODES)
        return Weights(PREVIEW, folder, "preview", "", "transformers", None, PREVIEW)
    wanted = asked or DEFAULT_PLANNER
    repo, inside = _on_the_hub(wanted)
    if not repo or looks_like_folder(asked):
        folder = _folder_named(asked)
        if not (folder / "config.json").exists() and (folder / SUBFOLDER).is_dir():
            folder /= SUBFOLDER
        flaw = _reason_against_planner(folder)
        problem = unusable(f"The folder {asked}", flaw) if flaw else None
        return _from_variable(asked, folder, "transformers", problem, PLANNER_VARIABLE, DEFAULT_PLANNER)

    def unfit(folder: Path) -> Problem | None:
        reason = _reason_against_planner(folder)
        beside = folder.is_relative_to(MODELS_FOLDER)
        return unusable(f"{MODELS_FOLDER.name}/{repo}/{inside}" if beside else wanted, reason) if reason else None

    nothing = Weights(wanted, None, "none", "", "transformers", _missing_planner(repo, inside), wanted, repo, inside)
    return _search(nothing, "config.json", unfit, asked)


def find_writer() -> Weights:
    """Look for the lyrics writer that ACE_STUDIO_LYRICS names: a folder, a hub id, "preview", "off"."""
    asked, engine = os.environ.get(LYRICS_VARIABLE, "").strip(), _writer_engine()
    if asked.lower() == OFF:
        problem = Problem("writer_off", f"The lyrics writer is switched off ({LYRICS_VARIABLE}=off).")
        return Weights("", None, "off", "", engine, problem, "")
    if asked.lower() == PREVIEW:
        folder = preview.expected_language_model_folder("qwen2")
        return Weights(PREVIEW, folder, "preview", "", "transformers", None, PREVIEW)
    if asked and (looks_like_folder(asked) or not is_repo_id(asked)):
        folder = _folder_named(asked)
        return _from_variable(asked, folder, engine, _writer_flaw(folder, engine), LYRICS_VARIABLE, DEFAULT_WRITER)
    wanted = asked or (DEFAULT_MLX_WRITER if engine == "mlx" else DEFAULT_WRITER)
    nothing = Weights(wanted, None, "none", "", engine, missing_writer(wanted), wanted, wanted)
    return _search(nothing, "config.json", lambda folder: _writer_flaw(folder, engine), asked)


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


def has_audio_codes(weights: Weights) -> bool:
    """Tell whether the checkpoint has the parts that make audio codes and read them; the XL turbo one has not.

    True of weights that are not here yet.
    """
    index = read_json(weights.folder / INDEX) if weights.folder else None
    return index is None or all(_is_listed(index, part) for part in OPTIONAL_PARTS)


def checkpoint_kind(weights: Weights) -> Literal["base", "sft", "turbo", "preview"]:
    """Tell what the checkpoint was trained for; the name decides between base and sft, else its config.

    The random weights that tests run are no engine of their own and count as sft.
    """
    if is_turbo(weights):
        return "turbo"
    if weights.engine == "preview":
        return "sft" if is_untrained(weights) else "preview"
    version = str(transformer_config(weights).get("model_version") or "")
    name = weights.model_id.lower()
    return next((kind for text in (name, version) for kind in ("sft", "base") if kind in text), "sft")


def is_untrained(weights: Weights) -> bool:
    """Tell whether these are the built-in engine's random weights, which play noise."""
    return weights.engine == "preview" and weights.folder != preview.TRAINED


NO_COVER = "This checkpoint has no audio tokenizer and detokenizer, which a cover needs."


def task_support(kind: str, codes: bool = True) -> dict[str, str]:
    """Tell for each task whether a checkpoint of `kind` (base, sft, turbo, preview) supports it officially.

    Only the base checkpoints were trained to layer, extract and complete, and morph needs guidance (upstream's task
    table); what is not official still runs, as an experiment. Without the parts for audio codes a cover is
    "unsupported" (`NO_COVER`).
    """
    official = {"generate", "cover", "extend", "repaint"}
    official |= {"layer", "extract", "complete"} if kind == "base" else set()
    official |= {"morph"} if kind != "turbo" else set()
    tasks = ("generate", "cover", "extend", *ACTIONS)
    support = {task: "official" if task in official else "experimental" for task in tasks}
    return support if codes else {**support, "cover": "unsupported"}


# --- finding ------------------------------------------------------------------------------------------------------


def _search(nothing: Weights, index: str, flaw: Callable[[Path], Problem | None], asked: str) -> Weights:
    """Look into ./models and the cache for what `nothing` wants; returns it with the reason where neither has it.

    What was `asked` for by name, and is not here, is to be downloaded, except on ZeroGPU.
    """
    repo, problem = nothing.repo, nothing.problem
    index = f"{nothing.inside}/{index}".lstrip("/")
    cached = try_to_load_from_cache(repo, index, cache_dir=constants.HF_HUB_CACHE)
    places = (
        ("models", MODELS_FOLDER.joinpath(*repo.split("/"), nothing.inside)),
        ("cache", Path(cached).parent if isinstance(cached, str) else None),
    )
    for source, folder in places:
        if folder is None or not os.path.lexists(folder):
            continue
        found = flaw(folder)
        if found is None:
            return replace(nothing, folder=folder, source=source, revision=snapshot_revision(folder), problem=None)
        # A download completes an incomplete copy in the cache.
        if source == "models" or not asked:
            problem = found
    to_fetch = asked and problem is nothing.problem and not on_zerogpu()
    return replace(nothing, source="hub" if to_fetch else "none", problem=problem)


def _folder_named(asked: str) -> Path:
    return Path(os.path.expanduser(asked)).absolute()  # unlike Path.expanduser, lets an unknown ~user stand


def _from_variable(
    asked: str, folder: Path, engine: str, problem: Problem | None, variable: str, default: str
) -> Weights:
    """Return the weights in a `folder` that `variable` names, or the `problem` with it."""
    if problem and not looks_like_folder(asked):
        words = ", or preview" if variable == MODEL_VARIABLE else ", preview or off"
        problem = Problem(
            "planner_missing" if variable == PLANNER_VARIABLE else "weights_missing",
            f'{variable} must be a folder, a model on Hugging Face like "{default}"{words}, not {shown(asked)}.',
        )
    if problem:
        return Weights(asked, None, "none", "", engine, problem, asked)
    return Weights(folder.name, folder, "variable", "", engine, None, folder.name)


def _preview(problem: Problem | None) -> Weights:
    return Weights(PREVIEW, preview.expected_folder(), "preview", "", "preview", problem, DEFAULT_MODEL)


def looks_like_folder(text: str) -> bool:
    """Tell whether `text` means a folder, not a model on the hub."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.lexists(text)


def stored_bytes(weights: Weights) -> int:
    """Return the size of a checkpoint's weights; what is not here counts as the default model."""
    if weights.folder is None:
        return int(DEFAULT_MODEL_GB * 10**9)
    return sum(bytes_in(weights.folder / part) for part in PARTS)


def bytes_in(folder: Path | None) -> int:
    """Return the size of the weights in `folder`, 0 without one."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0


def missing_model(wanted: str) -> Problem:
    """Say that the song model `wanted` is not here, and how it gets here."""
    hint = f"Fetch it from Hugging Face, or put it into models/{wanted}/ beside app.py."
    if on_zerogpu():
        hint = f"Name it under preload_from_hub in the Space's README.md: {wanted}."
    return Problem("weights_missing", f"The model {wanted} is not on this machine.", hint=hint)


def _flaw(folder: Path) -> Problem | None:
    """Return what keeps `folder` from being a whole ACE-Step checkpoint in diffusers layout, or None."""
    if folder.is_symlink() and not folder.exists():
        return _broken(folder, f"it is a link to {os.readlink(folder)}, and nothing is there")
    if not folder.exists():
        return Problem("weights_missing", f"There is no folder {folder}.", hint=f"Check {MODEL_VARIABLE}.")
    if not folder.is_dir():
        return _broken(folder, "it is not a folder")
    index = read_json(folder / INDEX)
    if index is None:
        missing = f"{INDEX} is missing" if not (folder / INDEX).is_file() else f"{INDEX} cannot be read"
        return _broken(folder, f"{missing}; a checkpoint in diffusers layout is needed")
    if index.get("_class_name") != "AceStepPipeline":
        return _broken(folder, f"{INDEX} describes {shown(index.get('_class_name'))}, not AceStepPipeline")
    for part in PARTS:
        listed = _is_listed(index, part)
        if not listed and part in OPTIONAL_PARTS:
            continue
        reason = _part_flaw(folder, part) if listed else f"{INDEX} does not list {part}"
        if reason:
            return _broken(folder, reason)
    return None


def _is_listed(index: Mapping[str, Any], part: str) -> bool:
    return isinstance(index.get(part), list) and all(index[part])


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
    """Return what is wrong with the header or the length of a safetensors file; no tensor is read."""
    try:
        with path.open("rb") as file:
            if file.read(8) == b"version ":
                return "is a Git LFS pointer, not the weights (git lfs pull fetches them)"
        with safe_open(path, "np"):
            return None
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except SafetensorError:
        return "is damaged or incomplete"


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


# --- the planner ---------------------------------------------------------------------------------------------------


def unusable(name: str, reason: str) -> Problem:
    """Say why the model `name` cannot be the planner."""
    return Problem(
        "planner_unfit",
        f"{name} cannot be the planner: {reason}.",
        hint=f"The planner is the 5 Hz language model of ACE-Step 1.5, such as {DEFAULT_PLANNER}.",
    )


def _on_the_hub(text: str) -> tuple[str, str]:
    """Split "org/repo/folder" into repository and folder inside it; two empty strings where it is no such name."""
    parts = text.split("/")
    repo, inside = "/".join(parts[:2]), parts[2:]
    if not is_repo_id(repo) or any(part in ("", ".", "..") for part in inside):
        return "", ""
    return repo, "/".join(inside) or (SUBFOLDER if repo == UMBRELLA else "")


def _missing_planner(repo: str, subfolder: str) -> Problem:
    name = f"{repo}/{subfolder}".rstrip("/")
    hint = f"Fetch it with: hf download {repo}" + (f' --include "{subfolder}/*"' if subfolder else "")
    hint += f", or put it into {MODELS_FOLDER.name}/{name}/ beside app.py."
    if on_zerogpu():
        hint = f"Name it under preload_from_hub in the Space's README.md: {repo}."
    return Problem("planner_missing", f"The planner {name} is not on this machine.", hint=hint)


def _reason_against_planner(folder: Path) -> str | None:
    """Return what keeps `folder` from being a planner, or None."""
    if not folder.is_dir():
        return "there is no such folder"
    config = read_json(folder / "config.json")
    if config is None or not config.get("model_type"):
        return "its config.json is missing or cannot be read, so it is no language model in transformers layout"
    # A base model's class is fine: the output layer is the embedding's matrix.
    kinds = config.get("architectures") or ["ForCausalLM"]
    if not any(str(kind).endswith(("ForCausalLM", "Model")) for kind in kinds):
        return f"it is a {shown(kinds[0])}, not a causal language model"
    if not any(b"<|audio_code_0|>" in _bytes(folder / name) for name in TOKEN_FILES):
        return "its tokenizer has no audio tokens (<|audio_code_0|> and so on)"
    return weights_flaw(folder)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- the lyrics writer ---------------------------------------------------------------------------------------------


def _writer_engine() -> Literal["transformers", "mlx"]:
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mlx" if apple and importlib.util.find_spec("mlx_lm") else "transformers"


def missing_writer(wanted: str) -> Problem:
    size = f" ({WRITER_GB[wanted]:g} GB)" if wanted in WRITER_GB else ""
    hint = f"Fetch it from Hugging Face, or put it into models/{wanted}/ beside app.py."
    if on_zerogpu():
        hint = f"Name it under preload_from_hub in the Space's README.md: {wanted}."
    return Problem("weights_missing", f"The lyrics writer {wanted}{size} is not on this machine.", hint=hint)


def _writer_flaw(folder: Path, engine: str) -> Problem | None:
    """Return what keeps `folder` from being a whole chat model, or None."""
    if not folder.exists() and not folder.is_symlink():
        return Problem("weights_missing", f"There is no folder {folder}.", hint=f"Check {LYRICS_VARIABLE}.")
    reason = _reason_against_writer(folder, engine)
    if reason is None:
        return None
    return Problem(
        "weights_broken",
        f"The lyrics writer in {place_of(folder)} cannot be used: {reason}.",
        hint=f"Complete it, or name another one in {LYRICS_VARIABLE}.",
    )


def _reason_against_writer(folder: Path, engine: str) -> str | None:
    if not folder.is_dir():
        return "it is not a folder"
    config = read_json(folder / "config.json")
    if config is None:
        return "config.json is missing or cannot be read"
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return f"it is no language model that writes text (its config.json says {shown(', '.join(names) or 'nothing')})"
    if engine == "transformers" and "quantization" in config and "quantization_config" not in config:
        return "its weights are made for MLX, which needs a Mac with Apple Silicon"
    spellings = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
    if not any(all((folder / name).is_file() for name in names) for names in spellings):
        return "its tokenizer is missing (tokenizer.json)"
    inside = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    if not inside and not (folder / "chat_template.jinja").is_file():
        return "its tokenizer has no chat template; an instruct or chat model is needed"
    return weights_flaw(folder)
