"""Where the system does not start any more threads, each way into the studio says so."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import threading
from types import SimpleNamespace

import httpx
import pytest
from anyio._backends import _asyncio as anyio_threads

from events import NO_THREADS

SONG = {"prompt": "x", "duration": 10}
BODIES = {
    "call/capabilities": {"data": []},
    "call/v2/generate": SONG,
    "call/v2/lyrics": {"brief": "x"},
    "run/run": {"data": ["x"]},
    "/release_task": SONG,
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/format_input": SONG,
    "/v1/lora/load": {"lora_path": "x"},
}


def refuse(*_: object) -> None:
    # CPython's own words, where the system does not start any more threads.
    raise RuntimeError("can't start new thread")


@pytest.fixture
def no_threads(server, monkeypatch) -> str:
    """The studio's address while it has no idle thread and the system starts none."""
    none = SimpleNamespace(get=collections.deque, set=lambda _: None)
    monkeypatch.setattr(anyio_threads, "_threadpool_idle_workers", none)
    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "_adjust_thread_count", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    return server


@pytest.mark.parametrize(
    "asked",
    [
        *("/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/file=/a"),
        *("call/capabilities", "call/v2/generate", "call/v2/lyrics", "run/run"),
        *("/release_task", "/v1/chat/completions", "/format_input", "/v1/lora/load"),
    ],
)
def test_what_needs_a_thread_is_refused_with_a_sentence(no_threads, asked):
    if asked in BODIES:
        path = asked if asked.startswith("/") else f"/gradio_api/{asked}"
        answer = httpx.post(f"{no_threads}{path}", json=BODIES[asked], timeout=300)
    else:
        answer = httpx.get(f"{no_threads}{asked}", timeout=300)
    assert (answer.status_code, answer.json()["detail"]) == (503, NO_THREADS.text())


def test_an_upload_that_needs_a_thread_is_refused_with_a_sentence(no_threads):
    files = {"files": ("a.wav", b"RIFF")}
    answer = httpx.post(f"{no_threads}/gradio_api/upload", files=files, timeout=300)
    assert (answer.status_code, answer.json()["detail"]) == (503, NO_THREADS.text())


@pytest.mark.parametrize("missing", ["run", "song"])
def test_a_song_that_gets_no_thread_says_so_and_leaves_its_place(server, monkeypatch, missing):
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name == missing:
            refuse()
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_others)
        for _ in range(2):  # the second one finds the place of the first one free
            assert error_of(server, "generate", SONG) == ["no_threads", NO_THREADS.text()]
    assert httpx.get(f"{server}/v1/stats", timeout=300).json()["data"]["jobs"]["running"] == 0


def error_of(server: str, endpoint: str, values: dict[str, object]) -> list[str]:
    """Call an endpoint and return title and text of the error at the end of its stream."""
    url = f"{server}/gradio_api/call"
    event = httpx.post(f"{url}/v2/{endpoint}", json=values, timeout=300).json()["event_id"]
    *_, last = httpx.get(f"{url}/{endpoint}/{event}", timeout=300).text.strip().split("data: ")
    error = json.loads(last)
    return [error["title"], error["error"]]
