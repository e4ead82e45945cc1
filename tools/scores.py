"""Whether scores prefer a good take to a damaged one, as a table: python -m tools.scores [--help]

Songs of the built-in engine are damaged in the ways that a score is meant to hear, and each is compared with itself
before the damage. A row tells in how many pairs the sound one has the higher score, and the medians of both. The last
line tells what scoring costs, as a share of the time that the songs took.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import soxr

import audio
import audio_levels
import backend
import bootstrap
import song_score
from events import Done
from limits import SAMPLE_RATE, SCORE_PARTS
from params import parse_request

PROMPTS = ("techno", "acoustic pop", "jazz trio", "lo-fi hip hop", "rock band")
TEMPOS = (84, 100, 120, 138)
WORDS = "words shuffled"


@dataclass(frozen=True)
class Piece:
    """A finished song: samples [2, n] at 48 kHz, the tempo that it was asked for, and what scoring it cost."""

    samples: np.ndarray
    bpm: int
    scoring: float  # seconds
    making: float  # seconds, scoring included


def half_noise(piece: Piece, random: np.random.Generator) -> np.ndarray:
    damaged = piece.samples.copy()
    half = damaged.shape[1] // 2
    level = float(np.sqrt(np.square(damaged).mean()))
    damaged[:, half:] = level * random.normal(size=damaged[:, half:].shape)
    return damaged


def wrong_tempo(piece: Piece, random: np.random.Generator) -> np.ndarray:
    """Return the song played 8 to 25 % too fast or too slow."""
    factor = random.uniform(1.08, 1.25) ** random.choice([-1, 1])
    played = soxr.resample(piece.samples.T, SAMPLE_RATE * factor, SAMPLE_RATE)
    return np.ascontiguousarray(played.T)


def silence(piece: Piece, random: np.random.Generator) -> np.ndarray:
    """Return the song with 5 s of silence in it."""
    damaged = piece.samples.copy()
    start = int(random.integers(SAMPLE_RATE, damaged.shape[1] - 6 * SAMPLE_RATE))
    damaged[:, start : start + 5 * SAMPLE_RATE] = 0
    return damaged


def clipped(piece: Piece, random: np.random.Generator) -> np.ndarray:
    """Return the song 12 dB too loud."""
    peak = audio.peak_of(piece.samples)
    return np.clip(4 * piece.samples, -peak, peak)


def cut_off(piece: Piece, random: np.random.Generator) -> np.ndarray:
    """Return the song up to a loud moment in its second half."""
    moment = SAMPLE_RATE // 20
    half = piece.samples.shape[1] // 2
    rest = piece.samples[:, half:]
    count = rest.shape[1] // moment
    blocks = rest[:, : count * moment].reshape(2, count, moment)
    power = np.square(blocks).mean(axis=(0, 2))
    loud = np.flatnonzero(power >= np.quantile(power, 0.8))
    return piece.samples[:, : half + (int(random.choice(loud)) + 1) * moment]


DAMAGES: dict[str, Callable[[Piece, np.random.Generator], np.ndarray]] = {
    "half of it noise": half_noise,
    "wrong tempo": wrong_tempo,
    "5 s of silence": silence,
    "clipped": clipped,
    "cut off": cut_off,
}


def songs(count: int, seconds: float) -> Iterator[Piece]:
    """Make `count` songs of `seconds` with the built-in engine, of different styles, tempos and seeds."""
    studio = backend.get_backend()
    for number in range(count):
        bpm = TEMPOS[number % len(TEMPOS)]
        request = parse_request(
            "generate",
            {
                "prompt": PROMPTS[number % len(PROMPTS)],
                "bpm": bpm,
                "duration": seconds,
                "seed": 100 + number,
                "options": {"plan": False},
            },
        )
        *_, done = studio.stream(request)
        if not isinstance(done, Done):
            raise SystemExit(f"Song {number} could not be made: {done}")
        spent = done.record["seconds"]
        yield Piece(audio.decode(done.files[0]), bpm, spent["scoring"], sum(spent.values()))


def score(samples: np.ndarray, bpm: int) -> float:
    flatness = audio_levels.spectral_flatness(samples)
    found = song_score.total(song_score.measured(samples, bpm, tuple(SCORE_PARTS), flatness))
    assert found is not None
    return found


def pairs(pieces: list[Piece]) -> dict[str, list[tuple[float, float]]]:
    """Return for each damage the scores (before, after) of each song."""
    random = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in DAMAGES}
    for piece in pieces:
        before = score(piece.samples, piece.bpm)
        for name, damage in DAMAGES.items():
            found[name].append((before, score(damage(piece, random), piece.bpm)))
    return found


def right(compared: list[tuple[float, float]]) -> float:
    """Return the share of pairs whose sound song has the higher score."""
    return sum(before > after for before, after in compared) / len(compared)


def table(pieces: list[Piece]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| damage | pairs | right | median before | median after |"
    yield "|---|---|---|---|---|"
    for name, compared in pairs(pieces).items():
        before, after = np.median(compared, axis=0)
        yield f"| {name} | {len(compared)} | {right(compared):.0%} | {before:.0f} | {after:.0f} |"
    yield f"| {WORDS} | 0 | does not apply: the built-in engine sings no words | | |"
    yield ""
    cost = sum(piece.scoring for piece in pieces) / sum(piece.making for piece in pieces)
    yield f"Scoring took {cost:.1%} of the time of {len(pieces)} songs."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--songs", type=int, default=20, help="how many songs to make (20)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each (30)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ACE_STUDIO_MODEL"] = "preview"
        os.environ["ACE_STUDIO_OUTPUT"] = folder
        bootstrap.bootstrap()
        for line in table(list(songs(given.songs, given.seconds))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
