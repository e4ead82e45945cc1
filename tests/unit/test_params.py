"""What a request may say: defaults of the contract, understood spellings, and a sentence for everything else."""

import math
import pickle

import pytest

import limits
import params
from events import InvalidRequest
from params import parse_request


def problems(**values):
    with pytest.raises(InvalidRequest) as caught:
        parse_request("generate", {"prompt": "calm piano", **values})
    return {problem.field: problem.message for problem in caught.value.problems}


def test_wrong_requests_for_words_get_a_sentence():
    for mode, values, field, part in [
        ("lyrics", {}, "brief", "from 1 to 2,000 characters: say what the song is about"),
        ("lyrics", {"brief": "x" * 50_000}, "brief", "up to 2,000 characters; this has 50,000"),
        ("lyrics", {"brief": "x", "structure": "x" * 501}, "structure", "up to 500 characters"),
        ("lyrics", {"brief": "x", "options": {"max_tokens": 0}}, "options.max_tokens", "from 16 to 2048 tokens"),
        ("lyrics", {"brief": "x", "options": {"temperature": 2.1}}, "options.temperature", "from 0 to 2"),
        ("lyrics", {"brief": "x", "options": {"plan": True}}, "options.plan", "max_tokens, temperature, top_p"),
        ("lyrics", {"brief": "x", "options": 3}, "options", "must be an object"),
        ("inspire", {"options": {}}, "options", "not known here"),
        ("inspire", {"seed": 1.5}, "seed", "a whole number"),
        ("polish", {}, "prompt", "or add lyrics"),
        ("polish", {"lyrics": "la", "instrumental": True}, "prompt", "Instrumental switches the lyrics off"),
        ("describe", {}, "source", "none was given"),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            parse_request(mode, values)
        (problem,) = caught.value.problems
        assert problem.field == field
        assert part in problem.message and problem.message.endswith(".")


def test_a_wrong_value_is_a_sentence_that_names_field_and_range():
    for field, value, part in [
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
        ("mood", "blue", "not known here"),
    ]:
        found = problems(**{field: value})
        assert list(found) == [field]
        assert part in found[field]
        assert len(found[field]) < 300


def test_options_are_checked_like_fields():
    for name, value, part in [
        ("steps", 0, "from 1 to 200"),
        ("guidance", 0.5, "from 1 to 15"),
        ("sampler", "heun", "ode, sde"),
        ("loudness", 0, "from -30 to -6 LUFS"),
        ("timbre_token", 1, "true or false"),
        ("stepps", 20, "steps"),
        ("repaint_mode", "balanced", "not known here"),
    ]:
        found = problems(options={name: value})
        assert list(found) == [f"options.{name}"]
        assert part in found[f"options.{name}"]


def test_every_wrong_field_is_told_at_once():
    assert set(problems(duration=9, bpm=0, options={"steps": 0})) == {"duration", "bpm", "options.steps"}
    assert "0.8" in problems(options={"cfg_start": 0.8, "cfg_end": 0.2})["options.cfg_end"]


def test_a_song_needs_words():
    for values in [{"prompt": ""}, {"prompt": " \n"}, {"prompt": "", "lyrics": "la", "instrumental": True}]:
        assert "Say what the song sounds like" in problems(**values)["prompt"]


def test_what_is_sung():
    for values, sung in (
        ({"prompt": "", "lyrics": "[Verse]\nla la"}, "[Verse]\nla la"),
        ({"prompt": "x", "lyrics": "la la", "instrumental": True}, "[Instrumental]"),
        ({"prompt": "x"}, "[Instrumental]"),
    ):
        assert parse_request("generate", values).sung_lyrics() == sung


def test_keys_are_understood():
    for text, key in [
        ("Am", "A minor"),
        ("c", "C major"),
        ("F#", "F# major"),
        ("E♭ minor", "Eb minor"),
        ("bb", "Bb major"),
        ("", ""),
        (None, ""),
    ]:
        assert parse_request("generate", {"prompt": "x", "key": text}).key == key
        assert key in (*limits.KEYS, "")


def test_control_characters_and_lone_surrogates_are_dropped():
    request = parse_request("generate", {"prompt": "a\x00b\ud800c", "lyrics": "line\n\tnext\x1b"})
    assert (request.prompt, request.lyrics) == ("abc", "line\n\tnext")


def test_numbers_and_spaces_are_understood():
    request = parse_request("generate", {"prompt": "x", "bpm": 120.0, "seed": 7.0})
    assert (request.bpm, request.seed) == (120, 7)
    assert isinstance(request.bpm, int)
    for value in ("4/4", "4", 4, 4.0):
        assert parse_request("generate", {"prompt": "x", "time_signature": value}).time_signature == "4"
    assert parse_request("lyrics", {"brief": " rain ", "options": None}) == parse_request("lyrics", {"brief": "rain"})


def test_the_seed_of_every_take_must_fit():
    assert problems(seed=limits.MAX_SEED, takes=2).keys() == {"seed"}
    assert parse_request("generate", {"prompt": "x", "seed": limits.MAX_SEED}).seed == limits.MAX_SEED


def test_requests_and_errors_can_be_pickled():
    request = parse_request("generate", {"prompt": "x", "options": {"steps": 3}})
    assert pickle.loads(pickle.dumps(request)) == request
    with pytest.raises(InvalidRequest) as caught:
        parse_request("generate", {"prompt": "x", "duration": 1})
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_a_turbo_checkpoint_has_its_own_defaults_and_says_what_it_cannot_follow():
    request = parse_request("generate", {"prompt": "x"})
    assert params.sampling_settings(request, "sft") == (params.Sampling(50, 7.0, 1.0), [])
    assert params.sampling_settings(request, "turbo") == (params.Sampling(8, 1.0, 3.0), [])
    request = parse_request("generate", {"prompt": "x", "quality": "best", "options": {"guidance": 4}})
    settings, notes = params.sampling_settings(request, "turbo")
    assert settings == params.Sampling(8, 1.0, 3.0)
    assert len(notes) == 2


def test_quality_is_a_number_of_steps():
    for quality, steps, built_in in [("draft", 20, 10), ("standard", 50, 20), ("best", 80, 40)]:
        request = parse_request("generate", {"prompt": "x", "quality": quality})
        assert params.sampling_settings(request, "sft")[0].steps == steps
        assert params.sampling_settings(request, "preview")[0].steps == built_in
        asked = parse_request("generate", {"prompt": "x", "quality": quality, "options": {"steps": 33}})
        assert params.sampling_settings(asked, "sft")[0].steps == 33
