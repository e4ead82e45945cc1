"""Asking the backend for songs and words, and checking them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

import audio
import backend
import params
from events import Done, Draft, Event, Progress


def samples_of(done: Event) -> list[np.ndarray]:
    """Return the samples [2, n] of each take; fail if the song is not finished."""
    assert isinstance(done, Done), done
    return [audio.decode(path) for path in done.files]


def result_of(events: Generator[Any, None, Any]) -> Any:
    """Run a generator to its end and return its result."""

    def ending() -> Iterator[Any]:
        yield (yield from events)

    *_, result = ending()
    return result


def wait_for_turn(studio: backend.Backend) -> None:
    """Wait until the studio is free for the next song."""
    assert studio.models.turn.acquire(timeout=300), "the lock was not freed"
    studio.models.turn.release()


def song_request(**values: Any) -> params.Request:
    """Return the request of a song of 10 s in two steps with a seed, unless `values` say otherwise."""
    options = {"steps": 2, **values.pop("options", {})}
    given = {"prompt": "calm piano", "duration": 10, "seed": 7, **values, "options": options}
    return params.parse_request("generate", given)


def song(studio: backend.Backend, **values: Any) -> Done:
    *_, last = studio.stream(song_request(**values))
    assert isinstance(last, Done), last
    return last


def words(studio: backend.Backend, mode: str, **values: Any) -> Event:
    """Run a language model; return the last event."""
    *events, last = studio.stream(params.parse_request(mode, {"seed": 7, **values}))
    assert all(isinstance(event, Progress | Draft) for event in events)
    return last


@contextlib.contextmanager
def _slow_tokens(model: Any) -> Iterator[list[int]]:
    """Make each forward pass of a language model 50 ms slower; yields a list that grows by one per pass."""
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1) or time.sleep(0.05))
    try:
        yield calls
    finally:
        hook.remove()


def assert_stops(
    studio: backend.Backend, request: params.Request, model: Any, reached: Callable[[Event], bool]
) -> None:
    """Close a run once `reached(event)`; fail if the model computes more than the token it is at."""
    with _slow_tokens(model) as calls:
        events = studio.stream(request)
        next(event for event in events if reached(event))
        events.close()
        begun = len(calls)
        wait_for_turn(studio)
        assert len(calls) <= begun + 1
        time.sleep(0.2)
        assert len(calls) <= begun + 1
    assert begun < 200, (
        "it ran on: each of these tokens takes 50 ms, and the whole text or plan has more of them"
    )


def assert_no_files(value: Any) -> None:
    """Fail if an object in a record looks like a file, which a client would try to fetch."""
    if isinstance(value, dict):
        assert not {"path", "url", "meta"} & value.keys()
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        assert_no_files(each)
