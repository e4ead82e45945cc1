"""The fields of a tab: how they are made, read, checked, filled, and brought back.

A tab collects its fields in a `Form`, under the names that its request has, so that validation, the request and the
messages beside the fields all speak of the same thing. Optional numbers are text boxes: Gradio's number box turns a
blank into 0 whenever it is drawn anew, and here a blank means the checkpoint's default.

A record that comes back from a file is a stranger's. Each value passes the same check as a request's own, by itself, so
that one bad value costs only itself; what is unknown or wrong is counted and never shown.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

import gradio as gr
from gradio.components import Component
from pydantic import TypeAdapter, ValidationError

import theme
import tooltips
from backend import check
from events import InvalidRequest, Problem
from limits import LIMITS, QUALITY_STEPS
from params import REQUESTS, Request, parse_request, upload_seconds, usual_sampling

Updates = dict[Any, Any]
# Events of the page: nothing a program should call, nothing that shows Gradio's own progress. With every message of a
# run Gradio goes through all components whose progress it ever had to show, so it must have none to show.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
# Short work that must not wait behind songs.
AT_ONCE: dict[str, Any] = {"queue": False, **QUIET}
MOST_UNDONE = 20


@dataclass(frozen=True)
class Follower:
    """A line that says something of the values of the fields `names`, which `say` gets by name."""

    line: gr.HTML
    names: tuple[str, ...]
    say: Callable[[dict[str, Any]], str]


class Form:
    """The fields of one tab, in the order they were added; an option of the request is called "options.steps"."""

    def __init__(self, mode: str):
        self.mode = mode
        self.tab: gr.Tab | None = None
        self.fields: dict[str, Component] = {}
        # What stands in for a field as a trigger and as an input of what follows it.
        self.copies: dict[str, Component] = {}
        self.folds: dict[gr.Accordion, tuple[str, ...]] = {}
        self.numbers: set[str] = set()
        # How a field's value becomes a request's, and the other way round, for fields whose value says more.
        self.parsers: dict[str, Callable[[Any], Any]] = {}
        self.showers: dict[str, Callable[[Any], Any]] = {}
        # Where what only a run can find wrong with a field stands at it, by field.
        self.lines: dict[str, gr.HTML] = {}
        # What follows the backend's status: each returns updates of the same components, whatever the facts.
        self.watchers: list[Callable[[Mapping[str, Any]], Updates]] = []
        # The lines that follow what the fields hold (page_settings.connect_changes).
        self.followers: list[Follower] = []
        # What is connected when all fields are there.
        self.later: list[Callable[[], None]] = []
        # The runs that the tab's buttons start.
        self.runs: list[Any] = []

    def connect(self) -> None:
        for connect in self.later:
            connect()

    def identify(self, name: str) -> str:
        """Return the element id of a field, such as "generate-cfg-start"."""
        return f"{self.mode}-{name.rpartition('.')[2]}".replace("_", "-")

    def follow(self, line: gr.HTML, names: Iterable[str], say: Callable[[dict[str, Any]], str]) -> None:
        """Keep `line` at what `say` makes of the values of these fields, as far as the form has them."""
        self.followers.append(Follower(line, tuple(name for name in names if name in self.fields), say))

    def followed(self, name: str) -> Component:
        """Return the component whose changes are those of a field."""
        return self.copies.get(name, self.fields[name])

    @property
    def inputs(self) -> list[Component]:
        """Return the components in the order in which handlers get their values."""
        return list(self.fields.values())

    @property
    def settings(self) -> list[Component]:
        """Return the components whose values a record may hold: all but the files."""
        return [field for field in self.fields.values() if not isinstance(field, gr.Audio)]

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        return {name: self.parse(name, value) for name, value in zip(self.fields, values, strict=True)}

    def parse(self, name: str, value: Any) -> Any:
        """Return a field's value as a request has it: a number's text as a number."""
        if name in self.parsers:
            return self.parsers[name](value)
        return number(value, LIMITS[_key(name)].default) if name in self.numbers else value

    def folded(self) -> dict[str, tuple[str, Any]]:
        """Return label and default of each field in a folded group; a plan depends on the planner alone."""
        names = {name for group in self.folds.values() for name in group} - {"options.plan"}
        return {name: (self.label(name), field.value) for name, field in self.fields.items() if name in names}

    def request(self, values: Iterable[Any]) -> Request:
        """Build the request from the components' values; raises InvalidRequest."""
        read: dict[str, Any] = {}
        for name, value in self.read(values).items():
            group, _, key = name.rpartition(".")
            (read.setdefault(group, {}) if group else read)[key] = value
        return parse_request(self.mode, read)

    def problems(self, values: Sequence[Any]) -> dict[str, str]:
        """Return what is wrong, a text for each wrong field; what belongs to none stands at the first.

        Of the files only the headers are read. Some checks are not reached before others pass: they are made with the
        defaults of the fields that are wrong, and with the name of a file where there is none.
        """

        def tried(name: str, component: Component, value: Any) -> Any:
            if name not in found:
                return value
            return value or "nothing" if isinstance(component, gr.Audio) else component.value

        found, values = self._unusable_files(values), list(values)
        while new := {name: text for name, text in self._flaws(values).items() if name not in found}:
            found |= new
            values = [tried(*item, value) for item, value in zip(self.fields.items(), values, strict=True)]
        return {name: found[name] for name in self.fields if name in found}

    def _unusable_files(self, values: Sequence[Any]) -> dict[str, str]:
        """Return what is wrong with files by themselves: a request that is wrong elsewhere never gets to them."""
        found: dict[str, str] = {}
        for (name, component), path in zip(self.fields.items(), values, strict=True):
            if isinstance(component, gr.Audio) and path:
                try:
                    upload_seconds(path, name)
                except InvalidRequest as error:
                    found[name] = error.problem.text()
        return found

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
        """Return the updates that put checked values into their fields; others stay."""
        return {
            self.fields[name]: gr.update(value=self._shown(name, value))
            for name, value in values.items()
            if name in self.fields
        }

    def _shown(self, name: str, value: Any) -> Any:
        if name in self.showers:
            return self.showers[name](value)
        return as_text(value) if name in self.numbers and not isinstance(value, str) else value

    def show_status(self, facts: Mapping[str, Any]) -> Updates:
        """Return what the tab says about what the studio runs on; the same components whatever the facts."""
        return {part: update for watcher in self.watchers for part, update in watcher(facts).items()}

    def validate(self, *values: Any) -> list[dict[str, Any]] | dict[str, Any]:
        """Return Gradio's verdict on each field; a wrong one keeps the run from being queued."""
        problems = self.problems(values)
        verdicts = [gr.validate(name not in problems, problems.get(name, "")) for name in self.fields]
        # Gradio puts the verdict of a single field into a list itself.
        return verdicts if len(verdicts) > 1 else verdicts[0]

    def point_out(self, *values: Any) -> list[Any]:
        """Open the folded groups that hold a wrong field, and name the wrong fields for the line at the button."""
        problems = self.problems(values)
        opened = [
            gr.Accordion(open=True) if problems.keys() & set(names) else gr.skip() for names in self.folds.values()
        ]
        if not problems:
            return [*opened, ""]
        at_fields = {self.fields[name].elem_id: text for name, text in problems.items()}
        return [*opened, theme.wrong_fields(tooltips.look_at([self.label(name) for name in problems]), at_fields)]

    def point_at(self, problem: Problem) -> Updates:
        """Return the updates that show at its field what a run found wrong with it, where it has a line for that."""
        if problem.field not in self.lines:
            return {}
        folds = {fold: gr.Accordion(open=True) for fold, names in self.folds.items() if problem.field in names}
        return {**folds, self.lines[problem.field]: theme.notice("", problem.message, problem.hint)}

    def label(self, name: str) -> str:
        return label(_key(name))


def number(value: Any, default: float | None) -> Any:
    """Return a box's text as a number, the default where it is blank, or the text itself where it is no number."""
    text = str(value if value is not None else "").strip()
    if not text:
        return default
    for kind in (int, float):
        try:
            return kind(text.replace(",", ".") if text.count(",") == 1 else text)
        except ValueError:
            continue
    return text


def lengths(there: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the seconds that a tab's song is made of, by field, for the fields that the tab has; None: not known."""

    def seconds(name: str) -> float | None:
        try:
            if name == "source":
                return upload_seconds(there[name]) if there[name] else None
            length = float(number(there[name], LIMITS[name].default))
            return length if math.isfinite(length) else None
        except (ValueError, OverflowError, InvalidRequest):
            return None

    return {name: seconds(name) for name in ("source", "duration", "before", "after") if name in there}


def label(name: str) -> str:
    """Return the label of a field; numbers have theirs in the table of limits."""
    return LIMITS[name].label if name in LIMITS else tooltips.LABELS[name]


def help_text(name: str, default: str = "", task: str = "") -> str:
    """Return the help of a field with its limits filled in, the one for the task where it has one of its own."""
    limit = LIMITS.get(name)
    low, high = (f"{limit.low:g}", f"{limit.high:g}") if limit else ("", "")
    text = tooltips.HELP.get(f"{task}.{name}") or tooltips.HELP[name]
    return text.format(low=low, high=high, default=default)


def _key(name: str) -> str:
    """Return the last part of a field's name: "steps" of "options.steps"."""
    return name.rpartition(".")[2]


def add(form: Form, name: str, kind: type[Component], extra: Sequence[str] = (), **settings: Any) -> Any:
    """Add a field; `extra` has classes of its own."""
    key = _key(name)
    if kind is not gr.Audio:
        settings.setdefault("info", help_text(key, task=form.mode))
    classes = ["numeric" if name in form.numbers else "words" if kind is gr.Textbox else "field", *extra]
    if name in form.numbers and LIMITS[key].low < 0:
        classes.append("signed")  # the digit pad of a phone has no minus
    form.fields[name] = kind(label=label(key), elem_id=form.identify(name), elem_classes=classes, **settings)
    return form.fields[name]


def add_number(form: Form, name: str, placeholder: str = "", **settings: Any) -> gr.Textbox:
    """Add a number as a text box; blank is its default."""
    default = LIMITS[_key(name)].default
    form.numbers.add(name)
    return add(
        form,
        name,
        gr.Textbox,
        value="" if default is None else f"{default:g}",
        placeholder=placeholder or (tooltips.AUTOMATIC if default is None else f"{default:g}"),
        max_lines=1,
        min_width=120,
        **settings,
    )


def add_slider(form: Form, name: str, **settings: Any) -> gr.Slider:
    """Add a number as a slider over its whole range."""
    limit = LIMITS[_key(name)]
    return add(
        form, name, gr.Slider, minimum=limit.low, maximum=limit.high, value=limit.default, step=limit.step, **settings
    )


def html(value: str = "", elem_id: str | None = None, js_on_load: str | None = None, render: bool = True) -> gr.HTML:
    """Make a place for HTML of ours; one that may be empty (it has none at first) takes no room then."""
    classes = ["text"] if value else ["text", "maybe"]
    return gr.HTML(value, elem_id=elem_id, elem_classes=classes, js_on_load=js_on_load, render=render)


# --- undo ---------------------------------------------------------------------------------------------------------


@dataclass
class Undo:
    """The button that brings back what stood in fields before they were filled; `former` has it, the latest last."""

    button: gr.Button
    former: gr.State

    @property
    def outputs(self) -> list[Component]:
        return [self.button, self.former]

    def keep(self, former: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> Updates:
        return {self.former: [*former, dict(values)][-MOST_UNDONE:], self.button: gr.update(visible=True)}


def undo_button(name: str) -> Undo:
    """Make the button, which appears when there is something to bring back."""
    button = gr.Button(tooltips.UNDO, size="sm", min_width=0, visible=False, elem_id=f"{name}-undo")
    return Undo(button, gr.State([]))


def connect_undo(undo: Undo, fields: Mapping[str, Component]) -> Any:
    """Let the button bring back the latest values of `fields`, then those before; returns the event."""

    def back(former: list[dict[str, Any]]) -> Updates:
        *earlier, values = former or [{}]
        filled = {fields[name]: gr.update(value=value) for name, value in values.items()}
        return {**filled, undo.former: earlier, undo.button: gr.update(visible=bool(earlier))}

    return undo.button.click(back, undo.former, [*fields.values(), *undo.outputs], **AT_ONCE)


# --- what the studio runs on --------------------------------------------------------------------------------------


def available(writer: Mapping[str, Any]) -> bool:
    """Tell from the status of the planner or of the lyrics writer whether there is one to ask.

    One that did not fit into memory may fit the next time.
    """
    if writer["state"] == "failed":
        return writer["problem"]["code"] == "out_of_memory"
    return writer["state"] in ("ready", "loaded")


def reason(writer: Mapping[str, Any], hint: bool = True) -> str:
    """Say what is wrong with the planner or the lyrics writer and, where wanted, what to do about it."""
    problem = writer["problem"]
    if not problem:
        return ""
    return f"{problem['message']} {problem['hint'] if hint else ''}".strip()


def checkpoint_updates(form: Form, kind: str) -> Updates:
    """Return what the form says about the checkpoint in use: its defaults, and what a turbo one has no use for."""
    by_quality = {name: usual_sampling(name, kind) for name in QUALITY_STEPS}
    standard, turbo = by_quality["standard"], kind == "turbo"
    shift, guidance = f"{standard.shift:g}", f"{standard.guidance:g}"
    if turbo:
        quality, steps = tooltips.TURBO_QUALITY.format(steps=standard.steps), str(standard.steps)
    else:
        listed = ", ".join(f"{name} {numbers.steps}" for name, numbers in by_quality.items())
        quality, steps = help_text("quality"), tooltips.STEPS_BY_QUALITY.format(steps=listed)
    updates = {
        "quality": {"choices": qualities(kind), "info": quality},
        "options.steps": {"info": help_text("steps", steps)},
        "options.shift": {"info": help_text("shift", shift), "placeholder": shift},
        "options.guidance": {"info": help_text("guidance", guidance), "placeholder": guidance},
        "options.cfg_start": {"info": help_text("cfg_start")},
        "options.cfg_end": {"info": help_text("cfg_end")},
    }
    for name in ("options.guidance", "options.cfg_start", "options.cfg_end"):
        updates[name]["interactive"] = not turbo
        if turbo:
            updates[name]["info"] = tooltips.TURBO_GUIDANCE
    return {form.fields[name]: gr.update(**changes) for name, changes in updates.items()}


def qualities(kind: str) -> list[tuple[str, str]]:
    return [
        (name if kind == "turbo" else f"{name}, {usual_sampling(value, kind).steps} steps", value)
        for value, name in tooltips.QUALITIES.items()
    ]


# --- back from a record -----------------------------------------------------------------------------------------------

# Files are no settings, and each tab is a mode of its own.
NOT_SETTINGS = {"mode", "source", "reference", "options"}
# What describes the song itself, whatever is made of it, with the values of a blank form.
SONG = {
    "prompt": "",
    "lyrics": "",
    "instrumental": False,
    "bpm": None,
    "key": "",
    "time_signature": "",
    "language": "unknown",
}


@dataclass(frozen=True)
class Restored:
    """Checked `values` under the names of a form's fields, such as "options.steps"; `left_out` counts the others.

    `reference` tells that the song had a reference audio, which no record holds.
    """

    values: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0
    reference: bool = False


def settings(mode: str, record: Any) -> Restored:
    """Return what of `record` fits the form of `mode`; a take's file gets the seed of this very take."""
    request = _mapping(_mapping(record).get("request"))
    found = {name: value for name, value in request.items() if name != "options"}
    found |= {f"options.{name}": value for name, value in _mapping(request.get("options")).items()}
    checks = _checks(mode)
    values, left_out = {}, 0
    for name, value in found.items():
        try:
            values[name] = checks[name].validate_python(value)
        except (ValidationError, KeyError):
            left_out += 1
    if (chosen := values.get("options.loras")) is not None:
        # No record holds an uploaded file.
        values["options.loras"] = kept = [lora.model_dump() for lora in chosen if lora.source != "upload"]
        left_out += len(chosen) - len(kept)
    reference = "reference" in REQUESTS[mode].model_fields and "reference" in _mapping(_mapping(record).get("audio"))
    return Restored(values | _seeds(record, checks), left_out, reference)


def song(record: Any) -> dict[str, Any]:
    """Return the words and musical facts of a record, blank where it has none: what a take takes along to a tab."""
    values = settings("cover", record).values
    return {name: values.get(name, blank) for name, blank in SONG.items()}


def as_text(value: float | int | None) -> str:
    """Write a number as a visitor would type it, blank where there is none."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@cache
def _checks(mode: str) -> dict[str, TypeAdapter]:
    """Return the check of each setting, such as "options.steps", as the request of `mode` makes it."""
    fields = REQUESTS[mode].model_fields
    options = fields["options"].annotation.model_fields
    settings = {name: info for name, info in fields.items() if name not in NOT_SETTINGS}
    settings |= {f"options.{name}": info for name, info in options.items()}
    return {name: TypeAdapter(Annotated[info.annotation, *info.metadata, None]) for name, info in settings.items()}


def _seeds(record: Any, checks: Mapping[str, TypeAdapter]) -> dict[str, Any]:
    """Return the drawn seeds of the one take that a file's record names; a record of several keeps its own.

    The plan's is that of the first take, of which the file's own take may not know.
    """
    takes, seeds, others = (_mapping(record).get(name) for name in ("takes", "seeds", "variation_seeds"))
    if not isinstance(takes, list) or len(takes) != 1:
        return {}
    try:
        values = {
            "takes": int(LIMITS["takes"].low),
            "seed": checks["seed"].validate_python(_mapping(takes[0]).get("seed")),
        }
    except ValidationError:
        return {}
    plan = _mapping(_mapping(record).get("plan"))
    if plan.get("used") is True and "options.plan_seed" in checks:
        with contextlib.suppress(ValidationError):
            values["options.plan_seed"] = checks["options.plan_seed"].validate_python(plan.get("seed"))
    with contextlib.suppress(ValidationError, AttributeError, IndexError, TypeError, ValueError):
        at = seeds.index(values["seed"])
        values["options.variation_seed"] = checks["options.variation_seed"].validate_python(others[at])
    return values
