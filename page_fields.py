"""Groups of components that several tabs share: source, words, song details, Advanced, reset."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

import audio_export
import page_form
import page_hints
import page_widgets
import theme
import tooltips
from events import InvalidRequest
from limits import (
    AUTOMATIC_GPU_SECONDS,
    FORMATS,
    KEYS,
    LANGUAGES,
    LIMITS,
    MEMORY_PLANS,
    MODELS,
    QUALITY_STEPS,
    SAMPLERS,
    SCORE_PARTS,
    TIME_SIGNATURES,
    preset,
    usual_count,
)
from page_assist import Assist, connect_assist
from page_form import AT_ONCE, Field, Form, Undo, Updates, help_text, html, only
from page_loras import add_loras
from page_run import RunBar
from page_takes import ResultPanel, connect_song, connect_takes
from params import upload_seconds, usual_sampling
from status import SongModelStatus, Status

# By tab, or "morph", and by button: the values of a form's fields.
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = preset("examples")
# The fields behind the chips of a strip, in their order.
STRIP = (
    "duration",
    "bpm",
    "key",
    "time_signature",
    "language",
    "takes",
    "quality",
    "options.model",
    "seed",
)


@dataclass(frozen=True)
class SongTab:
    """A finished tab that makes songs; `runs` are the runs that its buttons start."""

    form: Form
    result: ResultPanel
    assist: Assist
    runs: Sequence[Dependency]
    bar: RunBar


def connect_song_tab(form: Form, bar: RunBar, assist: Assist, result: ResultPanel) -> SongTab:
    """Connect what all tabs for songs have; call it once all fields exist."""
    helps = connect_assist(form, assist)
    song = connect_song(form, bar, result)
    connect_takes(form, bar, result, assist.undo)
    return SongTab(form, result, assist, [*helps, song], bar)


# --- the parts of a tab ---------------------------------------------------------------------------


def tab(form: Form) -> gr.Tab:
    return gr.Tab(tooltips.TABS[form.mode], id=form.mode, elem_id=f"{form.mode}-panel")


def columns(form: Form) -> gr.Row:
    """Make the row that holds the form and the result."""
    return gr.Row(elem_classes=["columns"], elem_id=f"{form.mode}-columns")


def form_column() -> gr.Column:
    """Make the column of the form: the essentials, the details, and the run bar at its foot."""
    return gr.Column(elem_classes=["form-column"])


def result_column() -> gr.Column:
    return gr.Column(elem_classes=["result"])


def details_column() -> gr.Column:
    return gr.Column(elem_classes=["details"])


def foot() -> gr.Row:
    """Make the row at the foot of a form, for the run bar and the lines above it."""
    return gr.Row(elem_classes=["run-bar"])


@contextlib.contextmanager
def fold(form: Form, title: str, name: str) -> Iterator[gr.Accordion]:
    """Add a folded group, which opens when a field added within is wrong."""
    before = form.fields.keys()
    looks: dict[str, Any] = {"elem_id": f"{form.mode}-{name}", "elem_classes": ["fold"]}
    with gr.Accordion(title, open=False, **looks) as accordion:
        yield accordion
    form.add_fold(accordion, form.fields.keys() - before)


def add_result(form: Form) -> ResultPanel:
    with result_column():
        return ResultPanel(form.mode, form.studio)


def add_reset(form: Form, cancel: str = tooltips.CANCEL) -> None:
    """Add the hint of a tab's keys, what explains its fields, and the button that resets them.

    Call it once all fields exist.

    `cancel` is what the second key does.
    """
    with gr.Row(elem_classes=["foot"]):
        html(theme.keys(tooltips.GO[form.mode], cancel))
        html(theme.explain(), js_on_load=theme.script("explain"))
        button = gr.Button(tooltips.RESET, size="sm", min_width=0, elem_id=f"{form.mode}-reset")
        undo = Undo(f"{form.mode}-reset")
    fields = form.saved
    defaults = form.defaults

    def reset(former: list[dict[str, Any]], *values: Any) -> Updates:
        return {**form.show(defaults), **undo.keep(former, dict(zip(fields, values, strict=True)))}

    held = list(fields.values())
    button.click(reset, [undo.former, *held], [*held, *undo.outputs], **AT_ONCE)
    undo.connect(fields)


# --- the source -----------------------------------------------------------------------------------


class RestoreOffer:
    """The offer to restore a source's settings; its line also shows problems with the file.

    A source whose name is `chosen`, since it was picked among the latest takes, brings its words along, as it does
    by its own buttons.
    """

    def __init__(self, form: Form, chosen: gr.Textbox):
        self._form = form
        self.chosen = chosen
        with gr.Row(elem_classes=["offer"]):
            self._line = html(elem_id=f"{form.mode}-offer")
            looks: dict[str, Any] = {"size": "sm", "visible": False, "min_width": 160}
            self._button = gr.Button(tooltips.RESTORE, elem_id=f"{form.mode}-restore", **looks)

    def connect(self, after: Callable[..., Dependency] | None = None) -> None:
        """Look at each new source, when it changes or `after` another event."""
        form = self._form
        source = form.trigger("source")
        look_after = after or source.change
        words = form.components([*page_form.SONG, "source_prompt", "source_lyrics"])
        looked = [self._line, self._button, self.chosen, *words.values()]
        look_after(self._look, [source, self.chosen], looked, **AT_ONCE)
        outputs = [*form.settings, self._line, self._button]
        self._button.click(self._restore, source, outputs, **AT_ONCE)

    def _look(self, path: str | None, chosen: str) -> Updates:
        nothing: Updates = {self._line: "", self._button: gr.update(visible=False)}
        if not path:
            return nothing
        nothing[self.chosen] = ""
        try:
            upload_seconds(path)
            record = audio_export.read_record(path)
            offered = page_form.settings(self._form.mode, record).values
        except InvalidRequest as error:
            return {**nothing, self._line: theme.notice("", error.problem.text())}
        if not offered:
            return nothing
        shown = {
            self._line: theme.answer(tooltips.RESTORE_OFFER),
            self._button: gr.update(visible=True),
            self.chosen: "",
        }
        if Path(path).name != chosen:
            return shown
        words = self._form.show(page_form.words_for(self._form.mode, record))
        return {**words, **shown}

    def _restore(self, path: str | None) -> Updates:
        return {**restored(self._form, self._line, path), self._button: gr.update(visible=False)}


def restored(form: Form, line: gr.HTML, path: str | None) -> Updates:
    """Return the updates that fill the form with the settings in a file, and say so on `line`."""
    if not path:
        return {line: ""}
    found = page_form.settings(form.mode, audio_export.read_record(path))
    if not found.values:
        return {line: theme.answer(tooltips.NOTHING_TO_RESTORE)}
    sentence = tooltips.restored(
        len(found.values), found.left_out, found.reference, found.uploads, found.old_plan
    )
    another = another_model(found.values.get("options.model", ""), form.studio.status())
    sentence = f"{sentence} {another}".strip()
    return {**form.show(found.values), line: theme.answer(sentence)}


def add_source(form: Form, tab: gr.Tab) -> RestoreOffer:
    """Add the source with the latest takes beside it, and the offer to restore its settings."""
    with gr.Row(elem_classes=["source"]):
        source = add_audio(form, "source", tab.select)
        latest = page_widgets.latest_takes(form.mode)
    # To Gradio an audio field changes whenever an event that has it among its inputs is answered:
    # events that follow it would never end. The copy, which is never drawn, changes only with the
    # file.
    copy = gr.Audio(type="filepath", visible=False)
    form.set_copy("source", copy)
    card = f'(file) => studio.source("{form.mode}", file)'
    source.change(None, source, copy, js=card, **AT_ONCE)
    # The browser sends the file's name, and Gradio checks, as for every upload, that the file is
    # one of its own copies.
    chosen = gr.Textbox(visible=False)
    name_too = f'(file) => [file, file.again ? "{page_widgets.AGAIN}" : file.orig_name]'
    latest.input(None, latest, [source, chosen], js=name_too, **AT_ONCE)
    html(theme.remark(help_text("source", task=form.mode)), elem_id=f"{form.mode}-source-help")
    return RestoreOffer(form, chosen)


def add_audio(form: Form, name: str, opened: Callable[..., Dependency]) -> gr.Audio:
    """Add a field for a file, drawn once its group is `opened`.

    Gradio's player is a quarter of what a first visit loads.
    """
    field = form.add(
        name,
        gr.Audio,
        ["field", "file"],
        sources=["upload"],
        type="filepath",
        editable=False,
        buttons=[],
        waveform_options=theme.WAVEFORM,
        visible=False,
    )
    opened(None, None, field, js='() => ({ __type__: "update", visible: true })', **AT_ONCE)
    return field


# --- words ----------------------------------------------------------------------------------------


def add_prompt(form: Form) -> None:
    form.add("prompt", gr.Textbox, info=help_text("prompt", task=_task(form)), lines=3, max_lines=8)
    page_hints.add_budget(form)


def add_lyrics(form: Form, *numbers: str) -> None:
    """Add the lyrics, Instrumental, which turns them off, and `numbers` beside it.

    The help texts follow the action, if the tab has actions.
    """
    info = help_text("lyrics", task=_task(form))
    if form.mode == "generate":
        html(theme.tags(form.element_id("lyrics")), elem_id=f"{form.mode}-tags")
    form.add("lyrics", gr.Textbox, info=info, lines=6, max_lines=18)
    page_hints.add_advice(form)
    with gr.Row():
        form.add("instrumental", gr.Checkbox, value=False, min_width=160)
        for name in numbers:
            form.add_number(name)

    off = tooltips.WORDS_OFF if form.mode == "generate" else tooltips.LYRICS_OFF

    def switch(instrumental: bool, task: str = form.mode) -> tuple[dict[str, Any], dict[str, Any]]:
        prompt = gr.update(info=help_text("prompt", task=task))
        if instrumental:
            return prompt, gr.update(interactive=False, info=off)
        return prompt, gr.update(interactive=True, info=help_text("lyrics", task=task))

    switches = list(form.components(["instrumental", "action"]).values())
    words = [form.fields["prompt"], form.fields["lyrics"]]
    gr.on([each.change for each in switches], switch, switches, words, **AT_ONCE)


def _task(form: Form) -> str:
    """Return whose help texts the words have at first: the action's, or the tab's."""
    if "action" in form.fields:
        return form.fields["action"].value
    return form.mode


class Examples:
    """Buttons that fill the form with the tab's `EXAMPLES`, or those of `name`; Undo restores what it held.

    What visitors wrote in the fields `kept` is kept.
    """

    def __init__(self, form: Form, caption: str = "", name: str = "", kept: Sequence[str] = ()):
        self._form = form
        name = name or form.mode
        self._named = EXAMPLES[name]
        self._kept = kept
        html(caption or theme.caption(tooltips.EXAMPLES_LABEL))
        with gr.Row(elem_classes=["chips"]):
            self.chips = {text: self._chip(text) for text in self._named}
            self._undo = Undo(f"{name}-examples")

    def _chip(self, text: str) -> gr.Button:
        return gr.Button(text, size="sm", min_width=0, elem_classes=["chip"])

    def connect(self) -> None:
        """Connect the buttons; call it once all fields exist."""
        undo = self._undo
        names = set(self._kept).union(*self._named.values())
        fields = only(self._form.fields, names)
        blank = dict.fromkeys(self._kept, "")
        ours: set[str] = set()
        for example in self._named.values():
            ours.update(only(example, self._kept).values())

        def fill(pressed: gr.EventData, former: list[dict[str, Any]], *values: Any) -> Updates:
            held = dict(zip(fields, values, strict=True))
            own = {
                field: text
                for field, text in only(held, self._kept).items()
                if text.strip() and text not in ours
            }
            # By its text: once a component was updated, Gradio passes another object.
            example = self._named[_text_of(pressed)]
            filled = self._form.show({**blank, **example, **own})
            return {**filled, **undo.keep(former, held)}

        held = [undo.former, *fields.values()]
        outputs = [*fields.values(), *undo.outputs]
        gr.on([chip.click for chip in self.chips.values()], fill, held, outputs, **AT_ONCE)
        undo.connect(fields)


def _text_of(pressed: gr.EventData) -> str:
    """Return the text of the button that was pressed."""
    button: Any = pressed.target
    return button.value


# --- settings -------------------------------------------------------------------------------------


def add_strip(form: Form) -> None:
    """Add the length and what `add_song_details` has, each behind a chip that says what is set."""
    chips = html(elem_id=f"{form.mode}-strip", js_on_load=theme.script("faces"))
    with gr.Column(elem_classes=["opened"]):
        form.add_number("duration")
        add_song_details(form)
    form.add_strip(STRIP)
    chips.value = theme.strip({name: form.label(name) for name in STRIP}, form.element_id)


def add_song_details(form: Form) -> None:
    """Add tempo, key, time signature, language, takes, quality and seed."""
    form.add_number("bpm")
    # A minor key is found as "Am", too.
    keys = {key: re.sub("(.+) minor", r"\g<0> (\1m)", key) for key in KEYS}
    form.add("key", gr.Dropdown, choices=swapped({"": tooltips.AUTOMATIC, **keys}), value="")
    form.add("language", gr.Dropdown, choices=swapped(LANGUAGES), value="unknown")
    form.add_number("seed")
    metres = swapped({"": tooltips.AUTOMATIC, **TIME_SIGNATURES})
    form.add("time_signature", gr.Radio, choices=metres, value="")
    counts = range(1, int(LIMITS["takes"].high) + 1)
    form.add("takes", gr.Radio, choices=list(counts), value=usual_count("takes"))
    add_model(form)
    form.add("quality", gr.Radio, choices=qualities("sft"), value="standard")


def add_model(form: Form) -> None:
    """Add the song model; it is drawn where there are several. The value "" is the studio's own."""
    choices = swapped({"": MODELS["sft"], **MODELS})
    field = form.add("options.model", gr.Radio, choices=choices, value="", visible=False)

    def of_form(name: str) -> str:
        return choice_of(name, form.studio.status())

    form.add_field("options.model", Field(field, from_request=of_form))


def choice_of(name: str, status: Status) -> str:
    """Return the value of Model for a name in a request: "" for the studio's own, and for what is not here."""
    for model in status.song_models:
        if name in (model.name, model.model) and model.state != "missing" and not model.own:
            return model.name
    return ""


def another_model(name: str, status: Status) -> str:
    """Say what the model of a record, by its `name` there, changes; "" if it is the studio's own."""
    for model in status.song_models:
        if name in (model.name, model.model) and model.state != "missing":
            if model.own:
                return ""
            return tooltips.MODEL_RESTORED.format(name=MODELS[model.name])
    if not name or name == status.model:
        return ""
    return tooltips.MODEL_NOT_HERE.format(name=name)


def add_reference(form: Form, fold: gr.Accordion) -> None:
    """Add the reference, with a line that shows problems with it at once."""
    reference = add_audio(form, "reference", fold.expand)
    html(theme.remark(help_text("reference")))
    line = html(elem_id=f"{form.mode}-reference-line")

    def check(path: str | None) -> str:
        try:
            if path:
                upload_seconds(path, "reference")
        except InvalidRequest as error:
            return theme.notice("", error.problem.text())
        return ""

    # Not with every change, see `add_source`.
    reference.upload(check, reference, line, **AT_ONCE)
    reference.clear(lambda: "", None, line, **AT_ONCE)


def add_sound(form: Form) -> None:
    """Add what changes the sound of a song, how takes are chosen, and how they are saved."""
    form.add_slider("options.variation")
    form.add_number("options.variation_seed")
    form.add_number("options.best_of", placeholder=tooltips.LOUDNESS_OFF)
    form.add_number("options.loudness", placeholder=tooltips.LOUDNESS_OFF)
    form.add_slider("options.fade_out")
    form.add("options.format", gr.Radio, choices=swapped(FORMATS), value="wav")
    parts = list(SCORE_PARTS)
    group = form.add("options.score", gr.CheckboxGroup, choices=swapped(SCORE_PARTS), value=parts)
    form.add_field("options.score", Field(group, from_request=list))
    add_loras(form)


def add_engine(form: Form) -> None:
    """Add how a song is computed; call it once the other fields exist."""
    for name in ("options.steps", "options.guidance", "options.shift"):
        form.add_number(name, info="")
    form.add("options.memory_plan", gr.Dropdown, choices=swapped(MEMORY_PLANS), value="auto")
    form.add_slider("options.cfg_start")
    form.add_slider("options.cfg_end")
    form.add("options.sampler", gr.Radio, choices=swapped(SAMPLERS), value="ode")
    form.add("options.timbre_token", gr.Checkbox, value=True)
    form.on_status(lambda status: status_updates(form, status))
    model = form.fields["options.model"]

    def follow(choice: str) -> Updates:
        status = form.studio.status()
        updates = kind_updates(form, status.kind_of(choice))
        return {**updates, model: gr.update(info=model_info(status, choice))}

    outputs = [*kind_updates(form, "sft"), model]
    model.change(follow, model, outputs, **AT_ONCE)
    form.after_status(follow, model, outputs)


def status_updates(form: Form, status: Status) -> Updates:
    """Return the updates for the studio's models and device: what can be chosen, and its own model's defaults."""
    offered = models_offered(status)
    values = {model.name: "" if model.own else model.name for model in offered}
    choices = [(MODELS[name], value) for name, value in values.items()]
    uses = model_info(status)
    plans = only(MEMORY_PLANS, ["auto", *status.memory_plans])
    fields = form.fields
    return {
        **kind_updates(form, status.kind),
        fields["options.model"]: gr.update(choices=choices, info=uses, visible=len(offered) > 1),
        fields["options.memory_plan"]: gr.update(choices=swapped(plans)),
    }


def models_offered(status: Status) -> list[SongModelStatus]:
    """Return the song models that can be chosen: those that are here, and those that can be downloaded."""
    return [model for model in status.song_models if model.state != "missing" or model.download_gb]


def model_info(status: Status, choice: str = "") -> str:
    """Say what each model is for, and where to get the chosen one if it is not here."""
    texts = [use_of(model) for model in models_offered(status)]
    if status.to_get(choice) is not None:
        texts.append(tooltips.MODEL_TO_GET.format(name=MODELS[choice]))
    return " ".join(texts)


def use_of(model: SongModelStatus) -> str:
    """Say what a model is for and, on ZeroGPU, what a minute of music takes of a visitor's quota."""
    use = tooltips.MODEL_USES[model.name]
    if not model.gpu_seconds:
        return use
    minute = tooltips.A_MINUTE.format(seconds=model.gpu_seconds, quota=AUTOMATIC_GPU_SECONDS)
    return f"{use} {minute}"


def kind_updates(form: Form, kind: str) -> Updates:
    """Return the updates for a model of `kind`: its defaults, and what a turbo checkpoint does not use."""
    standard = usual_sampling("standard", kind)
    shift = f"{standard.shift:g}"
    guidance = f"{standard.guidance:g}"
    if kind == "turbo":
        steps = str(standard.steps)
        quality = tooltips.TURBO_QUALITY.format(steps=steps)
        guidance_help = tooltips.TURBO_GUIDANCE
        cfg_start_help = tooltips.TURBO_GUIDANCE
        cfg_end_help = tooltips.TURBO_GUIDANCE
    else:
        listed = ", ".join(f"{name} {usual_sampling(name, kind).steps}" for name in QUALITY_STEPS)
        steps = tooltips.STEPS_BY_QUALITY.format(steps=listed)
        quality = help_text("quality")
        guidance_help = help_text("guidance", guidance)
        cfg_start_help = help_text("cfg_start")
        cfg_end_help = help_text("cfg_end")
    guided = kind != "turbo"
    fields = form.fields
    return {
        fields["quality"]: gr.update(choices=qualities(kind), info=quality),
        fields["options.steps"]: gr.update(info=help_text("steps", steps)),
        fields["options.shift"]: gr.update(info=help_text("shift", shift), placeholder=shift),
        fields["options.guidance"]: gr.update(
            info=guidance_help, placeholder=guidance, interactive=guided
        ),
        fields["options.cfg_start"]: gr.update(info=cfg_start_help, interactive=guided),
        fields["options.cfg_end"]: gr.update(info=cfg_end_help, interactive=guided),
    }


def qualities(kind: str) -> list[tuple[str, str]]:
    """Return the choices of Quality; a turbo checkpoint takes the same steps for each of them."""
    if kind == "turbo":
        return swapped(tooltips.QUALITIES)
    choices = []
    for value, name in tooltips.QUALITIES.items():
        steps = usual_sampling(value, kind).steps
        choices.append((f"{name}, {steps} steps", value))
    return choices


def swapped(names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return Gradio's choices for values and their names."""
    return [(name, value) for value, name in names.items()]
