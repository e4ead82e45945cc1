"""How long a song becomes if nobody says so and no planner decides."""

from __future__ import annotations

import pytest

import song_length
import tooltips
from params import parse_request

LINE = "The rain is falling on the town tonight\n"  # ten syllables


def guess(built_in=False, **values):
    return song_length.guess(
        parse_request("generate", {"duration": None, "prompt": "pop", **values}), built_in
    )


def test_lyrics_take_two_bars_a_line_and_a_beginning_and_an_end():
    # 8 lines of 2 bars, 2 bars before them and 4 after, of 2.4 s at the usual 100 BPM.
    assert guess(lyrics=f"[Verse]\n{4 * LINE}\n[Chorus]\n{4 * LINE}") == song_length.Length(
        53.0, "lyrics"
    )


def test_a_tempo_and_a_metre_count():
    lyrics = f"[Verse]\n{16 * LINE}"
    slow = guess(lyrics=lyrics, bpm=60)
    assert slow.seconds == 152  # 38 bars of 4 s
    assert guess(lyrics=lyrics, bpm=120).seconds == 76
    assert guess(lyrics=lyrics, bpm=60, time_signature="3").seconds == 114


def test_nobody_sings_faster_than_one_can():
    rap = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen\n"  # 22 syllables
    fast, slow = (guess(lyrics=f"[Verse]\n{16 * rap}", bpm=bpm).seconds for bpm in (290, 300))
    assert fast == pytest.approx(slow, abs=2)
    assert slow > 16 * 20 / song_length.SYLLABLES_PER_SECOND


def test_parts_without_words_are_played():
    words = f"[Verse]\n{8 * LINE}"
    plain = guess(lyrics=words).seconds
    assert guess(lyrics=f"{words}[Guitar Solo]\n[Chorus]\n{8 * LINE}").seconds == pytest.approx(
        plain + (4 + 8 * 2) * 2.4, abs=1
    )
    # An intro and an outro of its own take the place of the usual ones.
    assert guess(lyrics=f"[Intro]\n{words}[Outro]").seconds == pytest.approx(
        plain + (4 - 2) * 2.4, abs=1
    )


def test_what_cannot_be_counted_takes_two_bars_a_line():
    assert guess(lyrics="[Verse]\n" + 4 * "ฝนตกที่หน้าต่าง\n", bpm=100).seconds == pytest.approx(
        (8 + 6) * 2.4, abs=1
    )


def test_a_style_has_a_usual_length_and_words_are_read_as_words():
    assert guess(prompt="deep Techno, dark") == song_length.Length(210.0, "style")
    assert guess(prompt="a jingle for tea").seconds == 15
    assert guess(prompt="a lighthouse in the fog").seconds == song_length.LENGTHS["usual"]
    assert guess(prompt="techno", built_in=True).seconds == song_length.BUILT_IN_SECONDS


def test_a_guess_is_an_allowed_length():
    assert guess(lyrics="[Verse]\nla").seconds >= 10
    assert guess(lyrics=f"[Verse]\n{200 * LINE}", bpm=40).seconds == 600


def test_the_length_of_lyrics_is_told_beside_that_of_the_song():
    sung = song_length.sung_length(f"[Verse]\n{8 * LINE}", None, "", "en")
    # 16 bars of 2.4 s at the usual 100 BPM, 2 bars before them and 4 after.
    assert (sung.least, sung.bpm) == (pytest.approx(38.4), 100)
    assert sung.seconds == pytest.approx(38.4 + 6 * 2.4)
    assert guess(lyrics=f"[Verse]\n{8 * LINE}").seconds == round(sung.seconds)

    def told(chosen):
        return tooltips.sung_length(sung.seconds, sung.least, sung.bpm, chosen)

    assert told(None) == "Sung in about 0:53 at 100 BPM, with intro and outro."
    # An intro and an outro may be left out, lines may not.
    assert told(39) == "Sung in about 0:53 at 100 BPM, with intro and outro; the song is 0:39."
    assert "more than the 0:38 of the song" in told(38)
