"""A real Chromium on the real page, on random weights or on a fake backend that plays a script.

ACE_STUDIO_CHROMIUM names the browser; these tests are skipped without one. A request to another machine fails the test,
and so does an error in the browser's console.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from gradio import processing_utils
from gradio import utils as gradio_utils
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import model_memory
import model_weights
import takes
from backend import Backend
from events import Done, Draft, Event, Failed, Problem, Progress
from limits import SAMPLE_RATE
from params import Request
from runs import runs_of
from status import (
    UNKNOWN,
    LanguageModelStatus,
    SongModelStatus,
    SongwriterStatus,
    Status,
    TimedLyrics,
    WorkerStatus,
)
from tests.files import tag_file, write_song
from tests.page import held
from tests.page.steps import Tab
from tests.program import ROOT
from tests.waiting import until
from tools import screenshots

# Other machines have no address.
FLAGS = [*screenshots.FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
LOCAL = re.compile(r"^(https?|wss?)://127\.0\.0\.1[:/]|^(data|blob|about):")
# Chromium logs a rejected field (HTTP 422), and Gradio the stream that a reload cuts.
FORGIVEN = ("status of 422", "signal is aborted", "Connection errored out")
FIRST_VISIT = """(face) => {
  for (const storage of [localStorage, sessionStorage]) storage.clear();
  localStorage.setItem("ace-music-studio-face", face);
  localStorage.setItem("ace-music-studio-plays", "false");
}"""
# Only what never comes is given up: a machine may be several times slower than the one that a test was written on.
WAIT_MS = 300_000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = screenshots.find_chromium()
    if not path:
        pytest.skip("no Chromium: install it, or name it in ACE_STUDIO_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def look(pytestconfig: pytest.Config) -> dict[str, Any]:
    width = pytestconfig.getoption("width")
    return {
        "width": width,
        "height": 900 if width > 640 else 844,
        "theme": pytestconfig.getoption("theme"),
    }


class Visits:
    """Opens pages as first-time visitors, who share the browser's cache alone; fails on leaving if anything went wrong.

    `forgiven` lists texts allowed in the console; `look` is the default window.
    """

    free: ClassVar[list[BrowserContext]] = []

    def __init__(self, browser: Browser, forgiven: list[str], look: dict[str, Any]):
        self.browser, self.forgiven, self.look = browser, forgiven, look
        self.wrong: list[str] = []
        self.pages: list[Page] = []

    def __call__(self, url: str, width: int = 0, height: int = 0, face: str = "custom") -> Page:
        context = (
            self.free.pop()
            if self.free
            else self.browser.new_context(color_scheme=self.look["theme"])
        )
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        self.pages.append(page)
        page.set_viewport_size(
            {"width": width or self.look["width"], "height": height or self.look["height"]}
        )
        page.goto("/".join([*url.split("/")[:3], "theme.css"]))
        page.evaluate(FIRST_VISIT, face)
        page.on("request", self._asked)
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.goto(url)
        expect(page.locator("#studio-status")).to_contain_text("Model:")
        return page

    def _said(self, kind: str, text: str) -> None:
        if kind == "error" and not any(allowed in text for allowed in self.forgiven):
            self.wrong.append(f"console: {text}")

    def _asked(self, request: Any) -> None:
        if not LOCAL.match(request.url):
            self.wrong.append(f"asked another machine: {request.url}")

    def __enter__(self) -> Visits:
        return self

    def __exit__(self, *_: object) -> None:
        for page in self.pages:
            context = page.context
            page.close()
            context.clear_permissions()
            context.clear_cookies()
            self.free.append(context)
        assert not self.wrong, self.wrong


@pytest.fixture
def forgiven() -> list[str]:
    """Return the texts allowed in the console; a test may add to it."""
    return [*FORGIVEN]


@pytest.fixture
def visit(
    browser: Browser, forgiven: list[str], look: dict[str, Any]
) -> Iterator[Callable[..., Page]]:
    with Visits(browser, forgiven, look) as visit:
        yield visit


# --- the studio as people start it --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def studio(tiny: Path) -> Iterator[str]:
    """Start the studio of tests/page/held.py on the random checkpoint in its own process; return its address.

    tests/engine/test_music.py hears the shipped engine; here two steps must be enough for a sound.
    """
    environ = {**os.environ, "GRADIO_SERVER_NAME": "127.0.0.1"}
    environ |= {"ACE_STUDIO_PLANNER": "random", "ACE_STUDIO_LYRICS": "random"}
    environ[held.BUILT_IN] = str(tiny)
    environ.pop("GRADIO_SERVER_PORT", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, *held.PROGRAM]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, text=True, **pipes)
    try:
        ready = process.stdout.readline()
        assert "ready at http" in ready, f"the studio did not start: {ready!r}"
        yield ready.split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=300)


# --- the page on a script -----------------------------------------------------------------------------------------

LYRICS = "[Verse]\nThe lamp goes round\n\n[Chorus]\nGood night, good night"
LINES = [
    {"start": 1.0, "end": 3.0, "text": "The <b>lamp</b> goes round"},
    {"start": 4.0, "end": 6.0, "text": "Good night, good night"},
]
LRC = "[00:01.00]The lamp goes round\n[00:04.00]Good night, good night\n"
LOUDNESS = (-14.0, -20.0, -8.0, -14.0)
SKETCHES = ("inspire", "polish", "describe")
SKETCH = {
    **{
        "prompt": "sea shanty, male choir",
        "lyrics": "[Verse]\nHeave away",
        "bpm": 96,
        "key": "D minor",
    },
    **{"time_signature": "3", "language": "en", "duration": 45},
}


# The status of a studio on the built-in engine, on a processor.
BUILT_IN = replace(
    UNKNOWN,
    engine="preview",
    model="preview",
    source="preview",
    device="cpu",
    device_reason="A test runs here.",
    dtype="float32",
    download_gb=11.5,
    memory_plans=model_memory.LADDERS["cpu"],
    planner=LanguageModelStatus("ready", "preview", "preview"),
    songwriter=SongwriterStatus("ready", "preview", "preview"),
    # The second one has the same tasks, so that no action chooses it by itself.
    song_models=(
        SongModelStatus("preview", "sft", "preview", "loaded", True, 0.04, {}),
        SongModelStatus("base", "sft", "org/stems", "ready", False, 11.5, {}),
    ),
    tasks=model_weights.task_support("preview"),
    timed_lyrics=TimedLyrics(available=True, reason=""),
    workers=(WorkerStatus(id="here", node="", pid=1, device="cpu", busy=False),),
)


def _hash_of(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class FakeBackend(Backend):
    """Plays `script`, a function from a request to events, and records the requests.

    The takes of its n-th song have the seeds 100 n, 100 n + 1 and so on, so that a test can tell songs apart.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.songs = 0
        self.reset()

    def reset(self) -> None:
        self.requests: list[Request] = []
        self.seconds, self.taken = 1, 0
        self.closed, self.prepared = threading.Event(), threading.Event()
        self.script: Callable[[Request], Iterator[Event]] = self.play
        self.facts: dict[str, Any] = {}  # overrides of the status
        self.models.prepare = self.prepared.set

    def status(self) -> Status:
        return replace(BUILT_IN, **self.facts)

    full_status = status

    def song_model(self, request: Request) -> model_weights.Weights:
        """Return the built-in engine, whatever is asked for: the page has models that are not here."""
        return self.models.weights

    def widths(self) -> None:
        """Return None: the model is not downloaded yet."""

    def stream(self, request: Request) -> Iterator[Event]:
        """Play the script; `closed` is set if it is closed early."""
        self.requests.append(request)
        self.songs += 1
        try:
            yield from self.script(request)
        except GeneratorExit:
            self.closed.set()
            raise

    def play(self, request: Request) -> Iterator[Event]:
        words = {"lyrics": self.lyrics, "align": self.align, **dict.fromkeys(SKETCHES, self.sketch)}
        return words.get(request.mode, self.song)(request)

    def lyrics(self, request: Request, text: str = LYRICS, end: str = "stop") -> Iterator[Event]:
        """Write `text` in two drafts, of 1 and 2 tokens; the end of the n-th run says 100 n, to tell runs apart."""
        yield Progress("loading")
        yield Draft(text[: len(text) // 2], 1)
        yield Draft(text, 2)
        yield Done(
            (),
            {
                "mode": "lyrics",
                "text": text,
                "tokens": 100 * self.songs,
                "end": end,
                "seed": 1,
                "model": {},
            },
        )

    def sketch(self, request: Request, **words: Any) -> Iterator[Event]:
        yield Progress("writing", 120)
        yield Done(
            (), {"mode": request.mode, "sketch": {**SKETCH, **words}, "seed": 1, "model": {}}
        )

    def song(self, request: Request, /, kind: str = "wav", **record: Any) -> Iterator[Event]:
        """Make takes of `seconds`, as loud as LOUDNESS says; `record` overrides their record."""
        yield Progress("steps", 1, 2, 0.5, 0.5)
        asked = request.model_dump(mode="json", include={"prompt", "lyrics", "bpm", "duration"})
        files, made = [], []
        for number, loudness in enumerate(LOUDNESS[: request.takes]):
            seed = 100 * self.songs + number
            path = self.folder / f"song-seed-{seed}.{kind}"
            tone = 0.3 * np.sin(np.arange(self.seconds * SAMPLE_RATE) * (0.03 + 0.007 * number))
            write_song(np.stack([tone, tone]).astype(np.float32), path, kind)
            facts = {
                "seed": seed,
                "name": path.name,
                "duration": float(self.seconds),
            }
            made.append({**facts, "peak_dbfs": -1.0, "loudness_lufs": loudness, "warnings": []})
            tag_file(path, path.stem, {"mode": "generate", "takes": made[-1:], "request": asked})
            made[-1]["sha256"] = _hash_of(path)
            files.append(
                processing_utils.save_file_to_cache(
                    path, cache_dir=gradio_utils.get_upload_folder()
                )
            )
        source = getattr(request, "source", None)
        uploads = (
            {"source": {"name": Path(source).name, "sha256": _hash_of(source)}} if source else {}
        )
        own = {
            "audio": uploads,
            "request": asked,
            "takes": made,
            "errors": [],
            "notes": [],
            "seconds": {"steps": 1.0},
        }
        yield Done(tuple(files), {"mode": request.mode, **own, **record})

    def align(self, request: Request) -> Iterator[Event]:
        yield Progress("aligning")
        yield Done((), {"mode": "align", "lines": LINES, "lrc": LRC, "score": 0.834, "seconds": {}})

    def fail(self, request: Request) -> Iterator[Event]:
        yield Failed(
            Problem("out_of_memory", "There was <b>no memory</b> left.", hint="Try fewer takes.")
        )

    def endless(self, request: Request | None = None) -> Iterator[Event]:
        """Stay at step 3 of 50 until closed, counting the events that were taken."""
        for self.taken in itertools.count():
            yield Progress("steps", 3, 50, 1.0, 19.0)
            time.sleep(0.05)

    download = endless


@pytest.fixture(scope="session")
def fake_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeBackend]]:
    import app

    backend = FakeBackend(takes.output_folder())
    demo = app.build_app(backend)
    backend.sessions = lambda: demo.state_holder
    yield app.launch(demo), backend
    demo.close()


@pytest.fixture
def fake(fake_address: tuple[str, FakeBackend]) -> Iterator[FakeBackend]:
    backend = fake_address[1]
    backend.reset()
    yield backend
    # A run outlives the page of its test.
    runs = runs_of(backend)
    for run in runs.active():
        runs.cancel(run.id)
    until(lambda: not runs.active())


@pytest.fixture(scope="module")
def lasting_page(
    fake_address: tuple[str, FakeBackend], browser: Browser, look: dict[str, Any]
) -> Iterator[Page]:
    """Open the page on the fake backend once for a file of tests, which restore what they change."""
    with Visits(browser, [*FORGIVEN], look) as visit:
        yield visit(fake_address[0])


@pytest.fixture
def lasting(lasting_page: Page, fake: FakeBackend, request: Any) -> Iterator[Page]:
    """Return the page of the whole file, reloaded if the test before failed."""
    if getattr(request.module, "used", False):
        lasting_page.reload()
    request.module.used = True
    yield lasting_page
    request.module.used = False


@pytest.fixture
def page(
    fake: FakeBackend, fake_address: tuple[str, FakeBackend], visit: Callable[..., Page]
) -> Page:
    """Open the page on the fake backend; a test that needs other facts sets them and reloads."""
    return visit(fake_address[0])


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Write three seconds of noise that grows louder."""
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(1).uniform(-0.2, 0.2, (3 * SAMPLE_RATE, 2))
    soundfile.write(
        path, noise * np.linspace(0.3, 1, len(noise))[:, None], SAMPLE_RATE, subtype="PCM_16"
    )
    return path


@pytest.fixture
def tab() -> type[Tab]:
    return Tab
