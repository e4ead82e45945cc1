"""What the built-in engine is given: keys that it knows, and tempos of words, not of what stands inside them."""

from __future__ import annotations

import random

import pytest

import model_weights
import song_words
from limits import KEYS, LIMITS, TIME_SIGNATURES
from params import parse_request

KNOWN = song_words.read_words(model_weights.ASSETS / "preview")
SEEDS = range(200)


def settled(
    mode: str = "generate", seed: int = 0, **words: object
) -> tuple[object, tuple[str, ...]]:
    request, _, notes = song_words.settle(parse_request(mode, words), seed, KNOWN)
    return request, notes


def test_a_key_is_drawn_from_those_that_the_checkpoint_was_told():
    drawn = {settled(seed=seed, prompt="a song")[0].key for seed in SEEDS}
    assert drawn <= set(KNOWN.keys)
    sounds = {(song_words.pitch_class(key.split()[0]), key.split()[1]) for key in drawn}
    assert len(sounds) == 24


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_studio_is_spelled_as_one_that_it_knows(key):
    request, notes = settled(prompt="a song", bpm=100, key=key)
    assert request.key in KNOWN.keys
    note, scale = key.split()
    assert request.key.endswith(scale)
    assert song_words.pitch_class(request.key.split()[0]) == song_words.pitch_class(note)
    if key in KNOWN.keys:
        assert request.key == key and notes == ()
    else:
        assert key in notes[0] and request.key in notes[0]


def test_a_tempo_and_a_metre_that_it_never_learnt_are_given_as_ones_that_it_knows():
    slowest, fastest = KNOWN.tempo
    for bpm in range(int(LIMITS["bpm"].low), int(LIMITS["bpm"].high) + 1):
        request, notes = settled(prompt="a song", key="C major", bpm=bpm)
        assert slowest <= request.bpm <= fastest
        ratio = request.bpm / bpm
        assert min(abs(ratio * power - 1) for power in (0.25, 0.5, 1, 2, 4)) < 0.01
        assert bool(notes) == (request.bpm != bpm)
    for metre in TIME_SIGNATURES:
        request, _ = settled(prompt="a song", bpm=100, key="C major", time_signature=metre)
        assert request.time_signature in ("3", "4")


def test_other_modes_get_no_tempo_but_a_key_that_is_known():
    words = {"prompt": "x", "source": "a.wav", "after": 5, "key": "Cb major"}
    request = song_words.settle(parse_request("extend", words), 0, KNOWN)[0]
    assert request.key == "B major" and request.bpm is None
    assert (
        song_words.translated({"bpm": None, "key": "E# minor", "prompt": "x"}, KNOWN)["key"]
        == "F minor"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "a lighthouse keeper at the storm's end",
        "breakfast in bed",
        "grandmother's rocking chair",
        "the crusader comes home",
        "bedrock and shamrocks",
        "a warehouse at dawn",
        "ブロックと積み木",
        "an ambassador of funkytown-like places, unfunkiest of all",
    ],
)
def test_words_inside_other_words_say_nothing(prompt):
    assert song_words.first_named(prompt, KNOWN.styles) is None
    assert song_words.first_named(prompt, KNOWN.speeds) is None
    assert song_words.first_named(prompt, KNOWN.scales) is None


@pytest.mark.parametrize(
    ("prompt", "like"),
    [
        ("Deep HOUSE, late night", "house"),
        ("punk-rock anthem", "rock"),
        ("lo fi beat to study to", "lofi"),
        ("lo-fi hip-hop", "lofi"),
        ("ein Walzer am See", "waltz"),
        ("une valse à Paris", "waltz"),
        ("um vals lento, ou valsa", "waltz"),
        ("весёлый вальс", "waltz"),
        ("激しいロック", "rock"),
        ("一首摇滚歌曲", "rock"),
        ("8 bit video game music", "chiptune"),
        ("first techno, then a waltz", "techno"),
        ("first a waltz, then techno", "waltz"),
    ],
)
def test_a_style_is_recognised_as_a_word_in_many_languages(prompt, like):
    assert song_words.first_named(prompt, KNOWN.styles) == KNOWN.styles[like]


def test_the_words_narrow_down_the_tempo_and_the_key_that_a_song_is_given():
    for prompt, lowest, scale in (
        ("fast, sad rock", 136, "minor"),
        ("cheerful techno", 124, "major"),
        ("schneller, trauriger Rock", 136, "minor"),
        ("techno alegre", 124, "major"),
    ):
        for seed in range(20):
            request, notes = settled(seed=seed, prompt=prompt)
            assert lowest <= request.bpm <= lowest + 36 and request.key.endswith(scale), prompt
            assert f"{request.bpm} BPM and {request.key}" in notes[0]


def test_a_drawn_key_does_not_depend_on_whether_a_tempo_was_given():
    for seed in range(10):
        free, fixed = (
            settled(seed=seed, prompt="a song")[0],
            settled(seed=seed, prompt="a song", bpm=99)[0],
        )
        assert free.key == fixed.key and fixed.bpm == 99


def test_a_folder_that_says_nothing_is_no_error(tmp_path):
    assert song_words.read_words(tmp_path) is None
    (tmp_path / song_words.FILE).write_text("[]")
    assert song_words.read_words(tmp_path) is None
    assert song_words.choose_key("dark", KNOWN, random.Random(0)).endswith("minor")
