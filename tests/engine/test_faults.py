"""What goes wrong around a song: full disks, folders that vanish, a studio that is stopped, many callers at once."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import soundfile

import app
import audio_export
import backend
import jobs
import limits
import runs
import runs_journal
import takes
import tooltips
from events import Done, Failed
from params import parse_request
from tests.program import python, serving
from tests.waiting import until


def run(studio, on=lambda event: None, **values):
    """Make a song of two takes in one step; returns its last event."""
    options = {"steps": 1, "plan": False, **values.pop("options", {})}
    request = {
        "prompt": "calm piano",
        "duration": 10,
        "seed": 7,
        "takes": 2,
        "options": options,
        **values,
    }
    for event in studio.stream(parse_request("generate", request)):
        on(event)
    return event


# --- disks --------------------------------------------------------------------------------------------------------


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch) -> Callable[[Callable[[Path, int], bool]], None]:
    """Return a function that lets the disk be full for writes of so many bytes to a file if its argument says so."""
    write, writing = Path.write_bytes, threading.Lock()

    def fill(is_full):
        def limited(self, data):
            with writing:
                if is_full(self, len(data)):
                    raise disk_full()
                return write(self, data)

        monkeypatch.setattr(Path, "write_bytes", limited)

    return fill


@pytest.mark.parametrize("room", [2.5, 0.5])
def test_as_many_takes_are_saved_as_fit_on_the_disk(studio, output, disk, monkeypatch, room):
    """Together the takes fill it before any of them is whole."""
    encode, together, tried = audio_export.encode, threading.Barrier(4), []

    def is_full(path, size):
        if output not in path.parents:
            return False
        tried.append(path)
        size *= 4 if len(tried) <= 4 else 1
        for each in output.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another take has just failed
                size += each.stat().st_size
        return size > room * 2.88e6

    def wait_for_all(*args):
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(100)
            together.abort()  # the second tries come alone
        return encode(*args)

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setattr(audio_export, "encode", wait_for_all)
    disk(is_full)
    ended = run(studio, takes=4)
    if room < 1:
        assert isinstance(ended, Failed) and ended.problem.code == "disk_full"
        assert list(output.iterdir()) == []
        return
    assert isinstance(ended, Done), ended
    assert "The disk is full: 2 of 4 takes could be saved." in ended.record["notes"]
    assert len(ended.files) == len(ended.record["takes"]) == len(ended.record["errors"]) == 2
    assert {path.name for path in output.iterdir()} == {
        take["name"] for take in ended.record["takes"]
    }


@pytest.mark.slow
def test_a_disk_that_fills_between_takes_keeps_and_delivers_the_finished_ones(studio, output, disk):
    """The folder for work in progress is on another disk than the others."""
    begun = []

    def is_full(path, size):
        if jobs.process_folder() in path.parents and path not in begun:
            begun.append(path)
        return path in begun[1:]

    disk(is_full)
    done = run(studio)
    assert isinstance(done, Done), done
    assert [take["seed"] for take in done.record["takes"]] == [7]
    assert [len(soundfile.read(path)[0]) for path in done.files] == [480_000]
    assert "The disk is full: 1 of 2 takes could be saved." in done.record["notes"]
    assert [
        (error["take"], "disk is full" in error["message"]) for error in done.record["errors"]
    ] == [(2, True)]
    assert [path.name for path in output.iterdir()] == [
        take["name"] for take in done.record["takes"]
    ]


def test_a_take_without_room_for_its_copy_is_shown_under_a_second_name(studio, output, monkeypatch):
    def no_copy(file, name):
        raise disk_full()

    monkeypatch.setattr(takes, "copy_for_page", no_copy)
    done = run(studio)
    assert isinstance(done, Done), done
    assert [take["seed"] for take in done.record["takes"]] == [7, 8]
    assert done.record["errors"] == []
    for path, take in zip(done.files, done.record["takes"], strict=True):
        assert Path(path).samefile(output / take["name"])


def test_a_full_disk_gets_room_for_the_copies_from_old_uploads(studio, output, monkeypatch):
    save = audio_export.save
    asked = []

    def full_at_first(path, file):
        if not asked and takes.bootstrap.page_folder() in path.parents:
            raise disk_full()
        save(path, file)

    monkeypatch.setattr(audio_export, "save", full_at_first)
    monkeypatch.setattr(takes.served, "make_room", asked.append)
    done = run(studio, takes=1)
    assert isinstance(done, Done), done
    (path,) = done.files
    assert asked == [os.stat(path).st_size]


def test_a_take_without_room_for_its_copy_stays_in_the_output_folder(studio, output, monkeypatch):
    copy = takes.copy_for_page

    def no_link(song, copy):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)

    def no_second_copy(file, name):
        if name.endswith("seed-8.wav"):
            raise disk_full()
        return copy(file, name)

    monkeypatch.setattr(takes, "copy_for_page", no_second_copy)
    done = run(studio)
    assert isinstance(done, Done), done
    assert [take["seed"] for take in done.record["takes"]] == [7]
    (error,) = done.record["errors"]
    assert (
        error["seed"] == 8
        and "disk is full" in error["message"]
        and "calm-piano-seed-8.wav" in error["message"]
    )
    assert done.record["notes"] == []
    assert {path.name for path in output.iterdir()} == {
        "calm-piano-seed-7.wav",
        "calm-piano-seed-8.wav",
    }
    assert audio_export.read_record(output / "calm-piano-seed-8.wav")["takes"][0]["seed"] == 8


def test_a_full_disk_without_a_take_is_told_by_its_code(studio, output, disk):
    disk(lambda path, size: True)
    failed = run(studio)
    assert isinstance(failed, Failed) and failed.problem.code == "disk_full"
    assert list(output.iterdir()) == []


def test_takes_that_the_page_cannot_get_are_told_and_stay(studio, output, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(takes, "copy_for_page", refuse)
    failed = run(studio)
    assert isinstance(failed, Failed) and "Permission denied" in failed.problem.message
    assert "calm-piano-seed-7.wav" in failed.problem.message
    assert len(list(output.iterdir())) == 2


def test_a_take_that_cannot_be_tagged_is_saved_without_tags_and_costs_no_other(
    studio, output, monkeypatch
):
    tag = audio_export.tag

    def refuse(file, title, record, picture):
        if title.endswith("seed-8"):
            raise ValueError("a frame that cannot be written")
        tag(file, title, record, picture)

    monkeypatch.setattr(audio_export, "tag", refuse)
    done = run(studio, takes=4)
    assert isinstance(done, Done), done
    assert [take["seed"] for take in done.record["takes"]] == [7, 8, 9, 10]
    warnings = [take["warnings"] for take in done.record["takes"]]
    assert warnings == [[], [tooltips.TAKE_WITHOUT_TAGS], [], []]
    read = [audio_export.read_record(output / take["name"]) for take in done.record["takes"]]
    assert [record is not None for record in read] == [True, False, True, True]
    assert [len(soundfile.read(path)[0]) for path in done.files] == 4 * [480_000]


def test_an_unexpected_fault_of_one_take_costs_no_other(studio, output, monkeypatch):
    measure = takes._measured

    def refuse(request, take):
        if take.seed == 8:
            raise ValueError("an unexpected fault")
        return measure(request, take)

    monkeypatch.setattr(takes, "_measured", refuse)
    done = run(studio, takes=4)
    assert isinstance(done, Done), done
    assert [take["seed"] for take in done.record["takes"]] == [7, 9, 10]
    (error,) = done.record["errors"]
    assert (error["take"], error["seed"]) == (2, 8) and "could not be saved" in error["message"]


@pytest.mark.parametrize(
    "refusal", [UnicodeEncodeError("ascii", "夜", 0, 1, "no"), OSError(errno.EILSEQ, "no")]
)
def test_a_folder_that_takes_no_japanese_gets_a_plain_name(studio, output, monkeypatch, refusal):
    touch = Path.touch

    def refuse(self, *args, **kwargs):
        if not self.name.isascii():
            raise refusal
        return touch(self, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", refuse)
    done = run(studio, prompt="夜 Café")
    assert isinstance(done, Done), done
    assert [take["name"] for take in done.record["takes"]] == ["cafe-seed-7.wav", "cafe-seed-8.wav"]
    assert audio_export.read_record(output / "cafe-seed-7.wav")["request"]["prompt"] == "夜 Café"
    # Such a song is one of the studio's, and goes when it is old.
    monkeypatch.setenv(takes.KEEP_GB, "0.000000001")
    takes.prune()
    assert list(output.iterdir()) == []


@pytest.mark.slow
def test_a_song_in_a_locale_without_other_letters_is_saved(tmp_path, tiny):
    """The second of two takes, too, under a locale in which Python takes only ASCII for file names."""
    code = (
        "import json, sys, bootstrap; bootstrap.bootstrap(); import backend, params;"
        "words = {'prompt': '\\u591c', 'duration': 10, 'seed': 7, 'takes': 2, 'options': {'steps': 2, 'plan': False}};"
        "*_, done = backend.get_backend().stream(params.parse_request('generate', words));"
        "print(sys.getfilesystemencoding(), json.dumps([take['name'] for take in done.record['takes']]))"
    )
    own = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "ACE_STUDIO_MODEL": str(tiny),
    }
    result = python("-c", code, ACE_STUDIO_OUTPUT=str(tmp_path / "songs"), **own)
    assert result.stdout.split(maxsplit=1) == [
        "ascii",
        '["song-seed-7.wav", "song-seed-8.wav"]\n',
    ], result.stderr


def test_an_output_folder_that_is_removed_in_mid_song_is_made_again(studio, output):
    output.mkdir()
    done = run(
        studio,
        lambda event: (
            getattr(event, "stage", "") == "steps" and shutil.rmtree(output, ignore_errors=True)
        ),
    )
    assert isinstance(done, Done)
    assert {path.name for path in output.iterdir()} == {
        take["name"] for take in done.record["takes"]
    }


# --- many callers -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_fifty_calls_at_once_as_many_wait_as_one_program_may_and_a_visitor_still_finds_room(
    server,
):
    values = {"prompt": "calm piano", "duration": 10, "options": {"steps": 1, "plan": False}}
    found = runs.runs_of(backend.get_backend())
    most = limits.MOST_WAITING_OF_AN_ADDRESS
    # The first song is being made for as long as the turn is held.
    with (
        backend.get_backend().models.turn,
        httpx.Client(timeout=800) as client,
        ThreadPoolExecutor(50) as threads,
    ):
        functions = client.get(f"{server}/config").json()["dependencies"]
        index = next(each["id"] for each in functions if each["api_name"] == "generate")
        api = f"{server}/gradio_api"

        def ask(_=0):
            return client.post(f"{api}/call/v2/generate", json=values).json()["event_id"]

        def capabilities():
            """As the health check of the container asks."""
            return client.post(f"{api}/run/capabilities", json={"data": []}).json()["data"][0][
                "engine"
            ]

        accepted = [ask()]
        until(lambda: found.counts()["running"] == 1)
        calls = threads.map(ask, range(50))
        # Both while the callers arrive and while they wait, with no song done.
        assert capabilities() == "preview"
        accepted += list(calls)
        until(lambda: found.counts()["waiting"] == most)
        assert capabilities() == "preview"
        visitor = found.start(parse_request("generate", values), "a visitor")
        assert found.facts(visitor.id)["place"] == 2
        assert found.cancel(visitor.id)
        for event in accepted:
            body = {"session_hash": event, "event_id": event, "fn_index": index}
            client.post(f"{api}/cancel", json=body)
        until(lambda: not found.counts()["waiting"])
    until(lambda: not found.counts()["running"])


# --- starting and stopping ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        # Process 1 is sent it, too, and has no other way to end.
        pytest.param("SIGTERM", marks=pytest.mark.matrix),
        "SIGINT",
        "process 1 of a container",
    ],
)
def test_a_studio_behind_a_proxy_starts_and_stops_in_a_song_without_leaving_anything(tmp_path, way):
    contained = way.startswith("process")
    if (
        contained
        and subprocess.run(
            ["unshare", "-p", "-f", "true"], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("no process namespaces here")
    # Left by a power cut; the start removes both.
    dead = tmp_path / "tmp" / f"ace-music-studio-jobs-{os.getuid()}" / "0123456789abcdef" / "job"
    half = tmp_path / "songs" / ".0123456789abcdef.part"
    for file in (dead / "running", half):
        file.parent.mkdir(parents=True)
        file.touch()
    os.utime(half, (1, 1))
    dead_proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    prefix = ("unshare", "-p", "-f", "--kill-child") if contained else ()
    with serving(tmp_path, prefix=prefix, **dead_proxy) as (process, address):
        studio = process.pid
        if contained:
            studio = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        values = {"prompt": "calm piano", "duration": 60, "options": {"steps": 200, "plan": False}}
        httpx.post(
            f"{address}gradio_api/call/v2/generate", json=values, trust_env=False, timeout=300
        )
        until(lambda: list((tmp_path / "tmp").rglob("running")))
        os.kill(studio, signal.SIGINT if way == "SIGINT" else signal.SIGTERM)
        assert process.wait(300) == 0
    left = [
        path
        for path in tmp_path.rglob("*")
        if (path.is_file() and path.suffix) or path.name == "running"
    ]
    # What the next start needs to tell the visitor that the song was cut off, and nothing else.
    (noted,) = left
    assert noted.parent == tmp_path / "songs" / runs_journal.FOLDER
    found = runs_journal.Journal(lambda: tmp_path / "songs").find(noted.stem)
    assert found is not None and found.is_cut_off() and found.songs == ()
    assert not re.search("Traceback|abort|Abort", (tmp_path / "log").read_text())


def test_a_page_that_is_slow_to_answer_at_the_start_is_no_failure(monkeypatch):
    """Gradio waits 3 seconds for it, which a busy machine may need."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    demo = app.build_app()
    url = app.launch(demo)
    try:
        assert httpx.get(url, timeout=300).status_code == 200
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
    assert found.stderr.count("\n") == 1 and found.stderr.startswith(
        "ACE Music Studio cannot start: "
    ), found.stderr
