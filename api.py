"""The public endpoints: one for each song mode, /lyrics and /capabilities, for gradio_client, plain HTTP and MCP.

The tables carry names, defaults and schemas: gradio reads an endpoint's defaults from its components (only None comes
from the signature), and an MCP tool's texts from the handler's docstring. A new mode is one entry in `ENDPOINTS`.

Each endpoint has plain components of its own that the page never draws.
Values reach the handlers as the client sent them (`preprocess=False`): a Textbox would turn a list into lyrics.
"""

from __future__ import annotations

import contextlib
import html
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_http_url_like

from backend import GPU_CONCURRENCY, check, get_backend, problem_of
from events import Done, Draft, Event, Failed, InvalidRequest, Problem, Progress
from limits import (
    ACTIONS,
    FORMATS,
    LEAST_REGION_SECONDS,
    LIMITS,
    MAX_SOURCE_SECONDS,
    QUALITY_STEPS,
    REPAINT_MODES,
    STRUCTURES,
    TEXT_LIMITS,
    TRACKS,
    shown,
)
from params import ACTION_OPTIONS, REQUESTS, Request, parse_request

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One input of an endpoint: its component, its default (or REQUIRED), a line about it, its JSON schema.

    `schema` None keeps the component's own.
    """

    name: str
    component: Callable[..., gr.components.Component]
    default: Any
    about: str
    schema: Mapping[str, Any] | None = None

    def build(self) -> gr.components.Component:
        value = None if self.default is REQUIRED else self.default
        component = self.component(label=self.name, value=value, visible=False)
        if self.schema is not None:
            # On the instance: for a subclass of a component the page would ask the server for frontend files.
            component.api_info = lambda: dict(self.schema)
        return component


@dataclass(frozen=True)
class Endpoint:
    """An endpoint: what it does, in a sentence, its parameters in the order of the signature, and what it returns."""

    about: str
    parameters: tuple[Parameter, ...]
    returns: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def uploads(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters if parameter.component is _upload)


# --- the tables ---------------------------------------------------------------------------------------------------


def _range(name: str) -> str:
    low, high = (int(edge) if edge == int(edge) else edge for edge in (LIMITS[name].low, LIMITS[name].high))
    return f"from {low} to {high}"


WHOLE = {"type": "integer"}
WHOLE_OR_NULL = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}
# gr.JSON's own schema has the type {}, which fails every MCP call.
OBJECT = {"type": "object", "additionalProperties": True}
TEXTS = {"type": "array", "items": {"type": "string"}}

SONG_PARAMETERS = (
    Parameter(
        "prompt",
        gr.Textbox,
        REQUIRED,
        f"What the song sounds like: genre, mood, instruments, voice; up to {TEXT_LIMITS['prompt']:,} characters. "
        "May be empty where there are lyrics.",
    ),
    Parameter(
        "lyrics",
        gr.Textbox,
        "",
        f"What is sung, with sections such as [Verse] and [Chorus] on lines of their own; up to "
        f"{TEXT_LIMITS['lyrics']:,} characters. None means no singing.",
    ),
    Parameter("instrumental", gr.Checkbox, False, "True leaves the singing out, whatever the lyrics say."),
    Parameter(
        "bpm",
        gr.Number,
        LIMITS["bpm"].default,
        f"Tempo in beats a minute, {_range('bpm')}; null lets the model decide.",
        WHOLE_OR_NULL,
    ),
    Parameter("key", gr.Textbox, "", 'Key such as "A minor", "F# major" or "Bbm"; empty lets the model decide.'),
    Parameter(
        "time_signature",
        gr.Textbox,
        "",
        "Beats of a bar: 2, 3, 4 or 6 (2/4, 3/4, 4/4, 6/8); empty lets the model decide.",
        TEXT_OR_NUMBER,
    ),
    Parameter(
        "language", gr.Textbox, "unknown", 'Language of the lyrics as a code such as "en", "ja" or "yue", or "unknown".'
    ),
    Parameter(
        "takes",
        gr.Number,
        LIMITS["takes"].default,
        f"How many songs to make of the one request, {_range('takes')}; take i uses seed + i.",
        WHOLE,
    ),
    Parameter(
        "quality",
        gr.Textbox,
        "standard",
        f"One of {', '.join(f'{name} ({steps} steps)' for name, steps in QUALITY_STEPS.items())}; "
        "a turbo checkpoint makes each in 8, the built-in engine in fewer.",
    ),
    Parameter(
        "seed",
        gr.Number,
        LIMITS["seed"].default,
        f"The same seed gives the same song, {_range('seed')}; -1 draws one, which the record tells.",
        WHOLE,
    ),
)


def _shared(name: str, **changes: Any) -> Parameter:
    """Return a parameter of every song with `changes`, for a mode where it has another default or meaning."""
    return replace(next(parameter for parameter in SONG_PARAMETERS if parameter.name == name), **changes)


def _options(mode: str) -> Parameter:
    known = REQUESTS[mode].model_fields["options"].annotation.model_fields
    about = f"Advanced settings as an object with any of {', '.join(known)}."
    if "format" in known:
        about += f" format is one of {', '.join(FORMATS)}."
    if "plan" in known:
        about += " plan false leaves the planner out, rewrite lets it word the prompt."
    if mode == "edit":
        owned = "; ".join(
            f"{', '.join(sorted(names))} to {action}" for action, names in ACTION_OPTIONS.items() if names
        )
        about += f" Of these, some belong to one action: {owned}. repaint_mode is one of {', '.join(REPAINT_MODES)}."
    return Parameter("options", gr.JSON, {}, about, OBJECT)


def _upload(**settings: Any) -> gr.Audio:
    """Make an audio input whose value `uploaded_path` checks: gradio's own check ends as a 400 without a parameter."""
    upload = gr.Audio(type="filepath", sources=["upload"], **settings)
    upload.api_info()  # keeps the schema, which is made from the data model
    upload.data_model = None
    return upload


DURATION = Parameter("duration", gr.Number, LIMITS["duration"].default, f"Length in seconds, {_range('duration')}.")
REFERENCE = Parameter("reference", _upload, None, "An audio file that lends the song its timbre.")
SOURCE = Parameter(
    "source",
    _upload,
    REQUIRED,
    f"The song to work on: a WAV, FLAC, MP3, OGG or AIFF file of 1 to {MAX_SOURCE_SECONDS} seconds.",
)
COVER = (
    SOURCE,
    REFERENCE,
    Parameter(
        "strength",
        gr.Number,
        LIMITS["strength"].default,
        f"The share of the steps that follow the source, {_range('strength')}; "
        "at 0 the song is made from the words alone.",
    ),
)
EXTEND = (
    _shared(
        "lyrics",
        about=f"What is sung in the new part, with sections such as [Verse] and [Chorus] on lines of their own; up to "
        f"{TEXT_LIMITS['lyrics']:,} characters. None means no singing.",
    ),
    SOURCE,
    Parameter(
        "before",
        gr.Number,
        LIMITS["before"].default,
        f"Seconds of new music before the source, {_range('before')}; not 0 where after is 0.",
    ),
    Parameter(
        "after",
        gr.Number,
        LIMITS["after"].default,
        f"Seconds of new music after the source, {_range('after')}; before, source and after together last up to "
        f"{MAX_SOURCE_SECONDS} seconds.",
    ),
)
EDIT = (
    _shared(
        "prompt",
        default="",
        about=f"What the new part, the changed song or the track sounds like: genre, mood, instruments, voice; up to "
        f"{TEXT_LIMITS['prompt']:,} characters. May be empty.",
    ),
    SOURCE,
    Parameter(
        "action",
        gr.Textbox,
        "repaint",
        f"One of {', '.join(ACTIONS)}. repaint makes start to end anew and keeps the rest; morph leads the whole "
        "song to the new prompt and lyrics; layer makes one more track (with options.mix the source with it); extract "
        "takes one track out of it; complete adds tracks.",
    ),
    Parameter(
        "start",
        gr.Number,
        LIMITS["start"].default,
        f"Where the region of repaint or layer starts, in seconds, {_range('start')}.",
    ),
    Parameter(
        "end",
        gr.Number,
        LIMITS["end"].default,
        f"Where it ends, in seconds, {_range('end')}, at least {LEAST_REGION_SECONDS:g} after start; 0 means the end "
        "of the file. A repaint must leave some of the file as it is.",
    ),
    Parameter(
        "source_prompt",
        gr.Textbox,
        "",
        f"For morph: what the source sounds like now; up to {TEXT_LIMITS['source_prompt']:,} characters.",
    ),
    Parameter(
        "source_lyrics",
        gr.Textbox,
        "",
        f"For morph: what the source sings now; up to {TEXT_LIMITS['source_lyrics']:,} characters. "
        "Empty where it sings the same as lyrics.",
    ),
    Parameter(
        "tracks",
        gr.JSON,
        [],
        f"For layer and extract exactly one, for complete one or more of {', '.join(TRACKS)}.",
        TEXTS,
    ),
)


def _song_endpoint(mode: str, about: str, *own: Parameter) -> Endpoint:
    """Return an endpoint with the shared parameters and its `own`, the required ones first as Python wants them.

    One of its own replaces the shared one of the same name.
    """
    every = {parameter.name: parameter for parameter in (*SONG_PARAMETERS, _options(mode), *own)}
    parameters = sorted(every.values(), key=lambda parameter: parameter.default is not REQUIRED)
    return Endpoint(
        about,
        tuple(parameters),
        "The audio files, one for each take, and a record with everything that is needed to make them again. "
        'While it works, a streaming client gets no files and {"progress": {"stage", "step", "steps", "elapsed", '
        '"left", "note"}}.',
    )


LYRICS = (
    Parameter("brief", gr.Textbox, REQUIRED, f"What the song is about; up to {TEXT_LIMITS['brief']:,} characters."),
    Parameter(
        "structure",
        gr.Textbox,
        "",
        f"The sections: one of {', '.join(STRUCTURES)}, or words of your own, up to {TEXT_LIMITS['structure']:,} "
        "characters. Empty leaves them to the writer.",
    ),
    _shared("language", default="en", about='Language to write in as a code such as "en", "ja" or "yue".'),
    Parameter(
        "tone", gr.Textbox, "", f"How it sounds, such as wistful or playful; up to {TEXT_LIMITS['tone']:,} characters."
    ),
    _shared("seed", about=f"The same seed gives the same lyrics, {_range('seed')}; -1 draws one."),
    _options("lyrics"),
)
ENDPOINTS = {
    "generate": _song_endpoint("generate", "Make songs from words.", DURATION, REFERENCE),
    "cover": _song_endpoint("cover", "Make new versions of a song, as long as it, with another sound.", *COVER),
    "extend": _song_endpoint("extend", "Add new music before and after a song; the song itself stays.", *EXTEND),
    "edit": _song_endpoint(
        "edit", "Change a song: repaint a region, morph the whole, add a layer, extract or complete tracks.", *EDIT
    ),
    "lyrics": Endpoint(
        "Write the lyrics of a song, with section tags that /generate understands.",
        LYRICS,
        "The lyrics. A streaming client gets what there is of them while they are written, at first nothing.",
    ),
}


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
    raise InvalidRequest(Problem("invalid", message, name))


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


# --- what a call holds --------------------------------------------------------------------------------------------

NO_FETCH = "The studio fetches no addresses. Upload the file first, or send it as data:audio/...;base64,... over MCP."


class Refused(Exception):
    """A call that is not passed on: the status and the sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(status, sentence)
        self.status, self.sentence = status, sentence


def check_call(blocks: Any, route: str, values: dict[str, Any]) -> None:
    """Raise Refused where there is no such endpoint or function, or where its inputs do not fit."""
    kind, _, name = route.partition("/")
    if kind not in ("run", "api", "call", "queue"):
        return
    if kind == "call" and name.startswith("v2/"):
        _check_names(_endpoint(blocks, name.removeprefix("v2/")), values)
        return
    index = values.get("fn_index") if kind != "call" else None
    if kind == "queue" and not isinstance(index, int):
        raise Refused(400, "fn_index must be the number of a function.")
    function = _endpoint(blocks, name) if index is None else blocks.fns.get(index)
    if function is None:
        raise Refused(404, f"There is no function {shown(index)}.")
    data = values.get("data")
    counts = {len(function.inputs), sum(not block.skip_api for block in function.inputs)}
    if not function.cancels and (not isinstance(data, list) or len(data) not in counts):
        raise Refused(422, f"data must be a list of {len(function.inputs)} values.")


def _endpoint(blocks: Any, name: str) -> Any:
    """Return the function behind a public endpoint."""
    found = next((each for each in blocks.fns.values() if each.api_name == name.strip("/")), None)
    if found is None:
        names = ", ".join((*ENDPOINTS, "capabilities"))
        raise Refused(404, f"There is no endpoint {shown(name)}. There are {names}.")
    return found


def _check_names(function: Any, values: dict[str, Any]) -> None:
    """Raise Refused where a parameter is unknown, or a required one is missing."""
    endpoint = ENDPOINTS.get(function.api_name)
    if endpoint is None:
        return
    names = ", ".join(endpoint.names)
    if unknown := [shown(name) for name in values if name not in (*endpoint.names, "oauth_token")]:
        raise Refused(422, f"{unknown[0]} is not a parameter of /{function.api_name}. Its parameters are {names}.")
    for parameter in endpoint.parameters:
        if parameter.default is REQUIRED and parameter.name not in values:
            raise Refused(422, f"The parameter {parameter.name} of /{function.api_name} is missing.")


def check_tool(message: dict[str, Any]) -> None:
    """Raise Refused where a tool's file is an address."""
    params = message.get("params")
    arguments = params.get("arguments") if isinstance(params, dict) else None
    if message.get("method") != "tools/call" or not isinstance(arguments, dict):
        return
    for name in ("source", "reference"):
        if isinstance(value := arguments.get(name), str) and is_http_url_like(value.strip().lower()):
            raise Refused(422, f"{name}: {NO_FETCH}")
