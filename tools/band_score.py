"""What the band plays: from a style, a tempo, a key and section tags to notes and drum hits, and to captions.

`compose` draws everything from one seeded generator on the CPU, in a fixed order, so that a seed means the same piece
on every machine. A piece is planned in whole bars from the start; the last bar may be cut by the end.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from tools.band_sounds import Notes
from tools.band_styles import INSTRUMENTS, STEMS, STYLES, Style

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
NOTE_NAMES = (
    ("C",),
    ("C#", "Db"),
    ("D",),
    ("D#", "Eb"),
    ("E",),
    ("F",),
    ("F#", "Gb"),
    ("G",),
    ("G#", "Ab"),
    ("A",),
    ("A#", "Bb"),
    ("B",),
)
PITCH_CLASSES = {name: pitch for pitch, names in enumerate(NOTE_NAMES) for name in names} | {
    "Cb": 11,
    "B#": 0,
    "E#": 5,
    "Fb": 4,
}
LOUDNESS = {"X": 1.0, "x": 0.75, "o": 0.4}
BPM_RANGE = (60, 180)
LONGEST_LEAD_STEPS = 6

# What a section tag asks for, by how the tag begins; what is not here is a verse.
TAGS = {
    "intro": "intro",
    "start": "intro",
    "chorus": "chorus",
    "drop": "chorus",
    "hook": "chorus",
    "refrain": "chorus",
    "solo": "chorus",
    "guitar solo": "chorus",
    "break": "break",
    "bridge": "break",
    "build": "break",
    "interlude": "break",
    "outro": "outro",
    "end": "outro",
    "coda": "outro",
}
WEIGHTS = {"intro": 1.0, "verse": 2.0, "chorus": 2.0, "break": 1.0, "outro": 1.0}
# How loud each stem plays in a section; the drums' number chooses what of the kit plays: light under 0.5.
ACTIVITY = {
    "intro": {"drums": 0.4, "bass": 0.0, "chords": 0.8, "lead": 0.0, "pad": 1.0},
    "verse": {"drums": 0.8, "bass": 0.9, "chords": 0.85, "lead": 0.7, "pad": 0.5},
    "chorus": {"drums": 1.0, "bass": 1.0, "chords": 1.0, "lead": 1.0, "pad": 1.0},
    "break": {"drums": 0.3, "bass": 0.6, "chords": 0.7, "lead": 0.0, "pad": 1.2},
    "outro": {"drums": 0.45, "bass": 0.8, "chords": 0.8, "lead": 0.0, "pad": 1.0},
}
TAG_WORDS = {"intro": "Intro", "verse": "Verse", "chorus": "Chorus", "break": "Break", "outro": "Outro"}


@dataclass(frozen=True)
class Part:
    """One section of the form, from bar `first` to before bar `last`; `start` and `end` in seconds."""

    name: str
    first: int
    last: int
    start: float
    end: float


@dataclass(frozen=True)
class Score:
    """A piece before it sounds: what was asked, the form, the notes and hits, and what people would call it.

    `players` names the instrument of each stem but the drums, `lyrics` is what the prompt's lyrics say: section tags or
    [Instrumental].
    """

    seed: int
    style: str
    bpm: int
    key: str
    beats: int
    seconds: float
    form: tuple[Part, ...]
    lyrics: str
    captions: tuple[str, ...]
    players: dict[str, str]
    notes: dict[str, Notes]
    hits: dict[str, np.ndarray]

    @property
    def tracks(self) -> dict[str, tuple[str, ...]]:
        """Return the stems of each track, by the names that the studio's tasks use."""
        found: dict[str, tuple[str, ...]] = {}
        for stem in STEMS:
            track = "drums" if stem == "drums" else INSTRUMENTS[self.players[stem]].track
            found[track] = (*found.get(track, ()), stem)
        return found


def compose(
    seed: int,
    style: str = "",
    bpm: int = 0,
    key: str = "",
    beats: int = 0,
    seconds: float = 30.0,
    lyrics: str = "",
) -> Score:
    """Write a piece; what is not given is drawn as the style likes it.

    `key` reads "F# minor", `beats` (a bar) is 3 or 4, `lyrics` may hold section tags, each in its own [brackets].
    Raises ValueError for what the band does not play.
    """
    rng = np.random.default_rng(seed)
    drawn_style = str(rng.choice(list(STYLES)))
    if (style or drawn_style) not in STYLES:
        raise ValueError(f"The band plays {', '.join(STYLES)}, not {style}.")
    how = STYLES[style or drawn_style]
    drawn_bpm = int(rng.integers(*how.bpm) if rng.random() < 0.8 else rng.integers(*BPM_RANGE, endpoint=True))
    drawn_key, drawn_beats = _draw_key(rng, how), int(rng.choice(how.beats))
    bpm, key, beats = bpm or drawn_bpm, key or drawn_key, beats or drawn_beats
    if not BPM_RANGE[0] <= bpm <= BPM_RANGE[1] or beats not in (3, 4):
        raise ValueError(f"The band plays {BPM_RANGE[0]} to {BPM_RANGE[1]} BPM in 3/4 or 4/4, not {bpm} in {beats}/4.")
    tonic, scale = parse_key(key)
    bars = max(1, math.ceil(seconds * bpm / 60 / beats - 1e-9))
    form = _form(rng, lyrics, bars, 60 * beats / bpm)
    players = {stem: str(rng.choice(names)) for stem, names in how.instruments.items()}
    writer = _Writer(rng, how, tonic, scale, bpm, beats, form, bars)
    notes = {stem: writer.write(stem) for stem in STEMS if stem != "drums"}
    hits = writer.drums()
    told = lyrics or _lyrics(rng, form)
    captions = _captions(rng, how, players, bpm, scale)
    return Score(seed, how.name, bpm, key, beats, seconds, form, told, captions, players, notes, hits)


def parse_key(key: str) -> tuple[int, str]:
    """Return (pitch class, "major" or "minor") of a key like "F# minor". Raises ValueError for anything else."""
    note, _, scale = key.partition(" ")
    if note not in PITCH_CLASSES or scale not in SCALES:
        raise ValueError(f'A key reads "A minor" or "F# major", not "{key}".')
    return PITCH_CLASSES[note], scale


def sections(lyrics: str) -> list[str]:
    """Return the sections that the tags of `lyrics` ask for, in order; [Instrumental] asks for none."""
    names = []
    for tag in re.findall(r"\[([^\]]+)\]", lyrics.lower()):
        tag = tag.strip()
        if tag.startswith(("inst", "instrumental")):
            continue
        names.append(next((name for start, name in TAGS.items() if tag.startswith(start)), "verse"))
    return names


# --- the plan -----------------------------------------------------------------------------------------------------


def _draw_key(rng: np.random.Generator, how: Style) -> str:
    names = NOTE_NAMES[int(rng.integers(12))]
    return f"{rng.choice(names)} {'minor' if rng.random() < how.minor else 'major'}"


def _form(rng: np.random.Generator, lyrics: str, bars: int, bar_seconds: float) -> tuple[Part, ...]:
    """Spread the bars over the sections by their weights, in pairs of bars where there are enough."""
    wanted = ["verse", "chorus"]
    if bars >= 8:
        wanted = ["intro", "verse", "chorus", "outro"] if rng.random() < 0.5 else ["verse", "chorus", "verse", "chorus"]
    if bars >= 16:
        wanted = ["intro", "verse", "chorus", "break", "chorus", "outro"]
    names = sections(lyrics) or wanted
    grain = 2 if bars >= 3 * len(names) else 1
    total = sum(WEIGHTS[name] for name in names)
    ends, so_far = [], 0.0
    for name in names:
        so_far += WEIGHTS[name]
        ends.append(min(round(so_far / total * bars / grain) * grain, bars))
    ends[-1] = bars
    parts, first = [], 0
    for name, last in zip(names, ends, strict=True):
        if last > first:
            parts.append(Part(name, first, last, first * bar_seconds, last * bar_seconds))
            first = last
    return tuple(parts)


def _lyrics(rng: np.random.Generator, form: tuple[Part, ...]) -> str:
    if rng.random() < 0.4:
        return "[Instrumental]"
    return "\n\n".join(f"[{TAG_WORDS[part.name]}]" for part in form)


class _Writer:
    """Writes the stems of one piece, one after the other, from one generator."""

    def __init__(self, rng, how: Style, tonic: int, scale: str, bpm: int, beats: int, form, bars: int):
        self.rng, self.how, self.tonic, self.scale = rng, how, tonic, SCALES[scale]
        self.beats, self.form, self.bars = beats, form, bars
        self.step = 60 / bpm / 4
        self.steps = 4 * beats
        verse, chorus = (how.progressions[int(rng.integers(len(how.progressions)))] for _ in range(2))
        self.degrees = self._degrees(verse, chorus)
        self.motifs = {name: self._motif() for name in ("verse", "chorus")}

    def write(self, stem: str) -> Notes:
        """Return the notes of a stem."""
        rows = []
        for part in self.form:
            level = ACTIVITY[part.name][stem]
            if level:
                for bar in range(part.first, part.last):
                    rows += [(*row[:3], row[3] * level) for row in getattr(self, f"_{stem}")(bar, part)]
        rows = [self._human(row) for row in rows] or [(0.0, self.step, 12 * 4 + self.tonic, 0.0)]
        return Notes(*(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))

    def drums(self) -> dict[str, np.ndarray]:
        """Return the hits of each piece of the kit."""
        hits: dict[str, list] = {}
        for part in self.form:
            level = ACTIVITY[part.name]["drums"]
            for bar in range(part.first, part.last):
                fill = self.how.fills if bar == part.last - 1 and bar > part.first and level >= 0.5 else ""
                for piece, pattern in self.how.drums.items():
                    if level >= 0.5 or piece in self.how.light:
                        for step, loudness in self._pattern(pattern):
                            if fill and step >= self.steps - 4 and piece not in ("kick", "hat"):
                                continue
                            hits.setdefault(piece, []).append(self._hit(bar, step, loudness * (0.6 + 0.4 * level)))
                for step in range(self.steps - 4, self.steps) if fill else ():
                    hits.setdefault(fill, []).append(self._hit(bar, step, 0.6 + 0.1 * (step % 4)))
            if self.how.crash and level >= 0.5:
                hits.setdefault("crash", []).append(self._hit(part.first, 0, 0.9))
        return {piece: np.array(rows) for piece, rows in hits.items()}

    # Each of these returns rows (step from the piece's start, steps long, pitch, loudness) of one bar.

    def _bass(self, bar: int, part: Part) -> list[tuple]:
        root = 28 + (self._pitch(self.degrees[bar]) - 28) % 12
        fifth = root + self._interval(self.degrees[bar], 4)
        rows = []
        hits = self._pattern(self.how.bass)
        for number, (step, loudness) in enumerate(hits):
            until = hits[number + 1][0] if number + 1 < len(hits) else self.steps
            pitch = root
            if self.how.bass_kind == "octaves" and step % 4 and loudness < 1 and self.rng.random() < 0.5:
                pitch = root + 12
            elif self.how.bass_kind == "fifths":
                pitch = fifth if bar % 2 else root
            elif self.how.bass_kind == "roots" and number == len(hits) - 1 and number and self.rng.random() < 0.4:
                pitch = fifth
            length = min(until - step, 3 if self.how.bass_kind == "octaves" else self.steps) * 0.9
            rows.append((bar * self.steps + step, length, pitch, loudness * 0.9))
        return rows

    def _chords(self, bar: int, part: Part) -> list[tuple]:
        if bar % self.how.chord_bars and bar != part.first:
            return []
        tones = self._voicing(self.degrees[bar], self.how.chord_kind)
        rows, hits = [], self._pattern(self.how.chords)
        for number, (step, loudness) in enumerate(hits):
            until = hits[number + 1][0] if number + 1 < len(hits) else self.steps * self.how.chord_bars
            length = max((until - step) * self.how.gate, 0.4)
            if self.how.chord_kind == "arpeggio":
                rows.append((bar * self.steps + step, length, tones[step % len(tones)] + 12, loudness))
                continue
            # A strum: the tones start one after the other, a few thousandths of a step apart.
            for place, tone in enumerate(tones):
                onset = bar * self.steps + step + 0.04 * place * (self.how.loose > 0)
                rows.append((onset, length, tone, loudness / len(tones) ** 0.5))
        return rows

    def _lead(self, bar: int, part: Part) -> list[tuple]:
        motif = self.motifs["chorus" if part.name == "chorus" else "verse"][bar % 2]
        if part.name == "verse" and (bar - part.first) % 4 == 3:
            return []
        if bar == self.bars - 1:
            motif = [(0, float(self.steps), 0, 1.0)]
        rows = []
        for step, length, offset, loudness in motif:
            degree = self.degrees[bar] + offset if step % 8 == 0 else offset
            pitch = self._near(degree, self.how.lead_height)
            rows.append((bar * self.steps + step, length, pitch, loudness))
        return rows

    def _pad(self, bar: int, part: Part) -> list[tuple]:
        tones = self._voicing(self.degrees[bar], "triad")
        return [(bar * self.steps, self.steps * 0.98, tone + 12, 0.6) for tone in tones]

    # --- harmony ---

    def _degrees(self, verse: tuple[int, ...], chorus: tuple[int, ...]) -> list[int]:
        """Return the degree (0 to 6) of the chord of each bar; every section begins, and the piece ends, at home."""
        degrees = []
        for part in self.form:
            chords = chorus if part.name == "chorus" else verse
            for bar in range(part.last - part.first):
                degrees.append(chords[bar // self.how.chord_bars % len(chords)])
        degrees[-1] = 0
        return degrees

    def _pitch(self, degree: int) -> int:
        return self.tonic + self.scale[degree % 7] + 12 * (degree // 7)

    def _interval(self, degree: int, steps: int) -> int:
        return self._pitch(degree + steps) - self._pitch(degree)

    def _near(self, degree: int, height: int) -> int:
        """Return the pitch of a degree within a tritone of `height`."""
        return height - 6 + (self._pitch(degree) - height + 6) % 12

    def _voicing(self, degree: int, kind: str) -> list[int]:
        root = 43 + (self._pitch(degree) - 43) % 12
        if kind == "power":
            fifth = self._interval(degree, 4)
            return [root, root + fifth, root + 12]
        steps = (0, 2, 4, 6) if kind == "seventh" else (0, 2, 4)
        # The seventh over the tonic of a major key would blur the key; the sixth is as soft and does not.
        if kind == "seventh" and degree % 7 == 0 and self._interval(degree, 6) == 11:
            steps = (0, 2, 4, 7)
        tones = sorted(54 + (self._pitch(degree + step) - 54) % 12 for step in steps)
        return [*tones, tones[0] + 12] if kind == "arpeggio" else tones

    # --- rhythm ---

    def _motif(self) -> list[list[tuple]]:
        """Draw a melody of two bars: rows (step, steps long, degree over the chord or the key, loudness)."""
        bars, degree = [], 0
        for _ in range(2):
            hits = self._pattern(self.how.lead)
            rows = []
            for number, (step, loudness) in enumerate(hits):
                until = hits[number + 1][0] if number + 1 < len(hits) else self.steps
                rest, move = self.rng.random(), int(self.rng.choice((-2, -1, -1, 0, 1, 1, 2)))
                degree = int(np.clip(degree + move, -4, 4))
                if step % 8 == 0:
                    degree = int(self.rng.choice((0, 2, 4, 0)))
                if rest >= self.how.lead_rest or step == 0:
                    rows.append((step, min(until - step, LONGEST_LEAD_STEPS) * 0.92, degree, loudness))
            bars.append(rows)
        return bars

    def _pattern(self, pattern: str) -> list[tuple[int, float]]:
        """Return (step, loudness) of the hits of a pattern, brought to the bar's length."""
        fitted = pattern if len(pattern) <= self.steps else pattern[: self.steps]
        fitted += pattern[-4:] * ((self.steps - len(fitted)) // 4)
        return [(step, LOUDNESS[mark]) for step, mark in enumerate(fitted) if mark != "."]

    def _seconds(self, step: float) -> float:
        swung = self.how.swing if int(step) % 2 else 0.0
        return (step + swung) * self.step

    def _human(self, row: tuple) -> tuple[float, float, float, float]:
        late, louder = self.rng.normal(0, self.how.loose / 1000 / 2), self.rng.normal(1, 0.06 if self.how.loose else 0)
        onset = max(self._seconds(row[0]) + float(np.clip(late, -0.02, 0.02)), 0.0)
        return onset, row[1] * self.step, row[2], max(row[3] * louder, 0.05)

    def _hit(self, bar: int, step: int, loudness: float) -> tuple[float, float]:
        onset, _, _, loudness = self._human((bar * self.steps + step, 1, 0, loudness))
        return onset, loudness


# --- words --------------------------------------------------------------------------------------------------------


def _captions(
    rng: np.random.Generator, how: Style, players: dict[str, str], bpm: int, scale: str, count: int = 6
) -> tuple[str, ...]:
    """Return captions in users' words, from two words to a sentence; each says only what the piece has."""
    names = {stem: str(rng.choice(INSTRUMENTS[player].words)) for stem, player in players.items()}
    names["drums"] = str(rng.choice(how.kit_words))
    speed = "slow" if bpm < 85 else "fast" if bpm > 135 else "mid-tempo"
    captions = []
    for number in range(count):
        style, mood = str(rng.choice(how.words)), str(rng.choice(how.moods))
        heard = [names[stem] for stem in rng.permutation(STEMS)[: int(rng.integers(1, 4))]]
        listed = heard[0] if len(heard) == 1 else f"{', '.join(heard[:-1])} and {heard[-1]}"
        bright = "bright" if scale == "major" else "minor-key"
        captions.append(
            (
                f"{mood} {style} with {listed}",
                f"{style}",
                f"{mood} {style}, {', '.join(heard)}, instrumental",
                f"A {speed} {style} instrumental with {listed}, {mood}",
                f"{style}, {speed}, {bright}, {heard[0]}",
                f"{mood}, {speed}, {style}",
            )[(number + int(rng.integers(2))) % 6]
        )
    return tuple(captions)
