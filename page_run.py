"""A run on the page: its buttons and progress line, events turned into updates, and Cancel."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

import theme
import tooltips
from backend import GPU_CONCURRENCY, Backend
from events import Done, Draft, Event, Failed, Problem, Progress, StudioError
from page_form import AT_ONCE, QUIET, Form, Updates, html, updates_of
from params import Request

log = logging.getLogger("studio")

# The least time between two updates of the page: a fast songwriter would keep the browser busy.
DRAFT_SECONDS = 0.5
# Gradio searches the whole page at every update, and a small model makes many steps a second.
PROGRESS_SECONDS = 1.0

Asked = TypeVar("Asked", bound=Request)


@dataclass
class RunBar:
    """The buttons that start and cancel a run, and the line that says how it goes."""

    starters: list[gr.Button]  # only one runs at a time
    cancel: gr.Button
    line: gr.HTML
    # Hidden; Cancel ticks it in the browser, so that a run that ended early can say why.
    cancelled: gr.Checkbox
    # Names the wrong fields; None if there are no fields.
    problems: gr.HTML | None = None

    @property
    def go(self) -> gr.Button:
        return self.starters[0]

    @property
    def outputs(self) -> list[Component]:
        return [*self.starters, self.cancel, self.line, self.cancelled]

    def running(self, line: str) -> Updates:
        """Return the updates for the start of a run."""
        return {**self._switch(running=True), self.line: line, self.cancelled: False}

    def idle(self, line: str) -> Updates:
        """Return the updates for the end of a run."""
        return {**self._switch(running=False), self.line: line}

    def failed(self, problem: Problem) -> Updates:
        return self.idle(theme.line("failed", problem.text()))

    def _switch(self, running: bool) -> Updates:
        starters = updates_of(self.starters, interactive=not running)
        return {**starters, self.cancel: gr.update(interactive=running)}


def cancelled_box(name: str) -> gr.Checkbox:
    """Make the hidden box.

    Not inside a container that is hidden at first: showing that would show the box as well.
    """
    return gr.Checkbox(visible="hidden", elem_id=f"{name}-cancelled")


def progress_line(name: str) -> gr.HTML:
    return html(elem_id=f"{name}-progress", js_on_load=theme.script("progress"))


def run_bar(
    name: str,
    text: str,
    cancelled: gr.Checkbox,
    variant: Literal["primary", "secondary"] = "primary",
    cancel: str = tooltips.CANCEL,
) -> RunBar:
    line = progress_line(name)
    go = gr.Button(text, variant=variant, elem_id=f"{name}-go", scale=3, min_width=160)
    stop = gr.Button(
        cancel,
        variant="stop",
        elem_id=f"{name}-cancel",
        scale=1,
        min_width=96,
        interactive=False,
    )
    return RunBar([go], stop, line, cancelled)


def tab_run_bar(form: Form, cancel: str = tooltips.CANCEL) -> RunBar:
    """Make the run bar at the foot of a tab, with the line for wrong fields."""
    problems = html(elem_id=f"{form.mode}-problems")
    bar = run_bar(form.mode, tooltips.GO[form.mode], cancelled_box(form.mode), cancel=cancel)
    bar.problems = problems
    return bar


def connect_run(
    form: Form,
    bar: RunBar,
    make: Callable[..., Iterator[Updates]],
    outputs: Sequence[Any],
    fresh: Updates,
    *,
    go: gr.Button | None = None,
    cancelled: str = tooltips.CANCELLED,
) -> tuple[Dependency, Dependency]:
    """Let `go` check the fields, wait in the queue, and stream `make`; returns start and run.

    `outputs` are what `make` updates besides the bar, `fresh` the updates at the start. `go` is by
    default the bar's own button, and `cancelled` what the line says after Cancel.
    """
    go = go or bar.go

    def begin(*values: Any) -> Updates:
        return {**bar.running(theme.line("running", tooltips.QUEUED)), **fresh}

    # A wrong field ends at the validator, with a sentence beside it; this says so at the button and
    # unfolds the group.
    assert bar.problems is not None, form.mode
    go.click(form.point_out, form.inputs, [*form.folds, bar.problems], **AT_ONCE)
    checked = {"validator": form.validate, "concurrency_limit": None, **QUIET}
    begun = go.click(begin, form.inputs, [*bar.outputs, *fresh], **checked)
    # The song and the enabled button arrive a moment before the run ends; "once" would swallow a
    # click in between.
    running = {"trigger_mode": "multiple", **GPU_CONCURRENCY, **QUIET}
    run = begun.success(make, form.inputs, [*bar.outputs, *outputs], **running)
    connect_cancel(bar, begun, run, cancelled)
    return begun, run


def stream(
    studio: Backend,
    ask: Callable[[], Asked],
    bar: RunBar,
    done: Callable[[Asked, Done], Updates],
    failed: Callable[[Problem], Updates],
    draft: Callable[[Draft], Updates] = lambda draft: {},
) -> Iterator[Updates]:
    """Run the request that `ask` builds; `ask` raises StudioError if there is none."""
    # The first yield comes before any work: Gradio can only close a generator that has yielded.
    yield bar.running(theme.line("running", tooltips.STARTING))
    try:
        request = ask()
        with contextlib.closing(studio.stream(request)) as events:
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
    """Turn the events of a run into updates of the page.

    A note stays beside the progress until the next note.
    """
    shown: tuple[str, str] | None = None  # stage and note of the latest progress on the page
    note = ""
    shown_at = 0.0
    drafted_at = 0.0
    for event in events:
        now = time.monotonic()
        match event:
            case Progress() if drafted_at:
                pass  # the heartbeat between two tokens knows less than the draft
            case Progress():
                note = event.note or note
                if (event.stage, note) != shown or now - shown_at >= PROGRESS_SECONDS:
                    shown = (event.stage, note)
                    shown_at = now
                    yield {bar.line: theme.progress(event, note)}
            case Draft():
                if now - drafted_at >= DRAFT_SECONDS:
                    drafted_at = now
                    yield draft(event)
            case Done():
                yield done(event)
            case Failed(problem):
                yield failed(problem)


def connect_cancel(bar: RunBar, begin: Dependency, run: Dependency, cancelled: str) -> None:
    """Let Cancel close the run, and reset the buttons if it ends early for any reason.

    `begin` may be the run itself.
    """

    def stopped(asked: bool) -> Updates:
        return bar.idle(theme.line("stopped", cancelled if asked else tooltips.STOPPED))

    bar.cancel.click(None, None, bar.cancelled, js="() => true", cancels=[run], **QUIET)
    # Gradio calls this for an error and for a cancelled run alike, but not after a run that reached
    # its end.
    begin.failure(stopped, bar.cancelled, bar.outputs, **AT_ONCE)
    if run is not begin:
        run.failure(stopped, bar.cancelled, bar.outputs, **AT_ONCE)
