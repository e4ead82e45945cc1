"""Old songs leave the output folder: by age, by size, oldest first, and nothing that the studio did not make there."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

import audio_export
import takes
from tests.files import tag_file, write_song


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in (takes.KEEP_DAYS, takes.KEEP_GB, "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "songs"))
    (tmp_path / "songs").mkdir()
    return tmp_path / "songs"


def song(
    folder: Path, days: float, seed: int = 7, name: str = "", kind: str = "wav", **record
) -> Path:
    """Write a song of the studio that is `days` old, under its own name or another."""
    made = {
        "mode": "generate",
        "request": {"prompt": "calm piano"},
        "takes": [{"seed": seed}],
        **record,
    }
    path = folder / (
        name or audio_export.file_name(made["request"]["prompt"], seed, kind, made["mode"])
    )
    write_song(np.zeros((2, 480), np.float32), path, kind)
    tag_file(path, "a song", made)
    return aged(path, days)


def aged(path: Path, days: float) -> Path:
    at = time.time() - days * 86_400
    os.utime(path, (at, at))
    return path


def left(folder: Path, made=()) -> set[str]:
    takes.prune(made)
    return {path.name for path in folder.iterdir()}


def test_old_songs_go_by_every_name_that_the_studio_gives_unless_that_is_off(folder, monkeypatch):
    young = song(folder, 29, 2)
    song(folder, 31, 7)
    song(folder, 31, 7, name="calm-piano-seed-7-2.wav")
    song(folder, 31, 8, mode="cover")
    song(folder, 31, 9, mode="extend", request={"prompt": ""})
    song(folder, 31, 10, request={"prompt": "x seed-3 夜の <b>song</b>"})
    song(folder, 31, 11, kind="mp3")
    with monkeypatch.context() as patch:
        patch.setenv(takes.KEEP_DAYS, "off")
        assert len(left(folder)) == 7
    assert left(folder) == {young.name}


def test_what_the_studio_did_not_make_there_stays(folder, tmp_path):
    song(folder, 99, name="my favourite.wav")
    song(folder, 99, 7, name="calm-piano-seed-8.wav")
    song(folder, 99, 11, takes=["none"])
    (folder / "notes-on-calm-piano.wav").touch()
    write_song(np.zeros((2, 480), np.float32), folder / "holiday-seed-7.wav", "wav")
    elsewhere = song(tmp_path, 99, 12)
    (folder / "calm-piano-seed-12.wav").symlink_to(elsewhere)
    (folder / "calm-piano-seed-13.wav").mkdir()
    inside = song(folder / "calm-piano-seed-13.wav", 99, 14)
    names = {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        if path.is_file():
            aged(path, 99)
    assert left(folder) == names
    assert elsewhere.exists() and inside.exists()


def test_the_oldest_go_until_the_rest_fits_but_never_a_foreign_file_or_what_was_just_made(
    folder, monkeypatch
):
    foreign = song(folder, 9, name="mine-seed-7.wav")
    songs = [song(folder, days, days) for days in (4, 3, 2, 1)]
    size = songs[0].stat().st_size
    monkeypatch.setenv(takes.KEEP_GB, str(2.5 * size / 1e9))
    # The foreign file takes no other song along.
    assert left(folder) == {foreign.name, *(path.name for path in songs[2:])}
    monkeypatch.setenv(takes.KEEP_GB, "0.000000001")
    for _ in range(2):
        assert left(folder, songs[3:]) == {foreign.name, songs[3].name}


@pytest.mark.parametrize(
    ("days", "gb", "space", "expected"),
    [
        ("", "", False, (30, 20)),
        ("", "", True, (1, 2)),
        ("off", "OFF", True, (math.inf, math.inf)),
        ("soon", "-1", False, (30, 20)),
        ("0", "nan", False, (30, 20)),
    ],
)
def test_the_limits_come_from_the_environment(monkeypatch, days, gb, space, expected):
    monkeypatch.setenv(takes.KEEP_DAYS, days)
    monkeypatch.setenv(takes.KEEP_GB, gb)
    if space:
        monkeypatch.setenv("SPACE_ID", "somebody/studio")
    assert takes.retention() == expected


def test_a_missing_folder_and_a_file_that_cannot_go_are_no_errors(folder, monkeypatch, caplog):
    path = song(folder, 99)

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        takes.prune()
    assert path.exists() and "cannot be deleted" in caplog.text
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(folder / "nowhere"))
    takes.prune()


def test_a_clock_that_is_set_forward_makes_no_song_old(folder, monkeypatch):
    kept = song(folder, 1)
    right = time.time()
    monkeypatch.setattr(time, "time", lambda: right + 40 * 86_400)
    assert left(folder) == {kept.name}


def test_a_file_that_vanishes_hides_no_other(folder, monkeypatch):
    for seed in range(9):
        song(folder, 31, seed)
    listed = os.scandir

    def vanishing(place):
        entries = list(listed(place))
        if Path(place) == folder:
            Path(entries[2]).unlink()
        return entries

    monkeypatch.setattr(takes.os, "scandir", vanishing)
    assert left(folder) == set()
