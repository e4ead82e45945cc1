"""The words of a song in Generate: who writes them, and what the page says about that.

A visitor lets them be written with the song, writes their own, or wants no voice. Without a choice
there are the visitor's own words if there are any; else they are written where somebody can write
them and the engine sings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import theme
import tooltips
from params import (
    GenerateRequest,
    Request,
    SongWords,
    WrittenRequest,
    parse_request,
    with_sketch,
    written_request,
)
from record import SongRecord, WordsResult, is_song
from status import Status

WRITE = "write"
OWN = "own"
NONE = "none"
NOT_CHOSEN = ""
# The fields that words may fill.
_FILLED = (*SongWords.model_fields, "duration")


def writing_mode(status: Status, language: str = "unknown") -> str:
    """Return the mode of the request that writes lyrics in `language` here, "" if nobody does.

    A model that somebody chose comes before one that is built in. The built-in songwriter writes
    English only.
    """
    english = language in ("en", "unknown")
    found = []
    if status.songwriter.available and (english or not status.songwriter.is_built_in):
        found.append((status.songwriter.is_built_in, "lyrics"))
    if status.planner.available:
        found.append((status.planner.is_built_in, "inspire"))
    # The songwriter stays first of two that are alike.
    found.sort(key=lambda each: each[0])
    return found[0][1] if found else ""


def choice(values: Mapping[str, Any], status: Status) -> str:
    """Return what becomes of the words with the `values` of Generate's fields."""
    if values["instrumental"]:
        return NONE
    chosen = values["words"]
    somebody_writes = bool(writing_mode(status, values["language"] or "unknown"))
    if chosen == WRITE and somebody_writes:
        return WRITE
    if chosen == OWN or (values["lyrics"] or "").strip():
        return OWN
    if chosen == NOT_CHOSEN and somebody_writes and not status.is_built_in:
        return WRITE
    return NONE


def written_first(song: GenerateRequest, status: Status) -> WrittenRequest:
    """Return the request of `song` with words that are written first; raises InvalidRequest.

    Its prompt says what they are about. The planner writes a new prompt as well.
    """
    mode = writing_mode(status, song.language)
    given = {}
    for name in song.model_fields_set:
        value = getattr(song, name)
        if value != GenerateRequest.model_fields[name].default:
            given[name] = value
    subject = "brief" if mode == "lyrics" else "idea"
    asked = {subject: song.prompt, "language": song.language, "seed": song.seed}
    if mode == "inspire":
        given.pop("prompt", None)
    return written_request(parse_request(mode, asked), given)


def as_made(request: Request, record: SongRecord | WordsResult) -> Request:
    """Return what was made of a request: with its words, if they were written first."""
    if not isinstance(request, WrittenRequest) or not is_song(record):
        return request
    made = record["request"]
    return with_sketch(request, {name: made[name] for name in _FILLED if name in made})


def shown(status: Status) -> str:
    """Return the choice of the words as HTML, for static/faces.js, with what to know about each."""
    mode = writing_mode(status)
    names = dict(tooltips.WORDS)
    notes = {WRITE: "", OWN: "", NONE: ""}
    if status.is_built_in:
        notes = {WRITE: tooltips.DOES_NOT_SING, OWN: "", NONE: tooltips.NO_VOICE_HERE}
    elif mode == "lyrics" and status.songwriter.is_built_in:
        notes[WRITE] = tooltips.SMALL_SONGWRITER
    if not mode:
        del names[WRITE]
        reasons = [status.songwriter.reason(hint=False), status.planner.reason(hint=False)]
        missing = " ".join([tooltips.NOBODY_WRITES, *dict.fromkeys(filter(None, reasons))])
        notes = {name: f"{missing} {note}".strip() for name, note in notes.items()}
    usual = WRITE if mode and not status.is_built_in else NONE
    return theme.words(names, notes, usual)
