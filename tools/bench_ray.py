"""What Ray costs and what it brings. Called by python -m tools.bench ray, where Ray is installed.

Two workers start on this machine; they and this process compute with one thread each. `overhead` is the time of a song
on a worker over that of the same song in this process, `in CPU time` the same of the time that this process and the
workers computed, which a busy machine does not change. `throughput` is the time of four songs on one worker over that
on both. The two sides of each ratio are measured in turn; a row has the median and the spread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil

import backend
import gpu_ray
from events import Done
from params import parse_request

WORKERS = 2
SONGS = 4


def main(arguments: argparse.Namespace) -> None:
    """Print three rows for each length of `arguments.seconds`, with `steps` and `runs`."""
    import torch

    torch.set_num_threads(1)
    os.environ.update({gpu_ray.RAY: gpu_ray.LOCAL, gpu_ray.WORKERS: str(WORKERS)})
    # Ray lets its workers give way to everything else on a busy machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    gpu_ray.pool.start(backend.worker_status)
    try:
        while len(gpu_ray.pool.workers()) < WORKERS:
            problem = gpu_ray.pool.problem
            if problem:
                sys.exit(problem.text())
            time.sleep(0.2)
        print(f"{arguments.steps} steps, {WORKERS} workers with one thread each")
        print(f"{'':<14}{'seconds':>8}{'ratio':>8}{'spread':>16}")
        for seconds in arguments.seconds:
            # The first pair of each warms up.
            pairs = [overhead(seconds, arguments.steps) for _ in range(arguments.runs + 1)][1:]
            show("overhead", seconds, [wall for wall, _ in pairs])
            show("in CPU time", seconds, [computed for _, computed in pairs])
            show(
                "throughput",
                seconds,
                [throughput(seconds, arguments.steps) for _ in range(arguments.runs + 1)][1:],
            )
    finally:
        gpu_ray.pool.dismiss()


def show(name: str, seconds: float, ratios: list[float]) -> None:
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"{name:<14}{seconds:>8g}{statistics.median(ratios):>8.3f}{spread:>16}", flush=True)


def overhead(seconds: float, steps: int) -> tuple[float, float]:
    """Return the time of a song on a worker over that in this process, and the same ratio of CPU time."""
    began = cpu_seconds()
    with in_this_process():
        here = time_of(1, seconds, steps)
    between = cpu_seconds()
    on_worker = time_of(1, seconds, steps)
    return on_worker / here, (cpu_seconds() - between) / (between - began)


def cpu_seconds() -> float:
    """Return how long this process and the workers have computed so far."""
    processes = [
        psutil.Process(pid)
        for pid in (os.getpid(), *(worker["pid"] for worker in gpu_ray.pool.workers()))
    ]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def throughput(seconds: float, steps: int) -> float:
    """Return the time of `SONGS` songs on one worker over that on all of them."""
    *_, held = with_return(gpu_ray.pool.take(()))
    try:
        one = time_of(SONGS, seconds, steps)
    finally:
        gpu_ray.pool.give_back(held)
    return one / time_of(SONGS, seconds, steps)


def time_of(songs: int, seconds: float, steps: int) -> float:
    """Return the seconds that `songs` songs take that are asked for at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(songs) as threads:
        list(threads.map(lambda seed: make(seed, seconds, steps), range(songs)))
    return time.perf_counter() - started


def make(seed: int, seconds: float, steps: int) -> None:
    """Make a song as a visitor would."""
    options = {"steps": steps, "plan": False}
    values = {"prompt": "warm lofi piano", "duration": seconds, "seed": seed, "options": options}
    *_, last = backend.get_backend().stream(parse_request("generate", values))
    if not isinstance(last, Done):
        sys.exit(f"the studio failed: {last.problem.text()}")


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Let songs be made here; the workers wait."""
    where = os.environ.pop(gpu_ray.RAY)
    try:
        yield
    finally:
        os.environ[gpu_ray.RAY] = where


def with_return(events: Iterator) -> Iterator:
    """Yield the events of a generator, then what it returns."""
    yield (yield from events)
