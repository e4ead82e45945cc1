"""docs/clients.md against a running studio: every snippet runs."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from tests.program import ROOT

TEXT = (ROOT / "docs" / "clients.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
RATE = 48_000
MADE = ("task.wav", "chat.wav")


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
    if "run.sh" in code:
        pytest.skip("the command line and the daemon have tests of their own")
    noise = np.random.default_rng(1).standard_normal((3 * RATE, 2)) * 0.05
    soundfile.write(tmp_path / "demo.wav", noise, RATE)
    code = code.replace("http://127.0.0.1:7860", mcp_server)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    for name in MADE:
        if name in code:
            info = soundfile.info(tmp_path / name)
            assert (info.frames, info.samplerate) == (10 * RATE, RATE)
