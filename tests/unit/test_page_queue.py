"""Gradio's queue: it looks for events rarely while there are none, and at once while they come."""

from __future__ import annotations

import pytest
from gradio.data_classes import PredictBodyInternal

import app
import page_queue
from tests.waiting import result_of

# Looks a second of a studio that nobody visits: a thousand of them take about a tenth of a core, and the aim is 0.5 %.
MOST_LOOKS = 20


@pytest.fixture
def queue():
    return app.build_app()._queue


def looks(queue):
    return 1 / queue.sleep_when_free + 1 / queue.progress_update_sleep_when_free


def test_an_idle_queue_looks_rarely_and_a_busy_one_at_once(queue, monkeypatch):
    now = 100.0
    monkeypatch.setattr(page_queue.time, "monotonic", lambda: now)
    assert looks(queue) < MOST_LOOKS
    # No function has this number, so the event is refused, but it has come.
    refused = result_of(queue.push(PredictBodyInternal(data=[], fn_index=None), None, None))
    assert not refused[0]
    assert queue.sleep_when_free == page_queue.BUSY_LOOK_SECONDS
    now += page_queue.BUSY_SECONDS
    assert looks(queue) < MOST_LOOKS


def test_what_waits_is_looked_for_at_once(queue):
    function = next(iter(queue.blocks.fns.values()))
    queue.create_event_queue_for_fn(function)
    queue.event_queue_per_concurrency_id[function.concurrency_id].queue.append("an event")
    assert queue.sleep_when_free == page_queue.BUSY_LOOK_SECONDS
