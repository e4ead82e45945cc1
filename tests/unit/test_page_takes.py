"""The requests that the buttons of a take make, and what the page says about old songs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

import page_runs
import page_takes
import tooltips
from events import StudioError
from limits import MORE_LIKE_THIS
from page_results import Made
from params import SONG_REQUESTS, parse_request

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
def test_a_retake_and_one_more_like_a_take_change_the_seed_alone(mode):
    take = made(mode)
    again = page_takes.retake(take)
    assert again.seed == -1
    assert again.model_copy(update={"seed": 5}) == take.request
    varied = page_takes.more(take)
    assert (varied.seed, varied.takes) == (7, 1)
    assert (varied.options.variation, varied.options.variation_seed) == (MORE_LIKE_THIS, -1)
    back = varied.options.model_copy(update={"variation": 0.0})
    assert varied.model_copy(update={"seed": 5, "takes": 3, "options": back}) == take.request
    assert page_takes.more(made(options={"variation": 0.6})).options.variation == 0.6


def test_one_more_like_a_take_keeps_its_plan():
    assert page_takes.more(made(plan={**PLAN, "seed": 5})).options.plan_seed == 5
    assert page_takes.more(made(plan={"used": False, "reason": "It was off."})).options.plan_seed == -1


def test_the_words_that_are_timed_are_those_that_were_sung():
    asked = page_takes.timing(made(plan={**PLAN, "seed": 5}, bpm=90))
    assert (asked.prompt, asked.bpm, asked.key, asked.language) == ("a waltz", 104, "D minor", "en")
    assert (asked.source, asked.lyrics, asked.seed) == ("take.wav", LYRICS, 7)
    assert (asked.steps, asked.planned) == (20, True)
    plain = page_takes.timing(made(bpm=90))
    assert (plain.prompt, plain.bpm, plain.planned) == ("a song", 90, False)


def test_only_what_sings_all_of_its_lyrics_can_be_timed(monkeypatch):
    studio = SimpleNamespace(status=lambda: {"timed_lyrics": {"available": True, "reason": ""}})
    monkeypatch.setattr(page_runs, "get_backend", lambda: studio)
    assert all(page_runs.can_be_timed(made(mode)) for mode in ("generate", "cover", "edit"))
    extracted = made("edit", action="extract", tracks=["vocals"], start=0, end=0, options={})
    for take in (made("extend"), extracted, made(instrumental=True), made(lyrics="")):
        assert not page_runs.can_be_timed(take)


def test_an_upload_that_is_gone_is_named(tmp_path):
    here = tmp_path / "song.wav"
    here.touch()
    page_takes.check_uploads(made("cover", source=str(here)).request)
    with pytest.raises(StudioError, match="Reference audio"):
        page_takes.check_uploads(made("cover", source=str(here), reference=str(tmp_path / "gone.wav")).request)


def test_the_page_says_what_leaves_the_output_folder():
    for days, gb, said in [
        (30, 20, "for 30 days, up to 20 GB in all; the oldest are deleted first."),
        (1, math.inf, "for 1 day; the oldest are deleted first."),
        (math.inf, math.inf, "Finished songs are kept. Uploads"),
    ]:
        assert said in tooltips.kept_for(days, gb)
