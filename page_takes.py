"""Takes on the page: how a run makes them appear, and what their buttons do.

static/takes.js draws them. Buttons start from the request and record of their take, whatever the
form holds by now.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio import processing_utils
from gradio import utils as gradio_utils
from gradio.events import Dependency

import audio
import audio_export
import audio_waveform
import page_form
import page_widgets
import prompt_facts
import runs_former
import song_align
import song_score
import takes
import theme
import tooltips
from backend import Backend
from events import Done, Problem, StudioError
from limits import INSTRUMENTAL, MORE_LIKE_THIS, SAMPLE_RATE, samples_in
from page_form import AT_ONCE, UNSEEN, Form, Undo, Updates, html
from page_run import (
    WITH_OWNER,
    Ended,
    RunBar,
    connect_again,
    connect_end,
    connect_run,
    ended_of,
    start,
)
from params import AlignRequest, EditRequest, ExtendRequest, Request, SongRequest, parse_request
from record import LineEntry, Stored
from runs import address, runs_of, song_title

# In the record of a take that was cut off at a moment: the hash of the whole one.
CUT_FROM = "cut_from"
# What becomes a child of the take that it was made from.
CHILDREN = ("more", "finish")


@dataclass(frozen=True)
class Made:
    """A take on the page: its request (uploads included), its run's record, its entry in that, its file.

    `file` is a copy, which may be deleted before the take `number` of the `run` is.
    """

    request: SongRequest
    record: Mapping[str, Any]
    take: Mapping[str, Any]
    file: str
    run: str = ""
    number: int = 1

    @property
    def id(self) -> str:
        """Return what the page calls it, the same for every visit."""
        return f"{self.run}/{self.number}" if self.run else self.file

    @property
    def stored(self) -> Stored:
        return Stored.from_record(self.record)

    @property
    def plan(self) -> Mapping[str, Any]:
        """Return what the planner planned, empty if the song has no plan."""
        return self.stored.plan if self.stored.is_planned else {}

    def song(self) -> dict[str, Any]:
        """Return what the song was made with: the visitor's own values, the plan's, or what the prompt named."""
        stored = self.stored
        facts = {name: stored.song_detail(name) for name in (*prompt_facts.FIELDS, "language")}
        for name, value in facts.items():
            facts[name] = value or getattr(self.request, name)
        return {"prompt": self.plan.get("caption", self.request.prompt), **facts}

    def sings_its_lyrics(self) -> bool:
        """Tell whether the take sings all of its lyrics."""
        action = getattr(self.request, "action", self.request.mode)
        return action in song_score.WHOLE_SONG and self.request.sung_lyrics() != INSTRUMENTAL


@dataclass(frozen=True)
class Origin:
    """The take that a run was made of by a button, and what the run is to it, such as "{take} in best quality"."""

    take: Made
    label: str


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
        self.made = gr.State([])  # the takes of the latest run
        self.outputs = [self.message, self.plan, self.keep, self.kept, self.takes, self.made]

    def show(self, ended: Ended, origin: Origin | None = None) -> Updates:
        """Return the updates that show a finished run, which may be made of a take, its `origin`."""
        record = ended.done.song
        made = [with_file(each, self) for each in takes_of(ended)]
        # Gradio deletes old copies of the files that it knows.
        self.takes.temp_files.update(each.file for each in made)
        can_time = self.studio.status().timed_lyrics.available
        cards = [card(each, can_time, origin) for each in made]
        if ended.written:
            for each in cards:
                each["words"] = ended.request.lyrics
        place = song_score.best([each.take.get("score") for each in made])
        if place is not None:
            cards[place]["best"] = _why_best(made, place)
        plan = record.get("plan")
        # If planning failed, the notes say why. A plan that nobody asked for is not missed.
        is_shown = plan and (plan["used"] or plan.get("missed"))
        return {
            self.message: theme.messages(record),
            self.plan: theme.plan(plan) if plan and is_shown else "",
            self.keep: gr.update(visible=bool(plan and plan["used"])),
            self.kept: "",
            self.takes: {"at": time.time_ns(), "takes": cards, "record": record},
            self.made: made,
        }

    def change(self, take: Made, **news: Any) -> Updates:
        """Return the update that changes what the page shows of a take."""
        return {self.takes: {"at": time.time_ns(), "take": take.id, "change": news}}


def _why_best(made: Sequence[Made], place: int) -> str:
    parts = [each.take.get("score_parts", {}) for each in made]
    score = made[place].take["score"]
    return tooltips.best_take(len(made), score, song_score.reason(parts, place))


def takes_of(ended: Ended) -> list[Made]:
    """Return the takes of a run."""
    record = ended.done.song
    found = []
    for take, file, number in zip(record["takes"], ended.done.files, ended.numbers, strict=True):
        found.append(Made(ended.request, record, take, file, ended.run, number))
    return found


def card(made: Made, can_time: bool, origin: Origin | None = None) -> dict[str, Any]:
    """Return what the page shows of a take, and the record that its settings are restored from.

    `can_time` says whether the song model can time lyrics. The page knows by `made_from`, the hash
    of the source, which of its takes that is, if it was not made of its `origin`.
    """
    song = made.song()
    peaks = audio_waveform.peaks(made.file)["peaks"]
    return {
        "id": made.id,
        "run": made.run,
        "number": made.number,
        "mode": made.request.mode,
        "seed": made.take["seed"],
        "title": song_title(made.request),
        "label": origin.label if origin else derived(made.request),
        "parent": origin.take.id if origin else "",
        "made_from": _made_from(made),
        "sha256": made.take.get("sha256", ""),
        "changed": changed_parts(made.request, made.take["duration"]),
        "facts": tooltips.song_facts(song["bpm"], song["key"]),
        "bar": _bar_seconds(song["bpm"], song["time_signature"]),
        "levels": tooltips.take_levels(made.take),
        "warnings": made.take["warnings"],
        "score": made.take.get("score"),
        "lufs": made.take["loudness_lufs"],
        "seconds": made.take["duration"],
        "peaks": peaks,
        "art": _picture(made, peaks),
        "path": made.file,
        "url": address(made.run, made.number) if made.run else "",
        "kind": made.request.options.format,
        "source": _source(made.request),
        "can_be_timed": can_time and made.sings_its_lyrics(),
        "is_draft": _is_draft(made),
        "settings": _settings(made),
    }


def _made_from(made: Made) -> str:
    """Return the hash of the take that was the source, whole or up to a moment; "" without a source."""
    source = made.stored.audio.get("source") or {}
    path = getattr(made.request, "source", "")
    if path and Path(path).is_file():
        cut = (audio_export.read_record(path) or {}).get(CUT_FROM, "")
        if isinstance(cut, str) and cut:
            return cut
    return source.get("sha256", "")


def derived(request: SongRequest) -> str:
    """Return what a song made of a take is to that take, "" for a new song."""
    if isinstance(request, ExtendRequest):
        before = tooltips.SECONDS.format(request.before) if request.before else ""
        after = tooltips.SECONDS.format(request.after) if request.after else ""
        return " + ".join(filter(None, [before, "{take}", after]))
    if not isinstance(request, EditRequest):
        return tooltips.DERIVED.get(request.mode, "")
    spans = changed_parts(request, 0.0)
    parts = ", ".join(tooltips.span(start, end) for start, end in spans)
    tracks = ", ".join(tooltips.track(each).lower() for each in request.tracks)
    named = tooltips.DERIVED[request.action]
    return named.replace("{parts}", parts).replace("{tracks}", tracks)


def changed_parts(request: SongRequest, seconds: float) -> list[list[float]]:
    """Return the parts, from and to in seconds, that are new in a song of `seconds` made of a take.

    An end that was not named is that of the song.
    """
    if isinstance(request, ExtendRequest):
        ends = [[0.0, request.before], [seconds - request.after, seconds]]
        return [each for each in ends if each[1] - each[0] > 0]
    if not isinstance(request, EditRequest) or request.action not in ("repaint", "layer"):
        return []
    if request.regions:
        return [[start, end] for start, end in request.regions]
    if request.start or request.end:
        return [[request.start, request.end or seconds]]
    return []


def _bar_seconds(bpm: int | None, time_signature: str) -> float:
    """Return the length of a bar, 0 if the tempo is unknown; a song without a metre has four beats."""
    if not bpm:
        return 0.0
    return 60 / bpm * int(time_signature or 4)


def _is_draft(made: Made) -> bool:
    """Tell whether best quality would make more of the take; a turbo checkpoint knows one quality."""
    return made.request.quality == "draft" and not made.stored.sampling.get("turbo")


def _source(request: SongRequest) -> dict[str, Any] | None:
    """Return the file of the source, and where it begins in the take, in seconds."""
    path = getattr(request, "source", None)
    if not path or not Path(path).is_file():
        return None
    return {"path": path, "offset": getattr(request, "before", 0.0)}


def _settings(made: Made) -> dict[str, Any]:
    names = ("request", "plan", "seeds", "variation_seeds")
    settings: dict[str, Any] = {"takes": [{"seed": made.take["seed"]}]}
    for name in names:
        if made.record.get(name):
            settings[name] = made.record[name]
    return settings


def _picture(made: Made, peaks: str) -> str:
    waveform = audio_waveform.decoded(peaks)
    return audio_export.picture_for_page(waveform, made.take["seed"], made.stored.key)


# --- a run ----------------------------------------------------------------------------------------


def connect_song(form: Form, bar: RunBar, result: ResultPanel) -> Dependency:
    """Let the tab's button make songs; returns the run."""

    def failed(problem: Problem) -> Updates:
        return {**_failed(bar, result, problem), **form.point_at(problem)}

    def ask(*values: Any) -> Request:
        return form.request(values)

    outputs = [*result.outputs, *form.error_lines, *form.folds]
    fresh = dict.fromkeys([result.message, *form.error_lines], "")
    connect_run(form, bar, ask, failed, outputs, fresh, tag=Wanted())
    return _connect_end(form, bar, result)


@dataclass(frozen=True)
class Wanted:
    """What a run of the tab is for.

    Songs, the takes of another seed, a variation of `take`, `take` in best quality, or its timed lyrics.
    """

    what: Literal["song", "retake", "more", "finish", "timed"] = "song"
    take: Made | None = None


def _connect_end(form: Form, bar: RunBar, result: ResultPanel) -> Dependency:
    """Show the songs and timed lyrics that the tab's runs have made; returns that event."""

    def done(ended: Ended) -> Updates:
        if ended.tag and ended.tag.what == "timed":
            return _timed(bar, result, ended)
        return _shown(bar, result, ended)

    def failed(problem: Problem, wanted: Wanted | None) -> Updates:
        if wanted and wanted.take and wanted.what == "timed":
            return _not_timed(bar, result, problem, wanted.take)
        return {**_failed(bar, result, problem), **form.point_at(problem)}

    outputs = [*result.outputs, *form.error_lines, *form.folds]
    return connect_end(bar, form.studio, done, failed, outputs)


def _shown(bar: RunBar, result: ResultPanel, ended: Ended) -> Updates:
    wanted = ended.tag or Wanted()
    line = bar.idle(made_line(ended.request, ended.done))
    if wanted.what == "song":
        return {**line, **result.show(ended)}
    sentence = tooltips.RETAKEN
    if wanted.what in CHILDREN:
        sentence = tooltips.CHILD_MADE
    origin = None
    if wanted.take and wanted.what in CHILDREN:
        percent = f"{100 * ended.request.options.variation:.0f}"
        label = tooltips.DERIVED[wanted.what].replace("{percent}", percent)
        origin = Origin(wanted.take, label)
    shown = result.show(ended, origin)
    return {**line, **shown, result.message: theme.answer(sentence) + shown[result.message]}


def _timed(bar: RunBar, result: ResultPanel, ended: Ended) -> Updates:
    record = ended.done.words
    if not record["lines"]:
        problem = Problem("unsung", tooltips.NOTHING_SUNG)
        return _not_timed(bar, result, problem, ended.tag.take)
    return _with_lines(bar, result, ended.tag.take, record["lines"], record["lrc"], record["score"])


def _with_lines(
    bar: RunBar,
    result: ResultPanel,
    take: Made,
    lines: Sequence[LineEntry],
    lrc: str,
    score: float,
) -> Updates:
    """Return the updates that show the timed lyrics of a `take`."""
    name = f"{Path(take.file).stem}.lrc"
    file = processing_utils.save_bytes_to_cache(
        lrc.encode(), name, gradio_utils.get_upload_folder()
    )
    result.takes.temp_files.add(file)
    line = bar.idle(theme.line("done", tooltips.timed(len(lines))))
    alignment = tooltips.ALIGNMENT.format(score=score)
    return {**line, **result.change(take, lines=lines, lrc=file, alignment=alignment, note="")}


def _not_timed(bar: RunBar, result: ResultPanel, problem: Problem, take: Made) -> Updates:
    line = bar.idle(theme.line("failed", problem.message))
    return {**line, **result.change(take, note=problem.text(), wrong=True)}


def made_line(request: SongRequest, done: Done) -> str:
    made = len(done.song["takes"])
    seconds = sum(done.song["seconds"].values())
    return theme.line("done", tooltips.done_sentence(made, request.takes, seconds))


def _failed(bar: RunBar, result: ResultPanel, problem: Problem) -> Updates:
    notice = theme.notice(tooltips.FAILED_TITLE, problem.message, problem.hint)
    return {**bar.idle(theme.line("failed", tooltips.FAILED_TITLE)), result.message: notice}


# --- the buttons of a take ------------------------------------------------------------------------


def connect_takes(form: Form, bar: RunBar, result: ResultPanel, undo: Undo) -> None:
    """Connect the buttons of the takes; `undo` restores what the settings of one replaced in the form."""
    connect_settings(form, result, undo)
    connect_again(form, result.takes.retry, bar.runs.retry, remark=result.kept)

    def begin(pressed: gr.EventData, owner: str) -> Updates:
        what: Any = str(pressed.name)
        request_builders = {"timed": timing, "more": more, "finish": finish, "retake": retake}

        def failed(problem: Problem) -> Updates:
            if what == "timed":
                line = bar.idle(theme.line("failed", problem.message))
                return {**line, **result.change(take, note=problem.text(), wrong=True)}
            return _failed(bar, result, problem)

        try:
            take = take_of(pressed, result)
        except StudioError as error:
            return _failed(bar, result, error.problem)
        lines = take.take.get("lines")
        if what == "timed" and lines:  # they were timed when the take was scored
            alignment = take.take["alignment"]
            return _with_lines(bar, result, take, lines, song_align.lrc(lines), alignment)

        def ask() -> Request:
            return request_builders[what](take)

        started = start(bar, form.studio, owner, ask, failed, Wanted(what, take))
        return {result.message: "", **started}

    result.takes.submit(
        begin,
        [bar.runs],
        [*bar.outputs, result.message, result.takes],
        js=WITH_OWNER,
        concurrency_limit=None,
        **UNSEEN,
    )


def connect_settings(form: Form, result: ResultPanel, undo: Undo) -> None:
    """Let the settings of a take fill the form."""
    fields = form.saved
    defaults = form.defaults

    def fill(pressed: gr.EventData, former: list[dict[str, Any]], *values: Any) -> Updates:
        found = page_form.settings(form.mode, pressed.settings)
        if not found.values:
            return {result.message: theme.notice("", tooltips.BAD_LINK)}
        sentence = tooltips.FILLED_IN
        if pressed.link:
            sentence = tooltips.FROM_LINK
            if found.reference or found.uploads or "source" in form.fields:
                sentence = f"{sentence} {tooltips.NOT_IN_LINK}"
        kept = undo.keep(former, dict(zip(fields, values, strict=True)))
        filled = form.show({**defaults, **found.values})
        return {**filled, **kept, result.message: theme.answer(sentence)}

    held = [undo.former, *fields.values()]
    outputs = [*fields.values(), *undo.outputs, result.message]
    result.takes.edit(fill, held, outputs, **AT_ONCE)


def retake(made: Made) -> SongRequest:
    """Return the request for the same songs from another seed."""
    return made.request.model_copy(update={"seed": -1})


def more(made: Made) -> SongRequest:
    """Return the request for one take with this one's plan and a variation of its noise."""
    request = made.request
    changes: dict[str, Any] = {
        "variation": request.options.variation or MORE_LIKE_THIS,
        "variation_seed": -1,
        "best_of": None,
    }
    if made.plan:
        changes["plan_seed"] = made.plan["seed"]
    options = request.options.model_copy(update=changes)
    one_take = {"seed": made.take["seed"], "takes": 1, "options": options}
    return request.model_copy(update=one_take)


def finish(made: Made) -> SongRequest:
    """Return the request for this take, of the same seeds and plan, in best quality."""
    changes: dict[str, Any] = {"steps": None, "best_of": None}
    if made.plan:
        changes["plan_seed"] = made.plan["seed"]
    options = made.request.options.model_copy(update=changes)
    news = {"quality": "best", "seed": made.take["seed"], "takes": 1, "options": options}
    return made.request.model_copy(update=news)


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
        "steps": made.stored.sampling.get("steps"),
    }
    asked = parse_request("align", values)
    assert isinstance(asked, AlignRequest)
    return asked


def with_file(made: Made, result: ResultPanel) -> Made:
    """Return the take with its file, copied again if the copy is gone; raises StudioError if the song was deleted."""
    if Path(made.file).is_file():
        return made
    try:
        copy = runs_former.copy_of(runs_of(result.studio).take(made.run, made.number))
    except (StudioError, OSError):
        raise StudioError("take_gone", tooltips.TAKE_GONE) from None
    result.takes.temp_files.add(copy)
    return replace(made, file=copy)


def take_of(pressed: gr.EventData, result: ResultPanel) -> Made:
    """Return the take whose button was pressed, of this visit or an earlier one.

    Raises StudioError if it or its file is gone.
    """
    runs = runs_of(result.studio)
    run = str(pressed.run)
    ended = ended_of(runs, run)
    made = takes_of(ended) if ended else []
    for each in made:
        if each.number == int(pressed.number):
            return with_file(each, result)
    raise StudioError("take_gone", tooltips.TAKE_GONE)


def cut_at(made: Made, seconds: float, result: ResultPanel) -> str:
    """Return the path of a copy of a take that ends at a moment, for what is to go on from there.

    Its record says which take it is a part of. Raises AudioError.
    """
    samples = audio.read_wav(made.file)
    end = min(max(samples_in(seconds), SAMPLE_RATE), samples.shape[1])
    file = audio_export.encode(samples[:, :end], "wav")
    record = audio_export.read_record(made.file) or {}
    name = Path(made.file).stem
    audio_export.tag(file, name, {**record, CUT_FROM: made.take.get("sha256", "")})
    path = takes.copy_for_page(file, f"{name}.wav")
    result.takes.temp_files.add(path)
    return path
