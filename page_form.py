"""The fields of a tab: how they are made, read, checked, filled, and restored from a record.

A `Form` names its fields as its request does, so that validation, the request and messages agree. A record from a file
is untrusted: each value passes the request's own check by itself, and a bad one is counted, never shown.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any, NamedTuple

import gradio as gr
from gradio.components import Component
from pydantic import TypeAdapter, ValidationError

import theme
import tooltips
from backend import check
from events import InvalidRequest, Problem
from limits import LIMITS
from params import AUDIO_FIELDS, REQUESTS, Request, SongWords, parse_request, upload_seconds
from status import Status

Updates = dict[Any, Any]
# At each message of a run, Gradio goes through every component that ever showed its progress, so none may show any.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, **QUIET}  # short work that must not wait behind songs
MOST_UNDONE = 20


class Form:
    """The fields of one tab, in the order they were added; an option of the request is called "options.steps"."""

    def __init__(self, mode: str):
        self.mode = mode
        self.tab: gr.Tab | None = None
        self.fields: dict[str, Component] = {}
        self.copies: dict[str, Component] = {}  # hidden; stand in for fields as triggers and inputs
        self.folds: dict[gr.Accordion, tuple[str, ...]] = {}
        # Conversions for fields whose widget value differs from the request's: to the request, and back.
        self.parsers: dict[str, Callable[[Any], Any]] = {}
        self.showers: dict[str, Callable[[Any], Any]] = {}
        self.lines: dict[str, gr.HTML] = {}  # per-field slots for run-time errors
        self.watchers: list[Callable[[Status], Updates]] = []  # called with the backend's status
        self.followers: dict[gr.HTML, Callable[[dict[str, Any]], str]] = {}  # for page_settings.connect_changes
        self.followed_names: set[str] = set()
        self.later: list[Callable[[], None]] = []  # what to connect once all fields exist
        self.drawn: Any = None  # the event that draws the source on a waveform, if there is one
        self.runs: list[Any] = []  # the runs that the tab's buttons start

    def connect(self) -> None:
        for connect in self.later:
            connect()

    def identify(self, name: str) -> str:
        """Return the element id of a field, such as "generate-cfg-start"."""
        return f"{self.mode}-{_key(name)}".replace("_", "-")

    def follow(self, line: gr.HTML, names: Iterable[str], say: Callable[[dict[str, Any]], str]) -> None:
        """Keep `line` at `say(values)`, where `values` holds at least these fields, as far as the form has them."""
        self.followers[line] = say
        self.followed_names.update(names)

    def followed(self, name: str) -> Component:
        return self.copies.get(name, self.fields[name])

    @property
    def inputs(self) -> list[Component]:
        return list(self.fields.values())

    @property
    def settings(self) -> list[Component]:
        return list(self.saved.values())

    @property
    def saved(self) -> dict[str, Component]:
        """Return the fields whose values a record may hold: all but the files."""
        return {name: field for name, field in self.fields.items() if not isinstance(field, gr.Audio)}

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        """Return the fields' values as the request has them; subclasses leave out what the request must not have."""
        return {name: self.parse(name, value) for name, value in zip(self.fields, values, strict=True)}

    def parse(self, name: str, value: Any) -> Any:
        return self.parsers[name](value) if name in self.parsers else value

    def folded(self) -> dict[str, tuple[str, Any]]:
        """Return label and default of each field in a folded group, except Plan, which depends on the planner."""
        names = {name for group in self.folds.values() for name in group} - {"options.plan"}
        return {name: (self.label(name), field.value) for name, field in self.fields.items() if name in names}

    def request(self, values: Iterable[Any]) -> Request:
        """Build the request from the components' values; raises InvalidRequest."""
        return parse_request(self.mode, grouped(self.read(values)))

    def problems(self, values: Sequence[Any]) -> dict[str, str]:
        """Return a message for each wrong field; one of no field is put at the first. Only file headers are read."""
        found: dict[str, str] = {}
        for (name, component), path in zip(self.fields.items(), values, strict=True):
            if isinstance(component, gr.Audio) and path:
                try:
                    upload_seconds(path, name)
                except InvalidRequest as error:
                    found[name] = error.problem.text()
        values = list(values)
        # Some checks run only once others pass, so wrong fields get their defaults, and a missing file gets any name.
        while new := {name: text for name, text in self._flaws(values).items() if name not in found}:
            found |= new
            for at, (name, component) in enumerate(self.fields.items()):
                if name in found:
                    values[at] = values[at] or "nothing" if isinstance(component, gr.Audio) else component.value
        return {name: found[name] for name in self.fields if name in found}

    def _flaws(self, values: Sequence[Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            check(self.request(values))
        except InvalidRequest as error:
            for problem in error.problems:
                name = self.place(problem, values)
                found[name] = f"{found.get(name, '')} {problem.text()}".strip()
        return found

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        return problem.field if problem.field in self.fields else next(iter(self.fields))

    def show(self, values: Mapping[str, Any]) -> Updates:
        """Return the updates that put checked values into their fields; others keep theirs."""
        return {
            self.fields[name]: gr.update(value=self.showers[name](value) if name in self.showers else value)
            for name, value in values.items()
            if name in self.fields
        }

    def show_status(self, status: Status) -> Updates:
        """Return the updates for the backend's status, of the same components whatever it is."""
        return {part: update for watcher in self.watchers for part, update in watcher(status).items()}

    def validate(self, *values: Any) -> list[dict[str, Any]] | dict[str, Any]:
        """Return Gradio's verdict on each field; a wrong one keeps the run from being queued."""
        problems = self.problems(values)
        verdicts = [gr.validate(name not in problems, problems.get(name, "")) for name in self.fields]
        # Gradio puts the verdict of a single field into a list itself.
        return verdicts if len(verdicts) > 1 else verdicts[0]

    def point_out(self, *values: Any) -> list[Any]:
        """Open the folded groups that hold a wrong field, and name the wrong fields on the line at the button."""
        problems = self.problems(values)
        opened = [gr.Accordion(open=True) if problems.keys() & {*names} else gr.skip() for names in self.folds.values()]
        if not problems:
            return [*opened, ""]
        at_fields = {self.fields[name].elem_id: text for name, text in problems.items()}
        return [*opened, theme.wrong_fields(tooltips.look_at([self.label(name) for name in problems]), at_fields)]

    def point_at(self, problem: Problem) -> Updates:
        """Return the updates that show a run-time error at its field, if that has a slot for it."""
        if problem.field not in self.lines:
            return {}
        folds = {fold: gr.Accordion(open=True) for fold, names in self.folds.items() if problem.field in names}
        return {**folds, self.lines[problem.field]: theme.notice("", problem.message, problem.hint)}

    def label(self, name: str) -> str:
        key = _key(name)
        return LIMITS[key].label if key in LIMITS else tooltips.LABELS.get(key, key.replace("_", " ").capitalize())


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the names of fields into those of a request: "options.steps" becomes "steps" in "options"."""
    request: dict[str, Any] = {}
    for name, value in values.items():
        group, _, key = name.rpartition(".")
        (request.setdefault(group, {}) if group else request)[key] = value
    return request


def number(value: Any, default: float | None) -> Any:
    """Return a box's text as a number, the default if it is blank, the text itself if it is not a number."""
    text = str(value if value is not None else "").strip()
    if not text:
        return default
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text.replace(",", ".") if text.count(",") == 1 else text)
    return text


def as_text(value: float | str | None) -> str:
    """Write a number as a visitor would type it, blank for None; a text is left unchanged."""
    if value is None or isinstance(value, str):
        return value or ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def lengths(there: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the seconds that add up to a tab's song, by field, for the fields that the tab has; None if unknown."""

    def seconds(name: str) -> float | None:
        try:
            if name == "source":
                return upload_seconds(there[name]) if there[name] else None
            length = float(number(there[name], LIMITS[name].default))
            return length if math.isfinite(length) else None
        except (ValueError, OverflowError, InvalidRequest):
            return None

    return {name: seconds(name) for name in ("source", "duration", "before", "after") if name in there}


def help_text(name: str, default: str = "", task: str = "") -> str:
    """Return the help of a field, the task's own if it has one, with the limits filled in."""
    limit = LIMITS.get(name)
    low, high = (f"{limit.low:g}", f"{limit.high:g}") if limit else ("", "")
    text = tooltips.HELP.get(f"{task}.{name}") or tooltips.HELP[name]
    return text.format(low=low, high=high, default=default)


def _key(name: str) -> str:
    return name.rpartition(".")[2]


def add(form: Form, name: str, kind: type[Component], classes: Sequence[str] = (), **settings: Any) -> Any:
    """Add a field; without `classes` it has the usual CSS class of its kind."""
    key = _key(name)
    if kind is not gr.Audio:
        settings.setdefault("info", help_text(key, task=form.mode))
    if key in tooltips.PLACEHOLDERS:
        settings["placeholder"] = tooltips.PLACEHOLDERS[key]
    classes = classes or ["words" if kind is gr.Textbox else "field"]
    form.fields[name] = kind(label=form.label(name), elem_id=form.identify(name), elem_classes=classes, **settings)
    return form.fields[name]


def add_number(form: Form, name: str, placeholder: str = "", **settings: Any) -> gr.Textbox:
    """Add a number as a text box, blank for its default: Gradio's number box turns a blank into 0 on every redraw."""
    limit = LIMITS[_key(name)]
    value = as_text(limit.default)
    form.parsers[name], form.showers[name] = partial(number, default=limit.default), as_text
    # The digit pad of a phone has no minus.
    classes = ["numeric", "signed"] if limit.low < 0 else ["numeric"]
    looks = {"placeholder": placeholder or value or tooltips.AUTOMATIC, "max_lines": 1, "min_width": 120}
    return add(form, name, gr.Textbox, classes, value=value, **looks, **settings)


def add_slider(form: Form, name: str, **settings: Any) -> gr.Slider:
    limit = LIMITS[_key(name)]
    settings |= {"minimum": limit.low, "maximum": limit.high, "value": limit.default, "step": limit.step}
    return add(form, name, gr.Slider, **settings)


def add_row(form: Form, add_one: Callable[..., Any], *names: str, classes: Sequence[str] = (), **settings: Any) -> None:
    """Add fields side by side, with `add_number` or `add_slider`; `classes` are the row's."""
    with gr.Row(equal_height=True, elem_classes=classes):
        for name in names:
            add_one(form, name, **settings)


def html(value: str = "", elem_id: str | None = None, js_on_load: str | None = None, render: bool = True) -> gr.HTML:
    """Make a place for our HTML; one that may be empty takes no room then."""
    classes = ["text"] if value else ["text", "maybe"]
    return gr.HTML(value, elem_id=elem_id, elem_classes=classes, js_on_load=js_on_load, render=render)


class Undo:
    """The button that restores what fields held before they were filled; `former` has those values, the latest last."""

    def __init__(self, name: str):
        self.button = gr.Button(tooltips.UNDO, size="sm", min_width=0, visible=False, elem_id=f"{name}-undo")
        self.former = gr.State([])
        self.outputs = [self.button, self.former]

    def keep(self, former: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> Updates:
        return {self.former: [*former, dict(values)][-MOST_UNDONE:], self.button: gr.update(visible=True)}

    def connect(self, fields: Mapping[str, Component]) -> Any:
        def back(former: list[dict[str, Any]]) -> Updates:
            *earlier, values = former or [{}]
            filled = {fields[name]: gr.update(value=value) for name, value in values.items()}
            return {**filled, self.former: earlier, self.button: gr.update(visible=bool(earlier))}

        return self.button.click(back, self.former, [*fields.values(), *self.outputs], **AT_ONCE)


# What describes the song itself, whatever is made of it, with the values of a blank form.
SONG = {name: field.default for name, field in SongWords.model_fields.items()}


class Restored(NamedTuple):
    """The values of a record that fit a form, and what could not be restored; no record holds files."""

    values: dict[str, Any]  # by field, checked
    left_out: int  # how many values did not fit
    uploads: int  # how many LoRAs were uploaded
    reference: bool  # whether there was a reference audio


def settings(mode: str, record: Any) -> Restored:
    """Return what of `record` fits the form of `mode`; the file of a take gets the seed of that take."""
    record = _mapping(record)
    request = _mapping(record.get("request"))
    found = {name: value for name, value in request.items() if name != "options"}
    found |= {f"options.{name}": value for name, value in _mapping(request.get("options")).items()}
    values = valid(mode, found)
    left_out, uploads = len(found) - len(values), 0
    if (chosen := values.get("options.loras")) is not None:
        values["options.loras"] = kept = [lora.model_dump() for lora in chosen if lora.source != "upload"]
        uploads = len(chosen) - len(kept)
    reference = "reference" in REQUESTS[mode].model_fields and "reference" in _mapping(record.get("audio"))
    return Restored(values | _seeds(mode, record), left_out, uploads, reference)


def song(record: Any) -> dict[str, Any]:
    """Return the words and musical facts of a record, blank if it has none: what a take brings to another tab."""
    values = settings("cover", record).values
    return {name: values.get(name, blank) for name, blank in SONG.items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def valid(mode: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that pass the checks of a request of `mode`, each by itself."""
    passed = {}
    for name, value in found.items():
        with contextlib.suppress(ValidationError, KeyError):
            passed[name] = _checks(mode)[name].validate_python(value)
    return passed


@cache
def _checks(mode: str) -> dict[str, TypeAdapter]:
    fields = REQUESTS[mode].model_fields
    options = fields["options"].annotation.model_fields
    # Files are not settings, and each tab is a mode of its own.
    settings = {name: info for name, info in fields.items() if name not in ("options", *AUDIO_FIELDS)}
    settings |= {f"options.{name}": info for name, info in options.items()}
    return {name: TypeAdapter(Annotated[info.annotation, *info.metadata, None]) for name, info in settings.items()}


def _seeds(mode: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the drawn seeds if the record is of a single take; the plan's seed is that of its run's first take."""
    takes, plan = record.get("takes"), _mapping(record.get("plan"))
    if not isinstance(takes, list) or len(takes) != 1:
        return {}
    found = {"takes": 1, "seed": _mapping(takes[0]).get("seed")}
    if plan.get("used") is True:
        found["options.plan_seed"] = plan.get("seed")
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        found["options.variation_seed"] = record["variation_seeds"][record["seeds"].index(found["seed"])]
    passed = valid(mode, found)
    return passed if "seed" in passed else {}
