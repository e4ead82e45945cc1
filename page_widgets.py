"""Our own widgets, each a `gr.HTML` with a script: a region on a waveform, the timeline of an extension, a LoRA list.

The value of the region selector is what `waveform` returns, with the contents of the fields beside it as "start", "end"
and "typed", the tempo; that of the timeline is what `peaks` returns, with both fields beside it. Dragging, playing and
typing stay in the browser: the page writes the fields when a drag or a key press ends, and asks the server for one
thing only, what a new source looks like.

The LoRAs that were added live in the browser, as the value of `lora_list`; the server keeps nothing between two songs
but the uploaded files themselves. A file is looked at as soon as it is there, a repository only when a song is made.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import soundfile as sf

import audio
import export
import lora_sources
import theme
import tooltips
from backend import get_backend
from limits import LEAST_REGION_SECONDS, LIMITS, MAX_SOURCE_SECONDS, shown
from lora_sources import hub_id
from page_form import AT_ONCE, Form, help_text, html

COLUMNS = 800  # of the waveform: enough for any width at which it is shown
CLOSE_COLUMNS = 20  # a second, for a closer look
MOST_COLUMNS = 6000
ONSETS = 50  # a second
QUIETEST_DBFS = -40.0  # quieter sources are drawn as if their peak were here, so that noise does not fill the picture

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
    "start_handle": "Start of the region",
    "end_handle": "End of the region",
    "said": "Region from {start} to {end}, {length} long.",
    "wrong": "Start and End are no region of this file: they are from 0 to {seconds} seconds, End at least {least} "
    "seconds after Start, or 0 for the end of the file.",
}


def region_selector(elem_id: str = "region") -> gr.HTML:
    """Make the waveform; `connect_region` gives it a source and fields."""
    return gr.HTML(
        html_template=_region_html(),
        css_template=theme.static("region.css"),
        js_on_load=theme.static("region.js"),
        apply_default_css=False,
        container=True,
        elem_id=elem_id,
        texts={
            name: REGION_TEXTS[name]
            for name in ("unreadable", "empty", "said", "wrong", "play", "pause", "snap", "view")
        },
        least=LEAST_REGION_SECONDS,
    )


def connect_region(
    selector: gr.HTML,
    source: gr.Audio | gr.File,
    start: gr.Number | gr.Textbox,
    end: gr.Number | gr.Textbox,
    bpm: gr.Textbox,
) -> Any:
    """Show the waveform of `source` (its value is a path), and keep it in step with the fields.

    `start` and `end` are in seconds; an end of 0 is the end of the file. What is typed is never changed: where
    the two are no region of the file, the component says so, and validation reports it at the field. A tempo in `bpm`
    lets edges snap to beats. For a new source a middle part is chosen, and no source clears both fields; a source that
    is already there keeps its region, however often the page sends it. Returns the event that shows the waveform.
    """
    # The script triggers "input" for what a visitor does on the waveform and for nothing else, so nothing goes in
    # circles. Without a Python function these events never leave the browser.
    written = ", ".join("String({})" if isinstance(field, gr.Textbox) else "{}" for field in (start, end))
    written = written.format("value.start", "value.end")
    selector.input(None, selector, [start, end], js=f"(value) => [{written}]", **AT_ONCE)
    # The tempo may be typed while the server reads the source, so the browser alone says what is in that field.
    joined = {
        "fn": None,
        "inputs": [start, end, bpm, selector],
        "outputs": selector,
        "js": "(start, end, typed, value) => value ? {...value, start, end, typed} : value",
        **AT_ONCE,
    }
    gr.on([start.change, end.change, bpm.change], **joined)

    def show(path: str | None, shown: dict[str, Any] | None) -> list[Any]:
        value = waveform(path) if path else None
        if value and shown and value["peaks"] == shown["peaks"]:
            return [gr.skip()] * 3
        first, last = middle(value["seconds"]) if value else (0.0, 0.0)
        written = [f"{at:g}" if isinstance(field, gr.Textbox) else at for field, at in ((start, first), (end, last))]
        return [value and {**value, "start": first, "end": last}, *written]

    read = source.change(show, [source, selector], [selector, start, end], **AT_ONCE)
    read.then(**joined)
    return read


def waveform(path: str | Path) -> dict[str, Any]:
    """Return all that the selector knows of a file: `peaks` for a closer look, "path", "onsets", and "bpm" or None.

    "onsets" is base64 of uint8 [ONSETS a second], how suddenly it gets louder there; "bpm" is what a record in the file
    says, which is checked like a request's.
    """
    found = peaks(path, CLOSE_COLUMNS)
    if not found["seconds"]:
        return {**found, "path": str(path), "onsets": "", "bpm": None}
    onsets = base64.b64encode(_onsets(path, found["seconds"]).tobytes()).decode()
    return {**found, "path": str(path), "onsets": onsets, "bpm": tempo(export.read_record(path))}


def tempo(record: Any) -> int | None:
    """Return the BPM that a stranger's record says the song has: the plan's where it was planned."""
    parts = [record.get(name) for name in ("plan", "request")] if isinstance(record, Mapping) else []
    limit = LIMITS["bpm"]
    for part in parts:
        bpm = part.get("bpm") if isinstance(part, Mapping) else None
        if type(bpm) is int and limit.low <= bpm <= limit.high:
            return bpm
    return None


def peaks(path: str | Path, a_second: int = 0) -> dict[str, Any]:
    """Return a file's length as {"seconds": float, "peaks": str} with what its waveform looks like.

    "peaks" is base64 of int8 [columns, 2]: the lowest and the highest sample of every column over all channels, where
    127 is the loudest sample of the file. There are COLUMNS of them, or `a_second` as long as those are more and not
    over MOST_COLUMNS. A file that cannot be read has 0 seconds and no peaks.
    """
    try:
        seconds = audio.duration_of(path)
        lows_and_highs = _lows_and_highs(path, min(max(COLUMNS, round(seconds * a_second)), MOST_COLUMNS))
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


# --- helpers of the region selector --------------------------------------------------------------------------------


def _onsets(path: str | Path, seconds: float) -> np.ndarray:
    """Return uint8 [ONSETS * seconds]: how many decibels louder each moment is than the loudest of the two before it.

    255 is 30 dB or more. What is quieter than -60 dBFS does not count.
    """
    levels = np.zeros(max(round(seconds * ONSETS), 1))
    with audio.ForwardFile(path) as file:
        edges = np.linspace(0, file.frames, len(levels) + 1).round().astype(int)
        for first in range(0, len(levels), ONSETS):
            there = edges[first : first + ONSETS + 1]
            block = np.nan_to_num(file.read(there[-1] - there[0], dtype="float32", always_2d=True), posinf=1, neginf=-1)
            starts = there[:-1] - there[0]
            known = starts < len(block)
            power = np.square(block).mean(axis=1, dtype=np.float64)
            sums = np.add.reduceat(power, starts[known]) if len(block) else 0
            levels[first : first + len(starts)][known] = sums / np.diff(there)[known]
    decibels = 10 * np.log10(levels + 1e-6)
    before = np.concatenate(([-60.0, -60.0], decibels))
    rise = decibels - np.maximum(before[:-2], before[1:-1])
    return np.clip(rise * 255 / 30, 0, 255).astype(np.uint8)


def _lows_and_highs(path: str | Path, columns: int) -> np.ndarray:
    """Return float32 [columns, 2] at full scale 1.0, zeros where the file ends early; never holds the whole file."""
    found = np.zeros((columns, 2), np.float32)
    with audio.ForwardFile(path) as file:
        edges = np.linspace(0, file.frames, columns + 1).round().astype(int)
        for column, frames in enumerate(np.diff(edges)):
            block = np.nan_to_num(file.read(frames, dtype="float32"), copy=False, posinf=1, neginf=-1)
            found[column] = block.min(initial=0), block.max(initial=0)
    return found


def _region_html() -> str:
    """Return the component's HTML. It names no value, so that Gradio never draws it anew over the script's work."""
    return _REGION_HTML.format(**{name: escape(text) for name, text in REGION_TEXTS.items() if "{" not in text})


_REGION_HTML = """
<div class="region" role="group" aria-label="{group}">
  <p class="title marks" aria-hidden="true">{title}</p>
  <p class="empty">{empty}</p>
  <div class="chooser" hidden>
    <div class="stage">
      <div class="lane">
        <div class="track">
          <svg class="wave" preserveAspectRatio="none" aria-hidden="true"><path></path></svg>
          <svg class="beats marks" preserveAspectRatio="none" aria-hidden="true"><path></path></svg>
          <div class="chosen marks" data-part="middle"></div>
          <svg class="wave inside marks" preserveAspectRatio="none" aria-hidden="true"><path></path></svg>
          <div class="handle start marks" role="slider" tabindex="0" data-part="start" aria-label="{start_handle}">
          </div>
          <div class="handle end marks" role="slider" tabindex="0" data-part="end" aria-label="{end_handle}">
          </div>
          <div class="edge start marks"></div>
          <div class="edge end marks"></div>
          <div class="head"></div>
        </div>
      </div>
    </div>
    <div class="overview" role="slider" tabindex="0" aria-label="{overview}" aria-valuemin="0" hidden>
      <svg preserveAspectRatio="none" aria-hidden="true"><path></path></svg>
      <div class="window"></div>
    </div>
    <div class="scale" aria-hidden="true"><span></span><span></span></div>
    <div class="tools">
      <button type="button" class="play">
        <svg></svg><span class="word"></span><span class="marks">{region}</span>
      </button>
      <span class="now" data-shows="now" aria-hidden="true"></span>
      <button type="button" class="loop" aria-pressed="false">{loop}</button>
      <button type="button" class="snap marks" aria-pressed="false" hidden></button>
      <span class="zooms">
        <button type="button" class="less" aria-label="{less}">&minus;</button>
        <button type="button" class="more" aria-label="{more}">+</button>
      </span>
      <audio preload="none"></audio>
    </div>
    <p class="facts marks">
      <span>{start} <b data-shows="start"></b></span>
      <span>{end} <b data-shows="end"></b></span>
      <span>{length} <b data-shows="length"></b></span>
    </p>
    <p class="wrong marks" hidden></p>
    <p class="unheard" role="status" hidden>{unheard}</p>
    <p class="help tempo marks">{tempo}</p>
    <p class="help marks">{help} <span class="keys">{keys}</span></p>
  </div>
  <p class="said" aria-live="polite"></p>
</div>
"""

# --- the timeline of an extension -----------------------------------------------------------------------------------


def timeline(elem_id: str) -> gr.HTML:
    """Make the timeline, which appears with a source; `connect_timeline` gives it one, and fields."""
    return gr.HTML(
        html_template=_TIMELINE_HTML.format(**{name: escape(text) for name, text in tooltips.TIMELINE.items()}),
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


def connect_timeline(shown: gr.HTML, source: gr.Audio, before: gr.Textbox, after: gr.Textbox) -> None:
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
        return peaks(path) if path else None

    source.change(show, source, shown, **AT_ONCE).then(**joined)


_TIMELINE_HTML = """
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

# --- the LoRAs of a song --------------------------------------------------------------------------------------------

LORAS = "options.loras"
# Appends in the browser, where the list is: looking at a large file takes a while, and the list may change meanwhile.
_APPEND = "(added, now) => [[], [...(Array.isArray(now) ? now : []), ...(added || [])]]"


def lora_list(elem_id: str) -> gr.HTML:
    """Make the list of the LoRAs that were added, in the order in which they act, each with its weight.

    Its value is a list of what `lora_entry` returns.
    """
    limit = LIMITS["lora_weight"]
    # In the document, not as props: Gradio empties a component's props when it updates one that is not drawn yet.
    settings = {"texts": tooltips.LORA_LIST, "weight": {"min": limit.low, "max": limit.high, "step": limit.step}}
    texts = {name: tooltips.LORA_LIST[name] for name in ("title", "clear", "empty")}
    filled = {**texts, **{name: json.dumps(each) for name, each in settings.items()}}
    return gr.HTML(
        [],
        html_template=_LORAS_HTML.format(**{name: escape(text) for name, text in filled.items()}),
        css_template=theme.static("loras.css"),
        js_on_load=theme.script("loras"),
        apply_default_css=False,
        label=tooltips.LABELS["loras"],
        elem_id=elem_id,
        elem_classes=["field", "lora-list"],
    )


def parse_loras(value: Any) -> Any:
    """Return what a request holds of the list's value; what is no list stays, for validation to refuse."""
    if not isinstance(value, list):
        return value or []
    return [
        {name: each.get(name) for name in ("source", "weight")} if isinstance(each, Mapping) else each for each in value
    ]


def show_loras(chosen: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the list's value for LoRAs of a request or a record; what came from a list before stays as it is."""
    return [dict(each) if "name" in each else lora_entry(each["source"], each["weight"]) for each in chosen or []]


def lora_entry(source: str, weight: float | None = None, info: lora_sources.LoraInfo | None = None) -> dict[str, Any]:
    """Return a LoRA for the list: its source and weight, its name, what is known of it, and what is missing."""
    weight = LIMITS["lora_weight"].default if weight is None else weight
    facts = tooltips.lora_facts(info) if info else [tooltips.LORA_LATER]
    known = {"name": info.name if info else source, "facts": facts, "note": info.note if info else ""}
    return {"source": source, "weight": weight, **known}


def uploads_in(record: Any) -> int:
    """Count the LoRAs of a record that were uploaded files, which no record holds."""
    for name in ("request", "options", "loras"):
        record = record.get(name) if isinstance(record, Mapping) else None
    chosen = record if isinstance(record, list) else []
    return sum(isinstance(each, Mapping) and each.get("source") == "upload" for each in chosen)


# --- the panel ----------------------------------------------------------------------------------------------------


def lora_panel(form: Form) -> gr.Accordion:
    """Add the folded panel: where LoRAs come from, a line that says what is wrong, and those that were added."""
    with gr.Accordion(tooltips.LABELS["loras"], open=False, elem_id=f"{form.mode}-loras-fold") as fold:
        html(theme.remark(help_text("loras")))
        # Without file types: phones offer no file at all for an ending they do not know, and a sentence says more.
        file = gr.File(label=tooltips.LORA_FILE, file_count="multiple", height=140, elem_id=f"{form.mode}-lora-file")
        gr.Markdown(tooltips.LORA_FILE_HELP, elem_classes=["help"])
        repository = _repository(form)
        line = html(elem_id=f"{form.mode}-lora-line")
        chosen = lora_list(form.identify(LORAS))
        added = gr.JSON([], visible="hidden")
    form.fields[LORAS] = chosen
    form.parsers[LORAS], form.showers[LORAS] = parse_loras, show_loras
    form.folds[fold] = (LORAS,)
    form.lines[LORAS] = line

    def connect(event: Any, add: Any, source: gr.components.Component, *others: gr.components.Component) -> None:
        done = event(
            lambda value: dict(zip((added, line, source), add(value), strict=True)),
            [source, *others],
            [added, line, source],
            **AT_ONCE,
        )
        done.then(None, [added, chosen], [added, chosen], js=_APPEND, **AT_ONCE)

    connect(file.upload, add_files, file)
    if repository:
        box, button = repository
        connect(button.click, add_repository, box)
        connect(box.submit, add_repository, box)
    return fold


def _repository(form: Form) -> tuple[gr.Textbox, gr.Button] | None:
    if not lora_sources.hub_allowed():
        html(theme.remark(tooltips.LORA_HUB_OFF))
        return None
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
        return box, gr.Button(tooltips.ADD, scale=0, min_width=88, elem_id=f"{form.mode}-lora-hub-add")


# --- adding -------------------------------------------------------------------------------------------------------

Added = tuple[list[dict[str, Any]], str, Any]
"""The entries to append, what the line says, and what stays in the field that they came from."""


def add_files(paths: Sequence[str] | None) -> Added:
    """Look at uploaded files; one that cannot be used is not added, and the line says why."""
    widths = widths_in_use()
    infos = [(str(path), lora_sources.inspect(path, widths)) for path in paths or []]
    entries = [lora_entry(path, info=info) for path, info in infos if not info.problem]
    return entries, "".join(_said(info.problem.text()) for _, info in infos if info.problem), None


def add_repository(text: str | None) -> Added:
    """Take a repository by its id, as far as that is one."""
    text = (text or "").strip()
    if not hub_id(text):
        return [], _said(tooltips.LORA_NOT_HUB.format(text=shown(text, 80)) if text else tooltips.LORA_NO_HUB), text
    return [lora_entry(text)], "", ""


def widths_in_use() -> Any:
    """Return the linear layers of the model that makes the songs, None where it is not here yet."""
    return get_backend().widths()


def _said(text: str) -> str:
    return theme.notice("", text)


# It names no value, so that Gradio never draws it anew over the script's work.
_LORAS_HTML = """
<div class="loras" role="group" aria-label="{title}" data-texts="{texts}" data-weight="{weight}">
  <div class="head">
    <p class="title">{title}</p>
    <button type="button" class="clear" hidden>{clear}</button>
  </div>
  <p class="empty" tabindex="-1">{empty}</p>
  <ol></ol>
  <p class="said" aria-live="polite"></p>
</div>
"""
