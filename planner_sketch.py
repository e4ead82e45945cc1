"""What a sketch of the built-in planner is held to: the words that it was asked with, and what audio codes say.

A planner of a few million parameters writes valid metadata and captions, but may answer "sad waltz" with a cheerful
one, and hears neither tempo nor style in codes. So what follows from the words, and what can be read off the codes
(`planner_codes`), is given to it like the facts that a visitor gives; and of several sketches the one that agrees most
with the words is kept. Lyrics it cannot write: its sketches have sections, and leave a visitor's lyrics alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import planner_codes
from lyrics_tags import TAG
from planner_codes import (
    BEAT,
    BEAT_LEVELS,
    DRUMS,
    FRAMES,
    LEVELS,
    MOMENT,
    NO_BEAT,
    NO_CHORD,
    NOTHING,
    PLAYING,
)
from song_words import SCALES, KnownWords, choose_key, choose_tempo, first_named

SKETCHES = 4
FRAMES_PER_MINUTE = 1_500
COHERENT = 0.8
"""Beats of a tempo lie together at its multiples, too: the slowest that is nearly as clear as the clearest is it."""
TONIC_WORTH = 0.5
"""What a tonic chord counts besides being in the key: relative keys have the same chords."""
STYLES_FILE = "styles.safetensors"
PLAYED = LEVELS[DRUMS] * LEVELS[PLAYING] * LEVELS[BEAT]
SLOWEST = 60
BPM_A_BIN = 8
TEMPO_BINS = 16
NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
FOURTHS = 0.1
"""From this share of beats that are a bar's fourth on, bars have four."""


def suggested(words: str, known: KnownWords, seed: int) -> dict[str, Any]:
    """Return the fields of a request that follow from a prompt's words, as far as they do: bpm, key, time_signature."""
    chance = random.Random(seed)
    fields: dict[str, Any] = {}
    style = first_named(words, known.style_names)
    if style is not None or first_named(words, known.speeds) is not None:
        fields["bpm"] = choose_tempo(words, known, chance)
    if first_named(words, known.scales) is not None:
        fields["key"] = choose_key(words, known, chance)
    if style is not None:
        fields["time_signature"] = known.style_metres[style]
    return fields


def agreement(words: str, caption: str, known: KnownWords) -> float:
    """Return how much of the style, the speed and the mood that `words` name a caption names too, 0 to 1."""
    named = []
    for meanings in (known.style_names, known.speeds, known.scales):
        asked = first_named(words, meanings)
        if asked is not None:
            named.append(first_named(caption, meanings) == asked)
    return sum(named) / len(named) if named else 1.0


def keeps_style(words: str, caption: str, known: KnownWords) -> bool:
    """Tell whether a caption names the style that `words` name, if they name one."""
    asked = first_named(words, known.style_names)
    return asked is None or first_named(caption, known.style_names) == asked


def only_sections(lyrics: str) -> str:
    """Return the tags of some lyrics, without words."""
    return "\n\n".join(line.strip() for line in lyrics.split("\n") if TAG.fullmatch(line.strip()))


def heard(codes: Sequence[int], known: KnownWords) -> dict[str, Any]:
    """Return what audio codes [N] say, as fields of a request: bpm, key and time_signature, as far as they say it."""
    digits = planner_codes.digits_in(np.array(codes))
    found: dict[str, Any] = {}
    beats = np.flatnonzero((digits[:, BEAT] != NO_BEAT) & (digits[:, MOMENT] < NOTHING))
    if len(beats) > 3:
        frames = beats * FRAMES + digits[beats, MOMENT]
        found["bpm"] = _tempo(frames, known.tempo)
        fourths = float((digits[beats, BEAT] == BEAT_LEVELS[3]).mean())
        found["time_signature"] = "4" if fourths > FOURTHS else "3"
    chords = planner_codes.chord_in(digits)
    chords = chords[chords != NO_CHORD]
    if len(chords):
        found["key"] = _key(chords)
    return found


@dataclass(frozen=True)
class Styles:
    """What the codes of each style are like: how often which drums and notes fall on which beat, and at which tempos.

    Counted in rendered pieces: `played` [styles, PLAYED], `tempos` [styles, TEMPO_BINS]. `names` are those of
    `KnownWords.style_names`.
    """

    names: tuple[str, ...]
    played: np.ndarray
    tempos: np.ndarray

    def likeliest(self, codes: Sequence[int], bpm: int) -> str:
        """Return the style of audio codes [N] at a tempo, by Bayes' rule, as if codes did not depend on one another."""
        per_code = np.log((self.played + 1) / (self.played + 1).sum(axis=1, keepdims=True))
        per_tempo = np.log((self.tempos + 1) / (self.tempos + 1).sum(axis=1, keepdims=True))
        likely = per_code @ played(codes) + per_tempo[:, tempo_bin(bpm)]
        return self.names[int(likely.argmax())]


def read_styles(folder: Path) -> Styles | None:
    """Return the styles that lie beside a planner, None if there are none."""
    path = folder / STYLES_FILE
    if not path.is_file():
        return None
    with safetensors.safe_open(path, "numpy") as file:
        names = tuple(json.loads(file.metadata()["names"]))
        return Styles(names, file.get_tensor("played"), file.get_tensor("tempos"))


def write_styles(styles: Styles, folder: Path) -> None:
    """Write styles beside a planner."""
    tensors = {"played": styles.played, "tempos": styles.tempos}
    names = {"names": json.dumps(styles.names)}
    safetensors.numpy.save_file(tensors, folder / STYLES_FILE, metadata=names)


def played(codes: Sequence[int]) -> np.ndarray:
    """Return how often which drums and notes fall on which beat in audio codes [N], [PLAYED]."""
    digits = planner_codes.digits_in(np.array(codes, np.int64))
    places = (digits[:, DRUMS] * LEVELS[PLAYING] + digits[:, PLAYING]) * LEVELS[BEAT] + digits[
        :, BEAT
    ]
    return np.bincount(places, minlength=PLAYED)


def tempo_bin(bpm: int) -> int:
    """Return the place of a tempo in `Styles.tempos`."""
    return int(np.clip((bpm - SLOWEST) // BPM_A_BIN, 0, TEMPO_BINS - 1))


def _tempo(frames: np.ndarray, allowed: tuple[int, int]) -> int:
    """Return the BPM in whose time beats at `frames` lie together best."""
    tempos = np.arange(allowed[0], allowed[1] + 1)
    turns = np.outer(tempos, frames) / FRAMES_PER_MINUTE
    clear = np.abs(np.exp(2j * np.pi * turns).mean(axis=1))
    return int(tempos[np.flatnonzero(clear >= COHERENT * clear.max())[0]])


def _key(chords: np.ndarray) -> str:
    """Return the key, such as "F# minor", that has most of the chords, and most of all its tonic."""
    best = ""
    most = -1.0
    for tonic, note in enumerate(NOTES):
        for scale in SCALES:
            own = np.isin(chords, list(planner_codes.chords_of(tonic, scale))).sum()
            home = (chords == planner_codes.chord_number(tonic, scale == "minor")).sum()
            worth = own + TONIC_WORTH * home
            if worth > most:
                most = worth
                best = f"{note} {scale}"
    return best
