"""The memory plan's table, and what is said where nothing fits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import checkpoints
import memory
import models
from memory import GB, Sizes, Song
from tests.weights import CPU

# The three models as they lie in memory in bfloat16 (docs/deployment.md).
XL = Sizes(pipeline=11_500_000_000, transformer=8_340_000_000, largest=1_220_000_000)
PLANNER, WRITER = 3_710_000_000, 15_230_000_000
ALL = replace(XL, planner=PLANNER, writer=WRITER)
PLANNED = replace(XL, planner=PLANNER)

TABLE = [
    # device, GB free, models, seconds, takes, plan
    ("cuda", 80, ALL, 240, 4, "resident"),
    ("cuda", 48, ALL, 240, 1, "resident"),
    ("cuda", 48, ALL, 240, 2, "resident"),
    ("cuda", 48, ALL, 240, 4, "swap"),
    ("cuda", 24, ALL, 60, 1, "swap"),
    ("cuda", 24, ALL, 240, 1, "swap"),
    ("cuda", 24, PLANNED, 120, 1, "resident"),
    ("cuda", 24, ALL, 240, 2, "offload"),
    ("cuda", 16, XL, 60, 1, "resident"),
    ("cuda", 16, PLANNED, 60, 1, "swap"),
    ("cuda", 16, ALL, 240, 1, "offload"),
    ("cuda", 12, ALL, 60, 1, "offload"),
    ("cuda", 12, ALL, 240, 1, "fp8"),
    ("cuda", 8, ALL, 60, 1, "fp8"),
    ("cuda", 8, ALL, 240, 1, None),
    ("cuda", 6, ALL, 30, 1, None),
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
    choice = memory.choose(kind, None if free is None else free * GB, sizes, Song(seconds, takes))
    assert (choice.plan if choice.problem is None else None) == plan
    if plan and free:
        assert choice.need <= free * GB


@pytest.mark.parametrize(("kind", "free", "sizes", "seconds", "takes"), [row[:5] for row in TABLE if row[5] is None])
def test_a_refusal_says_what_would_fit(kind, free, sizes, seconds, takes):
    problem = memory.choose(kind, free * GB, sizes, Song(seconds, takes)).problem
    assert problem.code == "out_of_memory"
    assert f"{free:.1f} GB are free" in problem.message
    for number, what in re.findall(r"(\d+) (takes?|seconds)", problem.hint):
        changed = {"duration": int(number)} if what == "seconds" else {"takes": int(number)}
        assert memory.choose(kind, free * GB, sizes, replace(Song(seconds, takes), **changed)).problem is None


def test_four_takes_that_do_not_fit_are_told_how_many_would():
    problem = memory.choose("cuda", 24 * GB, ALL, Song(240, 4)).problem
    assert problem.hint == "It fits with 2 takes, or with 130 seconds of music."


@pytest.mark.parametrize("kind", memory.LADDERS)
def test_every_plan_needs_less_than_the_one_before(kind):
    needs = [memory.needed(plan, ALL, Song(60)) for plan in memory.LADDERS[kind]]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)


def test_a_song_without_guidance_takes_half_and_in_32_bits_twice_the_room():
    song = Song(120)
    assert memory.song_bytes(replace(song, guided=False)) * 2 == memory.song_bytes(song)
    assert memory.song_bytes(replace(song, wide=True)) == 2 * memory.song_bytes(song)


def test_words_alone_need_their_own_model_and_no_song():
    choice = memory.choose("cuda", 18 * GB, ALL, None)
    assert choice.plan == "swap" and choice.problem is None
    assert memory.choose("cuda", 12 * GB, ALL, None).problem.hint.startswith("Close other programs")


@pytest.mark.parametrize("plan", memory.LADDERS["cuda"])
def test_a_plan_can_be_forced_whether_it_fits_or_not(plan):
    assert memory.choose("cuda", 1, ALL, Song(600, 4), plan) == memory.Choice(
        plan, memory.needed(plan, ALL, Song(600, 4))
    )


@pytest.mark.parametrize(("kind", "plan"), [("mps", "fp8"), ("mps", "offload"), ("cpu", "offload")])
def test_a_plan_that_the_device_cannot_carry_out_is_refused_at_its_field(kind, plan):
    problem = memory.choose(kind, 100 * GB, ALL, Song(60), plan).problem
    assert problem.field == "options.memory_plan"
    assert "resident" in problem.message and plan in problem.message


def test_after_a_lack_of_memory_comes_the_next_plan_and_none_after_the_last():
    assert [memory.lower("cuda", plan) for plan in memory.LADDERS["cuda"]] == ["swap", "offload", "fp8", None]
    assert [memory.lower("mps", plan) for plan in memory.LADDERS["mps"]] == ["swap", None]


def test_what_ran_out_of_memory_is_not_tried_again():
    assert memory.not_above("cuda", "resident", "offload") == "offload"
    assert memory.not_above("cuda", "fp8", "offload") == "fp8"
    assert memory.not_above("cuda", "swap", "") == "swap"


def test_every_plan_has_a_text():
    assert memory.TEXTS.keys() == set(memory.LADDERS["cuda"])
    assert "everything resident" in memory.fallback_note("resident", "swap")


def test_the_built_in_checkpoint_is_small_before_it_is_made(tmp_path):
    weights = checkpoints.Weights(
        "preview", tmp_path / "not-made", "preview", "", "preview", None, checkpoints.DEFAULT_MODEL
    )
    assert memory.song_bytes(models.song_of(weights, CPU, 600.0, 4, True)) < 10 * memory.GB
