"""The official REST API in this process, on scripted runs: quick, and each song is known by its prompt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.testclient import TestClient

import api_chat
import api_official
import runs_journal
from events import Done, Problem, Progress, StudioError
from runs import Runs
from status import UNKNOWN
from tests.waiting import until

SKETCH = {
    "prompt": "a tango at dusk",
    "lyrics": "[Verse]\nTurn",
    "bpm": 97,
    "key": "D minor",
    "time_signature": "4",
    "language": "en",
    "duration": 84,
}


class Songs:
    """Ends each run at once with files whose bytes are the prompt and the number of the take."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: list[Any] = []

    def stream(self, request: Any) -> Iterator[Any]:
        self.asked.append(request)
        yield Progress("steps", 1, 2)
        if "fail" in getattr(request, "prompt", ""):
            raise StudioError.from_problem(Problem("disk", "The disk is full.", hint="Free some."))
        if not hasattr(request, "takes"):
            yield Done((), {"sketch": SKETCH, "model": {"id": "planner"}})
            return
        takes = []
        for number in range(1, request.takes + 1):
            name = (
                f"{abs(hash(request.prompt))}-{len(self.asked)}-{number}.{request.options.format}"
            )
            (self.folder / name).write_text(f"{request.prompt} {number}")
            takes.append({"name": name, "seed": number, "duration": 12.5, "warnings": []})
        record = {
            "request": request.model_dump(mode="json"),
            "takes": takes,
            "model": {"id": "org/scripted"},
            "notes": [],
            "plan": None,
            "sampling": {"steps": 8, "guidance": 1.0, "shift": 3.0, "sampler": "ode"},
        }
        yield Done(tuple(str(self.folder / take["name"]) for take in takes), record)


async def called(
    app: FastAPI, method: str, path: str, content: bytes = b"", kind: str = "application/json"
) -> tuple[int, bytes]:
    """Call an app without a client in between; return status and body. Thousands of calls take seconds."""
    where, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": unquote(where),
        "raw_path": where.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1:7860"), (b"content-type", kind.encode())],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 7860),
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    status = 0
    body = b""

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        return await asyncio.Future()  # it stays connected

    async def send(message: Any) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    await app(scope, receive, send)
    return status, body


class Served:
    """The API of one scripted studio, as a client of it sees it."""

    def __init__(self, web: TestClient, runs: Runs, songs: Songs):
        self.web = web
        self.app: Any = web.app
        self.runs = runs
        self.songs = songs

    def release(self, **fields: Any) -> str:
        answer = self.web.post("/release_task", json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["task_id"]

    def item(self, task: str) -> dict[str, Any]:
        (found,) = self.web.post("/query_result", json={"task_id_list": [task]}).json()["data"]
        return found

    def ended(self, task: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return a task at its end, and its entries."""
        until(lambda: self.item(task)["status"] != 0, 30)
        found = self.item(task)
        return found, json.loads(found["result"])


@contextlib.contextmanager
def served(
    folder: Path,
    stream: Callable[[Any], Iterator[Any]] | None = None,
    client: tuple[str, int] = ("127.0.0.1", 50_000),
    **settings: Any,
) -> Iterator[Served]:
    """Serve the API with its files in `folder`."""
    songs = Songs(folder)
    journal = runs_journal.Journal(lambda: folder)
    found = Runs(stream or songs.stream, lambda request: 1.0, journal, **settings)
    studio = types.SimpleNamespace(status=lambda: UNKNOWN, widths=lambda: None)
    routes = api_official.routes(studio, found, api_chat.add_routes)
    app = FastAPI(routes=routes, openapi_url=None, docs_url=None)
    with TestClient(app, base_url="http://127.0.0.1:7860", client=client) as web:
        yield Served(web, found, songs)
    found.stop(10)
