"""Bodies of requests in memory: all together have a limit, and each has to go on arriving.

Every reader limits a single body. But a thousand connections may each send most of one and wait, so
that four megabytes become four gigabytes. Small bodies always pass: whoever holds the room for large
ones keeps nobody from a song.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import api_uploads

MOST_BYTES = 128 * 2**20  # of all bodies behind their first `FREE_BYTES`
FREE_BYTES = 2**16  # of each body that pass without being counted
TO_DISK = ("/upload", "/release_task")  # routes that write the files of a form while they arrive
FULL = "The studio is reading too many large requests. Try again in a moment."
TOO_SLOW = "The body of the request arrived too slowly and was given up. Try again."


class Bodies:
    """Counts the bodies that are read until they are answered; files go to the disk and do not count."""

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


async def _receive_soon(receive: Receive) -> Message:
    try:
        async with asyncio.timeout(api_uploads.SILENT_SECONDS):
            return await receive()
    except TimeoutError:
        raise HTTPException(408, TOO_SLOW) from None
