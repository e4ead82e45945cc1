"""How long a job takes on the GPU, before it runs: the seconds that ZeroGPU is asked for.

Counted, not measured: floating-point operations of one forward pass of the XL transformer (counted on its configuration
with 600 condition tokens), divided by what an H200 makes of bf16 at about half its measured matrix rate.
"""

from __future__ import annotations

from bisect import bisect_left

# Seconds of music -> TFLOP of one forward pass.
FORWARD_TFLOP = ((0, 0.0), (30, 3.33), (60, 6.59), (120, 13.6), (240, 29.3), (600, 90.6))
TFLOP_PER_SECOND = 390.0
COLD_SECONDS = 20.0
DECODE_SECONDS_PER_MINUTE = 1.0
# Real seconds over counted ones, until there are measurements: shared cards, the scheduler, the first kernels.
MARGIN = 1.5
LEAST_SECONDS, MOST_SECONDS = 60, 300


def gpu_seconds(duration: float, steps: int, takes: int, guidance: float) -> int:
    """Return the GPU seconds to ask for, from 60 to 300, for `takes` songs of `duration` seconds."""
    forwards = steps * takes * (2 if guidance > 1 else 1)
    loop = forwards * forward_tflop(duration) / TFLOP_PER_SECOND
    decode = takes * duration / 60 * DECODE_SECONDS_PER_MINUTE
    return int(min(max(COLD_SECONDS + MARGIN * (loop + decode), LEAST_SECONDS), MOST_SECONDS))


def forward_tflop(duration: float) -> float:
    """Return the TFLOP of one forward pass for `duration` seconds of music, linear between the counted lengths."""
    lengths = [length for length, _ in FORWARD_TFLOP]
    right = min(max(bisect_left(lengths, duration), 1), len(lengths) - 1)
    (x0, y0), (x1, y1) = FORWARD_TFLOP[right - 1], FORWARD_TFLOP[right]
    return y0 + (y1 - y0) * (duration - x0) / (x1 - x0)
