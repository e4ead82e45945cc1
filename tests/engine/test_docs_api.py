"""docs/api.md against a running studio: every snippet runs."""

import contextlib
import io
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from tests.program import ROOT

TEXT = (ROOT / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
RATE = 48_000
SECONDS = 3
# How long the files that the snippets write or print are, by what is in the name or the call.
LENGTHS = {"song.wav": 10, "cover.wav": SECONDS, "longer.wav": SECONDS + 3, "edited.wav": SECONDS}
MADE = {"/generate": {10, 12.5}, "/cover": {SECONDS}, "/extend": {SECONDS + 3}, "/edit": {SECONDS}}


def printed_by_python(code):
    """Run a program with nothing but its own names; a process of its own would only import the same client again.

    It has a thread of its own, in which no loop of a browser runs.
    """
    printed = io.StringIO()
    program = compile(code, "docs/api.md", "exec")
    with contextlib.redirect_stdout(printed), ThreadPoolExecutor(1) as thread:
        thread.submit(exec, program, {"__name__": "__main__"}).result()
    return printed.getvalue()


def printed_by_bash(code):
    command = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "code"), BLOCKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)]
)
def test_the_snippets_run(mcp_server, tmp_path, monkeypatch, language, code):
    if language == "bash" and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    noise = np.random.default_rng(1).standard_normal((SECONDS * RATE, 2)) * 0.05
    for name in ("voice.wav", "demo.wav"):
        soundfile.write(tmp_path / name, noise, RATE)
    monkeypatch.chdir(tmp_path)
    code = code.replace("http://127.0.0.1:7860", mcp_server)
    text = printed_by_python(code) if language == "python" else printed_by_bash(code)
    for name in LENGTHS.keys() & set(re.findall(r"\w+\.wav", code)):
        info = soundfile.info(tmp_path / name)
        assert (info.frames, info.samplerate) == (LENGTHS[name] * RATE, RATE), name
    files = re.findall(r"/\S+\.(?:wav|flac)", text)
    for endpoint in set(re.findall(r'api_name="(/\w+)"', code)) & MADE.keys():
        if "detach" in code:  # the run's id comes back at once
            continue
        assert len(files) == (4 if "morph" in code else 1)
        assert {soundfile.info(path).duration for path in files} <= MADE[endpoint]
    if "capabilities" in code and "/lyrics" not in code:
        assert "preview" in text
    if "lyrics" in code:
        assert text.strip()
