"""The beat: work reports at least every 0.4 seconds, so that closing it takes effect soon.

Work is a generator of events. It may also yield None, which is not an event but marks a point where
it can be stopped. `in_thread` reads it in a thread of its own; its reader gets `QUIET` after each
beat without an event, and never None. Who follows a run (`runs.Runs.follow`) gets `QUIET` too.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

# The longest time between two events of a job.
BEAT_SECONDS = 0.4
# A worker in another process that has been silent for this long counts as dead. It beats while it
# loads too, but a busy machine may delay it.
SILENT_SECONDS = 60.0

# Between two lines of an event stream that has no events: proxies close a connection that is silent
# for longer.
STREAM_SECONDS = 15.0


class Quiet(Enum):
    QUIET = "quiet"


QUIET: Final = Quiet.QUIET


@dataclass(frozen=True)
class _End:
    """The last item in a queue: the work is over, or `error` ended it."""

    error: Exception | None = None


def in_thread(
    events: Generator[Any], name: str, stopped: Callable[[], bool]
) -> tuple[Generator[Any], threading.Thread]:
    """Read `events` in a new thread until `stopped()`; return an iterator of them, and the thread.

    The iterator yields `QUIET` after each beat without an event, and raises what the thread did.
    """
    pending: queue.Queue[Any] = queue.Queue()
    inside = contextvars.copy_context()
    thread = threading.Thread(
        target=inside.run, args=(_fill, pending, events, stopped), name=name, daemon=True
    )
    thread.start()
    return _read(pending), thread


def _fill(pending: queue.Queue[Any], events: Generator[Any], stopped: Callable[[], bool]) -> None:
    end = _End()
    try:
        with contextlib.closing(events):
            for event in events:
                if stopped():
                    break
                if event is not None:
                    pending.put(event)
    except Exception as error:
        end = _End(error)
    finally:
        pending.put(end)


def _read(pending: queue.Queue[Any]) -> Generator[Any]:
    while True:
        try:
            event = pending.get(timeout=BEAT_SECONDS)
        except queue.Empty:
            yield QUIET
            continue
        if isinstance(event, _End):
            if event.error:
                raise event.error
            return
        yield event
