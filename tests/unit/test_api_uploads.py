"""Uploads from outside: one file a request, limits while it streams, and nothing left of what broke off."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

import api_uploads
import audio
import served
from bootstrap import page_folder
from tests.waiting import until

HEADERS = {"content-type": "multipart/form-data; boundary=x"}
MEGABYTE = bytes(1_000_000)
ROOT = Path(served.__file__).parent


@pytest.fixture
def before(server) -> set[Path]:
    """What lies in the folder before the test."""
    return stored()


def stored() -> set[Path]:
    return {file.path for file in served.files()}


def part(name: str, filename: str | None = None, content: bytes = b"") -> bytes:
    called = "" if filename is None else f'; filename="{filename}"'
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{called}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


def upload(server: str, content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    url = f"{server}/gradio_api/upload"
    return httpx.post(url, content=content, headers={**HEADERS, **headers}, timeout=300)


def test_a_file_is_stored_under_its_name_and_nobody_can_guess_where(server, before):
    answer = upload(server, body(part("files", "my song.wav", b"RIFF")))
    assert answer.status_code == 200
    (path,) = map(Path, answer.json())
    assert path.read_bytes() == b"RIFF" and path.name == "my song.wav"
    assert len(path.parent.name) == 64 and path.parent.parent == page_folder()
    assert stored() - before == {path}
    again = upload(server, body(part("files", "my song.wav", b"RIFF"))).json()
    assert again != [str(path)]


def endless(start: bytes, piece: bytes, pieces: int) -> Iterator[bytes]:
    yield start
    yield from itertools.repeat(piece, pieces)


def test_text_is_refused_after_a_megabyte_while_it_streams(server, before):
    resident = psutil.Process().memory_info().rss
    answer = upload(server, endless(part("note")[:-2], MEGABYTE, 200))
    assert answer.status_code == 413 and "1 MB of text" in answer.json()["detail"]
    assert psutil.Process().memory_info().rss - resident < 100e6
    assert stored() == before


@pytest.mark.parametrize(
    "content",
    [
        body(part("source", "a.wav", b"RIFF")),
        body(part("files", "a.wav", b"RIFF"), part("files", "b.wav", b"RIFF")),
        body(part("files", "a.wav", b"RIFF"), part("source", "b.wav", b"RIFF")),
        body(part("source", "b.wav", b"RIFF"), part("files", "a.wav", b"RIFF")),
        body(part("note", content=b"hello")),
        body(),
        part("files", "a.wav", b"RIFF"),
        b"--y\r\n\r\n--y--",
        b"",
        part("files", "a.wav", b"RIFF")[:-2] + b"\r\n--x\r\nbroken\r\n\r\n",
    ],
    ids=[
        *(
            "another field",
            "two files",
            "a file elsewhere",
            "first elsewhere",
            "no file",
            "nothing",
            "no end",
        ),
        *("another boundary", "empty", "a broken part"),
    ],
)
def test_what_is_not_exactly_one_file_is_refused_and_leaves_nothing(server, before, content):
    answer = upload(server, content)
    assert answer.status_code == 400
    assert "one file" in answer.json()["detail"]
    assert stored() == before


def test_a_text_field_beside_the_file_costs_nothing(server):
    answer = upload(server, body(part("note", content=b"x"), part("files", "a.wav", b"RIFF")))
    assert answer.status_code == 200 and len(answer.json()) == 1


def test_only_a_lora_may_be_larger_than_a_song(server, before, monkeypatch):
    monkeypatch.setattr(audio, "MAX_UPLOAD_BYTES", 1_000_000)
    monkeypatch.setattr(api_uploads, "MAX_FILE_BYTES", 2_000_000)
    for name, size, status in (
        ("a.wav", 1_000_000, 200),
        ("a.wav", 1_000_001, 413),
        ("a.safetensors", 2_000_000, 200),
        ("A.ZIP", 1_500_000, 200),
        ("a.zip", 2_000_001, 413),
    ):
        kept = stored()
        answer = upload(server, body(part("files", name, bytes(size))))
        assert answer.status_code == status, (name, size)
        assert status == 200 or stored() == kept
    with begun(server, 9_000_000) as line:
        assert line.recv(100).startswith(b"HTTP/1.1 413")


def begun(server: str, length: int) -> socket.socket:
    """Return a connection on which the head of an upload was sent, and nothing of its body."""
    host, port = server.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=60)
    line.sendall(
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
    )
    return line


def test_an_upload_that_breaks_off_leaves_nothing(server, before):
    with begun(server, 99_000_000) as line:
        line.sendall(part("files", "a.wav", bytes(5_000_000))[:-2])
        until(lambda: stored() > before)
    until(lambda: stored() == before)


def test_an_upload_that_is_too_slow_is_given_up(server, before, monkeypatch):
    monkeypatch.setattr(api_uploads, "STALLED_SECONDS", 0.2)
    with begun(server, 99_000_000) as line:
        assert line.recv(100).startswith(b"HTTP/1.1 408")
    assert stored() == before


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\songs\\a.wav", "a.wav"),
        ("夜の歌.wav", "夜の歌.wav"),
        ("a" * 400 + ".wav", None),
        ("..", None),
        ("", None),
        ("\x00\x01.wav", None),
    ],
)
def test_a_name_has_no_folder_and_fits(sent, kept):
    name = api_uploads.file_name(sent)
    assert kept is None or name == kept
    assert name and name not in (".", "..") and "/" not in name and "\0" not in name
    assert len(name.encode()) <= 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://elsewhere.example"}, 200),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "https://evil.hf.space"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": "{own}"}, 200),
    ],
    ids=str,
)
def test_the_pages_of_other_sites_do_not_upload(server, before, headers, status):
    headers = {name: value.replace("{own}", server) for name, value in headers.items()}
    answer = upload(server, body(part("files", "a.wav", b"RIFF")), **headers)
    assert answer.status_code == status
    assert status == 200 or stored() == before


def test_the_page_sees_how_an_upload_goes_on(server):
    url = f"{server}/gradio_api/upload?upload_id=abc"
    content = body(part("files", "a.wav", bytes(3_000_000)))
    assert httpx.post(url, content=content, headers=HEADERS, timeout=300).status_code == 200
    told = httpx.get(f"{server}/gradio_api/upload_progress?upload_id=abc", timeout=300).text
    news = [json.loads(line.removeprefix("data: ")) for line in told.split("\n\n") if line]
    assert news == [
        {"msg": "update", "orig_name": "a.wav", "chunk_size": 3_000_000},
        {"msg": "done"},
    ]


def test_an_upload_that_nobody_began_is_none_and_a_long_id_is_refused(server, monkeypatch):
    monkeypatch.setattr(api_uploads, "UNKNOWN_SECONDS", 0.0)
    for name, status in (("unknown", 404), ("a" * 101, 400)):
        url = f"{server}/gradio_api/upload_progress?upload_id={name}"
        assert httpx.get(url, timeout=300).status_code == status
    url = f"{server}/gradio_api/upload?upload_id={'a' * 101}"
    assert httpx.post(url, content=body(), headers=HEADERS, timeout=300).status_code == 400


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    monkeypatch.setattr(served, "files_in_use", [])
    (tmp_path / "page").mkdir()
    return tmp_path / "page"


def put(folder: Path, name: str, hours: float, size: int = 4096) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    at = time.time() - hours * 3600
    os.utime(path, (at, at))
    return path


def test_what_nobody_used_for_a_day_goes_whoever_left_it(folder, monkeypatch):
    put(folder, "tmpabc", 25)
    put(folder, f"0123{served.PART}", 25)
    put(folder, "aa/song.wav", 25)
    young = put(folder, "bb/song.wav", 23)
    needed = put(folder, "cc/song.wav", 99)
    monkeypatch.setattr(served, "files_in_use", [lambda: [str(needed)]])
    served.sweep()
    assert stored() == {young, needed}
    assert not (folder / "aa").exists()


def test_the_budget_is_a_tenth_of_the_room_and_the_oldest_make_way(folder, monkeypatch):
    files = [put(folder, f"{hours}/song.wav", hours, 100_000) for hours in (9, 8, 7, 6)]
    size = served.files()[0].size
    monkeypatch.setattr(served, "files_in_use", [lambda: [str(files[0])]])
    monkeypatch.setattr(
        served.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 46 * size})
    )
    assert served.budget() == 5 * size
    assert served.make_room(size)
    assert stored() == set(files)
    assert served.make_room(size)
    assert stored() == {files[0], *files[2:]}
    assert not served.make_room(5 * size)
    assert stored() == {files[0]}


def test_so_many_small_files_are_too_many(folder, monkeypatch):
    monkeypatch.setattr(served, "MOST_FILES", 3)
    files = [put(folder, f"{hours}/song.wav", hours) for hours in (9, 8, 7)]
    assert served.make_room(1)
    assert stored() == set(files[1:])


def test_without_room_an_upload_is_refused_and_leaves_nothing(server, before, monkeypatch):
    monkeypatch.setattr(served, "make_room", lambda size, number: False)
    answer = upload(server, body(part("files", "a.wav", b"RIFF")))
    assert answer.status_code == 507 and "no room" in answer.json()["detail"]
    assert stored() == before


def test_small_uploads_do_not_walk_through_the_folder_each_time(folder, monkeypatch):
    walks = []
    monkeypatch.setattr(served, "files", lambda: walks.append(1) or [])
    for _ in range(50):
        assert served.make_room(1)
    assert len(walks) == 1


def test_when_files_have_to_go_there_is_room_for_the_next_ones_too(folder, monkeypatch):
    monkeypatch.setattr(served, "MOST_FILES", 40)
    for hours in range(1, 42):
        put(folder, f"{hours}/song.wav", hours)
    assert served.make_room(1)
    assert len(stored()) == 40 - 40 // served.SLACK - 1


def test_of_the_uploads_that_no_run_has_named_the_latest_stay(folder, monkeypatch):
    monkeypatch.setattr(served, "MOST_UNUSED", 2)
    uploads = [put(folder, f"{number}/song.wav", 0) for number in range(4)]
    served.note_upload(uploads[0])
    served.touch(uploads[0])
    for upload in uploads[1:]:
        served.note_upload(upload)
    assert stored() == {uploads[0], *uploads[2:]}


def test_uploads_over_http_are_bounded_in_number(server, before, monkeypatch):
    monkeypatch.setattr(served, "MOST_UNUSED", 3)
    paths = [Path(upload(server, body(part("files", "a.wav", b"x"))).json()[0]) for _ in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]


def test_a_file_outside_the_folder_is_not_touched(folder, tmp_path):
    elsewhere = put(tmp_path, "elsewhere.wav", 5)
    served.touch(elsewhere)
    assert time.time() - elsewhere.stat().st_mtime > 3600


def test_another_studio_leaves_the_files_in_use_alone(folder, monkeypatch):
    """Several studios of one user share the folder; each of them sweeps it and makes room in it."""
    waiting = put(folder, "aa/song.wav", 30)  # it was uploaded yesterday, and its run still waits
    forgotten = put(folder, "bb/song.wav", 30)
    fresh = put(folder, "cc/song.wav", 0.1)
    older = put(folder, "dd/song.wav", 1)
    monkeypatch.setattr(served, "files_in_use", [lambda: [str(waiting)]])
    served.touch_used()
    elsewhere = "import served; served.sweep(); served.MOST_FILES = 1; print(served.make_room(1))"
    answer = subprocess.run(
        [sys.executable, "-c", elsewhere], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert answer.stdout.strip() == "False", answer.stderr
    assert stored() == {waiting, fresh}
    assert not forgotten.exists() and not older.exists()
    served.note_own(fresh)
    monkeypatch.setattr(served, "MOST_FILES", 1)
    assert not served.make_room(1)
    assert stored() == {waiting}
