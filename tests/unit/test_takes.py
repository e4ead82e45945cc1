"""The requests that the buttons of a take make, and what the page says about old songs."""

from __future__ import annotations

import math

import pytest

import runs
import takes
import tooltips
from events import StudioError
from limits import MORE_LIKE_THIS
from params import SONG_REQUESTS, parse_request
from result import Made

LYRICS = "[Verse]\nla la"
PLAN = {"used": True, "bpm": 104, "key": "D minor", "time_signature": "4", "language": "en", "caption": "a waltz"}
OWN = {
    "generate": {},
    "cover": {"source": "song.wav"},
    "extend": {"source": "song.wav", "after": 10},
    "edit": {"source": "song.wav", "action": "repaint", "start": 1, "end": 2, "options": {"repaint_strength": 0.3}},
}


def made(mode="generate", plan=None, **values) -> Made:
    request = parse_request(mode, {"prompt": "a song", "lyrics": LYRICS, "takes": 3, "seed": 5, **OWN[mode], **values})
    record = {"plan": plan, "sampling": {"steps": 20}}
    return Made(request, record, {"seed": 7}, "take.wav")


@pytest.mark.parametrize("mode", SONG_REQUESTS)
def test_a_retake_changes_the_seed_alone(mode):
    take = made(mode)
    again = takes.retake(take)
    assert again.seed == -1
    assert again.model_copy(update={"seed": 5}) == take.request


@pytest.mark.parametrize("mode", SONG_REQUESTS)
def test_one_more_like_a_take_varies_its_seed(mode):
    take = made(mode)
    varied = takes.more(take)
    assert (varied.seed, varied.takes) == (7, 1)
    assert (varied.options.variation, varied.options.variation_seed) == (MORE_LIKE_THIS, -1)
    back = {"variation": 0.0, "variation_seed": -1}
    former = varied.model_copy(
        update={"seed": 5, "takes": 3, "options": varied.options.model_copy(update=back)},
    )
    assert former == take.request
    assert takes.more(made(options={"variation": 0.6})).options.variation == 0.6


def test_one_more_like_a_take_keeps_its_plan():
    assert takes.more(made(plan={**PLAN, "seed": 5})).options.plan_seed == 5
    assert takes.more(made(plan={"used": False, "reason": "It was off."})).options.plan_seed == -1


def test_the_words_that_are_timed_are_those_that_were_sung():
    asked = takes.timing(made(plan={**PLAN, "seed": 5}, bpm=90))
    assert (asked.prompt, asked.bpm, asked.key, asked.language) == ("a waltz", 104, "D minor", "en")
    assert (asked.source, asked.lyrics, asked.seed) == ("take.wav", LYRICS, 7)
    assert (asked.steps, asked.planned) == (20, True)
    plain = takes.timing(made(bpm=90))
    assert (plain.prompt, plain.bpm, plain.planned) == ("a song", 90, False)


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        (made(), True),
        (made("cover"), True),
        (made("edit"), True),
        (made("extend"), False),
        (made("edit", action="extract", tracks=["vocals"], start=0, end=0, options={}), False),
        (made(instrumental=True), False),
        (made(lyrics=""), False),
    ],
    ids=["generate", "cover", "repaint", "extend", "extract", "instrumental", "no lyrics"],
)
def test_only_what_sings_all_of_its_lyrics_can_be_timed(monkeypatch, take, expected):
    class Studio:
        @staticmethod
        def status():
            return {"timed_lyrics": {"available": True, "reason": ""}}

    monkeypatch.setattr(runs, "get_backend", Studio)
    assert runs.can_be_timed(take) is expected


def test_an_upload_that_is_gone_is_named(tmp_path):
    here = tmp_path / "song.wav"
    here.touch()
    takes.check_uploads(made("cover", source=str(here)).request)
    with pytest.raises(StudioError, match="Reference audio"):
        takes.check_uploads(made("cover", source=str(here), reference=str(tmp_path / "gone.wav")).request)


@pytest.mark.parametrize(
    ("days", "gb", "said"),
    [
        (30, 20, "for 30 days, up to 20 GB in all; the oldest go first."),
        (1, math.inf, "for 1 day; the oldest go first."),
        (math.inf, 0.5, "up to 0.5 GB in all; the oldest go first."),
        (math.inf, math.inf, "Finished songs stay in the studio's output folder. What"),
    ],
)
def test_the_page_says_what_leaves_the_output_folder(days, gb, said):
    assert said in tooltips.kept_for(days, gb)
