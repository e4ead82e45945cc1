"""A proxy between the browser and a studio whose connections a test can cut, as a bad network does.

Or one that forwards too little: the studio is told another host than the page was opened under.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on to `address` from a port of its own until the block ends; `cut` resets all connections.

    The studio sees `host` in place of the page's own, if it is given.
    """

    def __init__(self, address: str, host: str = ""):
        parts = urlsplit(address)
        self._host = host
        self._target = parts.hostname, parts.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection, and each new one, until `mend`."""
        with self._lock:
            self._cut = True
            for each in self._open:
                _reset(each)
            self._open.clear()

    def mend(self) -> None:
        with self._lock:
            self._cut = False

    def _accept(self) -> None:
        while True:
            try:
                browser, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._cut:
                    _reset(browser)
                    continue
                studio = socket.create_connection(self._target)
                self._open |= {browser, studio}
            own = self.url.split("/")[2].encode()
            renamed = (b"Host: " + own, b"Host: " + (self._host.encode() or own))
            for one, other, change in (
                (browser, studio, renamed),
                (studio, browser, (b"", b"")),
            ):
                threading.Thread(
                    target=self._pass_on, args=(one, other, *change), daemon=True
                ).start()

    def _pass_on(
        self, one: socket.socket, other: socket.socket, said: bytes, instead: bytes
    ) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data.replace(said, instead) if said else data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN, also for a thread that is reading."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
