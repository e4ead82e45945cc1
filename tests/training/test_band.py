"""The band's scores: what was asked, the same every time, in a world that a small autoencoder can learn."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from training import band_render, band_score, band_sounds
from training.band_score import (
    INSTRUMENTS,
    LOWEST,
    ROLES,
    SCALES,
    Score,
    compose,
    parse_key,
    sections,
)
from training.band_styles import INSTRUMENT_WORDS, KIT_WORDS, STYLES

pytestmark = pytest.mark.slow
KEYS = [f"{names[-1]} {scale}" for names in band_score.NOTE_NAMES for scale in SCALES]
TAGS = "[Intro]\n\n[Verse 1]\nwords do not matter\n[Chorus - anthemic]\n[Bridge]\n[Chorus]\n[Outro]"


def events(score: Score) -> np.ndarray:
    return np.concatenate([score.hits, *score.notes.values()])


def test_equal_seeds_give_equal_scores_and_others_do_not():
    expected = np.random.get_state()[1].copy()
    first, again, other = (
        compose(seed, style="rock", bpm=120, beats=4, seconds=20.0) for seed in (5, 5, 6)
    )
    assert np.array_equal(events(first), events(again)) and first.captions == again.captions
    assert not np.array_equal(first.hits, other.hits) and first.captions != other.captions
    assert np.array_equal(np.random.get_state()[1], expected)


def test_what_sounds_keeps_to_the_grid_and_the_ranges():
    for style, (seed, bpm) in itertools.product(STYLES, ((0, 60), (4, 133), (8, 180))):
        score = compose(seed, style=style, bpm=bpm, seconds=24.5)
        ticks = np.unique(events(score)[:, 0])
        assert (
            ticks[0] == 0
            and np.diff(ticks).min() >= 5
            and ticks[-1] * band_score.TICK < 24.5 * 48_000
        )
        assert set(events(score)[:, 2]) <= {1, 2}
        for role, notes in score.notes.items():
            assert score.instruments[role] in INSTRUMENTS[role]
            assert np.all((notes[:, 1] >= LOWEST[role]) & (notes[:, 1] < LOWEST[role] + 12))
            at_once = np.unique(notes[:, 0], return_counts=True)[1]
            assert at_once.max(initial=0) <= (4 if role == "chords" else 1)
        for rows in (score.hits, *score.notes.values()):
            assert len(np.unique(rows[:, :2], axis=0)) == len(rows) and np.all(
                np.diff(rows[:, 0]) >= 0
            )


def test_only_the_key_is_played_and_its_tonic_most():
    for number, key in enumerate(KEYS):
        tonic, scale = parse_key(key)
        heard = np.zeros(12)
        for style in STYLES:
            score = compose(number, style=style, key=key, seconds=20.0)
            for notes in score.notes.values():
                np.add.at(heard, (notes[:, 1] - tonic) % 12, notes[:, 2])
        assert set(np.flatnonzero(heard)) <= set(SCALES[scale]) and heard.argmax() == 0, key


def test_beats_and_tempo_are_as_asked():
    wishes = zip(STYLES, itertools.cycle((75, 120, 150)), strict=False)
    for (style, bpm), beats in itertools.product(wishes, (3, 4)):
        score = compose(bpm, style=style, bpm=bpm, beats=beats, lyrics="[Chorus]", seconds=24.0)
        assert (score.bpm, score.beats) == (bpm, beats)
        beat = 6_000 / bpm
        downbeats = np.round(np.arange(int(24.0 * bpm / 60 / beats)) * beats * beat)
        assert np.isin(downbeats, events(score)[:, 0]).all()


def test_the_form_follows_the_tags_and_sections_sound_different():
    assert sections(TAGS) == ["intro", "verse", "chorus", "break", "chorus", "outro"]
    assert sections("[Instrumental]") == sections("no tags") == []
    score = compose(3, style="rock", bpm=120, beats=4, seconds=48.0, lyrics=TAGS)
    assert [part.name for part in score.form] == sections(TAGS) and score.lyrics == TAGS
    assert (score.form[0].start, score.form[-1].end) == (0, 48)
    rows, power = events(score), {}
    for part in score.form:
        seconds = rows[:, 0] * band_score.TICK / 48_000
        inside = rows[(seconds >= part.start) & (seconds < part.end), 2].sum()
        power[part.name] = inside / (part.end - part.start)
    assert max(power["intro"], power["outro"], power["break"]) < power["chorus"] > power["verse"]


def test_what_it_does_not_play_is_an_error():
    for wish in ({"style": "polka"}, {"bpm": 59}, {"bpm": 181}, {"beats": 5}, {"key": "H major"}):
        with pytest.raises(ValueError, match=r"plays|reads"):
            compose(0, **wish)


def test_captions_claim_only_what_is_there():
    owners = [
        (words, {name}) for names in INSTRUMENT_WORDS.values() for name, words in names.items()
    ]
    owners += [(words, {kit}) for kit, words in KIT_WORDS.items()]
    for seed in range(60):
        score = compose(seed, seconds=12.0)
        played = {score.instruments[role] for role in ROLES if len(score.notes[role])} | {score.kit}
        true = ", ".join(
            [words for words, owner in owners if owner & played] + [STYLES[score.style].words]
        )
        assert len(set(score.captions)) == 6
        for caption in score.captions:
            assert any(word in caption for word in STYLES[score.style].words.split(", ")), caption
            for word in ", ".join(words for words, _ in owners).split(", "):
                assert word not in caption or word in true, caption
            assert score.bpm < 85 or not {"slow", "unhurried"} & set(caption.split()), caption
            assert score.key.endswith("minor") or not {"sad", "minor-key"} & set(caption.split()), (
                caption
            )


def test_every_note_has_its_pitch_and_dies_away():
    for (role, instrument), step in itertools.product(band_sounds.TONES, (0, 11)):
        assert instrument in INSTRUMENTS[role]
        pitch = LOWEST[role] + step
        sound = band_sounds.note(role, instrument, pitch)
        spectrum = np.abs(np.fft.rfft(sound, 96_000))
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        near = spectrum[round(2 * hertz) - 6 : round(2 * hertz) + 7].max()
        assert near > 0.5 * spectrum.max() and sound[0] == 0 and abs(sound[-1]) < 1e-3
        assert band_sounds.note(role, instrument, pitch) is sound


def test_a_piece_is_the_sum_of_its_stems_and_silent_where_nobody_plays():
    score = compose(4, style="funk", seconds=7.123)
    piece = band_sounds.render(score)
    assert piece.stems.shape == (len(band_sounds.STEMS), 2, round(7.123 * 48_000))
    assert np.array_equal(piece.mix, piece.stems.sum(axis=0)) and 0.1 < np.abs(piece.mix).max() < 1
    assert np.array_equal(piece.mix, band_sounds.render(score).mix)
    alone = dataclasses.replace(score, notes={role: rows[:0] for role, rows in score.notes.items()})
    drums, *others = band_sounds.render(alone).stems
    assert np.array_equal(drums, piece.stems[0]) and not np.any(others)


def test_the_command_writes_pieces_with_their_facts(tmp_path, monkeypatch):
    arguments = [
        str(tmp_path),
        "--style",
        "waltz",
        "--key",
        "F# minor",
        "--seconds",
        "3",
        "--stems",
    ]
    monkeypatch.setattr("sys.argv", ["band_render", *arguments])
    band_render.main()
    (facts,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert facts["style"] == "waltz" and facts["key"] == "F# minor"
    assert len(list(tmp_path.glob("*.wav"))) == 1 + len(band_sounds.STEMS)
