"""JSON-RPC over standard input and output on the real engine: answers, order, errors, and an orderly end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soundfile

import backend
import daemon
from bootstrap import page_folder
from tests.program import ROOT
from tests.waiting import until

QUICK = {"duration_sec": 10, "inference_steps": 2}


class Editor:
    """An editor in front of a daemon in this process: what it is told, line by line."""

    def __init__(self):
        self.lines: list[bytes] = []
        self.daemon = daemon.Daemon(backend.get_backend(), self.lines.append)
        self.number = 0

    def ask(self, method, params=(), **more):
        """Send a request; return its answer."""
        self.number += 1
        message = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        self.send(json.dumps({**message, **more}).encode())
        return next(each for each in self.told() if each.get("id") == self.number)

    def send(self, line):
        self.daemon.answer(line)

    def told(self):
        return [json.loads(line) for line in self.lines]

    def of(self, track):
        """Return (method, params) of what was said of a track."""
        found = [(each["method"], each["params"]) for each in self.told() if "method" in each]
        return [each for each in found if each[1]["track_id"] == track]

    def code(self, **params):
        """Return the error that `generate` answers with."""
        return self.ask("generate", params)["error"]


@pytest.fixture
def editor(output):
    return Editor()


@pytest.fixture
def working(editor):
    """An editor whose songs are made."""
    worker = threading.Thread(target=editor.daemon._work, daemon=True)
    worker.start()
    yield editor
    editor.daemon.stop()
    worker.join(60)


def test_a_song_is_answered_first_then_told_of_and_complete_at_last(working, output):
    params = {**QUICK, "prompt": "calm piano", "seed": 1.2345678901235e16, "scheduler": "pingpong"}
    answer = working.ask("generate", params)["result"]
    track = answer["track_id"]
    assert len(track) == 16 and answer["position"] == 0 and answer["seed"] < 2**32
    until(lambda: any(name == "generation_complete" for name, _ in working.of(track)))
    told = working.told()
    place = next(i for i, each in enumerate(told) if each.get("result") == answer)
    assert place < next(i for i, each in enumerate(told) if "method" in each)
    *progress, (name, song) = working.of(track)
    percents = [params["percent"] for _, params in progress]
    assert percents == sorted(set(percents)) and all(each % 5 == 0 for each in percents)
    assert progress[-1][1]["total_steps"] == 2
    assert (name, song["sample_rate"], song["duration_sec"]) == ("generation_complete", 48_000, 10)
    assert song["seed"] == answer["seed"] and song["prompt"] == "calm piano"
    assert soundfile.info(song["path"]).duration == 10
    for line in working.lines:
        assert line.endswith(b"\n") and line.count(b"\n") == 1 and len(line) < 4_096


def test_the_urgent_one_goes_first_and_eleven_are_too_many(editor):
    for number in range(10):
        editor.ask("generate", {**QUICK, "prompt": f"song {number}"})
    assert editor.code(prompt="one more")["code"] == -32004
    first = editor.daemon._waiting[0]
    assert editor.ask("cancel", {"track_id": first.id})["result"] == {
        "cancelled": True,
        "was_generating": False,
    }
    assert editor.of(first.id)[0][1]["code"] == "GENERATION_CANCELLED"
    assert (
        editor.ask("generate", {"prompt": "urgent", "priority": "high"})["result"]["position"] == 1
    )
    assert editor.daemon._waiting[0].prompt == "urgent"


def test_a_song_is_cancelled_while_it_is_made(working):
    track = working.ask("generate", {"prompt": "x", "duration_sec": 200, "inference_steps": 200})
    track = track["result"]["track_id"]
    until(lambda: working.of(track))
    assert working.ask("cancel", {"track_id": track})["result"]["was_generating"]
    until(lambda: working.of(track)[-1][0] == "generation_error")
    assert working.of(track)[-1][1]["code"] == "GENERATION_CANCELLED"
    assert not working.ask("cancel", {"track_id": track})["result"]["cancelled"]


def test_each_error_has_its_code(editor):
    for code, params in (
        (-32006, {"prompt": ""}),
        (-32006, {"prompt": "x" * 1_001}),
        (-32006, {}),
        (-32005, {"prompt": "x", "duration_sec": 4}),
        (-32005, {"prompt": "x", "duration_sec": 241}),
        (-32005, {"prompt": "x", "duration_sec": "long"}),
        (-32007, {"prompt": "x", "backend": "other"}),
        (-32008, {"prompt": "x", "backend": "musicgen"}),
        (-32009, {"prompt": "x", "inference_steps": 201}),
        (-32010, {"prompt": "x", "guidance_scale": 31}),
        (-32011, {"prompt": "x", "scheduler": "dpm"}),
    ):
        error = editor.code(**params)
        assert error["code"] == code and error["data"]["error_code"] and error["message"]
    assert editor.ask("nothing")["error"]["code"] == -32601
    assert editor.ask("ping", "text")["error"]["code"] == -32602
    for line, code in (
        (b"{", -32700),
        (b"[]", -32600),
        (b'{"id": 9}', -32600),
        (b"[" * 99_999, -32700),
    ):
        editor.send(line)
        assert editor.told()[-1]["error"]["code"] == code
        assert editor.told()[-1]["id"] is None or code == -32600
    before = len(editor.lines)
    editor.send(b'{"jsonrpc": "2.0", "method": "ping"}')  # a notification has no answer
    assert len(editor.lines) == before


def test_the_rest(editor):
    assert editor.ask("ping", [])["result"]["status"] == "ok"
    (found,) = editor.ask("get_backends", [])["result"]["backends"]
    assert (found["type"], found["status"], found["min_duration_sec"]) == ("ace_step", "ready", 10)
    assert (
        editor.ask("download_backend", {"backend": "ace_step"})["result"]["status"]
        == "already_installed"
    )
    track = daemon.track_of({"prompt": "x", "duration_sec": 5, "guidance_scale": 30, "seed": 7.0})
    assert (track.seconds, track.options["guidance"], track.seed) == (10, 15, 7)
    assert "steps" not in track.options and track.options["sampler"] == "ode"
    long = editor.daemon._say
    long({"jsonrpc": "2.0", "method": "x", "params": {"prompt": "é" * 5_000}})
    assert len(editor.lines[-1]) < 4_096


# --- the end of the process ----------------------------------------------------------------------

# So long a process may take to end before it counts as one that never does; by its design it is 5.
MOST_SECONDS = 100
STUCK = """
import sys, threading
import backend, daemon

def stream(self, request):
    sys.stderr.write("x" * 2_000_000)  # nobody reads it
    yield

backend.Backend.stream = stream
for name in ("ANSWER_SECONDS", "STOP_SECONDS", "LAST_SECONDS"):
    setattr(daemon, name, 0.2)
daemon.main()
"""


@contextlib.contextmanager
def process(folder, *command, **more):
    """Run a daemon with its files in `folder`."""
    environ = {**os.environ, "TMPDIR": str(folder), "ACE_STUDIO_OUTPUT": str(folder / "songs")}
    environ |= {"GRADIO_TEMP_DIR": str(folder / "page"), **more}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *command]
    with subprocess.Popen(command, cwd=ROOT, env=environ, **pipes) as found:
        try:
            yield found
        finally:
            found.kill()


def send(found, number, method, **params):
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    found.stdin.write(json.dumps(message).encode() + b"\n")
    found.stdin.flush()


def end(found, how):
    if how == "SIGTERM":
        found.send_signal(signal.SIGTERM)
    elif how == "shutdown":
        send(found, 99, "shutdown")
    else:
        found.stdin.close()


ENDS = ["end of input", "SIGTERM", "shutdown"]


def test_all_that_is_waited_for_at_the_end_is_less_than_five_seconds():
    assert daemon.ANSWER_SECONDS + daemon.STOP_SECONDS + daemon.LAST_SECONDS < 5


@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_with_a_song_that_never_does_and_lines_that_nobody_reads(tmp_path, how):
    with process(tmp_path, "-c", STUCK) as found:
        send(found, 1, "generate", prompt="x")
        assert json.loads(found.stdout.readline())["id"] == 1
        if how != "shutdown":
            # The answers fill the pipe, so the process cannot write any more.
            line = json.dumps({"id": 2, "method": "m" * 40}).encode() + b"\n"
            found.stdin.write(line * 2_000)
            found.stdin.flush()
        end(found, how)
        assert found.wait(MOST_SECONDS) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_in_the_middle_of_a_song_with_nothing_left(tiny, tmp_path, how):
    with process(tmp_path, "app.py", "--daemon", ACE_STUDIO_MODEL=str(tiny)) as found:
        send(found, 1, "generate", prompt="x", duration_sec=240, inference_steps=200)
        assert json.loads(found.stdout.readline())["id"] == 1
        assert json.loads(found.stdout.readline())["method"] == "generation_progress"
        end(found, how)
        assert found.wait(MOST_SECONDS) == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_was_asked_before_the_end_of_the_input_is_answered(tmp_path):
    # 500 answers take a hundredth of a second; a machine may be busy with something else, though.
    patient = f"import daemon; daemon.ANSWER_SECONDS = {MOST_SECONDS}; daemon.main()"
    with process(tmp_path, "-c", patient) as found:
        said, _ = found.communicate(b'{"id": 1, "method": "ping"}\n' * 500, MOST_SECONDS)
    assert len(said.splitlines()) == 500


def test_a_song_leaves_no_copy_and_idle_models_leave_the_memory(working, monkeypatch):
    monkeypatch.setattr(daemon, "IDLE_SECONDS", 0.05)
    track = working.ask("generate", {**QUICK, "prompt": "x"})["result"]["track_id"]
    until(lambda: working.of(track) and working.of(track)[-1][0] == "generation_complete")
    name = Path(working.of(track)[-1][1]["path"]).name
    until(lambda: not working.daemon._studio.models.loaded)
    assert list(page_folder().rglob(name)) == []
