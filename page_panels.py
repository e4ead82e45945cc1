"""Groups of components that tabs share, the planner's controls, which only Generate has, and the top of the page."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

import audio_export
import page_form
import page_hints
import page_widgets
import theme
import tooltips
from backend import get_backend
from events import InvalidRequest
from limits import FORMATS, KEYS, LANGUAGES, LIMITS, MEMORY_PLANS, QUALITY_STEPS, SAMPLERS, TIME_SIGNATURES, preset
from page_form import AT_ONCE, Form, Updates, add, add_number, add_row, add_slider, help_text, html
from page_run import cancelled_box, run_bar
from page_takes import Made, ResultPanel
from params import upload_seconds, usual_sampling
from status import Status

# By tab, or "morph", and by button: the values of a form's fields.
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = preset("examples")
SOUNDS = Path(__file__).with_name("assets") / "examples"  # Generate's songs and their cards (tools/make_examples.py)


@contextlib.contextmanager
def fold(form: Form, title: str, name: str) -> Iterator[gr.Accordion]:
    """Add a folded group, which opens when a field added within is wrong."""
    before = set(form.fields)
    with gr.Accordion(title, open=False, elem_id=f"{form.mode}-{name}") as accordion:
        yield accordion
    form.folds[accordion] = tuple(form.fields.keys() - before)


def source(form: Form) -> None:
    """Add the source audio with the visitor's latest takes beside it, and the offer of the settings that it carries."""
    with gr.Row(elem_classes=["source"]):
        _audio(form, "source", form.tab.select)
        latest = theme.latest(form.mode)
    # Gradio calls an audio field changed whenever an event that has it among its inputs is answered: what follows it
    # would go in circles. The copy, which is never drawn, changes with the file alone.
    form.copies["source"] = copy = gr.Audio(type="filepath", visible=False)
    form.fields["source"].change(None, form.fields["source"], copy, js="(file) => file", **AT_ONCE)
    # The browser names the file, and Gradio checks, as for every upload, that it is one of its own copies.
    latest.input(None, latest, form.fields["source"], js="(file) => file", **AT_ONCE)
    gr.Markdown(help_text("source", task=form.mode), elem_classes=["help"])
    with gr.Row(elem_classes=["offer"]):
        line = html(elem_id=f"{form.mode}-offer")
        button = gr.Button(tooltips.RESTORE, size="sm", visible=False, min_width=160, elem_id=f"{form.mode}-restore")
    form.later.append(lambda: _connect_offer(form, line, button))


def prompt(form: Form) -> None:
    add(form, "prompt", gr.Textbox, info=help_text("prompt", task=_task(form)), lines=3, max_lines=8)
    page_hints.add_budget(form)


def lyrics(form: Form, *numbers: str) -> None:
    """Add the lyrics, Instrumental (which turns them off) and `numbers`; the help texts follow the action, if any."""
    add(form, "lyrics", gr.Textbox, info=help_text("lyrics", task=_task(form)), lines=6, max_lines=18)
    page_hints.add_advice(form)
    with gr.Row():
        add(form, "instrumental", gr.Checkbox, value=False, min_width=160)
        for name in numbers:
            add_number(form, name)

    def switch(on: bool, task: str = form.mode) -> tuple[dict[str, Any], dict[str, Any]]:
        info = tooltips.LYRICS_OFF if on else help_text("lyrics", task=task)
        return gr.update(info=help_text("prompt", task=task)), gr.update(interactive=not on, info=info)

    switches = [form.fields[name] for name in ("instrumental", "action") if name in form.fields]
    words = [form.fields[name] for name in ("prompt", "lyrics")]
    gr.on([each.change for each in switches], switch, switches, words, **AT_ONCE)


def _task(form: Form) -> str:
    return form.fields["action"].value if "action" in form.fields else form.mode


def song_details(form: Form, reference: bool = True, own: Callable[[Form], None] = lambda form: None) -> gr.Accordion:
    with fold(form, tooltips.DETAILS, "details") as details:
        own(form)
        with gr.Row(equal_height=True):
            add_number(form, "bpm")
            # A minor key is found as "Am", too.
            keys = {key: re.sub("(.+) minor", r"\g<0> (\1m)", key) for key in KEYS}
            add(form, "key", gr.Dropdown, choices=swapped({"": tooltips.AUTOMATIC, **keys}), value="")
        add(form, "time_signature", gr.Radio, choices=swapped({"": tooltips.AUTOMATIC, **TIME_SIGNATURES}), value="")
        add(form, "language", gr.Dropdown, choices=swapped(LANGUAGES), value="unknown")
        most, usual = int(LIMITS["takes"].high), int(LIMITS["takes"].default)
        add(form, "takes", gr.Radio, choices=list(range(1, most + 1)), value=usual)
        add(form, "quality", gr.Radio, choices=qualities("sft"), value="standard")
        add_number(form, "seed")
        if reference:
            _audio(form, "reference", details.expand)
            gr.Markdown(help_text("reference"), elem_classes=["help"])
    return details


def _audio(form: Form, name: str, opened: Callable[..., Any]) -> None:
    """Add a field for a file, drawn once its group is `opened`: Gradio's player is a quarter of a first visit."""
    looks = {"editable": False, "buttons": [], "waveform_options": theme.WAVEFORM, "visible": False}
    field = add(form, name, gr.Audio, classes=["field", "file"], sources=["upload"], type="filepath", **looks)
    opened(None, None, field, js='() => ({ __type__: "update", visible: true })', **AT_ONCE)


def advanced(form: Form, own: Callable[[Form], None]) -> gr.Accordion:
    with fold(form, tooltips.ADVANCED, "advanced") as group:
        own(form)
        add_row(form, add_number, "options.steps", "options.guidance", "options.shift", info="")
        add(form, "options.sampler", gr.Radio, choices=swapped(SAMPLERS), value="ode")
        add_row(form, add_slider, "options.cfg_start", "options.cfg_end")
        add(form, "options.format", gr.Radio, choices=swapped(FORMATS), value="wav")
        with gr.Row(equal_height=True):
            add_number(form, "options.loudness", placeholder=tooltips.LOUDNESS_OFF)
            add_slider(form, "options.fade_out")
        with gr.Row(equal_height=True):
            add_slider(form, "options.variation")
            add_number(form, "options.variation_seed")
        add(form, "options.timbre_token", gr.Checkbox, value=True)
        page_widgets.lora_panel(form)
        add(form, "options.memory_plan", gr.Dropdown, choices=swapped(MEMORY_PLANS), value="auto")
    form.watchers.append(lambda status: model_updates(form, status))
    return group


def model_updates(form: Form, status: Status) -> Updates:
    """Return the updates for the model and device in use: defaults, memory plans, and what a turbo one does not use."""
    kind = status.kind
    turbo = kind == "turbo"
    standard = usual_sampling("standard", kind)
    shift, guidance = f"{standard.shift:g}", f"{standard.guidance:g}"
    listed = ", ".join(f"{name} {usual_sampling(name, kind).steps}" for name in QUALITY_STEPS)
    steps = str(standard.steps) if turbo else tooltips.STEPS_BY_QUALITY.format(steps=listed)
    quality = tooltips.TURBO_QUALITY.format(steps=steps) if turbo else help_text("quality")
    guiding = {"interactive": not turbo} | ({"info": tooltips.TURBO_GUIDANCE} if turbo else {})
    plans = {name: text for name, text in MEMORY_PLANS.items() if name in ("auto", *status.memory_plans)}
    updates = {
        "quality": {"choices": qualities(kind), "info": quality},
        "options.steps": {"info": help_text("steps", steps)},
        "options.shift": {"info": help_text("shift", shift), "placeholder": shift},
        "options.guidance": {"info": help_text("guidance", guidance), "placeholder": guidance, **guiding},
        "options.cfg_start": {"info": help_text("cfg_start"), **guiding},
        "options.cfg_end": {"info": help_text("cfg_end"), **guiding},
        "options.memory_plan": {"choices": swapped(plans)},
    }
    return {form.fields[name]: gr.update(**changes) for name, changes in updates.items()}


def qualities(kind: str) -> list[tuple[str, str]]:
    return [
        (name if kind == "turbo" else f"{name}, {usual_sampling(value, kind).steps} steps", value)
        for value, name in tooltips.QUALITIES.items()
    ]


def swapped(names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for value, name in names.items()]


def examples(form: Form, name: str = "", kept: Sequence[str] = ()) -> None:
    """Add buttons that fill the form with the tab's `EXAMPLES`, or `name`'s; a visitor's own text in `kept` is kept."""
    named, blank = EXAMPLES[name or form.mode], dict.fromkeys(kept, "")
    if form.mode == "generate":
        gr.set_static_paths([SOUNDS])
        cards = json.loads((SOUNDS / "cards.json").read_text(encoding="utf-8"))
        html(theme.songs(tooltips.SONGS_LABEL, cards, SOUNDS), js_on_load=theme.script("examples"))
        blank = {**page_form.SONG, "duration": LIMITS["duration"].default}
    else:
        html(theme.caption(tooltips.MORPHS_LABEL if name == "morph" else tooltips.EXAMPLES_LABEL))
    with gr.Row(elem_classes=["chips"]):
        chips = [gr.Button(text, size="sm", min_width=0, elem_classes=["chip"]) for text in named]
    ours = {example.get(name, "") for example in named.values() for name in kept}

    def fill(pressed: gr.EventData, *texts: str) -> Updates:
        there = dict(zip(kept, texts, strict=True))
        own = {name: value for name, value in there.items() if value.strip() and value not in ours}
        # By the text on it: once a component was updated, Gradio hands out another object in its place.
        return form.show({**blank, **named[pressed.target.value], **own})

    def connect() -> None:
        filled = {*blank, *(name for example in named.values() for name in example)}
        outputs = [field for name, field in form.fields.items() if name in filled]
        gr.on([chip.click for chip in chips], fill, [form.fields[name] for name in kept], outputs, **AT_ONCE)

    form.later.append(connect)


def _connect_offer(form: Form, line: gr.HTML, button: gr.Button) -> None:
    """Say at once what is wrong with a source, and offer to restore the settings that it carries."""
    source = form.followed("source")

    def look(path: str | None) -> Updates:
        said, offered = "", False
        try:
            if path:
                upload_seconds(path)
                offered = bool(page_form.settings(form.mode, audio_export.read_record(path)).values)
                said = theme.said(tooltips.RESTORE_OFFER) if offered else ""
        except InvalidRequest as error:
            said = theme.notice("", error.problem.text())
        return {line: said, button: gr.update(visible=offered)}

    def restore(path: str | None) -> Updates:
        return {**_restored(form, line, path), button: gr.update(visible=False)}

    # A waveform selects a region when it is drawn, so settings come after it.
    looked_at = form.drawn.then if form.drawn else source.change
    looked_at(look, source, [line, button], **AT_ONCE)
    button.click(restore, source, [*form.settings, line, button], **AT_ONCE)


def settings_file(form: Form) -> None:
    looks = {"type": "filepath", "height": 140, "elem_id": f"{form.mode}-settings"}
    file = gr.File(label=tooltips.SETTINGS_FILE, file_types=["audio"], **looks)
    gr.Markdown(tooltips.SETTINGS_FILE_HELP, elem_classes=["help"])
    line = html(elem_id=f"{form.mode}-offer")
    fill = partial(_restored, form, line)
    form.later.append(lambda: file.change(fill, file, [*form.settings, line], **AT_ONCE))


def _restored(form: Form, line: gr.HTML, path: str | None) -> Updates:
    if not path:
        return {line: ""}
    found = page_form.settings(form.mode, audio_export.read_record(path))
    if not found.values:
        return {line: theme.said(tooltips.NOTHING_TO_RESTORE)}
    sentence = tooltips.restored(len(found.values), found.left_out, found.reference, found.uploads)
    return {**form.show(found.values), line: theme.said(sentence)}


class Header:
    """The top of the page: the status, and a banner whose button for the real model is a run bar of its own."""

    def __init__(self):
        self.status = html(theme.heading(), elem_id="studio-status", js_on_load=theme.script("folds"))
        cancelled = cancelled_box("download")
        with gr.Row(visible=False, elem_id="studio-banner") as self.banner:
            self.notice = html(elem_id="studio-notice", js_on_load=theme.script("folds"))
            self.bar = run_bar("download", tooltips.GET_MODEL.format(gb=0), cancelled, variant="secondary")
        self.outputs = [self.status, self.banner, self.notice, self.bar.go]

    def show(self, status: Status) -> Updates:
        get_model = tooltips.GET_MODEL.format(gb=status.download_gb)
        return {
            self.status: theme.heading(status),
            self.banner: gr.update(visible=status.is_preview or status.problem is not None),
            self.notice: theme.banner(status),
            self.bar.go: gr.update(visible=status.is_preview, value=get_model),
        }


PLAN_OPTIONS = ("options.rewrite", "options.plan_temperature", "options.plan_cfg", "options.plan_seed")


class GenerateForm(Form):
    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        read = super().read(values)
        return {name: value for name, value in read.items() if read["options.plan"] or name not in PLAN_OPTIONS}

    def show(self, values: Mapping[str, Any]) -> Updates:
        if values.get("options.plan") and not get_backend().status().planner.available:
            values = {**values, "options.plan": False}
        return super().show(values)


def add_plan_options(form: Form) -> None:
    add(form, "options.rewrite", gr.Checkbox, value=False)
    add_row(form, add_slider, "options.plan_temperature", "options.plan_cfg")
    add_number(form, "options.plan_seed")
    plan, *fields = (form.fields[name] for name in ("options.plan", *PLAN_OPTIONS))
    plan.change(lambda on: [gr.update(interactive=on) for _ in fields], plan, fields, **AT_ONCE)

    def show(status: Status) -> Updates:
        if status.planner.available:
            usual = {each: gr.update(info=each.info) for each in fields}
            return {plan: gr.update(info=plan.info, interactive=True), **usual}
        why = tooltips.NO_PLAN.format(reason=status.planner.reason())
        off = {each: gr.update(info=tooltips.NO_PLANNER, interactive=False) for each in fields}
        return {plan: gr.update(info=why, interactive=False, value=False), **off}

    form.watchers.append(show)


def connect_keep(form: Form, advanced: gr.Accordion, result: ResultPanel) -> None:
    """Let the next song have this one's plan: its seed goes into the form, and the group that holds it opens."""

    def keep(made: list[Made]) -> Updates:
        seed = (made[-1].record.get("plan") or {}).get("seed") if made else None
        found = page_form.settings("generate", {"request": {"options": {"plan": True, "plan_seed": seed}}}).values
        if "options.plan_seed" not in found:
            return {result.kept: ""}
        said = tooltips.PLAN_KEPT.format(seed=found["options.plan_seed"])
        return {**form.show(found), advanced: gr.Accordion(open=True), result.kept: theme.said(said)}

    result.keep.click(keep, result.made, [*form.settings, advanced, result.kept], **AT_ONCE)
