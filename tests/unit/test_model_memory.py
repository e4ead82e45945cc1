"""The memory plan's table, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

import estimate
import model_memory
import models
from estimate import Song
from model_memory import GB, Sizes
from tests.weights import CPU

# The three models as they lie in memory in bfloat16 (docs/deployment.md).
XL = Sizes(pipeline=11_500_000_000, transformer=8_340_000_000, largest=1_220_000_000)
PLANNER, WRITER = 3_710_000_000, 15_230_000_000
ALL = replace(XL, planner=PLANNER, writer=WRITER)
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
    ("cpu", 9, ALL, 60, 1, "fp8"),
]


@pytest.mark.parametrize(("kind", "free", "sizes", "seconds", "takes", "plan"), TABLE)
def test_the_table(kind, free, sizes, seconds, takes, plan):
    choice = model_memory.choose(kind, None if free is None else free * GB, sizes, Song(seconds, takes))
    assert (choice.plan if choice.problem is None else None) == plan


def test_a_refusal_says_what_would_fit():
    problem = model_memory.choose("cuda", 8 * GB, ALL, Song(600, 4)).problem
    assert problem.code == "out_of_memory" and "8.0 GB are free" in problem.message
    assert problem.hint == "It fits with 3 takes, or with 590 seconds of music."
    for fitting in (Song(600, 3), Song(590, 4)):
        assert model_memory.choose("cuda", 8 * GB, ALL, fitting).problem is None


def test_every_plan_needs_less_than_the_one_before():
    for plans in model_memory.LADDERS.values():
        needs = [model_memory.needed(plan, ALL, Song(60)) for plan in plans]
        assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)


def test_a_songs_memory_grows_with_its_length_its_takes_and_guidance_and_in_32_bits_doubles():
    song, kept = Song(120), estimate.song_bytes(Song(0))
    once = estimate.song_bytes(song) - kept
    for change in ({"duration": 240}, {"takes": 2}):
        assert estimate.song_bytes(replace(song, **change)) - kept == 2 * once
    assert estimate.song_bytes(replace(song, guided=False)) - kept == once / 2
    assert estimate.song_bytes(replace(song, wide=True)) == 2 * estimate.song_bytes(song)


def test_words_alone_need_their_own_model_and_no_song():
    choice = model_memory.choose("cuda", 18 * GB, ALL, None)
    assert choice.plan == "swap" and choice.problem is None
    assert model_memory.choose("cuda", 12 * GB, ALL, None).problem.hint.startswith("Close other programs")


def test_a_plan_can_be_forced_unless_the_device_cannot_carry_it_out():
    forced = model_memory.Choice("swap", model_memory.needed("swap", ALL, Song(600, 4)))
    assert model_memory.choose("cuda", 1, ALL, Song(600, 4), "swap") == forced
    assert models.plans_on(CPU) == ("resident", "swap", "fp8")


def test_after_a_lack_of_memory_comes_the_next_plan_and_none_after_the_last():
    assert [model_memory.lower("cuda", plan) for plan in model_memory.LADDERS["cuda"]] == [
        "swap",
        "offload",
        "fp8",
        None,
    ]
    assert [model_memory.lower("mps", plan) for plan in model_memory.LADDERS["mps"]] == ["swap", None]
    # What ran out of memory is not tried again.
    assert model_memory.not_above("cuda", "resident", "offload") == "offload"
    assert model_memory.not_above("cuda", "swap", "") == "swap"
    # Computing in 8 bits needs less than a whole model, is never chosen, and falls to the smallest plan.
    assert model_memory.needed("fast8", PLANNED, Song(60)) < model_memory.needed("swap", PLANNED, Song(60))
    assert model_memory.lower("cuda", "fast8") == model_memory.not_above("cuda", "fast8", "fp8") == "fp8"
    for free in (8, 80):
        assert model_memory.choose("cuda", free * GB, ALL, Song(60)).plan != "fast8"
