"""Groups of components that the tabs share: the source, the essentials, song details, advanced settings, examples,
settings that come from a file, the top of the page, and the planner's controls, which Generate alone has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

import export
import page_form
import page_hints
import page_widgets
import theme
import tooltips
from backend import get_backend
from events import InvalidRequest
from limits import FORMATS, KEYS, LANGUAGES, LIMITS, MEMORY_PLANS, SAMPLERS, TIME_SIGNATURES
from page_form import (
    AT_ONCE,
    Form,
    Updates,
    add,
    add_number,
    add_slider,
    available,
    checkpoint_updates,
    help_text,
    html,
    qualities,
    reason,
)
from page_hints import advice_line
from page_results import MOST_TAKES, Made, ResultPanel, RunBar, cancelled_box, run_bar
from params import upload_seconds

EXAMPLES: dict[str, dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).with_name("presets").joinpath("examples.json").read_text(encoding="utf-8")
)
"""By tab, or "morph", and by what the button says: the values of a form's fields."""

SOUNDS = Path(__file__).with_name("assets") / "examples"
"""The songs of Generate's examples, their pictures, and `cards.json` (tools/make_examples.py)."""

DRAWN = '() => ({ __type__: "update", visible: true })'

# --- groups of fields ---------------------------------------------------------------------------------------------


def source(form: Form) -> Offer:
    """Add the source audio with the visitor's latest takes beside it, and below them what a file carries."""
    with gr.Row(elem_classes=["source"]):
        _audio(form, "source", form.tab.select)
        latest = gr.HTML(
            html_template=theme.latest(),
            js_on_load=theme.script("latest"),
            apply_default_css=False,
            elem_id=f"{form.mode}-latest",
            elem_classes=["latest-takes"],
        )
    # Gradio calls an audio field changed whenever an event that has it among its inputs is answered: what follows it
    # would go in circles. The copy, which is never drawn, changes with the file alone.
    form.copies["source"] = copy = gr.Audio(type="filepath", visible=False)
    form.fields["source"].change(None, form.fields["source"], copy, js="(file) => file", **AT_ONCE)
    # The file that the browser names is asked for as every upload is: Gradio looks whether it is one of its own copies.
    latest.input(None, latest, form.fields["source"], js="(file) => file", **AT_ONCE)
    _file_help(form, "source")
    with gr.Row(elem_classes=["offer"]):
        line = html(elem_id=f"{form.mode}-offer")
        button = gr.Button(tooltips.RESTORE, size="sm", visible=False, min_width=160, elem_id=f"{form.mode}-restore")
    return Offer(line, button)


def prompt(form: Form) -> None:
    """Add the prompt, and the line below it that tells how much of it the model reads."""
    _words(form, "prompt", lines=3, max_lines=8)
    line = page_hints.budget_line(form)
    form.later.append(lambda: page_hints.connect_budget(form, line))


def lyrics(form: Form, *numbers: str) -> gr.HTML:
    """Add lyrics, instrumental and these numbers; Instrumental switches the lyrics box off.

    Where the form has actions, the help of prompt and lyrics follows them. Returns the place for advice on the lyrics.
    """
    _words(form, "lyrics", lines=6, max_lines=18)
    advice = advice_line(form.mode)
    with gr.Row():
        instrumental = add(form, "instrumental", gr.Checkbox, value=False, min_width=160)
        for name in numbers:
            add_number(form, name)

    def switch(on: bool, task: str = form.mode) -> tuple[dict[str, Any], dict[str, Any]]:
        info = tooltips.LYRICS_OFF if on else help_text("lyrics", task=task)
        return gr.update(info=help_text("prompt", task=task)), gr.update(interactive=not on, info=info)

    switches = [instrumental, *(form.fields[name] for name in ("action",) if name in form.fields)]
    words = [form.fields[name] for name in ("prompt", "lyrics")]
    gr.on([each.change for each in switches], switch, switches, words, **AT_ONCE)
    return advice


def _words(form: Form, name: str, **size: int) -> None:
    task = form.fields["action"].value if "action" in form.fields else form.mode
    text = {"placeholder": tooltips.PLACEHOLDERS[name], "info": help_text(name, task=task)}
    add(form, name, gr.Textbox, **text, **size)


def song_details(form: Form, reference: bool = True, own: Callable[[Form], None] = lambda form: None) -> gr.Accordion:
    """Add the folded group of the second level: the tab's `own` fields, then tempo, key, metre, language, takes,
    quality, seed, reference.
    """
    before = set(form.fields)
    with gr.Accordion(tooltips.DETAILS, open=False, elem_id=f"{form.mode}-details") as fold:
        own(form)
        with gr.Row(equal_height=True):
            add_number(form, "bpm")
            add(form, "key", gr.Dropdown, choices=_keys(), value="")
        metres = [(tooltips.AUTOMATIC, ""), *((name, number) for number, name in TIME_SIGNATURES.items())]
        add(form, "time_signature", gr.Radio, choices=metres, value="")
        add(form, "language", gr.Dropdown, choices=_swapped(LANGUAGES), value="unknown")
        add(form, "takes", gr.Radio, choices=list(range(1, MOST_TAKES + 1)), value=int(LIMITS["takes"].default))
        add(form, "quality", gr.Radio, choices=qualities("sft"), value="standard")
        add_number(form, "seed")
        if reference:
            _audio(form, "reference", fold.expand)
            _file_help(form, "reference")
    form.folds[fold] = tuple(form.fields.keys() - before)
    return fold


def _keys() -> list[tuple[str, str]]:
    """Return the choices of Key; a minor one is found by "Am" as well, and what is no key cannot be chosen."""
    minor = {key: f"{key} ({key.removesuffix(' minor')}m)" for key in KEYS if key.endswith(" minor")}
    return [(tooltips.AUTOMATIC, ""), *((minor.get(key, key), key) for key in KEYS)]


def _audio(form: Form, name: str, opened: Callable[..., Any]) -> None:
    """Add a field for a file, which is drawn once it is `opened`: Gradio's player is a quarter of a first visit."""
    looks = {"editable": False, "buttons": [], "waveform_options": theme.WAVEFORM, "visible": False}
    field = add(form, name, gr.Audio, extra=["file"], sources=["upload"], type="filepath", **looks)
    opened(None, None, field, js=DRAWN, **AT_ONCE)


def _file_help(form: Form, name: str) -> None:
    gr.Markdown(help_text(name, task=form.mode), elem_classes=["help"])


def advanced(form: Form, own: Callable[[Form], None] = lambda form: None) -> gr.Accordion:
    """Add the folded group of the third level: the tab's `own` options, then every option that all tabs have."""
    before = set(form.fields)
    with gr.Accordion(tooltips.ADVANCED, open=False, elem_id=f"{form.mode}-advanced") as fold:
        own(form)
        with gr.Row(equal_height=True):
            add_number(form, "options.steps", info="")
            add_number(form, "options.guidance", info="")
            add_number(form, "options.shift", info="")
        add(form, "options.sampler", gr.Radio, choices=_swapped(SAMPLERS), value="ode")
        with gr.Row(equal_height=True):
            add_slider(form, "options.cfg_start")
            add_slider(form, "options.cfg_end")
        add(form, "options.format", gr.Radio, choices=_swapped(FORMATS), value="wav")
        with gr.Row(equal_height=True):
            add_number(form, "options.loudness", placeholder=tooltips.LOUDNESS_OFF)
            add_slider(form, "options.fade_out")
        with gr.Row(equal_height=True):
            add_slider(form, "options.variation")
            add_number(form, "options.variation_seed")
        add(form, "options.timbre_token", gr.Checkbox, value=True)
        page_widgets.lora_panel(form)
        add(form, "options.memory_plan", gr.Dropdown, choices=_swapped(MEMORY_PLANS), value="auto")
    form.folds[fold] = tuple(form.fields.keys() - before)
    form.watchers.append(lambda facts: checkpoint_updates(form, facts["kind"]))
    form.watchers.append(lambda facts: _memory_plans(form, facts["memory_plans"]))
    return fold


def _memory_plans(form: Form, known: Sequence[str]) -> Updates:
    """Offer the plans that the device in use knows."""
    plans = {name: text for name, text in MEMORY_PLANS.items() if name in ("auto", *known)}
    return {form.fields["options.memory_plan"]: gr.update(choices=_swapped(plans))}


def _swapped(names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for value, name in names.items()]


def examples(
    form: Form,
    name: str = "",
    caption: str = tooltips.EXAMPLES_LABEL,
    kept: Sequence[str] = (),
    blank: Mapping[str, Any] | None = None,
    songs: bool = False,
) -> None:
    """Add a button for each of the `EXAMPLES` called `name` (the tab's own where it is empty), which fills the form.

    With `songs` it plays its song as well. A visitor's own texts in the fields named by `kept` stay. Fields of `blank`
    get that value from an example that does not name them.
    """
    if songs:
        gr.set_static_paths([SOUNDS])
        cards = json.loads((SOUNDS / "cards.json").read_text(encoding="utf-8"))
        html(theme.songs(caption, cards, SOUNDS), js_on_load=theme.script("examples"))
    else:
        html(theme.caption(caption))
    named = EXAMPLES[name or form.mode]
    with gr.Row(elem_classes=["chips"]):
        chips = [gr.Button(text, size="sm", min_width=0, elem_classes=["chip"]) for text in named]
    usual = {**(blank or {}), **dict.fromkeys(kept, "")}
    ours = {example.get(name, "") for example in named.values() for name in kept}

    def fill(pressed: gr.EventData, *texts: str) -> Updates:
        there = dict(zip(kept, texts, strict=True))
        own = {name: value for name, value in there.items() if value.strip() and value not in ours}
        # By the text on it: once a component was updated, Gradio hands out another object in its place.
        return form.show({**usual, **named[pressed.target.value], **own})

    def connect() -> None:
        filled = {*usual, *(name for example in named.values() for name in example)}
        outputs = [field for name, field in form.fields.items() if name in filled]
        gr.on([chip.click for chip in chips], fill, [form.fields[name] for name in kept], outputs, **AT_ONCE)

    form.later.append(connect)


# --- settings from a file -----------------------------------------------------------------------------------------


@dataclass
class Offer:
    """The line under a file that says what it carries, and the button that fills the form from it."""

    line: gr.HTML
    button: gr.Button


def connect_offer(form: Form, offer: Offer, shown: Any = None) -> None:
    """Say at once what is wrong with a source, and offer to restore the settings that it carries.

    Where the source has a waveform, `shown` is the event that shows it: it chooses a region, so settings come after it.
    """
    source = form.followed("source")
    hidden = gr.update(visible=False)

    def look(path: str | None) -> Updates:
        if not path:
            return {offer.line: "", offer.button: hidden}
        try:
            upload_seconds(path)
        except InvalidRequest as error:
            return {offer.line: theme.notice("", error.problem.text()), offer.button: hidden}
        if not page_form.settings(form.mode, export.read_record(path)).values:
            return {offer.line: "", offer.button: hidden}
        return {offer.line: theme.said(tooltips.RESTORE_OFFER), offer.button: gr.update(visible=True)}

    def fill(path: str | None) -> Updates:
        return {**restored(form, offer.line, path), offer.button: hidden}

    looked_at = shown.then if shown else source.change
    looked_at(look, source, [offer.line, offer.button], **AT_ONCE)
    offer.button.click(fill, source, [*form.settings, offer.line, offer.button], **AT_ONCE)


@dataclass
class SettingsFile:
    """The field for files whose settings are wanted, and the line that says what became of them."""

    file: gr.File
    line: gr.HTML


def settings_file(form: Form) -> SettingsFile:
    """Make the field for files whose settings fill the form as soon as they are dropped."""
    file = gr.File(
        label=tooltips.SETTINGS_FILE, file_types=["audio"], type="filepath", height=140, elem_id=f"{form.mode}-settings"
    )
    gr.Markdown(tooltips.SETTINGS_FILE_HELP, elem_classes=["help"])
    return SettingsFile(file, html(elem_id=f"{form.mode}-offer"))


def connect_settings_file(form: Form, dropped: SettingsFile) -> None:
    def fill(path: str | None) -> Updates:
        return restored(form, dropped.line, path) if path else {dropped.line: ""}

    dropped.file.change(fill, dropped.file, [*form.settings, dropped.line], **AT_ONCE)


def restored(form: Form, line: gr.HTML, path: str | None) -> Updates:
    """Return the updates that fill the form with what fits of the record in a file, and say so on the line."""
    record = export.read_record(path) if path else None
    found = page_form.settings(form.mode, record)
    if not found.values:
        return {line: theme.said(tooltips.NOTHING_TO_RESTORE)}
    uploads_lost = page_widgets.uploads_in(record) if page_widgets.LORAS in found.values else 0
    sentence = tooltips.restored(len(found.values), found.left_out - uploads_lost, found.reference, uploads_lost)
    return {**form.show(found.values), line: theme.said(sentence)}


# --- the header ---------------------------------------------------------------------------------------------------


@dataclass
class Header:
    """The heading with the status, and the banner with the way to the real model, which is a run bar of its own."""

    status: gr.HTML
    banner: gr.Row
    notice: gr.HTML
    bar: RunBar

    @property
    def outputs(self) -> list[Any]:
        return [self.status, self.banner, self.notice, self.bar.go]

    def show(self, facts: Mapping[str, Any]) -> Updates:
        """Return the updates for what the backend says about itself."""
        preview = facts["engine"] == "preview"
        return {
            self.status: theme.heading(facts),
            self.banner: gr.update(visible=preview or bool(facts["problem"])),
            self.notice: theme.banner(facts),
            self.bar.go: gr.update(visible=preview, value=tooltips.GET_MODEL.format(gb=facts["download_gb"])),
        }


def header() -> Header:
    """Make the top of the page: one line with the status, and the banner, which appears where there is a need."""
    status = html(theme.heading(), elem_id="studio-status", js_on_load=theme.script("folds"))
    cancelled = cancelled_box("download")
    with gr.Row(visible=False, elem_id="studio-banner") as banner:
        notice = html(elem_id="studio-notice", js_on_load=theme.script("folds"))
        bar = run_bar("download", tooltips.GET_MODEL.format(gb=0), cancelled, variant="secondary")
    return Header(status, banner, notice, bar)


# --- plan the song first ----------------------------------------------------------------------------------------------

PLAN_OPTIONS = ("options.rewrite", "options.plan_temperature", "options.plan_cfg", "options.plan_seed")


class GenerateForm(Form):
    """The form of the Generate tab. Its request says nothing about how to plan where nothing is planned."""

    def __init__(self):
        super().__init__("generate")

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        read = super().read(values)
        unused = () if read["options.plan"] else PLAN_OPTIONS
        return {name: value for name, value in read.items() if name not in unused}

    def show(self, values: Mapping[str, Any]) -> Updates:
        """Return the updates that put checked values into their fields; a plan is asked for where one can be made."""
        if values.get("options.plan") and not available(get_backend().status()["planner"]):
            values = {**values, "options.plan": False}
        return super().show(values)


def add_plan(form: Form) -> None:
    add(form, "options.plan", gr.Checkbox, value=True)


def add_plan_options(form: Form) -> None:
    """Add how a plan is made, which has an effect where one is."""
    add(form, "options.rewrite", gr.Checkbox, value=False)
    with gr.Row(equal_height=True):
        add_slider(form, "options.plan_temperature")
        add_slider(form, "options.plan_cfg")
    add_number(form, "options.plan_seed")
    fields = [form.fields[name] for name in PLAN_OPTIONS]
    plan = form.fields["options.plan"]
    plan.change(lambda on: [gr.update(interactive=on) for _ in fields], plan, fields, **AT_ONCE)
    form.watchers.append(lambda facts: plan_updates(form, facts["planner"]))


def plan_updates(form: Form, planner: Mapping[str, Any]) -> Updates:
    """Return what the form says about the planner: without one nothing is planned, and each control says why."""
    names = ("options.plan", *PLAN_OPTIONS)
    if not available(planner):
        why = {"options.plan": tooltips.NO_PLAN.format(reason=reason(planner))}
        updates = {name: {"info": why.get(name, tooltips.NO_PLANNER), "interactive": False} for name in names}
        updates["options.plan"]["value"] = False
    else:
        updates = {name: {"info": help_text(name.rpartition(".")[2])} for name in names}
        updates["options.plan"]["interactive"] = True
    return {form.fields[name]: gr.update(**changes) for name, changes in updates.items()}


def connect_keep(form: Form, fold: gr.Accordion, result: ResultPanel) -> None:
    """Let the next song have this one's plan: its seed goes into the form, and the group that holds it unfolds."""
    plan = result.plan

    def keep(made: list[Made]) -> Updates:
        seed = (made[-1].record.get("plan") or {}).get("seed") if made else None
        options = {"plan": True, "plan_seed": seed}
        found = page_form.settings("generate", {"request": {"options": options}}).values
        if "options.plan_seed" not in found:
            return {plan.kept: ""}
        said = tooltips.PLAN_KEPT.format(seed=found["options.plan_seed"])
        return {**form.show(found), fold: gr.Accordion(open=True), plan.kept: theme.said(said)}

    plan.keep.click(keep, result.made, [*form.settings, fold, plan.kept], **AT_ONCE)
