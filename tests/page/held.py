"""The studio on the engine that it is given, whose songs of 7 steps wait on their way while a file lies there.

So a test decides how long a song is under way, and not the machine.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import app
import backend
import model_weights
from backend import Backend
from events import Event, Progress
from params import Request

# How Python starts it.
PROGRAM = ("-m", "tests.page.held")
# The variable that names a folder to use as the built-in engine's weights.
BUILT_IN = "ACE_STUDIO_TEST_BUILT_IN"

HELD_STEPS = 7  # as no other song of the tests has
FIRST_HELD = 3


def hold_file(output: str | os.PathLike[str]) -> Path:
    """Return the file that holds the songs of the studio with this output folder."""
    return Path(f"{output}.hold")


class HeldBackend(Backend):
    def stream(self, request: Request) -> Iterator[Event]:
        """Make the song with the engine; repeat the step that it has come to while it is held."""
        hold = hold_file(os.environ["ACE_STUDIO_OUTPUT"])
        with contextlib.closing(super().stream(request)) as events:
            for event in events:
                yield event
                while _may_be_held(event) and hold.exists():
                    time.sleep(0.2)
                    yield event


def _may_be_held(event: Event) -> bool:
    if not isinstance(event, Progress):
        return False
    return event.steps == HELD_STEPS and FIRST_HELD <= event.step < HELD_STEPS


if __name__ == "__main__":
    backend.Backend = HeldBackend  # type: ignore[misc]
    if BUILT_IN in os.environ:
        model_weights.BUILT_IN[model_weights.MODEL_VARIABLE] = Path(os.environ[BUILT_IN])
    app.main()
