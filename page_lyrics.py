"""The Lyrics tab: the songwriter writes lyrics, which go to Generate or become a song."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

import page_fields
import page_hints
import theme
import tooltips
from backend import Backend
from events import Problem
from limits import LANGUAGES, REWRITES, STRUCTURES
from page_desk import Desk
from page_fields import EXAMPLES, Examples, swapped
from page_form import AT_ONCE, UNSEEN, Form, Updates, html
from page_run import Ended, RunBar, connect_again, connect_end, connect_run, tab_run_bar
from params import Request, RewriteRequest
from status import Status

# Once there are lyrics, the button that makes them a song becomes the main one, but not while they are being written.
LED_BY_TEXT = """(text) => {
  const update = (changes) => ({ __type__: "update", ...changes });
  const interactive = Boolean(text && text.trim()) && !studio.isRunning("lyrics");
  studio.lyricsChanged();
  const [sing, go] = interactive ? ["primary", "secondary"] : ["secondary", "primary"];
  return [update({ interactive }), update({ interactive, variant: sing }), update({ variant: go })];
}"""


class LyricsPanel:
    """Where the lyrics appear and are edited, and what can be done with them."""

    def __init__(self, form: Form):
        html(theme.section(tooltips.WRITTEN))
        html(theme.remark(f"{tooltips.WRITTEN_HELP} {tooltips.WRITTEN_MARGIN}"))
        self.message = html(elem_id="lyrics-message")
        self.desk = Desk(form)
        self.text = gr.Textbox(
            label=tooltips.WRITTEN,
            show_label=False,
            container=False,
            placeholder=tooltips.WRITTEN_EMPTY,
            lines=12,
            max_lines=18,
            elem_id="lyrics-text",
            elem_classes=["words"],
        )
        self.desk.add_below()
        small: dict[str, Any] = {"size": "sm", "min_width": 96, "interactive": False}
        with gr.Row(elem_classes=["uses"]):
            self.sing = gr.Button(tooltips.MAKE_THIS_SONG, elem_id="lyrics-sing", **small)
            self.use = gr.Button(tooltips.USE_IN_GENERATE, elem_id="lyrics-use", **small)


@dataclass(frozen=True)
class LyricsTab:
    form: Form
    panel: LyricsPanel
    runs: list[Dependency]


def lyrics_tab(studio: Backend) -> LyricsTab:
    form = Form("lyrics", studio)
    with page_fields.tab(form), page_fields.columns(form):
        with page_fields.form_column():
            examples = Examples(form)
            form.add("brief", gr.Textbox, lines=4, max_lines=10)
            structures = {"": tooltips.AUTOMATIC, **{name: name for name in STRUCTURES}}
            with gr.Row(equal_height=True):
                form.add(
                    "structure",
                    gr.Dropdown,
                    choices=swapped(structures),
                    value="",
                    allow_custom_value=True,
                )
                form.add("language", gr.Dropdown, choices=swapped(LANGUAGES), value="en")
            form.add("tone", gr.Textbox, max_lines=1)
            with page_fields.details_column():
                with page_fields.fold(form, tooltips.ADVANCED, "advanced"):
                    form.add_sliders("options.temperature", "options.top_p")
                    form.add_numbers("options.max_tokens", "seed")
                page_fields.add_reset(form, tooltips.STOP)
            with page_fields.foot():
                why = html(elem_id="lyrics-why")
                page_hints.add_seconds(form)
                alone = 1 + len(REWRITES)
                bar = tab_run_bar(form, tooltips.STOP, alone, cancels=2)
        with page_fields.result_column():
            panel = LyricsPanel(form)
    bar.starters += panel.desk.buttons.values()
    bar.more_cancels.append(panel.desk.cancel)

    in_other_languages = [
        examples.chips[name]
        for name, each in EXAMPLES["lyrics"].items()
        if each["language"] != "en"
    ]

    def show(status: Status) -> Updates:
        songwriter = status.songwriter
        missing = tooltips.NO_SONGWRITER if songwriter.state == "none" else ""
        built_in = tooltips.SMALL_SONGWRITER if songwriter.is_built_in else ""
        reason = f"{missing} {built_in} {songwriter.reason()}".strip()
        go = gr.update(interactive=songwriter.available)
        shown = {bar.go: go, why: theme.remark(reason) if reason else ""}
        writes_english_only = songwriter.is_built_in
        chips = dict.fromkeys(in_other_languages, gr.update(visible=not writes_english_only))
        return {**shown, **chips, **panel.desk.show(status)}

    examples.connect()
    form.on_status(show)
    run = _connect_songwriter(form, bar, panel)
    return LyricsTab(form, panel, [run])


def _connect_songwriter(form: Form, bar: RunBar, panel: LyricsPanel) -> Dependency:
    """Let the button write lyrics into the box; Undo restores what was there before."""
    undo = panel.desk.undo

    def failed(problem: Problem, *_: Any) -> Updates:
        notice = theme.notice(tooltips.LYRICS_FAILED, problem.message, problem.hint)
        return {**bar.idle(theme.line("failed", tooltips.LYRICS_FAILED)), panel.message: notice}

    def ask(*values: Any) -> Request:
        return form.request(values)

    def done(ended: Ended, former: list[dict[str, Any]]) -> Updates:
        words = ended.done.words
        if isinstance(ended.request, RewriteRequest):
            count = len(ended.request.passage.lines)
            line = theme.line("done", tooltips.rewritten(ended.seconds, count))
            kept = undo.keep(former, {"text": ended.request.lyrics})
            return {**bar.idle(line), panel.text: words["text"], **kept}
        sentence = tooltips.written(ended.seconds, words["end"])
        return {**bar.idle(theme.line("done", sentence)), panel.text: words["text"]}

    def remember(text: str, former: list[dict[str, Any]]) -> Updates:
        if not text.strip():
            return {undo.former: former}
        return undo.keep(former, {"text": text})

    def restored(request: Request, is_cancelled: bool) -> Updates:
        if not isinstance(request, RewriteRequest):
            return {}
        if not is_cancelled:
            return {panel.text: request.lyrics}
        line = theme.line("stopped", tooltips.REWRITE_STOPPED)
        return {bar.line: line, panel.text: request.lyrics}

    outputs = [panel.text, panel.message]
    begin = connect_run(form, bar, ask, failed, outputs, {panel.message: ""})
    run = connect_end(
        bar,
        form.studio,
        done,
        failed,
        [*outputs, *undo.outputs],
        [undo.former],
        cancelled=tooltips.LYRICS_STOPPED,
        restored=restored,
    )
    connect_again(form, bar.runs.retry)
    # The text so far, straight from the browser.
    bar.runs.input(None, None, panel.text, js="() => studio.draft('lyrics')", **AT_ONCE)
    begin.success(remember, [panel.text, undo.former], undo.outputs, **AT_ONCE)
    panel.desk.connect(panel.text)
    panel.desk.connect_rewriting(bar, panel.text, panel.message, failed)
    # Gradio does not call a paste into an empty box an input, so the browser itself enables the
    # buttons.
    text_or_run = [panel.text.change, bar.runs.select]
    led = [panel.use, panel.sing, bar.go]
    gr.on(text_or_run, None, panel.text, led, js=LED_BY_TEXT, **UNSEEN)
    return run
