"""The command line: arguments become variables before anything reads them, and --check reports what would run."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants

import bootstrap
import cli
import model_hub
import model_memory
import models
import tooltips
from api import ENDPOINTS
from events import Problem, StudioError
from model_weights import (
    BUILT_IN,
    DEFAULT_MODEL,
    DEFAULT_PLANNER,
    DEFAULT_SONGWRITER,
    PLANNER_VARIABLE,
    UMBRELLA,
    Weights,
    find_planner,
    find_songwriter,
)
from tests.program import ROOT, free_port, python
from tests.unit.fake_hub import serving

EVERY = {
    **{"ACE_STUDIO_LYRICS": "off", "ACE_STUDIO_MODEL": "preview", "ACE_STUDIO_PLANNER": "random"},
    **{"ACE_STUDIO_OUTPUT": "songs", "ACE_STUDIO_RAY": "local", "GRADIO_MCP_SERVER": "true"},
    **{"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "8000", "GRADIO_SHARE": "true"},
}

# --- arguments ----------------------------------------------------------------------------------------------------


def test_every_argument_sets_its_variable_and_no_other(tmp_path):
    environ = {"ACE_STUDIO_PLANNER": "random", "GRADIO_SERVER_PORT": "1234"}
    before = dict(environ)
    assert cli.read_arguments([], environ).check is None and environ == before
    given = [
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
        "--share",
        "--model",
        "preview",
        "--lyrics",
        "off",
        "--mcp",
        "--media",
    ]
    cli.read_arguments([*given, "--output", str(tmp_path / "new" / "songs"), "--ray"], environ)
    assert environ == {**EVERY, "ACE_STUDIO_OUTPUT": str(tmp_path / "new" / "songs")}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("--host", value) for value in ("::1", "localhost")),
        ("--port", "65535"),
        *(("--model", value) for value in (DEFAULT_MODEL, str(ROOT))),
        *(("--planner", value) for value in ("ACE-Step/Ace-Step1.5/acestep-5Hz-lm-1.7B", "OFF")),
        ("--lyrics", DEFAULT_SONGWRITER),
        *(("--ray", value) for value in ("auto", "10.0.0.1:6379")),
    ],
)
def test_a_valid_value_is_accepted(name, given):
    environ: dict[str, str] = {}
    cli.read_arguments([name, given], environ)
    assert [value.lower() for value in environ.values()] == [given.lower()]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        *(("port", value, tooltips.CLI_PORT) for value in ("0", "65536", "80.5", "٣٤")),
        *(
            ("host", value, tooltips.CLI_HOST)
            for value in ("http://studio", "127.0.0.1:7860", "999.0.0.1", "")
        ),
        *(("model", value, tooltips.CLI_MODEL) for value in ("", "off", "just-a-name", "a/b/c")),
        ("model", "./nowhere", tooltips.CLI_NO_FOLDER),
        ("planner", "~/nowhere-at-all", tooltips.CLI_NO_FOLDER),
        ("lyrics", "Qwen", tooltips.CLI_MODEL),
        ("ray", "head", tooltips.CLI_RAY),
        *(("output", value, tooltips.CLI_OUTPUT_FILE) for value in ("", "app.py", "app.py/songs")),
        ("outpu", "songs", "unrecognized arguments"),
    ],
)
def test_a_wrong_value_gets_a_sentence(capsys, monkeypatch, name, value, sentence):
    environ: dict[str, str] = {}
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        cli.read_arguments([f"--{name}", value], environ)
    assert ended.value.code == 2 and environ == {}
    said = " ".join(capsys.readouterr().err.split())
    assert sentence.partition("{")[0].strip() in said and value in said


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SystemExit):
        cli.read_arguments(["--output", str(tmp_path / "songs")], {})
    assert "cannot be written to" in capsys.readouterr().err


def test_the_help_names_every_argument_and_its_variable(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        cli.read_arguments(["--help"], {})
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for name in (
        "host",
        "port",
        "share",
        "model",
        "planner",
        "lyrics",
        "output",
        "mcp",
        "ray",
        "check",
    ):
        assert f"--{name}" in shown
    for words in (*EVERY, DEFAULT_MODEL, UMBRELLA, DEFAULT_SONGWRITER):
        assert words in "".join(shown.split())


def test_a_wrong_value_ends_the_program_with_status_2_before_anything_is_imported():
    ended = python("app.py", "--port", "many", PYTHONPROFILEIMPORTTIME="1")
    assert ended.returncode == 2
    assert 'not "many".' in ended.stderr and "Traceback" not in ended.stderr
    assert re.search(r"\| +argparse$", ended.stderr, re.MULTILINE)
    assert not re.search(r"\| +(gradio|huggingface_hub|torch)$", ended.stderr, re.MULTILINE)


@pytest.mark.slow
def test_the_studio_starts_as_the_arguments_say(tmp_path):
    port = str(free_port())
    arguments = [
        "--host",
        "::1",
        "--port",
        port,
        "--model",
        "preview",
        "--output",
        str(tmp_path),
        "--mcp",
    ]
    # The arguments win over these.
    environ = {**os.environ, "GRADIO_SERVER_PORT": "1", "ACE_STUDIO_MODEL": "nobody/nothing"}
    command = [sys.executable, "app.py", *arguments]
    studio = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        ready, mcp = studio.stdout.readline(), studio.stdout.readline()
        assert f"http://[::1]:{port}/" in ready
        assert mcp.strip().endswith(f"http://[::1]:{port}/gradio_api/mcp/")
        address = f"http://[::1]:{port}/gradio_api"
        facts = httpx.post(f"{address}/run/capabilities", json={"data": []}, timeout=300).json()[
            "data"
        ][0]
        assert facts["engine"] == "preview"
        assert (
            len(httpx.get(f"{address}/mcp/schema", timeout=300).json()) == len(ENDPOINTS) + 3
        )  # and capabilities
    finally:
        studio.terminate()
        studio.wait(300)


# --- --check ------------------------------------------------------------------------------------------------------


def weights(source: str, folder: Path | None = None, problem: Problem | None = None) -> Weights:
    engine = "preview" if source == "preview" else "xl"
    return Weights("org/song", folder, source, "", engine, problem, "org/song", "org/song")


def found(step, *given, name: str = "model") -> tuple[str, bool]:
    """Return what a step of the check says, and whether it stops a song."""
    return cli.finding(name, lambda: step(*given))


MISSING = Problem("weights_missing", "The model org/song is not on this machine.", hint="Fetch it.")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
def test_a_port_that_is_taken_is_called_so(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        other = socket.create_server((host.strip("[]"), 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with other:
        port = str(other.getsockname()[1])
        said = cli.why_not_listening(host, port)
        assert "another program uses it" in said and f"port {port}" in said


@pytest.mark.parametrize(
    ("host", "port", "code", "said"),
    [
        (
            "203.0.113.1",
            "7860",
            0,
            "not an address of this machine",
        ),  # TEST-NET-3, which nobody has
        ("2001:db8::1", "7860", 0, "not an address of this machine"),
        ("a..b", "7860", 0, "does not know the name"),
        ("127.0.0.1", "80", errno.EACCES, "1024 up"),
        ("127.0.0.1", "80", errno.EPERM, "1024 up"),
        ("::1", "7860", errno.EAFNOSUPPORT, "not an address of this machine"),
        ("127.0.0.1", "7860", errno.ENOBUFS, "buffer"),
        ("127.0.0.1", "", 0, "no free port"),
    ],
)
def test_each_reason_not_to_listen_has_a_sentence_of_its_own(monkeypatch, host, port, code, said):
    if code:

        def bind(*_):
            raise OSError(code, os.strerror(code))

        fake = type("Refusing", (socket.socket,), {"bind": bind})
        monkeypatch.setattr(cli.socket, "socket", fake)
    assert said in cli.why_not_listening(host, port)


def test_the_song_model_is_named_or_stops_a_song(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.safetensors").write_bytes(bytes(2_500_000))
    assert found(cli.model, weights("models", tmp_path), model_hub.PIPELINE) == (
        f"org/song, 2.5 MB, in {tmp_path}.",
        False,
    )
    assert found(cli.model, weights("none", problem=MISSING), model_hub.PIPELINE) == (
        MISSING.text(),
        True,
    )
    text, stops = found(cli.model, weights("preview", problem=MISSING), model_hub.PIPELINE)
    assert MISSING.message in text and "11.5 GB" in text and not stops


def test_the_hub_is_asked_for_the_size_of_a_download(monkeypatch):
    with serving(monkeypatch, "org/song", {}) as server:
        for sizes, words, expected in (
            (
                {
                    "model_index.json": 1_000,
                    "vae/config.json": 250_000_000,
                    "README": 7_000_000_000,
                },
                "0.3 GB",
                False,
            ),
            ({"model_index.json": 10**15}, "1000000.0 GB", True),
            ({"README": 1}, "model_index.json is missing there", True),
        ):
            server.files, server.sizes = dict.fromkeys(sizes, b""), sizes
            text, stops = found(cli.model, weights("hub"), model_hub.PIPELINE)
            assert words in text and stops == expected
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
        text, stops = found(cli.model, weights("hub"), model_hub.PIPELINE)
        assert "org/song" in text and "Error" in text and stops


@pytest.mark.parametrize("name", ["PLANNER", "LYRICS"])
def test_language_models_never_stop_a_song(monkeypatch, name):
    find, selection = (
        {"PLANNER": find_planner, "LYRICS": find_songwriter}[name],
        model_hub.language_model(""),
    )
    for value, words in (
        ("off", "=off"),
        ("random", tooltips.CHECK_BUILT_IN),
        ("nobody/nothing",) * 2,
        ("/no",) * 2,
    ):
        monkeypatch.setenv(f"ACE_STUDIO_{name}", value)
        text, stops = found(cli.model, find(), selection, name=name.lower())
        assert words in text and not stops
    monkeypatch.delenv("ACE_STUDIO_PLANNER", raising=False)
    monkeypatch.setitem(BUILT_IN, PLANNER_VARIABLE, Path("nowhere"))
    text, _ = found(cli.model, find_planner(), selection, name="planner")
    assert DEFAULT_PLANNER in text and f"{cli.PLANNER_GB} GB" in text


def test_too_little_memory_for_the_shortest_song_stops_it(monkeypatch):
    where = models.Device("cpu", "float32", "float32", "float32", "")
    monkeypatch.setattr(model_memory, "room_for_models", lambda kind: 10**12)
    text, stops = found(cli.memory_plan, weights("hub"), where, "everything resident")
    assert text.startswith("everything resident") and not stops
    monkeypatch.setattr(model_memory, "room_for_models", lambda kind: 10**9)
    text, stops = found(cli.memory_plan, weights("hub"), where, "one part of a model at a time")
    assert stops and "1.0 GB" in text


def test_a_planner_counts_for_the_plan_and_never_stops_a_song(monkeypatch):
    where = models.Device("cuda", "bfloat16", "bfloat16", "bfloat16", "")

    def said(room: int, planner: int) -> str:
        monkeypatch.setattr(model_memory, "room_for_models", lambda kind: room)
        text, stops = found(cli.memory_plan, weights("hub"), where, "everything", planner)
        assert not stops
        return text

    assert said(24 * 10**9, 4 * 10**9) != said(24 * 10**9, 0)
    assert "the planner does not fit" in said(7 * 10**9, 10**10)
    assert "planner" not in said(7 * 10**9, 0)


def test_an_output_folder_that_cannot_be_used_stops_a_song(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path))
    text, stops = found(cli.output)
    assert str(tmp_path) in text and not stops
    with monkeypatch.context() as patch:
        full = shutil.disk_usage(tmp_path)._replace(free=10**8)
        patch.setattr(shutil, "disk_usage", lambda _: full)
        text, stops = found(cli.output)
        assert "0.1 GB" in text and stops
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "file"))
    assert found(cli.output)[1]


def test_an_error_during_the_check_is_a_line_and_stops():
    text, stops = found(lambda: 1 / 0)
    assert stops and "ZeroDivisionError: division by zero" in text


@pytest.mark.slow
def test_check_reports_what_would_run_and_loads_nothing(tmp_path):
    checked = python("app.py", "--check", "--output", str(tmp_path / "songs"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    lines = {line[:15].strip(): line[15:] for line in checked.stdout.splitlines()}
    assert list(lines) == list(tooltips.CHECK_LABELS.values())
    assert lines["Device"].startswith(("cpu", "cuda", "mps"))
    assert lines["Result"] == tooltips.CHECK_GOOD_BUILT_IN


def test_a_check_that_finds_no_model_ends_with_status_1(monkeypatch, capsys):
    def missing() -> str:
        raise StudioError("weights_missing", "There is no model.")

    monkeypatch.setattr(bootstrap, "bootstrap", lambda: None)
    monkeypatch.setattr(cli, "steps", lambda: [("model", missing)])
    assert cli.check() == 1
    model = tooltips.CHECK_LABELS["model"]
    assert capsys.readouterr().out.split("\n")[:2] == [
        f"{model:<15}There is no model.",
        f"{tooltips.CHECK_LABELS['result']:<15}{tooltips.CHECK_BAD.format(names=model)}",
    ]
