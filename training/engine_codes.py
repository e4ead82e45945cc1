"""What the built-in engine's audio codes say: the six digits of a code, read off a score.

A code stands for 200 ms, and the quantizer of the real classes gives it six digits of 8, 8, 8, 5, 5 and 5 levels. Left
to itself it spreads them over the latents so that no two pieces use them alike, and a planner cannot keep the beat in
them. So each digit has a meaning that a musician would write down, and the tokenizer is trained to find it:

| digit | levels | meaning |
|---|---|---|
| 0 | 6 of 8 | in which of the five frames the beat falls or, between beats, the first note; or that nothing does |
| 1 | 8 | which of kick, snare and cymbals (hat or open) are struck |
| 2 | 8 | which of bass, chords and lead begin a note |
| 3 | 5 | which beat of the bar it is; the middle level says that no beat falls here |
| 4, 5 | 25 | the chord, major or minor on twelve roots; the middle says that neither bass nor chords begin a note |

The levels are ordered so that what the tokenizer cannot tell ends near a level that says little, and so that
neighbours mean nearly the same: drums and roles in Gray code, chords along the circle of fifths with their relatives.
"""

from __future__ import annotations

import numpy as np

from training.band_score import ROLES, SCALES, Score, parse_key
from training.engine_latents import FRAME_TICKS

LEVELS = (8, 8, 8, 5, 5, 5)
STRIDES = np.cumprod((1, *LEVELS[:-1]))
WINDOW = 5
"""Frames of a code."""
WINDOW_TICKS = WINDOW * FRAME_TICKS
MOMENT, DRUMS, PLAYING, BEAT, CHORD, CHORD_LOW = range(6)
NAMES = ("moment", "drums", "playing", "beat")

NOTHING = 5
"""The first digit where nothing falls into the window."""
GRAY = np.array([0, 1, 3, 2, 6, 7, 5, 4])
"""What stands at each level of drums and roles, as bits: cymbals, snare, kick; lead, chords, bass."""
LEVEL_OF_BITS = np.argsort(GRAY)
DRUM_BITS = (4, 2, 1, 1)
ROLE_BITS = {"bass": 4, "chords": 2, "lead": 1}
BEAT_LEVELS = np.array([0, 3, 1, 4])
"""The level of the bar's first, second, third and fourth beat."""
NO_BEAT = 2
NO_CHORD = 24


def _chord_cells() -> np.ndarray:
    """Return the two levels [25, 2] of each chord, 2 x its place on the circle of fifths + whether it is minor."""
    cells = []
    for row in range(5):
        columns = range(5) if row % 2 == 0 else range(4, -1, -1)
        cells += [(row, column) for column in columns if (row, column) != (2, 2)]
    return np.array([*cells, (2, 2)])


CHORD_CELLS = _chord_cells()


def chord_number(root: int, is_minor: bool) -> int:
    """Return the place of a chord, 0 to 23: majors along the circle of fifths, each followed by its relative minor."""
    major = root + 3 if is_minor else root
    return 2 * (7 * major % 12) + is_minor


def digits_of(score: Score, frames: int, start: int = 0) -> np.ndarray:
    """Return the digits [frames / 5, 6] of a piece's codes from the frame `start` on; `frames` are rounded up."""
    count = -(-frames // WINDOW)
    first = start * FRAME_TICKS
    out = np.zeros((count, len(LEVELS)), np.int64)
    drums = np.zeros(count, np.int64)
    roles = np.zeros(count, np.int64)
    onset = np.full(count, WINDOW_TICKS)
    beat_at = np.full(count, -1)

    def inside(ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which of `ticks` fall into a window, into which, and how far into it."""
        places = ticks - first
        kept = (places >= 0) & (places < count * WINDOW_TICKS)
        return kept, places[kept] // WINDOW_TICKS, places[kept] % WINDOW_TICKS

    for number, bit in enumerate(DRUM_BITS):
        _, windows, places = inside(score.hits[score.hits[:, 1] == number, 0])
        np.bitwise_or.at(drums, windows, bit)
        np.minimum.at(onset, windows, places)
    for role in ROLES:
        _, windows, places = inside(score.notes[role][:, 0])
        np.bitwise_or.at(roles, windows, ROLE_BITS[role])
        np.minimum.at(onset, windows, places)
    beats = np.arange(len(score.harmony))
    kept, windows, places = inside(np.round(beats * 6000 / score.bpm).astype(np.int64))
    beat_at[windows] = beats[kept]
    out[:, MOMENT] = np.where(onset < WINDOW_TICKS, onset // FRAME_TICKS, NOTHING)
    out[windows, MOMENT] = places // FRAME_TICKS
    out[:, DRUMS] = LEVEL_OF_BITS[drums]
    out[:, PLAYING] = LEVEL_OF_BITS[roles]
    out[:, BEAT] = np.where(beat_at >= 0, BEAT_LEVELS[beat_at % score.beats], NO_BEAT)
    # Between beats the chord is that of the beat before.
    middle = first + np.arange(count) * WINDOW_TICKS + np.minimum(onset, WINDOW_TICKS - 1)
    sounding = np.where(beat_at >= 0, beat_at, np.floor(middle * score.bpm / 6000).astype(np.int64))
    sounding = np.clip(sounding, 0, len(beats) - 1)
    chords = np.array([chord_number(*chord) for chord in score.harmony])[sounding]
    chords[(roles & (ROLE_BITS["bass"] | ROLE_BITS["chords"])) == 0] = NO_CHORD
    out[:, CHORD:] = CHORD_CELLS[chords]
    return out


def codes_of(digits: np.ndarray) -> np.ndarray:
    """Return the codes [...] of digits [..., 6], as the quantizer numbers them."""
    return digits @ STRIDES


def digits_in(codes: np.ndarray) -> np.ndarray:
    """Return the digits [..., 6] of codes [...]."""
    return np.asarray(codes)[..., None] // STRIDES % LEVELS


def chord_in(digits: np.ndarray) -> np.ndarray:
    """Return the chord [...] that digits [..., 6] name: `chord_number`, or NO_CHORD."""
    table = np.zeros((5, 5), np.int64)
    table[tuple(CHORD_CELLS.T)] = np.arange(len(CHORD_CELLS))
    return table[digits[..., CHORD], digits[..., CHORD_LOW]]


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the share of the digits in which two sequences of codes are the same."""
    return float((digits_in(found) == digits_in(wanted)).mean())


UNDERSTOOD = 0.6
"""From this agreement on a tokenizer's codes are taken to mean what is written here; strangers agree in a third."""

BITS = np.array([bin(number).count("1") for number in range(8)])
WORTH = {MOMENT: 8, BEAT: 8, CHORD: 6}
"""What another moment, beat or chord costs, where one drum or role more or less costs 1."""


def likest(codes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return for each of `codes` [N] the one of `known` [M] that means most nearly the same."""
    wanted, found = digits_in(codes)[:, None], digits_in(known)[None]
    cost = BITS[GRAY[wanted[..., DRUMS]] ^ GRAY[found[..., DRUMS]]]
    cost = cost + BITS[GRAY[wanted[..., PLAYING]] ^ GRAY[found[..., PLAYING]]]
    for digit in (MOMENT, BEAT):
        cost += WORTH[digit] * (wanted[..., digit] != found[..., digit])
    cost += WORTH[CHORD] * (chord_in(wanted) != chord_in(found))
    return known[cost.argmin(axis=1)]


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
    frames = windows * WINDOW + digits[windows, MOMENT]
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
    steps = SCALES[scale]
    chords = chord_in(digits)
    chords = chords[chords != NO_CHORD]
    own = {
        chord_number((tonic + root) % 12, (steps[(d + 2) % 7] - root) % 12 == 3)
        for d, root in enumerate(steps)
    }
    if len(chords):
        out["in_key"] = float(np.mean([chord in own for chord in chords]))
        out["home"] = float(chords[0] == chord_number(tonic, scale == "minor"))
    return out


def _slopes(frames: np.ndarray) -> np.ndarray:
    """Return the frames a beat over each eight beats, or over all of them where there are fewer."""
    span = min(8, len(frames) - 1)
    return (frames[span:] - frames[:-span]) / span
