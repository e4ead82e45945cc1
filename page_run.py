"""A run on the page: its buttons and progress line, events of the backend turned into updates, and Cancel.

Help with the words is a run too: the planner's result fills the form, and Undo brings back what it replaced.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

import page_form
import theme
import tooltips
from backend import GPU_CONCURRENCY, get_backend
from events import Done, Draft, Event, Failed, Problem, Progress, StudioError
from limits import INSTRUMENTAL
from page_form import AT_ONCE, QUIET, Form, Undo, Updates, html
from params import Request
from status import Status

log = logging.getLogger("studio")

# The least time between two updates of the page.
DRAFT_SECONDS = 0.5
PROGRESS_SECONDS = 1.0


@dataclass
class RunBar:
    starters: list[gr.Button]  # only one run goes on at a time
    cancel: gr.Button
    line: gr.HTML
    cancelled: gr.Checkbox  # hidden; Cancel ticks it in the browser, so that a run that ended early can say why

    @property
    def go(self) -> gr.Button:
        return self.starters[0]

    @property
    def outputs(self) -> list[Component]:
        return [*self.starters, self.cancel, self.line, self.cancelled]

    def running(self, line: str) -> Updates:
        starters = {button: gr.update(interactive=False) for button in self.starters}
        return {**starters, self.cancel: gr.update(interactive=True), self.line: line, self.cancelled: False}

    def idle(self, line: str) -> Updates:
        starters = {button: gr.update(interactive=True) for button in self.starters}
        return {**starters, self.cancel: gr.update(interactive=False), self.line: line}

    def failed(self, problem: Problem) -> Updates:
        return self.idle(theme.line("failed", problem.text()))


def cancelled_box(name: str) -> gr.Checkbox:
    """Make the hidden box. Not inside a container that is hidden at first: showing that would show the box as well."""
    return gr.Checkbox(visible="hidden", elem_id=f"{name}-cancelled")


def run_bar(
    name: str, text: str, cancelled: gr.Checkbox, variant: str = "primary", cancel: str = tooltips.CANCEL
) -> RunBar:
    line = html(elem_id=f"{name}-progress", js_on_load=theme.script("progress"))
    go = gr.Button(text, variant=variant, elem_id=f"{name}-go", scale=3, min_width=160)
    stop = gr.Button(cancel, variant="stop", elem_id=f"{name}-cancel", scale=1, min_width=96, interactive=False)
    return RunBar([go], stop, line, cancelled)


def run_foot(form: Form, above: Sequence[gr.HTML], cancel: str = tooltips.CANCEL) -> tuple[RunBar, gr.HTML]:
    """Make a tab's foot; return its run bar and the line for wrong fields. `above`: lines that are not rendered yet."""
    with gr.Row(elem_classes=["run-bar"]):
        for line in above:
            line.render()
        problems = html(elem_id=f"{form.mode}-problems")
        bar = run_bar(form.mode, tooltips.GO[form.mode], cancelled_box(form.mode), cancel=cancel)
    return bar, problems


def connect_run(
    form: Form,
    bar: RunBar,
    problems: gr.HTML,
    make: Callable[..., Iterator[Updates]],
    outputs: Sequence[Any],  # what `make` updates besides the bar
    fresh: Updates,  # updates at the start
    *,
    go: gr.Button | None = None,  # default: the bar's own
    cancelled: str = tooltips.CANCELLED,
) -> tuple[Any, Any]:
    """Let `go` check the fields, wait in the queue, and stream `make`; returns the events of the start and the run."""
    go = go or bar.go

    def begin(*values: Any) -> Updates:
        return {**bar.running(theme.line("running", tooltips.QUEUED)), **fresh}

    # A wrong field ends at the validator, with a sentence beside it; this says so at the button and unfolds the group.
    go.click(form.point_out, form.inputs, [*form.folds, problems], **AT_ONCE)
    checked = {"validator": form.validate, "concurrency_limit": None, **QUIET}
    begun = go.click(begin, form.inputs, [*bar.outputs, *fresh], **checked)
    # The song and the enabled button arrive a moment before the run ends; "once" would swallow a click in between.
    running = {"trigger_mode": "multiple", **GPU_CONCURRENCY, **QUIET}
    run = begun.success(make, form.inputs, [*bar.outputs, *outputs], **running)
    connect_cancel(bar, begun, run, cancelled)
    form.runs.append(run)
    return begun, run


def stream_of(
    ask: Callable[[], Request],
    bar: RunBar,
    done: Callable[[Request, Done], Updates],
    failed: Callable[[Problem], Updates],
    draft: Callable[[Draft], Updates] = lambda draft: {},
) -> Iterator[Updates]:
    """Run the request that `ask` builds; `ask` raises StudioError if there is none."""
    # The first yield comes before any work: Gradio can only close a generator that has yielded.
    yield bar.running(theme.line("running", tooltips.STARTING))
    try:
        request = ask()
        with contextlib.closing(get_backend().stream(request)) as events:
            yield from page_updates(bar, events, lambda event: done(request, event), failed, draft)
    except StudioError as error:
        yield failed(error.problem)
    except Exception:
        log.exception("a run failed unexpectedly")
        yield failed(Problem("internal", tooltips.UNEXPECTED, hint=tooltips.UNEXPECTED_HINT))


def page_updates(
    bar: RunBar,
    events: Iterator[Event],
    done: Callable[[Done], Updates],
    failed: Callable[[Problem], Updates],
    draft: Callable[[Draft], Updates] = lambda draft: {},
) -> Iterator[Updates]:
    """Turn the events of a run into updates of the page; a note stays beside the progress until the next note."""
    said, note, told, drafted = None, "", 0.0, 0.0
    for event in events:
        match event:
            case Progress() if not drafted:  # the heartbeat between two tokens knows less than the draft
                note = event.note or note
                # Gradio searches the whole page at every update, and a small model makes dozens of steps a second.
                if (event.stage, note) != said or time.monotonic() - told >= PROGRESS_SECONDS:
                    said, told = (event.stage, note), time.monotonic()
                    yield {bar.line: theme.progress(event, note)}
            case Draft():
                if time.monotonic() - drafted >= DRAFT_SECONDS:  # a fast writer would keep the browser busy drawing
                    drafted = time.monotonic()
                    yield draft(event)
            case Done():
                yield done(event)
            case Failed(problem):
                yield failed(problem)


def connect_cancel(bar: RunBar, begin: Any, run: Any, cancelled: str) -> None:
    """Let Cancel close the run, and reset the buttons however it ended early."""

    def stopped(asked: bool) -> Updates:
        return bar.idle(theme.line("stopped", cancelled if asked else tooltips.STOPPED))

    bar.cancel.click(None, None, bar.cancelled, js="() => true", cancels=[run], **QUIET)
    # Gradio calls this for an error and for a cancelled run alike, but not after a run that reached its end.
    for event in {id(begin): begin, id(run): run}.values():
        event.failure(stopped, bar.cancelled, bar.outputs, **AT_ONCE)


WORDS = ("prompt", "lyrics", "bpm", "key", "time_signature", "language", "duration")
# By mode: the fields of a tab that the request takes, and their names in it.
USED = {
    "inspire": {"prompt": "idea", "instrumental": "instrumental", "language": "language"},
    "polish": {name: name for name in (*WORDS, "instrumental")},
    "describe": {"source": "source"},
}
# The fields that a result may fill, or that decide where it goes.
FILLED = (*WORDS, "instrumental", "action", "source_prompt", "source_lyrics")
# In a morph a description fills the words of the source; what the song turns into is the visitor's own.
MORPHED = {"prompt": "source_prompt", "lyrics": "source_lyrics"}


class Assist(RunBar):
    """A run bar with a button for each of `modes` ("inspire", "polish", "describe"); `sketch` is the latest result."""

    def __init__(self, form: Form, *modes: str):
        name = f"{form.mode}-assist"
        cancelled = cancelled_box(name)
        small = {"size": "sm", "min_width": 0, "interactive": False}
        looks = {"variant": "stop", "elem_id": f"{name}-cancel", "elem_classes": ["while-running"], **small}
        with gr.Row(elem_classes=["assist"]):
            self.buttons = {
                mode: gr.Button(tooltips.ASSIST[mode], elem_id=f"{form.mode}-{mode}", **small) for mode in modes
            }
            self.undo = Undo(form.mode)
            cancel = gr.Button(tooltips.CANCEL, **looks)
        self.help, self.problems = html(elem_id=f"{name}-help"), html(elem_id=f"{name}-problems")
        line = html(elem_id=f"{name}-progress", js_on_load=theme.script("progress"))
        self.sketch = gr.State(None)
        super().__init__([*self.buttons.values()], cancel, line, cancelled)

    def show(self, status: Status) -> Updates:
        usable = status.planner.available
        said = " ".join(tooltips.ASSIST_HELP[mode] for mode in self.buttons)
        if not usable:
            names = [tooltips.ASSIST[mode] for mode in self.buttons]
            said = tooltips.needs_planner(names, status.planner.reason(hint=False))
        return {**{each: gr.update(interactive=usable) for each in self.starters}, self.help: theme.remark(said)}


def connect_assist(form: Form, bar: Assist) -> None:
    fields = {name: form.fields[name] for name in FILLED if name in form.fields}
    for mode, button in bar.buttons.items():
        _connect_help(Part(form, mode), form, bar, button, fields)
    undone = bar.undo.connect(fields)
    undone.then(lambda: theme.line("done", tooltips.UNDONE), outputs=bar.line, **AT_ONCE)
    form.watchers.append(bar.show)


def _connect_help(part: Part, form: Form, bar: Assist, button: gr.Button, fields: Mapping[str, Component]) -> None:
    def done(request: Request, done: Done) -> Updates:
        return {**bar.idle(theme.line("done", tooltips.ASSIST_DONE)), bar.sketch: done.record["sketch"]}

    def make(*values: Any) -> Iterator[Updates]:
        yield from stream_of(lambda: part.request(values), bar, done, bar.failed)

    def fill(sketch: dict[str, Any] | None, former: list[dict[str, Any]], *values: Any) -> Updates:
        there = dict(zip(fields, values, strict=True))
        found = filling(form.mode, part.mode, sketch, there) if sketch else {}
        if not found:
            return {bar.undo.former: former}
        return {**form.show(found), **bar.undo.keep(former, {name: there[name] for name in found})}

    _, run = connect_run(part, bar, bar.problems, make, [bar.sketch], {bar.sketch: None}, go=button)
    # A separate event, so that Undo also brings back what is typed while the planner works.
    run.success(fill, [bar.sketch, bar.undo.former, *fields.values()], [*fields.values(), *bar.undo.outputs], **AT_ONCE)


def filling(tab: str, mode: str, sketch: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a result puts into the fields of `tab`; `there` are their present values."""
    found = page_form.settings(tab, {"request": sketch}).values
    places = MORPHED if there.get("action") == "morph" else {}
    if found.get("lyrics") == INSTRUMENTAL:
        found["lyrics"] = ""
    # Lyrics that are switched off are kept, as are the visitor's own when a recording is described.
    if there["instrumental"] or (mode == "describe" and there[places.get("lyrics", "lyrics")].strip()):
        found.pop("lyrics", None)
    return {places.get(name, name): value for name, value in found.items()}


class Part(Form):
    """The fields of a tab's form that a request of another mode uses, under their names in the tab."""

    def __init__(self, form: Form, mode: str):
        super().__init__(mode)
        self.names = {name: used for name, used in USED[mode].items() if name in form.fields}
        self.fields = {name: form.fields[name] for name in self.names}
        self.parsers, self.folds, self.runs = form.parsers, form.folds, form.runs

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        return {self.names[name]: value for name, value in super().read(values).items()}

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        places = {used: name for name, used in self.names.items()}
        return places.get(problem.field, next(iter(self.fields)))
