"""Gradio's queue of events, which looks for them rarely while there are none.

Gradio looks a thousand times a second for as long as the page is served, which keeps a tenth of a core busy in a studio
without visitors.
"""

from __future__ import annotations

import math
import time
from typing import Any

from gradio.queueing import Queue

BUSY_LOOK_SECONDS = 0.001  # between two looks while events come, as Gradio looks
IDLE_LOOK_SECONDS = 0.1  # while none has come for a while: the first event may wait so long
BUSY_SECONDS = 2.0  # after the latest event, until there are few looks again
PROGRESS_LOOK_SECONDS = 1.0  # between two looks for `gr.Progress`, which the studio does not use


class PatientQueue(Queue):
    """A queue that looks rarely while nothing comes.

    Gradio's loops read `sleep_when_free` and `progress_update_sleep_when_free` before each look.
    """

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
