"""The five tabs: which groups of components make each of them, and the ways between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

import page_form
import page_panels
import page_settings
import page_widgets
import theme
import tooltips
from events import Done, Draft, Problem
from limits import ACTIONS, LANGUAGES, LIMITS, REPAINT_MODES, STRUCTURES, TRACKS
from page_form import (
    AT_ONCE,
    QUIET,
    Form,
    Undo,
    Updates,
    add,
    add_number,
    add_slider,
    available,
    connect_undo,
    html,
    lengths,
    reason,
    undo_button,
)
from page_hints import advice_line, advise, connect_advice, lyric_tokens
from page_panels import GenerateForm, add_plan, add_plan_options, connect_keep
from page_results import Made, ResultPanel, RunBar, result_panel
from page_runs import Assist, assist, connect_assist, connect_run, connect_song, run_foot, stream_of
from page_takes import connect_takes
from params import ACTION_OPTIONS, Request

TO_TOP = "() => document.querySelector('#studio-tabs').scrollIntoView()"


def build_tabs() -> list[Form]:
    """Build all tabs and the ways between them; returns their forms."""
    with gr.Tabs(elem_id="studio-tabs", overflow_behavior="wrap") as tabs:
        generate, *_ = built = [generate_tab(), cover_tab(), extend_tab(), edit_tab()]
        lyrics, panel = lyrics_tab()
    forms = {tab.form.mode: tab.form for tab in built}
    for tab in built:
        connect_uses(tab.result, forms, tabs)
    connect_lyrics(lyrics, panel, generate, tabs)
    return [*forms.values(), lyrics]


@dataclass
class SongTab:
    """A tab that makes songs: its fields, where they appear, and the help with its words."""

    form: Form
    result: ResultPanel
    assist: Assist


# --- tabs ---------------------------------------------------------------------------------------------------------


def generate_tab() -> SongTab:
    form = GenerateForm()
    with _tab(form):
        with _columns(form):
            with _essentials():
                html(theme.faces(), elem_id="generate-faces", js_on_load=theme.script("faces"))
                blank = {**page_form.SONG, "duration": LIMITS["duration"].default}
                page_panels.examples(form, caption=tooltips.SONGS_LABEL, blank=blank, songs=True)
                page_panels.prompt(form)
                helper = assist(form, "inspire", "polish")
                advice = page_panels.lyrics(form, "duration")
                html(theme.lengths(), elem_id="generate-lengths", js_on_load=theme.script("faces"))
            result = _result(form)
            with _details(form):
                with page_panels.song_details(form, own=add_plan):
                    dropped = page_panels.settings_file(form)
                fold = page_panels.advanced(form, add_plan_options)
        also = html(theme.also(form.folded()), elem_id="generate-also", js_on_load=theme.script("faces"), render=False)
        run = run_foot(form, above=also)
    # No event of the settings: files are not kept.
    reference = form.fields["reference"]
    reference.change(None, reference, js='(reference) => void studio.kept("generate", { reference })', **QUIET)
    page_panels.connect_settings_file(form, dropped)
    connect_keep(form, fold, result)
    return _song_tab(form, run, result, helper, advice)


def cover_tab() -> SongTab:
    form = Form("cover")
    with _tab(form):
        with _columns(form):
            with _essentials():
                offer = page_panels.source(form)
                helper, advice = _words(form)
                add_slider(form, "strength")
            result = _result(form)
            with _details(form):
                page_panels.song_details(form)
                page_panels.advanced(form, lambda form: add_slider(form, "options.noise_strength"))
        why = html(elem_id="cover-why", render=False)
        bar, problems = run_foot(form, above=why)
    page_panels.connect_offer(form, offer)
    form.watchers.append(lambda facts: cover_updates(bar, why, facts["unsupported"].get("cover", "")))
    return _song_tab(form, (bar, problems), result, helper, advice)


def cover_updates(bar: RunBar, why: gr.HTML, reason: str) -> Updates:
    """Return what the tab says about covers: where the checkpoint makes none there is nothing to press."""
    return {bar.go: gr.update(interactive=not reason), why: theme.remark(reason) if reason else ""}


def extend_tab() -> SongTab:
    form = Form("extend")
    with _tab(form):
        with _columns(form):
            with _essentials():
                offer = page_panels.source(form)
                shown = page_widgets.timeline("extend-timeline")
                with gr.Row(equal_height=True):
                    add_number(form, "before")
                    add_number(form, "after")
                total = html(elem_id="extend-total")
                helper, advice = _words(form, kept=["prompt"])
            result = _result(form)
            with _details(form):
                page_panels.song_details(form, reference=False)
                page_panels.advanced(form, lambda form: add_slider(form, "options.overlap"))
        run = run_foot(form)
    page_widgets.connect_timeline(shown, *(form.followed(name) for name in ("source", "before", "after")))
    page_panels.connect_offer(form, offer)
    connect_total(form, total)
    return _song_tab(form, run, result, helper, advice)


def edit_tab() -> SongTab:
    """Build the tab that changes a song; its actions share the page, and the style sheet shows what each one needs."""
    form = EditForm()
    with _tab(form):
        with _columns(form):
            with _essentials():
                offer = page_panels.source(form)
                selector = page_widgets.region_selector("edit-region")
                _actions(form)
                _region(form)
                with gr.Column(elem_classes=["morph-only"]):
                    _words_of_the_source(form)
                    page_panels.examples(form, "morph", tooltips.MORPHS_LABEL)
                    plan = html(elem_id="edit-morph-plan")
                helper, advice = _words(form, kept=["prompt"])
            result = _result(form)
            with _details(form):
                page_panels.song_details(form, reference=False)
                page_panels.advanced(form, _morph_numbers)
        run = run_foot(form)
    shown = page_widgets.connect_region(selector, *(form.followed(name) for name in ("source", "start", "end", "bpm")))
    page_panels.connect_offer(form, offer, shown)
    connect_plan(form, plan)
    return _song_tab(form, run, result, helper, advice)


# --- the parts of a tab -------------------------------------------------------------------------------------------


def _words(form: Form, kept: Sequence[str] = ()) -> tuple[Assist, gr.HTML]:
    """Add the words of a tab that works on a source; returns what helps with them, and the line of advice."""
    helper = assist(form, "describe")
    page_panels.examples(form, kept=kept)
    page_panels.prompt(form)
    return helper, page_panels.lyrics(form)


def _song_tab(form: Form, run: tuple[RunBar, gr.HTML], result: ResultPanel, helper: Assist, advice: gr.HTML) -> SongTab:
    """Connect what all tabs for songs have."""
    connect_assist(form, helper)
    connect_advice(form, advice)
    bar, problems = run
    connect_song(form, bar, problems, result)
    connect_takes(form, bar, result)
    form.connect()
    return SongTab(form, result, helper)


def _tab(form: Form) -> gr.Tab:
    form.tab = gr.Tab(tooltips.TABS[form.mode], id=form.mode, elem_id=f"{form.mode}-panel")
    return form.tab


def _columns(form: Form) -> gr.Row:
    return gr.Row(elem_classes=["columns"], elem_id=f"{form.mode}-columns")


def _essentials() -> gr.Column:
    return gr.Column(elem_classes=["essentials"])


@contextlib.contextmanager
def _details(form: Form) -> Iterator[None]:
    with gr.Column(elem_classes=["details"]):
        yield
        page_settings.foot(form)


def _result(form: Form) -> ResultPanel:
    with gr.Column(elem_classes=["result"]):
        return result_panel(form.mode)


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
        self.watchers.append(self._show_tasks)

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
        action = dict(zip(self.fields, values, strict=True))["action"]
        name = super().place(problem, values)
        return "track" if name == "tracks" and action in self.ONE_TRACK else name

    def show(self, values: Mapping[str, Any]) -> Updates:
        if "tracks" in values:
            values = {**values, "tracks": list(values["tracks"]), "track": next(iter(values["tracks"]), None)}
        if values.get("action") == "layer" and "start" in values and "end" in values:
            values = {**values, "part": bool(values["start"] or values["end"])}
        return super().show(values)

    def _show_tasks(self, facts: Mapping[str, Any]) -> Updates:
        """Return what the form says about the checkpoint in use: which actions are experiments."""
        tasks = facts["tasks"]
        choices = gr.update(choices=_action_choices(tasks))
        return {self.fields["action"]: choices, self.hints: theme.actions(tasks)}


def _action_choices(tasks: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (tooltips.EXPERIMENTAL.format(name=name) if tasks.get(action) == "experimental" else name, action)
        for action, name in ACTIONS.items()
    ]


def _actions(form: EditForm) -> None:
    """Add the choice of an action, what it does, and what each action has in front of the words."""
    add(form, "action", gr.Radio, choices=_action_choices({}), value="repaint")
    form.hints = html(theme.actions({}), elem_id="edit-hints", js_on_load=theme.script("folds"))
    named = [(tooltips.track(name), name) for name in TRACKS]
    with gr.Column(elem_classes=["tracks-only"]):
        add(form, "track", gr.Radio, extra=["track-only"], choices=named, value=None)
        add(form, "tracks", gr.CheckboxGroup, extra=["complete-only"], choices=named, value=[])
    with gr.Row(elem_classes=["layer-only"]):
        add(form, "options.mix", gr.Checkbox, value=True, min_width=160)
        add(form, "part", gr.Checkbox, value=False, min_width=160)


def _region(form: EditForm) -> None:
    """Add the two numbers of the region, and how freely it is repainted."""
    with gr.Row(equal_height=True, elem_classes=["region-only"]):
        add_number(form, "start")
        add_number(form, "end")
    with gr.Column(elem_classes=["repaint-only"]):
        modes = [(name, mode) for mode, name in REPAINT_MODES.items()]
        add(form, "options.repaint_mode", gr.Radio, choices=modes, value="balanced")
        add_slider(form, "options.repaint_strength", extra=["balanced-only"])


def _words_of_the_source(form: EditForm) -> None:
    add(form, "source_prompt", gr.Textbox, lines=2, max_lines=8)
    add(form, "source_lyrics", gr.Textbox, lines=4, max_lines=18)
    advice = advice_line(form.identify("source_lyrics"))
    form.later.append(lambda: connect_advice(form, advice, "source_lyrics"))


def _morph_numbers(form: Form) -> None:
    with gr.Row(equal_height=True, elem_classes=["morph-only"]):
        for name in ("n_min", "n_max", "n_avg"):
            add_slider(form, f"options.{name}", min_width=160)


# --- events -------------------------------------------------------------------------------------------------------


def connect_total(form: Form, line: gr.HTML) -> None:
    """Say how long the song gets, as soon as there is a source and whenever a number changes."""

    def total(there: dict[str, Any]) -> str:
        found = lengths(there)
        return "" if None in found.values() else theme.said(tooltips.length_in_all(**found))

    form.follow(line, ("source", "before", "after"), total)


def connect_plan(form: Form, line: gr.HTML) -> None:
    """Say in one line what the numbers of a morph do."""
    names = [f"options.{name}" for name in ("n_min", "n_max", "n_avg")]
    form.follow(line, names, lambda there: theme.said(tooltips.morph_plan(*there.values())))


def connect_lyrics(lyrics: Form, panel: LyricsPanel, generate: SongTab, tabs: gr.Tabs) -> None:
    """Let written lyrics go to Generate, with their language, and become a song; Undo there brings back the former."""
    names = ("lyrics", "language", "instrumental")
    fields = [generate.form.fields[name] for name in names]
    undo = generate.assist.undo

    def use(text: str, language: str, former: list[dict[str, Any]], *there: Any) -> Updates:
        values = dict(zip(names, (text, language, False), strict=True))
        kept = undo.keep(former, dict(zip(names, there, strict=True)))
        return {**generate.form.show(values), **kept, tabs: gr.Tabs(selected="generate")}

    inputs = [panel.text, lyrics.fields["language"], undo.former, *fields]
    outputs = [tabs, *fields, *undo.outputs]
    panel.use.click(use, inputs, outputs, **AT_ONCE).then(None, js=TO_TOP, **AT_ONCE)
    filled = panel.sing.click(use, inputs, outputs, **AT_ONCE)
    filled.success(None, js="() => document.getElementById('generate-go').click()", **AT_ONCE)


def connect_uses(result: ResultPanel, forms: Mapping[str, Form], tabs: gr.Tabs) -> None:
    """Let a take go to another tab: it becomes the source there, with its words and what else describes the song."""

    def hand_over(pressed: gr.EventData, made: list[Made]) -> Updates:
        number, form = int(pressed.number), forms.get(pressed.use)
        if form is None or not 0 < number <= len(made):
            return {tabs: gr.skip()}
        words = page_form.song(made[number - 1].record)
        if form.mode == "edit":
            # A morph starts from what the song is now.
            words |= {f"source_{name}": words[name] for name in ("prompt", "lyrics")}
        return {**form.show(words), form.fields["source"]: made[number - 1].file, tabs: gr.Tabs(selected=form.mode)}

    filled = [forms[mode] for mode in tooltips.USE_IN]
    names = (*page_form.SONG, "source", "source_prompt", "source_lyrics", "action")
    fields = [form.fields[name] for form in filled for name in names if name in form.fields]
    opened = result.takes.select(hand_over, result.made, [tabs, *fields], **AT_ONCE)
    opened.then(None, js=TO_TOP, **AT_ONCE)


# --- the Lyrics tab -------------------------------------------------------------------------------------------------


@dataclass
class LyricsPanel:
    """Where lyrics appear: the message, the text to edit, the advice on it, and what can be done with it."""

    message: gr.HTML
    text: gr.Textbox
    advice: gr.HTML
    use: gr.Button
    sing: gr.Button
    undo: Undo


def lyrics_tab() -> tuple[Form, LyricsPanel]:
    form = Form("lyrics")
    with gr.Tab(tooltips.TABS["lyrics"], id="lyrics", elem_id="lyrics-panel"):
        with gr.Row(elem_classes=["columns"], elem_id="lyrics-columns"):
            with gr.Column(elem_classes=["essentials"]):
                page_panels.examples(form)
                _brief(form)
            with gr.Column(elem_classes=["result"]):
                panel = _lyrics_panel()
            with gr.Column(elem_classes=["details"]):
                _sampling(form)
                page_settings.foot(form, tooltips.STOP)
        why = html(elem_id="lyrics-why", render=False)
        bar, problems = run_foot(form, tooltips.STOP, why)
    form.watchers.append(lambda facts: writer_updates(bar, why, facts["lyrics"]))
    connect_writer(form, bar, problems, panel)
    form.connect()
    return form, panel


# Lyrics that are there are to become a song: that button is then the main one, and writing comes second.
LED_BY_TEXT = """(text) => {
  const update = (changes) => ({ __type__: "update", ...changes });
  const interactive = Boolean(text && text.trim());
  const [sing, go] = interactive ? ["primary", "secondary"] : ["secondary", "primary"];
  return [update({ interactive }), update({ interactive, variant: sing }), update({ variant: go })];
}"""


def writer_updates(bar: RunBar, why: gr.HTML, writer: Mapping[str, Any]) -> Updates:
    """Return what the tab says about the lyrics writer: without one there is nothing to press, and it says why."""
    usable = available(writer)
    said = reason(writer)
    if writer["state"] == "none":
        said = f"{tooltips.NO_SONGWRITER} {said}".strip()
    return {bar.go: gr.update(interactive=usable), why: theme.remark(said) if said else ""}


def connect_writer(form: Form, bar: RunBar, problems: gr.HTML, panel: LyricsPanel) -> None:
    """Let the button write lyrics into the box; Stop keeps what is written, Undo brings back what stood there."""

    def failed(problem: Problem) -> Updates:
        notice = theme.notice(tooltips.LYRICS_FAILED, problem.message, problem.hint)
        return {**bar.idle(theme.line("failed", tooltips.LYRICS_FAILED)), panel.message: notice}

    def write(*values: Any) -> Iterator[Updates]:
        began = time.monotonic()

        def draft(event: Draft) -> Updates:
            elapsed = time.monotonic() - began
            line = theme.line("running", tooltips.writing(event.tokens, elapsed), heard="writing", elapsed=elapsed)
            return {bar.line: line, panel.text: event.text}

        def done(request: Request, done: Done) -> Updates:
            sentence = tooltips.written(done.record["tokens"], time.monotonic() - began, done.record["end"])
            return {**bar.idle(theme.line("done", sentence)), panel.text: done.record["text"]}

        yield from stream_of(lambda: form.request(values), bar, done, failed, draft)

    def remember(text: str, former: list[dict[str, Any]]) -> Updates:
        return panel.undo.keep(former, {"text": text}) if text.strip() else {panel.undo.former: former}

    def look(text: str, language: str) -> str:
        counted = lyric_tokens(text, language)
        return advise(text, language, tokens=counted)

    outputs = [panel.text, panel.message]
    begin, run = connect_run(
        form, bar, problems, write, outputs, {panel.message: ""}, cancelled=tooltips.LYRICS_STOPPED
    )
    begin.success(remember, [panel.text, panel.undo.former], panel.undo.outputs, **AT_ONCE)
    undone = connect_undo(panel.undo, {"text": panel.text})
    inputs = [panel.text, form.fields["language"]]
    # Not at every change: a draft is one, too, and nobody is advised on lyrics that are still being written.
    typed = (panel.text.input, panel.text.blur)
    for event in (run.success, run.failure, undone.then, *typed, form.fields["language"].change):
        event(look, inputs, panel.advice, **AT_ONCE)
    # What is pasted into an empty box is no input to Gradio, so the browser itself enables the buttons.
    panel.text.change(None, panel.text, [panel.use, panel.sing, bar.go], js=LED_BY_TEXT, **QUIET)


# --- the parts of the tab -----------------------------------------------------------------------------------------


def _brief(form: Form) -> None:
    add(form, "brief", gr.Textbox, placeholder=tooltips.PLACEHOLDERS["brief"], lines=4, max_lines=10)
    structures = [(tooltips.AUTOMATIC, ""), *((name, name) for name in STRUCTURES)]
    with gr.Row(equal_height=True):
        add(form, "structure", gr.Dropdown, choices=structures, value="", allow_custom_value=True)
        languages = [(name, code) for code, name in LANGUAGES.items()]
        add(form, "language", gr.Dropdown, choices=languages, value="en")
    add(form, "tone", gr.Textbox, placeholder=tooltips.PLACEHOLDERS["tone"], max_lines=1)


def _sampling(form: Form) -> None:
    before = set(form.fields)
    with gr.Accordion(tooltips.ADVANCED, open=False, elem_id="lyrics-advanced") as fold:
        with gr.Row(equal_height=True):
            add_slider(form, "options.temperature")
            add_slider(form, "options.top_p")
        with gr.Row(equal_height=True):
            add_number(form, "options.max_tokens")
            add_number(form, "seed")
    form.folds[fold] = tuple(form.fields.keys() - before)


def _lyrics_panel() -> LyricsPanel:
    html(theme.section(tooltips.WRITTEN))
    html(theme.remark(tooltips.WRITTEN_HELP))
    message = html(elem_id="lyrics-message")
    text = gr.Textbox(
        label=tooltips.WRITTEN,
        show_label=False,
        container=False,
        placeholder=tooltips.WRITTEN_EMPTY,
        lines=12,
        max_lines=18,
        elem_id="lyrics-text",
        elem_classes=["words"],
    )
    advice = advice_line("lyrics")
    with gr.Row(elem_classes=["uses"]):
        sing = gr.Button(tooltips.MAKE_THIS_SONG, size="sm", min_width=96, interactive=False, elem_id="lyrics-sing")
        use = gr.Button(tooltips.USE_IN_GENERATE, size="sm", min_width=96, interactive=False, elem_id="lyrics-use")
        undo = undo_button("lyrics")
    return LyricsPanel(message, text, advice, use, sing, undo)
