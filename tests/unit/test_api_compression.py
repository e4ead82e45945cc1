"""Answers are compressed as the caller reads them, a stream piece by piece, and songs not at all."""

from __future__ import annotations

import gzip

import brotli
import pytest

from api_compression import Compression
from tests.waiting import result_of

TEXT = b"".join(b"line %d of a long page\n" % number for number in range(20_000))
HALVES = [TEXT[:200_000], TEXT[200_000:]]


def answered(
    accepting: str, pieces: list[bytes], kind: str = "text/html", status: int = 200
) -> tuple[dict[str, str], list[bytes]]:
    """Return the headers and pieces that a caller gets of an answer in `pieces`."""
    sent = []

    async def app(scope, receive, send):
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, piece in enumerate(pieces, 1):
            more = number < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def receive():
        raise AssertionError("nothing is asked of the caller")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"accept-encoding", accepting.encode())]}
    result_of(Compression(app)(scope, receive, send))
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return headers, [message["body"] for message in sent[1:]]


@pytest.mark.parametrize(
    ("accepting", "encoding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("br;q=0.1, gzip", "br"),
        ("gzip;q=1.0,BR ; q=1", "br"),
        ("gzip, br;q=0", "gzip"),
        ("br;q=0.000, gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, brown", "gzip"),
        ("identity", None),
    ],
)
def test_a_page_is_compressed_as_the_caller_reads_it(accepting: str, encoding: str | None):
    headers, pieces = answered(accepting, [TEXT])
    unpack = {"br": brotli.decompress, "gzip": gzip.decompress, None: bytes}[encoding]
    assert headers.get("content-encoding") == encoding
    assert headers["vary"] == "Accept-Encoding"
    (body,) = pieces
    assert unpack(body) == TEXT
    assert encoding is None or int(headers["content-length"]) == len(body) < len(TEXT) / 4


def test_each_piece_of_a_long_answer_can_be_read_when_it_arrives():
    headers, pieces = answered("br", HALVES)
    assert headers["content-encoding"] == "br" and "content-length" not in headers
    reader = brotli.Decompressor()
    read = []
    for piece in pieces:
        start = reader.process(piece)
        # It keeps a part of what it has read until it is asked again.
        read.append(start + b"".join(iter(lambda: reader.process(b""), b"")))
    assert read == HALVES and reader.is_finished()


@pytest.mark.parametrize(
    ("pieces", "kind", "status"),
    [
        (HALVES, "audio/x-wav", 200),
        (HALVES, "text/event-stream; charset=utf-8", 200),
        ([TEXT], "application/octet-stream", 200),
        ([TEXT], "text/plain", 206),
        ([b"short"], "text/html", 200),
    ],
    ids=["a song", "a stream of events", "a file", "a part of a file", "a few words"],
)
def test_what_is_not_compressed_passes_unchanged(pieces, kind, status):
    headers, sent = answered("gzip, br", pieces, kind, status)
    assert sent == pieces and "content-encoding" not in headers
