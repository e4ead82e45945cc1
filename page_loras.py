"""The LoRAs of a song: the panel that every tab for songs has under Advanced.

What was added lives in the browser, as the value of `lora_list`; the server keeps nothing between two songs but the
uploaded files themselves. A file is looked at as soon as it is there, a repository only when a song is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

import lora_sources
import theme
import tooltips
from backend import get_backend
from limits import LIMITS, shown
from lora_sources import hub_id
from page_form import AT_ONCE, Form, help_text, html

FIELD = "options.loras"
# Appends in the browser, where the list is: looking at a large file takes a while, and the list may change meanwhile.
_APPEND = "(added, now) => [[], [...(Array.isArray(now) ? now : []), ...(added || [])]]"


def lora_list(elem_id: str) -> gr.HTML:
    """Make the list of the LoRAs that were added, in the order in which they act, each with its weight.

    Its value is a list of what `entry` returns.
    """
    limit = LIMITS["lora_weight"]
    # In the document, not as props: Gradio empties a component's props when it updates one that is not drawn yet.
    settings = {"texts": tooltips.LORA_LIST, "weight": {"min": limit.low, "max": limit.high, "step": limit.step}}
    texts = {name: tooltips.LORA_LIST[name] for name in ("title", "clear", "empty")}
    filled = {**texts, **{name: json.dumps(each) for name, each in settings.items()}}
    return gr.HTML(
        [],
        html_template=_HTML.format(**{name: escape(text) for name, text in filled.items()}),
        css_template=theme.static("loras.css"),
        js_on_load=theme.script("loras"),
        apply_default_css=False,
        label=tooltips.LABELS["loras"],
        elem_id=elem_id,
        elem_classes=["field", "lora-list"],
    )


def parse(value: Any) -> Any:
    """Return what a request holds of the list's value; what is no list stays, for validation to refuse."""
    if not isinstance(value, list):
        return value or []
    return [
        {name: each.get(name) for name in ("source", "weight")} if isinstance(each, Mapping) else each for each in value
    ]


def show(chosen: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the list's value for LoRAs of a request or a record; what came from a list before stays as it is."""
    return [dict(each) if "name" in each else entry(each["source"], each["weight"]) for each in chosen or []]


def entry(source: str, weight: float | None = None, info: lora_sources.LoraInfo | None = None) -> dict[str, Any]:
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
        chosen = lora_list(form.identify(FIELD))
        added = gr.JSON([], visible="hidden")
    form.fields[FIELD] = chosen
    form.parsers[FIELD], form.showers[FIELD] = parse, show
    form.folds[fold] = (FIELD,)
    form.lines[FIELD] = line

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
    entries = [entry(path, info=info) for path, info in infos if not info.problem]
    return entries, "".join(_said(info.problem.text()) for _, info in infos if info.problem), None


def add_repository(text: str | None) -> Added:
    """Take a repository by its id, as far as that is one."""
    text = (text or "").strip()
    if not hub_id(text):
        return [], _said(tooltips.LORA_NOT_HUB.format(text=shown(text, 80)) if text else tooltips.LORA_NO_HUB), text
    return [entry(text)], "", ""


def widths_in_use() -> Any:
    """Return the linear layers of the model that makes the songs, None where it is not here yet."""
    return get_backend().widths()


def _said(text: str) -> str:
    return theme.notice("", text)


# It names no value, so that Gradio never draws it anew over the script's work.
_HTML = """
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
