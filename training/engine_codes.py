"""The codes that a score has: what `planner_codes` says of them, read off the notes.

The tokenizer is trained to find these codes in the latents, and the planner to write them.
"""

from __future__ import annotations

import numpy as np

from planner_codes import (
    BASS,
    BEAT,
    BEAT_LEVELS,
    CHORD,
    CHORD_CELLS,
    CHORDS,
    CODE_TICKS,
    CYMBALS,
    DRUMS,
    FRAME_TICKS,
    FRAMES,
    KICK,
    LEAD,
    LEVEL_OF_BITS,
    LEVELS,
    MOMENT,
    NO_BEAT,
    NO_CHORD,
    NOTHING,
    PLAYING,
    SNARE,
    TICKS_PER_MINUTE,
    chord_in,
    chord_number,
    chords_of,
    digits_in,
)
from training.band_score import ROLES, Score, parse_key

NAMES = ("moment", "drums", "playing", "beat")
DRUM_BITS = (KICK, SNARE, CYMBALS, CYMBALS)
ROLE_BITS = {"bass": BASS, "chords": CHORDS, "lead": LEAD}


def digits_of(score: Score, frames: int, start: int = 0) -> np.ndarray:
    """Return the digits [frames / 5, 6] of a piece's codes from the frame `start` on; `frames` are rounded up."""
    count = -(-frames // FRAMES)
    first = start * FRAME_TICKS
    out = np.zeros((count, len(LEVELS)), np.int64)
    drums = np.zeros(count, np.int64)
    roles = np.zeros(count, np.int64)
    onset = np.full(count, CODE_TICKS)
    beat_at = np.full(count, -1)

    def inside(ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which of `ticks` fall into a window, into which, and how far into it."""
        places = ticks - first
        kept = (places >= 0) & (places < count * CODE_TICKS)
        return kept, places[kept] // CODE_TICKS, places[kept] % CODE_TICKS

    for number, bit in enumerate(DRUM_BITS):
        _, windows, places = inside(score.hits[score.hits[:, 1] == number, 0])
        np.bitwise_or.at(drums, windows, bit)
        np.minimum.at(onset, windows, places)
    for role in ROLES:
        _, windows, places = inside(score.notes[role][:, 0])
        np.bitwise_or.at(roles, windows, ROLE_BITS[role])
        np.minimum.at(onset, windows, places)
    beats = np.arange(len(score.harmony))
    kept, windows, places = inside(np.round(beats * TICKS_PER_MINUTE / score.bpm).astype(np.int64))
    beat_at[windows] = beats[kept]
    out[:, MOMENT] = np.where(onset < CODE_TICKS, onset // FRAME_TICKS, NOTHING)
    out[windows, MOMENT] = places // FRAME_TICKS
    out[:, DRUMS] = LEVEL_OF_BITS[drums]
    out[:, PLAYING] = LEVEL_OF_BITS[roles]
    out[:, BEAT] = np.where(beat_at >= 0, BEAT_LEVELS[beat_at % score.beats], NO_BEAT)
    # Between beats the chord is that of the beat before.
    middle = first + np.arange(count) * CODE_TICKS + np.minimum(onset, CODE_TICKS - 1)
    sounding = np.where(
        beat_at >= 0, beat_at, np.floor(middle * score.bpm / TICKS_PER_MINUTE).astype(np.int64)
    )
    sounding = np.clip(sounding, 0, len(beats) - 1)
    chords = np.array([chord_number(*chord) for chord in score.harmony])[sounding]
    chords[(roles & (BASS | CHORDS)) == 0] = NO_CHORD
    out[:, CHORD:] = CHORD_CELLS[chords]
    return out


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the share of the digits in which two sequences of codes are the same."""
    return float((digits_in(found) == digits_in(wanted)).mean())


UNDERSTOOD = 0.6
"""From this agreement on a tokenizer's codes are taken to mean what is written here; strangers agree in a third."""


def parts_of(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the parts [N, 8] that each of `codes` [N] consists of, numbered together, and how many there are.

    They are what the digits mean, alone and in the pairs that mean something together.
    """
    digits = digits_in(codes)
    moment, drums, playing, beat = (digits[:, place] for place in (MOMENT, DRUMS, PLAYING, BEAT))
    columns = [
        (moment, 8),
        (drums, 8),
        (playing, 8),
        (beat, 5),
        (chord_in(digits), 25),
        (moment * 5 + beat, 40),
        (drums * 8 + playing, 64),
        (drums * 5 + beat, 40),
    ]
    before = np.cumsum([0, *(size for _, size in columns)])
    numbered = [column + first for (column, _), first in zip(columns, before, strict=False)]
    return np.stack(numbered, axis=1), int(before[-1])


def drafted(codes: np.ndarray, bpm: int, beats: int, key: str) -> dict[str, float]:
    """Return how well codes [N] keep a tempo, count the beats of a bar and stay in a key.

    `tempo` is 1 where the beats lie within 4 % of `bpm` over the whole piece, `steady` the share of beats that follow
    the one before in time (within a frame and a half), `counted` the share that are the next of the bar, `in_key` the
    share of chords that the key has, `home` whether the piece begins on its tonic.
    """
    digits = digits_in(codes)
    windows = np.flatnonzero((digits[:, BEAT] != NO_BEAT) & (digits[:, MOMENT] != NOTHING))
    frames = windows * FRAMES + digits[windows, MOMENT]
    number_of = {int(level): number for number, level in enumerate(BEAT_LEVELS)}
    counted = [number_of[int(level)] for level in digits[windows, BEAT]]
    wanted = 1500 / bpm
    out = {"tempo": 0.0, "steady": 0.0, "counted": 0.0, "in_key": 0.0, "home": 0.0}
    if len(windows) > 2:
        steps = np.diff(frames)
        out["steady"] = float((np.abs(steps - wanted) <= 1.5).mean())
        out["tempo"] = float(abs(float(np.median(_slopes(frames))) / wanted - 1) <= 0.04)
        following = [(now + 1) % beats for now in counted[:-1]]
        out["counted"] = float(np.mean(np.array(following) == counted[1:]))
    tonic, scale = parse_key(key)
    own = chords_of(tonic, scale)
    chords = chord_in(digits)
    chords = chords[chords != NO_CHORD]
    if len(chords):
        out["in_key"] = float(np.mean([chord in own for chord in chords]))
        out["home"] = float(chords[0] == chord_number(tonic, scale == "minor"))
    return out


def _slopes(frames: np.ndarray) -> np.ndarray:
    """Return the frames a beat over each eight beats, or over all of them where there are fewer."""
    span = min(8, len(frames) - 1)
    return (frames[span:] - frames[:-span]) / span
