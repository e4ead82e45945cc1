"""The linter's advice under a lyrics box: it follows what is typed, and blocks nothing."""

from __future__ import annotations

from typing import Any

import gradio as gr

import lint
import markup
import theme
from form import Form, html, lengths
from limits import TEXT_LIMITS
from tokens import lyric_tokens

# What the advice on a box of lyrics depends on, where a tab has it; a source sings its own, Instrumental or not.
FOLLOWED = {
    "lyrics": ("instrumental", "language", "duration", "before", "after", "source"),
    "source_lyrics": ("language", "source"),
}


def advice_line(name: str) -> gr.HTML:
    """Make the place for advice; `name` begins its element id."""
    return html(elem_id=f"{name}-advice", js_on_load=theme.script("advice"))


def advise(lyrics: str | None, language: str | None, seconds: float | None = None, tokens: int | None = None) -> str:
    """Return the advice on lyrics as HTML; what is longer than lyrics may be is looked at up to there."""
    text = (lyrics or "")[: TEXT_LIMITS["lyrics"]]
    return markup.advice(lint.lint(text, seconds=seconds, language=language or "unknown", tokens=tokens))


def connect_advice(form: Form, line: gr.HTML, box: str = "lyrics") -> None:
    """Keep the advice on the lyrics in a song tab's `box` up to date; lyrics that are switched off get none."""

    def say(there: dict[str, Any]) -> str:
        if there.get("instrumental"):
            return ""
        counted = lyric_tokens(there[box] or "", there["language"])
        return advise(there[box], there["language"], sung_seconds(there), counted)

    form.follow(line, (box, *FOLLOWED[box]), say)


def sung_seconds(there: dict[str, Any]) -> float | None:
    """Return the seconds that a tab's lyrics are sung in, None where they are not known (yet).

    The lyrics of an extension are those of its new part, the others those of the whole song.
    """
    found = lengths(there)
    source = found.pop("source", None)
    if not found:
        return source
    return None if None in found.values() else sum(found.values())
