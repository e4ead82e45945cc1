"""Songs from the command line, by the process itself and by a running studio: files, record, statuses, sentences."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

import cli_make
from events import Progress
from params import REQUESTS, options_type

QUICK = ["--steps", "2", "--no-plan"]
SHORT = ["calm piano", "--duration", "10", "--seed", "7", *QUICK]


@pytest.fixture
def here(output, tmp_path, monkeypatch):
    """A folder to write into; no studio is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "1")
    return tmp_path


def test_every_parameter_and_option_has_an_argument():
    for command, mode in cli_make.COMMANDS.items():
        names = {action.dest for action in cli_make.parser_of(command)._actions}
        request = REQUESTS[mode]
        fields = {*request.model_fields, *options_type(request).model_fields} - {"options"}
        assert fields <= names, command
        assert cli_make.parser_of(command).format_help()


def test_a_song_and_its_record_are_written_where_they_were_asked_for(here, capsys):
    out = here / "made" / "song.flac"
    record = here / "record.json"
    assert cli_make.run(["make", *SHORT, "--out", str(out), "--record", str(record)]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    info = soundfile.info(out)
    assert (info.duration, info.format) == (10, "FLAC")
    written = json.loads(record.read_text())
    assert written["seeds"] == [7] and written["request"]["options"]["steps"] == 2
    assert [path.name for path in out.parent.iterdir()] == ["song.flac"]


def test_a_running_studio_makes_it(here, server, capsys, monkeypatch):
    monkeypatch.setattr(cli_make, "local", None)
    time = np.arange(3 * 48_000) / 48_000
    soundfile.write(here / "demo.wav", 0.1 * np.sin(2 * np.pi * 220 * time), 48_000)
    files = ["--source", "demo.wav", "--out", "longer.wav"]
    asked = ["extend", "piano", *files, "--after", "2", "--overlap", "1", "--steps", "2"]
    assert cli_make.run([*asked, "--url", server]) == 0
    assert soundfile.info(here / "longer.wav").duration == 5
    takes = ["make", *SHORT, "--takes", "2", "--out", "both.mp3", "--url", server]
    assert cli_make.run(takes) == 0
    assert capsys.readouterr().out.split() == ["longer.wav", "both-1.mp3", "both-2.mp3"]
    assert (
        cli_make.run(["make", "x", "--loudness", "-40", "--url", server])
        == cli_make.STATUS_WRONG_VALUE
    )


def test_a_file_that_a_running_studio_refuses_is_its_sentence(here, server, capsys):
    (here / "words.wav").write_text("not audio")
    local = cli_make.run(["cover", "x", "--source", "words.wav", "--out", "x.wav"])
    said = capsys.readouterr().err
    remote = ["cover", "x", "--source", "words.wav", "--out", "x.wav", "--url", server]
    assert cli_make.run(remote) == local == cli_make.STATUS_FAILED
    sentence = "source: This is a text file, not audio."
    for text in (said, capsys.readouterr().err):
        assert text.removeprefix("The ").startswith(sentence) and "AIFF" in text
    assert not (here / "x.wav").exists()


def test_what_is_wrong_is_a_sentence_and_a_status(here, capsys):
    for arguments, status, words in (
        (["make", "x", "--duration", "5"], 2, "Length must be from 10 to 600"),
        (["make", "x", "--bpm", "fast"], 2, "BPM must be"),
        (["make"], 2, "Prompt is empty"),
        (["make", "x", "--wobble"], 2, "unrecognized arguments"),
        (["make", "--lyrics", "@none.txt"], 2, "none.txt cannot be read"),
        (["cover", "x"], 2, "Source is missing"),
        (["cover", "x", "--source", "none.wav"], 2, "none.wav cannot be read"),
        (["make", "x", "--url", "http://127.0.0.1:1"], 1, "No studio answers"),
    ):
        assert cli_make.run(arguments) == status, arguments
        said = capsys.readouterr()
        assert words.lower() in said.err.lower() and not said.out, (arguments, said.err)


def test_progress_is_told_on_a_terminal_alone_and_an_interruption_cancels(
    here, capsys, monkeypatch
):
    closed = []

    def interrupted(request):
        try:
            yield Progress("steps", 1, 4)
            raise KeyboardInterrupt
        finally:
            closed.append(request.prompt)

    monkeypatch.setattr(cli_make, "local", interrupted)
    for terminal, extra, told in ((True, [], True), (False, [], False), (True, ["--quiet"], False)):
        monkeypatch.setattr("sys.stderr.isatty", lambda is_one=terminal: is_one)
        assert cli_make.run(["make", *SHORT, *extra]) == cli_make.STATUS_INTERRUPTED == 130
        said = capsys.readouterr()
        assert ("1 of 4" in said.err) is told and "Interrupted." in said.err and not said.out
    assert closed == ["calm piano"] * 3
    assert list(here.glob("*.*")) == []


def test_values_are_read_as_the_api_has_them():
    given = cli_make.parser_of("edit").parse_args(
        ["x", "--regions", "1-2", "3-4.5", "--loras", "org/repo=0.5", "org/other", "--bpm", "90"]
    )
    values = cli_make.values_of("edit", given)
    assert values["regions"] == [[1, 2], [3, 4.5]] and values["bpm"] == 90
    loras = [{"source": "org/repo", "weight": 0.5}, {"source": "org/other"}]
    assert values["options"]["loras"] == loras
    given = cli_make.parser_of("make").parse_args(["x", "--duration", "auto", "--no-plan"])
    values = cli_make.values_of("generate", given)
    assert values["duration"] is None and values["options"] == {"plan": False}


@pytest.mark.slow
def test_lyrics_are_printed(here, writing, capsys):
    assert cli_make.run(["lyrics", "a lighthouse", "--max-tokens", "16", "--seed", "1"]) == 0
    assert capsys.readouterr().out.strip()
