"""Send hostile requests to a studio of its own and tell what it holds on to: python -m tools.hostile --help

First every attack once, with its answer. Then all of them in a drawn order until the minutes are over,
with a line every minute: requests so far, resident memory, threads, open files, the served folder in MB
and in files, the log in kB. Nothing may grow from the second line on, no answer may be a 500, and the log
may hold no traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60.0
CLOSED = 0  # in place of a status: the studio closed the connection without an answer
MULTIPART = "multipart/form-data; boundary=x"
EVERYTHING_ELSE = (
    "login_check",
    "token",
    "user",
    "monitoring/summary",
    "dev/reload",
    "startup-events",
    "queue/status",
    "app_id",
    "custom_component/x/client/component/index.js",
    "svelte/x",
    "static/../../app.py",
    "assets/..%2f..%2fapp.py",
    "theme.css",
    "robots.txt",
    "manifest.json",
    "pwa_icon",
    "config/",
    "gradio_api/info?page=x&all_endpoints=true",
)


class Target:
    """The studio under attack."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        self.place = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.host = f"{parts.hostname}:{parts.port}"
        self.kept: list[socket.socket] = []  # connections that are held open

    def connect(self) -> socket.socket:
        return socket.create_connection(self.place, SECONDS)

    def keep(self, line: socket.socket, most: int = 40) -> None:
        self.kept.append(line)
        while len(self.kept) > most:
            self.kept.pop(0).close()

    def close(self) -> None:
        while self.kept:
            self.kept.pop().close()

    def raw(self, sent: bytes, ends: bool = False) -> int:
        """Send bytes as they are and return the status of the answer; `ends` closes our half first."""
        with self.connect() as line:
            with contextlib.suppress(ConnectionError):
                line.sendall(sent)
            with contextlib.suppress(OSError):
                if ends:
                    line.shutdown(socket.SHUT_WR)
            return status_of(line)

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        method: str = "",
        *headers: str,
        kind: str = "application/json",
    ) -> int:
        """Send one request and return its status."""
        lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1"]
        lines += [f"Host: {self.host}", "Connection: close", *headers]
        if body is not None:
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        return self.raw("\r\n".join([*lines, "", ""]).encode("utf-8") + (body or b""))

    def call(self, route: str, values: object) -> int:
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        both = "Accept: application/json, text/event-stream"
        return self.ask(f"/gradio_api/{route}", body, "POST", both)

    def upload(self, body: bytes, kind: str = MULTIPART, *headers: str) -> int:
        return self.ask("/gradio_api/upload", body, "POST", *headers, kind=kind)


def status_of(line: socket.socket) -> int:
    """Return the status of an answer, `CLOSED` if there is none."""
    found = b""
    with contextlib.suppress(OSError):
        while len(found) < 12:
            piece = line.recv(12)
            if not piece:
                break
            found += piece
    status = re.match(rb"HTTP/1\.[01] (\d{3})", found)
    return int(status[1]) if status else CLOSED


def part(name: str, filename: str | None = None, content: bytes = b"x", more: str = "") -> bytes:
    called = "" if filename is None else f'; filename="{filename}"'
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{called}\r\n{more}\r\n'
    return head.encode() + content + b"\r\n"


def song(**values: object) -> dict[str, object]:
    return {"prompt": "x", "duration": 10, **values}


END = b"--x--\r\n"
FILE = part("files", "a.wav") + END
Attack = Callable[[Target], int]


def _half_open(target: Target) -> int:
    """Begin requests and leave them."""
    for start in (b"", b"G", b"GET / HTTP/1.1\r\nHost: ", b"POST /gradio_api/upload HTTP/1.1\r\n"):
        line = target.connect()
        line.sendall(start)
        target.keep(line)
    return CLOSED


def _never_read(target: Target) -> int:
    """Ask for streams and never read them."""
    for path in ("/gradio_api/heartbeat/never", "/config", "/"):
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.settimeout(SECONDS)
        line.connect(target.place)
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: {target.host}\r\n\r\n".encode())
        target.keep(line)
    return CLOSED


def _broken_upload(target: Target) -> int:
    with target.connect() as line:
        line.sendall(
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: {MULTIPART}\r\n"
            "Content-Length: 90000000\r\n\r\n".encode()
        )
        line.sendall(part("files", "broken.wav", bytes(3_000_000))[:-2])
    return CLOSED


def _slow_json(target: Target) -> int:
    line = target.connect()
    line.sendall(
        f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {target.host}\r\n"
        'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"data": ['.encode()
    )
    target.keep(line)
    return CLOSED


def _joins_without_reader(target: Target) -> int:
    """Join the queue again and again in one session whose answers nobody fetches."""
    status = CLOSED
    for _ in range(20):
        status = target.call("call/capabilities", {"data": [], "session_hash": "nobody"})
    return status


def _text_flood(target: Target) -> int:
    return target.upload(part("note", content=bytes(3_000_000)) + END)


def _random_bytes(target: Target) -> int:
    return target.raw(random.Random(7).randbytes(5000) + b"\r\n\r\n", ends=True)


def _pipelined(target: Target) -> int:
    one = f"GET /nothing HTTP/1.1\r\nHost: {target.host}\r\n\r\n"
    return target.raw(one.encode() * 50, ends=True)


def _head(target: Target, *lines: str, version: str = "1.1", first: str = "GET /nothing") -> int:
    return target.raw("\r\n".join([f"{first} HTTP/{version}", *lines, "", ""]).encode(), ends=True)


def _smuggled(target: Target) -> int:
    """Hide a second request behind the chunks of a first one that also has a length."""
    return target.raw(
        f"POST /gradio_api/cancel HTTP/1.1\r\nHost: {target.host}\r\nContent-Length: 60\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /gradio_api/file=/etc/passwd HTTP/1.1\r\nX: ".encode(),
        ends=True,
    )


def _chunked(target: Target, path: str, chunks: bytes, kind: str = "application/json") -> int:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: {kind}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    return target.raw(head.encode() + chunks, ends=True)


def _stored(target: Target, content: bytes, name: str) -> str:
    """Upload a file and return its path, "" if it was refused."""
    with target.connect() as line:
        body = part("files", name, content) + END
        line.sendall(
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: {MULTIPART}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = b""
        with contextlib.suppress(OSError):
            while piece := line.recv(65_536):
                answer += piece
    found = re.search(rb'\["([^"]+)"\]', answer)
    return found[1].decode() if found else ""


def _ranges(target: Target, ranges: str) -> int:
    """Ask for ranges of a file that is there."""
    path = _stored(target, bytes(100_000), "ranges.wav")
    return target.ask(f"/gradio_api/file={path}", None, "", f"Range: {ranges}")


def _lora(target: Target, content: bytes, name: str) -> int:
    """Ask for a song with a LoRA of these bytes, which has to be refused before it waits in the queue."""
    path = _stored(target, content, name)
    values = song(options={"loras": [{"source": path, "weight": 1}], "steps": 0})
    return target.call("call/v2/generate", values)


def _zip_of_zeros() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(20):
            file.writestr(f"{number}.safetensors", bytes(5_000_000))
    return made.getvalue()


def _header_only(length: int, text: bytes) -> bytes:
    """Return the start of a safetensors file whose header has this text and says it has this length."""
    return length.to_bytes(8, "little") + text


def _slow_bodies(target: Target) -> int:
    """Send most of twenty large bodies and keep them waiting for their ends."""
    for _ in range(20):
        line = target.connect()
        with contextlib.suppress(OSError):
            line.sendall(
                f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {target.host}\r\n"
                "Content-Type: application/json\r\nContent-Length: 4000000\r\n\r\n".encode()
                + bytes(2_000_000)
            )
        target.keep(line)
    return CLOSED


def _broken_task(target: Target) -> int:
    """Begin a task with a file for the official API, and break off."""
    with target.connect() as line, contextlib.suppress(OSError):
        line.sendall(
            f"POST /release_task HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: {MULTIPART}\r\n"
            "Content-Length: 90000000\r\n\r\n".encode()
        )
        line.sendall(part("src_audio", "broken.wav", bytes(3_000_000))[:-2])
    return CLOSED


def _websocket(target: Target, path: str) -> int:
    """Ask for a websocket and send frames without waiting for the answer."""
    head = (
        f"GET {path} HTTP/1.1\r\nHost: {target.host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    return target.raw(head.encode() + b"\x81\xff" + b"\xff" * 200, ends=True)


def _chat(target: Target, **values: object) -> int:
    return target.ask("/v1/chat/completions", json.dumps(values).encode())


def _sound(data: str, kind: str = "wav") -> list[object]:
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return [{"role": "user", "content": [audio]}]


DEEP = b"[" * 100_000
DEEP_TEXT = "[" * 50_000

ATTACKS: dict[str, Attack] = {
    # how a request is written
    "two lengths": lambda t: _head(t, f"Host: {t.host}", "Content-Length: 1", "Content-Length: 2"),
    "length and chunks": lambda t: _head(
        t, f"Host: {t.host}", "Content-Length: 4", "Transfer-Encoding: chunked"
    ),
    "chunks that are none": lambda t: t.raw(
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {t.host}\r\nTransfer-Encoding: chunked\r\n"
        f"Content-Type: {MULTIPART}\r\n\r\nzz\r\n".encode(),
        ends=True,
    ),
    "negative length": lambda t: _head(t, f"Host: {t.host}", "Content-Length: -5"),
    "two hosts": lambda t: _head(t, f"Host: {t.host}", "Host: evil.example"),
    "no host": lambda t: _head(t),
    "HTTP/1.0": lambda t: _head(t, version="1.0"),
    "HTTP/0.9": lambda t: t.raw(b"GET /\r\n", ends=True),
    "HTTP/2 preface": lambda t: t.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ends=True),
    "a TLS hello": lambda t: t.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, ends=True),
    "another site's address": lambda t: _head(t, "Host: evil.example", first="GET http://evil.example/"),
    "CONNECT": lambda t: _head(t, f"Host: {t.host}", first="CONNECT evil.example:443"),
    "TRACE": lambda t: t.ask("/", None, "TRACE"),
    "an unknown method": lambda t: t.ask("/config", None, "STEAL"),
    "a folded header": lambda t: _head(t, f"Host: {t.host}", "X-A: b", " c"),
    "a header with NUL": lambda t: _head(t, f"Host: {t.host}", "X-A: a\0b"),
    "a long header": lambda t: _head(t, f"Host: {t.host}", "X-A: " + "a" * 200_000),
    "many headers": lambda t: _head(t, f"Host: {t.host}", *("X-A: a" for _ in range(20_000))),
    "a long address": lambda t: t.ask("/" + "a" * 60_000),
    "random bytes": _random_bytes,
    "pipelined requests": _pipelined,
    "expects 100-continue": lambda t: _head(
        t, f"Host: {t.host}", "Expect: 100-continue", "Content-Length: 5", first="POST /gradio_api/cancel"
    ),
    "a websocket": lambda t: t.ask(
        "/gradio_api/queue/join",
        None,
        "GET",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ),
    "odd encodings": lambda t: t.ask("/", None, "", "Accept-Encoding: gzip;q=x, br;q=-1, \u00e9"),
    "odd proxies": lambda t: t.ask(
        "/config",
        None,
        "",
        "X-Forwarded-Proto: javascript",
        "X-Forwarded-For: " + "1.1.1.1, " * 500,
        "X-Forwarded-Host: ]",
    ),
    "a cookie of garbage": lambda t: t.ask("/", None, "", "Cookie: " + "=;" * 4000),
    "half-open requests": _half_open,
    "streams that nobody reads": _never_read,
    # uploads
    "a boundary of 10,000 letters": lambda t: t.upload(FILE, f"multipart/form-data; boundary={'b' * 10_000}"),
    "an empty boundary": lambda t: t.upload(FILE, 'multipart/form-data; boundary=""'),
    "10,000 parts": lambda t: t.upload(part("note") * 10_000 + FILE),
    "5,000 headers of a part": lambda t: t.upload(part("files", "a.wav", more="X-A: b\r\n" * 5000) + END),
    "a part's header of 100 kB": lambda t: t.upload(part("files", "a.wav", more=f"X: {'a' * 100_000}\r\n") + END),
    "a part in base64": lambda t: t.upload(
        part("files", "a.wav", b"UklGRg==", "Content-Transfer-Encoding: base64\r\n") + END
    ),
    "nested multiparts": lambda t: t.upload(
        part("files", "a.wav", FILE, "Content-Type: multipart/mixed; boundary=y\r\n") + END
    ),
    "a name with a quote": lambda t: t.upload(part("files", 'a\\".wav') + END),
    "a name of folders": lambda t: t.upload(part("files", "../" * 60 + "etc/passwd") + END),
    "a name with NUL": lambda t: t.upload(part("files", "a\0.wav") + END),
    "a name from right to left": lambda t: t.upload(part("files", "\u202egnp.wav" * 40) + END),
    "a name of bytes": lambda t: t.upload(FILE.replace(b"a.wav", b"\xff\xfe.wav")),
    "a name in two ways": lambda t: t.upload(part("files\"; filename*=UTF-8''b.wav; a=\"", "a.wav") + END),
    "no disposition": lambda t: t.upload(b"--x\r\nContent-Type: audio/wav\r\n\r\nx\r\n" + END),
    "a preamble and an epilogue": lambda t: t.upload(b"hello\r\n" + FILE + b"bye"),
    "a text flood": _text_flood,
    "an upload that breaks off": _broken_upload,
    "an upload by GET": lambda t: t.ask("/gradio_api/upload"),
    "an upload to a twin of the address": lambda t: t.ask("/gradio_api//upload/", FILE, kind=MULTIPART),
    "an upload as JSON": lambda t: t.call("upload", {"files": ["a"]}),
    "an upload into a component": lambda t: t.ask("/gradio_api/component_server", FILE, kind=MULTIPART),
    # JSON
    "not a number": lambda t: t.call("call/v2/generate", b'{"prompt": "x", "duration": NaN}'),
    "infinity": lambda t: t.call("call/v2/generate", b'{"prompt": "x", "duration": -Infinity, "seed": Infinity}'),
    "1e400": lambda t: t.call("call/v2/generate", b'{"prompt": "x", "duration": 1e400, "bpm": 1e400}'),
    "10,000 digits": lambda t: t.call("call/v2/generate", b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}"),
    "half a letter": lambda t: t.call("call/v2/generate", b'{"prompt": "x", "language": "\\ud800"}'),
    "half a letter in a name": lambda t: t.call("call/v2/generate", b'{"prompt": "x", "\\ud800": 1}'),
    "UTF-16": lambda t: t.call("call/v2/generate", '{"prompt": "x", "takes": 99}'.encode("utf-16")),
    "a bomb in gzip": lambda t: t.ask(
        "/gradio_api/call/v2/generate", gzip.compress(bytes(50_000_000), 1), "POST", "Content-Encoding: gzip"
    ),
    "the same name twice": lambda t: t.call("call/v2/generate", b'{"prompt": "x", "takes": 1, "takes": 99}'),
    "20,000 names": lambda t: t.call("call/v2/generate", {f"name{i}": i for i in range(20_000)}),
    "options of a million": lambda t: t.call("call/v2/generate", song(options={"loras": [1] * 1_000_000})),
    "a session that is a number": lambda t: t.call("queue/join", {"data": [], "fn_index": 0, "session_hash": 7}),
    "a long name of a session": lambda t: t.call("queue/join", {"data": [], "fn_index": 0, "session_hash": "a" * 1000}),
    "a function that is true": lambda t: t.call("queue/join", {"data": [], "fn_index": True, "session_hash": "a"}),
    "a function below zero": lambda t: t.call("queue/join", {"data": [], "fn_index": -1, "session_hash": "a"}),
    "no data": lambda t: t.call("queue/join", {"fn_index": 1, "session_hash": "a"}),
    "a song past the queue": lambda t: t.call("run/generate", {"data": ["x"]}),
    "a slow body": _slow_json,
    "joins that nobody reads": _joins_without_reader,
    "the event of another": lambda t: t.call("cancel", {"session_hash": "a", "fn_index": 1, "event_id": "0" * 32}),
    "the iterator of another": lambda t: t.call("reset", {"event_id": "0" * 32}),
    "the stream of another": lambda t: t.call("stream/" + "0" * 32, {"data": []}),
    "a component's own functions": lambda t: t.call(
        "component_server", {"data": [], "component_id": 1, "session_hash": "a", "fn_name": "__init__"}
    ),
    "a component that is none": lambda t: t.call(
        "component_server", {"data": 1, "component_id": 10**9, "session_hash": "a", "fn_name": "ls"}
    ),
    # MCP
    "MCP in a list": lambda t: t.call("mcp/", [{"jsonrpc": "2.0", "method": "ping", "id": 1}]),
    "MCP without a method": lambda t: t.call("mcp/", {"jsonrpc": "2.0", "id": {}}),
    "MCP with a method of numbers": lambda t: t.call("mcp/", {"jsonrpc": "9", "method": 7, "id": []}),
    "an MCP tool that is none": lambda t: t.call(
        "mcp/", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "__class__", "arguments": 7}}
    ),
    "an MCP resource on the disk": lambda t: t.call(
        "mcp/", {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "file:///etc/passwd"}}
    ),
    # addresses
    "a file of the system": lambda t: t.ask("/gradio_api/file=/etc/passwd"),
    "a file above": lambda t: t.ask("/gradio_api/file=..%2f..%2f..%2fetc%2fpasswd"),
    "a file with NUL": lambda t: t.ask("/gradio_api/file=%00/etc/passwd"),
    "a process's own files": lambda t: t.ask("/gradio_api/file=/proc/self/environ"),
    "a file in bad letters": lambda t: t.ask("/gradio_api/file=%ff%fe"),
    "the source": lambda t: t.ask(f"/gradio_api/file={ROOT}/app.py"),
    "a range of everything": lambda t: t.ask(
        "/gradio_api/file=/etc/passwd", None, "", "Range: bytes=" + ",".join(f"{i}-" for i in range(500))
    ),
    "a run above": lambda t: t.ask("/runs/..%2f..%2fetc%2fpasswd/takes/1"),
    "take number 10^30": lambda t: t.ask(f"/runs/{'a' * 32}/takes/{10**30}"),
    "1,000 runs": lambda t: t.ask("/runs?" + "&".join(f"id={i}" for i in range(1000))),
    "events after 10^30": lambda t: t.ask(f"/runs/{'a' * 32}/events?after={'9' * 30}"),
    "an unknown session": lambda t: t.ask("/gradio_api/queue/data?session_hash=unknown"),
    "a deep link above": lambda t: t.ask("/?deep_link=..%2f..%2fetc"),
    "another page": lambda t: t.ask(f"/gradio_api/info?page={random.random()}"),
    "everything else": lambda t: max(t.ask(f"/{path}") for path in EVERYTHING_ELSE),
    "everything else by HEAD": lambda t: max(t.ask(f"/{path}", None, "HEAD") for path in EVERYTHING_ELSE),
    "every page by OPTIONS": lambda t: t.ask("/gradio_api/upload", None, "OPTIONS", "Origin: https://evil.example"),
    "an upload from another site": lambda t: t.upload(FILE, MULTIPART, "Origin: https://evil.example"),
    # how a request is written, once more
    "a space before the colon": lambda t: _head(t, f"Host: {t.host}", "Content-Length : 5"),
    "a length with a sign": lambda t: _head(t, f"Host: {t.host}", "Content-Length: +5"),
    "a length of 10^40": lambda t: _head(t, f"Host: {t.host}", "Content-Length: 1" + "0" * 40, first="POST /config"),
    "two encodings of a body": lambda t: _head(t, f"Host: {t.host}", "Transfer-Encoding: chunked, identity"),
    "a smuggled request": _smuggled,
    "a chunk with an extension of 60 kB": lambda t: _chunked(
        t, "/gradio_api/cancel", b"2;" + b"a" * 60_000 + b"\r\n{}\r\n0\r\n\r\n"
    ),
    "trailers of 60 kB": lambda t: _chunked(
        t, "/gradio_api/cancel", b"2\r\n{}\r\n0\r\nX-A: " + b"a" * 60_000 + b"\r\n\r\n"
    ),
    "4,000 chunks of a byte": lambda t: _chunked(t, "/gradio_api/cancel", b"1\r\n \r\n" * 4000 + b"0\r\n\r\n"),
    "lines without a carriage return": lambda t: t.raw(f"GET / HTTP/1.1\nHost: {t.host}\n\n".encode(), ends=True),
    "a host behind a name": lambda t: _head(t, f"Host: {t.host}@evil.example"),
    "a host of letters from elsewhere": lambda t: _head(t, "Host: 127\u30020.0.1".encode().decode("latin-1")),
    "another method by a header": lambda t: t.ask("/config", None, "", "X-HTTP-Method-Override: DELETE"),
    "a token of 60 kB": lambda t: t.ask("/v1/models", None, "", "Authorization: Bearer " + "a" * 60_000),
    "a question of 5,000 names": lambda t: t.ask("/gradio_api/info?" + "&".join(f"a{i}=1" for i in range(5000))),
    "an encoded route": lambda t: t.ask("/%67radio_api/%75pload", part("n", content=bytes(3_000_000)), kind=MULTIPART),
    "a route through dots": lambda t: t.ask("/gradio_api/./queue/../upload", FILE, kind=MULTIPART),
    "a route in capitals": lambda t: t.ask("/GRADIO_API/UPLOAD", FILE, kind=MULTIPART),
    "a route with a null": lambda t: t.ask("/gradio_api/call/generate%00", b"{}"),
    "a websocket with frames": lambda t: max(_websocket(t, path) for path in ("/", "/gradio_api/queue/join", "/runs")),
    "bodies that wait for their ends": _slow_bodies,
    # files
    "1,000 ranges": lambda t: _ranges(t, "bytes=" + ",".join(f"{i}-{i + 1}" for i in range(0, 3000, 3))),
    "the same range 1,000 times": lambda t: _ranges(t, "bytes=" + ",".join(["0-"] * 1000)),
    "ranges the wrong way round": lambda t: _ranges(t, "bytes=9-1,-0,5-4"),
    "a range from the end of time": lambda t: _ranges(t, f"bytes=-{'9' * 40}"),
    "a range in other words": lambda t: _ranges(t, "\u0661-"),
    "a file with a long name": lambda t: t.ask(f"/gradio_api/file=/{'a' * 5000}"),
    "a file in 3,000 folders": lambda t: t.ask(f"/gradio_api/file={'/a' * 3000}"),
    "a file of Windows": lambda t: t.ask("/gradio_api/file=C:%5CWindows%5Cwin.ini"),
    "a file of a neighbour": lambda t: t.ask("/gradio_api/file=//evil.example/share/x"),
    "a file at home": lambda t: t.ask("/gradio_api/file=~root/.ssh/id_rsa"),
    "the folder itself": lambda t: t.ask(f"/gradio_api/file={_stored(t, b'x', 'a.wav').rpartition('/')[0]}"),
    "a file below a file": lambda t: t.ask(f"/gradio_api/file={_stored(t, b'x', 'a.wav')}/b"),
    "a name of 100 kB": lambda t: t.upload(part("files", "a" * 100_000) + END),
    "a name of half letters": lambda t: t.upload(FILE.replace(b"a.wav", b"\xed\xa0\x80.wav")),
    "a packed upload": lambda t: t.upload(gzip.compress(FILE), MULTIPART, "Content-Encoding: gzip"),
    "an upload with 100 ids": lambda t: t.ask(
        "/gradio_api/upload?" + "&".join(f"upload_id={i}" for i in range(100)), FILE, kind=MULTIPART
    ),
    "a LoRA's header of 2^62 bytes": lambda t: _lora(t, _header_only(2**62, b"{}"), "a.safetensors"),
    "a LoRA's header that is deep": lambda t: _lora(t, _header_only(len(DEEP), DEEP), "a.safetensors"),
    "a zip of zeros": lambda t: _lora(t, _zip_of_zeros(), "a.zip"),
    "a LoRA of the system": lambda t: t.call(
        "call/v2/generate", song(options={"loras": [{"source": "/etc/passwd"}], "steps": 0})
    ),
    # runs
    "a run with line breaks": lambda t: t.ask("/runs/a%0d%0aX-A:%20b%0a/events"),
    "a run of 60 kB": lambda t: t.ask("/runs/" + "a" * 60_000),
    "events after an Arabic number": lambda t: t.ask(f"/runs/{'a' * 32}/events?after=%D9%A3"),
    "an event that is no number": lambda t: t.ask(f"/runs/{'a' * 32}/events", None, "", "Last-Event-ID: -1"),
    "a run that is cancelled by GET": lambda t: t.ask(f"/runs/{'a' * 32}/cancel"),
    "a session that looks like an event": lambda t: t.call(
        "queue/join", {"data": [], "fn_index": 1, "session_hash": "a\n\ndata: {}"}
    ),
    "a trigger and an event from nowhere": lambda t: t.call(
        "queue/join",
        {"data": [], "fn_index": 1, "session_hash": "a", "trigger_id": {}, "event_data": {"target": [[]]}},
    ),
    # MCP
    "MCP by GET and DELETE": lambda t: max(
        t.ask("/gradio_api/mcp/", None, method, "Accept: application/json, text/event-stream", "Mcp-Session-Id: \u2028")
        for method in ("DELETE", "PUT", "HEAD")
    ),
    "MCP that is deep": lambda t: t.call("mcp/", b'{"jsonrpc": "2.0", "method": "ping", "id": ' + DEEP),
    "MCP of a version to come": lambda t: t.call(
        "mcp/", {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "9" * 10_000}}
    ),
    "MCP with parameters in a list": lambda t: t.call(
        "mcp/", {"jsonrpc": "2.0", "id": 1e308, "method": "tools/call", "params": [1, 2]}
    ),
    "an MCP tool with half a letter": lambda t: t.call(
        "mcp/",
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"capabilities","arguments":{"\\ud800":1}}}',
    ),
    "an MCP answer to no question": lambda t: t.call("mcp/", {"jsonrpc": "2.0", "id": 1, "result": {}}),
    # the official API
    "a song above": lambda t: max(
        t.ask(f"/v1/audio?path={path}")
        for path in ("..%2f..%2fetc%2fpasswd", "/etc/passwd", "%00", "acestep/" + "a" * 32 + "/1.mp3", "a" * 5000)
    ),
    "a task that is deep": lambda t: t.ask("/release_task", DEEP),
    "a task with depth in a text": lambda t: t.ask(
        "/release_task", json.dumps({"task_type": "cover", "param_obj": DEEP_TEXT, "audio_duration": 1e999}).encode()
    ),
    "a task of 600 fields": lambda t: t.ask(
        "/release_task",
        "&".join(f"a{i}=1" for i in range(600)).encode(),
        kind="application/x-www-form-urlencoded",
    ),
    "a task with five files": lambda t: t.ask(
        "/release_task",
        part("task_type", content=b"cover") + b"".join(part(f"f{i}", "a.wav") for i in range(5)) + END,
        kind=MULTIPART,
    ),
    "a task with a text of 3 MB": lambda t: t.ask(
        "/release_task", part("prompt", content=bytes(3_000_000)) + END, kind=MULTIPART
    ),
    "a task that breaks off": _broken_task,
    "a task with a file of the system": lambda t: t.ask(
        "/release_task", b'{"task_type": "cover", "src_audio_path": "/etc/passwd", "prompt": "x"}'
    ),
    "10,000 tasks at once": lambda t: t.ask(
        "/query_result", json.dumps({"task_id_list": json.dumps(["a" * 32] * 10_000)}).encode()
    ),
    "tasks in depth": lambda t: t.ask("/query_result", json.dumps({"task_id_list": DEEP_TEXT}).encode()),
    "a model from elsewhere": lambda t: t.ask("/v1/init", b'{"model": "../../etc", "slot": [], "init_llm": {}}'),
    "a LoRA from elsewhere": lambda t: max(
        t.ask("/v1/lora/load", json.dumps({"lora_path": path}).encode())
        for path in ("/etc/passwd", "../..", "\0", "a" * 5000, "https://evil.example/x.safetensors", "\ud800")
    ),
    "a LoRA's scale of nothing": lambda t: t.ask("/v1/lora/scale", b'{"scale": NaN}'),
    "a chat without words": lambda t: _chat(t, messages=[{"role": "user", "content": []}] * 10_000),
    "a chat with a sound that is none": lambda t: _chat(t, messages=_sound("data:audio/wav;base64,%%%%", "../../x")),
    "a chat with 20 MB of nothing": lambda t: _chat(t, messages=_sound("A" * 20_000_000), seed=[[]]),
    "a chat that is deep": lambda t: t.ask("/v1/chat/completions", b'{"messages": ' + DEEP),
    "a chat of numbers": lambda t: _chat(t, messages=7, seed=float("nan"), audio_config=[[]]),
    "an upload from nowhere": lambda t: t.upload(FILE, MULTIPART, "Origin: null", "Sec-Fetch-Site: cross-site"),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> bool:
    """Run the attacks that the arguments ask for; return whether nothing fell short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two attacks")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (process, url):
        bad = once(Target(url))
        for line in lasting(Target(url), process, Path(folder), asked.minutes, asked.pause):
            print("  ".join(f"{name} {value:g}" for name, value in line.items()), flush=True)
        log = (Path(folder) / "log").read_text(errors="replace")
        tracebacks = log.count("Traceback (most recent call last)")
        print(
            f"{len(ATTACKS)} attacks, {bad} answered with a 500, {tracebacks} tracebacks in the log"
        )
        if tracebacks:
            print(log[log.index("Traceback") :][:4000])
        return not bad and not tracebacks


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Serve a studio on the built-in engine whose files and log lie in `folder`."""
    environ = {
        **os.environ,
        "ACE_STUDIO_MODEL": "preview",
        "ACE_STUDIO_OUTPUT": str(folder / "songs"),
        "GRADIO_TEMP_DIR": str(folder / "page"),
        "GRADIO_MCP_SERVER": "true",
        "TMPDIR": str(folder),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, (folder / "log").read_text()
        yield psutil.Process(process.pid), found[0]
    finally:
        process.terminate()
        process.wait(30)


def once(target: Target) -> int:
    """Try every attack once and print its answer; return how many were answered with a 500."""
    bad = 0
    for name, attack in ATTACKS.items():
        status = attack(target)
        bad += status == 500
        print(f"{status or 'closed':>6}  {name}", flush=True)
    target.close()
    return bad


def lasting(
    target: Target, process: psutil.Process, folder: Path, minutes: float, pause: float
) -> Iterator[dict[str, float]]:
    """Yield a line of facts each minute while the attacks continue, the first before them."""
    draw = random.Random(7)
    begun = time.monotonic()
    minutes_passed = 0
    attacks = 0
    yield facts(process, folder, 0, 0)
    while minutes_passed < minutes:
        draw.choice(list(ATTACKS.values()))(target)
        attacks += 1
        time.sleep(pause)
        if time.monotonic() - begun >= (minutes_passed + 1) * 60:
            minutes_passed += 1
            yield facts(process, folder, minutes_passed, attacks)
    target.close()


def facts(process: psutil.Process, folder: Path, minutes: float, attacks: int) -> dict[str, float]:
    served = [path for path in (folder / "page").rglob("*") if path.is_file()]
    return {
        "minute": minutes,
        "attacks": attacks,
        "MB": round(process.memory_info().rss / 1e6, 1),
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "served MB": round(sum(path.stat().st_size for path in served) / 1e6, 2),
        "served files": len(served),
        "log kB": round((folder / "log").stat().st_size / 1e3, 1),
    }


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
