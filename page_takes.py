"""Takes on the page: how a run makes them appear, and what their buttons do.

static/takes.js draws them. Buttons start from the request and record of their take, whatever the form holds by now.
"""

from __future__ import annotations

import base64
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio import processing_utils
from gradio import utils as gradio_utils

import audio
import audio_export
import jobs
import page_form
import page_widgets
import theme
import tooltips
from backend import GPU_CONCURRENCY, get_backend
from events import Done, Problem, StudioError
from limits import FORMATS, INSTRUMENTAL, MORE_LIKE_THIS
from page_form import AT_ONCE, QUIET, Form, Updates, html
from page_run import RunBar, connect_cancel, connect_run, stream_of
from params import AlignRequest, Request, SongRequest, parse_request

LOSSY = ("mp3", "ogg")
# The actions that sing all of their lyrics; an extension sings them in its new part, a layer in one of its tracks.
WHOLE_SONG = ("generate", "cover", "repaint", "morph")


@dataclass(frozen=True)
class Made:
    """A take on the page: its request, uploads included, the record of its run, its own entry in that, its file."""

    request: SongRequest
    record: Mapping[str, Any]
    take: Mapping[str, Any]
    file: str

    @property
    def plan(self) -> Mapping[str, Any]:
        plan = self.record.get("plan") or {}
        return plan if plan.get("used") else {}

    def song(self) -> dict[str, Any]:
        """Return what the song was made with: the plan's values, or the visitor's own if there was no plan."""
        own = {name: getattr(self.request, name) for name in ("prompt", "bpm", "key", "time_signature", "language")}
        planned = {name: self.plan[name] for name in own if name in self.plan}
        return {**own, **planned, "prompt": self.plan.get("caption", self.request.prompt)}

    def can_be_timed(self) -> bool:
        whole = getattr(self.request, "action", self.request.mode) in WHOLE_SONG
        sung = whole and self.request.sung_lyrics() != INSTRUMENTAL
        return sung and get_backend().status().timed_lyrics.available


class ResultPanel:
    """Where the takes of a tab appear: messages, how the song was planned or why not, the takes with their record."""

    def __init__(self, mode: str):
        html(theme.section(tooltips.RESULT))
        self.message = html(elem_id=f"{mode}-message")
        small = {"size": "sm", "min_width": 0, "scale": 0, "visible": False}
        with gr.Column(elem_classes=["plan"]):
            self.plan = html(elem_id=f"{mode}-plan-line")
            self.keep = gr.Button(tooltips.KEEP_PLAN, elem_id=f"{mode}-keep-plan", **small)
            self.kept = html(elem_id=f"{mode}-plan-kept")  # says that the plan's seed was kept
        self.takes = theme.takes(mode)
        html(theme.remark(tooltips.kept_for(*jobs.retention())), elem_id=f"{mode}-kept")
        self.made, self.asked = gr.State([]), gr.State(None)  # the takes shown; name and take of a pressed button
        self.outputs = [self.message, self.plan, self.keep, self.kept, self.takes, self.made]

    def show(self, request: SongRequest, done: Done, kept: Sequence[Made] = ()) -> Updates:
        """Return the updates that show a finished run, after the takes that are `kept`."""
        record = done.record
        new = zip(record["takes"], done.files, strict=True)
        made = [*kept, *(Made(request, record, take, file) for take, file in new)]
        self.takes.temp_files.update(each.file for each in made)  # Gradio deletes old copies of files it knows of
        cards = {"at": time.time_ns(), "takes": [card(each) for each in made], "kept": len(kept), "record": record}
        plan = record.get("plan")
        noted = plan and not plan["used"] and tooltips.UNPLANNED.format(reason=plan["reason"]) in record["notes"]
        return {
            self.message: theme.messages(record),
            self.plan: theme.plan(plan) if plan and not noted else "",
            self.keep: gr.update(visible=bool(plan and plan["used"])),
            self.kept: "",
            self.takes: cards,
            self.made: made,
        }

    def change(self, number: int, **news: Any) -> Updates:
        return {self.takes: {"at": time.time_ns(), "number": number, "change": news}}


def card(made: Made) -> dict[str, Any]:
    """Return what the page shows of a take, and the record from which its settings come back."""
    song, take, record = made.song(), made.take, made.record
    variation = made.request.options.variation
    facts = tooltips.song_facts(song["bpm"], song["key"], f"variation {variation:g}" if variation else "")
    kept = {name: record[name] for name in ("request", "plan", "seeds", "variation_seeds") if record.get(name)}
    peaks = page_widgets.peaks(made.file)["peaks"]
    waveform = np.frombuffer(base64.b64decode(peaks), np.int8)
    source = getattr(made.request, "source", None)  # "offset" below: where it begins in the take, in seconds
    return {
        "id": made.file,
        "seed": take["seed"],
        "title": textwrap.shorten(made.request.prompt, 60, placeholder=" ..."),
        "facts": [tooltips.clock(take["duration"]), *facts],
        "levels": tooltips.take_levels(take),
        "warnings": take["warnings"],
        "lufs": take["loudness_lufs"],
        "seconds": take["duration"],
        "peaks": peaks,
        "art": audio_export.picture_for_page(waveform, {**record, "takes": [take]}),
        "path": made.file,
        "kind": made.request.options.format,
        "source": {"path": source, "offset": getattr(made.request, "before", 0.0)} if source else None,
        "can_be_timed": made.can_be_timed(),
        "settings": {**kept, "takes": [{"seed": take["seed"]}]},
    }


def connect_song(form: Form, bar: RunBar, problems: gr.HTML, result: ResultPanel) -> None:
    def failed(problem: Problem) -> Updates:
        return {**_failed(bar, result, problem), **form.point_at(problem)}

    def done(request: Request, done: Done) -> Updates:
        return {**bar.idle(made_line(request, done)), **result.show(request, done)}

    def make(*values: Any) -> Iterator[Updates]:
        yield from stream_of(lambda: form.request(values), bar, done, failed)

    outputs = [*result.outputs, *form.lines.values(), *form.folds]
    connect_run(form, bar, problems, make, outputs, dict.fromkeys([result.message, *form.lines.values()], ""))


def made_line(request: SongRequest, done: Done) -> str:
    record = done.record
    sentence = tooltips.done_sentence(len(record["takes"]), request.takes, sum(record["seconds"].values()))
    return theme.line("done", sentence)


def _failed(bar: RunBar, result: ResultPanel, problem: Problem) -> Updates:
    notice = theme.notice(tooltips.FAILED_TITLE, problem.message, problem.hint)
    return {**bar.idle(theme.line("failed", tooltips.FAILED_TITLE)), result.message: notice}


def connect_takes(form: Form, bar: RunBar, result: ResultPanel) -> None:
    connect_formats(result)
    connect_again(form, result)

    def begin(pressed: gr.EventData) -> Updates:
        waiting = bar.running(theme.line("running", tooltips.QUEUED))
        return {**waiting, result.message: "", result.asked: (str(pressed.name), int(pressed.number))}

    def make(asked: tuple[str, int], made: list[Made]) -> Iterator[Updates]:
        name, number = asked
        if name == "timed":
            yield from time_lines(bar, result, made, number)
        elif name in ("retake", "more"):
            yield from make_songs(bar, result, made, number, variation=name == "more")

    waiting, outputs = [*bar.outputs, result.message, result.asked], [*bar.outputs, *result.outputs]
    began = result.takes.submit(begin, None, waiting, concurrency_limit=None, **QUIET)
    run = began.success(make, [result.asked, result.made], outputs, **GPU_CONCURRENCY, **QUIET)
    connect_cancel(bar, began, run, tooltips.CANCELLED)
    form.runs.append(run)


def make_songs(bar: RunBar, result: ResultPanel, made: list[Made], number: int, variation: bool) -> Iterator[Updates]:
    """Replace the takes by new ones, or by take `number` and a variation of it."""

    def ask() -> SongRequest:
        one = _chosen(made, number)
        return more(one) if variation else one.request.model_copy(update={"seed": -1})

    def done(request: SongRequest, done: Done) -> Updates:
        said = tooltips.VARIED.format(percent=100 * request.options.variation) if variation else tooltips.RETAKEN
        shown = result.show(request, done, [made[number - 1]] if variation else [])
        message = theme.said(said) + shown[result.message]
        return {**bar.idle(made_line(request, done)), **shown, result.message: message}

    return stream_of(ask, bar, done, lambda problem: _failed(bar, result, problem))


def time_lines(bar: RunBar, result: ResultPanel, made: list[Made], number: int) -> Iterator[Updates]:
    def failed(problem: Problem) -> Updates:
        said = result.change(number, note=problem.text(), wrong=True)
        return {**bar.idle(theme.line("failed", problem.message)), **said}

    def done(request: Request, done: Done) -> Updates:
        record, name = done.record, f"{Path(made[number - 1].file).stem}.lrc"
        if not record["lines"]:
            return failed(Problem("unsung", tooltips.NOTHING_SUNG))
        file = processing_utils.save_bytes_to_cache(record["lrc"].encode(), name, gradio_utils.get_upload_folder())
        result.takes.temp_files.add(file)
        news = {"lines": record["lines"], "lrc": file, "alignment": tooltips.ALIGNMENT.format(score=record["score"])}
        said = tooltips.timed(len(record["lines"]))
        return {**bar.idle(theme.line("done", said)), **result.change(number, **news, note="")}

    return stream_of(lambda: timing(_chosen(made, number)), bar, done, failed)


def connect_formats(result: ResultPanel) -> None:
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
        own = one.request.options.format
        said = tooltips.FROM_LOSSY.format(source=own.upper()) if own in LOSSY and kind != own else ""
        return result.change(number, path=file, kind=kind, note=said, wrong=False)

    # Encoding needs no GPU, so it does not wait for songs.
    result.takes.input(convert, result.made, result.takes, concurrency_id="encoding", concurrency_limit=2, **QUIET)


def connect_again(form: Form, result: ResultPanel) -> None:
    """Let an earlier take be made again. The browser kept no files; the form's check asks for those."""
    defaults = {name: field.value for name, field in form.fields.items() if not isinstance(field, gr.Audio)}

    def fill(pressed: gr.EventData) -> Updates:
        return form.show({**defaults, **page_form.settings(form.mode, pressed.settings).values})

    filled = result.takes.retry(fill, None, form.settings, **AT_ONCE)
    filled.success(None, js=f"() => document.getElementById('{form.mode}-go').click()", **AT_ONCE)


def more(made: Made) -> SongRequest:
    """Return the request for one take with this one's plan, and its noise turned partway to another (reference 2.7)."""
    changes: dict[str, Any] = {"variation": made.request.options.variation or MORE_LIKE_THIS, "variation_seed": -1}
    if made.plan:
        changes["plan_seed"] = made.plan["seed"]
    varied = made.request.options.model_copy(update=changes)
    return made.request.model_copy(update={"seed": made.take["seed"], "takes": 1, "options": varied})


def timing(made: Made) -> AlignRequest:
    words = {**made.song(), "lyrics": made.request.lyrics, "instrumental": made.request.instrumental}
    ran = {"source": made.file, "seed": made.take["seed"], "planned": bool(made.plan)}
    return parse_request("align", {**words, **ran, "steps": made.record.get("sampling", {}).get("steps")})


def _chosen(made: Sequence[Made], number: int) -> Made:
    """Return take `number`; raises StudioError if it or its file is gone."""
    if number > len(made) or not Path(made[number - 1].file).is_file():
        raise StudioError("take_gone", tooltips.TAKE_GONE)
    return made[number - 1]


def converted(made: Made, kind: str) -> str:
    """Return the path of the take in another format with the same tags, in Gradio's cache."""
    if kind == made.request.options.format:
        return made.file
    samples, record = audio.read_wav(made.file), audio_export.read_record(made.file)
    with tempfile.TemporaryDirectory() as folder:
        path = audio_export.encode(samples, Path(folder, f"{Path(made.file).stem}.{kind}"), kind)
        if record:
            audio_export.write_tags(path, path.stem, record, audio_export.picture_for_tags(samples, record))
        return processing_utils.save_file_to_cache(path, cache_dir=gradio_utils.get_upload_folder())
