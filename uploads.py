"""What is known of an upload before anything is queued: that it is audio, how long it is, and what fits into it.

Only headers are read, so that the API and the page can ask at any time. Damage further in shows when a song is made.
"""

from __future__ import annotations

import audio
from events import InvalidRequest, Problem
from limits import LEAST_REGION_SECONDS, MAX_SOURCE_SECONDS, SAMPLE_RATE, samples_in
from params import EditRequest, ExtendRequest, Request

FIELDS = ("source", "reference")


def seconds_of(path: str, field: str = "source") -> float:
    """Return how long the file is once it is decoded, in whole samples at 48 kHz.

    Raises InvalidRequest at `field` where the file is not audio, is damaged, or is too short, too long or too large.
    """
    try:
        return round(audio.duration_of(path) * SAMPLE_RATE) / SAMPLE_RATE
    except audio.AudioError as error:
        raise InvalidRequest((Problem("bad_audio", error.message, field, error.hint),)) from None


def check(request: Request) -> float:
    """Check the files that a request names, and the request against its source, whose seconds are returned (or 0).

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
    return seconds.get("source", 0.0)


def check_source(request: Request, seconds: float) -> None:
    """Check what depends on the source's length in seconds; raises InvalidRequest with the field and the range.

    Times are compared as samples: a length that a client computed, or that was resampled, may be off by a fraction.
    """
    length, total = f"{seconds:.6g}", samples_in(seconds)
    if isinstance(request, ExtendRequest):
        room = MAX_SOURCE_SECONDS - seconds
        if samples_in(request.before) + total + samples_in(request.after) > samples_in(MAX_SOURCE_SECONDS):
            field = "after" if request.after >= request.before else "before"
            message = (
                f"Seconds before and after together must be from 0 to {max(room, 0):.6g} for a source of {length} "
                f"seconds (a song lasts up to {MAX_SOURCE_SECONDS}), not {request.before + request.after:g}."
            )
            raise InvalidRequest((Problem("invalid", message, field),))
    if isinstance(request, EditRequest) and request.action in ("repaint", "layer"):
        start, end = samples_in(request.start), samples_in(request.end) or total
        problem = None
        if start > total - samples_in(LEAST_REGION_SECONDS):
            latest = max(seconds - LEAST_REGION_SECONDS, 0)
            problem = "start", f"Start must be from 0 to {latest:.6g} seconds in this source, not {request.start:g}."
        elif end > total:
            problem = "end", f"End must be from 0 to {length} seconds, the length of this source, not {request.end:g}."
        elif request.action == "repaint" and start == 0 and end == total:
            problem = (
                "end",
                f"Start and End must leave some of the source (0 to {length} seconds) as it is; to change all of it, "
                "use Cover or Morph.",
            )
        if problem:
            raise InvalidRequest((Problem("invalid", problem[1], problem[0]),))
