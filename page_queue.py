"""Gradio's queue of events, which looks for them rarely while there are none.

Gradio looks a thousand times a second for as long as the page is served, which keeps a tenth of a core busy in a studio
without visitors.
"""

from __future__ import annotations

import math
import time
from typing import Any

from gradio.queueing import Queue

# Between two looks while events come, and while none has come for a while: about as long as the
# first event of a visit may wait.
BUSY_LOOK_SECONDS = 0.001
IDLE_LOOK_SECONDS = 0.1
BUSY_SECONDS = 2.0
# Between two looks for the progress of `gr.Progress`, which the studio does not use.
PROGRESS_LOOK_SECONDS = 1.0


class PatientQueue(Queue):
    """`sleep_when_free` and `progress_update_sleep_when_free` are read by Gradio's loops before each look."""

    _latest = -math.inf  # when the latest event came

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        self._latest = time.monotonic()
        return await super().push(body, request, username)

    @property
    def sleep_when_free(self) -> float:
        is_busy = len(self) > 0 or time.monotonic() - self._latest < BUSY_SECONDS
        return BUSY_LOOK_SECONDS if is_busy else IDLE_LOOK_SECONDS

    @sleep_when_free.setter
    def sleep_when_free(self, seconds: float) -> None:
        pass  # Gradio's own choice

    @property
    def progress_update_sleep_when_free(self) -> float:
        return PROGRESS_LOOK_SECONDS

    @progress_update_sleep_when_free.setter
    def progress_update_sleep_when_free(self, seconds: float) -> None:
        pass


def be_patient(queue: Any) -> None:
    """Make a queue of Gradio a `PatientQueue`; what waits in it stays."""
    queue.__class__ = PatientQueue
