"""Timed lyrics: when each line of a finished song is sung, read from the song model's attention.

A few cross-attention heads of the first eight layers follow the singing (upstream's
`lyric_alignment_layers_config`). `attention` runs one forward pass over the song and keeps the
attention of these heads; `timed_lines` finds the best path from the first token at the first frame
to the last token at the last frame (dynamic time warping) and reads the lines' times from it;
`score` says how far to trust that path. The formulas are those of upstream's LRC code. `run` does
all of it for a request, inside the GPU entry point.

Shapes: H heads, L lyric tokens, F frames of the transformer (12.5 a second), T latent frames (25 a
second).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import audio
import lora_apply
import song_codec
import song_conditions
import song_loop
from events import Outcome, Progress, StudioError
from gpu_job import Job
from limits import MAX_LYRIC_TOKENS, QUALITY_STEPS, SAMPLE_RATE
from model_memory import Placing
from model_weights import Weights, transformer_config
from models import Models
from params import AlignRequest, SongWords
from record import LineEntry, Ran, WordsResult, timed
from song_conditions import COVER, TEXT2MUSIC, Condition
from status import TimedLyrics

if TYPE_CHECKING:
    import torch

# The heads that follow the lyrics, by layer, for transformers of (layers, heads per layer): the 2B
# models and XL.
KNOWN_HEADS = {
    (24, 16): {2: (6,), 3: (10, 11), 4: (3,), 5: (8, 9), 6: (8,)},
    (32, 32): {3: (18, 27), 4: (22,), 5: (5, 6, 7), 6: (2, 12, 13), 7: (20, 21)},
}
CONFIG_KEY = "lyric_alignment_layers_config"
MEDIANS = 2.0  # attention counts if it exceeds its token's and its frame's median this many times
LEAST_ENERGY = 0.1  # a token with a frame above this stands out
CENTROID_ENERGY = 0.01  # frames above this count for a token's centroid
BACKWARD_FRAMES = 9  # a centroid may precede the one before it by so many frames
# It begins only at the first of several brackets, which keeps "[[[[[" from taking the square of its length.
TAG = re.compile(r"(?<!\[)\[++[^\[\]\n]*+\]")

Heads = Mapping[int, tuple[int, ...]]


class _Enough(Exception):
    """Ends a forward pass after the last layer that counts."""


def support(weights: Weights) -> TimedLyrics:
    """Return whether a checkpoint can time lyrics, or why not."""
    reason = ""
    if weights.folder is None:
        reason = "The song model is not on this machine yet."
    elif not heads_of(weights):
        reason = "This checkpoint has no attention heads that are known to follow the lyrics."
    return TimedLyrics(available=not reason, reason=reason)


def run(models: Models, placing: Placing, job: Job) -> Generator[Progress | Outcome]:
    """Time the lines of the finished song of `job`; the outcome's result is a `WordsResult`."""
    request = cast(AlignRequest, job.request)
    seconds: dict[str, float] = {}
    if not models.loaded:
        yield Progress("loading")
    with timed(seconds, "loading"):
        placing.for_song()
        pipe = models.pipeline()
        heads = heads_of(models.current)
        if not heads:
            raise StudioError("unsupported", support(models.current).reason)
        lora_apply.reconcile(pipe, ())  # the heads are known for the checkpoint without LoRAs
    with timed(seconds, "aligning"):
        yield Progress("preparing")
        samples = audio.read_wav(job.audio["source"])
        clean = yield from song_codec.encode(pipe, samples, "preparing")
        yield Progress("aligning")
        length = samples.shape[1] / SAMPLE_RATE
        # A planned song was made from its plan's audio codes, which the record does not keep; the
        # finished song's own codes are the closest substitute.
        planned = request.planned and song_conditions.has_audio_codes(pipe)
        if planned:
            context = song_conditions.cover_context(pipe, clean)
        else:
            context = song_conditions.silent_context(pipe, clean.shape[1])
        words = song_conditions.words_of(request, length, COVER if planned else TEXT2MUSIC)
        words["prompt"], _ = song_conditions.fit_prompt(pipe, words)
        condition = song_conditions.encode_condition(pipe, words, context)
        generators = song_loop.generators_for(job.seeds)
        noise = song_loop.draw_noise(generators, clean.shape[1], clean.shape[2])
        steps = request.steps or QUALITY_STEPS["standard"]
        result = follow(pipe, condition, clean, noise, 1 / steps, heads, request, length)
    yield Outcome(Ran(seconds=seconds, model=models.entry()), result=result)


def follow(
    pipe: Any,
    condition: Condition,
    latents: torch.Tensor,
    noise: torch.Tensor,
    t: float,
    heads: Heads,
    request: SongWords,
    seconds: float,
) -> WordsResult:
    """Return when the lyrics of `request` are sung in a song of `seconds`: "lines", "lrc" and "score".

    The other arguments are those of `attention`.
    """
    lyrics = request.sung_lyrics()
    lyric_tokens, line_numbers = lyric_slice(pipe, lyrics, request.language)
    attended = attention(pipe, condition, latents, noise, t, heads, lyric_tokens)
    lines = timed_lines(attended, line_numbers, lyrics, seconds)
    return WordsResult(lines=lines, lrc=lrc(lines), score=score(attended, line_numbers))


def heads_of(weights: Weights) -> Heads:
    return alignment_heads(transformer_config(weights))


def alignment_heads(config: Mapping[str, Any]) -> Heads:
    """Return the heads that follow the lyrics, by layer: those that `config` names, else known ones, else {}."""
    layer_count = config.get("num_hidden_layers")
    head_count = config.get("num_attention_heads")
    if not isinstance(layer_count, int) or not isinstance(head_count, int):
        return {}
    named = config.get(CONFIG_KEY)
    if not isinstance(named, Mapping):
        return KNOWN_HEADS.get((layer_count, head_count), {})
    heads: dict[int, tuple[int, ...]] = {}
    try:
        for layer, chosen in sorted(named.items()):
            if chosen:
                heads[int(layer)] = tuple(map(int, chosen))
    except (TypeError, ValueError):
        return {}
    for layer, numbers in heads.items():
        if not 0 <= layer < layer_count:
            return {}
        if min(numbers) < 0 or max(numbers) >= head_count:
            return {}
    return heads


def attention(
    pipe: Any,
    condition: Condition,
    latents: torch.Tensor,
    noise: torch.Tensor,
    t: float,
    heads: Heads,
    tokens: slice,
) -> np.ndarray:
    """Return the attention [H, L, F] of `heads` to the condition's `tokens` for a song's `latents` [1, T, C].

    `noise` is added up to time `t`, as before the last step (t = 1 / steps). One pass without
    guidance, which ends after the last layer that counts.
    """
    import torch

    matrices: list[np.ndarray] = []

    def read_heads(layer, module, inputs, named):
        states = named["hidden_states"]
        encoded = named["encoder_hidden_states"]
        for head in heads[layer]:
            attended = _attend(module, states, encoded, head)[:, tokens]
            matrices.append(attended.T.half().cpu().numpy())
        if layer == max(heads):
            raise _Enough

    dtype = pipe.transformer.dtype
    device = pipe._execution_device
    time = torch.full((1,), t, device=device, dtype=dtype)
    with contextlib.ExitStack() as hooks, contextlib.suppress(_Enough), torch.no_grad():
        for layer in heads:
            module = pipe.transformer.layers[layer].cross_attn
            hook = partial(read_heads, layer)
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        pipe.transformer(
            hidden_states=song_loop.noised(latents.to(device), noise, t).to(dtype),
            timestep=time,
            timestep_r=time,
            encoder_hidden_states=condition.states,
            context_latents=condition.context,
            return_dict=False,
        )
    return np.stack(matrices)


def _attend(module: Any, states: torch.Tensor, encoded: torch.Tensor, head: int) -> torch.Tensor:
    """Return one head's attention [F, all condition tokens]; cross-attention has neither mask nor positions."""
    size = module.head_dim
    queries = module.to_q(states[0]).unflatten(-1, (module.heads, size))
    keys = module.to_k(encoded[0]).unflatten(-1, (module.kv_heads, size))
    queries_per_key = module.heads // module.kv_heads
    query = module.norm_q(queries[:, head])
    key = module.norm_k(keys[:, head // queries_per_key])
    return (query.float() @ key.float().T * module.scaling).softmax(dim=-1)


def lyric_slice(pipe: Any, lyrics: str, language: str) -> tuple[slice, np.ndarray]:
    """Return the condition's slice with the lyrics, and the line of each of its tokens [L], from 0; -1 for none."""
    # The condition begins with this text, cut to 2,048 tokens: headers, the lyrics, an end mark.
    _, text = pipe._format_prompt(prompt="", lyrics=lyrics, vocal_language=language)
    spans = pipe.tokenizer(
        text, return_offsets_mapping=True, truncation=True, max_length=MAX_LYRIC_TOKENS
    )
    begin = text.index(lyrics, text.index("# Lyric\n"))
    length = len(lyrics)
    without_tags = TAG.sub(lambda tag: " " * len(tag[0]), lyrics)
    tokens = []
    lines = []
    for token, (start, end) in enumerate(spans.offset_mapping):
        if end <= begin or start >= begin + length:
            continue
        tokens.append(token)
        first = max(start - begin, 0)
        last = min(end - begin, length)
        # The first sung character decides to which line a token belongs.
        sung = (place for place in range(first, last) if not without_tags[place].isspace())
        first_sung = next(sung, None)
        lines.append(-1 if first_sung is None else lyrics.count("\n", 0, first_sung))
    return slice(tokens[0], tokens[-1] + 1), np.array(lines)


def timed_lines(
    heads: np.ndarray, tokens: np.ndarray, lyrics: str, seconds: float
) -> list[LineEntry]:
    """Return the sung lines with start and end in seconds, from attention [H, L, F] and the line of each token [L]."""
    rows, frames = warp(-sharpened(heads))
    frame_seconds = seconds / heads.shape[2]
    lines: list[LineEntry] = []
    for number, line in enumerate(lyrics.split("\n")):
        sung = np.flatnonzero(tokens == number)
        if len(sung):
            start = float(frames[rows == sung[0]].min() * frame_seconds)
            end = float((frames[rows == sung[-1]].max() + 1) * frame_seconds)
            end = min(end, seconds)
            text = " ".join(TAG.sub(" ", line).split())
            lines.append(LineEntry(start=round(start, 2), end=round(end, 2), text=text))
    return lines


def sharpened(heads: np.ndarray) -> np.ndarray:
    """Return one matrix [L, F] that emphasises the peaks of the heads' attention [H, L, F].

    Each head is normalised over frames and over tokens; values under twice their row's and their
    column's median are dropped, the rest squared; then come a z-score over all heads and the mean
    of the heads.
    """
    total = np.zeros(heads.shape[1:])
    squares = 0.0
    for head in heads:
        values = head.astype(np.float32)
        peaks = _softmax(values, axis=1) * _softmax(values, axis=0)
        peaks = np.maximum(peaks - MEDIANS * np.median(peaks, axis=1, keepdims=True), 0)
        peaks = np.maximum(peaks - MEDIANS * np.median(peaks, axis=0, keepdims=True), 0) ** 2
        total += peaks
        squares += float(np.square(peaks, dtype=np.float64).sum())
    mean = total.sum() / heads.size
    spread = np.sqrt(max(squares / heads.size - mean**2, 0.0))
    return (total / len(heads) - mean) / (spread or 1.0)


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cheapest path (rows, columns) from the first cell of `cost` [L, F] to the last.

    A step goes down, right or both. A row costs its running sum minus what was summed up before
    the row was entered from above.
    """
    # total[i + 1, j + 1] is the cost of the path to cell (i, j).
    total = np.full(np.add(cost.shape, 1), np.inf)
    total[0, 0] = 0.0
    for i, row in enumerate(cost):
        sums = row.cumsum(dtype=np.float64)
        entered = np.minimum(total[i, :-1], total[i, 1:]) - (sums - row)
        total[i + 1, 1:] = sums + np.minimum.accumulate(entered)
    path = [cost.shape]
    while path[-1] != (1, 1):
        i, j = path[-1]
        path.append(min((i - 1, j - 1), (i - 1, j), (i, j - 1), key=total.__getitem__))
    return tuple(np.array(path[::-1]).T - 1)


def score(heads: np.ndarray, tokens: np.ndarray) -> float:
    """Return how well the attention [H, L, F] follows the lyrics, from 0 to 1.

    It is coverage^2 * monotonicity^2 * confidence. Coverage is the share of sung tokens that stand
    out anywhere, monotonicity the share of neighbours that do not go back, confidence the mean
    energy along the path. `tokens` [L] has the line of each token, -1 for none.
    """
    energy = np.mean(heads, axis=0, dtype=np.float32)
    energy = (energy - energy.min()) / ((energy.max() - energy.min()) or 1.0)
    rows, frames = warp(-(energy**2))
    sung = tokens >= 0
    if not sung.any():
        return 0.0
    coverage = float((energy[sung].max(axis=1) > LEAST_ENERGY).mean())
    weights = np.where(energy[sung] > CENTROID_ENERGY, energy[sung], 0.0)
    weights = weights[weights.sum(axis=1) > 0]
    centroids = (weights @ np.arange(energy.shape[1])) / weights.sum(axis=1)
    monotonicity = 1.0
    if len(centroids) > 1:
        monotonicity = float((np.diff(centroids) >= -BACKWARD_FRAMES).mean())
    confidence = float(energy[rows, frames][sung[rows]].mean())
    return round(coverage**2 * monotonicity**2 * confidence, 4)


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    exponentials = np.exp(values - values.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def lrc(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the lines as an LRC file: "[mm:ss.xx]text"."""
    text = ""
    for line in lines:
        minutes, seconds = divmod(line["start"], 60)
        text += f"[{minutes:02.0f}:{seconds:05.2f}]{line['text']}\n"
    return text
