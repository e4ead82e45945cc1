"""How loud a song is and how it gets as loud as asked, and how new audio is joined with old.

Samples are float arrays of shape [channels, samples] at 48 kHz, full scale at 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import soxr

from limits import SAMPLE_RATE

FLOOR_DBFS = -200.0  # what digital silence reads: a number, because JSON has no minus infinity
_SILENCE_DBFS = -60.0
_LOUDNESS_SECONDS = 0.4  # the gating block of BS.1770; shorter clips have no loudness


# --- measuring ----------------------------------------------------------------------------------------------------


def peak_dbfs(samples: np.ndarray) -> float:
    """Return the largest sample of [channels, samples] in dBFS, at least `FLOOR_DBFS`."""
    return _decibels(peak_of(samples))


def rms_dbfs(samples: np.ndarray) -> float:
    """Return the root mean square of [channels, samples] over all channels in dBFS, at least `FLOOR_DBFS`."""
    energy = sum(float(np.square(block, dtype=np.float64).sum()) for block in seconds_of(samples))
    return _decibels(math.sqrt(energy / max(samples.size, 1)))


def is_silent(samples: np.ndarray) -> bool:
    """Whether [channels, samples] have an RMS below -60 dBFS."""
    return rms_dbfs(samples) < _SILENCE_DBFS


def true_peak_dbtp(samples: np.ndarray) -> float:
    """Return the peak of the waveform between the samples of [channels, samples], in dBTP (ITU-R BS.1770-5, annex 2).

    The signal is oversampled four times as one stream, in blocks of a second, so that no peak hides at a border.
    """
    channels = samples.shape[0]
    stream = soxr.ResampleStream(SAMPLE_RATE, 4 * SAMPLE_RATE, channels, "float32", "HQ")
    peak = peak_of(samples)  # the resampler's low-pass may take a little off a click
    for block in seconds_of(samples):
        peak = max(peak, peak_of(stream.resample_chunk(rows_of(block))))
    return _decibels(max(peak, peak_of(stream.resample_chunk(np.zeros((0, channels), np.float32), last=True))))


def loudness_lufs(samples: np.ndarray) -> float | None:
    """Return the integrated loudness of [channels, samples] in LUFS (ITU-R BS.1770-4, gated).

    None where there is none: under 0.4 s, or nothing above the absolute gate of -70 LUFS.
    """
    if samples.shape[1] < _LOUDNESS_SECONDS * SAMPLE_RATE:
        return None
    import pyloudnorm

    with np.errstate(all="ignore"):
        lufs = float(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(samples.T))
    return lufs if math.isfinite(lufs) else None


def spectral_flatness(samples: np.ndarray) -> float:
    """Return how much [channels, samples] resemble noise: near 0 for tones, about 0.56 for white noise.

    It is the geometric over the arithmetic mean of the power spectrum (Johnston 1988) in Hann windows without overlap,
    averaged over the windows that are not silent; 0 when all are. White noise stays under 1 because the spectrum of a
    single window is rough: its expected value is exp(-0.577).
    """
    (channels, length), window = samples.shape, 2048
    hann = np.hanning(window).astype(np.float32)
    total, count = 0.0, 0
    step = 128 * window
    for at in range(0, length, step):
        block = samples[:, at : at + step]
        block = np.pad(block, ((0, 0), (0, -block.shape[1] % window))).reshape(channels, -1, window)
        block = block[:, np.sqrt(np.mean(np.square(block), axis=(0, 2))) > 10 ** (_SILENCE_DBFS / 20)]
        power = np.mean(np.abs(np.fft.rfft(block * hann)[..., 1:]) ** 2, axis=0) + 1e-20
        total += float((np.exp(np.log(power).mean(axis=-1)) / power.mean(axis=-1)).sum())
        count += len(power)
    return total / count if count else 0.0


# --- levels and fades ---------------------------------------------------------------------------------------------


def scale_to_peak(samples: np.ndarray, dbfs: float = -1.0) -> np.ndarray:
    """Return [channels, samples] with their peak at `dbfs`; unchanged where the peak is under -60 dBFS."""
    peak = peak_dbfs(samples)
    return samples if peak < _SILENCE_DBFS else _with_gain(samples, dbfs - peak)


def scale_to_loudness(samples: np.ndarray, lufs: float, ceiling_dbtp: float = -1.0) -> np.ndarray:
    """Return [channels, samples] with one gain, at `lufs` or as near as a true peak of `ceiling_dbtp` allows.

    Nothing is clipped or compressed: where the peak would pass the ceiling, the song stays quieter than asked. Silence
    (`is_silent`) and clips under 0.4 s come back unchanged.
    """
    measured = None if is_silent(samples) else loudness_lufs(samples)
    if measured is None:
        return samples
    return _with_gain(samples, min(lufs - measured, ceiling_dbtp - true_peak_dbtp(samples)))


def fade_out(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Return a copy of [channels, samples] whose last `seconds` follow half a cosine down to exactly 0."""
    faded = samples.astype(np.float32)
    length = min(round(seconds * SAMPLE_RATE), samples.shape[1])
    if length > 0:
        faded[:, -length:] *= (0.5 + 0.5 * np.cos(np.linspace(0, np.pi, length))).astype(np.float32)
    return faded


def seconds_of(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yield [channels, samples] in blocks of one second."""
    return (samples[:, at : at + SAMPLE_RATE] for at in range(0, samples.shape[1], SAMPLE_RATE))


def rows_of(block: np.ndarray) -> np.ndarray:
    """Return [channels, samples] as the float32 [samples, channels] that soxr and libsndfile take."""
    return np.ascontiguousarray(block.T, dtype=np.float32)


def peak_of(samples: np.ndarray) -> float:
    """Return the largest absolute value; NaN where there is one."""
    return max(float(samples.max(initial=0)), -float(samples.min(initial=0)))


def _decibels(level: float) -> float:
    return max(20 * math.log10(level), FLOOR_DBFS) if level > 0 else FLOOR_DBFS


def _with_gain(samples: np.ndarray, decibels: float) -> np.ndarray:
    return samples.astype(np.float32) * np.float32(10 ** (decibels / 20))


# --- splices -----------------------------------------------------------------------------------------------------

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
