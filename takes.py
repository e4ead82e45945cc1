"""What can be done with a take on the page: again, more like it, when its lines are sung, another format.

All of it starts from the request and the record that the take was made with, whatever the form holds by now.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio import utils as gradio_utils

import audio
import export
import markup
import tooltips
import uploads
from backend import GPU_CONCURRENCY
from events import Done, Problem, StudioError
from form import QUIET, Form, Updates
from limits import FORMATS, MORE_LIKE_THIS
from params import AlignRequest, Request, SongRequest, parse_request
from result import Made, ResultPanel, RunBar, Take
from runs import can_be_timed, connect_cancel, made_line, stream_of

LOSSY = ("mp3", "ogg")

# --- requests -----------------------------------------------------------------------------------------------------


def retake(made: Made) -> SongRequest:
    """Return the request with a new seed."""
    return made.request.model_copy(update={"seed": -1})


def more(made: Made) -> SongRequest:
    """Return the request for one take whose noise is this take's, turned a part of the way to another (reference 2.7).

    The plan, which others of its run were made with as well, stays. How far it turns is the request's own Variation,
    where it has one.
    """
    options = made.request.options
    changes: dict[str, Any] = {"variation": options.variation or MORE_LIKE_THIS, "variation_seed": -1}
    plan = made.record.get("plan") or {}
    if plan.get("used"):
        changes["plan_seed"] = plan["seed"]
    varied = options.model_copy(update=changes)
    return made.request.model_copy(update={"seed": made.take["seed"], "takes": 1, "options": varied})


def timing(made: Made) -> AlignRequest:
    """Return the request that times the lines of a take."""
    words = {**made.song(), "lyrics": made.request.lyrics, "instrumental": made.request.instrumental}
    ran = {
        "source": made.file,
        "seed": made.take["seed"],
        "steps": made.record.get("sampling", {}).get("steps"),
        "planned": bool((made.record.get("plan") or {}).get("used")),
    }
    return parse_request("align", {**words, **ran})


def check_uploads(request: SongRequest) -> None:
    """Raise StudioError where a file that the visitor uploaded for the request is gone."""
    for name in uploads.FIELDS:
        path = getattr(request, name, None)
        if path and not Path(path).is_file():
            message = tooltips.UPLOAD_GONE.format(label=tooltips.LABELS[name])
            raise StudioError("upload_gone", message, name, tooltips.UPLOAD_GONE_HINT)


def _chosen(made: Sequence[Made], number: int) -> Made:
    """Return take `number`; raises StudioError where it, or its file, is gone."""
    if number > len(made) or not Path(made[number - 1].file).is_file():
        raise StudioError("take_gone", tooltips.TAKE_GONE)
    return made[number - 1]


# --- files --------------------------------------------------------------------------------------------------------


def converted(made: Made, kind: str) -> str:
    """Return the take's file in another format with the same tags, as a copy in Gradio's cache."""
    if kind == made.kind:
        return made.file
    record = export.read_record(made.file)

    def write(path: Path) -> None:
        export.encode(audio.read_wav(made.file), path, kind)
        if record:
            export.write_tags(path, title=path.stem, record=record)

    return cached(f"{Path(made.file).stem}.{kind}", write)


def cached(name: str, write: Callable[[Path], None]) -> str:
    """Return the path of a file in Gradio's cache, from which it can be downloaded, after `write` has written it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write(path)
        return processing_utils.save_file_to_cache(path, cache_dir=gradio_utils.get_upload_folder())


# --- events -------------------------------------------------------------------------------------------------------


def connect_takes(form: Form, bar: RunBar, result: ResultPanel) -> None:
    """Let the buttons of the takes work; those that start a run share the tab's run bar with its own button."""
    connect_formats(result)
    buttons = result.again
    # By element id: once a component was updated, Gradio hands out another object in its place.
    meant = {button.elem_id: what for button, what in buttons.items()}

    def begin(pressed: gr.EventData) -> Updates:
        waiting = bar.running(markup.line("running", tooltips.QUEUED))
        return {**waiting, result.message: "", result.asked: meant[pressed.target.elem_id]}

    def make(asked: tuple[str, int], made: list[Made]) -> Iterator[Updates]:
        name, number = asked
        run = _Run(bar, result, made, number)
        yield from stream_of(*{"retake": run.retake, "more": run.more, "timed": run.timed}[name]())

    began = gr.on(
        [button.click for button in buttons],
        begin,
        outputs=[*bar.outputs, result.message, result.asked],
        concurrency_limit=None,
        **QUIET,
    )
    outputs = [*bar.outputs, *result.outputs]
    run = began.success(make, [result.asked, result.made], outputs, **GPU_CONCURRENCY, **QUIET)
    connect_cancel(bar, began, run, tooltips.CANCELLED)
    form.runs.append(run)


class _Run:
    """What pressing a button of take `number` of `made` runs: each method returns the arguments of `stream_of`."""

    def __init__(self, bar: RunBar, result: ResultPanel, made: list[Made], number: int):
        self.bar, self.result, self.made, self.number = bar, result, made, number
        self.place: Take = result.takes[number - 1]

    def retake(self) -> tuple[Any, ...]:
        """Make new takes in place of these."""

        def done(request: SongRequest, done: Done) -> Updates:
            return self._shown(request, done, [], tooltips.RETAKEN)

        return lambda: self._song(retake), self.bar, done, self._failed

    def more(self) -> tuple[Any, ...]:
        """Make one more beside the chosen take."""

        def done(request: SongRequest, done: Done) -> Updates:
            said = tooltips.VARIED.format(amount=request.options.variation)
            return self._shown(request, done, [self.made[self.number - 1]], said)

        return lambda: self._song(more), self.bar, done, self._failed

    def timed(self) -> tuple[Any, ...]:
        """Time the lines of the take."""

        def failed(problem: Problem) -> Updates:
            said = markup.notice("", problem.message, problem.hint)
            return {**self.bar.idle(markup.line("failed", problem.message)), self.place.note: said}

        def done(request: Request, done: Done) -> Updates:
            record, made = done.record, self.made[self.number - 1]
            if not record["lines"]:
                return failed(Problem("unsung", tooltips.NOTHING_SUNG))
            file = cached(f"{Path(made.file).stem}.lrc", lambda path: path.write_text(record["lrc"], encoding="utf-8"))
            return {
                **self.bar.idle(markup.line("done", tooltips.timed(len(record["lines"])))),
                self.place.timed: markup.timed(self.number, record["lines"], record["score"]),
                self.place.lrc: gr.update(value=file, visible=True),
                self.place.note: "",
            }

        return lambda: timing(_chosen(self.made, self.number)), self.bar, done, failed

    def _song(self, ask: Callable[[Made], SongRequest]) -> SongRequest:
        request = ask(_chosen(self.made, self.number))
        check_uploads(request)
        return request

    def _shown(self, request: SongRequest, done: Done, kept: list[Made], said: str) -> Updates:
        shown = self.result.show(request, done, kept, can_be_timed)
        message = markup.said(said) + shown[self.result.message]
        return {**self.bar.idle(made_line(request, done)), **shown, self.result.message: message}

    def _failed(self, problem: Problem) -> Updates:
        return {**self.bar.idle(markup.line("failed", tooltips.FAILED_TITLE)), **self.result.fail(problem)}


def connect_formats(result: ResultPanel) -> None:
    """Let a format that is chosen become the download's."""
    places = {take.format.elem_id: take for take in result.takes}

    def convert(chosen: gr.EventData, made: list[Made], *kinds: str) -> Iterator[Updates]:
        place = places[chosen.target.elem_id]
        number = result.takes.index(place) + 1
        kind = kinds[number - 1]
        if kind not in FORMATS:
            return
        preparing = tooltips.PREPARING.format(format=kind.upper())
        yield {place.download: gr.update(label=preparing, interactive=False), place.note: ""}
        try:
            one = _chosen(made, number)
            file = converted(one, kind)
        except (StudioError, audio.AudioError) as error:
            label = tooltips.DOWNLOAD_TAKE.format(format=kind.upper())
            yield {place.download: gr.update(label=label), place.note: markup.notice("", str(error))}
            return
        lossy = one.kind in LOSSY and kind != one.kind
        said = markup.said(tooltips.FROM_LOSSY.format(source=one.kind.upper())) if lossy else ""
        yield {**place.offer(file), place.note: said}

    outputs = [part for take in result.takes for part in (take.download, take.note)]
    formats = [take.format for take in result.takes]
    # Encoding needs no GPU, and does not wait for those who do.
    gr.on(
        [format.input for format in formats],
        convert,
        [result.made, *formats],
        outputs,
        concurrency_id="encoding",
        concurrency_limit=2,
        **QUIET,
    )
