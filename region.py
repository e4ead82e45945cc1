"""A region chosen on a waveform: the picture of a source, two handles, and two number fields that stay in step with it.

The component is a `gr.HTML` with a script of its own (static/region.js). Its value is what `peaks` returns, with the
contents of both fields beside it as "start" and "end". Dragging and typing stay in the browser: the page writes the
fields when a drag or a key press ends, and asks the server for one thing only, the peaks of a new source.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import soundfile as sf

import audio
import theme
from limits import LEAST_REGION_SECONDS

COLUMNS = 800  # of the waveform: enough for any width at which it is shown
QUIETEST_DBFS = -40.0  # quieter sources are drawn as if their peak were here, so that noise does not fill the picture

TEXTS = {
    "title": "Region",
    "empty": "Choose a source, and its waveform appears here to mark a region on.",
    "unreadable": "There is no waveform of this file to show.",
    "help": "Drag to mark a region; drag its edges to change it, its middle to move it. With the keyboard: arrow keys "
    "move an edge by 0.1 s, Shift and arrow keys by 1 s.",
    "start": "Start",
    "end": "End",
    "length": "Length",
    "start_handle": "Start of the region",
    "end_handle": "End of the region",
    "said": "Region from {start} to {end}, {length} long.",
    "wrong": "Start and End are no region of this file: they are from 0 to {seconds} seconds, End at least {least} "
    "seconds after Start, or 0 for the end of the file.",
}


def region_selector(start: gr.Number | gr.Textbox, end: gr.Number | gr.Textbox, elem_id: str = "region") -> gr.HTML:
    """Make the waveform and keep it in step with the two fields, both in seconds; end 0 is the end of the file.

    A field may be a number box or a text box. What is typed into one is never changed: where the two are no region of
    the file, the component says so, and validation has its say at the field.
    """
    selector = gr.HTML(
        html_template=_template(),
        css_template=theme.static("region.css"),
        js_on_load=theme.static("region.js"),
        apply_default_css=False,
        container=True,
        elem_id=elem_id,
        texts={name: TEXTS[name] for name in ("unreadable", "empty", "said", "wrong")},
        least=LEAST_REGION_SECONDS,
    )
    # The script triggers "input" for what a visitor does on the waveform and for nothing else, so nothing goes in
    # circles. Without a Python function these events never leave the browser.
    written = ", ".join("String({})" if isinstance(field, gr.Textbox) else "{}" for field in (start, end))
    written = written.format("value.start", "value.end")
    selector.input(None, selector, [start, end], js=f"(value) => [{written}]", **_IN_BROWSER)
    gr.on(
        [start.change, end.change],
        None,
        [start, end, selector],
        selector,
        js="(start, end, value) => value ? {...value, start, end} : value",
        **_IN_BROWSER,
    )
    return selector


def follow(
    selector: gr.HTML, source: gr.Audio | gr.File, start: gr.Number | gr.Textbox, end: gr.Number | gr.Textbox
) -> Any:
    """Show the waveform of `source` (its value is a path) and choose a middle part of it; no source clears both.

    A source that is there already keeps its region, however often the page names it. Returns the event, for what has to
    come after it.
    """

    def show(path: str | None, shown: dict[str, Any] | None) -> list[Any]:
        value = peaks(path) if path else None
        if value and shown and value["peaks"] == shown["peaks"]:
            return [gr.skip()] * 3
        first, last = middle(value["seconds"]) if value else (0.0, 0.0)
        written = [f"{at:g}" if isinstance(field, gr.Textbox) else at for field, at in ((start, first), (end, last))]
        return [value and {**value, "start": first, "end": last}, *written]

    return source.change(show, [source, selector], [selector, start, end], queue=False, **_QUIET)


def peaks(path: str | Path) -> dict[str, Any]:
    """Return a file's length as {"seconds": float, "peaks": str} with what its waveform looks like.

    "peaks" is base64 of int8 [COLUMNS, 2]: the lowest and the highest sample of every column over all channels, where
    127 is the loudest sample of the file. A file that cannot be read has 0 seconds and no peaks.
    """
    try:
        seconds = audio.duration_of(path)
        lows_and_highs = _lows_and_highs(path)
    except (audio.AudioError, sf.SoundFileError, OSError):
        return {"seconds": 0.0, "peaks": ""}
    scale = 127 / max(float(np.abs(lows_and_highs).max()), 10 ** (QUIETEST_DBFS / 20))
    drawn = np.rint(lows_and_highs * scale).astype(np.int8)
    return {"seconds": seconds, "peaks": base64.b64encode(drawn.tobytes()).decode()}


def middle(seconds: float) -> tuple[float, float]:
    """Return the start and end in seconds of the region that a new file begins with: from a third to half of it."""
    if not seconds:
        return 0.0, 0.0
    start = round(seconds / 3, 1)
    return start, round(max(seconds / 2, start + LEAST_REGION_SECONDS), 1)


# --- helpers ------------------------------------------------------------------------------------------------------

_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
_IN_BROWSER: dict[str, Any] = {"queue": False, **_QUIET}


def _lows_and_highs(path: str | Path) -> np.ndarray:
    """Return float32 [COLUMNS, 2] at full scale 1.0, zeros where the file ends early; never holds the whole file."""
    found = np.zeros((COLUMNS, 2), np.float32)
    with audio.ForwardFile(path) as file:
        edges = np.linspace(0, file.frames, COLUMNS + 1).round().astype(int)
        for column, frames in enumerate(np.diff(edges)):
            block = np.nan_to_num(file.read(frames, dtype="float32"), copy=False, posinf=1, neginf=-1)
            found[column] = block.min(initial=0), block.max(initial=0)
    return found


def _template() -> str:
    """Return the component's HTML. It names no value, so that Gradio never draws it anew over the script's work."""
    return _HTML.format(**{name: escape(text) for name, text in TEXTS.items() if "{" not in text})


_HTML = """
<div class="region" role="group" aria-label="{title}">
  <p class="title" aria-hidden="true">{title}</p>
  <p class="empty">{empty}</p>
  <div class="chooser" hidden>
    <div class="stage">
      <div class="track">
        <svg class="wave" preserveAspectRatio="none" aria-hidden="true"><path></path></svg>
        <div class="chosen" data-part="middle"></div>
        <svg class="wave inside" preserveAspectRatio="none" aria-hidden="true"><path></path></svg>
        <div class="handle start" data-part="start" role="slider" tabindex="0" aria-label="{start_handle}"></div>
        <div class="handle end" data-part="end" role="slider" tabindex="0" aria-label="{end_handle}"></div>
        <div class="edge start"></div>
        <div class="edge end"></div>
      </div>
    </div>
    <div class="scale" aria-hidden="true"><span>0:00.0</span><span data-shows="seconds"></span></div>
    <p class="facts">
      <span>{start} <b data-shows="start"></b></span>
      <span>{end} <b data-shows="end"></b></span>
      <span>{length} <b data-shows="length"></b></span>
    </p>
    <p class="wrong" hidden></p>
    <p class="help">{help}</p>
  </div>
  <p class="said" aria-live="polite"></p>
</div>
"""
