"""What the built-in engine's audio codes say: six digits, each with a meaning that a musician would write down.

A code stands for 200 ms, and the quantizer of the real classes gives it six digits of 8, 8, 8, 5, 5 and 5 levels. Left
to itself it spreads them over the latents so that no two pieces use them alike, and a planner cannot keep the beat in
them. So each digit has a meaning, and the tokenizer is trained to find it (training/engine_codes.py):

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

from collections.abc import Sequence

import numpy as np

from limits import CODES_PER_SECOND

LEVELS = (8, 8, 8, 5, 5, 5)
STRIDES = np.cumprod((1, *LEVELS[:-1]))
MOMENT, DRUMS, PLAYING, BEAT, CHORD, CHORD_LOW = range(6)

# Ticks are 10 ms, a frame of the latents 4 of them.
TICKS_PER_MINUTE = 6_000
FRAME_TICKS = 4
FRAMES = 5
"""Frames of a code."""
CODE_TICKS = FRAMES * FRAME_TICKS

NOTHING = 5
"""The first digit where nothing falls into the 200 ms."""
GRAY = np.array([0, 1, 3, 2, 6, 7, 5, 4])
"""What stands at each level of drums and roles, as bits: cymbals, snare, kick; lead, chords, bass."""
LEVEL_OF_BITS = np.argsort(GRAY)
KICK, SNARE, CYMBALS = 4, 2, 1
BASS, CHORDS, LEAD = 4, 2, 1
BEAT_LEVELS = np.array([0, 3, 1, 4])
"""The level of the bar's first, second, third and fourth beat."""
NO_BEAT = 2
NO_CHORD = 24

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}


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


def chords_of(tonic: int, scale: str) -> set[int]:
    """Return the chords of a key whose tonic is a pitch class: those on the seven steps of its `scale`."""
    steps = SCALES[scale]
    chords = set()
    for degree, root in enumerate(steps):
        third = (steps[(degree + 2) % 7] - root) % 12
        chords.add(chord_number((tonic + root) % 12, third == 3))
    return chords


# The step of a scale that the key a fifth up has a semitone higher, and the one that the key a fifth down has lower.
TELLING_STEPS = {"major": (3, 6), "minor": (5, 1)}


def telling_chords_of(tonic: int, scale: str) -> tuple[frozenset[int], frozenset[int]]:
    """Return the chords that tell a key from the one a fifth up, and those that tell it from the one a fifth down.

    Each is major or minor and has one of the two telling steps: in C major F and D minor, G and E minor.
    """
    steps = SCALES[scale]
    told: list[set[int]] = [set(), set()]
    for degree in range(7):
        tones = [(degree + up) % 7 for up in (0, 2, 4)]
        root, third, fifth = (steps[tone] for tone in tones)
        if (fifth - root) % 12 != 7:
            continue
        has_one = [step in tones for step in TELLING_STEPS[scale]]
        if sum(has_one) == 1:
            is_minor = (third - root) % 12 == 3
            told[has_one.index(True)].add(chord_number((tonic + root) % 12, is_minor))
    fifth_up, fifth_down = told
    return frozenset(fifth_up), frozenset(fifth_down)


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


def last_begun(codes: Sequence[int]) -> float:
    """Return the second in which the last of `codes` [N] with a drum or a note begins to sound, 0.0 if none has any."""
    digits = digits_in(np.array(codes))
    sounding = np.flatnonzero((GRAY[digits[:, DRUMS]] > 0) | (GRAY[digits[:, PLAYING]] > 0))
    if len(sounding) == 0:
        return 0.0
    last = sounding[-1]
    frames = FRAMES * last + min(digits[last, MOMENT], FRAMES - 1)
    return float(frames / FRAMES / CODES_PER_SECOND)


BITS = np.array([number.bit_count() for number in range(8)])
WORTH = {MOMENT: 8, BEAT: 8, CHORD: 6}
"""What another moment, beat or chord costs, where one drum or role more or less costs 1."""


def likest(codes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return for each of `codes` [N] the one of `known` [M] that means most nearly the same."""
    wanted = digits_in(codes)[:, None]
    found = digits_in(known)[None]
    cost = BITS[GRAY[wanted[..., DRUMS]] ^ GRAY[found[..., DRUMS]]]
    cost = cost + BITS[GRAY[wanted[..., PLAYING]] ^ GRAY[found[..., PLAYING]]]
    for digit in (MOMENT, BEAT):
        cost += WORTH[digit] * (wanted[..., digit] != found[..., digit])
    cost += WORTH[CHORD] * (chord_in(wanted) != chord_in(found))
    return known[cost.argmin(axis=1)]
