"""Limits on connections to the server: how many there are, how long the headers of a request may
take, and how much memory unread answers may hold.

uvicorn waits forever for the headers of a request. Requests that are never completed would use up
every file that the process may open, and asyncio would then write a traceback for each attempt to
accept another connection. uvicorn also waits forever for a client to read its answer: a thousand
connections that never read their page would hold more than a gigabyte.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from typing import Any

HEADER_SECONDS = 20.0
MOST_CONNECTIONS = 1000
LEAST_CONNECTIONS = 20  # however few files the process may open
# How many connections over the limit are answered with a 503; any more are closed at once.
MOST_REFUSED = 20
# Files that this process opens besides connections: models, songs, libraries, uploads.
SPARE_FILES = 150
# How many open files the process asks the system for.
WANTED_FILES = 4096
# Bytes of unread answers over all connections. Whatever produced an answer may hold twice as much.
MOST_UNREAD_BYTES = 32 * 2**20
# Bytes of one answer that the system may buffer before it sends them; without this limit, megabytes.
MOST_UNSENT_BYTES = 2**17


def limit(config: Any) -> None:
    """Limit the connections that the uvicorn server with this configuration accepts from now on.

    The server may be running already.
    """
    most = most_connections()
    config.limit_concurrency = most
    config.http_protocol_class = limited(config.http_protocol_class, most + MOST_REFUSED)


def most_connections() -> int:
    """Return how many connections leave enough open files for everything else.

    A connection may use two. The process's own limit is raised as far as it may be.
    """
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
    return max(min((soft - SPARE_FILES) // 2, MOST_CONNECTIONS), LEAST_CONNECTIONS)


def limited(protocol: type[Any], most: int) -> type[Any]:
    """Return uvicorn's HTTP `protocol` with a limit on connections and on the time that headers may take."""
    return type("Limited", (_Limits, protocol), {"most": most, "unread": {}})


class _Limits(asyncio.Protocol):
    most: int
    unread: dict[_Limits, None]  # connections with a full buffer, the longest full first
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
            _limit_unsent(transport)
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self.unread.pop(self, None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread[self] = None
        self._limit_unread()

    def resume_writing(self) -> None:
        self.unread.pop(self, None)
        super().resume_writing()

    def _limit_unread(self) -> None:
        """Close the connections that have been unread longest until the unread answers are few enough.

        This one, which has only just filled up, is kept.
        """
        held = sum(each.transport.get_write_buffer_size() for each in self.unread)
        for each in list(self.unread)[:-1]:
            if held <= MOST_UNREAD_BYTES:
                return
            held -= each.transport.get_write_buffer_size()
            del self.unread[each]
            each.transport.abort()

    def _watch(self) -> None:
        """Give the client time to send all headers of a request, unless one is being answered."""
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
        # A websocket may have taken over; then the transport has another protocol.
        if not self._is_answering() and self.transport.get_protocol() is self:
            self.transport.close()


def _limit_unsent(transport: asyncio.Transport) -> None:
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    line = transport.get_extra_info("socket")
    if option is None or line is None or line.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):
        line.setsockopt(socket.IPPROTO_TCP, option, MOST_UNSENT_BYTES)
