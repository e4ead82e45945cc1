"""Help with the words: Surprise me, Polish and Describe.

Each is a run of the planner or the song model. Its result fills the form, and Undo brings back what
it replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

import page_form
import theme
import tooltips
from events import Done
from limits import INSTRUMENTAL
from page_form import AT_ONCE, Form, PartOfForm, Undo, Updates, html, only, updates_of
from page_run import RunBar, cancelled_box, connect_run, progress_line, stream
from params import Request
from status import Status

SONG_FIELDS = ("prompt", "lyrics", "bpm", "key", "time_signature", "language", "duration")
# By mode: the fields of a tab that the request takes, and their names in it.
TAKEN = {
    "inspire": {"prompt": "idea", "instrumental": "instrumental", "language": "language"},
    "polish": {name: name for name in (*SONG_FIELDS, "instrumental")},
    "describe": {"source": "source"},
}
# The fields that a result may fill, or that decide where it goes.
FILLED = (*SONG_FIELDS, "instrumental", "action", "source_prompt", "source_lyrics")
# In a morph a description fills the words of the source; what the song turns into is the visitor's
# own.
IN_A_MORPH = {"prompt": "source_prompt", "lyrics": "source_lyrics"}


class Assist(RunBar):
    """A run bar with a button for each mode of help; `sketch` is the latest result."""

    def __init__(self, form: Form, *modes: str):
        name = f"{form.mode}-assist"
        cancelled = cancelled_box(name)
        small: dict[str, Any] = {"size": "sm", "min_width": 0, "interactive": False}
        with gr.Row(elem_classes=["assist"]):
            self.buttons: dict[str, gr.Button] = {}
            for mode in modes:
                self.buttons[mode] = gr.Button(tooltips.ASSIST[mode], elem_id=f"{form.mode}-{mode}", **small)
            self.undo = Undo(form.mode)
            cancel = gr.Button(
                tooltips.CANCEL,
                variant="stop",
                elem_id=f"{name}-cancel",
                elem_classes=["while-running"],
                **small,
            )
        self.help = html(elem_id=f"{name}-help")
        problems = html(elem_id=f"{name}-problems")
        line = progress_line(name)
        self.sketch = gr.State(None)
        super().__init__(list(self.buttons.values()), cancel, line, cancelled, problems)

    def show(self, status: Status) -> Updates:
        """Return the updates for the studio's status: there is no help without a planner."""
        planner = status.planner
        if planner.available:
            sentence = " ".join(tooltips.ASSIST_HELP[mode] for mode in self.buttons)
        else:
            names = [tooltips.ASSIST[mode] for mode in self.buttons]
            sentence = tooltips.needs_planner(names, planner.reason(hint=False))
        buttons = updates_of(self.starters, interactive=planner.available)
        return {**buttons, self.help: theme.remark(sentence)}


def connect_assist(form: Form, bar: Assist) -> list[Dependency]:
    """Connect the buttons, Undo and the status; returns the runs."""
    fields = form.components(FILLED)
    runs = [_connect_button(mode, form, bar, fields) for mode in bar.buttons]
    undone = bar.undo.connect(fields)
    undone.then(lambda: theme.line("done", tooltips.UNDONE), outputs=bar.line, **AT_ONCE)
    form.on_status(bar.show)
    return runs


def _connect_button(mode: str, form: Form, bar: Assist, fields: Mapping[str, Component]) -> Dependency:
    part = PartOfForm(form, mode, TAKEN[mode])

    def done(request: Request, done: Done) -> Updates:
        line = theme.line("done", tooltips.ASSIST_DONE)
        return {**bar.idle(line), bar.sketch: done.record["sketch"]}

    def make(*values: Any) -> Iterator[Updates]:
        yield from stream(form.studio, lambda: part.request(values), bar, done, bar.failed)

    def fill(sketch: dict[str, Any] | None, former: list[dict[str, Any]], *values: Any) -> Updates:
        held = dict(zip(fields, values, strict=True))
        found = filling(form.mode, mode, sketch, held) if sketch else {}
        if not found:
            return {bar.undo.former: former}
        return {**form.show(found), **bar.undo.keep(former, only(held, found))}

    _, run = connect_run(part, bar, make, [bar.sketch], {bar.sketch: None}, go=bar.buttons[mode])
    # A separate event, so that Undo also brings back what is typed while the planner works.
    filled = [*fields.values(), *bar.undo.outputs]
    run.success(fill, [bar.sketch, bar.undo.former, *fields.values()], filled, **AT_ONCE)
    return run


def filling(tab: str, mode: str, sketch: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a result puts into the fields of `tab`, which hold `held`."""
    found = page_form.settings(tab, {"request": sketch}).values
    places = IN_A_MORPH if held.get("action") == "morph" else {}
    if found.get("lyrics") == INSTRUMENTAL:
        found["lyrics"] = ""
    # Lyrics that are switched off are kept, as are the visitor's own when a recording is described.
    own_lyrics = held[places.get("lyrics", "lyrics")].strip()
    if held["instrumental"] or (mode == "describe" and own_lyrics):
        found.pop("lyrics", None)
    return {places.get(name, name): value for name, value in found.items()}
