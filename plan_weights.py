"""Where the planner's weights are: found and checked without torch and without the network, like the song model's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, try_to_load_from_cache

import preview_writers
from bootstrap import REPOSITORIES, on_zerogpu
from checkpoints import MODELS_FOLDER, looks_like_folder, read_json, snapshot_revision, weights_flaw
from events import Problem
from hub import is_repo_id
from limits import shown

VARIABLE = "ACE_STUDIO_PLANNER"
(UMBRELLA,) = REPOSITORIES[VARIABLE]
SUBFOLDER = "acestep-5Hz-lm-1.7B"
"""The umbrella holds other models too; its planner is in a folder of its own, which need not be named."""
DEFAULT_PLANNER = f"{UMBRELLA}/{SUBFOLDER}"
PREVIEW, OFF = "preview", "off"
PREVIEW_CODES = 1_000
TOKEN_FILES = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json")


@dataclass(frozen=True)
class PlannerWeights:
    """Which planner runs: `folder` is None where none does, and `problem` tells why; `wanted` is what was asked for.

    `source` "hub" was asked for by name and is still to be fetched: `repo` and the folder `inside` it say from where.
    `revision` is the commit on the hub, where it is known. The preview's folder is made when it is loaded.
    """

    model_id: str
    folder: Path | None
    source: Literal["variable", "models", "cache", "preview", "hub", "off", "none"]
    revision: str
    problem: Problem | None
    wanted: str
    repo: str = ""
    inside: str = ""


def find_planner() -> PlannerWeights:
    """Look for the planner that ACE_STUDIO_PLANNER names; never asks the network.

    The variable holds a model on the hub ("org/repo", or "org/repo/folder" for one inside it), a folder, "preview" or
    "off". Places are, in this order: that folder, ./models/<org>/<repo>/, the Hugging Face cache.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked.lower() == OFF:
        problem = Problem("planner_off", f"The planner is switched off ({VARIABLE}=off).")
        return PlannerWeights(OFF, None, "off", "", problem, OFF)
    if asked.lower() == PREVIEW:
        folder = preview_writers.expected_language_model_folder("qwen3", PREVIEW_CODES)
        return PlannerWeights(PREVIEW, folder, "preview", "", None, PREVIEW)
    wanted = asked or DEFAULT_PLANNER
    repo, subfolder = _on_the_hub(wanted)
    if not repo or looks_like_folder(asked):
        return _from_folder(asked)
    problem = _missing(repo, subfolder)
    beside = MODELS_FOLDER.joinpath(*repo.split("/"), subfolder)
    for source, folder in (("models", beside), ("cache", _cached(repo, subfolder))):
        if folder is None or not os.path.lexists(folder):
            continue
        flaw = _flaw(folder)
        if flaw is None:
            return PlannerWeights(wanted, folder, source, snapshot_revision(folder), None, wanted)
        # A copy in the cache that is not whole is completed.
        if source == "models" or not asked:
            problem = unusable(f"{MODELS_FOLDER.name}/{repo}/{subfolder}" if source == "models" else wanted, flaw)
    fetched = asked and problem.code == "planner_missing" and not on_zerogpu()
    return PlannerWeights(wanted, None, "hub" if fetched else "none", "", problem, wanted, repo, subfolder)


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


def _from_folder(asked: str) -> PlannerWeights:
    folder = Path(os.path.expanduser(asked)).absolute()
    if not (folder / "config.json").exists() and (folder / SUBFOLDER).is_dir():
        folder /= SUBFOLDER
    flaw, problem = _flaw(folder), None
    if flaw and not looks_like_folder(asked):
        problem = Problem(
            "planner_missing",
            f'{VARIABLE} must be a folder, a model on Hugging Face like "{DEFAULT_PLANNER}", preview or off, '
            f"not {shown(asked)}.",
        )
    elif flaw:
        problem = unusable(f"The folder {asked}", flaw)
    return PlannerWeights(
        folder.name, None if problem else folder, "none" if problem else "variable", "", problem, asked
    )


def _missing(repo: str, subfolder: str) -> Problem:
    name = f"{repo}/{subfolder}".rstrip("/")
    hint = f"Fetch it with: hf download {repo}" + (f' --include "{subfolder}/*"' if subfolder else "")
    hint += f", or put it into {MODELS_FOLDER.name}/{name}/ beside app.py."
    if on_zerogpu():
        hint = f"Name it under preload_from_hub in the Space's README.md: {repo}."
    return Problem("planner_missing", f"The planner {name} is not on this machine.", hint=hint)


def _cached(repo: str, subfolder: str) -> Path | None:
    """Return the folder of the newest known snapshot in the Hugging Face cache, complete or not."""
    config = f"{subfolder}/config.json".lstrip("/")
    found = try_to_load_from_cache(repo, config, cache_dir=constants.HF_HUB_CACHE)
    return Path(found).parent if isinstance(found, str) else None


def _flaw(folder: Path) -> str | None:
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
