"""What the page is served by: the studio on random weights, or a fake backend that plays a script."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from gradio import processing_utils
from gradio import utils as gradio_utils
from playwright.sync_api import Browser, Page

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
from tests.program import ROOT
from tests.visits import FORGIVEN, Visits
from tests.waiting import until

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
        self.pause = 0.2  # between the events of a run that has no end, which the page draws
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
            time.sleep(self.pause)

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
    with Visits(browser, [*FORGIVEN], look, alter=True) as visit:
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
