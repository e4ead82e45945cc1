"""Our own widgets, each a `gr.HTML` with a script: a region on a waveform, the timeline of an extension, a LoRA list.

Dragging, playing and typing stay in the browser: a script writes the fields beside its widget when a drag or a key
press ends, and asks the server for one thing only, the waveform of a new source. The values of the first two widgets
are what `waveform` and `peaks` return, with the contents of those fields.

The list of LoRAs lives in the browser; the server keeps nothing between two songs but the uploaded files themselves.
A file is inspected when it is uploaded, a repository only when a song is made.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import soundfile as sf

import audio
import audio_export
import lora_sources
import theme
import tooltips
from backend import get_backend
from limits import LEAST_REGION_SECONDS, LIMITS, MAX_SOURCE_SECONDS, shown
from lora_sources import hub_id
from page_form import AT_ONCE, Form, help_text, html, settings

COLUMNS = 800  # of the waveform: enough for any width at which it is shown
CLOSE_COLUMNS = 20  # per second, for a closer look
MOST_COLUMNS = 6000
ONSETS = 50  # per second
QUIETEST_DBFS = -40.0  # the least full scale of a picture, so that the noise of a quiet file does not fill it

REGION_TEXTS = {
    "title": "Region",
    "group": "Waveform of the source",
    "empty": "Choose a source, and its waveform appears here to mark a region on.",
    "unreadable": "There is no waveform of this file to show.",
    "help": "Drag to mark a region; drag its edges to change it, its middle to move it; click to place the playhead.",
    "keys": "Keys: arrows move an edge by 0.1 s (with Snap to beats: to the next beat), Shift and arrows by 1 s; "
    "Space plays; + and - zoom.",
    "tempo": "Enter BPM under Song details to snap to beats.",
    "play": "Play",
    "region": "region",
    "pause": "Pause",
    "loop": "Loop",
    "snap": "Snap to beats ({bpm} BPM)",
    "less": "Zoom out",
    "more": "Zoom in",
    "overview": "Part in view",
    "view": "{start} to {end}",
    "unheard": "This browser cannot play this file.",
    "start": "Start",
    "end": "End",
    "length": "Length",
    "start_edge": "Start of the region",
    "end_edge": "End of the region",
    "said": "Region from {start} to {end}, {length} long.",
    "wrong": "Start and End do not mark a region of this file: both are from 0 to {seconds} seconds, and End is at "
    "least {least} seconds after Start, or 0 for the end of the file.",
}


def _widget(name: str, filled: Mapping[str, str], elem_id: str, **props: Any) -> gr.HTML:
    files = {"css_template": theme.static(f"{name}.css"), "js_on_load": theme.static(f"{name}.js")}
    return theme.frame(name, filled, container=True, elem_id=elem_id, **files, **props)


def region_selector(elem_id: str = "region") -> gr.HTML:
    return _widget("region", REGION_TEXTS, elem_id, texts=REGION_TEXTS, least=LEAST_REGION_SECONDS)


def connect_region(
    selector: gr.HTML, source: gr.Audio | gr.File, start: gr.Textbox, end: gr.Textbox, bpm: gr.Textbox
) -> Any:
    """Show the waveform of `source`, and keep it in step with the fields; returns the event that shows it.

    `start` and `end` are in seconds; an end of 0 is the end of the file. What is typed is never changed; if it is
    not a region of the file, the widget says so. A source that is already there keeps its region.
    """
    # The script triggers "input" only for what a visitor does on the waveform, so that nothing goes in circles.
    selector.input(None, selector, [start, end], js="(value) => [String(value.start), String(value.end)]", **AT_ONCE)
    joined = _joined(selector, start=start, end=end, typed=bpm)

    def show(path: str | None, shown: dict[str, Any] | None) -> list[Any]:
        value = waveform(path) if path else None
        if value and shown and value["peaks"] == shown["peaks"]:
            return [gr.skip()] * 3
        first, last = middle(value["seconds"]) if value and value["seconds"] else (0.0, 0.0)
        return [value and {**value, "start": first, "end": last}, f"{first:g}", f"{last:g}"]

    read = source.change(show, [source, selector], [selector, start, end], **AT_ONCE)
    read.then(**joined)
    return read


def _joined(widget: gr.HTML, **fields: gr.Textbox) -> dict[str, Any]:
    """Put the contents of `fields` into the widget's value whenever they change; returns the event's arguments."""
    # In the browser: they may change while the server reads the source.
    names = ", ".join(fields)
    js = f"({names}, value) => value ? {{...value, {names}}} : value"
    joined = {"fn": None, "inputs": [*fields.values(), widget], "outputs": widget, "js": js, **AT_ONCE}
    gr.on([field.change for field in fields.values()], **joined)
    return joined


def waveform(path: str | Path) -> dict[str, Any]:
    """Return the selector's value: `peaks` and, if the file can be read, its path, `_onsets` in base64, and BPM."""
    found = peaks(path, CLOSE_COLUMNS)
    if not found["seconds"]:
        return found
    onsets = base64.b64encode(_onsets(path, found["seconds"]).tobytes()).decode()
    return {**found, "path": str(path), "onsets": onsets, "bpm": tempo(audio_export.read_record(path))}


def tempo(record: Mapping[str, Any] | None) -> int | None:
    """Return the BPM in a record, the plan's if there is one, or None; its values may be anything."""
    planned = settings("generate", {"request": (record or {}).get("plan")}).values.get("bpm")
    return planned or settings("generate", record).values.get("bpm")


def peaks(path: str | Path, per_second: int = 0) -> dict[str, Any]:
    """Return a file's length and picture as {"seconds": float, "peaks": str}; 0 and "" if it cannot be read.

    "peaks" is base64 of int8 [columns, 2]: each column's extremes over all channels; 127 is the file's loudest sample.
    """
    try:
        seconds = audio.duration_of(path)
        columns = _parts(path, min(max(COLUMNS, round(seconds * per_second)), MOST_COLUMNS))
        lows_and_highs = np.array([(column.min(initial=0), column.max(initial=0)) for column in columns])
    except (audio.AudioError, sf.SoundFileError, OSError):
        return {"seconds": 0.0, "peaks": ""}
    scale = 127 / max(float(np.abs(lows_and_highs).max()), 10 ** (QUIETEST_DBFS / 20))
    drawn = np.rint(lows_and_highs * scale).astype(np.int8)
    return {"seconds": seconds, "peaks": base64.b64encode(drawn.tobytes()).decode()}


def middle(seconds: float) -> tuple[float, float]:
    """Return the region in seconds that a new file starts with: from a third to half of it."""
    start = round(seconds / 3, 1)
    return start, round(max(seconds / 2, start + LEAST_REGION_SECONDS), 1)


def _onsets(path: str | Path, seconds: float) -> np.ndarray:
    """Return uint8 [ONSETS * seconds]: how much louder each moment is than the two before it; 255 is 30 dB or more."""
    moments = _parts(path, max(round(seconds * ONSETS), 1))
    power = [np.square(moment).mean(dtype=np.float64) if moment.size else 0.0 for moment in moments]
    decibels = 10 * np.log10(np.array(power) + 1e-6)  # anything below -60 dBFS counts as silence
    before = np.concatenate(([-60.0, -60.0], decibels))
    rise = decibels - np.maximum(before[:-2], before[1:-1])
    return np.clip(rise * 255 / 30, 0, 255).astype(np.uint8)


def _parts(path: str | Path, count: int) -> Iterator[np.ndarray]:
    """Yield a file in `count` equal parts, float32 [frames] or [frames, channels], empty ones after an early end."""
    with audio.ForwardFile(path) as file:
        edges = np.linspace(0, file.frames, count + 1).round().astype(int)
        for frames in np.diff(edges):
            yield np.nan_to_num(file.read(frames, dtype="float32"), copy=False, posinf=1, neginf=-1)


def timeline(elem_id: str) -> gr.HTML:
    usual = {name: LIMITS[name].default for name in ("before", "after")}
    props = {"texts": {"seconds": tooltips.NEW_SECONDS}, "most": LIMITS["after"].high, "longest": MAX_SOURCE_SECONDS}
    return _widget("timeline", tooltips.TIMELINE, elem_id, usual=usual, **props)


def connect_timeline(shown: gr.HTML, source: gr.Audio, before: gr.Textbox, after: gr.Textbox) -> None:
    """Show `source` on the timeline and keep its ends in step with the fields, both in seconds."""
    written = "(value) => [String(value.before), String(value.after)]"
    shown.input(None, shown, [before, after], js=written, **AT_ONCE)
    joined = _joined(shown, before=before, after=after)
    source.change(lambda path: peaks(path) if path else None, source, shown, **AT_ONCE).then(**joined)


LORAS = "options.loras"
# Appends in the browser, where the list is: inspecting a large file takes a while, and the list may change meanwhile.
_APPEND = "(added, now) => [[], [...(Array.isArray(now) ? now : []), ...(added || [])]]"
# What a button adds: the entries to append, the text of the line, and what stays in the field.
Added = tuple[list[dict[str, Any]], str, Any]


def lora_panel(form: Form) -> gr.Accordion:
    """Add the folded panel: where LoRAs come from, a line for errors, and the list, whose entries are `lora_entry`s."""
    title, limit = tooltips.LABELS["loras"], LIMITS["lora_weight"]
    # In the document, not as props: Gradio empties a component's props when it updates one that is not drawn yet.
    weight = json.dumps({"min": limit.low, "max": limit.high, "step": limit.step})
    texts = {**tooltips.LORA_LIST, "texts": json.dumps(tooltips.LORA_LIST), "weight": weight}
    looks = {"label": title, "elem_id": form.identify(LORAS), "elem_classes": ["field", "lora-list"]}
    with gr.Accordion(title, open=False, elem_id=f"{form.mode}-loras-fold") as fold:
        html(theme.remark(help_text("loras")))
        # Without file types: phones offer no file at all if they do not know the ending.
        file = gr.File(label=tooltips.LORA_FILE, file_count="multiple", height=140, elem_id=f"{form.mode}-lora-file")
        gr.Markdown(tooltips.LORA_FILE_HELP, elem_classes=["help"])
        sources = [(file, file.upload, add_files)]
        if lora_sources.hub_allowed():
            with gr.Row(elem_classes=["lora-add"]):
                box = gr.Textbox(
                    label=tooltips.LORA_HUB,
                    info=tooltips.LORA_HUB_HELP,
                    placeholder=tooltips.LORA_HUB_PLACEHOLDER,
                    max_lines=1,
                    min_width=160,
                    elem_id=f"{form.mode}-lora-hub",
                    elem_classes=["words"],
                )
                button = gr.Button(tooltips.ADD, scale=0, min_width=88, elem_id=f"{form.mode}-lora-hub-add")
            sources += [(box, button.click, add_repository), (box, box.submit, add_repository)]
        else:
            html(theme.remark(tooltips.LORA_HUB_OFF))
        line = html(elem_id=f"{form.mode}-lora-line")
        chosen = theme.frame("loras", texts, [], css_template=theme.static("loras.css"), **looks)
        added = gr.JSON([], visible="hidden")
    form.fields[LORAS] = chosen
    form.parsers[LORAS], form.showers[LORAS] = parse_loras, show_loras
    form.folds[fold] = (LORAS,)
    form.lines[LORAS] = line
    for field, event, add in sources:
        done = event(add, field, [added, line, field], **AT_ONCE)
        done.then(None, [added, chosen], [added, chosen], js=_APPEND, **AT_ONCE)
    return fold


def add_files(paths: Sequence[str] | None) -> Added:
    """Inspect uploaded files; one that cannot be used is not added, and the line says why."""
    widths = get_backend().widths()
    infos = [(str(path), lora_sources.inspect(path, widths)) for path in paths or []]
    wrong = "".join(theme.notice("", info.problem.text()) for _, info in infos if info.problem)
    return [lora_entry(path, info=info) for path, info in infos if not info.problem], wrong, None


def add_repository(text: str | None) -> Added:
    """Add a repository by its id, which is all that is checked."""
    text = (text or "").strip()
    if hub_id(text):
        return [lora_entry(text)], "", ""
    wrong = tooltips.LORA_NOT_HUB.format(text=shown(text, 80)) if text else tooltips.LORA_NO_HUB
    return [], theme.notice("", wrong), text


def lora_entry(source: str, weight: float | None = None, info: lora_sources.LoraInfo | None = None) -> dict[str, Any]:
    weight = LIMITS["lora_weight"].default if weight is None else weight
    entry = {"source": source, "weight": weight, "name": source, "facts": [tooltips.LORA_LATER], "note": ""}
    return entry | {"name": info.name, "facts": tooltips.lora_facts(info), "note": info.note} if info else entry


def parse_loras(value: Any) -> Any:
    """Return the list's value as a request has it; anything but a list is left to validation to refuse."""
    if not isinstance(value, list):
        return value or []
    return [
        {name: each.get(name) for name in ("source", "weight")} if isinstance(each, Mapping) else each for each in value
    ]


def show_loras(chosen: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the list's value for the LoRAs of a record; entries of a list, which have a name, are left unchanged."""
    return [dict(each) if "name" in each else lora_entry(each["source"], each["weight"]) for each in chosen or []]
