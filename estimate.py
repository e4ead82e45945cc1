"""What a request will cost, before anything runs: seconds on a card and bytes of working memory; and
which smaller request would fit.

ZeroGPU counts in seconds of an H200 and grants more real time on slower cards. Until the constants
are measured (docs/performance.md), they are counted or assumed. Bytes are counted tensor by tensor;
model_memory.py decides which models lie on the device beside them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from limits import CODES_PER_SECOND, LIMITS, QUALITY_STEPS
from model_weights import Weights, transformer_config, vae_config
from models import Device, planner_dtype
from params import OF_SONGWRITER, Settings

# --- seconds --------------------------------------------------------------------------------------

CONSTANTS = {
    # TFLOP/s; assumed: 40 % of the 989 that an H200 has in bfloat16
    "tflop_per_second": 390.0,
    # s; assumed: 30 GB of packed weights at 2 GB/s, and 5 s for CUDA to start
    "cold_seconds": 20.0,
    # s for a source of any length; assumed: its way to the card, and the first kernels
    "encode_seconds": 0.1,
    # s per minute of source; assumed: half of decoding, since it has half of its FLOPs
    "encode_per_minute": 0.5,
    # s per minute and take; assumed from 29 TFLOP for 240 s, limited by memory
    "decode_per_minute": 1.0,
    # tokens/s; assumed: a 1.7B model step by step in transformers
    "plan_tokens_per_second": 40.0,
    # tokens; the planner's budget for metadata
    "plan_metadata_tokens": 200.0,
    # tokens; assumed: metadata and the lyrics of a long song
    "sketch_tokens": 1_500.0,
    # tokens/s; assumed: a 7B model step by step in transformers
    "songwriter_tokens_per_second": 25.0,
    # real seconds over counted ones; assumed, for shared cards and first kernels
    "margin": 1.5,
}
COUNTED = dict(CONSTANTS)
# s per minute and take, without the card: encoding, tags, picture (docs/performance-notes.md)
SAVE_PER_MINUTE = 0.55
# A measured constant that is this many times the counted one, or its fraction, was disturbed.
MOST_TIMES_COUNTED = 20.0


def use_measured(found: Mapping[str, float]) -> None:
    """Replace counted constants with those that selfcheck.py has measured on this machine."""
    for name, value in found.items():
        counted = COUNTED.get(name)
        if counted is None or not isinstance(value, int | float) or not value > 0:
            continue
        if counted / MOST_TIMES_COUNTED <= value <= counted * MOST_TIMES_COUNTED:
            CONSTANTS[name] = float(value)


# Seconds of music -> TFLOP of one forward pass, counted for XL's configuration with 600 condition
# tokens.
FORWARD_TFLOP = {0: 0.0, 30: 3.33, 60: 6.59, 120: 13.6, 240: 29.3, 600: 90.6}


@dataclass(frozen=True)
class Work:
    """What decides how long a job takes on the GPU; loading the weights is always added."""

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
    """Return the work of any request; that of a song needs its `settings`.

    `source` is the length of its source in seconds, `planner` whether the studio has a planner.
    """
    if request.mode == "align":
        return Work("align", duration=source, steps=1, source=source)  # one forward pass
    options = getattr(request, "options", None)
    if not hasattr(request, "takes"):
        # Lyrics have a limit of their own; ideas and descriptions do not.
        tokens = getattr(request, "most_tokens", int(CONSTANTS["sketch_tokens"]))
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
    """Return the seconds of a card to ask for before any job has run: with a cold start and a margin."""
    return CONSTANTS["cold_seconds"] + CONSTANTS["margin"] * seconds_of_work(work)


def seconds_of_work(work: Work) -> float:
    """Return the seconds that the work itself should take, without a cold start or a margin."""
    return sum(seconds_by_stage(work).values())


def seconds_by_stage(work: Work) -> dict[str, float]:
    """Return the seconds that each stage on the card should take."""
    seconds = {}
    tokens = work.tokens / CONSTANTS["plan_tokens_per_second"]
    if work.mode in OF_SONGWRITER:
        tokens = work.tokens / CONSTANTS["songwriter_tokens_per_second"]
    seconds["writing"] = tokens
    if work.planner:
        planned = CONSTANTS["plan_metadata_tokens"] + work.duration * CODES_PER_SECOND
        seconds["planning"] = planned / CONSTANTS["plan_tokens_per_second"]
    if work.source:
        per_minute = work.source / 60 * CONSTANTS["encode_per_minute"]
        seconds["reading"] = CONSTANTS["encode_seconds"] + per_minute
    rows = 2 if work.guidance > 1 else 1
    forwards = work.steps * work.passes * work.takes * rows
    seconds["steps"] = forwards * forward_tflop(work.duration) / CONSTANTS["tflop_per_second"]
    seconds["decoding"] = work.takes * work.duration / 60 * CONSTANTS["decode_per_minute"]
    return seconds


def forward_tflop(duration: float) -> float:
    """Return the TFLOP of one forward pass over `duration` seconds of music."""
    return float(np.interp(duration, list(FORWARD_TFLOP), list(FORWARD_TFLOP.values())))


# How much longer the stages of a song take on the built-in engine than estimated for the real models; songs of half a
# minute to two on two cores, after the first one.
BUILT_IN_PACES = {"planning": 0.15, "steps": 5.0}


class Paces:
    """How much longer each stage of a song takes on this machine than estimated, as the latest songs showed."""

    def __init__(self) -> None:
        self._paces: dict[str, float] = {}

    def learn(self, work: Work, took: Mapping[str, float]) -> None:
        """Learn from the seconds that the stages of a song took, by the names of the record."""
        seconds = dict(took)
        seconds["decoding"] = seconds.get("decoding", 0.0) + seconds.get("scoring", 0.0)
        for stage, estimated in _by_stage_and_saving(work).items():
            if estimated > 0 and seconds.get(stage, 0.0) > 0:
                self._paces[stage] = seconds[stage] / estimated

    def seconds(self, work: Work, usual: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the seconds that each stage of a song should take here; `usual` are the paces of unseen stages."""
        paces = {**(usual or {}), **self._paces}
        estimated = _by_stage_and_saving(work)
        return {stage: each * paces.get(stage, 1.0) for stage, each in estimated.items()}


def _by_stage_and_saving(work: Work) -> dict[str, float]:
    saving = work.takes * work.duration / 60 * SAVE_PER_MINUTE
    return {**seconds_by_stage(work), "finishing": saving}


# --- what earlier jobs took ------------------------------------------------------------------------

REMEMBERED_JOBS = 40  # of each mode
# As many jobs of a mode count alone; until then, those of all modes say how fast the card is.
LEAST_JOBS = 3
# The seconds of a job are fitted as a start plus a ratio of the estimate. Both are bounded, because a
# stuck card teaches nothing.
MOST_START_SECONDS = 90.0
LEAST_RATIO = 0.2
MOST_RATIO = 5.0
# What is asked for over the fitted seconds, as a share of them: always,
SPARE = 0.06
# for each standard deviation of the jobs so far,
SPARE_DEVIATIONS = 3.0
# for a single job, and an n-th of it for n jobs, because few jobs say little about the next,
SPARE_OF_ONE = 0.3
# and while the jobs are of other modes.
SPARE_OF_OTHERS = 0.1
# The least and the most that is asked for, as multiples of the fitted seconds.
LEAST_SPARE = 1.12
MOST_SPARE = 1.5


class Experience:
    """The seconds that jobs of each mode took on the card, beside those that were estimated."""

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

        The first few jobs can only raise the estimate.
        """
        jobs = list(self._jobs.get(work.mode, ()))
        more_spare = 0.0
        if len(jobs) < LEAST_JOBS:
            jobs = [job for jobs_of_mode in self._jobs.values() for job in jobs_of_mode]
            more_spare = SPARE_OF_OTHERS
        if not jobs:
            return seconds_needed(work)
        learned = self._fitted(work, jobs, more_spare)
        if len(jobs) < LEAST_JOBS:
            return max(learned, seconds_needed(work))
        return learned

    def _fitted(self, work: Work, jobs: list[tuple[float, float]], more_spare: float) -> float:
        table = np.array([(0.0, CONSTANTS["cold_seconds"]), *jobs])
        start, ratio = _fit(table)
        expected = start + ratio * table[1:, 0]
        deviation = float(np.std(table[1:, 1] / expected))
        spare = 1 + SPARE + SPARE_DEVIATIONS * deviation + SPARE_OF_ONE / len(jobs) + more_spare
        spare = min(max(spare, LEAST_SPARE), MOST_SPARE)
        return spare * (start + ratio * seconds_of_work(work))


def _fit(jobs: np.ndarray) -> tuple[float, float]:
    """Return the start and the ratio that fit `jobs` best, by relative error.

    `jobs` [n, 2] has estimated and real seconds. The first row is the assumed start alone, which
    decides if all jobs are equally long.
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
# The tiles of diffusers' AutoencoderOobleck.
ENCODED_SAMPLES = 30 * 48_000
DECODED_FRAMES = 512
# How many tensors as wide as the VAE's outermost layers lie in memory at once: the inputs of two
# residual units, and what a Snake needs. tests/engine/test_memory_plans.py counts them at the real
# shapes.
ENCODING_TENSORS = 5.0
DECODING_TENSORS = 5.2
# The numbers of a token in the planner's cache: keys and values of 28 layers with 8 heads of 128.
PLANNER_TOKEN_NUMBERS = 28 * 8 * 128 * 2
PLANNER_PROMPT_TOKENS = 1_000
# XL's widths and depth, for checkpoints that are not on this machine yet.
XL = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 32,
    "audio_acoustic_hidden_dim": 64,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "in_channels": 192,
    "patch_size": 2,
}
# The same of its VAE.
XL_VAE = {
    "encoder_hidden_size": 128,
    "decoder_channels": 128,
    "downsampling_ratios": [2, 4, 4, 6, 10],
}


@dataclass(frozen=True)
class SongSize:
    """What the working memory of a song depends on."""

    duration: float  # seconds
    takes: int = 1
    guided: bool = True
    config: Mapping[str, Any] = field(default_factory=XL.copy)  # of the transformer
    vae: Mapping[str, Any] = field(default_factory=XL_VAE.copy)
    number_bytes: int = 2  # of a number in the transformer, 2 or 4
    vae_number_bytes: int = 2
    planner_number_bytes: int = 2
    condition: int = CONDITION_TOKENS  # whose keys and values each layer keeps for all steps
    conditions: int = 1  # a morph has two


def song_of(
    weights: Weights, device: Device, duration: float, takes: int = 1, guided: bool = True
) -> SongSize:
    return SongSize(
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


def song_bytes(song: SongSize) -> int:
    """Return the bytes that the loop works in, counted by tensor; attention in windows adds nothing quadratic."""
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


def coding_bytes(song: SongSize) -> int:
    """Return the bytes that the VAE works in for a tile, nearly all of them in its outermost layers."""
    encoding = ENCODED_SAMPLES * song.vae["encoder_hidden_size"] * ENCODING_TENSORS
    decoded = DECODED_FRAMES * math.prod(song.vae["downsampling_ratios"])
    decoding = decoded * song.vae["decoder_channels"] * DECODING_TENSORS
    return int(max(encoding, decoding) * song.vae_number_bytes)


def bytes_beyond_8_bits(config: Mapping[str, Any], number_bytes: int) -> int:
    """Return the bytes of a transformer that is stored in 8 bits, beyond one for each of its numbers.

    They are the scales of the linear layers' rows, and what stays `number_bytes` wide.
    """
    hidden = config["hidden_size"]
    layers = config["num_hidden_layers"]
    queries = config["head_dim"] * config["num_attention_heads"]
    keys = config["head_dim"] * config["num_key_value_heads"]
    attention = queries + 2 * keys + hidden
    feed_forward = 2 * config["intermediate_size"] + hidden
    # Beside the layers, two embeddings of the time, of 8 rows by hidden size, and one of the condition.
    rows = layers * (2 * attention + feed_forward) + 17 * hidden
    # Three norms and a table of six rows in each layer, and the norms of queries and keys.
    wide = layers * (9 * hidden + 4 * config["head_dim"])
    # A table of two rows and a norm; the biases of the embeddings and of the first convolution.
    wide += 3 * hidden + 18 * hidden
    channels = config["audio_acoustic_hidden_dim"]
    wide += config["patch_size"] * hidden * (config["in_channels"] + channels) + channels
    return rows * number_bytes + wide * (number_bytes - 1)


def planner_bytes(song: SongSize | None) -> int:
    """Return the bytes of the planner's cache: two rows for each take, because plans are guided.

    None stands for a short text in float32.
    """
    if song is None:
        return 2 * PLANNER_PROMPT_TOKENS * PLANNER_TOKEN_NUMBERS * 4
    tokens = PLANNER_PROMPT_TOKENS + CODES_PER_SECOND * song.duration
    rows = 2 * song.takes
    return int(rows * tokens * PLANNER_TOKEN_NUMBERS * song.planner_number_bytes)


# --- what would fit -------------------------------------------------------------------------------


def changes_that_fit(
    work: Work, most_seconds: float, needed: Callable[[Work], float] = seconds_needed
) -> list[str]:
    """Return changes with each of which, alone, `work` would need at most `most_seconds`.

    They are fewer takes, fewer steps, less music. `needed` returns the seconds that a work needs.
    """

    def fits(smaller: Work) -> bool:
        return needed(smaller) <= most_seconds

    changes = [fewer_takes(work, fits), fewer_steps(work, fits)]
    is_as_long_as_its_source = work.mode in ("edit", "cover")
    if not is_as_long_as_its_source:
        shortest = int(LIMITS["duration"].low)
        if work.source:
            shortest = (int(work.source) // 5 + 1) * 5
        changes.append(shorter(work, fits, shortest))
    return [change for change in changes if change]


def longest(
    work: Work, most_seconds: float, needed: Callable[[Work], float] = seconds_needed
) -> float:
    """Return the longest duration with which `work` needs at most `most_seconds`, in steps of 5 s.

    It is at most that of `work`, and at least that of the shortest song.
    """
    shortest = int(LIMITS["duration"].low)

    def fits(fives: int) -> bool:
        return needed(replace(work, duration=fives * 5.0)) <= most_seconds

    fives = largest_that_fits(shortest // 5, int(work.duration // 5), fits)
    return max(fives * 5.0, float(shortest))


def smaller(song: SongSize, fits: Callable[[SongSize], bool]) -> str:
    """Return the most takes and the longest duration that fit: "2 takes, or with 30 seconds of music", or ""."""
    changes = [fewer_takes(song, fits), shorter(song, fits, int(LIMITS["duration"].low))]
    return ", or with ".join(change for change in changes if change)


def fewer_takes(work: Any, fits: Callable[[Any], bool]) -> str:
    """Return the most takes with which `work` fits, such as "2 takes", or ""."""
    takes = largest_that_fits(1, work.takes, lambda count: fits(replace(work, takes=count)))
    if not takes:
        return ""
    if takes == 1:
        return "1 take"
    return f"{takes} takes"


def fewer_steps(work: Work, fits: Callable[[Work], bool]) -> str:
    """Return the most steps, at least those of a draft, with which `work` fits, or ""."""
    least = min(QUALITY_STEPS["draft"], work.steps)
    steps = largest_that_fits(least, work.steps, lambda count: fits(replace(work, steps=count)))
    if steps:
        return f"{steps} steps"
    return ""


def shorter(work: Any, fits: Callable[[Any], bool], shortest: int) -> str:
    """Return the longest duration in steps of 5 s, at least `shortest`, with which `work` fits, or ""."""
    fives = largest_that_fits(
        shortest // 5,
        int(work.duration // 5),
        lambda count: fits(replace(work, duration=count * 5.0)),
    )
    if fives:
        return f"{fives * 5} seconds of music"
    return ""


def largest_that_fits(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number from `low` to `high` that fits, or 0."""
    for number in range(high, low - 1, -1):
        if fits(number):
            return number
    return 0
