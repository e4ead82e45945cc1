"""Runs for programs: /runs with state, events, cancel and takes, and the endpoints /run and /cancel_run.

Only its id leads to a run. Every id that belongs to no run gets the same answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import audio
import beat
import takes
import theme
import tooltips
from events import Done, Draft, Problem, Progress, StudioError, share_done
from limits import FORMATS, shown
from params import REQUESTS, SongRequest
from record import take_names
from runs import NO_TAKE, Cancelled, Run, RunEvent, Runs, Waiting, address_of, addresses

MOST_IDS = 20  # in one call
VISITOR_HEADER = "x-ip-token"  # names the visitor on whose quota ZeroGPU lends a card
MOST_TITLE = 200  # letters of a title in a file's tags
MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg"}
# A song in another format costs a core for some seconds. Those that wait for one hold no thread of the server.
_encoders = ThreadPoolExecutor(2, "encoder")
STATUS_OF_CODE = {"no_run": 404, "no_take": 404, "no_draft": 404}


def owner_of(request: gr.Request | None) -> str:
    """Return the owner of a program's run: its address, so that all calls of a program have the same owner."""
    if request is None:
        return "this process"
    return f"address {address_of(request)}"


# --- a run's state --------------------------------------------------------------------------------


def sentence_of(facts: Mapping[str, Any]) -> str:
    """Return the state of a run for people."""
    if facts["state"] == "waiting":
        return tooltips.waiting_sentence(facts["place"], facts["starts_in"])
    if facts["state"] == "running" and facts["progress"]:
        return str(tooltips.progress_sentence(Progress(**facts["progress"])))
    if facts["problem"]:
        return Problem(**facts["problem"]).text()
    return tooltips.RUN_STATES[facts["state"]]


def facts_of(runs: Runs, run_id: str) -> dict[str, Any]:
    """Return the facts of a run, with a sentence about its state; raises StudioError if there is no such run."""
    facts = runs.facts(run_id)
    return {**facts, "sentence": sentence_of(facts)}


def line_of(facts: Mapping[str, Any]) -> str:
    """Return the page's progress line of a run that has not ended, "" for one that has."""
    if facts["state"] == "waiting":
        return theme.line("running", facts["sentence"], spoken_when=f"waiting {facts['place']}")
    if facts["state"] != "running":
        return ""
    if facts["progress"]:
        progress = Progress(**facts["progress"])
    else:
        progress = Progress("preparing")
    if facts["tokens"] and (facts["mode"] == "lyrics" or progress.stage == "writing"):
        sentence = tooltips.writing_sentence(facts["tokens"], progress.elapsed)
        return theme.line("running", sentence, spoken_when="writing")
    return theme.progress(progress, facts["note"], share_of(facts))


def share_of(facts: Mapping[str, Any]) -> float | None:
    """Return how much of a song is done, from 0 to 1; None for anything else."""
    if not facts["progress"] or not issubclass(REQUESTS[facts["mode"]], SongRequest):
        return None
    return share_done(Progress(**facts["progress"]))


def event_facts(run: Run, event: RunEvent) -> tuple[str, dict[str, Any]]:
    """Return an event's name and its data."""
    match event:
        case Waiting():
            return "waiting", asdict(event)
        case Progress():
            return "progress", {**asdict(event), "sentence": str(tooltips.progress_sentence(event))}
        case Draft():
            return "draft", asdict(event)
        case Done(record=record):
            count = len(take_names(record))
            return "finished", {"takes": addresses(run.id, count), "record": record}
        case Cancelled(problem):
            return "cancelled", {"problem": problem.facts()}
        case _:
            return "failed", {"problem": event.problem.facts()}


# --- the routes -----------------------------------------------------------------------------------


def _refusal(problem: Problem) -> JSONResponse:
    return JSONResponse(
        {"detail": problem.text(), "code": problem.code}, STATUS_OF_CODE.get(problem.code, 400)
    )


def _runs_for(request: Request) -> Runs:
    return request.app.get_blocks().runs


def note_visitor(request: Request, runs: Runs, run_id: str) -> None:
    """Note that the visitor still follows this run, and keep a fresh token for ZeroGPU."""
    runs.note_visitor(run_id, hidden="hidden" in request.query_params)
    if VISITOR_HEADER in request.headers:
        runs.renew(run_id, gr.Request(request))


async def several(request: Request) -> Response:
    """Return the states of the runs in ?id=...&id=..., in this order, without their records."""
    ids = request.query_params.getlist("id")
    if not 1 <= len(ids) <= MOST_IDS:
        return _refusal(
            Problem(
                "invalid", f"Name from 1 to {MOST_IDS} runs, such as /runs?id=..., not {len(ids)}."
            )
        )
    found = []
    for run_id in ids:
        note_visitor(request, _runs_for(request), run_id)
        try:
            facts = facts_of(_runs_for(request), run_id)
            facts["record"] = None
            if "line" in request.query_params:  # for our own page
                facts["line"] = line_of(facts)
                facts["share"] = share_of(facts)
        except StudioError as error:
            problem = error.problem.facts()
            facts = {"run": shown(run_id).strip('"'), "state": "unknown", "problem": problem}
            facts["sentence"] = error.problem.text()
        found.append(facts)
    return JSONResponse(found, headers={"Cache-Control": "no-store"})


async def one(request: Request) -> Response:
    run_id = request.path_params["run"]
    note_visitor(request, _runs_for(request), run_id)
    try:
        return JSONResponse(
            facts_of(_runs_for(request), run_id), headers={"Cache-Control": "no-store"}
        )
    except StudioError as error:
        return _refusal(error.problem)


async def events(request: Request) -> Response:
    """Stream a run's events after the one that ?after=... or the header Last-Event-ID names, until it ends.

    Listening to it also shows that somebody waits for the runs that &also=... names: a hidden page
    has one stream for all its runs.
    """
    after = request.query_params.get("after") or request.headers.get("last-event-id") or "0"
    if not after.isdecimal() or len(after) > 9:
        return _refusal(
            Problem("invalid", f"after must be the number of an event, not {shown(after)}.")
        )
    run_id = request.path_params["run"]
    runs = _runs_for(request)
    run = runs.find(run_id)
    if run is None:
        try:
            stream = _former(facts_of(runs, run_id))
        except StudioError as error:
            return _refusal(error.problem)
    else:
        also = request.query_params.getlist("also")[:MOST_IDS]
        stream = _events(runs, run, int(after), also)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _events(
    runs: Runs, run: Run, after: int, also: Sequence[str] = ()
) -> AsyncGenerator[str]:
    async for news in runs.follow(run, after, beat.STREAM_SECONDS):
        for run_id in also:
            runs.note_visitor(run_id, hidden=True)
        if news is beat.QUIET:
            yield ": still here\n\n"
        else:
            number, event = news
            yield _sse(number, *event_facts(run, event))


async def _former(facts: dict[str, Any]) -> AsyncIterator[str]:
    """Yield the only known event of a run of an earlier process: its end."""
    name = facts["state"]
    if name == "cut_off":
        name = "failed"
    end = {"takes": facts["takes"], "record": facts["record"], "problem": facts["problem"]}
    yield _sse(1, name, end)


def _sse(number: int, name: str, data: Mapping[str, Any]) -> str:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


async def cancel(request: Request) -> Response:
    run_id = request.path_params["run"]
    cancelled = _runs_for(request).cancel(run_id)
    try:
        facts = facts_of(_runs_for(request), run_id)
    except StudioError as error:
        return _refusal(error.problem)
    return JSONResponse({"run": run_id, "cancelled": cancelled, "state": facts["state"]})


async def draft(request: Request) -> Response:
    """Ask to hear a song half-way (POST), or serve it once its state says that it is ready (GET)."""
    run_id = request.path_params["run"]
    runs = _runs_for(request)
    try:
        if request.method == "POST":
            runs.ask_draft(run_id)
            return JSONResponse(facts_of(runs, run_id)["song_draft"])
        path = runs.draft(run_id)
    except StudioError as error:
        return _refusal(error.problem)
    return FileResponse(path, headers={"Cache-Control": "private, no-store"})


async def take(request: Request) -> Response:
    """Serve a take from the output folder, whole or in parts (Range); with ?format=... as a file of that kind.

    That file has ?title=... in its tags.
    """
    try:
        path = _runs_for(request).take(request.path_params["run"], request.path_params["number"])
        if "format" in request.query_params:
            return await _converted(path, request)
    except StudioError as error:
        return _refusal(error.problem)
    headers = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(
        path, filename=path.name, content_disposition_type="inline", headers=headers
    )


async def _converted(path: Path, request: Request) -> Response:
    kind = request.query_params["format"]
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise StudioError("invalid", f"format must be one of {known}, not {shown(kind)}.")
    title = request.query_params.get("title", "")[:MOST_TITLE]
    loop = asyncio.get_running_loop()
    try:
        file = await loop.run_in_executor(_encoders, takes.as_download, path, kind, title)
    except audio.AudioError as error:
        raise StudioError("invalid", str(error)) from None
    except OSError:
        raise StudioError.from_problem(NO_TAKE) from None
    name = quote(f"{path.stem}.{kind}")
    headers = {
        "Cache-Control": "private, no-store",
        "Content-Disposition": f"attachment; filename*=utf-8''{name}",
    }
    return Response(file.getvalue(), media_type=MEDIA_TYPES[kind], headers=headers)


ROUTES = (
    Route("/runs", several),
    Route("/runs/{run}", one),
    Route("/runs/{run}/events", events),
    Route("/runs/{run}/cancel", cancel, methods=["POST"]),
    Route("/runs/{run}/draft", draft, methods=["GET", "POST"]),
    Route("/runs/{run}/takes/{number:int}", take),
)


class OwnRoutes:
    """Answers our routes at the root of the site, before Gradio's."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in ROUTES:
                match, found = route.matches(scope)
                if match is not Match.NONE:
                    await route.handle({**scope, **found}, receive, send)
                    return
        await self.app(scope, receive, send)


# --- endpoints and tools --------------------------------------------------------------------------


def handlers_of(
    runs: Runs,
) -> tuple[Callable[[str], dict[str, Any]], Callable[[str], dict[str, Any]]]:
    """Return the handlers of /run and /cancel_run, whose names and docstrings assistants see."""

    def run(run: str) -> dict[str, Any]:
        """Ask for a run that was started with options.detach: its state, and in the end its takes
        and record.

        Args:
            run: The id of the run.

        Returns:
            An object with state (waiting, running, finished, failed, cancelled or cut_off), a sentence, place and
            starts_in while it waits, progress while it runs, and in the end takes (addresses below the studio's own),
            record or problem.
        """
        try:
            runs.note_visitor(str(run))
            return facts_of(runs, str(run))
        except StudioError as error:
            return {
                "run": shown(run).strip('"'),
                "state": "unknown",
                "problem": error.problem.facts(),
            }

    def cancel_run(run: str) -> dict[str, Any]:
        """Cancel a run that is waiting or running; a song ends within a step.

        Args:
            run: The id of the run.

        Returns:
            An object with run, and cancelled, which is false if there was nothing to cancel.
        """
        return {"run": shown(run).strip('"'), "cancelled": runs.cancel(str(run))}

    return run, cancel_run


def add_endpoints(runs: Runs) -> None:
    """Register /run and /cancel_run; call it once, inside a container of the page that is never rendered."""
    for handler in handlers_of(runs):
        gr.on(
            [],
            handler,
            inputs=gr.Textbox(label="run", visible=False),
            outputs=gr.JSON(label="run", visible=False),
            api_name=handler.__name__,
            api_visibility="public",
            show_progress="hidden",
            queue=False,
            postprocess=False,
        )
