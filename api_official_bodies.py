"""Bodies and answers of ACE-Step's official REST API: what clients send, and the forms that they expect back.

Clients send JSON and forms under any content type, and read the sentence of an error from several
places.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import api_uploads
import limits
import served
from api_bodies import whole_body
from audio import MAX_UPLOAD_BYTES
from events import Problem, StudioError

MOST_JSON_BYTES = 4 * 1024**2
MOST_UPLOAD_BYTES = 2 * MAX_UPLOAD_BYTES + MOST_JSON_BYTES  # a source and a reference
MOST_FIELDS = 500
BUSY = ("queue_full", "too_many", "too_much")  # codes of problems that pass by themselves
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
LONE_SURROGATE = "A text has half a character (a lone surrogate, such as \\ud800). Send it whole."
# The fields of a form that hold a file, by the field of `tasks.TaskUploads`.
UPLOADS = {
    "source": ("ctx_audio", "src_audio"),
    "reference": ("ref_audio", "reference_audio"),
}


class LoraLoad(BaseModel):
    lora_path: str
    adapter_name: str | None = None


class LoraToggle(BaseModel):
    use_lora: bool


class LoraScale(BaseModel):
    scale: Annotated[float, Field(ge=0, le=1)]
    adapter_name: str | None = None


class Loose(BaseModel):
    """A body whose fields are all optional; unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore")


class Init(Loose):
    model: Any = None
    slot: Any = None
    init_llm: Any = None
    lm_model_path: Any = None


def wrapped(data: Any, code: int = 200, error: str | None = None) -> JSONResponse:
    """Return an answer in their envelope.

    A soft error is an answer of HTTP 200 without data, whose `code` is not 200.
    """
    return JSONResponse(
        {
            "data": data,
            "code": code,
            "error": error,
            "timestamp": int(time.time() * 1000),
            "extra": None,
        }
    )


def refusal(status: int, sentence: str) -> JSONResponse:
    """Return a refusal with its sentence in every place where clients look for one."""
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
                field = ".".join(str(part) for part in first["loc"][1:])
                return refusal(422, f"{field or 'The body'}: {first['msg']}")
            except StudioError as error:
                return refusal(_status_of(error.problem), error.problem.text())
            except HTTPException as error:
                return refusal(error.status_code, str(error.detail))
            except UnicodeEncodeError:
                return refusal(400, LONE_SURROGATE)

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
    """Return the fields of an urlencoded form; raises HTTPException if there are too many."""
    form = body.decode("utf-8", "replace")
    try:
        pairs = parse_qsl(form, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise HTTPException(400, f"A form may have up to {MOST_FIELDS} fields.") from None
    return dict(pairs)


async def loose_body(request: Request) -> dict[str, Any]:
    """Return the fields of a body that is JSON or a form, whatever its content type; none if it is empty."""
    body = await read_body(request)
    if not body.strip():
        return {}
    kind = request.headers.get("content-type", "").lower()
    if "json" in kind or body.lstrip()[:1] in (b"{", b"["):
        return json_object(body)
    return form_object(body)


@dataclass
class Body:
    """The fields of a task, and the paths of its uploads by the field of `tasks.TaskUploads`."""

    fields: dict[str, Any]
    uploads: dict[str, str]


async def task_body(request: Request) -> Body:
    """Read a task in any form that clients send: JSON, a form, a form with files, or one of these without a type.

    Raises HTTPException.
    """
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
    raise HTTPException(415, "Send JSON, multipart/form-data or application/x-www-form-urlencoded.")


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
    """Read a form with files, which are written to the disk while they arrive."""
    form = await api_uploads.take_in(request.scope, request.receive, RULES)
    uploads = {}
    for field, names in UPLOADS.items():
        found = [form.files[name] for name in names if name in form.files]
        if found:
            uploads[field] = str(found[0])
    return Body(dict(form.texts), uploads)


def new_upload(suffix: str, size: int) -> Path:
    """Return a new path for an upload of `size` bytes; raises HTTPException if there is no room for it."""
    if size > MAX_UPLOAD_BYTES:
        raise HTTPException(413, f"A file may have up to {limits.size_text(MAX_UPLOAD_BYTES)}.")
    if not served.make_room(size):
        raise HTTPException(507, "The studio has no room for this file. Try again later.")
    name = "audio"
    if SUFFIX.fullmatch(suffix):
        name += suffix
    place = served.new_place(name)
    served.note_upload(place)
    return place
