"""What the studio does while its first visitor fills in the form."""

from __future__ import annotations

import threading

import backend
import models
from events import Done, Progress
from tests.engine.songs import song_request
from tests.waiting import until


class SlowTurn:
    """The models' lock, where tries fail after the load has ended, both before and after the lock is free."""

    def __init__(self):
        self._lock, self._failed = threading.Lock(), 0
        self._ending, self._last_try, self.prepared = threading.Event(), threading.Event(), threading.Event()

    def acquire(self, blocking=True, timeout=-1):
        got = self._lock.acquire(blocking, timeout)
        if not got:
            self._failed += 1
            if self._ending.is_set():
                self._last_try.set()
                assert self.prepared.wait(100)
        return got

    def release(self):
        if not self.prepared.is_set():
            before = self._failed
            until(lambda: self._failed >= before + 2)
            self._ending.set()
            assert self._last_try.wait(100)
        self._lock.release()

    def locked(self):
        return self._lock.locked()


def test_a_first_song_waits_for_the_engine_that_is_being_loaded(monkeypatch, output):
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    turn = studio.models.turn = SlowTurn()
    loading, build = threading.Event(), models.build_pipeline
    monkeypatch.setattr(models, "build_pipeline", lambda *given: loading.wait(100) and build(*given))

    def prepare():
        studio.models.prepare()
        turn.prepared.set()

    ready = threading.Thread(target=prepare)
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
