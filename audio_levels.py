"""A song's loudness, and joining new audio to old: floats [channels, samples] at 48 kHz, full scale at 1.0."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import soxr

from audio import one_second_blocks, peak_of, rows_of
from limits import SAMPLE_RATE

FLOOR_DBFS = -200.0  # stands for digital silence: JSON has no minus infinity
_SILENCE_DBFS = -60.0
_LOUDNESS_SECONDS = 0.4  # the gating block of BS.1770; shorter clips have no loudness
OVERSAMPLING = 4  # for the waveform between the samples
CEILING_DBTP = -1.0
HOLD_SECONDS = 0.05  # about a beat's transient; the limiter's gain moves only before and after it
LOUDNESS_TOLERANCE_LU = 0.1
LOUDNESS_ROUNDS = 8  # each raises the gain by the loudness that limiting has cost


def peak_dbfs(samples: np.ndarray) -> float:
    return _decibels(peak_of(samples))


def rms_dbfs(samples: np.ndarray) -> float:
    return _decibels(_rms(samples))


def is_silent(samples: np.ndarray) -> bool:
    return rms_dbfs(samples) < _SILENCE_DBFS


def true_peak_dbtp(samples: np.ndarray) -> float:
    """Return the peak of the waveform between the samples, in dBTP (ITU-R BS.1770-5, annex 2)."""
    peak = peak_of(samples)  # the resampler's low-pass may take a little off a click
    for block in _oversampled(samples):
        peak = max(peak, peak_of(block))
    return _decibels(peak)


def _oversampled(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yield `samples` at four times the rate, in blocks of one stream, so that no peak is missed between blocks."""
    stream = soxr.ResampleStream(
        SAMPLE_RATE, OVERSAMPLING * SAMPLE_RATE, len(samples), "float32", "HQ"
    )
    for block in (*one_second_blocks(samples), samples[:, :0]):
        yield stream.resample_chunk(rows_of(block), last=not block.size)


def loudness_lufs(samples: np.ndarray) -> float | None:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4, gated); None under 0.4 s or entirely below -70 LUFS."""
    if samples.shape[1] < _LOUDNESS_SECONDS * SAMPLE_RATE:
        return None
    import pyloudnorm

    with np.errstate(all="ignore"):
        lufs = float(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(samples.T))
    return lufs if math.isfinite(lufs) else None


def spectral_flatness(samples: np.ndarray) -> float:
    """Return how much the sound resembles noise: near 0 for tones, about exp(-0.577) = 0.56 for white noise.

    It is the geometric over the arithmetic mean of the power spectrum (Johnston 1988), averaged
    over the Hann windows that are not silent; 0 if all are. White noise stays under 1 because the
    spectrum of a single window is rough.
    """
    channels, length = samples.shape
    window = 2048
    hann = np.hanning(window).astype(np.float32)
    silence = 10 ** (_SILENCE_DBFS / 20)
    total = 0.0
    count = 0
    for start in range(0, length, 128 * window):
        block = samples[:, start : start + 128 * window]
        block = np.pad(block, ((0, 0), (0, -block.shape[1] % window)))
        windows = block.reshape(channels, -1, window)
        rms = np.sqrt(np.mean(np.square(windows), axis=(0, 2)))
        spectra = np.fft.rfft(windows[:, rms > silence] * hann)[..., 1:]
        power = np.mean(np.abs(spectra) ** 2, axis=0) + 1e-20
        geometric_means = np.exp(np.log(power).mean(axis=-1))
        total += float((geometric_means / power.mean(axis=-1)).sum())
        count += len(power)
    if count:
        return total / count
    return 0.0


def _rms(samples: np.ndarray) -> float:
    energy = sum(
        float(np.square(block, dtype=np.float64).sum()) for block in one_second_blocks(samples)
    )
    return math.sqrt(energy / max(samples.size, 1))


def _decibels(level: float) -> float:
    if level > 0:
        return max(20 * math.log10(level), FLOOR_DBFS)
    return FLOOR_DBFS


def scale_to_peak(samples: np.ndarray, dbfs: float) -> np.ndarray:
    peak = peak_dbfs(samples)
    if peak < _SILENCE_DBFS:
        return samples
    return _with_gain(samples, dbfs - peak)


def scale_to_loudness(
    samples: np.ndarray, lufs: float, ceiling_dbtp: float = CEILING_DBTP
) -> tuple[np.ndarray, float]:
    """Return the samples at `lufs`, and by how many dB a limiter turned their peaks down.

    One gain is enough if the peaks then stay under `ceiling_dbtp`. Otherwise they are limited, and
    the gain is raised by what that costs until the loudness is met, or until more gain makes the
    song no louder. Silence (`is_silent`) and clips under 0.4 s are not changed.
    """
    measured = None if is_silent(samples) else loudness_lufs(samples)
    if measured is None:
        return samples, 0.0
    gain = lufs - measured
    if gain <= ceiling_dbtp - true_peak_dbtp(samples):
        return _with_gain(samples, gain), 0.0
    best, reduction = limit_peaks(_with_gain(samples, gain), ceiling_dbtp)
    missing = lufs - _loudness(best)  # LU
    for _ in range(LOUDNESS_ROUNDS):
        if missing <= LOUDNESS_TOLERANCE_LU:
            break
        gain += missing
        louder, its_reduction = limit_peaks(_with_gain(samples, gain), ceiling_dbtp)
        still_missing = lufs - _loudness(louder)
        if still_missing >= missing:
            break
        best = louder
        reduction = its_reduction
        missing = still_missing
    return best, reduction


def _loudness(samples: np.ndarray) -> float:
    loudness = loudness_lufs(samples)
    assert loudness is not None  # a song that can be measured still can after limiting
    return loudness


def limit_peaks(samples: np.ndarray, ceiling_dbtp: float) -> tuple[np.ndarray, float]:
    """Return the samples with no true peak over `ceiling_dbtp`, and the largest reduction in dB.

    A look-ahead limiter. The gain that each moment needs is held for `HOLD_SECONDS` around it (the
    smallest wins), and averaged over the same time. So it is down before a peak comes, and moves
    too slowly to be heard as distortion.
    """
    from scipy import ndimage

    ceiling = 10 ** (ceiling_dbtp / 20)
    needed = np.minimum(1.0, ceiling / np.maximum(_true_envelope(samples), ceiling))
    hold = round(HOLD_SECONDS * SAMPLE_RATE) | 1  # odd, so that the window is centred
    held = ndimage.minimum_filter1d(needed, hold, mode="nearest")
    # Two averages of half the length make one with soft edges, within reach of the held minimum.
    half = hold // 2 | 1
    gain = held
    for _ in range(2):
        gain = ndimage.uniform_filter1d(gain, half, mode="nearest")
    limited = (samples * gain).astype(np.float32)
    # A moving gain adds far less than 0.1 dB between two samples; one gain for all removes it.
    over = true_peak_dbtp(limited) - ceiling_dbtp
    if over > 0:
        limited = _with_gain(limited, -over)
    return limited, -_decibels(float(gain.min(initial=1.0)))


def _true_envelope(samples: np.ndarray) -> np.ndarray:
    """Return for each sample the largest magnitude at it and before the next one, over all channels; [n] float32."""
    envelope = np.abs(samples).max(axis=0).astype(np.float32)
    start = 0
    rest = np.empty((0,), np.float32)
    for block in _oversampled(samples):
        largest = np.concatenate([rest, np.abs(block).max(axis=1)])
        count = min(len(largest) // OVERSAMPLING, len(envelope) - start)
        between = largest[: count * OVERSAMPLING].reshape(count, OVERSAMPLING).max(axis=1)
        covered = envelope[start : start + count]
        np.maximum(covered, between, out=covered)
        start += count
        rest = largest[count * OVERSAMPLING :]
    return envelope


def fade_out(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Return a copy whose last `seconds` follow half a cosine down to exactly 0."""
    faded = samples.astype(np.float32)
    length = min(round(seconds * SAMPLE_RATE), samples.shape[1])
    if length > 0:
        half_cosine = 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, length))
        faded[:, -length:] *= half_cosine.astype(np.float32)
    return faded


def _with_gain(samples: np.ndarray, decibels: float) -> np.ndarray:
    return samples.astype(np.float32) * np.float32(10 ** (decibels / 20))


SURROUNDINGS_SECONDS = 3.0
# A verse may be softer than the chorus beside it; a larger difference sounds out of place.
LEVEL_TOLERANCE_DB = 3.0
SILENCE_RMS = 1e-3
FULL_SCALE = 0.9999  # below 1 by more than float32 rounds


def splice(old: np.ndarray, new: np.ndarray, start: int, end: int, fade: int) -> np.ndarray:
    """Return `old` with `new` in samples `start` to `end`, joined by linear crossfades of `fade` samples.

    The crossfades lie outside the region, as far as the file goes; every sample of `old` beyond
    them is unchanged.
    """
    ramp = np.linspace(0, 1, fade + 2, dtype=np.float32)[1:-1]  # upstream's ramp
    weight = np.zeros(old.shape[1], np.float32)
    weight[start:end] = 1
    before = min(fade, start)
    after = min(fade, old.shape[1] - end)
    weight[start - before : start] = ramp[fade - before :]
    weight[end : end + after] = ramp[::-1][:after]
    # products with 0 and 1 are exact
    return np.where(weight == 0, old, old * (1 - weight) + new * weight)


def match_level(
    new: np.ndarray, old: np.ndarray, start: int, end: int, fade: int = 0
) -> np.ndarray:
    """Return `new` with the level of `old`: its region `start` to `end` within 3 dB (RMS) of 3 s on each side.

    A peak over 1 is first scaled to 1. Then the gain is 1 if either part is silent, and never
    passes full scale. Only the region and the `fade` samples around it count, because the rest of
    `new` is not used.
    """
    peak = peak_of(new[:, max(start - fade, 0) : end + fade])
    new = new / max(peak, 1.0)
    peak = min(peak, 1.0)
    reach = round(SURROUNDINGS_SECONDS * SAMPLE_RATE)
    before = old[:, max(start - reach, 0) : start]
    after = old[:, end : end + reach]
    outer = _rms(np.concatenate([before, after], axis=1))
    inner = _rms(new[:, start:end])
    if outer < SILENCE_RMS or inner < SILENCE_RMS:
        return new
    difference = _decibels(outer) - _decibels(inner)
    gain = math.copysign(max(abs(difference) - LEVEL_TOLERANCE_DB, 0.0), difference)  # dB
    factor = min(10 ** (gain / 20), FULL_SCALE / peak)
    return (new * factor).astype(np.float32)
