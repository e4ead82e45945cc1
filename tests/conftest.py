"""For every test: an environment of its own, without network, and the tiny checkpoints.

The environment is set while this file is imported, before gradio, huggingface_hub or torch read it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gradio import Blocks

_HOME = Path(tempfile.mkdtemp(prefix="ace-studio-tests-"))
(_HOME / "certificates").mkdir()
os.environ.update(
    {
        "ACE_STUDIO_MODEL": "preview",
        "ACE_STUDIO_OUTPUT": str(_HOME / "output"),
        # tests/engine/test_selfcheck.py switches it on.
        "ACE_STUDIO_SELFCHECK": "off",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(_HOME / "page"),
        "HF_HOME": str(_HOME / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        # Nothing here speaks TLS, and httpx would read 150 certificates for each request.
        "SSL_CERT_DIR": str(_HOME / "certificates"),
        # Large tensors get whole pages of their own: in glibc's heap they leave holes, half a gigabyte after few songs.
        "THP_MEM_ALLOC_ENABLE": "1",
    }
)
if _worker := os.environ.get("PYTEST_XDIST_WORKER", ""):
    # Workers share the cores, and gradio looks for a free port before it takes it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
_UNSET = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "SPACES_ZERO_GPU", "SSL_CERT_FILE")
for _name in _UNSET:
    os.environ.pop(_name, None)

from tests.visits import browser, forgiven, look, tab, visit  # noqa: E402, F401 (fixtures)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")
    parser.addoption(
        "--width", type=int, default=1280, help="pixels of the window that page tests open (1280)"
    )
    parser.addoption(
        "--theme",
        choices=("light", "dark"),
        default="light",
        help="the browser's theme in page tests",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Keep the garbage collector away while the tests and what they import are loaded, all of which stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The page tests go first.
    items.sort(key=lambda item: item.path.parent.name != "page")
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; pytest --slow runs it"))


_file_of_tests: Path | None = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before each file of tests, put what is in use out of the garbage collector's sight.

    The studio calls the collector whenever it unloads a model. Beside gradio, torch and transformers each call would
    take half a second, and there are hundreds.
    """
    global _file_of_tests
    if item.path != _file_of_tests:
        _file_of_tests = item.path
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_built_in_songwriter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the built-in songwriter: with its packages installed it would replace a missing songwriter."""
    monkeypatch.setattr("lyrics_small.missing", lambda: "the tests do without it")


# --- the memory of each worker, for the log -----------------------------------------------------------------------

_peaks: list[int] = []
_trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    # glibc keeps what songs of many lengths leave, and fits little else into it.
    _trim(0)


def _peak_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # pytest looks for garbage twice more.
    gc.freeze()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_mb"] = _peak_mb()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # A worker that crashed sent none.
    _peaks.append(getattr(node, "workeroutput", {}).get("peak_mb", 0))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(
        f"Peak memory of a test process: {max(_peaks, default=_peak_mb()):,} MB"
    )


@pytest.fixture(scope="session", autouse=True)
def ports() -> None:
    """Give each worker's servers ports of their own."""
    if _worker:
        from gradio import http_server

        http_server.INITIAL_PORT_VALUE = 7860 + 200 * (1 + int(_worker.removeprefix("gw")))


@pytest.fixture(scope="session")
def served_page(ports: None, tiny: Path) -> Iterator[Blocks]:
    """The page and the API on random weights, served from this process."""
    import app

    demo = app.build_app()
    app.launch(demo)
    yield demo
    demo.close()


@pytest.fixture(scope="session")
def server(served_page: Blocks) -> str:
    """The address of `served_page`."""
    return served_page.local_url.rstrip("/")


@pytest.fixture(scope="session")
def tiny(random_weights: Path) -> Path:
    """The folder of the 2B-shaped tiny checkpoint with random weights."""
    from tools.random_models import make_checkpoint

    return make_checkpoint(random_weights)


@pytest.fixture(scope="session", autouse=True)
def random_weights() -> Iterator[Path]:
    """Make the built-in engine of this process the folder of a random one, which is smaller than the trained one."""
    import model_weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model_weights.BUILT_IN, model_weights.MODEL_VARIABLE, _HOME / "random")
        # Songs are planned where a test asks for it: its engine's codes mean nothing.
        patch.setitem(model_weights.BUILT_IN, model_weights.PLANNER_VARIABLE, _HOME / "none")
        yield _HOME / "random"


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tools.random_models import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-xl-sft", xl=True)


@pytest.fixture(scope="session")
def pipe(tiny: Path) -> Any:
    """The pipeline of the 2B-shaped checkpoint on the CPU in float32; tests leave it as they found it."""
    return _pipeline(tiny)


@pytest.fixture(scope="session")
def pipe_xl(tiny_xl: Path) -> Any:
    return _pipeline(tiny_xl)


def _pipeline(folder: Path) -> Any:
    import models
    from tests.weights import CPU, weights_in

    return models.build_pipeline(weights_in(folder), CPU)
