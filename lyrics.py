"""The songwriter: a brief becomes structured lyrics, token by token, by a chat model (Qwen 2.5 7B Instruct).

The model runs through transformers, or mlx-lm on Apple Silicon (`chat.py`); `tidy.py` brings its reply into ACE-Step's
form. Nothing is ever fetched from here.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub import constants, try_to_load_from_cache

import bootstrap
import checkpoints
import models
import preview_writers
from chat import Decoder, MlxModel, Model, Sampler, TorchModel, encode_as_text, load_tokenizer, prompt_ids
from events import Draft, Problem, StudioError, first_line, is_out_of_memory
from hub import is_repo_id
from limits import LANGUAGES, STRUCTURES, shown
from params import LyricsRequest
from tidy import Tidy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

VARIABLE = "ACE_STUDIO_LYRICS"
DEFAULT_WRITER, DEFAULT_MLX_WRITER = bootstrap.REPOSITORIES[VARIABLE]
WRITER_GB = {DEFAULT_WRITER: 15.2, DEFAULT_MLX_WRITER: 4.3}

Engine = Literal["transformers", "mlx"]

# --- finding the model --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WriterWeights:
    """Which chat model writes: `wanted` names the one that was asked for, `problem` tells why there is none.

    `source` is where `folder` comes from; "off" was switched off, "hub" was asked for by name and is still to be
    fetched, "none" cannot be had (folder None). The preview's folder is made when the writer is built.
    """

    model_id: str
    folder: Path | None
    source: Literal["variable", "models", "cache", "preview", "hub", "off", "none"]
    revision: str
    engine: Engine
    problem: Problem | None
    wanted: str

    @property
    def available(self) -> bool:
        """Tell whether `build_writer` has something to build."""
        return self.folder is not None


def find_writer() -> WriterWeights:
    """Look for the model that ACE_STUDIO_LYRICS names (a folder, a hub id, "preview", "off"; by default Qwen 2.5 7B).

    Looks in ./models beside this file and in the Hugging Face cache, and never asks the network.
    """
    asked, engine = os.environ.get(VARIABLE, "").strip(), _engine()
    if asked.lower() == "off":
        problem = Problem("writer_off", f"The lyrics writer is switched off ({VARIABLE}=off).")
        return WriterWeights("", None, "off", "", engine, problem, "")
    if asked.lower() == "preview":
        folder = preview_writers.expected_language_model_folder("qwen2")
        return WriterWeights("preview", folder, "preview", "", "transformers", None, "preview")
    if asked and (checkpoints.looks_like_folder(asked) or not is_repo_id(asked)):
        return _from_variable(asked, engine)
    wanted = asked or (DEFAULT_MLX_WRITER if engine == "mlx" else DEFAULT_WRITER)
    problem = _missing(wanted)
    cached = try_to_load_from_cache(wanted, "config.json", cache_dir=constants.HF_HUB_CACHE)
    places = (
        ("models", checkpoints.MODELS_FOLDER.joinpath(*wanted.split("/"))),
        ("cache", Path(cached).parent if isinstance(cached, str) else None),
    )
    for source, folder in places:
        if folder is None or not os.path.lexists(folder):
            continue
        flaw = _flaw(folder, engine)
        if flaw is None:
            return WriterWeights(wanted, folder, source, checkpoints.snapshot_revision(folder), engine, None, wanted)
        # A copy in the cache that is not whole is completed.
        if source == "models" or not asked:
            problem = flaw
    fetched = asked and problem.code == "weights_missing" and not bootstrap.on_zerogpu()
    return WriterWeights(wanted, None, "hub" if fetched else "none", "", engine, problem, wanted)


def _engine() -> Engine:
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mlx" if apple and importlib.util.find_spec("mlx_lm") else "transformers"


def _from_variable(asked: str, engine: Engine) -> WriterWeights:
    folder = Path(os.path.expanduser(asked)).absolute()
    problem = _flaw(folder, engine)
    if problem and not checkpoints.looks_like_folder(asked):
        problem = Problem(
            "weights_missing",
            f'{VARIABLE} must be a folder, a model on Hugging Face like "{DEFAULT_WRITER}", preview or off, '
            f"not {shown(asked)}.",
        )
    if problem:
        return WriterWeights(asked, None, "none", "", engine, problem, asked)
    return WriterWeights(folder.name, folder, "variable", "", engine, None, folder.name)


def _missing(wanted: str) -> Problem:
    size = f" ({WRITER_GB[wanted]:g} GB)" if wanted in WRITER_GB else ""
    hint = f"Fetch it from Hugging Face, or put it into models/{wanted}/ beside app.py."
    if bootstrap.on_zerogpu():
        hint = f"Name it under preload_from_hub in the Space's README.md: {wanted}."
    return Problem("weights_missing", f"The lyrics writer {wanted}{size} is not on this machine.", hint=hint)


def _flaw(folder: Path, engine: Engine) -> Problem | None:
    """Return what keeps `folder` from being a whole chat model, or None."""
    if not folder.exists() and not folder.is_symlink():
        return Problem("weights_missing", f"There is no folder {folder}.", hint=f"Check {VARIABLE}.")
    reason = _reason_against(folder, engine)
    if reason is None:
        return None
    return Problem(
        "weights_broken",
        f"The lyrics writer in {checkpoints.place_of(folder)} cannot be used: {reason}.",
        hint=f"Complete it, or name another one in {VARIABLE}.",
    )


def _reason_against(folder: Path, engine: Engine) -> str | None:
    if not folder.is_dir():
        return "it is not a folder"
    config = checkpoints.read_json(folder / "config.json")
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
    inside = (checkpoints.read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    if not inside and not (folder / "chat_template.jinja").is_file():
        return "its tokenizer has no chat template; an instruct or chat model is needed"
    return checkpoints.weights_flaw(folder)


# --- the writer ---------------------------------------------------------------------------------------------------


class Writer:
    """A chat model that is loaded; `weights` tells which one, `engine` and `kind` where it runs."""

    def __init__(self, weights: WriterWeights, tokenizer: PreTrainedTokenizerBase, model: Model, kind: str):
        self.weights, self.engine, self.kind = weights, weights.engine, kind
        self._tokenizer, self._model = tokenizer, model

    def write(self, request: LyricsRequest, seed: int) -> Iterator[Draft]:
        """Write the lyrics of `request`: a draft a token, the last one tidied throughout, with its `end`.

        The same `seed`, from 0, gives the same lyrics; who asks draws it where the request has -1. Closing the
        generator stops the model within one token. Raises StudioError.
        """
        tidy, tokens = Tidy(), 0
        with closing(self._pieces(request, seed)) as running:
            for tokens, piece in running:
                yield Draft(tidy.add(piece), tokens)
        yield Draft(tidy.end(), tokens, "length" if tokens >= request.options.max_tokens else "stop")

    def pieces(self, request: LyricsRequest, seed: int) -> Iterator[str]:
        """Yield the model's reply as it comes, untidied; "" where a token ends inside a character, or to show life."""
        with closing(self._pieces(request, seed)) as running:
            for _, piece in running:
                yield piece

    def count(self, text: str) -> int:
        """Return the length of `text` in this model's tokens."""
        return len(encode_as_text(self._tokenizer, text))

    def close(self) -> None:
        """Let go of the model and its memory; this writer cannot be used any more."""
        self._model.close()
        models.free_memory()

    def _pieces(self, request: LyricsRequest, seed: int) -> Iterator[tuple[int, str]]:
        options, tokenizer = request.options, self._tokenizer
        prompt = prompt_ids(tokenizer, SYSTEM, user_prompt(request))
        room = self._model.context - len(prompt)
        if room < options.max_tokens:
            raise StudioError(
                "too_long",
                f"{self.weights.model_id} reads and writes up to {self._model.context:,} tokens; the brief takes "
                f"{len(prompt):,} and {options.max_tokens:,} are asked for.",
                hint="Shorten the brief or lower Max length.",
            )
        sampler = Sampler(options.temperature, options.top_p, seed, len(tokenizer))
        decoder = Decoder(tokenizer)
        tokens = 0
        # Closed at once, not when it is collected: an exception that is kept somewhere would keep it running.
        with closing(self._model.tokens(prompt, sampler, options.max_tokens)) as running:
            for token in running:
                tokens += token is not None
                yield tokens, "" if token is None else decoder.add(token)
        if rest := decoder.end():
            yield tokens, rest


def build_writer(weights: WriterWeights, kind: models.Kind) -> Writer:
    """Load the writer onto the device `kind` (MLX chooses its own); raises StudioError.

    The tiny preview model is made first where it is not in the cache yet.
    """
    if weights.folder is None:
        raise StudioError.of(weights.problem or _missing(weights.wanted))
    try:
        built_in = weights.source == "preview"
        folder = preview_writers.language_model_folder("qwen2") if built_in else weights.folder
        tokenizer = load_tokenizer(folder)
        if kind != "cuda" or weights.engine == "mlx":
            _check_memory(weights, folder)
        if weights.engine == "mlx":
            model, kind = MlxModel(weights.model_id, folder), "mps"
        else:
            model = TorchModel(folder, kind, tokenizer.eos_token_id)
    except StudioError:
        raise
    except Exception as error:
        log.warning("the lyrics writer could not be loaded", exc_info=error)
        failure = _load_failure(weights, error)
    else:
        return Writer(weights, tokenizer, model, kind)
    # Only here is the exception gone, and with it what it held of the model: the song model needs the room.
    models.free_memory()
    raise failure


def _load_failure(weights: WriterWeights, error: Exception) -> StudioError:
    if is_out_of_memory(error):
        return _out_of_memory(weights)
    return StudioError(
        "weights_broken",
        f"The lyrics writer {weights.model_id} could not be loaded: {first_line(error)}",
        hint=f"Complete it, or name another one in {VARIABLE}.",
    )


def _check_memory(weights: WriterWeights, folder: Path) -> None:
    """Refuse what cannot fit: on Linux the system would end the whole studio, not the loading."""
    if sum(path.stat().st_size for path in folder.glob("*.safetensors")) > models.available_memory():
        raise _out_of_memory(weights)


def _out_of_memory(weights: WriterWeights) -> StudioError:
    return StudioError(
        "out_of_memory",
        f"The lyrics writer {weights.model_id} does not fit into the memory that is free.",
        hint=f"Close other programs, or name a smaller model in {VARIABLE}.",
    )


# --- the prompt ---------------------------------------------------------------------------------------------------

SYSTEM = """\
You are a songwriter. You write lyrics that a music model will sing.

Answer with the lyrics alone: no title, no comments, no Markdown.
- Begin every section with its tag in square brackets on a line of its own, such as [Verse 1], [Pre-Chorus], [Chorus], \
[Bridge], [Outro]. Tags stay in English, whatever the language of the song. Put nothing else into square brackets.
- Leave one blank line between sections.
- Give each line 6 to 10 syllables, and lines that answer each other about the same number.
- Put backing vocals in (parentheses), sparingly. Write in CAPITALS only what is shouted.
- Sections such as [Intro], [Drop] or [Guitar Solo] may stay without words.
- Use plain, concrete images and one main idea. Let the chorus repeat its words."""


def user_prompt(request: LyricsRequest) -> str:
    """Put the request into the words that the writer gets."""
    language = "the one that suits the song"
    if request.language != "unknown":
        language = LANGUAGES[request.language]
    presets = {name.lower(): text for name, text in STRUCTURES.items()}
    structure = presets.get(request.structure.lower(), request.structure)
    lines = [f"Write the lyrics of a song.\n\nWhat it is about: {request.brief}", f"Language: {language}"]
    lines += [f"Tone: {request.tone}"] if request.tone else []
    lines += [f"Structure: {structure}"] if structure else []
    return "\n".join(lines)
