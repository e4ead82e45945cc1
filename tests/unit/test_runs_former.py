"""A song of an earlier process comes back from its files: takes, record, and a request that names what is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audio_export
import runs_former
import runs_journal
from events import InvalidRequest, StudioError
from limits import SAMPLE_RATE
from params import check_audio, parse_request
from runs import Runs
from tests.files import tag_file, write_song

RUN = "a" * 32
OPTIONS: dict[str, Any] = {"steps": 8, "loras": []}
REQUEST: dict[str, Any] = {"prompt": "a waltz", "lyrics": "la", "takes": 3, "options": OPTIONS}


@pytest.fixture
def all_runs(tmp_path: Path) -> Runs:
    return Runs(lambda asked: iter(()), lambda asked: 1.0, runs_journal.Journal(lambda: tmp_path))


def record(mode: str = "generate", **changed: Any) -> dict[str, Any]:
    return {
        "mode": mode,
        "request": {**REQUEST, **changed.pop("request", {})},
        "audio": {},
        "seconds": {"steps": 2.0},
        "notes": [],
        "errors": [],
        **changed,
    }


def leave(folder: Path, seeds: list[int], made: dict[str, Any], kind: str = "wav") -> list[Path]:
    """Write the takes of a run and its entry in the journal."""
    paths = []
    for seed in seeds:
        path = folder / f"a-waltz-seed-{seed}.{kind}"
        tone = 0.1 * np.sin(np.arange(SAMPLE_RATE) * 0.01 * seed).astype(np.float32)
        write_song(np.stack([tone, tone]), path, kind)
        tag_file(path, path.stem, {**made, "takes": [{"seed": seed, "duration": 1.0}]})
        paths.append(path)
    names = tuple(path.name for path in paths)
    entry = runs_journal.Entry(made["mode"], "an earlier process", "finished", names)
    runs_journal.Journal(lambda: folder).write(RUN, entry)
    return paths


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_the_takes_that_are_left_come_back_with_their_numbers_and_records(all_runs, tmp_path, kind):
    made = record(request={"options": {**OPTIONS, "format": kind}})
    first, second, third = leave(tmp_path, [7, 8, 9], made, kind)
    second.unlink()
    former = runs_former.song_of(all_runs, RUN)
    assert former is not None and former.numbers == (1, 3)
    assert [take["seed"] for take in former.done.record["takes"]] == [7, 9]
    assert [take["name"] for take in former.done.record["takes"]] == [first.name, third.name]
    for copy, path in zip(former.done.files, (first, third), strict=True):
        assert Path(copy).read_bytes() == path.read_bytes() and Path(copy).parent != path.parent
        assert all_runs.take(RUN, former.numbers[former.done.files.index(copy)]) == path
    assert former.request == parse_request("generate", made["request"])


def test_what_was_uploaded_is_named_when_the_song_is_made_again(all_runs, tmp_path):
    made = record(
        "cover",
        request={"options": {"loras": [{"source": "upload", "weight": 0.5}]}},
        audio={"source": {"name": "mine.wav"}, "reference": {"name": "../other.wav"}},
    )
    leave(tmp_path, [7], made)
    request = runs_former.song_of(all_runs, RUN).request
    with pytest.raises(InvalidRequest, match="The file was not found") as caught:
        check_audio(request)
    assert [problem.field for problem in caught.value.problems] == ["source", "reference"]
    lora = Path(request.options.loras[0].source)
    assert lora.is_absolute() and not lora.exists() and request.options.loras[0].weight == 0.5
    assert Path(request.source).name == "mine.wav" and Path(request.reference).name == "other.wav"


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"takes": []},
        {"takes": "x"},
        {"mode": "lyrics", "request": {}, "audio": {}, "takes": [{}]},
        record("generate", request={"bpm": 10_000}, takes=[{"seed": 1}]),
        record("generate", audio={"reference": 5}, takes=[{"seed": 1}]),
        record("unheard of", takes=[{"seed": 1}]),
        {**record(), "request": None, "takes": [{"seed": 1}]},
    ],
)
def test_a_file_that_somebody_put_there_is_no_song_of_the_run(all_runs, tmp_path, strange):
    (path,) = leave(tmp_path, [7], record())
    tag_file(path, path.stem, strange)
    assert audio_export.read_record(path) == strange
    assert runs_former.song_of(all_runs, RUN) is None


def test_a_take_whose_record_is_strange_costs_no_other(all_runs, tmp_path):
    first, second = leave(tmp_path, [7, 8], record())
    tag_file(first, first.stem, {**record(), "takes": ["x"]})
    former = runs_former.song_of(all_runs, RUN)
    assert former.numbers == (2,) and len(former.done.files) == 1
    assert Path(former.done.files[0]).name == second.name


def test_a_run_that_left_nothing_has_no_song(all_runs, tmp_path):
    assert runs_former.song_of(all_runs, RUN) is None
    (path,) = leave(tmp_path, [7], record())
    path.write_bytes(b"RIFF")
    assert runs_former.song_of(all_runs, RUN) is None
    path.unlink()
    assert runs_former.song_of(all_runs, RUN) is None


@pytest.mark.parametrize(
    "entry",
    [
        "[" * 100_000,
        "{}",
        '{"mode": "generate", "process": "a", "state": "finished", "songs": [1]}',
        '{"mode": {}, "process": "a", "state": "finished", "songs": []}',
        '{"mode": "generate", "process": "a", "state": "failed", "songs": [], "problem": {"code": []}}',
        '{"mode": "generate", "process": "a", "state": "failed", "songs": [], "problem": "x"}',
        '{"mode": "generate", "process": "a", "state": "finished", "songs": []}' + " " * 200_000,
    ],
)
def test_a_journal_that_somebody_changed_is_as_good_as_none(all_runs, tmp_path, entry):
    (tmp_path / runs_journal.FOLDER).mkdir()
    (tmp_path / runs_journal.FOLDER / f"{RUN}.json").write_text(entry)
    with pytest.raises(StudioError) as caught:
        all_runs.facts(RUN)
    assert caught.value.problem.code == "no_run"
    with pytest.raises(StudioError):
        all_runs.take(RUN, 1)


def test_a_song_that_became_a_link_is_not_served(all_runs, tmp_path):
    journal = runs_journal.Journal(lambda: tmp_path)
    journal.write(RUN, runs_journal.Entry("generate", "a", "finished", songs=("a.wav",)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("secret")
    (tmp_path / "a.wav").symlink_to(elsewhere)
    with pytest.raises(StudioError) as caught:
        all_runs.take(RUN, 1)
    assert caught.value.problem.code == "no_take"
