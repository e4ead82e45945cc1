"""A run on the page: its buttons and progress line, its start, and its result.

A click only starts a run, which belongs to the studio (runs.py). static/runs.js keeps its id in the
browser, asks for its progress, and fetches its end with one more event, on this visit or a later
one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

import api_runs
import page_form
import page_widgets
import page_words
import runs_former
import theme
import tooltips
from backend import Backend
from events import Done, Event, Failed, Problem, Progress, StudioError
from limits import MOST_WAITING_OF_A_PAGE
from page_form import AT_ONCE, UNSEEN, Form, Updates, html, updates_of
from params import AUDIO_FIELDS, Request
from runs import CANCELLED, CUT_OFF, NO_RUN, NO_TAKE, Cancelled, Runs, runs_of

log = logging.getLogger("studio")

# Between two updates of a download: Gradio searches the whole page at every update.
PROGRESS_SECONDS = 1.0
# The first input of a start is the browser's secret name.
WITH_OWNER = "(_, ...values) => [studio.owner(), ...values]"
_UNEXPECTED = Problem("internal", tooltips.UNEXPECTED, hint=tooltips.UNEXPECTED_HINT)


@dataclass
class Bar:
    """The buttons that start and cancel something, and the line with its progress."""

    starters: list[gr.Button]
    cancel: gr.Button
    line: gr.HTML
    name: str

    @property
    def go(self) -> gr.Button:
        return self.starters[0]


@dataclass
class RunBar(Bar):
    """The bar of runs, which belong to the studio."""

    problems: gr.HTML  # names the wrong fields
    runs: gr.HTML  # hidden; static/runs.js follows the bar's runs with it
    lasts: bool = True  # whether a starter can be pressed again while a run is under way
    more_cancels: list[gr.Button] = field(default_factory=list)  # beside `cancel`

    @property
    def outputs(self) -> list[Component]:
        return [self.line, self.runs]

    @property
    def switches(self) -> list[Component]:
        """Return the buttons that change with the first and the last run; those that cancel come first."""
        if self.lasts:
            return [self.cancel]
        return [self.cancel, *self.more_cancels, *self.starters]

    def idle(self, line: str) -> Updates:
        """Return the updates for the end of a run."""
        return {self.line: line}

    def failed(self, problem: Problem) -> Updates:
        return self.idle(theme.line("failed", problem.text()))


@dataclass
class DownloadBar(Bar):
    """The bar of a download, which runs only while its page is open."""

    # Hidden. Cancel ticks it in the browser, so that a download that ended early can say why.
    cancelled: gr.Checkbox
    is_running: gr.State

    @property
    def outputs(self) -> list[Component]:
        return [*self.starters, self.cancel, self.line, self.cancelled, self.is_running]

    def running(self, line: str) -> Updates:
        """Return the updates for the start of a download."""
        return {**self._switch(running=True), self.line: line, self.cancelled: False}

    def idle(self, line: str) -> Updates:
        """Return the updates for its end."""
        return {**self._switch(running=False), self.line: line}

    def _switch(self, running: bool) -> Updates:
        starters = updates_of(self.starters, interactive=not running)
        return {
            **starters,
            self.cancel: gr.update(interactive=running),
            self.is_running: running,
        }


def progress_line(name: str) -> gr.HTML:
    return html(elem_id=f"{name}-progress", js_on_load=theme.script("progress"))


def followed_runs(name: str, alone: int = 0, cancels: int = 1) -> gr.HTML:
    """Make the hidden component with which static/runs.js follows the runs of a bar.

    `alone` buttons that start a run wait until the run has ended; 0 if several may be queued. As
    many as `cancels` end it.
    Not inside a container that is hidden at first: showing that would show this as well.
    """
    texts = {
        "lost": tooltips.NO_CONNECTION,
        "again": tooltips.MAKE_AGAIN,
        "alone": alone,
        "cancels": cancels,
    }
    return page_widgets.frame(
        "follow", {"texts": json.dumps(texts)}, visible="hidden", elem_id=f"{name}-runs"
    )


def cancelled_box(name: str) -> gr.Checkbox:
    """Make the hidden box.

    Not inside a container that is hidden at first: showing that would show the box as well.
    """
    return gr.Checkbox(visible="hidden", elem_id=f"{name}-cancelled")


def download_bar(name: str, text: str, cancelled: gr.Checkbox) -> DownloadBar:
    line = progress_line(name)
    go, cancel = _buttons(name, text, tooltips.CANCEL, "secondary")
    return DownloadBar([go], cancel, line, name, cancelled, gr.State(False))


def tab_run_bar(
    form: Form, cancel: str = tooltips.CANCEL, alone: int = 0, cancels: int = 1
) -> RunBar:
    """Make the run bar at the foot of a tab, with the line for wrong fields.

    `alone` and `cancels` count its buttons and those elsewhere, as in `followed_runs`.
    """
    name = form.mode
    problems = html(elem_id=f"{name}-problems")
    runs = followed_runs(name, alone, cancels)
    line = progress_line(name)
    go, stop = _buttons(name, tooltips.GO[name], cancel, "primary")
    return RunBar([go], stop, line, name, problems, runs, lasts=not alone)


def _buttons(
    name: str, text: str, cancel: str, variant: Literal["primary", "secondary"]
) -> tuple[gr.Button, gr.Button]:
    go = gr.Button(
        text, variant=variant, elem_id=f"{name}-go", elem_classes="go", scale=3, min_width=160
    )
    stop = gr.Button(
        cancel, variant="stop", elem_id=f"{name}-cancel", scale=1, min_width=96, interactive=False
    )
    return go, stop


@dataclass(frozen=True)
class Ended:
    """A run that has made something, for the page that fetches it."""

    run: str
    request: Any  # a request of the mode that the bar asks for
    done: Done
    seconds: float  # how long it ran
    tag: Any  # what the page gave the run at its start; None if that was in an earlier process
    numbers: tuple[int, ...]  # of the takes, from 1; some that an earlier process made may be gone
    written: bool = False  # whether its words were written with it


def connect_run(
    form: Form,
    bar: RunBar,
    ask: Callable[..., Request],
    failed: Callable[[Problem], Updates],
    outputs: Sequence[Any],
    fresh: Updates,
    *,
    go: gr.Button | None = None,
    tag: Any = None,
) -> Dependency:
    """Let `go` check the fields and start the run that `ask` builds from them; returns the starting event.

    `ask` raises StudioError if it can build none. `failed` returns the updates that say why nothing
    was started; they are of `outputs` or the bar. `fresh` has the updates at the start, and the run
    keeps `tag`. `go` is by default the bar's own button.
    """
    go = go or bar.go

    def begin(owner: str, *values: Any) -> Updates:
        return {**fresh, **start(bar, form.studio, owner, lambda: ask(*values), failed, tag)}

    def check(owner: str, *values: Any) -> list[dict[str, Any]]:
        verdicts = form.validate(*values)
        if not isinstance(verdicts, list):
            verdicts = [verdicts]
        # Without their sentences: Gradio would show them in a place and for a time of its own.
        silent = [gr.validate(verdict["is_valid"], "") for verdict in verdicts]
        return [gr.validate(True, ""), *silent]

    # The validator stops at a wrong field; this says what is wrong, at the field and at the button
    # (static/studio.js), and unfolds the field's group.
    go.click(form.point_out, form.inputs, [*form.folds, bar.problems], **AT_ONCE)
    started = go.click(
        begin,
        [bar.runs, *form.inputs],
        list(dict.fromkeys([*bar.outputs, *fresh, *outputs])),
        js=WITH_OWNER,
        validator=check,
        concurrency_limit=None,
        trigger_mode="once",  # a double click is one song
        **UNSEEN,
    )
    # Gradio itself may refuse a call, or lose it.
    started.failure(lambda: theme.line("stopped", tooltips.STOPPED), outputs=bar.line, **AT_ONCE)
    return started


def start(
    bar: RunBar,
    studio: Backend,
    owner: str,
    ask: Callable[[], Request],
    failed: Callable[[Problem], Updates],
    tag: Any = None,
) -> Updates:
    """Start the run that `ask` builds; static/runs.js then follows it by its id."""
    runs = runs_of(studio)
    try:
        run = runs.start(ask(), f"page {str(owner)[:64]}", MOST_WAITING_OF_A_PAGE, tag)
        facts = api_runs.facts_of(runs, run.id)
    except StudioError as error:
        return failed(error.problem)
    except Exception:
        log.exception("a run could not be started")
        return failed(_UNEXPECTED)
    ticket = {"run": run.id, "title": run.title, "at": time.time_ns()}
    tab = bar.name.split("-")[0]
    if run.request.mode == tab:  # it can be made again from the fields of the tab
        ticket["settings"] = {"request": _without_files(run.request)}
    return {bar.line: api_runs.line_of(facts), bar.runs: ticket}


def _without_files(request: Request) -> dict[str, Any]:
    return request.model_dump(mode="json", exclude={*AUDIO_FIELDS, "words"})


def connect_end(
    bar: RunBar,
    studio: Backend,
    done: Callable[..., Updates],
    failed: Callable[..., Updates],
    outputs: Sequence[Any],
    inputs: Sequence[Any] = (),
    cancelled: str = tooltips.CANCELLED,
    restored: Callable[..., Updates] | None = None,
) -> Dependency:
    """Show the result of a run once static/runs.js has seen its end; returns that event.

    `done` gets an `Ended`, `failed` a problem and the run's tag or None, and both the values of
    `inputs`. Both return updates of `outputs` or the bar, as does `restored` for the request of a
    run that failed or was cancelled, and whether it was cancelled.
    """
    runs = runs_of(studio)

    def fetch(asked: gr.EventData, *values: Any) -> Updates:
        run_id = str(asked.run)
        run = runs.find(run_id)
        made = ended_of(runs, run_id)
        if made:
            shown = show_made(made, values)
            if asked.meanwhile:
                gr.Success(tooltips.FINISHED_MEANWHILE)
        elif run is None:
            shown = failed(_lost(runs, run_id), None, *values)
        elif isinstance(run.outcome, Cancelled):
            why = run.outcome.problem
            stopped = cancelled if why.code == CANCELLED.code else why.text()
            shown = {bar.line: theme.line("stopped", stopped)}
            if restored:
                shown |= restored(run.request, is_cancelled=True)
        else:
            shown = failed(run.problem or NO_RUN, run.tag, *values)
            if restored:
                shown |= restored(run.request, is_cancelled=False)
        # static/runs.js offers to make it again.
        is_lost = run is None and made is None
        return {**shown, bar.runs: {"seen": run_id, "lost": is_lost, "at": time.time_ns()}}

    def show_made(made: Ended, values: Sequence[Any]) -> Updates:
        try:
            return done(made, *values)
        except StudioError as error:  # the files are gone
            return failed(error.problem, made.tag, *values)
        except Exception:  # such as a record of an earlier process that somebody has changed
            log.exception("the end of a run could not be shown")
            return failed(_UNEXPECTED, made.tag, *values)

    _connect_cancel(bar)
    shown_in = list(dict.fromkeys([*bar.outputs, *outputs]))
    # In Gradio's queue, because only queued events can show a toast.
    return bar.runs.submit(
        fetch, list(inputs), shown_in, concurrency_limit=None, trigger_mode="multiple", **UNSEEN
    )


def _connect_cancel(bar: RunBar) -> None:
    """Let Cancel end the bar's run, and the bar's buttons follow what is under way."""
    for cancel in (bar.cancel, *bar.more_cancels):
        cancel.click(None, js=f"() => void studio.cancelRun('{bar.name}')", **AT_ONCE)
    # Only the browser knows how many runs of a bar are under way.
    bar.runs.select(None, None, bar.switches, js=f"() => studio.switches('{bar.name}')", **AT_ONCE)


def ended_of(runs: Runs, run_id: str) -> Ended | None:
    """Return what a run has made, also one that only its files tell of; None if that is nothing."""
    run = runs.find(run_id)
    if run and isinstance(run.outcome, Done):
        numbers = tuple(range(1, len(run.outcome.files) + 1))
        request = page_words.as_made(run.request, run.outcome.record)
        written = request is not run.request
        return Ended(run.id, request, run.outcome, run.seconds, run.tag, numbers, written)
    former = None if run else runs_former.song_of(runs, run_id)
    if former:
        return Ended(run_id, former.request, former.done, 0.0, None, former.numbers)
    return None


def _lost(runs: Runs, run_id: str) -> Problem:
    """Return what to tell of a run that this process does not hold, and that left nothing to show."""
    try:
        facts = runs.facts(run_id)
    except StudioError:
        return Problem(NO_RUN.code, tooltips.FORGOTTEN, hint=tooltips.CUT_OFF_HINT)
    if facts["state"] == "cut_off":
        return Problem(CUT_OFF.code, tooltips.CUT_OFF, hint=tooltips.CUT_OFF_HINT)
    if facts["problem"]:
        return Problem(**facts["problem"])
    if runs.kept(run_id):
        return Problem("kept", tooltips.MADE_BEFORE, hint=tooltips.MADE_BEFORE_HINT)
    if facts["takes"]:
        return NO_TAKE
    return Problem("not_kept", tooltips.NOT_KEPT, hint=tooltips.CUT_OFF_HINT)


def connect_again(
    form: Form, *asked: Callable[..., Dependency], remark: gr.HTML | None = None
) -> None:
    """Let an earlier take, or a run that was cut off, be made again; the events `asked` bring its settings.

    The browser keeps no files; the form's check asks for them. The `remark` says why the song will
    differ.
    """
    defaults = form.defaults
    outputs = [*form.settings]
    if remark is not None:
        outputs.append(remark)

    def fill(pressed: gr.EventData) -> Updates:
        found = page_form.settings(form.mode, pressed.settings)
        filled = form.show({**defaults, **found.values})
        if remark is not None:
            filled[remark] = theme.answer(tooltips.OLD_PLAN) if found.old_plan else ""
        return filled

    for event in asked:
        filled = event(fill, None, outputs, **AT_ONCE)
        filled.success(
            None, js=f"() => document.getElementById('{form.mode}-go').click()", **AT_ONCE
        )


def connect_download(
    bar: DownloadBar,
    fetch: Callable[[str], Generator[Event, None, None]],
    done: Callable[[str], str],
    wanted: gr.State,
) -> Dependency:
    """Let the bar's button fetch what is `wanted` and Cancel end it; returns the run.

    `done` returns the line at its end.
    """

    def make(name: str) -> Iterator[Updates]:
        yield bar.running(theme.line("running", tooltips.DOWNLOAD_STARTING))
        shown_at = 0.0
        with contextlib.closing(fetch(name)) as events:
            for event in events:
                now = time.monotonic()
                if isinstance(event, Failed):
                    yield bar.idle(theme.line("failed", event.problem.text()))
                elif isinstance(event, Done):
                    yield bar.idle(theme.line("done", done(name)))
                elif isinstance(event, Progress) and now - shown_at >= PROGRESS_SECONDS:
                    shown_at = now
                    yield {bar.line: theme.progress(event, event.note)}

    def stopped(cancelled: bool) -> Updates:
        sentence = tooltips.DOWNLOAD_CANCELLED if cancelled else tooltips.STOPPED
        return bar.idle(theme.line("stopped", sentence))

    run = bar.go.click(
        make, wanted, bar.outputs, concurrency_id="download", concurrency_limit=1, **UNSEEN
    )
    bar.cancel.click(None, None, bar.cancelled, js="() => true", cancels=[run], **UNSEEN)
    # Gradio calls this for errors and for cancelled runs, but not for a run that reached its end.
    run.failure(stopped, bar.cancelled, bar.outputs, **AT_ONCE)
    return run
