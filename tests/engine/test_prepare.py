"""What the studio does while its first visitor fills in the form."""

from __future__ import annotations

import threading

import backend
import models
from events import Done, Progress
from tests.engine.songs import song_request
from tests.waiting import until


def test_a_first_song_waits_for_the_engine_that_is_being_loaded(monkeypatch, output):
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    loading, build = threading.Event(), models.build_pipeline
    monkeypatch.setattr(models, "build_pipeline", lambda *given: loading.wait(60) and build(*given))
    ready = threading.Thread(target=studio.models.prepare)
    ready.start()
    until(lambda: studio.models.preparing)
    assert not studio.workers()[0]["busy"]
    stages = []
    for event in studio.stream(song_request(options={"steps": 1})):
        if isinstance(event, Progress):
            stages.append(event.stage)
            if event.stage == "loading":
                loading.set()
    ready.join()
    assert isinstance(event, Done) and "waiting" not in stages
    assert studio.models.loaded and not studio.models.preparing
