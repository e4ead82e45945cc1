"""A task of the official REST API as a request of ours: every field, what is clamped, what each task becomes."""

from __future__ import annotations

import json
import operator
from typing import get_args

import pytest
import soundfile

import api_official_results as results
import api_official_tasks as tasks
import limits
from api_official_fields import BY_NAME, FIELDS, KINDS, Values
from events import Progress, Stage, StudioError, share_done
from limits import LIMITS, MAX_SEED, TEXT_LIMITS
from params import REQUESTS, InspireRequest, PolishRequest, options_type, with_sketch
from record import Stored
from status import SongModelStatus
from tests.unit.sounds import tone

SECONDS = 20.0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "demo.flac"
    soundfile.write(path, tone(SECONDS).T, 48_000)
    return str(path)


def translated(source="", kind="sft", **fields):
    uploads = tasks.TaskUploads(source=source)
    return tasks.translate(Values({"prompt": "jazz", **fields}), uploads, kind)


def request(source="", kind="sft", **fields):
    return translated(source, kind, **fields)[0]


def notes(source="", kind="sft", **fields):
    return " ".join(translated(source, kind, **fields)[1].notes)


def test_a_model_is_chosen_by_its_kind_and_takes_its_own_steps():
    def here(kind, state="ready"):
        return SongModelStatus(kind, kind, f"org/x-{kind}", state, kind == "sft", 11.5, {})

    models = (here("sft"), here("turbo"), here("base", "missing"))
    turbo = tasks.chosen_model("acestep-v15-Turbo-shift3", models)
    assert turbo is models[1]
    for other in ("", "acestep-v15-xl-sft", "acestep-v15-base", "x"):
        assert tasks.chosen_model(other, models) is None, other
    # Tasks with tracks take the model that was trained for them, if it is here and none is named.
    stems = (*models[:2], here("base"))
    assert tasks.chosen_model("", stems, "lego") is stems[2]
    assert tasks.chosen_model("turbo", stems, "lego") is models[1]
    assert tasks.chosen_model("acestep-v15-xl-sft", stems, "lego") is models[0]
    assert tasks.chosen_model("", stems, "repaint") is None
    assert tasks.chosen_model("", models, "lego") is None
    values = Values({"prompt": "jazz", "inference_steps": 8})
    song, _ = tasks.translate(values, tasks.TaskUploads(), turbo.kind, (), turbo.name)
    assert (song.options.model, song.options.steps) == ("turbo", 8)


def test_names_and_aliases_are_those_of_one_field_each():
    names = [name for field in FIELDS for name in (field.name, *field.aliases)]
    assert len(names) == len(set(names))
    for field in FIELDS:
        assert field.kind in KINDS
        for name in (field.name, *field.aliases):
            assert Values({name: "7"}).sent_value(field.name) == "7"
    fields = {name for kind in ("generate", "cover", "extend", "edit") for name in _names(kind)}
    for field in FIELDS:
        for word in field.ours.replace(",", " ").replace(";", " ").split():
            if word.startswith("options."):
                assert word.removeprefix("options.") in fields, field


def _names(mode):
    return options_type(REQUESTS[mode]).model_fields


def test_a_field_is_looked_for_in_the_body_then_in_param_obj_then_in_the_metadata():
    body = {"bpm": 90, "param_obj": '{"bpm": 100, "key": "A minor"}', "metas": {"language": "ja"}}
    values = Values(body)
    assert (values.read("bpm"), values.read("key_scale")) == (90, "A minor")
    assert values.read("vocal_language") == "ja"
    assert Values({"metas": "{", "user_metadata": {"bpm": 70}}).read("bpm") == 70


def test_values_may_be_strings_and_what_cannot_be_read_is_the_default():
    for name, value, read in (
        ("thinking", "yes", True),
        ("thinking", "0", False),
        ("thinking", 1, True),
        ("thinking", [], False),
        ("bpm", " 92.0 ", 92),
        ("bpm", "fast", None),
        ("bpm", True, None),
        ("shift", "inf", None),
        ("audio_cover_strength", "1e999", 1.0),
        ("inference_steps", 10**400, 8),
        ("prompt", {}, ""),
        ("prompt", 7, "7"),
        ("track_classes", "drums, bass", ("drums", "bass")),
        ("track_classes", '["drums"]', ("drums",)),
        ("track_classes", 3, ()),
        ("seed", [1], "-1"),
    ):
        assert Values({name: value}).read(name) == read, (name, value)


def test_a_song_of_every_field():
    made = request(
        lyrics="[Verse]\nLa",
        thinking=True,
        bpm="92",
        key_scale="Am",
        time_signature="4/4",
        vocal_language="ja",
        audio_duration="33",
        inference_steps="32",
        guidance_scale=5,
        use_random_seed="false",
        seed="7,8,9",
        batch_size=3,
        infer_method="sde",
        shift="3",
        cfg_interval_start=0.25,
        cfg_interval_end=0.75,
        use_cot_caption=True,
        lm_temperature=0.5,
        lm_cfg_scale=3,
        lm_negative_prompt="brass",
        audio_format="flac",
    )
    assert (made.mode, made.prompt, made.lyrics) == ("generate", "jazz", "[Verse]\nLa")
    assert (made.bpm, made.key, made.time_signature) == (92, "A minor", "4")
    assert (made.language, made.duration, made.takes, made.seed) == ("ja", 33, 3, 7)
    options = made.options
    assert (options.steps, options.guidance, options.shift, options.sampler) == (32, 5, 3, "sde")
    assert (options.cfg_start, options.cfg_end) == (0.25, 0.75)
    assert (options.plan, options.rewrite, options.exclude) == (True, True, "brass")
    assert (options.plan_temperature, options.plan_cfg, options.format) == (0.5, 3, "flac")


def test_what_was_not_sent_is_what_their_server_does():
    made = request()
    assert made.instrumental and made.duration is None and made.takes == 2
    assert (made.quality, made.seed, made.options.format) == ("draft", -1, "mp3")
    assert made.options.steps is made.options.guidance is made.options.shift is None
    assert not made.options.plan and made.language == "unknown"
    assert translated()[1].notes == ()


@pytest.mark.parametrize(
    ("fields", "name", "became"),
    [
        ({"audio_duration": 5}, "duration", 10),
        ({"audio_duration": 5000}, "duration", 600),
        ({"batch_size": 9}, "takes", 4),
        ({"bpm": 9}, "bpm", 30),
        ({"lyrics": "la" * 9_000}, "lyrics", "la" * (TEXT_LIMITS["lyrics"] // 2)),
        ({"key_scale": "H dur"}, "key", ""),
        ({"time_signature": "5/8"}, "time_signature", ""),
        ({"prompt": " "}, "prompt", "music"),
        ({"vocal_language": "tlh"}, "language", "unknown"),
        ({"seed": "x", "use_random_seed": False}, "seed", -1),
        ({"guidance_scale": 99}, "options.guidance", 15),
        ({"shift": 0}, "options.shift", 1),
        ({"infer_method": "heun"}, "options.sampler", "ode"),
        ({"thinking": True, "lm_cfg_scale": 99}, "options.plan_cfg", 5),
        ({"thinking": True, "lm_temperature": 9}, "options.plan_temperature", 2),
        ({"inference_steps": 999}, "options.steps", 200),
        ({"audio_format": "aac"}, "options.format", "mp3"),
        ({"audio_codes": "<|1|>"}, "mode", "generate"),
    ],
)
def test_what_is_out_of_range_is_clamped_and_said(fields, name, became):
    assert operator.attrgetter(name)(request(**fields)) == became
    assert notes(**fields)


def test_what_needs_no_word():
    for fields in ({"bpm": 0}, {"key_scale": "N/A"}, {"audio_duration": -1}, {"lyrics": "[inst]"}):
        assert notes(**fields) == ""
    assert notes(vocal_language="auto", infer_method="SDE", seed="", audio_format="WAV") == ""


@pytest.mark.parametrize(
    ("kind", "sent", "quality", "steps"),
    [
        ("sft", 8, "draft", None),
        ("preview", 8, "draft", None),
        ("sft", 27, "standard", 27),
        ("sft", 2_000, "standard", 200),
        ("turbo", 8, "standard", 8),
        ("turbo", 4, "standard", 4),
        ("sft", -3, "draft", None),
    ],
)
def test_few_steps_are_those_of_a_turbo_checkpoint(kind, sent, quality, steps):
    made = request(kind=kind, inference_steps=sent)
    assert (made.quality, made.options.steps) == (quality, steps)


@pytest.mark.parametrize(
    ("seed", "random", "first"),
    [
        (7, False, 7),
        ("7", "false", 7),
        (7, True, -1),
        (-1, False, -1),
        ("x", False, -1),
        (2**32 + 5, False, 5),
        (MAX_SEED, False, MAX_SEED - 1),
    ],
)
def test_a_seed_is_kept_on_request(seed, random, first):
    assert request(seed=seed, use_random_seed=random, batch_size=2).seed == first


# --- tasks --------------------------------------------------------------------------------------------------------


def test_covers(source):
    made = request(source, task_type="cover", audio_cover_strength="0.4", cover_noise_strength=0.1)
    assert (made.mode, made.source, made.strength) == ("cover", source, 0.4)
    assert (made.options.noise_strength, made.options.detail) == (0.1, "codes")
    assert request(source, task_type="cover").strength == 1.0
    assert request(source, task_type="cover-nofsq").options.detail == "sound"


@pytest.mark.parametrize(
    ("start", "end", "mode", "facts"),
    [
        (5, 10, "edit", {"action": "repaint", "start": 5, "end": 10}),
        ("5", "-1", "edit", {"start": 5, "end": 0}),
        (5, None, "edit", {"start": 5, "end": 0}),
        (19.9, 20, "edit", {"start": 19.5, "end": 0}),
        (0, 0.1, "edit", {"start": 0, "end": 0.5}),
        (0, None, "cover", {"strength": 0}),
        (20, 30, "extend", {"before": 0, "after": 10}),
        (12, 30, "extend", {"before": 0, "after": 10}),
        (-5, 20, "extend", {"before": 5, "after": 0}),
        (-5, 30, "extend", {"before": 5, "after": 10}),
        (20, 5_000, "extend", {"after": 300}),
        (40, 50, "extend", {"after": 30}),
    ],
)
def test_a_repaint_and_one_past_the_end(source, start, end, mode, facts):
    made = request(source, task_type="repaint", repainting_start=start, repainting_end=end)
    assert made.mode == mode
    assert {name: getattr(made, name) for name in facts} == pytest.approx(facts)


def test_what_of_the_end_is_made_anew_is_the_overlap(source):
    made = request(source, task_type="repaint", repainting_start=15, repainting_end=30)
    assert made.options.overlap == pytest.approx(5)


@pytest.mark.parametrize(
    ("fields", "tracks"),
    [
        ({"track_name": "bass"}, ("bass",)),
        ({"track_name": "Backing Vocals"}, ("backing_vocals",)),
        ({"instruction": "Generate the bass track based on the audio context:"}, ("bass",)),
        ({"instruction": "Generate the BACKING VOCALS track:"}, ("backing_vocals",)),
    ],
)
def test_one_track_for_lego_and_extract(source, fields, tracks):
    lego = request(source, task_type="lego", repainting_end="-1", global_caption="slow", **fields)
    assert (lego.action, lego.tracks, lego.prompt) == ("layer", tracks, "jazz, slow")
    assert (lego.start, lego.end, lego.options.mix) == (0, 0, False)
    extract = request(source, task_type="extract", prompt="", **fields)
    assert (extract.action, extract.tracks) == ("extract", tracks)


def test_tracks_for_complete(source):
    named = request(source, task_type="complete", track_classes="drums, strings, wobble")
    assert (named.action, named.tracks) == ("complete", ("drums", "strings"))
    assert request(source, task_type="complete").tracks == tasks.USUAL_TRACKS
    assert "No tracks were named" in notes(source, task_type="complete")


def test_what_cannot_be_done_says_so(source):
    for fields, words in (
        ({"task_type": "cover"}, "needs audio"),
        ({"task_type": "midi"}, "There is no task"),
        ({"task_type": "lego", "source": source}, "track_name must be one of vocals"),
        ({"extract_codes_only": "true"}, "no audio codes"),
        ({"full_analysis_only": True}, "needs audio"),
    ):
        with pytest.raises(StudioError, match=words):
            request(**fields)


def test_words_that_are_written_first():
    made = request(sample_query="a tango", vocal_language="es", bpm=90)
    assert isinstance(made.words, InspireRequest)
    assert (made.words.idea, made.words.instrumental, made.words.language) == (
        "a tango",
        False,
        "es",
    )
    sketch = {"prompt": "tango", "lyrics": "[Verse]\nLa", "bpm": 120, "duration": 84}
    song = with_sketch(made, sketch)
    assert (song.prompt, song.lyrics, song.bpm, song.duration) == ("tango", "[Verse]\nLa", 90, 84)
    assert request(sample_mode=True, lyrics="[inst]").words.instrumental
    examples = limits.preset("examples")["generate"].values()
    anything = request(prompt="", sample_mode=True)
    assert anything.words.idea in {example["prompt"] for example in examples}
    assert "There was no idea" in notes(prompt="", sample_mode=True)
    polished = request(use_format="1", lyrics="[Verse]\nLo", audio_duration=30)
    assert isinstance(polished.words, PolishRequest)
    song = with_sketch(polished, sketch)
    assert (song.prompt, song.lyrics, song.bpm, song.duration) == ("tango", "[Verse]\nLa", 120, 30)
    assert with_sketch(polished, {}).prompt == "jazz"


# --- what becomes of it -------------------------------------------------------------------------------------------


def test_progress_never_goes_back_from_stage_to_stage():
    # Timed lyrics come after the takes, or alone.
    order = [stage for stage in get_args(Stage) if stage != "aligning"]
    stages = [Progress(stage, step, 8) for stage in order for step in (0, 4, 8)]
    shares = [share_done(each) for each in stages]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] < 1


def test_what_was_changed_stands_in_the_info():
    asked = translated(batch_size=9, audio_duration=5)[1]
    record = {"notes": ["Careful."], "model": {"id": "org/model"}}
    info = results._info(Stored.from_record(record), {"warnings": ["Loud."]}, asked)
    for words in ("batch_size 9 became 4", "audio_duration 5 became 10", "Careful.", "Loud."):
        assert words in info


def test_a_record_that_is_none_makes_an_entry_all_the_same():
    for record in ({}, {"request": [], "plan": 3, "takes": {}, "sampling": "x", "model": None}):
        entry = results._take_entry(
            "0" * 32, 1, {"name": "a.wav"}, record, [None], tasks.Asked("x")
        )
        assert entry["metas"]["bpm"] == "N/A" and json.dumps(entry)
        assert Stored.from_record(record).request == {}


def test_the_table_has_the_limits_of_ours():
    assert BY_NAME["seed"].kind == "text"  # "1,2,3"
    assert LIMITS["takes"].high == 4
