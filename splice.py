"""Joining new audio with old: crossfades that leave the old samples alone, and a level that fits.

Samples are float32 arrays [2, n] at 48 kHz.
"""

from __future__ import annotations

import numpy as np

from limits import SAMPLE_RATE

SURROUNDINGS_SECONDS = 3.0
# A verse may be softer than the chorus beside it; further apart than this, a new part sounds foreign.
LEVEL_TOLERANCE_DB = 3.0
SILENCE_RMS = 1e-3
FULL_SCALE = 0.9999  # below 1 by more than float32 rounds


def splice(old: np.ndarray, new: np.ndarray, start: int, end: int, fade: int) -> np.ndarray:
    """Return `old` with `new` in samples `start` to `end`, joined by linear crossfades of `fade` samples.

    The crossfades lie outside the region, on the kept side, and end where the file does; further out every sample of
    `old` stays as it is. The ramp rule is upstream's: linspace(0, 1, fade + 2) without its ends.
    """
    ramp = np.linspace(0, 1, fade + 2, dtype=np.float32)[1:-1]
    joined = old.copy()
    joined[:, start:end] = new[:, start:end]
    for place, weight in ((slice(start - fade, start), ramp), (slice(end, end + fade), ramp[::-1])):
        low, high = max(place.start, 0), min(place.stop, old.shape[1])
        if high > low:
            w = weight[low - place.start : high - place.start]
            joined[:, low:high] = old[:, low:high] * (1 - w) + new[:, low:high] * w
    return joined


def match_level(new: np.ndarray, old: np.ndarray, start: int, end: int, fade: int = 0) -> np.ndarray:
    """Return `new` scaled so that its region `start` to `end` is as loud as `old` right around it.

    First divided by its peak if that is over 1, then brought to within 3 dB (RMS) of up to 3 s of `old` on each side,
    but never over full scale; silent surroundings say nothing and change nothing. Only the region and the `fade`
    samples around it count, because no more of `new` is used.
    """
    peak = float(np.abs(new[:, max(start - fade, 0) : end + fade]).max(initial=0.0))
    new, peak = new / max(peak, 1.0), min(peak, 1.0)
    reach = round(SURROUNDINGS_SECONDS * SAMPLE_RATE)
    around = np.concatenate([old[:, max(start - reach, 0) : start], old[:, end : end + reach]], axis=1)
    outer, inner = _rms(around), _rms(new[:, start:end])
    if outer < SILENCE_RMS or inner < SILENCE_RMS:
        return new
    difference = 20 * np.log10(outer / inner)
    gain = 10 ** (np.sign(difference) * max(abs(difference) - LEVEL_TOLERANCE_DB, 0.0) / 20)
    return (new * min(gain, FULL_SCALE / peak)).astype(np.float32)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
