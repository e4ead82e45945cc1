"""What goes wrong around a song: full disks, folders that vanish, a studio that is stopped, many callers at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import pytest
import soundfile

import app
import backend
import export
import jobs
from events import Done, Failed
from params import parse_request
from tests.program import ROOT, python
from tests.waiting import until

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run(studio, on=lambda event: None, **values):
    """Make a song of two takes in one step; returns its last event."""
    options = {"steps": 1, "plan": False, **values.pop("options", {})}
    request = {"prompt": "calm piano", "duration": 10, "seed": 7, "takes": 2, "options": options, **values}
    for event in studio.stream(parse_request("generate", request)):
        on(event)
    return event


# --- disks --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_full_after(files: int, folder: Path, monkeypatch) -> Iterator[None]:
    """Let the disk of `folder` be full once so many files were written to it, as the system says it: at a write."""
    write, begun = export._Remembering.write, []

    def full(self, data):
        if Path(self.name).is_relative_to(folder) and self.name not in begun:
            begun.append(self.name)
        if self.name in begun[files:]:
            self.failure = FULL
            raise FULL
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(export._Remembering, "write", full)
        yield


@pytest.mark.parametrize(
    "place", ["output", *(pytest.param(place, marks=pytest.mark.slow) for place in ("work in progress", "page"))]
)
def test_a_disk_that_fills_between_takes_keeps_and_delivers_the_finished_ones(studio, output, monkeypatch, place):
    copy = jobs.processing_utils.save_file_to_cache

    def full(path, **kwargs):
        if Path(path).name.endswith("seed-8.wav"):
            raise FULL
        return copy(path, **kwargs)

    folder = output if place == "output" else Path("/")
    with disk_full_after(9 if place == "page" else 1, folder, monkeypatch):
        if place == "page":
            monkeypatch.setattr(jobs.processing_utils, "save_file_to_cache", full)
        if place == "work in progress":
            # One take is written there before the disk is full; the output folder is on another disk.
            monkeypatch.setattr(
                jobs.export,
                "encode",
                lambda samples, path, kind, cancelled: soundfile.write(path, samples.T, 48_000, format=kind),
            )
        done = run(studio)
    assert isinstance(done, Done), done
    saved = [take["seed"] for take in done.record["takes"]]
    # Both begin to be saved at once, so either may be the one that fits.
    assert saved == [7] if place != "output" else saved in ([7], [8])
    assert [len(soundfile.read(path)[0]) for path in done.files] == [480_000]
    assert "The disk is full: 1 of 2 takes could be saved." in done.record["notes"]
    failed = [(error["take"], "disk is full" in error["message"]) for error in done.record["errors"]]
    assert failed == [(2 if saved == [7] else 1, True)]
    assert [path.name for path in output.iterdir()] == [take["name"] for take in done.record["takes"]]


@pytest.mark.parametrize("room", [2.5, 0.5])
def test_as_many_takes_are_saved_as_fit_on_the_disk(studio, output, monkeypatch, room):
    """Together the takes fill it before any of them is whole."""
    write, encode, writing = export._Remembering.write, export.encode, threading.Lock()
    together = threading.Barrier(4)

    def full(self, data):
        if output not in Path(self.name).parents:
            return write(self, data)
        with writing:
            used = sum(path.stat().st_size for path in output.iterdir())
            if used + len(data) > room * 480_000 * 6:
                self.failure = FULL
                raise FULL
            return write(self, data)

    def wait_for_all(*args):
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(100)
            together.abort()  # the second tries come alone
        return encode(*args)

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setattr(export._Remembering, "write", full)
    monkeypatch.setattr(export, "encode", wait_for_all)
    ended = run(studio, takes=4)
    if room < 1:
        assert isinstance(ended, Failed) and ended.problem.code == "disk_full"
        assert list(output.iterdir()) == []
        return
    assert isinstance(ended, Done), ended
    assert "The disk is full: 2 of 4 takes could be saved." in ended.record["notes"]
    assert len(ended.files) == len(ended.record["takes"]) == len(ended.record["errors"]) == 2
    assert {path.name for path in output.iterdir()} == {take["name"] for take in ended.record["takes"]}


def test_a_full_disk_without_a_take_is_told_by_its_code(studio, output, monkeypatch):
    for folder in (output, Path("/")):
        with disk_full_after(0, folder, monkeypatch):
            failed = run(studio)
        assert isinstance(failed, Failed) and failed.problem.code == "disk_full"
        assert list(output.iterdir()) == []


def test_an_output_folder_that_is_removed_in_mid_song_is_made_again(studio, output):
    output.mkdir()
    done = run(
        studio, lambda event: getattr(event, "stage", "") == "steps" and shutil.rmtree(output, ignore_errors=True)
    )
    assert isinstance(done, Done)
    assert {path.name for path in output.iterdir()} == {take["name"] for take in done.record["takes"]}


# --- many callers -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_fifty_callers_at_once_as_many_wait_as_the_queue_takes(server):
    values = {"prompt": "calm piano", "duration": 10, "options": {"steps": 1, "plan": False}}
    turn = backend.get_backend().models.turn
    index = next(
        each["id"] for each in httpx.get(f"{server}/config").json()["dependencies"] if each["api_name"] == "generate"
    )

    async def ask(client):
        return await client.post(f"{server}/gradio_api/call/v2/generate", json=values)

    async def capabilities(client):
        """As the health check of the container asks."""
        return await client.post(f"{server}/gradio_api/run/capabilities", json={"data": []})

    async def cancel(client, event):
        body = {"session_hash": event, "event_id": event, "fn_index": index}
        await client.post(f"{server}/gradio_api/cancel", json=body)

    async def go():
        async with httpx.AsyncClient(timeout=100) as client:
            first = (await ask(client)).json()["event_id"]
            while (await client.get(f"{server}/gradio_api/queue/status")).json()["queue_size"]:
                await asyncio.sleep(0.02)
            calls = [asyncio.ensure_future(ask(client)) for _ in range(50)]
            facts = [await capabilities(client)]
            answers = [await call for call in calls]
            facts.append(await capabilities(client))
            waiting = (await client.get(f"{server}/gradio_api/queue/status")).json()["queue_size"]
            for event in [first, *(each.json()["event_id"] for each in answers if each.status_code == 200)]:
                await cancel(client, event)
            return facts, answers, waiting

    # The first song is being made for as long as the turn is held. The callers get a thread of their own, because the
    # browser of the page tests keeps a loop running in this one.
    with turn, ThreadPoolExecutor(1) as pool:
        facts, answers, waiting = pool.submit(asyncio.run, go()).result()
    # Both while the callers arrive and while the queue is full, with no song done.
    assert [each.json()["data"][0]["engine"] for each in facts] == ["preview", "preview"]
    assert waiting == app.QUEUE_SIZE
    assert sorted(answer.status_code for answer in answers) == [200] * app.QUEUE_SIZE + [503] * (50 - app.QUEUE_SIZE)
    assert {answer.json()["detail"] for answer in answers if answer.status_code == 503} == {
        "Queue is full. Max size is 32 and size is 32."
    }


# --- starting and stopping ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.long), "process 1 of a container"])
def test_a_studio_behind_a_proxy_starts_and_stops_in_a_song_without_leaving_anything(tmp_path, way):
    contained = way.startswith("process")
    if contained and subprocess.run(["unshare", "-p", "-f", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no process namespaces here")
    # Left by a power cut; the start removes both.
    dead = tmp_path / "tmp" / f"ace-music-studio-jobs-{os.getuid()}" / "0123456789abcdef" / "job"
    half = tmp_path / "songs" / ".0123456789abcdef.part"
    for file in (dead / "running", half):
        file.parent.mkdir(parents=True)
        file.touch()
    os.utime(half, (1, 1))
    environ = {
        **{name: value for name, value in os.environ.items() if name not in ("GRADIO_TEMP_DIR", "GRADIO_SERVER_PORT")},
        **{"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"},
        **{"TMPDIR": str(tmp_path / "tmp"), "ACE_STUDIO_OUTPUT": str(tmp_path / "songs")},
    }
    command = ["unshare", "-p", "-f"] * contained + [sys.executable, "app.py"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
    studio = process.pid
    try:
        ready = process.stdout.readline()
        assert "ready at http" in ready, (tmp_path / "log").read_text()
        if contained:
            studio = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        values = {"prompt": "calm piano", "duration": 60, "options": {"steps": 200, "plan": False}}
        address = ready.split()[-1]
        httpx.post(f"{address}gradio_api/call/v2/generate", json=values, trust_env=False, timeout=100)
        until(lambda: list((tmp_path / "tmp").rglob("running")))
        os.kill(studio, signal.SIGINT if way == "SIGINT" else signal.SIGTERM)
        assert process.wait(100) == 0
    finally:
        if process.poll() is None:
            os.kill(studio, signal.SIGKILL)
        process.stdout.close()
    left = [path for path in tmp_path.rglob("*") if (path.is_file() and path.suffix) or path.name == "running"]
    assert left == [], left
    assert not re.search("Traceback|abort|Abort", (tmp_path / "log").read_text())


def test_a_page_that_is_slow_to_answer_at_the_start_is_no_failure(monkeypatch):
    """Gradio waits 3 seconds for it, which a busy machine may need."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with gr.Blocks() as demo:
        gr.HTML("here")
    url = app.launch(demo)
    try:
        assert httpx.get(url).status_code == 200
    finally:
        demo.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["import", "server"])
def test_a_studio_that_cannot_start_says_why_in_a_sentence(tmp_path, fault):
    patch = {
        "import": "import sys; sys.modules['soundfile'] = None",
        "server": "import gradio; gradio.Blocks.launch = lambda *a, **k: 1 / 0",
    }[fault]
    code = f"import runpy, sys; sys.argv = ['app.py']; {patch}; runpy.run_path('app.py', run_name='__main__')"
    found = python("-c", code)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1 and found.stderr.startswith("ACE Music Studio cannot start: "), found.stderr
