"""ACE-Step's official REST API in front of our runs: programs written for it work here too.

Its routes are at the root of the site, before Gradio's, and again below /api. A task is one of our
runs, which only its id leads to. docs/clients.md says what works. api_official_fields.py has the
fields of a task as data, api_official_tasks.py turns them into a request, and
api_official_results.py a run into their answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr
from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from gradio.context import LocalContext
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute

import api_keys
import api_official_loras
import api_official_results as results
import api_official_tasks as tasks
import limits
import served
from api_official_bodies import (
    BUSY,
    Answered,
    Init,
    LoraLoad,
    LoraScale,
    LoraToggle,
    loose_body,
    refusal,
    task_body,
    wrapped,
)
from api_official_docs import EXAMPLE, QUERY, SAMPLE, TASK_SCHEMA, docs_page
from api_official_fields import Values, text
from api_runs import note_visitor, owner_of
from backend import Backend
from events import InvalidRequest, StudioError
from limits import STUDIO_VERSION, shown
from params import Request as StudioRequest
from params import parse_request
from runs import Run, RunFacts, Runs

SWITCH = "ACE_STUDIO_OFFICIAL_API"
SERVICE = "ACE-Step API"
MOST_TASKS = 200  # in one /query_result
LOCAL = ("localhost", "127.0.0.1", "::1")
MEDIA = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg"}
TAKE = re.compile(r"(?:/tmp)?/?acestep/([0-9a-f]{32})/([1-9])\.(?:mp3|wav|flac|ogg)")
NOT_ALLOWED = "absolute audio file paths are not allowed"
# Routes for what this studio does not have, and what they answer.
ABSENT = {
    "/v1/training/{rest:path}": "This studio does not train models.",
    "/v1/dataset/{rest:path}": "This studio does not train models, so it keeps no data sets.",
    "/v1/voice/{rest:path}": "This studio does not compare voices.",
    "/v1/transcribe": "This studio does not transcribe; full_analysis_only describes a recording.",
}


def is_on() -> bool:
    """Return whether the API is served: on a Space only if it is switched on, elsewhere unless it is switched off."""
    wanted = os.environ.get(SWITCH, "").strip().lower()
    if os.environ.get("SPACE_ID"):
        return wanted in ("1", "true", "on")
    return wanted not in ("0", "false", "off")


def is_local_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a call comes from a page of this studio or this machine, or from no page at all.

    Only browsers name an origin. "null" counts as foreign: a page that was opened from a file sends
    it, but so does a sandboxed frame of any site.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    with suppress(ValueError):
        page = urlsplit(origin)
        return page.hostname in LOCAL or page.netloc == headers.get("host")
    return False


def check_origin(request: Request) -> None:
    """Raise HTTPException if the page of another site calls."""
    if not is_local_origin(request.headers):
        raise HTTPException(403, "Pages of other sites may not call this studio.")


def is_on_this_machine(request: Request) -> bool:
    """Return whether a call comes directly from a program on this machine, not through a proxy."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for"))
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    client = request.client.host if request.client else ""
    return client in LOCAL and host in LOCAL and not forwarded and not os.environ.get("SPACE_ID")


# --- the routes -----------------------------------------------------------------------------------


class Official:
    """The routes of one studio."""

    def __init__(self, studio: Backend, runs: Runs):
        self.studio = studio
        self.runs = runs
        self.loras = api_official_loras.ClientLoras(studio)

    # --- the caller ---

    def check(self, request: Request, token: object = None) -> None:
        """Raise HTTPException if the caller lacks a key, or is a page of another site."""
        check_origin(request)
        problem = api_keys.problem(request.headers, token)
        if problem:
            raise HTTPException(401, problem)

    def owner(self, request: Request, token: object = None) -> str:
        """Return the owner of the caller's tasks: a key if keys are wanted, otherwise an address."""
        key = api_keys.sent(request.headers, token)
        if api_keys.wanted() and key:
            return f"key {hashlib.sha256(key.encode()).hexdigest()[:16]}"
        return owner_of(gr.Request(request))

    # --- tasks ---

    async def release_task(self, request: Request) -> Response:
        """Queue a task: a song, or the description of a recording. Values out of range are adjusted."""
        check_origin(request)  # before an upload is written to the disk
        body = await task_body(request)
        try:
            token = body.fields.get("ai_token")
            self.check(request, token)
            owner = self.owner(request, token)
            LocalContext.request.set(gr.Request(request))
            paths = self._paths(request, Values(body.fields), body.uploads)
            task_id, place = await asyncio.to_thread(self.start_task, body.fields, paths, owner)
        finally:
            await asyncio.to_thread(served.discard, body.uploads.values())
        return wrapped({"task_id": task_id, "status": "queued", "queue_position": place})

    def start_task(
        self, fields: Mapping[str, Any], uploads: tasks.TaskUploads, owner: str
    ) -> tuple[str, int]:
        """Start a task for `owner`; return its id and its place in the queue.

        A task that cannot be done gets an id too, and has failed. Raises StudioError if there is no
        room in the queue.
        """
        try:
            run = self.start_run(fields, uploads, owner)
        except StudioError as error:
            problem = error.problem
            if problem.code in (*BUSY, "stopping"):
                raise
            return results.task_of(self.runs.fail("generate", problem)), 1
        facts = self.runs.facts(run.id)
        return results.task_of(run.id), facts["place"] or 1

    def start_run(self, fields: Mapping[str, Any], uploads: tasks.TaskUploads, owner: str) -> Run:
        """Start the run of a task; raises StudioError if it cannot be done, or has no room."""
        status = self.studio.status()
        values = Values(fields)
        chosen = tasks.chosen_model(
            values.read("model"), status.song_models, values.read("task_type")
        )
        kind = chosen.kind if chosen else status.kind
        model = chosen.name if chosen else ""
        loras = self.loras.choices(owner)
        request, asked = tasks.translate(values, uploads, kind, loras, model)
        return self.runs.start(request, owner, tag=asked)

    def _paths(
        self, request: Request, values: Values, uploads: Mapping[str, str]
    ) -> tasks.TaskUploads:
        """Return the files of a task: its uploads, otherwise the paths in its fields; raises HTTPException."""
        paths = dict(uploads)
        for file, field in (("source", "src_audio_path"), ("reference", "reference_audio_path")):
            named = values.read(field)
            if file not in paths and named:
                paths[file] = self.named_file(request, named)
        return tasks.TaskUploads(**paths)

    def named_file(self, request: Request, named: str) -> str:
        """Return the file that a client names: a take by its address, or a temporary file of this machine.

        Raises HTTPException for any other file.
        """
        path = _path_in(named)
        if TAKE.fullmatch(path):
            return str(self._take(path))
        if not is_on_this_machine(request) or not _is_plain_path(path):
            raise HTTPException(400, NOT_ALLOWED)
        real = Path(os.path.realpath(path))
        temporary = Path(os.path.realpath(tempfile.gettempdir()))
        is_ours = any(part.startswith("ace-music-studio-") for part in real.parts)
        if is_ours or not real.is_relative_to(temporary) or not real.is_file():
            raise HTTPException(400, NOT_ALLOWED)
        return str(real)

    def _take(self, path: str) -> Path:
        """Return the file of a take by its address; raises StudioError if it is gone."""
        found = TAKE.fullmatch(path)
        if found is None:
            raise HTTPException(403, "There is no such take.")
        return self.runs.take(found[1], int(found[2]))

    async def query_result(self, request: Request) -> Response:
        """Return the states of tasks, in the order of `task_id_list`: a list, or the JSON text of one."""
        body = await loose_body(request)
        self.check(request, body.get("ai_token"))
        items = []
        for task_id in _ids_in(body):
            note_visitor(request, self.runs, results.run_of(task_id))
            items.append(results.item_of(self.runs, task_id))
        return wrapped(items)

    async def cancel(self, request: Request, task_id: str) -> Response:
        """Cancel a waiting or running task."""
        self.check(request)
        cancelled = self.runs.cancel(results.run_of(task_id))
        return wrapped({"task_id": task_id, "cancelled": cancelled, "success": cancelled})

    async def audio(self, request: Request, path: str = "") -> Response:
        """Serve a take, whole or in parts (Range)."""
        self.check(request)
        found = self._take(_path_in(path))
        kind = MEDIA.get(found.suffix.lstrip("."), "audio/mpeg")
        return FileResponse(
            found, media_type=kind, filename=found.name, content_disposition_type="inline"
        )

    # --- what the studio has ---

    async def health(self) -> Response:
        """Report that the studio is running, and its models."""
        status = self.studio.status()
        planner = status.planner
        return wrapped(
            {
                "status": "ok",
                "service": SERVICE,
                "version": "1.0",
                "studio": STUDIO_VERSION,
                "models_initialized": status.source != "none",
                "llm_initialized": planner.available,
                "loaded_model": self.model_name(),
                "loaded_lm_model": planner.model if planner.available else None,
            }
        )

    def model_name(self) -> str:
        return self.studio.status().model.rstrip("/").rpartition("/")[2] or "ace-music-studio"

    def model_names(self) -> list[str]:
        """Return the names of the song models that are here, the studio's own first."""
        names = [self.model_name()]
        for model in self.studio.status().song_models:
            if model.state != "missing" and not model.own:
                names.append(model.model.rpartition("/")[2])
        return names

    async def models(self, request: Request) -> Response:
        """List the models, in the form of OpenRouter and in that of ACE-Step's documents."""
        self.check(request)
        name = self.model_name()
        return JSONResponse(
            {
                "object": "list",
                "data": [_open_router_model(each) for each in self.model_names()],
                "models": [
                    {"name": each, "is_default": each == name} for each in self.model_names()
                ],
                "default_model": name,
            }
        )

    def inventory(self) -> dict[str, Any]:
        status = self.studio.status()
        name = self.model_name()
        supported = ["text2music", "repaint"]
        if "cover" not in status.unsupported:
            supported += ["cover", "cover-nofsq"]
        supported += ["lego", "extract", "complete"]
        model = {
            "name": name,
            "is_default": True,
            "is_loaded": True,
            "supported_task_types": supported,
        }
        _, *others = self.model_names()
        planner = status.planner
        language_models = []
        if planner.model:
            language_models.append({"name": planner.model, "is_loaded": planner.available})
        return {
            "models": [
                model,
                *({**model, "name": other, "is_default": False} for other in others),
            ],
            "default_model": name,
            "lm_models": language_models,
            "loaded_lm_model": planner.model if planner.available else None,
            "llm_initialized": planner.available,
        }

    async def model_inventory(self, request: Request) -> Response:
        """List the models, and the tasks of the loaded one."""
        self.check(request)
        return wrapped(self.inventory())

    async def stats(self, request: Request) -> Response:
        """Count the tasks, and average their seconds."""
        self.check(request)
        counts = self.runs.counts()
        ended = self.runs.ended()
        finished = [run.seconds for run in ended if run.state == "finished"]
        average = 0.0
        if finished:
            average = sum(finished) / len(finished)
        jobs = {
            "total": sum(counts.values()),
            "queued": counts["waiting"],
            "running": counts["running"],
            "succeeded": len(finished),
            "failed": len(ended) - len(finished),
        }
        return wrapped(
            {
                "jobs": jobs,
                "queue_size": counts["waiting"],
                "queue_maxsize": limits.MOST_WAITING,
                "avg_job_seconds": round(average, 2),
            }
        )

    async def init(self, request: Request, body: Init | None = None) -> Response:
        """Report what is loaded. The studio chooses its models itself, and loads them for the first song."""
        self.check(request)
        wanted = ""
        if body and body.model:
            wanted = str(body.model)
        name = self.model_name()
        message = f"{name} is in use."
        if wanted and wanted.rpartition("/")[2] != name:
            message = f"{name} is in use; this studio was started with it, and {shown(wanted)} was not loaded."
        loaded = {"message": message, "slot": 1, "loaded_model": name, "reloaded": False}
        return wrapped({**loaded, **self.inventory()})

    # --- the planner alone ---

    async def format_input(self, request: Request) -> Response:
        """Rewrite the words of a song with the planner."""
        body = await loose_body(request)
        self.check(request, body.get("ai_token"))
        values = Values(body)
        song = tasks.Translation(values, tasks.TaskUploads(), "", ()).words_to_polish()
        try:
            asked = parse_request("polish", song)
        except InvalidRequest as error:
            return wrapped(None, 400, str(error))
        return await self._written(request, body, asked, _polished)

    async def create_sample(self, request: Request) -> Response:
        """Turn an idea into the words of a song with the planner."""
        body = await loose_body(request)
        self.check(request, body.get("ai_token"))
        values = Values({**body, "sample_query": body.get("query") or body.get("sample_query")})
        idea = {
            "idea": values.read("sample_query")[: limits.TEXT_LIMITS["idea"]],
            "instrumental": str(body.get("instrumental", "")).lower() in ("1", "true", "yes"),
        }
        language = values.read("vocal_language").lower()
        if values.sent("vocal_language") and language in limits.LANGUAGES:
            idea["language"] = language
        return await self._written(request, body, parse_request("inspire", idea), _sampled)

    async def _written(
        self,
        request: Request,
        body: Mapping[str, Any],
        asked: StudioRequest,
        answer: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> Response:
        """Answer once the planner has finished; it waits in the queue as songs do. Failures are soft errors."""
        LocalContext.request.set(gr.Request(request))
        owner = self.owner(request, body.get("ai_token"))
        try:
            run = await asyncio.to_thread(self.runs.start, asked, owner)
            facts = await self.end_of(run)
        except StudioError as error:
            code = 429 if error.problem.code in BUSY else 500
            return wrapped(None, code, error.problem.text())
        return wrapped(answer(facts["record"]["sketch"]))

    async def end_of(self, run: Run) -> RunFacts:
        """Return the facts of a run at its end; raises StudioError if it failed.

        A caller who leaves cancels the run.
        """
        try:
            async for _ in self.runs.follow(run):
                pass
        finally:
            if not run.ended:
                self.runs.cancel(run.id)
        if run.problem:
            raise StudioError.from_problem(run.problem)
        return self.runs.facts(run.id)

    async def create_random_sample(self, request: Request) -> Response:
        """Return one of the examples of the page."""
        body = await loose_body(request)
        self.check(request, body.get("ai_token"))
        example = random.choice(list(limits.preset("examples")["generate"].values()))
        return wrapped(_example(example, str(body.get("sample_type", "")) == "simple_mode"))

    # --- LoRAs of these programs' tasks ---

    async def lora_load(self, request: Request, body: LoraLoad) -> Response:
        """Use a LoRA in this client's tasks: a repository on Hugging Face, or a file in the LoRA folder."""
        self.check(request)
        owner = self.owner(request)
        await asyncio.to_thread(self.loras.load, owner, body.lora_path, body.adapter_name or "")
        named = {"adapter_name": body.adapter_name} if body.adapter_name else {}
        return wrapped({"message": "LoRA loaded", "lora_path": body.lora_path, **named})

    async def lora_unload(self, request: Request) -> Response:
        """Stop using a LoRA; without one this does nothing."""
        self.check(request)
        self.loras.unload(self.owner(request))
        return wrapped({"message": "LoRA unloaded"})

    async def lora_toggle(self, request: Request, body: LoraToggle) -> Response:
        """Switch the LoRA on or off."""
        self.check(request)
        problem = self.loras.toggle(self.owner(request), body.use_lora)
        if problem:
            return wrapped(None, 400, problem)
        message = "LoRA on" if body.use_lora else "LoRA off"
        return wrapped({"message": message, "use_lora": body.use_lora})

    async def lora_scale(self, request: Request, body: LoraScale) -> Response:
        """Set the weight of the LoRA, from 0 to 1."""
        self.check(request)
        problem = self.loras.scale(self.owner(request), body.scale)
        if problem:
            return wrapped(None, 400, problem)
        return wrapped({"message": f"LoRA scale {body.scale:g}", "scale": body.scale})

    async def lora_status(self, request: Request) -> Response:
        """Report which LoRA this client's tasks use."""
        self.check(request)
        return wrapped(self.loras.status(self.owner(request)))

    # --- the rest ---

    async def reinitialize(self, request: Request) -> Response:
        """Do nothing: there is nothing to reload."""
        self.check(request)
        return wrapped({"message": "Nothing had to be reloaded.", "reloaded": []})

    async def absent(self, request: Request) -> Response:
        route = request.scope["route"].path.removeprefix("/api")
        return refusal(501, ABSENT[route])


def _is_plain_path(path: str) -> bool:
    """Return whether a path is absolute and leads straight to a file, without "..", which links could divert."""
    return os.path.isabs(path) and "\0" not in path and ".." not in Path(path).parts


def _path_in(named: str) -> str:
    """Return the path in the query of a take's URL, or `named` itself if it has no query."""
    if "?" in named:
        return parse_qs(urlsplit(named).query).get("path", [""])[0]
    return named


def _ids_in(body: Mapping[str, Any]) -> list[str]:
    ids = body.get("task_id_list", body.get("task_ids"))
    if isinstance(ids, str) and ids.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            ids = json.loads(ids)
    if isinstance(ids, str):
        ids = [ids]
    if ids is None:
        ids = []
    if not isinstance(ids, list):
        raise HTTPException(400, "task_id_list must be a list of ids.")
    if len(ids) > MOST_TASKS:
        raise HTTPException(400, f"task_id_list may have up to {MOST_TASKS} ids.")
    return [text(task_id) or "" for task_id in ids]


def _open_router_model(name: str) -> dict[str, Any]:
    return {
        "id": f"acestep/{name}",
        "name": f"ACE-Step {name}",
        "created": 0,
        "description": "Songs from words, in ACE Music Studio",
        "input_modalities": ["text", "audio"],
        "output_modalities": ["audio", "text"],
        "context_length": 4096,
        "max_output_length": int(limits.LIMITS["duration"].high),
        "pricing": {"prompt": "0", "completion": "0", "request": "0"},
        "architecture": {"modality": "text+audio->audio+text"},
    }


def _polished(sketch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "caption": sketch["prompt"],
        "lyrics": sketch["lyrics"],
        "bpm": sketch["bpm"],
        "key_scale": sketch["key"],
        "time_signature": sketch["time_signature"],
        "duration": sketch["duration"],
        "vocal_language": sketch["language"],
    }


def _sampled(sketch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "caption": sketch["prompt"],
        "lyrics": sketch["lyrics"],
        "bpm": sketch["bpm"],
        "keyscale": sketch["key"],
        "timesignature": sketch["time_signature"],
        "duration": sketch["duration"],
        "vocal_language": sketch["language"],
    }


def _example(example: Mapping[str, Any], simple: bool) -> dict[str, Any]:
    language = example.get("language", "unknown")
    if simple:
        return {
            "description": example["prompt"],
            "instrumental": bool(example.get("instrumental")),
            "vocal_language": language,
        }
    return {
        "think": True,
        "caption": example["prompt"],
        "lyrics": example.get("lyrics", limits.INSTRUMENTAL),
        "bpm": example.get("bpm"),
        "duration": example.get("duration", 60),
        "keyscale": example.get("key", ""),
        "language": language,
        "timesignature": example.get("time_signature", ""),
    }


# --- the routes put together ----------------------------------------------------------------------


def routes(
    studio: Backend, runs: Runs, *more: Callable[[APIRouter, Official], None]
) -> Sequence[BaseRoute]:
    """Return the routes of the API, none if it is switched off.

    They come before Gradio's. Each function in `more` adds routes of its own.
    """
    if not is_on():
        return []
    official = Official(studio, runs)
    adders = (_add_routes, *more)
    router = APIRouter(route_class=Answered)
    for add in adders:
        add(router, official)
    described = get_openapi(title=SERVICE, version="1.0", routes=router.routes)
    router.add_api_route("/openapi.json", lambda: described, include_in_schema=False)
    router.add_api_route("/docs", lambda: docs_page(described), include_in_schema=False)
    under_api = APIRouter(route_class=Answered, prefix="/api")
    for add in adders:
        add(under_api, official)
    return [*router.routes, *under_api.routes]


def _add_routes(router: APIRouter, official: Official) -> None:
    task = {"requestBody": {"content": {"application/json": {"schema": TASK_SCHEMA}}}}
    get = router.get
    post = router.post
    get("/health")(official.health)
    post("/release_task", openapi_extra=task)(official.release_task)
    post("/query_result", openapi_extra=QUERY)(official.query_result)
    post("/v1/tasks/{task_id}/cancel")(official.cancel)
    get("/v1/audio")(official.audio)
    router.add_api_route("/v1/audio", official.audio, methods=["HEAD"], include_in_schema=False)
    get("/v1/models")(official.models)
    get("/v1/model_inventory")(official.model_inventory)
    get("/v1/stats")(official.stats)
    post("/v1/init")(official.init)
    post("/v1/reinitialize")(official.reinitialize)
    post("/format_input", openapi_extra=task)(official.format_input)
    post("/v1/create_sample", openapi_extra=SAMPLE)(official.create_sample)
    post("/create_random_sample", openapi_extra=EXAMPLE)(official.create_random_sample)
    post("/v1/lora/load")(official.lora_load)
    post("/v1/lora/unload")(official.lora_unload)
    post("/v1/lora/toggle")(official.lora_toggle)
    post("/v1/lora/scale")(official.lora_scale)
    get("/v1/lora/status")(official.lora_status)
    every = ["GET", "POST", "PUT", "DELETE"]
    for path in ABSENT:
        router.add_api_route(path, official.absent, methods=every, include_in_schema=False)
