"""The songwriter: a chat model (Qwen 2.5 7B Instruct) turns a brief into structured lyrics, token
by token.

The model runs through transformers, or through mlx-lm on Apple Silicon. These two only generate
token ids; everything else is shared, so every setting means the same on both, and no random state
carries over to the next request.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import bootstrap
import model_offload
import models
from beat import BEAT_SECONDS
from events import Draft, StudioError, first_line, is_out_of_memory
from limits import LANGUAGES, STRUCTURES
from lyrics_letters import syllables
from lyrics_passage import Passage, is_sung, shorter
from lyrics_tags import TAG
from lyrics_tidy import BULLET, tidy_draft, tidy_lyrics
from model_weights import LYRICS_VARIABLE, Weights, bytes_in, read_json
from params import LyricsRequest, RewriteRequest
from planner_decoding import Draw, as_plain_text, chances, encode_marked

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

WIDENED = "The songwriter's numbers are too large for float16, so it writes in float32 here, which takes longer."
PROMPT_CHUNK = 256  # tokens of the prompt read at once; the run can be cancelled between chunks
# A token reads all weights once. Below this pace it is faster to widen them for it.
SLOW_PACE = 0.15
SHORTER_BRIEF = "Shorten the brief or lower Max length."
SHORTER_LYRICS = "Select fewer lines, or shorten the lyrics."
# What chat models put before the lines of a list: "1. " or "2) ".
_NUMBERED = re.compile(r"\s*\d{1,2}[.)]\s+")


class Songwriter:
    def __init__(
        self, weights: Weights, tokenizer: PreTrainedTokenizerBase, model: TorchModel | MlxModel
    ):
        self.weights = weights
        self.tokenizer = tokenizer
        self.model = model

    def write(self, request: LyricsRequest, seed: int) -> Generator[Draft]:
        """Write lyrics: yields at least one draft per token; only the last one is fully tidied and has an `end`.

        The same `seed`, from 0, gives the same lyrics. Closing the generator stops the model within
        one token. Raises StudioError.
        """
        prompt = prompt_ids(self.tokenizer, SYSTEM, user_prompt(request))
        self._check_room(len(prompt), request, "the brief takes", SHORTER_BRIEF)
        text = ""
        tokens = 0
        with contextlib.closing(self._texts(prompt, request, seed)) as texts:
            for text, tokens in texts:
                yield Draft(tidy_draft(text), tokens)
        yield Draft(tidy_lyrics(text), tokens, _end(tokens, request))

    def rewrite(self, request: RewriteRequest, seed: int) -> Generator[Draft]:
        """Write some lines of lyrics again: the drafts have the whole lyrics, with the new lines so far.

        Like `write` otherwise. Raises StudioError, also if there is no line in the end.
        """
        prompt = prompt_ids(self.tokenizer, SYSTEM_FOR_LINES, lines_prompt(request))
        self._check_room(len(prompt), request, "the lyrics take", SHORTER_LYRICS)
        passage = request.passage
        text = ""
        tokens = 0
        with contextlib.closing(self._texts(prompt, request, seed)) as texts:
            for text, tokens in texts:
                yield Draft(passage.with_lines(answered_lines(tidy_draft(text))), tokens)
        lines = answered_lines(tidy_lyrics(text))
        if not lines:
            raise StudioError("no_lines", "The songwriter wrote no line.", hint="Try it again.")
        yield Draft(passage.with_lines(lines), tokens, _end(tokens, request))

    def _check_room(
        self, prompt: int, request: LyricsRequest | RewriteRequest, takes: str, hint: str
    ) -> None:
        """Raise StudioError unless `prompt` tokens and those to be written fit the model."""
        most = request.most_tokens
        if self.model.context - prompt >= most:
            return
        raise StudioError(
            "too_long",
            f"{self.weights.model_id} handles up to {self.model.context:,} tokens, but {takes} "
            f"{prompt:,} and {most:,} more are to be written.",
            hint=hint,
        )

    def _texts(
        self, prompt: list[int], request: LyricsRequest | RewriteRequest, seed: int
    ) -> Generator[tuple[str, int]]:
        """Yield the answer so far and its number of tokens, at least once per token; at the end all of it."""
        options = request.options
        most = request.most_tokens
        draw = Draw(options.temperature, options.top_p)
        sampler = Sampler(draw, seed, most, len(self.tokenizer))
        ids: list[int] = []
        text = ""
        # Closed at once, not when it is garbage collected: a stored exception would keep it running.
        with contextlib.closing(self.model.tokens(prompt, sampler, most)) as running:
            for token in running:
                if token is not None:
                    ids.append(token)
                    decoded = self._decode(ids)
                    # A replacement character at the end is an incomplete character.
                    if not decoded.endswith("\ufffd"):
                        text = decoded
                yield text, len(ids)
        yield self._decode(ids), len(ids)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def load_songwriter(weights: Weights, kind: models.Kind) -> Songwriter:
    """Load the songwriter in `weights.folder` onto the device `kind` (MLX chooses its own).

    Raises StudioError; errors of too little memory pass through.
    """
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(weights.folder, local_files_only=True)
        in_main_memory = kind != "cuda" or weights.engine == "mlx"
        if in_main_memory and bytes_in(weights.folder) > models.available_memory():
            # Linux would kill the whole studio instead of failing the load.
            raise MemoryError
        if weights.engine == "mlx":
            return Songwriter(weights, tokenizer, MlxModel(weights.model_id, weights.local_folder))
        return Songwriter(
            weights, tokenizer, TorchModel(weights.local_folder, kind, tokenizer.eos_token_id)
        )
    except Exception as error:
        if isinstance(error, StudioError) or is_out_of_memory(error):
            raise
        log.warning("the songwriter could not be loaded", exc_info=error)
        raise StudioError(
            "weights_broken",
            f"The songwriter {weights.model_id} could not be loaded: {first_line(error)}",
            hint=f"Complete it, or name another one in {LYRICS_VARIABLE}.",
        ) from None


SYSTEM = (
    Path(__file__)
    .with_name("presets")
    .joinpath("songwriter.txt")
    .read_text(encoding="utf-8")
    .strip()
)


def user_prompt(request: LyricsRequest) -> str:
    if request.language == "unknown":
        language = "the one that suits the song"
    else:
        language = LANGUAGES[request.language]
    presets = {name.lower(): text for name, text in STRUCTURES.items()}
    structure = presets.get(request.structure.lower(), request.structure)
    lines = [
        f"Write the lyrics of a song.\n\nWhat it is about: {request.brief}",
        f"Language: {language}",
    ]
    if request.tone:
        lines.append(f"Tone: {request.tone}")
    if structure:
        lines.append(f"Structure: {structure}")
    return "\n".join(lines)


SYSTEM_FOR_LINES = (
    Path(__file__)
    .with_name("presets")
    .joinpath("songwriter_lines.txt")
    .read_text(encoding="utf-8")
    .strip()
)
IN_COUPLETS = "Let the lines rhyme in pairs: the first with the second, the third with the fourth."
TASKS = {
    "rewrite": "Say the same in other words. Keep the rhymes.",
    "rhyme": "Say the same, with lines that rhyme.",
    "shorter": "Say the same in fewer words. Keep the rhymes.",
}


def lines_prompt(request: RewriteRequest) -> str:
    """Return the question for new lines: the lyrics, the lines, and what to do with them."""
    passage = request.passage
    parts = [f"These are the lyrics of a song.\n\n{request.lyrics}"]
    if request.brief:
        parts.append(f"What it is about: {request.brief}")
    if request.tone:
        parts.append(f"Tone: {request.tone}")
    count = len(passage.lines)
    noun = "line" if count == 1 else f"{count} lines"
    parts.append(f"Rewrite the following {noun}:\n\n" + "\n".join(passage.lines))
    task = [TASKS[request.task]]
    if request.task == "rhyme":
        task.append(_rhymes_wanted(passage))
    lengths = _lengths_wanted(passage.lines, request)
    if lengths:
        task.append(f"Syllables of each new line, about: {', '.join(map(str, lengths))}.")
    parts.append(" ".join(task))
    return "\n\n".join(parts)


def _rhymes_wanted(passage: Passage) -> str:
    """Say what the new lines are to rhyme with: each other, or a single one with its neighbor."""
    if len(passage.lines) > 1:
        return IN_COUPLETS
    neighbor = passage.neighbor
    if neighbor:
        return f'The new line is to rhyme with "{neighbor}".'
    return "The line is to rhyme within itself."


def _lengths_wanted(lines: list[str], request: RewriteRequest) -> list[int]:
    """Return how many syllables the new lines are to have, [] if they cannot be counted."""
    lengths = []
    for line in lines:
        count = syllables(TAG.sub(" ", line), request.language)
        if count is None:
            return []
        if request.task == "shorter":
            count = shorter(count)
        lengths.append(count)
    return lengths


def answered_lines(text: str) -> list[str]:
    """Return the lines of an answer, without tags, blank lines, numbers and bullets."""
    found = []
    for line in text.split("\n"):
        words = _NUMBERED.sub("", BULLET.sub("", line, count=1), count=1).strip()
        if is_sung(words):
            found.append(words)
    return found


def _end(tokens: int, request: LyricsRequest | RewriteRequest) -> Literal["stop", "length"]:
    if tokens >= request.most_tokens:
        return "length"
    return "stop"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> list[int]:
    """Return the token ids of a chat with one question, through the tokenizer's own template.

    "<|im_end|>" in the question is ten characters of text and closes no turn. Raises StudioError if
    the template cannot be used.
    """
    from jinja2 import TemplateError

    starts = {token[0] for token in tokenizer.get_added_vocab() if len(token) > 1}
    user = as_plain_text(user, starts)
    with_system_turn = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
    ]
    # Some templates have no system turn.
    user_turn_only = [{"role": "user", "content": f"{system}\n\n{user}"}]
    for messages in (with_system_turn, user_turn_only):
        with contextlib.suppress(TemplateError):
            rendered = tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # Qwen 3 would think aloud first; other templates ignore it
            )
            if all(message["content"] in rendered for message in messages):
                return list(encode_marked(tokenizer, rendered))
    raise StudioError("weights_unfit", "This model's chat template cannot be used.")


class Sampler:
    """Draws the next token from a row of scores, up to `limit` times; scores beyond the `vocabulary` are padding."""

    def __init__(self, draw: Draw, seed: int, limit: int, vocabulary: int):
        self._draw = draw
        self._vocabulary = vocabulary
        # One more than `limit`: mlx-lm draws a token ahead.
        self._chances = iter(chances([seed], limit + 1).split(1, dim=1))

    def __call__(self, scores: torch.Tensor) -> int:
        """Return a token id for `scores` [vocabulary]; raises StudioError if they are not numbers."""
        # On the CPU the same seed always gives the same words.
        row = scores[None, : self._vocabulary].float().cpu()
        if not bool(row.max().isfinite()):
            raise StudioError(
                "weights_broken", "The model's scores are not numbers; its weights are damaged."
            )
        return int(self._draw(row, next(self._chances)))


# --- the backends ---------------------------------------------------------------------------------
# Both have a `context` in tokens. `tokens` yields up to `limit` token ids, without the one that ends the text. None
# marks a point where the run can be cancelled.


class TorchModel:
    """A causal language model of transformers; each request has its own cache.

    `end` is the tokenizer's end token; `note` is a sentence for the visitor, "" for none.
    """

    note = ""

    def __init__(self, folder: Path, kind: models.Kind, end: int | None):
        import torch
        from transformers import AutoModelForCausalLM

        models.quiet_libraries()
        # Loaded straight onto the device, so that main memory need not hold it; ZeroGPU intercepts
        # only `to`.
        on_zerogpu = bootstrap.on_zerogpu()
        direct = kind != "cpu" and not on_zerogpu
        self._narrow = lacks_bfloat16(kind)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float16 if self._narrow else "auto",  # as stored, if the device can
            device_map={"": kind} if direct else None,
            local_files_only=True,
            use_safetensors=True,
        )
        if not direct:
            model.to(kind)
        self.language_model = model.eval().requires_grad_(False)
        if kind == "cpu" and model.dtype == torch.bfloat16 and models.bfloat16_pace() < 1:
            one_row_is_slow = models.bfloat16_pace(1) < SLOW_PACE
            model_offload.widen_on_use(model, 0 if one_row_is_slow else 1)
        self._device = torch.device(kind)
        self._ends = {end}
        for config in (model.config, model.generation_config):
            ids = getattr(config, "eos_token_id", None)
            self._ends.update(ids if isinstance(ids, list) else [ids])
        self._ends.discard(None)
        self.config = model.config
        self.context = int(getattr(model.config, "max_position_embeddings", None) or 2**31)
        # transformers renames this argument, one architecture after another; the old name goes in 5.40.
        self._cache_argument = "past_key_values"
        if "cache" in inspect.signature(type(model).forward).parameters:
            self._cache_argument = "cache"

    def tokens(
        self, prompt: list[int], sampler: Sampler, limit: int
    ) -> Generator[int | None, None, None]:
        ids = list(prompt)
        cache, scores = yield from self._read(ids)
        for drawn in range(limit):
            if self._narrow and not bool(scores.max().isfinite()):
                self._widen()
                cache, scores = yield from self._read(ids)
            token = sampler(scores)
            if token in self._ends:
                return
            yield token
            ids.append(token)
            if drawn + 1 < limit:
                scores = self.scores([[token]], cache)[0]

    def _read(self, ids: list[int]) -> Generator[None, None, tuple[Any, torch.Tensor]]:
        """Read `ids` into a new cache, in chunks; return it and the scores of the next token, [vocabulary]."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.language_model.config)
        for start in range(0, len(ids), PROMPT_CHUNK):
            scores = self.scores([ids[start : start + PROMPT_CHUNK]], cache)[0]
            yield None
        return cache, scores

    def _widen(self) -> None:
        """Compute in float32 from now on: float16 is too narrow for some models, such as Qwen 2.5 7B.

        The weights stay in float16; each layer's are widened while it works. The two largest
        matrices need no widening: the embeddings before the layers and the scores behind them.
        """
        import torch

        model = self.language_model
        first = model.get_input_embeddings()
        last = model.get_output_embeddings()
        ends = [name for name, module in model.named_modules() if module is first or module is last]
        model_offload.cast_on_use(model, torch.float16, torch.float32, skipped=ends)
        first.register_forward_hook(lambda module, inputs, states: states.float())
        last.register_forward_pre_hook(lambda module, inputs: (inputs[0].half(),))
        self._narrow = False
        self.note = WIDENED
        log.warning(WIDENED)

    def scores(self, rows: list[list[int]], cache: Any) -> torch.Tensor:
        """Append a row of ids to each text in the cache; return the scores of the next tokens, [rows, vocabulary]."""
        import torch

        # Here, not around the loop: between two tokens the caller's code runs on this thread.
        with torch.inference_mode():
            batch = torch.tensor(rows, device=self._device)
            output = self.language_model(
                input_ids=batch,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_argument: cache},
            )
            return output.logits[:, -1]


def lacks_bfloat16(kind: models.Kind) -> bool:
    """Tell whether the device computes in float16 but not in bfloat16: older NVIDIA cards, macOS before 14."""
    import torch

    if kind == "cuda":
        return not bootstrap.on_zerogpu() and not torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    return kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0)


class MlxModel:
    """A model of mlx-lm. All of MLX runs in one thread of its own: a stream works only in the thread that made it."""

    note = ""

    def __init__(self, name: str, folder: Path):
        self._name = name
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlx")
        config = read_json(folder / "config.json") or {}
        self.context = int(config.get("max_position_embeddings") or 2**31)
        try:
            self._worker.submit(self._load, folder).result()
        except Exception as error:
            raise self._failed("loaded", error) from error

    def tokens(
        self, prompt: list[int], sampler: Sampler, limit: int
    ) -> Generator[int | None, None, None]:
        stop = threading.Event()
        end: Any = object()
        steps = self._steps(prompt, sampler, limit, stop)
        try:
            while True:
                step = self._worker.submit(next, steps, end)
                while not wait([step], BEAT_SECONDS).done:
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
            # Closed in the model's thread too, which may have to finish a step first.
            stop.set()
            self._worker.submit(steps.close).result()

    def _load(self, folder: Path) -> None:
        import mlx.core as mx
        import mlx_lm

        self._model, self._tokenizer = mlx_lm.load(str(folder))
        self._stream = mx.new_stream(mx.default_device())

    def _steps(
        self, prompt: list[int], sampler: Sampler, limit: int, stop: threading.Event
    ) -> Generator[int, None, None]:
        import mlx.core as mx
        import mlx_lm
        import torch

        # mlx-lm's own samplers draw from a random state that all requests share.
        def sample(scores: mx.array) -> mx.array:  # [1, vocabulary] -> [1]
            row = np.array(scores.astype(mx.float32))[0]
            return mx.array([sampler(torch.from_numpy(row))])

        def interrupt(done: int, total: int) -> None:
            if stop.is_set():
                raise InterruptedError

        responses = mlx_lm.stream_generate(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=limit,
            stream=self._stream,
            sampler=sample,
            prefill_step_size=PROMPT_CHUNK,
            prompt_progress_callback=interrupt,
        )
        for response in responses:
            if response.finish_reason == "stop":
                return
            yield int(response.token)

    def _failed(self, verb: str, error: Exception) -> StudioError:
        return StudioError(
            "mlx_failed",
            f"The model {self._name} could not be {verb} with MLX: {first_line(error)}",
            hint="Nothing was downloaded instead. Update mlx-lm, or name another model.",
        )
