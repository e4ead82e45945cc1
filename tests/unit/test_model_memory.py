"""The memory plan's table, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

import estimate
import model_memory
from estimate import SongSize
from model_memory import GB, Sizes, Use
from tests.weights import CPU

# The three models as they lie in memory in bfloat16 (docs/deployment.md).
XL = Sizes(
    pipeline=11_500_000_000,
    transformer=8_340_000_000,
    largest=1_220_000_000,
    eight_bits=4_170_000_000,
)
PLANNER, SONGWRITER = 3_710_000_000, 15_230_000_000
ALL = replace(XL, planner=PLANNER, songwriter=SONGWRITER)
PLANNED = replace(XL, planner=PLANNER)

TABLE = [
    # device, GB free, models, seconds, takes, plan
    ("cuda", 48, ALL, 240, 2, "resident"),
    ("cuda", 34, ALL, 600, 4, "swap"),
    ("cuda", 24, PLANNED, 120, 1, "resident"),
    ("cuda", 16, XL, 60, 1, "resident"),
    ("cuda", 16, PLANNED, 60, 1, "swap"),
    ("cuda", 16, ALL, 240, 1, "swap"),
    ("cuda", 12, ALL, 60, 1, "offload"),
    ("cuda", 12, ALL, 600, 4, "fp8"),
    ("cuda", 8, ALL, 60, 1, "fp8"),
    ("cuda", 8, ALL, 600, 4, None),
    ("cuda", None, ALL, 600, 4, "resident"),
    ("mps", 96, ALL, 240, 1, "resident"),
    ("mps", 24, ALL, 240, 1, "swap"),
    ("mps", 12, ALL, 60, 1, None),
    ("cpu", 64, ALL, 240, 1, "resident"),
    ("cpu", 20, ALL, 120, 1, "swap"),
    ("cpu", 10, ALL, 60, 1, "fp8"),
    ("cpu", 9, ALL, 60, 1, None),
]


def use(seconds, takes=1):
    return Use(SongSize(seconds, takes), loops=True, plans=True)


@pytest.mark.parametrize(("kind", "free", "sizes", "seconds", "takes", "plan"), TABLE)
def test_the_table(kind, free, sizes, seconds, takes, plan):
    choice = model_memory.choose(
        kind, None if free is None else free * GB, sizes, use(seconds, takes)
    )
    assert (choice.plan if choice.problem is None else None) == plan


def test_a_refusal_says_what_would_fit():
    problem = model_memory.choose("cuda", 8 * GB, ALL, use(600, 4)).problem
    assert problem.code == "out_of_memory" and "8.0 GB are free" in problem.message
    assert problem.hint == "It fits with 3 takes, or with 590 seconds of music."
    for fitting in (use(600, 3), use(590, 4)):
        assert model_memory.choose("cuda", 8 * GB, ALL, fitting).problem is None


def test_every_plan_needs_less_than_the_one_before():
    for kind, plans in model_memory.LADDERS.items():
        needs = [model_memory.needed(kind, plan, ALL, use(60)) for plan in plans]
        assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)


def test_a_songs_memory_grows_with_its_length_its_takes_and_guidance_and_in_32_bits_doubles():
    song, kept = SongSize(120), estimate.song_bytes(SongSize(0))
    once = estimate.song_bytes(song) - kept
    for change in ({"duration": 240}, {"takes": 2}):
        assert estimate.song_bytes(replace(song, **change)) - kept == 2 * once
    assert estimate.song_bytes(replace(song, guided=False)) - kept == once / 2
    assert estimate.song_bytes(replace(song, number_bytes=4)) == 2 * estimate.song_bytes(song)


@pytest.mark.parametrize("kind", model_memory.LADDERS)
def test_loras_count_at_every_stage_of_every_plan(kind):
    for plan in model_memory.LADDERS[kind]:
        for job in (use(60), Use(writes=True), Use(plans=True)):
            without = model_memory.needed(kind, plan, ALL, job)
            added = model_memory.needed(kind, plan, ALL, replace(job, loras=GB)) - without
            assert added == GB, (plan, job)


def test_words_alone_need_their_own_model_and_no_song():
    lyrics = Use(writes=True)
    choice = model_memory.choose("cuda", 18 * GB, ALL, lyrics)
    assert choice.plan == "swap" and choice.problem is None
    # An idea needs the planner alone, even where the songwriter would not fit.
    assert model_memory.choose("cuda", 12 * GB, ALL, Use(plans=True)).problem is None
    assert model_memory.choose("cuda", 12 * GB, ALL, lyrics).problem.hint.startswith(
        "Close other programs"
    )


def test_a_plan_can_be_forced_unless_the_device_cannot_carry_it_out():
    forced = model_memory.Choice("swap", model_memory.needed("cuda", "swap", ALL, use(600, 4)))
    assert model_memory.choose("cuda", 1, ALL, use(600, 4), "swap") == forced
    assert model_memory.plans_on(CPU) == ("resident", "swap", "fp8")


def test_after_a_lack_of_memory_comes_the_next_plan_and_none_after_the_last():
    assert [model_memory.lower("cuda", plan) for plan in model_memory.LADDERS["cuda"]] == [
        "swap",
        "offload",
        "fp8",
        None,
    ]
    assert [model_memory.lower("mps", plan) for plan in model_memory.LADDERS["mps"]] == [
        "swap",
        None,
    ]
    # What ran out of memory is not tried again.
    assert model_memory.not_above("cuda", "resident", "offload") == "offload"
    assert model_memory.not_above("cuda", "swap", "") == "swap"
    # Computing in 8 bits needs less than a whole model, is never chosen, and falls to the smallest plan.
    fast, swap = (model_memory.needed("cuda", plan, PLANNED, use(60)) for plan in ("fast8", "swap"))
    assert fast < swap
    assert (
        model_memory.lower("cuda", "fast8")
        == model_memory.not_above("cuda", "fast8", "fp8")
        == "fp8"
    )
    for free in (8, 80):
        assert model_memory.choose("cuda", free * GB, ALL, use(60)).plan != "fast8"
