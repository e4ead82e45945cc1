"""Bodies of requests are bounded all together, and in time."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import httpx
import pytest

import api_bodies
import api_uploads
from tests.waiting import until

LARGE = b'{"data": [], "session_hash": "' + b"a" * 300_000 + b'"}'
SMALL = b'{"data": []}'


@contextlib.contextmanager
def half_sent(server: str, size: int, kind: str = "application/json") -> Iterator[socket.socket]:
    """Send half of a body of `size` bytes, and keep the connection."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(
            f"POST /gradio_api/call/capabilities HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
            f"Content-Type: {kind}\r\n\r\n".encode()
            + b" " * (size // 2)
        )
        yield line


def ask(server: str, body: bytes, route: str = "gradio_api/call/capabilities") -> httpx.Response:
    return httpx.post(
        f"{server}/{route}", content=body, headers={"content-type": "application/json"}, timeout=300
    )


@pytest.mark.parametrize(
    ("route", "kind"),
    [
        ("gradio_api/call/capabilities", "application/json"),
        ("v1/chat/completions", "multipart/form-data; boundary=x"),
    ],
)
def test_large_bodies_that_wait_for_their_ends_are_bounded_together(
    server, monkeypatch, route, kind
):
    monkeypatch.setattr(api_bodies, "MOST_BYTES", 1_000_000)
    # Whatever it is called: only the routes of files write to the disk.
    with half_sent(server, 1_800_000, kind):
        until(lambda: ask(server, LARGE, route).status_code == 503)
        assert "too many large requests" in ask(server, LARGE, route).json()["detail"]
        assert ask(server, SMALL).status_code == 200
    until(lambda: ask(server, LARGE, route).status_code == 400)


def test_a_body_that_stops_arriving_is_given_up(server, monkeypatch):
    monkeypatch.setattr(api_uploads, "STALLED_SECONDS", 0.2)
    with half_sent(server, 100_000) as line:
        assert line.recv(100).startswith(b"HTTP/1.1 408")


def test_a_body_that_arrives_too_slowly_is_given_up(server, monkeypatch):
    monkeypatch.setattr(api_uploads, "GRACE_SECONDS", -60.0)
    with half_sent(server, 100_000) as line:
        assert line.recv(100).startswith(b"HTTP/1.1 408")
