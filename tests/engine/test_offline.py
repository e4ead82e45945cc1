"""The studio without a network: a copy of the program with its models beside it, every way outside closed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import soundfile
from gradio_client import Client

import model_weights
from model_weights import DEFAULT_MODEL, DEFAULT_PLANNER, DEFAULT_SONGWRITER, SUBFOLDER, UMBRELLA
from tests.program import ROOT, free_port
from tests.weights import PLANNER, SONGWRITER
from tools.random_models import make_checkpoint

# Runs before anything else in the studio's Python: whatever is asked of another machine is written down and refused.
GUARD = """
import os, socket, sys

def hook(event, args):
    if event in ("socket.connect", "socket.sendto") and args[0].family != socket.AF_UNIX:
        host = str(args[1][0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0].decode() if isinstance(args[0], bytes) else args[0]
    else:
        return
    if host and host not in ("localhost", "0.0.0.0", "::", "::1") and not host.startswith("127."):
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{host}\\n")
        raise OSError(101, "Network is unreachable")

sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def carried(tmp_path_factory) -> Path:
    """Copy the program, and put tiny models where the real ones are carried to."""
    folder = tmp_path_factory.mktemp("carried") / "studio"
    folder.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("assets", "presets", "static"):
        shutil.copytree(ROOT / name, folder / name)
    make_checkpoint(folder / "models" / DEFAULT_MODEL, xl=True)
    shutil.copytree(PLANNER, folder / "models" / DEFAULT_PLANNER)
    shutil.copytree(SONGWRITER, folder / "models" / DEFAULT_SONGWRITER)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Return a bare environment: no cache, no settings, no word of being offline."""
    home = tmp_path_factory.mktemp("home")
    (home / "guard").mkdir()
    (home / "guard" / "sitecustomize.py").write_text(GUARD)
    ours = ("ACE_STUDIO_", "HF_", "HUGGINGFACE_", "GRADIO_", "SPACES_")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(ours) and "proxy" not in key.lower()
    }
    own = {
        "HOME": str(home),
        "GUARD_LOG": str(home / "asked.log"),
        "PYTHONPATH": str(home / "guard"),
    }
    return {**kept, **own, "GRADIO_TEMP_DIR": str(home / "page")}


@pytest.fixture(scope="module")
def studio(carried, environment) -> Iterator[str]:
    """Start it and return its address."""
    command = [sys.executable, "app.py", "--port", port := str(free_port())]
    started = subprocess.Popen(
        command, cwd=carried, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert f":{port}/" in started.stdout.readline()
    yield f"http://127.0.0.1:{port}"
    started.terminate()
    started.wait(300)


def asked(environment) -> str:
    """Return what was asked of other machines."""
    log = Path(environment["GUARD_LOG"])
    return log.read_text() if log.exists() else ""


def test_the_guard_writes_down_what_is_asked_outside(environment, tmp_path):
    environment = {**environment, "GUARD_LOG": str(tmp_path / "asked.log")}
    call = "import socket; socket.{}"
    for code in ("create_connection(('192.0.2.1', 80), 1)", "socket().connect(('192.0.2.2', 80))"):
        command = [sys.executable, "-c", call.format(code)]
        assert (
            b"unreachable" in subprocess.run(command, env=environment, capture_output=True).stderr
        )
    assert asked(environment) == "192.0.2.1\n192.0.2.2\n"


@pytest.mark.slow
def test_a_planned_song_and_lyrics_are_made_without_a_network(studio, environment, tmp_path):
    client = Client(studio, verbose=False, analytics_enabled=False, download_files=tmp_path)
    facts = client.predict(api_name="/capabilities")
    assert (facts["engine"], facts["model"], facts["problem"]) == ("xl", DEFAULT_MODEL, None)
    given = {"prompt": "calm piano", "duration": 10, "seed": 7, "options": {"steps": 2}}
    (path,), record = client.predict(**given, api_name="/generate")
    assert soundfile.info(path).frames == 10 * 48_000
    assert record["model"]["id"] == DEFAULT_MODEL
    assert record["plan"]["used"] is True
    assert client.predict("a lighthouse", options={"max_tokens": 16}, api_name="/lyrics").strip()
    client.close()
    assert asked(environment) == ""


@pytest.mark.slow
def test_the_page_comes_without_a_network(studio, environment):
    page = httpx.get(studio, timeout=300)
    assert page.status_code == 200
    # What the page would load from elsewhere; a link to click is no such thing.
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', page.text)
    assert [url for url in loaded if not url.startswith(studio)] == []
    assert asked(environment) == ""


@pytest.mark.slow
def test_the_check_names_the_folders_that_were_carried(carried, environment):
    command = [sys.executable, "app.py", "--check"]
    told = subprocess.run(
        command, cwd=carried, env=environment, capture_output=True, text=True, timeout=800
    )
    assert told.returncode == 0, told.stdout + told.stderr
    for folder in (DEFAULT_MODEL, DEFAULT_PLANNER, DEFAULT_SONGWRITER):
        assert str(carried / "models" / folder) in told.stdout
    assert told.stdout.splitlines()[-1].endswith("A song can be made here.")
    assert asked(environment) == ""


def test_the_document_carries_every_model_to_where_it_is_looked_for():
    text = (ROOT / "docs" / "offline.md").read_text()
    carried = dict(re.findall(r"hf download (\S+) .*--local-dir models/(\S+)$", text, re.MULTILINE))
    assert carried == {name: name for name in (DEFAULT_MODEL, UMBRELLA, DEFAULT_SONGWRITER)}
    assert f'"{SUBFOLDER}/*"' in text
    assert model_weights.DEFAULT_MLX_SONGWRITER in text
