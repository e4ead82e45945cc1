"""A run on the page: what the backend says while it works becomes updates, and Cancel ends it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

import markup
import tooltips
from backend import GPU_CONCURRENCY, get_backend
from events import Done, Draft, Event, Failed, Problem, Progress, StudioError
from form import AT_ONCE, QUIET, Form, Updates
from limits import INSTRUMENTAL
from params import Request, SongRequest
from result import Made, ResultPanel, RunBar

log = logging.getLogger("studio")

# Between two drafts, and between two steps, that the page shows.
DRAFT_SECONDS = 0.5
PROGRESS_SECONDS = 1.0
# What sings all of its lyrics; an extension sings them in its new part, a layer in one of its tracks.
WHOLE_SONG = ("generate", "cover", "repaint", "morph")


def connect_song(form: Form, bar: RunBar, problems: gr.HTML, result: ResultPanel) -> None:
    """Let the button make songs; Cancel and errors leave the form as it was."""

    def failed(problem: Problem) -> Updates:
        return {
            **bar.idle(markup.line("failed", tooltips.FAILED_TITLE)),
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
        return {**bar.running(markup.line("running", tooltips.QUEUED)), **fresh}

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
    yield bar.running(markup.line("running", tooltips.STARTING))
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
                    yield {bar.line: markup.progress(event, note)}
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
        return bar.idle(markup.line("stopped", cancelled if asked else tooltips.STOPPED))

    bar.cancel.click(None, None, bar.cancelled, js="() => true", cancels=[run], **QUIET)
    # Gradio calls this for an error and for a cancelled run alike, but not after a run that reached its end.
    for event in {id(begin): begin, id(run): run}.values():
        event.failure(stopped, bar.cancelled, bar.outputs, **AT_ONCE)


def made_line(request: SongRequest, done: Done) -> str:
    record = done.record
    sentence = tooltips.done_sentence(len(record["takes"]), request.takes, sum(record["seconds"].values()))
    return markup.line("done", sentence)


def can_be_timed(made: Made) -> bool:
    """Tell whether the lyrics of a take can be timed: they are those of the whole song, and the checkpoint can."""
    request = made.request
    whole = getattr(request, "action", request.mode) in WHOLE_SONG
    return whole and request.sung_lyrics() != INSTRUMENTAL and get_backend().status()["timed_lyrics"]["available"]


def unexpected() -> Problem:
    """Return the problem for an error that nobody foresaw; the log has it in full."""
    return Problem("internal", tooltips.UNEXPECTED, hint=tooltips.UNEXPECTED_HINT)
