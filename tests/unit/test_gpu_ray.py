"""Ray where it is not used: when it is asked for, what its absence and its errors are called, the queue's limit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import backend
import gpu_ray
import gpu_ray_worker
import tooltips
from events import Progress, StudioError
from gpu_job import Job
from status import UNKNOWN, SongModelStatus, WorkerStatus
from tests.program import free_port


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, ""),
        ({"ACE_STUDIO_RAY": " auto "}, "auto"),
        ({"ACE_STUDIO_RAY": "local", "SPACE_ID": "me/studio"}, ""),
        ({"ACE_STUDIO_RAY": "local", "SPACES_ZERO_GPU": "true"}, ""),
    ],
)
def test_a_space_never_uses_ray(monkeypatch, environ, found):
    for name in ("ACE_STUDIO_RAY", "SPACE_ID", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert gpu_ray.wanted() == found


@pytest.mark.parametrize(("text", "count"), [("", 0), ("3", 3), ("many", 0)])
def test_workers_that_are_asked_for(monkeypatch, text, count):
    monkeypatch.setenv("ACE_STUDIO_RAY_WORKERS", text)
    assert gpu_ray.count_wanted() == count


def test_a_song_goes_to_a_worker_that_holds_its_model(monkeypatch):
    def worker(name: str, **states: str) -> gpu_ray.WorkerSlot:
        found = tuple(
            SongModelStatus(kind, kind, f"org/{kind}", state, kind == "sft", 11.5, {})
            for kind, state in states.items()
        )
        return gpu_ray.WorkerSlot(name, None, None, 0.0, replace(UNKNOWN, song_models=found))

    pool = gpu_ray.Pool()
    one = worker("one", sft="loaded", turbo="ready")
    two = worker("two", sft="ready", turbo="ready", base="missing")
    three = worker("three", sft="ready", base="ready")
    four = worker("four", sft="ready")
    pool._slots = [one, two, three, four]

    def taken(model: str, *loras: str) -> str:
        ((slot),) = [ended(pool.take(loras, model))]
        pool.give_back(slot)
        return slot.name

    one.loras = frozenset({"x"})
    # What another worker holds of LoRAs costs less than another model.
    assert taken("org/turbo", "x") == "two"
    assert taken("", "x") == taken("sft") == "one"
    # The status does not tell yet what the latest song has loaded.
    assert taken("turbo") == "two" and taken("base") == "three"
    one.busy = True
    assert taken("sft") == "four"


def ended(events: Any) -> Any:
    """Run a generator to its end; return its result."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def test_a_studio_without_ray_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("ACE_STUDIO_RAY", "local")
    monkeypatch.setattr(gpu_ray, "pool", gpu_ray.Pool())
    (tmp_path / "running").touch()
    job = Job(None, (1,), (), str(tmp_path))
    try:
        with pytest.raises(
            StudioError, match=r"Ray is not installed here. Start the studio with ./run.sh --ray."
        ):
            list(gpu_ray.run(backend.on_worker, backend.worker_status, job))
        assert backend.get_backend().status().workers == ()
    finally:
        gpu_ray.pool.dismiss()


def test_an_address_that_cannot_work_is_refused_at_once(monkeypatch):
    with pytest.raises(StudioError, match="ACE_STUDIO_RAY=auto"):
        gpu_ray.join("ray://head:10001")
    monkeypatch.setitem(sys.modules, "ray", None)  # which would try for minutes
    with pytest.raises(StudioError, match="The head of the Ray cluster cannot be reached"):
        gpu_ray.join(f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.11.7\n"
            "This process on node 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\n",
            *("ray_versions", "Ray: 2.50.0, Python: 3.11.7, Ray: 2.60.0, Python: 3.12.1"),
        ),
        (
            "timed out during startup. The GCS may have become overloaded.",
            "ray_start",
            "on this machine in time",
        ),
        ("failed to connect to GCS", "ray_unreachable", "cannot be reached"),
        (
            "The actor died in its creation task:\nModuleNotFoundError: no torch",
            "ray_start",
            "no torch",
        ),
        ("something else", "ray_failed", "something else"),
    ],
    ids=["versions", "slow", "no head", "no packages", "unknown"],
)
def test_an_error_of_ray_is_a_sentence(said, code, words):
    problem = gpu_ray_worker.problem_of(RuntimeError(said))
    assert problem.code == code and words in problem.message


def test_the_status_names_the_workers_and_without_ray_this_process(monkeypatch):
    one = WorkerStatus(id="worker-1", node="abc", pid=7, device="cuda", busy=True)
    assert tooltips.workers_text(replace(UNKNOWN, workers=(one, one))) == "2 workers"
    assert tooltips.workers_text(replace(UNKNOWN, workers=(one,))) == "1 worker"
    assert tooltips.workers_text(replace(UNKNOWN, workers=())) == tooltips.NO_WORKERS
    assert tooltips.workers_text(replace(UNKNOWN, workers=(replace(one, node=""),))) == ""
    monkeypatch.delenv("ACE_STUDIO_RAY", raising=False)
    status = backend.get_backend().status()
    (worker,) = status.workers
    assert worker.id == "here" and not worker.busy
    parts = tooltips.status_parts(replace(status, workers=(one, one)))
    assert parts.count("worker-1: NVIDIA GPU, node abc, process 7, busy") == 2


def test_a_file_travels_in_blocks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gpu_ray_worker, "BLOCK_BYTES", 1000)
    path = tmp_path / "song.wav"
    path.write_bytes(bytes(range(256)) * 10)
    blocks = list(gpu_ray_worker.blocks_of(str(path)))
    assert [len(block) for block in blocks] == [1000, 1000, 560]
    assert b"".join(blocks) == path.read_bytes()
    assert list(gpu_ray_worker.blocks_of("")) == []


class Cluster:
    """Stands in for the module ray: machines with these resources, and actors that never start."""

    def __init__(self, *machines: dict[str, float]):
        self.machines = machines

    def nodes(self) -> list[dict]:
        return [{"Resources": resources, "Alive": True} for resources in self.machines]

    def remote(self, **room: Any) -> Any:
        never = SimpleNamespace(remote=lambda *_: "never")
        return lambda worker: SimpleNamespace(remote=lambda *_: SimpleNamespace(hello=never))

    def wait(self, answers, timeout):
        return [], answers


def pool_on(monkeypatch, *machines, cards=""):
    monkeypatch.setenv("ACE_STUDIO_RAY_GPUS", cards)
    pool = gpu_ray.Pool()
    pool._address, pool._get_status, pool._ray = "auto", None, Cluster(*machines)
    return pool


def told(pool) -> tuple[list[Progress], StudioError]:
    """Wait for a worker in vain, with a look at the cluster before each event; return the events and the error."""
    events = []
    pool._tend()
    with pytest.raises(StudioError) as raised:
        for event in pool.take(()):
            events.append(event)
            pool._tend()
    return events, raised.value


@pytest.mark.parametrize(
    ("cards", "machines", "words"),
    [
        ("", [{"CPU": 0, "memory": 1e9}], "which takes one CPU"),
        ("1", [{"CPU": 8}, {"CPU": 2, "GPU": 0.5}], "which takes 1 GPU"),
        ("2", [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], "which takes 2 GPUs"),
    ],
)
def test_a_cluster_without_room_for_a_worker_ends_the_wait_with_a_sentence(
    monkeypatch, cards, machines, words
):
    monkeypatch.setattr(gpu_ray, "NO_ROOM_SECONDS", 0.0)
    events, error = told(pool_on(monkeypatch, *machines, cards=cards))
    assert error.problem.code == "ray_no_room" and words in error.problem.message
    assert {event.stage for event in events} <= {"starting"}


def test_a_song_waits_for_workers_that_start_and_is_told_so(monkeypatch):
    pool = pool_on(monkeypatch, {"CPU": 2})
    pool._tend()
    waiting = pool.take(())
    assert next(waiting) == Progress("starting") and next(waiting) == Progress("starting")
    monkeypatch.setattr(gpu_ray, "NO_WORKER_SECONDS", 0.0)
    with pytest.raises(StudioError, match="No worker of the Ray cluster has started"):
        next(waiting)


def test_a_machine_that_joins_gives_hope_again(monkeypatch):
    pool = pool_on(monkeypatch, {"CPU": 0})
    pool._tend()
    assert pool.problem.code == "ray_no_room"
    pool._ray.machines = ({"CPU": 0}, {"CPU": 1})
    pool._tend()
    assert pool.problem is None
