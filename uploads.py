"""What is known of an upload before anything is queued: that it is audio, how long it is, and what fits into it.

Only headers are read, so that the API and the page can ask at any time. Damage further in shows when a song is made.
"""

from __future__ import annotations

import audio
from events import InvalidRequest, Problem
from limits import SAMPLE_RATE
from params import SongRequest, check_source

FIELDS = ("source", "reference")


def seconds_of(path: str, field: str = "source") -> float:
    """Return how long the file is once it is decoded, in whole samples at 48 kHz.

    Raises InvalidRequest at `field` where the file is not audio, is damaged, or is too short, too long or too large.
    """
    try:
        return round(audio.duration_of(path) * SAMPLE_RATE) / SAMPLE_RATE
    except audio.AudioError as error:
        raise InvalidRequest((Problem("bad_audio", error.message, field, error.hint),)) from None


def check(request: SongRequest) -> None:
    """Check the files that a request names, and the request against the length of its source.

    Raises InvalidRequest with a problem for each file that cannot be used, or else for what does not fit the source.
    """
    seconds: dict[str, float] = {}
    problems: list[Problem] = []
    for field in FIELDS:
        path = getattr(request, field, None)
        if not path:
            continue
        try:
            seconds[field] = seconds_of(path, field)
        except InvalidRequest as error:
            problems += error.problems
    if problems:
        raise InvalidRequest(tuple(problems))
    if "source" in seconds:
        check_source(request, seconds["source"])
