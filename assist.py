"""Help with the words: the planner makes a whole song of an idea, words one better, or describes a recording.

What it wrote goes into the form at once, and Undo brings back what was there. A tab has one `Assist`, with the buttons
that make sense there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

import markup
import restore
import tooltips
from events import Done, Problem
from form import AT_ONCE, Form, Undo, Updates, available, connect_undo, html, reason, undo_button
from limits import INSTRUMENTAL
from params import Request
from result import RunBar, cancelled_box, progress_line
from runs import connect_run, stream_of

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
        return {**buttons, self.help: markup.remark(said)}


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
    undone.then(lambda: markup.line("done", tooltips.UNDONE), outputs=bar.line, **AT_ONCE)
    form.watchers.append(bar.show)


def _connect(form: Form, bar: Assist, mode: str, button: gr.Button, fields: Mapping[str, Component]) -> None:
    part = Part(form, mode)

    def failed(problem: Problem) -> Updates:
        return bar.idle(markup.line("failed", problem.text()))

    def done(request: Request, done: Done) -> Updates:
        return {**bar.idle(markup.line("done", tooltips.ASSIST_DONE)), bar.sketch: done.record["sketch"]}

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
    found = restore.settings(tab, {"request": sketch}).values
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
