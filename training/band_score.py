"""What the band plays: from a style, a tempo, a key and section tags to notes, drum hits and captions.

`compose` draws everything from one seeded generator, so that a seed means the same piece on every machine. All onsets
lie on a grid of 10 ms, and two moments are at least 50 ms apart. A note has no length: its sound decays by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner_form import ENDING_SECONDS, TAGS, WHO, bars_in, forms_for, sections, spread
from training import band_styles as tables
from training.band_styles import STYLES, Style

TICK = 480
ROLES = ("bass", "chords", "lead")
LOWEST = {"bass": 28, "chords": 53, "lead": 71}
INSTRUMENTS = {role: tuple(words) for role, words in tables.INSTRUMENT_WORDS.items()}
KITS = tuple(tables.KIT_WORDS)
DRUMS = ("kick", "snare", "hat", "open")

BPM_RANGE = (60, 180)
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
NOTE_NAMES = (("C",), ("C#", "Db"), ("D",), ("D#", "Eb"), ("E",), ("F",))
NOTE_NAMES += (("F#", "Gb"), ("G",), ("G#", "Ab"), ("A",), ("A#", "Bb"), ("B",))
PITCH_CLASSES = {"Cb": 11, "B#": 0, "E#": 5, "Fb": 4}
PITCH_CLASSES |= {name: pitch for pitch, names in enumerate(NOTE_NAMES) for name in names}

DYNAMICS = {"intro": -1, "verse": 0, "chorus": 1, "break": -1, "outro": -1}
LOUDNESS = {"X": 2, "x": 1, "o": 0}
# How bars make a phrase: the two that are drawn of a pattern, the three of a melody; a dot is a rest. A verse's melody
# is a question of four bars and its answer.
TURNS = ("AAAA", "AAAB", "ABAB")
PHRASES = {
    "verse": ("ABA.ABC.", "AAB.AAC.", "A.B.A.C.", "ABA.BAC.", "ABACABC."),
    "chorus": ("ABAC", "AABC", "AAAB", "ABAB"),
}
# The last bar of a piece: everybody strikes together.
ENDING = {"kick": "X", "open": "X", "bass": "1...1...1...1...", "chords": "X...x...x...x..."}


@dataclass(frozen=True)
class Part:
    """One section of the form; `start` and `end` in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Score:
    """A piece before it sounds.

    `notes` holds rows (tick, MIDI pitch, level) for each role, `hits` rows (tick, place in DRUMS, level), both in order
    of time; a level is 1 (soft) or 2 (loud). `lyrics` holds section tags or [Instrumental]. `harmony` has the chord on
    each beat: the pitch class of its root, and whether its third is minor.
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
    instruments: dict[str, str]
    kit: str
    notes: dict[str, np.ndarray]
    hits: np.ndarray
    harmony: tuple[tuple[int, bool], ...] = ()


def compose(
    seed: int,
    *,
    style: str | None = None,
    bpm: int | None = None,
    key: str | None = None,
    beats: int | None = None,
    lyrics: str | None = None,
    seconds: float | None = None,
) -> Score:
    """Write a piece of 30 s or of `seconds`; anything else that is not given is drawn to suit the style.

    `key` reads "F# minor", `beats` per bar is 3 or 4, `lyrics` may hold section tags in [brackets].
    Raises ValueError for anything the band does not play.
    """
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(list(STYLES)))
    style = style or drawn
    if style not in STYLES:
        raise ValueError(f"The band plays {', '.join(STYLES)}, not {style}.")
    how = STYLES[style]
    energy = int(rng.choice(list(how.energies)))
    slowest, fastest = how.bpm if rng.random() < 0.8 else BPM_RANGE
    drawn_bpm = round(slowest + (fastest - slowest) * (0.6 * rng.random() + 0.2 * energy))
    drawn_key = f"{rng.choice(NOTE_NAMES[rng.integers(12)])} {'minor' if rng.random() < how.minor else 'major'}"
    drawn_beats = int(rng.choice(how.beats))
    bpm = bpm or drawn_bpm
    key = key or drawn_key
    beats = beats or drawn_beats
    if not BPM_RANGE[0] <= bpm <= BPM_RANGE[1] or beats not in (3, 4):
        raise ValueError(
            f"The band plays {BPM_RANGE[0]} to {BPM_RANGE[1]} BPM in 3/4 or 4/4, not {bpm} in {beats}/4."
        )
    tonic, scale = parse_key(key)
    seconds = float(seconds or 30.0)
    bars = bars_in(seconds, bpm, beats)
    spans = _form(rng, lyrics or "", bars)
    bar_seconds = 60 * beats / bpm
    form = tuple(
        Part(name, first * bar_seconds, seconds if last == bars else last * bar_seconds)
        for name, first, last in spans
    )
    *players, kits = (each.split() for each in how.players)
    instruments = {
        role: str(rng.choice(INSTRUMENTS[role] if rng.random() < 0.1 else usual))
        for role, usual in zip(ROLES, players, strict=True)
    }
    kit = str(rng.choice(kits))
    writer = _Writer(rng, how, tonic, scale, bpm, beats, spans, energy)
    notes = writer.write(seconds)
    hits = notes.pop("drums")
    if lyrics is None:
        lyrics = _lyrics(rng, spans)
    names = [tables.INSTRUMENT_WORDS[role][instruments[role]] for role in ROLES if len(notes[role])]
    names += [tables.KIT_WORDS[kit]] if len(hits) else []
    captions = _captions(rng, how, names, bpm, scale, energy)
    return Score(
        seed,
        style,
        bpm,
        key,
        beats,
        seconds,
        form,
        lyrics,
        captions,
        instruments,
        kit,
        notes,
        hits,
        writer.harmony(),
    )


def parse_key(key: str) -> tuple[int, str]:
    """Return (pitch class, "major" or "minor") of a key like "F# minor". Raises ValueError for anything else."""
    note, _, scale = key.partition(" ")
    if note not in PITCH_CLASSES or scale not in SCALES:
        raise ValueError(f'A key reads "A minor" or "F# major", not "{key}".')
    return PITCH_CLASSES[note], scale


# --- the plan -----------------------------------------------------------------------------------------------------


def _place(rng: np.random.Generator, count: int, energy: int) -> int:
    """Draw a place in a list that is ordered from sparse to dense, by the energy (0 to 2)."""
    return int((0.6 * rng.random() + 0.2 * max(energy, 0)) * count)


def _form(rng: np.random.Generator, lyrics: str, bars: int) -> list[tuple[str, int, int]]:
    """Return (section, first bar, bar after the last) of the tags of `lyrics`, or of a form that is drawn."""
    drawn = str(rng.choice(forms_for(bars)))
    names = sections(lyrics) or drawn.split()
    return [(section.name, section.first, section.end) for section in spread(names, bars)]


class _Writer:
    """Writes one piece bar by bar; times are in sixteenths."""

    def __init__(
        self,
        rng,
        how: Style,
        tonic: int,
        scale: str,
        bpm: int,
        beats: int,
        spans: list,
        energy: int,
    ):
        self.rng = rng
        self.how = how
        self.tonic = tonic
        self.scale = SCALES[scale]
        self.spans = spans
        self.bpm = bpm
        self.beats = beats
        self.steps = 4 * beats
        self.energy = energy
        self.bars = spans[-1][2]
        self.swing = float(rng.choice(how.swing))
        self.voicing = [int(tone) - 1 for tone in rng.choice(how.voicings.split())]
        self.degrees = self._harmony(tables.PROGRESSIONS[how.harmony][scale].split())
        window = range(LOWEST["lead"], LOWEST["lead"] + 12)
        self.ladder = [pitch for pitch in window if (pitch - tonic) % 12 in self.scale]
        self.place = 3  # on the ladder: the lead's last note
        self.patterns = {}
        for layer in (*DRUMS, "bass", "chords", "lead"):
            # A chorus is never sparser than a verse.
            options = getattr(how, layer).split()
            sparsest = 0
            for kind in ("verse", "chorus"):
                density = energy - (layer == "open" and kind == "verse")
                chosen = [sparsest + _place(rng, len(options) - sparsest, density) for _ in "AB"]
                sparsest = max(chosen)
                first, second = (
                    (options[at] + options[at][-4:]).strip("-")[: self.steps] for at in chosen
                )
                if layer == "lead":
                    bars = {"A": self._motif(first), "B": self._motif(second), ".": []}
                    bars["C"] = [note for note in bars["A"] if note[0] < 6] + [
                        note for note in bars["B"] if note[0] >= 6
                    ]
                else:
                    bars = {"A": first, "B": second}
                turn = rng.choice(PHRASES[kind] if layer == "lead" else TURNS)
                self.patterns[kind, layer] = [bars[bar] for bar in turn]

    def write(self, seconds: float) -> dict[str, np.ndarray]:
        """Return the rows (tick, pitch or drum, level) of each role and of the drums."""
        rows: dict[str, dict] = {role: {} for role in ("drums", *ROLES)}
        who = [
            WHO[name][_place(self.rng, len(WHO[name]), self.energy)] for name, _, _ in self.spans
        ]
        for (name, first, last), playing, following in zip(
            self.spans, who, [*who[1:], ""], strict=True
        ):
            boost = max(DYNAMICS[name] + (self.energy - 1) / 2, -1)
            fill = str(self.rng.choice(self.how.fills.split())).strip("-")
            fill = fill if following and "d" in playing + following else ""
            fill_step = last * self.steps - len(fill)
            for role, found in rows.items():
                for bar in range(first, last) if role[0] in playing else ():
                    for step, value, loudness in getattr(self, f"_{role}")(name, bar, first, last):
                        at = bar * self.steps + step
                        # The softest marks are left out of soft sections.
                        if loudness + boost > -1 and (role != "drums" or at < fill_step):
                            found[self._tick(at), value] = 2 if loudness + boost >= 2 else 1
            for at, mark in enumerate(fill, fill_step):
                if mark != ".":
                    rows["drums"][self._tick(at), "ksho".index(mark.lower())] = 1 + mark.isupper()
        # What the end would cut off is not played.
        latest = max(100 * (seconds - ENDING_SECONDS) + 1, 1)
        played = {
            role: sorted((*at, level) for at, level in found.items())
            for role, found in rows.items()
        }
        arrays = {
            role: np.array(found, dtype=np.int64).reshape(-1, 3) for role, found in played.items()
        }
        return {role: found[found[:, 0] < latest] for role, found in arrays.items()}

    def harmony(self) -> tuple[tuple[int, bool], ...]:
        """Return the root and whether the third is minor of the chord on each beat."""
        chords = []
        for degree in self.degrees:
            root, third = (self.scale[(degree + step) % 7] for step in (0, 2))
            chords.append(((self.tonic + root) % 12, (third - root) % 12 == 3))
        return tuple(chords)

    def _tick(self, at: int) -> int:
        return round((at + (self.swing if at % 2 else 0.0)) * 1500 / self.bpm)

    # Each of these yields (step in the bar, pitch or drum, loudness from 0 to 2) of one bar.

    def _drums(
        self, name: str, bar: int, first: int, last: int
    ) -> Iterator[tuple[int, int, float]]:
        for number, drum in enumerate(DRUMS):
            if name in ("verse", "chorus") or drum in ("kick", "hat") or bar == self.bars - 1:
                for step, mark in self._marks(drum, name, bar, first):
                    yield step, number, LOUDNESS[mark]

    def _bass(self, name: str, bar: int, first: int, last: int) -> Iterator[tuple[int, int, float]]:
        for step, mark in self._marks("bass", name, bar, first):
            beat = bar * self.beats + step // 4
            degree = self.degrees[beat]
            after = self.degrees[min(beat + 1, len(self.degrees) - 1)]
            if mark == "n":
                degree = after + int(self.rng.choice((-1, 1))) if after != degree else degree
            elif step % 4 or self.degrees[max(beat - 1, 0)] == degree:
                degree += int(mark) - 1
            yield step, self._within("bass", degree), 1 if step % 4 or mark != "1" else 2

    def _chords(
        self, name: str, bar: int, first: int, last: int
    ) -> Iterator[tuple[int, int, float]]:
        for step, mark in self._marks("chords", name, bar, first):
            degree = self.degrees[bar * self.beats + step // 4]
            # A seventh over the tonic would blur the key.
            kept = [tone for tone in self.voicing if tone != 6 or degree]
            tones = [self._within("chords", degree + tone) for tone in kept]
            if mark.isdigit():
                yield step, tones[int(mark) % len(tones)], 1 if step % 8 else 2
            else:
                # The root and the tonic are the loudest; a loud fifth makes a major key sound a fifth higher.
                for tone, pitch in zip(kept, tones, strict=True):
                    softer = 0.5 * (tone > 0 and (degree + tone) % 7 > 0)
                    softer += 0.5 * (mark == "X" and tone == 4 and self.scale[2] == 4)
                    yield step, pitch, LOUDNESS[mark] - softer

    def _lead(self, name: str, bar: int, first: int, last: int) -> Iterator[tuple[int, int, float]]:
        if bar == self.bars - 1:
            yield 0, self._within("lead", 0), 2
            return
        phrase = self.patterns["chorus" if name == "chorus" else "verse", "lead"]
        motif = phrase[(bar - first) % len(phrase)]
        if bar == last - 1:
            motif = [*(note for note in motif if note[0] < 8), (8, 0, 2, False)]
        for number, (step, move, loudness, again) in enumerate(motif):
            if number == 0 and step < 8:
                self.place = move % 7
            elif not again:
                self.place += move if 0 <= self.place + move < 7 else -move
            if number == 0 or step in (0, 8):
                degree = self.degrees[bar * self.beats + step // 4]
                chord = [
                    self._within("lead", degree + tone)
                    for tone in ((0, 2, 4) if degree else (0, 2))
                ]
                self.place = min(
                    (self.ladder.index(pitch) for pitch in chord),
                    key=lambda at: abs(at - self.place),
                )
            yield step, self.ladder[self.place], loudness

    # --- harmony, melody, rhythm ---

    def _harmony(self, progressions: list[str]) -> list[int]:
        """Return the degree (0 to 6) of the chord on each beat; phrases begin, and the piece ends, at home."""
        bar_seconds = 60 * self.beats / self.bpm
        often = bar_seconds > 2.6 and self.beats == 4
        rarely = bar_seconds < 1.7
        pace = self.beats
        if self.rng.random() >= 0.5:
            if often:
                pace = 2
            elif rarely:
                pace = 2 * self.beats
        chosen = {kind: str(self.rng.choice(progressions)) for kind in ("verse", "chorus")}
        degrees = []
        for name, first, last in self.spans:
            phrase = chosen["chorus" if name == "chorus" else "verse"]
            degrees += [
                int(phrase[beat // pace % 4]) - 1 for beat in range((last - first) * self.beats)
            ]
        if self.bars > 2:
            degrees[-self.beats - 2 : -self.beats] = [4, 4]
        degrees[-self.beats :] = [0] * self.beats
        return degrees

    def _within(self, role: str, degree: int) -> int:
        """Return the pitch of a degree in the twelve semitones that a role plays."""
        return LOWEST[role] + (self.tonic + self.scale[degree % 7] - LOWEST[role]) % 12

    def _motif(self, pattern: str) -> list[tuple[int, int, int, bool]]:
        """Draw a bar of melody: (step, steps of the scale from the note before, loudness, whether it repeats it)."""
        moves = self.rng.choice((-2, -1, -1, 0, 1, 1, 2, 3), size=len(pattern)).tolist()
        moves[0] = int(self.rng.integers(7))
        return [
            (at, moves[at], 1 if at % 4 else 2, mark == "o")
            for at, mark in enumerate(pattern)
            if mark != "."
        ]

    def _marks(self, layer: str, name: str, bar: int, first: int) -> Iterator[tuple[int, str]]:
        pattern = self.patterns["chorus" if name == "chorus" else "verse", layer][(bar - first) % 4]
        if bar == self.bars - 1:
            pattern = ENDING.get(layer, "")[: self.steps]
        elif (bar == 0 and layer == "chords") or (
            bar == first and name == "chorus" and layer in ("kick", "open")
        ):
            pattern = "X" + pattern[1:]
        return ((step, mark) for step, mark in enumerate(pattern) if mark != ".")


# --- words --------------------------------------------------------------------------------------------------------


def _captions(
    rng: np.random.Generator, how: Style, names: list[str], bpm: int, scale: str, energy: int
) -> tuple[str, ...]:
    """Return six captions in users' words, from two words to a sentence; each says only what the piece has."""

    def draw(words: str) -> str:
        return str(rng.choice(words.split(", ")))

    speed = ""
    if bpm < 85:
        speed = "slow"
    elif bpm > 135:
        speed = "fast"
    captions = []
    for number in rng.choice(len(tables.CAPTIONS), size=6, replace=False):
        played = [draw(words) for words in rng.permutation(names)]
        some = played[: int(rng.integers(1, 4))]
        caption = tables.CAPTIONS[number].format(
            style=draw(how.words),
            mood=draw(
                tables.ENERGY_WORDS[energy] if energy != 1 and rng.random() < 0.7 else how.moods
            ),
            feel=draw(tables.SCALE_WORDS[scale]),
            speed=draw(tables.TEMPO_WORDS[speed]),
            one=played[0],
            other=played[-1],
            some=" and ".join(", ".join(some).rsplit(", ", 1)),
        )
        captions.append(re.sub(r"\b([Aa]) (?=[aeiou8])", r"\1n ", caption))
    return tuple(captions)


def _lyrics(rng: np.random.Generator, spans: list[tuple[str, int, int]]) -> str:
    """Return [Instrumental] or the tags of the form, now and then with words under them."""
    if rng.random() < 0.35:
        return "[Instrumental]"
    sung = rng.random() < 0.3
    blocks = []
    for name, _, _ in spans:
        tag = str(rng.choice(TAGS[name])) if rng.random() < 0.2 else name
        words = "\n".join(
            f"{rng.choice(tables.LINES[0])}, {rng.choice(tables.LINES[1])}" for _ in range(2)
        )
        blocks.append(
            f"[{tag.title()}]" + (f"\n{words}" if sung and name in ("verse", "chorus") else "")
        )
    return "\n\n".join(blocks)
