"""What can be done with a take on the page: again, more like it, when its lines are sung, another format.

All of it starts from the request and the record that the take was made with, whatever the form holds by now. An earlier
take is known to the visitor's browser alone.
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
import page_form
import theme
import tooltips
from backend import GPU_CONCURRENCY
from events import Done, Problem, StudioError
from limits import FORMATS, MORE_LIKE_THIS
from page_form import AT_ONCE, QUIET, Form, Updates
from page_results import Made, ResultPanel, RunBar
from page_runs import can_be_timed, connect_cancel, made_line, stream_of
from params import AUDIO_FIELDS, AlignRequest, Request, SongRequest, parse_request

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
    for name in AUDIO_FIELDS:
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
        samples = audio.read_wav(made.file)
        export.encode(samples, path, kind)
        if record:
            export.write_tags(
                path, path.stem, record, export.picture_for_tags(samples, {**made.record, "takes": [made.take]})
            )

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
    connect_again(form, result)

    def begin(pressed: gr.EventData) -> Updates:
        waiting = bar.running(theme.line("running", tooltips.QUEUED))
        return {**waiting, result.message: "", result.asked: (str(pressed.name), int(pressed.number))}

    def make(asked: tuple[str, int], made: list[Made]) -> Iterator[Updates]:
        name, number = asked
        run = _Run(bar, result, made, number)
        yield from {"retake": run.retake, "more": run.more, "timed": run.timed}[name]()

    began = result.takes.submit(
        begin, outputs=[*bar.outputs, result.message, result.asked], concurrency_limit=None, **QUIET
    )
    outputs = [*bar.outputs, *result.outputs]
    run = began.success(make, [result.asked, result.made], outputs, **GPU_CONCURRENCY, **QUIET)
    connect_cancel(bar, began, run, tooltips.CANCELLED)
    form.runs.append(run)


class _Run:
    """What pressing a button of take `number` of `made` runs: each method streams updates."""

    def __init__(self, bar: RunBar, result: ResultPanel, made: list[Made], number: int):
        self.bar, self.result, self.made, self.number = bar, result, made, number

    def retake(self) -> Iterator[Updates]:
        """Make new takes in place of these."""

        def done(request: SongRequest, done: Done) -> Updates:
            return self._shown(request, done, [], tooltips.RETAKEN)

        return stream_of(lambda: self._song(retake), self.bar, done, self._failed)

    def more(self) -> Iterator[Updates]:
        """Make one more beside the chosen take."""

        def done(request: SongRequest, done: Done) -> Updates:
            said = tooltips.VARIED.format(percent=100 * request.options.variation)
            return self._shown(request, done, [self.made[self.number - 1]], said)

        return stream_of(lambda: self._song(more), self.bar, done, self._failed)

    def timed(self) -> Iterator[Updates]:
        """Time the lines of the take."""

        def failed(problem: Problem) -> Updates:
            said = self.result.change(self.number, note=problem.text(), wrong=True)
            return {**self.bar.idle(theme.line("failed", problem.message)), **said}

        def done(request: Request, done: Done) -> Updates:
            record, made = done.record, self.made[self.number - 1]
            if not record["lines"]:
                return failed(Problem("unsung", tooltips.NOTHING_SUNG))
            file = cached(f"{Path(made.file).stem}.lrc", lambda path: path.write_text(record["lrc"], encoding="utf-8"))
            self.result.takes.temp_files.add(file)
            lines = [{name: line[name] for name in ("start", "end", "text")} for line in record["lines"]]
            news = {"lines": lines, "lrc": file, "alignment": tooltips.alignment(record["score"]), "note": ""}
            return {
                **self.bar.idle(theme.line("done", tooltips.timed(len(lines)))),
                **self.result.change(self.number, **news),
            }

        return stream_of(lambda: timing(_chosen(self.made, self.number)), self.bar, done, failed)

    def _song(self, ask: Callable[[Made], SongRequest]) -> SongRequest:
        request = ask(_chosen(self.made, self.number))
        check_uploads(request)
        return request

    def _shown(self, request: SongRequest, done: Done, kept: list[Made], said: str) -> Updates:
        shown = self.result.show(request, done, kept, can_be_timed)
        message = theme.said(said) + shown[self.result.message]
        return {**self.bar.idle(made_line(request, done)), **shown, self.result.message: message}

    def _failed(self, problem: Problem) -> Updates:
        return {**self.bar.idle(theme.line("failed", tooltips.FAILED_TITLE)), **self.result.fail(problem)}


def connect_formats(result: ResultPanel) -> None:
    """Let a format that is chosen become the download's."""

    def convert(chosen: gr.EventData, made: list[Made]) -> Updates:
        number, kind = int(chosen.number), chosen.kind
        if kind not in FORMATS:
            return result.change(number, note="")
        try:
            one = _chosen(made, number)
            file = converted(one, kind)
        except (StudioError, audio.AudioError) as error:
            return result.change(number, note=str(error), wrong=True)
        result.takes.temp_files.add(file)
        lossy = one.kind in LOSSY and kind != one.kind
        said = tooltips.FROM_LOSSY.format(source=one.kind.upper()) if lossy else ""
        return result.change(number, path=file, kind=kind, note=said, wrong=False)

    # Encoding needs no GPU, and does not wait for those who do.
    result.takes.input(convert, result.made, result.takes, concurrency_id="encoding", concurrency_limit=2, **QUIET)


def connect_again(form: Form, result: ResultPanel) -> None:
    """Let an earlier take be made again: its settings, kept in the browser, fill the form, and the button is pressed.

    A file that it was made from is asked for by the check of the form.
    """
    defaults = {name: field.value for name, field in form.fields.items() if not isinstance(field, gr.Audio)}

    def fill(pressed: gr.EventData) -> Updates:
        return form.show({**defaults, **page_form.settings(form.mode, pressed.settings).values})

    filled = result.takes.retry(fill, None, form.settings, **AT_ONCE)
    filled.success(None, js=f"() => document.getElementById('{form.mode}-go').click()", **AT_ONCE)
