"""The public endpoints: one per song mode, /lyrics and /capabilities, for gradio_client, plain HTTP and MCP.

`ENDPOINTS` describes them; a new mode is one more entry. Each has its own components, which the page never draws:
gradio reads defaults and schemas from them, and the texts of MCP tools from the handler's docstring. Values reach the
handlers as the client sent them (`preprocess=False`): a Textbox would turn a list into lyrics.
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
    """One input of an endpoint; `schema` replaces the component's own JSON schema."""

    name: str
    component: Callable[..., gr.components.Component]
    default: Any
    about: str
    schema: Mapping[str, Any] | None = None

    def build(self) -> gr.components.Component:
        value = None if self.default is REQUIRED else self.default
        component = self.component(label=self.name, value=value, visible=False)
        if self.schema is not None:
            # Set on the instance: for a subclass of a component the page would request frontend files.
            component.api_info = lambda: dict(self.schema)
        return component


@dataclass(frozen=True)
class Endpoint:
    about: str
    parameters: tuple[Parameter, ...]  # in the order of the signature
    returns: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def uploads(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters if parameter.component is _upload)


# --- the tables ---------------------------------------------------------------------------------------------------

WHOLE = {"type": "integer"}
WHOLE_OR_NULL = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}
# gr.JSON's own schema has the type {}, which fails every MCP call.
OBJECT = {"type": "object", "additionalProperties": True}
TEXTS = {"type": "array", "items": {"type": "string"}}


def _text(name: str, about: str, default: Any = "", schema: Mapping[str, Any] | None = None) -> Parameter:
    """Return a text parameter; `about` ends with its longest length if it has one."""
    length = f"; up to {TEXT_LIMITS[name]:,} characters" if name in TEXT_LIMITS else ""
    return Parameter(name, gr.Textbox, default, about.format(length=length), schema)


def _number(name: str, about: str, schema: Mapping[str, Any] | None = None) -> Parameter:
    return Parameter(name, gr.Number, LIMITS[name].default, about.format(range=_range(name)), schema)


def _range(name: str) -> str:
    low, high = (int(edge) if edge == int(edge) else edge for edge in (LIMITS[name].low, LIMITS[name].high))
    return f"from {low} to {high}"


def _options(mode: str) -> Parameter:
    known = REQUESTS[mode].model_fields["options"].annotation.model_fields
    about = f"Advanced settings as an object with any of {', '.join(known)}."
    if "format" in known:
        about += f" format is one of {', '.join(FORMATS)}."
    if "plan" in known:
        about += " plan false skips the planner; rewrite true lets it rewrite the prompt."
    if mode == "edit":
        owned = "; ".join(
            f"{', '.join(sorted(names))} to {action}" for action, names in ACTION_OPTIONS.items() if names
        )
        about += f" Some belong to one action: {owned}. repaint_mode is one of {', '.join(REPAINT_MODES)}."
    return Parameter("options", gr.JSON, {}, about, OBJECT)


def _upload(**settings: Any) -> gr.Audio:
    """Make an audio input whose value `uploaded_path` checks: gradio's own check ends as a 400 without a parameter."""
    upload = gr.Audio(type="filepath", sources=["upload"], **settings)
    upload.api_info()  # caches the schema, which is made from the data model
    upload.data_model = None
    return upload


PROMPT = _text(
    "prompt",
    "What the song sounds like: genre, mood, instruments, voice{length}. May be empty if there are lyrics.",
    REQUIRED,
)
WORDS = "with section tags such as [Verse] and [Chorus] on lines of their own{length}. Leave empty for an instrumental."
SEED = _number("seed", "The same seed gives the same song, {range}; -1 picks one, which the record reports.", WHOLE)
LANGUAGE = _text("language", 'Language of the lyrics as a code such as "en", "ja" or "yue", or "unknown".', "unknown")
SONG_PARAMETERS = (
    PROMPT,
    _text("lyrics", f"The words to sing, {WORDS}"),
    Parameter("instrumental", gr.Checkbox, False, "If true, nothing is sung, whatever lyrics holds."),
    _number("bpm", "Tempo in beats per minute, {range}; null lets the model decide.", WHOLE_OR_NULL),
    _text("key", 'Key such as "A minor", "F# major" or "Bbm"; empty lets the model decide.'),
    _text(
        "time_signature",
        "Beats per bar: 2, 3, 4 or 6 (2/4, 3/4, 4/4, 6/8); empty lets the model decide.",
        schema=TEXT_OR_NUMBER,
    ),
    LANGUAGE,
    _number("takes", "How many songs to make from the one request, {range}; take i uses seed + i.", WHOLE),
    _text(
        "quality",
        f"One of {', '.join(f'{name} ({steps} steps)' for name, steps in QUALITY_STEPS.items())}; "
        "a turbo checkpoint always takes 8, the built-in engine fewer.",
        "standard",
    ),
    SEED,
)

DURATION = _number("duration", "Length in seconds, {range}.")
REFERENCE = Parameter("reference", _upload, None, "An audio file whose timbre the song takes on.")
SOURCE = Parameter(
    "source",
    _upload,
    REQUIRED,
    f"The song to work on: a WAV, FLAC, MP3, OGG or AIFF file of 1 to {MAX_SOURCE_SECONDS} seconds.",
)
COVER = (
    SOURCE,
    REFERENCE,
    _number("strength", "Share of the steps that follow the source, {range}; 0 makes the song from the words alone."),
)
EXTEND = (
    _text("lyrics", f"The words to sing in the new part, {WORDS}"),
    SOURCE,
    _number("before", "Seconds of new music before the source, {range}; not 0 if after is 0."),
    _number(
        "after",
        "Seconds of new music after the source, {range}; before, source and after together last up to "
        f"{MAX_SOURCE_SECONDS} seconds.",
    ),
)
EDIT = (
    _text(
        "prompt",
        "What the new part, the changed song or the track sounds like: genre, mood, instruments, voice{length}. "
        "May be empty.",
    ),
    SOURCE,
    _text(
        "action",
        f"One of {', '.join(ACTIONS)}. repaint replaces start to end and keeps the rest; morph turns the whole song "
        "into that of the new prompt and lyrics; layer makes one more track (with options.mix, mixed with the source); "
        "extract isolates one track; complete adds tracks.",
        "repaint",
    ),
    _number("start", "Start of the region for repaint or layer, in seconds, {range}."),
    _number(
        "end",
        f"End of that region, in seconds, {{range}}, at least {LEAST_REGION_SECONDS:g} after start; 0 means the end of "
        "the file. A repaint must leave some of the file unchanged.",
    ),
    _text("source_prompt", "For morph: what the source sounds like now{length}."),
    _text("source_lyrics", "For morph: what the source sings now{length}. Leave empty if it is the same as lyrics."),
    Parameter(
        "tracks",
        gr.JSON,
        [],
        f"For layer and extract exactly one, for complete one or more of {', '.join(TRACKS)}.",
        TEXTS,
    ),
)
LYRICS = (
    _text("brief", "What the song is about{length}.", REQUIRED),
    _text(
        "structure",
        f"The sections: one of {', '.join(STRUCTURES)}, or your own words{{length}}. Empty leaves them to the writer.",
    ),
    replace(LANGUAGE, default="en", about='Language to write in as a code such as "en", "ja" or "yue".'),
    _text("tone", "The mood, such as wistful or playful{length}."),
    replace(SEED, about=f"The same seed gives the same lyrics, {_range('seed')}; -1 picks one."),
    _options("lyrics"),
)


def _song_endpoint(mode: str, about: str, *own: Parameter) -> Endpoint:
    """Return an endpoint with the shared parameters and its `own`, which win; the required ones come first."""
    parameters = {parameter.name: parameter for parameter in (*SONG_PARAMETERS, _options(mode), *own)}
    return Endpoint(
        about,
        tuple(sorted(parameters.values(), key=lambda parameter: parameter.default is not REQUIRED)),
        "The audio files, one per take, and a record with everything needed to make them again. During the run a "
        'streaming client gets no files and {"progress": {"stage", "step", "steps", "elapsed", "left", "note"}}.',
    )


ENDPOINTS = {
    "generate": _song_endpoint("generate", "Make songs from words.", DURATION, REFERENCE),
    "cover": _song_endpoint("cover", "Make new versions of a song, with its length and another sound.", *COVER),
    "extend": _song_endpoint("extend", "Add new music before and after a song, which stays unchanged.", *EXTEND),
    "edit": _song_endpoint(
        "edit", "Change a song: repaint a region, morph the whole, add a layer, extract or complete tracks.", *EDIT
    ),
    "lyrics": Endpoint(
        "Write the lyrics of a song, with section tags that /generate understands.",
        LYRICS,
        "The lyrics. A streaming client gets the text so far while they are written.",
    ),
}


# --- the endpoints ------------------------------------------------------------------------------------------------


def add_endpoints() -> None:
    """Register every public endpoint; call it once, inside a container of the page that is never rendered."""
    # Each component is hidden as well: the page would wait for one that is never built.
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
        queue=False,  # health checks must get an answer while songs are made or the queue is full
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
    """Return the handler of an endpoint: a generator with the name, signature and docstring for gradio and MCP.

    For songs it yields (None, {"progress": {stage, step, steps, elapsed, left, note}}) during the run and
    (paths, record) at the end; for lyrics the text so far. It raises gr.Error titled with the problem's code. Closing
    it cancels the run.
    """
    endpoint = ENDPOINTS[mode]

    def songs(*values: Any) -> Iterator[tuple[list[str] | None, dict[str, Any]]]:
        with contextlib.closing(_run(mode, values)) as events:
            for event in events:
                match event:
                    case Progress():
                        yield None, {"progress": asdict(event)}
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
    arguments = [f"    {parameter.name}: {parameter.about}" for parameter in endpoint.parameters]
    handler.__doc__ = "\n".join([endpoint.about, "", "Args:", *arguments, "", "Returns:", f"    {endpoint.returns}"])
    handler.__signature__ = inspect.Signature(
        inspect.Parameter(parameter.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=parameter.default)
        for parameter in endpoint.parameters
    )
    return handler


def validator_of(mode: str) -> Callable[..., list[dict[str, Any]]]:
    """Return the check that runs before a call is queued: one verdict per input, with a sentence if it is wrong.

    It reads the uploads' headers too, and on ZeroGPU it refuses what is too long for one call. A wrong value ends as
    HTTP 422, in gradio_client as a ValidationError, with the parameter's name and the sentence.
    """
    names = ENDPOINTS[mode].names

    def validate(*values: Any) -> list[dict[str, Any]]:
        sentences: dict[str, list[str]] = {}
        try:
            check(read_request(mode, dict(zip(names, values, strict=True))))
        except InvalidRequest as error:
            for problem in error.problems:
                name = problem.field.split(".")[0]
                sentences.setdefault(name if name in names else names[0], []).append(sentence(problem))
        return [gr.validate(name not in sentences, " ".join(sentences.get(name, ()))) for name in names]

    return validate


def read_request(mode: str, values: Mapping[str, Any]) -> Request:
    """Build a request from raw API values; raises InvalidRequest, also for a file that is not an upload."""
    if isinstance(options := values.get("options"), Mapping) and isinstance(options.get("loras"), list):
        chosen = [_uploaded_lora(each) for each in options["loras"]]
        values = {**values, "options": {**options, "loras": chosen}}
    paths = {name: uploaded_path(name, values[name]) for name in ENDPOINTS[mode].uploads if values[name] is not None}
    return parse_request(mode, {**values, **paths})


def _uploaded_lora(choice: Any) -> Any:
    """Replace an uploaded LoRA's file object with its path; anything else stays unchanged."""
    if isinstance(choice, Mapping) and isinstance(choice.get("source"), Mapping):
        path = choice["source"].get("path")
        return {**choice, "source": path if isinstance(path, str) else ""}
    return choice


def uploaded_path(name: str, value: Any) -> str:
    """Return the path of an upload, links resolved; raises InvalidRequest for a file outside the upload cache.

    Gradio checks the path of a file input only, but a client can put a file anywhere.
    """
    path = value.get("path") if isinstance(value, Mapping) else None
    # os.path.isfile is False for impossible names; Path.is_file raises for some.
    if isinstance(path, str) and os.path.isfile(path):
        found = Path(path).resolve()
        if found.is_relative_to(Path(get_upload_folder()).resolve()):
            return str(found)
    wrong = path if isinstance(path, str) else value
    message = f"{name.capitalize()} must be an uploaded audio file, not {shown(wrong)}."
    raise InvalidRequest(Problem("invalid", message, name))


def _run(mode: str, values: Iterable[Any]) -> Iterator[Event]:
    """Yield the events of a call; raises gr.Error if its values are wrong or the run fails."""
    try:
        request = read_request(mode, dict(zip(ENDPOINTS[mode].names, values, strict=True)))
    except InvalidRequest as error:
        raise error_for(error.problem) from None
    # Gradio can cancel a run only after its first value.
    yield Progress("waiting")
    try:
        with contextlib.closing(get_backend().stream(request)) as events:
            for event in events:
                if isinstance(event, Failed):
                    raise error_for(event.problem)
                yield event
    except gr.Error:
        raise
    except Exception as error:
        raise error_for(problem_of(error)) from None


def sentence(problem: Problem) -> str:
    """Return the problem's text, with the field in front if it is inside a parameter, such as `options.steps`."""
    field, text = problem.field, problem.text()
    # The sentence about an unknown name quotes it already, cut and cleaned.
    return f"{field}: {text}" if "." in field and shown(field) not in text else text


def error_for(problem: Problem) -> gr.Error:
    """Return the error for a client: its title is the code, its text is escaped because a page shows it as HTML."""
    return gr.Error(html.escape(sentence(problem), quote=False), title=problem.code, print_exception=False)


# --- checks of calls ------------------------------------------------------------------------------------------------

NO_FETCH = "The studio does not fetch URLs. Upload the file first, or send it as data:audio/...;base64,... over MCP."


class Refused(Exception):
    """A call that is not passed on."""

    def __init__(self, status: int, sentence: str):
        super().__init__(status, sentence)
        self.status, self.sentence = status, sentence


def check_call(blocks: Any, route: str, values: dict[str, Any]) -> None:
    """Raise Refused if there is no such endpoint or function, or if the call's inputs do not fit it."""
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
    found = next((each for each in blocks.fns.values() if each.api_name == name.strip("/")), None)
    if found is None:
        names = ", ".join((*ENDPOINTS, "capabilities"))
        raise Refused(404, f"There is no endpoint {shown(name)}. The endpoints are {names}.")
    return found


def _check_names(function: Any, values: dict[str, Any]) -> None:
    """Raise Refused if a parameter is unknown, or if a required one is missing."""
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
    """Raise Refused if a file of a tool's call is a URL."""
    params = message.get("params")
    arguments = params.get("arguments") if isinstance(params, dict) else None
    if message.get("method") != "tools/call" or not isinstance(arguments, dict):
        return
    for name in ("source", "reference"):
        if isinstance(value := arguments.get(name), str) and is_http_url_like(value.strip().lower()):
            raise Refused(422, f"{name}: {NO_FETCH}")
