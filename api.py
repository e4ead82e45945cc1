"""The public endpoints for gradio_client, plain HTTP and MCP: one per song mode, /lyrics and /capabilities.

`ENDPOINTS` describes them; a new mode is one more entry. Gradio reads defaults and schemas from
components that the page never draws, and the texts of MCP tools from the handler's docstring.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.utils import get_upload_folder
from starlette.exceptions import HTTPException

import api_runs
import gpu
import limits
import tooltips
from backend import Backend, check
from beat import QUIET
from events import Done, Draft, InvalidRequest, Problem, Progress, StudioError, UnknownName
from limits import LIMITS, MAX_SOURCE_SECONDS, TEXT_LIMITS, shown
from model_weights import CHECKPOINTS
from params import ACTION_OPTIONS, REQUESTS, Request, options_type, parse_request
from runs import FULL, Run, RunEvent, Runs, Waiting

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    name: str
    description: str
    default: Any

    def build(self) -> gr.components.Component:
        kind, schema = KINDS.get(self.name, (gr.Textbox, None))
        component: Any = kind(
            label=self.name, value=None if self.default is REQUIRED else self.default, visible=False
        )
        if schema:
            # Set on the instance: for a subclass of a component the page would request frontend
            # files.
            component.api_info = lambda: dict(schema)
        return component


@dataclass(frozen=True)
class Endpoint:
    description: str
    parameters: tuple[Parameter, ...]  # in the order of the signature
    returns: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)


def _upload(**settings: Any) -> gr.Audio:
    """Make an audio input whose value `uploaded_path` checks: Gradio's own check ends as a 400 without a parameter."""
    upload: Any = gr.Audio(type="filepath", sources=["upload"], **settings)
    upload.api_info()  # caches the schema, which is made from the data model
    upload.data_model = None
    return upload


UPLOADS = ("source", "reference")
# The component of each parameter that is not a plain text, and the JSON schema that replaces the
# component's own.
KINDS: dict[str, tuple[Callable[..., gr.components.Component], dict[str, Any] | None]] = {
    **dict.fromkeys(LIMITS, (gr.Number, None)),
    **dict.fromkeys(UPLOADS, (_upload, None)),
    **dict.fromkeys(("takes", "seed"), (gr.Number, {"type": "integer"})),
    "duration": (gr.Number, {"anyOf": [{"type": "number"}, {"type": "null"}]}),
    "bpm": (gr.Number, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    "time_signature": (gr.Textbox, {"anyOf": [{"type": "string"}, {"type": "number"}]}),
    "instrumental": (gr.Checkbox, None),
    # gr.JSON's own schema has the type {}, which fails every MCP call.
    "options": (gr.JSON, {"type": "object", "additionalProperties": True}),
    "tracks": (gr.JSON, {"type": "array", "items": {"type": "string"}}),
    "regions": (
        gr.JSON,
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    ),
}


def _options_description(mode: str) -> str:
    """Return what an assistant has to know to set the options of `mode`."""
    known = options_type(REQUESTS[mode]).model_fields
    sentences = [
        f"Advanced settings as an object with any of {', '.join(known)}.",
        "detach true returns the id of the run at once; ask for it with /run.",
    ]
    if "format" in known:
        sentences.append(f"format is one of {', '.join(limits.FORMATS)}.")
    if "model" in known:
        names = ", ".join(CHECKPOINTS)
        sentences.append(
            f"model names the song model: {names}, or one on Hugging Face; models in /capabilities says "
            "which are on the studio's machine."
        )
    if "best_of" in known:
        parts = ", ".join(limits.SCORE_PARTS)
        sentences.append(
            "best_of makes so many songs and returns the best takes of them; score names the parts of their "
            f"score: {parts}."
        )
    if "plan" in known:
        sentences.append(
            "plan false skips the planner; rewrite true lets it rewrite the prompt; exclude names what the plan "
            "should avoid; plan_strength is the share of the steps that follow the plan."
        )
    if "detail" in known:
        sentences.append(f"detail is one of {', '.join(limits.DETAILS)}.")
    if mode == "edit":
        by_action = [
            f"{', '.join(sorted(names))} to {action}"
            for action, names in ACTION_OPTIONS.items()
            if names
        ]
        sentences.append(f"Some belong to one action: {'; '.join(by_action)}.")
        sentences.append(f"repaint_mode is one of {', '.join(limits.REPAINT_MODES)}.")
    return " ".join(sentences)


WORDS = "with section tags such as [Verse] and [Chorus] on lines of their own{length}. Leave empty for an instrumental."
QUALITIES = ", ".join(f"{name} ({steps} steps)" for name, steps in limits.QUALITY_STEPS.items())
SONG = {
    "prompt": "What the song sounds like: genre, mood, instruments, voice{length}. May be empty if there are lyrics.",
    "lyrics": f"The words to sing, {WORDS}",
    "instrumental": "If true, nothing is sung, whatever lyrics holds.",
    "bpm": "Tempo in beats per minute, {range}; null lets the model decide.",
    "key": 'Key such as "A minor", "F# major" or "Bbm"; empty lets the model decide.',
    "time_signature": "Beats per bar: 2, 3, 4 or 6 (2/4, 3/4, 4/4, 6/8); empty lets the model decide.",
    "language": 'Language of the lyrics as a code such as "en", "ja" or "yue", or "unknown".',
    "takes": "How many songs to make from the one request, {range}; take i uses seed + i.",
    "quality": f"One of {QUALITIES}; a turbo checkpoint always takes 8, the built-in engine fewer.",
    "seed": "The same seed gives the same song, {range}; -1 picks one, which the record reports.",
}
LYRICS = {
    "brief": "What the song is about{length}.",
    "structure": f"The sections: one of {', '.join(limits.STRUCTURES)}, or your own words{{length}}. Empty "
    "leaves them to the songwriter.",
    "language": 'Language to write in as a code such as "en", "ja" or "yue".',
    "tone": "The mood, such as wistful or playful{length}.",
    "seed": "The same seed gives the same lyrics, {range}; -1 picks one.",
}
REFERENCE = "An audio file whose timbre the song borrows."
SOURCE = (
    f"The song to work on: a WAV, FLAC, MP3, OGG or AIFF file of 1 to {MAX_SOURCE_SECONDS} seconds."
)
SONG_RETURNS = (
    "The audio files, one per take, and a record with everything needed to make them again. During the run a "
    'streaming client gets no files and {"progress": {"stage", "step", "steps", "elapsed", "left", "note"}}.'
)


# Defaults of parameters whose fields have another form than JSON.
EMPTY: dict[str, Any] = {"options": {}, "tracks": [], "regions": []}


def _endpoint(
    mode: str,
    description: str,
    shared: Mapping[str, str] = SONG,
    returns: str = SONG_RETURNS,
    **own: str,
) -> Endpoint:
    """Return an endpoint with the `shared` parameters, options, and its `own`, whose texts win; required ones first."""
    required = {"source", "brief"}
    if mode != "edit":
        required.add("prompt")
    fields = REQUESTS[mode].model_fields
    parameters = []
    for name, text in {**shared, "options": _options_description(mode), **own}.items():
        default = EMPTY[name] if name in EMPTY else fields[name].default
        limit = LIMITS.get(name)
        if limit:
            default = limit.default
            text = text.format(range=f"from {limit.low:.12g} to {limit.high:.12g}")
        elif name in TEXT_LIMITS:
            text = text.format(length=f"; up to {TEXT_LIMITS[name]:,} characters")
        parameters.append(Parameter(name, text, REQUIRED if name in required else default))
    required_first = sorted(parameters, key=lambda parameter: parameter.default is not REQUIRED)
    return Endpoint(description, tuple(required_first), returns)


ENDPOINTS = {
    "generate": _endpoint(
        "generate",
        "Make songs from words.",
        duration="Length in seconds, {range}; null lets the planner decide, or the lyrics.",
        reference=REFERENCE,
    ),
    "cover": _endpoint(
        "cover",
        "Make new versions of a song, with its length and another sound.",
        source=SOURCE,
        reference=REFERENCE,
        strength="Share of the steps that follow the source, {range}; 0 makes the song from the words alone.",
    ),
    "extend": _endpoint(
        "extend",
        "Add new music before and after a song, which stays unchanged.",
        lyrics=f"The words to sing in the new part, {WORDS}",
        source=SOURCE,
        before="Seconds of new music before the source, {range}; not 0 if after is 0.",
        after="Seconds of new music after the source, {range}; before, source and after together last up to "
        f"{MAX_SOURCE_SECONDS} seconds.",
    ),
    "edit": _endpoint(
        "edit",
        "Change a song: repaint a region, morph the whole, add a layer, extract or complete tracks.",
        prompt="What the new part, the changed song or the track sounds like: genre, mood, instruments, voice{length}. "
        "May be empty.",
        source=SOURCE,
        action=f"One of {', '.join(limits.ACTIONS)}. repaint replaces start to end and keeps the rest; morph turns the "
        "whole song into that of the new prompt and lyrics; layer makes one more track (with options.mix, mixed with "
        "the source); extract isolates one track; complete adds tracks.",
        start="Start of the region for repaint or layer, in seconds, {range}.",
        end=f"End of that region, in seconds, {{range}}, at least {limits.LEAST_REGION_SECONDS:g} after start; 0 means "
        "the end of the file. A repaint must leave some of the file unchanged.",
        source_prompt="For morph: what the source sounds like now{length}.",
        source_lyrics="For morph: what the source sings now{length}. Leave empty if it is the same as lyrics.",
        regions="Several regions for repaint or layer, in place of start and end: a list of up to "
        f"{limits.MOST_REGIONS} [start, end] in seconds that do not overlap.",
        tracks=f"For layer and extract exactly one, for complete one or more of {', '.join(limits.TRACKS)}.",
    ),
    "lyrics": _endpoint(
        "lyrics",
        "Write the lyrics of a song, with section tags that /generate understands.",
        LYRICS,
        "The lyrics. A streaming client gets the text so far while they are written.",
    ),
}


def add_endpoints(studio: Backend, runs: Runs) -> None:
    """Register every public endpoint; call it once, inside a container of the page that is never rendered."""
    # Nothing on the page triggers them. Each component is hidden, because the page would wait for
    # a visible one that is never built.
    for mode, endpoint in ENDPOINTS.items():
        files = (
            gr.File(label="files", file_count="multiple", visible=False),
            gr.JSON(label="record", visible=False),
        )
        gr.on(
            [],
            handler_of(mode, runs),
            inputs=[parameter.build() for parameter in endpoint.parameters],
            outputs=[gr.Textbox(label="text", visible=False)] if mode == "lyrics" else list(files),
            api_name=mode,
            api_visibility="public",
            # Handlers get what the client sent: a Textbox would turn a list into lyrics.
            preprocess=False,
            show_progress="hidden",
            validator=validator_of(mode, studio),
            # A handler only follows its run, which waits in the queue of runs.
            concurrency_limit=None,
        )
    gr.on(
        [],
        capabilities_of(studio),
        outputs=gr.JSON(label="capabilities", visible=False),
        api_name="capabilities",
        api_visibility="public",
        show_progress="hidden",
        queue=False,  # health checks must get an answer while songs are made or the queue is full
        postprocess=False,  # gr.JSON's would reach an MCP client as the text "root={...}"
    )
    api_runs.add_endpoints(runs)


AUDIO_OVER_MCP = "A WAV, FLAC, MP3, OGG or AIFF file as data:audio/...;base64,..."


def describe_files(tools: Any) -> None:
    """Let the schemas of Gradio's MCP server describe a file as what the studio takes.

    Gradio's own is a string with required properties, whose format asks for a URL.
    """
    simplified = tools.simplify_filedata_schema

    def simplify(schema: dict[str, Any]) -> tuple[dict[str, Any], list[list[str | int]]]:
        simple, places = simplified(schema)
        for place in places:
            node: Any = simple["properties"]
            for step in place:
                node = node[step]
            description = node.get("description", "")
            node.clear()
            node["type"] = "string"
            node["description"] = f"{description} {AUDIO_OVER_MCP}.".strip()
        return simple, places

    tools.simplify_filedata_schema = simplify


def capabilities_of(studio: Backend) -> Callable[[], dict[str, Any]]:
    """Return the handler of /capabilities."""

    def capabilities() -> dict[str, Any]:
        """Tell what this studio can do: its model, engine, device, tasks, limits and versions.

        Returns:
            An object with model, engine (xl or preview), device, dtype, memory_plan, planner, lyrics, tasks, limits,
            versions and more.
        """
        return studio.capabilities()

    return capabilities


def handler_of(mode: str, runs: Runs) -> Callable[..., AsyncGenerator[Any]]:
    """Return the handler of an endpoint: a generator with the name, signature and docstring for Gradio and MCP.

    For songs it yields (None, {"progress": {stage, step, steps, elapsed, left, note}}) during the
    run and (paths, record) at the end; for lyrics the text so far. It raises gr.Error titled with
    the problem's code. Closing it cancels the run, unless options.detach is true: then it yields
    the id of the run, which continues.
    """
    endpoint = ENDPOINTS[mode]

    async def handler(*values: Any) -> AsyncGenerator[Any]:
        try:
            request, detach = read_call(mode, values)
            owner = api_runs.owner_of(LocalContext.request.get(None))
            # In a thread: the first request looks for the models.
            run = await asyncio.to_thread(runs.start, request, owner)
            answers = _detached(runs, run) if detach else _attached(runs, run)
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    yield answer
        except Exception as error:
            problem = gpu.problem_of(error)
            # A page shows the text as HTML.
            text = html.escape(sentence(problem), quote=False)
            raise gr.Error(text, title=problem.code, print_exception=False) from None

    handler.__name__ = mode
    handler.__qualname__ = mode
    arguments = [
        f"    {parameter.name}: {parameter.description}" for parameter in endpoint.parameters
    ]
    handler.__doc__ = "\n".join(
        [endpoint.description, "", "Args:", *arguments, "", "Returns:", f"    {endpoint.returns}"]
    )
    described: Any = handler  # type checkers know no __signature__
    described.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                parameter.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=parameter.default
            )
            for parameter in endpoint.parameters
        ]
    )
    return handler


async def _detached(runs: Runs, run: Run) -> AsyncGenerator[Any]:
    """Yield the id of `run`, with its state unless the endpoint's only output is a text."""
    if run.request.mode == "lyrics":
        yield run.id
        return
    facts = runs.facts(run.id)
    yield None, {name: facts[name] for name in ("run", "state", "place")}


async def _attached(runs: Runs, run: Run) -> AsyncGenerator[Any]:
    """Yield what a caller sees of `run`, at least once a second; closing this generator cancels the run."""
    answer = _Outputs(run.request.mode)
    try:
        # Gradio can cancel a run only after its first value.
        yield answer.after(Progress("waiting"))
        async with contextlib.aclosing(runs.follow(run)) as news:
            async for numbered in news:
                # Yielded without news too: Gradio closes a handler only between two values.
                if numbered is QUIET:
                    yield answer.latest
                else:
                    yield answer.after(numbered[1])
    finally:
        runs.cancel(run.id)


class _Outputs:
    """Turns the events of a run into the values of its endpoint's outputs."""

    def __init__(self, mode: str):
        self._writes = mode == "lyrics"
        self.latest: Any = ""

    def after(self, event: RunEvent) -> Any:
        """Return the outputs after `event`; raises StudioError for a run that failed."""
        match event:
            case Waiting(place, starts_in):
                note = tooltips.waiting_sentence(place, starts_in)
                self._progress(Progress("waiting", left=starts_in, note=note))
            case Progress():
                self._progress(event)
            case Draft(words):
                self.latest = words
            case Done():
                if self._writes:
                    self.latest = event.words["text"]
                else:
                    self.latest = (list(event.files), event.song)
            case _:
                raise StudioError.from_problem(event.problem)
        return self.latest

    def _progress(self, event: Progress) -> None:
        if not self._writes:
            self.latest = (None, {"progress": asdict(event)})


def validator_of(mode: str, studio: Backend) -> Callable[..., list[dict[str, Any]]]:
    """Return the check that runs before a call is queued: one verdict per input, with a sentence if it is wrong.

    It reads the uploads' headers too, and on ZeroGPU it refuses what is too long for one call. A
    wrong value ends as HTTP 422, in gradio_client as a ValidationError, with the parameter's name
    and the sentence.
    """
    names = ENDPOINTS[mode].names

    def validate(*values: Any) -> list[dict[str, Any]]:
        sentences: dict[str, list[str]] = {}
        try:
            check(read_call(mode, values)[0], studio)
        except InvalidRequest as error:
            for problem in error.problems:
                name = problem.field.split(".")[0]
                if name not in names:
                    name = names[0]
                sentences.setdefault(name, []).append(sentence(problem))
        verdicts = []
        for name in names:
            text = " ".join(sentences.get(name, ()))
            verdicts.append(gr.validate(name not in sentences, text))
        return verdicts

    return validate


def read_call(mode: str, values: tuple[Any, ...]) -> tuple[Request, bool]:
    """Build a request from a call's raw values, and tell whether its run is to be detached from the call.

    Raises InvalidRequest, also for a file that is not an upload.
    """
    fields = dict(zip(ENDPOINTS[mode].names, values, strict=True))
    detach = False
    if isinstance(fields.get("options"), Mapping):
        options = dict(fields["options"])
        detach = options.pop("detach", False)
        if isinstance(options.get("loras"), list):
            options["loras"] = [_uploaded_lora(choice) for choice in options["loras"]]
        fields["options"] = options
    if not isinstance(detach, bool):
        message = f"Detach must be true or false, not {shown(detach)}."
        raise InvalidRequest(Problem("invalid", message, "options.detach"))
    for name in UPLOADS:
        if fields.get(name) is not None:
            fields[name] = uploaded_path(name, fields[name])
    return parse_request(mode, fields), detach


def _uploaded_lora(choice: Any) -> Any:
    """Replace an uploaded LoRA's file object with its path; anything else stays unchanged."""
    if isinstance(choice, Mapping) and isinstance(choice.get("source"), Mapping):
        path = choice["source"].get("path")
        return {**choice, "source": path if isinstance(path, str) else ""}
    return choice


def uploaded_path(name: str, value: Any) -> str:
    """Return the path of an upload, links resolved; raises InvalidRequest for a file outside the upload cache."""
    # Gradio only checks the paths of file inputs, but a client can send a file in any input.
    path = value.get("path") if isinstance(value, Mapping) else None
    # os.path.isfile is False for impossible names; Path.is_file raises for some.
    if isinstance(path, str) and os.path.isfile(path):
        found = Path(path).resolve()
        if found.is_relative_to(Path(get_upload_folder()).resolve()):
            return str(found)
    sent = path if isinstance(path, str) else value
    message = f"{name.capitalize()} must be an uploaded audio file, not {shown(sent)}."
    raise InvalidRequest(Problem("invalid", message, name))


def sentence(problem: Problem) -> str:
    """Return the problem's text, with the field in front if it is inside a parameter, such as `options.steps`."""
    field = problem.field
    text = problem.text()
    if "." in field and not isinstance(problem, UnknownName):
        return f"{field}: {text}"
    return text


def called_function(blocks: Any, route: str, values: dict[str, Any]) -> Any:
    """Return the function of the page that a route calls, None if the route calls none.

    Raises HTTPException if there is no such function.
    """
    kind, _, name = route.partition("/")
    if kind not in ("run", "api", "call", "queue"):
        return None
    index = values.get("fn_index") if kind != "call" else None
    if kind == "queue" and (not isinstance(index, int) or isinstance(index, bool)):
        raise HTTPException(400, "fn_index must be the number of a function.")
    if index is not None:
        function = blocks.fns.get(index)
        if function is None or (function.fn is None and not function.cancels):
            raise HTTPException(404, f"There is no function {shown(index)}.")
        return function
    if kind == "call":
        name = name.removeprefix("v2/")
    endpoint = name.strip("/")
    for function in blocks.fns.values():
        if function.api_name == endpoint:
            return function
    names = ", ".join((*ENDPOINTS, "capabilities", "run", "cancel_run"))
    raise HTTPException(404, f"There is no endpoint {shown(endpoint)}. The endpoints are {names}.")


def check_call(blocks: Any, function: Any, route: str, values: dict[str, Any]) -> None:
    """Raise HTTPException if the inputs of a call do not fit its `function`, or if the queue is full."""
    if function.api_name in ENDPOINTS and blocks.runs.is_full():
        raise HTTPException(503, FULL.text())
    if route.startswith("call/v2/"):
        _check_names(function.api_name, values)
        return
    data = values.get("data")
    if not function.cancels and (not isinstance(data, list) or len(data) != len(function.inputs)):
        raise HTTPException(422, f"data must be a list of {len(function.inputs)} values.")


def _check_names(name: str, values: dict[str, Any]) -> None:
    """Raise HTTPException if the endpoint `name` does not know a parameter, or lacks a required one."""
    if name not in ENDPOINTS:
        return
    known = ENDPOINTS[name].names
    unknown = [shown(each) for each in values if each not in (*known, "oauth_token")]
    if unknown:
        raise HTTPException(
            422,
            f"{unknown[0]} is not a parameter of /{name}. Its parameters are {', '.join(known)}.",
        )
    for parameter in ENDPOINTS[name].parameters:
        if parameter.default is REQUIRED and parameter.name not in values:
            raise HTTPException(422, f"The parameter {parameter.name} of /{name} is missing.")
