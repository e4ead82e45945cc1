"""Lyrics and sketches through the backend, on tiny language models: what they say, cancel, turns, errors."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audio
import backend
import codec
import jobs
import lyrics
import planner
import preview_writers
from events import Done, Draft, Failed, Progress, StudioError
from params import parse_request
from tests.engine.songs import assert_stops, samples_of, song, song_request, wait_for_turn, words

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
    first, again, other = (
        words(studio, "lyrics", brief="rain", seed=seed, options={"max_tokens": 24}).record for seed in (3, 3, 4)
    )
    assert first["text"] == again["text"] != other["text"]
    drawn = words(studio, "lyrics", brief="rain", seed=-1, options={"max_tokens": 24}).record
    repeated = words(studio, "lyrics", brief="rain", seed=drawn["seed"], options={"max_tokens": 24}).record
    assert drawn["seed"] >= 0 and drawn["text"] == repeated["text"]


def test_lyrics_do_not_load_the_song_model_nor_a_song_the_writer(make_studio):
    studio = make_studio(built=False)
    assert studio.status()["lyrics"] == {
        "state": "ready", "model": "preview", "source": "preview", "problem": None, "engine": "transformers",
    }  # fmt: skip
    assert isinstance(words(studio, "lyrics", brief="rain", options={"max_tokens": 16}), Done)
    assert (studio.loaded, studio.planner.loaded, studio.lyrics.loaded) == (False, False, True)
    assert studio.status()["lyrics"]["state"] == "loaded"
    studio = make_studio(built=False)
    song(studio)
    assert (studio.loaded, studio.planner.loaded, studio.lyrics.loaded) == (True, True, False)
    assert studio.capabilities()["planner"]["state"] == "loaded"


def test_without_a_writer_there_is_a_sentence(no_language_models, make_studio):
    failed = words(make_studio(ACE_STUDIO_LYRICS=""), "lyrics", brief="rain")
    assert failed.problem.code == "weights_missing" and "is not on this machine" in failed.problem.message
    studio = make_studio(ACE_STUDIO_LYRICS="off")
    failed = words(studio, "lyrics", brief="rain")
    assert failed.problem.code == "writer_off"
    status = studio.status()["lyrics"]
    assert (status["state"], status["model"], status["problem"]["code"]) == ("off", "", "writer_off")


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


def test_out_of_memory_while_writing_is_a_sentence_of_its_own(studio):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    hook = studio.lyrics.get()._model._model.register_forward_pre_hook(full)
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
    done = words(studio, "describe", source=tune(1))
    sketch = done.record["sketch"]
    assert set(sketch) == FIELDS
    assert "source" not in done.record["request"]
    assert words(studio, "describe", source=tune(1)).record["sketch"] == sketch
    seen = []
    real = planner.describe

    def spy(model, codes, seed):
        seen.append(codes)
        return real(model, codes, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "describe", spy)
        for number in (1, 2):
            words(studio, "describe", source=tune(number))
    pipe = studio.pipeline()
    clean = codec.join([tile for _, _, tile in codec.encode_samples(pipe, audio.decode(tune(1)))])
    _, codes = pipe.audio_tokenizer.tokenize(clean, pipe.condition_encoder.silence_latent)
    assert planner.check_codes(seen[0], 3) == tuple(codes[0, :, 0].tolist())
    assert seen[0] != seen[1]


def test_a_recording_that_is_none_is_a_sentence_at_its_field(studio, tmp_path):
    path = tmp_path / "words.wav"
    path.write_text("not a sound")
    failed = words(studio, "describe", source=str(path))
    assert (failed.problem.code, failed.problem.field) == ("bad_audio", "source")


@pytest.mark.parametrize("mode", ["inspire", "polish", "describe"])
def test_sketches_need_a_planner(make_studio, tune, mode):
    given = {"inspire": {}, "polish": {"prompt": "x"}, "describe": {"source": tune(1)}}[mode]
    failed = words(make_studio(ACE_STUDIO_PLANNER="off"), mode, **given)
    assert isinstance(failed, Failed) and failed.problem.code == "planner_off"


# --- cancel, turns, processes -------------------------------------------------------------------------------------


def test_cancel_while_writing_stops_within_one_token(studio):
    request = parse_request("lyrics", {"brief": "rain", "options": {"max_tokens": 1_000}})
    model = studio.lyrics.get()._model._model
    assert_stops(studio, request, model, lambda event: isinstance(event, Draft) and event.tokens == 3)
    assert isinstance(words(studio, "lyrics", brief="rain", options={"max_tokens": 16}), Done)


@pytest.mark.slow
def test_cancel_while_sketching_stops_within_one_token(studio, monkeypatch):
    monkeypatch.setattr(planner, "MAX_LYRIC_TOKENS", 1_000)
    model = studio.planner.get().model.get_decoder()
    assert_stops(
        studio,
        parse_request("inspire", {"idea": "rain", "seed": 1}),
        model,
        lambda e: isinstance(e, Progress) and e.stage == "writing" and e.step > 2,
    )


@pytest.mark.parametrize("mode", ["lyrics", "inspire"])
def test_a_job_of_words_and_its_events_can_go_to_another_process(studio, mode):
    given = {"lyrics": {"brief": "rain", "options": {"max_tokens": 16}}, "inspire": {"idea": "rain"}}[mode]
    with jobs.job_for(parse_request(mode, given)) as job:
        assert pickle.loads(pickle.dumps(job)) == job
        for event in backend.gpu_entry(job, 60):
            again = pickle.loads(pickle.dumps(event))
            assert again == event
    assert isinstance(again, Done)


def test_words_leave_nothing_behind(studio, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    words(studio, "lyrics", brief="rain", options={"max_tokens": 16})
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]
    assert not Path(tmp_path / "songs").exists()


@pytest.mark.slow
def test_writing_and_singing_take_turns(studio):
    results = []

    def add(work):
        results.append(work())

    threads = [
        threading.Thread(target=add, args=(lambda: song(studio),)),
        threading.Thread(target=add, args=(lambda: words(studio, "lyrics", brief="x", options={"max_tokens": 16}),)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(result, Done) for result in results)


def test_gpu_seconds_grow_with_a_plan_and_with_words(studio, make_studio):
    def seconds(request):
        with jobs.job_for(request) as job:
            return studio._gpu_seconds(request, job)

    plain, planned = (seconds(song_request(duration=600, options={"plan": plan})) for plan in (False, True))
    assert planned > plain
    long, short = (
        seconds(parse_request("lyrics", {"brief": "x", "options": {"max_tokens": most}})) for most in (2_048, 16)
    )
    assert long > short


@pytest.mark.slow
def test_loading_all_survives_a_planner_that_cannot_be_loaded(make_studio, monkeypatch):
    def broken(*_):
        raise StudioError("planner_unfit", "It is broken.")

    monkeypatch.setattr(planner, "load_planner", broken)
    studio = make_studio()
    studio.load_all()
    assert (studio.loaded, studio.planner.loaded, studio.lyrics.loaded) == (True, False, True)
    assert studio.status()["planner"]["problem"]["message"] == "It is broken."


@pytest.mark.slow
def test_other_weights_take_the_place_of_the_loaded_ones(make_studio, monkeypatch):
    studio = make_studio()
    assert song(studio).record["plan"]["used"]
    words(studio, "lyrics", brief="rain", options={"max_tokens": 16})
    studio.refresh()
    assert (studio.planner.loaded, studio.lyrics.loaded) == (True, True)
    monkeypatch.setenv("ACE_STUDIO_PLANNER", "off")
    monkeypatch.setenv("ACE_STUDIO_LYRICS", str(preview_writers.language_model_folder("qwen2")))
    studio.refresh()
    assert (studio.planner.loaded, studio.lyrics.loaded) == (False, False)
    assert (studio.status()["planner"]["state"], studio.status()["lyrics"]["state"]) == ("off", "ready")
