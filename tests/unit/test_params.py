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


def test_the_defaults_of_the_options_are_those_of_the_contract():
    options = parse_request("generate", {"prompt": "calm piano"}).options
    assert (options.format, options.loudness, options.sampler) == ("wav", None, "ode")
    plan = (options.plan, options.plan_seed, options.plan_temperature, options.plan_cfg, options.rewrite)
    assert plan == (True, -1, 0.85, 2.0, False)


WORDS = {
    "lyrics": {"brief": "", "structure": "", "language": "en", "tone": "", "seed": -1},
    "inspire": {"idea": "", "instrumental": False, "language": "unknown", "seed": -1},
    "polish": {
        **{"prompt": "", "lyrics": "", "instrumental": False, "bpm": None, "key": "", "time_signature": ""},
        **{"language": "unknown", "duration": 60, "seed": -1},
    },
    "describe": {"source": "", "seed": -1},
}
NEEDED = {"lyrics": {"brief": "rain"}, "polish": {"prompt": "rock"}, "describe": {"source": "a.wav"}}


@pytest.mark.parametrize("mode", WORDS)
def test_requests_for_words_have_the_agreed_defaults(mode):
    request = parse_request(mode, NEEDED.get(mode, {}))
    assert request.model_dump(exclude={"mode", "options"}) == WORDS[mode] | NEEDED.get(mode, {})
    assert request.mode == mode
    assert pickle.loads(pickle.dumps(request)) == request


def test_spaces_around_a_brief_and_options_of_null_mean_nothing():
    assert parse_request("lyrics", {"brief": " rain ", "options": None}) == parse_request("lyrics", {"brief": "rain"})


@pytest.mark.parametrize(
    ("mode", "values", "field", "part"),
    [
        ("lyrics", {}, "brief", "from 1 to 2,000 characters: say what the song is about"),
        ("lyrics", {"brief": " \n "}, "brief", "from 1 to 2,000"),
        ("lyrics", {"brief": "x" * 50_000}, "brief", "up to 2,000 characters; this has 50,000"),
        ("lyrics", {"brief": 5}, "brief", "must be text"),
        ("lyrics", {"brief": "x", "language": "klingon"}, "language", "51 listed codes"),
        ("lyrics", {"brief": "x", "structure": "x" * 501}, "structure", "up to 500 characters"),
        ("lyrics", {"brief": "x", "tone": "x" * 201}, "tone", "up to 200 characters"),
        ("lyrics", {"brief": "x", "seed": 2**32}, "seed", "-1 to 4294967295"),
        ("lyrics", {"brief": "x", "duration": 3}, "duration", "not known"),
        ("lyrics", {"brief": "x", "options": {"max_tokens": 0}}, "options.max_tokens", "from 16 to 2048 tokens"),
        ("lyrics", {"brief": "x", "options": {"temperature": 2.1}}, "options.temperature", "from 0 to 2"),
        ("lyrics", {"brief": "x", "options": {"temperature": math.nan}}, "options.temperature", "from 0 to 2"),
        ("lyrics", {"brief": "x", "options": {"top_p": 0}}, "options.top_p", "from 0.05 to 1"),
        ("lyrics", {"brief": "x", "options": {"top_p": "high"}}, "options.top_p", "from 0.05 to 1"),
        ("lyrics", {"brief": "x", "options": {"plan": True}}, "options.plan", "max_tokens, temperature, top_p"),
        ("lyrics", {"brief": "x", "options": 3}, "options", "must be an object"),
        ("inspire", {"idea": "x" * 2_001}, "idea", "up to 2,000 characters"),
        ("inspire", {"options": {}}, "options", "not known here"),
        ("inspire", {"seed": 1.5}, "seed", "a whole number"),
        ("polish", {}, "prompt", "there are no lyrics either"),
        ("polish", {"lyrics": "la", "instrumental": True}, "prompt", "switched off by Instrumental"),
        ("polish", {"prompt": "x", "bpm": 5}, "bpm", "from 30 to 300"),
        ("polish", {"prompt": "x", "takes": 2}, "takes", "not known here"),
        ("describe", {}, "source", "none was given"),
    ],
)
def test_wrong_requests_for_words_get_a_sentence(mode, values, field, part):
    with pytest.raises(InvalidRequest) as caught:
        parse_request(mode, values)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert part in problem.message and problem.message.endswith(".")


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("duration", 9, "from 10 to 600 seconds"),
        ("duration", 601, "from 10 to 600 seconds"),
        ("duration", math.nan, "from 10 to 600 seconds"),
        ("duration", math.inf, "from 10 to 600 seconds"),
        ("duration", "30", "from 10 to 600 seconds"),
        ("duration", None, "from 10 to 600 seconds"),
        ("duration", True, "from 10 to 600 seconds"),
        ("bpm", 0, "from 30 to 300"),
        ("bpm", 120.5, "a whole number from 30 to 300"),
        ("key", "H major", "from A to G"),
        ("key", 5, "from A to G"),
        ("time_signature", "5", "2, 3, 4 or 6"),
        ("time_signature", 4.5, "2, 3, 4 or 6"),
        ("language", "klingon", "51 listed codes"),
        ("takes", 5, "from 1 to 4"),
        ("quality", "ultra", "draft, standard, best"),
        ("seed", -2, "from -1 to 4294967295"),
        ("seed", 2**32, "from -1 to 4294967295"),
        ("instrumental", "yes", "true or false"),
        ("prompt", "x" * 100_000, "up to 2,000 characters; this has 100,000"),
        ("lyrics", "x" * 100_000, "up to 10,000 characters; this has 100,000"),
        ("options", [1], "must be an object"),
        ("mood", "blue", "not known here"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_field_and_range(field, value, part):
    found = problems(**{field: value})
    assert list(found) == [field]
    assert part in found[field]
    assert len(found[field]) < 300


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("steps", 0, "from 1 to 200"),
        ("steps", 201, "from 1 to 200"),
        ("guidance", 0.5, "from 1 to 15"),
        ("shift", 9, "from 1 to 5"),
        ("cfg_start", -0.1, "from 0 to 1"),
        ("sampler", "heun", "ode, sde"),
        ("format", "aiff", "wav, flac, mp3, ogg"),
        ("loudness", 0, "from -30 to -6 LUFS"),
        ("fade_out", 31, "from 0 to 30 seconds"),
        ("variation", 1.1, "from 0 to 1"),
        ("variation_seed", 0.5, "a whole number"),
        ("timbre_token", 1, "true or false"),
        ("plan", 1, "true or false"),
        ("rewrite", "yes", "true or false"),
        ("plan_seed", 2**32, "from -1 to 4294967295"),
        ("plan_temperature", 2.1, "from 0 to 2"),
        ("plan_cfg", 0.9, "from 1 to 5"),
        ("stepps", 20, "steps"),
        ("repaint_mode", "balanced", "not known here"),
    ],
)
def test_options_are_checked_like_fields(name, value, part):
    found = problems(options={name: value})
    assert list(found) == [f"options.{name}"]
    assert part in found[f"options.{name}"]


def test_the_guidance_interval_has_an_order():
    assert "0.8" in problems(options={"cfg_start": 0.8, "cfg_end": 0.2})["options.cfg_end"]


def test_every_wrong_field_is_told_at_once():
    assert set(problems(duration=9, bpm=0, options={"steps": 0})) == {"duration", "bpm", "options.steps"}


@pytest.mark.parametrize(
    "values", [{"prompt": ""}, {"prompt": " \n"}, {"prompt": "", "lyrics": "la", "instrumental": True}]
)
def test_a_song_needs_words(values):
    assert "Prompt" in problems(**values)["prompt"]


def test_lyrics_alone_are_enough():
    assert parse_request("generate", {"prompt": "", "lyrics": "[Verse]\nla la"}).sung_lyrics() == "[Verse]\nla la"


def test_instrumental_wins_over_lyrics():
    request = parse_request("generate", {"prompt": "x", "lyrics": "la la", "instrumental": True})
    assert request.sung_lyrics() == "[Instrumental]"
    assert parse_request("generate", {"prompt": "x"}).sung_lyrics() == "[Instrumental]"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("A minor", "A minor"),
        ("Am", "A minor"),
        ("C Major", "C major"),
        ("c", "C major"),
        ("F#", "F# major"),
        ("f# MIN", "F# minor"),
        ("E♭ minor", "Eb minor"),
        ("Bbm", "Bb minor"),
        ("bb", "Bb major"),
        ("CM", "C major"),
        ("", ""),
        (None, ""),
    ],
)
def test_keys_are_understood(text, key):
    assert parse_request("generate", {"prompt": "x", "key": text}).key == key
    assert key in (*limits.KEYS, "")


@pytest.mark.parametrize("value", ["4/4", "4", 4, 4.0])
def test_time_signatures_are_understood(value):
    assert parse_request("generate", {"prompt": "x", "time_signature": value}).time_signature == "4"


def test_whole_floats_count_as_whole_numbers():
    request = parse_request("generate", {"prompt": "x", "bpm": 120.0, "seed": 7.0})
    assert (request.bpm, request.seed) == (120, 7)
    assert isinstance(request.bpm, int)


def test_control_characters_and_lone_surrogates_are_dropped():
    request = parse_request("generate", {"prompt": "a\x00b\ud800c", "lyrics": "line\n\tnext\x1b"})
    assert request.prompt == "abc"
    assert request.lyrics == "line\n\tnext"


def test_the_seed_of_every_take_must_fit():
    assert problems(seed=limits.MAX_SEED, takes=2).keys() == {"seed"}
    assert parse_request("generate", {"prompt": "x", "seed": limits.MAX_SEED}).seed == limits.MAX_SEED


def test_requests_and_errors_can_be_pickled():
    request = parse_request("generate", {"prompt": "x", "options": {"steps": 3}})
    assert pickle.loads(pickle.dumps(request)) == request
    with pytest.raises(InvalidRequest) as caught:
        parse_request("generate", {"prompt": "x", "duration": 1})
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_a_checkpoint_has_its_own_defaults():
    request = parse_request("generate", {"prompt": "x"})
    assert params.sampling_settings(request, turbo=False) == (params.Sampling(50, 7.0, 1.0), [])
    assert params.sampling_settings(request, turbo=True) == (params.Sampling(8, 1.0, 3.0), [])


def test_turbo_says_what_it_cannot_follow():
    request = parse_request("generate", {"prompt": "x", "quality": "best", "options": {"guidance": 4}})
    settings, notes = params.sampling_settings(request, turbo=True)
    assert settings == params.Sampling(8, 1.0, 3.0)
    assert len(notes) == 2


@pytest.mark.parametrize(("quality", "steps"), [("draft", 20), ("standard", 50), ("best", 80)])
def test_quality_is_a_number_of_steps(quality, steps):
    request = parse_request("generate", {"prompt": "x", "quality": quality})
    assert params.sampling_settings(request, turbo=False)[0].steps == steps
    asked = parse_request("generate", {"prompt": "x", "quality": quality, "options": {"steps": 33}})
    assert params.sampling_settings(asked, turbo=False)[0].steps == 33
