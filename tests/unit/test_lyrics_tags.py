"""What a song is called: by its refrain, also while it is being made."""

from __future__ import annotations

import pytest

import lyrics_tags
import runs
from params import parse_request


@pytest.mark.parametrize(
    ("lyrics", "title"),
    [
        ("[Verse]\nOne\n[Chorus - loud]\n[whispered]\nGood night,\nsleep", "Good night"),
        ("Refrain:\nTourne, tourne", "Tourne, tourne"),
        ("[Intro]\n\n[Verse 1]\nOnly a verse.\nand more", "Only a verse"),
        ("[Intro]", ""),
    ],
)
def test_a_song_is_called_by_its_refrain(lyrics: str, title: str):
    assert lyrics_tags.title(lyrics) == title


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"prompt": "a calm piano"}, "a calm piano"),
        ({"prompt": "a duet", "lyrics": "[Verse]\nOne\n\n[Chorus]\nGood night,"}, "Good night"),
        ({"prompt": "a duet", "lyrics": "[Chorus]\nGood night", "instrumental": True}, "a duet"),
        ({"prompt": "a duet", "lyrics": "[Intro]"}, "a duet"),
    ],
)
def test_a_run_is_called_as_its_song_will_be(settings: dict[str, object], title: str):
    assert runs.title_of(parse_request("generate", settings)) == title
