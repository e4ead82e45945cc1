"""The five tabs: which groups of components make each of them, and the ways between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

import page_form
import page_hints
import page_panels
import page_settings
import page_widgets
import theme
import tooltips
from events import Done, Draft, Problem
from limits import ACTIONS, LANGUAGES, REPAINT_MODES, STRUCTURES, TRACKS
from page_form import AT_ONCE, QUIET, Form, Undo, Updates, add, add_number, add_row, add_slider, html
from page_panels import fold, swapped
from page_run import Assist, RunBar, connect_assist, connect_run, run_foot, stream_of
from page_takes import Made, ResultPanel, connect_song, connect_takes
from params import ACTION_OPTIONS, CHOOSE_TRACK, Request
from status import Status

TO_TOP = "() => document.querySelector('#studio-tabs').scrollIntoView()"
MORPH_NUMBERS = ("options.n_min", "options.n_max", "options.n_avg")


def build_tabs() -> list[Form]:
    with gr.Tabs(elem_id="studio-tabs", overflow_behavior="wrap") as tabs:
        generate, *_ = built = [generate_tab(), cover_tab(), extend_tab(), edit_tab()]
        lyrics, panel = lyrics_tab()
    forms = {tab.form.mode: tab.form for tab in built}
    for tab in built:
        connect_uses(tab.result, forms, tabs)
    connect_lyrics(lyrics, panel, generate, tabs)
    return [*forms.values(), lyrics]


def generate_tab() -> SongTab:
    form = page_panels.GenerateForm("generate")
    with _tab(form):
        with gr.Column(elem_classes=["essentials"]):
            html(theme.faces(), elem_id="generate-faces", js_on_load=theme.script("faces"))
            page_panels.examples(form)
            page_panels.prompt(form)
            helper = Assist(form, "inspire", "polish")
            page_panels.lyrics(form, "duration")
            html(theme.lengths(), elem_id="generate-lengths", js_on_load=theme.script("faces"))
        result = _result(form)
        with _details(form):
            with page_panels.song_details(form, own=lambda form: add(form, "options.plan", gr.Checkbox, value=True)):
                page_panels.settings_file(form)
            advanced = page_panels.advanced(form, page_panels.add_plan_options)
    also = html(theme.also(form.folded()), elem_id="generate-also", js_on_load=theme.script("faces"), render=False)
    # Not with the settings' own event: files are not kept.
    reference = form.fields["reference"]
    reference.change(None, reference, js='(reference) => void studio.kept("generate", { reference })', **QUIET)
    page_panels.connect_keep(form, advanced, result)
    return SongTab(form, result, helper, also)


def cover_tab() -> SongTab:
    form = Form("cover")
    with _tab(form):
        with gr.Column(elem_classes=["essentials"]):
            page_panels.source(form)
            helper = _words(form)
            add_slider(form, "strength")
        result = _result(form)
        with _details(form):
            page_panels.song_details(form)
            page_panels.advanced(form, lambda form: add_slider(form, "options.noise_strength"))
    why = html(elem_id="cover-why", render=False)
    tab = SongTab(form, result, helper, why)

    def show(status: Status) -> Updates:
        reason = status.unsupported.get("cover", "")
        return {tab.bar.go: gr.update(interactive=not reason), why: theme.remark(reason) if reason else ""}

    form.watchers.append(show)
    return tab


def extend_tab() -> SongTab:
    form = Form("extend")
    with _tab(form):
        with gr.Column(elem_classes=["essentials"]):
            page_panels.source(form)
            timeline = page_widgets.timeline("extend-timeline")
            add_row(form, add_number, "before", "after")
            total = html(elem_id="extend-total")
            helper = _words(form, kept=["prompt"])
        result = _result(form)
        with _details(form):
            page_panels.song_details(form, reference=False)
            page_panels.advanced(form, lambda form: add_slider(form, "options.overlap"))
    page_widgets.connect_timeline(timeline, *(form.followed(name) for name in ("source", "before", "after")))

    def say_length(there: dict[str, Any]) -> str:
        found = page_form.lengths(there)
        return "" if None in found.values() else theme.said(tooltips.length_in_all(**found))

    form.follow(total, ("source", "before", "after"), say_length)
    return SongTab(form, result, helper)


def edit_tab() -> SongTab:
    """Build the tab that changes a song; the style sheet shows what the chosen action needs."""
    form = EditForm("edit")
    with _tab(form):
        with gr.Column(elem_classes=["essentials"]):
            page_panels.source(form)
            selector = page_widgets.region_selector("edit-region")
            _actions(form)
            with gr.Column(elem_classes=["morph-only"]):
                add(form, "source_prompt", gr.Textbox, lines=2, max_lines=8)
                add(form, "source_lyrics", gr.Textbox, lines=4, max_lines=18)
                page_hints.add_advice(form, "source_lyrics")
                page_panels.examples(form, "morph")
                plan = html(elem_id="edit-morph-plan")
            helper = _words(form, kept=["prompt"])
        result = _result(form)
        with _details(form):
            page_panels.song_details(form, reference=False)
            looks = {"classes": ["morph-only"], "min_width": 160}
            page_panels.advanced(form, lambda form: add_row(form, add_slider, *MORPH_NUMBERS, **looks))
    followed = (form.followed(name) for name in ("source", "start", "end", "bpm"))
    form.drawn = page_widgets.connect_region(selector, *followed)
    form.follow(plan, MORPH_NUMBERS, lambda there: theme.said(tooltips.morph_plan(*map(there.get, MORPH_NUMBERS))))
    return SongTab(form, result, helper)


@contextlib.contextmanager
def _tab(form: Form) -> Iterator[None]:
    """Begin a tab with the row of its columns; the foot is added below it later."""
    form.tab = gr.Tab(tooltips.TABS[form.mode], id=form.mode, elem_id=f"{form.mode}-panel")
    with form.tab, gr.Row(elem_classes=["columns"], elem_id=f"{form.mode}-columns"):
        yield


def _words(form: Form, kept: Sequence[str] = ()) -> Assist:
    helper = Assist(form, "describe")
    page_panels.examples(form, kept=kept)
    page_panels.prompt(form)
    page_panels.lyrics(form)
    return helper


def _result(form: Form) -> ResultPanel:
    with gr.Column(elem_classes=["result"]):
        return ResultPanel(form.mode)


@contextlib.contextmanager
def _details(form: Form, cancel: str = tooltips.CANCEL) -> Iterator[None]:
    with gr.Column(elem_classes=["details"]):
        yield
        page_settings.foot(form, cancel)


class SongTab:
    """A tab for songs, with its foot and the lines `above` that; connects what all such tabs have."""

    def __init__(self, form: Form, result: ResultPanel, helper: Assist, *above: gr.HTML):
        self.form, self.result, self.assist = form, result, helper
        with form.tab:
            self.bar, problems = run_foot(form, [*above, page_hints.seconds_line(form)])
        connect_assist(form, helper)
        connect_song(form, self.bar, problems, result)
        connect_takes(form, self.bar, result)
        form.connect()


class EditForm(Form):
    """The form of the Edit tab. Its request has only what the chosen action uses."""

    ONE_TRACK = ("layer", "extract")  # their one "track" is sent as the request's "tracks"
    OF_ACTIONS = (
        *("source_prompt", "source_lyrics", "start", "end", "tracks", "track", "part"),  # "part": layer has a region
        *(f"options.{name}" for names in ACTION_OPTIONS.values() for name in names),
    )

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        read = super().read(values)
        action = read["action"]
        used = {f"options.{name}" for name in ACTION_OPTIONS[action]}
        if read["options.repaint_mode"] != "balanced":
            used.discard("options.repaint_strength")
        if action == "morph":
            used |= {"source_prompt", "source_lyrics"}
        if action == "repaint" or (action == "layer" and read["part"]):
            used |= {"start", "end"}
        if action in CHOOSE_TRACK:
            used.add("tracks")
        if action in self.ONE_TRACK:
            read["tracks"] = [read["track"]] if read["track"] else []
        return {name: value for name, value in read.items() if name in used or name not in self.OF_ACTIONS}

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


def _actions(form: EditForm) -> None:
    actions = add(form, "action", gr.Radio, choices=swapped(ACTIONS), value="repaint")
    hints = html(theme.actions({}), elem_id="edit-hints", js_on_load=theme.script("folds"))
    named = [(tooltips.track(name), name) for name in TRACKS]
    with gr.Column(elem_classes=["tracks-only"]):
        add(form, "track", gr.Radio, classes=["field", "track-only"], choices=named, value=None)
        add(form, "tracks", gr.CheckboxGroup, classes=["field", "complete-only"], choices=named, value=[])
    with gr.Row(elem_classes=["layer-only"]):
        add(form, "options.mix", gr.Checkbox, value=True, min_width=160)
        add(form, "part", gr.Checkbox, value=False, min_width=160)
    add_row(form, add_number, "start", "end", classes=["region-only"])
    with gr.Column(elem_classes=["repaint-only"]):
        add(form, "options.repaint_mode", gr.Radio, choices=swapped(REPAINT_MODES), value="balanced")
        add_slider(form, "options.repaint_strength", classes=["field", "balanced-only"])

    def mark_experiments(status: Status) -> Updates:
        tasks = status.tasks
        choices = [
            (tooltips.EXPERIMENTAL.format(name=name) if tasks.get(action) == "experimental" else name, action)
            for action, name in ACTIONS.items()
        ]
        return {actions: gr.update(choices=choices), hints: theme.actions(tasks)}

    form.watchers.append(mark_experiments)


def connect_uses(result: ResultPanel, forms: Mapping[str, Form], tabs: gr.Tabs) -> None:
    """Let a take become the source in another tab, with its words and musical facts."""

    def hand_over(pressed: gr.EventData, made: list[Made]) -> Updates:
        number, form = int(pressed.number), forms.get(pressed.use)
        if form is None or not 0 < number <= len(made):
            return {tabs: gr.skip()}
        words = page_form.song(made[number - 1].record)
        if form.mode == "edit":  # a morph starts from what the song is now
            words |= {f"source_{name}": words[name] for name in ("prompt", "lyrics")}
        return {**form.show(words), form.fields["source"]: made[number - 1].file, tabs: gr.Tabs(selected=form.mode)}

    names = (*page_form.SONG, "source", "source_prompt", "source_lyrics", "action")
    fields = [forms[mode].fields[name] for mode in tooltips.USE_IN for name in names if name in forms[mode].fields]
    opened = result.takes.select(hand_over, result.made, [tabs, *fields], **AT_ONCE)
    opened.then(None, js=TO_TOP, **AT_ONCE)


def connect_lyrics(lyrics: Form, panel: LyricsPanel, generate: SongTab, tabs: gr.Tabs) -> None:
    """Let written lyrics go to Generate with their language, and become a song; Undo there restores the former ones."""
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


class LyricsPanel:
    def __init__(self):
        html(theme.section(tooltips.WRITTEN))
        html(theme.remark(tooltips.WRITTEN_HELP))
        self.message = html(elem_id="lyrics-message")
        looks = {"show_label": False, "container": False, "lines": 12, "max_lines": 18, "elem_classes": ["words"]}
        looks |= {"label": tooltips.WRITTEN, "placeholder": tooltips.WRITTEN_EMPTY, "elem_id": "lyrics-text"}
        self.text = gr.Textbox(**looks)
        self.advice = html(elem_id="lyrics-advice", js_on_load=theme.script("advice"))
        small = {"size": "sm", "min_width": 96, "interactive": False}
        with gr.Row(elem_classes=["uses"]):
            self.sing = gr.Button(tooltips.MAKE_THIS_SONG, elem_id="lyrics-sing", **small)
            self.use = gr.Button(tooltips.USE_IN_GENERATE, elem_id="lyrics-use", **small)
            self.undo = Undo("lyrics")


def lyrics_tab() -> tuple[Form, LyricsPanel]:
    form = Form("lyrics")
    with _tab(form):
        with gr.Column(elem_classes=["essentials"]):
            page_panels.examples(form)
            add(form, "brief", gr.Textbox, lines=4, max_lines=10)
            structures = swapped({"": tooltips.AUTOMATIC, **{name: name for name in STRUCTURES}})
            with gr.Row(equal_height=True):
                add(form, "structure", gr.Dropdown, choices=structures, value="", allow_custom_value=True)
                add(form, "language", gr.Dropdown, choices=swapped(LANGUAGES), value="en")
            add(form, "tone", gr.Textbox, max_lines=1)
        with gr.Column(elem_classes=["result"]):
            panel = LyricsPanel()
        with _details(form, tooltips.STOP), fold(form, tooltips.ADVANCED, "advanced"):
            add_row(form, add_slider, "options.temperature", "options.top_p")
            add_row(form, add_number, "options.max_tokens", "seed")
    why = html(elem_id="lyrics-why", render=False)
    with form.tab:
        bar, problems = run_foot(form, [why, page_hints.seconds_line(form)], tooltips.STOP)

    def show(status: Status) -> Updates:
        songwriter = status.songwriter
        missing = tooltips.NO_SONGWRITER if songwriter.state == "none" else ""
        said = f"{missing} {songwriter.reason()}".strip()
        go = gr.update(interactive=songwriter.available)
        return {bar.go: go, why: theme.remark(said) if said else ""}

    form.watchers.append(show)
    connect_writer(form, bar, problems, panel)
    form.connect()
    return form, panel


# Once there are lyrics, the main button is the one that makes them a song.
LED_BY_TEXT = """(text) => {
  const update = (changes) => ({ __type__: "update", ...changes });
  const interactive = Boolean(text && text.trim());
  const [sing, go] = interactive ? ["primary", "secondary"] : ["secondary", "primary"];
  return [update({ interactive }), update({ interactive, variant: sing }), update({ variant: go })];
}"""


def connect_writer(form: Form, bar: RunBar, problems: gr.HTML, panel: LyricsPanel) -> None:
    """Let the button write lyrics into the box; Stop keeps the text so far, Undo restores what was there before."""

    def failed(problem: Problem) -> Updates:
        notice = theme.notice(tooltips.LYRICS_FAILED, problem.message, problem.hint)
        return {**bar.idle(theme.line("failed", tooltips.LYRICS_FAILED)), panel.message: notice}

    def write(*values: Any) -> Iterator[Updates]:
        began = time.monotonic()

        def draft(event: Draft) -> Updates:
            elapsed = time.monotonic() - began
            said = tooltips.WRITING.format(tokens=event.tokens, time=tooltips.clock(elapsed))
            return {bar.line: theme.line("running", said, heard="writing", elapsed=elapsed), panel.text: event.text}

        def done(request: Request, done: Done) -> Updates:
            sentence = tooltips.written(done.record["tokens"], time.monotonic() - began, done.record["end"])
            return {**bar.idle(theme.line("done", sentence)), panel.text: done.record["text"]}

        yield from stream_of(lambda: form.request(values), bar, done, failed, draft)

    def remember(text: str, former: list[dict[str, Any]]) -> Updates:
        return undo.keep(former, {"text": text}) if text.strip() else {undo.former: former}

    undo, outputs, fresh = panel.undo, [panel.text, panel.message], {panel.message: ""}
    begin, run = connect_run(form, bar, problems, write, outputs, fresh, cancelled=tooltips.LYRICS_STOPPED)
    begin.success(remember, [panel.text, undo.former], undo.outputs, **AT_ONCE)
    undone = undo.connect({"text": panel.text})
    language = form.fields["language"]
    # Not at every change of the text: there is no advice on lyrics that are still being written.
    typed = (panel.text.input, panel.text.blur)
    for event in (run.success, run.failure, undone.then, *typed, language.change):
        event(page_hints.advise, [panel.text, language], panel.advice, **AT_ONCE)
    # Gradio does not call a paste into an empty box an input, so the browser itself enables the buttons.
    panel.text.change(None, panel.text, [panel.use, panel.sing, bar.go], js=LED_BY_TEXT, **QUIET)
