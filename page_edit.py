"""The Edit tab. The request and the page have only what the chosen action uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

import page_fields
import page_hints
import page_widgets
import theme
import tooltips
from backend import Backend
from events import InvalidRequest, Problem
from limits import ACTIONS, REPAINT_MODES, TRACKS
from page_assist import Assist
from page_fields import Examples, RestoreOffer, SongTab, swapped
from page_form import (
    AT_ONCE,
    Field,
    Form,
    Updates,
    help_text,
    html,
    only,
    regions,
    regions_text,
    without,
)
from page_run import tab_run_bar
from params import ACTION_OPTIONS, CHOOSE_TRACK, EditRequest, Request, model_of, upload_seconds
from status import SongModelStatus, Status

MORPH_NUMBERS = ("options.n_min", "options.n_max", "options.n_avg")
ONE_TRACK = ("layer", "extract")  # their one "track" is sent as the request's "tracks"


class EditForm(Form):
    wanted: gr.State  # the region that the next source begins with, or None

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        read = super().read(values)
        if read["action"] in ONE_TRACK:
            read["tracks"] = [read["track"]] if read["track"] else []
        used = self._used(read)
        if "start" in used and read["regions"]:
            used = used - {"start", "end"} | {"regions"}
            if isinstance(read["regions"], list):
                read["regions"] = [_first_region(read), *read["regions"]]
        return without(read, self._of_some_actions() - used)

    def request(self, values: Iterable[Any]) -> Request:
        """Return the request; the studio's own model is named where the backend would choose another."""
        request = super().request(values)
        own = next((model for model in self.studio.status().song_models if model.own), None)
        assert isinstance(request, EditRequest)
        if own is None or model_of(request):
            return request
        if self.studio.with_model(request) is request:
            return request
        options = request.options.model_copy(update={"model": own.name})
        return request.model_copy(update={"options": options})

    def _used(self, read: Mapping[str, Any]) -> set[str]:
        """Return which of the fields that only some actions have the chosen one uses."""
        action = read["action"]
        used = _full_names(ACTION_OPTIONS[action])
        if read["options.repaint_mode"] != "balanced":
            used.discard("options.repaint_strength")
        if action == "morph":
            used |= {"source_prompt", "source_lyrics"}
        if action == "repaint" or (action == "layer" and read["part"]):
            used |= {"start", "end"}
        if action in CHOOSE_TRACK:
            used.add("tracks")
        return used

    def _of_some_actions(self) -> set[str]:
        # "part" says whether a layer has a region.
        fields = {"source_prompt", "source_lyrics", "start", "end", "regions"}
        fields |= {"tracks", "track", "part"}
        for options in ACTION_OPTIONS.values():
            fields |= _full_names(options)
        return fields

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        name = super().place(problem, values)
        action = dict(zip(self.fields, values, strict=True))["action"]
        if name == "tracks" and action in ONE_TRACK:
            return "track"
        return name

    def show(self, values: Mapping[str, Any]) -> Updates:
        shown = dict(values)
        if values.get("regions"):
            first, *others = values["regions"]
            shown["start"], shown["end"] = first
            shown["regions"] = others
            values = shown
        if "tracks" in values:
            tracks = list(values["tracks"])
            shown["tracks"] = tracks
            shown["track"] = tracks[0] if tracks else None
        if values.get("action") == "layer" and "start" in values and "end" in values:
            shown["part"] = bool(values["start"] or values["end"])
        return super().show(shown)


def _first_region(read: Mapping[str, Any]) -> list[Any]:
    """Return start and end as one of several regions; there, 0 is not the end of the file."""
    end = read["end"]
    if end == 0 and read["source"]:
        with contextlib.suppress(InvalidRequest):  # an unreadable file has its own sentence
            end = upload_seconds(read["source"])
    return [read["start"], end]


def _full_names(options: Iterable[str]) -> set[str]:
    return {f"options.{name}" for name in options}


def edit_tab(studio: Backend) -> SongTab:
    form = EditForm("edit", studio)
    with page_fields.tab(form) as tab, page_fields.columns(form):
        with page_fields.form_column():
            offer = page_fields.add_source(form, tab)
            form.wanted = gr.State(None)
            hints = _add_actions(form)
            selector = page_widgets.region_selector("edit-region")
            _add_needs(form)
            morphs = _add_morph_words(form)
            assist = Assist(form, "describe")
            examples = Examples(form, kept=["prompt"])
            page_fields.add_prompt(form)
            page_fields.add_lyrics(form)
            with page_fields.details_column():
                with page_fields.fold(form, tooltips.DETAILS, "details"):
                    page_fields.add_song_details(form)
                with page_fields.fold(form, tooltips.SOUND, "sound"):
                    page_fields.add_sound(form)
                with page_fields.fold(form, tooltips.ENGINE, "engine"):
                    for name in MORPH_NUMBERS:
                        form.add_slider(name, classes=["field", "morph-only"])
                    page_fields.add_engine(form)
                page_fields.add_reset(form)
            with page_fields.foot():
                page_hints.add_seconds(form)
                bar = tab_run_bar(form)
        result = page_fields.add_result(form)

    drawn = _connect_region(form, selector, offer)
    _connect_model(form)
    _connect_kinds(form, hints)
    morphs.connect()
    examples.connect()
    # A waveform selects a region when it is drawn, so settings come after it.
    offer.connect(after=drawn.then)
    return page_fields.connect_song_tab(form, bar, assist, result)


def stems_model(status: Status) -> SongModelStatus | None:
    """Return the model that was trained for stems if it is here besides the studio's own."""
    for model in status.song_models:
        if model.kind == "base" and model.state != "missing" and not model.own:
            return model
    return None


def remarks(status: Status, choice: str) -> dict[str, str]:
    """Return what to do about actions that the model of a `choice` is not made for."""
    found = {}
    if status.kind_of(choice) == "turbo":
        found["morph"] = tooltips.MORPH_ON_FAST
    if status.kind_of(choice) == "base":
        return found
    if status.to_get("base"):
        found |= dict.fromkeys(CHOOSE_TRACK, tooltips.STEMS_TO_GET)
    elif stems_model(status) and choice:
        found |= dict.fromkeys(CHOOSE_TRACK, tooltips.STEMS_HERE)
    return found


def tasks_here(status: Status) -> dict[str, str]:
    """Return how each action is supported: those that work with tracks by the model that was trained for it."""
    tasks = dict(status.tasks)
    stems = stems_model(status)
    if stems is not None:
        tasks |= only(stems.tasks, CHOOSE_TRACK)
    return tasks


def model_for(action: str, chosen: str, status: Status) -> str:
    """Return the Model for an action if `chosen` was: actions that work with tracks take Stems by themselves."""
    stems = stems_model(status)
    if stems is None:
        return chosen
    if action in CHOOSE_TRACK:
        return chosen or stems.name
    return "" if chosen == stems.name else chosen


def _add_actions(form: EditForm) -> gr.HTML:
    """Add the choice of an action; returns what each does."""
    actions = form.add("action", gr.Radio, choices=swapped(ACTIONS), value="repaint")
    hints = html(theme.actions({}), elem_id="edit-hints", js_on_load=theme.script("folds"))

    form.on_status(lambda status: _marked(actions, hints, status))
    return hints


def _add_needs(form: EditForm) -> None:
    """Add the fields that only some actions have."""
    with gr.Column(elem_classes=["needs"]):
        _add_fields(form)


def _add_fields(form: EditForm) -> None:
    named = [(tooltips.track(name), name) for name in TRACKS]
    with gr.Column(elem_classes=["tracks-only"]):
        form.add("track", gr.Radio, ["field", "track-only"], choices=named, value=None)
        form.add("tracks", gr.CheckboxGroup, ["field", "complete-only"], choices=named, value=[])
    with gr.Row(elem_classes=["layer-only"]):
        form.add("options.mix", gr.Checkbox, value=True, min_width=160)
        form.add("part", gr.Checkbox, value=False, min_width=160)
    html(theme.fine(), elem_id="edit-fine")
    with gr.Row(equal_height=True, elem_classes=["region-only", "fine-only"]):
        form.add_number("start")
        form.add_number("end")
        more = form.add("regions", gr.Textbox, value="", max_lines=1, min_width=240)
    form.add_field("regions", Field(more, regions, regions_text))
    with gr.Column(elem_classes=["repaint-only", "fine-only"]):
        form.add("options.repaint_mode", gr.Radio, choices=swapped(REPAINT_MODES), value="balanced")
        form.add_slider("options.repaint_strength", classes=["field", "balanced-only"])


def _add_morph_words(form: EditForm) -> Examples:
    """Add what Morph changes the words from; returns its examples."""
    with gr.Column(elem_classes=["morph-only"]):
        form.add("source_prompt", gr.Textbox, lines=2, max_lines=8)
        form.add("source_lyrics", gr.Textbox, lines=4, max_lines=18)
        page_hints.add_advice(form, "source_lyrics")
        return Examples(form, theme.caption(tooltips.MORPHS_LABEL), "morph")


def _connect_region(form: EditForm, selector: gr.HTML, offer: RestoreOffer) -> Dependency:
    """Let the waveform and the numbers of a region follow each other; returns its drawing."""
    fields = form.fields
    return page_widgets.connect_region(
        selector,
        source=form.trigger("source"),
        start=fields["start"],
        end=fields["end"],
        bpm=fields["bpm"],
        more=fields["regions"],
        wanted=form.wanted,
        chosen=offer.chosen,
    )


def _connect_model(form: EditForm) -> None:
    """Let the model follow the action."""
    action = form.fields["action"]
    model = form.fields["options.model"]

    def choose(action: str, chosen: str) -> str:
        return model_for(action, chosen, form.studio.status())

    action.input(choose, [action, model], model, **AT_ONCE)


def _marked(actions: gr.Radio, hints: gr.HTML, status: Status, choice: str = "") -> Updates:
    """Return the updates that say which actions the model of a `choice` is not made for."""
    tasks = tasks_here(status)
    names = {}
    for action, name in ACTIONS.items():
        experimental = tasks.get(action) == "experimental"
        names[action] = tooltips.EXPERIMENTAL.format(name=name) if experimental else name
    if status.kind_of(choice) == "turbo":
        tasks["morph"] = "unsupported"
        names["morph"] = tooltips.NOT_WITH_FAST.format(name=ACTIONS["morph"])
    marked = theme.actions(tasks, remarks(status, choice))
    return {actions: gr.update(choices=swapped(names)), hints: marked}


def _connect_kinds(form: EditForm, hints: gr.HTML) -> None:
    """Let the actions follow the model: Morph and its numbers are off for one without guidance."""
    model = form.fields["options.model"]
    action = form.fields["action"]
    numbers = form.components(MORPH_NUMBERS)

    def follow(choice: str) -> Updates:
        status = form.studio.status()
        guided = status.kind_of(choice) != "turbo"
        updates = _marked(action, hints, status, choice)
        for name, number in numbers.items():
            info = help_text(name.removeprefix("options.")) if guided else tooltips.MORPH_ON_FAST
            updates[number] = gr.update(interactive=guided, info=info)
        return updates

    outputs = [action, hints, *numbers.values()]
    model.change(follow, model, outputs, **AT_ONCE)
    form.after_status(follow, model, outputs)
