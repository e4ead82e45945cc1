"""The form of a song that the built-in planner plans: where beats fall, which chords the key has, how sections follow.

A small planner reads what comes next off what came before, and hardly off the words. So what follows from tempo, time
signature, key and section tags is not left to chance: at each place only the codes that agree with it can be drawn, as
the metadata can only be drawn along its grammar, and a section that comes back is the section that was. The rest (which
chords, drums and notes) is the planner's.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import planner_codes
from limits import CODES_PER_SECOND
from lyrics_tags import as_read
from planner_codes import (
    BASS,
    BEAT,
    BEAT_LEVELS,
    BITS,
    CHORD,
    CHORD_CELLS,
    CHORDS,
    CODE_TICKS,
    CYMBALS,
    DRUMS,
    FRAME_TICKS,
    GRAY,
    KICK,
    LEAD,
    LEVEL_OF_BITS,
    MOMENT,
    NO_BEAT,
    NO_CHORD,
    NOTHING,
    PLAYING,
    SNARE,
    TICKS_PER_MINUTE,
)
from song_words import pitch_class

# What a section tag asks for, by how the tag begins; anything else is a verse.
TAGS = {
    "intro": ("intro", "start"),
    "verse": ("verse", "verse 1", "verse 2", "pre-chorus"),
    "chorus": ("chorus", "drop", "hook", "refrain", "solo", "guitar solo"),
    "break": ("break", "bridge", "build", "interlude"),
    "outro": ("outro", "end", "coda"),
}
# Forms for pieces without tags, by the fewest bars that they take.
FORMS = {
    1: ("verse", "verse chorus", "intro chorus"),
    6: ("verse chorus", "intro verse chorus", "verse chorus outro", "verse break chorus"),
    9: ("intro verse chorus outro", "verse chorus verse chorus", "verse chorus break chorus"),
    16: ("intro verse chorus break chorus outro", "intro verse chorus verse chorus outro"),
    36: (
        "intro verse chorus verse chorus break chorus outro",
        "intro verse verse chorus verse chorus break chorus outro",
    ),
    64: (
        "intro verse chorus verse chorus break verse chorus outro",
        "intro verse verse chorus verse chorus break chorus chorus outro",
        "intro verse chorus break verse chorus break chorus outro",
    ),
}
# Who may play in a section, from few to all: drums, bass, chords, lead.
WHO = {
    "intro": ("c", "dc", "bc", "cl", "dbc"),
    "verse": ("dbc", "dbcl", "dbcl", "dbcl"),
    "chorus": ("dbcl",),
    "break": ("c", "bc", "cl", "bcl"),
    "outro": ("c", "bc", "dbc", "bcl"),
}
PLANNED_WHO = {**WHO, "intro": ("c",)}
"""Who may play in a section of a plan: an intro with a bass or drums is not heard as another section than its verse."""
VERSE_BEFORE_CHORUS = "dbc"
"""The lead comes in with the chorus, as cymbals do."""
CALM = ("intro", "outro")
"""Sections in which notes and drums fall on beats alone."""
ENDING_SECONDS = 0.6
"""How long before the end of a piece its last sound begins, at the latest."""

LOOP_BARS = 4
"""A section repeats its first bars; chords change with the bars."""

EVERYBODY = BASS | CHORDS | LEAD
ANY_DRUM = KICK | SNARE | CYMBALS
ROLES = {"b": BASS, "c": CHORDS, "l": LEAD}


@dataclass(frozen=True)
class Section:
    """A part of the form: its name in TAGS, its first bar and the bar after its last, counted from 0."""

    name: str
    first: int
    end: int


def sections(lyrics: str) -> list[str]:
    """Return the sections that the tags of `lyrics` ask for, in order; [Instrumental] asks for none."""
    tags = [tag.strip() for tag in re.findall(r"\[([^\]]+)\]", lyrics.lower())]
    return [
        next((name for name, starts in TAGS.items() if tag.startswith(starts)), "verse")
        for tag in tags
        if not tag.startswith("inst")
    ]


def forms_for(bars: int) -> tuple[str, ...]:
    """Return the forms, as names of sections, that suit a piece of so many bars."""
    return FORMS[max(fewest for fewest in FORMS if fewest <= bars)]


def bars_in(seconds: float, bpm: int, beats: int) -> int:
    """Return the bars of a piece; a last one too short for a beat and its decay is left to the bar before."""
    shortest = max(60 / bpm, ENDING_SECONDS)
    return max(1, math.ceil((seconds - shortest) * bpm / 60 / beats - 1e-9))


def spread(names: Sequence[str], bars: int) -> list[Section]:
    """Spread `bars` over sections by weight, in twos or fours if there are enough; some get none."""
    grain = 1
    if bars >= 7 * len(names):
        grain = 4
    elif bars >= 3 * len(names):
        grain = 2
    weights = np.cumsum([2 if name in ("verse", "chorus") else 1 for name in names])
    shares = np.round(weights / weights[-1] * bars / grain) * grain
    ends = np.minimum(shares, bars).astype(int).tolist()
    ends[-1] = bars
    starts = [0, *ends[:-1]]
    return [
        Section(name, first, end)
        for name, first, end in zip(names, starts, ends, strict=True)
        if end > first
    ]


@dataclass(frozen=True)
class Players:
    """Which drums and roles may begin at a place, which of them have to, and drums of which one has to, as bits."""

    drums: int
    roles: int
    needed_drums: int = 0
    needed_roles: int = 0
    one_of: int = 0

    def wrong(self, digits: np.ndarray) -> np.ndarray:
        """Return how many drums and roles of each code, digits [M, 6], are missing or should not be there."""
        drums = GRAY[digits[:, DRUMS]]
        roles = GRAY[digits[:, PLAYING]]
        strangers = BITS[drums & ~self.drums] + BITS[roles & ~self.roles]
        missing = BITS[self.needed_drums & ~drums] + BITS[self.needed_roles & ~roles]
        if self.one_of:
            missing = missing + (drums & self.one_of == 0)
        return strangers + missing


NOBODY = Players(0, 0)


class Form:
    """The form of one song, for its codes [N], five a second, out of the `known` ones [M], which are sorted.

    `key` reads "F# minor", `time_signature` is one of ACE-Step's; codes count bars of three or four beats, to which 2/4
    and 6/8 fold. Without tags in `lyrics`, the form is drawn from `seed`, as is who plays in each section.
    """

    def __init__(
        self,
        known: np.ndarray,
        *,
        bpm: int,
        time_signature: str,
        key: str,
        lyrics: str,
        seconds: float,
        seed: int,
    ):
        self._digits = planner_codes.digits_in(known)
        self.count = math.ceil(CODES_PER_SECOND * seconds)
        self.beats = 3 if time_signature in ("3", "6") else 4
        self.bars = bars_in(seconds, bpm, self.beats)
        chance = random.Random(seed)
        names = sections(as_read(lyrics)) or chance.choice(forms_for(self.bars)).split()
        self.sections = spread(names, self.bars)
        self._who = _players([section.name for section in self.sections], chance)
        note, _, scale = key.partition(" ")
        tonic = pitch_class(note)
        self._home = planner_codes.chord_number(tonic, scale == "minor")
        self._away = planner_codes.telling_chords_of(tonic, scale)
        self._find_beats(bpm, seconds)

    def _find_beats(self, bpm: int, seconds: float) -> None:
        """Find the code [beats] and the frame in it that each beat falls into, and each code's bar [N]."""
        ticks_a_beat = TICKS_PER_MINUTE / bpm
        ticks = np.round(np.arange(self.bars * self.beats) * ticks_a_beat).astype(np.int64)
        ticks = ticks[ticks < self.count * CODE_TICKS]
        self._code_of_beat, places = np.divmod(ticks, CODE_TICKS)
        self._frame_of_beat = places // FRAME_TICKS
        beats_before = np.searchsorted(self._code_of_beat, np.arange(self.count), side="right")
        self._bar_of_code = np.maximum(beats_before - 1, 0) // self.beats
        # Nothing begins where it could not fade any more, but for the last strike itself.
        last_strike = self._code_of_beat[(self.bars - 1) * self.beats]
        too_late = np.arange(1, self.count + 1) / CODES_PER_SECOND > seconds - ENDING_SECONDS
        after_beats = np.arange(self.count) > self._code_of_beat[-1]
        in_last_bar = self._bar_of_code == self.bars - 1
        self._after_end = in_last_bar & (after_beats | too_late)
        self._after_end[: last_strike + 1] = False

    # --- what can be drawn ---

    def allowed(self) -> np.ndarray:
        """Return which of the known codes may stand at each place, [N, M]; always one of them at least.

        A beat comes before a chord and a chord before who plays, where no code that is known has all three.
        """
        allowed = self._on_time()
        chords = planner_codes.chord_in(self._digits)
        in_key_of = functools.cache(lambda wanted: np.isin(chords, [*wanted, NO_CHORD]))
        wrong_of = functools.cache(lambda players: players.wrong(self._digits))
        for place in range(self.count):
            in_key = allowed[place] & in_key_of(self._chords_at(place))
            if in_key.any():
                allowed[place] = in_key
            wrong = wrong_of(self._playing(place))
            allowed[place] &= wrong == wrong[allowed[place]].min()
        return allowed

    def _on_time(self) -> np.ndarray:
        """Return which codes [N, M] have the beat that falls there, in its frame, or no beat where none does."""
        digits = self._digits
        right = np.tile(digits[:, BEAT] == NO_BEAT, (self.count, 1))
        for number, (code, frame) in enumerate(
            zip(self._code_of_beat, self._frame_of_beat, strict=True)
        ):
            beat = digits[:, BEAT] == BEAT_LEVELS[number % self.beats]
            # Some codes that scores hardly need are not known: then a frame beside it, if need be.
            distance = np.where(beat, np.abs(digits[:, MOMENT] - frame), NOTHING + 1)
            right[code] = distance == distance.min()
        return right

    def _playing(self, place: int) -> Players:
        """Return who plays at a place: only those who play in this section; all of them strike the end."""
        bar = self._bar_of_code[place]
        if self._after_end[place]:
            return NOBODY
        is_beat = place in self._code_of_beat
        beat = int(np.searchsorted(self._code_of_beat, place)) % self.beats
        begins_bar = is_beat and beat == 0
        if bar == self.bars - 1 and self.bars > 1:
            if place == self._code_of_beat[bar * self.beats]:
                return Players(KICK | CYMBALS, EVERYBODY, KICK | CYMBALS, EVERYBODY)
            return Players(0, BASS | CHORDS)
        name = self._section_of(bar).name
        who = self._who[name]
        if name in CALM and not is_beat:
            return NOBODY
        roles = sum(ROLES[role] for role in who if role in ROLES)
        has_drums = "d" in who
        is_strong = is_beat and beat % 2 == 0
        is_thin = name == "verse" and who == VERSE_BEFORE_CHORUS
        begun = 0
        if begins_bar or (is_thin and is_strong):
            # With the bar begins whoever accompanies.
            begun = roles & ~LEAD
        if name == "chorus" and is_strong:
            begun = roles
        if is_thin and not is_beat:
            roles = 0
        struck = 0
        if is_beat and has_drums and name not in CALM:
            # The beat is struck, and a chorus shines.
            struck = CYMBALS if name == "chorus" else ANY_DRUM
        drums = ANY_DRUM if has_drums else 0
        if is_thin:
            drums &= ~CYMBALS
        return Players(
            drums=drums,
            roles=roles,
            needed_drums=KICK if begins_bar and has_drums else 0,
            needed_roles=begun,
            one_of=struck,
        )

    def _chords_at(self, place: int) -> frozenset[int]:
        """Return the chords of which one may sound at a place; a piece ends with that of the tonic.

        Of the four bars that a section repeats, every other one has that of the tonic, as two bars in three of the
        scores have. The two others tell the key from its neighbours on the circle of fifths, without which it would be
        any of the three. Where verses and choruses take turns, the verses tell it from one neighbour and the choruses
        from the other one.
        """
        bar = self._bar_of_code[place]
        section = self._section_of(bar)
        place_in_loop = (bar - section.first) % LOOP_BARS
        if place_in_loop % 2 == 0 or bar == self.bars - 1:
            return frozenset({self._home})
        fifth_up, fifth_down = self._away
        is_shared = {"verse", "chorus"} <= {section.name for section in self.sections}
        if is_shared and section.name in ("verse", "chorus"):
            return fifth_up if section.name == "verse" else fifth_down
        is_first = place_in_loop == 1
        return fifth_up if is_first != (section.name == "chorus") else fifth_down

    def _section_of(self, bar: int) -> Section:
        return next(section for section in self.sections if bar < section.end)

    # --- what comes back ---

    def arranged(self, drawn: np.ndarray) -> np.ndarray:
        """Return codes [N] that arrange those `drawn`, numbers [N] of known ones.

        Exactly those play who may and have to. A chord lasts a bar. The drums of a section are those of its first bar,
        and it repeats its first bars; a section that was there before is what it was then. Beats keep their own time;
        drums, notes and chords are those of the same place of the bar. The last bar of the piece is no copy.

        The codes need not be known ones, of which few have, say, a bass without cymbals on a bar's first beat: the
        engine plays any.
        """
        digits = self._digits[drawn]
        self._let_play(digits)
        self._hold_chords(digits)
        first_of: dict[str, Section] = {}
        for section in self.sections:
            model = first_of.setdefault(section.name, section)
            is_new = model is section
            length = model.end - model.first
            if is_new:
                length = min(length, LOOP_BARS)
                self._keep_groove(digits, section)
            for bar in range(section.first + length * is_new, min(section.end, self.bars - 1)):
                self._copy_bar(digits, bar, model.first + (bar - section.first) % length)
        # A copied drum or note may need a moment of its own.
        self._let_play(digits)
        return planner_codes.codes_of(digits)

    def _let_play(self, digits: np.ndarray) -> None:
        """Let exactly those begin at each place of `digits` [N, 6] who may and have to."""
        for place, code in enumerate(digits):
            players = self._playing(place)
            drums = int(GRAY[code[DRUMS]]) & players.drums | players.needed_drums
            roles = int(GRAY[code[PLAYING]]) & players.roles | players.needed_roles
            if players.one_of and not drums & players.one_of:
                drums |= self._struck(place, players.one_of)
            code[DRUMS] = LEVEL_OF_BITS[drums]
            code[PLAYING] = LEVEL_OF_BITS[roles]
            if not roles & (BASS | CHORDS):
                code[CHORD:] = CHORD_CELLS[NO_CHORD]
            elif planner_codes.chord_in(code) == NO_CHORD:
                code[CHORD:] = CHORD_CELLS[self._chord_of_bar(digits, place)]
            if code[BEAT] == NO_BEAT and not drums and not roles:
                code[MOMENT] = NOTHING
            elif code[MOMENT] == NOTHING:
                code[MOMENT] = 0

    def _struck(self, place: int, one_of: int) -> int:
        """Return the drum that strikes the beat at a place if none does: a kick or, on every other beat, a snare."""
        beat = int(np.searchsorted(self._code_of_beat, place)) % self.beats
        struck = SNARE if beat % 2 else KICK
        return struck if one_of & struck else one_of

    def _chord_of_bar(self, digits: np.ndarray, place: int) -> int:
        """Return the first chord in the bar of a place of `digits` [N, 6] that may sound there, or one that may."""
        wanted = self._chords_at(place)
        here = digits[self._bar_of_code == self._bar_of_code[place]]
        sounding = [chord for chord in planner_codes.chord_in(here).tolist() if chord in wanted]
        return sounding[0] if sounding else min(wanted)

    def _hold_chords(self, digits: np.ndarray) -> None:
        """Give each bar of `digits` [N, 6] the chord that most of its codes have."""
        for bar in range(self.bars):
            here = np.flatnonzero(self._bar_of_code == bar)
            chords = planner_codes.chord_in(digits[here])
            sounding = here[chords != NO_CHORD]
            if len(sounding):
                most = np.bincount(chords[chords != NO_CHORD]).argmax()
                digits[sounding, CHORD:] = CHORD_CELLS[most]

    def _keep_groove(self, digits: np.ndarray, section: Section) -> None:
        """Let the drums of each of the first bars of a section be those of its first one."""
        end = min(section.end, section.first + LOOP_BARS, self.bars - 1)
        for bar in range(section.first + 1, end):
            for place, source in self._places_alike(bar, section.first):
                digits[place, DRUMS] = digits[source, DRUMS]

    def _copy_bar(self, digits: np.ndarray, bar: int, model: int) -> None:
        """Let `bar` of `digits` [N, 6] be what the bar `model` is, but in its own time."""
        for place, source in self._places_alike(bar, model):
            own = digits[place].copy()
            digits[place] = digits[source]
            digits[place, BEAT] = own[BEAT]
            if own[BEAT] != NO_BEAT:
                digits[place, MOMENT] = own[MOMENT]

    def _places_alike(self, bar: int, model: int) -> Iterator[tuple[int, int]]:
        """Yield the places of a bar, each with that of the bar `model` that is as far after the same beat."""
        for beat in range(self.beats):
            here = bar * self.beats + beat
            there = model * self.beats + beat
            for step in range(min(self._codes_after(here), self._codes_after(there))):
                yield int(self._code_of_beat[here]) + step, int(self._code_of_beat[there]) + step

    def _codes_after(self, beat: int) -> int:
        """Return how many codes there are from a beat to the next one."""
        if beat >= len(self._code_of_beat):
            return 0
        if beat + 1 == len(self._code_of_beat):
            return self.count - int(self._code_of_beat[beat])
        return int(self._code_of_beat[beat + 1] - self._code_of_beat[beat])


def _players(names: list[str], chance: random.Random) -> dict[str, str]:
    """Return who plays in each section of a song, another group than in those beside it wherever there is one."""
    who = {name: chance.choice(groups) for name, groups in PLANNED_WHO.items()}
    if "verse" in names and "chorus" in names:
        who["verse"] = VERSE_BEFORE_CHORUS
    for name in ("intro", "break", "outro"):
        beside = {
            who[other]
            for pair in itertools.pairwise(names)
            if name in pair
            for other in pair
            if other != name
        }
        groups = [group for group in PLANNED_WHO[name] if group not in beside]
        who[name] = chance.choice(groups or PLANNED_WHO[name])
    return who
