"""The songwriter: a brief becomes structured lyrics, token by token, by a chat model (Qwen 2.5 7B Instruct).

The model runs through transformers, or mlx-lm on Apple Silicon. These two only generate token ids; all else is shared,
so every setting means the same on both, and neither has random state that a request could leave behind. `lint.Tidy`
brings the reply into ACE-Step's form. Nothing is ever fetched from here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import bootstrap
import models
import preview
from events import Draft, StudioError, first_line, is_out_of_memory
from limits import LANGUAGES, STRUCTURES
from lint import Tidy
from params import LyricsRequest
from planner_decoding import encode_marked, typed
from weights import LYRICS_VARIABLE, Weights, bytes_in, missing_writer, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger(__name__)

# --- the writer ---------------------------------------------------------------------------------------------------


class Writer:
    """A chat model that is loaded; `weights` tells which one, `engine` and `kind` where it runs."""

    def __init__(self, weights: Weights, tokenizer: PreTrainedTokenizerBase, model: Model, kind: str):
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


def build_writer(weights: Weights, kind: models.Kind) -> Writer:
    """Load the writer onto the device `kind` (MLX chooses its own); raises StudioError, a lack of memory as it comes.

    The tiny preview model is made first where it is not in the cache yet.
    """
    if weights.folder is None:
        raise StudioError.of(weights.problem or missing_writer(weights.wanted))
    try:
        built_in = weights.source == "preview"
        folder = preview.language_model_folder("qwen2") if built_in else weights.folder
        tokenizer = load_tokenizer(folder)
        shared = kind != "cuda" or weights.engine == "mlx"
        if shared and bytes_in(folder) > models.available_memory():
            # On Linux the system would end the whole studio, not the loading.
            raise MemoryError
        if weights.engine == "mlx":
            model, kind = MlxModel(weights.model_id, folder), "mps"
        else:
            model = TorchModel(folder, kind, tokenizer.eos_token_id)
    except Exception as error:
        if isinstance(error, StudioError) or is_out_of_memory(error):
            raise
        log.warning("the lyrics writer could not be loaded", exc_info=error)
        raise StudioError(
            "weights_broken",
            f"The lyrics writer {weights.model_id} could not be loaded: {first_line(error)}",
            hint=f"Complete it, or name another one in {LYRICS_VARIABLE}.",
        ) from None
    return Writer(weights, tokenizer, model, kind)


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


# --- a chat model ---------------------------------------------------------------------------------------------------


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


# --- its tokens -----------------------------------------------------------------------------------------------------


def prompt_ids(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> list[int]:
    """Return the token ids of a chat with one question, through the tokenizer's own template.

    "<|im_end|>" in the question is ten characters of text and closes no turn. Raises StudioError where the template
    cannot be used.
    """
    user = typed(user, {token[0] for token in tokenizer.get_added_vocab() if len(token) > 1})
    rendered = _render(tokenizer, [("system", system), ("user", user)])
    if system not in rendered or user not in rendered:
        # Some templates know no system turn.
        user = f"{system}\n\n{user}"
        rendered = _render(tokenizer, [("user", user)])
    if user not in rendered:
        raise StudioError("weights_unfit", "This model's chat template cannot be used.")
    return list(encode_marked(tokenizer, rendered))


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> str:
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        # Qwen 3 would think aloud first; other templates do not know the word.
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except TemplateError:
        return ""


# --- from scores to text ------------------------------------------------------------------------------------------


class Sampler:
    """Chooses the next token from a row of scores, with a random generator of its own.

    First `temperature`, then `top_p`: of the likeliest tokens the fewest whose probabilities reach it. Temperature 0
    takes the likeliest one. Only ids below `vocabulary` are taken: a model's scores may be padded beyond its tokenizer.
    """

    def __init__(self, temperature: float, top_p: float, seed: int, vocabulary: int):
        self._temperature, self._top_p, self._vocabulary = temperature, top_p, vocabulary
        self._random = np.random.Generator(np.random.PCG64(seed))

    def __call__(self, scores: np.ndarray) -> int:
        """Return a token id for `scores` [vocabulary]; raises StudioError where they are not numbers."""
        scores = np.asarray(scores[: self._vocabulary], np.float64)
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            raise StudioError("weights_broken", "The model's scores are not numbers; its weights are damaged.")
        if not self._temperature:
            return best
        probabilities = np.exp((scores - scores[best]) / self._temperature)
        probabilities /= probabilities.sum()
        # All tokens below this bound together weigh less than 1 - top_p, so none of them is needed to reach it. Sorting
        # the few others instead of 150,000 takes a hundredth of the time.
        likely = np.flatnonzero(probabilities >= (1 - self._top_p) / len(probabilities))
        likely = likely[np.argsort(-probabilities[likely], kind="stable")]
        sums = probabilities[likely].cumsum()
        kept = sums[: int(np.searchsorted(sums, self._top_p)) + 1]
        drawn = np.searchsorted(kept, self._random.random() * kept[-1], side="right")
        return int(likely[min(drawn, len(kept) - 1)])


class Decoder:
    """Turns token ids into text as they come, in whole characters; the pieces joined equal the decoded whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Some tokenizers write a token differently at the start of a text: what was said last is decoded once more.
        self._before, self._said = 0, 0

    def add(self, token: int) -> str:
        self._ids.append(token)
        old, new = self._decode(self._before, self._said), self._decode(self._before, None)
        # A replacement character at the end is the first part of a character whose rest is still to come.
        if new.endswith("\ufffd"):
            return ""
        self._before, self._said = self._said, len(self._ids)
        return new[len(old) :]

    def end(self) -> str:
        """Return what was kept back; text that ends inside a character ends with a replacement character."""
        old = self._decode(self._before, self._said)
        return self._decode(self._before, None)[len(old) :]

    def _decode(self, start: int, end: int | None) -> str:
        ids = self._ids[start:end]
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# --- the backends -------------------------------------------------------------------------------------------------

PROMPT_CHUNK = 256
"""Tokens of the prompt that are read between two looks at whether the visitor still wants the reply."""
TICK_SECONDS = 0.4


class Model(Protocol):
    context: int

    def tokens(self, prompt: list[int], sampler: Sampler, most: int) -> Generator[int | None, None, None]:
        """Yield up to `most` token ids, without the one that ends the text; None is a sign of life."""

    def close(self) -> None:
        """Give the memory back."""


class TorchModel:
    """A causal language model of transformers; each request has a cache of its own."""

    def __init__(self, folder: Path, kind: models.Kind, end: int | None):
        import torch
        from transformers import AutoModelForCausalLM

        preview.quiet_libraries()
        # Straight onto the device, so that the host needs no room for it; ZeroGPU intercepts only `to`.
        direct = kind != "cpu" and not bootstrap.on_zerogpu()
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(kind),
            device_map={"": kind} if direct else None,
            local_files_only=True,
            use_safetensors=True,
        )
        if not direct:
            model.to(kind)
        self._model: PreTrainedModel | None = model.eval().requires_grad_(False)
        self._device = torch.device(kind)
        self._stops = _stop_ids(end, model.config, model.generation_config)
        self.context = int(getattr(model.config, "max_position_embeddings", None) or 2**31)

    def tokens(self, prompt: list[int], sampler: Sampler, most: int) -> Generator[int | None, None, None]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        scores = None
        for start in range(0, len(prompt), PROMPT_CHUNK):
            scores = self._scores(prompt[start : start + PROMPT_CHUNK], cache)
            yield None
        for drawn in range(most):
            token = sampler(scores)
            if token in self._stops:
                return
            yield token
            if drawn + 1 < most:
                scores = self._scores([token], cache)

    def close(self) -> None:
        self._model = None

    def _scores(self, ids: list[int], cache: Any) -> np.ndarray:
        """Return the scores of the token after `ids`, float32 [vocabulary], and add `ids` to the cache."""
        import torch

        # Inside, not around the loop: between two tokens the caller's code runs on this thread.
        with torch.inference_mode():
            batch = torch.tensor([ids], device=self._device)
            logits = self._model(input_ids=batch, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            return logits[0, -1].float().cpu().numpy()


def _dtype(kind: models.Kind) -> Any:
    """Return the numbers to load in: as stored, but float16 where the device has no bfloat16."""
    import torch

    old_cuda = (
        kind == "cuda" and not bootstrap.on_zerogpu() and not torch.cuda.is_bf16_supported(including_emulation=False)
    )
    old_mps = kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0)
    return torch.float16 if old_cuda or old_mps else "auto"


def _stop_ids(end: int | None, *configs: Any) -> frozenset[int]:
    """Gather the ids that end a text: the tokenizer's `end`, and those that the model's configs name."""
    ids = [end]
    for config in configs:
        named = getattr(config, "eos_token_id", None)
        ids += named if isinstance(named, list) else [named]
    return frozenset(number for number in ids if number is not None)


class MlxModel:
    """A model of mlx-lm. All of MLX runs in one thread of its own: a stream works only in the thread that made it."""

    def __init__(self, name: str, folder: Path):
        self._name = name
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlx")
        config = read_json(folder / "config.json") or {}
        self.context = int(config.get("max_position_embeddings") or 2**31)
        try:
            self._worker.submit(self._load, folder).result()
        except Exception as error:
            self.close()
            raise self._failed("loaded", error) from error

    def tokens(self, prompt: list[int], sampler: Sampler, most: int) -> Generator[int | None, None, None]:
        stop, end = threading.Event(), object()
        steps = self._steps(prompt, sampler, most, stop)
        try:
            while True:
                step = self._worker.submit(next, steps, end)
                while not _is_done(step):
                    yield None
                token = step.result()
                if token is end:
                    return
                yield token
        except StudioError:
            raise
        except Exception as error:
            raise self._failed("used", error) from error
        finally:
            # In its own thread as well, which may have to finish a step first.
            stop.set()
            self._worker.submit(steps.close).result()

    def close(self) -> None:
        self._model = self._tokenizer = None
        self._worker.shutdown(wait=False)

    def _load(self, folder: Path) -> None:
        import mlx.core as mx
        import mlx_lm

        self._model, self._tokenizer = mlx_lm.load(str(folder))
        self._stream = mx.new_stream(mx.default_device())

    def _steps(
        self, prompt: list[int], sampler: Sampler, most: int, stop: threading.Event
    ) -> Generator[int, None, None]:
        import mlx.core as mx
        import mlx_lm

        # mlx-lm's own samplers draw from a random state that all requests share.
        def sample(scores: mx.array) -> mx.array:  # [1, vocabulary] -> [1]
            return mx.array([sampler(np.array(scores.astype(mx.float32))[0])])

        def look(done: int, total: int) -> None:
            if stop.is_set():
                raise InterruptedError

        responses = mlx_lm.stream_generate(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=most,
            stream=self._stream,
            sampler=sample,
            prefill_step_size=PROMPT_CHUNK,
            prompt_progress_callback=look,
        )
        for response in responses:
            if response.finish_reason == "stop":
                return
            yield int(response.token)

    def _failed(self, what: str, error: Exception) -> StudioError:
        return StudioError(
            "mlx_failed",
            f"The model {self._name} could not be {what} with MLX: {first_line(error)}",
            hint="Nothing else was fetched instead. Update mlx-lm, or name another model.",
        )


def _is_done(step: Future) -> bool:
    try:
        step.exception(timeout=TICK_SECONDS)
    except TimeoutError:
        return step.done()
    return True
