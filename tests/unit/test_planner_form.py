"""The built-in planner's form: beats on time, chords of the key, who plays, what comes back, and how a piece ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import planner_codes
from limits import KEYS
from planner_codes import (
    BASS,
    BEAT,
    BEAT_LEVELS,
    CHORDS,
    CODE_TICKS,
    CYMBALS,
    DRUMS,
    FRAME_TICKS,
    GRAY,
    KICK,
    LEVEL_OF_BITS,
    LEVELS,
    MOMENT,
    NO_BEAT,
    NO_CHORD,
    NOTHING,
    PLAYING,
)
from planner_form import ENDING_SECONDS, EVERYBODY, Form, sections, spread
from song_words import pitch_class

# Every beat, frame, chord and role; no drums, the kick, or it and cymbals.
EVERY = np.arange(int(np.prod(LEVELS)))
STRUCK = np.isin(planner_codes.digits_in(EVERY)[:, DRUMS], LEVEL_OF_BITS[[0, KICK, KICK | CYMBALS]])
KNOWN = EVERY[STRUCK & (planner_codes.digits_in(EVERY)[:, MOMENT] <= NOTHING)]
TAGS = "[Intro]\n\n[Verse]\nla\n\n[Chorus]\nla\n\n[Verse]\nla\n\n[Chorus]\nla\n\n[Outro]"


def form_of(known: np.ndarray = KNOWN, **changed) -> Form:
    values = {
        "bpm": 100,
        "time_signature": "4",
        "key": "F# minor",
        "lyrics": TAGS,
        "seconds": 60.0,
        "seed": 1,
    }
    return Form(known, **{**values, **changed})


def drawn(form: Form, known: np.ndarray = KNOWN, seed: int = 0) -> np.ndarray:
    """Return numbers [N] of codes that the form allows, drawn at random."""
    chance = np.random.default_rng(seed)
    return np.array([chance.choice(np.flatnonzero(row)) for row in form.allowed()])


@pytest.mark.parametrize(("bpm", "beats"), [(60, 4), (97, 3), (133, 4), (180, 3)])
def test_beats_fall_where_the_tempo_has_them_whatever_is_drawn(bpm: int, beats: int):
    form = form_of(bpm=bpm, time_signature=str(beats), seconds=30.0)
    digits = planner_codes.digits_in(KNOWN[drawn(form)])
    codes = np.flatnonzero(digits[:, BEAT] != NO_BEAT)
    ticks = codes * CODE_TICKS + digits[codes, MOMENT] * FRAME_TICKS
    wanted = np.round(np.arange(form.bars * beats) * 6000 / bpm)
    wanted = wanted[wanted < len(digits) * CODE_TICKS]
    # A frame begins up to three ticks before the beat that falls into it.
    assert len(ticks) == len(wanted) and np.all(
        (wanted - ticks >= 0) & (wanted - ticks < FRAME_TICKS)
    )
    counted = [BEAT_LEVELS.tolist().index(level) for level in digits[codes, BEAT]]
    assert counted == [number % beats for number in range(len(codes))]


@pytest.mark.parametrize("key", KEYS[::5])
def test_chords_are_those_of_the_key_and_a_piece_begins_and_ends_at_home(key: str):
    form = form_of(key=key, seconds=20.0)
    digits = planner_codes.digits_in(KNOWN[drawn(form)])
    chords = planner_codes.chord_in(digits)
    named = set(chords.tolist()) - {NO_CHORD}
    assert 1 < len(named) <= 7
    bars = np.maximum(np.cumsum(digits[:, BEAT] != NO_BEAT) - 1, 0) // 4
    heard = [set(chords[bars == bar].tolist()) - {NO_CHORD} for bar in range(form.bars)]
    tonic, scale = pitch_class(key.split()[0]), key.split()[1]
    home = planner_codes.chord_number(tonic, scale == "minor")
    fifth_up, fifth_down = planner_codes.telling_chords_of(tonic, scale)
    assert heard[-1] == {home}
    for section in form.sections:
        wanted = [{home}, fifth_up, {home}, fifth_down]
        if section.name == "verse":
            wanted = [{home}, fifth_up, {home}, fifth_up]
        if section.name == "chorus":
            wanted = [{home}, fifth_down, {home}, fifth_down]
        for bar in range(section.first, min(section.end, form.bars - 1)):
            assert heard[bar] and heard[bar] <= wanted[(bar - section.first) % 4]


@pytest.mark.parametrize(
    ("key", "fifth_up", "fifth_down"),
    [
        ("C major", {"F major", "D minor"}, {"G major", "E minor"}),
        ("A minor", {"F major", "D minor"}, {"G major", "E minor"}),
        ("Eb major", {"Ab major", "F minor"}, {"Bb major", "G minor"}),
    ],
)
def test_two_chords_beside_the_tonics_tell_a_key_from_its_neighbours(
    key: str, fifth_up: set[str], fifth_down: set[str]
):
    def numbers(chords: set[str]) -> set[int]:
        named = [chord.split() for chord in chords]
        return {
            planner_codes.chord_number(pitch_class(note), scale == "minor") for note, scale in named
        }

    note, scale = key.split()
    told = planner_codes.telling_chords_of(pitch_class(note), scale)
    assert told == (numbers(fifth_up), numbers(fifth_down))


@pytest.mark.parametrize("tag", ["Verse", "Chorus"])
def test_a_song_of_verses_or_choruses_alone_tells_its_key_from_both_neighbours(tag: str):
    form = form_of(key="C major", lyrics=f"[{tag}]\n\n[{tag}]")
    chords = planner_codes.chord_in(planner_codes.digits_in(KNOWN[drawn(form)]))
    for told in planner_codes.telling_chords_of(0, "major"):
        assert told & set(chords.tolist())


def test_nothing_begins_where_it_could_not_fade_any_more():
    """The last bar has a second beat, half a second before the end."""
    form = form_of(bpm=143, seconds=17.7)
    digits = planner_codes.digits_in(KNOWN[drawn(form)])
    too_late = np.arange(1, form.count + 1) / 5 > 17.7 - ENDING_SECONDS
    assert (digits[too_late, BEAT] != NO_BEAT).any()
    assert not GRAY[digits[too_late][:, [DRUMS, PLAYING]]].any()


def test_who_does_not_play_in_a_section_is_not_heard_there_and_everybody_strikes_the_end():
    """An intro has chords alone, a chorus has drums."""
    for seed in range(8):
        form = form_of(seed=seed)
        digits = planner_codes.digits_in(KNOWN[drawn(form)])
        beats = np.flatnonzero(digits[:, BEAT] != NO_BEAT)
        intro = next(section for section in form.sections if section.name == "intro")
        chorus = next(section for section in form.sections if section.name == "chorus")
        drums = GRAY[digits[:, DRUMS]] > 0
        before_verse = slice(0, beats[4 * intro.end])
        assert not drums[before_verse].any()
        assert set(GRAY[digits[before_verse, PLAYING]].tolist()) == {0, CHORDS}
        assert drums[beats[4 * chorus.first] : beats[4 * chorus.end]].any()
        end = beats[4 * (form.bars - 1)]
        assert GRAY[digits[end, PLAYING]] == EVERYBODY and drums[end] and not drums[end + 1 :].any()


def test_sections_differ_from_those_beside_them():
    """In who plays, a chorus in its lead and cymbals too; nobody but drums plays between the beats of a verse."""
    every = EVERY[planner_codes.digits_in(EVERY)[:, MOMENT] <= NOTHING]
    for seed in range(6):
        form = form_of(every, seed=seed, lyrics=TAGS.replace("[Outro]", "[Bridge]\n\n[Outro]"))
        names = [section.name for section in form.sections]
        assert names == ["intro", "verse", "chorus", "verse", "chorus", "break", "outro"]
        allowed = form.allowed()
        all_digits = planner_codes.digits_in(every)
        heard = []
        for section in form.sections[:-1]:
            places = np.flatnonzero(
                (form._bar_of_code >= section.first) & (form._bar_of_code < section.end)
            )
            possible = all_digits[allowed[places].any(axis=0)]
            roles = int(np.bitwise_or.reduce(GRAY[possible[:, PLAYING]]))
            heard.append((roles, bool(GRAY[possible[:, DRUMS]].any())))
            off_beat = all_digits[allowed[places[~np.isin(places, form._code_of_beat)]].any(axis=0)]
            if section.name == "intro":
                assert not GRAY[off_beat[:, DRUMS]].any() and not GRAY[off_beat[:, PLAYING]].any()
            strong = all_digits[
                allowed[np.intersect1d(places, form._code_of_beat[::2])].any(axis=0)
            ]
            if section.name == "chorus":
                on_beat = all_digits[
                    allowed[np.intersect1d(places, form._code_of_beat)].any(axis=0)
                ]
                assert (GRAY[on_beat[:, DRUMS]] & CYMBALS > 0).all()
                assert (GRAY[strong[:, PLAYING]] == EVERYBODY).all()
            if section.name == "verse":
                assert not (GRAY[possible[:, DRUMS]] & CYMBALS).any()
                assert (GRAY[strong[:, PLAYING]] == BASS | CHORDS).all()
                assert GRAY[off_beat[:, DRUMS]].any() and not GRAY[off_beat[:, PLAYING]].any()
        assert all(one != other for one, other in itertools.pairwise(heard))


def test_a_section_repeats_its_first_bars_and_comes_back_in_time_with_its_own_beats():
    form = form_of(bpm=104)
    before = drawn(form)
    own = planner_codes.digits_in(KNOWN[before])
    digits = planner_codes.digits_in(form.arranged(before))
    beats = np.flatnonzero(digits[:, BEAT] != NO_BEAT)

    def bar(number: int, of: np.ndarray = digits) -> np.ndarray:
        """Return what is played on the beats of a bar, [4, digits], but for when."""
        return np.delete(of[beats[4 * number : 4 * number + 4]], MOMENT, axis=1)

    verse, chorus = form.sections[1], form.sections[2]
    assert verse.end - verse.first == 6
    assert np.array_equal(bar(verse.first + 4), bar(verse.first))
    assert not np.array_equal(bar(verse.first + 1), bar(verse.first))
    last = verse.end - 1
    assert np.array_equal(bar(last), bar(verse.first + 1))
    # All bars have the first one's drums.
    for section in (verse, chorus):
        for number in range(section.first + 1, section.end):
            assert np.array_equal(bar(number)[:, 0], bar(section.first)[:, 0])
    for section, model in ((form.sections[3], verse), (form.sections[4], chorus)):
        for number in range(section.end - section.first):
            source = model.first + number % (model.end - model.first)
            assert np.array_equal(bar(section.first + number), bar(source))
    assert not np.array_equal(bar(verse.first), bar(chorus.first))
    # Beats stay where they were, and the end is the end.
    assert np.array_equal(digits[:, BEAT], own[:, BEAT])
    assert np.array_equal(digits[beats, MOMENT], own[beats, MOMENT])
    assert np.array_equal(bar(form.bars - 1)[:, :2], bar(form.bars - 1, own)[:, :2])


def test_a_chord_lasts_a_bar():
    form = form_of(seconds=30.0)
    digits = planner_codes.digits_in(form.arranged(drawn(form)))
    chords = planner_codes.chord_in(digits)
    bars = np.maximum(np.cumsum(digits[:, BEAT] != NO_BEAT) - 1, 0) // 4
    each = [set(chords[bars == bar].tolist()) - {NO_CHORD} for bar in range(form.bars)]
    assert all(len(names) == 1 for names in each) and len(set.union(*each)) > 2


def test_a_planner_that_knows_few_codes_always_has_one_to_draw():
    """Even one that knows no beats at all, no drums, or no chord of the key."""
    digits = planner_codes.digits_in(KNOWN)
    chance = np.random.default_rng(4)
    for few in (
        KNOWN[digits[:, BEAT] == NO_BEAT][:50],
        KNOWN[digits[:, DRUMS] == 0][::900],
        np.sort(chance.choice(KNOWN, 300, replace=False)),
    ):
        form = form_of(few)
        assert form.allowed().any(axis=1).all()
        assert np.isin(form.arranged(drawn(form, few)), EVERY).all()


def test_exactly_those_play_who_should_where_no_code_that_is_known_has_them():
    """As the planner's own codes, of which few have a bass without cymbals and lead on a bar's first beat."""
    digits = planner_codes.digits_in(KNOWN)
    everybody = (GRAY[digits[:, PLAYING]] == EVERYBODY) & (GRAY[digits[:, DRUMS]] == KICK | CYMBALS)
    nobody = (GRAY[digits[:, PLAYING]] == 0) & (GRAY[digits[:, DRUMS]] == 0)
    few = KNOWN[everybody | nobody]
    for beats, seed in itertools.product(("3", "4"), range(4)):
        form = form_of(few, seed=seed, time_signature=beats)
        found = planner_codes.digits_in(form.arranged(drawn(form, few, seed)))
        drums = GRAY[found[:, DRUMS]]
        roles = GRAY[found[:, PLAYING]]
        for place, players in enumerate(map(form._playing, range(form.count))):
            assert players.wrong(found[place : place + 1]) == 0
        # Codes say a chord where bass or chords begin, and no moment where nothing falls.
        has_chord = planner_codes.chord_in(found) != NO_CHORD
        assert np.array_equal(has_chord, (roles & (BASS | CHORDS)) > 0)
        is_empty = (found[:, BEAT] == NO_BEAT) & (drums == 0) & (roles == 0)
        assert np.array_equal(found[:, MOMENT] == NOTHING, is_empty)


def test_a_chord_of_the_key_matters_more_than_who_plays_where_no_code_has_both():
    digits = planner_codes.digits_in(KNOWN)
    in_key = np.isin(
        planner_codes.chord_in(digits), [*planner_codes.chords_of(6, "minor"), NO_CHORD]
    )
    # Only chords that are not of the key are played as they should be.
    silent_in_key = in_key & (digits[:, PLAYING] == LEVEL_OF_BITS[0])
    few = KNOWN[silent_in_key | ~in_key]
    form = form_of(few)
    chords = planner_codes.chord_in(planner_codes.digits_in(few))
    own = {*planner_codes.chords_of(6, "minor"), NO_CHORD}
    assert {int(chord) for chord in chords[form.allowed().any(axis=0)]} <= own


def test_the_last_sound_of_a_plan_is_found():
    form = form_of(seconds=31.0)
    codes = form.arranged(drawn(form))
    digits = planner_codes.digits_in(codes)
    sounding = np.flatnonzero(GRAY[digits[:, DRUMS]] + GRAY[digits[:, PLAYING]])
    last = planner_codes.last_begun(codes)
    assert sounding[-1] / 5 <= last < (sounding[-1] + 1) / 5
    assert 31 - 60 / 100 * 4 - ENDING_SECONDS <= last <= 31 - ENDING_SECONDS
    nobody = (GRAY[digits[:, DRUMS]] == 0) & (GRAY[digits[:, PLAYING]] == 0)
    assert planner_codes.last_begun(codes[nobody]) == 0.0


def test_tags_are_read_however_they_are_written_and_without_them_there_is_a_form():
    assert sections("[Verse 1]\nla\n[Chorus - loud]\n[Instrumental]") == ["verse", "chorus"]
    german = form_of(lyrics="[Strophe]\nla\n\n[Refrain]\nla")
    assert [section.name for section in german.sections] == ["verse", "chorus"]
    for seed, seconds in itertools.product(range(4), (10.0, 45.0, 180.0)):
        form = form_of(lyrics="[Instrumental]", seed=seed, seconds=seconds)
        assert form.sections[0].first == 0 and form.sections[-1].end == form.bars
        joins = itertools.pairwise(form.sections)
        assert all(one.end == other.first for one, other in joins)


@pytest.mark.parametrize("bars", [1, 2, 7, 40])
def test_bars_are_spread_over_all_sections_that_there_is_room_for(bars: int):
    found = spread(["intro", "verse", "chorus", "outro"], bars)
    assert sum(section.end - section.first for section in found) == bars
    assert len(found) == 4 if bars >= 7 else found
