"""The command line: arguments become variables before anything reads them, and --check reports what would run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants

import cli
import memory
import models
import tooltips
from api import ENDPOINTS
from events import Problem, StudioError
from tests.program import ROOT, free_port, python
from tests.unit.fake_hub import serving
from weights import DEFAULT_MODEL, DEFAULT_WRITER, UMBRELLA, Weights


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    """Run app.py as from a terminal."""
    return python(str(ROOT / "app.py"), *arguments, **environ)


# --- arguments ----------------------------------------------------------------------------------------------------


def test_every_argument_sets_its_variable(tmp_path):
    environ = {"ACE_STUDIO_PLANNER": "preview", "GRADIO_SERVER_PORT": "1234"}
    given = ["--host", "0.0.0.0", "--port", "8000", "--share", "--model", "preview", "--lyrics", "off", "--mcp"]
    cli.read_arguments([*given, "--output", str(tmp_path / "new" / "songs")], environ)
    assert environ == {
        "ACE_STUDIO_LYRICS": "off",
        "ACE_STUDIO_MODEL": "preview",
        "ACE_STUDIO_OUTPUT": str(tmp_path / "new" / "songs"),
        "ACE_STUDIO_PLANNER": "preview",
        "GRADIO_MCP_SERVER": "true",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": "8000",
        "GRADIO_SHARE": "true",
    }
    assert not (tmp_path / "new").exists()


def test_without_arguments_nothing_changes():
    environ = {"GRADIO_SERVER_PORT": "1234"}
    assert cli.read_arguments([], environ).check is None
    assert environ == {"GRADIO_SERVER_PORT": "1234"}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("--host", "::1"),
        ("--host", "localhost"),
        ("--port", "65535"),
        ("--model", "ACE-Step/acestep-v15-xl-sft-diffusers"),
        ("--model", str(ROOT)),
        ("--planner", "ACE-Step/Ace-Step1.5/acestep-5Hz-lm-1.7B"),
        ("--planner", "OFF"),
        ("--lyrics", "Qwen/Qwen2.5-7B-Instruct"),
    ],
)
def test_a_valid_value_is_accepted(name, given):
    environ: dict[str, str] = {}
    cli.read_arguments([name, given], environ)
    assert [value.lower() for value in environ.values()] == [given.lower()]


WRONG = [
    (("--port", "0"), 'A port is a whole number from 1 to 65535, not "0".'),
    (("--port", "65536"), 'not "65536".'),
    (("--port", "-1"), "--port"),
    (("--port", "80.5"), 'not "80.5".'),
    (("--port", "٣٤"), "whole number"),
    (("--host", "http://studio"), "without http:// and port"),
    (("--host", "127.0.0.1:7860"), "without http:// and port"),
    (("--host", "999.0.0.1"), "IP address"),
    (("--host", ""), "IP address"),
    (("--model", ""), "a folder, or preview"),
    (("--model", "off"), "a folder, or preview"),
    (("--model", "just-a-name"), 'not "just-a-name".'),
    (("--model", "a/b/c"), 'not "a/b/c".'),
    (("--model", "./nowhere"), "There is no folder ./nowhere."),
    (("--planner", "~/nowhere-at-all"), "There is no folder ~/nowhere-at-all."),
    (("--lyrics", "Qwen"), "preview or off"),
    (("--output", ""), "is a file, not a folder"),
    (("--output", str(ROOT / "app.py")), "app.py is a file, not a folder."),
    (("--output", str(ROOT / "app.py" / "songs")), "app.py is a file, not a folder."),
    (("--outpu", "songs"), "unrecognized arguments"),
    (("songs",), "unrecognized arguments: songs"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_a_wrong_value_gets_a_sentence(capsys, arguments, sentence):
    environ: dict[str, str] = {}
    with pytest.raises(SystemExit) as ended:
        cli.read_arguments(arguments, environ)
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert environ == {}


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SystemExit):
        cli.read_arguments(["--output", str(tmp_path / "songs")], {})
    assert "cannot be written to" in capsys.readouterr().err


def test_the_help_names_every_argument_and_its_variable():
    shown = run("--help", COLUMNS="100")
    assert shown.returncode == 0
    for name in (*cli.VARIABLES, "check"):
        assert f"--{name}" in shown.stdout
    unwrapped = "".join(shown.stdout.split())
    for words in (*cli.VARIABLES.values(), DEFAULT_MODEL, UMBRELLA, DEFAULT_WRITER):
        assert words in unwrapped


def test_a_wrong_value_ends_the_program_with_status_2_before_anything_is_imported():
    ended = run("--port", "many", PYTHONPROFILEIMPORTTIME="1")
    assert ended.returncode == 2
    assert 'not "many".' in ended.stderr
    assert "Traceback" not in ended.stderr
    assert re.search(r"\| +argparse$", ended.stderr, re.MULTILINE)
    assert not re.search(r"\| +(gradio|huggingface_hub|torch)$", ended.stderr, re.MULTILINE)


@pytest.mark.slow
def test_the_studio_starts_as_the_arguments_say(tmp_path):
    port, songs = free_port(), tmp_path / "songs"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--model", "preview", "--output", str(songs), "--mcp"]
    # The arguments win over these.
    environ = {**os.environ, "GRADIO_SERVER_PORT": "1", "ACE_STUDIO_MODEL": "nobody/nothing"}
    studio = subprocess.Popen(
        [sys.executable, "app.py", *arguments], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        ready, mcp = studio.stdout.readline(), studio.stdout.readline()
        assert f"http://127.0.0.1:{port}/" in ready
        assert mcp.strip().endswith(f"http://127.0.0.1:{port}/gradio_api/mcp/")
        address = f"http://127.0.0.1:{port}/gradio_api"
        facts = httpx.post(f"{address}/run/capabilities", json={"data": []}, timeout=60).json()["data"][0]
        assert facts["engine"] == "preview"
        assert len(httpx.get(f"{address}/mcp/schema").json()) == len(ENDPOINTS) + 1  # and capabilities
    finally:
        studio.terminate()
        studio.wait(20)


# --- --check ------------------------------------------------------------------------------------------------------


def weights(source: str, folder: Path | None = None, problem: Problem | None = None) -> Weights:
    engine = "preview" if source == "preview" else "xl"
    return Weights("org/song", folder, source, "", engine, problem, "org/song")


MISSING = Problem("weights_missing", "The model org/song is not on this machine.", hint="Fetch it.")


def test_the_song_model_is_named_or_stops_a_song(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.safetensors").write_bytes(bytes(2_500_000))
    found = cli.song_model(weights("models", tmp_path))
    assert found.text == f"org/song, 2.5 MB, in {tmp_path}." and not found.stops
    found = cli.song_model(weights("preview", problem=MISSING))
    assert not found.stops
    assert all(words in found.text for words in ("simple instrumental music", MISSING.message, "11.5 GB"))
    found = cli.song_model(weights("none", problem=MISSING))
    assert found.stops and MISSING.message in found.text


@pytest.fixture
def hub_of(monkeypatch):
    """Return a function that makes a hub on this machine hold files of the given sizes."""
    with serving(monkeypatch, "org/song", {}) as server:

        def hold(sizes: dict[str, int]) -> None:
            server.files, server.sizes = dict.fromkeys(sizes, b""), sizes

        yield hold


def test_the_hub_is_asked_for_the_size_of_a_download(hub_of, monkeypatch):
    hub_of({"model_index.json": 1_000, "vae/config.json": 250_000_000, "README": 7_000_000_000})
    found = cli.song_model(weights("hub"))
    assert "will be fetched" in found.text and "0.3 GB" in found.text and not found.stops
    hub_of({"model_index.json": 10**15})
    found = cli.song_model(weights("hub"))
    assert "1000000.0 GB are to be fetched" in found.text and found.stops
    hub_of({"README": 1})
    found = cli.song_model(weights("hub"))
    assert "model_index.json is missing there" in found.text and found.stops
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    found = cli.song_model(weights("hub"))
    assert "could not be asked" in found.text and found.stops


@pytest.mark.parametrize(
    ("variable", "look"), [("ACE_STUDIO_PLANNER", cli.planner), ("ACE_STUDIO_LYRICS", cli.lyrics_writer)]
)
def test_language_models_never_stop_a_song(monkeypatch, variable, look):
    named = {"off": "switched off", "preview": "built-in engine", "nobody/nothing": "nobody/nothing", "/no": "/no"}
    for value, words in named.items():
        monkeypatch.setenv(variable, value)
        found = look()
        assert words in found.text and not found.stops


def test_the_missing_planner_is_named_with_its_size(monkeypatch):
    monkeypatch.delenv("ACE_STUDIO_PLANNER", raising=False)
    found = cli.planner()
    assert "not on this machine" in found.text and f"{cli.PLANNER_GB} GB" in found.text


def test_too_little_memory_for_the_shortest_song_stops_it(monkeypatch):
    where = models.Device("cpu", "float32", "float32", "float32", "")
    monkeypatch.setattr(memory, "room_for_models", lambda kind: 10**12)
    found = cli.memory_plan(weights("hub"), where, "everything resident")
    assert found.text.startswith("everything resident; the shortest song takes ") and not found.stops
    monkeypatch.setattr(memory, "room_for_models", lambda kind: 10**9)
    found = cli.memory_plan(weights("hub"), where, "one part of a model at a time")
    assert found.stops and "1.0 GB" in found.text


def test_an_output_folder_that_cannot_be_used_stops_a_song(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path))
    found = cli.output()
    assert str(tmp_path) in found.text and "free" in found.text and not found.stops
    with monkeypatch.context() as patch:
        full = shutil.disk_usage(tmp_path)._replace(free=10**8)
        patch.setattr(shutil, "disk_usage", lambda _: full)
        found = cli.output()
        assert "0.1 GB free" in found.text and found.stops
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "file"))
    found = cli.output()
    assert found.stops


def test_an_error_during_the_check_is_a_line_and_stops():
    def broken():
        raise StudioError("odd", "Something odd.")

    found = cli.tried("cache", broken)
    assert found.stops and "could not be checked" in found.text
    verdict = cli.verdict_of([cli.Finding("model", "Gone.", True), found])
    assert verdict.stops and verdict.text.endswith("see Song model, Model cache.")


@pytest.mark.slow
def test_check_reports_what_would_run_and_loads_nothing(tmp_path):
    checked = run("--check", "--output", str(tmp_path / "songs"), ACE_STUDIO_CACHE=str(tmp_path / "cache"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    lines = {line[:15].strip(): line[15:] for line in checked.stdout.splitlines()}
    assert list(lines) == list(tooltips.CHECK_LABELS.values())
    assert lines["Device"].startswith(("cpu", "cuda", "mps"))
    assert "built-in engine" in lines["Result"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_check_fails_if_no_song_could_be_made():
    checked = run("--check", "--model", "nobody/nothing")
    assert checked.returncode == 1
    assert "A song could not be made here: see " in checked.stdout and "Song model." in checked.stdout.splitlines()[-1]
    assert "Traceback" not in checked.stderr
