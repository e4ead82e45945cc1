"""The band's sampler: it plays a score with fixed one-shots, so that every sound is the same each time it is struck.

A note of an instrument always starts with the same phase and shape, lasts at most 0.43 s and decays by itself; a drum
hit is one fixed sample. Onsets lie on the score's grid, levels are a factor, and nothing is detuned or moved. That is
what makes the sound learnable for a tiny network on a CPU. Everything is arithmetic; nothing is recorded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from limits import SAMPLE_RATE
from training.band_score import DRUMS, KITS, ROLES, TICK, Score

LENGTH = int(0.43 * SAMPLE_RATE)
FADE_SECONDS = 0.08
STEMS = ("drums", *ROLES)
MIX_GAIN = 0.45
"""Brings the sum of the stems to a level that does not clip."""

# Amplitude of each partial, decay in seconds at 220 Hz, attack in seconds.
TONES = {
    ("bass", "sub"): ((1, 0.25, 0.05), 0.26, 0.004),
    ("bass", "finger"): ((1, 0.6, 0.35, 0.15, 0.08), 0.20, 0.003),
    ("bass", "pick"): ((1, 0.7, 0.55, 0.4, 0.3, 0.2, 0.12), 0.15, 0.002),
    ("bass", "synth"): ((1, 0.5, 0.6, 0.3, 0.4, 0.2, 0.25, 0.1), 0.24, 0.003),
    ("chords", "epiano"): ((1, 0.15, 0.3, 0.05, 0.1), 0.24, 0.003),
    ("chords", "guitar"): ((1, 0.7, 0.5, 0.3, 0.25, 0.15, 0.1), 0.16, 0.002),
    ("chords", "organ"): ((1, 0.7, 0.3, 0.5, 0, 0.2, 0, 0.25), 0.45, 0.008),
    ("chords", "strings"): ((1, 0.6, 0.5, 0.3, 0.25, 0.2), 0.40, 0.06),
    ("chords", "pluck"): ((1, 0.4, 0.2, 0.1), 0.10, 0.002),
    ("chords", "vibes"): ((1, 0, 0, 0.5), 0.30, 0.003),
    ("lead", "square"): ((1, 0, 0.4, 0, 0.22, 0, 0.14), 0.35, 0.003),
    ("lead", "flute"): ((1, 0.2, 0.06), 0.40, 0.03),
    ("lead", "bell"): ((1, 0, 0.5, 0.3, 0, 0.3), 0.25, 0.002),
    ("lead", "saw"): ((1, 0.55, 0.38, 0.28, 0.2, 0.16), 0.35, 0.004),
    ("lead", "guitar"): ((1, 0.5, 0.35, 0.2, 0.1), 0.18, 0.002),
    ("lead", "marimba"): ((1, 0, 0, 0.35), 0.10, 0.002),
}
# Semitones of the partials over the note. Like an organ's stops they lie on the tempered scale, so that notes of one
# pitch class share their frequencies.
PARTIALS = (0, 12, 19, 24, 28, 31, 34, 36)
HIGHEST_PARTIAL = 12_000
LEVELS = {"bass": 0.42, "chords": 0.16, "lead": 0.2}
# Gain on the left and on the right.
PANS = {
    "bass": (1, 1),
    "chords": (1, 0.75),
    "lead": (0.75, 1),
    "kick": (1, 1),
    "snare": (1, 0.9),
    "hat": (0.8, 1),
    "open": (1, 0.8),
}

# Pitch in Hz, sweep in Hz, decay in seconds.
KICKS = {"acoustic": (52, 90, 0.09), "electronic": (45, 160, 0.13), "soft": (55, 50, 0.08)}
# Decay in seconds, pitch in Hz (0: noise alone).
SNARES = {"acoustic": (0.05, 190), "electronic": (0.07, 0), "soft": (0.035, 220)}
# Decay in seconds.
CYMBALS = {
    "hat": {"acoustic": 0.018, "electronic": 0.012, "soft": 0.015},
    "open": {"acoustic": 0.06, "electronic": 0.08, "soft": 0.03},
}
SMOOTH = (0.25, 0.5, 0.25)


@dataclass(frozen=True)
class Piece:
    """A rendered score; `stems` [4, 2, samples] in the order of STEMS."""

    score: Score
    stems: np.ndarray

    @property
    def mix(self) -> np.ndarray:
        """The sum of the stems, [2, samples]."""
        return self.stems.sum(axis=0)


def render(score: Score) -> Piece:
    """Play a score: stereo at 48 kHz, exactly as long as the score."""
    samples = round(score.seconds * SAMPLE_RATE)
    stems = np.zeros((len(STEMS), 2, samples + LENGTH), np.float32)
    for tick, number, level in score.hits:
        name = DRUMS[number]
        _strike(stems[0], drum(score.kit, name), PANS[name], tick, level)
    for stem, role in enumerate(ROLES, 1):
        for tick, pitch, level in score.notes[role]:
            _strike(
                stems[stem],
                note(role, score.instruments[role], int(pitch)),
                PANS[role],
                tick,
                level,
            )
    return Piece(score, stems[..., :samples] * np.float32(MIX_GAIN))


def _strike(
    stem: np.ndarray, sound: np.ndarray, pan: tuple[float, float], tick: int, level: int
) -> None:
    start = int(tick) * TICK
    loud = sound * (level / 2)
    for channel, gain in zip(stem, pan, strict=True):
        channel[start : start + LENGTH] += loud * gain


@functools.cache
def note(role: str, instrument: str, pitch: int) -> np.ndarray:
    """Return the one-shot [LENGTH] of a MIDI pitch at the loud level."""
    amplitudes, decay, attack = TONES[role, instrument]
    t = np.arange(LENGTH) / SAMPLE_RATE
    out = np.zeros(LENGTH)
    for amplitude, offset in zip(amplitudes, PARTIALS, strict=False):
        hertz = 440 * 2 ** ((pitch + offset - 69) / 12)
        if amplitude and hertz < HIGHEST_PARTIAL:
            out += (
                amplitude
                * np.sin(2 * np.pi * hertz * t)
                * np.exp(-t / (decay * (220 / max(hertz, 60)) ** 0.25))
            )
    out *= np.minimum(1, t / attack)
    size = np.sqrt(sum(amplitude * amplitude for amplitude in amplitudes))
    return np.float32(_fade(out) * LEVELS[role] / size)


@functools.cache
def drum(kit: str, name: str) -> np.ndarray:
    """Return the one-shot [LENGTH] of a drum at the loud level."""
    noise = np.random.default_rng([7, KITS.index(kit), DRUMS.index(name)]).standard_normal(LENGTH)
    t = np.arange(LENGTH) / SAMPLE_RATE
    if name == "kick":
        pitch, sweep, decay = KICKS[kit]
        phase = pitch * t + sweep * 0.03 * (1 - np.exp(-t / 0.03))
        out = np.sin(2 * np.pi * phase) * np.exp(-t / decay) * 0.75
    elif name == "snare":
        decay, pitch = SNARES[kit]
        out = 0.35 * np.convolve(noise, SMOOTH, "same") * np.exp(-t / decay)
        if pitch:
            out += 0.35 * np.sin(2 * np.pi * pitch * t) * np.exp(-t / 0.06)
    else:
        bright = np.diff(np.convolve(np.diff(noise, prepend=0), SMOOTH, "same"), prepend=0)
        out = bright * np.exp(-t / CYMBALS[name][kit]) * 0.3
    if kit == "soft":
        out = out * 0.7
    return np.float32(_fade(out * np.minimum(1, t / 0.0005)))


def _fade(sound: np.ndarray) -> np.ndarray:
    count = int(FADE_SECONDS * SAMPLE_RATE)
    sound[-count:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(count) / count)
    return sound
