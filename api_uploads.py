"""Uploads: forms with files, limited while they arrive. The page's own replace Gradio's route, one file a request.

Gradio keeps a text field in memory whatever its size, takes a thousand files of any size in one
request, and leaves behind what an upload that breaks off has written. Here a file is written into the
folder that Gradio serves, and stays there only if it arrived whole. Callers notice no difference: the
field is `files`, and the answer is a list with its path. The official REST API reads its forms here
too, by `Rules` of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs

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
import beat
import bootstrap
import served
from limits import MOST_NAME_LETTERS
from lora_format import MAX_FILE_BYTES

MAX_TEXT_BYTES = 1_000_000  # of all parts that are not files; nobody reads them
LORA_ENDINGS = (".safetensors", ".zip")
FIELD = "files"
PIECE_BYTES = 2**20  # written at a time
MOST_AT_ONCE = 32
# A body may arrive slowly, but it has to keep arriving.
STALLED_SECONDS = 30.0
GRACE_SECONDS = 60.0
LEAST_BYTES_A_SECOND = 1_000
MOST_KNOWN = 500  # uploads whose progress is remembered
ASK_SECONDS = 0.1  # between two looks at the progress of an upload
UNKNOWN_SECONDS = 3.0  # until an upload that has not begun counts as unknown

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
TOO_SLOW = "The upload arrived too slowly, so the studio stopped reading it. Try again."


def most_bytes(name: str) -> int:
    """Return how large a file of this name may be: a LoRA is larger than a song."""
    if name.lower().endswith(LORA_ENDINGS):
        return MAX_FILE_BYTES
    return audio.MAX_UPLOAD_BYTES


@dataclass(frozen=True)
class Rules:
    """What a form may hold: by default one file in the field `files`, and text, which is ignored."""

    fields: tuple[str, ...] = (FIELD,)  # whose files are kept
    # Whether there must be exactly one file; if not, files of other fields are ignored.
    only_one: bool = True
    most_bytes: Callable[[str], int] = most_bytes  # of a file of this name
    most_bytes_in_all: Callable[[], int] = lambda: MAX_FILE_BYTES + MAX_TEXT_BYTES
    most_text_bytes: int = MAX_TEXT_BYTES
    most_texts: int = 0  # how many text fields are kept
    unreadable: str = UNREADABLE
    too_large: str = TOO_LARGE
    too_much_text: str = TOO_MUCH_TEXT


@dataclass
class ReceivedForm:
    """A form that arrived whole, by the names of its fields: files in the folder that Gradio serves, and texts."""

    files: dict[str, Path]
    texts: dict[str, str]


@dataclass
class Arrival:
    """The progress of one upload, for whoever asks for it by its id."""

    name: str = ""
    unread: int = 0  # bytes that have arrived since the latest look
    done: bool = False


_arriving = 0


@contextmanager
def _one_more() -> Iterator[None]:
    """Count one more form that is arriving; raises HTTPException if there are too many."""
    global _arriving
    if _arriving >= MOST_AT_ONCE:
        raise HTTPException(503, BUSY)
    _arriving += 1
    try:
        yield
    finally:
        _arriving -= 1


async def take_in(
    scope: Scope, receive: Receive, rules: Rules, arrival: Arrival | None = None
) -> ReceivedForm:
    """Return the form in a request, its files written as they arrive; raises HTTPException if it breaks a rule."""
    with _one_more():
        incoming = Incoming(_boundary(Headers(scope=scope), rules), rules, arrival or Arrival())
        try:
            await _fill(incoming, scope, receive)
            return await anyio.to_thread.run_sync(incoming.keep)
        finally:
            # Not in a thread: it must be done when this task is being cancelled, too.
            incoming.close()


class Uploads:
    """The page's uploads, whose progress it asks for."""

    def __init__(self) -> None:
        self._arrivals: dict[str, Arrival] = {}

    async def receive(self, scope: Scope, receive: Receive) -> Response:
        """Take one file in and answer with its path; raises HTTPException for anything else."""
        arrival = self._arrival(upload_id_of(scope))
        try:
            form = await take_in(scope, receive, Rules(), arrival)
        finally:
            arrival.done = True
        return JSONResponse([str(form.files[FIELD])])

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
        elif time.monotonic() - silent_since > beat.STREAM_SECONDS:
            silent_since = time.monotonic()
            yield _sse({"msg": "heartbeat"})
        if done:
            yield _sse({"msg": "done"})
            return
        await asyncio.sleep(ASK_SECONDS)


def _sse(news: dict[str, object]) -> str:
    return f"data: {json.dumps(news)}\n\n"


def _boundary(headers: Headers, rules: Rules) -> bytes:
    kind, options = parse_options_header(headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise HTTPException(400, rules.unreadable)
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > rules.most_bytes_in_all():
        raise HTTPException(413, rules.too_large)
    return boundary


async def _fill(incoming: Incoming, scope: Scope, receive: Receive) -> None:
    """Give the body to `incoming` as it arrives."""
    started = time.monotonic()
    arrived = 0
    stream = Request(scope, receive).stream()
    try:
        while True:
            async with asyncio.timeout(STALLED_SECONDS):
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
        raise HTTPException(400, incoming.rules.unreadable) from None


@dataclass
class _Sent:
    """A file on its way."""

    form_field: str
    name: str
    part: Path
    file: IO[bytes] | None = None
    pieces: list[bytes] = field(default_factory=list)  # that are not written yet
    size: int = 0
    room: int = 0  # bytes for which room has been made
    whole: bool = False

    def write(self) -> None:
        uncounted = 0
        if self.file is None:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.part.open("xb")
            uncounted = 1
        if not served.make_room(self.size - self.room, uncounted):
            raise HTTPException(507, NO_ROOM)
        self.room = self.size
        for piece in self.pieces:
            self.file.write(piece)
        self.pieces.clear()

    def keep(self) -> Path:
        """Give the file its name and return its path."""
        if self.file is not None:
            self.file.close()
        place = served.new_place(self.name)
        self.part.replace(place)
        served.note_upload(place)
        return place

    def close(self) -> None:
        """Delete what has arrived, unless it was kept."""
        if self.file is not None:
            self.file.close()
        self.part.unlink(missing_ok=True)


class Incoming:
    """One multipart body on its way into files; raises HTTPException for what the rules forbid."""

    def __init__(self, boundary: bytes, rules: Rules, arrival: Arrival):
        self.rules = rules
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
            raise HTTPException(400, rules.unreadable) from None
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._sent: list[_Sent] = []
        self._file: _Sent | None = None  # the file that is arriving, if the part is a file
        self._text_name: str | None = None
        self._text = bytearray()
        self._texts: dict[str, str] = {}
        self._bytes_in_all = 0
        self._text_bytes = 0
        self._complete = False
        self.waiting = 0  # bytes that have arrived and are not written yet

    def take(self, chunk: bytes) -> None:
        self._bytes_in_all += len(chunk)
        if self._bytes_in_all > self.rules.most_bytes_in_all():
            raise HTTPException(413, self.rules.too_large)
        self._parser.write(chunk)

    def write(self) -> None:
        """Write what has arrived. Called in a thread."""
        for sent in self._sent:
            if sent.pieces or sent.file is None:
                sent.write()
        self.waiting = 0

    def keep(self) -> ReceivedForm:
        """Give the files their names; raises HTTPException if not all of them arrived whole."""
        whole = self._complete and all(sent.whole for sent in self._sent)
        if not whole or (self.rules.only_one and not self._sent):
            raise HTTPException(400, self.rules.unreadable)
        files = {}
        for sent in self._sent:
            if sent.size or self.rules.only_one:
                files[sent.form_field] = sent.keep()
        return ReceivedForm(files, self._texts)

    def close(self) -> None:
        """Delete what has arrived, unless it was kept."""
        for sent in self._sent:
            sent.close()

    # --- what the parser finds --------------------------------------------------------------------

    def _begin_part(self) -> None:
        self._disposition = b""
        self._file = None
        self._text_name = None

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
        name = _text(options.get(b"name", b""))
        if b"filename" not in options:
            self._text_name = name
            self._text.clear()
            return
        known = name in self.rules.fields
        if self.rules.only_one and (self._sent or not known):
            raise HTTPException(400, ONE_FILE)
        if not known or any(sent.form_field == name for sent in self._sent):
            return
        sent_name = _text(options[b"filename"])
        self._arrival.name = sent_name[:MOST_NAME_LETTERS]
        part = bootstrap.page_folder() / f"{secrets.token_hex(16)}{served.PART}"
        self._file = _Sent(name, file_name(sent_name), part)
        self._sent.append(self._file)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        length = end - start
        if self._file is not None:
            self._add_to_file(self._file, data[start:end])
        elif self._text_name is not None:
            self._count_text(length)
            if self.rules.most_texts:
                self._text += data[start:end]

    def _add_to_file(self, sent: _Sent, piece: bytes) -> None:
        sent.size += len(piece)
        if sent.size > self.rules.most_bytes(sent.name):
            raise HTTPException(413, self.rules.too_large)
        sent.pieces.append(piece)
        self.waiting += len(piece)
        self._arrival.unread += len(piece)

    def _count_text(self, length: int) -> None:
        self._text_bytes += length
        if self._text_bytes > self.rules.most_text_bytes:
            raise HTTPException(413, self.rules.too_much_text)

    def _end_part(self) -> None:
        if self._file is not None:
            self._file.whole = True
        elif self._text_name is not None and self.rules.most_texts:
            if len(self._texts) >= self.rules.most_texts:
                most = self.rules.most_texts
                raise HTTPException(400, f"A form may have up to {most} fields.")
            self._texts[self._text_name] = _text(bytes(self._text))
        self._file = None
        self._text_name = None

    def _end(self) -> None:
        self._complete = True


def file_name(sent: str) -> str:
    """Return a safe name for a file that its sender calls `sent`, without any folder."""
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
