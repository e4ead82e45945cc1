"""docs/api.md against a running studio: every snippet runs, and what it promises about errors and endpoints is so."""

import json
import os
import re
import shutil
import subprocess
import sys

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client
from gradio_client.exceptions import AppError, ValidationError

import app
import backend
import endpoints
from tests.program import ROOT

TEXT = (ROOT / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
RATE = 48_000
SECONDS = 3
# How long the files that the snippets write or print are, by what is in the name or the call.
LENGTHS = {"song.wav": 10, "cover.wav": SECONDS, "longer.wav": SECONDS + 3, "edited.wav": SECONDS}
MADE = {"/generate": {10, 12.5}, "/cover": {SECONDS}, "/extend": {SECONDS + 3}, "/edit": {SECONDS}}


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_MCP_SERVER", "true")
        for name in ("ACE_STUDIO_PLANNER", "ACE_STUDIO_LYRICS"):
            patch.setenv(name, "preview")
        backend.get_backend().refresh()
        demo = app.build_app()
        yield app.launch(demo).rstrip("/")
        demo.close()
    backend.get_backend().refresh()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    client = Client(server, verbose=False, analytics_enabled=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield client
    client.close()


def test_every_endpoint_is_shown_in_all_three_ways():
    python = [code for language, code in BLOCKS if language == "python"]
    (mcp,) = [code for code in python if "ClientSession" in code]
    shell = "".join(code for language, code in BLOCKS if language == "bash")
    for name in (*endpoints.ENDPOINTS, "capabilities"):
        assert any(f'api_name="/{name}"' in code for code in python), name
        assert f'"{name}"' in mcp, name
        assert re.search(rf"(song|call/v2/|run/) ?{name}\b", shell), name


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)])
def test_the_snippets_run(server, tmp_path, language, code):
    if language == "bash" and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    noise = np.random.default_rng(1).standard_normal((SECONDS * RATE, 2)) * 0.05
    for name in ("voice.wav", "demo.wav"):
        soundfile.write(tmp_path / name, noise, RATE)
    program = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    env = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": str(tmp_path / "downloads")}
    code = code.replace("http://127.0.0.1:7860", server)
    done = subprocess.run([*program, code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for name in LENGTHS.keys() & set(re.findall(r"\w+\.wav", code)):
        info = soundfile.info(tmp_path / name)
        assert (info.frames, info.samplerate) == (LENGTHS[name] * RATE, RATE), name
    printed = re.findall(r"/\S+\.(?:wav|flac)", done.stdout)
    for endpoint in set(re.findall(r'api_name="(/\w+)"', code)) & MADE.keys():
        assert len(printed) == (4 if "morph" in code else 1)
        assert {soundfile.info(path).duration for path in printed} <= MADE[endpoint]
    if "capabilities" in code and "/lyrics" not in code:
        assert "preview" in done.stdout
    if "lyrics" in code:
        assert done.stdout.strip()


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_wrong_value_is_the_first_kind(server, client):
    wrong = {"prompt": "x", "options": {"steps": 0}}
    with pytest.raises(ValidationError, match=r"- options: options\.steps: "):
        client.predict(**wrong, api_name="/generate")
    answer = httpx.post(f"{server}/gradio_api/call/v2/generate", json=wrong)
    assert answer.status_code == 422
    bad = [one for one in answer.json()["detail"] if not one["is_valid"]]
    assert [one["parameter_name"] for one in bad] == ["options"]
    assert "from 1 to 200" in bad[0]["message"]


@pytest.mark.slow
def test_everything_else_is_the_second_kind(server, client, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "file" / "songs"))
    fast = {"prompt": "x", "duration": 10, "options": {"steps": 1, "plan": False}}
    with pytest.raises(AppError) as caught:
        client.predict(**fast, api_name="/generate")
    assert caught.value.title == "disk"
    event = httpx.post(f"{server}/gradio_api/call/v2/generate", json=fast).json()["event_id"]
    heard = httpx.get(f"{server}/gradio_api/call/v2/generate/{event}", timeout=60).text
    said = json.loads(re.search(r"^event: error\ndata: (.*)$", heard, re.MULTILINE)[1])
    assert said["title"] == "disk"
    assert "output folder" in said["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": "x", "reference": {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}}, 400),
        ({"prompt": "x", "wobble": 1}, 500),
        ({}, 500),
    ],
)
def test_what_gradio_answers_by_itself_is_as_the_document_says(server, body, status):
    assert f"{status} for a" in TEXT
    assert httpx.post(f"{server}/gradio_api/call/v2/generate", json=body).status_code == status


def test_the_codes_that_the_document_names_exist():
    code = "".join(path.read_text() for path in ROOT.glob("*.py"))
    named = re.search(r"Its title is a code \((.*?) and others\)", TEXT, re.DOTALL)[1]
    for name in re.findall(r"`(\w+)`", named):
        assert f'"{name}"' in code, name
