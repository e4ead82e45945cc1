"""What stays private on a shared machine, and what a studio that was killed leaves: gone at the next start."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

import pytest

import bootstrap
import jobs
import takes
from params import parse_request, settle


@pytest.fixture
def temporary(monkeypatch, tmp_path_factory):
    """Be a process that has no folder yet, on a machine whose temporary folder is empty and everybody's."""
    # pytest's own folder, which it makes when a test first asks, must not lie in that one.
    tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(jobs, "_process", None)
        yield Path(folder)


def job():
    request = parse_request("generate", {"prompt": "calm piano"})
    return jobs.job_for(request, settle(request, "sft"))


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_nobody_else_looks_into_uploads_and_jobs(temporary):
    environ: dict[str, str] = {}
    old = os.umask(0)
    try:
        bootstrap.bootstrap(environ)
        with job() as one:
            assert [mode(folder) for folder in (environ["GRADIO_TEMP_DIR"], one.folder)] == [
                0o700,
                0o700,
            ]
            assert {mode(folder) for folder in temporary.iterdir()} == {0o700}
    finally:
        os.umask(old)


@pytest.mark.parametrize("how", ["a folder", "a link to a folder"])
def test_a_name_that_another_account_has_taken_is_left_to_it(temporary, tmp_path, monkeypatch, how):
    mine = os.getuid()
    taken = temporary / f"ace-music-studio-jobs-{mine + 1}"
    if how == "a folder":
        taken.mkdir()
    else:
        taken.symlink_to(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with job() as one:
        assert Path(one.folder).is_relative_to(temporary) and not list(taken.iterdir())


def test_the_next_start_removes_the_jobs_of_a_dead_process_alone(temporary):
    with job() as one:
        root = bootstrap.private_folder("jobs")
        dead = root / "0123456789abcdef" / "job"
        dead.mkdir(parents=True)
        (dead / "running").touch()
        dead.parent.with_suffix(".lock").touch()
        jobs.sweep()
        assert not dead.parent.exists() and not dead.parent.with_suffix(".lock").exists()
        assert one.running.exists()


def test_the_next_start_removes_half_and_empty_songs_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path))
    old = (
        "calm-piano-seed-7.wav",
        ".0123456789abcdef.part",
        "notes.txt",
        ".hidden.part",
        "whole-seed-1.wav",
    )
    for name in (*old, ".fedcba9876543210.part"):
        (tmp_path / name).touch()
    (tmp_path / "whole-seed-1.wav").write_bytes(b"RIFF")
    for name in old:
        os.utime(tmp_path / name, (time.time() - 100,) * 2)
    takes.sweep_songs()
    # One that was touched just now may be in the making.
    kept = {"notes.txt", ".hidden.part", "whole-seed-1.wav", ".fedcba9876543210.part"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_no_job_begins_once_the_studio_is_being_stopped(temporary, monkeypatch):
    with job() as one:
        monkeypatch.setattr(jobs._stopping, "is_set", lambda: True)
        with pytest.raises(jobs.StudioError, match="being stopped"), job():
            pass
        monkeypatch.undo()
        assert one.running.exists()
