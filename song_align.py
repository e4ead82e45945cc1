"""Timed lyrics: when each line of a finished song is sung, read from the song model's own
attention.

A few cross-attention heads of the first eight layers follow the singing (upstream's
`lyric_alignment_layers_config`). `attention` runs one forward pass over the song and keeps the
attention of these heads; `timed_lines` finds the best path from the first token at the first frame
to the last at the last (dynamic time warping) and reads the lines' times from it; `score` says how
far to trust that path. Formulas: upstream's LRC code (reference, section 5). `run` does all of it
for a request, inside the GPU entry point.

Shapes: H heads, L lyric tokens, F frames of the transformer (12.5 a second), T latent frames (25 a
second).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import audio
import lora_apply
import song_codec
import song_conditions
import song_loop
from events import Job, Outcome, Progress, StudioError
from limits import MAX_LYRIC_TOKENS, QUALITY_STEPS, SAMPLE_RATE
from model_memory import Placing
from model_weights import Weights, transformer_config
from models import Models
from record import LineEntry, Ran, WordsResult, timed
from song_conditions import COVER, TEXT2MUSIC, Condition
from status import TimedLyrics

if TYPE_CHECKING:
    import torch

# Layer -> heads that follow the lyrics, by (layers, heads per layer) of the transformer: the 2B
# models' and the XL's.
KNOWN_HEADS = {
    (24, 16): {2: (6,), 3: (10, 11), 4: (3,), 5: (8, 9), 6: (8,)},
    (32, 32): {3: (18, 27), 4: (22,), 5: (5, 6, 7), 6: (2, 12, 13), 7: (20, 21)},
}
CONFIG_KEY = "lyric_alignment_layers_config"
MEDIANS = 2.0  # attention counts if it exceeds its token's and its frame's median this many times
LEAST_ENERGY = 0.1
CENTROID_ENERGY = 0.01
BACKWARD_FRAMES = 9
TAG = re.compile(r"\[[^\]\n]*\]")

Heads = Mapping[int, tuple[int, ...]]


class _Enough(Exception):
    """Ends a forward pass after the last layer that counts."""


def support(weights: Weights) -> TimedLyrics:
    reason = ""
    if weights.folder is None:
        reason = "The song model is not on this machine yet."
    elif not _heads_of(weights):
        reason = "This checkpoint has no attention heads that are known to follow the lyrics."
    return TimedLyrics(available=not reason, reason=reason)


def run(models: Models, placing: Placing, job: Job) -> Generator[Progress | Outcome]:
    """Time the lines of the finished song of `job`; its result has "lines", "lrc" and "score"."""
    request = job.request
    seconds: dict[str, float] = {}
    if not models.loaded:
        yield Progress("loading")
    with timed(seconds, "loading"):
        placing.for_song()
        pipe = models.pipeline()
        heads = _heads_of(models.weights)
        if not heads:
            raise StudioError("unsupported", support(models.weights).reason)
        lora_apply.reconcile(pipe, ())  # the heads are known for the checkpoint without LoRAs
    with timed(seconds, "aligning"):
        yield Progress("preparing")
        samples = audio.read_wav(job.audio["source"])
        clean = yield from song_codec.encode(pipe, samples, "preparing")
        yield Progress("aligning")
        length = samples.shape[1] / SAMPLE_RATE
        lyrics = request.sung_lyrics()
        # A planned song was made from its plan's audio codes, which no record holds; the song's own
        # come as close.
        planned = request.planned and song_conditions.has_audio_codes(pipe)
        if planned:
            context = song_conditions.cover_context(pipe, clean)
        else:
            context = song_conditions.silent_context(pipe, clean.shape[1])
        words = song_conditions.words_of(request, length, COVER if planned else TEXT2MUSIC)
        words["prompt"], _ = song_conditions.fit_prompt(pipe, words)
        condition = song_conditions.encode_condition(pipe, words, context)
        noise = song_loop.draw_noise(
            song_loop.generators_for(job.seeds), clean.shape[1], clean.shape[2]
        )
        place, tokens = lyric_slice(pipe, lyrics, request.language)
        steps = request.steps or QUALITY_STEPS["standard"]
        found = attention(pipe, condition, clean, noise, 1 / steps, heads, place)
        lines = timed_lines(found, tokens, lyrics, length)
    facts = WordsResult(lines=lines, lrc=lrc(lines), score=score(found, tokens))
    yield Outcome(Ran(seconds=seconds, model=models.weights.entry()), result=facts)


def _heads_of(weights: Weights) -> Heads:
    return alignment_heads(transformer_config(weights))


def alignment_heads(config: Mapping[str, Any]) -> Heads:
    """Return the heads that follow the lyrics, by layer: those that `config` names, else known ones, else {}."""
    layers = config.get("num_hidden_layers")
    wide = config.get("num_attention_heads")
    if not isinstance(layers, int) or not isinstance(wide, int):
        return {}
    named = config.get(CONFIG_KEY)
    if not isinstance(named, Mapping):
        return KNOWN_HEADS.get((layers, wide), {})
    try:
        heads = {
            int(layer): tuple(map(int, chosen)) for layer, chosen in sorted(named.items()) if chosen
        }
        fits = all(
            0 <= layer < layers and 0 <= min(heads[layer]) <= max(heads[layer]) < wide
            for layer in heads
        )
    except (TypeError, ValueError):
        return {}
    return heads if fits else {}


def attention(
    pipe: Any,
    condition: Condition,
    latents: torch.Tensor,
    noise: torch.Tensor,
    t: float,
    heads: Heads,
    tokens: slice,
) -> np.ndarray:
    """Return the attention [H, L, F] of `heads` to the condition's `tokens` for a song's `latents`
    [1, T, C].

    `noise` is added up to time `t`, as before the last step (t = 1 / steps). One pass without
    guidance, which ends after the last layer that counts.
    """
    import torch

    found: list[np.ndarray] = []

    def listen(layer, module, inputs, named):
        states = named["hidden_states"]
        encoded = named["encoder_hidden_states"]
        for head in heads[layer]:
            found.append(_attend(module, states, encoded, head)[:, tokens].T.half().cpu().numpy())
        if layer == max(heads):
            raise _Enough

    dtype = pipe.transformer.dtype
    device = pipe._execution_device
    time = torch.full((1,), t, device=device, dtype=dtype)
    with contextlib.ExitStack() as hooks, contextlib.suppress(_Enough), torch.no_grad():
        for layer in heads:
            module = pipe.transformer.layers[layer].cross_attn
            hooks.enter_context(
                module.register_forward_pre_hook(partial(listen, layer), with_kwargs=True)
            )
        pipe.transformer(
            hidden_states=song_loop.noised(latents.to(device), noise, t).to(dtype),
            timestep=time,
            timestep_r=time,
            encoder_hidden_states=condition.states,
            context_latents=condition.context,
            return_dict=False,
        )
    return np.stack(found)


def _attend(module: Any, states: torch.Tensor, encoded: torch.Tensor, head: int) -> torch.Tensor:
    """Return one head's attention [F, all condition tokens]; cross-attention has neither mask nor positions."""
    size = module.head_dim
    shared = module.heads // module.kv_heads
    query = module.norm_q(module.to_q(states[0]).unflatten(-1, (module.heads, size))[:, head])
    key = module.norm_k(
        module.to_k(encoded[0]).unflatten(-1, (module.kv_heads, size))[:, head // shared]
    )
    return (query.float() @ key.float().T * module.scaling).softmax(dim=-1)


def lyric_slice(pipe: Any, lyrics: str, language: str) -> tuple[slice, np.ndarray]:
    """Return the slice of the condition with the lyrics, and the line of each token [L], from 0; -1 if none."""
    # The condition begins with this text, cut to 2,048 tokens: headers, the lyrics, an end mark.
    _, text = pipe._format_prompt(prompt="", lyrics=lyrics, vocal_language=language)
    spans = pipe.tokenizer(
        text, return_offsets_mapping=True, truncation=True, max_length=MAX_LYRIC_TOKENS
    )
    begin = text.index(lyrics, text.index("# Lyric\n"))
    length = len(lyrics)
    inside = {
        i: (max(start - begin, 0), min(end - begin, length))
        for i, (start, end) in enumerate(spans.offset_mapping)
        if end > begin and start < begin + length
    }
    sung = TAG.sub(lambda tag: " " * len(tag[0]), lyrics)
    lines = []
    for start, end in inside.values():
        # The first sung character decides to which line a token belongs.
        place = next((i for i in range(start, end) if not sung[i].isspace()), None)
        lines.append(-1 if place is None else lyrics.count("\n", 0, place))
    return slice(min(inside), max(inside) + 1), np.array(lines)


def timed_lines(
    heads: np.ndarray, tokens: np.ndarray, lyrics: str, seconds: float
) -> list[LineEntry]:
    """Return the sung lines with start and end in seconds, from attention [H, L, F] and the line of each token [L]."""
    rows, frames = warp(-sharpened(heads))
    frame_seconds = seconds / heads.shape[2]
    lines: list[LineEntry] = []
    for number, text in enumerate(lyrics.split("\n")):
        sung = np.flatnonzero(tokens == number)
        if len(sung):
            start = float(frames[rows == sung[0]].min() * frame_seconds)
            end = float((frames[rows == sung[-1]].max() + 1) * frame_seconds)
            text = " ".join(TAG.sub(" ", text).split())
            lines.append(
                LineEntry(start=round(start, 2), end=round(min(end, seconds), 2), text=text)
            )
    return lines


def sharpened(heads: np.ndarray) -> np.ndarray:
    """Return one matrix [L, F] that emphasises the peaks of the heads' attention [H, L, F].

    Each head is normalised over frames and over tokens; values under twice their row's and their
    column's median are dropped, the rest squared; then follow a z-score over all heads and their
    mean.
    """
    total = np.zeros(heads.shape[1:])
    squares = 0.0
    for head in heads:
        a = head.astype(np.float32)
        p = _softmax(a, axis=1) * _softmax(a, axis=0)
        p = np.maximum(p - MEDIANS * np.median(p, axis=1, keepdims=True), 0)
        p = np.maximum(p - MEDIANS * np.median(p, axis=0, keepdims=True), 0) ** 2
        total += p
        squares += float(np.square(p, dtype=np.float64).sum())
    mean = total.sum() / heads.size
    spread = np.sqrt(max(squares / heads.size - mean**2, 0.0))
    return (total / len(heads) - mean) / (spread or 1.0)


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cheapest path (rows, columns) from the first cell of `cost` [L, F] to the last:
    down, right or both.

    A row costs its running sum less what was summed up before it was entered from above.
    """
    # total[i + 1, j + 1] is the cost of the path to cell i, j
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
    """Return how well the attention [H, L, F] follows the lyrics, 0 to 1: coverage^2 *
    monotonicity^2 * confidence.

    Coverage is the share of sung tokens that stand out anywhere, monotonicity the share of
    neighbours that do not go back, confidence the mean energy along the path.
    """
    energy = np.mean(heads, axis=0, dtype=np.float32)
    energy = (energy - energy.min()) / ((energy.max() - energy.min()) or 1.0)
    rows, frames = warp(-(energy**2))
    sung = tokens >= 0
    if not sung.any():
        return 0.0
    coverage = float((energy[sung].max(axis=1) > LEAST_ENERGY).mean())
    weights = np.where(energy[sung] > CENTROID_ENERGY, energy[sung], 0.0)
    heard = weights.sum(axis=1) > 0
    centroids = (weights[heard] @ np.arange(energy.shape[1])) / weights[heard].sum(axis=1)
    monotonic = 1.0
    if len(centroids) > 1:
        monotonic = float((np.diff(centroids) >= -BACKWARD_FRAMES).mean())
    confidence = float(energy[rows, frames][sung[rows]].mean())
    return round(coverage**2 * monotonic**2 * confidence, 4)


def _softmax(a: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def lrc(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the lines as an LRC file: "[mm:ss.xx]text"."""
    return "".join(
        "[{:02.0f}:{:05.2f}]{}\n".format(*divmod(line["start"], 60), line["text"]) for line in lines
    )
