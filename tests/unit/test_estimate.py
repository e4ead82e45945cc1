"""The seconds that a GPU is asked for: whole, within bounds, more for more work; and what does not fit is said."""

import re
from dataclasses import replace

import numpy as np
import pytest

import estimate
from estimate import Work
from limits import LIMITS
from params import parse_request

SONG = Work("generate", duration=240, steps=100, takes=2, guidance=7.0)


@pytest.mark.parametrize("duration", [0, 1, 10, 30, 60, 119.5, 240, 600])
@pytest.mark.parametrize("steps", [1, 50, 200])
@pytest.mark.parametrize("takes", [1, 4])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_seconds_are_a_whole_number_from_60_to_300(duration, steps, takes, multiplier):
    seconds = estimate.gpu_seconds(Work("generate", duration, steps, takes, 7.0), multiplier)
    assert type(seconds) is int
    assert 60 <= seconds <= 300


@pytest.mark.parametrize("seconds", [-5, 0, 59.9, 60, 123.7, 300, 1e9])
def test_any_number_becomes_one_that_zerogpu_takes(seconds):
    for value in (seconds, np.float64(seconds)):
        assert type(estimate.clamped(value)) is int
        assert 60 <= estimate.clamped(value) <= 300


@pytest.mark.parametrize(
    "more",
    [
        {"duration": 300},
        {"steps": 120},
        {"takes": 3},
        {"planner": True},
        {"tokens": 500},
        {"source": 240},
        {"passes": 2},
    ],
    ids=str,
)
def test_more_work_takes_longer(more):
    assert estimate.seconds_needed(replace(SONG, **more)) > estimate.seconds_needed(SONG)


@pytest.mark.parametrize("less", [{"guidance": 1.0}, {"cold": False}], ids=str)
def test_less_work_takes_shorter(less):
    assert estimate.seconds_needed(replace(SONG, **less)) < estimate.seconds_needed(SONG)


def test_a_second_try_asks_for_twice_the_first():
    first = estimate.gpu_seconds(SONG)
    assert 60 < first < 150
    assert estimate.gpu_seconds(SONG, 2) == 2 * first
    assert estimate.gpu_seconds(Work("generate", 10, 1), 2) == 120
    assert estimate.gpu_seconds(replace(SONG, steps=400), 2) == 300


@pytest.mark.parametrize(("duration", "tflop"), [(30, 3.33), (60, 6.59), (45, 4.96), (120, 13.6), (600, 90.6)])
def test_the_counted_lengths_are_met_and_joined_by_lines(duration, tflop):
    assert estimate.forward_tflop(duration) == pytest.approx(tflop, abs=0.01)


def test_every_constant_says_where_it_comes_from():
    assert all(c.value > 0 and c.unit and c.origin for c in estimate.CONSTANTS.values())


# --- from a request -----------------------------------------------------------------------------------------------


def work(mode, facts=None, **values):
    songs = ("generate", "cover", "extend", "edit")
    values = {"prompt": "x", **values} if mode in songs else values
    if mode in ("cover", "extend", "edit"):
        values["source"] = "/source.wav"
    return estimate.work_of(parse_request(mode, values), **(facts or {}))


@pytest.mark.parametrize("mode", ["generate", "cover", "extend", "edit"])
def test_a_song_of_any_mode_has_its_length_steps_takes_and_guidance(mode):
    values = {"takes": 3, "options": {"steps": 42, "guidance": 5}}
    if mode == "edit":
        values |= {"start": 1, "end": 5}
    found = work(mode, {"source": 90.0}, **values)
    length = {"generate": 60, "cover": 90, "extend": 120, "edit": 90}[mode]
    assert (found.duration, found.steps, found.takes, found.guidance) == (length, 42, 3, 5)


def test_a_turbo_checkpoint_takes_8_steps_without_guidance():
    found = work("generate", {"turbo": True})
    assert (found.steps, found.guidance) == (8, 1.0)


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


def test_lyrics_cost_their_tokens():
    short, long = (work("lyrics", brief="x", options={"max_tokens": tokens}) for tokens in (64, 2048))
    assert (short.tokens, long.tokens) == (64, 2048)
    assert estimate.seconds_needed(long) > estimate.seconds_needed(short)
    assert estimate.seconds_needed(long) < 300


# --- what does not fit --------------------------------------------------------------------------------------------


def test_every_standard_song_fits():
    for takes in (1, 4):
        request = parse_request("generate", {"prompt": "x", "duration": LIMITS["duration"].high, "takes": takes})
        assert estimate.refusal(estimate.work_of(request)) is None


def test_where_nothing_alone_helps_the_advice_names_what_to_lower():
    song = Work("edit", duration=600, source=600, steps=200, takes=4, guidance=7.0, passes=16)
    assert "1 take and" in estimate.refusal(song).hint
    assert "morph averages" in estimate.refusal(replace(song, passes=80)).hint


@pytest.mark.parametrize(
    "song",
    [
        Work("generate", duration=600, steps=200, takes=4, guidance=7.0),
        Work("generate", duration=600, steps=200, takes=4, guidance=7.0, planner=True),
        Work("extend", duration=600, source=300, steps=200, takes=4, guidance=7.0),
        Work("cover", duration=600, source=600, steps=200, takes=2, guidance=7.0),
        Work("edit", duration=600, source=600, steps=200, takes=2, guidance=7.0, passes=2),
    ],
    ids=lambda song: f"{song.mode}-{song.planner}",
)
def test_what_does_not_fit_is_refused_and_what_would_fit_does(song):
    problem = estimate.refusal(song)
    assert "300" in problem.message and f"{estimate.seconds_needed(song):,.0f}" in problem.message
    ways = re.findall(r"(\d+) (takes?|steps|seconds)", problem.hint)
    assert ways
    if song.mode in ("cover", "edit"):
        assert "seconds" not in problem.hint
    alone = "1 take and" not in problem.hint
    for number, what in ways:
        name = {"take": "takes", "takes": "takes", "steps": "steps", "seconds": "duration"}[what]
        changed = replace(song, **{name: int(number)})
        changed = changed if alone else replace(changed, takes=1)
        if alone or name != "takes":
            assert estimate.seconds_needed(changed) <= 300
            more = replace(changed, **{name: int(number) + (5 if name == "duration" else 1)})
            assert estimate.seconds_needed(more) > 300
