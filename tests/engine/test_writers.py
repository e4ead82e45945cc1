"""Planned songs, lyrics and sketches through the backend, on tiny language models: what they change, cancel, errors."""

from __future__ import annotations

import contextlib
import json
import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audio
import backend
import codec
import conditions
import export
import jobs
import lyrics
import modes
import plan_grammar
import plan_weights
import planner
import preview_writers
from events import Done, Draft, Failed, Progress, StudioError
from limits import LIMITS
from params import parse_request
from placing import Placing

ON = {"ACE_STUDIO_PLANNER": "preview", "ACE_STUDIO_LYRICS": "preview"}


@pytest.fixture(scope="module")
def pipeline():
    """The pipeline of the studio that other tests use."""
    return backend.get_backend().pipeline()


@pytest.fixture
def make_studio(monkeypatch, pipeline):
    """Return a function that makes the one backend anew, with variables of its own and the pipeline built already."""

    def make(built=True, **variables):
        for name, value in {**ON, **variables}.items():
            monkeypatch.setenv(name, value)
        fresh = backend.Backend()
        fresh._pipe = pipeline if built else None
        monkeypatch.setattr(backend, "_backend", fresh)
        return fresh

    return make


@pytest.fixture(scope="module")
def shared(pipeline):
    """A studio with both language models, loaded once."""
    patch = pytest.MonkeyPatch()
    for name, value in ON.items():
        patch.setenv(name, value)
    fresh = backend.Backend()
    patch.undo()
    fresh._pipe = pipeline
    fresh.planner.get()
    fresh.lyrics.get()
    return fresh


@pytest.fixture
def studio(shared, monkeypatch):
    monkeypatch.setattr(backend, "_backend", shared)
    return shared


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "songs"))


@pytest.fixture(autouse=True)
def brief_words(monkeypatch):
    """Let captions and lyrics end early: a random model hardly ever ends them itself."""
    monkeypatch.setattr(plan_grammar, "MAX_CAPTION_TOKENS", 30)
    monkeypatch.setattr(planner, "MAX_LYRIC_TOKENS", 30)


def song_request(**values):
    options = {"steps": 2, **values.pop("options", {})}
    return parse_request("generate", {"prompt": "calm piano", "duration": 10, "seed": 7, **values, "options": options})


def song(studio, **values):
    last = list(studio.stream(song_request(**values)))[-1]
    assert isinstance(last, Done), last
    return last


def words(studio, mode, **values):
    *events, last = studio.stream(parse_request(mode, {"seed": 7, **values}))
    assert all(isinstance(event, Progress | Draft) for event in events)
    return last


def samples(done):
    return [audio.decode(path) for path in done.files]


def wait_for_turn(studio):
    assert studio.turn.acquire(timeout=20), "the lock was not freed"
    studio.turn.release()


# --- planned songs ------------------------------------------------------------------------------------------------


def test_a_plan_is_used_and_stands_in_the_record(studio):
    *events, done = studio.stream(song_request(duration=12.345, takes=2))
    assert any(event.stage == "planning" and event.steps == 62 for event in events)
    plan = done.record["plan"]
    assert plan["used"] is True and plan["rewritten"] is False
    assert (plan["model"], plan["temperature"], plan["cfg"], plan["seed"]) == ("preview", 0.85, 2.0, 7)
    assert LIMITS["bpm"].low <= plan["bpm"] <= LIMITS["bpm"].high
    assert done.record["instruction"] == modes.COVER
    assert {"loading", "planning"} <= set(done.record["seconds"])
    assert all(take.shape == (2, 592_560) for take in samples(done))
    tags = export.read_record(done.files[1])
    assert tags["plan"] == plan
    assert json.loads(json.dumps(done.record)) == done.record


def test_a_plan_changes_the_song(studio):
    (planned,), (plain,) = samples(song(studio)), samples(song(studio, options={"plan": False}))
    assert planned.shape == plain.shape
    assert not np.allclose(planned, plain, atol=1e-2)


def test_switched_off_the_song_is_the_one_of_a_studio_without_planner(studio, make_studio):
    off = song(studio, options={"plan": False, "rewrite": True})
    assert off.record["plan"] == {"used": False, "reason": "Plan the song first was off."}
    assert off.record["prompt_used"] == "calm piano" and off.record["instruction"] == modes.TEXT2MUSIC
    without = song(make_studio(ACE_STUDIO_PLANNER="off"))
    assert without.record["plan"]["used"] is False
    assert without.record["plan"]["reason"] == "The planner is switched off (ACE_STUDIO_PLANNER=off)."
    assert without.record["notes"] == []
    assert np.array_equal(samples(off)[0], samples(without)[0])
    # The page switches the control off where there is no planner: that is not the visitor's choice.
    neither = song(make_studio(ACE_STUDIO_PLANNER="off"), options={"plan": False})
    assert neither.record["plan"] == without.record["plan"]


def test_other_modes_have_no_plan(studio, tmp_path):
    path = tmp_path / "source.wav"
    soundfile.write(path, np.random.default_rng(1).standard_normal((96_000, 2)) * 0.1, 48_000)
    done = list(studio.stream(parse_request("cover", {"prompt": "x", "source": str(path), "options": {"steps": 2}})))[
        -1
    ]
    assert done.record["plan"] is None


def test_what_the_visitor_gave_is_planned_with_and_stays(studio):
    given = {"bpm": 92, "key": "F# minor", "time_signature": "3", "language": "de"}
    record = song(studio, **given, options={"rewrite": True}).record
    assert {name: record["plan"][name] for name in given} == given
    assert {name: record["request"][name] for name in given} == given


def test_the_planned_fields_reach_the_song(studio):
    planned = song(studio)
    seen = []
    real = conditions.encode_condition

    def spy(pipe, said, *rest):
        seen.append(said)
        return real(pipe, said, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "encode_condition", spy)
        again = song(studio)
    assert np.array_equal(samples(planned)[0], samples(again)[0])
    (said,), plan = seen, planned.record["plan"]
    found = {"bpm": said.bpm, "key": said.key, "time_signature": said.time_signature, "language": said.language}
    assert found == {name: plan[name] for name in found}


@pytest.mark.slow
def test_a_rewritten_prompt_is_used_and_the_file_keeps_its_name(studio):
    record = song(studio, options={"rewrite": True}).record
    assert record["plan"]["rewritten"] and record["plan"]["caption"] != "calm piano"
    assert record["prompt_used"] == record["plan"]["caption"]
    assert record["request"]["prompt"] == "calm piano"
    assert record["takes"][0]["name"].startswith("calm-piano")


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"plan_temperature": 0.2}, {"plan_cfg": 4.0}, {"plan_seed": 99}], ids=str)
def test_each_setting_of_the_plan_changes_the_song(studio, change):
    (plain,), (changed,) = samples(song(studio)), samples(song(studio, options=change))
    assert not np.allclose(plain, changed, atol=1e-4)


@pytest.mark.slow
def test_a_take_alone_with_the_same_plan_seed_is_the_same_song(studio):
    together = song(studio, takes=3)
    for seed, take in zip((7, 8, 9), samples(together), strict=True):
        alone = song(studio, seed=seed, options={"plan_seed": 7})
        assert alone.record["plan"] == together.record["plan"]
        assert np.allclose(take, samples(alone)[0], atol=1e-4)


def test_a_planned_song_equals_the_pipeline_with_its_codes_bit_for_bit(studio, monkeypatch):
    made, plans = [], []
    decode, write_plan = codec.decode_latents, planner.plan

    def plan_spy(*arguments):
        for event in write_plan(*arguments):
            plans.append(event)
            yield event

    monkeypatch.setattr(codec, "decode_latents", lambda pipe, latents: made.append(latents) or decode(pipe, latents))
    monkeypatch.setattr(planner, "plan", plan_spy)
    song(studio, duration=10.05, lyrics="[Verse]\nla la", options={"steps": 4})
    plan = plans[-1]
    assert len(plan.codes[0]) == 51
    stock = studio.pipeline()(
        prompt="calm piano",
        lyrics="[Verse]\nla la",
        audio_duration=10.05,
        vocal_language=plan.language,
        bpm=plan.bpm,
        keyscale=plan.key,
        timesignature=plan.time_signature,
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=4,
        guidance_scale=7.0,
        shift=1.0,
        audio_codes=plan.codes_text(0),
        output_type="latent",
    ).audios
    assert torch.equal(made[0], stock)


def test_codes_of_another_length_are_an_error(studio):
    with jobs.job_for(song_request()) as job:
        steps = writers_plan(studio, job)
        shorter = replace(steps, codes=(steps.codes[0][:-1],))
        with pytest.raises(StudioError, match="needs 50 audio codes; the plan has 49"):
            list(modes.run(studio.pipeline(), job, True, shorter))


def writers_plan(studio, job):
    *_, plan = planner.plan(studio.planner.get(), planner.Brief("x", "la", job.request.duration), job.seeds)
    return plan


# --- songs without their plan -------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without language models."""
    monkeypatch.setattr(plan_weights, "MODELS_FOLDER", tmp_path / "models")
    monkeypatch.setattr(lyrics.checkpoints, "MODELS_FOLDER", tmp_path / "models")


def test_without_planner_weights_the_song_is_made_and_says_so(bare, make_studio):
    studio = make_studio(ACE_STUDIO_PLANNER="")
    status = studio.status()["planner"]
    assert (status["state"], status["model"]) == ("none", plan_weights.DEFAULT_PLANNER)
    assert status["problem"]["code"] == "planner_missing" and "hf download" in status["problem"]["hint"]
    record = song(studio).record
    assert record["plan"] == {"used": False, "reason": f"The planner {status['model']} is not on this machine."}


def test_a_folder_that_is_no_planner_gets_a_sentence(make_studio):
    studio = make_studio(ACE_STUDIO_PLANNER=str(preview_writers.language_model_folder("qwen2")))
    assert "no audio tokens" in studio.status()["planner"]["problem"]["message"]
    assert "no audio tokens" in song(studio).record["plan"]["reason"]


def test_a_checkpoint_that_reads_no_codes_makes_songs_without_a_plan(studio, monkeypatch):
    monkeypatch.setattr(studio.pipeline(), "audio_token_detokenizer", None)
    done = song(studio)
    assert "cannot read a plan" in done.record["plan"]["reason"]
    assert done.record["notes"] == [f"Made without a plan: {done.record['plan']['reason']}"]


def test_a_text_too_long_for_the_planner_costs_only_the_plan(studio, monkeypatch):
    monkeypatch.setattr(studio.planner.get().model.config, "max_position_embeddings", 100)
    done = song(studio)
    assert "this planner reads 100" in done.record["plan"]["reason"]
    assert studio.status()["planner"]["state"] == "loaded"


@pytest.mark.slow
def test_out_of_memory_while_the_planner_is_loaded_leaves_the_song(make_studio, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    studio = make_studio()
    expected = samples(song(studio, options={"plan": False}))[0]
    load = planner.load_planner
    monkeypatch.setattr(planner, "load_planner", full)
    done = song(studio)
    assert np.array_equal(samples(done)[0], expected)
    assert "does not fit into the memory" in done.record["plan"]["reason"]
    # A lower memory plan is tried first.
    assert done.record["memory_plan"] == "swap"
    assert done.record["notes"][1:] == [f"Made without a plan: {done.record['plan']['reason']}"]
    status = studio.status()["planner"]
    assert (status["state"], status["problem"]["code"]) == ("failed", "out_of_memory")
    failed = words(studio, "inspire", idea="rain")
    assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    # The next song tries again: others may have let go of their memory.
    monkeypatch.setattr(planner, "load_planner", load)
    assert song(studio).record["plan"]["used"] is True
    # By that plan it makes room for the song again.
    assert studio.status()["planner"] == {"state": "ready", "model": "preview", "problem": None, "source": "preview"}


@pytest.mark.slow
def test_out_of_memory_in_the_transformers_loader_is_a_sentence(make_studio, monkeypatch):
    from transformers import AutoModelForCausalLM

    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    studio = make_studio()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    assert "does not fit into this machine's memory" in song(studio).record["plan"]["reason"]
    failed = words(studio, "lyrics", brief="rain")
    assert failed.problem.code == "out_of_memory"


def test_what_is_broken_is_not_loaded_at_every_song(make_studio, monkeypatch):
    calls = []

    def broken(*_):
        calls.append(1)
        raise StudioError("planner_unfit", "It is broken.")

    studio = make_studio()
    monkeypatch.setattr(planner, "load_planner", broken)
    for _ in range(2):
        assert song(studio).record["plan"] == {"used": False, "reason": "It is broken."}
    assert calls == [1]
    assert studio.status()["planner"]["state"] == "failed"
    studio.refresh()
    assert studio.status()["planner"]["state"] == "ready"


def test_out_of_memory_while_planning_leaves_the_song_and_the_planner(studio, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(planner, "CodeWriter", full)
    monkeypatch.setattr(studio, "placing", Placing(studio))
    done = song(studio)
    assert "The planner ran out of memory" in done.record["plan"]["reason"]
    # A lower memory plan was tried first, by which the planner makes room for the song.
    assert studio.status()["planner"]["state"] == "ready"


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


def test_without_a_writer_there_is_a_sentence(bare, make_studio):
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
    before = samples(song(studio))[0]
    build = lyrics.build_writer
    monkeypatch.setattr(lyrics, "build_writer", full)
    failed = words(studio, "lyrics", brief="rain")
    assert failed.problem.code == "out_of_memory" and "lyrics writer" in failed.problem.message
    assert studio.status()["lyrics"]["state"] == "failed"
    assert np.array_equal(samples(song(studio))[0], before)
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


@contextlib.contextmanager
def slow_tokens(model):
    """Make each forward pass of a language model take 50 ms longer; yields a list that grows by one a pass."""
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1) or time.sleep(0.05))
    try:
        yield calls
    finally:
        hook.remove()


def assert_stops(studio, request, model, reached):
    with slow_tokens(model) as calls:
        events = studio.stream(request)
        for event in events:
            if reached(event):
                break
        events.close()
        begun = len(calls)
        wait_for_turn(studio)
        assert len(calls) <= begun + 1
        time.sleep(0.2)
        assert len(calls) <= begun + 1
    assert begun < 30


def test_cancel_while_planning_stops_within_one_token(studio):
    model = studio.planner.get().model.get_decoder()
    assert_stops(
        studio, song_request(duration=60), model, lambda e: isinstance(e, Progress) and e.stage == "planning" and e.step
    )
    assert isinstance(song(studio), Done)


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


@pytest.mark.slow
def test_loading_all_survives_a_planner_that_cannot_be_loaded(make_studio, monkeypatch):
    def broken(*_):
        raise StudioError("planner_unfit", "It is broken.")

    monkeypatch.setattr(planner, "load_planner", broken)
    studio = make_studio()
    studio.load_all()
    assert (studio.loaded, studio.planner.loaded, studio.lyrics.loaded) == (True, False, True)
    assert studio.status()["planner"]["problem"]["message"] == "It is broken."


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
