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
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bootstrap
import model_offload
import models
from beat import BEAT_SECONDS
from events import Draft, StudioError, first_line, is_out_of_memory
from limits import LANGUAGES, STRUCTURES
from lyrics_lint import tidy_draft, tidy_lyrics
from model_weights import LYRICS_VARIABLE, Weights, bytes_in, read_json
from params import LyricsRequest
from planner_decoding import Draw, chances, encode_marked, typed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

WIDENED = "The songwriter's numbers are too large for float16, so it writes in float32 here, which takes longer."
# tokens of the prompt that are read at once; between chunks the request can be cancelled
PROMPT_CHUNK = 256


class Writer:
    def __init__(
        self, weights: Weights, tokenizer: PreTrainedTokenizerBase, model: TorchModel | MlxModel
    ):
        self.weights = weights
        self.tokenizer = tokenizer
        self.model = model

    def write(self, request: LyricsRequest, seed: int) -> Generator[Draft]:
        """Write lyrics: at least one draft per token, the last one completely tidied and with its
        `end`.

        The same `seed`, from 0, gives the same lyrics. Closing the generator stops the model within
        one token. Raises StudioError.
        """
        options = request.options
        prompt = prompt_ids(self.tokenizer, SYSTEM, user_prompt(request))
        if self.model.context - len(prompt) < options.max_tokens:
            raise StudioError(
                "too_long",
                f"{self.weights.model_id} handles up to {self.model.context:,} tokens, but the brief takes "
                f"{len(prompt):,} and Max length asks for {options.max_tokens:,}.",
                hint="Shorten the brief or lower Max length.",
            )
        draw = Draw(options.temperature, options.top_p)
        sampler = Sampler(draw, seed, options.max_tokens, len(self.tokenizer))
        ids: list[int] = []
        text = ""
        # Closed at once, not when it is collected: an exception that is kept somewhere would keep
        # it running.
        with contextlib.closing(self.model.tokens(prompt, sampler, options.max_tokens)) as running:
            for token in running:
                if token is not None:
                    ids.append(token)
                    decoded = self._decode(ids)
                    # A replacement character at the end is the first part of a character that is
                    # not complete yet.
                    text = text if decoded.endswith("\ufffd") else decoded
                yield Draft(tidy_draft(text), len(ids))
        yield Draft(
            tidy_lyrics(self._decode(ids)),
            len(ids),
            "length" if len(ids) >= options.max_tokens else "stop",
        )

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def build_writer(weights: Weights, kind: models.Kind) -> Writer:
    """Load the writer in `weights.folder` onto the device `kind` (MLX chooses its own).

    Raises StudioError, and whatever a lack of memory raises.
    """
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(weights.folder, local_files_only=True)
        shared = kind != "cuda" or weights.engine == "mlx"
        if shared and bytes_in(weights.folder) > models.available_memory():
            # Linux would kill the whole studio instead of failing the load.
            raise MemoryError
        if weights.engine == "mlx":
            return Writer(weights, tokenizer, MlxModel(weights.model_id, weights.there))
        return Writer(weights, tokenizer, TorchModel(weights.there, kind, tokenizer.eos_token_id))
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
    lines += [f"Tone: {request.tone}"] if request.tone else []
    lines += [f"Structure: {structure}"] if structure else []
    return "\n".join(lines)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> list[int]:
    """Return the token ids of a chat with one question, through the tokenizer's own template.

    "<|im_end|>" in the question is ten characters of text and closes no turn. Raises StudioError if
    the template cannot be used.
    """
    from jinja2 import TemplateError

    user = typed(user, {token[0] for token in tokenizer.get_added_vocab() if len(token) > 1})
    # Without the switch Qwen 3 would think aloud first; other templates ignore it.
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    # Some templates have no system turn.
    for turns in ({"system": system, "user": user}, {"user": f"{system}\n\n{user}"}):
        with contextlib.suppress(TemplateError):
            messages = [{"role": role, "content": content} for role, content in turns.items()]
            rendered = tokenizer.apply_chat_template(messages, **settings)
            if all(content in rendered for content in turns.values()):
                return list(encode_marked(tokenizer, rendered))
    raise StudioError("weights_unfit", "This model's chat template cannot be used.")


class Sampler:
    """Draws the next token from a row of scores, up to `most` times; scores beyond the `vocabulary` are padding."""

    def __init__(self, draw: Draw, seed: int, most: int, vocabulary: int):
        self._draw = draw
        self._vocabulary = vocabulary
        # One more than `most`: mlx-lm draws a token ahead.
        self._chances = iter(chances([seed], most + 1).split(1, dim=1))

    def __call__(self, scores: torch.Tensor) -> int:
        """Return a token id for `scores` [vocabulary]; raises StudioError if they are not numbers."""
        # where the same seed always gives the same words
        row = scores[None, : self._vocabulary].float().cpu()
        if not bool(row.max().isfinite()):
            raise StudioError(
                "weights_broken", "The model's scores are not numbers; its weights are damaged."
            )
        return int(self._draw(row, next(self._chances)))


# --- the backends ---------------------------------------------------------------------------------
# Both have a `context` in tokens. `tokens` yields up to `most` token ids, without the one that ends the text, and None
# as a sign of life.


class TorchModel:
    """A causal language model of transformers; each request has its own cache. `end` is the
    tokenizer's end token.

    `note` is a sentence for the visitor, "" if there is nothing to say.
    """

    note = ""

    def __init__(self, folder: Path, kind: models.Kind, end: int | None):
        import torch
        from transformers import AutoModelForCausalLM

        models.quiet_libraries()
        # Straight onto the device, so that the host needs no room for it; ZeroGPU intercepts only
        # `to`.
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
            model_offload.widen_on_use(model)
        self._device = torch.device(kind)
        ends = [
            getattr(config, "eos_token_id", None)
            for config in (model.config, model.generation_config)
        ]
        self._stops = {
            end,
            *(each for ids in ends for each in (ids if isinstance(ids, list) else [ids])),
        } - {None}
        self.config = model.config
        self.context = int(getattr(model.config, "max_position_embeddings", None) or 2**31)
        # transformers renames it, architecture by architecture; the old name goes in 5.40.
        self._cache = "past_key_values"
        if "cache" in inspect.signature(type(model).forward).parameters:
            self._cache = "cache"

    def tokens(
        self, prompt: list[int], sampler: Sampler, most: int
    ) -> Generator[int | None, None, None]:
        ids = list(prompt)
        cache, scores = yield from self._read(ids)
        for drawn in range(most):
            if self._narrow and not bool(scores.max().isfinite()):
                self._widen()
                cache, scores = yield from self._read(ids)
            token = sampler(scores)
            if token in self._stops:
                return
            yield token
            ids.append(token)
            if drawn + 1 < most:
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
        """Compute in float32 from now on: numbers of some models, such as Qwen 2.5 7B, are too
        large for float16.

        The weights stay in float16, and each layer is widened while it works. The two largest
        matrices are not, which need not be: the embeddings before the layers, and the scores behind
        them.
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
            more = {self._cache: cache, "use_cache": True, "logits_to_keep": 1}
            return self.language_model(input_ids=batch, **more).logits[:, -1]


def lacks_bfloat16(kind: models.Kind) -> bool:
    """Return whether the device computes in float16, but not in bfloat16: older NVIDIA cards, and macOS before 14."""
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
        self, prompt: list[int], sampler: Sampler, most: int
    ) -> Generator[int | None, None, None]:
        stop = threading.Event()
        end: Any = object()
        steps = self._steps(prompt, sampler, most, stop)
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
            # In the model's thread as well, which may have to finish a step first.
            stop.set()
            self._worker.submit(steps.close).result()

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
        import torch

        # mlx-lm's own samplers draw from a random state that all requests share.
        def sample(scores: mx.array) -> mx.array:  # [1, vocabulary] -> [1]
            return mx.array([sampler(torch.from_numpy(np.array(scores.astype(mx.float32))[0]))])

        def interrupt(done: int, total: int) -> None:
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
            prompt_progress_callback=interrupt,
        )
        for response in responses:
            if response.finish_reason == "stop":
                return
            yield int(response.token)

    def _failed(self, what: str, error: Exception) -> StudioError:
        return StudioError(
            "mlx_failed",
            f"The model {self._name} could not be {what} with MLX: {first_line(error)}",
            hint="Nothing was downloaded instead. Update mlx-lm, or name another model.",
        )
