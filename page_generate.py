"""The Generate tab: a song from words, its plan, and examples to hear and to start from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

import page_fields
import page_form
import page_hints
import page_words
import theme
import tooltips
from backend import Backend
from events import InvalidRequest, Problem
from limits import preset
from page_assist import Assist
from page_fields import SongTab
from page_form import AT_ONCE, UNSEEN, Field, Form, Undo, Updates, html, updates_of, without
from page_run import tab_run_bar
from page_takes import Made, ResultPanel
from params import GenerateRequest, Request
from status import UNKNOWN, Status

# The examples' songs and their cards (tools/make_examples.py).
SOUNDS = Path(__file__).with_name("assets") / "examples"
# What the dice writes into the prompt.
IDEAS: list[str] = preset("ideas")
# The fields that an example replaces, and what they hold if the example says nothing of them.
# On a phone the form is above the examples.
TO_FORM = "() => document.querySelector('#generate-faces').scrollIntoView({ block: 'nearest' })"
BLANK_SONG = {**page_form.SONG, "duration": None, "words": page_words.NOT_CHOSEN}
PLAN_OPTIONS = (
    "options.rewrite",
    "options.exclude",
    "options.plan_strength",
    "options.plan_temperature",
    "options.plan_cfg",
    "options.plan_seed",
)


class GenerateForm(Form):
    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        read = without(super().read(values), ["words"])
        if read["options.plan"]:
            return read
        return without(read, PLAN_OPTIONS)

    def request(self, values: Iterable[Any]) -> Request:
        """Return the request of a song, whose words are written first if that was chosen."""
        held = dict(zip(self.fields, values, strict=True))
        status = self.studio.status()
        words = page_words.choice(held, status)
        if words == page_words.WRITE:
            held["lyrics"] = ""  # kept, but not used
        if words == page_words.OWN and not (held["lyrics"] or "").strip():
            raise InvalidRequest(Problem("invalid", tooltips.NO_OWN_WORDS, "lyrics"))
        song = super().request(held.values())
        if words == page_words.WRITE:
            assert isinstance(song, GenerateRequest)
            return page_words.written_first(song, status)
        return song

    def show(self, values: Mapping[str, Any]) -> Updates:
        if values.get("options.plan") and not self.studio.status().planner.available:
            values = {**values, "options.plan": False}
        if values.get("lyrics") and "words" not in values:
            values = {**values, "words": page_words.NOT_CHOSEN}
        return super().show(values)


def generate_tab(studio: Backend) -> SongTab:
    form = GenerateForm("generate", studio)
    with page_fields.tab(form), page_fields.columns(form):
        with page_fields.form_column():
            html(theme.faces(), elem_id="generate-faces", js_on_load=theme.script("faces"))
            page_fields.add_prompt(form)
            html(theme.styles(), elem_id="generate-styles")
            with gr.Row(elem_classes=["ideas"]):
                with gr.Row(elem_classes=["assist"]):
                    html(theme.dice(IDEAS), elem_id="generate-dice")
                assist = Assist(form, "inspire", "polish")
                undo = Undo("generate-examples")  # of the shelf and the dice
            _add_words(form)
            page_fields.add_lyrics(form)
            html(theme.lengths(), elem_id="generate-lengths", js_on_load=theme.script("faces"))
            page_fields.add_strip(form)
            with page_fields.details_column():
                with page_fields.fold(form, tooltips.SOUND, "sound") as sound:
                    page_fields.add_reference(form, sound)
                    page_fields.add_sound(form)
                with page_fields.fold(form, tooltips.PLAN, "plan-fold") as planning:
                    plan = form.add("options.plan", gr.Checkbox, value=True)
                    _add_plan_options(form, plan)
                with page_fields.fold(form, tooltips.ENGINE, "engine"):
                    page_fields.add_engine(form)
                with page_fields.fold(form, tooltips.SETTINGS_FILE, "settings-fold"):
                    file, line = _settings_file(form)
                page_fields.add_reset(form)
            with page_fields.foot():
                _add_also(form)
                page_hints.add_seconds(form)
                bar = tab_run_bar(form)
        with page_fields.result_column():
            result = ResultPanel(form.mode, studio)
            shelf = _add_shelf()
    _connect_shelf(form, shelf, undo, result)
    file.change(partial(page_fields.restored, form, line), file, [*form.settings, line], **AT_ONCE)
    # Not with the settings' own event: files are not kept.
    reference = form.fields["reference"]
    keep = '(reference) => void studio.kept("generate", { reference })'
    reference.change(None, reference, js=keep, **UNSEEN)
    _connect_keep(form, planning, result)
    return page_fields.connect_song_tab(form, bar, assist, result)


def _add_also(form: Form) -> None:
    """Add what else is set, for the short form, where each can be taken back."""
    folded = form.folded()
    fields = form.components(folded)
    also = html(theme.also(folded), elem_id="generate-also", js_on_load=theme.script("also"))

    def take_back(pressed: gr.EventData) -> Updates:
        field = fields.get(str(pressed.name))
        if field is None:
            return gr.skip()
        return {field: gr.update(value=field.value)}

    also.input(take_back, None, list(fields.values()), **AT_ONCE)


def _add_shelf() -> gr.HTML:
    """Add the examples that can be heard, in the place of the songs that are not there yet."""
    gr.set_static_paths([SOUNDS])
    cards = json.loads((SOUNDS / "cards.json").read_text(encoding="utf-8"))
    for name, card in cards.items():
        prompt = page_fields.EXAMPLES["generate"][name]["prompt"]
        card["style"] = prompt.split(",")[0]
    looks: dict[str, Any] = {"elem_id": "generate-shelf", "js_on_load": theme.script("examples")}
    return html(theme.shelf(cards, SOUNDS), **looks)


def _connect_shelf(form: Form, shelf: gr.HTML, undo: Undo, result: ResultPanel) -> None:
    """Let "Make one like this" fill the form with an example; Undo restores what it held."""
    examples = page_fields.EXAMPLES["generate"]
    fields = form.components(BLANK_SONG)

    def fill(pressed: gr.EventData, former: list[dict[str, Any]], *values: Any) -> Updates:
        example = examples.get(str(pressed.name))
        if example is None:
            return {undo.former: former}
        kept = undo.keep(former, dict(zip(fields, values, strict=True)))
        said = theme.answer(tooltips.EXAMPLE_FILLED_IN)
        return {**form.show({**BLANK_SONG, **example}), **kept, result.message: said}

    held = [undo.former, *fields.values()]
    outputs = [*fields.values(), *undo.outputs, result.message]
    filled = shelf.input(fill, held, outputs, **AT_ONCE)
    filled.then(None, js=TO_FORM, **AT_ONCE)
    undo.connect(fields)


def _add_words(form: Form) -> None:
    """Add the choice of the words; its buttons write into a hidden box, and tick Instrumental."""
    words = html(
        page_words.shown(UNKNOWN), elem_id="generate-words-choice", js_on_load=theme.script("faces")
    )
    box = gr.Textbox(visible="hidden", value=page_words.NOT_CHOSEN, elem_id="generate-words")
    form.add_field("words", Field(box))
    form.on_status(lambda status: {words: page_words.shown(status)})


def _settings_file(form: Form) -> tuple[gr.File, gr.HTML]:
    """Add the box for a song whose settings fill the form, and the line that says so."""
    # Without file types: to a file of another kind Gradio would answer with a list of types.
    file = gr.File(
        label=tooltips.SETTINGS_FILE,
        type="filepath",
        height=96,
        elem_id=f"{form.mode}-settings",
        elem_classes=["file"],
    )
    html(theme.remark(tooltips.SETTINGS_FILE_HELP))
    return file, html(elem_id=f"{form.mode}-offer")


def _add_plan_options(form: Form, plan: gr.Checkbox) -> None:
    form.add("options.rewrite", gr.Checkbox, value=False)
    form.add("options.exclude", gr.Textbox, max_lines=2, value="")
    form.add_number("options.plan_seed")
    for name in ("options.plan_strength", "options.plan_temperature", "options.plan_cfg"):
        form.add_slider(name)
    options = list(form.components(PLAN_OPTIONS).values())
    plan.change(lambda on: updates_of(options, interactive=on), plan, options, **AT_ONCE)

    def show(status: Status) -> Updates:
        planner = status.planner
        if planner.available:
            usual = {option: gr.update(info=option.info) for option in options}
            return {plan: gr.update(info=plan.info, interactive=True), **usual}
        why = tooltips.NO_PLAN.format(reason=planner.reason())
        off = updates_of(options, info=tooltips.NO_PLANNER, interactive=False)
        return {plan: gr.update(info=why, interactive=False, value=False), **off}

    form.on_status(show)


def _connect_keep(form: Form, planning: gr.Accordion, result: ResultPanel) -> None:
    """Let the next song have this one's plan.

    The plan's seed goes into the form, and the group that holds it opens.
    """

    def keep(made: list[Made]) -> Updates:
        seed = made[-1].plan.get("seed") if made else None
        request = {"options": {"plan": True, "plan_seed": seed}}
        found = page_form.settings("generate", {"request": request}).values
        if "options.plan_seed" not in found:
            return {result.kept: ""}
        line = theme.answer(tooltips.PLAN_KEPT.format(seed=found["options.plan_seed"]))
        return {**form.show(found), planning: gr.Accordion(open=True), result.kept: line}

    result.keep.click(keep, result.made, [*form.settings, planning, result.kept], **AT_ONCE)
