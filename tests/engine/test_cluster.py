"""Songs on a real Ray cluster of two nodes on this machine: equal, cancelled, and made again when their node dies.

They run where Ray is installed (requirements-ray.txt), share one cluster, and stand in the order in which they use it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backend
import cluster
import preview
from events import Done, Progress
from params import parse_request
from tests.engine.adapters import write_adapter
from tests.engine.songs import samples_of, song_request
from tests.waiting import until

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.long]

STORE_BYTES = 100 * 2**20
PROMPTS = ("calm piano", "harsh techno", "slow strings", "bright brass")
# Seconds that torch takes to be imported in a worker, and more on a busy machine.
PATIENCE = 240


@pytest.fixture(scope="module")
def studio() -> Iterator[backend.Backend]:
    """Return a studio of this process, whose songs are those to compare with: workers have one thread each."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # Workers look for the built-in checkpoint where everybody does.
        patch.setattr(preview, "TRAINED", cluster.ROOT / "assets" / "preview")
        fresh = backend.Backend()
        patch.setattr(backend, "_backend", fresh)
        yield fresh
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(studio: backend.Backend) -> list[list[np.ndarray]]:
    """Return the songs of `PROMPTS`, made by this process."""
    return [samples_of(song(studio, prompt=prompt)) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def machines(studio: backend.Backend, alone: Any) -> Iterator[Any]:
    """Start a head and two nodes with room for one worker each, and let `studio` use them."""
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    for _ in range(2):
        add_node(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_STUDIO_RAY", found.address)
        patch.setenv("ACE_STUDIO_RAY_WORKERS", "2")
        backend.start_workers(lambda count: None)
        try:
            wait_for_workers(2)
            yield found
        finally:
            cluster.stop()
            found.shutdown()


def add_node(machines: Any) -> Any:
    return machines.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def wait_for_workers(count: int) -> None:
    until(lambda: len(cluster.workers()) == count, PATIENCE)


def song(studio: backend.Backend, **values: Any) -> Done:
    *_, last = studio.stream(song_request(**values))
    assert isinstance(last, Done), last
    return last


def at_once(*songs: Callable[[], Any]) -> list[Any]:
    """Make songs at the same time; return what each call returned, in order."""
    with ThreadPoolExecutor(len(songs)) as threads:
        return [made.result(PATIENCE) for made in [threads.submit(song) for song in songs]]


def ask(worker: str, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call `look` in the process of a worker."""
    (slot,) = [slot for slot in cluster._pool._slots if slot.name == worker]
    return ray.get(slot.actor.hello.remote(look), timeout=PATIENCE)


def slow_down() -> dict[str, Any]:
    """In a worker: make each step take half a second longer, and count them."""
    import time

    import backend

    backend.steps = []
    backend.slow = (
        backend.get_backend()
        .models.pipeline()
        .transformer.register_forward_pre_hook(lambda *_: backend.steps.append(1) or time.sleep(0.5))
    )
    return {}


def steps() -> dict[str, Any]:
    """In a worker: return how many steps it has begun."""
    import backend

    return {"steps": len(backend.steps)}


def speed_up() -> dict[str, Any]:
    """In a worker: end `slow_down`."""
    import backend

    backend.slow.remove()
    return {}


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# --- songs --------------------------------------------------------------------------------------------------------


def test_four_visitors_at_once_get_the_songs_of_a_single_process(studio, alone, machines, output):
    made = at_once(*(lambda prompt=prompt: song(studio, prompt=prompt) for prompt in PROMPTS))
    for done, wanted, prompt in zip(made, alone, PROMPTS, strict=True):
        assert done.record["request"]["prompt"] == prompt
        assert (done.record["device"], done.record["model"]["engine"]) == ("cpu", "preview")
        assert same(samples_of(done), wanted)
    assert {done.record["worker"] for done in made} == {worker["id"] for worker in cluster.workers()}
    found = studio.capabilities()["workers"]
    assert len({worker["node"] for worker in found}) == len({worker["pid"] for worker in found}) == 2
    assert {(worker["device"], worker["busy"]) for worker in found} == {("cpu", False)}


def test_a_source_and_a_lora_travel_and_its_worker_is_asked_again(studio, machines, output, tmp_path, monkeypatch):
    first = Path(song(studio).files[0])
    monkeypatch.setattr(backend.gradio_utils, "get_upload_folder", lambda: str(tmp_path))
    lora = write_adapter(tmp_path / "warm.safetensors", studio.models.pipeline())
    values = {"prompt": "calm piano", "source": str(first), "after": 1, "seed": 7}
    options = {"steps": 2, "loras": [{"source": str(lora), "weight": 0.8}]}
    request = parse_request("extend", {**values, "options": options})
    monkeypatch.setattr(cluster, "BLOCK_BYTES", 100_000)
    *_, once = studio.stream(request)
    *_, again = studio.stream(request)
    assert once.record["loras"] and once.record["worker"] == again.record["worker"]
    monkeypatch.delenv("ACE_STUDIO_RAY")
    *_, here = studio.stream(request)
    assert here.record["worker"] == "here"
    assert same(samples_of(once), samples_of(here)) and same(samples_of(again), samples_of(here))


def test_cancel_reaches_the_right_worker_within_one_step(studio, alone, machines, output):
    for worker in cluster.workers():
        ask(worker["id"], slow_down)
    left = studio.stream(song_request(options={"steps": 50, "guidance": 1}))
    next(event for event in left if event.stage == "steps" and event.step == 2)
    (busy,) = [worker["id"] for worker in cluster.workers() if worker["busy"]]
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(song, studio, prompt=PROMPTS[1])
        until(lambda: all(worker["busy"] for worker in cluster.workers()), PATIENCE)
        begun = ask(busy, steps)["steps"]
        left.close()
        until(lambda: not ask(busy, lambda: {"busy": backend.get_backend().models.turn.locked()})["busy"], PATIENCE)
        assert ask(busy, steps)["steps"] <= begun + 2 < 50
        done = other.result(PATIENCE)
    assert done.record["worker"] != busy
    assert same(samples_of(done), alone[1])
    assert [path.name for path in output.iterdir()] == [take["name"] for take in done.record["takes"]]
    for worker in cluster.workers():
        ask(worker["id"], speed_up)


# --- nodes that die -----------------------------------------------------------------------------------------------


def node_of(machines: Any, worker: str) -> Any:
    (node,) = [each["node"] for each in cluster.workers() if each["id"] == worker]
    return next(each for each in machines.worker_nodes if each.node_id.startswith(node))


def test_a_node_killed_in_mid_song_costs_no_song(studio, alone, machines, output):
    for worker in cluster.workers():
        ask(worker["id"], slow_down)
    stream = studio.stream(song_request(options={"steps": 2}))
    next(event for event in stream if event.stage == "steps")
    (busy,) = [worker["id"] for worker in cluster.workers() if worker["busy"]]
    machines.remove_node(node_of(machines, busy), allow_graceful=False)
    *told, done = stream
    assert cluster.AGAIN in {event.note for event in told if isinstance(event, Progress)}
    assert isinstance(done, Done) and done.record["worker"] != busy
    assert same(samples_of(done), alone[0])
    assert [path.name for path in output.iterdir()] == [take["name"] for take in done.record["takes"]]


def test_without_a_node_there_is_a_sentence_and_a_new_one_brings_the_studio_back(studio, alone, machines, output):
    (last,) = machines.worker_nodes
    machines.remove_node(last, allow_graceful=False)
    wait_for_workers(0)
    assert studio.capabilities()["workers"] == []
    told: list[Progress] = []
    made: list[Done] = []

    def visitor() -> None:
        for event in studio.stream(song_request()):
            (made if isinstance(event, Done) else told).append(event)

    thread = threading.Thread(target=visitor)
    thread.start()
    until(lambda: any("No worker of the Ray cluster is left" in getattr(event, "note", "") for event in told), PATIENCE)
    assert not made
    add_node(machines)
    thread.join(PATIENCE)
    assert same(samples_of(*made), alone[0])
