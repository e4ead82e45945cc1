"""The Lyrics tab: a brief becomes lyrics in an editable box, as they are written, and go on to Generate."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

import page_panels
import page_settings
import theme
import tooltips
from events import Done, Draft, Problem
from limits import LANGUAGES, STRUCTURES
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
    reason,
    undo_button,
)
from page_hints import advice_line, advise, lyric_tokens
from page_results import RunBar
from page_runs import connect_run, run_foot, stream_of
from params import Request


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
                _essentials(form)
            with gr.Column(elem_classes=["result"]):
                panel = _panel()
            with gr.Column(elem_classes=["details"]):
                _advanced(form)
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


def _essentials(form: Form) -> None:
    add(form, "brief", gr.Textbox, placeholder=tooltips.PLACEHOLDERS["brief"], lines=4, max_lines=10)
    structures = [(tooltips.AUTOMATIC, ""), *((name, name) for name in STRUCTURES)]
    with gr.Row(equal_height=True):
        add(form, "structure", gr.Dropdown, choices=structures, value="", allow_custom_value=True)
        languages = [(name, code) for code, name in LANGUAGES.items()]
        add(form, "language", gr.Dropdown, choices=languages, value="en")
    add(form, "tone", gr.Textbox, placeholder=tooltips.PLACEHOLDERS["tone"], max_lines=1)


def _advanced(form: Form) -> None:
    before = set(form.fields)
    with gr.Accordion(tooltips.ADVANCED, open=False, elem_id="lyrics-advanced") as fold:
        with gr.Row(equal_height=True):
            add_slider(form, "options.temperature")
            add_slider(form, "options.top_p")
        with gr.Row(equal_height=True):
            add_number(form, "options.max_tokens")
            add_number(form, "seed")
    form.folds[fold] = tuple(form.fields.keys() - before)


def _panel() -> LyricsPanel:
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
