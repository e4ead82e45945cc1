"""The middleware in front of Gradio: security headers, refused calls, the queue's limit, and MCP clients
that hang up.

Gradio answers some malformed calls with a bare 500 and a long traceback, fetches URLs that a caller
puts into JSON, and lets simultaneous calls past its queue limit. Here the first two get a sentence
instead, and calls join the queue one at a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio
import httpx
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import api_keys
import audio
import bootstrap
from api import ENDPOINTS, UPLOADS, called_function, check_call
from api_bodies import Bodies, whole_body
from api_compression import Compression
from api_hosts import (
    API,
    KnownHosts,
    RelativePage,
    check_upload_origin,
    own_hosts,
    with_header,
    without_header,
)
from api_runs import OwnRoutes
from api_uploads import LORA_ENDINGS, UNREADABLE, Uploads
from events import NO_THREADS, is_disk_full, is_out_of_memory, is_out_of_threads
from limits import MOST_NAME_LETTERS, shown

log = logging.getLogger("studio")

MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_JSON_LEVELS = 32
CALL_HEADER = "x-studio-call"
TOKEN = "ai_token"  # a key in the body of a call, where ACE-Step's clients have theirs
MAX_CALLS = 500  # that each of the tables in `Calls` remembers
# How many unread answers may wait in memory, for one session and for all together.
MOST_UNREAD = 200
MOST_UNREAD_IN_ALL = 5_000
# A run that is cancelled before the page knows its event is still cancelled if it joins the queue
# within this time.
JOIN_SECONDS = 5.0
# The endpoints that want a program's key. /capabilities and the page do not.
GUARDED = (*ENDPOINTS, "run", "cancel_run")
# What Gradio raises for values that it does not expect.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    # Gradio's page needs inline scripts and eval; everything is served by the studio itself.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space"
    ),
}

NO_FILE = "There is no such file, or it has been deleted."
NOTHING_HERE = "There is nothing here."
NO_EVENT = "There is no such event, or its answer was fetched before."
UNREAD = (
    "This session has too many answers that nobody fetched. Read them at /gradio_api/queue/data."
)
LONG_NAME = f"session_hash and event_id are text of up to {MOST_NAME_LETTERS} characters."
NO_FETCH = "The studio does not fetch URLs. Upload the file first, or send it as data:audio/...;base64,... over MCP."
NO_OBJECT = "The body must be a JSON object, sent as application/json."
TOO_DEEP = f"A call's JSON may be at most {MAX_JSON_LEVELS} levels deep."
TOO_LONG = f"A call can have at most {MAX_JSON_BYTES // 1024**2} MiB of JSON. Upload files instead."
FAILED = (
    "The call failed with an unexpected error. Please try again; the studio's log has the details."
)
NOT_UNDERSTOOD = (
    "This call could not be understood: a value does not fit its parameter, or a file was not uploaded. "
    "See docs/api.md or /gradio_api/info for the parameters."
)
DISK_FULL = "The studio's disk is full. Try again later."
OUT_OF_MEMORY = "The studio has no memory left for this call. Try again later."
# What Gradio says of a session that it does not know; its own route ends in a long traceback.
NO_SESSION = 'data: {"msg":"unexpected_error","message":"404: Not Found","session_not_found":true,"success":false}\n\n'


def middleware() -> list[Middleware]:
    """Return the middleware for Gradio's app, the outermost first."""
    return [
        Middleware(SecurityHeaders),
        Middleware(KnownHosts, environ=os.environ),
        Middleware(Compression),
        Middleware(Bodies),
        Middleware(RelativePage),
        Middleware(Files),
        Middleware(Calls, own_hosts=own_hosts(os.environ)),
        Middleware(OwnRoutes),
    ]


class SecurityHeaders:
    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class Files:
    """Answers 404 for a file that is not served, whether it is gone or is not the caller's to read.

    Gradio says 403, which a proxy also says to a visitor who is not logged in. Only a 404 tells the
    page that a take was deleted.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not re.search(rf"{API}/file[=/]", scope["path"]):
            await self.app(scope, receive, send)
            return
        refusal = JSONResponse({"detail": NO_FILE}, 404)
        refused = False

        async def answer(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 403:
                refused = True
                await refusal(scope, receive, send)
            elif not refused:
                await send(message)

        await self.app(scope, receive, answer)


@dataclass
class ToolCall:
    event: tuple[str, str] | None = None  # session and event, once the call has joined the queue
    gone: bool = False  # the client hung up


class Calls:
    """Passes valid calls on to Gradio, one at a time where they join the queue.

    The run of an MCP client that hangs up is cancelled.
    """

    def __init__(self, app: ASGIApp, own_hosts: set[str]):
        self.app = app
        self.own_hosts = own_hosts
        self.uploads = Uploads()
        # Gradio checks the queue's limit, awaits the validator, and only then appends the call, so
        # simultaneous calls would all pass.
        self.joining = asyncio.Lock()
        # By the value of CALL_HEADER, which Gradio repeats when it queues the call.
        self.tool_calls: dict[str, ToolCall] = {}
        self.cancelling: set[asyncio.Task] = set()
        # By session and function: the event that joined last.
        self.joined: dict[tuple[str, int], str] = {}
        # By session and function: until when an event that joins is cancelled at once.
        self.cancel_until: dict[tuple[str, int], float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        route = ""
        if path.startswith(f"{API}/"):
            route = path.removeprefix(API).strip("/")
        answer = Answer(send, scope)
        try:
            await self._pass_on(scope, receive, answer, route)
        except Exception as error:
            if answer.started:
                raise
            refusal = _refusal_response(scope, route, error)
            await refusal(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, answer: Answer, route: str) -> None:
        """Answer a request here, or let Gradio answer it; raises HTTPException for a refusal."""
        method = scope["method"]
        if _fetches_a_url(route) or route in ("deep_link", "process_recording"):
            raise HTTPException(404, NOTHING_HERE)
        if route == "upload" and method == "POST":
            check_upload_origin(scope, self.own_hosts)
            response = await self.uploads.receive(scope, receive)
            await response(scope, receive, answer.send)
        elif route == "upload_progress" and method == "GET":
            response = await self.uploads.progress(scope)
            await response(scope, receive, answer.send)
        elif method in ("GET", "HEAD"):
            await self._get(scope, receive, answer, route)
        elif method == "POST" and route and not route.startswith("stream/"):
            await self._post(scope, receive, answer, route)
        else:
            await self.app(scope, receive, answer.send)

    async def _post(self, scope: Scope, receive: Receive, answer: Answer, route: str) -> None:
        body = await whole_body(scope, receive, MAX_JSON_BYTES, TOO_LONG)
        receive = _giving(body, receive)
        if route.split("/")[0] == "mcp":
            _check_key(scope)
            await self._mcp(scope, body, receive, answer)
            return
        values = _parsed(body)
        token = values.pop(TOKEN, None)
        if token is not None:
            receive = _giving(json.dumps(values).encode(), receive)
        _check_names(values.get("session_hash"), values.get("event_id"))
        self._check_call(scope, route, values, token)
        answer.rewrites = True
        if route == "queue/join" or route.startswith("call/"):
            # Measuring a large file takes seconds, for which nobody else has to wait in line.
            await _measure_sounds(values)
            async with self.joining:
                await self._join(scope, receive, answer, values)
        elif route in ("cancel", "reset") and values.get("event_id", "") is None:
            if route == "cancel":
                await self._cancel_nameless(scope["app"], values)
            await JSONResponse({"success": True})(scope, receive, answer.send)
        else:
            await self.app(scope, receive, answer.send)

    def _check_call(self, scope: Scope, route: str, values: dict[str, Any], token: object) -> None:
        """Raise HTTPException if a call lacks its key, or does not fit the function that it calls."""
        blocks = scope["app"].get_blocks()
        function = called_function(blocks, route, values)
        if function is None:
            return
        # The key of a tool's call was checked when it came to MCP.
        is_tool = Headers(scope=scope).get(CALL_HEADER, "") in self.tool_calls
        if function.api_name in GUARDED and not is_tool:
            _check_key(scope, token)
        check_call(blocks, function, route, values)

    async def _get(self, scope: Scope, receive: Receive, answer: Answer, route: str) -> None:
        kind, _, rest = route.partition("/")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        session = query.get("session_hash", [""])[-1]
        _check_names(rest if kind == "heartbeat" else session)
        queue = scope["app"].get_blocks()._queue
        if route == "queue/data" and session not in queue.pending_messages_per_session:
            response = Response(NO_SESSION, media_type="text/event-stream")
            await response(scope, receive, answer.send)
            return
        if kind == "call" and not _is_known_event(queue, rest.rpartition("/")[2]):
            raise HTTPException(404, NO_EVENT)
        if route.startswith(("file=", "file/")):
            scope = _with_starlettes_ranges(scope)
        if route == "info" and b"page=" not in scope["query_string"]:
            # Without a page Gradio caches the first caller's URL for everybody.
            scope = {**scope, "query_string": scope["query_string"] + b"&page="}
        await self.app(scope, receive, answer.send)

    async def _check_unread(self, queue: Any, session: Any) -> None:
        """Raise HTTPException if a session leaves too many answers unread.

        If those of all sessions together are too many, the sessions with most of them are forgotten.
        """
        waiting = queue.pending_messages_per_session
        own = waiting.get(session)
        if own is not None and own.qsize() >= MOST_UNREAD:
            raise HTTPException(503, UNREAD)
        unread = {name: messages.qsize() for name, messages in waiting.items()}
        while sum(unread.values()) >= MOST_UNREAD_IN_ALL:
            largest = max(unread, key=lambda name: unread[name])
            await queue.clean_events(session_hash=largest)
            waiting.pop(largest, None)
            del unread[largest]

    async def _join(
        self, scope: Scope, receive: Receive, answer: Answer, values: dict[str, Any]
    ) -> None:
        app = scope["app"]
        _forget_sessions(app.get_blocks()._queue)
        await self._check_unread(app.get_blocks()._queue, values.get("session_hash"))
        call = self.tool_calls.get(Headers(scope=scope).get(CALL_HEADER, ""))
        await self.app(without_header(scope, CALL_HEADER), receive, answer.send)
        event = str(_object(answer.body).get("event_id", ""))
        if not event:
            return
        session = str(values.get("session_hash"))
        if call:
            call.event = session, event
        cancelled = bool(call and call.gone)
        index = values.get("fn_index")
        if isinstance(index, int):
            _remember(self.joined, (session, index), event)
            cancelled |= self.cancel_until.pop((session, index), 0.0) > time.monotonic()
        if cancelled:
            self._cancel(app, session, event)

    async def _cancel_nameless(self, app: Any, values: dict[str, Any]) -> None:
        """Cancel a run whose event the page does not know yet: it is joining the queue, or is about to."""
        session = str(values.get("session_hash"))
        index = values.get("fn_index")
        if not isinstance(index, int):
            return
        async with self.joining:
            event = self.joined.pop((session, index), "")
            if event in app.get_blocks()._queue.pending_event_ids_session.get(session, ()):
                self._cancel(app, session, event)
            else:
                _remember(self.cancel_until, (session, index), time.monotonic() + JOIN_SECONDS)

    def _cancel(self, app: Any, session: str, event: str) -> None:
        """Take an event out of the queue, or stop its handler, and tell the waiting client."""

        async def cancel() -> None:
            await app.get_blocks()._queue.clean_events(event_id=event)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://127.0.0.1"
            ) as client:
                # Gradio's route would cancel all events of this function in the session. There is no
                # function -1, so it cancels this event alone.
                await client.post(
                    f"{API}/cancel",
                    json={"session_hash": session, "fn_index": -1, "event_id": event},
                )

        # In a task of its own: the task that notices a hang-up is about to be cancelled itself.
        task = asyncio.get_running_loop().create_task(cancel())
        self.cancelling.add(task)
        task.add_done_callback(self.cancelling.discard)

    async def _mcp(self, scope: Scope, body: bytes, receive: Receive, answer: Answer) -> None:
        try:
            _check_tool(_parsed(body))
        except HTTPException as refused:
            _log_refusal(scope, refused.status_code, refused.detail)
            await _mcp_refusal(body, refused)(scope, receive, answer.send)
            return
        # Taken now: a mounted app replaces scope["app"].
        app = scope["app"]
        token = secrets.token_hex(16)
        call = ToolCall()
        _remember(self.tool_calls, token, call)

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not answer.complete and not call.gone:
                call.gone = True
                if call.event:
                    self._cancel(app, *call.event)
            return message

        try:
            await self.app(with_header(scope, CALL_HEADER, token), watched, answer.send)
        finally:
            # A call that hung up before it joined the queue is cancelled when it joins.
            if call.event or not call.gone:
                self.tool_calls.pop(token, None)


def _forget_sessions(queue: Any) -> None:
    """Forget the sessions whose answers were read or abandoned.

    Gradio would remember them for ever, one for each call.
    """
    events_of = queue.pending_event_ids_session
    messages = queue.pending_messages_per_session
    busy = {event.session_hash for event in queue.event_ids_to_events.values()}
    for session, unread in list(events_of.items()):
        if session not in busy and (not unread or session not in messages):
            del events_of[session]
            messages.pop(session, None)


def _check_names(session: Any, event: Any = None) -> None:
    """Raise HTTPException if a name that a caller chose, and that Gradio keeps, is too long or not a text."""
    if session is None:
        session = ""
    names = [name for name in (session, event) if isinstance(name, str)]
    if not isinstance(session, str) or any(len(name) > MOST_NAME_LETTERS for name in names):
        raise HTTPException(400, LONG_NAME)


def _fetches_a_url(route: str) -> bool:
    """Return whether Gradio would fetch a URL for the caller of this route."""
    if route.startswith("proxy="):
        return True
    is_file = route.startswith(("file=", "file/"))
    return is_file and is_http_url_like(route[len("file=") :].strip().lower())


def _is_known_event(queue: Any, event: str) -> bool:
    """Return whether Gradio's queue still has an event, or an answer to it that nobody has fetched."""
    places = [queue.event_ids_to_events, queue.pending_messages_per_session]
    places += queue.pending_event_ids_session.values()
    return any(event in place for place in places)


def _with_starlettes_ranges(scope: Scope) -> Scope:
    """Write the unit of a range so that Starlette answers it, not Gradio, whose ranges ignore If-Range."""
    headers = []
    for name, value in scope["headers"]:
        if name.lower() == b"range":
            value = re.sub(rb"^\s*bytes\s*=", b"Bytes=", value)
        headers.append((name, value))
    return {**scope, "headers": headers}


def _remember(known: dict, key: Any, value: Any) -> None:
    """Put `value` into a table, whose oldest entries make room for it."""
    known.pop(key, None)
    while len(known) >= MAX_CALLS:
        del known[next(iter(known))]
    known[key] = value


class Answer:
    """The response on its way out. With `rewrites`, errors of Gradio and FastAPI become a sentence.

    Theirs repeat the body, or the text of an exception. A validator's verdicts pass unchanged.
    """

    def __init__(self, send: Send, scope: Scope):
        self._send = send
        self._scope = scope
        self.started = False
        self.complete = False
        self.rewrites = False
        self._start: Message = {}
        self.body = b""

    async def send(self, message: Message) -> None:
        """Pass a message on; one that may be rewritten is held back until the response is complete."""
        start = message["type"] == "http.response.start"
        last = not start and not message.get("more_body")
        if self.rewrites:
            if start:
                self._start = message
            self.body += message.get("body", b"")
            if not last:
                return
            self._rewrite()
            await self._send(self._start)
            message = {**message, "body": self.body}
        self.started = True
        await self._send(message)
        self.complete = last

    def _rewrite(self) -> None:
        status = self._start["status"]
        detail = _object(self.body).get("detail")
        if status not in (400, 422, 500) or (status == 422 and _are_verdicts(detail)):
            return
        _log_refusal(self._scope, status, shown(detail, 100))
        sentence = NOT_UNDERSTOOD
        if status == 500:
            sentence = FAILED
        if status == 422:
            self._start["status"] = 400
        self.body = json.dumps({"detail": sentence}).encode()
        MutableHeaders(scope=self._start)["content-length"] = str(len(self.body))


def _are_verdicts(detail: Any) -> bool:
    """Return whether the detail of an error is what a validator said of each input."""
    if not isinstance(detail, list):
        return False
    return all(isinstance(each, dict) and "is_valid" in each for each in detail)


def _giving(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        if messages:
            return messages.pop()
        return await receive()

    return given


def _check_key(scope: Scope, token: object = None) -> None:
    """Raise HTTPException if the studio wants a key and the call does not carry it."""
    problem = api_keys.problem(Headers(scope=scope), token)
    if problem:
        raise HTTPException(401, problem)


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`, empty if there is none."""
    with suppress(ValueError, RecursionError):
        value = json.loads(body)
        if isinstance(value, dict):
            return value
    return {}


def _parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`.

    Raises HTTPException if there is none, if it is nested too deeply, or if it names a file by URL.
    """
    try:
        values = json.loads(body)
    except RecursionError:
        raise HTTPException(400, TOO_DEEP) from None
    except ValueError:
        raise HTTPException(400, NO_OBJECT) from None
    if not isinstance(values, dict):
        raise HTTPException(400, NO_OBJECT)
    # Without recursion, since a caller decides how deep the values are nested.
    unchecked: list[tuple[dict[Any, Any] | list[Any], int]] = [(values, 1)]
    while unchecked:
        value, level = unchecked.pop()
        if level > MAX_JSON_LEVELS:
            raise HTTPException(400, TOO_DEEP)
        if isinstance(value, dict) and _names_a_url(value):
            raise HTTPException(422, NO_FETCH)
        inner: Iterable[Any] = value
        if isinstance(value, dict):
            inner = value.values()
        unchecked += [(each, level + 1) for each in inner if isinstance(each, dict | list)]
    return values


def _names_a_url(value: dict[Any, Any]) -> bool:
    """Return whether an object of a call is a file, and its path a URL."""
    return is_file_obj_with_meta(value) and is_http_url_like(value["path"].strip().lower())


async def _measure_sounds(values: dict[str, Any]) -> None:
    """Measure the uploaded sounds of a call; its validator then finds the durations in the cache."""
    folder = bootstrap.page_folder().resolve()
    for path in _files_in(values):
        sound = Path(path)
        with suppress(audio.AudioError, OSError, ValueError):
            if not path.lower().endswith(LORA_ENDINGS) and folder in sound.resolve().parents:
                await anyio.to_thread.run_sync(audio.duration_of, sound)


def _files_in(value: Any) -> Iterator[str]:
    """Yield the paths of the files in a call, whose depth has been checked."""
    if isinstance(value, dict):
        if is_file_obj_with_meta(value):
            yield value["path"]
        value = list(value.values())
    for each in value:
        if isinstance(each, dict | list):
            yield from _files_in(each)


def _check_tool(message: dict[str, Any]) -> None:
    """Raise HTTPException if the call of an MCP tool names a file by URL."""
    params = message.get("params")
    if message.get("method") != "tools/call" or not isinstance(params, dict):
        return
    arguments = params.get("arguments")
    if not isinstance(arguments, dict):
        return
    for name in UPLOADS:
        file = arguments.get(name)
        if isinstance(file, str) and is_http_url_like(file.strip().lower()):
            raise HTTPException(422, f"{name}: {NO_FETCH}")


def _refusal_response(scope: Scope, route: str, error: Exception) -> Response:
    """Return the answer to a request that ended with `error`, which is noted in the log."""
    if isinstance(error, HTTPException):
        refused = error
        reason = error.detail
    else:
        refused = _refusal_of(error, route)
        reason = type(error).__name__
    unexpected = error if refused.status_code == 500 else None
    _log_refusal(scope, refused.status_code, reason, unexpected)
    return JSONResponse({"detail": refused.detail}, refused.status_code)


def _refusal_of(error: Exception, route: str) -> HTTPException:
    if is_disk_full(error):
        return HTTPException(507, DISK_FULL)
    if is_out_of_threads(error):
        return HTTPException(503, NO_THREADS.text())
    if is_out_of_memory(error):
        return HTTPException(503, OUT_OF_MEMORY)
    if route == "upload":
        return HTTPException(400, UNREADABLE)
    if route and isinstance(error, MALFORMED):
        return HTTPException(400, NOT_UNDERSTOOD)
    return HTTPException(500, FAILED)


def _mcp_refusal(body: bytes, refused: HTTPException) -> JSONResponse:
    """Return a refusal in MCP's form: the result of a failed tool, or an error if no tool was called."""
    message = _object(body)
    if message.get("method") == "tools/call":
        result = {"isError": True, "content": [{"type": "text", "text": refused.detail}]}
        return JSONResponse({"jsonrpc": "2.0", "id": message.get("id"), "result": result})
    error = {"code": -32600, "message": refused.detail}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, refused.status_code)


def _log_refusal(scope: Scope, status: int, reason: str, error: Exception | None = None) -> None:
    place = f"{scope['method']} {shown(scope['path'], 80)}"
    level = logging.ERROR if error else logging.WARNING
    log.log(level, "%s was refused with %d: %s", place, status, reason, exc_info=error)
