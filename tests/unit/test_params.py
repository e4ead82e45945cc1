"""Requests: the contract's defaults, accepted spellings, a sentence for every wrong value, and files that fit."""

import math
import pickle

import gradio as gr
import numpy as np
import pytest
import soundfile

import limits
import page_cover
import params
from backend import get_backend
from events import InvalidRequest
from params import REQUESTS, check_source, parse_request, upload_seconds
from tests.unit.sounds import NO_AUDIO

PROMPT = {"prompt": "calm piano"}
SOURCE = {**PROMPT, "source": "song.wav"}


def problems(mode="generate", values=PROMPT, seconds=60.0):
    """Return the sentences by field that `values` get, for a source of so many seconds."""
    with pytest.raises(InvalidRequest) as caught:
        check_source(parse_request(mode, values), seconds)
    return {problem.field: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("mode", "values", "field", "words"),
    [
        *(
            ("generate", {**PROMPT, field: value}, field, words)
            for field, value, words in [
                ("duration", 9, "from 10 to 600 seconds"),
                ("duration", math.nan, "from 10 to 600 seconds"),
                ("duration", True, "from 10 to 600 seconds"),
                ("bpm", 120.5, "a whole number from 30 to 300"),
                ("key", "H major", "from A to G"),
                ("time_signature", "5", "2, 3, 4 or 6"),
                ("language", "klingon", "51 listed codes"),
                ("quality", "ultra", "draft, standard, best"),
                ("seed", -2, "from -1 to 4294967295"),
                ("instrumental", "yes", "true or false"),
                ("prompt", "x" * 100_000, "up to 2,000 characters; this has 100,000"),
                ("prompt", "", "or add lyrics"),
                ("prompt", " \n", "Prompt is empty"),
                ("mood", "blue", "not a parameter"),
                ("source", "song.wav", "not a parameter"),
            ]
        ),
        *(
            ("generate", {**PROMPT, "options": {name: value}}, f"options.{name}", words)
            for name, value, words in [
                ("steps", 0, "from 1 to 200"),
                ("guidance", 0.5, "from 1 to 15"),
                ("sampler", "heun", "ode, sde"),
                ("loudness", 0, "from -30 to -6 LUFS"),
                ("timbre_token", 1, "true or false"),
                ("stepps", 20, "steps"),
                ("repaint_mode", "balanced", "not an option"),
            ]
        ),
        (
            "generate",
            {**PROMPT, "options": {"cfg_start": 0.8, "cfg_end": 0.2}},
            "options.cfg_end",
            "from 0.8",
        ),
        (
            "generate",
            {**PROMPT, "seed": limits.MAX_SEED, "takes": 2},
            "seed",
            "from -1 to 4294967294",
        ),
        ("generate", {"instrumental": True}, "prompt", "Prompt is empty. Describe the song."),
        (
            "generate",
            {"lyrics": "la", "instrumental": True},
            "prompt",
            "an instrumental does not sing its lyrics",
        ),
        (
            "lyrics",
            {},
            "brief",
            "Brief is empty: say what the song is about, in up to 2,000 characters",
        ),
        ("lyrics", {"brief": "x" * 50_000}, "brief", "up to 2,000 characters; this has 50,000"),
        ("lyrics", {"brief": "x", "structure": "x" * 501}, "structure", "up to 500 characters"),
        (
            "lyrics",
            {"brief": "x", "options": {"max_tokens": 0}},
            "options.max_tokens",
            "from 16 to 2048 tokens",
        ),
        (
            "lyrics",
            {"brief": "x", "options": {"temperature": 2.1}},
            "options.temperature",
            "from 0 to 2",
        ),
        (
            "lyrics",
            {"brief": "x", "options": {"plan": True}},
            "options.plan",
            "max_tokens, temperature, top_p",
        ),
        ("lyrics", {"brief": "x", "options": 3}, "options", "must be an object"),
        ("inspire", {"options": {}}, "options", "not a parameter"),
        ("inspire", {"seed": 1.5}, "seed", "a whole number"),
        ("polish", {}, "prompt", "or add lyrics"),
        ("describe", {}, "source", "is missing"),
        ("align", {**SOURCE, "lyrics": ""}, "lyrics", "from 1 to 10,000 characters"),
        ("cover", PROMPT, "source", "is missing"),
        ("cover", {**SOURCE, "prompt": ""}, "prompt", "or add lyrics"),
        *(
            ("edit", {**SOURCE, **values}, field, words)
            for values, field, words in [
                ({"start": 50, "end": 10}, "end", "after Start (50)"),
                ({"start": 0, "end": 9999}, "end", "from 0 to 600"),
                ({"start": 10, "end": 10.4}, "end", "at least 0.5 seconds"),
                ({"start": 5, "end": 61}, "end", "from 0 to 60 seconds"),
                ({"start": 59.8}, "start", "from 0 to 59.5 seconds"),
                ({}, "end", "leave some of the source"),
                ({"action": "layer"}, "tracks", "Choose the track to add."),
                ({"action": "complete"}, "tracks", "Choose the tracks to add."),
                ({"action": "layer", "tracks": ["kazoo"]}, "tracks", '"kazoo"'),
                ({"action": "layer", "tracks": ["bass", "drums"]}, "tracks", "exactly one track"),
                ({"action": "layer", "tracks": {"drums": True}}, "tracks", "a list of names"),
                ({"tracks": ["drums"]}, "tracks", "not for repaint"),
                ({"action": "morph", "start": 3}, "start", "for repaint and layer"),
                ({"action": "remix"}, "action", "repaint, morph, layer, extract, complete"),
                ({"options": {"n_min": 0.2}}, "options.n_min", "belongs to the action morph"),
                (
                    {"action": "morph", "options": {"n_min": 0.7, "n_max": 0.6}},
                    "options.n_max",
                    "above Morph",
                ),
            ]
        ),
        ("extend", {**SOURCE, "before": 0, "after": 0}, "after", "must not both be 0"),
        ("extend", {**SOURCE, "before": 280, "after": 270}, "before", "from 0 to 540"),
        ("extend", {**SOURCE, "before": 270, "after": 280}, "after", "from 0 to 540"),
    ],
)
def test_a_wrong_value_gets_a_short_sentence_at_its_field(mode, values, field, words):
    found = problems(mode, values)
    assert list(found) == [field]
    assert words in found[field] and found[field].endswith(".")
    assert len(found[field]) < 300


def test_all_wrong_fields_are_reported_at_once():
    values = {**PROMPT, "duration": 9, "bpm": 0, "options": {"steps": 0}}
    assert set(problems(values=values)) == {"duration", "bpm", "options.steps"}


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("edit", {"start": 10, "end": 20}),
        ("edit", {"start": 10}),
        (
            "edit",
            {"action": "layer", "tracks": ["bass"], "start": 4, "end": 8, "options": {"mix": True}},
        ),
        ("edit", {"action": "complete", "tracks": ["bass", "Backing Vocals"]}),
        ("edit", {"action": "morph", "options": {"n_min": 0.2, "n_max": 0.4, "n_avg": 3}}),
        ("extend", {"before": 240, "after": 300}),
        ("generate", {"seed": limits.MAX_SEED}),
    ],
)
def test_valid_requests_pass(mode, values):
    check_source(
        parse_request(mode, {**(PROMPT if mode == "generate" else SOURCE), **values}), 60.0
    )


def test_without_lyrics_or_with_the_switch_a_song_is_instrumental():
    for values, sung in (
        ({"prompt": "", "lyrics": "[Verse]\nla la"}, "[Verse]\nla la"),
        ({"prompt": "x", "lyrics": "la la", "instrumental": True}, "[Instrumental]"),
        ({"prompt": "x"}, "[Instrumental]"),
    ):
        assert parse_request("generate", values).sung_lyrics() == sung


@pytest.mark.parametrize(
    ("name", "given", "parsed"),
    [
        *(("key", value, "C major") for value in ("c", "CM")),
        *(("key", value, "Eb minor") for value in ("E♭ minor", "EB MINOR")),
        *(
            ("key", value, key)
            for value, key in (
                ("Am", "A minor"),
                ("F#", "F# major"),
                ("bb", "Bb major"),
                (None, ""),
            )
        ),
        ("bpm", 120.0, 120),
        ("seed", 7.0, 7),
        *(("time_signature", value, "4") for value in ("4/4", "4", 4, 4.0)),
        ("prompt", "a\x00b\ud800c", "abc"),
        ("lyrics", " line\n\tnext\x1b", "line\n\tnext"),
        ("options", None, params.GenerateOptions()),
    ],
)
def test_other_spellings_are_understood(name, given, parsed):
    found = getattr(parse_request("generate", {**PROMPT, name: given}), name)
    assert found == parsed and type(found) is type(parsed)
    assert name != "key" or found in (*limits.KEYS, "")


def test_requests_and_errors_can_be_pickled():
    request = parse_request("generate", {**PROMPT, "options": {"steps": 3}})
    assert pickle.loads(pickle.dumps(request)) == request
    with pytest.raises(InvalidRequest) as caught:
        parse_request("generate", {"duration": 1})
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_quality_and_checkpoint_set_the_steps():
    def settings(kind, **given):
        return params.settle(parse_request("generate", {**PROMPT, **given}), kind)

    for quality, steps, built_in in (("draft", 20, 4), ("standard", 50, 8), ("best", 80, 16)):
        assert settings("sft", quality=quality) == params.Settings("sft", steps, 7.0, 1.0)
        chosen = settings("preview", quality=quality)
        assert chosen == params.Settings("preview", built_in, 1.0, 1.0)
        assert settings("sft", quality=quality, options={"steps": 33}).steps == 33
    # A turbo checkpoint has its own, and notes what it ignores.
    assert settings("turbo") == params.Settings("turbo", 8, 1.0, 3.0)
    chosen = settings("turbo", quality="best", options={"guidance": 4})
    assert (chosen.steps, chosen.guidance, chosen.shift, len(chosen.notes)) == (8, 1.0, 3.0, 2)
    assert settings("turbo", options={"guidance": 1, "shift": 2}) == params.Settings(
        "turbo", 8, 1.0, 2.0
    )


# --- uploads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def song(tmp_path):
    """Return a function that writes a silent file and returns its path."""

    def write(name="song.wav", samples=192_000, rate=48_000):
        soundfile.write(tmp_path / name, np.zeros(samples), rate)
        return str(tmp_path / name)

    return write


def audio_problems(**files):
    with pytest.raises(InvalidRequest) as caught:
        params.check_audio(parse_request("cover", {**PROMPT, **files}))
    return {problem.field: problem.text() for problem in caught.value.problems}


def test_an_uploads_length_is_in_whole_samples_at_48_khz(song):
    for rate in (8_000, 44_100, 48_000, 96_000):
        assert upload_seconds(song(samples=100_006, rate=rate)) * 48_000 == round(
            100_006 * 48_000 / rate
        )


@pytest.mark.parametrize("kind", NO_AUDIO)
def test_a_file_that_is_not_audio_is_reported_at_its_field(song, tmp_path, kind):
    data, sentence = NO_AUDIO[kind]
    (tmp_path / "bad.wav").write_bytes(data)
    for field in ("source", "reference"):
        found = audio_problems(**{"source": song(), field: str(tmp_path / "bad.wav")})
        assert set(found) == {field}
        assert found[field].startswith(sentence)


def test_a_source_is_1_to_600_seconds_long_and_unusable_uploads_are_reported_together(
    song, tmp_path
):
    for seconds, sentence in ((0.99, "too short"), (600.1, "too long")):
        assert (
            sentence
            in audio_problems(source=song(samples=round(seconds * 8_000), rate=8_000))["source"]
        )
    assert set(audio_problems(source=str(tmp_path / "gone.wav"), reference=str(tmp_path))) == {
        "source",
        "reference",
    }


def test_the_page_reports_a_bad_file_together_with_other_errors(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with gr.Blocks():
        form = page_cover.cover_tab(get_backend()).form
    wrong = {
        "source": str(tmp_path / "bad.wav"),
        "reference": str(tmp_path / "bad.wav"),
        "bpm": "fast",
    }
    values = {name: wrong.get(name, field.value) for name, field in form.fields.items()}
    found = form.problems([*values.values()])
    assert found.keys() == {"source", "reference", "prompt", "bpm"}
    assert "audio" in found["source"] and "Prompt is empty" in found["prompt"]
    none = form.problems([*{**values, "source": None, "reference": None}.values()])
    assert none.keys() == {"source", "prompt", "bpm"} and "is missing" in none["source"]


def edit_with(**values):
    return parse_request("edit", {"source": "song.wav", "prompt": "piano", **values})


def test_regions_are_sorted_pairs_that_do_not_overlap():
    request = edit_with(regions=[[8, 9.5], (1, 2)])
    assert request.regions == ((1, 2), (8, 9.5))
    for regions, sentence in (
        ("1-2", 'Regions must be a list of [start, end] in seconds, not "1-2".'),
        ([[1, 2, 3]], 'Region 1 must be [start, end] in seconds, not "[1, 2, 3]".'),
        ([[1, 2], [3, "x"]], 'The end of region 2 must be from 0 to 600 seconds, not "x".'),
        (
            [[1, 1.2]],
            "The end of region 1 must be at least 0.5 seconds after its start (1), not 1.2.",
        ),
        ([[1, 3], [2, 4]], "Regions must not overlap, as 1 to 3 and 2 to 4 seconds do."),
        ([[at, at + 1] for at in range(17)], "The number of regions must be from 0 to 16, not 17."),
    ):
        assert sentence_of(lambda regions=regions: edit_with(regions=regions)) == (
            "regions",
            sentence,
        )


def test_regions_belong_to_actions_on_a_region_and_replace_start_and_end():
    for values, sentence in (
        ({"action": "morph"}, "Regions are for repaint and layer; morph uses the whole file."),
        (
            {"start": 1, "end": 2},
            "Regions replace Start and End: give either regions, or one start and end.",
        ),
    ):
        assert sentence_of(lambda values=values: edit_with(regions=[[1, 2]], **values)) == (
            "regions",
            sentence,
        )


def test_regions_must_lie_in_the_source_and_leave_some_of_it():
    for regions, message in (
        (
            [[1, 2], [9, 11]],
            "Regions must lie within the source, from 0 to 10 seconds; one ends at 11.",
        ),
        (
            [[0, 4], [4, 10]],
            "Regions must leave some of the source (0 to 10 seconds) unchanged. "
            "To change all of it, use Cover or Morph.",
        ),
    ):
        request = edit_with(regions=regions)
        assert sentence_of(lambda request=request: check_source(request, 10)) == (
            "regions",
            message,
        )
    check_source(edit_with(regions=[[0, 4], [4.5, 10]]), 10)


def sentence_of(call):
    """Return field and message of the first problem that `call` raises."""
    with pytest.raises(InvalidRequest) as caught:
        call()
    return caught.value.problem.field, caught.value.problem.message


def _limited_fields():
    """Return (type's name, field, the annotation's type, its limit, its default) for every number in a request."""
    models = [*REQUESTS.values()]
    models += [
        params.options_type(kind) for kind in REQUESTS.values() if "options" in kind.model_fields
    ]
    return [
        (model.__name__, name, field.annotation, check.func, field.default)
        for model in dict.fromkeys(models)
        for name, field in model.model_fields.items()
        for check in field.metadata
        if isinstance(getattr(check.func, "__self__", None), limits.Limit)
    ]


def test_a_number_has_the_type_and_the_default_of_its_limit():
    fields = _limited_fields()
    assert {name for _, name, *_ in fields} == limits.LIMITS.keys() - {"lora_weight"}
    for model, name, annotation, check, default in fields:
        limit = check.__self__
        kind = int if limit.integer else float
        takes_none = limit.default is None or check.__name__ == "parse_or_none"
        assert annotation == (kind | None if takes_none else kind), (model, name)
        assert default == limit.default, (model, name)
        assert limit is limits.LIMITS[name], (model, name)
