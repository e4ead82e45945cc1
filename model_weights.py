"""Where the weights of the song model, the planner and the songwriter are, and what they are.

They are searched without torch and without the network: in the folder that the model's variable
names, in ./models beside this file, in the Hugging Face cache. They are checked, down to the length
of every weights file, so that a truncated copy is noticed before minutes are spent on loading it.
`model_hub.py` downloads missing weights.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

import lyrics_small
from bootstrap import CHECKPOINTS, REPOSITORIES, on_zerogpu
from events import Problem, StudioError
from limits import ACTIONS, is_folder_name, parse_model, shown
from model_config import config_flaw, layers_flaw
from model_hub import INDEX, PARTS, is_repo_id
from record import ModelEntry

log = logging.getLogger("studio")

MODEL_VARIABLE = "ACE_STUDIO_MODEL"
MODELS_VARIABLE = "ACE_STUDIO_MODELS"
PLANNER_VARIABLE = "ACE_STUDIO_PLANNER"
LYRICS_VARIABLE = "ACE_STUDIO_LYRICS"
# The problems' codes of a planner that is missing, or switched off.
PLANNER_MISSING = "planner_missing"
PLANNER_OFF = "planner_off"
PREVIEW = "preview"
RANDOM = "random"
OFF = "off"
ASSETS = Path(__file__).with_name("assets")
# The folders that the value "preview" selects; the built-in songwriter's is `lyrics_small.folder`.
BUILT_IN = {MODEL_VARIABLE: ASSETS / "preview", PLANNER_VARIABLE: ASSETS / "planner"}
# The folders that the value "random" selects: tiny language models for tests, which write nonsense.
RANDOM_MODELS = {
    PLANNER_VARIABLE: ASSETS / "random-planner",
    LYRICS_VARIABLE: ASSETS / "random-songwriter",
}
(DEFAULT_MODEL,) = REPOSITORIES[MODEL_VARIABLE]
DEFAULT_MODEL_GB = 11.5
MODEL_FIELD = "options.model"
(UMBRELLA,) = REPOSITORIES[PLANNER_VARIABLE]
# The planner's folder in the umbrella repository; the variable need not name it.
SUBFOLDER = "acestep-5Hz-lm-1.7B"
DEFAULT_PLANNER = f"{UMBRELLA}/{SUBFOLDER}"
DEFAULT_SONGWRITER, DEFAULT_MLX_SONGWRITER = REPOSITORIES[LYRICS_VARIABLE]
SONGWRITER_GB = {DEFAULT_SONGWRITER: 15.2, DEFAULT_MLX_SONGWRITER: 4.3}
MODELS_FOLDER = Path(__file__).with_name("models")
OPTIONAL_PARTS = ("audio_tokenizer", "audio_token_detokenizer")
TOKEN_FILES = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json")
NO_COVER = "This checkpoint has no audio tokenizer and detokenizer, which a cover needs."
NO_MORPH = "Morph needs a checkpoint with guidance; this turbo checkpoint has none."
_NO_FOLDER = "there is no such folder"
_NAMES = {MODEL_VARIABLE: "model", PLANNER_VARIABLE: "planner", LYRICS_VARIABLE: "songwriter"}


Engine = Literal["xl", "preview", "transformers", "mlx", "small"]
Source = Literal["variable", "models", "cache", "preview", "hub", "off", "none"]


@dataclass(frozen=True)
class Weights:
    """The weights of one model.

    `wanted` is the model that the visitor named; `problem` says why another one runs, or none does.
    `source` says where `folder` is: named by the variable, in ./models, in the cache, or built in
    ("preview"); `folder` is None for "hub" (to be downloaded), "off" and "none" (missing).
    `revision` is the commit on the hub, if known. The planner may be in a folder `inside` its
    `repo`.
    """

    model_id: str
    folder: Path | None
    source: Source
    revision: str
    engine: Engine
    problem: Problem | None
    wanted: str
    repo: str = ""
    inside: str = ""

    @property
    def local_folder(self) -> Path:
        """The folder of weights that are on this machine."""
        assert self.folder is not None, self
        return self.folder

    @property
    def comes_along(self) -> bool:
        """Whether they are part of the studio, so that there is nothing to download."""
        return self.source == "preview"

    @property
    def is_built_in_engine(self) -> bool:
        """Whether they are a song model of the built-in engine's kind, wherever it lies."""
        return self.engine == "preview"

    def entry(self) -> ModelEntry:
        """Return the model's entry in a record."""
        return ModelEntry(id=self.model_id, revision=self.revision, engine=self.engine)


def find_weights() -> Weights:
    """Look for the song model that ACE_STUDIO_MODEL names.

    Without the variable, and off ZeroGPU, the built-in engine replaces missing weights; its
    `problem` says so.
    """
    asked = _asked(MODEL_VARIABLE)
    if asked.lower() == PREVIEW:
        return _built_in_engine(None)
    found = _find(MODEL_VARIABLE, DEFAULT_MODEL, "xl", _model_flaw)
    if found.source == "hub":
        return replace(found, problem=None)
    if found.folder or asked or on_zerogpu():
        return found
    return _built_in_engine(found.problem)


def names_to_place() -> list[str]:
    """Return the names of the song models that ZeroGPU's cards get besides the studio's own, if they are here."""
    asked = _asked(MODELS_VARIABLE) or "sft,turbo"
    names = []
    for name in filter(None, map(str.strip, asked.split(","))):
        try:
            names.append(parse_model(name))
        except ValueError:
            log.warning("%s names %s, which is not a model", MODELS_VARIABLE, shown(name))
    return names


def not_placed(found: Weights) -> Weights:
    """Return a song model without its folder: on ZeroGPU only what was placed at start makes songs."""
    message = f"The song model {found.model_id} is not loaded on this Space."
    hint = f"Its owner can name it in {MODELS_VARIABLE} and preload it."
    problem = Problem("weights_missing", message, MODEL_FIELD, hint)
    return replace(found, folder=None, source="none", problem=problem)


def find_model(name: str, own: Weights) -> Weights:
    """Look for the song model that a request calls `name`: one of limits.MODELS, a repository or a folder.

    The studio's `own` model stands for its kind. What is not here has a problem at the request's field; it is
    never downloaded for a request.
    """
    is_own_name = own.engine == "xl" and name in (own.model_id, own.wanted)
    if not name or is_own_name or name == checkpoint_kind(own):
        return own
    if name == PREVIEW:
        return _not_found(
            name, "The built-in engine only makes songs while no other model is here."
        )
    if is_folder_name(name):
        return _model_in(name)
    repo = CHECKPOINTS.get(name, name)
    if not is_repo_id(repo):
        return _not_found(name, f"Hugging Face has no model {shown(name)}.")
    found = _find(MODEL_VARIABLE, repo, "xl", _model_flaw, asked="")
    if found.problem is not None:
        return replace(found, problem=replace(found.problem, field=MODEL_FIELD))
    return found


def _model_in(name: str) -> Weights:
    """Return the song model in the folder `name` of a request; on a Space no visitor names one."""
    if os.environ.get("SPACE_ID") or on_zerogpu():
        names = ", ".join(CHECKPOINTS)
        return _not_found(name, f"Model must be one of {names} here, not a folder.")
    folder = Path(os.path.expanduser(name)).absolute()
    reason = _folder_flaw(folder) or _model_flaw(folder)
    if reason:
        return _not_found(name, f"The model {shown(name)} cannot be used: {reason}.")
    # Records travel: they carry no path of this machine.
    return Weights(folder.name, folder, "variable", "", "xl", None, folder.name)


def _not_found(name: str, message: str) -> Weights:
    problem = Problem("weights_missing", message, MODEL_FIELD)
    return Weights(name, None, "none", "", "xl", problem, name)


def find_planner() -> Weights:
    """Look for the planner that ACE_STUDIO_PLANNER names; "org/repo/folder" is a folder within a repository.

    Without the variable, and off ZeroGPU, the built-in planner replaces missing weights where the
    built-in engine plays, whose codes it writes.
    """
    switched = _switched(PLANNER_VARIABLE, PLANNER_OFF)
    found = switched or _find(PLANNER_VARIABLE, DEFAULT_PLANNER, "transformers", _planner_flaw)
    if found.source == "none" and not find_weights().is_built_in_engine:
        return found
    return _stand_in(found, PLANNER_VARIABLE, _built_in_planner)


def find_songwriter() -> Weights:
    """Look for the songwriter that ACE_STUDIO_LYRICS names.

    Without the variable, and off ZeroGPU, the built-in songwriter replaces missing weights.
    """
    engine = _songwriter_engine()
    default = DEFAULT_MLX_SONGWRITER if engine == "mlx" else DEFAULT_SONGWRITER
    switched = _switched(LYRICS_VARIABLE, "writer_off")
    found = switched or _find(
        LYRICS_VARIABLE, default, engine, lambda folder: _songwriter_flaw(folder, engine)
    )
    return _stand_in(found, LYRICS_VARIABLE, _built_in_songwriter)


def check_folder(weights: Weights) -> None:
    """Raise StudioError if the folder of `weights` is gone, which existed when the studio started."""
    # Loading unpacks the built-in songwriter.
    if weights.folder is None or weights.engine == "small":
        return
    if not weights.folder.is_dir():
        message = f"The folder of {weights.model_id} is gone: {weights.folder}."
        hint = (
            "Put it back, or mount its disk again, and try once more; the studio needs no restart."
        )
        raise StudioError("weights_missing", message, hint=hint)


def snapshot_revision(folder: Path) -> str:
    """Return the commit of the hub's snapshot that contains `folder`, or ""."""
    found = re.search("/models--[^/]*/snapshots/([^/]+)", folder.resolve().as_posix())
    if found:
        return found[1]
    return ""


def is_turbo(weights: Weights) -> bool:
    """Tell whether the checkpoint is distilled: 8 steps, no guidance."""
    config = transformer_config(weights)
    return bool(config.get("is_turbo")) or config.get("model_version") == "turbo"


def has_audio_codes(weights: Weights) -> bool:
    """Tell whether the checkpoint can make and read audio codes; XL turbo cannot. Missing weights are assumed to."""
    index = None
    if weights.folder:
        index = remembered_json(weights.folder / INDEX)
    return index is None or all(_is_listed(index, part) for part in OPTIONAL_PARTS)


def checkpoint_kind(weights: Weights) -> Literal["base", "sft", "turbo", "preview"]:
    """Return what the checkpoint was trained for; its name, or else its config, decides between base and sft."""
    version = str(transformer_config(weights).get("model_version") or "")
    name = weights.model_id.lower()
    if is_turbo(weights):
        return "turbo"
    if version == PREVIEW:
        return "preview"
    for text in (name, version):
        if "sft" in text:
            return "sft"
        if "base" in text:
            return "base"
    return "sft"


def task_support(kind: str, codes: bool = True) -> dict[str, str]:
    """Return how a checkpoint of `kind` (base, sft, turbo, preview) supports each task.

    It is "official" or "experimental": only base was trained to layer, extract and complete, and
    morph needs guidance (upstream's task table). Without the parts for audio `codes` a cover is
    "unsupported" (`NO_COVER`).
    """
    official = {"generate", "cover", "extend", "repaint"}
    if kind == "base":
        official |= {"layer", "extract", "complete"}
    if kind != "turbo":
        official.add("morph")
    support = {}
    for task in ("generate", "cover", "extend", *ACTIONS):
        support[task] = "official" if task in official else "experimental"
    if not codes:
        support["cover"] = "unsupported"
    return support


def _asked(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def _find(
    variable: str,
    default: str,
    engine: Engine,
    flaw: Callable[[Path], str | None],
    asked: str | None = None,
) -> Weights:
    """Look in the folder that the variable names, otherwise in ./models and the cache.

    `flaw` returns what is wrong with an existing folder. A missing repository that the variable
    names is to be downloaded, except on ZeroGPU. `asked` stands in for the variable's value.
    """
    if asked is None:
        asked = _asked(variable)
    wanted = asked or default
    repo = wanted if is_repo_id(wanted) else ""
    inside = ""
    if variable == PLANNER_VARIABLE:
        repo, inside = _on_the_hub(wanted)
    missing = missing_model(repo, inside, variable)
    nothing = Weights(wanted, None, "none", "", engine, missing, wanted, repo, inside)
    if _is_path(asked):
        return _in_folder(asked, variable, nothing, flaw)
    if repo:
        return _in_copies(asked, variable, nothing, flaw)
    others = ", preview or off"
    if variable == MODEL_VARIABLE:
        others = ", or preview"
    allowed = f'a folder, a model on Hugging Face like "{default}"{others}'
    problem = _missing(variable, f"{variable} must be {allowed}, not {shown(asked)}.")
    return replace(nothing, problem=problem)


def _in_folder(
    path: str, variable: str, nothing: Weights, flaw: Callable[[Path], str | None]
) -> Weights:
    """Return the weights in the folder that a variable names, or `nothing` with the reason."""
    # Unlike Path.expanduser, this keeps an unknown ~user.
    folder = Path(os.path.expanduser(path)).absolute()
    holds_planner = variable == PLANNER_VARIABLE and (folder / SUBFOLDER).is_dir()
    if holds_planner and not (folder / _index_of(variable)).exists():
        folder /= SUBFOLDER
    reason = _folder_flaw(folder) or flaw(folder)
    if reason:
        return replace(nothing, problem=_unfit(variable, str(folder), reason))
    return Weights(folder.name, folder, "variable", "", nothing.engine, None, folder.name)


def _in_copies(
    asked: str, variable: str, nothing: Weights, flaw: Callable[[Path], str | None]
) -> Weights:
    """Return the copy of a repository in ./models or the cache, or `nothing` with the reason."""
    problem = nothing.problem
    for source, folder in _copies_of(nothing, variable).items():
        reason = _folder_flaw(folder) or flaw(folder)
        if reason is None:
            return replace(
                nothing,
                folder=folder,
                source=source,
                revision=snapshot_revision(folder),
                problem=None,
            )
        # A download completes an incomplete copy in the cache.
        if reason != _NO_FOLDER and (source == "models" or not asked):
            name = nothing.wanted
            if source == "models":
                name = str(folder.relative_to(MODELS_FOLDER.parent))
            problem = _unfit(variable, name, reason)
    to_download = asked and problem is nothing.problem and not on_zerogpu()
    return replace(nothing, source="hub" if to_download else "none", problem=problem)


def _copies_of(weights: Weights, variable: str) -> dict[Source, Path]:
    """Return where copies of a repository may be: always ./models, and the cache if it has one."""
    repo = weights.repo
    inside = weights.inside
    file = f"{inside}/{_index_of(variable)}".lstrip("/")
    cached = try_to_load_from_cache(repo, file, cache_dir=constants.HF_HUB_CACHE)
    folders: dict[Source, Path] = {"models": MODELS_FOLDER.joinpath(*repo.split("/"), inside)}
    if isinstance(cached, str):
        folders["cache"] = Path(cached).parent
    return folders


def _index_of(variable: str) -> str:
    """Return the file that every model of this kind has in its folder."""
    if variable == MODEL_VARIABLE:
        return INDEX
    return "config.json"


def _is_path(asked: str) -> bool:
    """Tell whether a variable's value names a folder rather than a repository."""
    if asked.startswith(("/", "./", "../", "~")) or asked in (".", ".."):
        return True
    return bool(asked) and os.path.lexists(asked)


def _switched(variable: str, code: str) -> Weights | None:
    """Return the weights that off, random or preview selects, None if the variable holds none of these words."""
    asked = _asked(variable).lower()
    if asked == OFF:
        problem = Problem(code, f"The {_NAMES[variable]} is switched off ({variable}=off).")
        return Weights(OFF, None, "off", "", "transformers", problem, OFF)
    if asked == RANDOM:
        return Weights(RANDOM, RANDOM_MODELS[variable], "preview", "", "transformers", None, RANDOM)
    if asked == PREVIEW:
        if variable == PLANNER_VARIABLE:
            return _built_in_planner()
        return _built_in_songwriter()
    return None


def _stand_in(found: Weights, variable: str, built_in: Callable[[], Weights]) -> Weights:
    """Return `found`, or the built-in model if nothing was asked for or found, and if it is installed."""
    if found.source != "none" or _asked(variable) or on_zerogpu():
        return found
    small = built_in()
    if small.folder is None:
        return found
    return replace(small, wanted=found.wanted)


def _built_in_planner() -> Weights:
    folder = BUILT_IN[PLANNER_VARIABLE]
    reason = _folder_flaw(folder) or _planner_flaw(folder)
    if reason:
        problem = unusable("The built-in planner", reason)
        return Weights(PREVIEW, None, "none", "", "transformers", problem, PREVIEW)
    return Weights(PREVIEW, folder, "preview", "", "transformers", None, PREVIEW)


def _built_in_songwriter() -> Weights:
    missing = lyrics_small.missing()
    if missing:
        hint = "Set up the studio again where packages can be downloaded."
        problem = Problem(
            "weights_missing",
            f"The built-in songwriter is not on this machine: {missing}.",
            hint=hint,
        )
        return Weights(PREVIEW, None, "none", "", "small", problem, PREVIEW)
    return Weights(PREVIEW, lyrics_small.folder(), "preview", "", "small", None, PREVIEW)


def _built_in_engine(problem: Problem | None) -> Weights:
    return Weights(
        PREVIEW, BUILT_IN[MODEL_VARIABLE], "preview", "", "preview", problem, DEFAULT_MODEL
    )


def _on_the_hub(text: str) -> tuple[str, str]:
    """Split "org/repo/folder" into repository and folder; two empty strings if it is not such a name."""
    parts = text.split("/")
    repo = "/".join(parts[:2])
    inside = parts[2:]
    if not is_repo_id(repo) or any(part in ("", ".", "..") for part in inside):
        return "", ""
    if not inside and repo == UMBRELLA:
        return repo, SUBFOLDER
    return repo, "/".join(inside)


def _songwriter_engine() -> Literal["transformers", "mlx"]:
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    if apple and importlib.util.find_spec("mlx_lm"):
        return "mlx"
    return "transformers"


# --- problems -------------------------------------------------------------------------------------


def missing_model(repo: str, inside: str = "", variable: str = MODEL_VARIABLE) -> Problem:
    name = f"{repo}/{inside}".rstrip("/")
    size = f" ({SONGWRITER_GB[name]:g} GB)" if name in SONGWRITER_GB else ""
    command = f"hf download {repo}"
    if inside:
        command += f' --include "{inside}/*"'
    hint = f"Download it with: {command}, or put it into models/{name}/ next to app.py."
    if on_zerogpu():
        hint = f"Add it to preload_from_hub in the Space's README.md: {repo}."
    return _missing(variable, f"The {_NAMES[variable]} {name}{size} is not on this machine.", hint)


def _missing(variable: str, message: str, hint: str = "") -> Problem:
    code = PLANNER_MISSING if variable == PLANNER_VARIABLE else "weights_missing"
    return Problem(code, message, hint=hint)


def _unfit(variable: str, name: str, reason: str) -> Problem:
    """Return the problem of weights that cannot be used; `name` is their repository or folder."""
    if variable == PLANNER_VARIABLE:
        return unusable(name, reason)
    if reason == _NO_FOLDER:
        return Problem("weights_missing", f"There is no folder {name}.", hint=f"Check {variable}.")
    message = f"The {_NAMES[variable]} {name} cannot be used: {reason}."
    hint = f"Complete it, delete it and download it again, or name another one in {variable}."
    return Problem("weights_broken", message, hint=hint)


def unusable(name: str, reason: str) -> Problem:
    """Return the problem of a model that cannot be the planner."""
    hint = f"The planner is the 5 Hz language model of ACE-Step 1.5, such as {DEFAULT_PLANNER}."
    return Problem("planner_unfit", f"{name} cannot be the planner: {reason}.", hint=hint)


# --- checks: each returns what is wrong with a folder, or None ------------------------------------


def _folder_flaw(folder: Path) -> str | None:
    if os.path.isdir(folder):
        return None
    if os.path.exists(folder):
        return "it is not a folder"
    if os.path.islink(folder):
        return f"it is a link to {os.readlink(folder)}, which does not exist"
    return _NO_FOLDER


def _model_flaw(folder: Path) -> str | None:
    index = read_json(folder / INDEX)
    if index is None:
        state = "is missing"
        if (folder / INDEX).is_file():
            state = "cannot be read"
        return f"{INDEX} {state}; a checkpoint in diffusers layout is needed"
    if index.get("_class_name") != "AceStepPipeline":
        return f"{INDEX} describes {shown(index.get('_class_name'))}, not AceStepPipeline"
    for part in PARTS:
        if _is_listed(index, part):
            flaw = _part_flaw(folder / part)
            if flaw:
                return f"{part}/{flaw}"
        elif part not in OPTIONAL_PARTS:
            return f"{INDEX} does not list {part}"
    return None


def _part_flaw(folder: Path) -> str | None:
    part = folder.name
    name = "config.json"
    if part in ("scheduler", "tokenizer"):
        name = f"{part}_config.json"
    config = read_json(folder / name)
    if config is None:
        return f"{name} is missing or cannot be read"
    if part == "tokenizer":
        if _has_tokenizer(folder):
            return None
        return "tokenizer.json is missing"
    flaw = config_flaw(config)
    if flaw:
        return f"{name} cannot be right: {flaw}"
    if part == "scheduler":
        return None
    if part == "text_encoder":
        return _weights_flaw(folder, "model", config)
    if part == "transformer":
        return _weights_flaw(folder, "diffusion_pytorch_model", config)
    return _weights_flaw(folder, "diffusion_pytorch_model")


def _planner_flaw(folder: Path) -> str | None:
    config = read_json(folder / "config.json")
    if config is None or not config.get("model_type"):
        return "its config.json is missing or cannot be read, so it is not a language model in transformers layout"
    flaw = config_flaw(config)
    if flaw:
        return f"its config.json cannot be right: {flaw}"
    # A base model's class is fine: the output layer is the embedding's matrix.
    kinds = config.get("architectures") or ["ForCausalLM"]
    if not any(str(kind).endswith(("ForCausalLM", "Model")) for kind in kinds):
        return f"it is a {shown(kinds[0])}, not a causal language model"
    has_audio_tokens = False
    try:
        for name in TOKEN_FILES:
            path = folder / name
            if path.is_file() and b"<|audio_code_" in path.read_bytes():
                has_audio_tokens = True
    except OSError as error:
        return f"its tokenizer cannot be read: {error.strerror or error}"
    if not has_audio_tokens:
        return "its tokenizer has no audio tokens (<|audio_code_0|> and so on)"
    return _weights_flaw(folder, config=config)


def _songwriter_flaw(folder: Path, engine: str) -> str | None:
    config = read_json(folder / "config.json")
    if config is None:
        return "config.json is missing or cannot be read"
    architectures = config.get("architectures")
    names = []
    if isinstance(architectures, list):
        names = [str(name) for name in architectures]
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        classes = ", ".join(names) or "nothing"
        return f"it is not a language model that writes text (config.json says {shown(classes)})"
    flaw = config_flaw(config)
    if flaw:
        return f"config.json cannot be right: {flaw}"
    is_for_mlx = "quantization" in config and "quantization_config" not in config
    if is_for_mlx and engine == "transformers":
        return "its weights are made for MLX, which needs a Mac with Apple Silicon"
    if not _has_tokenizer(folder) and not (folder / "tokenizer.model").is_file():
        return "its tokenizer is missing (tokenizer.json)"
    tokenizer_config = read_json(folder / "tokenizer_config.json") or {}
    template_file = folder / "chat_template.jinja"
    if not tokenizer_config.get("chat_template") and not template_file.is_file():
        return "its tokenizer has no chat template; an instruct or chat model is needed"
    return _weights_flaw(folder)


def _is_listed(index: Mapping[str, Any], part: str) -> bool:
    return isinstance(index.get(part), list) and all(index[part])


def _has_tokenizer(folder: Path) -> bool:
    if (folder / "tokenizer.json").is_file():
        return True
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def _weights_flaw(
    folder: Path, stem: str = "model", config: Mapping[str, Any] | None = None
) -> str | None:
    """Check the safetensors file called `stem`, or the shards that its index lists, without reading any tensor.

    With a `config` they must have as many layers as it says.
    """
    names = [f"{stem}.safetensors"]
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        shards = (read_json(index) or {}).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            return f"{index.name} cannot be read"
        names = sorted({str(name) for name in shards.values()})
    tensors: list[str] = []
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                if file.read(8) == b"version ":
                    return f"{name} is a Git LFS pointer, not the weights (git lfs pull downloads them)"
            with safe_open(folder / name, "np") as opened:
                tensors += opened.keys()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        except SafetensorError:
            return f"{name} is damaged or incomplete"
    if config is not None:
        flaw = layers_flaw(config, tensors)
        if flaw:
            return f"config.json cannot be right: {flaw}"
    return None


def bytes_in(folder: Path | None) -> int:
    """Return the bytes of the weights in `folder`, 0 without one."""
    if folder:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return 0


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


# Contents of files by their paths: a loaded model outlives its folder, for example on a disk that
# is unmounted.
_remembered: dict[Path, dict[str, Any]] = {}


def remembered_json(path: Path) -> dict[str, Any] | None:
    """Return the contents of `path`, or the last ones if it is gone; None if it was never read."""
    found = read_json(path)
    if found is not None:
        _remembered[path] = found
    return _remembered.get(path)


def vae_config(weights: Weights) -> dict[str, Any]:
    """Return the VAE's config.json, {} if it is not here or cannot be read."""
    if weights.folder is None:
        return {}
    return remembered_json(weights.folder / "vae" / "config.json") or {}


def transformer_config(weights: Weights) -> dict[str, Any]:
    """Return the transformer's config.json, {} if it cannot be read; for missing weights, what their name tells."""
    if weights.folder is None:
        return {"is_turbo": "turbo" in weights.model_id.lower()}
    return remembered_json(weights.folder / "transformer" / "config.json") or {}
