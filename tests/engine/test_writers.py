"""Planned songs, lyrics and sketches through the backend, on tiny language models: results, errors, cancel."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import audio
import audio_export
import estimate
import lyrics
import model_memory
import modes
import planner
import planner_decoding
import song_codec
import song_length
import tooltips
from events import Done, Draft, Failed, Progress, StudioError
from limits import AUTOMATIC_SECONDS, LIMITS, SAMPLE_RATE
from model_memory import Placing
from model_weights import DEFAULT_PLANNER
from params import parse_request, written_request
from status import LanguageModelStatus, SongwriterStatus
from tests.engine.songs import (
    assert_stops,
    result_of,
    samples_of,
    song,
    song_request,
    wait_for_turn,
    words,
)
from tests.weights import SONGWRITER

pytestmark = pytest.mark.usefixtures("output", "brief_words")
SHORT = {"max_tokens": 16}
GIVEN = {"bpm": 92, "key": "F# minor", "time_signature": "3", "language": "de"}


@pytest.fixture
def studio(writing):
    """Return the studio with both language models."""
    return writing


def no_room(*_, **__):
    raise torch.OutOfMemoryError("no room")


def loaded(studio) -> tuple[bool, bool, bool]:
    """Tell whether the song model, the planner and the songwriter are loaded."""
    return studio.models.loaded, studio.models.planner.loaded, studio.models.lyrics.loaded


def planned_codes(studio, monkeypatch) -> planner.Plan:
    """Make a song and return its plan."""
    plans = []
    run = modes.run

    def spy(pipe, job, plan=None, *others):
        plans.append(plan)
        return run(pipe, job, plan, *others)

    with monkeypatch.context() as patch:
        patch.setattr(modes, "run", spy)
        song(studio, **GIVEN)
    return plans[0]


# --- planned songs ------------------------------------------------------------------------------------------------


def test_a_plan_is_used_and_in_the_record(studio):
    *events, done = studio.stream(song_request(duration=12.345, takes=2))
    assert any(event.stage == "planning" and event.steps == 62 for event in events)
    plan = done.record["plan"]
    assert plan["used"] is True and plan["rewritten"] is False
    assert (plan["model"], plan["temperature"], plan["cfg"], plan["seed"]) == (
        "random",
        0.85,
        2.0,
        7,
    )
    assert LIMITS["bpm"].low <= plan["bpm"] <= LIMITS["bpm"].high
    assert done.record["instruction"] == modes.COVER
    assert {"loading", "planning"} <= set(done.record["seconds"])
    assert all(take.shape == (2, 592_560) for take in samples_of(done))
    assert audio_export.read_record(done.files[1])["plan"] == plan
    assert json.loads(json.dumps(done.record)) == done.record


def test_a_rewritten_prompt_is_used_and_what_the_visitor_gave_stays(studio):
    record = song(studio, **GIVEN, options={"rewrite": True}).record
    assert {name: record["plan"][name] for name in GIVEN} == GIVEN
    assert {name: record["request"][name] for name in GIVEN} == GIVEN
    assert record["plan"]["rewritten"] and record["plan"]["caption"] != "calm piano"
    assert record["prompt_used"] == record["plan"]["caption"]
    assert record["request"]["prompt"] == "calm piano"
    assert record["takes"][0]["name"].startswith("calm-piano")


def test_a_prompt_that_names_tempo_and_key_counts_like_the_fields(studio):
    named = song(studio, prompt="calm piano at 90 bpm, en ré mineur, 3/4")
    fields = {"bpm": 90, "key": "D minor", "time_signature": "3"}
    record = named.record
    assert {name: record["plan"][name] for name in fields} == fields
    assert record["details"] == {
        name: {"value": value, "source": "prompt"} for name, value in fields.items()
    }
    assert record["request"]["bpm"] is None
    # Without a plan the song model is told.
    unplanned = {"prompt": record["request"]["prompt"], "options": {"plan": False}}
    alone = song(studio, **unplanned)
    assert alone.record["notes"] == ["From the prompt: 90 BPM, D minor, 3/4."]
    assert np.array_equal(samples_of(alone)[0], samples_of(song(studio, **unplanned, **fields))[0])
    given = song(studio, **unplanned, **{**fields, "bpm": 120}).record
    assert "details" not in given and given["notes"] == []


@pytest.mark.slow
def test_each_setting_of_the_plan_changes_the_song_and_off_means_no_planner(studio, make_studio):
    (planned,) = samples_of(song(studio))
    for change in (
        {"plan_temperature": 0.2},
        {"plan_cfg": 4.0},
        {"plan_seed": 99},
        {"plan": False},
    ):
        (changed,) = samples_of(song(studio, options=change))
        assert not np.allclose(planned, changed, atol=1e-4), change
    off = song(studio, options={"plan": False, "rewrite": True})
    assert off.record["plan"] == {"used": False, "reason": "Plan the song first was off."}
    assert (
        off.record["prompt_used"] == "calm piano" and off.record["instruction"] == modes.TEXT2MUSIC
    )
    without = song(make_studio(ACE_STUDIO_PLANNER="off"))
    assert without.record["plan"]["used"] is False
    assert (
        without.record["plan"]["reason"] == "The planner is switched off (ACE_STUDIO_PLANNER=off)."
    )
    assert without.record["notes"] == []
    assert np.array_equal(samples_of(off)[0], samples_of(without)[0])


@pytest.mark.slow
def test_an_automatic_length_is_the_planners_and_the_page_hears_of_it(studio):
    *events, done = studio.stream(song_request(duration=None, **GIVEN))
    length = done.record["length"]
    assert length["source"] == "planner"
    assert LIMITS["duration"].low <= length["seconds"] <= AUTOMATIC_SECONDS
    (samples,) = samples_of(done)
    assert samples.shape[1] == round(length["seconds"] * SAMPLE_RATE)
    assert done.record["request"]["duration"] is None
    clock = tooltips.clock(length["seconds"])
    assert f"The song will be {clock} long." in [
        event.note for event in events if isinstance(event, Progress)
    ]
    asked = song(studio, duration=length["seconds"], **GIVEN)
    assert np.allclose(samples, samples_of(asked)[0], atol=1e-4)
    assert "length" not in asked.record


def test_without_a_plan_the_lyrics_or_the_style_decide_an_automatic_length(studio):
    for asked, source in (
        ({"lyrics": "[Verse]\nla la"}, "lyrics"),
        ({"prompt": "a jingle"}, "style"),
    ):
        made = song(studio, duration=None, options={"plan": False}, **asked)
        assert made.record["length"]["source"] == source
        guess = song_length.guess(song_request(duration=None, **asked))
        assert made.record["length"]["seconds"] == guess.seconds
        assert samples_of(made)[0].shape[1] == round(guess.seconds * SAMPLE_RATE)


def test_plan_strength_is_a_switch_at_a_step_and_0_is_text2music(studio):
    words_alone = samples_of(song(studio, options={"plan": False, "steps": 4}, **GIVEN))[0]
    songs = {}
    for strength, step in ((0, 0), (0.5, 2), (1, 4)):
        made = song(studio, options={"plan_strength": strength, "steps": 4}, **GIVEN)
        assert made.record["switch_step"] == step
        songs[strength] = samples_of(made)[0]
    assert np.array_equal(songs[0], words_alone)
    assert not np.allclose(songs[0.5], words_alone, atol=1e-4)
    assert not np.allclose(songs[0.5], songs[1], atol=1e-4)


def test_exclude_changes_the_plan_and_says_where_it_cannot(studio):
    (plain,) = samples_of(song(studio, **GIVEN))
    (without,) = samples_of(song(studio, options={"exclude": "no brass, no choir"}, **GIVEN))
    assert not np.allclose(plain, without, atol=1e-4)
    for options, why in (
        ({"plan": False}, "the song was not planned"),
        ({"plan_cfg": 1}, "Plan guidance is 1"),
    ):
        made = song(studio, options={"exclude": "no brass", **options}, **GIVEN)
        assert made.record["notes"] == [f"Exclude had no effect, because {why}."]


def get_stuck(monkeypatch, repeats: int):
    """Let the last 30 codes repeat themselves in the first `repeats` draws; returns the draws' seeds."""
    seeds = []
    run = planner_decoding.CodeWriter.run

    def run_stuck(writer):
        drawn = yield from run(writer)
        if len(seeds) <= repeats:
            drawn[0, -30:] = drawn[0, -30:][0]
        return drawn

    build = planner_decoding.CodeWriter.__init__

    def build_seen(writer, model, code_ids, prompts, given, *others, **named):
        seeds.append(tuple(given))
        build(writer, model, code_ids, prompts, given, *others, **named)

    monkeypatch.setattr(planner_decoding.CodeWriter, "run", run_stuck)
    monkeypatch.setattr(planner_decoding.CodeWriter, "__init__", build_seen)
    return seeds


def test_a_plan_that_gets_stuck_is_drawn_once_more_from_there(studio, monkeypatch):
    plain = planned_codes(studio, monkeypatch)
    seeds = get_stuck(monkeypatch, 1)
    again = planned_codes(studio, monkeypatch)
    assert again.codes[0][:21] == plain.codes[0][:21]
    assert again.codes[0][21:] != plain.codes[0][21:]
    assert planner.stuck_from(again.codes[0]) is None and again.stuck == (None,)
    assert seeds == [(7,), (planner.second_seed(7),)]


def test_a_plan_that_stays_stuck_is_used_with_a_warning(studio, monkeypatch):
    get_stuck(monkeypatch, 2)
    made = song(studio, **GIVEN)
    (take,) = made.record["takes"]
    assert (
        "The plan of take 1 repeats itself from 4 s on. Another seed often helps."
        in take["warnings"]
    )


@pytest.mark.numbers
@pytest.mark.slow
def test_a_take_alone_with_the_same_plan_seed_is_the_same_song(studio):
    # The likeliest codes: no chance falls on the border between two, where the rounding of a batch would decide.
    together = song(studio, takes=2, options={"plan_temperature": 0})
    for seed, take in zip((7, 8), samples_of(together), strict=True):
        alone = song(studio, seed=seed, options={"plan_seed": 7, "plan_temperature": 0})
        assert alone.record["plan"] == together.record["plan"]
        assert np.allclose(take, samples_of(alone)[0], atol=1e-4)


@pytest.mark.numbers
def test_a_planned_song_equals_the_pipeline_with_its_codes_bit_for_bit(studio, monkeypatch):
    made, plans = [], []
    decode, write_plan = song_codec.decode_latents, planner.plan

    def plan_spy(*arguments):
        for event in write_plan(*arguments):
            plans.append(event)
            yield event

    monkeypatch.setattr(
        song_codec,
        "decode_latents",
        lambda pipe, latents: made.append(latents) or decode(pipe, latents),
    )
    monkeypatch.setattr(planner, "plan", plan_spy)
    song(studio, duration=10.05, lyrics="[Verse]\nla la", options={"steps": 4})
    plan = plans[-1]
    assert len(plan.codes[0]) == 51
    stock = studio.models.pipeline()(
        prompt="calm piano",
        lyrics="[Verse]\nla la",
        audio_duration=10.05,
        vocal_language=plan.metadata["language"],
        bpm=plan.metadata["bpm"],
        keyscale=plan.metadata["key"],
        timesignature=plan.metadata["time_signature"],
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=4,
        guidance_scale=7.0,
        shift=1.0,
        audio_codes="".join(f"<|audio_code_{code}|>" for code in plan.codes[0]),
        output_type="latent",
    ).audios
    assert torch.equal(made[0], stock)


# --- songs without their plan -------------------------------------------------------------------------------------


def test_without_a_planner_the_song_is_made_and_the_record_says_why(
    no_language_models, make_studio, monkeypatch
):
    studio = make_studio(ACE_STUDIO_PLANNER="")
    status = studio.status().planner
    assert (status.state, status.model) == ("none", DEFAULT_PLANNER)
    assert status.problem.code == "planner_missing" and "hf download" in status.problem.hint
    record = song(studio).record
    assert record["plan"] == {
        "used": False,
        "reason": f"The planner {status.model} is not on this machine.",
    }
    # Who asks for a plan misses it, and so does the real model.
    assert song(studio, options={"plan": True}).record["plan"]["missed"] is True
    real = replace(studio.models.weights, engine="diffusers")
    monkeypatch.setattr(studio.models, "weights", real)
    assert song(studio).record["plan"]["missed"] is True
    # So does a folder that is not a planner.
    studio = make_studio(ACE_STUDIO_PLANNER=str(SONGWRITER))
    assert "no audio tokens" in studio.status().planner.problem.message
    assert "no audio tokens" in song(studio).record["plan"]["reason"]


@pytest.mark.slow
def test_a_plan_that_fails_costs_only_the_plan(studio, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(studio.models, "has_audio_codes", lambda weights: False)
        done = song(studio)
    assert "cannot read a plan" in done.record["plan"]["reason"]
    assert done.record["notes"] == [f"Made without a plan: {done.record['plan']['reason']}"]
    with monkeypatch.context() as patch:
        patch.setattr(studio.models.planner.get().model.config, "max_position_embeddings", 100)
        assert "this planner reads 100" in song(studio).record["plan"]["reason"]
    assert studio.status().planner.state == "loaded"
    monkeypatch.setattr(planner, "CodeWriter", no_room)
    monkeypatch.setattr(studio, "placing", Placing(studio.models))
    assert "The planner ran out of memory" in song(studio).record["plan"]["reason"]
    # A lower memory plan was tried first, by which the planner makes room for the song.
    assert studio.status().planner.state == "ready"


@pytest.mark.slow
def test_a_broken_planner_is_not_loaded_again_until_refresh(make_studio, monkeypatch):
    calls = []

    def broken(*_):
        calls.append(1)
        raise StudioError("planner_unfit", "It is broken.")

    studio = make_studio()
    monkeypatch.setattr(planner, "load_planner", broken)
    studio.models.load_all()
    assert loaded(studio) == (True, False, True)
    for _ in range(2):
        assert song(studio).record["plan"] == {
            "used": False,
            "reason": "It is broken.",
            "failed": True,
        }
    assert calls == [1]
    status = studio.status().planner
    assert (status.state, status.problem.message) == ("failed", "It is broken.")
    studio.models.refresh()
    assert studio.status().planner.state == "ready"


@pytest.mark.slow
def test_out_of_memory_while_a_language_model_is_loaded_leaves_the_song(make_studio, monkeypatch):
    studio = make_studio()
    monkeypatch.setattr(
        model_memory, "free_room", lambda kind: 10**9
    )  # whatever else runs on this machine
    expected = samples_of(song(studio, options={"plan": False}))[0]
    with monkeypatch.context() as patch:
        patch.setattr(planner, "load_planner", no_room)
        done = song(studio)
        assert np.array_equal(samples_of(done)[0], expected)
        assert "does not fit into the free memory" in done.record["plan"]["reason"]
        # A lower memory plan is tried first.
        assert done.record["memory_plan"] == "swap"
        assert done.record["notes"][1:] == [f"Made without a plan: {done.record['plan']['reason']}"]
        status = studio.status().planner
        assert (status.state, status.problem.code) == ("failed", "out_of_memory")
        failed = words(studio, "inspire", idea="rain")
        assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    # The next job tries again: others may have freed their memory.
    assert song(studio).record["plan"]["used"] is True
    # By that plan the planner makes room for the song again.
    assert studio.status().planner == LanguageModelStatus("ready", "random", "preview")
    studio = make_studio()
    with monkeypatch.context() as patch:
        patch.setattr(lyrics, "load_songwriter", no_room)
        failed = words(studio, "lyrics", brief="rain")
        assert failed.problem.code == "out_of_memory" and "songwriter" in failed.problem.message
        assert studio.status().songwriter.state == "failed"
        assert np.array_equal(samples_of(song(studio, options={"plan": False}))[0], expected)
    assert isinstance(words(studio, "lyrics", brief="rain", options=SHORT), Done)


# --- lyrics -------------------------------------------------------------------------------------------------------


def test_lyrics_are_streamed_and_end_with_a_record(studio):
    request = parse_request("lyrics", {"brief": "rain", "seed": 5, "options": {"max_tokens": 24}})
    *events, done = studio.stream(request)
    drafts = [event for event in events if isinstance(event, Draft)]
    assert {draft.tokens for draft in drafts if not draft.end} >= set(range(1, 25))
    assert drafts[-1].end == "length"
    assert [event.stage for event in events if isinstance(event, Progress)][-1] == "writing"
    assert done.files == () and done.record["text"] == drafts[-1].text
    expected = {"mode": "lyrics", "end": "length", "tokens": 24, "seed": 5, "device": "cpu"}
    assert expected.items() <= done.record.items()
    assert done.record["model"] == {"id": "random", "revision": "", "engine": "transformers"}
    assert done.record["request"]["brief"] == "rain"
    assert json.loads(json.dumps(done.record)) == done.record


def test_the_same_seed_writes_the_same_lyrics(studio):
    def lyrics_of(seed):
        return words(studio, "lyrics", brief="rain", seed=seed, options=SHORT).record

    drawn = lyrics_of(-1)
    assert drawn["seed"] >= 0
    assert lyrics_of(drawn["seed"])["text"] == drawn["text"] != lyrics_of(drawn["seed"] ^ 1)["text"]


def test_lines_are_rewritten_by_the_songwriter_within_their_lyrics(studio):
    lyrics_before = "[Verse]\none line\nanother line"
    request = parse_request("rewrite", {"lyrics": lyrics_before, "lines": [2, 2], "seed": 5})
    work = studio.work_of(request)
    assert (work.mode, work.tokens) == ("rewrite", request.most_tokens)
    as_lyrics = replace(work, mode="lyrics")
    assert estimate.seconds_of_work(work) == estimate.seconds_of_work(as_lyrics)
    *events, done = studio.stream(request)
    drafts = [event.text for event in events if isinstance(event, Draft)]
    assert drafts and all(text.endswith("\nanother line") for text in drafts)
    assert done.record["text"] == drafts[-1] != lyrics_before
    assert done.record["mode"] == "rewrite" and studio.models.lyrics.loaded


def test_without_a_writer_there_is_an_error(no_language_models, make_studio):
    failed = words(make_studio(ACE_STUDIO_LYRICS=""), "lyrics", brief="rain")
    assert (
        failed.problem.code == "weights_missing"
        and "is not on this machine" in failed.problem.message
    )
    studio = make_studio(ACE_STUDIO_LYRICS="off")
    assert words(studio, "lyrics", brief="rain").problem.code == "writer_off"
    status = studio.status().songwriter
    assert (status.state, status.model, status.problem.code) == ("off", "", "writer_off")


@pytest.mark.slow
def test_out_of_memory_while_writing_is_an_error_of_its_own(studio):
    hook = studio.models.lyrics.get().model.language_model.register_forward_pre_hook(no_room)
    try:
        failed = words(studio, "lyrics", brief="rain")
    finally:
        hook.remove()
    assert failed.problem.code == "out_of_memory" and "Max length" in failed.problem.hint
    wait_for_turn(studio)
    assert isinstance(words(studio, "lyrics", brief="rain", options=SHORT), Done)


@pytest.mark.slow
def test_only_the_models_that_a_job_needs_are_loaded_and_changed_ones_are_unloaded(
    make_studio, monkeypatch
):
    studio = make_studio(built=False)
    assert studio.status().songwriter == SongwriterStatus(
        "ready", "random", "preview", None, "transformers"
    )
    assert isinstance(words(studio, "lyrics", brief="rain", options=SHORT), Done)
    assert loaded(studio) == (False, False, True)
    assert studio.status().songwriter.state == "loaded"
    studio = make_studio(built=False)
    song(studio)
    assert loaded(studio) == (True, True, False)
    assert studio.capabilities()["planner"]["state"] == "loaded"
    words(studio, "lyrics", brief="rain", options=SHORT)
    studio.models.refresh()
    assert loaded(studio) == (True, True, True)
    monkeypatch.setenv("ACE_STUDIO_PLANNER", "off")
    monkeypatch.setenv("ACE_STUDIO_LYRICS", str(SONGWRITER))
    studio.models.refresh()
    assert loaded(studio) == (True, False, False)
    assert (studio.status().planner.state, studio.status().songwriter.state) == ("off", "ready")


# --- sketches -----------------------------------------------------------------------------------------------------


FIELDS = {"prompt", "lyrics", "bpm", "key", "time_signature", "language", "duration"}


@pytest.fixture
def tune(tmp_path):
    """Return a function that writes two different recordings of 3 s."""

    def write(number):
        path = tmp_path / f"tune-{number}.wav"
        soundfile.write(
            path, np.random.default_rng(number).standard_normal((144_000, 2)) * 0.1 * number, 48_000
        )
        return str(path)

    return write


def test_an_idea_becomes_a_song_in_words(studio):
    done = words(studio, "inspire", idea="a song of rain", language="fr")
    sketch = done.record["sketch"]
    assert set(sketch) == FIELDS and sketch["language"] == "fr" and sketch["prompt"]
    assert (done.record["mode"], done.record["seed"], done.record["model"]["id"]) == (
        "inspire",
        7,
        "random",
    )
    assert words(studio, "inspire", idea="a song of rain", language="fr").record["sketch"] == sketch
    assert (
        words(studio, "inspire", idea="a song of rain", language="fr", seed=8).record["sketch"]
        != sketch
    )
    assert (
        words(studio, "inspire", instrumental=True).record["sketch"]["lyrics"] == "[Instrumental]"
    )
    # It fits the request of a song.
    assert parse_request("generate", sketch).bpm == sketch["bpm"]


def test_the_songwriter_writes_the_words_of_a_song_and_one_that_fails_costs_no_song(
    studio, monkeypatch
):
    written = {"brief": "rain", "options": SHORT, "seed": 7}
    request = written_request(
        parse_request("lyrics", written),
        {"prompt": "rock", "duration": 10, "options": {"steps": 2, "plan": False}},
    )
    events = list(studio.stream(request))
    lyrics = [event.text for event in events if isinstance(event, Draft)][-1]
    assert (
        events[-1].record["request"]["lyrics"]
        == parse_request("generate", {"prompt": "rock", "lyrics": lyrics}).lyrics
    )
    assert events[-1].record["request"]["prompt"] == "rock"
    monkeypatch.setattr(studio.models.lyrics, "get", no_room)
    *events, done = studio.stream(request)
    assert isinstance(done, Done) and done.record["request"]["lyrics"] == ""
    notes = [getattr(event, "note", "") for event in events]
    assert any("The songwriter did not write the words" in note for note in notes)


def test_a_polished_song_keeps_what_was_given(studio):
    given = {**GIVEN, "duration": 42}
    sketch = words(studio, "polish", prompt="rock", lyrics="[Verse]\nla", **given).record["sketch"]
    assert {name: sketch[name] for name in given} == given
    assert sketch["prompt"] != "rock"


@pytest.mark.slow
def test_a_recording_is_described_from_its_own_codes(studio, tune, monkeypatch):
    seen, real = [], planner.describe
    monkeypatch.setattr(
        planner,
        "describe",
        lambda model, codes, seed: seen.append(codes) or real(model, codes, seed),
    )
    for number in (1, 2):
        record = words(studio, "describe", source=tune(number)).record
        assert set(record["sketch"]) == FIELDS and "source" not in record["request"]
    pipe = studio.models.pipeline()
    clean = result_of(song_codec.encode(pipe, audio.decode(tune(1)), "reading"))
    _, codes = pipe.audio_tokenizer.tokenize(clean, pipe.condition_encoder.silence_latent)
    assert seen[0] == codes[0, :, 0].tolist() and codes.shape[1] == planner.codes_needed(3)
    assert seen[0] != seen[1]


def test_sketches_need_a_planner(make_studio, tune):
    studio = make_studio(ACE_STUDIO_PLANNER="off")
    for mode, given in (
        ("inspire", {}),
        ("polish", {"prompt": "x"}),
        ("describe", {"source": tune(1)}),
    ):
        failed = words(studio, mode, **given)
        assert isinstance(failed, Failed) and failed.problem.code == "planner_off", mode


# --- cancel -------------------------------------------------------------------------------------------------------


def test_cancel_stops_a_plan_and_lyrics_within_one_token(studio):
    model = studio.models.planner.get().model.get_decoder().embed_tokens
    assert_stops(
        studio,
        song_request(duration=60),
        model,
        lambda e: isinstance(e, Progress) and e.stage == "planning" and e.step,
    )
    assert isinstance(song(studio), Done)
    request = parse_request("lyrics", {"brief": "rain", "options": {"max_tokens": 1_000}})
    model = studio.models.lyrics.get().model.language_model
    assert_stops(
        studio, request, model, lambda event: isinstance(event, Draft) and event.tokens == 3
    )
    assert isinstance(words(studio, "lyrics", brief="rain", options=SHORT), Done)
