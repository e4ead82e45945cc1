"""What a request costs before anything runs: seconds on a card, bytes of working memory; and what
would cost less.

Seconds are those of an H200, in which ZeroGPU counts; on slower cards it gives more real time by
itself. Until they are measured (docs/performance.md), the constants are counted or assumed. Bytes
are counted tensor by tensor; which models lie on the device beside them is decided in
model_memory.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from limits import LIMITS, QUALITY_STEPS
from model_weights import Weights, transformer_config, vae_config
from models import Device, planner_dtype
from params import Settings

# --- seconds --------------------------------------------------------------------------------------

CONSTANTS = {
    "tflop_per_second": 390.0,  # TFLOP/s; assumed: 40 % of the 989 that an H200 has in bfloat16
    # s; assumed: 30 GB of packed weights at 2 GB/s, and 5 s for CUDA to start
    "cold_seconds": 20.0,
    # s per minute of source; assumed: half of decoding, whose FLOPs it has
    "encode_per_minute": 0.5,
    # s per minute and take; assumed from 29 TFLOP for 240 s, bound by memory
    "decode_per_minute": 1.0,
    "plan_tokens_per_second": 40.0,  # tokens/s; assumed: a 1.7B model step by step in transformers
    "plan_metadata_tokens": 200.0,  # tokens; the planner's budget for metadata
    "codes_per_second": 5.0,  # tokens per second of music; the planner's 5 Hz codes
    "sketch_tokens": 1_500.0,  # tokens; assumed: metadata and the lyrics of a long song
    "songwriter_tokens_per_second": 25.0,  # tokens/s; assumed: a 7B model step by step in transformers
    "margin": 1.5,  # x; assumed: real over counted; shared cards, first kernels
}
COUNTED = dict(CONSTANTS)
# How far a measured constant may be from the counted one: what lies beyond was disturbed.
MOST_TIMES_COUNTED = 20.0


def use_measured(found: Mapping[str, float]) -> None:
    """Use constants that selfcheck.py has measured on this machine in place of counted ones."""
    for name, value in found.items():
        counted = COUNTED.get(name)
        if counted is None or not isinstance(value, int | float) or not value > 0:
            continue
        if counted / MOST_TIMES_COUNTED <= value <= counted * MOST_TIMES_COUNTED:
            CONSTANTS[name] = float(value)


# Seconds of music -> TFLOP of one forward pass: counted on XL's configuration with 600 condition
# tokens.
FORWARD_TFLOP = {0: 0.0, 30: 3.33, 60: 6.59, 120: 13.6, 240: 29.3, 600: 90.6}


@dataclass(frozen=True)
class Work:
    """The GPU work of a job, as far as it costs time; loading the weights onto the card is always added."""

    mode: str
    duration: float = 0.0  # seconds to denoise
    steps: int = 0
    takes: int = 1
    guidance: float = 1.0
    planner: bool = False  # whether the song is planned first
    tokens: int = 0  # the most that a language model may write for a text
    source: float = 0.0  # seconds of uploads to encode
    passes: float = 1.0  # forward passes per step; guidance doubles them


def work_of(
    request: Any, settings: Settings | None, *, source: float = 0.0, planner: bool = False
) -> Work:
    """Return the work of any request, with the settings of a song.

    `source` are the seconds of its source, `planner` says whether there is a planner.
    """
    if request.mode == "align":
        return Work("align", duration=source, steps=1, source=source)  # one forward pass
    options = getattr(request, "options", None)
    if not hasattr(request, "takes"):
        tokens = getattr(options, "max_tokens", int(CONSTANTS["sketch_tokens"]))
        return Work(request.mode, source=source, tokens=tokens)
    assert settings is not None, request.mode
    return Work(
        mode=request.mode,
        duration=request.song_seconds(source),
        steps=settings.steps,
        takes=request.songs,
        guidance=settings.guidance,
        planner=planner and getattr(options, "plan", False),
        source=source,
        passes=_passes(request),
    )


def _passes(request: Any) -> float:
    if getattr(request, "action", "") != "morph":
        return 1.0
    # Every averaged draw runs source and target, later steps the target alone.
    options = request.options
    return (options.n_max - options.n_min) * 2 * options.n_avg + (1 - options.n_max)


def seconds_needed(work: Work) -> float:
    """Return the seconds of a card, with all that is needed where nothing has been learned yet."""
    return CONSTANTS["cold_seconds"] + CONSTANTS["margin"] * seconds_of_work(work)


def seconds_of_work(work: Work) -> float:
    """Return the seconds that the work itself should take, without a start and without a margin."""
    rows = 2 if work.guidance > 1 else 1
    forwards = work.steps * work.passes * work.takes * rows
    seconds = forwards * forward_tflop(work.duration) / CONSTANTS["tflop_per_second"]
    seconds += work.takes * work.duration / 60 * CONSTANTS["decode_per_minute"]
    seconds += work.source / 60 * CONSTANTS["encode_per_minute"]
    if work.planner:
        tokens = CONSTANTS["plan_metadata_tokens"] + work.duration * CONSTANTS["codes_per_second"]
        seconds += tokens / CONSTANTS["plan_tokens_per_second"]
    model = "songwriter" if work.mode == "lyrics" else "plan"
    seconds += work.tokens / CONSTANTS[f"{model}_tokens_per_second"]
    return seconds


def forward_tflop(duration: float) -> float:
    """Return the TFLOP of a forward pass over so many seconds of music."""
    return float(np.interp(duration, list(FORWARD_TFLOP), list(FORWARD_TFLOP.values())))


# --- what earlier jobs took ------------------------------------------------------------------------

REMEMBERED_JOBS = 40  # of each mode
LEAST_JOBS = (
    3  # before they count alone; until then the jobs of all modes tell how fast the card is
)
# A job's seconds are a start and a multiple of the estimate; both are bounded, because a stuck card
# teaches nothing.
MOST_START_SECONDS = 90.0
LEAST_RATIO = 0.2
MOST_RATIO = 5.0
# Over the fitted seconds: always, for each deviation of the jobs so far, and at most.
SPARE = 0.06
SPARE_DEVIATIONS = 3.0
LEAST_SPARE = 1.12
MOST_SPARE = 1.5
# As much more for a single job, and the n-th part of it for n: few jobs say little of the next.
SPARE_OF_ONE = 0.3
SPARE_OF_OTHERS = 0.1  # where those of other modes have to tell


class Experience:
    """What jobs took on the card, beside what they should have taken, by mode."""

    def __init__(self) -> None:
        self._jobs: dict[str, deque[tuple[float, float]]] = {}

    def learn(self, work: Work, used: float) -> None:
        """Remember a job that used so many seconds."""
        jobs = self._jobs.setdefault(work.mode, deque(maxlen=REMEMBERED_JOBS))
        jobs.append((seconds_of_work(work), used))

    def knows(self, work: Work) -> bool:
        return len(self._jobs.get(work.mode, ())) >= LEAST_JOBS

    def seconds(self, work: Work) -> float:
        """Return the seconds to ask for: as few as is safe once there are jobs to learn from.

        Of the first few jobs of all, only that more is needed than was assumed is believed.
        """
        known = [*self._jobs.get(work.mode, ())]
        spare_of_others = 0.0
        if len(known) < LEAST_JOBS:
            known = [job for jobs in self._jobs.values() for job in jobs]
            spare_of_others = SPARE_OF_OTHERS
        if not known:
            return seconds_needed(work)
        learned = self._fitted(work, known, spare_of_others)
        if len(known) < LEAST_JOBS:
            return max(learned, seconds_needed(work))
        return learned

    def _fitted(self, work: Work, known: list[tuple[float, float]], more_spare: float) -> float:
        jobs = np.array([(0.0, CONSTANTS["cold_seconds"]), *known])
        start, ratio = _fit(jobs)
        expected = start + ratio * jobs[1:, 0]
        deviation = float(np.std(jobs[1:, 1] / expected))
        spare = 1 + SPARE + SPARE_DEVIATIONS * deviation + SPARE_OF_ONE / len(known) + more_spare
        spare = min(max(spare, LEAST_SPARE), MOST_SPARE)
        return spare * (start + ratio * seconds_of_work(work))


def _fit(jobs: np.ndarray) -> tuple[float, float]:
    """Return the start and the ratio that fit `jobs` [n, 2] best, relative to what they took.

    The first is the assumed start alone: it decides where all jobs have one length.
    """
    weights = 1 / np.maximum(jobs[:, 1], 1.0)
    weights[0] *= 0.1
    table = np.stack([weights, weights * jobs[:, 0]], axis=1)
    (start, ratio), *_ = np.linalg.lstsq(table, weights * jobs[:, 1], rcond=None)
    bounded = min(max(float(ratio), LEAST_RATIO), MOST_RATIO)
    if bounded != ratio:
        start = np.mean(jobs[1:, 1] - bounded * jobs[1:, 0])
    return min(max(float(start), 0.0), MOST_START_SECONDS), bounded


# --- bytes ----------------------------------------------------------------------------------------

TOKENS_PER_SECOND = 12.5
# The longest condition: lyrics, timbre and prompt.
CONDITION_TOKENS = 2_305
# What the VAE takes at a time, by diffusers' AutoencoderOobleck, and how many tensors as wide as its
# outermost layers lie in memory at once: two residual units' inputs and what a Snake needs.
# tests/engine/test_memory_plans.py counts them at the real shapes.
ENCODED_SAMPLES = 30 * 48_000
DECODED_FRAMES = 512
ENCODING_TENSORS = 5.0
DECODING_TENSORS = 5.2
# A token in the planner's cache: 28 layers of 8 heads of 128, keys and values.
PLANNER_TOKEN_NUMBERS = 28 * 8 * 128 * 2
PLANNER_PROMPT_TOKENS = 1_000
# The transformer's widths and depths, for checkpoints that are not here yet.
XL = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 32,
    "audio_acoustic_hidden_dim": 64,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
# The VAE's, from its config.json.
XL_VAE = {
    "encoder_hidden_size": 128,
    "decoder_channels": 128,
    "downsampling_ratios": [2, 4, 4, 6, 10],
}


@dataclass(frozen=True)
class Song:
    """What a song's working memory depends on; `config` is the transformer's, `vae` the VAE's.

    The numbers of transformer, VAE and planner have 2 or 4 bytes. Every layer keeps the keys and
    values of `condition` tokens for all steps, a morph those of two `conditions`.
    """

    duration: float
    takes: int = 1
    guided: bool = True
    config: Mapping[str, Any] = field(default_factory=XL.copy)
    vae: Mapping[str, Any] = field(default_factory=XL_VAE.copy)
    number_bytes: int = 2
    vae_number_bytes: int = 2
    planner_number_bytes: int = 2
    condition: int = CONDITION_TOKENS
    conditions: int = 1


def song_of(
    weights: Weights, device: Device, duration: float, takes: int = 1, guided: bool = True
) -> Song:
    return Song(
        duration,
        takes,
        guided,
        config={**XL, **transformer_config(weights)},
        vae={**XL_VAE, **vae_config(weights)},
        number_bytes=bytes_a_number(device.dtype),
        vae_number_bytes=bytes_a_number(device.vae_dtype),
        planner_number_bytes=bytes_a_number(planner_dtype(device)),
    )


def bytes_a_number(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def song_bytes(song: Song) -> int:
    """Return the loop's working memory, counted by tensor; attention in windows adds nothing quadratic."""
    config = song.config
    hidden = config["hidden_size"]
    queries = config["head_dim"] * config["num_attention_heads"]
    keys = config["head_dim"] * config["num_key_value_heads"]
    # The peak is in the feed-forward part or in the attention in windows, with the layer's input
    # and residual.
    feed_forward = 3 * hidden + 2 * config["intermediate_size"]
    attention = 2 * hidden + 3 * queries + 8 * keys
    token = max(feed_forward, attention) + 7 * config["audio_acoustic_hidden_dim"]
    rows = song.takes * (2 if song.guided else 1)
    kept = 2 * config["num_hidden_layers"] * keys * song.condition * song.conditions
    return int(song.number_bytes * (rows * TOKENS_PER_SECOND * song.duration * token + kept))


def coding_bytes(song: Song) -> int:
    """Return the VAE's working memory for a tile: its outermost layers have by far the largest tensors."""
    encoding = ENCODED_SAMPLES * song.vae["encoder_hidden_size"] * ENCODING_TENSORS
    decoded = DECODED_FRAMES * math.prod(song.vae["downsampling_ratios"])
    decoding = decoded * song.vae["decoder_channels"] * DECODING_TENSORS
    return int(max(encoding, decoding) * song.vae_number_bytes)


def planner_bytes(song: Song | None) -> int:
    """Return the planner's cache for a song: two rows per take, since plans are guided. None: one short text."""
    takes = song.takes if song else 1
    seconds = song.duration if song else 0.0
    number_bytes = song.planner_number_bytes if song else 4
    return int(
        2 * takes * (PLANNER_PROMPT_TOKENS + 5 * seconds) * PLANNER_TOKEN_NUMBERS * number_bytes
    )


# --- what would fit -------------------------------------------------------------------------------


def changes_that_fit(
    work: Work, most_seconds: float, needed: Callable[[Work], float] = seconds_needed
) -> list[str]:
    """Return the most takes, steps and seconds of music with which `work` would need `most_seconds`, each alone.

    `needed` returns the seconds that a work needs.
    """

    def fits(smaller: Work) -> bool:
        return needed(smaller) <= most_seconds

    least = min(QUALITY_STEPS["draft"], work.steps)
    steps = most(least, work.steps, lambda count: fits(replace(work, steps=count)))
    found = [fewer_takes(work, fits), f"{steps} steps" if steps else ""]
    if work.mode not in ("edit", "cover"):  # whose length the source decides
        if work.source:
            shortest = int(work.source) // 5 * 5 + 5
        else:
            shortest = int(LIMITS["duration"].low)
        found.append(shorter(work, fits, shortest))
    return [change for change in found if change]


def longest(
    work: Work, most_seconds: float, needed: Callable[[Work], float] = seconds_needed
) -> float:
    """Return the longest duration, in steps of 5 s up to that of `work`, with which at most
    `most_seconds` are `needed`.

    It is at least the shortest song.
    """
    shortest = int(LIMITS["duration"].low)

    def fits(fives: int) -> bool:
        return needed(replace(work, duration=fives * 5.0)) <= most_seconds

    return max(most(shortest // 5, int(work.duration // 5), fits) * 5.0, float(shortest))


def smaller(song: Song, fits: Callable[[Song], bool]) -> str:
    """Return the most takes and the longest duration that fit: "2 takes, or with 30 seconds of music", or ""."""
    found = [fewer_takes(song, fits), shorter(song, fits, int(LIMITS["duration"].low))]
    return ", or with ".join(change for change in found if change)


def fewer_takes(work: Any, fits: Callable[[Any], bool]) -> str:
    """Return the most takes with which `work` fits, such as "2 takes", or ""."""
    takes = most(1, work.takes, lambda count: fits(replace(work, takes=count)))
    if not takes:
        return ""
    if takes == 1:
        return "1 take"
    return f"{takes} takes"


def shorter(work: Any, fits: Callable[[Any], bool], shortest: int) -> str:
    """Return the longest duration in steps of 5 s, at least `shortest`, with which `work` fits, or ""."""
    fives = most(
        shortest // 5,
        int(work.duration // 5),
        lambda count: fits(replace(work, duration=count * 5.0)),
    )
    if fives:
        return f"{fives * 5} seconds of music"
    return ""


def most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number from `low` to `high` that fits, or 0."""
    return next((number for number in range(high, low - 1, -1) if fits(number)), 0)
