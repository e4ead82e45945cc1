"""What the page draws of a recording: the peaks of its waveform, and its onsets, for beats."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import audio

COLUMNS = 800  # of the waveform: enough for any width at which it is shown
CLOSE_COLUMNS = 20  # per second, for a closer look
MOST_COLUMNS = 6000
ONSETS = 50  # per second
SILENCE_DBFS = -60.0  # anything below counts as silence
LOUDEST_RISE_DB = 30.0
# the least full scale of a picture, so that the noise of a quiet file does not fill it
QUIETEST_DBFS = -40.0


def peaks(path: str | Path, per_second: int = 0) -> dict[str, Any]:
    """Return a file's length and picture as {"seconds": float, "peaks": str}.

    They are 0 and "" if it cannot be read. "peaks" is base64 of int8 [columns, 2]: each column's
    extremes over all channels; 127 is the file's loudest sample.
    """
    try:
        seconds = audio.duration_of(path)
        columns = min(max(COLUMNS, round(seconds * per_second)), MOST_COLUMNS)
        extremes = [(part.min(initial=0), part.max(initial=0)) for part in _parts(path, columns)]
    except audio.AudioError:
        return {"seconds": 0.0, "peaks": ""}
    lows_and_highs = np.array(extremes)
    full_scale = max(float(np.abs(lows_and_highs).max()), 10 ** (QUIETEST_DBFS / 20))
    drawn = np.rint(lows_and_highs * (127 / full_scale)).astype(np.int8)
    return {"seconds": seconds, "peaks": base64.b64encode(drawn.tobytes()).decode()}


def decoded(peaks: str) -> np.ndarray:
    """Return the "peaks" of `peaks` as int8 [columns * 2]."""
    return np.frombuffer(base64.b64decode(peaks), np.int8)


def onsets(path: str | Path, seconds: float) -> str:
    """Return how much louder each moment of a file is than the two before it.

    It is base64 of uint8 [ONSETS * seconds]; 255 is a rise of LOUDEST_RISE_DB or more.
    """
    moments = _parts(path, max(round(seconds * ONSETS), 1))
    power = [np.square(moment).mean(dtype=np.float64) if moment.size else 0.0 for moment in moments]
    decibels = 10 * np.log10(np.array(power) + 10 ** (SILENCE_DBFS / 10))
    padded = np.concatenate(([SILENCE_DBFS, SILENCE_DBFS], decibels))
    rise = decibels - np.maximum(padded[:-2], padded[1:-1])
    scaled = np.clip(rise * 255 / LOUDEST_RISE_DB, 0, 255).astype(np.uint8)
    return base64.b64encode(scaled.tobytes()).decode()


def _parts(path: str | Path, count: int) -> Iterator[np.ndarray]:
    """Yield a file in `count` equal parts, float32 [samples, 2]."""
    edges = np.linspace(0, audio.frames_of(path), count + 1).round().astype(int)
    blocks = audio.blocks_of(path)
    left = np.zeros((0, 2), np.float32)
    for frames in np.diff(edges):
        pieces = []
        while frames > len(left):
            pieces.append(left)
            frames -= len(left)
            left = next(blocks)
        yield np.concatenate([*pieces, left[:frames]]) if pieces else left[:frames]
        left = left[frames:]
