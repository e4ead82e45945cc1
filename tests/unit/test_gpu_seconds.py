"""The seconds that a GPU is asked for: whole, within bounds, more for more work; and what does not fit is said."""

import re
from dataclasses import replace

import numpy as np
import pytest

import zerogpu
from limits import LIMITS
from params import parse_request
from zerogpu import Work

SONG = Work("generate", duration=240, steps=100, takes=2, guidance=7.0)


def test_seconds_are_a_whole_number_from_60_to_300():
    for value in (-5, 59.9, 123.7, np.float64(123.7), 1e9):
        assert type(zerogpu.clamped(value)) is int
        assert 60 <= zerogpu.clamped(value) <= 300


def test_more_work_takes_longer():
    needed = zerogpu.seconds_needed
    more = ({"duration": 300}, {"steps": 120}, {"takes": 3}, {"planner": True}, {"tokens": 500}, {"source": 240})
    for change in (*more, {"passes": 2}):
        assert needed(replace(SONG, **change)) > needed(SONG), change
    assert needed(replace(SONG, guidance=1.0)) < needed(SONG)


def test_the_counted_lengths_are_met_and_joined_by_lines():
    for duration, tflop in [(30, 3.33), (60, 6.59), (45, 4.96), (120, 13.6), (600, 90.6)]:
        assert zerogpu.forward_tflop(duration) == pytest.approx(tflop, abs=0.01)


def work(mode, facts=None, **values):
    songs = ("generate", "cover", "extend", "edit")
    values = {"prompt": "x", **values} if mode in songs else values
    if mode in ("cover", "extend", "edit"):
        values["source"] = "/source.wav"
    return zerogpu.work_of(parse_request(mode, values), **(facts or {}))


@pytest.mark.parametrize(("mode", "length"), [("generate", 60), ("cover", 90), ("extend", 120), ("edit", 90)])
def test_a_song_of_any_mode_has_its_length_steps_takes_and_guidance(mode, length):
    region = {"end": 5} if mode == "edit" else {}
    found = work(mode, {"source": 90.0}, takes=3, options={"steps": 42, "guidance": 5}, **region)
    assert (found.duration, found.steps, found.takes, found.guidance) == (length, 42, 3, 5)


def test_a_turbo_checkpoint_takes_8_steps_without_guidance_and_lyrics_their_tokens():
    found = work("generate", {"kind": "turbo"})
    assert (found.steps, found.guidance) == (8, 1.0)
    assert work("lyrics", brief="x", options={"max_tokens": 64}).tokens == 64


def test_a_plan_counts_where_there_is_a_planner_and_it_is_wanted():
    assert work("generate", {"planner": True}).planner
    assert not work("generate", {"planner": False}).planner
    assert not work("generate", {"planner": True}, options={"plan": False}).planner
    assert not work("cover", {"planner": True, "source": 60.0}).planner


def test_a_morph_runs_source_and_target_in_every_draw():
    values = {"action": "morph", "source_prompt": "y"}
    assert work("edit", **values).passes == 2
    found = work("edit", **values, options={"n_min": 0.25, "n_max": 0.75, "n_avg": 4})
    assert found.passes == pytest.approx(0.5 * 8 + 0.25)


def test_every_standard_song_fits():
    for takes in (1, 4):
        request = parse_request("generate", {"prompt": "x", "duration": LIMITS["duration"].high, "takes": takes})
        assert zerogpu.refusal(zerogpu.work_of(request)) is None


def test_where_nothing_alone_helps_the_advice_names_what_to_lower():
    song = Work("edit", duration=600, source=600, steps=200, takes=4, guidance=7.0, passes=16)
    steps = int(re.search(r"1 take and (\d+) steps", zerogpu.refusal(song).hint)[1])
    assert zerogpu.seconds_needed(replace(song, takes=1, steps=steps)) <= 300
    assert "morph averages" in zerogpu.refusal(replace(song, passes=80)).hint


ALONE = {"generate": {"takes", "steps", "duration"}, "cover": {"takes", "steps"}}


@pytest.mark.parametrize(("mode", "alone"), ALONE.items())
def test_what_does_not_fit_is_refused_with_the_most_that_would_fit(mode, alone):
    song = Work(mode, duration=600, source=0 if mode == "generate" else 600, steps=200, takes=4, guidance=7.0)
    problem = zerogpu.refusal(song)
    assert "300" in problem.message and f"{zerogpu.seconds_needed(song):,.0f}" in problem.message
    names = {"take": "takes", "seconds": "duration"}
    ways = {names.get(what, what): int(n) for n, what in re.findall(r"(\d+) (takes?|steps|seconds)", problem.hint)}
    assert set(ways) == alone
    for name, number in ways.items():
        assert zerogpu.seconds_needed(replace(song, **{name: number})) <= 300
        more = number + (5 if name == "duration" else 1)
        assert zerogpu.seconds_needed(replace(song, **{name: more})) > 300
