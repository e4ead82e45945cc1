"""The memory plan: which of the three models lie on the device while a job runs, and in how many bits.

A 24 GB card cannot hold the song model, the planner and the lyrics writer at once. `choose` decides from numbers alone,
before anything is loaded; placing.py carries it out. Sizes are bytes as the weights lie in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from events import Problem
from limits import LIMITS

Plan = Literal["resident", "swap", "offload", "fp8"]

TEXTS: dict[str, str] = {
    "resident": "everything resident",
    "swap": "one model at a time",
    "offload": "one part of a model at a time",
    "fp8": "one part of a model at a time, the transformer in 8 bits",
}
"""From the fastest to the one that needs least; how status and capabilities call it."""

# What a plan can do there: on MPS and the CPU a part that leaves the device would stay in the same memory, and MPS has
# no 8-bit floating-point numbers.
LADDERS: dict[str, tuple[Plan, ...]] = {
    "cuda": ("resident", "swap", "offload", "fp8"),
    "mps": ("resident", "swap"),
    "cpu": ("resident", "swap", "fp8"),
}

GB = 10**9
# Working memory of the loop for one guided take of the XL model: users' reports of 4 to 5 GB at 120 s, 6 to 8 at 240 s,
# 24 to 32 for four takes of 240 s (reference, not measured).
SONG_BASE_GB, SONG_GB_PER_SECOND = 2.0, 0.022
XL_HIDDEN_SIZE = 2560
# A token in the planner's cache: 28 layers of 8 heads of 128, keys and values, 2 bytes.
PLANNER_TOKEN_BYTES, PLANNER_PROMPT_TOKENS = 115_000, 1_000
WRITER_WORK_BYTES = 1 * GB


@dataclass(frozen=True)
class Sizes:
    """What each model takes: the song `pipeline`, its `transformer`, the `largest` of its other parts; 0: not here."""

    pipeline: int
    transformer: int
    largest: int
    planner: int = 0
    writer: int = 0


@dataclass(frozen=True)
class Song:
    """What a song costs beside the weights; `width` is the transformer's in XL's, `wide` tells of 32-bit numbers."""

    duration: float
    takes: int = 1
    guided: bool = True
    width: float = 1.0
    wide: bool = False


@dataclass(frozen=True)
class Choice:
    """The plan, or the problem where none fits; `need` are the bytes that it takes at its height."""

    plan: Plan
    need: int
    problem: Problem | None = None


def choose(kind: str, free: int | None, sizes: Sizes, song: Song | None, forced: str = "auto") -> Choice:
    """Choose the fastest plan that fits into `free` bytes of the device `kind`; None bytes are no limit.

    `free` is what there would be without our own models. `song` is None for a job that only writes words. `forced`
    names a plan that is taken whether it fits or not; one that the device does not know is a problem.
    """
    ladder = LADDERS[kind]
    if forced != "auto":
        problem = None if forced in ladder else _unknown(kind, forced)
        plan = forced if problem is None else ladder[0]
        return Choice(plan, needed(plan, sizes, song), problem)
    for plan in ladder:
        need = needed(plan, sizes, song)
        if free is None or need <= free:
            return Choice(plan, need)
    return Choice(plan, need, _too_small(kind, free, need, sizes, song))


def lower(kind: str, plan: str) -> Plan | None:
    """Return the plan that needs less than `plan`, None below the last one."""
    ladder = LADDERS[kind]
    place = ladder.index(plan) + 1 if plan in ladder else len(ladder)
    return ladder[place] if place < len(ladder) else None


def not_above(kind: str, plan: Plan, limit: str) -> Plan:
    """Return `plan`, or `limit` where that one needs less: what ran out of memory once is not tried again."""
    ladder = LADDERS[kind]
    return limit if limit in ladder and ladder.index(limit) > ladder.index(plan) else plan


def needed(plan: str, sizes: Sizes, song: Song | None) -> int:
    """Return the bytes that `plan` takes at its height."""
    loop = song_bytes(song) if song else 0
    writing = WRITER_WORK_BYTES if sizes.writer else 0
    planning = planner_bytes(song) if sizes.planner else 0
    if plan == "resident":
        return sizes.pipeline + sizes.planner + sizes.writer + max(loop, planning, writing)
    parts = {
        "swap": sizes.pipeline,
        "offload": max(sizes.transformer, sizes.largest),
        "fp8": max(sizes.transformer // 2, sizes.largest),
    }
    at_once = [sizes.planner + planning, parts[plan] + loop]
    # The writer runs by itself, so a song does not have to leave it room.
    return max(at_once) if song else max(sizes.planner + planning, sizes.writer + writing)


def song_bytes(song: Song) -> int:
    """Return the working memory of the loop; the VAE decodes in tiles after it and needs less."""
    one = (SONG_BASE_GB + SONG_GB_PER_SECOND * song.duration) * (1.0 if song.guided else 0.5)
    return int(one * song.takes * song.width * (2 if song.wide else 1) * GB)


def planner_bytes(song: Song | None) -> int:
    """Return the planner's cache for a song: a row for each take, and one more where it is guided."""
    takes, seconds = (song.takes, song.duration) if song else (1, 0.0)
    return int(2 * takes * (PLANNER_PROMPT_TOKENS + 5 * seconds) * PLANNER_TOKEN_BYTES)


# --- sentences ----------------------------------------------------------------------------------------------------


def fallback_note(before: str, after: str) -> str:
    """Return what page and record say after a lack of memory."""
    return f"The memory was full with {TEXTS[before]}, so it was made again with {TEXTS[after]}."


def _unknown(kind: str, plan: str) -> Problem:
    known = ", ".join(("auto", *LADDERS[kind]))
    device = {"cuda": "an NVIDIA card", "mps": "Apple's GPU", "cpu": "the processor"}[kind]
    return Problem("unsupported", f"Memory plan on {device} must be one of {known}, not {plan}.", "options.memory_plan")


def _too_small(kind: str, free: int, need: int, sizes: Sizes, song: Song | None) -> Problem:
    return Problem(
        "out_of_memory",
        f"This needs {need / GB:.1f} GB of memory at least, and {free / GB:.1f} GB are free ({kind}).",
        hint=_what_fits(LADDERS[kind][-1], free, sizes, song),
    )


def _what_fits(plan: Plan, free: int, sizes: Sizes, song: Song | None) -> str:
    """Return a sentence with the most takes or seconds that fit by themselves, or that the model does not."""
    if song is None:
        return "Close other programs, or name a smaller model."
    shortest = int(LIMITS["duration"].low)

    def fits(smaller: Song) -> bool:
        return needed(plan, sizes, smaller) <= free

    takes = next((n for n in range(song.takes - 1, 0, -1) if fits(replace(song, takes=n))), 0)
    lengths = range(int(song.duration // 5) * 5, shortest - 1, -5)
    seconds = next((length for length in lengths if fits(replace(song, duration=float(length)))), 0)
    ways = [f"{takes} take{'s' if takes > 1 else ''}"] if takes else []
    ways += [f"{seconds} seconds of music"] if seconds else []
    if not ways:
        return "Close other programs that use it, or use a smaller checkpoint."
    return f"It fits with {', or with '.join(ways)}."
