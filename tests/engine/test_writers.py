"""Lyrics and sketches through the backend, on tiny language models: what they say, cancel, turns, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

import audio
import codec
import lyrics
import planner
import preview
from events import Done, Draft, Failed, Progress, StudioError
from params import parse_request
from tests.engine.songs import assert_stops, samples_of, song, wait_for_turn, words

pytestmark = pytest.mark.usefixtures("output", "brief_words")


@pytest.fixture
def studio(writing):
    """Return the studio with both language models."""
    return writing


# --- lyrics -------------------------------------------------------------------------------------------------------


def test_lyrics_are_streamed_and_end_with_a_record(studio):
    request = parse_request("lyrics", {"brief": "rain", "seed": 5, "options": {"max_tokens": 24}})
    *events, done = studio.stream(request)
    drafts = [event for event in events if isinstance(event, Draft)]
    assert [draft.tokens for draft in drafts if not draft.end][-1] == 24
    assert len({draft.tokens for draft in drafts}) >= 24
    assert drafts[-1].end == "length"
    assert [event.stage for event in events if isinstance(event, Progress)][-1] == "writing"
    assert done.files == () and done.record["text"] == drafts[-1].text
    expected = {"mode": "lyrics", "end": "length", "tokens": 24, "seed": 5, "device": "cpu"}
    assert expected.items() <= done.record.items()
    assert done.record["model"] == {"id": "preview", "revision": "", "engine": "transformers"}
    assert done.record["request"]["brief"] == "rain"
    assert json.loads(json.dumps(done.record)) == done.record


def test_the_same_seed_writes_the_same_lyrics(studio):
    def lyrics_of(seed):
        return words(studio, "lyrics", brief="rain", seed=seed, options={"max_tokens": 16}).record

    drawn = lyrics_of(-1)
    assert drawn["seed"] >= 0
    assert lyrics_of(drawn["seed"])["text"] == drawn["text"] != lyrics_of(drawn["seed"] ^ 1)["text"]


@pytest.mark.slow
def test_lyrics_do_not_load_the_song_model_nor_a_song_the_writer(make_studio):
    studio = make_studio(built=False)
    assert studio.status()["lyrics"] == {
        "state": "ready", "model": "preview", "source": "preview", "problem": None, "engine": "transformers",
    }  # fmt: skip
    assert isinstance(words(studio, "lyrics", brief="rain", options={"max_tokens": 16}), Done)
    assert (studio.models.loaded, studio.models.planner.loaded, studio.models.lyrics.loaded) == (False, False, True)
    assert studio.status()["lyrics"]["state"] == "loaded"
    studio = make_studio(built=False)
    song(studio)
    assert (studio.models.loaded, studio.models.planner.loaded, studio.models.lyrics.loaded) == (True, True, False)
    assert studio.capabilities()["planner"]["state"] == "loaded"


def test_without_a_writer_there_is_a_sentence(no_language_models, make_studio):
    failed = words(make_studio(ACE_STUDIO_LYRICS=""), "lyrics", brief="rain")
    assert failed.problem.code == "weights_missing" and "is not on this machine" in failed.problem.message
    studio = make_studio(ACE_STUDIO_LYRICS="off")
    failed = words(studio, "lyrics", brief="rain")
    assert failed.problem.code == "writer_off"
    status = studio.status()["lyrics"]
    assert (status["state"], status["model"], status["problem"]["code"]) == ("off", "", "writer_off")


@pytest.mark.long
@pytest.mark.slow
def test_out_of_memory_while_the_writer_is_loaded_leaves_the_pipeline(make_studio, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    studio = make_studio()
    before = samples_of(song(studio))[0]
    build = lyrics.build_writer
    monkeypatch.setattr(lyrics, "build_writer", full)
    failed = words(studio, "lyrics", brief="rain")
    assert failed.problem.code == "out_of_memory" and "lyrics writer" in failed.problem.message
    assert studio.status()["lyrics"]["state"] == "failed"
    assert np.array_equal(samples_of(song(studio))[0], before)
    monkeypatch.setattr(lyrics, "build_writer", build)
    assert isinstance(words(studio, "lyrics", brief="rain", options={"max_tokens": 16}), Done)


@pytest.mark.slow
def test_out_of_memory_while_writing_is_a_sentence_of_its_own(studio):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    hook = studio.models.lyrics.get()._model._model.register_forward_pre_hook(full)
    try:
        failed = words(studio, "lyrics", brief="rain")
    finally:
        hook.remove()
    assert failed.problem.code == "out_of_memory" and "Max length" in failed.problem.hint
    wait_for_turn(studio)
    assert isinstance(words(studio, "lyrics", brief="rain", options={"max_tokens": 16}), Done)


# --- sketches -----------------------------------------------------------------------------------------------------


FIELDS = {"prompt", "lyrics", "bpm", "key", "time_signature", "language", "duration"}


@pytest.fixture
def tune(tmp_path):
    """Return a function that writes two different recordings of 3 s."""

    def write(number):
        path = tmp_path / f"tune-{number}.wav"
        soundfile.write(path, np.random.default_rng(number).standard_normal((144_000, 2)) * 0.1 * number, 48_000)
        return str(path)

    return write


def test_an_idea_becomes_a_song_in_words(studio):
    done = words(studio, "inspire", idea="a song of rain", language="fr")
    sketch = done.record["sketch"]
    assert set(sketch) == FIELDS and sketch["language"] == "fr" and sketch["prompt"]
    assert (done.record["mode"], done.record["seed"], done.record["model"]["id"]) == ("inspire", 7, "preview")
    assert words(studio, "inspire", idea="a song of rain", language="fr").record["sketch"] == sketch
    assert words(studio, "inspire", idea="a song of rain", language="fr", seed=8).record["sketch"] != sketch
    assert words(studio, "inspire", instrumental=True).record["sketch"]["lyrics"] == "[Instrumental]"
    # What it writes is understood by the song's own request.
    assert parse_request("generate", sketch).bpm == sketch["bpm"]


def test_a_polished_song_keeps_what_was_given(studio):
    given = {"bpm": 92, "key": "F# minor", "time_signature": "3", "language": "de", "duration": 42}
    sketch = words(studio, "polish", prompt="rock", lyrics="[Verse]\nla", **given).record["sketch"]
    assert {name: sketch[name] for name in given} == given
    assert sketch["prompt"] != "rock"


@pytest.mark.slow
def test_a_recording_is_described_from_its_own_codes(studio, tune):
    seen, real = [], planner.describe

    def spy(model, codes, seed):
        seen.append(codes)
        return real(model, codes, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "describe", spy)
        for number in (1, 2):
            record = words(studio, "describe", source=tune(number)).record
    assert set(record["sketch"]) == FIELDS and "source" not in record["request"]
    pipe = studio.models.pipeline()
    clean = codec.join([tile for _, _, tile in codec.encode_samples(pipe, audio.decode(tune(1)))])
    _, codes = pipe.audio_tokenizer.tokenize(clean, pipe.condition_encoder.silence_latent)
    assert seen[0] == codes[0, :, 0].tolist() and codes.shape[1] == planner.codes_needed(3)
    assert seen[0] != seen[1]


def test_sketches_need_a_planner(make_studio, tune):
    studio = make_studio(ACE_STUDIO_PLANNER="off")
    for mode, given in (("inspire", {}), ("polish", {"prompt": "x"}), ("describe", {"source": tune(1)})):
        failed = words(studio, mode, **given)
        assert isinstance(failed, Failed) and failed.problem.code == "planner_off"


# --- cancel, turns, processes -------------------------------------------------------------------------------------


def test_cancel_while_writing_stops_within_one_token(studio):
    request = parse_request("lyrics", {"brief": "rain", "options": {"max_tokens": 1_000}})
    model = studio.models.lyrics.get()._model._model
    assert_stops(studio, request, model, lambda event: isinstance(event, Draft) and event.tokens == 3)
    assert isinstance(words(studio, "lyrics", brief="rain", options={"max_tokens": 16}), Done)


@pytest.mark.slow
def test_loading_all_survives_a_planner_that_cannot_be_loaded(make_studio, monkeypatch):
    def broken(*_):
        raise StudioError("planner_unfit", "It is broken.")

    monkeypatch.setattr(planner, "load_planner", broken)
    studio = make_studio()
    studio.load_all()
    assert (studio.models.loaded, studio.models.planner.loaded, studio.models.lyrics.loaded) == (True, False, True)
    assert studio.status()["planner"]["problem"]["message"] == "It is broken."


@pytest.mark.slow
def test_other_weights_take_the_place_of_the_loaded_ones(make_studio, monkeypatch):
    studio = make_studio()
    assert song(studio).record["plan"]["used"]
    words(studio, "lyrics", brief="rain", options={"max_tokens": 16})
    studio.models.refresh()
    assert (studio.models.planner.loaded, studio.models.lyrics.loaded) == (True, True)
    monkeypatch.setenv("ACE_STUDIO_PLANNER", "off")
    monkeypatch.setenv("ACE_STUDIO_LYRICS", str(preview.language_model_folder("qwen2")))
    studio.models.refresh()
    assert (studio.models.planner.loaded, studio.models.lyrics.loaded) == (False, False)
    assert (studio.status()["planner"]["state"], studio.status()["lyrics"]["state"]) == ("off", "ready")
