"""What the built-in engine is trained on: a score as latents, and what the words and a side task say about it.

Latents are not learnt. They are read off the score, 32 numbers a frame at 25 frames a second, so that the decoder, the
encoder, the codes and the song model are four independent, supervised trainings. A frame spans four ticks of the
score's grid and holds at most one moment.

| numbers | meaning |
|---|---|
| 0 to 3 | the bass note, a point on two circles (semitones and fifths), times its level |
| 4 to 15 | the level of each of the chords' twelve pitches |
| 16 to 19 | the lead note, like the bass |
| 20 to 23 | the level of each drum |
| 24, 25 | which of the frame's four ticks sounds |
| 26; 27, 28; 29, 30; 31 | bass, chords and lead instrument, kit |
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from diffusers import AceStepPipeline

from training.band_score import DRUMS, INSTRUMENTS, KITS, LOWEST, ROLES, Score
from training.band_sounds import STEMS
from training.small_models import WORDS

LATENTS = 32
FRAME_TICKS = 4
FRAMES_PER_SECOND = 25
BASS = slice(0, 4)
CHORDS = slice(4, 16)
LEAD = slice(16, 20)
HITS = slice(20, 24)
MOMENT = slice(24, 26)
PLAYERS = slice(26, 32)
PLAYER_NUMBERS = {
    "bass": slice(26, 27),
    "chords": slice(27, 29),
    "lead": slice(29, 31),
    "drums": slice(31, 32),
}

MOMENTS = ((-1, -1), (-1, 1), (1, 1), (1, -1))
HEXAGON = [(np.cos(angle), np.sin(angle)) for angle in np.arange(6) * np.pi / 3]

SECTIONS = ("intro", "verse", "chorus", "break", "outro")
# What the side task reads off the song model: beat and bar, pitch classes, who plays, the section.
FEATURES = 37
BEAT = slice(0, 2)
BAR = slice(2, 4)
PITCH_CLASSES = slice(4, 28)
# The studio's name for the track that an instrument belongs to.
TRACKS = {
    "epiano": "KEYBOARD",
    "guitar": "GUITAR",
    "organ": "KEYBOARD",
    "strings": "STRINGS",
    "pluck": "SYNTH",
    "vibes": "PERCUSSION",
    "square": "SYNTH",
    "flute": "WOODWINDS",
    "bell": "KEYBOARD",
    "saw": "SYNTH",
    "marimba": "PERCUSSION",
}


class Events(NamedTuple):
    """What sounds: rows (tick, pitch or drum, level) for each role and for the drums, and who plays them."""

    notes: dict[str, np.ndarray]
    hits: np.ndarray
    instruments: dict[str, str]
    kit: str


def events_of(score: Score, stems: Sequence[str] = STEMS) -> Events:
    """Return the events of a score, those of `stems` alone if given."""
    nothing = np.zeros((0, 3), int)
    notes = {role: score.notes[role] if role in stems else nothing for role in ROLES}
    return Events(notes, score.hits if "drums" in stems else nothing, score.instruments, score.kit)


def window(events: Events, start: int, end: int, stems: Sequence[str] = STEMS) -> Events:
    """Return the events of `stems` between two ticks, counted from `start`."""

    def cut(rows: np.ndarray, stem: str) -> np.ndarray:
        inside = rows[(rows[:, 0] >= start) & (rows[:, 0] < end)] if stem in stems else rows[:0]
        return inside - (start, 0, 0)

    notes = {role: cut(events.notes[role], role) for role in ROLES}
    return events._replace(notes=notes, hits=cut(events.hits, "drums"))


# --- latents ------------------------------------------------------------------------------------------------------


@functools.cache
def pitch_circles() -> np.ndarray:
    """Return the point [12, 4] of each semitone on the circle of semitones and on that of fifths."""
    angles = 2 * np.pi * np.arange(12) / 12
    circles = np.stack(
        [np.cos(angles), np.sin(angles), np.cos(5 * angles), np.sin(5 * angles)], axis=1
    )
    return circles.astype(np.float32)


def latents_of(events: Events, ticks: int) -> np.ndarray:
    """Return the latents [ticks / 4, 32] of events."""
    frames = ticks // FRAME_TICKS
    pitches = np.zeros((len(ROLES), frames, 12), np.float32)
    out = np.zeros((frames, LATENTS), np.float32)
    for number, role in enumerate(ROLES):
        for tick, pitch, level in events.notes[role]:
            frame = tick // FRAME_TICKS
            if frame < frames:
                step = pitch - LOWEST[role]
                pitches[number, frame, step] = max(pitches[number, frame, step], level / 2)
                out[frame, MOMENT] = MOMENTS[tick % FRAME_TICKS]
    for tick, number, level in events.hits:
        frame = tick // FRAME_TICKS
        if frame < frames:
            out[frame, HITS.start + number] = level / 2
            out[frame, MOMENT] = MOMENTS[tick % FRAME_TICKS]
    out[:, BASS] = pitches[0] @ pitch_circles()
    out[:, CHORDS] = pitches[1]
    out[:, LEAD] = pitches[2] @ pitch_circles()
    players = events.instruments
    out[:, PLAYER_NUMBERS["bass"]] = INSTRUMENTS["bass"].index(players["bass"]) / 1.5 - 1
    for role in ("chords", "lead"):
        out[:, PLAYER_NUMBERS[role]] = HEXAGON[INSTRUMENTS[role].index(players[role])]
    out[:, PLAYER_NUMBERS["drums"]] = KITS.index(events.kit) - 1
    return out


def clock(frames: int) -> np.ndarray:
    """Return the position [frames, 32] that is added to the latent of silence.

    The studio's silence is constant, which gives the transformer no sense of time. These are circles at ten tempos
    and at one to six turns a minute; odd frames run at a quarter of the speed.
    """
    turns = np.array([66 + 12 * number for number in range(10)] + [1, 2, 3, 4, 5, 6])
    seconds = np.arange(frames)[:, None] / FRAMES_PER_SECOND
    slow = np.where(np.arange(frames) % 2 == 0, 1.0, 0.25)[:, None]
    angles = 2 * np.pi * seconds * slow * turns[None] / 60
    out = np.zeros((frames, LATENTS), np.float32)
    out[:, 0::2] = np.cos(angles)
    out[:, 1::2] = np.sin(angles)
    return out


def random_events(rng: np.random.Generator, ticks: int) -> Events:
    """Return events that are not music: the decoder must play whatever the song model asks for."""
    step = rng.integers(6, 26)
    tick = int(rng.integers(0, 8))
    moments = []
    while tick < ticks:
        moments.append(tick)
        tick += int(max(5, step * rng.choice([1, 1, 1, 2]) + rng.integers(-1, 2)))
    bass = rng.choice([0, 0.3, 0.6, 0.9])
    chords = rng.choice([0, 0.15, 0.3, 0.6])
    lead = rng.choice([0, 0.2, 0.5])
    drums = rng.choice([0, 0.3, 0.6])
    rows: dict[str, list] = {stem: [] for stem in STEMS}
    for tick in moments:
        if rng.random() < bass:
            rows["bass"].append(
                (tick, LOWEST["bass"] + int(rng.integers(12)), int(rng.integers(1, 3)))
            )
        if rng.random() < chords:
            level = int(rng.integers(1, 3))
            pitches = rng.choice(12, int(rng.integers(1, 5)), replace=False)
            rows["chords"] += [(tick, LOWEST["chords"] + int(pitch), level) for pitch in pitches]
        if rng.random() < lead:
            rows["lead"].append(
                (tick, LOWEST["lead"] + int(rng.integers(12)), int(rng.integers(1, 3)))
            )
        for number in range(len(DRUMS)):
            if rng.random() < drums * (0.5, 0.35, 0.8, 0.25)[number]:
                rows["drums"].append((tick, number, int(rng.integers(1, 3))))
    players = {role: str(rng.choice(INSTRUMENTS[role])) for role in ROLES}
    arrays = {stem: np.array(found, int).reshape(-1, 3) for stem, found in rows.items()}
    hits = arrays.pop("drums")
    return Events(arrays, hits, players, str(rng.choice(KITS)))


# --- descriptions of a piece -----------------------------------------------------------------------------------


def features_of(score: Score, frames: int) -> np.ndarray:
    """Return what the score says about each frame, [frames, 37]: the targets of the song model's side task."""
    out = np.zeros((frames, FEATURES), np.float32)
    beat = (np.arange(frames) + 0.5) / FRAMES_PER_SECOND * score.bpm / 60
    for place, turns in ((BEAT, beat), (BAR, beat / score.beats)):
        out[:, place] = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)
    for first, role in ((4, "chords"), (16, "bass")):
        for tick, pitch, _ in score.notes[role]:
            frame = tick // FRAME_TICKS
            out[max(0, frame - 2) : frame + 14, first + pitch % 12] = 1
    for number, stem in enumerate(STEMS):
        for row in score.hits if stem == "drums" else score.notes[stem]:
            frame = row[0] // FRAME_TICKS
            out[max(0, frame - 6) : frame + 13, 28 + number] = 1
    for part in score.form:
        first = int(part.start * FRAMES_PER_SECOND)
        last = int(np.ceil(part.end * FRAMES_PER_SECOND))
        out[first:last, 32 + SECTIONS.index(part.name)] = 1
    return out


@functools.cache
def lyric_words() -> tuple[str, ...]:
    """Return the words that fill lyrics in training."""
    return tuple(word for word in WORDS.read_text(encoding="utf-8").split() if word.isalpha())


def words_for(
    score: Score, rng: np.random.Generator, instruction: str, seconds: float, **instead: object
) -> tuple[str, str, dict]:
    """Return prompt, lyrics and what they say of BPM, key and beats (None where it is left out).

    `instead` replaces what the score has. A share of the lyrics gets words under its tags, which mean nothing.
    """
    details = {name: instead.get(name, getattr(score, name)) for name in ("bpm", "key", "beats")}
    for name in details:
        if rng.random() < 0.12:
            details[name] = None
    lyrics = score.lyrics
    if lyrics.strip() != "[Instrumental]" and rng.random() < 0.3:
        lyrics = "\n".join(f"{line}\n{_filler(rng)}" for line in lyrics.split("\n"))
    text, lyrics = AceStepPipeline._format_prompt(
        AceStepPipeline,
        prompt=str(rng.choice(score.captions)),
        lyrics=lyrics,
        vocal_language=str(rng.choice(("unknown", "unknown", "en"))),
        audio_duration=seconds,
        instruction=instruction,
        bpm=details["bpm"],
        keyscale=details["key"] or "",
        timesignature=str(details["beats"] or ""),
    )
    return text, lyrics, details


def _filler(rng: np.random.Generator) -> str:
    count = int(rng.integers(1, 3))
    return "\n".join(
        " ".join(rng.choice(lyric_words(), int(rng.integers(3, 8)))) for _ in range(count)
    )


def track_of(stem: str, instruments: dict[str, str]) -> str:
    """Return the studio's name, in capitals, for the track that a stem is."""
    return {"drums": "DRUMS", "bass": "BASS"}.get(stem) or TRACKS[instruments[stem]]
