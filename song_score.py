"""How good a take is, from 0 to 100: how much of what was asked for it has, less what is broken.

Each part is from 0 (bad) to 1 (nothing to say against it). The mean of the parts in `ASKED` that
apply is multiplied by one factor for each of `FAULTS`, so that a fault costs a take the same
whatever else can be measured. `lyrics` and `recognition` need the models (`song_align`, `planner`);
`measured` finds the others in the samples. Nothing here judges taste.

Samples are float [2, n] at 48 kHz.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import soxr

import audio
import audio_levels
from limits import INSTRUMENTAL, SAMPLE_RATE, SCORE_PARTS
from params import ExtendRequest, SongRequest

ASKED = ("lyrics", "recognition", "tempo")
# How much of the score each fault takes at its worst.
FAULTS = {"silence": 0.5, "clipping": 0.3, "noise": 0.7, "ending": 0.2}
# The tasks whose result sings all of its lyrics and is all described by its prompt.
WHOLE_SONG = ("generate", "cover", "repaint", "morph")
STEMS = ("layer", "extract")  # which may be silent, and end, anywhere


def parts_of(request: SongRequest) -> tuple[str, ...]:
    """Return the parts that apply to the songs of `request`, of those that it asks for."""
    task = getattr(request, "action", request.mode)
    if task in STEMS:
        return ()
    left_out = set()
    if task not in WHOLE_SONG:
        left_out |= {"lyrics", "recognition"}
    if request.sung_lyrics() == INSTRUMENTAL:
        left_out.add("lyrics")
    if request.options.fade_out or _ends_as_its_source(request):
        left_out.add("ending")
    return tuple(part for part in request.options.score if part not in left_out)


def _ends_as_its_source(request: SongRequest) -> bool:
    if isinstance(request, ExtendRequest):
        return request.after == 0
    return request.mode == "edit"


def total(parts: Mapping[str, float]) -> float | None:
    """Return the score of a take, 0 to 100, from its parts, 0 to 1 each; None without any."""
    if not parts:
        return None
    asked = [parts[name] for name in ASKED if name in parts]
    score = sum(asked) / len(asked) if asked else 1.0
    for name, worst in FAULTS.items():
        score *= _factor(worst, parts.get(name, 1.0))
    return round(100 * score, 1)


def _factor(worst: float, part: float) -> float:
    return 1.0 - worst * (1.0 - part)


def best(scores: Sequence[float | None]) -> int | None:
    """Return the place of the one highest score, None where no score stands out."""
    known = [score for score in scores if score is not None]
    if len(known) < 2 or known.count(max(known)) > 1:
        return None
    return scores.index(max(known))


def reason(parts: Sequence[Mapping[str, float]], place: int) -> str:
    """Return the part in which the take at `place` is furthest ahead of the mean of the others, or ""."""
    ahead = {}
    others = [each for number, each in enumerate(parts) if number != place]
    for name, value in parts[place].items():
        known = [each[name] for each in others if name in each]
        if known:
            worth = FAULTS.get(name, 1.0 / len(ASKED))
            ahead[name] = worth * (value - sum(known) / len(known))
    name = max(ahead, key=lambda each: ahead[each], default="")
    return name if name and ahead[name] > 0 else ""


def shown(parts: Mapping[str, float]) -> dict[str, float]:
    """Return the parts for the record, from 0 to 100, in the order in which they are listed."""
    return {name: round(100 * parts[name], 1) for name in SCORE_PARTS if name in parts}


# --- what can be heard ----------------------------------------------------------------------------


def measured(
    samples: np.ndarray, bpm: int | None, wanted: Collection[str], flatness: float
) -> dict[str, float]:
    """Return those of the `wanted` parts that the samples alone tell.

    `bpm` is the tempo that was asked for or planned, `flatness` the samples' spectral flatness.
    """
    measures: dict[str, Any] = {
        "tempo": lambda: tempo(samples, bpm) if bpm else None,
        "silence": lambda: silence(samples),
        "clipping": lambda: clipping(samples),
        "noise": lambda: noise(flatness),
        "ending": lambda: ending(samples),
    }
    found = {name: measure() for name, measure in measures.items() if name in wanted}
    return {name: value for name, value in found.items() if value is not None}


ONSET_RATE = 8_000  # the beat is heard below 4 kHz
ONSET_HOP = 80  # samples: a hundred moments a second
ONSET_WINDOW = 512
BANDS = 24
COMPRESSION = 1_000.0
SLOWEST_BPM = 40.0
FASTEST_BPM = 240.0
BEATS = 4  # beats ahead at which a tempo must come back
FINENESS = 1.005  # of the tempos that are tried
TOLERANCE = 1.02  # of the tempo that was asked for
LEAST_PULSE = 0.05  # of the correlation; below it nothing beats


def tempo(samples: np.ndarray, bpm: int) -> float | None:
    """Return how strongly the music beats at `bpm`, compared with the tempo at which it beats most.

    Half and double the tempo beat nearly as much, and count as right. None where nothing beats. The
    correlation of the onsets is read at the first beats of each tempo (a comb, as in Scheirer 1998).
    """
    onsets = _onsets(samples)
    size = len(onsets)
    spectrum = np.fft.rfft(onsets, 2 * size)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:size]
    if correlation[0] <= 0:
        return None
    # Fewer moments overlap at a longer lag.
    correlation = correlation / correlation[0] * size / np.arange(size, 0, -1)

    def pulses(tempos: np.ndarray) -> np.ndarray:
        lags = 60 / tempos[:, None] * ONSET_RATE / ONSET_HOP * np.arange(1, BEATS + 1)
        reached = lags < 0.8 * size
        read = np.interp(lags, np.arange(size), correlation) * reached
        return read.sum(axis=1) / np.maximum(reached.sum(axis=1), 1)

    strongest = float(pulses(_tempos(SLOWEST_BPM, FASTEST_BPM)).max())
    if strongest < LEAST_PULSE:
        return None
    near = _tempos(bpm / TOLERANCE, bpm * TOLERANCE)
    # Music at half the tempo has nothing on every other beat.
    asked = float(max(pulses(near).max(), pulses(near / 2).max()))
    return min(max(asked / strongest, 0.0), 1.0)


def _tempos(low: float, high: float) -> np.ndarray:
    count = int(np.log(high / low) / np.log(FINENESS)) + 1
    return low * FINENESS ** np.arange(count + 1)


def _onsets(samples: np.ndarray) -> np.ndarray:
    """Return how much louder the bands become at each moment, [frames], with mean 0."""
    mono = samples.mean(axis=0).astype(np.float32)
    slow = soxr.resample(mono, SAMPLE_RATE, ONSET_RATE, "LQ")
    slow = np.pad(slow, (0, max(ONSET_WINDOW - len(slow), 0)))
    windows = np.lib.stride_tricks.sliding_window_view(slow, ONSET_WINDOW)[::ONSET_HOP]
    hann = np.hanning(ONSET_WINDOW).astype(np.float32)
    edges = np.unique(np.geomspace(2, ONSET_WINDOW // 2, BANDS + 1).astype(int))
    rises = []
    before = None
    # in pieces: a song's windows overlap six times
    for at in range(0, len(windows), 2_000):
        power = np.abs(np.fft.rfft(windows[at : at + 2_000] * hann)) ** 2
        bands = np.log1p(COMPRESSION * np.add.reduceat(power, edges[:-1], axis=1))
        first = bands[:1] if before is None else before
        rises.append(np.maximum(np.diff(bands, axis=0, prepend=first), 0).sum(axis=1))
        before = bands[-1:]
    onsets = np.concatenate(rises)
    return onsets - onsets.mean()


MOMENT_SECONDS = 0.05
SILENT_DBFS = -60.0
LONG_SECONDS = 3.0  # a rest may be as long
UNHEARD_SECONDS = 10.0  # of silence, at which a take is worth least


def silence(samples: np.ndarray) -> float:
    """Return 1 without a silence of over 3 s, down to 0 for 10 s of such silence in all."""
    silent = _levels(samples) < SILENT_DBFS
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    lengths = (edges[1::2] - edges[::2]) * MOMENT_SECONDS
    seconds = float(lengths[lengths > LONG_SECONDS].sum())
    return max(1.0 - seconds / UNHEARD_SECONDS, 0.0)


def _levels(samples: np.ndarray) -> np.ndarray:
    """Return the level of each moment in dBFS, [moments]; what is left at the end is not one."""
    moment = round(MOMENT_SECONDS * SAMPLE_RATE)
    count = samples.shape[1] // moment
    blocks = samples[:, : count * moment].reshape(len(samples), count, moment)
    power = np.square(blocks, dtype=np.float64).mean(axis=(0, 2))
    return 10 * np.log10(power + 10 ** (audio_levels.FLOOR_DBFS / 10))


FLAT = 1e-6  # of the peak: even a low tone is nearer to its own for less than two samples
FLAT_SAMPLES = 3
HALF_CLIPPED = 0.001  # the share of clipped samples that takes half of the part


def clipping(samples: np.ndarray) -> float:
    """Return 1 where no top of the wave is cut off, 1/2 for a thousandth of the samples, towards 0."""
    peak = audio.peak_of(samples)
    if peak == 0:
        return 1.0
    clipped = 0
    for channel in samples:
        at_peak = np.abs(channel) >= peak * (1 - FLAT)
        edges = np.flatnonzero(np.diff(at_peak, prepend=False, append=False))
        lengths = edges[1::2] - edges[::2]
        clipped += int(lengths[lengths >= FLAT_SAMPLES].sum())
    return 1.0 / (1.0 + clipped / samples.size / HALF_CLIPPED)


CLEAR_FLATNESS = 0.1  # most music
NOISY_FLATNESS = 0.5  # most of it is noise; white noise has over 0.56


def noise(flatness: float) -> float:
    """Return 1 up to the spectral flatness of most music, down to 0 for that of noise."""
    share = (flatness - CLEAR_FLATNESS) / (NOISY_FLATNESS - CLEAR_FLATNESS)
    return min(max(1.0 - share, 0.0), 1.0)


LOUD_SHARE = 0.9  # of the moments are softer than a loud one
ENDED_DB = 20.0  # under a loud moment, the last one is an end
LAST_SECONDS = 0.1


def ending(samples: np.ndarray) -> float:
    """Return 1 for a song that has died away at its end, down to 0 if it is cut off at its loudest."""
    levels = _levels(samples)
    last = audio_levels.rms_dbfs(samples[:, -round(LAST_SECONDS * SAMPLE_RATE) :])
    drop = float(np.quantile(levels, LOUD_SHARE)) - last
    return min(max(drop / ENDED_DB, 0.0), 1.0)
