"""Fixtures of the engine's tests: the one backend, language models that end early, a client of the API."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio_client.client
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file

import app
import backend
import planner
import planner_decoding
from model_weights import CHECKPOINTS
from tests.engine.calls import FAST, RATE, SECONDS, TASKS
from tools.random_models import make_relative

ON = {"ACE_STUDIO_PLANNER": "random", "ACE_STUDIO_LYRICS": "random"}


@pytest.fixture(scope="session", autouse=True)
def made(tiny: Path) -> None:
    """Make sure the random song model exists before a test loads it."""


@pytest.fixture(scope="session")
def shelf(tiny_xl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with the three checkpoints: turbo has the VAE of SFT, base another one."""
    folder = tmp_path_factory.mktemp("shelf")
    for kind, repo in CHECKPOINTS.items():
        place = folder / repo
        place.parent.mkdir(exist_ok=True)
        if kind == "sft":
            place.symlink_to(tiny_xl)
        else:
            make_relative(place, tiny_xl, kind)
    return folder


@pytest.fixture(scope="session")
def studio() -> backend.Backend:
    """The backend that all tests of a process share."""
    return backend.get_backend()


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The songs' folder, which the first song makes."""
    folder = tmp_path / "songs"
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(folder))
    return folder


# --- language models ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pipeline() -> Any:
    return backend.get_backend().models.pipeline()


@pytest.fixture
def make_studio(monkeypatch: pytest.MonkeyPatch, pipeline: Any) -> Callable[..., backend.Backend]:
    """Return a function that replaces the one backend by a fresh one with these variables and the built pipeline."""

    def make(built: bool = True, **variables: str) -> backend.Backend:
        for name, value in {**ON, **variables}.items():
            monkeypatch.setenv(name, value)
        fresh = backend.Backend()
        fresh.models._pipe = pipeline if built else None
        monkeypatch.setattr(backend, "_backend", fresh)
        return fresh

    return make


@pytest.fixture(scope="session")
def studio_with_words(pipeline: Any) -> backend.Backend:
    """A backend with both language models loaded and the shared pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ON.items():
            patch.setenv(name, value)
        fresh = backend.Backend()
    fresh.models._pipe = pipeline
    fresh.models.planner.get()
    fresh.models.lyrics.get()
    return fresh


@pytest.fixture
def writing(studio_with_words: backend.Backend, monkeypatch: pytest.MonkeyPatch) -> backend.Backend:
    """Make the backend with both language models the shared one."""
    monkeypatch.setattr(backend, "_backend", studio_with_words)
    return studio_with_words


@pytest.fixture
def brief_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit captions and lyrics: a random model hardly ever ends them itself."""
    monkeypatch.setattr(planner_decoding, "MAX_CAPTION_TOKENS", 30)
    monkeypatch.setattr(planner, "MAX_LYRIC_TOKENS", 30)


@pytest.fixture
def no_language_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_weights.MODELS_FOLDER", tmp_path / "models")


# --- the API ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let gradio_client keep to a folder of the tests: it leaves an empty one for each file that it downloads."""
    folder = tmp_path_factory.mktemp("gradio_client")
    own = SimpleNamespace(**vars(tempfile))
    own.gettempdir = lambda: str(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradio_client.client, "tempfile", own)
        yield


@pytest.fixture(scope="session")
def client(server, tmp_path_factory) -> Iterator[Client]:
    client = Client(
        server,
        verbose=False,
        analytics_enabled=False,
        download_files=tmp_path_factory.mktemp("downloads"),
    )
    yield client
    client.close()


@pytest.fixture(scope="module")
def mcp_server() -> Iterator[str]:
    """Serve the API as MCP tools too, with both language models."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ON, "GRADIO_MCP_SERVER": "true"}.items():
            patch.setenv(name, value)
        backend.get_backend().models.refresh()
        demo = app.build_app()
        yield app.launch(demo).rstrip("/")
        demo.close()
    backend.get_backend().models.refresh()


@pytest.fixture
def caller(server) -> Iterator[Client]:
    """A client to cancel calls with; cancelling closes the stream that all its calls share."""
    client = Client(server, verbose=False, analytics_enabled=False)
    yield client
    client.close()


@pytest.fixture(scope="session")
def generate(client) -> Callable[..., Any]:
    """Return a function that makes a song, by default 10 s in two steps."""

    def call(prompt="calm piano", **given):
        options = {**FAST, **given.pop("options", {})}
        return client.predict(
            prompt, options=options, api_name="/generate", **{"duration": 10, "seed": 7, **given}
        )

    call()  # loads the model
    return call


@pytest.fixture(scope="session")
def tune() -> np.ndarray:
    """Three quiet seconds of a chord with a little noise, int16 [n, 2]."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (220.0, 277.2, 329.6)) / 30
    noise = np.random.default_rng(1).standard_normal((time.size, 2)) * 0.005
    return np.round((chord[:, None] + noise) * 2**15).astype(np.int16)


@pytest.fixture
def source(tune, tmp_path) -> Any:
    soundfile.write(tmp_path / "tune.wav", tune, RATE, subtype="PCM_16")
    return handle_file(str(tmp_path / "tune.wav"))


@pytest.fixture(scope="session")
def work(client, generate) -> Callable[..., Any]:
    """Return a function that runs a task of `TASKS`, by default in two steps."""

    def call(task, source, **given):
        endpoint, own = TASKS[task]
        options = {**FAST, **own.get("options", {}), **given.pop("options", {})}
        values = {"prompt": "calm piano", "seed": 7, **own, **given, "options": options}
        return client.predict(source=source, **values, api_name=endpoint)

    return call
