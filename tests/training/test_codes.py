"""What the built-in engine's codes say: it is what the score does, and what the real quantizer makes of a code."""

from __future__ import annotations

import numpy as np
import torch

import planner_codes
from planner_codes import BEAT, CHORD_CELLS, DRUMS, MOMENT, PLAYING
from training import engine_codes, engine_parts
from training.band_score import compose
from training.engine_latents import FRAME_TICKS


def test_digits_are_the_numbers_that_the_real_quantizer_reads():
    digits = engine_codes.digits_of(compose(3, seconds=10.0), 250)
    codes = planner_codes.codes_of(digits)
    assert np.array_equal(planner_codes.digits_in(codes), digits)
    quantizer = engine_parts.build_codes()["audio_tokenizer"].quantizer
    numbers = quantizer.get_codes_from_indices(torch.from_numpy(codes)[None])[0, 0].numpy()
    steps = (np.array(planner_codes.LEVELS) - 1) / 2
    assert np.allclose((numbers + 1) * steps, digits, atol=1e-5)
    assert len({tuple(cell) for cell in CHORD_CELLS}) == 25


def test_codes_tell_beats_drums_and_chords():
    for seed in range(6):
        score = compose(seed, seconds=20.0)
        digits = engine_codes.digits_of(score, 500)
        bits = planner_codes.GRAY[digits[:, DRUMS]]
        for number, bit in enumerate(engine_codes.DRUM_BITS[:2]):
            ticks = score.hits[score.hits[:, 1] == number, 0]
            assert set(np.flatnonzero(bits & bit)) == set(ticks // planner_codes.CODE_TICKS)
        # A beat may fall where nobody plays; where something begins between beats, its first moment is told.
        firsts = {}
        for rows in (score.hits, *score.notes.values()):
            for tick in rows[:, 0]:
                window, place = divmod(int(tick), planner_codes.CODE_TICKS)
                firsts[window] = min(place // FRAME_TICKS, firsts.get(window, 5))
        between = digits[:, BEAT] == planner_codes.NO_BEAT
        for window, (digit, silent) in enumerate(zip(digits, ~between, strict=True)):
            assert silent or digit[MOMENT] == firsts.get(window, planner_codes.NOTHING)
        plays = planner_codes.GRAY[digits[:, PLAYING]] & (planner_codes.BASS | planner_codes.CHORDS)
        chords = planner_codes.chord_in(digits)
        assert np.array_equal(chords == planner_codes.NO_CHORD, plays == 0)
        found = engine_codes.drafted(
            planner_codes.codes_of(digits), score.bpm, score.beats, score.key
        )
        assert set(found.values()) == {1.0}, (seed, found)


def test_codes_from_the_middle_of_a_piece_are_those_of_its_score():
    score = compose(4, seconds=20.0)
    whole = engine_codes.digits_of(score, 500)
    assert np.array_equal(engine_codes.digits_of(score, 200, start=100), whole[20:60])
    moved = engine_codes.digits_of(score, 200, start=102)
    beats = [np.flatnonzero(each[:, BEAT] != planner_codes.NO_BEAT) for each in (whole, moved)]
    frames = [
        5 * found + each[found, MOMENT] for found, each in zip(beats, (whole, moved), strict=True)
    ]
    inside = frames[0][(frames[0] >= 102) & (frames[0] < 302)]
    assert np.array_equal(frames[1] + 102, inside)


def test_drafts_off_the_beat_or_the_key_are_told_from_good_ones():
    score = compose(5, seconds=20.0, bpm=100, key="C major", beats=4)
    codes = planner_codes.codes_of(engine_codes.digits_of(score, 500))
    assert engine_codes.drafted(codes, 120, 4, "C major")["tempo"] == 0
    assert engine_codes.drafted(codes, 100, 3, "C major")["counted"] < 1
    assert engine_codes.drafted(codes, 100, 4, "F# major")["in_key"] < 0.5
    stuck = engine_codes.drafted(np.full(100, codes[0]), 100, 4, "C major")
    assert stuck["tempo"] == 0 and stuck["steady"] == 0


def test_an_unknown_code_is_replaced_by_one_on_the_same_beat():
    digits = engine_codes.digits_of(compose(6, seconds=20.0), 500)
    codes = np.unique(planner_codes.codes_of(digits))
    known = codes[::2]
    found = planner_codes.digits_in(planner_codes.likest(codes, known))
    assert np.array_equal(planner_codes.codes_of(found)[::2], known)
    # Another drum or role costs less than another beat wherever there is a choice.
    for code, likest in zip(planner_codes.digits_in(codes), found, strict=True):
        there = planner_codes.digits_in(known)
        same = (there[:, MOMENT] == code[MOMENT]) & (there[:, BEAT] == code[BEAT])
        same &= planner_codes.chord_in(there) == planner_codes.chord_in(code)
        if same.any():
            assert (likest[MOMENT], likest[BEAT]) == (code[MOMENT], code[BEAT])
