"""The seconds to ask ZeroGPU for: what is measured and learned brings them near what is used."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

import estimate
import gpu_zero
from estimate import Work
from record import GpuEntry

# A card is so many times as fast as counted; each job then takes a little more or less than the
# last, and its start less than was assumed.
SPEEDS = (0.5, 1.0, 2.0)
SEEDS = (5, 10, 20)
NOISE = 0.03
START_SECONDS = 14.0
MEASURED_NOISE = 0.05
JOBS = 200
FIRST = 20  # of each card, until both modes are known
OF_A_CARD = ("tflop_per_second", "plan_tokens_per_second")
SECONDS = ("decode_per_minute", "encode_seconds", "encode_per_minute")


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    monkeypatch.setattr(estimate, "CONSTANTS", dict(estimate.COUNTED))
    monkeypatch.setattr(gpu_zero, "experience", estimate.Experience())


@dataclass(frozen=True)
class Simulated:
    """The seconds asked for over those used, by job; and how many jobs were cut off at first."""

    ratios: np.ndarray
    cut_off: int


def a_work(draw: random.Random) -> Work:
    mode = draw.choice(["generate", "generate", "cover"])
    duration = draw.choice([60.0, 120.0, 180.0, 240.0])
    return Work(
        mode=mode,
        duration=duration,
        steps=draw.choice([50, 80]),
        takes=draw.choice([1, 2]),
        guidance=7.0,
        planner=mode == "generate",
        source=duration if mode == "cover" else 0.0,
    )


def simulate(speed: float, measured: bool, monkeypatch: pytest.MonkeyPatch, seed: int) -> Simulated:
    monkeypatch.setattr(estimate, "CONSTANTS", dict(estimate.COUNTED))
    monkeypatch.setattr(gpu_zero, "experience", estimate.Experience())
    draw = random.Random(seed)
    true = dict(estimate.COUNTED)
    for name in OF_A_CARD:
        true[name] *= speed
    for name in SECONDS:
        true[name] /= speed
    if measured:
        true["cold_seconds"] = START_SECONDS
        names = (*OF_A_CARD, *SECONDS, "cold_seconds")
        estimate.use_measured({name: true[name] * draw.gauss(1, MEASURED_NOISE) for name in names})
    ratios = []
    cut_off = 0
    while len(ratios) < JOBS:
        work = a_work(draw)
        with monkeypatch.context() as patch:
            patch.setattr(estimate, "CONSTANTS", true)
            used = (START_SECONDS + estimate.seconds_of_work(work)) * draw.lognormvariate(0, NOISE)
        if used > 250:  # it would be refused
            continue
        asked = gpu_zero.gpu_seconds(work)
        tries = 1
        if used > asked:
            cut_off += 1
            tries = 2
        ratios.append(asked / used)
        gpu_zero.learn(work, GpuEntry(estimated=asked, asked=asked, tries=tries, used=used))
    return Simulated(np.array(ratios), cut_off)


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_asked_for_is_near_what_is_used_and_hardly_a_job_is_cut_off(
    speed, measured, seed, monkeypatch
):
    found = simulate(speed, measured, monkeypatch, seed)
    print(
        f"{speed} times as fast, {'measured' if measured else 'counted'}: asked/used "
        f"{found.ratios.mean():.2f} in the mean, {np.quantile(found.ratios[FIRST:], 0.95):.2f} in 95 % "
        f"after the first {FIRST}, "
        f"{100 * found.cut_off / JOBS:.2f} % cut off"
    )
    assert found.ratios.mean() <= 1.3
    assert np.quantile(found.ratios[FIRST:], 0.95) <= 1.3
    # Without the self-check the first job is a guess.
    assert found.cut_off / JOBS < 0.01
    assert found.cut_off <= (0 if measured else 1)


def test_jobs_of_one_length_teach_what_they_took(monkeypatch):
    work = Work("generate", duration=60.0, steps=50, guidance=7.0)
    for used in (100.0, 102.0, 98.0):
        gpu_zero.learn(work, GpuEntry(estimated=60, asked=120, tries=2, used=used))
    # The rest of the hundred seconds counts as the start, which has its own bound.
    most = estimate.MOST_START_SECONDS + estimate.MOST_RATIO * estimate.seconds_of_work(work)
    assert most <= gpu_zero.gpu_seconds(work) <= 1.3 * 102


def test_what_is_learned_is_bounded_and_of_its_mode_first():
    work = Work("generate", duration=60.0, steps=50, guidance=7.0)
    experience = estimate.Experience()
    for _ in range(estimate.REMEMBERED_JOBS):
        experience.learn(work, 1e6)
    most = estimate.MOST_START_SECONDS + estimate.MOST_RATIO * estimate.seconds_of_work(work)
    assert experience.seconds(work) <= estimate.MOST_SPARE * most
    # Another mode knows nothing of its own yet, but that the card is slow.
    other = Work("cover", duration=60.0, steps=50, guidance=7.0)
    assert not experience.knows(other)
    assert experience.seconds(other) > estimate.seconds_needed(other)
    assert estimate.Experience().seconds(other) == estimate.seconds_needed(other)


def test_a_song_is_refused_by_what_earlier_ones_took():
    def work(duration: float) -> Work:
        return Work("generate", duration=duration, steps=80, takes=2, guidance=7.0)

    assert gpu_zero.refusal(work(600.0)) is None
    for duration in (60.0, 120.0, 240.0):  # three times as slow as it was thought to be
        used = 15 + 3 * estimate.seconds_of_work(work(duration))
        gpu_zero.learn(work(duration), GpuEntry(estimated=60, asked=60, tries=1, used=used))
    problem = gpu_zero.refusal(work(600.0))
    assert problem.code == "too_much_gpu_time"
    needed = int(problem.message.split(" seconds")[0].rsplit(" ", 1)[1])
    assert needed == round(gpu_zero.experience.seconds(work(600.0))) > gpu_zero.MOST_SECONDS
    # What it says would fit does fit.
    seconds = float(problem.hint.split(" seconds of music")[0].rsplit(" ", 1)[1])
    assert gpu_zero.refusal(work(seconds)) is None and gpu_zero.refusal(work(seconds + 5))
    longest = estimate.longest(work(600.0), 120.0, gpu_zero.experience.seconds)
    assert longest < estimate.longest(work(600.0), 120.0)


def test_a_stage_takes_as_long_as_it_took_in_the_song_before():
    work = Work("generate", duration=60.0, steps=50, guidance=7.0)
    paces = estimate.Paces()
    counted = paces.seconds(work)
    paces.learn(work, {"steps": 3 * counted["steps"], "decoding": 4.0, "scoring": 1.0})
    longer = Work("generate", duration=60.0, steps=100, guidance=7.0, takes=2)
    seconds = paces.seconds(longer)
    assert seconds["steps"] == pytest.approx(12 * counted["steps"])
    assert seconds["decoding"] == pytest.approx(2 * 5.0)
    assert seconds["finishing"] == pytest.approx(2 * counted["finishing"])
    # Until the first song, the built-in engine's planner is taken for a small one.
    planned = Work("generate", duration=60.0, steps=8, planner=True)
    first = estimate.Paces().seconds(planned, estimate.BUILT_IN_PACES)
    assert first["planning"] < first["steps"] + first["decoding"] + first["finishing"]
    learnt = paces.seconds(planned, estimate.BUILT_IN_PACES)["steps"]
    assert learnt == pytest.approx(paces.seconds(planned)["steps"])
