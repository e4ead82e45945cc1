"""The tempo and the key in a prompt: read in several languages, as words, and only what is allowed."""

from __future__ import annotations

import pytest

import prompt_facts
from limits import KEYS
from params import parse_request


@pytest.mark.parametrize(
    ("prompt", "bpm"),
    [
        ("calm piano at 90 bpm", 90),
        ("calm piano, 90BPM", 90),
        ("90-bpm house", 90),
        ("at 120 beats per minute", 120),
        ("92.6 BPM, soft", 93),
        ("90 bpm, double time drums", 90),
        ("half-time feel, 140 bpm", 140),
        ("drum and bass from 160 to 180 bpm", 170),
        ("90-100 bpm", 95),
        ("BPM: 96, piano", 96),
        ("tempo 104, brass", 104),
        ("Tempo: 88", 88),
        ("BPM:88", 88),
        ("♩ = 66", 66),
        ("Walzer mit 150 Schlägen pro Minute", 150),
        ("une valse à 150 battements par minute", 150),
        ("вальс, 150 ударов в минуту", 150),
        ("テンポ90のバラード", 90),
        ("每分钟90拍的钢琴曲", 90),
        ("분당 90비트", 90),
        ("９０ＢＰＭ", 90),
        ("first 80 bpm, then 140 bpm", 80),
    ],
)
def test_a_tempo_is_read(prompt: str, bpm: int):
    assert prompt_facts.named(prompt)["bpm"] == bpm


@pytest.mark.parametrize(
    "prompt",
    [
        "double time",
        "1990 bpm",
        "20 bpm",
        "301 bpm",
        "1,120 bpm",
        "a 90s ballad",
        "uptempo 80s pop",
        "tempo 80's rock",
        "tempo rubato, 90 strings",
        "90 bpmx",
        "tempo 12/8",
        "BPM",
    ],
)
def test_what_is_no_tempo_says_nothing(prompt: str):
    assert "bpm" not in prompt_facts.named(prompt)


@pytest.mark.parametrize(
    ("prompt", "key"),
    [
        ("a waltz in D minor", "D minor"),
        ("a waltz in F# Major, strings", "F# major"),
        ("f sharp minor", "F# minor"),
        ("B-flat major", "Bb major"),
        ("E♭ minor", "Eb minor"),
        ("Bb Maj, piano", "Bb major"),
        ("A minor, slow piano", "A minor"),
        ("slow piano in A minor key", "A minor"),
        ("slow piano in a minor, 90 bpm", "A minor"),
        ("in the key of G", "G major"),
        ("key of Am", "A minor"),
        ("Key: F#m", "F# minor"),
        ("ballad in Em, strings", "E minor"),
        ("eine Ballade in d-moll", "D minor"),
        ("d-Moll-Ballade", "D minor"),
        ("Es-Dur", "Eb major"),
        ("fis moll", "F# minor"),
        ("As-Dur", "Ab major"),
        ("h-moll", "B minor"),
        ("B-Dur", "Bb major"),
        ("ballade en ré mineur", "D minor"),
        ("en si bémol majeur", "Bb major"),
        ("fa dièse mineur", "F# minor"),
        ("balada en la menor, piano", "A minor"),
        ("vals en sol mayor con guitarra", "G major"),
        ("balada em dó sustenido menor", "C# minor"),
        ("valzer in mi minore", "E minor"),
        ("вальс в ре миноре", "D minor"),
        ("си-бемоль мажор", "Bb major"),
        ("D小调钢琴曲", "D minor"),
        ("降B大调", "Bb major"),
        ("嬰ヘ短調のワルツ", "F# minor"),
        ("라단조 왈츠", "D minor"),
        ("내림나장조", "Bb major"),
        ("from D minor to F major", "D minor"),
    ],
)
def test_a_key_is_read(prompt: str, key: str):
    assert prompt_facts.named(prompt).get("key") == key
    assert key in KEYS


@pytest.mark.parametrize(
    "prompt",
    [
        "a minor key change, 1985",
        "in a minor key",
        "A minor setback, a major comeback",
        "a major label, A&R",
        "ad minor",
        "band major",
        "sad, minor mood",
        "en la mayor parte",
        "mi mayor error",
        "de la menor duda",
        "la maggiore parte",
        "I am in Amsterdam",
        "the key of Eden",
        "in C, the letter",
        "turmoil and modular synths",
        "Dminor",
    ],
)
def test_what_is_no_key_says_nothing(prompt: str):
    assert "key" not in prompt_facts.named(prompt)


def test_a_time_signature_is_read_and_a_share_is_not():
    for prompt, beats in {
        "a waltz in 3/4": "3",
        "6/8 jig": "6",
        "4/4, 90 bpm": "4",
        "3/4 of it is piano": None,
        "12/8 blues": None,
        "recorded 3/4/1999": None,
    }.items():
        assert prompt_facts.named(prompt).get("time_signature") == beats, prompt


def test_fields_count_before_the_prompt():
    words = {"prompt": "a waltz in D minor, 150 bpm", "bpm": 96}
    request, found = prompt_facts.completed(parse_request("generate", words))
    assert (request.bpm, request.key, found) == (96, "D minor", {"key": "D minor"})
    for each in (prompt_facts.tempos(words["prompt"]), prompt_facts.keys(words["prompt"])):
        (written,) = each
        assert words["prompt"][written.start : written.end] in ("150 bpm", "D minor")
