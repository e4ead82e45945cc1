"""Scores of takes: each part tells the damage it is about from music, and the total follows the parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import audio_levels
import limits
import song_score
import takes
from events import InvalidRequest, Problem, Take
from limits import SAMPLE_RATE as RATE
from params import parse_request

BPM = 120
SECONDS = 20


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    """Return 20 s that beat at 120 BPM and die away, [2, n]: a chord, and a drum on each beat."""
    times = np.arange(SECONDS * RATE) / RATE
    random = np.random.default_rng(1)
    since_beat = times % (60 / BPM)
    drum = np.exp(-30 * since_beat) * random.normal(size=times.size)
    chord = sum(np.sin(2 * np.pi * hertz * times) for hertz in (220.0, 277.2, 329.6))
    wave = (0.1 * chord + 0.3 * drum) * np.clip((SECONDS - times) / 3, 0, 1) ** 2
    return np.stack([wave, wave]).astype(np.float32)


def white(seconds: float, level: float = 0.1) -> np.ndarray:
    """Return white noise, [2, n]."""
    shape = (2, round(seconds * RATE))
    return (level * np.random.default_rng(2).normal(size=shape)).astype(np.float32)


def heard(samples: np.ndarray, bpm: int | None = BPM) -> dict[str, float]:
    flatness = audio_levels.spectral_flatness(samples)
    return song_score.measured(samples, bpm, tuple(limits.SCORE_PARTS), flatness)


def test_sound_music_has_nothing_against_it(music: np.ndarray):
    parts = heard(music)
    assert parts == {name: pytest.approx(1, abs=0.05) for name in parts}
    assert set(parts) == {"tempo", "silence", "clipping", "noise", "ending"}


@pytest.mark.parametrize("bpm", [60, 120, 240])
def test_half_and_double_the_tempo_are_right(music: np.ndarray, bpm: int):
    assert song_score.tempo(music, bpm) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("bpm", [95, 105, 135, 150])
def test_another_tempo_is_wrong(music: np.ndarray, bpm: int):
    found = song_score.tempo(music, bpm)
    assert found is not None and found < 0.5


def test_where_nothing_beats_there_is_no_tempo(music: np.ndarray):
    assert song_score.tempo(white(SECONDS), BPM) is None
    assert song_score.tempo(np.zeros_like(music), BPM) is None
    assert "tempo" not in heard(music, bpm=None)


def test_only_long_silences_count(music: np.ndarray):
    def with_silence(seconds: float) -> float:
        part = music.copy()
        part[:, 5 * RATE : round((5 + seconds) * RATE)] = 0
        return song_score.silence(part)

    assert with_silence(2.8) == 1
    assert with_silence(4) == pytest.approx(0.6, abs=0.02)
    assert with_silence(6) == pytest.approx(0.4, abs=0.02)
    assert song_score.silence(np.zeros_like(music)) == 0


def test_cut_off_tops_are_clipping_and_loud_tones_are_not(music: np.ndarray):
    loud = music / np.abs(music).max()
    assert song_score.clipping(loud) == 1
    assert song_score.clipping(np.clip(4 * loud, -1, 1)) < 0.5
    times = np.arange(RATE) / RATE
    for hertz in (30, 440, 5_000):
        tone = np.sin(2 * np.pi * hertz * times).astype(np.float32)
        assert song_score.clipping(np.stack([tone, tone])) > 0.9, hertz
    assert song_score.clipping(np.zeros_like(music)) == 1


def test_noise_is_worse_the_more_of_it_there_is(music: np.ndarray):
    half = np.concatenate([music[:, : 10 * RATE], white(10)], axis=1)
    flatness = [audio_levels.spectral_flatness(each) for each in (music, half, white(10))]
    clear, mixed, noisy = (song_score.noise(each) for each in flatness)
    assert clear == 1 and noisy == 0 and 0 < mixed < 0.8


def test_an_end_in_mid_song_is_abrupt(music: np.ndarray):
    assert song_score.ending(music) == 1
    assert song_score.ending(music[:, : 10 * RATE + RATE // 20]) < 0.6


def test_the_total_is_the_mean_of_what_was_asked_for_less_the_faults():
    sound = {"lyrics": 0.8, "tempo": 0.4, "silence": 1.0, "clipping": 1.0}
    assert song_score.total({}) is None
    assert song_score.total({"silence": 1.0}) == 100
    assert song_score.total(sound) == 60
    assert song_score.total({**sound, "silence": 0.0}) == 30
    for name, worst in song_score.FAULTS.items():
        assert song_score.total({name: 0.0}) == pytest.approx(100 * (1 - worst))


def test_one_take_is_best_or_none_is():
    assert song_score.best([50.0, 70.0, None]) == 1
    for equal in ([], [50.0], [70.0, 70.0, 50.0], [None, None]):
        assert song_score.best(equal) is None


def test_the_reason_is_the_part_that_is_furthest_ahead():
    one = {"tempo": 0.9, "noise": 1.0, "ending": 0.0}
    other = {"tempo": 0.8, "noise": 0.2, "ending": 1.0}
    assert song_score.reason([one, other], 0) == "noise"
    assert song_score.reason([one, other], 1) == "ending"
    assert song_score.reason([{"tempo": 1.0}, {}], 0) == ""


# --- which parts apply ----------------------------------------------------------------------------


def parts_of(mode: str = "generate", **values: Any) -> set[str]:
    given = {"prompt": "a song", "lyrics": "la la", **values}
    if mode != "generate":
        given["source"] = "song.wav"
    request: Any = parse_request(mode, given)
    return set(song_score.parts_of(request))


def test_a_part_counts_where_it_applies_and_is_asked_for():
    every = set(limits.SCORE_PARTS)
    assert parts_of() == every
    assert parts_of(instrumental=True) == every - {"lyrics"}
    assert parts_of(options={"fade_out": 2}) == every - {"ending"}
    assert parts_of("extend", after=0, before=5) == every - {"lyrics", "recognition", "ending"}
    assert parts_of("edit", start=1, end=2) == every - {"ending"}
    assert parts_of("edit", action="extract", tracks=["drums"]) == set()
    assert parts_of(options={"score": ["noise", "tempo"]}) == {"noise", "tempo"}
    assert parts_of(options={"score": []}) == set()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"takes": 3, "options": {"best_of": 2}}, r"Best of must be from 3 \(Takes\) to 8, not 2"),
        ({"options": {"best_of": 9}}, "Best of must be a whole number from 1 to 8, not 9"),
        ({"options": {"score": ["beauty"]}}, 'Score must be among lyrics, .*, not "beauty"'),
        ({"options": {"score": 3}}, "Score must be a list of names, not 3"),
        ({"options": {"best_of": 2, "score": []}}, "Best of needs at least one part"),
        ({"seed": limits.MAX_SEED - 2, "options": {"best_of": 4}}, "for 4 takes"),
    ],
)
def test_a_wrong_choice_gets_a_sentence(values: dict[str, Any], said: str):
    with pytest.raises(InvalidRequest, match=said):
        parse_request("generate", {"prompt": "a song", **values})


# --- the best of several --------------------------------------------------------------------------


def test_the_best_takes_are_kept_in_their_order():
    made = [Take(seed, parts={"noise": part}) for seed, part in enumerate((0.2, 0.9, 0.5, 0.9))]
    assert [take.seed for take in takes.best_takes(made, 2)] == [1, 3]
    assert [take.seed for take in takes.best_takes(made, 1)] == [1]
    assert takes.best_takes(made, 4) == made
    failed = Take(9, problem=Problem("bad_take", "It failed."), parts={"noise": 1.0})
    assert [take.seed for take in takes.best_takes([failed, *made], 4)] == [0, 1, 2, 3]
    assert failed in takes.best_takes([failed, *made], 5)
