"""Bodies of requests in memory: all together have a limit, and each has to keep arriving.

Every reader limits the one body that it reads. But a thousand connections may each send most of a
body and then wait, so that four megabytes become four gigabytes. Small bodies always pass: a caller
who fills the room for large ones keeps nobody from making a song.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import api_uploads

MOST_BYTES = 128 * 2**20  # of all bodies behind their first `FREE_BYTES`
FREE_BYTES = 2**16  # at the start of each body, which are not counted
TO_DISK = ("/upload", "/release_task")  # routes that write the files of a form while they arrive
FULL = "The studio is reading too many large requests. Try again in a moment."
BROKEN_OFF = "The connection closed before the whole body arrived."
TOO_SLOW = (
    "The body of the request arrived too slowly, so the studio stopped reading it. Try again."
)


class Bodies:
    """Counts the bytes of bodies until their requests are answered; files go to the disk and do not count."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        kind = Headers(scope=scope).get("content-type", "")
        is_file = kind.startswith("multipart/") and scope["path"].rstrip("/").endswith(TO_DISK)
        started = time.monotonic()
        arrived = 0
        counted = 0
        complete = False

        async def limited() -> Message:
            nonlocal arrived, counted, complete
            if complete:
                return await receive()
            message = await _receive_soon(receive)
            complete = not message.get("more_body", False)
            arrived += len(message.get("body", b""))
            spent = time.monotonic() - started - api_uploads.GRACE_SECONDS
            if spent * api_uploads.LEAST_BYTES_A_SECOND > arrived and not complete:
                raise HTTPException(408, TOO_SLOW)
            large = 0 if is_file else max(arrived - FREE_BYTES, 0)
            self.held += large - counted
            counted = large
            if self.held > MOST_BYTES and counted:
                raise HTTPException(503, FULL)
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            self.held -= counted


async def whole_body(scope: Scope, receive: Receive, most: int, too_long: str) -> bytes:
    """Return the body of a request; raises HTTPException, with `too_long` beyond `most` bytes."""
    body = bytearray()
    try:
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > most:
                raise HTTPException(413, too_long)
    except ClientDisconnect:
        raise HTTPException(400, BROKEN_OFF) from None
    return bytes(body)


async def _receive_soon(receive: Receive) -> Message:
    try:
        async with asyncio.timeout(api_uploads.STALLED_SECONDS):
            return await receive()
    except TimeoutError:
        raise HTTPException(408, TOO_SLOW) from None
