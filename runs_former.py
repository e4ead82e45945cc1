"""A song that this process no longer holds, put together from its files and their records.

The journal names the files of a run, and each file carries the record. A record has no uploads, so
the rebuilt request names a file that does not exist: a visitor who makes the song again gets a
sentence about it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import audio_export
import bootstrap
import takes
from events import Done, StudioError
from params import AUDIO_FIELDS, SongRequest, parse_request
from record import SongRecord
from runs import Runs

GONE = "gone"  # a folder that never exists, where the uploads of former songs are said to be


@dataclass(frozen=True)
class Former:
    """What is left of a finished run: its request, its good takes as copies for the page, and their numbers."""

    request: SongRequest
    done: Done
    numbers: tuple[int, ...]


def song_of(runs: Runs, run_id: str) -> Former | None:
    """Return what is left of the song of a run, None if no file with a record is."""
    found: dict[int, dict[str, Any]] = {}
    copies: list[str] = []
    for number, path in runs.kept(run_id).items():
        # A file that somebody has replaced, or has just deleted, is not a take of this run.
        with contextlib.suppress(OSError, TypeError, KeyError, ValueError):
            record = audio_export.read_record(path) or {}
            (entry,) = record["takes"]
            of_take = {**record, "takes": [{**entry, "name": path.name}]}
            copies.append(copy_of(path))
            found[number] = of_take
    if not found:
        return None
    record = next(iter(found.values()))
    request = _request_of(record)
    if request is None:
        return None
    entries = [entry for each in found.values() for entry in each["takes"]]
    whole = cast(SongRecord, {**record, "takes": entries})
    return Former(request, Done(tuple(copies), whole), tuple(found))


def copy_of(path: Path) -> str:
    """Return the path of a copy of a song that Gradio serves; raises OSError if the song is gone."""
    return takes.copy_for_page(io.BytesIO(path.read_bytes()), path.name)


def _request_of(record: Mapping[str, Any]) -> SongRequest | None:
    """Return the request in a record, None if it is not one of a song."""
    with contextlib.suppress(StudioError, KeyError, TypeError, ValueError):
        asked = dict(record["request"])
        options = dict(asked["options"])
        options["loras"] = [_lora(each) for each in options["loras"]]
        asked["options"] = options
        for field in AUDIO_FIELDS:
            if field in record["audio"]:
                asked[field] = _upload(record["audio"][field]["name"])
        request = parse_request(record["mode"], asked)
        if isinstance(request, SongRequest):
            return request
    return None


def _lora(choice: Mapping[str, Any]) -> dict[str, Any]:
    source = choice["source"]
    return {**choice, "source": _upload("lora") if source == "upload" else source}


def _upload(name: str) -> str:
    return str(bootstrap.page_folder() / GONE / Path(name).name)
