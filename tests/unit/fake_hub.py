"""A hub of our own on 127.0.0.1: the two routes that a download uses, and huggingface_hub pointed at them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants

import model_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 50_000
"""Bytes of a file that are sent at a time."""


class FakeHub(ThreadingHTTPServer):
    """A hub with one repository: a model's files with their hashes, and the files, with ranges.

    `asked` lists (file, first byte) of each fetch, `tokens` the Authorization of each request.
    `breaks` holds, for a file, how many bytes each of the next answers sends before the connection breaks; `pause` is
    waited between the pieces of a file; `status` and `headers` replace the answer about the model, `more` is added to
    it, and `sizes` claims another size of a file than it has.
    """

    daemon_threads = True

    def __init__(self, repo: str, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.files = repo, files
        self.asked: list[tuple[str, int]] = []
        self.tokens: list[str | None] = []
        self.breaks: dict[str, list[int]] = {}
        self.sizes: dict[str, int] = {}
        self.more: dict[str, Any] = {}
        self.pause, self.ranges = 0.0, True
        self.status, self.headers = 200, {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def fetched(self) -> list[str]:
        return [name for name, _ in self.asked]

    def model(self) -> dict[str, Any]:
        """Return what /api/models/<id>?blobs=true says."""
        siblings = []
        for name, content in self.files.items():
            size = self.sizes.get(name, len(content))
            blob_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": name, "size": size, "blobId": blob_id}
            if name.endswith(".safetensors"):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": size,
                    "pointerSize": 134,
                }
            siblings.append(entry)
        facts = {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings}
        return {**facts, "private": False, "gated": False, "tags": [], **self.more}

    def handle_error(self, request, client_address) -> None:
        """Clients hang up on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        hub_server, path = self.server, self.path.split("?")[0]
        hub_server.tokens.append(self.headers.get("Authorization"))
        if path == f"/api/models/{hub_server.repo}":
            body = json.dumps(hub_server.model()).encode() if hub_server.status == 200 else b"{}"
            return self.answer(hub_server.status, body, hub_server.headers)
        found = re.fullmatch(f"/{hub_server.repo}/resolve/{COMMIT}/(.+)", path)
        if not found or found[1] not in hub_server.files:
            return self.answer(
                404, b"{}", {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"}
            )
        name, start = found[1], 0
        if (asked := self.headers.get("Range")) and hub_server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        hub_server.asked.append((name, start))
        breaks = hub_server.breaks.get(name)
        self.answer(
            206 if start else 200,
            hub_server.files[name][start:],
            {},
            breaks.pop(0) if breaks else None,
        )

    def answer(
        self, status: int, body: bytes, headers: dict[str, str], most: int | None = None
    ) -> None:
        """Send `body`, or its first `most` bytes and then hang up."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = body if most is None else body[:most]
        for at in range(0, len(sent), PIECE):
            self.wfile.write(sent[at : at + PIECE])
            time.sleep(self.server.pause)
        if most is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Point huggingface_hub at `url`, as HF_ENDPOINT does when it is imported; nothing is known of it yet."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_hub, "_silent_until", {})


@contextlib.contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch, repo: str, files: dict[str, bytes]
) -> Iterator[FakeHub]:
    """Serve `files` as the repository `repo` of a hub, and let huggingface_hub ask there."""
    server = FakeHub(repo, files)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    use_hub(monkeypatch, server.url)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
