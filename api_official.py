"""ACE-Step's official REST API in front of our runs: what other programs say to it works here too.

The routes stand at the root of the site, before Gradio's, and once more below /api. A task is a run
of ours; its id is the only way to it. docs/clients.md says what works; api_official_fields.py has
the fields of a task as data, and api_official_tasks.py translates.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import gradio as gr
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from gradio.context import LocalContext
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute

import api_keys
import api_official_loras
import api_official_tasks as tasks
import api_uploads
import limits
import served
from api_bodies import whole_body
from api_official_fields import FIELDS, Values, text
from api_runs import note_visitor, owner_of
from audio import MAX_UPLOAD_BYTES
from backend import Backend
from events import InvalidRequest, Problem, StudioError
from limits import STUDIO_VERSION, shown
from params import Request as StudioRequest
from params import parse_request
from runs import Run, Runs

SWITCH = "ACE_STUDIO_OFFICIAL_API"
SERVICE = "ACE-Step API"
MOST_JSON_BYTES = 4 * 1024**2
MOST_UPLOAD_BYTES = 2 * MAX_UPLOAD_BYTES + MOST_JSON_BYTES  # a source and a reference
MOST_FIELDS = 500
MOST_TASKS = 200  # in one /query_result
BUSY = ("queue_full", "too_many", "too_much")
LOCAL = ("localhost", "127.0.0.1", "::1")
MEDIA = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg"}
TAKE = re.compile(r"(?:/tmp)?/?acestep/([0-9a-f]{32})/([1-9])\.(?:mp3|wav|flac|ogg)")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
HALF_A_LETTER = "A text has half a letter (a lone surrogate, such as \\ud800). Send it whole."
NOT_ALLOWED = "absolute audio file paths are not allowed"
# What our studio does not have, and where it would be.
ABSENT = {
    "/v1/training/{rest:path}": "This studio does not train: its routes for training do nothing.",
    "/v1/dataset/{rest:path}": "This studio does not train, so it keeps no data sets.",
    "/v1/voice/{rest:path}": "This studio does not compare voices.",
    "/v1/transcribe": "This studio does not transcribe; full_analysis_only describes a recording.",
}
UPLOADS = {
    "source": ("ctx_audio", "src_audio"),
    "reference": ("ref_audio", "reference_audio"),
}


def is_on() -> bool:
    """Return whether the API is served: everywhere unless it is switched off, on a Space only on request."""
    wanted = os.environ.get(SWITCH, "").strip().lower()
    if os.environ.get("SPACE_ID"):
        return wanted in ("1", "true", "on")
    return wanted not in ("0", "false", "off")


def is_local_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a browser's call comes from this studio or this machine; other programs name no origin.

    "null" is none of them: a page that was opened from a file has it, but so has a sandboxed frame of any site.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    with suppress(ValueError):
        found = urlsplit(origin)
        return found.hostname in LOCAL or found.netloc == headers.get("host")
    return False


def check_origin(request: Request) -> None:
    """Raise HTTPException if the page of another site calls."""
    if not is_local_origin(request.headers):
        raise HTTPException(403, "Pages of other sites may not call this studio.")


def is_on_this_machine(request: Request) -> bool:
    """Return whether a call comes from a program on this machine, and through nothing in between."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for"))
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    client = request.client.host if request.client else ""
    return client in LOCAL and host in LOCAL and not forwarded and not os.environ.get("SPACE_ID")


# --- bodies and answers ---------------------------------------------------------------------------


class LoraLoad(BaseModel):
    lora_path: str
    adapter_name: str | None = None


class LoraToggle(BaseModel):
    use_lora: bool


class LoraScale(BaseModel):
    scale: Annotated[float, Field(ge=0, le=1)]
    adapter_name: str | None = None


class Loose(BaseModel):
    """A body whose unknown fields are ignored, and where nothing has to be there."""

    model_config = ConfigDict(extra="ignore")


class Init(Loose):
    model: Any = None
    slot: Any = None
    init_llm: Any = None
    lm_model_path: Any = None


def wrapped(data: Any, code: int = 200, error: str | None = None) -> JSONResponse:
    """Return an answer in their envelope; a soft error has no data and a `code` of its own, and HTTP says 200."""
    answer = {"data": data, "code": code, "error": error}
    return JSONResponse({**answer, "timestamp": int(time.time() * 1000), "extra": None})


def refusal(status: int, sentence: str) -> JSONResponse:
    """Return a refusal with its sentence wherever clients look for it."""
    body = {"detail": sentence, "error": sentence, "code": status, "message": sentence}
    return JSONResponse(body, status)


class Answered(APIRoute):
    """A route whose errors are one sentence."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(each) for each in first["loc"][1:]) or "The body"
                return refusal(422, f"{place}: {first['msg']}")
            except StudioError as error:
                return refusal(_status_of(error.problem), error.problem.text())
            except HTTPException as error:
                return refusal(error.status_code, str(error.detail))
            except UnicodeEncodeError:
                return refusal(400, HALF_A_LETTER)

        return answer


def _status_of(problem: Problem) -> int:
    if problem.code in BUSY:
        return 429
    if problem.code in ("no_run", "no_take"):
        return 404
    if problem.code == "stopping":
        return 503
    return 400


async def read_body(request: Request, most: int = MOST_JSON_BYTES) -> bytes:
    """Return the whole body; raises HTTPException if it is longer than `most` bytes."""
    too_long = f"The body may have up to {limits.size_text(most)}."
    return await whole_body(request.scope, request.receive, most, too_long)


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; raises HTTPException if there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "The body must be a JSON object.")
    return found


def form_object(body: bytes) -> dict[str, Any]:
    """Return the fields of an urlencoded form; raises HTTPException if it has too many."""
    try:
        pairs = parse_qsl(
            body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS
        )
    except ValueError:
        raise HTTPException(400, f"A form may have up to {MOST_FIELDS} fields.") from None
    return dict(pairs)


async def loose_body(request: Request) -> dict[str, Any]:
    """Return the fields of a body that is JSON or a form, whatever it calls itself; none if it is empty."""
    body = await read_body(request)
    if not body.strip():
        return {}
    kind = request.headers.get("content-type", "").lower()
    if "json" in kind or body.lstrip()[:1] in (b"{", b"["):
        return json_object(body)
    return form_object(body)


@dataclass
class Body:
    """The fields of a task, and its uploads as files of ours."""

    fields: dict[str, Any]
    uploads: dict[str, str]


async def task_body(request: Request) -> Body:
    """Read a task in any of their four content types; raises HTTPException."""
    kind = request.headers.get("content-type", "").lower().split(";")[0].strip()
    if kind == "multipart/form-data":
        return await _multipart(request)
    body = await read_body(request)
    if kind == "application/json" or kind.endswith("+json"):
        return Body(json_object(body), {})
    if kind == "application/x-www-form-urlencoded":
        return Body(form_object(body), {})
    start = body.lstrip()[:1]
    if start in (b"{", b"["):
        return Body(json_object(body), {})
    if b"=" in body:
        return Body(form_object(body), {})
    message = "Send JSON, multipart/form-data or application/x-www-form-urlencoded."
    raise HTTPException(415, message)


RULES = api_uploads.Rules(
    fields=tuple(name for names in UPLOADS.values() for name in names),
    only_one=False,
    most_bytes=lambda name: MAX_UPLOAD_BYTES,
    most_bytes_in_all=lambda: MOST_UPLOAD_BYTES,
    most_text_bytes=MOST_JSON_BYTES,
    most_texts=MOST_FIELDS,
    unreadable="The form could not be read.",
    too_large=f"A file may have up to {limits.size_text(MAX_UPLOAD_BYTES)}, the files of a task twice as much.",
    too_much_text=f"The text of a form may have up to {limits.size_text(MOST_JSON_BYTES)}.",
)


async def _multipart(request: Request) -> Body:
    """Read a form with files, which go to the disk as they come."""
    form = await api_uploads.take_in(request.scope, request.receive, RULES)
    uploads = {}
    for field, names in UPLOADS.items():
        found = [form.files[name] for name in names if name in form.files]
        if found:
            uploads[field] = str(found[0])
    return Body(dict(form.texts), uploads)


def new_upload(suffix: str, size: int) -> Path:
    """Return the place of an upload of `size` bytes; raises HTTPException if there is no room."""
    if size > MAX_UPLOAD_BYTES:
        raise HTTPException(413, f"A file may have up to {limits.size_text(MAX_UPLOAD_BYTES)}.")
    if not served.make_room(size):
        raise HTTPException(507, "The studio has no room for this file. Try again later.")
    name = "audio" + (suffix if SUFFIX.fullmatch(suffix) else "")
    place = served.new_place(name)
    served.note_upload(place)
    return place


# --- the routes -----------------------------------------------------------------------------------


class Official:
    """The routes of one studio."""

    def __init__(self, studio: Backend, runs: Runs):
        self.studio = studio
        self.runs = runs
        self.loras = api_official_loras.Shelf(studio)

    # --- who calls ---

    def check(self, request: Request, token: object = None) -> None:
        """Raise HTTPException unless the caller has a key, and is no page of another site."""
        check_origin(request)
        problem = api_keys.problem(request.headers, token)
        if problem:
            raise HTTPException(401, problem)

    def owner(self, request: Request, token: object = None) -> str:
        """Return whose tasks these are: the key's, or else the address's."""
        key = api_keys.sent(request.headers, token)
        if api_keys.wanted() and key:
            return f"key {hashlib.sha256(key.encode()).hexdigest()[:16]}"
        return owner_of(gr.Request(request))

    # --- tasks ---

    async def release_task(self, request: Request) -> Response:
        """Queue a task: a song, or the description of a recording. Nothing is refused for its values."""
        check_origin(request)  # before anything is written
        body = await task_body(request)
        try:
            token = body.fields.get("ai_token")
            self.check(request, token)
            owner = self.owner(request, token)
            LocalContext.request.set(gr.Request(request))
            paths = self._paths(request, Values(body.fields), body.uploads)
            task_id, place = await asyncio.to_thread(self.start, body.fields, paths, owner)
        finally:
            await asyncio.to_thread(served.discard, body.uploads.values())
        return wrapped({"task_id": task_id, "status": "queued", "queue_position": place})

    def start(
        self, fields: Mapping[str, Any], uploads: tasks.Uploads, owner: str
    ) -> tuple[str, int]:
        """Start a task for `owner`; return its id and place. One that cannot be done has failed at once.

        Raises StudioError if there is no room.
        """
        try:
            run = self.run_of(fields, uploads, owner)
        except StudioError as error:
            problem = error.problem
            if problem.code in (*BUSY, "stopping"):
                raise
            return tasks.task_of(self.runs.fail("generate", problem)), 1
        facts = self.runs.facts(run.id)
        return tasks.task_of(run.id), facts["place"] or 1

    def run_of(
        self,
        fields: Mapping[str, Any],
        uploads: tasks.Uploads,
        owner: str,
    ) -> Run:
        """Start the run of a task; raises StudioError."""
        kind = self.studio.status().kind
        choices = self.loras.choices(owner)
        request, asked = tasks.translate(Values(fields), uploads, kind, choices)
        return self.runs.start(request, owner, tag=asked)

    def _paths(self, request: Request, values: Values, uploads: Mapping[str, str]) -> tasks.Uploads:
        """Return the files of a task: its uploads, or else what it names; raises HTTPException."""
        found = dict(uploads)
        for field, name in (("source", "src_audio_path"), ("reference", "reference_audio_path")):
            named = values.read(name)
            if field not in found and named:
                found[field] = self.named_file(request, named)
        return tasks.Uploads(**found)

    def named_file(self, request: Request, named: str) -> str:
        """Return the file that a path of a client means; raises HTTPException for a file of others."""
        path = _path_in(named)
        if TAKE.fullmatch(path):
            return str(self._take(path))
        absolute = os.path.isabs(path) and "\0" not in path and ".." not in Path(path).parts
        if not absolute or not is_on_this_machine(request):
            raise HTTPException(400, NOT_ALLOWED)
        real = Path(os.path.realpath(path))
        place = Path(os.path.realpath(tempfile.gettempdir()))
        ours = any(part.startswith("ace-music-studio-") for part in real.parts)
        if ours or not real.is_relative_to(place) or not real.is_file():
            raise HTTPException(400, NOT_ALLOWED)
        return str(real)

    def _take(self, path: str) -> Path:
        """Return the file of a take by its address; raises StudioError if it is gone."""
        found = TAKE.fullmatch(path)
        if found is None:
            raise HTTPException(403, "There is no such take.")
        return self.runs.take(found[1], int(found[2]))

    async def query_result(self, request: Request) -> Response:
        """Tell how tasks go, in the order of `task_id_list`, a list or a JSON text of one."""
        body = await loose_body(request)
        self.check(request, body.get("ai_token"))
        asked = _ids_in(body)
        items = []
        for task_id in asked:
            note_visitor(request, self.runs, tasks.run_of(task_id))
            items.append(tasks.item_of(self.runs, task_id))
        return wrapped(items)

    async def cancel(self, request: Request, task_id: str) -> Response:
        """Cancel a task that waits or runs."""
        self.check(request)
        cancelled = self.runs.cancel(tasks.run_of(task_id))
        return wrapped({"task_id": task_id, "cancelled": cancelled, "success": cancelled})

    async def audio(self, request: Request, path: str = "") -> Response:
        """Serve a take, in parts too (Range)."""
        self.check(request)
        found = self._take(_path_in(path))
        kind = MEDIA.get(found.suffix.lstrip("."), "audio/mpeg")
        return FileResponse(
            found, media_type=kind, filename=found.name, content_disposition_type="inline"
        )

    # --- what there is ---

    async def health(self) -> Response:
        """Tell that the studio is there."""
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

    async def models(self, request: Request) -> Response:
        """List the model, in the form of OpenRouter and in that of their documents."""
        self.check(request)
        name = self.model_name()
        return JSONResponse(
            {
                "object": "list",
                "data": [_open_router_model(name)],
                "models": [{"name": name, "is_default": True}],
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
        entry = {"name": name, "is_default": True, "is_loaded": True}
        language_models = []
        if status.planner.model:
            language_models = [
                {"name": status.planner.model, "is_loaded": status.planner.available}
            ]
        return {
            "models": [{**entry, "supported_task_types": supported}],
            "default_model": name,
            "lm_models": language_models,
            "loaded_lm_model": status.planner.model if status.planner.available else None,
            "llm_initialized": status.planner.available,
        }

    async def model_inventory(self, request: Request) -> Response:
        """List the models, and what the loaded one can do."""
        self.check(request)
        return wrapped(self.inventory())

    async def stats(self, request: Request) -> Response:
        """Count the tasks."""
        self.check(request)
        counts = self.runs.counts()
        ended = self.runs.ended()
        finished = [run.seconds for run in ended if run.state == "finished"]
        jobs = {
            "total": sum(counts.values()),
            "queued": counts["waiting"],
            "running": counts["running"],
            "succeeded": len(finished),
            "failed": len(ended) - len(finished),
        }
        average = sum(finished) / len(finished) if finished else 0.0
        size = {"queue_size": counts["waiting"], "queue_maxsize": limits.MOST_WAITING}
        return wrapped({"jobs": jobs, **size, "avg_job_seconds": round(average, 2)})

    async def init(self, request: Request, body: Init | None = None) -> Response:
        """Tell what is loaded: the studio chooses its models itself, and loads them with the first song."""
        self.check(request)
        asked = str(body.model or "") if body else ""
        name = self.model_name()
        message = f"{name} is in use."
        if asked and asked.rpartition("/")[2] != name:
            message = f"{name} is in use; this studio was started with it, and {shown(asked)} was not loaded."
        inventory = self.inventory()
        loaded = {"message": message, "slot": 1, "loaded_model": name, "reloaded": False}
        return wrapped({**loaded, **inventory})

    # --- the planner alone ---

    async def format_input(self, request: Request) -> Response:
        """Polish the words of a song, with the planner."""
        body = await loose_body(request)
        self.check(request, body.get("ai_token"))
        values = Values(body)
        song = tasks.Translation(values, tasks.Uploads(), "", ()).words()
        try:
            asked = parse_request("polish", song)
        except InvalidRequest as error:
            return wrapped(None, 400, str(error))
        return await self._written(request, body, asked, _polished)

    async def create_sample(self, request: Request) -> Response:
        """Write a song in words from an idea, with the planner."""
        body = await loose_body(request)
        self.check(request, body.get("ai_token"))
        values = Values({**body, "sample_query": body.get("query") or body.get("sample_query")})
        asked = {
            "idea": values.read("sample_query")[: limits.TEXT_LIMITS["idea"]],
            "instrumental": str(body.get("instrumental", "")).lower() in ("1", "true", "yes"),
        }
        language = values.read("vocal_language").lower()
        if values.sent("vocal_language") and language in limits.LANGUAGES:
            asked["language"] = language
        return await self._written(request, body, parse_request("inspire", asked), _sampled)

    async def _written(
        self,
        request: Request,
        body: Mapping[str, Any],
        asked: StudioRequest,
        answer: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> Response:
        """Answer once the planner has written, which waits in the queue as songs do; failures are soft."""
        LocalContext.request.set(gr.Request(request))
        owner = self.owner(request, body.get("ai_token"))
        try:
            run = await asyncio.to_thread(self.runs.start, asked, owner)
            facts = await self.end_of(run)
        except StudioError as error:
            code = 429 if error.problem.code in BUSY else 500
            return wrapped(None, code, error.problem.text())
        return wrapped(answer(facts["record"]["sketch"]))

    async def end_of(self, run: Run) -> dict[str, Any]:
        """Return the facts of a run at its end; raises StudioError if it failed. Leaving cancels it."""
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
        """Use no LoRA any more; fine without one, too."""
        self.check(request)
        self.loras.unload(self.owner(request))
        return wrapped({"message": "LoRA unloaded"})

    async def lora_toggle(self, request: Request, body: LoraToggle) -> Response:
        """Switch the LoRA on or off."""
        self.check(request)
        problem = self.loras.toggle(self.owner(request), body.use_lora)
        if problem:
            return wrapped(None, 400, problem)
        return wrapped(
            {"message": f"LoRA {'on' if body.use_lora else 'off'}", "use_lora": body.use_lora}
        )

    async def lora_scale(self, request: Request, body: LoraScale) -> Response:
        """Set how much the LoRA counts, from 0 to 1."""
        self.check(request)
        problem = self.loras.scale(self.owner(request), body.scale)
        if problem:
            return wrapped(None, 400, problem)
        return wrapped({"message": f"LoRA scale {body.scale:g}", "scale": body.scale})

    async def lora_status(self, request: Request) -> Response:
        """Tell which LoRA this client's tasks use."""
        self.check(request)
        return wrapped(self.loras.status(self.owner(request)))

    # --- the rest ---

    async def reinitialize(self, request: Request) -> Response:
        """Do nothing: there is nothing to load again."""
        self.check(request)
        return wrapped({"message": "Nothing had to be loaded again.", "reloaded": []})

    async def absent(self, request: Request) -> Response:
        route = request.scope["route"].path.removeprefix("/api")
        return refusal(501, ABSENT[route])


def _path_in(named: str) -> str:
    """Return the path in a URL of a take, or `named` itself."""
    if "?" in named:
        return parse_qs(urlsplit(named).query).get("path", [""])[0]
    return named


def _ids_in(body: Mapping[str, Any]) -> list[str]:
    asked = body.get("task_id_list", body.get("task_ids"))
    if isinstance(asked, str) and asked.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            asked = json.loads(asked)
    if isinstance(asked, str):
        asked = [asked]
    if asked is None:
        asked = []
    if not isinstance(asked, list):
        raise HTTPException(400, "task_id_list must be a list of ids.")
    if len(asked) > MOST_TASKS:
        raise HTTPException(400, f"task_id_list may have up to {MOST_TASKS} ids.")
    return [text(each) or "" for each in asked]


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

TASK_SCHEMA = {
    "title": "Task",
    "type": "object",
    "additionalProperties": True,
    "properties": {
        field.name: {
            "description": f"{', '.join(field.aliases)}{': ' if field.aliases else ''}{field.ours}",
            "default": list(field.default) if isinstance(field.default, tuple) else field.default,
        }
        for field in FIELDS
    },
}


def described_body(**fields: str) -> dict[str, Any]:
    """Return how the documentation describes a body that is read leniently: its fields, and what they are."""
    properties = {name: {"description": text} for name, text in fields.items()}
    schema = {"type": "object", "additionalProperties": True, "properties": properties}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


QUERY = described_body(task_id_list="a list of task ids, or a JSON text of one", ai_token="a key")
SAMPLE = described_body(
    query="the idea of a song",
    instrumental="whether nobody sings",
    vocal_language="a code such as en; unknown leaves it open",
    ai_token="a key",
)
EXAMPLE = described_body(sample_type="simple_mode, or custom_mode (default)", ai_token="a key")


def routes(
    studio: Backend, runs: Runs, *more: Callable[[APIRouter, Official], None]
) -> Sequence[BaseRoute]:
    """Return the routes of the API, which come before Gradio's; none if it is switched off.

    Each of `more` adds further ones.
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


def _fields_of(call: Mapping[str, Any]) -> list[str]:
    """Return what a route's body has that is not in the table of a task's fields."""
    content = call.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    if schema.get("title") == TASK_SCHEMA["title"]:
        return ["any field of a task, below"]
    properties = schema.get("properties", {})
    return [f"{name}: {facts.get('description', '')}" for name, facts in properties.items()]


def docs_page(described: Mapping[str, Any]) -> HTMLResponse:
    """Return a plain page about the routes, which loads nothing from elsewhere."""
    parts = ["<!doctype html><html lang='en'><meta charset='utf-8'><title>ACE-Step API</title>"]
    parts.append("<h1>ACE-Step API</h1><p>The same as <a href='openapi.json'>openapi.json</a>.</p>")
    for path, calls in described["paths"].items():
        for method, call in calls.items():
            description = html.escape(call.get("description", ""))
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{description}</p>"
            )
            parts += [f"<li>{html.escape(line)}</li>" for line in _fields_of(call)]
    parts.append("<h2>Fields of a task</h2><table><tr><th>field<th>also<th>default<th>here</tr>")
    for field in FIELDS:
        cells = (field.name, ", ".join(field.aliases), repr(field.default), field.ours)
        row = "".join(f"<td>{html.escape(cell)}" for cell in cells)
        parts.append(f"<tr>{row}</tr>")
    return HTMLResponse("\n".join([*parts, "</table></html>"]))
