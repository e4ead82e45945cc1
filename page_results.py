"""Where a run and what comes of it are shown: the run bar with its button and its line, and the takes."""

from __future__ import annotations

import base64
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component

import export
import jobs
import page_widgets
import theme
import tooltips
from events import Done, Problem
from limits import LIMITS
from page_form import Updates, html
from params import SongRequest

MOST_TAKES = int(LIMITS["takes"].high)


# --- the run bar --------------------------------------------------------------------------------------------------


@dataclass
class RunBar:
    """The button, the one that cancels, the line that says where a run is.

    `cancelled` is a hidden box that Cancel ticks in the browser, so that a run that ended early can say why.
    """

    go: gr.Button
    cancel: gr.Button
    line: gr.HTML
    cancelled: gr.Checkbox

    @property
    def starters(self) -> list[gr.Button]:
        """Return the buttons of the bar that start a run, of which there is one at a time."""
        return [self.go]

    @property
    def outputs(self) -> list[Component]:
        """Return what the handlers of a run write to."""
        return [*self.starters, self.cancel, self.line, self.cancelled]

    def running(self, line: str) -> Updates:
        """Return the updates for the time of a run."""
        return {
            **{button: gr.update(interactive=False) for button in self.starters},
            self.cancel: gr.update(interactive=True),
            self.line: line,
            self.cancelled: False,
        }

    def idle(self, line: str) -> Updates:
        """Return the updates for the time between runs."""
        free = {button: gr.update(interactive=True) for button in self.starters}
        return {**free, self.cancel: gr.update(interactive=False), self.line: line}


def cancelled_box(name: str) -> gr.Checkbox:
    """Make the hidden box of a run bar. Showing a container shows what is in it, so keep it out of those that come."""
    return gr.Checkbox(visible="hidden", elem_id=f"{name}-cancelled")


def run_bar(
    name: str, text: str, cancelled: gr.Checkbox, variant: str = "primary", cancel: str = tooltips.CANCEL
) -> RunBar:
    """Make the parts of a run bar; `text` and `cancel` are what its buttons say, `name` begins its element ids."""
    line = progress_line(name)
    go = gr.Button(text, variant=variant, elem_id=f"{name}-go", scale=3, min_width=160)
    stop = gr.Button(cancel, variant="stop", elem_id=f"{name}-cancel", scale=1, min_width=96, interactive=False)
    return RunBar(go, stop, line, cancelled)


def progress_line(name: str) -> gr.HTML:
    """Make the line that says where a run is."""
    return html(elem_id=f"{name}-progress", js_on_load=theme.script("progress"))


# --- the result ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A take on the page: the request it came from, uploads included, that run's record, its own entry, its file."""

    request: SongRequest
    record: Mapping[str, Any]
    take: Mapping[str, Any]
    file: str

    @property
    def kind(self) -> str:
        """Return the format of the file, such as "wav"."""
        return Path(self.file).suffix.removeprefix(".").lower()

    def song(self) -> dict[str, Any]:
        """Return what the song was made with: the fields that the plan fills, the visitor's own where there is none."""
        own = {name: getattr(self.request, name) for name in ("prompt", "bpm", "key", "time_signature", "language")}
        plan = self.record.get("plan") or {}
        if not plan.get("used"):
            return own
        return {**own, **{name: plan[name] for name in own if name in plan}, "prompt": plan.get("caption", "")}


@dataclass
class PlanLine:
    """What a song was planned like, or why it was not; `keep` takes its seed along, and `kept` says so."""

    line: gr.HTML
    keep: gr.Button
    kept: gr.HTML

    @property
    def outputs(self) -> list[Component]:
        """Return what `show` updates."""
        return [self.line, self.keep, self.kept]

    def show(self, record: Mapping[str, Any]) -> Updates:
        """Return the updates for the plan of a record; what its notes say already is not said again."""
        plan = record.get("plan")
        planned = bool(plan and plan["used"])
        noted = not planned and plan and tooltips.UNPLANNED.format(reason=plan["reason"]) in record["notes"]
        line = theme.plan(plan) if plan and not noted else ""
        return {self.line: line, self.keep: gr.update(visible=planned), self.kept: ""}


@dataclass
class ResultPanel:
    """Where takes appear: messages, the plan, the takes with the record of their run.

    `takes` is drawn by static/takes.js, which keeps earlier takes in the visitor's browser. `made` is what stands there
    as a list of `Made`; `asked` the name of the button of a take that was pressed, and the take's number.
    """

    message: gr.HTML
    plan: PlanLine
    takes: gr.HTML
    made: gr.State
    asked: gr.State

    @property
    def outputs(self) -> list[Any]:
        """Return every component and container that a run may change."""
        return [self.message, *self.plan.outputs, self.takes, self.made]

    def show(
        self, request: SongRequest, done: Done, kept: Sequence[Made] = (), timed: Callable[[Made], bool] | None = None
    ) -> Updates:
        """Return the updates that show a finished run, after the takes that are `kept`.

        `timed` tells whether the lyrics of a take could be timed.
        """
        new = zip(done.record["takes"], done.files, strict=True)
        made = [*kept, *(Made(request, done.record, take, file) for take, file in new)]
        # Gradio deletes old copies of what it knows of.
        self.takes.temp_files.update(each.file for each in made)
        return {
            self.message: theme.messages(done.record),
            **self.plan.show(done.record),
            self.takes: {
                "at": time.time_ns(),
                "takes": [card(each, bool(timed and timed(each))) for each in made],
                "kept": len(kept),
                "record": done.record,
            },
            self.made: made,
        }

    def change(self, number: int, **news: Any) -> Updates:
        """Return the update that changes the card of one take."""
        return {self.takes: {"at": time.time_ns(), "number": number, "change": news}}

    def fail(self, problem: Problem) -> Updates:
        """Return the updates that say what went wrong and what to try; takes of an earlier run stay."""
        return {self.message: theme.notice(tooltips.FAILED_TITLE, problem.message, problem.hint)}


def card(made: Made, timed: bool) -> dict[str, Any]:
    """Return what the page shows of a take, and the record from which its settings come back."""
    song, take, record = made.song(), made.take, made.record
    loudness = take.get("loudness_lufs")
    made_with = tooltips.song_facts(song["bpm"], song["key"], made.request.options.variation)
    kept = {name: record[name] for name in ("request", "plan", "seeds", "variation_seeds") if record.get(name)}
    peaks = page_widgets.peaks(made.file)["peaks"]
    waveform = np.frombuffer(base64.b64decode(peaks), np.int8)
    return {
        "id": made.file,
        "seed": int(take["seed"]),
        "title": textwrap.shorten(made.request.prompt, 60, placeholder=" ..."),
        "facts": [tooltips.clock(take["duration"]), *made_with],
        "levels": tooltips.take_levels(dict(take)),
        "warnings": list(take["warnings"]),
        "lufs": None if loudness is None else float(loudness),
        "seconds": float(take["duration"]),
        "peaks": peaks,
        "art": export.picture_for_page(waveform, {**record, "takes": [take]}),
        "path": made.file,
        "kind": made.kind,
        "source": _source(made.request),
        "can_be_timed": timed,
        "settings": {**kept, "takes": [{"seed": take["seed"]}]},
    }


def _source(request: SongRequest) -> dict[str, Any] | None:
    """Return the file that a take was made from, and at which second of the take it begins."""
    path = getattr(request, "source", None)
    return {"path": path, "offset": getattr(request, "before", 0.0)} if path else None


def result_panel(mode: str) -> ResultPanel:
    """Make the result panel of a tab, empty."""
    html(theme.section(tooltips.RESULT))
    message = html(elem_id=f"{mode}-message")
    plan = _plan_line(mode)
    takes = gr.HTML(
        html_template=theme.takes(mode),
        js_on_load=theme.script("takes"),
        apply_default_css=False,
        elem_id=f"{mode}-takes-made",
        elem_classes=["takes-made"],
    )
    html(theme.remark(tooltips.kept_for(*jobs.retention())), elem_id=f"{mode}-kept")
    return ResultPanel(message, plan, takes, gr.State([]), gr.State(None))


def _plan_line(mode: str) -> PlanLine:
    with gr.Column(elem_classes=["plan"]):
        line = html(elem_id=f"{mode}-plan-line")
        keep = gr.Button(
            tooltips.KEEP_PLAN, size="sm", min_width=0, scale=0, visible=False, elem_id=f"{mode}-keep-plan"
        )
        kept = html(elem_id=f"{mode}-plan-kept")
    return PlanLine(line, keep, kept)
