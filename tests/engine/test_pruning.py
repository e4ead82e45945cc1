"""A song through the backend takes the old ones out of the output folder, and nothing of its own."""

from __future__ import annotations

import os
import time

import backend
import outputs
from events import Done
from params import parse_request


def test_old_songs_leave_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path))
    monkeypatch.setenv(outputs.KEEP_GB, "0.000001")
    studio = backend.get_backend()

    def song() -> Done:
        options = {"steps": 1, "plan": False}
        request = {"prompt": "calm piano", "duration": 10, "seed": 7, "takes": 2, "options": options}
        return list(studio.stream(parse_request("generate", request)))[-1]

    first = song()
    (tmp_path / "mine.wav").write_bytes(b"mine")
    old = time.time() - 60
    for path in tmp_path.iterdir():
        os.utime(path, (old, old))
    second = song()
    kept = {take["name"] for take in second.record["takes"]}
    assert {path.name for path in tmp_path.iterdir()} == {"mine.wav", *kept}
    assert not kept & {take["name"] for take in first.record["takes"]}
    # What the page shows are copies.
    assert all(os.path.exists(path) for path in first.files)
