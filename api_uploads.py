"""Uploads: one file a request, measured while it arrives, in place of Gradio's own route.

Gradio keeps a text field in memory whatever its size, takes a thousand files of any size in one
request, and leaves what an upload that breaks off has written. Here a file is written into the folder
that Gradio serves and stays there only if it arrived whole. Callers notice no difference: the field
is `files`, the answer is a list with its path.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, urlsplit

import anyio
from gradio_client.utils import strip_invalid_filename_characters
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope

import audio
import bootstrap
import served
from limits import MOST_NAME_LETTERS
from lora_format import MAX_FILE_BYTES

MAX_TEXT_BYTES = 1_000_000  # of all parts that are no file, which nobody reads
LORA_ENDINGS = (".safetensors", ".zip")
FIELD = "files"
PIECE_BYTES = 2**20  # written at a time
MOST_AT_ONCE = 32
# A body may arrive slowly, but it has to go on.
SILENT_SECONDS = 30.0
GRACE_SECONDS = 60.0
LEAST_BYTES_A_SECOND = 1_000
MOST_KNOWN = 500  # uploads whose progress is remembered
ASK_SECONDS = 0.1  # between two looks at the progress of an upload
UNKNOWN_SECONDS = 3.0  # until an upload that nobody has begun is none
HEARTBEAT_SECONDS = 15.0

ONE_FILE = (
    "Send multipart/form-data with exactly one file, named and in the field files, in a request."
)
UNREADABLE = f"The upload could not be read. {ONE_FILE}"
TOO_MUCH_TEXT = f"An upload can hold at most {MAX_TEXT_BYTES / 1e6:g} MB of text. {ONE_FILE}"
TOO_LARGE = (
    f"A file may have up to {audio.MAX_UPLOAD_BYTES / 1e6:g} MB, and a LoRA (.safetensors or .zip) "
    f"up to {MAX_FILE_BYTES / 1e9:g} GB."
)
NO_ROOM = "The studio has no room for this file. Try again later, or with a smaller one."
BUSY = f"{MOST_AT_ONCE} uploads are arriving already. Try again in a moment."
TOO_SLOW = "The upload arrived too slowly and was given up. Try again."
FOREIGN = "Only the studio's own page may upload from a browser."


@dataclass
class Arrival:
    """The progress of one upload, for whoever asks for it by its id."""

    name: str = ""
    unread: int = 0  # bytes that have arrived since the latest look
    done: bool = False


class Uploads:
    """The uploads that are arriving."""

    def __init__(self) -> None:
        self._arrivals: dict[str, Arrival] = {}
        self._arriving = 0

    async def receive(self, scope: Scope, receive: Receive) -> Response:
        """Take one file in and answer with its path; raises HTTPException for anything else."""
        if self._arriving >= MOST_AT_ONCE:
            raise HTTPException(503, BUSY)
        boundary = _boundary(Headers(scope=scope))
        arrival = self._arrival(upload_id_of(scope))
        incoming = Incoming(boundary, arrival)
        self._arriving += 1
        try:
            await _fill(incoming, scope, receive)
            path = await anyio.to_thread.run_sync(incoming.keep)
        finally:
            self._arriving -= 1
            arrival.done = True
            # Not in a thread: it must be done when this task is being cancelled, too.
            incoming.close()
        return JSONResponse([str(path)])

    async def progress(self, scope: Scope) -> Response:
        """Stream the progress of the upload that the query names."""
        name = upload_id_of(scope)
        waited = 0.0
        while name not in self._arrivals:
            if waited >= UNKNOWN_SECONDS:
                raise HTTPException(404, "There is no such upload.")
            await asyncio.sleep(ASK_SECONDS)
            waited += ASK_SECONDS
        return StreamingResponse(_news(self._arrivals[name]), media_type="text/event-stream")

    def _arrival(self, name: str) -> Arrival:
        arrival = Arrival()
        if name:
            self._arrivals.pop(name, None)
            while len(self._arrivals) >= MOST_KNOWN:
                del self._arrivals[next(iter(self._arrivals))]
            self._arrivals[name] = arrival
        return arrival


def upload_id_of(scope: Scope) -> str:
    """Return the id by which a page asks for the progress of its upload, "" if it does not."""
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    name = asked.get("upload_id", [""])[-1]
    if len(name) > MOST_NAME_LETTERS:
        raise HTTPException(400, f"upload_id may have up to {MOST_NAME_LETTERS} characters.")
    return name


async def _news(arrival: Arrival) -> AsyncIterator[str]:
    silent_since = time.monotonic()
    while True:
        done = arrival.done
        if arrival.unread:
            news = {
                "msg": "update",
                "orig_name": arrival.name,
                "chunk_size": arrival.unread,
            }
            arrival.unread = 0
            silent_since = time.monotonic()
            yield _sse(news)
        elif time.monotonic() - silent_since > HEARTBEAT_SECONDS:
            silent_since = time.monotonic()
            yield _sse({"msg": "heartbeat"})
        if done:
            yield _sse({"msg": "done"})
            return
        await asyncio.sleep(ASK_SECONDS)


def _sse(news: dict[str, object]) -> str:
    return f"data: {json.dumps(news)}\n\n"


def check_origin(scope: Scope, own_hosts: set[str]) -> None:
    """Raise HTTPException if the page of another site sends this request.

    A browser says so itself, except over plain HTTP, where the origin is compared with the host that
    was asked and with `own_hosts`. Programs send neither.
    """
    headers = Headers(scope=scope)
    site = headers.get("sec-fetch-site", "").lower()
    if site in ("same-origin", "none"):
        return
    origin = headers.get("origin")
    if site == "cross-site":
        raise HTTPException(403, FOREIGN)
    if origin is None:
        return
    hosts = {_host_of(f"//{headers.get(name, '')}") for name in ("host", "x-forwarded-host")}
    if _host_of(origin) not in (hosts | own_hosts) - {""}:
        raise HTTPException(403, FOREIGN)


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _boundary(headers: Headers) -> bytes:
    kind, options = parse_options_header(headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise HTTPException(400, UNREADABLE)
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_FILE_BYTES + MAX_TEXT_BYTES:
        raise HTTPException(413, TOO_LARGE)
    return boundary


async def _fill(incoming: Incoming, scope: Scope, receive: Receive) -> None:
    """Give the body to `incoming` as it arrives."""
    started = time.monotonic()
    arrived = 0
    stream = Request(scope, receive).stream()
    try:
        while True:
            async with asyncio.timeout(SILENT_SECONDS):
                chunk = await anext(stream, None)
            if chunk is None:
                break
            arrived += len(chunk)
            spent = time.monotonic() - started - GRACE_SECONDS
            if spent * LEAST_BYTES_A_SECOND > arrived:
                raise HTTPException(408, TOO_SLOW)
            incoming.take(chunk)
            if incoming.waiting >= PIECE_BYTES:
                await anyio.to_thread.run_sync(incoming.write)
        await anyio.to_thread.run_sync(incoming.write)
    except TimeoutError:
        raise HTTPException(408, TOO_SLOW) from None
    except ClientDisconnect:
        raise HTTPException(400, "The connection closed before the whole file arrived.") from None
    except FormParserError:
        raise HTTPException(400, UNREADABLE) from None


class Incoming:
    """One multipart body on its way into a file; what it may not hold raises HTTPException."""

    def __init__(self, boundary: bytes, arrival: Arrival):
        self._arrival = arrival
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_header,
                    "on_header_value": self._add_to_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_data,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except (FormParserError, ValueError):
            raise HTTPException(400, UNREADABLE) from None
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._in_file = False
        self._name = ""
        self._part: Path | None = None
        self._file: IO[bytes] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._room = 0  # bytes for which room has been made
        self._uncounted = 1  # file for which no room has been made
        self._text = 0
        self._whole = False
        self._complete = False
        self.waiting = 0  # bytes that have arrived and are not written yet

    def take(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def write(self) -> None:
        """Write what has arrived; it is called in a thread."""
        if self._part is None:
            return
        if self._file is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("xb")
        if not served.make_room(self._size - self._room, self._uncounted):
            raise HTTPException(507, NO_ROOM)
        self._room = self._size
        self._uncounted = 0
        for piece in self._pieces:
            self._file.write(piece)
        self._pieces.clear()
        self.waiting = 0

    def keep(self) -> Path:
        """Give the file its name and return its path; raises HTTPException if it did not arrive whole."""
        if not (self._whole and self._complete and self._part and self._file):
            raise HTTPException(400, UNREADABLE)
        self._file.close()
        place = served.new_place(self._name)
        self._part.replace(place)
        self._part = None
        served.note_upload(place)
        return place

    def close(self) -> None:
        """Delete what has arrived, unless it was kept."""
        if self._file is not None:
            self._file.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    # --- what the parser finds --------------------------------------------------------------------

    def _begin_part(self) -> None:
        self._disposition = b""
        self._in_file = False

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._count_text(end - start)

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count_text(end - start)

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = b""
        self._value = b""

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            return
        if self._part is not None or _text(options.get(b"name", b"")) != FIELD:
            raise HTTPException(400, ONE_FILE)
        self._in_file = True
        self._name = file_name(_text(options[b"filename"]))
        self._arrival.name = _text(options[b"filename"])[:MOST_NAME_LETTERS]
        self._part = bootstrap.page_folder() / f"{secrets.token_hex(16)}{served.PART}"

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        length = end - start
        if not self._in_file:
            self._count_text(length)
            return
        self._size += length
        if self._size > most_bytes(self._name):
            raise HTTPException(413, TOO_LARGE)
        self._pieces.append(data[start:end])
        self.waiting += length
        self._arrival.unread += length

    def _count_text(self, length: int) -> None:
        self._text += length
        if self._text > MAX_TEXT_BYTES:
            raise HTTPException(413, TOO_MUCH_TEXT)

    def _end_part(self) -> None:
        if self._in_file:
            self._whole = True
        self._in_file = False

    def _end(self) -> None:
        self._complete = True


def most_bytes(name: str) -> int:
    """Return how large a file of this name may be: a LoRA is larger than a song."""
    if name.lower().endswith(LORA_ENDINGS):
        return MAX_FILE_BYTES
    return audio.MAX_UPLOAD_BYTES


def file_name(sent: str) -> str:
    """Return the name for a file that a caller calls `sent`, without any folder."""
    last = re.split(r"[\\/]", sent)[-1]
    name = strip_invalid_filename_characters(last)
    if not name.strip(". "):
        return f"upload-{secrets.token_hex(5)}"
    return name


def _text(sent: bytes) -> str:
    try:
        return sent.decode("utf-8")
    except UnicodeDecodeError:
        return sent.decode("latin-1")
