"""Planned songs through the backend, on tiny language models: what a plan changes, and songs made without theirs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import codec
import export
import modes
import planner
import preview
from events import Done, Failed, Progress, StudioError
from limits import LIMITS
from memory import Placing
from tests.engine.songs import assert_stops, samples_of, song, song_request, words
from weights import DEFAULT_PLANNER

pytestmark = pytest.mark.usefixtures("output", "brief_words")


@pytest.fixture
def studio(writing):
    """Return the studio with both language models."""
    return writing


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
    assert all(take.shape == (2, 592_560) for take in samples_of(done))
    tags = export.read_record(done.files[1])
    assert tags["plan"] == plan
    assert json.loads(json.dumps(done.record)) == done.record


@pytest.mark.slow
def test_switched_off_the_song_is_the_one_of_a_studio_without_planner(studio, make_studio):
    off = song(studio, options={"plan": False, "rewrite": True})
    assert off.record["plan"] == {"used": False, "reason": "Plan the song first was off."}
    assert off.record["prompt_used"] == "calm piano" and off.record["instruction"] == modes.TEXT2MUSIC
    assert not np.allclose(samples_of(song(studio))[0], samples_of(off)[0], atol=1e-2)
    without = song(make_studio(ACE_STUDIO_PLANNER="off"))
    assert without.record["plan"]["used"] is False
    assert without.record["plan"]["reason"] == "The planner is switched off (ACE_STUDIO_PLANNER=off)."
    assert without.record["notes"] == []
    assert np.array_equal(samples_of(off)[0], samples_of(without)[0])


def test_a_rewritten_prompt_is_used_and_what_the_visitor_gave_stays(studio):
    given = {"bpm": 92, "key": "F# minor", "time_signature": "3", "language": "de"}
    record = song(studio, **given, options={"rewrite": True}).record
    assert {name: record["plan"][name] for name in given} == given
    assert {name: record["request"][name] for name in given} == given
    assert record["plan"]["rewritten"] and record["plan"]["caption"] != "calm piano"
    assert record["prompt_used"] == record["plan"]["caption"]
    assert record["request"]["prompt"] == "calm piano"
    assert record["takes"][0]["name"].startswith("calm-piano")


@pytest.mark.slow
def test_each_setting_of_the_plan_changes_the_song(studio):
    (plain,) = samples_of(song(studio))
    for change in ({"plan_temperature": 0.2}, {"plan_cfg": 4.0}, {"plan_seed": 99}):
        (changed,) = samples_of(song(studio, options=change))
        assert not np.allclose(plain, changed, atol=1e-4), change


@pytest.mark.slow
def test_a_take_alone_with_the_same_plan_seed_is_the_same_song(studio):
    together = song(studio, takes=3)
    for seed, take in zip((7, 8, 9), samples_of(together), strict=True):
        alone = song(studio, seed=seed, options={"plan_seed": 7})
        assert alone.record["plan"] == together.record["plan"]
        assert np.allclose(take, samples_of(alone)[0], atol=1e-4)


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
    stock = studio.models.pipeline()(
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
        audio_codes=planner.codes_text(plan.codes[0]),
        output_type="latent",
    ).audios
    assert torch.equal(made[0], stock)


# --- songs without their plan -------------------------------------------------------------------------------------


def test_without_a_planner_the_song_is_made_and_says_so(no_language_models, make_studio):
    studio = make_studio(ACE_STUDIO_PLANNER="")
    status = studio.status()["planner"]
    assert (status["state"], status["model"]) == ("none", DEFAULT_PLANNER)
    assert status["problem"]["code"] == "planner_missing" and "hf download" in status["problem"]["hint"]
    record = song(studio).record
    assert record["plan"] == {"used": False, "reason": f"The planner {status['model']} is not on this machine."}
    # A folder that is no planner gets a sentence too.
    studio = make_studio(ACE_STUDIO_PLANNER=str(preview.language_model_folder("qwen2")))
    assert "no audio tokens" in studio.status()["planner"]["problem"]["message"]
    assert "no audio tokens" in song(studio).record["plan"]["reason"]


@pytest.mark.slow
def test_what_the_planner_or_the_checkpoint_cannot_read_costs_only_the_plan(studio, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(studio.models.pipeline(), "audio_token_detokenizer", None)
        done = song(studio)
    assert "cannot read a plan" in done.record["plan"]["reason"]
    assert done.record["notes"] == [f"Made without a plan: {done.record['plan']['reason']}"]
    monkeypatch.setattr(studio.models.planner.get().model.config, "max_position_embeddings", 100)
    assert "this planner reads 100" in song(studio).record["plan"]["reason"]
    assert studio.status()["planner"]["state"] == "loaded"


@pytest.mark.long
@pytest.mark.slow
def test_out_of_memory_while_the_planner_is_loaded_leaves_the_song(make_studio, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    studio = make_studio()
    expected = samples_of(song(studio, options={"plan": False}))[0]
    load = planner.load_planner
    monkeypatch.setattr(planner, "load_planner", full)
    done = song(studio)
    assert np.array_equal(samples_of(done)[0], expected)
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
    studio.models.refresh()
    assert studio.status()["planner"]["state"] == "ready"


@pytest.mark.slow
def test_out_of_memory_while_planning_leaves_the_song_and_the_planner(studio, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(planner, "CodeWriter", full)
    monkeypatch.setattr(studio, "placing", Placing(studio.models))
    done = song(studio)
    assert "The planner ran out of memory" in done.record["plan"]["reason"]
    # A lower memory plan was tried first, by which the planner makes room for the song.
    assert studio.status()["planner"]["state"] == "ready"


# --- cancel -------------------------------------------------------------------------------------------------------


def test_cancel_while_planning_stops_within_one_token(studio):
    model = studio.models.planner.get().model.get_decoder().embed_tokens
    assert_stops(
        studio, song_request(duration=60), model, lambda e: isinstance(e, Progress) and e.stage == "planning" and e.step
    )
    assert isinstance(song(studio), Done)
