"""The fields of a tab: created, read, checked, filled, and restored from a record.

A `Form` names its fields as its request does, so that validation, the request and messages agree. A
record from a file is untrusted: each value has to pass the request's own check, and a bad one is
counted, never shown.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, NamedTuple

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency
from pydantic import TypeAdapter, ValidationError

import planner
import theme
import tooltips
from backend import Backend, check
from events import InvalidRequest, Problem
from limits import LIMITS, MODELS
from params import (
    AUDIO_FIELDS,
    REQUESTS,
    Request,
    SongWords,
    options_type,
    parse_request,
    upload_seconds,
)
from plain_text import plain_number
from record import Stored
from status import Status

Updates = dict[Any, Any]  # what a handler returns: new values or gr.update, by component
# At each message of a run, Gradio searches every component that ever showed its progress, so none
# may show any.
UNSEEN: dict[str, Any] = {
    "show_progress": "hidden",
    "show_progress_on": [],
    "api_visibility": "private",
}
AT_ONCE: dict[str, Any] = {"queue": False, **UNSEEN}  # short work that must not wait behind songs
MOST_UNDONE = 20
TIMES = ("duration", "before", "after", "start", "end")  # boxes that also take minutes and seconds
_GROUPED = re.compile(r"-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", re.ASCII)
_CLOCK = re.compile(r"(?P<minutes>\d{1,3}):(?P<seconds>[0-5]\d([.,]\d+)?)", re.ASCII)


def _unchanged(value: Any) -> Any:
    return value


def updates_of(components: Iterable[Component], **changes: Any) -> Updates:
    """Return the same update for several components."""
    return {component: gr.update(**changes) for component in components}


def only(values: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """Return those of the values that are among `names`."""
    return {name: value for name, value in values.items() if name in names}


def without(values: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """Return the values that are not among `names`."""
    return {name: value for name, value in values.items() if name not in names}


@dataclass(frozen=True)
class Field:
    """A field of a form: its component, and what is special about it."""

    component: Any  # of Gradio, which makes a component's events at run time
    # Conversions for a component whose value differs from the request's.
    to_request: Callable[[Any], Any] = _unchanged
    from_request: Callable[[Any], Any] = _unchanged
    # Hidden; follows the component, and stands in for it as a trigger and as an input.
    copy: Component | None = None
    # Where an error that only a run can find is shown.
    error_line: gr.HTML | None = None

    @property
    def is_file(self) -> bool:
        return isinstance(self.component, gr.Audio)


@dataclass(frozen=True)
class Follower:
    """What depends on the value of a field, and is shown again with each status, which knows no values."""

    show: Callable[[Any], Updates]
    field: Component
    outputs: list[Any]


class Form:
    """The fields of one tab, in the order they were added; an option is called "options.steps".

    What depends on the fields or on the studio's status registers here, in any order, while the tab
    is built.
    """

    def __init__(self, mode: str, studio: Backend):
        self.mode = mode
        self.studio = studio
        self._fields: dict[str, Field] = {}
        self._folds: dict[gr.Accordion, tuple[str, ...]] = {}
        self._strip: tuple[str, ...] = ()
        self._on_status: list[Callable[[Status], Updates]] = []
        self._followers: list[Follower] = []
        self._lines: dict[gr.HTML, Callable[[dict[str, Any]], str]] = {}
        self._followed: set[str] = set()

    # --- building the tab -------------------------------------------------------------------------

    def add(
        self, name: str, kind: type[Component], classes: Sequence[str] = (), **settings: Any
    ) -> Any:
        """Add a field; without `classes` it has the usual CSS class of its kind."""
        key = _key(name)
        if kind is not gr.Audio:
            settings.setdefault("info", help_text(key, task=self.mode))
        if key in tooltips.PLACEHOLDERS:
            settings["placeholder"] = tooltips.PLACEHOLDERS[key]
        if not classes:
            classes = ["words"] if kind is gr.Textbox else ["field"]
        if key in tooltips.SURPRISING:
            classes = [*classes, "surprising"]
        looks: dict[str, Any] = {
            "label": self.label(name),
            "elem_id": self.element_id(name),
            "elem_classes": classes,
        }
        component = kind(**looks, **settings)
        self._fields[name] = Field(component)
        return component

    def add_number(self, name: str, placeholder: str = "", **settings: Any) -> gr.Textbox:
        """Add a number as a text box, blank for its default.

        Gradio's number box turns a blank into 0 on every redraw.
        """
        limit = LIMITS[_key(name)]
        default = blank_number(name)
        value = as_text(default)
        # The digit pad of a phone has no minus.
        classes = ["numeric", "signed"] if limit.low < 0 else ["numeric"]
        placeholder = placeholder or value or tooltips.AUTOMATIC
        looks = {"placeholder": placeholder, "max_lines": 1, "min_width": 120}
        if name in TIMES:
            classes.append("time")
        box = self.add(name, gr.Textbox, classes, value=value, **looks, **settings)
        read = seconds if name in TIMES else number
        self._fields[name] = Field(box, partial(read, default=default), as_text)
        return box

    def add_slider(self, name: str, **settings: Any) -> gr.Slider:
        limit = LIMITS[_key(name)]
        span: dict[str, Any] = {"minimum": limit.low, "maximum": limit.high, "step": limit.step}
        return self.add(name, gr.Slider, value=limit.default, **span, **settings)

    def add_numbers(self, *names: str, classes: list[str] | None = None, **settings: Any) -> None:
        """Add number boxes side by side; `classes` are the row's."""
        with gr.Row(equal_height=True, elem_classes=classes):
            for name in names:
                self.add_number(name, **settings)

    def add_sliders(self, *names: str, classes: list[str] | None = None, **settings: Any) -> None:
        """Add sliders side by side; `classes` are the row's."""
        with gr.Row(equal_height=True, elem_classes=classes):
            for name in names:
                self.add_slider(name, **settings)

    def add_field(self, name: str, field: Field) -> None:
        """Add a field whose component is already there."""
        self._fields[name] = field

    def set_copy(self, name: str, copy: Component) -> None:
        """Let the hidden `copy` stand in for a field as a trigger and as an input."""
        self._fields[name] = replace(self._fields[name], copy=copy)

    def add_fold(self, fold: gr.Accordion, names: Iterable[str]) -> None:
        """Make `fold` open when one of the fields `names`, which are inside it, is wrong."""
        self._folds[fold] = tuple(names)

    def add_strip(self, names: Iterable[str]) -> None:
        """Name the fields that a strip of chips opens (static/faces.js)."""
        self._strip = tuple(names)

    def on_status(self, show: Callable[[Status], Updates]) -> None:
        """Call `show` with the studio's status.

        It returns updates of the same components whatever the status is.
        """
        self._on_status.append(show)

    def after_status(
        self, show: Callable[[Any], Updates], field: Component, outputs: list[Any]
    ) -> None:
        """Call `show` with the value of `field` once the status is shown."""
        self._followers.append(Follower(show, field, outputs))

    @property
    def followers(self) -> list[Follower]:
        return list(self._followers)

    def follow(
        self, line: gr.HTML, names: Iterable[str], say: Callable[[dict[str, Any]], str]
    ) -> None:
        """Keep `line` showing `say(values)`; `values` holds those of the fields `names` that the form has."""
        self._lines[line] = say
        self._followed.update(names)

    # --- the fields -------------------------------------------------------------------------------

    @property
    def fields(self) -> dict[str, Any]:
        """Return the components by the fields' names."""
        return self.components(self._fields)

    @property
    def inputs(self) -> list[Component]:
        return list(self.fields.values())

    @property
    def saved(self) -> dict[str, Component]:
        """Return the fields whose values a record may hold: all but the files."""
        names = [name for name, field in self._fields.items() if not field.is_file]
        return self.components(names)

    @property
    def settings(self) -> list[Any]:
        return list(self.saved.values())

    @property
    def defaults(self) -> dict[str, Any]:
        """Return what the components of `saved` hold at first."""
        return {name: component.value for name, component in self.saved.items()}

    def components(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the components of those fields `names` that the form has, in their order."""
        return {name: self._fields[name].component for name in names if name in self._fields}

    @property
    def copies(self) -> list[Any]:
        return [field.copy for field in self._fields.values() if field.copy]

    @property
    def folds(self) -> list[gr.Accordion]:
        return list(self._folds)

    @property
    def error_lines(self) -> list[gr.HTML]:
        return [field.error_line for field in self._fields.values() if field.error_line]

    @property
    def lines(self) -> dict[gr.HTML, Callable[[dict[str, Any]], str]]:
        """Return the lines that follow the fields, and what each says of their values."""
        return dict(self._lines)

    @property
    def followed(self) -> dict[str, Component]:
        """Return the components whose values the lines need, by the fields' names."""
        return {name: self.trigger(name) for name in self._fields if name in self._followed}

    def trigger(self, name: str) -> Any:
        """Return the component to listen to for changes of a field: its copy if it has one."""
        field = self._fields[name]
        return field.copy or field.component

    def element_id(self, name: str) -> str:
        """Return the element id of a field, such as "generate-cfg-start"."""
        return f"{self.mode}-{_key(name)}".replace("_", "-")

    def label(self, name: str) -> str:
        key = _key(name)
        if key in tooltips.LABELS:
            return tooltips.LABELS[key]
        if key in LIMITS:
            return LIMITS[key].label
        return key.replace("_", " ").capitalize()

    def folded(self) -> dict[str, dict[str, Any]]:
        """Return label, default and the names of the choices of each field that is folded or in the strip.

        Plan is left out: it depends on the planner.
        """
        inside = set(self._strip).union(*self._folds.values()) - {"options.plan"}
        found = {}
        for name, component in only(self.fields, inside).items():
            choices = getattr(component, "choices", None) or []
            names = {str(value): text for text, value in choices}
            found[name] = {"label": self.label(name), "value": component.value, "names": names}
        return found

    # --- reading and checking ---------------------------------------------------------------------

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        """Return the fields' values as the request has them.

        Subclasses leave out what the request must not have.
        """
        held = dict(zip(self._fields, values, strict=True))
        return {name: self.to_request(name, value) for name, value in held.items()}

    def to_request(self, name: str, value: Any) -> Any:
        return self._fields[name].to_request(value)

    def request(self, values: Iterable[Any]) -> Request:
        """Build the request from the components' values; raises InvalidRequest."""
        return parse_request(self.mode, grouped(self.read(values)))

    def problems(self, values: Sequence[Any]) -> dict[str, str]:
        """Return a message for each wrong field; only the headers of files are read.

        A problem that belongs to no field is shown at the first one.
        """
        held = dict(zip(self._fields, values, strict=True))
        found = self._unreadable_files(held)
        # Some checks run only once others pass, so wrong fields get their defaults, and a missing
        # file gets any name.
        while True:
            for name in found:
                held[name] = self._stand_in(name, held[name])
            new = without(self._refusals(held), found)
            if not new:
                return {name: found[name] for name in self._fields if name in found}
            found |= new

    def _unreadable_files(self, held: Mapping[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, field in self._fields.items():
            if field.is_file and held[name]:
                try:
                    upload_seconds(held[name], name)
                except InvalidRequest as error:
                    found[name] = error.problem.text()
        return found

    def _stand_in(self, name: str, value: Any) -> Any:
        field = self._fields[name]
        if field.is_file:
            return value or "nothing"
        return field.component.value

    def _refusals(self, held: Mapping[str, Any]) -> dict[str, str]:
        """Return what the request's own checks say, by field."""
        found: dict[str, str] = {}
        values = list(held.values())
        try:
            check(self.request(values), self.studio)
        except InvalidRequest as error:
            for problem in error.problems:
                name = self.place(problem, values)
                sentence = self._sentence(problem, held)
                found[name] = f"{found.get(name, '')} {sentence}".strip()
        return found

    def _sentence(self, problem: Problem, held: Mapping[str, Any]) -> str:
        """Return a problem in words; of a model that is not here, that the page can get it."""
        if problem.code == "weights_missing" and problem.field == "options.model":
            model = held.get("options.model", "")
            if self.studio.status().to_get(model) is not None:
                return tooltips.MODEL_NOT_FETCHED.format(name=MODELS[model])
        return problem.text()

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        """Return the field at which a problem is shown."""
        if problem.field in self._fields:
            return problem.field
        return next(iter(self._fields))

    def validate(self, *values: Any) -> list[dict[str, Any]] | dict[str, Any]:
        """Return Gradio's verdict on each field; a wrong one keeps the run from being queued."""
        problems = self.problems(values)
        verdicts = []
        for name in self._fields:
            sentence = problems.get(name, "")
            verdicts.append(gr.validate(not sentence, sentence))
        if len(verdicts) == 1:
            return verdicts[0]  # Gradio puts the verdict of a single field into a list itself
        return verdicts

    # --- showing ----------------------------------------------------------------------------------

    def show(self, values: Mapping[str, Any]) -> Updates:
        """Return the updates that put checked values into their fields; others keep theirs."""
        shown: Updates = {}
        for name, value in values.items():
            if name in self._fields:
                field = self._fields[name]
                shown[field.component] = gr.update(value=field.from_request(value))
        return shown

    def show_status(self, status: Status) -> Updates:
        """Return the updates for the studio's status, of the same components whatever it is."""
        shown: Updates = {}
        for show in self._on_status:
            shown |= show(status)
        return shown

    def point_out(self, *values: Any) -> list[Any]:
        """Open the groups that hold a wrong field, and name those fields at the button."""
        problems = self.problems(values)
        opened = []
        for names in self._folds.values():
            is_wrong = not problems.keys().isdisjoint(names)
            opened.append(gr.Accordion(open=True) if is_wrong else gr.skip())
        if not problems:
            return [*opened, ""]
        at_fields = {self.element_id(name): text for name, text in problems.items()}
        # What is wrong with each of them stands at the field, and nowhere else.
        sentence = tooltips.please_check([self.label(name) for name in problems])
        return [*opened, theme.wrong_fields(sentence, at_fields)]

    def point_at(self, problem: Problem) -> Updates:
        """Return the updates that show a run-time error at its field, if that has a line for it."""
        field = self._fields.get(problem.field)
        if field is None or field.error_line is None:
            return {}
        shown: Updates = {field.error_line: theme.notice("", problem.message, problem.hint)}
        for fold, names in self._folds.items():
            if problem.field in names:
                shown[fold] = gr.Accordion(open=True)
        return shown


class PartOfForm(Form):
    """Some fields of another form, for a request of another mode, which has them as `names`."""

    def __init__(self, form: Form, mode: str, names: Mapping[str, str]):
        super().__init__(mode, form.studio)
        self._names = only(names, form._fields)
        self._fields = {name: form._fields[name] for name in self._names}
        self._folds = form._folds
        self._form = form

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        return {self._names[name]: value for name, value in super().read(values).items()}

    def element_id(self, name: str) -> str:
        return self._form.element_id(name)

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        for name, name_in_request in self._names.items():
            if name_in_request == problem.field:
                return name
        return next(iter(self._fields))


def _key(name: str) -> str:
    return name.rpartition(".")[2]


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn fields into those of a request: "options.steps" becomes "steps" in "options"."""
    request: dict[str, Any] = {}
    for name, value in values.items():
        group, _, key = name.rpartition(".")
        place = request.setdefault(group, {}) if group else request
        place[key] = value
    return request


# --- numbers and texts ----------------------------------------------------------------------------


def number(value: Any, default: float | None) -> Any:
    """Return a box's text as a number, or the text itself if it is not a number.

    A blank box is the default. A comma before each three digits, as in "1,024", groups them; any
    other comma is a decimal one. static/studio.js reads numbers alike.
    """
    text = "" if value is None else str(value).strip()
    text = plain_number(text) or text
    if not text:
        return default
    digits = text
    if _GROUPED.fullmatch(text):
        digits = text.replace(",", "")
    elif text.count(",") == 1:
        digits = text.replace(",", ".")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(digits)
    return text


def seconds(value: Any, default: float | None) -> Any:
    """Return a box's text in seconds, which may be written as minutes and seconds, such as "2:30".

    Anything else is read as a `number`.
    """
    clock = _CLOCK.fullmatch(plain_number(str(value)))
    if clock is None:
        return number(value, default)
    return 60 * int(clock["minutes"]) + number(clock["seconds"], default)


def regions(value: Any) -> Any:
    """Return a text such as "12-15.5, 0:30-0:35" as pairs of seconds, or the text itself if it is not one."""
    text = str(value or "").strip()
    if not text:
        return []
    found = []
    for part in re.split(r"[,;]\s", f"{text} "):
        start, dash, end = part.strip(" ,;").partition("-")
        pair = [seconds(each.strip(), None) for each in (start, end)]
        if not dash or not all(isinstance(each, int | float) for each in pair):
            return text
        found.append(pair)
    return found


def regions_text(value: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"{as_text(start)}-{as_text(end)}" for start, end in value)


def as_text(value: float | str | None) -> str:
    """Write a number as a visitor would type it, blank for None; a text is left unchanged."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if float(value).is_integer():
        return str(int(value))
    return repr(float(value))


def lengths(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the seconds that add up to a tab's song, by field; None if a length is unknown."""
    names = ("source", "duration", "before", "after")
    return {name: _seconds(name, values[name]) for name in names if name in values}


def _seconds(name: str, value: Any) -> float | None:
    try:
        if name == "source":
            if value:
                return upload_seconds(value)
            return None
        length = seconds(value, blank_number(name))
        if length is None:
            return None
        length = float(length)
    except (ValueError, OverflowError, InvalidRequest):
        return None
    return length if math.isfinite(length) else None


def blank_number(name: str) -> float | None:
    """Return what a blank number means on the page: its default, None (automatic) for the length."""
    if name == "duration":
        return None
    return LIMITS[_key(name)].default


def help_text(name: str, default: str = "", task: str = "") -> str:
    """Return the help of a field, the task's own if it has one, with the limits filled in."""
    text = tooltips.HELP.get(f"{task}.{name}") or tooltips.HELP[name]
    if name not in LIMITS:
        return text.format(default=default)
    limit = LIMITS[name]
    return text.format(low=f"{limit.low:g}", high=f"{limit.high:g}", default=default)


def html(value: str = "", elem_id: str | None = None, js_on_load: str | None = None) -> gr.HTML:
    """Make a component for our HTML; while it is empty, it takes no room."""
    classes = ["text"] if value else ["text", "maybe"]
    return gr.HTML(value, elem_id=elem_id, elem_classes=classes, js_on_load=js_on_load)


class Undo:
    """The button that restores what fields held before they were filled.

    `former` has those values, the latest last.
    """

    def __init__(self, name: str):
        looks: dict[str, Any] = {"size": "sm", "min_width": 0, "visible": False}
        self.button = gr.Button(tooltips.UNDO, elem_id=f"{name}-undo", **looks)
        self.former = gr.State([])
        self.outputs = [self.button, self.former]

    def keep(self, former: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> Updates:
        """Return the updates that remember `values`, which are about to be replaced."""
        latest = [*former, dict(values)][-MOST_UNDONE:]
        return {self.former: latest, self.button: gr.update(visible=True)}

    def connect(self, fields: Mapping[str, Component]) -> Dependency:
        def back(former: list[dict[str, Any]]) -> Updates:
            *earlier, values = former or [{}]
            undone = {self.former: earlier, self.button: gr.update(visible=bool(earlier))}
            for name, value in values.items():
                undone[fields[name]] = gr.update(value=value)
            return undone

        return self.button.click(back, self.former, [*fields.values(), *self.outputs], **AT_ONCE)


# --- restoring from a record ----------------------------------------------------------------------

# What describes the song itself, whatever is made of it, with the values of a blank form.
SONG = {name: field.default for name, field in SongWords.model_fields.items()}


class Restored(NamedTuple):
    """The values of a record that fit a form, and what could not be restored."""

    values: dict[str, Any]  # by field, checked
    left_out: int  # how many values did not fit
    uploads: int  # how many LoRAs were uploaded
    reference: bool  # whether there was a reference audio
    old_plan: bool = False  # whether it had a plan that this studio would draw otherwise


def settings(mode: str, record: Any) -> Restored:
    """Return what of `record` fits the form of `mode`; the file of a take has its own seed."""
    stored = Stored.from_record(record)
    found = without(stored.request, ["options"])
    for name, value in stored.options.items():
        found[f"options.{name}"] = value
    values = valid(mode, found)
    left_out = len(found) - len(values)
    uploads = 0
    if "options.loras" in values:
        chosen = values["options.loras"]
        kept = [lora.model_dump() for lora in chosen if lora.source != "upload"]
        values["options.loras"] = kept
        uploads = len(chosen) - len(kept)
    if stored.model and not values.get("options.model"):
        # The studio's own model may be another one than it was.
        values |= valid(mode, {"options.model": stored.model})
    takes_reference = "reference" in REQUESTS[mode].model_fields
    reference = takes_reference and "reference" in stored.audio
    old_plan = (
        mode == "generate" and stored.is_planned and stored.plan.get("layout") != planner.LAYOUT
    )
    return Restored(values | _seeds(mode, stored), left_out, uploads, reference, old_plan)


def song(record: Any) -> dict[str, Any]:
    """Return what a take brings to another tab: its words and musical facts, blank if unknown."""
    values = settings("cover", record).values
    return {name: values.get(name, blank) for name, blank in SONG.items()}


def words_for(mode: str, record: Any) -> dict[str, Any]:
    """Return the fields that a take fills in the tab `mode`, whose source it becomes."""
    words = song(record)
    if mode == "edit":  # a morph starts from what the song is now
        words["source_prompt"] = words["prompt"]
        words["source_lyrics"] = words["lyrics"]
    return words


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
    # Files are not settings, and each tab is a mode of its own.
    known = without(fields, ["options", *AUDIO_FIELDS])
    for name, info in options_type(REQUESTS[mode]).model_fields.items():
        known[f"options.{name}"] = info
    checks: dict[str, TypeAdapter] = {}
    for name, info in known.items():
        checks[name] = TypeAdapter(Annotated[info.annotation, *info.metadata, None])
    return checks


def _seeds(mode: str, stored: Stored) -> dict[str, Any]:
    """Return the drawn seeds if the record is of a single take.

    The plan's seed is that of its run's first take.
    """
    found = {"takes": 1, "seed": stored.seed, "options.variation_seed": stored.variation_seed}
    if "best_of" in stored.options:
        found["options.best_of"] = None
    if stored.is_planned:
        found["options.plan_seed"] = stored.plan.get("seed")
    passed = valid(mode, found)
    return passed if "seed" in passed else {}
