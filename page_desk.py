"""The desk of the Lyrics tab: section tags, rhymes, advice while somebody writes, and lines that are rewritten.

static/desk.js does what needs no server: it inserts tags at the cursor and writes the syllables of each
line into the margin. The studio hears of typing once, after a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

import lyrics_rhymes
import page_hints
import theme
import tooltips
from events import InvalidRequest, Problem
from limits import KEPT_TEXT, REWRITES
from lyrics_tidy import with_fixed_tags
from page_form import AT_ONCE, UNSEEN, Form, Undo, Updates, grouped, html
from page_run import RunBar, start
from params import SELECT_LINES, Request, parse_request
from plain_text import plain
from status import Status

BOX = "lyrics-text"
# The fields of the tab that rewriting takes as well.
TAKEN = ("brief", "tone", "language", "options.temperature", "options.top_p")
LONGEST_WORD = 40  # letters of a word whose rhymes are looked up
# The browser's secret name, and the lyrics before, in and after the selected lines.
SELECTED = "(_, text, __, ___, ...more) => [studio.owner(), ...studio.pickedLines(text), ...more]"


class Desk:
    """What stands around the box of the lyrics: `above` it the tags, and below it the rest."""

    def __init__(self, form: Form):
        self._form = form
        self.above = html(
            theme.tags(BOX, tooltips.DESK),
            elem_id="lyrics-desk",
            js_on_load=theme.script("desk"),
        )

    def add_below(self) -> None:
        """Add the buttons that have lines rewritten, with Undo, Cancel, and what there is to know."""
        small: dict[str, Any] = {"size": "sm", "min_width": 0, "interactive": False}
        with gr.Row(elem_classes=["assist"]):
            self.buttons = {
                task: gr.Button(name, elem_id=f"lyrics-{task}", **small)
                for task, name in REWRITES.items()
            }
            self.undo = Undo("lyrics")
            self.cancel = gr.Button(
                tooltips.STOP,
                variant="stop",
                elem_id="lyrics-assist-cancel",
                elem_classes=["while-running"],
                **small,
            )
        self.help = html(elem_id="lyrics-assist-help")
        self.answer = html(elem_id="lyrics-answer")
        self.advice = html(elem_id="lyrics-advice", js_on_load=theme.script("advice"))

    def show(self, status: Status) -> Updates:
        """Return the updates for the studio's status: without a songwriter no line is rewritten."""
        songwriter = status.songwriter
        sentence = tooltips.REWRITE_HELP
        if not songwriter.available:
            sentence = tooltips.NO_REWRITING.format(reason=songwriter.reason(hint=False)).strip()
        updates: Updates = {self.help: theme.remark(sentence)}
        for button in self.buttons.values():
            updates[button] = gr.update(interactive=songwriter.available)
        return updates

    def connect(self, text: gr.Textbox) -> None:
        """Let the desk advise on the `text`, mend its tags and find rhymes; Undo restores it."""
        language = self._form.fields["language"]
        undo = self.undo

        def advise(asked: gr.EventData, lyrics: str, code: str) -> str:
            song = asked.song if isinstance(asked.song, Mapping) else {}
            return page_hints.advise_for(self._form.studio, lyrics, code, song)

        def fix(lyrics: str, former: list[dict[str, Any]]) -> Updates:
            fixed = with_fixed_tags(lyrics[:KEPT_TEXT])
            changed = _changed_lines(lyrics, fixed)
            if not changed:
                return {self.answer: theme.answer(tooltips.TAGS_RIGHT)}
            said = theme.answer(tooltips.tags_fixed(changed))
            return {text: fixed, self.answer: said, **undo.keep(former, {"text": lyrics})}

        latest = {"trigger_mode": "always_last", **AT_ONCE}
        self.above.input(advise, [text, language], self.advice, **latest)
        self.above.submit(fix, [text, undo.former], [text, self.answer, *undo.outputs], **AT_ONCE)
        self.above.select(_rhymes, None, self.answer, **AT_ONCE)
        undone = undo.connect({"text": text})
        undone.then(lambda: "", None, self.answer, **AT_ONCE)

    def connect_rewriting(
        self,
        bar: RunBar,
        text: gr.Textbox,
        message: gr.HTML,
        failed: Callable[[Problem], Updates],
    ) -> None:
        """Let the buttons start runs of the tab's bar; `failed` shows in `message` why one did not start."""
        form = self._form
        fields = form.components(TAKEN)

        def begin(
            task: str,
            owner: str,
            passage: tuple[str, str, str],
            values: tuple[Any, ...],
        ) -> Updates:
            held = dict(zip(fields, values, strict=True))
            given = {name: form.to_request(name, value) for name, value in held.items()}

            def ask() -> Request:
                return rewriting(task, *passage, grouped(given))

            started = start(bar, form.studio, owner, ask, failed)
            return {message: "", self.answer: "", **started}

        def started_by(task: str) -> Callable[..., Updates]:
            def press(owner: str, before: str, lines: str, after: str, *values: Any) -> Updates:
                return begin(task, owner, (before, lines, after), values)

            return press

        inputs = [bar.runs, text, text, text, *fields.values()]
        outputs = [*bar.outputs, message, self.answer]
        for task, button in self.buttons.items():
            pressed = button.click(
                started_by(task),
                inputs,
                outputs,
                js=SELECTED,
                concurrency_limit=None,
                trigger_mode="once",
                **UNSEEN,
            )
            lost = theme.line("stopped", tooltips.STOPPED)
            pressed.failure(lambda lost=lost: lost, outputs=bar.line, **AT_ONCE)


def rewriting(task: str, before: str, lines: str, after: str, values: Mapping[str, Any]) -> Request:
    """Return the request to rewrite `lines` of the lyrics `before` + `lines` + `after`; raises InvalidRequest."""
    if not lines.strip():
        message = f"{SELECT_LINES}, or put the cursor into one."
        raise InvalidRequest(Problem("invalid", message, "lines"))
    lyrics = plain(before + lines + after)
    # A request has no blank lines before its lyrics.
    left_out = lyrics[: len(lyrics) - len(lyrics.lstrip())].count("\n")
    first = plain(before).count("\n") + 1 - left_out
    last = first + plain(lines).rstrip().count("\n")
    passage = [max(first, 1), last]
    return parse_request("rewrite", {**values, "task": task, "lyrics": lyrics, "lines": passage})


def _changed_lines(before: str, after: str) -> int:
    """Return how many lines of `after` are not in `before`."""
    former = set(before.split("\n"))
    return sum(line not in former for line in after.split("\n"))


def _rhymes(asked: gr.EventData) -> str:
    """Return the words that rhyme with the word at the cursor, as HTML."""
    if not lyrics_rhymes.is_available():
        return theme.answer(tooltips.NO_DICTIONARY)
    word = str(asked.word)[:LONGEST_WORD]
    if not word:
        return theme.answer(tooltips.NO_WORD)
    return theme.rhyming(word, lyrics_rhymes.rhymes_with(word), BOX)
