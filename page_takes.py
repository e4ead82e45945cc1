"""Takes on the page: how a run makes them appear, and what their buttons do.

static/takes.js draws them. Buttons start from the request and record of their take, whatever the
form holds by now.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio import utils as gradio_utils
from gradio.events import Dependency

import audio
import audio_export
import audio_waveform
import page_form
import page_widgets
import takes
import theme
import tooltips
from backend import GPU_CONCURRENCY, Backend
from events import Done, Problem, StudioError
from limits import FORMATS, INSTRUMENTAL, MORE_LIKE_THIS
from page_form import AT_ONCE, QUIET, Form, Updates, html
from page_run import RunBar, connect_cancel, connect_run, stream
from params import AlignRequest, Request, SongRequest, parse_request
from record import Stored

LOSSY = ("mp3", "ogg")
# The actions that sing all of their lyrics; an extension sings them in its new part, a layer in one
# of its tracks.
WHOLE_SONG = ("generate", "cover", "repaint", "morph")


@dataclass(frozen=True)
class Made:
    """A take on the page: its request, its run's record, its entry in that, and its file."""

    request: SongRequest
    record: Mapping[str, Any]
    take: Mapping[str, Any]
    file: str

    @property
    def plan(self) -> Mapping[str, Any]:
        """Return what the planner planned, empty if the song has no plan."""
        plan = self.record.get("plan") or {}
        return plan if plan.get("used") else {}

    def song(self) -> dict[str, Any]:
        """Return what the song was made with: the plan's values, or the visitor's own."""
        names = ("bpm", "key", "time_signature", "language")
        facts = {name: self.plan.get(name, getattr(self.request, name)) for name in names}
        return {"prompt": self.plan.get("caption", self.request.prompt), **facts}

    def sings_its_lyrics(self) -> bool:
        """Tell whether the take sings all of its lyrics."""
        action = getattr(self.request, "action", self.request.mode)
        return action in WHOLE_SONG and self.request.sung_lyrics() != INSTRUMENTAL


class ResultPanel:
    """Where the takes of a tab appear, with messages, plan and record."""

    def __init__(self, mode: str, studio: Backend):
        self.studio = studio
        html(theme.section(tooltips.RESULT))
        self.message = html(elem_id=f"{mode}-message")
        small: dict[str, Any] = {"size": "sm", "min_width": 0, "scale": 0, "visible": False}
        with gr.Column(elem_classes=["plan"]):
            self.plan = html(elem_id=f"{mode}-plan-line")
            self.keep = gr.Button(tooltips.KEEP_PLAN, elem_id=f"{mode}-keep-plan", **small)
            self.kept = html(elem_id=f"{mode}-plan-kept")  # says that the plan's seed was kept
        self.takes = page_widgets.takes(mode)
        html(theme.remark(tooltips.kept_for(*takes.retention())), elem_id=f"{mode}-kept")
        self.made = gr.State([])  # the takes shown
        self.asked = gr.State(None)  # name and take of a pressed button
        self.outputs = [self.message, self.plan, self.keep, self.kept, self.takes, self.made]

    def show(self, request: SongRequest, done: Done, kept: Sequence[Made] = ()) -> Updates:
        """Return the updates that show a finished run, after the takes that are `kept`."""
        record = done.record
        made = [*kept]
        for take, file in zip(record["takes"], done.files, strict=True):
            made.append(Made(request, record, take, file))
        # Gradio deletes old copies of files that it knows.
        self.takes.temp_files.update(each.file for each in made)
        can_time = self.studio.status().timed_lyrics.available
        cards = [card(each, can_time) for each in made]
        plan = record.get("plan")
        in_notes = plan and plan.get("failed")  # the notes say why there is no plan
        return {
            self.message: theme.messages(record),
            self.plan: theme.plan(plan) if plan and not in_notes else "",
            self.keep: gr.update(visible=bool(plan and plan["used"])),
            self.kept: "",
            self.takes: {"at": time.time_ns(), "takes": cards, "kept": len(kept), "record": record},
            self.made: made,
        }

    def change(self, number: int, **news: Any) -> Updates:
        """Return the update that changes what the page shows of take `number`."""
        return {self.takes: {"at": time.time_ns(), "number": number, "change": news}}


def card(made: Made, can_time: bool) -> dict[str, Any]:
    """Return what the page shows of a take, and the record from which its settings come back.

    `can_time` says whether the lines of its lyrics could be timed.
    """
    song = made.song()
    variation = made.request.options.variation
    varied = f"variation {variation:g}" if variation else ""
    facts = tooltips.song_facts(song["bpm"], song["key"], varied)
    peaks = audio_waveform.peaks(made.file)["peaks"]
    return {
        "id": made.file,
        "seed": made.take["seed"],
        "title": textwrap.shorten(made.request.prompt, 60, placeholder=" ..."),
        "facts": [tooltips.clock(made.take["duration"]), *facts],
        "levels": tooltips.take_levels(made.take),
        "warnings": made.take["warnings"],
        "lufs": made.take["loudness_lufs"],
        "seconds": made.take["duration"],
        "peaks": peaks,
        "art": _picture(made, peaks),
        "path": made.file,
        "kind": made.request.options.format,
        "source": _source(made.request),
        "can_be_timed": can_time and made.sings_its_lyrics(),
        "settings": _settings(made),
    }


def _source(request: SongRequest) -> dict[str, Any] | None:
    """Return the file of the source, and where it begins in the take, in seconds."""
    path = getattr(request, "source", None)
    if not path:
        return None
    return {"path": path, "offset": getattr(request, "before", 0.0)}


def _settings(made: Made) -> dict[str, Any]:
    names = ("request", "plan", "seeds", "variation_seeds")
    settings: dict[str, Any] = {"takes": [{"seed": made.take["seed"]}]}
    for name in names:
        if made.record.get(name):
            settings[name] = made.record[name]
    return settings


# --- a run ----------------------------------------------------------------------------------------


def _picture(made: Made, peaks: str) -> str:
    key = Stored.of(made.record).key
    return audio_export.picture_for_page(audio_waveform.decoded(peaks), made.take["seed"], key)


def connect_song(form: Form, bar: RunBar, result: ResultPanel) -> Dependency:
    """Let the tab's button make songs; returns the run."""

    def failed(problem: Problem) -> Updates:
        return {**_failed(bar, result, problem), **form.point_at(problem)}

    def ask(values: Sequence[Any]) -> SongRequest:
        request = form.request(values)
        assert isinstance(request, SongRequest), form.mode
        return request

    def done(request: SongRequest, done: Done) -> Updates:
        return {**bar.idle(made_line(request, done)), **result.show(request, done)}

    def make(*values: Any) -> Iterator[Updates]:
        yield from stream(form.studio, lambda: ask(values), bar, done, failed)

    outputs = [*result.outputs, *form.error_lines, *form.folds]
    fresh = dict.fromkeys([result.message, *form.error_lines], "")
    _, run = connect_run(form, bar, make, outputs, fresh)
    return run


def made_line(request: SongRequest, done: Done) -> str:
    takes = len(done.record["takes"])
    seconds = sum(done.record["seconds"].values())
    return theme.line("done", tooltips.done_sentence(takes, request.takes, seconds))


def _failed(bar: RunBar, result: ResultPanel, problem: Problem) -> Updates:
    notice = theme.notice(tooltips.FAILED_TITLE, problem.message, problem.hint)
    return {**bar.idle(theme.line("failed", tooltips.FAILED_TITLE)), result.message: notice}


# --- the buttons of a take ------------------------------------------------------------------------


def connect_takes(form: Form, bar: RunBar, result: ResultPanel) -> Dependency:
    """Connect the buttons of the takes; returns the run that some of them start."""
    connect_formats(result)
    connect_again(form, result)

    def begin(pressed: gr.EventData) -> Updates:
        waiting = bar.running(theme.line("running", tooltips.QUEUED))
        asked = (str(pressed.name), int(pressed.number))
        return {**waiting, result.message: "", result.asked: asked}

    def make(asked: tuple[str, int], made: list[Made]) -> Iterator[Updates]:
        name, number = asked
        if name == "timed":
            yield from time_lines(bar, result, made, number)
        elif name in ("retake", "more"):
            yield from make_songs(bar, result, made, number, variation=name == "more")

    began = result.takes.submit(
        begin, None, [*bar.outputs, result.message, result.asked], concurrency_limit=None, **QUIET
    )
    inputs = [result.asked, result.made]
    outputs = [*bar.outputs, *result.outputs]
    run = began.success(make, inputs, outputs, **GPU_CONCURRENCY, **QUIET)
    connect_cancel(bar, began, run, tooltips.CANCELLED)
    return run


def make_songs(bar: RunBar, result: ResultPanel, made: list[Made], number: int, variation: bool) -> Iterator[Updates]:
    """Replace the takes by new ones, or by take `number` and a variation of it."""

    def ask() -> SongRequest:
        take = _chosen(made, number)
        if variation:
            return more(take)
        return take.request.model_copy(update={"seed": -1})

    def done(request: SongRequest, done: Done) -> Updates:
        if variation:
            kept = [made[number - 1]]
            sentence = tooltips.VARIED.format(percent=100 * request.options.variation)
        else:
            kept = []
            sentence = tooltips.RETAKEN
        shown = result.show(request, done, kept)
        message = theme.answer(sentence) + shown[result.message]
        return {**bar.idle(made_line(request, done)), **shown, result.message: message}

    return stream(result.studio, ask, bar, done, lambda problem: _failed(bar, result, problem))


def more(made: Made) -> SongRequest:
    """Return the request for one take with this one's plan and a variation of its noise."""
    request = made.request
    changes: dict[str, Any] = {"variation": request.options.variation or MORE_LIKE_THIS}
    changes["variation_seed"] = -1
    if made.plan:
        changes["plan_seed"] = made.plan["seed"]
    options = request.options.model_copy(update=changes)
    one_take = {"seed": made.take["seed"], "takes": 1, "options": options}
    return request.model_copy(update=one_take)


def time_lines(bar: RunBar, result: ResultPanel, made: list[Made], number: int) -> Iterator[Updates]:
    """Find when take `number` sings each line of its lyrics."""

    def failed(problem: Problem) -> Updates:
        noted = result.change(number, note=problem.text(), wrong=True)
        return {**bar.idle(theme.line("failed", problem.message)), **noted}

    def done(request: Request, done: Done) -> Updates:
        record = done.record
        if not record["lines"]:
            return failed(Problem("unsung", tooltips.NOTHING_SUNG))
        name = f"{Path(made[number - 1].file).stem}.lrc"
        folder = gradio_utils.get_upload_folder()
        file = processing_utils.save_bytes_to_cache(record["lrc"].encode(), name, folder)
        result.takes.temp_files.add(file)
        score = tooltips.ALIGNMENT.format(score=record["score"])
        timed = result.change(number, lines=record["lines"], lrc=file, alignment=score, note="")
        return {**bar.idle(theme.line("done", tooltips.timed(len(record["lines"])))), **timed}

    return stream(result.studio, lambda: timing(_chosen(made, number)), bar, done, failed)


def timing(made: Made) -> AlignRequest:
    """Return the request that times the lyrics of a take."""
    song = made.song()
    values = {
        **song,
        "lyrics": made.request.lyrics,
        "instrumental": made.request.instrumental,
        "source": made.file,
        "seed": made.take["seed"],
        "planned": bool(made.plan),
        "steps": made.record.get("sampling", {}).get("steps"),
    }
    asked = parse_request("align", values)
    assert isinstance(asked, AlignRequest)
    return asked


def _chosen(made: Sequence[Made], number: int) -> Made:
    """Return take `number`; raises StudioError if it or its file is gone."""
    if number > len(made) or not Path(made[number - 1].file).is_file():
        raise StudioError("take_gone", tooltips.TAKE_GONE)
    return made[number - 1]


def connect_formats(result: ResultPanel) -> None:
    """Let a take be downloaded in another format."""

    def convert(chosen: gr.EventData, made: list[Made]) -> Updates:
        number = int(chosen.number)
        kind = chosen.kind
        if kind not in FORMATS:
            return result.change(number, note="")
        try:
            take = _chosen(made, number)
            file = converted(take, kind)
        except (StudioError, audio.AudioError) as error:
            return result.change(number, note=str(error), wrong=True)
        result.takes.temp_files.add(file)
        own = take.request.options.format
        note = ""
        if own in LOSSY and kind != own:
            note = tooltips.FROM_LOSSY.format(source=own.upper())
        return result.change(number, path=file, kind=kind, note=note, wrong=False)

    # Encoding needs no GPU, so it does not wait for songs.
    two_at_a_time: dict[str, Any] = {"concurrency_id": "encoding", "concurrency_limit": 2}
    result.takes.input(convert, result.made, result.takes, **two_at_a_time, **QUIET)


def converted(made: Made, kind: str) -> str:
    """Return the path of the take in another format with the same tags, in Gradio's cache."""
    if kind == made.request.options.format:
        return made.file
    samples = audio.read_wav(made.file)
    record = audio_export.read_record(made.file)
    file = audio_export.encode(samples, kind)
    stem = Path(made.file).stem
    if record:
        picture = audio_export.picture_for_tags(samples, made.take["seed"], Stored.of(record).key)
        audio_export.tag(file, stem, record, picture)
    return takes.copy_for_page(file, f"{stem}.{kind}")


def connect_again(form: Form, result: ResultPanel) -> None:
    """Let an earlier take be made again.

    The browser kept no files; the form's check asks for those.
    """
    defaults = form.defaults

    def fill(pressed: gr.EventData) -> Updates:
        return form.show({**defaults, **page_form.settings(form.mode, pressed.settings).values})

    filled = result.takes.retry(fill, None, form.settings, **AT_ONCE)
    filled.success(None, js=f"() => document.getElementById('{form.mode}-go').click()", **AT_ONCE)
