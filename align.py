"""Where in the song each line is sung, read off the song model's own attention.

A few cross-attention heads of the first eight layers follow the singing (upstream's `lyric_alignment_layers_config`).
`attention` runs one forward pass over a finished song and keeps what these heads look at; `timed_lines` finds the best
way from the first token at the first frame to the last at the last (dynamic time warping) and reads the times of the
lines off it; `score` says how far that way can be trusted. Formulas: upstream's LRC code (reference, section 5). `run`
does all of it for a request, inside the GPU entry point.

Shapes: H heads, L lyric tokens, F frames of the transformer (12.5 a second), T latent frames (25 a second).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import audio
import codec
import conditions
import loras
import sampling
from conditions import COVER, TEXT2MUSIC
from events import Done, Job, Progress, StudioError
from jobs import record_of, timed
from limits import MAX_LYRIC_TOKENS, QUALITY_STEPS, SAMPLE_RATE
from memory import Placing
from models import Models
from params import AlignRequest
from weights import Weights, read_json

if TYPE_CHECKING:
    import torch

# Layer -> heads that follow the lyrics, by (layers, heads a layer) of the transformer: the 2B models' and the XL ones'.
KNOWN_HEADS = {
    (24, 16): {2: (6,), 3: (10, 11), 4: (3,), 5: (8, 9), 6: (8,)},
    (32, 32): {3: (18, 27), 4: (22,), 5: (5, 6, 7), 6: (2, 12, 13), 7: (20, 21)},
}
CONFIG_KEY = "lyric_alignment_layers_config"
# Attention counts where it stands out from its token's and its frame's median this many times over.
MEDIANS = 2.0
LEAST_ENERGY = 0.1
CENTROID_ENERGY = 0.01
BACKWARD_FRAMES = 9

Heads = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Line:
    """One sung line, from `start` to `end` in seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Token:
    """One lyric token: the number of its line (from 0) and whether it is sung; tags and line breaks are not."""

    line: int
    sung: bool


class _Enough(Exception):
    """Ends a forward pass once the last head that counts was heard."""


# --- a request ----------------------------------------------------------------------------------------------------


def support(weights: Weights) -> dict[str, Any]:
    """Tell whether the lines of a song can be timed with this checkpoint, and if not, why."""
    if weights.folder is None:
        reason = "The song model is not on this machine yet."
    elif _heads_of(weights):
        reason = ""
    else:
        reason = "This checkpoint has no attention heads that are known to follow the lyrics."
    return {"available": not reason, "reason": reason}


def run(models: Models, placing: Placing, job: Job) -> Iterator[Progress | Done]:
    """Time the lines of the finished song of `job`; the record of `Done` has "lines", "lrc" and "score"."""
    seconds: dict[str, float] = {}
    if not models.loaded:
        yield Progress("loading")
    with timed(seconds, "loading"):
        placing.for_song()
        pipe, heads = models.pipeline(), _heads_of(models.weights)
        if not heads:
            raise StudioError("unsupported", support(models.weights)["reason"])
        # The heads are known of the checkpoint as it was trained.
        loras.reconcile(pipe, ())
    with timed(seconds, "aligning"):
        yield Progress("preparing")
        samples, tiles = audio.read_wav(job.audio["source"]), []
        for _, _, tile in codec.encode_samples(pipe, samples):
            tiles.append(tile)
            yield Progress("preparing")
        yield Progress("aligning")
        facts = _timed(pipe, heads, job.request, job.seeds, codec.join(tiles), samples.shape[1] / SAMPLE_RATE)
    yield Done((), record_of(models, job, models.weights, seconds, facts))


def _timed(
    pipe: Any, heads: Heads, request: AlignRequest, seeds: tuple[int, ...], clean: torch.Tensor, seconds: float
) -> dict[str, Any]:
    """Return what the record says of the times, for a song's latents `clean` [1, T, C] of `seconds`."""
    lyrics, steps = request.sung_lyrics(), request.steps or QUALITY_STEPS["standard"]
    # A planned song was made of its plan's audio codes, which no record holds; those of the song itself are as near.
    planned = request.planned and conditions.has_audio_codes(pipe)
    words = conditions.words_of(request, seconds, COVER if planned else TEXT2MUSIC)
    words = replace(words, prompt=conditions.fit_prompt(pipe, words)[0])
    where, tokens = lyric_slice(pipe, lyrics, request.language)
    context = conditions.cover_context(pipe, clean) if planned else conditions.silent_context(pipe, clean.shape[1])
    condition = conditions.encode_condition(pipe, words, context)
    noise = sampling.draw_noise(sampling.generators_for(seeds), clean.shape[1], clean.shape[2])
    found = attention(pipe, condition, clean, noise, 1 / steps, heads, where)
    lines = timed_lines(found, tokens, lyrics, seconds)
    return {"lines": [asdict(line) for line in lines], "lrc": lrc(lines), "score": score(found, tokens)}


def _heads_of(weights: Weights) -> Heads:
    """Return the heads of the checkpoint in a folder, from its transformer's config.json."""
    config = read_json(weights.folder / "transformer" / "config.json") if weights.folder else None
    return alignment_heads(config or {})


# --- the model's side ---------------------------------------------------------------------------------------------


def alignment_heads(config: Mapping[str, Any]) -> Heads:
    """Return the heads that follow the lyrics, a tuple a layer; empty where the checkpoint has none that are known.

    `config` is the transformer's config.json, which may name them; the official shapes have theirs in `KNOWN_HEADS`.
    """
    shape = config.get("num_hidden_layers"), config.get("num_attention_heads")
    named = config.get(CONFIG_KEY)
    if not isinstance(named, Mapping):
        return KNOWN_HEADS.get(shape, {})
    try:
        heads = {int(layer): tuple(int(head) for head in chosen) for layer, chosen in sorted(named.items())}
    except (TypeError, ValueError):
        return {}
    if not all(isinstance(size, int) for size in shape):
        return {}
    fits = all(0 <= layer < shape[0] and all(0 <= head < shape[1] for head in heads[layer]) for layer in heads)
    return {layer: chosen for layer, chosen in heads.items() if chosen} if fits else {}


def attention(
    pipe: Any,
    condition: conditions.Condition,
    latents: torch.Tensor,
    noise: torch.Tensor,
    t: float,
    heads: Heads,
    tokens: slice,
) -> np.ndarray:
    """Return the attention [H, L, F] of `heads` to the condition's `tokens` for a song's `latents` [1, T, C].

    The latents are made noisy up to time `t` with `noise`, as they were before the last step (t = 1 / steps). One pass
    without guidance, which ends after the last layer that counts.
    """
    import torch

    found: list[np.ndarray] = []
    last = max(heads)

    def listener(layer: int):
        def listen(module, inputs, named):
            states, encoded = named["hidden_states"], named["encoder_hidden_states"]
            for head in heads[layer]:
                found.append(_attend(module, states, encoded, head)[:, tokens].T.half().cpu().numpy())
            if layer == last:
                raise _Enough

        return listen

    hooks = [
        pipe.transformer.layers[layer].cross_attn.register_forward_pre_hook(listener(layer), with_kwargs=True)
        for layer in heads
    ]
    dtype, device = pipe.transformer.dtype, pipe._execution_device
    noisy = sampling.noised(latents.to(device), noise, t).to(dtype)
    time = t * torch.ones((1,), device=device, dtype=dtype)
    try:
        with torch.no_grad():
            pipe.transformer(
                hidden_states=noisy,
                timestep=time,
                timestep_r=time,
                encoder_hidden_states=condition.states,
                context_latents=condition.context,
                return_dict=False,
            )
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack(found)


def _attend(module: Any, states: torch.Tensor, encoded: torch.Tensor, head: int) -> torch.Tensor:
    """Return one head's attention [F, all condition tokens]; cross-attention has neither mask nor positions."""
    size, shared = module.head_dim, module.heads // module.kv_heads
    query = module.norm_q(module.to_q(states[0]).unflatten(-1, (module.heads, size))[:, head])
    key = module.norm_k(module.to_k(encoded[0]).unflatten(-1, (module.kv_heads, size))[:, head // shared])
    return (query.float() @ key.float().T * module.scaling).softmax(dim=-1)


def lyric_slice(pipe: Any, lyrics: str, language: str) -> tuple[slice, list[Token]]:
    """Return where the lyrics' own tokens stand in the condition, and what each of them is.

    The condition begins with the rendered lyrics, cut to 2,048 tokens. Their headers and the end mark are left out.
    """
    _, text = pipe._format_prompt(prompt="", lyrics=lyrics, vocal_language=language)
    spans = pipe.tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=MAX_LYRIC_TOKENS)
    begin = text.index(lyrics, text.index("# Lyric\n")) if lyrics else len(text)
    inside = [i for i, (start, end) in enumerate(spans.offset_mapping) if end > begin and start < begin + len(lyrics)]
    if not inside:
        return slice(0, 0), []
    kinds = _kinds(lyrics)
    chosen = slice(inside[0], inside[-1] + 1)
    spans = [(max(start - begin, 0), end - begin) for start, end in spans.offset_mapping[chosen]]
    return chosen, [_token(kinds, start, min(end, len(lyrics))) for start, end in spans]


def _kinds(lyrics: str) -> list[Token]:
    """Return for each character of the lyrics its line and whether it is sung."""
    kinds = []
    for number, line in enumerate(lyrics.split("\n")):
        hushed = {i for tag in re.finditer(r"\[[^\]]*\]", line) for i in range(*tag.span())}
        kinds += [Token(number, i not in hushed and not c.isspace()) for i, c in enumerate(line)]
        kinds.append(Token(number, False))
    return kinds


def _token(kinds: Sequence[Token], start: int, end: int) -> Token:
    """Return what a token of these characters is: its first sung character decides, else its last one."""
    own = kinds[start:end] or kinds[start : start + 1]
    return next((kind for kind in own if kind.sung), own[-1])


# --- from attention to times --------------------------------------------------------------------------------------


def timed_lines(heads: np.ndarray, tokens: Sequence[Token], lyrics: str, seconds: float) -> tuple[Line, ...]:
    """Return the sung lines of `lyrics` with their times, from attention [H, L, F] over `seconds` of song."""
    rows, frames = warp(-sharpened(heads))
    first = np.full(len(tokens), -1)
    last = np.zeros(len(tokens), int)
    for row, frame in zip(rows, frames, strict=True):
        first[row] = frame if first[row] < 0 else first[row]
        last[row] = frame
    frame_seconds = seconds / heads.shape[2]
    lines = []
    for number, text in enumerate(lyrics.split("\n")):
        sung = [i for i, token in enumerate(tokens) if token.line == number and token.sung]
        text = re.sub(r"\[[^\]]*\]", " ", text)
        if sung and text.strip():
            end = min((last[sung[-1]] + 1) * frame_seconds, seconds)
            lines.append(Line(round(first[sung[0]] * frame_seconds, 2), round(float(end), 2), " ".join(text.split())))
    return tuple(lines)


def sharpened(heads: np.ndarray) -> np.ndarray:
    """Return one matrix [L, F] in which what stands out of the heads' attention [H, L, F] stands out clearly.

    Each head is normalised over frames and over tokens, what is not above twice its row's and its column's median is
    dropped, the rest squared; then a z-score over all heads and the mean over them.
    """
    total, squares = np.zeros(heads.shape[1:]), 0.0
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
    """Return the cheapest way (rows, columns) from the first cell of `cost` [L, F] to the last: down, right or both.

    Cells of one anti-diagonal do not depend on each other, so that each is one operation on an array.
    """
    rows, columns = cost.shape
    came = np.zeros((rows, columns), np.int8)  # 0 from both, 1 from above, 2 from the left
    before = np.full(rows + 1, np.inf)  # before[i + 1] is row i of the anti-diagonal before; before[0] stays infinite
    twice = before.copy()
    for d in range(rows + columns - 1):
        low, high = max(0, d - columns + 1), min(rows, d + 1)
        i = np.arange(low, high)
        options = np.stack([twice[low:high], before[low:high], before[low + 1 : high + 1]])
        if d == 0:
            options[0] = 0.0
        choice = options.argmin(axis=0)
        came[i, d - i] = choice
        twice, now = before, np.full(rows + 1, np.inf)
        now[low + 1 : high + 1] = cost[i, d - i] + options.min(axis=0)
        before = now
    path = list(_way_back(came))[::-1]
    return np.array([row for row, _ in path]), np.array([column for _, column in path])


def _way_back(came: np.ndarray) -> Iterator[tuple[int, int]]:
    row, column = came.shape[0] - 1, came.shape[1] - 1
    while True:
        yield row, column
        if row == column == 0:
            return
        step = came[row, column]
        row, column = row - (step != 2), column - (step != 1)


def score(heads: np.ndarray, tokens: Sequence[Token]) -> float:
    """Return how far the attention [H, L, F] follows the lyrics, from 0 to 1: coverage^2 * monotonicity^2 * confidence.

    Coverage is the share of sung tokens that stand out anywhere, monotonicity the share of neighbours that do not go
    back, confidence the mean energy along the way.
    """
    energy = np.mean(heads, axis=0, dtype=np.float32)
    energy = (energy - energy.min()) / ((energy.max() - energy.min()) or 1.0)
    rows, frames = warp(-(energy**2))
    sung = np.array([token.sung for token in tokens], bool)
    if not sung.any():
        return 0.0
    coverage = float((energy[sung].max(axis=1) > LEAST_ENERGY).mean())
    weights = np.where(energy[sung] > CENTROID_ENERGY, energy[sung], 0.0)
    heard = weights.sum(axis=1) > 0
    centroids = (weights[heard] @ np.arange(energy.shape[1])) / weights[heard].sum(axis=1)
    monotonic = float((np.diff(centroids) >= -BACKWARD_FRAMES).mean()) if len(centroids) > 1 else 1.0
    on_way = sung[rows]
    confidence = float(energy[rows[on_way], frames[on_way]].mean())
    return round(min(max(coverage**2 * monotonic**2 * confidence, 0.0), 1.0), 4)


def _softmax(a: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(a - a.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


# --- as text ------------------------------------------------------------------------------------------------------


def lrc(lines: Sequence[Line]) -> str:
    """Return the lines as an LRC file: "[mm:ss.xx]text"."""
    return "".join(f"[{_clock(line.start)}]{line.text}\n" for line in lines)


def _clock(seconds: float) -> str:
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
