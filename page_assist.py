"""Help with the words: Surprise me, Polish and Describe.

Each is a run of the planner or the song model. Its result fills the form, and Undo brings back what
it replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

import page_form
import theme
import tooltips
from events import Problem
from limits import INSTRUMENTAL
from page_form import AT_ONCE, Form, PartOfForm, Undo, Updates, html, only, updates_of
from page_run import Ended, RunBar, connect_end, connect_run, followed_runs, progress_line
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
FILLED = (*SONG_FIELDS, "instrumental", "words", "action", "source_prompt", "source_lyrics")
# In a morph a description fills the words of the source: the visitor chooses what it turns into.
IN_A_MORPH = {"prompt": "source_prompt", "lyrics": "source_lyrics"}


class Assist(RunBar):
    """A run bar with a button for each of `modes` ("inspire", "polish", "describe")."""

    def __init__(self, form: Form, *modes: str):
        name = f"{form.mode}-assist"
        runs = followed_runs(name, alone=len(modes))
        small: dict[str, Any] = {"size": "sm", "min_width": 0, "interactive": False}
        with gr.Row(elem_classes=["assist"]):
            self.buttons: dict[str, gr.Button] = {}
            for mode in modes:
                self.buttons[mode] = gr.Button(
                    tooltips.ASSIST[mode], elem_id=f"{form.mode}-{mode}", **small
                )
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
        super().__init__(
            list(self.buttons.values()), cancel, line, name, problems, runs, lasts=False
        )

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
    for mode in bar.buttons:
        _connect_button(mode, form, bar)
    ended = _connect_end(form, bar, fields)
    # Undo also restores what the settings of a take replaced.
    undone = bar.undo.connect({**form.saved, **fields})
    undone.then(lambda: theme.line("done", tooltips.UNDONE), outputs=bar.line, **AT_ONCE)
    form.on_status(bar.show)
    return [ended]


def _connect_button(mode: str, form: Form, bar: Assist) -> None:
    part = PartOfForm(form, mode, TAKEN[mode])

    def ask(*values: Any) -> Request:
        return part.request(values)

    connect_run(part, bar, ask, bar.failed, [], {}, go=bar.buttons[mode])


def _connect_end(form: Form, bar: Assist, fields: Mapping[str, Component]) -> Dependency:
    """Fill the form with a run's result; Undo also brings back what was typed while the planner worked."""

    def done(ended: Ended, former: list[dict[str, Any]], *values: Any) -> Updates:
        held = dict(zip(fields, values, strict=True))
        line = bar.idle(theme.line("done", tooltips.ASSIST_DONE))
        found = filling(form.mode, ended.request.mode, ended.done.words["sketch"], held)
        if not found:
            return line
        return {**line, **form.show(found), **bar.undo.keep(former, only(held, found))}

    def failed(problem: Problem, tag: Any, *values: Any) -> Updates:
        return bar.failed(problem)

    outputs = [*fields.values(), *bar.undo.outputs]
    return connect_end(bar, form.studio, done, failed, outputs, [bar.undo.former, *fields.values()])


def filling(
    tab: str, mode: str, sketch: Mapping[str, Any], held: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values that a result puts into the fields of `tab`, which hold `held`."""
    found = page_form.settings(tab, {"request": sketch}).values
    places = IN_A_MORPH if held.get("action") == "morph" else {}
    if found.get("lyrics") == INSTRUMENTAL:
        found["lyrics"] = ""
    # Lyrics that are switched off are kept, as are the visitor's own when a recording is described.
    own_lyrics = held[places.get("lyrics", "lyrics")].strip()
    if held["instrumental"] or (mode == "describe" and own_lyrics):
        found.pop("lyrics", None)
    if found.get("lyrics") and "words" in held:
        found["words"] = ""  # they are the visitor's by now
    return {places.get(name, name): value for name, value in found.items()}
