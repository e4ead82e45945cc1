"""The public endpoints: one for each song mode, /lyrics and /capabilities, for gradio_client, plain HTTP and MCP.

Each endpoint has plain components of its own that the page never draws; `endpoints.py` has their tables.
Values reach the handlers as the client sent them (`preprocess=False`): a Textbox would turn a list into lyrics.
"""

from __future__ import annotations

import contextlib
import html
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from backend import GPU_CONCURRENCY, check, get_backend, problem_of
from endpoints import ENDPOINTS, Endpoint
from events import Done, Draft, Event, Failed, InvalidRequest, Problem, Progress
from limits import shown
from params import Request, parse_request

# --- the endpoints ------------------------------------------------------------------------------------------------


def add_endpoints() -> None:
    """Register every public endpoint; call it once, inside a container of the page that is never rendered."""
    # Each component is hidden by itself as well: the page would wait for what it never builds.
    for mode, endpoint in ENDPOINTS.items():
        outputs: list[gr.components.Component] = [gr.Textbox(label="text", visible=False)]
        if mode != "lyrics":
            outputs = [
                gr.File(label="files", file_count="multiple", visible=False),
                gr.JSON(label="record", visible=False),
            ]
        gr.on(
            [],  # nothing on the page triggers it
            handler_of(mode),
            inputs=[parameter.build() for parameter in endpoint.parameters],
            outputs=outputs,
            api_name=mode,
            api_visibility="public",
            preprocess=False,
            show_progress="hidden",
            validator=validator_of(mode),
            **GPU_CONCURRENCY,
        )
    gr.on(
        [],
        capabilities,
        outputs=gr.JSON(label="capabilities", visible=False),
        api_name="capabilities",
        api_visibility="public",
        show_progress="hidden",
        # Health checks ask it: it must answer while songs are made and while the queue is full.
        queue=False,
        postprocess=False,  # gr.JSON's would reach an MCP client as the text "root={...}"
    )


def capabilities() -> dict[str, Any]:
    """Tell what this studio can do: its model, engine, device, tasks, limits and versions.

    Returns:
        An object with model, engine (xl or preview), device, dtype, memory_plan, planner, lyrics, tasks, limits,
        versions and more.
    """
    return get_backend().capabilities()


def handler_of(mode: str) -> Callable[..., Iterator[Any]]:
    """Return the handler of an endpoint: a generator whose name, signature and docstring gradio and MCP read.

    A song's yields (None, {"progress": {stage, step, steps, elapsed, left, note}}) while it is being made and
    (paths, record) at the end; that of lyrics the text so far. It raises gr.Error titled with the problem's code.
    Closing it cancels the run.
    """
    endpoint = ENDPOINTS[mode]

    def songs(*values: Any) -> Iterator[tuple[list[str] | None, dict[str, Any]]]:
        with contextlib.closing(_run(mode, values)) as events:
            for event in events:
                match event:
                    case Progress():
                        yield None, _progress(event)
                    case Done(files, record):
                        yield list(files), record

    def text(*values: Any) -> Iterator[str]:
        written = ""
        with contextlib.closing(_run(mode, values)) as events:
            for event in events:
                match event:
                    case Draft(draft):
                        written = draft
                    case Done(_, record):
                        written = record["text"]
                yield written

    handler = text if mode == "lyrics" else songs
    handler.__name__ = handler.__qualname__ = mode
    handler.__doc__ = _docstring(endpoint)
    handler.__signature__ = inspect.Signature(
        inspect.Parameter(parameter.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=parameter.default)
        for parameter in endpoint.parameters
    )
    return handler


def validator_of(mode: str) -> Callable[..., list[dict[str, Any]]]:
    """Return the check that runs before anything is queued: a verdict for each input, with the sentence if it is wrong.

    The uploads' headers are read as well, and on ZeroGPU what one call cannot last is refused. A wrong value ends as
    HTTP 422, in gradio_client as a ValidationError, with the parameter's name and the sentence.
    """
    names = ENDPOINTS[mode].names

    def validate(*values: Any) -> list[dict[str, Any]]:
        said: dict[str, list[str]] = {}
        try:
            check(read_request(mode, dict(zip(names, values, strict=True))))
        except InvalidRequest as error:
            for problem in error.problems:
                name = problem.field.split(".")[0]
                said.setdefault(name if name in names else names[0], []).append(sentence(problem))
        return [gr.validate(name not in said, " ".join(said.get(name, ()))) for name in names]

    return validate


def read_request(mode: str, values: Mapping[str, Any]) -> Request:
    """Return the request that raw API `values` make; raises InvalidRequest, also where a file is not an upload."""
    if isinstance(options := values.get("options"), Mapping) and isinstance(options.get("loras"), list):
        chosen = [_uploaded_lora(each) for each in options["loras"]]
        values = {**values, "options": {**options, "loras": chosen}}
    paths = {name: uploaded_path(name, values[name]) for name in ENDPOINTS[mode].uploads if values[name] is not None}
    return parse_request(mode, {**values, **paths})


def _uploaded_lora(choice: Any) -> Any:
    """Return a LoRA of a request with the path of its file, where the client uploaded one."""
    if isinstance(choice, Mapping) and isinstance(choice.get("source"), Mapping):
        path = choice["source"].get("path")
        return {**choice, "source": path if isinstance(path, str) else ""}
    return choice


def uploaded_path(name: str, value: Any) -> str:
    """Return the path of an uploaded file in the upload cache.

    Gradio has checked the path of a file input already. This holds wherever a client puts one, and follows links.
    """
    path = value.get("path") if isinstance(value, Mapping) else None
    # os.path.isfile is False for names that no file can have; Path.is_file raises for some.
    if isinstance(path, str) and os.path.isfile(path):
        found = Path(path).resolve()
        if found.is_relative_to(Path(get_upload_folder()).resolve()):
            return str(found)
    wrong = path if isinstance(path, str) else value
    message = f"{name.capitalize()} must be an uploaded audio file, not {shown(wrong)}."
    raise InvalidRequest((Problem("invalid", message, name),))


def _run(mode: str, values: Iterable[Any]) -> Iterator[Event]:
    """Run what the `values` of an endpoint ask for; raises gr.Error where they are wrong or the run fails."""
    try:
        request = read_request(mode, dict(zip(ENDPOINTS[mode].names, values, strict=True)))
    except InvalidRequest as error:
        raise error_for(error.problem) from None
    # A run can be cancelled by its event only after its first value.
    yield Progress("waiting")
    with contextlib.closing(_events(request)) as events:
        for event in events:
            if isinstance(event, Failed):
                raise error_for(event.problem)
            yield event


def _events(request: Request) -> Iterator[Event]:
    """Yield the events of a run; whatever goes wrong around it becomes a `Failed` as well."""
    try:
        yield from get_backend().stream(request)
    except Exception as error:
        yield Failed(problem_of(error))


def _progress(event: Progress) -> dict[str, Any]:
    return {"progress": asdict(event)}


def sentence(problem: Problem) -> str:
    """Return the problem's text; where it lies inside a parameter, it says where, such as `options.steps`."""
    field, text = problem.field, problem.text()
    # The sentence about an unknown name quotes it already, cut and cleaned.
    return f"{field}: {text}" if "." in field and shown(field) not in text else text


def error_for(problem: Problem) -> gr.Error:
    """Return the error that a client gets: titled with the code, its text safe where a page shows it as HTML."""
    return gr.Error(html.escape(sentence(problem), quote=False), title=problem.code, print_exception=False)


def _docstring(endpoint: Endpoint) -> str:
    """Return a docstring as gradio reads it: a description, then one line for each parameter."""
    lines = [f"    {parameter.name}: {parameter.about}" for parameter in endpoint.parameters]
    return "\n".join([endpoint.about, "", "Args:", *lines, "", "Returns:", f"    {endpoint.returns}"])
