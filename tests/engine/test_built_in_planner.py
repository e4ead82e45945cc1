"""The built-in planner that ships, with the engine that ships: what it plans is asked for, and can be heard."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

import backend
import model_weights
import planner
import planner_codes
from limits import INSTRUMENTAL, KEYS, SAMPLE_RATE
from params import parse_request
from song_words import first_named, known_words
from tests.weights import CPU
from training import engine_codes, engine_evaluate, listening
from training.band_styles import STYLES
from training.engine_latents import FRAMES_PER_SECOND
from training.engine_words import words_of_the_engine

pytestmark = pytest.mark.slow
SHIPPED = model_weights.ASSETS / "planner"
TAGS = "[Verse]\nThe lamp goes round\n\n[Chorus]\nAnd round"


@pytest.fixture(scope="module")
def built_in() -> planner.Planner:
    weights = model_weights.Weights("preview", SHIPPED, "preview", "", "transformers", None, "")
    return planner.load_planner(weights, CPU)


@pytest.fixture
def bare(monkeypatch, output) -> backend.Backend:
    """Be the studio of a machine without any weights."""
    monkeypatch.delenv("ACE_STUDIO_MODEL", raising=False)
    monkeypatch.delenv("ACE_STUDIO_PLANNER", raising=False)
    for name, folder in (("MODEL", "preview"), ("PLANNER", "planner")):
        monkeypatch.setitem(
            model_weights.BUILT_IN, f"ACE_STUDIO_{name}", model_weights.ASSETS / folder
        )
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    return studio


def test_the_bar_of_the_first_planned_song_does_not_stand_for_its_plan(bare):
    """Planning takes the built-in planner a moment; the real one takes longer than the song."""
    shares = bare._shares(parse_request("generate", {"prompt": "funk", "duration": 60}))
    _, planning = shares["planning"]
    assert 0 < planning < 0.5


def plan(built_in: planner.Planner, **values: object) -> planner.Plan:
    words = {"prompt": "funk with slap bass", "lyrics": TAGS, "duration": 30, "bpm": 100}
    words |= {"key": "E minor", "time_signature": "4"}
    request = parse_request("generate", {**words, **values})
    *_, found = planner.plan(built_in, request, (5,))
    return found


def test_a_plan_keeps_tempo_bar_and_key_whatever_is_drawn(built_in):
    drawn = set()
    for options in (
        {},
        {"plan_temperature": 2.0},
        {"plan_cfg": 5.0},
        {"exclude": "fast rock with drums"},
    ):
        codes = plan(built_in, options=options).codes[0]
        assert len(codes) == 150
        found = engine_codes.drafted(np.array(codes), 100, 4, "E minor")
        assert (found["tempo"], found["steady"], found["counted"]) == (1, 1, 1)
        assert (found["in_key"], found["home"]) == (1, 1)
        drawn.add(codes)
    assert len(drawn) == 4


def test_a_song_is_planned_on_a_bare_machine_and_follows_its_plan_as_far_as_asked(bare):
    """The prompt's words decide what the visitor left open."""
    words = {"prompt": "a slow, sad waltz", "duration": 12, "seed": 5, "quality": "draft"}
    songs = []
    for strength in (1.0, 0.5, 0.0):
        request = parse_request("generate", {**words, "options": {"plan_strength": strength}})
        *_, done = bare.stream(request)
        planned = done.record["plan"]
        assert planned["used"] and planned["model"] == "preview"
        assert 60 <= planned["bpm"] <= 84 and planned["time_signature"] == "3"
        assert planned["key"].endswith("minor")
        # It hears no words in codes, so it has no say in which take is best.
        assert "recognition" not in done.record["takes"][0]["score_parts"]
        songs.append(soundfile.read(done.files[0], dtype="float32")[0].T)
    whole, half, none = songs
    assert engine_evaluate.has_tempo(listening.tempo(whole), planned["bpm"])
    for one, other in ((whole, half), (whole, none), (half, none)):
        assert np.abs(one - other).max() > 0.01
    # It has faded away by its end.
    ending = round(engine_evaluate.ENDED_SECONDS * SAMPLE_RATE)
    for song in (whole, half):
        assert np.square(song[:, -ending:]).mean() < 0.01 * np.square(song).mean()
        assert not song[:, -1].any()


@pytest.mark.parametrize("task", ["inspire", "polish"])
def test_sketches_are_of_the_style_and_the_mood_that_were_asked_for(built_in, task):
    for seed, (words, style, scale) in enumerate(
        (
            ("a slow, sad waltz", "waltz", "minor"),
            ("happy house for a summer night", "house", "major"),
            ("thrash metal, 190 bpm", "rock", ""),
        )
    ):
        if task == "inspire":
            request = parse_request("inspire", {"idea": words, "instrumental": seed % 2 == 0})
            *_, sketch = planner.inspire(built_in, request, seed)
            assert (sketch["lyrics"] == INSTRUMENTAL) == (seed % 2 == 0)
        else:
            request = parse_request("polish", {"prompt": words, "lyrics": TAGS})
            *_, sketch = planner.polish(built_in, request, seed)
            assert sketch["lyrics"] == request.sung_lyrics()
        assert first_named(sketch["prompt"], built_in.words.style_names) == style
        assert sketch["key"] in KEYS and sketch["key"].endswith(scale)
        assert sketch["time_signature"] == ("3" if style == "waltz" else "4")
        assert style != "rock" or sketch["bpm"] == 190


def test_a_piece_is_described_in_its_own_style_tempo_key_and_metre(built_in):
    known = known_words(words_of_the_engine())
    for score in engine_evaluate.held_out(4, 30.0, first=7_000):
        digits = engine_codes.digits_of(score, round(score.seconds * FRAMES_PER_SECOND))
        *_, found = planner.describe(built_in, planner_codes.codes_of(digits).tolist(), 1)
        assert abs(found["bpm"] / score.bpm - 1) < 0.02
        assert engine_evaluate.has_key(found["key"], score.key)
        assert found["time_signature"] == str(score.beats)
        style = first_named(STYLES[score.style].words, known.style_names)
        assert first_named(found["prompt"], known.style_names) == style


def test_it_is_small_and_plans_for_the_built_in_engine_alone(built_in, bare, tiny_xl, monkeypatch):
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 8e6
    assert bare.models.planner.weights.comes_along
    monkeypatch.setenv("ACE_STUDIO_MODEL", str(tiny_xl))
    assert model_weights.find_planner().folder is None
    # Nor where it was asked for by name.
    monkeypatch.setenv("ACE_STUDIO_PLANNER", "preview")
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    *_, done = studio.stream(
        parse_request("generate", {"prompt": "rock", "duration": 10, "options": {"steps": 1}})
    )
    assert not done.record["plan"]["used"]
    assert "for the built-in engine alone" in done.record["plan"]["reason"]
