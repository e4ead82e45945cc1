"""ZeroGPU's device API, played on loopback: it lends cards that do not exist and ends workers that keep them too long.

Only what `spaces` asks for is there: four POSTs with query parameters. The test tells it what HF's scheduler decides by
itself: `answers` to the next calls for a card, `faults` of the other routes, `evict` warm workers, how many real
seconds a `second` lasts, and which leases last for ever, by the seconds that were asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from tests.waiting import until

STREAM = "text/event-stream"


@dataclass(frozen=True)
class Answer:
    """An answer to any call; a `status` of 0 is a connection that drops."""

    status: int = 200
    body: str = ""
    type: str = "application/json"
    result: str = ""

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        if not self.status:
            handler.close_connection = True
            return
        handler.send_response_only(self.status, "x")
        headers = {
            "Content-Type": self.type,
            "X-Approve-Result": self.result,
            "Content-Length": str(len(self.body)),
        }
        for name, value in headers.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.body.encode())


def no_quota(left: int = 0, wait: float = 0.0, result: str = "") -> Answer:
    """Refuse a card for lack of quota; `wait` below 0 means that the duration is illegal."""
    return Answer(429, json.dumps({"left": left, "wait": wait}), result=result)


@dataclass(frozen=True)
class Queued:
    """An answer that queues the visitor: `pings`, `silent` seconds, then a card, or a connection that `drops`.

    It pings on until `free` is set, if there is one.
    """

    pings: int = 2
    drops: bool = False
    silent: float = 0.0
    free: threading.Event | None = None
    lend: Callable[[], Answer] | None = None

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        """Stream the queue's events; a visitor who hangs up ends it."""
        handler.send_response(200)
        handler.send_header("Content-Type", STREAM)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def say(text: str) -> None:
            handler.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
            handler.wfile.flush()
            time.sleep(0.2)  # an event a packet, as `spaces` reads them

        handler.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(self.pings):
                say("event: ping\n\n")
            while self.free and not self.free.is_set():
                say("event: ping\n\n")
            time.sleep(self.silent)
            if not self.drops:
                say(f"event: succeeded\ndata: {self.lend().body}\n\n")
                handler.wfile.write(b"0\r\n\r\n")


@dataclass
class Lease:
    """One card lent to one call."""

    token: str
    index: int
    seconds: float
    ended: float | None = None
    failed: bool = False
    killed: bool = False


class DeviceAPI:
    """Serves until the block ends; `leases` are in the order of the calls."""

    def __init__(self):
        self.leases: list[Lease] = []
        self.asked: list[dict[str, str]] = []
        self.reports = 0
        self.answers: list[Answer | Queued] = []
        self.faults: dict[str, list[Answer]] = {"release": [], "allow": []}
        self.second = 1.0
        self.endless: set[float] = set()
        self._pids: dict[int, int] = {}
        self._warm: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> DeviceAPI:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                url = urlsplit(self.path)
                name, params = url.path.strip("/").replace("-", "_"), dict(parse_qsl(url.query))
                with api._lock:
                    fault = api.faults.get(name)
                    answer = fault.pop(0) if fault else getattr(api, f"_{name}")(params)
                answer.send(self)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def evict(self) -> None:
        """End the warm workers, as ZeroGPU does for another Space; returns once their parent has noticed."""
        for index in self._warm:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[index], signal.SIGKILL)
            until(lambda pid=self._pids[index]: not os.path.exists(f"/proc/{pid}"))

    def _startup_report(self, params) -> Answer:
        self.reports += 1
        return Answer()

    def _schedule(self, params) -> Answer | Queued:
        self.asked.append(params)
        answer = self.answers.pop(0) if self.answers else self._lend(params)
        return (
            replace(answer, lend=lambda: self._lend(params))
            if isinstance(answer, Queued)
            else answer
        )

    def _lend(self, params) -> Answer:
        taken = {lease.index for lease in self.leases if lease.ended is None}
        index = next(number for number in range(100) if number not in taken)
        lease = Lease(uuid.uuid4().hex, index, float(params["durationSeconds"]))
        self.leases.append(lease)
        warm = index in self._warm
        if warm:
            self._watch(lease)
        body = {
            "idle": warm,
            "nvidiaIndex": index,
            "nvidiaUUID": f"card-{index}",
            "allowToken": lease.token,
        }
        return Answer(body=json.dumps(body))

    def _allow(self, params) -> Answer:
        lease = self._lease_of(params)
        self._pids[lease.index] = int(params["pid"])
        self._watch(lease)
        return Answer()

    def _release(self, params) -> Answer:
        lease = self._lease_of(params)
        if lease is None:
            return Answer(404)
        lease.ended, lease.failed = time.monotonic(), params.get("fail") == "true"
        (self._warm.discard if lease.failed else self._warm.add)(lease.index)
        return Answer()

    def _lease_of(self, params) -> Lease | None:
        return next((lease for lease in self.leases if lease.token == params["allowToken"]), None)

    def _watch(self, lease: Lease) -> None:
        """End the worker with SIGKILL once its time is up."""
        if lease.seconds in self.endless:
            return
        pid = self._pids[lease.index]

        def kill():
            if lease.ended is None:
                lease.killed = True
                os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(lease.seconds * self.second, kill)
        timer.daemon = True
        timer.start()
