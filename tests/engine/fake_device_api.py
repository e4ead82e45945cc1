"""ZeroGPU's device API, played on loopback: it lends cards that do not exist and ends workers that keep them too long.

Only what `spaces` asks for is there: four POSTs with query parameters. What HF's scheduler decides by itself is told to
it by the test: `refusals` for the next calls, `faults` of the other routes, `evict` warm workers, make a second last
`second` real ones.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from tests.waiting import until


@dataclass
class Lease:
    """One card lent to one call."""

    token: str
    index: int
    seconds: float
    params: dict[str, str]
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None
    failed: bool = False
    killed: bool = False


class DeviceAPI:
    """Serves until the block ends; `leases` are in the order of the calls, `refusals` the answers to the next ones."""

    def __init__(self):
        self.leases: list[Lease] = []
        self.asked: list[dict[str, str]] = []
        self.reports = 0
        self.refusals: list[Refusal | Raw | Queued] = []
        # Route -> the answers to its next calls: a status, or 0 for a connection that drops.
        self.faults: dict[str, list[int]] = {"release": [], "allow": []}
        self.second = 1.0
        self.reuse = True
        self._pids: dict[int, int] = {}
        self._warm: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> DeviceAPI:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                url = urlsplit(self.path)
                answer = api.answer(url.path, dict(parse_qsl(url.query)))
                if callable(answer):
                    answer(self)
                    return
                status, body, headers = answer
                if not status:
                    self.close_connection = True
                    return
                self.send_response_only(status, "x")
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    if value:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, params: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers."""
        name = path.strip("/").replace("-", "_")
        with self._lock:
            if self.faults.get(name):
                return self.faults[name].pop(0), b"", {}
            return getattr(self, f"_{name}")(params)

    def evict(self) -> None:
        """End the warm workers, as ZeroGPU does for another Space; returns once their parent has noticed."""
        for index in self._warm:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[index], signal.SIGKILL)
            until(lambda pid=self._pids[index]: not os.path.exists(f"/proc/{pid}"))

    def _startup_report(self, params):
        self.reports += 1
        return 200, b"", {}

    def _schedule(self, params):
        self.asked.append(params)
        if self.refusals:
            refusal = self.refusals.pop(0)
            if not isinstance(refusal, Queued):
                return refusal.answer()
            return functools.partial(refusal.answer, lambda: self._lend(params))
        return self._lend(params)

    def _lend(self, params):
        taken = {lease.index for lease in self.leases if lease.ended is None}
        index = next(number for number in range(100) if number not in taken)
        lease = Lease(uuid.uuid4().hex, index, float(params["durationSeconds"]), params)
        self.leases.append(lease)
        warm = index in self._warm and self.reuse
        if warm:
            self._watch(lease)
        body = {"idle": warm, "nvidiaIndex": index, "nvidiaUUID": f"card-{index}", "allowToken": lease.token}
        return 200, json.dumps(body).encode(), {}

    def _allow(self, params):
        lease = self._of(params)
        self._pids[lease.index] = int(params["pid"])
        self._watch(lease)
        return 200, b"", {}

    def _release(self, params):
        lease = self._of(params)
        if lease is None:
            return 404, b"", {}
        lease.ended, lease.failed = time.monotonic(), params.get("fail") == "true"
        (self._warm.discard if lease.failed else self._warm.add)(lease.index)
        return 200, b"", {}

    def _of(self, params) -> Lease | None:
        return next((lease for lease in self.leases if lease.token == params["allowToken"]), None)

    def _watch(self, lease: Lease) -> None:
        """End the worker with SIGKILL once its time is up."""
        pid = self._pids[lease.index]

        def kill():
            if lease.ended is None:
                lease.killed = True
                os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(lease.seconds * self.second, kill)
        timer.daemon = True
        timer.start()


@dataclass(frozen=True)
class Raw:
    """An answer to /schedule as it goes over the wire, whatever it is."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)

    def answer(self) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers."""
        return self.status, self.body.encode(), {"Content-Type": "", **dict(self.headers)}


@dataclass(frozen=True)
class Queued:
    """An answer to /schedule that queues the visitor: `pings`, then a card, or a connection that `drops`.

    `silent` waits that many seconds before the end.
    """

    pings: int = 2
    drops: bool = False
    silent: float = 0.0

    def answer(self, lend: Callable, handler: BaseHTTPRequestHandler) -> None:
        """Stream the queue's events; a visitor who hangs up ends it."""
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def say(text: str) -> None:
            handler.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
            handler.wfile.flush()
            # An event a packet, as `spaces` reads them.
            time.sleep(0.2)

        handler.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(self.pings):
                say("event: ping\n\n")
            time.sleep(self.silent)
            if not self.drops:
                say(f"event: succeeded\ndata: {lend()[1].decode()}\n\n")
                handler.wfile.write(b"0\r\n\r\n")


@dataclass(frozen=True)
class Refusal:
    """An answer to /schedule that lends nothing; `wait` below 0 means that the duration is illegal."""

    status: int
    left: int = 0
    wait: float = 0.0
    result: str = ""
    stream: str = ""

    def answer(self) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers."""
        if self.stream:
            return 200, self.stream.encode(), {"Content-Type": "text/event-stream"}
        headers = {"X-Approve-Result": self.result} if self.result else {}
        return self.status, json.dumps({"left": self.left, "wait": self.wait}).encode(), headers
