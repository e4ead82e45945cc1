"""Limits on connections to the server: their number, and the time that a request's headers may take.

uvicorn waits forever for the headers of a request. Requests that are begun and never completed would
use up every file that the process may open, and then asyncio writes a traceback for each attempt to
accept one more.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

HEADER_SECONDS = 20.0
MOST_CONNECTIONS = 1000
# Files that this process opens besides connections: models, songs, libraries, uploads.
SPARE_FILES = 150
# So many connections over the limit are answered with a 503; further ones are closed at once.
TOLD = 20
WANTED_FILES = 4096


def limit(config: Any) -> None:
    """Limit the connections that a running uvicorn server with this configuration accepts from now on."""
    most = most_connections()
    config.limit_concurrency = most
    config.http_protocol_class = limited(config.http_protocol_class, most + TOLD)


def most_connections() -> int:
    """Return how many connections leave enough files for everything else; a connection may use two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        wanted = WANTED_FILES
    else:
        wanted = min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(min((soft - SPARE_FILES) // 2, MOST_CONNECTIONS), TOLD)


def limited(protocol: type[Any], most: int) -> type[Any]:
    """Return uvicorn's HTTP `protocol` with a limit on connections and on the time that headers may take."""
    return type("Limited", (_Limits, protocol), {"most": most})


class _Limits(asyncio.Protocol):
    most: int
    # Attributes of uvicorn's protocols.
    connections: set[Any]
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _headers_until: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Wait for a whole head of a request, unless one is being answered."""
        if self._is_answering() or self.transport.is_closing():
            self._unwatch()
        elif self._headers_until is None:
            self._headers_until = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _unwatch(self) -> None:
        if self._headers_until is not None:
            self._headers_until.cancel()
            self._headers_until = None

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        self._headers_until = None
        # If the protocol is another one by now, a websocket has taken over.
        if not self._is_answering() and self.transport.get_protocol() is self:
            self.transport.close()
