"""A limit for the log: one line of code writes at most so many times a minute.

Callers decide how often something is logged, so without a limit they could fill the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

MOST_LINES = 30  # that one line of code may write in `SECONDS`
SECONDS = 60.0
# Loggers with handlers of their own.
LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")


class Calm(logging.Filter):
    """Lets the first lines of a minute pass; the next minute's first line says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        # By the place in the code: when its minute began, and how many lines it has had since.
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        now = self._clock()
        with self._lock:
            began, count = self._places.get(place, (now, 0))
            left_out = 0
            if now - began >= SECONDS:
                left_out = max(count - MOST_LINES, 0)
                began = now
                count = 0
            self._places[place] = (began, count + 1)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} lines like this were left out)"
            record.args = ()
        return count < MOST_LINES


def install() -> None:
    """Limit all further lines; call it once the server's loggers are set up."""
    calm = Calm()
    for handler in logging.getLogger().handlers:
        handler.addFilter(calm)
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(calm)
