"""LoRAs on the page: where they come from, and the list of those that are added.

The list lives in the browser; the server keeps nothing between two songs but the uploaded files
themselves. A file is inspected when it is uploaded, a repository only when a song is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

import lora_sources
import theme
import tooltips
from limits import LIMITS, shown
from lora_format import Widths
from lora_sources import LoraInfo, hub_id
from page_form import AT_ONCE, Field, Form, help_text, html
from page_widgets import frame

LORAS = "options.loras"
# Appends in the browser, where the list is: inspecting a large file takes a while, and the list may
# change meanwhile.
_APPEND = "(added, now) => [[], [...(Array.isArray(now) ? now : []), ...(added || [])]]"
# What adding returns: the entries to append, the HTML of the line, and what stays in the field.
Added = tuple[list[dict[str, Any]], str, Any]


def add_loras(form: Form) -> None:
    """Add the folded panel: where LoRAs come from, a line for errors, and their list."""
    title = tooltips.LABELS["loras"]
    with gr.Accordion(title, open=False, elem_id=f"{form.mode}-loras-fold") as fold:
        html(theme.remark(help_text("loras")))
        # Without file types: phones offer no file at all if they do not know the ending.
        file = gr.File(
            label=tooltips.LORA_FILE,
            file_count="multiple",
            height=140,
            elem_id=f"{form.mode}-lora-file",
            elem_classes=["file", "lora-file"],
        )
        html(theme.remark(tooltips.LORA_FILE_HELP))
        hub_allowed = lora_sources.hub_allowed()
        if hub_allowed:
            box, button = _hub(form)
        else:
            html(theme.remark(tooltips.LORA_HUB_OFF))
        line = html(elem_id=f"{form.mode}-lora-line")
        chosen = _list(form)
        added = gr.JSON([], visible="hidden")
    form.add_field(LORAS, Field(chosen, parse_loras, show_loras, error_line=line))
    form.add_fold(fold, [LORAS])

    def inspect(paths: Sequence[str] | None) -> Added:
        return add_files(paths, form.studio.widths())

    events = [file.upload(inspect, file, [added, line, file], **AT_ONCE)]
    if hub_allowed:
        for press in (button.click, box.submit):
            events.append(press(add_repository, box, [added, line, box], **AT_ONCE))
    for event in events:
        event.then(None, [added, chosen], [added, chosen], js=_APPEND, **AT_ONCE)


def _hub(form: Form) -> tuple[gr.Textbox, gr.Button]:
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
        button = gr.Button(
            tooltips.ADD, size="sm", scale=0, min_width=88, elem_id=f"{form.mode}-lora-hub-add"
        )
    return box, button


def _list(form: Form) -> gr.HTML:
    limit = LIMITS["lora_weight"]
    # In the document, not as props: Gradio empties a component's props when it updates one that is
    # not drawn yet.
    weight = json.dumps({"min": limit.low, "max": limit.high, "step": limit.step})
    texts = {**tooltips.LORA_LIST, "texts": json.dumps(tooltips.LORA_LIST), "weight": weight}
    return frame(
        "loras",
        texts,
        [],
        css_template=theme.static("loras.css"),
        label=tooltips.LABELS["loras"],
        elem_id=form.element_id(LORAS),
        elem_classes=["field", "lora-list"],
    )


def add_files(paths: Sequence[str] | None, widths: Widths | None) -> Added:
    """Inspect uploaded files; one that cannot be used is not added, and the line says why."""
    entries = []
    notices = []
    for path in paths or []:
        info = lora_sources.inspect(path, widths)
        if info.problem:
            notices.append(theme.notice("", info.problem.text()))
        else:
            entries.append(lora_entry(str(path), info=info))
    return entries, "".join(notices), None


def add_repository(text: str | None) -> Added:
    """Add a repository by its id, which is all that is checked."""
    text = (text or "").strip()
    if hub_id(text):
        return [lora_entry(text)], "", ""
    if text:
        problem = tooltips.LORA_NOT_HUB.format(text=shown(text, 80))
    else:
        problem = tooltips.LORA_NO_HUB
    return [], theme.notice("", problem), text


def lora_entry(
    source: str, weight: float | None = None, info: LoraInfo | None = None
) -> dict[str, Any]:
    """Return an entry of the list; `info` is there for an uploaded file."""
    if weight is None:
        weight = LIMITS["lora_weight"].default
    entry = {"source": source, "weight": weight}
    if info is None:
        return {**entry, "name": source, "facts": [tooltips.LORA_LATER], "note": ""}
    return {**entry, "name": info.name, "facts": tooltips.lora_facts(info), "note": info.note}


def parse_loras(value: Any) -> Any:
    """Return the list's value as a request has it; validation refuses anything but a list."""
    if not isinstance(value, list):
        return value or []
    return [_choice(entry) for entry in value]


def _choice(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return {"source": entry.get("source"), "weight": entry.get("weight")}


def show_loras(chosen: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the list's value for the LoRAs of a record.

    Entries of a list, which have a name, are left unchanged.
    """
    return [_entry(each) for each in chosen or []]


def _entry(lora: Mapping[str, Any]) -> dict[str, Any]:
    if "name" in lora:
        return dict(lora)
    return lora_entry(lora["source"], lora["weight"])
