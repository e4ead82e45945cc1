"""Where a run and what comes of it are shown: the run bar with its button and its line, and the takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

import markup
import outputs
import theme
import tooltips
from events import Done, Problem
from form import Form, Updates, html
from limits import FORMATS, LIMITS
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
    others: list[gr.Button] = field(default_factory=list, kw_only=True)

    @property
    def starters(self) -> list[gr.Button]:
        """Return the buttons that start a run, of which there is one at a time; some are not beside the bar."""
        return [self.go, *self.others]

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


def problem_line(form: Form) -> gr.HTML:
    """Make the line at the button that names wrong fields."""
    return html(elem_id=f"{form.mode}-problems")


def cancelled_box(name: str) -> gr.Checkbox:
    """Make the hidden box of a run bar. Showing a container shows what is in it, so keep it out of those that come."""
    return gr.Checkbox(visible="hidden", elem_id=f"{name}-cancelled")


def run_bar(
    name: str, text: str, cancelled: gr.Checkbox, variant: str = "primary", cancel: str = tooltips.CANCEL
) -> RunBar:
    """Make a run bar; `text` and `cancel` are what its buttons say, `name` begins its element ids."""
    with gr.Row(elem_classes=["run-bar"]):
        go = gr.Button(text, variant=variant, elem_id=f"{name}-go", scale=3, min_width=160)
        stop = gr.Button(cancel, variant="stop", elem_id=f"{name}-cancel", scale=1, min_width=96, interactive=False)
    return RunBar(go, stop, progress_line(name), cancelled)


def progress_line(name: str) -> gr.HTML:
    """Make the line that says where a run is."""
    return html(elem_id=f"{name}-progress", js_on_load=theme.static("progress.js"))


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
class Take:
    """The place for one take: its facts, its player, and what can be done with it.

    `again` has the buttons that start a run ("retake", "more", "timed"), `uses` one for each tab that it may go to.
    """

    box: gr.Column
    facts: gr.HTML
    player: gr.Audio
    timed: gr.HTML
    lrc: gr.DownloadButton
    again: dict[str, gr.Button]
    format: gr.Dropdown
    download: gr.DownloadButton
    note: gr.HTML
    uses: dict[str, gr.Button]

    @property
    def outputs(self) -> list[Any]:
        """Return what `show` and what is done with a take update, but for the buttons that the run bar has."""
        parts = [self.box, self.facts, self.player, self.timed, self.lrc]
        return [*parts, self.format, self.download, self.note]

    def show(self, number: int, made: Made, several: bool, timed: bool) -> Updates:
        """Return the updates that show a take, one of `several`; `timed` tells whether its lyrics could be timed."""
        song = made.song()
        facts = tooltips.song_facts(song["bpm"], song["key"], made.request.options.variation)
        return {
            self.box: gr.update(visible=True),
            self.facts: markup.take(number, made.take, facts, several),
            self.player: made.file,
            self.timed: "",
            self.lrc: gr.update(visible=False),
            self.again["timed"]: gr.update(visible=timed, interactive=True),
            self.format: made.kind,
            **self.offer(made.file),
            self.note: "",
        }

    def offer(self, file: str) -> Updates:
        """Return the updates that let a file be downloaded."""
        kind = Path(file).suffix.removeprefix(".").upper()
        label = tooltips.DOWNLOAD_TAKE.format(format=kind)
        return {self.download: gr.update(value=file, label=label, interactive=True)}

    def hide(self) -> Updates:
        """Return the updates that empty the place."""
        return {self.box: gr.update(visible=False), self.facts: "", self.player: None, self.timed: ""}


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
        line = markup.plan(plan) if plan and not noted else ""
        return {self.line: line, self.keep: gr.update(visible=planned), self.kept: ""}


@dataclass
class ResultPanel:
    """Where takes appear: what to do first, messages, the plan, up to four takes, the folded record.

    `made` is what stands there as a list of `Made`; `asked` the button of a take that was pressed, and the take.
    """

    empty: gr.HTML
    message: gr.HTML
    plan: PlanLine
    level: gr.Checkbox
    takes: list[Take]
    fold: gr.Accordion
    record: gr.JSON
    made: gr.State
    asked: gr.State

    @property
    def outputs(self) -> list[Any]:
        """Return every component and container that a run may change."""
        parts = [part for take in self.takes for part in take.outputs]
        return [self.empty, self.message, *self.plan.outputs, self.level, *parts, self.fold, self.record, self.made]

    @property
    def again(self) -> dict[gr.Button, tuple[str, int]]:
        """Return the buttons of the takes that start a run, and what each stands for: its name and the take."""
        return {
            button: (name, number) for number, take in enumerate(self.takes, 1) for name, button in take.again.items()
        }

    def show(
        self, request: SongRequest, done: Done, kept: Sequence[Made] = (), timed: Callable[[Made], bool] | None = None
    ) -> Updates:
        """Return the updates that show a finished run, after the takes that are `kept`.

        `timed` tells whether the lyrics of a take could be timed.
        """
        new = zip(done.record["takes"], done.files, strict=True)
        made = [*kept, *(Made(request, done.record, take, file) for take, file in new)]
        updates: Updates = {
            self.empty: gr.update(visible=False),
            self.message: markup.messages(done.record),
            **self.plan.show(done.record),
            self.fold: gr.update(visible=True),
            self.record: done.record,
            self.level: gr.update(visible=len(made) > 1),
            self.made: made,
        }
        for number, place in enumerate(self.takes, 1):
            if number > len(made):
                updates |= place.hide()
                continue
            take = made[number - 1]
            updates |= place.show(number, take, several=len(made) > 1, timed=bool(timed and timed(take)))
        return updates

    def fail(self, problem: Problem) -> Updates:
        """Return the updates that say what went wrong and what to try; takes of an earlier run stay."""
        return {self.message: markup.notice(tooltips.FAILED_TITLE, problem.message, problem.hint)}


def result_panel(mode: str) -> ResultPanel:
    """Make the result panel of a tab, empty."""
    html(markup.section(tooltips.RESULT))
    empty = html(markup.empty(tooltips.EMPTY_RESULTS[mode]))
    message = html(elem_id=f"{mode}-message")
    plan = _plan_line(mode)
    level = gr.Checkbox(
        label=tooltips.LEVEL,
        info=tooltips.LEVEL_HELP,
        value=True,
        interactive=True,
        visible=False,
        elem_id=f"{mode}-level",
        elem_classes=["level"],
    )
    takes = [_take(mode, number) for number in range(1, MOST_TAKES + 1)]
    with gr.Accordion(tooltips.RECORD, open=False, visible=False, elem_id=f"{mode}-record-fold") as fold:
        record = gr.JSON(
            label=tooltips.RECORD_LABEL, show_label=False, elem_id=f"{mode}-record", elem_classes=["record"]
        )
    limits = outputs.keep()
    # The script of all players goes with it: Gradio runs it as soon as a tab with a result is drawn.
    kept, script = markup.remark(tooltips.kept_for(limits.days, limits.gb)), theme.static("player.js")
    html(kept, elem_id=f"{mode}-kept", js_on_load=script)
    return ResultPanel(empty, message, plan, level, takes, fold, record, gr.State([]), gr.State(None))


def _plan_line(mode: str) -> PlanLine:
    with gr.Column(elem_classes=["plan"]):
        line = html(elem_id=f"{mode}-plan-line")
        keep = gr.Button(
            tooltips.KEEP_PLAN, size="sm", min_width=0, scale=0, visible=False, elem_id=f"{mode}-keep-plan"
        )
        kept = html(elem_id=f"{mode}-plan-kept")
    return PlanLine(line, keep, kept)


def _take(mode: str, number: int) -> Take:
    with gr.Column(visible=False, elem_id=f"{mode}-take-{number}", elem_classes=["take"]) as box:
        facts = html()
        player = gr.Audio(
            label=tooltips.take_title(number),
            show_label=False,
            interactive=False,
            type="filepath",
            buttons=[],
            waveform_options=theme.WAVEFORM,
        )
        timed = html(elem_id=f"{mode}-timed-{number}")
        with gr.Row(elem_classes=["uses"]):
            again = {
                name: gr.Button(label, size="sm", min_width=96, elem_id=f"{mode}-take-{number}-{name}")
                for name, label in tooltips.AGAIN.items()
            }
        with gr.Row(elem_classes=["save"]):
            format = gr.Dropdown(
                [(name.upper(), name) for name in FORMATS],
                value="wav",
                label=tooltips.TAKE_FORMAT.format(number=number),
                show_label=False,
                container=False,
                filterable=False,
                min_width=120,
                elem_id=f"{mode}-take-{number}-format",
                elem_classes=["format"],
            )
            download = gr.DownloadButton(tooltips.DOWNLOAD_TAKE.format(format=""), size="md", min_width=120)
        lrc = gr.DownloadButton(tooltips.LRC, size="md", visible=False, elem_classes=["lrc"])
        note = html(elem_id=f"{mode}-take-{number}-note", js_on_load="element.setAttribute('aria-live', 'polite')")
        with gr.Row(elem_classes=["uses"]):
            uses = {name: gr.Button(label, size="sm", min_width=96) for name, label in tooltips.USE_IN.items()}
    return Take(box, facts, player, timed, lrc, again, format, download, note, uses)
