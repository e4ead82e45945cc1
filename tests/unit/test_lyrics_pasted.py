"""Chords and times that were pasted along with lyrics are found, and nothing else is."""

from __future__ import annotations

import pytest

import lyrics_pasted

SHEET = """[Verse 1]
Am        F
Hello darkness, my old friend
C/G  G7sus4 | Bbmaj7  x2
I came to talk again

[Chorus]
[Am]Stay a [F#m7]while, [G]stay
Em"""
LRC = """[ar:Somebody]
[length:03:12]
[00:12.50]Hello darkness
[00:15.00][01:15.00]my old <00:16.20>friend"""


def test_lines_of_chords_and_chords_in_brackets_are_removed():
    assert lyrics_pasted.has_chords(SHEET)
    assert lyrics_pasted.without_chords(SHEET) == (
        "[Verse 1]\nHello darkness, my old friend\nI came to talk again\n\n[Chorus]\nStay a while, stay"
    )


def test_the_times_of_an_lrc_file_are_removed():
    assert lyrics_pasted.has_times(LRC)
    assert lyrics_pasted.without_times(LRC) == "Hello darkness\nmy old friend"


@pytest.mark.parametrize(
    "lyrics",
    [
        "[Verse]\nA day in May\nGo down, Moses",
        "[A]\nEvery good boy\n[B]\nDeserves fudge",
        "[Bridge]\nAm I the one?\nDim the lights\nAdd me up",
        "[Intro]\nA\n\nBe mine at 12:30, or 5:45",
        "",
    ],
)
def test_plain_lyrics_stay(lyrics: str):
    assert not lyrics_pasted.has_chords(lyrics)
    assert not lyrics_pasted.has_times(lyrics)
    assert lyrics_pasted.without_chords(lyrics) == lyrics
