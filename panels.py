"""Groups of components that the tabs share: the essentials, song details, advanced settings, the run bar, the result.

A tab collects its fields in a `Form`, under the names that its request has, so that validation, the request and the
messages beside the fields all speak of the same thing. Optional numbers are text boxes: Gradio's number box turns a
blank into 0 whenever it is drawn anew, and here a blank means the checkpoint's default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

import audio
import markup
import restore
import theme
import tooltips
import uploads
from params import (
    FORMATS,
    KEYS,
    LANGUAGES,
    LIMITS,
    QUALITY_STEPS,
    SAMPLERS,
    TIME_SIGNATURES,
    Done,
    GenerateRequest,
    InvalidRequest,
    Problem,
    Sampling,
    SongRequest,
    parse_request,
    sampling_settings,
)

Updates = dict[Any, Any]
# Events of the page: nothing a program should call, nothing that shows Gradio's own progress.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Short work that must not wait behind songs.
AT_ONCE: dict[str, Any] = {"queue": False, **QUIET}
MOST_TAKES = int(LIMITS["takes"].high)


# --- the form -----------------------------------------------------------------------------------------------------


class Form:
    """The fields of one tab, in the order they were added; an option of the request is called "options.steps"."""

    def __init__(self, mode: str):
        self.mode = mode
        self.fields: dict[str, Component] = {}
        self.folds: dict[gr.Accordion, tuple[str, ...]] = {}
        self.numbers: set[str] = set()

    def identify(self, name: str) -> str:
        """Return the element id of a field, such as "generate-cfg-start"."""
        return f"{self.mode}-{name.rpartition('.')[2]}".replace("_", "-")

    @property
    def inputs(self) -> list[Component]:
        """Return the components in the order in which handlers get their values."""
        return list(self.fields.values())

    @property
    def settings(self) -> list[Component]:
        """Return the components whose values a record may hold: all but the files."""
        return [field for field in self.fields.values() if not isinstance(field, gr.Audio)]

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        """Return the components' values by field, numbers as numbers."""
        by_field = zip(self.fields, values, strict=True)
        return {
            name: number(value, LIMITS[_key(name)].default) if name in self.numbers else value
            for name, value in by_field
        }

    def request(self, values: Iterable[Any]) -> SongRequest:
        """Build the request from the components' values; raises InvalidRequest."""
        read: dict[str, Any] = {"options": {}}
        for name, value in self.read(values).items():
            group, _, key = name.rpartition(".")
            (read[group] if group else read)[key] = value
        return parse_request(self.mode, read)

    def problems(self, values: Sequence[Any]) -> dict[str, str]:
        """Return what is wrong, a text for each wrong field; what belongs to none stands at the first.

        Of the files only the headers are read.
        """
        found: dict[str, str] = {}
        try:
            uploads.check(self.request(values))
        except InvalidRequest as error:
            for problem in error.problems:
                name = self.place(problem, values)
                found[name] = f"{found.get(name, '')} {problem.text()}".strip()
        return found

    def place(self, problem: Problem, values: Sequence[Any]) -> str:
        """Return the field at which a problem with these values stands."""
        return problem.field if problem.field in self.fields else next(iter(self.fields))

    def show(self, values: Mapping[str, Any]) -> Updates:
        """Return the updates that put checked values into their fields; others stay."""
        return {
            self.fields[name]: gr.update(
                value=restore.as_text(value) if name in self.numbers and not isinstance(value, str) else value
            )
            for name, value in values.items()
            if name in self.fields
        }

    def checkpoint(self, facts: Mapping[str, Any]) -> Updates:
        """Return what the form says about the checkpoint in use; the same fields whatever the facts."""
        return checkpoint_updates(self, facts["turbo"])

    def validate(self, *values: Any) -> list[dict[str, Any]]:
        """Return Gradio's verdict on each field; a wrong one keeps the run from being queued."""
        problems = self.problems(values)
        return [gr.validate(name not in problems, problems.get(name, "")) for name in self.fields]

    def point_out(self, *values: Any) -> list[Any]:
        """Open the folded groups that hold a wrong field, and name the wrong fields for the line at the button."""
        problems = self.problems(values)
        opened = [
            gr.Accordion(open=True) if problems.keys() & set(names) else gr.skip() for names in self.folds.values()
        ]
        labels = [self.label(name) for name in problems]
        return [*opened, markup.notice("", tooltips.look_at(labels)) if labels else ""]

    def label(self, name: str) -> str:
        """Return a field's label."""
        return label(_key(name))


def number(value: Any, default: float | None) -> Any:
    """Return a box's text as a number, the default where it is blank, or the text itself where it is no number."""
    text = str(value if value is not None else "").strip()
    if not text:
        return default
    for kind in (int, float):
        try:
            return kind(text.replace(",", ".") if text.count(",") == 1 else text)
        except ValueError:
            continue
    return text


def label(name: str) -> str:
    """Return the label of a field; numbers have theirs in the table of limits."""
    return LIMITS[name].label if name in LIMITS else tooltips.LABELS[name]


def help_text(name: str, default: str = "", task: str = "") -> str:
    """Return the help of a field with its limits filled in, the one for the task where it has one of its own."""
    limit = LIMITS.get(name)
    low, high = (f"{limit.low:g}", f"{limit.high:g}") if limit else ("", "")
    text = tooltips.HELP.get(f"{task}.{name}") or tooltips.HELP[name]
    return text.format(low=low, high=high, default=default)


def _key(name: str) -> str:
    """Return the last part of a field's name: "steps" of "options.steps"."""
    return name.rpartition(".")[2]


def add(form: Form, name: str, kind: type[Component], extra: Sequence[str] = (), **settings: Any) -> Any:
    """Add a field; `extra` has classes of its own."""
    key = _key(name)
    if kind is not gr.Audio:
        settings.setdefault("info", help_text(key, task=form.mode))
    classes = ["numeric" if name in form.numbers else "words" if kind is gr.Textbox else "field", *extra]
    if name in form.numbers and LIMITS[key].low < 0:
        classes.append("signed")  # the digit pad of a phone has no minus
    form.fields[name] = kind(label=label(key), elem_id=form.identify(name), elem_classes=classes, **settings)
    return form.fields[name]


def add_number(form: Form, name: str, placeholder: str = "", **settings: Any) -> gr.Textbox:
    """Add a number as a text box; blank is its default."""
    default = LIMITS[_key(name)].default
    form.numbers.add(name)
    return add(
        form,
        name,
        gr.Textbox,
        value="" if default is None else f"{default:g}",
        placeholder=placeholder or (tooltips.AUTOMATIC if default is None else f"{default:g}"),
        max_lines=1,
        min_width=120,
        **settings,
    )


def add_slider(form: Form, name: str, **settings: Any) -> gr.Slider:
    """Add a number as a slider over its whole range."""
    limit = LIMITS[_key(name)]
    return add(
        form, name, gr.Slider, minimum=limit.low, maximum=limit.high, value=limit.default, step=limit.step, **settings
    )


# --- groups of fields ---------------------------------------------------------------------------------------------


def source(form: Form) -> Offer:
    """Add the source audio, and the line below it that says what a file carries."""
    _add_audio(form, "source")
    with gr.Row(elem_classes=["offer"]):
        line = html(elem_id=f"{form.mode}-offer")
        button = gr.Button(tooltips.RESTORE, size="sm", visible=False, min_width=160, elem_id=f"{form.mode}-restore")
    return Offer(line, button)


def essentials(form: Form, *numbers: str) -> None:
    """Add prompt, lyrics, instrumental and these numbers; Instrumental switches the lyrics box off.

    Where the form has actions, the help of prompt and lyrics follows them.
    """
    first = form.fields["action"].value if "action" in form.fields else form.mode
    rows = {"prompt": {"lines": 3, "max_lines": 8}, "lyrics": {"lines": 6, "max_lines": 18}}
    prompt, lyrics = (
        add(form, name, gr.Textbox, placeholder=tooltips.PLACEHOLDERS[name], info=help_text(name, task=first), **size)
        for name, size in rows.items()
    )
    with gr.Row():
        instrumental = add(form, "instrumental", gr.Checkbox, value=False, min_width=160)
        for name in numbers:
            add_number(form, name)

    def switch(on: bool, task: str = form.mode) -> tuple[dict[str, Any], dict[str, Any]]:
        info = tooltips.LYRICS_OFF if on else help_text("lyrics", task=task)
        return gr.update(info=help_text("prompt", task=task)), gr.update(interactive=not on, info=info)

    switches = [instrumental, *(form.fields[name] for name in ("action",) if name in form.fields)]
    gr.on([each.change for each in switches], switch, switches, [prompt, lyrics], **AT_ONCE)


def song_details(form: Form, reference: bool = True) -> gr.Accordion:
    """Add the folded group of the second level: tempo, key, metre, language, takes, quality, seed, reference."""
    before = set(form.fields)
    with gr.Accordion(tooltips.DETAILS, open=False, elem_id=f"{form.mode}-details") as fold:
        with gr.Row(equal_height=True):
            add_number(form, "bpm")
            add(form, "key", gr.Dropdown, choices=[(tooltips.AUTOMATIC, ""), *KEYS], value="", allow_custom_value=True)
        metres = [(tooltips.AUTOMATIC, ""), *((name, number) for number, name in TIME_SIGNATURES.items())]
        add(form, "time_signature", gr.Radio, choices=metres, value="")
        languages = [(name, code) for code, name in LANGUAGES.items()]
        add(form, "language", gr.Dropdown, choices=languages, value="unknown")
        add(form, "takes", gr.Radio, choices=list(range(1, MOST_TAKES + 1)), value=int(LIMITS["takes"].default))
        add(form, "quality", gr.Radio, choices=_qualities(turbo=False), value="standard")
        add_number(form, "seed")
        if reference:
            _add_audio(form, "reference")
    form.folds[fold] = tuple(form.fields.keys() - before)
    return fold


def _add_audio(form: Form, name: str) -> None:
    looks = {"editable": False, "buttons": [], "waveform_options": theme.WAVEFORM}
    add(form, name, gr.Audio, extra=["file"], sources=["upload"], type="filepath", **looks)
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
    form.folds[fold] = tuple(form.fields.keys() - before)
    return fold


def checkpoint_updates(form: Form, turbo: bool) -> Updates:
    """Return what the form says about the checkpoint in use: its defaults, and what a turbo one has no use for."""
    by_quality = {name: checkpoint_defaults(turbo, name) for name in QUALITY_STEPS}
    standard = by_quality["standard"]
    shift, guidance = f"{standard.shift:g}", f"{standard.guidance:g}"
    if turbo:
        quality, steps = tooltips.TURBO_QUALITY.format(steps=standard.steps), str(standard.steps)
    else:
        listed = ", ".join(f"{name} {numbers.steps}" for name, numbers in by_quality.items())
        quality, steps = help_text("quality"), tooltips.STEPS_BY_QUALITY.format(steps=listed)
    updates = {
        "quality": {"choices": _qualities(turbo), "info": quality},
        "options.steps": {"info": help_text("steps", steps)},
        "options.shift": {"info": help_text("shift", shift), "placeholder": shift},
        "options.guidance": {"info": help_text("guidance", guidance), "placeholder": guidance},
        "options.cfg_start": {"info": help_text("cfg_start")},
        "options.cfg_end": {"info": help_text("cfg_end")},
    }
    for name in ("options.guidance", "options.cfg_start", "options.cfg_end"):
        updates[name]["interactive"] = not turbo
        if turbo:
            updates[name]["info"] = tooltips.TURBO_GUIDANCE
    return {form.fields[name]: gr.update(**changes) for name, changes in updates.items()}


def checkpoint_defaults(turbo: bool, quality: str) -> Sampling:
    """Return the numbers that a request without options of its own runs with."""
    return sampling_settings(GenerateRequest(prompt="a song", quality=quality), turbo)[0]


def _qualities(turbo: bool) -> list[tuple[str, str]]:
    return [
        (name if turbo else f"{name}, {QUALITY_STEPS[value]} steps", value)
        for value, name in tooltips.QUALITIES.items()
    ]


def _swapped(names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for value, name in names.items()]


def chip_row(names: Iterable[str], caption: str = tooltips.EXAMPLES_LABEL) -> list[gr.Button]:
    """Make the buttons of examples; `fill_from` says what they do, once the fields are there."""
    html(markup.caption(caption))
    with gr.Row(elem_classes=["chips"]):
        return [gr.Button(name, size="sm", min_width=0, elem_classes=["chip"]) for name in names]


def fill_from(
    chips: list[gr.Button], form: Form, examples: Iterable[Mapping[str, Any]], kept: Sequence[str] = ()
) -> None:
    """Let each chip fill the form with its example; a visitor's own texts in the fields named by `kept` stay."""
    examples = list(examples)
    inputs = [form.fields[name] for name in kept]
    ours = {example.get(name, "") for example in examples for name in kept}
    for chip, example in zip(chips, examples, strict=True):

        def fill(*texts: str, example: Mapping[str, Any] = example) -> Updates:
            there = dict(zip(kept, texts, strict=True))
            own = {name: value for name, value in there.items() if value.strip() and value not in ours}
            return form.show({**dict.fromkeys(kept, ""), **example, **own})

        chip.click(fill, inputs, form.settings, **AT_ONCE)


# --- settings from a file -----------------------------------------------------------------------------------------


@dataclass
class Offer:
    """The line under a file that says what it carries, and the button that fills the form from it."""

    line: gr.HTML
    button: gr.Button


def connect_offer(form: Form, offer: Offer) -> None:
    """Say at once what is wrong with a source, and offer to restore the settings that it carries."""
    source = form.fields["source"]
    hidden = gr.update(visible=False)

    def look(path: str | None) -> Updates:
        if not path:
            return {offer.line: "", offer.button: hidden}
        try:
            uploads.seconds_of(path)
        except InvalidRequest as error:
            return {offer.line: markup.notice("", error.problem.text()), offer.button: hidden}
        if not restore.settings(form.mode, audio.read_record(path)).values:
            return {offer.line: "", offer.button: hidden}
        return {offer.line: markup.said(tooltips.RESTORE_OFFER), offer.button: gr.update(visible=True)}

    def fill(path: str | None) -> Updates:
        return {**restored(form, offer.line, path), offer.button: hidden}

    source.change(look, source, [offer.line, offer.button], **AT_ONCE)
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
    """Let a dropped file fill the form."""

    def fill(path: str | None) -> Updates:
        return restored(form, dropped.line, path) if path else {dropped.line: ""}

    dropped.file.change(fill, dropped.file, [*form.settings, dropped.line], **AT_ONCE)


def restored(form: Form, line: gr.HTML, path: str | None) -> Updates:
    """Return the updates that fill the form with what fits of the record in a file, and say so on the line."""
    found = restore.settings(form.mode, audio.read_record(path) if path else None)
    if not found.values:
        return {line: markup.said(tooltips.NOTHING_TO_RESTORE)}
    sentence = tooltips.restored(len(found.values), found.left_out, found.reference)
    return {**form.show(found.values), line: markup.said(sentence)}


# --- the run bar --------------------------------------------------------------------------------------------------


@dataclass
class RunBar:
    """The button, the one that cancels, the line that says where a run is.

    `cancelled` is a hidden box that Cancel ticks in the browser, so that a run that ended early can say why.
    """

    go: gr.Button
    cancel: gr.Button
    line: gr.HTML
    cancelled: gr.Checkbox

    @property
    def outputs(self) -> list[Component]:
        """Return what the handlers of a run write to."""
        return [self.go, self.cancel, self.line, self.cancelled]

    def running(self, line: str) -> Updates:
        """Return the updates for the time of a run."""
        return {
            self.go: gr.update(interactive=False),
            self.cancel: gr.update(interactive=True),
            self.line: line,
            self.cancelled: False,
        }

    def idle(self, line: str) -> Updates:
        """Return the updates for the time between runs."""
        return {self.go: gr.update(interactive=True), self.cancel: gr.update(interactive=False), self.line: line}


def problem_line(form: Form) -> gr.HTML:
    """Make the line at the button that names wrong fields."""
    return html(elem_id=f"{form.mode}-problems")


def cancelled_box(name: str) -> gr.Checkbox:
    """Make the hidden box of a run bar. Showing a container shows what is in it, so keep it out of those that come."""
    return gr.Checkbox(visible="hidden", elem_id=f"{name}-cancelled")


def run_bar(name: str, text: str, cancelled: gr.Checkbox, variant: str = "primary") -> RunBar:
    """Make a run bar; `text` is what its button says, `name` begins its element ids."""
    with gr.Row(elem_classes=["run-bar"]):
        go = gr.Button(text, variant=variant, elem_id=f"{name}-go", scale=3, min_width=160)
        cancel = gr.Button(
            tooltips.CANCEL, variant="stop", elem_id=f"{name}-cancel", scale=1, min_width=96, interactive=False
        )
    # The element outlives its contents, so a screen reader hears each sentence of the live region.
    line = html(elem_id=f"{name}-progress", js_on_load="element.setAttribute('aria-live', 'polite')")
    return RunBar(go, cancel, line, cancelled)


# --- the result ---------------------------------------------------------------------------------------------------


@dataclass
class Take:
    """The place for one take: its facts, player and download, and a button for each tab that it may go to."""

    box: gr.Column
    facts: gr.HTML
    player: gr.Audio
    download: gr.DownloadButton
    uses: dict[str, gr.Button]

    def show(self, number: int, take: Mapping[str, Any], file: str) -> Updates:
        """Return the updates that show `file` with its entry of the record."""
        kind = Path(file).suffix.removeprefix(".").upper()
        return {
            self.box: gr.update(visible=True),
            self.facts: markup.take(number, take),
            self.player: file,
            self.download: gr.update(value=file, label=tooltips.DOWNLOAD_TAKE.format(format=kind)),
        }

    def hide(self) -> Updates:
        """Return the updates that empty the place."""
        return {self.box: gr.update(visible=False), self.facts: "", self.player: None}


@dataclass
class ResultPanel:
    """Where takes appear: what to do first, messages, up to four takes, the folded record."""

    empty: gr.HTML
    message: gr.HTML
    takes: list[Take]
    fold: gr.Accordion
    record: gr.JSON

    @property
    def outputs(self) -> list[Any]:
        """Return every component and container that a run may change."""
        parts = [part for take in self.takes for part in (take.box, take.facts, take.player, take.download)]
        return [self.empty, self.message, *parts, self.fold, self.record]

    def show(self, done: Done) -> Updates:
        """Return the updates that show a finished run."""
        updates: Updates = {
            self.empty: gr.update(visible=False),
            self.message: markup.messages(done.record),
            self.fold: gr.update(visible=True),
            self.record: done.record,
        }
        made = list(zip(done.record["takes"], done.files, strict=True))
        for number, place in enumerate(self.takes, 1):
            updates |= place.show(number, *made[number - 1]) if number <= len(made) else place.hide()
        return updates

    def fail(self, problem: Problem) -> Updates:
        """Return the updates that say what went wrong and what to try; takes of an earlier run stay."""
        return {self.message: markup.notice(tooltips.FAILED_TITLE, problem.message, problem.hint)}


def result_panel(mode: str) -> ResultPanel:
    """Make the result panel of a tab, empty."""
    html(markup.section(tooltips.RESULT))
    empty = html(markup.empty(tooltips.EMPTY_RESULTS[mode]))
    message = html(elem_id=f"{mode}-message")
    takes = [_take(mode, number) for number in range(1, MOST_TAKES + 1)]
    with gr.Accordion(tooltips.RECORD, open=False, visible=False, elem_id=f"{mode}-record-fold") as fold:
        record = gr.JSON(
            label=tooltips.RECORD_LABEL, show_label=False, elem_id=f"{mode}-record", elem_classes=["record"]
        )
    return ResultPanel(empty, message, takes, fold, record)


def _take(mode: str, number: int) -> Take:
    with gr.Column(visible=False, elem_id=f"{mode}-take-{number}", elem_classes=["take"]) as box:
        facts = html()
        player = gr.Audio(
            label=tooltips.take_title(number),
            show_label=False,
            interactive=False,
            type="filepath",
            buttons=[],
            waveform_options=theme.WAVEFORM,
        )
        download = gr.DownloadButton(tooltips.DOWNLOAD_TAKE.format(format=""), size="md")
        with gr.Row(elem_classes=["uses"]):
            uses = {name: gr.Button(label, size="sm", min_width=96) for name, label in tooltips.USE_IN.items()}
    return Take(box, facts, player, download, uses)


# --- the header ---------------------------------------------------------------------------------------------------


@dataclass
class Header:
    """The status line, and the banner with the way to the real model, which is a run bar of its own."""

    status: gr.HTML
    banner: gr.Column
    notice: gr.HTML
    bar: RunBar

    @property
    def outputs(self) -> list[Any]:
        """Return what `show` updates."""
        return [self.status, self.banner, self.notice, self.bar.go]

    def show(self, facts: Mapping[str, Any]) -> Updates:
        """Return the updates for what the backend says about itself."""
        preview = facts["engine"] == "preview"
        return {
            self.status: markup.status(facts),
            self.banner: gr.update(visible=preview or bool(facts["problem"])),
            self.notice: markup.banner(facts),
            self.bar.go: gr.update(visible=preview, value=tooltips.GET_MODEL.format(gb=facts["download_gb"])),
        }


def header() -> Header:
    """Make the top of the page: what this is, the status line, and the banner, which appears where there is a need."""
    html(markup.heading(), elem_id="studio-heading")
    status = html(markup.pending(), elem_id="studio-status")
    cancelled = cancelled_box("download")
    with gr.Column(visible=False, elem_id="studio-banner") as banner:
        notice = html()
        bar = run_bar("download", tooltips.GET_MODEL.format(gb=0), cancelled, variant="secondary")
    return Header(status, banner, notice, bar)


def html(value: str = "", elem_id: str | None = None, js_on_load: str | None = None) -> gr.HTML:
    """Make a place for HTML of ours; one that may be empty (it has none at first) takes no room then."""
    classes = ["text"] if value else ["text", "maybe"]
    return gr.HTML(value, elem_id=elem_id, elem_classes=classes, js_on_load=js_on_load)
