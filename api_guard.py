"""The middleware in front of Gradio: known hosts, refusals, security headers, gzip, the queue's
limit, MCP hang-ups.

Gradio answers some malformed calls with a bare 500 and a long traceback, fetches URLs that a caller
puts into JSON, and lets simultaneous calls past its queue limit. Here the first two get one
sentence instead, and joins wait in line.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import api_keys
import audio
import bootstrap
from api import ENDPOINTS, UPLOADS, called, check_call
from api_bodies import Bodies
from api_runs import OwnRoutes
from api_uploads import LORA_ENDINGS, UNREADABLE, Uploads, check_origin
from events import NO_THREADS, is_disk_full, is_out_of_memory, is_out_of_threads
from limits import MOST_NAME_LETTERS, shown

log = logging.getLogger("studio")

API = "/gradio_api"
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_JSON_LEVELS = 32
CALL_HEADER = "x-studio-call"
TOKEN = "ai_token"  # a key in the body of a call, where ACE-Step's clients have theirs
MAX_CALLS = 500
# Answers that wait in memory for whoever asked for them, of one session and of all.
MOST_UNREAD = 200
MOST_UNREAD_IN_ALL = 5_000
UNREAD = (
    "This session has too many answers that nobody fetched. Read them at /gradio_api/queue/data."
)
LONG_NAME = f"session_hash and event_id are text of up to {MOST_NAME_LETTERS} characters."
# What Gradio says of a session that it does not know, where its own way ends in a long traceback.
NO_SESSION = 'data: {"msg":"unexpected_error","message":"404: Not Found","session_not_found":true,"success":false}\n\n'
# A run that is cancelled before the page knows its event is still cancelled if it joins the queue
# within this time.
JOIN_SECONDS = 5.0
GUARDED = (
    *ENDPOINTS,
    "run",
    "cancel_run",
)  # by the key for programs; not /capabilities, nor the page

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

HOST = re.compile(r"(\[[^][@/?#]+\]|[^][@/?#:]+)(:[0-9]+)?")
# Gradio compresses these itself, with Brotli
OF_GRADIO = ("text/css", "text/javascript", "application/javascript")
NO_FETCH = "The studio does not fetch URLs. Upload the file first, or send it as data:audio/...;base64,... over MCP."
TOO_DEEP = f"A call's JSON may be at most {MAX_JSON_LEVELS} levels deep."
TOO_LONG = f"A call can have at most {MAX_JSON_BYTES // 1024**2} MiB of JSON. Upload files instead."
FAILED = (
    "The call failed with an unexpected error. Please try again; the studio's log has the details."
)
NOT_UNDERSTOOD = (
    "This call could not be understood: a value does not fit its parameter, or a file was not uploaded. "
    "See docs/api.md or /gradio_api/info for the parameters."
)


def middleware() -> list[Middleware]:
    """Return the middleware for Gradio's app, the outermost first."""
    # Neither streams nor songs; a song's type may be unknown where the system lacks a table of
    # types.
    excluded = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/octet-stream", *OF_GRADIO)
    gzip = Middleware(GZipMiddleware, minimum_size=1000, exclude_content_types=excluded)
    return [
        Middleware(SecurityHeaders),
        Middleware(KnownHosts, environ=os.environ),
        gzip,
        Middleware(Bodies),
        Middleware(Page),
        Middleware(Files),
        Middleware(Calls, own_hosts=own_hosts(os.environ)),
        Middleware(OwnRoutes),
    ]


def own_hosts(environ: Mapping[str, str]) -> set[str]:
    """Return the names under which the studio was told that browsers find it, without patterns."""
    named = environ.get("ACE_STUDIO_HOSTS", "").replace(",", " ").split()
    named += [
        _host_of(environ.get(variable, "")) for variable in ("SPACE_HOST", "GRADIO_ROOT_PATH")
    ]
    return {name.lower() for name in named if name and "*" not in name}


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


def _host_of(text: str) -> str:
    """Return the host of a URL or a Host header, without its port; "" if there is none."""
    try:
        return urlsplit(text if "//" in text else f"//{text}").hostname or ""
    except ValueError:
        return ""


class KnownHosts:
    """Answers only to the host names it was started for, as protection against DNS rebinding.

    "*.example.com" stands for every name under example.com. A studio that listens on every address
    answers to any IP address.
    """

    def __init__(self, app: ASGIApp, environ: Mapping[str, str]):
        address = environ.get("GRADIO_SERVER_NAME", "")
        self.app = app
        self.any_address = address in ("0.0.0.0", "::", "[::]")
        # The last is what a container calls the machine that it runs on.
        hosts = ["127.0.0.1", "localhost", "::1", "host.docker.internal"]
        hosts += environ.get("ACE_STUDIO_HOSTS", "").replace(",", " ").split()
        hosts += (
            [socket.gethostname(), f"{socket.gethostname()}.local"]
            if self.any_address
            else [address]
        )
        if environ.get("SPACE_ID"):
            hosts.append("*.hf.space")
        if environ.get("GRADIO_SHARE", "").lower() == "true":
            hosts.append("*.gradio.live")
        hosts += [
            _host_of(environ.get(variable, "")) for variable in ("SPACE_HOST", "GRADIO_ROOT_PATH")
        ]
        self.hosts = [host.lower().strip("[]") for host in hosts if host]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Gradio builds URLs from these headers, so one that names an unknown host is dropped.
        for name in ("x-forwarded-host", "x-gradio-server"):
            for value in Headers(scope=scope).getlist(name):
                if not all(self.knows(_host_of(part.strip())) for part in value.split(",")):
                    scope = _without(scope, name)
        scope = self._by_the_pages_address(scope)
        host = Headers(scope=scope).get("host", "")
        known = HOST.fullmatch(host) and self.knows(_host_of(host))
        await (self.app if known else PlainTextResponse("Invalid host header", 400))(
            scope, receive, send
        )

    def _by_the_pages_address(self, scope: Scope) -> Scope:
        """Put the address of the page that calls in place of what proxies forwarded, too little or wrong.

        Only the browser knows under which scheme, host and port the page was opened, and only it
        writes Sec-Fetch-Site.
        """
        headers = Headers(scope=scope)
        if headers.get("sec-fetch-site") != "same-origin":
            return scope
        page = headers.get("origin") or headers.get("referer", "")
        scheme, separator, rest = page.partition("://")
        address = rest.split("/")[0]
        if scheme not in ("http", "https") or not separator or not self.knows(_host_of(address)):
            return scope
        forwarded = "x-forwarded-host" in headers
        scope = _without(scope, "x-forwarded-proto")
        scope["headers"].append((b"x-forwarded-proto", scheme.encode()))
        if forwarded or address != headers.get("host"):
            scope = _without(scope, "x-forwarded-host")
            scope["headers"].append((b"x-forwarded-host", address.encode()))
        return scope

    def knows(self, host: str) -> bool:
        with suppress(ValueError):
            if self.any_address and ipaddress.ip_address(host):
                return True
        return any(fnmatch(host, pattern) for pattern in self.hosts)


class Page:
    """Lets the page find the studio from its own address: whoever opens it knows that better than any proxy."""

    # in the configuration, and in the script below it
    ROOT = re.compile(rb'("root":|const root = )"https?://[^/"]+(/[^"]*)?"')

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or API in scope["path"]:
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def relative(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                if kind.startswith("text/html"):
                    start = message
                    return
            if not start or message["type"] != "http.response.body":
                await send(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            whole = self.ROOT.sub(self._relative, bytes(body), count=2)
            body.clear()  # it may be long until somebody reads the answer
            MutableHeaders(scope=start)["content-length"] = str(len(whole))
            await send(start)
            await send({"type": "http.response.body", "body": whole, "more_body": False})

        await self.app(scope, receive, relative)

    @staticmethod
    def _relative(found: re.Match[bytes]) -> bytes:
        """Return the path of the root alone; without one it is where the page is."""
        return found[1] + b'"' + (found[2] or b".") + b'"'


class Files:
    """Answers 404 for a file that is not served, be it gone or nobody's business.

    Gradio's 403 is also what a proxy says to somebody who is not logged in; only a 404 tells the
    page that a take was deleted.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not re.search(rf"{API}/file[=/]", scope["path"]):
            await self.app(scope, receive, send)
            return
        refusal = JSONResponse({"detail": "There is no such file, or it has been deleted."}, 404)
        refused = False

        async def answer(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 403:
                refused = True
                await refusal(scope, receive, send)
            elif not refused:
                await send(message)

        await self.app(scope, receive, answer)


def _without(scope: Scope, name: str) -> Scope:
    return {
        **scope,
        "headers": [pair for pair in scope["headers"] if pair[0].lower() != name.encode()],
    }


@dataclass
class ToolCall:
    event: tuple[str, str] | None = None  # session and event, once the call has joined the queue
    gone: bool = False  # the client hung up


class Calls:
    """Passes on valid calls, joins the queue one at a time, and cancels the run of an MCP client that hangs up."""

    def __init__(self, app: ASGIApp, own_hosts: set[str]):
        self.app = app
        self.own_hosts = own_hosts
        self.uploads = Uploads()
        # Gradio checks the queue's limit, awaits the validator, and then appends: simultaneous
        # calls would all pass.
        self.joining = asyncio.Lock()
        # by CALL_HEADER, which Gradio repeats as it queues the call
        self.tool_calls: dict[str, ToolCall] = {}
        self.cancelling: set[asyncio.Task] = set()
        # By (session, function): the event that joined last, and until when a joining one is
        # cancelled.
        self.joined: dict[tuple[str, int], str] = {}
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
            if isinstance(error, HTTPException):
                refused = error
            else:
                refused = _refusal_of(error, route)
            reason = refused.detail if error is refused else type(error).__name__
            _log_refusal(
                scope, refused.status_code, reason, error if refused.status_code == 500 else None
            )
            await JSONResponse({"detail": refused.detail}, refused.status_code)(
                scope, receive, send
            )

    async def _pass_on(self, scope: Scope, receive: Receive, answer: Answer, route: str) -> None:
        fetches = route.startswith(("file=", "file/")) and is_http_url_like(
            route[5:].strip().lower()
        )
        if fetches or route.startswith("proxy=") or route in ("deep_link", "process_recording"):
            # They fetch a URL for the caller, or belong to a feature that the studio lacks.
            raise HTTPException(404, "There is nothing here.")
        if route == "info" and b"page=" not in scope["query_string"]:
            # Without a page Gradio caches the first caller's URL for everybody.
            scope = {**scope, "query_string": scope["query_string"] + b"&page="}
        if route == "upload" and scope["method"] == "POST":
            check_origin(scope, self.own_hosts)
            response = await self.uploads.receive(scope, receive)
            await response(scope, receive, answer.send)
            return
        if route == "upload_progress" and scope["method"] == "GET":
            response = await self.uploads.progress(scope)
            await response(scope, receive, answer.send)
            return
        if scope["method"] in ("GET", "HEAD"):
            await self._get(scope, receive, answer, route)
            return
        if scope["method"] != "POST" or not route or route.startswith("stream/"):
            await self.app(scope, receive, answer.send)
            return
        body, receive = await _read(scope, receive)
        if route.split("/")[0] == "mcp":
            _check_key(scope)
            await self._mcp(scope, body, receive, answer)
            return
        values = _parsed(body)
        token = values.pop(TOKEN, None)
        if token is not None:
            receive = _giving(json.dumps(values).encode(), receive)
        _check_names(values.get("session_hash"), values.get("event_id"))
        blocks = scope["app"].get_blocks()
        function = called(blocks, route, values)
        if function is not None:
            # A tool's call has been checked on its way to MCP.
            is_tool = Headers(scope=scope).get(CALL_HEADER, "") in self.tool_calls
            if function.api_name in GUARDED and not is_tool:
                _check_key(scope, token)
            check_call(blocks, function, route, values)
        answer.rewrites = True
        if route == "queue/join" or route.startswith("call/"):
            # It takes seconds for a large file, and those who join next would wait for it.
            await _read_sounds(values)
            async with self.joining:
                await self._join(scope, receive, answer, values)
        elif route in ("cancel", "reset") and values.get("event_id", "") is None:
            if route == "cancel":
                await self._cancel_nameless(scope["app"], values)
            await JSONResponse({"success": True})(scope, receive, answer.send)
        else:
            await self.app(scope, receive, answer.send)

    async def _get(self, scope: Scope, receive: Receive, answer: Answer, route: str) -> None:
        kind, _, rest = route.partition("/")
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        session = asked.get("session_hash", [""])[-1]
        _check_names(rest if kind == "heartbeat" else session)
        queue = scope["app"].get_blocks()._queue
        if route == "queue/data":
            if session not in queue.pending_messages_per_session:
                response = Response(NO_SESSION, media_type="text/event-stream")
                await response(scope, receive, answer.send)
                return
        elif kind == "call":
            event = rest.rpartition("/")[2]
            known = (queue.event_ids_to_events, queue.pending_messages_per_session)
            known += tuple(queue.pending_event_ids_session.values())
            if not any(event in each for each in known):
                raise HTTPException(
                    404, "There is no such event, or its answer was fetched before."
                )
        elif route.startswith(("file=", "file/")):
            scope = _for_starlette(scope)
        await self.app(scope, receive, answer.send)

    async def _check_unread(self, queue: Any, session: Any) -> None:
        """Raise HTTPException if a session leaves its answers unread; forget those of others if all are too many."""
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
        await self.app(_without(scope, CALL_HEADER), receive, answer.send)
        event = str(_object(answer.body).get("event_id", ""))
        if not event:
            return
        session = str(values.get("session_hash"))
        if call:
            call.event = session, event
        cancelled = bool(call and call.gone)
        if isinstance(index := values.get("fn_index"), int):
            _remember(self.joined, (session, index), event)
            cancelled |= self.cancel_until.pop((session, index), 0.0) > time.monotonic()
        if cancelled:
            self._cancel(app, session, event)

    async def _cancel_nameless(self, app: Any, values: dict[str, Any]) -> None:
        """Cancel a run whose event the page does not know yet: it is joining the queue, or will in a moment."""
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
                # Gradio's route would cancel all events of the session's function, so it gets the
                # number of none, -1.
                await client.post(
                    f"{API}/cancel",
                    json={"session_hash": session, "fn_index": -1, "event_id": event},
                )

        # In its own task: the one that notices a hang-up is about to be cancelled itself.
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
        # a mounted app replaces scope["app"]
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

        scope = _without(scope, CALL_HEADER)
        scope["headers"].append((CALL_HEADER.encode(), token.encode()))
        try:
            await self.app(scope, watched, answer.send)
        finally:
            # A call that hung up before it joined the queue is cancelled when it joins.
            if call.event or not call.gone:
                self.tool_calls.pop(token, None)


def _forget_sessions(queue: Any) -> None:
    """Forget the sessions whose answers were read or left, which Gradio would remember for ever: one a call."""
    events_of = queue.pending_event_ids_session
    messages = queue.pending_messages_per_session
    busy = {event.session_hash for event in queue.event_ids_to_events.values()}
    for session, unread in list(events_of.items()):
        if session not in busy and (not unread or session not in messages):
            del events_of[session]
            messages.pop(session, None)


def _check_names(session: Any, event: Any = None) -> None:
    """Raise HTTPException if a name that a caller made up, and that Gradio keeps, is too long or no text."""
    if session is None:
        session = ""
    names = [name for name in (session, event) if isinstance(name, str)]
    if not isinstance(session, str) or any(len(name) > MOST_NAME_LETTERS for name in names):
        raise HTTPException(400, LONG_NAME)


def _for_starlette(scope: Scope) -> Scope:
    """Write the unit of a range in a way that only Starlette knows: Gradio's own ranges ignore If-Range."""
    headers = []
    for name, value in scope["headers"]:
        if name.lower() == b"range":
            value = re.sub(rb"^\s*bytes\s*=", b"Bytes=", value)
        headers.append((name, value))
    return {**scope, "headers": headers}


def _remember(known: dict, key: Any, value: Any) -> None:
    known.pop(key, None)
    while len(known) >= MAX_CALLS:
        del known[next(iter(known))]
    known[key] = value


class Answer:
    """The response on its way out. If `rewrites` is set, the errors of Gradio and FastAPI become a
    sentence.

    Theirs repeat the body or the text of an exception. A validator's verdicts pass unchanged.
    """

    def __init__(self, send: Send, scope: Scope):
        self._send = send
        self._scope = scope
        self.started = self.complete = self.rewrites = False
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
        verdicts = isinstance(detail, list) and all(
            isinstance(each, dict) and "is_valid" in each for each in detail
        )
        if status in (400, 500) or (status == 422 and not verdicts):
            _log_refusal(self._scope, status, shown(detail, 100))
            self._start["status"] = 400 if status == 422 else status
            self.body = json.dumps({"detail": FAILED if status == 500 else NOT_UNDERSTOOD}).encode()
            MutableHeaders(scope=self._start)["content-length"] = str(len(self.body))


async def _read(scope: Scope, receive: Receive) -> tuple[bytes, Receive]:
    """Return the body, and a `receive` that gives it again."""
    body = bytearray()
    try:
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > MAX_JSON_BYTES:
                raise HTTPException(413, TOO_LONG)
    except ClientDisconnect:
        raise HTTPException(400, "The connection closed before the whole body arrived.") from None
    return bytes(body), _giving(bytes(body), receive)


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
        if isinstance(found := json.loads(body), dict):
            return found
    return {}


def _parsed(body: bytes) -> dict[str, Any]:
    """Return the object in `body`; raises HTTPException if it is not one, is too deep, or has the URL of a file."""
    try:
        values = json.loads(body)
    except RecursionError:
        raise HTTPException(400, TOO_DEEP) from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "The body must be a JSON object, sent as application/json.")
    left: list[tuple[dict[Any, Any] | list[Any], int]] = [(values, 1)]
    while left:
        value, level = left.pop()
        if level > MAX_JSON_LEVELS:
            raise HTTPException(400, TOO_DEEP)
        if (
            isinstance(value, dict)
            and is_file_obj_with_meta(value)
            and is_http_url_like(value["path"].strip().lower())
        ):
            raise HTTPException(422, NO_FETCH)
        inner = list(value.values()) if isinstance(value, dict) else value
        left += [(each, level + 1) for each in inner if isinstance(each, dict | list)]
    return values


async def _read_sounds(values: dict[str, Any]) -> None:
    """Measure the uploaded sounds of a call, which its validator does again and finds done."""
    folder = bootstrap.page_folder().resolve()
    for path in _files_in(values):
        sound = Path(path)
        with suppress(audio.AudioError, OSError, ValueError):
            if not path.lower().endswith(LORA_ENDINGS) and folder in sound.resolve().parents:
                await anyio.to_thread.run_sync(audio.duration_of, sound)


def _files_in(value: Any) -> Iterator[str]:
    """Yield the paths of the files in a call, which is not too deep."""
    if isinstance(value, dict):
        if is_file_obj_with_meta(value):
            yield value["path"]
        value = list(value.values())
    for each in value:
        if isinstance(each, dict | list):
            yield from _files_in(each)


def _check_tool(message: dict[str, Any]) -> None:
    """Raise HTTPException if a file of an MCP tool's call is a URL."""
    params = message.get("params")
    arguments = None
    if isinstance(params, dict):
        arguments = params.get("arguments")
    if message.get("method") != "tools/call" or not isinstance(arguments, dict):
        return
    for name in UPLOADS:
        if isinstance(value := arguments.get(name), str) and is_http_url_like(
            value.strip().lower()
        ):
            raise HTTPException(422, f"{name}: {NO_FETCH}")


def _refusal_of(error: Exception, route: str) -> HTTPException:
    if is_disk_full(error):
        return HTTPException(507, "The studio's disk is full. Try again later.")
    if is_out_of_threads(error):
        return HTTPException(503, NO_THREADS.text())
    if is_out_of_memory(error):
        return HTTPException(503, "The studio has no memory left for this call. Try again later.")
    if route == "upload":
        return HTTPException(400, UNREADABLE)
    if route and isinstance(
        error, KeyError | TypeError | ValueError | AttributeError | RecursionError | OSError
    ):
        return HTTPException(400, NOT_UNDERSTOOD)
    return HTTPException(500, FAILED)


def _mcp_refusal(body: bytes, refused: HTTPException) -> JSONResponse:
    """Return a refusal in MCP's form: a failed tool's result, or an error if the message cannot be read."""
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
