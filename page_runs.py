"""A run on the page: what the backend says while it works becomes updates, and Cancel ends it.

Help with the words is a run too: the planner makes a whole song of an idea, words one better, or describes a recording.
What it wrote goes into the form at once, and Undo brings back what was there. A tab has one `Assist`, with the buttons
that make sense there.
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
from page_form import AT_ONCE, QUIET, Form, Undo, Updates, available, connect_undo, html, reason, undo_button
from page_hints import connect_seconds
from page_results import Made, ResultPanel, RunBar, cancelled_box, progress_line, run_bar
from params import Request, SongRequest

log = logging.getLogger("studio")

# Between two drafts, and between two steps, that the page shows.
DRAFT_SECONDS = 0.5
PROGRESS_SECONDS = 1.0
# What sings all of its lyrics; an extension sings them in its new part, a layer in one of its tracks.
WHOLE_SONG = ("generate", "cover", "repaint", "morph")


def run_foot(form: Form, cancel: str = tooltips.CANCEL, above: gr.HTML | None = None) -> tuple[RunBar, gr.HTML]:
    """Make the foot of a tab, which stays in sight: the line for wrong fields, ZeroGPU's seconds and the run bar.

    `above` is a line of the tab's own, not rendered yet. Returns the run bar and the line for wrong fields.
    """
    with gr.Row(elem_classes=["run-bar"]):
        if above:
            above.render()
        problems = html(elem_id=f"{form.mode}-problems")
        seconds = html(elem_id=f"{form.mode}-seconds")
        bar = run_bar(form.mode, tooltips.GO[form.mode], cancelled_box(form.mode), cancel=cancel)
    form.later.append(lambda: connect_seconds(form, seconds))
    return bar, problems


def connect_song(form: Form, bar: RunBar, problems: gr.HTML, result: ResultPanel) -> None:
    """Let the button make songs; Cancel and errors leave the form as it was."""

    def failed(problem: Problem) -> Updates:
        return {
            **bar.idle(theme.line("failed", tooltips.FAILED_TITLE)),
            **result.fail(problem),
            **form.point_at(problem),
        }

    def done(request: Request, done: Done) -> Updates:
        return {**bar.idle(made_line(request, done)), **result.show(request, done, timed=can_be_timed)}

    def make(*values: Any) -> Iterator[Updates]:
        yield from stream_of(lambda: form.request(values), bar, done, failed)

    outputs = [*result.outputs, *form.lines.values(), *form.folds]
    connect_run(form, bar, problems, make, outputs, dict.fromkeys([result.message, *form.lines.values()], ""))


def connect_run(
    form: Form,
    bar: RunBar,
    problems: gr.HTML,
    make: Callable[..., Iterator[Updates]],
    outputs: Sequence[Any],
    fresh: Updates,
    *,
    go: gr.Button | None = None,
    cancelled: str = tooltips.CANCELLED,
) -> tuple[Any, Any]:
    """Let `go` (the bar's own button) check the fields, wait for its turn and stream what `make` yields for them.

    `fresh` are updates for the beginning, `outputs` what `make` changes beside the bar. Returns the events of the
    beginning and of the run itself.
    """
    go = go or bar.go

    def begin(*values: Any) -> Updates:
        return {**bar.running(theme.line("running", tooltips.QUEUED)), **fresh}

    # A wrong field ends at the validator, with a sentence beside it; this says so at the button and unfolds the group.
    go.click(form.point_out, form.inputs, [*form.folds, problems], **AT_ONCE)
    checked = {"validator": form.validate, "concurrency_limit": None, **QUIET}
    begun = go.click(begin, form.inputs, [*bar.outputs, *fresh], **checked)
    # The button is back with the song, a moment before its run has ended; "once" would swallow a click in between.
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
    """Run the request that `ask` makes; it may raise StudioError where there is none."""
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
        yield failed(unexpected())


def page_updates(
    bar: RunBar,
    events: Iterator[Event],
    done: Callable[[Done], Updates],
    failed: Callable[[Problem], Updates],
    draft: Callable[[Draft], Updates] = lambda draft: {},
) -> Iterator[Updates]:
    """Turn the events of a run into updates of the page; what the run says once (a note) stays beside its progress."""
    stage, note, told, drafted = "", "", 0.0, 0.0
    for event in events:
        match event:
            case Progress() if drafted:
                pass  # the heartbeat between two tokens knows less than the draft
            case Progress():
                # Gradio looks through the whole page at every update, and a small model makes dozens of steps a second.
                news = (event.stage, event.note or note) != (stage, note)
                stage, note = event.stage, event.note or note
                if news or time.monotonic() - told >= PROGRESS_SECONDS:
                    told = time.monotonic()
                    yield {bar.line: theme.progress(event, note)}
            case Draft():
                # A fast writer would keep the browser busy with nothing but drawing.
                if time.monotonic() - drafted >= DRAFT_SECONDS:
                    drafted = time.monotonic()
                    yield draft(event)
            case Done():
                yield done(event)
            case Failed(problem):
                yield failed(problem)


def connect_cancel(bar: RunBar, begin: Any, run: Any, cancelled: str) -> None:
    """Let Cancel close the run, and put the buttons back however it ended early."""

    def stopped(asked: bool) -> Updates:
        return bar.idle(theme.line("stopped", cancelled if asked else tooltips.STOPPED))

    bar.cancel.click(None, None, bar.cancelled, js="() => true", cancels=[run], **QUIET)
    # Gradio calls this for an error and for a cancelled run alike, but not after a run that reached its end.
    for event in {id(begin): begin, id(run): run}.values():
        event.failure(stopped, bar.cancelled, bar.outputs, **AT_ONCE)


def made_line(request: SongRequest, done: Done) -> str:
    record = done.record
    sentence = tooltips.done_sentence(len(record["takes"]), request.takes, sum(record["seconds"].values()))
    return theme.line("done", sentence)


def can_be_timed(made: Made) -> bool:
    """Tell whether the lyrics of a take can be timed: they are those of the whole song, and the checkpoint can."""
    request = made.request
    whole = getattr(request, "action", request.mode) in WHOLE_SONG
    return whole and request.sung_lyrics() != INSTRUMENTAL and get_backend().status()["timed_lyrics"]["available"]


def unexpected() -> Problem:
    """Return the problem for an error that nobody foresaw; the log has it in full."""
    return Problem("internal", tooltips.UNEXPECTED, hint=tooltips.UNEXPECTED_HINT)


# --- help with the words ----------------------------------------------------------------------------------------------

# The fields that each request takes from a tab, and what they are called in it.
USED = {
    "inspire": {"prompt": "idea", "instrumental": "instrumental", "language": "language"},
    "polish": {
        name: name
        for name in ("prompt", "lyrics", "instrumental", "bpm", "key", "time_signature", "language", "duration")
    },
    "describe": {"source": "source"},
}
# The fields that a sketch of a song may fill, or that say where it goes.
FILLED = (
    *("prompt", "lyrics", "bpm", "key", "time_signature", "language", "duration"),
    *("instrumental", "action", "source_prompt", "source_lyrics"),
)
# A morph starts from what the song is now; what it becomes is the visitor's own.
MORPHED = {"prompt": "source_prompt", "lyrics": "source_lyrics"}


# --- the buttons --------------------------------------------------------------------------------------------------


@dataclass
class Assist(RunBar):
    """A run bar with a button for each way to be helped, by mode; `sketch` is what the latest run wrote."""

    buttons: dict[str, gr.Button]
    help: gr.HTML
    problems: gr.HTML
    sketch: gr.State
    undo: Undo

    @property
    def starters(self) -> list[gr.Button]:
        """Return the buttons that start a run, of which there is one at a time."""
        return list(self.buttons.values())

    def show(self, facts: Mapping[str, Any]) -> Updates:
        """Return the updates for the backend's status: without a planner nothing here works, and it says why."""
        planner = facts["planner"]
        usable = available(planner)
        said = " ".join(tooltips.ASSIST_HELP[mode] for mode in self.buttons)
        if not usable:
            names = [tooltips.ASSIST[mode] for mode in self.buttons]
            said = tooltips.needs_planner(names, reason(planner, hint=False))
        buttons = {button: gr.update(interactive=usable) for button in self.starters}
        return {**buttons, self.help: theme.remark(said)}


def assist(form: Form, *modes: str) -> Assist:
    """Make the buttons of `modes` ("inspire", "polish", "describe"), their line, Cancel and Undo."""
    cancelled = cancelled_box(f"{form.mode}-assist")
    with gr.Row(elem_classes=["assist"]):
        buttons = {
            mode: gr.Button(
                tooltips.ASSIST[mode], size="sm", min_width=0, interactive=False, elem_id=f"{form.mode}-{mode}"
            )
            for mode in modes
        }
        undo = undo_button(form.mode)
        cancel = gr.Button(
            tooltips.CANCEL,
            variant="stop",
            size="sm",
            min_width=0,
            interactive=False,
            elem_id=f"{form.mode}-assist-cancel",
            elem_classes=["while-running"],
        )
    said = html(elem_id=f"{form.mode}-assist-help")
    problems = html(elem_id=f"{form.mode}-assist-problems")
    line = progress_line(f"{form.mode}-assist")
    return Assist(buttons[modes[0]], cancel, line, cancelled, buttons, said, problems, gr.State(None), undo)


def connect_assist(form: Form, bar: Assist) -> None:
    """Let the buttons fill the form, and Undo take it back; without a planner they cannot be pressed."""
    fields = {name: form.fields[name] for name in FILLED if name in form.fields}
    for mode, button in bar.buttons.items():
        _connect(form, bar, mode, button, fields)
    undone = connect_undo(bar.undo, fields)
    undone.then(lambda: theme.line("done", tooltips.UNDONE), outputs=bar.line, **AT_ONCE)
    form.watchers.append(bar.show)


def _connect(form: Form, bar: Assist, mode: str, button: gr.Button, fields: Mapping[str, Component]) -> None:
    part = Part(form, mode)

    def failed(problem: Problem) -> Updates:
        return bar.idle(theme.line("failed", problem.text()))

    def done(request: Request, done: Done) -> Updates:
        return {**bar.idle(theme.line("done", tooltips.ASSIST_DONE)), bar.sketch: done.record["sketch"]}

    def make(*values: Any) -> Iterator[Updates]:
        yield from stream_of(lambda: part.request(values), bar, done, failed)

    def fill(sketch: dict[str, Any] | None, former: list[dict[str, Any]], *values: Any) -> Updates:
        there = dict(zip(fields, values, strict=True))
        found = filling(form.mode, mode, sketch, there) if sketch else {}
        if not found:
            return {bar.undo.former: former}
        return {**form.show(found), **bar.undo.keep(former, {name: there[name] for name in found})}

    _, run = connect_run(part, bar, bar.problems, make, [bar.sketch], {bar.sketch: None}, go=button)
    # An event of its own: what is typed while the planner works is what Undo must bring back.
    run.success(fill, [bar.sketch, bar.undo.former, *fields.values()], [*fields.values(), *bar.undo.outputs], **AT_ONCE)


def filling(tab: str, mode: str, sketch: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a sketch puts into the fields of `tab`, where `there` is what they hold.

    Lyrics that are switched off stay, and so do lyrics that were there before a recording was described.
    """
    found = page_form.settings(tab, {"request": sketch}).values
    places = MORPHED if there.get("action") == "morph" else {}
    if found.get("lyrics") == INSTRUMENTAL:
        found["lyrics"] = ""
    if there["instrumental"] or (mode == "describe" and there[places.get("lyrics", "lyrics")].strip()):
        found.pop("lyrics", None)
    return {places.get(name, name): value for name, value in found.items()}


class Part(Form):
    """The fields of a tab's form that a request of another mode uses, under the names that they have there."""

    def __init__(self, form: Form, mode: str):
        super().__init__(mode)
        self.names = {name: used for name, used in USED[mode].items() if name in form.fields}
        self.fields = {name: form.fields[name] for name in self.names}
        self.numbers, self.folds, self.runs = form.numbers, form.folds, form.runs

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        return {self.names[name]: value for name, value in super().read(values).items()}

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        places = {used: name for name, used in self.names.items()}
        return places.get(problem.field, next(iter(self.fields)))
