"""The song that an extension makes, on a time axis: the source, and new music at its ends, which are dragged.

The component is a `gr.HTML` with a script of its own (static/timeline.js). Its value is what `page_region.peaks`
returns, with the contents of both fields beside it. Dragging stays in the browser, as it does in `page_region`.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

import page_region
import theme
import tooltips
from limits import LIMITS, MAX_SOURCE_SECONDS
from page_form import AT_ONCE


def timeline(elem_id: str) -> gr.HTML:
    """Make the timeline, which appears with a source; `connect` gives it one, and fields."""
    return gr.HTML(
        html_template=_HTML.format(**{name: escape(text) for name, text in tooltips.TIMELINE.items()}),
        css_template=theme.static("timeline.css"),
        js_on_load=theme.static("timeline.js"),
        apply_default_css=False,
        container=True,
        elem_id=elem_id,
        texts={"seconds": tooltips.NEW_SECONDS},
        most=LIMITS["after"].high,
        longest=MAX_SOURCE_SECONDS,
        usual={name: LIMITS[name].default for name in ("before", "after")},
    )


def connect(shown: gr.HTML, source: gr.Audio, before: gr.Textbox, after: gr.Textbox) -> None:
    """Show `source` on the timeline and keep its ends in step with the fields, both in seconds."""
    written = "(value) => [String(value.before), String(value.after)]"
    shown.input(None, shown, [before, after], js=written, **AT_ONCE)
    # The fields may change while the server reads the source, so the browser alone says what is in them.
    joined = {
        "fn": None,
        "inputs": [before, after, shown],
        "outputs": shown,
        "js": "(before, after, value) => value ? {...value, before, after} : value",
        **AT_ONCE,
    }
    gr.on([before.change, after.change], **joined)

    def show(path: str | None) -> dict[str, Any] | None:
        return page_region.peaks(path) if path else None

    source.change(show, source, shown, **AT_ONCE).then(**joined)


# --- helpers ------------------------------------------------------------------------------------------------------

_HTML = """
<div class="timeline" role="group" aria-label="{title}" hidden>
  <p class="title" aria-hidden="true">{title}</p>
  <div class="lane">
    <div class="track">
      <div class="part before"><span aria-hidden="true"></span></div>
      <div class="part source"><svg class="wave" preserveAspectRatio="none" aria-hidden="true"><path></path></svg></div>
      <div class="part after"><span aria-hidden="true"></span></div>
      <div class="grip before" role="slider" tabindex="0" aria-label="{before}"></div>
      <div class="grip after" role="slider" tabindex="0" aria-label="{after}"></div>
    </div>
  </div>
  <p class="help">{help} <span class="keys">{keys}</span></p>
</div>
"""
