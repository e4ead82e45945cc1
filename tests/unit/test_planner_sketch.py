"""What the built-in planner's sketches are held to: facts from words and from codes, and which of several is kept."""

from __future__ import annotations

import numpy as np
import pytest

import planner_codes
import planner_sketch
from planner_codes import BEAT, DRUMS, LEVELS
from planner_form import Form
from song_words import known_words, pitch_class
from training.engine_words import words_of_the_engine

WORDS = known_words(words_of_the_engine())
KNOWN = np.arange(int(np.prod(LEVELS)))


def test_tempo_key_and_metre_follow_from_the_words_as_far_as_they_say_it():
    for seed in range(20):
        waltz = planner_sketch.suggested("a slow, sad waltz", WORDS, seed)
        assert 60 <= waltz["bpm"] <= 84 and waltz["key"].endswith("minor")
        assert waltz["time_signature"] == "3"
        house = planner_sketch.suggested("house for a summer night", WORDS, seed)
        assert 116 <= house["bpm"] <= 130 and house["time_signature"] == "4" and "key" not in house
    assert planner_sketch.suggested("a song about my cat", WORDS, 1) == {}


def test_the_caption_that_names_what_the_words_name_agrees_most():
    def agrees(caption: str) -> float:
        return planner_sketch.agreement("a slow, sad waltz", caption, WORDS)

    captions = [
        "fast cheerful house",
        "a cheerful waltz",
        "a slow, cheerful waltz",
        "slow sad waltz",
    ]
    shares = [agrees(caption) for caption in captions]
    assert shares == sorted(set(shares)) and shares[0] == 0 and shares[-1] == 1
    assert planner_sketch.agreement("my cat", "anything", WORDS) == 1
    assert not planner_sketch.keeps_style("thrash metal", "electronic dance music", WORDS)
    assert planner_sketch.keeps_style("thrash metal", "alternative rock", WORDS)
    assert planner_sketch.keeps_style("my cat", "alternative rock", WORDS)


def test_only_the_sections_of_lyrics_stay():
    lyrics = "[Verse 1]\nwords\n\n[Chorus]\nmore [loud] words\n"
    assert planner_sketch.only_sections(lyrics) == "[Verse 1]\n\n[Chorus]"


@pytest.mark.parametrize(
    ("bpm", "beats", "key"), [(72, "4", "F# minor"), (97, "3", "C major"), (174, "4", "Eb minor")]
)
def test_tempo_key_and_metre_are_heard_in_codes(bpm: int, beats: str, key: str):
    """The chords go from the tonic to others and home again, as they do in songs; a tenth of the codes is misheard."""
    form = Form(
        KNOWN, bpm=bpm, time_signature=beats, key=key, lyrics="[Verse]", seconds=40.0, seed=0
    )
    note, _, scale = key.partition(" ")
    tonic = pitch_class(note)
    home = planner_codes.chord_number(tonic, scale == "minor")
    chance = np.random.default_rng(1)
    codes = []
    for place, row in enumerate(form.allowed()):
        allowed = KNOWN[row]
        if place // 10 % 2 == 0:
            at_home = allowed[planner_codes.chord_in(planner_codes.digits_in(allowed)) == home]
            allowed = at_home if len(at_home) else allowed
        codes.append(int(chance.choice(allowed if chance.random() < 0.9 else KNOWN)))
    found = planner_sketch.heard(codes, WORDS)
    assert abs(found["bpm"] - bpm) <= 1 and found["time_signature"] == beats
    assert pitch_class(found["key"].split()[0]) == tonic and found["key"].endswith(scale)


def test_codes_in_which_nothing_sounds_say_nothing():
    digits = np.zeros((50, 6), np.int64)
    digits[:, planner_codes.MOMENT] = planner_codes.NOTHING
    digits[:, planner_codes.BEAT] = planner_codes.NO_BEAT
    digits[:, planner_codes.CHORD :] = planner_codes.CHORD_CELLS[planner_codes.NO_CHORD]
    assert planner_sketch.heard(planner_codes.codes_of(digits).tolist(), WORDS) == {}


def test_a_style_is_heard_in_which_drums_and_notes_fall_on_which_beat(tmp_path):
    """Of two styles with the same drums and notes, but on other beats; and by the tempo alone where that is all."""
    digits = planner_codes.digits_in(KNOWN)
    marches = KNOWN[(digits[:, DRUMS] == 3) & (digits[:, BEAT] == 0)]
    waltzes = KNOWN[(digits[:, DRUMS] == 3) & (digits[:, BEAT] == 3)]
    tempos = np.zeros((2, planner_sketch.TEMPO_BINS), np.int32)
    tempos[[0, 1], [planner_sketch.tempo_bin(70), planner_sketch.tempo_bin(160)]] = 100
    counts = np.stack([planner_sketch.played(marches), planner_sketch.played(waltzes)])
    planner_sketch.write_styles(
        planner_sketch.Styles(("march", "waltz"), counts.astype(np.int32), tempos), tmp_path
    )
    styles = planner_sketch.read_styles(tmp_path)
    assert styles.names == ("march", "waltz")
    assert styles.likeliest(marches[:40].tolist(), 160) == "march"
    assert styles.likeliest(waltzes[:40].tolist(), 70) == "waltz"
    assert [styles.likeliest([], bpm) for bpm in (70, 160)] == ["march", "waltz"]
    assert planner_sketch.read_styles(tmp_path / "nowhere") is None
