"""The built-in engine that ships: is what it plays music, and the music that was asked for?

Every other test runs the random checkpoint, which is made for shapes. docs/preview-engine.md has the whole evaluation.
"""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

import backend
import model_weights
import modes
import song_loop
import tooltips
from limits import SAMPLE_RATE
from params import parse_request
from training import engine_evaluate, listening
from training.band_score import compose
from training.band_sounds import render

SHIPPED = model_weights.ASSETS / "preview"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> engine_evaluate.Engine:
    return engine_evaluate.Engine(SHIPPED, "draft")


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.numbers), 2, 5])
def test_songs_have_the_tempo_and_the_key_that_were_asked_for(engine, number):
    # Of 64 songs 62 were in time and 51 in key (docs/preview-engine.md): these were, and no rounding changes that.
    # Their tempos are off by 0.3 %, of 4 % that are allowed. Where major and minor of one note are near one another,
    # either may lead, but the third key is behind the second by 0.1 in correlation.
    score = engine_evaluate.held_out(8, 20.0)[number]
    song = engine.make("generate", score, duration=20.0)
    assert engine_evaluate.longest_gap(song) < engine_evaluate.GAP_SECONDS
    assert engine_evaluate.clipped_share(song) < engine_evaluate.CLIPPED_SHARE
    assert engine_evaluate.has_tempo(listening.tempo(song), score.bpm)
    first_two = listening.key_ranking(song)[:2]
    assert any(engine_evaluate.has_key(key, score.key) for key in first_two), (
        first_two,
        score.key,
    )


def test_a_minute_keeps_its_beat_to_the_end_and_its_outline_is_that_of_its_loudness(
    engine, monkeypatch
):
    # Without the clock that starts again (song_clock.py) the beat was lost after half a minute. Here every quarter is
    # within 1 % of the tempo, of 4 % that are allowed.
    score = compose(5_006, style="waltz", seconds=60.0)
    outlines = []
    run = modes.run

    def recorded(*arguments):
        for event in run(*arguments):
            outlines.append(getattr(event, "outline", ()))
            yield event

    monkeypatch.setattr(modes, "run", recorded)
    song = engine.make("generate", score, duration=score.seconds)
    assert all(part["tempo"] for part in engine_evaluate.stretches(song, score))
    # What the page draws while the song is being made, half-way and at the end, against the song that came of it: it
    # fits better than in any of 1,000 other orders.
    drawn = [outline for outline in outlines if outline]
    parts = np.array_split(song, song_loop.OUTLINE_PARTS, axis=1)
    loudness = [np.sqrt(np.mean(part**2)) for part in parts]
    orders = np.random.default_rng(1)
    for outline in (drawn[len(drawn) // 2], drawn[-1]):
        fit = np.corrcoef(outline, loudness)[0, 1]
        others = [np.corrcoef(orders.permutation(outline), loudness)[0, 1] for _ in range(1_000)]
        print(f"the outline correlates by {fit:.2f}, in another order by up to {max(others):.2f}")
        assert fit > max(others)


def test_a_repaint_plays_on_and_leaves_the_rest(engine):
    score = engine_evaluate.held_out(2, 20.0)[1]
    truth = render(score).mix
    song = engine.make("edit", score, truth, action="repaint", start=6.0, end=14.0)
    # The source was written in 24 bits, the take in floating point.
    assert np.abs(between(song, 0, 5) - between(truth, 0, 5)).max() < 1e-4
    assert np.abs(between(song, 7, 13) - between(truth, 7, 13)).max() > 0.01
    assert engine_evaluate.longest_gap(between(song, 7, 13)) < engine_evaluate.GAP_SECONDS


def test_a_song_of_words_alone_keeps_one_tempo_and_says_which(monkeypatch):
    monkeypatch.setitem(model_weights.BUILT_IN, model_weights.MODEL_VARIABLE, SHIPPED)
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    request = parse_request(
        "generate", {"prompt": "funk with slap bass", "duration": 20, "seed": 5, "quality": "draft"}
    )
    *_, done = studio.stream(request)
    (note,) = [note for note in done.record["notes"] if "needs a tempo and a key" in note]
    bpm = int(note.split(" BPM")[0].rsplit(" ", 1)[1])
    assert engine_evaluate.has_tempo(
        listening.tempo(soundfile.read(done.files[0], dtype="float32")[0].T), bpm
    )


def test_a_tempo_and_a_key_in_the_prompt_are_those_of_the_song(monkeypatch):
    monkeypatch.setitem(model_weights.BUILT_IN, model_weights.MODEL_VARIABLE, SHIPPED)
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    words = {"prompt": "funk with slap bass at 104 bpm in E minor", "duration": 20, "seed": 5}
    words["lyrics"] = "[Verse]\nThe lamp goes round"
    *_, done = studio.stream(parse_request("generate", {**words, "quality": "draft"}))
    assert done.record["details"]["bpm"] == {"value": 104, "source": "prompt"}
    assert done.record["details"]["key"] == {"value": "E minor", "source": "prompt"}
    assert not [note for note in done.record["notes"] if "plan" in note]
    assert tooltips.DID_NOT_SING in done.record["notes"]
    song = soundfile.read(done.files[0], dtype="float32")[0].T
    assert engine_evaluate.has_tempo(listening.tempo(song), 104)


def between(samples: np.ndarray, start: int, end: int) -> np.ndarray:
    return samples[:, start * SAMPLE_RATE : end * SAMPLE_RATE]


def test_music_survives_the_vae(engine):
    lines = {
        line.name: line.value
        for line in engine_evaluate.measure_vae(engine, engine_evaluate.held_out(2, 20.0))
    }
    assert lines["VAE, tempo"] == 1
    assert lines["VAE, likeness of waves"] > 0.9


def test_the_studio_takes_it_where_no_model_is_found(monkeypatch):
    monkeypatch.setitem(model_weights.BUILT_IN, model_weights.MODEL_VARIABLE, SHIPPED)
    assert model_weights.find_weights().folder == SHIPPED
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 41e6
    assert max(path.stat().st_size for path in SHIPPED.rglob("*")) < 10e6
    assert model_weights.checkpoint_kind(model_weights.find_weights()) == "preview"
