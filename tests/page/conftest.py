"""A real Chromium on the real page: once on the built-in engine, once on a backend that plays what a test tells it.

Chromium is the one that ACE_STUDIO_CHROMIUM names, or the first one that is found; without one these tests are skipped.
Every request to another machine is refused and fails the test, and so does every error in the browser's console.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from gradio import processing_utils
from gradio import utils as gradio_utils
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import memory
import weights
from events import Done, Draft, Event, Failed, Problem, Progress
from limits import SAMPLE_RATE
from params import Request
from tests.program import ROOT
from tools import screenshots

# Nothing on another machine has an address.
FLAGS = [*screenshots.FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
LOCAL = re.compile(r"^(https?|wss?)://127\.0\.0\.1[:/]|^(data|blob|about):")

# Where the browser keeps which face of Generate is shown.
FACE = "ace-music-studio-face"
FORGIVEN = ("status of 422", "signal is aborted")

AS_NEW = """([name, face]) => {
  for (const storage of [localStorage, sessionStorage]) storage.clear();
  localStorage.setItem(name, face);
}"""

# A fact that is waited for may come late on a busy machine.
WAIT_MS = 90_000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Chromium, or skip with the reason."""
    path = screenshots.find_chromium()
    if not path:
        pytest.skip("no Chromium: install it, or name it in ACE_STUDIO_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def look(pytestconfig: pytest.Config) -> dict[str, Any]:
    """Return the window and the theme that --width and --theme ask for."""
    width = pytestconfig.getoption("width")
    return {"width": width, "height": 900 if width > 640 else 844, "theme": pytestconfig.getoption("theme")}


class Visits:
    """Opens addresses in a browser; at the end nothing may have gone wrong there.

    A visitor who has left lends the browser's cache to the next one, and nothing else: what they stored is cleared.
    `forgiven` has texts that may stand in the console; `look` is the window where a test asks for no other.
    """

    free: ClassVar[list[BrowserContext]] = []

    def __init__(self, browser: Browser, forgiven: list[str], look: dict[str, Any]):
        self.browser, self.forgiven, self.look = browser, forgiven, look
        self.wrong: list[str] = []
        self.pages: list[Page] = []

    def __call__(self, url: str, width: int = 0, height: int = 0, face: str = "custom") -> Page:
        """Open an address in a window of its own, as a visitor who has not been here."""
        context = self.free.pop() if self.free else self.browser.new_context(color_scheme=self.look["theme"])
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        self.pages.append(page)
        page.set_viewport_size({"width": width or self.look["width"], "height": height or self.look["height"]})
        page.goto("/".join([*url.split("/")[:3], "theme.css"]))
        page.evaluate(AS_NEW, [FACE, face])
        page.on("request", self._asked)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.goto(url)
        expect(page.locator("#studio-status")).to_contain_text("Model:")
        return page

    def _said(self, message: Any) -> None:
        if message.type == "error" and not any(text in message.text for text in self.forgiven):
            self.wrong.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not LOCAL.match(request.url):
            self.wrong.append(f"asked another machine: {request.url}")

    def leave(self) -> None:
        """Close every window, and fail where something went wrong in one of them."""
        for page in self.pages:
            context = page.context
            page.close()
            context.clear_permissions()
            context.clear_cookies()
            self.free.append(context)
        assert not self.wrong, self.wrong


@contextlib.contextmanager
def visitor(browser: Browser, forgiven: list[str], look: dict[str, Any]) -> Iterator[Visits]:
    """Lend visits, and end them."""
    visits = Visits(browser, forgiven, look)
    yield visits
    visits.leave()


@pytest.fixture
def forgiven() -> list[str]:
    """Return what may stand in the console; a test may add to it.

    Chromium notes a wrong field (HTTP 422) by itself, and Gradio the stream that a reload cuts.
    """
    return [*FORGIVEN]


@pytest.fixture
def visit(browser: Browser, forgiven: list[str], look: dict[str, Any]) -> Iterator[Callable[..., Page]]:
    """Return the function that opens an address, for one test."""
    with visitor(browser, forgiven, look) as visit:
        yield visit


# --- the studio as people start it --------------------------------------------------------------------------------


# The shipped engine is heard in tests/engine/test_music.py; here two steps have to be enough for a sound.
RANDOM = "import pathlib, preview; preview.TRAINED = pathlib.Path('nothing'); import app; app.main()"
# The modules of the page that ask for the backend.
ASKING = ("app", "page_panels", "page_settings", "page_runs")


@pytest.fixture(scope="session")
def studio() -> Iterator[str]:
    """Start the studio on the random checkpoint in a process of its own; return its address.

    In the tests' process the songs would wait for the browser's driver, and it for them.
    """
    environ = {**os.environ, "GRADIO_SERVER_NAME": "127.0.0.1"}
    environ |= {"ACE_STUDIO_PLANNER": "preview", "ACE_STUDIO_LYRICS": "preview"}
    environ.pop("GRADIO_SERVER_PORT", None)
    command = [sys.executable, "-c", RANDOM]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        ready = process.stdout.readline()
        assert "ready at http" in ready, f"the studio did not start: {ready!r}"
        yield ready.split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=20)


# --- the page alone -----------------------------------------------------------------------------------------------


LYRICS = "[Verse]\nThe lamp goes round\n\n[Chorus]\nGood night, good night"
SKETCHES = ("inspire", "polish", "describe")
SKETCH = {
    **{"prompt": "sea shanty, male choir", "lyrics": "[Verse]\nHeave away", "bpm": 96, "key": "D minor"},
    **{"time_signature": "3", "language": "en", "duration": 45},
}


class FakeBackend:
    """Plays `script`, a function from a request to events, and keeps what it was asked.

    The takes of its n-th song have the seeds 100 n, 100 n + 1 and so on, so that a test knows its song on the page.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.songs = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything, and make songs of one second at once."""
        self.requests: list[Request] = []
        self.closed, self.prepared = threading.Event(), threading.Event()
        self.script: Callable[[Request], Iterator[Event]] = self.play
        self.facts: dict[str, Any] = {}
        self.models = SimpleNamespace(prepare=self.prepared.set)

    def status(self) -> dict[str, Any]:
        """Return the status of a built-in engine, but for `facts`."""
        return {
            **{"engine": "preview", "model": "preview", "revision": "", "source": "preview", "loaded": True},
            **{"device": "cpu", "device_reason": "A test runs here.", "dtype": "float32"},
            **{"kind": "sft", "turbo": False},
            **{"problem": None, "wanted": "org/model", "download_gb": 11.5},
            **{name: {"state": "ready", "model": "preview", "problem": None} for name in ("planner", "lyrics")},
            "tasks": weights.task_support("preview"),
            "unsupported": {},
            "timed_lyrics": {"available": True, "reason": ""},
            "memory_plans": memory.LADDERS["cpu"],
            "workers": [{"id": "here", "node": "", "pid": 1, "device": "cpu", "busy": False}],
            **self.facts,
        }

    def full_status(self) -> dict[str, Any]:
        """Return the status: the device is known at once."""
        return self.status()

    def stream(self, request: Request) -> Iterator[Event]:
        """Play the script; `closed` is set when it is closed before its end."""
        self.requests.append(request)
        self.songs += 1
        try:
            yield from self.script(request)
        except GeneratorExit:
            self.closed.set()
            raise

    def download(self) -> Iterator[Event]:
        """Download nothing, for as long as somebody waits."""
        yield from self.endless(None)

    def play(self, request: Request) -> Iterator[Event]:
        """Do what the request asks for."""
        return {"lyrics": self.lyrics, **dict.fromkeys(SKETCHES, self.sketch)}.get(request.mode, self.song)(request)

    def lyrics(self, request: Request, text: str = LYRICS, end: str = "stop") -> Iterator[Event]:
        """Write `text`, a line at a time; the n-th run says that it took 100 n tokens."""
        yield Progress("loading")
        lines = text.split("\n")
        for count in range(1, len(lines) + 1):
            yield Draft("\n".join(lines[:count]), count)
            time.sleep(0.02)
        yield Done((), {"mode": "lyrics", "text": text, "tokens": 100 * self.songs, "end": end, "seed": 1, "model": {}})

    def sketch(self, request: Request, **words: Any) -> Iterator[Event]:
        """Write the same sketch for everything, but for `words`."""
        yield Progress("writing", 120)
        yield Done((), {"mode": request.mode, "sketch": {**SKETCH, **words}, "seed": 1, "model": {}})

    def song(self, request: Request, /, **record: Any) -> Iterator[Event]:
        """Make every take of the request, with `record` over what the record says."""
        yield Progress("steps", 1, 2, 0.5, 0.5)
        files, takes = [], []
        for seed in range(100 * self.songs, 100 * self.songs + request.takes):
            path = self.folder / f"song-seed-{seed}.wav"
            tone = 0.3 * np.sin(np.arange(SAMPLE_RATE) * 2 * np.pi * 220 / SAMPLE_RATE)
            soundfile.write(path, np.stack([tone, tone], axis=1), SAMPLE_RATE, subtype="PCM_24")
            files.append(processing_utils.save_file_to_cache(path, cache_dir=gradio_utils.get_upload_folder()))
            facts = {"seed": seed, "name": path.name, "sha256": "0" * 64, "duration": 1.0}
            takes.append({**facts, "peak_dbfs": -1.0, "loudness_lufs": -14.0, "warnings": []})
        words = {"request": {"prompt": request.prompt}, "takes": takes, "errors": [], "notes": []}
        yield Done(tuple(files), {"mode": "generate", **words, "seconds": {"steps": 1.0}, **record})

    def fail(self, request: Request) -> Iterator[Event]:
        """End without a song."""
        yield Failed(Problem("out_of_memory", "There was <b>no memory</b> left.", hint="Try fewer takes."))

    def endless(self, request: Request | None) -> Iterator[Event]:
        """Be at step 3 of 50 until somebody closes it."""
        while True:
            yield Progress("steps", 3, 50, 1.0, 19.0)
            time.sleep(0.05)


@pytest.fixture(scope="session")
def fake_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeBackend]]:
    """Serve the page on a fake backend from this process."""
    import app

    backend = FakeBackend(tmp_path_factory.mktemp("fake"))
    with pytest.MonkeyPatch.context() as patch:
        for module in ASKING:
            patch.setattr(f"{module}.get_backend", lambda: backend)
        demo = app.build_app()
        yield app.launch(demo), backend
        demo.close()


@pytest.fixture
def fake(fake_address: tuple[str, FakeBackend]) -> FakeBackend:
    """Return the fake backend, as new."""
    fake_address[1].reset()
    return fake_address[1]


@pytest.fixture(scope="module")
def lasting_page(fake_address: tuple[str, FakeBackend], browser: Browser, look: dict[str, Any]) -> Iterator[Page]:
    """Open the page on the fake backend for a whole file of tests that put back what they change."""
    with visitor(browser, [*FORGIVEN], look) as visit:
        yield visit(fake_address[0])


@pytest.fixture
def lasting(lasting_page: Page, fake: FakeBackend, request: Any) -> Iterator[Page]:
    """Return a page that keeps what earlier tests put into it; anew after a test that failed half-way."""
    if getattr(request.module, "used", False):
        lasting_page.reload()
    request.module.used = True
    yield lasting_page
    request.module.used = False


@pytest.fixture
def page(fake: FakeBackend, fake_address: tuple[str, FakeBackend], visit: Callable[..., Page]) -> Page:
    """Open the page on the fake backend; a test that wants other facts sets them and reloads."""
    return visit(fake_address[0])


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Write a song of three seconds: 48 kHz, stereo, 16 bit, no two seconds alike."""
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(1).uniform(-0.2, 0.2, (3 * SAMPLE_RATE, 2))
    soundfile.write(path, noise * np.linspace(0.3, 1, len(noise))[:, None], SAMPLE_RATE, subtype="PCM_16")
    return path


@pytest.fixture
def tab() -> type:
    """Return the class that opens a tab of a page: `tab(page, "cover")`."""
    from tests.page.steps import Tab

    return Tab
