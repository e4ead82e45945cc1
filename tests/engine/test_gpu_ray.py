"""Songs on a real Ray cluster of two nodes on this machine: equal, cancelled, and made again when their node dies.

They share one cluster, and stand in the order in which they use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import numpy as np
import psutil
import pytest

import app
import audio_export
import backend
import gpu_ray
import gpu_ray_worker
import jobs
import limits
from events import Done, Failed, Progress
from params import parse_request
from status import Status
from tests.engine.adapters import write_adapter
from tests.engine.calls import listen
from tests.engine.songs import samples_of, song, song_request
from tests.files import sha256_of
from tests.program import serving
from tests.waiting import until

# Ray reads these while it is imported. On a busy machine its nodes may be slow to start, and its workers would give way
# to everything else.
os.environ |= {"RAY_raylet_start_wait_time_s": "120", "RAY_worker_niceness": "0"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STORE_BYTES = 100 * 2**20
PROMPTS = ("calm piano", "harsh techno")
# Seconds that torch takes to be imported in a worker, and more on a busy machine.
PATIENCE = 600


@pytest.fixture(scope="module")
def studio(tiny: Path) -> Iterator[backend.Backend]:
    """Return a studio of this process, whose songs are those to compare with: workers have one thread each."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # Workers are told this one.
        patch.setenv("ACE_STUDIO_MODEL", str(tiny))
        fresh = backend.Backend()
        patch.setattr(backend, "_backend", fresh)
        yield fresh
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(studio: backend.Backend) -> list[list[np.ndarray]]:
    """Return the songs of `PROMPTS`, made by this process."""
    return [samples_of(song(studio, prompt=prompt)) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def page(studio: backend.Backend) -> Iterator[gr.Blocks]:
    """Return the page, whose queue takes more than fifty songs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MOST_WAITING", "MOST_WAITING_OF_AN_ADDRESS"):
            patch.setattr(limits, name, 60)
        demo = app.build_app()
        yield demo
        demo.close()


@pytest.fixture(scope="module")
def machines(alone: Any, page: gr.Blocks) -> Iterator[Any]:
    """Start a head and two nodes with room for one worker each, and let the studio use them."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch, new_cluster(nodes=2) as found:
        patch.setattr(gpu_ray, "pool", gpu_ray.Pool())
        patch.setenv("ACE_STUDIO_RAY", found.address)
        patch.setenv("ACE_STUDIO_RAY_WORKERS", "2")
        gpu_ray.pool.start(backend.worker_status, lambda count: page.runs.allow(count))
        try:
            wait_for_workers(2)
            yield found
        finally:
            leave()


def leave() -> None:
    """End the workers and leave the cluster, as the end of the process would."""
    import ray

    gpu_ray.pool.dismiss()
    gpu_ray.pool._thread.join(30)
    ray.shutdown()


@contextlib.contextmanager
def new_cluster(nodes: int, **head: Any) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    alone = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    found = Cluster(initialize_head=True, head_node_args={**alone, **head})
    try:
        for _ in range(nodes):
            add_node(found)
        yield found
    finally:
        found.shutdown()


def add_node(machines: Any) -> Any:
    return machines.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def wait_for_workers(count: int) -> None:
    until(lambda: len(gpu_ray.pool.workers()) == count, PATIENCE)


def ask(worker: str, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call `look` in the process of a worker."""
    import ray

    def status() -> Status:
        import backend

        # Whatever `look` found travels in a field of the status that takes any facts.
        return replace(backend.worker_status(), tasks=look())

    (slot,) = [slot for slot in gpu_ray.pool._slots if slot.name == worker]
    return ray.get(slot.actor.hello.remote(status), timeout=PATIENCE).tasks


def slow_down() -> dict[str, Any]:
    """In a worker: make each step take half a second longer."""
    import time

    import backend

    transformer = backend.get_backend().models.pipeline().transformer
    backend.hook = transformer.register_forward_pre_hook(lambda *_: time.sleep(0.5))
    return {}


def hold() -> dict[str, Any]:
    """In a worker: count the steps, and let the second one wait until the song is cancelled or `let_go`."""
    import time

    import backend

    def wait(*_):
        backend.steps += 1
        while (
            backend.steps > 1 and not backend.go and list(jobs.process_folder().glob("*/running"))
        ):
            time.sleep(0.02)

    backend.steps, backend.go = 0, False
    backend.hook = (
        backend.get_backend().models.pipeline().transformer.register_forward_pre_hook(wait)
    )
    return {}


def progress() -> dict[str, Any]:
    """In a worker: return how many steps it has begun, and whether it is making a song."""
    import backend

    return {"steps": backend.steps, "busy": backend.get_backend().models.turn.locked()}


def let_go() -> dict[str, Any]:
    """In a worker: end `hold` or `slow_down`."""
    import backend

    backend.go = True
    backend.hook.remove()
    return {}


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# --- songs --------------------------------------------------------------------------------------------------------


def test_a_source_and_a_lora_travel_and_its_worker_is_asked_again(
    studio, machines, output, tmp_path, monkeypatch
):
    first = Path(song(studio).files[0])
    monkeypatch.setattr(backend.bootstrap, "page_folder", lambda: tmp_path)
    lora = write_adapter(tmp_path / "warm.safetensors", studio.models.pipeline())
    values = {"prompt": "calm piano", "source": str(first), "after": 1, "seed": 7}
    options = {"steps": 2, "loras": [{"source": str(lora), "weight": 0.8}]}
    request = parse_request("extend", {**values, "options": options})
    monkeypatch.setattr(gpu_ray_worker, "BLOCK_BYTES", 100_000)
    *_, once = studio.stream(request)
    *_, again = studio.stream(request)
    assert isinstance(once, Done) and isinstance(again, Done), (once, again)
    assert once.record["loras"] and once.record["worker"] == again.record["worker"]
    monkeypatch.delenv("ACE_STUDIO_RAY")
    *_, here = studio.stream(request)
    assert here.record["worker"] == "here"
    assert same(samples_of(once), samples_of(here)) and same(samples_of(again), samples_of(here))


def test_cancel_reaches_the_right_worker_within_one_step(studio, alone, machines, output):
    found = studio.capabilities()["workers"]
    assert (
        len({worker["node"] for worker in found}) == len({worker["pid"] for worker in found}) == 2
    )
    assert {(worker["device"], worker["busy"]) for worker in found} == {("cpu", False)}
    names = [worker["id"] for worker in found]
    for name in names:
        ask(name, hold)
    left = studio.stream(song_request(options={"steps": 50, "guidance": 1}))
    next(event for event in left if event.stage == "steps" and event.step == 1)
    (busy,) = [worker.id for worker in gpu_ray.pool.workers() if worker.busy]
    (other,) = {*names} - {busy}
    with ThreadPoolExecutor(1) as threads:
        song_of_other = threads.submit(song, studio, prompt=PROMPTS[1])
        until(lambda: ask(other, progress)["steps"] == 2, PATIENCE)
        left.close()
        until(lambda: not ask(busy, progress)["busy"], PATIENCE)
        assert ask(busy, progress)["steps"] == 2
        assert ask(other, progress)["busy"]
        for name in names:
            ask(name, let_go)
        done = song_of_other.result(PATIENCE)
    assert (done.record["worker"], done.record["device"]) == (other, "cpu")
    assert same(samples_of(done), alone[1])
    assert [path.name for path in output.iterdir()] == [
        take["name"] for take in done.record["takes"]
    ]


def make(address: str, number: int) -> Any:
    """Make "song `number`" through the API, with that seed; return its file and record."""
    values = {
        "prompt": f"song {number}",
        "duration": 10,
        "seed": number,
        "options": {"steps": 1, "plan": False},
    }
    call = httpx.post(
        f"{address}gradio_api/call/v2/generate", json=values, timeout=PATIENCE
    ).raise_for_status()
    *_, (name, data) = listen(address.rstrip("/"), call.json()["event_id"])
    assert name == "complete", data
    return data


@pytest.mark.parametrize("visitors", [6, pytest.param(50, marks=pytest.mark.matrix)])
def test_many_visitors_at_once_each_get_their_own_song(page, machines, output, visitors):
    url = app.launch(page)
    with ThreadPoolExecutor(visitors) as threads:
        made = list(
            threads.map(lambda number: make(url, number), range(visitors), timeout=2 * PATIENCE)
        )
    for number, ((file,), record) in enumerate(made):
        for each in (record, audio_export.read_record(Path(file["path"]))):
            assert (each["request"]["prompt"], each["seeds"]) == (f"song {number}", [number])
        assert sha256_of(Path(file["path"])) == record["takes"][0]["sha256"]
    assert (
        len({record["takes"][0]["sha256"] for _, record in made})
        == len(list(output.glob("*.wav")))
        == visitors
    )
    assert {record["worker"] for _, record in made} == {
        worker.id for worker in gpu_ray.pool.workers()
    }


# --- nodes that die -----------------------------------------------------------------------------------------------


def node_of(machines: Any, worker: str) -> Any:
    (node,) = [each.node for each in gpu_ray.pool.workers() if each.id == worker]
    return next(each for each in machines.worker_nodes if each.node_id.startswith(node))


def test_a_node_killed_in_mid_song_costs_no_song(studio, alone, machines, output):
    for worker in gpu_ray.pool.workers():
        ask(worker.id, slow_down)
    stream = studio.stream(song_request(options={"steps": 2}))
    next(event for event in stream if event.stage == "steps")
    (busy,) = [worker.id for worker in gpu_ray.pool.workers() if worker.busy]
    machines.remove_node(node_of(machines, busy), allow_graceful=False)
    *told, done = stream
    assert gpu_ray.AGAIN in {event.note for event in told if isinstance(event, Progress)}
    assert isinstance(done, Done) and done.record["worker"] != busy
    assert same(samples_of(done), alone[0])
    assert [path.name for path in output.iterdir()] == [
        take["name"] for take in done.record["takes"]
    ]


def test_without_a_node_there_is_a_sentence_and_a_new_one_brings_the_studio_back(
    studio, alone, machines, output
):
    for node in list(machines.worker_nodes):
        machines.remove_node(node, allow_graceful=False)
    wait_for_workers(0)
    assert studio.capabilities()["workers"] == []
    stream = studio.stream(song_request())
    next(event for event in stream if "No worker of the Ray cluster is left" in event.note)
    add_node(machines)
    *_, done = stream
    assert same(samples_of(done), alone[0])


# --- the head that dies -------------------------------------------------------------------------------------------


@pytest.mark.matrix
def test_without_the_head_there_is_a_sentence_and_its_return_brings_the_studio_back(
    studio, alone, machines, output, monkeypatch
):
    monkeypatch.setattr(gpu_ray, "HEAD_SECONDS", 3.0)
    for worker in gpu_ray.pool.workers():
        ask(worker.id, slow_down)
    stream = studio.stream(song_request(options={"steps": 50}))
    next(event for event in stream if event.stage == "steps")
    machines.head_node.kill_gcs_server()
    # The song in the making, and one that is asked for while the head is away.
    *_, ended = stream
    until(lambda: not gpu_ray.pool.workers(), PATIENCE)
    *_, refused = studio.stream(song_request())
    for last in (ended, refused):
        assert isinstance(last, Failed) and last.problem == gpu_ray_worker.UNREACHABLE, last
    assert studio.capabilities()["workers"] == [] and not [*output.rglob("*")]
    machines.shutdown()
    port = int(os.environ["ACE_STUDIO_RAY"].rpartition(":")[2])
    with new_cluster(nodes=1, gcs_server_port=port):
        wait_for_workers(1)
        assert same(samples_of(song(studio)), alone[0])
        leave()


def test_rays_client_still_cannot_stream():
    """Why its addresses are refused: `call_remote` is where a client's call of an actor leaves this machine."""
    from ray.util.client.worker import Worker

    client = SimpleNamespace(_client_id="studio")
    method = SimpleNamespace(_prepare_client_task=SimpleNamespace, _num_returns=lambda: "streaming")
    with pytest.raises(RuntimeError, match="not currently supported when using Ray Client"):
        Worker.call_remote(client, method)


# --- as people start it -------------------------------------------------------------------------------------------


@pytest.mark.matrix
def test_a_studio_that_starts_ray_itself_makes_a_song_and_leaves_nothing(tmp_path, tiny):
    # Ray puts sockets there, whose paths must be short.
    environ = {"ACE_STUDIO_MODEL": str(tiny), "ACE_STUDIO_RAY_WORKERS": "1", "RAY_TMPDIR": "/tmp"}
    with serving(tmp_path, "--ray", **environ) as (process, address):

        def workers() -> list[dict[str, Any]]:
            answer = httpx.post(
                f"{address}gradio_api/run/capabilities", json={"data": []}, timeout=PATIENCE
            )
            return answer.raise_for_status().json()["data"][0]["workers"]

        until(workers, PATIENCE)
        (worker,) = workers()
        family = psutil.Process(process.pid).children(recursive=True)
        assert worker["pid"] in {each.pid for each in family} and not worker["busy"]
        _, record = make(address, 7)
        assert record["worker"] == worker["id"] and record["device"] == worker["device"] == "cpu"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    # Ray's agents look for their parent every few seconds.
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive, alive
    left = {path.name for path in (tmp_path / "tmp").glob("ace-music-studio-jobs-*/*")}
    assert all(name.endswith(".lock") for name in left), left
    assert "Traceback" not in (tmp_path / "log").read_text()
