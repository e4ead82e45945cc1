"""docs/clients.md against a running studio: every snippet runs."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests.program import ROOT

TEXT = (ROOT / "docs" / "clients.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
RATE = 48_000
SECONDS = 10  # of the shortest song
# How long the files are that the snippets write.
MADE = dict.fromkeys(("task.wav", "chat.wav", "song.flac", "cover.mp3", "edited.wav"), SECONDS)
MADE["longer.wav"] = SECONDS + 10


def routes() -> set[str]:
    """Return the routes that the studio describes."""
    from api_official import APIRouter, Official, _add_routes
    from backend import get_backend

    router = APIRouter()
    _add_routes(router, Official(get_backend(), None))
    return {route.path for route in router.routes if route.include_in_schema}


def test_there_is_an_example_of_every_call():
    for path in routes():
        assert re.sub(r"\{\w+\}", "$task", path) in TEXT or path == "/v1/audio", path


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_snippets_run(mcp_server, tmp_path, code):
    if not (shutil.which("curl") and shutil.which("jq")):
        pytest.skip("curl or jq is not installed")
    noise = np.random.default_rng(1).standard_normal((3 * RATE, 2)) * 0.05
    soundfile.write(tmp_path / "demo.wav", noise, RATE)
    code = code.replace("http://127.0.0.1:7860", mcp_server)
    # run.sh sets everything up, and then does this; the command line finds the studio by its port.
    code = code.replace("./run.sh", f"{sys.executable} {ROOT / 'app.py'}")
    code = code.replace("--duration 30", f"--duration {SECONDS}")
    # How it sounds is nothing to this test.
    code = re.sub(r"(app\.py (?:make|cover|extend|edit)) ", r"\1 --steps 2 ", code)
    # Random weights find no end.
    code = code.replace("--out words.txt", "--max-tokens 16 --out words.txt")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "GRADIO_SERVER_PORT": mcp_server.rpartition(":")[2]},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    for name, seconds in MADE.items():
        if name in code:
            info = soundfile.info(tmp_path / name)
            assert info.samplerate == RATE
            assert info.frames == pytest.approx(seconds * RATE, abs=RATE // 10)  # of an MP3
    if "--record song.json" in code:
        assert json.loads((tmp_path / "song.json").read_text())["takes"]
        assert (tmp_path / "words.txt").read_text().strip()
        assert done.stdout.split() == ["song.flac", "cover.mp3", "longer.wav", "edited.wav"]
    if "--daemon" in code:
        (answer,) = map(json.loads, done.stdout.splitlines())
        assert answer["result"]["backends"][0]["status"] == "ready"
