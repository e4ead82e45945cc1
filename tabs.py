"""The tabs: which groups of components make each of them, and what their buttons do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

import markup
import panels
import region
import restore
import tooltips
import uploads
from backend import GPU_CONCURRENCY, get_backend
from panels import AT_ONCE, QUIET, Form, ResultPanel, RunBar
from params import (
    ACTION_OPTIONS,
    ACTIONS,
    LIMITS,
    REPAINT_MODES,
    TRACKS,
    Done,
    Event,
    Failed,
    InvalidRequest,
    Problem,
    Progress,
)

log = logging.getLogger("studio")

TO_TOP = "() => document.querySelector('#studio-tabs').scrollIntoView()"


def build_tabs() -> list[Form]:
    """Build all tabs and the ways between them; returns their forms."""
    with gr.Tabs(elem_id="studio-tabs", overflow_behavior="wrap") as tabs:
        built = [generate_tab(), cover_tab(), extend_tab(), edit_tab()]
    forms = {form.mode: form for form, _ in built}
    for _, result in built:
        connect_uses(result, forms, tabs)
    return list(forms.values())


# --- tabs ---------------------------------------------------------------------------------------------------------


def generate_tab() -> tuple[Form, ResultPanel]:
    """Build the tab that makes a song from words."""
    form = Form("generate")
    with _tab(form):
        with _essentials():
            chips = panels.chip_row(tooltips.EXAMPLES)
            panels.essentials(form, "duration")
            run = _run(form, tooltips.GENERATE)
        result = _result(form)
        with _details():
            with panels.song_details(form):
                dropped = panels.settings_file(form)
            panels.advanced(form)
    panels.connect_settings_file(form, dropped)
    panels.fill_from(chips, form, [{**tooltips.EXAMPLE_DEFAULTS, **each} for each in tooltips.EXAMPLES.values()])
    connect_song(form, *run, result)
    return form, result


def cover_tab() -> tuple[Form, ResultPanel]:
    """Build the tab that makes a new version of a song."""
    form = Form("cover")
    with _tab(form):
        with _essentials():
            offer = panels.source(form)
            chips = panels.chip_row(tooltips.COVER_EXAMPLES)
            panels.essentials(form)
            panels.add_slider(form, "strength")
            run = _run(form, tooltips.GO["cover"])
        result = _result(form)
        with _details():
            panels.song_details(form)
            panels.advanced(form, lambda form: panels.add_slider(form, "options.noise_strength"))
    panels.connect_offer(form, offer)
    panels.fill_from(chips, form, tooltips.COVER_EXAMPLES.values())
    connect_song(form, *run, result)
    return form, result


def extend_tab() -> tuple[Form, ResultPanel]:
    """Build the tab that adds music before and after a song."""
    form = Form("extend")
    with _tab(form):
        with _essentials():
            offer = panels.source(form)
            with gr.Row(equal_height=True):
                panels.add_number(form, "before")
                panels.add_number(form, "after")
            total = panels.html(elem_id="extend-total")
            chips = panels.chip_row(tooltips.EXTEND_EXAMPLES)
            panels.essentials(form)
            run = _run(form, tooltips.GO["extend"])
        result = _result(form)
        with _details():
            panels.song_details(form, reference=False)
            panels.advanced(form, lambda form: panels.add_slider(form, "options.overlap"))
    panels.connect_offer(form, offer)
    connect_total(form, total)
    panels.fill_from(chips, form, tooltips.EXTEND_EXAMPLES.values(), kept=["prompt"])
    connect_song(form, *run, result)
    return form, result


def edit_tab() -> tuple[Form, ResultPanel]:
    """Build the tab that changes a song; its actions share the page, and the style sheet shows what each one needs."""
    form = EditForm()
    with _tab(form):
        with _essentials():
            offer = panels.source(form)
            chips = panels.chip_row(tooltips.EDIT_EXAMPLES)
            _actions(form)
            selector = _region(form)
            with gr.Column(elem_classes=["morph-only"]):
                _words_of_the_source(form)
                presets = panels.chip_row(tooltips.MORPHS, tooltips.MORPHS_LABEL)
                plan = panels.html(elem_id="edit-morph-plan")
            panels.essentials(form)
            run = _run(form, tooltips.GO["edit"])
        result = _result(form)
        with _details():
            panels.song_details(form, reference=False)
            panels.advanced(form, _morph_numbers)
    panels.connect_offer(form, offer)
    region.follow(selector, *(form.fields[name] for name in ("source", "start", "end")))
    panels.fill_from(chips, form, tooltips.EDIT_EXAMPLES.values(), kept=["prompt"])
    panels.fill_from(presets, form, tooltips.MORPHS.values())
    connect_plan(form, plan)
    connect_song(form, *run, result)
    return form, result


# --- the parts of a tab -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tab(form: Form) -> Iterator[None]:
    with (
        gr.Tab(tooltips.TABS[form.mode], id=form.mode),
        gr.Row(elem_classes=["columns"], elem_id=f"{form.mode}-columns"),
    ):
        yield


def _essentials() -> gr.Column:
    return gr.Column(elem_classes=["essentials"])


def _details() -> gr.Column:
    return gr.Column(elem_classes=["details"])


def _run(form: Form, go: str) -> tuple[RunBar, gr.HTML]:
    """Make the line for wrong fields and the run bar."""
    problems = panels.problem_line(form)
    return panels.run_bar(form.mode, go, panels.cancelled_box(form.mode)), problems


def _result(form: Form) -> ResultPanel:
    with gr.Column(elem_classes=["result"]):
        return panels.result_panel(form.mode)


# --- edit ---------------------------------------------------------------------------------------------------------


class EditForm(Form):
    """The form of the Edit tab. Its request has what the chosen action uses, and nothing else.

    Two fields are its own: "track" is the one track of layer and extract, "part" says whether layer has a region.
    """

    ONE_TRACK = ("layer", "extract")
    OF_ACTIONS = ("source_prompt", "source_lyrics", "start", "end", "tracks", "track", "part")

    def __init__(self):
        super().__init__("edit")
        self.hints: gr.HTML | None = None

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        """Return what the chosen action uses, under the request's names."""
        read = super().read(values)
        own = {name: read.pop(name) for name in self.OF_ACTIONS}
        action = read["action"]
        used = {f"options.{name}" for name in ACTION_OPTIONS[action]}
        if read["options.repaint_mode"] != "balanced":
            used.discard("options.repaint_strength")
        for name in {f"options.{name}" for names in ACTION_OPTIONS.values() for name in names} - used:
            del read[name]
        if action == "morph":
            read |= {name: own[name] for name in ("source_prompt", "source_lyrics")}
        if action == "repaint" or (action == "layer" and own["part"]):
            read |= {name: own[name] for name in ("start", "end")}
        if action in self.ONE_TRACK:
            read["tracks"] = [own["track"]] if own["track"] else []
        elif action == "complete":
            read["tracks"] = own["tracks"]
        return read

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        """Return the field at which a problem with these values stands."""
        action = dict(zip(self.fields, values, strict=True))["action"]
        name = super().place(problem, values)
        return "track" if name == "tracks" and action in self.ONE_TRACK else name

    def show(self, values: Mapping[str, Any]) -> panels.Updates:
        """Return the updates that put checked values into their fields; others stay."""
        if "tracks" in values:
            values = {**values, "tracks": list(values["tracks"]), "track": next(iter(values["tracks"]), None)}
        if values.get("action") == "layer" and "start" in values and "end" in values:
            values = {**values, "part": bool(values["start"] or values["end"])}
        return super().show(values)

    def checkpoint(self, facts: Mapping[str, Any]) -> panels.Updates:
        """Return what the form says about the checkpoint in use: its defaults, and which actions are experiments."""
        tasks = facts["tasks"]
        choices = gr.update(choices=_action_choices(tasks))
        return {**super().checkpoint(facts), self.fields["action"]: choices, self.hints: markup.actions(tasks)}


def _action_choices(tasks: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (tooltips.EXPERIMENTAL.format(name=name) if tasks.get(action) == "experimental" else name, action)
        for action, name in ACTIONS.items()
    ]


def _actions(form: EditForm) -> None:
    """Add the choice of an action, what it does, and what each action has in front of the words."""
    panels.add(form, "action", gr.Radio, choices=_action_choices({}), value="repaint")
    form.hints = panels.html(markup.actions({}), elem_id="edit-hints")
    named = [(tooltips.track(name), name) for name in TRACKS]
    with gr.Column(elem_classes=["tracks-only"]):
        panels.add(form, "track", gr.Radio, extra=["track-only"], choices=named, value=None)
        panels.add(form, "tracks", gr.CheckboxGroup, extra=["complete-only"], choices=named, value=[])
    with gr.Row(elem_classes=["layer-only"]):
        panels.add(form, "options.mix", gr.Checkbox, value=False, min_width=160)
        panels.add(form, "part", gr.Checkbox, value=False, min_width=160)


def _region(form: EditForm) -> gr.HTML:
    """Add the region on the waveform with its two numbers, and how freely it is repainted."""
    with gr.Column(elem_classes=["region-only"]):
        start, end = (panels.add_number(form, name, render=False) for name in ("start", "end"))
        selector = region.region_selector(start, end, elem_id="edit-region")
        with gr.Row(equal_height=True):
            start.render()
            end.render()
    with gr.Column(elem_classes=["repaint-only"]):
        modes = [(name, mode) for mode, name in REPAINT_MODES.items()]
        panels.add(form, "options.repaint_mode", gr.Radio, choices=modes, value="balanced")
        panels.add_slider(form, "options.repaint_strength", extra=["balanced-only"])
    return selector


def _words_of_the_source(form: EditForm) -> None:
    panels.add(form, "source_prompt", gr.Textbox, lines=2, max_lines=8)
    panels.add(form, "source_lyrics", gr.Textbox, lines=4, max_lines=18)


def _morph_numbers(form: Form) -> None:
    with gr.Row(equal_height=True, elem_classes=["morph-only"]):
        for name in ("n_min", "n_max", "n_avg"):
            panels.add_slider(form, f"options.{name}", min_width=160)


# --- events -------------------------------------------------------------------------------------------------------


def connect_total(form: Form, line: gr.HTML) -> None:
    """Say how long the song gets, as soon as there is a source and whenever a number changes."""
    names = ("before", "after")
    inputs = [form.fields[name] for name in ("source", *names)]

    def total(path: str | None, *texts: str) -> str:
        try:
            added = [float(panels.number(text, LIMITS[name].default)) for name, text in zip(names, texts, strict=True)]
            return markup.said(tooltips.length_in_all(uploads.seconds_of(path), *added)) if path else ""
        except (ValueError, OverflowError, InvalidRequest):
            return ""

    gr.on([each.change for each in inputs], total, inputs, line, **AT_ONCE)


def connect_plan(form: Form, line: gr.HTML) -> None:
    """Say in one line what the numbers of a morph do."""
    inputs = [form.fields[f"options.{name}"] for name in ("n_min", "n_max", "n_avg")]

    def plan(*numbers: float) -> str:
        return markup.said(tooltips.morph_plan(*numbers))

    gr.on([each.change for each in inputs], plan, inputs, line, **AT_ONCE)


def connect_uses(result: ResultPanel, forms: Mapping[str, Form], tabs: gr.Tabs) -> None:
    """Let a take go to another tab: it becomes the source there, with its words and what else describes the song."""

    def hand_over(form: Form, file: str | None, record: Any) -> panels.Updates:
        words = restore.song(record)
        if form.mode == "edit":
            # A morph starts from what the song is now.
            words |= {f"source_{name}": words[name] for name in ("prompt", "lyrics")}
        return {**form.show(words), form.fields["source"]: file, tabs: gr.Tabs(selected=form.mode)}

    for take in result.takes:
        for mode, button in take.uses.items():
            form = forms[mode]
            opened = button.click(
                lambda file, record, form=form: hand_over(form, file, record),
                [take.player, result.record],
                [tabs, form.fields["source"], *form.settings],
                **AT_ONCE,
            )
            opened.then(None, js=TO_TOP, **AT_ONCE)


def connect_song(form: Form, bar: RunBar, problems: gr.HTML, result: ResultPanel) -> None:
    """Let the button make songs: check the fields, queue, stream, show; Cancel and errors leave the form as it was."""

    def failed(problem: Problem) -> panels.Updates:
        return {**bar.idle(markup.line("failed", tooltips.FAILED_TITLE)), **result.fail(problem)}

    def make(*values: Any) -> Iterator[panels.Updates]:
        # The first yield comes before any work: Gradio can only close a generator that has yielded.
        yield bar.running(markup.line("running", tooltips.STARTING))
        try:
            request = form.request(values)
            with contextlib.closing(get_backend().stream(request)) as events:
                yield from page_updates(bar, events, lambda done: song_done(done, request.takes, bar, result), failed)
        except InvalidRequest as error:
            yield failed(error.problem)
        except Exception:
            log.exception("a song failed unexpectedly")
            yield failed(unexpected())

    # A wrong field ends at the validator, with a sentence beside it; this says so at the button and unfolds the group.
    bar.go.click(form.point_out, form.inputs, [*form.folds, problems], **AT_ONCE)
    begin = bar.go.click(
        lambda *values: {**bar.running(markup.line("running", tooltips.QUEUED)), result.message: ""},
        form.inputs,
        [*bar.outputs, result.message],
        validator=form.validate,
        concurrency_limit=None,
        **QUIET,
    )
    run = begin.success(make, form.inputs, [*bar.outputs, *result.outputs], **GPU_CONCURRENCY, **QUIET)
    connect_cancel(bar, begin, run, tooltips.CANCELLED)


def song_done(done: Done, asked: int, bar: RunBar, result: ResultPanel) -> panels.Updates:
    """Return the updates that show a finished song and put the buttons back."""
    record = done.record
    sentence = tooltips.done_sentence(len(record["takes"]), asked, sum(record["seconds"].values()))
    return {**bar.idle(markup.line("done", sentence)), **result.show(done)}


def page_updates(
    bar: RunBar,
    events: Iterator[Event],
    done: Callable[[Done], panels.Updates],
    failed: Callable[[Problem], panels.Updates],
) -> Iterator[panels.Updates]:
    """Turn the events of a run into updates of the page; what the run says once (a note) stays beside its progress."""
    note = ""
    for event in events:
        match event:
            case Progress():
                note = event.note or note
                yield {bar.line: markup.progress(event, note)}
            case Done():
                yield done(event)
            case Failed(problem):
                yield failed(problem)


def connect_cancel(bar: RunBar, begin: Any, run: Any, cancelled: str) -> None:
    """Let Cancel close the run, and put the buttons back however it ended early."""

    def stopped(asked: bool) -> panels.Updates:
        return bar.idle(markup.line("stopped", cancelled if asked else tooltips.STOPPED))

    bar.cancel.click(None, None, bar.cancelled, js="() => true", cancels=[run], **QUIET)
    # Gradio calls this for an error and for a cancelled run alike, but not after a run that reached its end.
    for event in {id(begin): begin, id(run): run}.values():
        event.failure(stopped, bar.cancelled, bar.outputs, **AT_ONCE)


def unexpected() -> Problem:
    """Return the problem for an error that nobody foresaw; the log has it in full."""
    return Problem("internal", tooltips.UNEXPECTED, hint=tooltips.UNEXPECTED_HINT)
