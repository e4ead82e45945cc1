"""Connections that ask for nothing: closed after a while, and never so many that files run out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket

import httpx
import pytest

import connections


def connect(server: str) -> socket.socket:
    host, port = server.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_request_that_does_not_come_is_given_up(server, monkeypatch, asked_before):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connect(server) as line:
        if asked_before:
            line.sendall(b"HEAD /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"\r\n\r\n" in line.recv(65_536)
        line.sendall(b"GET / HTTP/1.1\r\nHost: localh")
        assert line.recv(65_536) == b""  # closed


def test_a_connection_that_says_nothing_is_given_up(server, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connect(server) as line:
        assert line.recv(65_536) == b""


def test_an_answer_may_take_longer_than_a_head(server, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connect(server) as line:
        line.sendall(b"GET /gradio_api/heartbeat/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in line.recv(65_536)
        line.settimeout(1.0)
        with pytest.raises(TimeoutError):
            while line.recv(65_536):
                pass


def test_there_are_files_left_for_the_rest(monkeypatch):
    limits = {}
    for soft, hard, most in (
        (256, 256, 53),
        (100, 100, connections.LEAST_CONNECTIONS),
        (1024, 1_000_000, 1000),
        (256, resource.RLIM_INFINITY, 1000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, found=(soft, hard): found)
        monkeypatch.setattr(resource, "setrlimit", lambda kind, asked: limits.update({kind: asked}))
        assert connections.most_connections() == most, (soft, hard)
    assert limits[resource.RLIMIT_NOFILE] == (4096, resource.RLIM_INFINITY)


def test_those_beyond_the_limit_are_closed_unheard():
    class Protocol(asyncio.Protocol):
        cycle = None

        def __init__(self, connections, loop):
            self.connections = connections
            self.loop = loop

        def connection_made(self, transport):
            self.transport = transport
            self.connections.add(self)

    class Transport:
        aborted = False

        def abort(self):
            self.aborted = True

        def is_closing(self):
            return False

        def get_extra_info(self, name):
            return None

    class Loop:
        def call_later(self, seconds, call):
            return seconds

    made = connections.limited(Protocol, 2)
    there: set = set()
    transports = [Transport() for _ in range(3)]
    for transport in transports:
        made(there, Loop()).connection_made(transport)
    assert [transport.aborted for transport in transports] == [False, False, True]


def test_answers_that_nobody_reads_are_bounded_in_bytes(server, monkeypatch):
    """The latest stay; those who have not read for longest are given up."""
    monkeypatch.setattr(connections, "MOST_UNREAD_BYTES", 4_000_000)
    size = len(httpx.get(server, headers={"Accept-Encoding": "identity"}, timeout=300).content)
    lines = [page_unread(server) for _ in range(4_000_000 // size + 3)]
    lengths = [len(received(line)) for line in lines]
    for line in lines:
        line.close()
    assert lengths[-1] >= size
    assert lengths[0] < size


def page_unread(server: str) -> socket.socket:
    """Ask for the page on a connection that takes little, and wait until some of it is there."""
    host, port = server.removeprefix("http://").split(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    line.settimeout(60)
    line.connect((host, int(port)))
    line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert line.recv(1, socket.MSG_PEEK)
    return line


def received(line: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := line.recv(2**20):
            found += piece
    return found
