"""How long a job takes on the GPU, before it runs: the seconds that ZeroGPU is asked for, and what fits into a call.

Everybody asks here: the call itself, the page before the click, and the record. Counted and estimated, not measured;
each number stands in one table with its origin, to be replaced by a measurement (docs/performance.md). Seconds are
those of an H200, in which ZeroGPU counts; it gives slower cards more real time by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from events import Problem
from limits import LIMITS, QUALITY_STEPS
from params import sampling_settings

LEAST_SECONDS, MOST_SECONDS = 60, 300
"""What is asked for at least, so that a busy card does not cut a short job off, and at most."""


class Constant(NamedTuple):
    """A number with its unit and where it comes from."""

    value: float
    unit: str
    origin: str


CONSTANTS = {
    "tflop_per_second": Constant(390.0, "TFLOP/s", "assumed: 40 % of the 989 that an H200 has in bfloat16"),
    "cold_seconds": Constant(20.0, "s", "assumed: 30 GB of packed weights at 2 GB/s, and 5 s for CUDA to start"),
    "encode_per_minute": Constant(0.5, "s per minute of source", "assumed: half of decoding, whose FLOPs it has"),
    "decode_per_minute": Constant(1.0, "s per minute and take", "assumed from 29 TFLOP for 240 s, bound by memory"),
    "plan_tokens_per_second": Constant(40.0, "tokens/s", "assumed: a 1.7B model step by step in transformers"),
    "plan_metadata_tokens": Constant(200.0, "tokens", "room that the planner has for its metadata"),
    "codes_per_second": Constant(5.0, "tokens per second of music", "the planner's 5 Hz codes"),
    "sketch_tokens": Constant(1_500.0, "tokens", "assumed: metadata and the lyrics of a long song"),
    "writer_tokens_per_second": Constant(25.0, "tokens/s", "assumed: a 7B model step by step in transformers"),
    "margin": Constant(1.5, "x", "assumed: real over counted; shared cards, first kernels"),
}
FORWARD_TFLOP = ((0, 0.0), (30, 3.33), (60, 6.59), (120, 13.6), (240, 29.3), (600, 90.6))
"""Seconds of music -> TFLOP of one forward pass: counted on XL's configuration with 600 condition tokens."""


@dataclass(frozen=True)
class Work:
    """What a job does on the GPU, as far as it costs time.

    `duration` in seconds is the whole length that is denoised, `source` that of the uploads that are read. A step is
    `passes` forward passes, twice as many with guidance. `planner` tells whether the song is planned, `tokens` how many
    a language model may write for a text, `cold` whether the weights have to come onto the card first.
    """

    mode: str
    duration: float = 0.0
    steps: int = 0
    takes: int = 1
    guidance: float = 1.0
    planner: bool = False
    tokens: int = 0
    source: float = 0.0
    passes: float = 1.0
    cold: bool = True


def work_of(
    request: Any, *, turbo: bool = False, source: float = 0.0, planner: bool = False, cold: bool = True
) -> Work:
    """Return the work of any request; `source` is the length of its source in seconds, `planner` whether one is here.

    Before there is a source, a mode that needs one is counted without it.
    """
    if not hasattr(request, "takes"):
        tokens = getattr(getattr(request, "options", None), "max_tokens", int(_of("sketch_tokens")))
        return Work(request.mode, source=source, tokens=tokens, cold=cold)
    settings, _ = sampling_settings(request, turbo)
    options, passes = request.options, 1.0
    if getattr(request, "action", "") == "morph":
        # Source and target both run in every averaged draw; after it the target alone.
        passes = (options.n_max - options.n_min) * 2 * options.n_avg + (1 - options.n_max)
    length = source + getattr(request, "before", 0) + getattr(request, "after", 0)
    return Work(
        mode=request.mode,
        duration=getattr(request, "duration", length),
        steps=settings.steps,
        takes=request.takes,
        guidance=settings.guidance,
        planner=planner and getattr(options, "plan", False),
        source=source,
        passes=passes,
        cold=cold,
    )


def seconds_needed(work: Work) -> float:
    """Return the seconds that `work` takes, as counted, without any bounds."""
    minutes = work.duration / 60
    forwards = work.steps * work.passes * work.takes * (2 if work.guidance > 1 else 1)
    seconds = forwards * forward_tflop(work.duration) / _of("tflop_per_second")
    seconds += work.takes * minutes * _of("decode_per_minute")
    seconds += work.source / 60 * _of("encode_per_minute")
    if work.planner:
        tokens = _of("plan_metadata_tokens") + work.duration * _of("codes_per_second")
        seconds += tokens / _of("plan_tokens_per_second")
    if work.tokens:
        writer = "writer_tokens_per_second" if work.mode == "lyrics" else "plan_tokens_per_second"
        seconds += work.tokens / _of(writer)
    return (_of("cold_seconds") if work.cold else 0.0) + _of("margin") * seconds


def gpu_seconds(work: Work, multiplier: float = 1.0) -> int:
    """Return the seconds to ask for: whole, from 60 to 300. A second try multiplies what the first one asked for."""
    first = clamped(seconds_needed(work))
    return first if multiplier == 1 else clamped(first * multiplier)


def clamped(seconds: float) -> int:
    """Return `seconds` as a plain int from 60 to 300: ZeroGPU takes no numpy number and wraps a negative one around."""
    return int(min(max(float(seconds), LEAST_SECONDS), MOST_SECONDS))


def refusal(work: Work) -> Problem | None:
    """Say why `work` cannot be done in one call, and what would fit; None where it can."""
    needed = seconds_needed(work)
    if needed <= MOST_SECONDS:
        return None
    return Problem(
        "too_much_gpu_time",
        f"This would take about {needed:,.0f} seconds of GPU time; one call gets up to {MOST_SECONDS}.",
        hint=_what_fits(work),
    )


def forward_tflop(duration: float) -> float:
    """Return the TFLOP of one forward pass for `duration` seconds of music, linear between the counted lengths."""
    lengths = [length for length, _ in FORWARD_TFLOP]
    right = min(max(bisect_left(lengths, duration), 1), len(lengths) - 1)
    (x0, y0), (x1, y1) = FORWARD_TFLOP[right - 1], FORWARD_TFLOP[right]
    return y0 + (y1 - y0) * (duration - x0) / (x1 - x0)


# --- what would fit -----------------------------------------------------------------------------------------------


def _what_fits(work: Work) -> str:
    """Return a sentence with the most takes, steps or seconds that fit, each by itself; together where none does."""
    ways = [_takes(work), _steps(work), _length(work)]
    ways = [way for way in ways if way]
    if not ways and work.takes > 1:
        one = replace(work, takes=1)
        ways = [f"1 take and {way}" for way in (_steps(one), _length(one)) if way]
    if not ways:
        return "Use fewer steps, fewer morph averages or a shorter source."
    return f"It fits with {', or with '.join(ways)}."


def _takes(work: Work) -> str:
    most = _most(1, work.takes, lambda count: replace(work, takes=count))
    return f"{most} take{'s' if most > 1 else ''}" if most else ""


def _steps(work: Work) -> str:
    """Fewer steps, but not below those of a draft."""
    most = _most(min(QUALITY_STEPS["draft"], work.steps), work.steps, lambda count: replace(work, steps=count))
    return f"{most} steps" if most else ""


def _length(work: Work) -> str:
    """A length in steps of 5 seconds; of a source only what the visitor can leave off."""
    shortest = int(LIMITS["duration"].low) if not work.source else int(work.source) // 5 * 5 + 5
    most = _most(shortest // 5, int(work.duration // 5), lambda fives: replace(work, duration=fives * 5.0))
    if not most or work.mode == "edit" or work.mode == "cover":
        return ""
    return f"{most * 5} seconds of music"


def _most(low: int, high: int, changed: Callable[[int], Work]) -> int:
    """Return the largest whole number from `low` to `high` whose work fits, 0 where none does."""
    return next((n for n in range(high, low - 1, -1) if seconds_needed(changed(n)) <= MOST_SECONDS), 0)


def _of(name: str) -> float:
    return CONSTANTS[name].value
