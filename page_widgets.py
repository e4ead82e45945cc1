"""Our own widgets, each a `gr.HTML` with a script: waveform, timeline, lists of takes.

Dragging, playing and typing stay in the browser: a script writes the fields beside its widget when
a drag or a key press ends, and asks the server for one thing only, the waveform of a new source.
The values of the first two widgets are what `waveform` and `audio_waveform.peaks` return, with the
contents of those fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

import audio_export
import audio_waveform
import theme
import tooltips
from limits import LEAST_REGION_SECONDS, LIMITS, MAX_SOURCE_SECONDS
from page_form import AT_ONCE, Updates, settings
from record import Stored


def frame(name: str, texts: Mapping[str, str], value: Any = None, /, **looks: Any) -> gr.HTML:
    """Make a component of a file of static/ with `texts` in place, for the script of that name.

    The file names no value of the component, so that Gradio never redraws it over the script's
    work.
    """
    escaped = {key: escape(text) for key, text in texts.items()}
    template = theme.static(f"{name}.html").format_map(escaped)
    looks.setdefault("js_on_load", theme.script(name))
    return gr.HTML(value, html_template=template, apply_default_css=False, **looks)


def _widget(name: str, filled: Mapping[str, str], elem_id: str, **props: Any) -> gr.HTML:
    """Make a frame that brings its own style sheet."""
    return frame(
        name,
        filled,
        container=True,
        elem_id=elem_id,
        css_template=theme.static(f"{name}.css"),
        **props,
    )


# What stands for the name of a source that a reload brings back (static/source.js).
AGAIN = "again"


# --- the region of a source -----------------------------------------------------------------------


@dataclass(frozen=True)
class WantedRegion:
    """The region in seconds that the file of this name begins with, once it is drawn."""

    name: str
    start: float
    end: float


def region_selector(elem_id: str = "region") -> gr.HTML:
    texts = tooltips.REGION
    return _widget("region", texts, elem_id, texts=texts, least=LEAST_REGION_SECONDS)


def connect_region(
    selector: gr.HTML,
    source: gr.Audio | gr.File,
    start: gr.Textbox,
    end: gr.Textbox,
    bpm: gr.Textbox,
    more: gr.Textbox | None = None,
    wanted: gr.State | None = None,
    chosen: gr.Textbox | None = None,
) -> Dependency:
    """Show the waveform of `source` in step with the fields; returns the event that shows it.

    `start` and `end` are in seconds; an end of 0 is the end of the file. What is typed is never
    changed; if it is not a region of the file, the widget says so. A source that is already there
    keeps its region, as does one that is `chosen` again after a reload. `more` has further regions
    as text, such as "12-15.5, 0:30-0:35". `wanted`, which comes with `chosen`, may hold a
    `WantedRegion`.
    """
    fields = {"start": start, "end": end}
    if more is not None:
        fields["regions"] = more
    # The script triggers "input" only for what a visitor does on the waveform, so that nothing goes
    # in circles.
    values = ", ".join(f'String(value.{name} ?? "")' for name in fields)
    boxes = [*fields.values()]
    selector.input(None, selector, boxes, js=f"(value) => [{values}]", **AT_ONCE)
    join = _join(selector, **fields, typed=bpm)

    def show(
        path: str | None,
        shown: dict[str, Any] | None,
        region: WantedRegion | None = None,
        name: str = "",
    ) -> Updates:
        if not path:
            return {selector: None, **_texts(fields, 0.0, 0.0)}
        value = waveform(path)
        updates: Updates = {}
        first, last = middle(value["seconds"]) if value["seconds"] else (0.0, 0.0)
        if region and region.name == Path(path).name:
            first = region.start
            last = region.end
            updates[wanted] = None  # it is for one drawing
        if shown and value["peaks"] == shown["peaks"]:
            return updates or gr.skip()
        updates[selector] = {**value, "start": first, "end": last, "regions": ""}
        if name != AGAIN:
            updates |= _texts(fields, first, last)
        return updates

    held: list[Any] = [source, selector]
    drawn: list[Any] = [selector, *boxes]
    if wanted is not None:
        held += [wanted, chosen]
        drawn.append(wanted)
    read = source.change(show, held, drawn, **AT_ONCE)
    read.then(**join)
    return read


def _texts(fields: Mapping[str, gr.Textbox], start: float, end: float) -> Updates:
    """Return the updates that put a region into its fields, and no further ones."""
    texts = {"start": f"{start:g}", "end": f"{end:g}", "regions": ""}
    return {field: texts[name] for name, field in fields.items()}


def connect_waveform(shown: gr.HTML, source: gr.Audio) -> None:
    """Show the waveform of `source`, to be heard alone."""

    def show(path: str | None) -> dict[str, Any] | None:
        return _heard(path) if path else None

    source.change(show, source, shown, **AT_ONCE)


def _heard(path: str) -> dict[str, Any]:
    """Return the peaks of a file and, if it is readable, where it is."""
    found = audio_waveform.peaks(path)
    if not found["seconds"]:
        return found
    return {**found, "path": path}


def _join(widget: gr.HTML, **fields: gr.Textbox) -> dict[str, Any]:
    """Keep `fields` in the widget's value; returns the arguments of the event that does it."""
    # In the browser: they may change while the server reads the source.
    names = ", ".join(fields)
    js = f"({names}, value) => value ? {{...value, {names}}} : value"
    inputs = [*fields.values(), widget]
    join = {"fn": None, "inputs": inputs, "outputs": widget, "js": js, **AT_ONCE}
    gr.on([field.change for field in fields.values()], **join)
    return join


def waveform(path: str | Path) -> dict[str, Any]:
    """Return the selector's value: `peaks`, and for a readable file its path, onsets and BPM."""
    found = audio_waveform.peaks(path, audio_waveform.CLOSE_COLUMNS)
    if not found["seconds"]:
        return found
    onsets = audio_waveform.onsets(path, found["seconds"])
    bpm = tempo(audio_export.read_record(path))
    return {**found, "path": str(path), "onsets": onsets, "bpm": bpm}


def tempo(record: Mapping[str, Any] | None) -> int | None:
    """Return the BPM in a record, the plan's if there is one; the values may be anything."""
    planned = settings("generate", {"request": Stored.from_record(record).plan}).values.get("bpm")
    return planned or settings("generate", record).values.get("bpm")


def middle(seconds: float) -> tuple[float, float]:
    """Return the region in seconds that a new file starts with: from a third to half of it."""
    start = round(seconds / 3, 1)
    end = round(max(seconds / 2, start + LEAST_REGION_SECONDS), 1)
    return start, end


# --- the timeline of an extension -----------------------------------------------------------------


def timeline(elem_id: str) -> gr.HTML:
    return _widget(
        "timeline",
        tooltips.TIMELINE,
        elem_id,
        usual={"before": LIMITS["before"].default, "after": LIMITS["after"].default},
        texts={name: tooltips.TIMELINE[name] for name in ("seconds", "play", "pause")},
        most=LIMITS["after"].high,
        longest=MAX_SOURCE_SECONDS,
    )


def connect_timeline(
    shown: gr.HTML, source: gr.Audio, before: gr.Textbox, after: gr.Textbox
) -> None:
    """Show `source` on the timeline and keep its ends in step with the fields, both in seconds."""
    written = "(value) => [String(value.before), String(value.after)]"
    shown.input(None, shown, [before, after], js=written, **AT_ONCE)
    join = _join(shown, before=before, after=after)

    def show(path: str | None) -> dict[str, Any] | None:
        return _heard(path) if path else None

    source.change(show, source, shown, **AT_ONCE).then(**join)


# --- takes ----------------------------------------------------------------------------------------


def takes(mode: str) -> gr.HTML:
    """Make a tab's place for the visitor's songs, which static/takes.js draws wherever they are looked at."""
    texts = {
        "notify": tooltips.NOTIFY,
        "record": tooltips.RECORD,
        "mode": mode,
        "none": tooltips.EMPTY_RESULTS[mode],
    }
    return frame("takes", texts, elem_id=f"{mode}-takes-made", elem_classes=["takes-made"])


def latest_takes(mode: str) -> gr.HTML:
    """Make the list of the visitor's latest takes beside a source."""
    sentences = {
        "use": tooltips.USE_TAKE,
        "gone": tooltips.TAKE_GONE,
        "lost": tooltips.TAKE_NOT_READ,
        "source_gone": tooltips.SOURCE_GONE,
    }
    settings = {"texts": sentences, "modes": list(tooltips.GO)}
    texts = {"settings": json.dumps(settings, ensure_ascii=False), "title": tooltips.LATEST_TAKES}
    return frame("latest", texts, elem_id=f"{mode}-latest", elem_classes=["latest-takes"])
