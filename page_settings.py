"""A visitor's settings, kept in their browser for the next visit, and lines that follow them.

The server keeps nothing. A reload brings back what that tab of the browser had, a new tab starts
with what was written last in any (static/faces.js). What comes back is untrusted: each value is
validated like a request, except for text boxes, whose text is restored unchanged and checked at the
click.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

import page_form
import theme
from limits import KEPT_TEXT, TRACKS
from lora_sources import hub_id
from page_form import AT_ONCE, Form, Updates, only

STORAGE = "ace-music-studio"
# Fields of the page that no request has by these names, and whether a value is one of theirs.
PAGE_ONLY = {"track": lambda value: value in TRACKS, "part": lambda value: isinstance(value, bool)}
# A text that is far too long is not kept; the browser's storage has room for 5 MB in all.
_KEEP = """(...values) => studio.kept("{mode}", Object.fromEntries(
  {names}.map((name, i) => [name, values[i]]).filter(([, value]) => !(value?.length > {most}))
))"""
_BACK = "(found) => studio.back({ids}, found)"


def connect_memory(demo: gr.Blocks, forms: Sequence[Form]) -> None:
    """Keep the settings of each form in the browser, and put them back at the next visit."""
    # A key for each tab, so that one change writes one tab. The secret hides nothing: with a random
    # one, which is Gradio's default, every restart of the studio would lose the settings.
    kept = []
    fields = []
    for form in forms:
        kept.append(gr.BrowserState({}, storage_key=f"{STORAGE}-{form.mode}", secret=STORAGE))
        fields += form.settings
    found = gr.JSON({}, visible=False)

    def restore(*stored: Any) -> dict[str, Any]:
        values = {}
        for form, in_browser in zip(forms, stored, strict=True):
            for component, update in restored(form, in_browser).items():
                values[component.elem_id] = update["value"]
        return values

    # The visitor may already be typing by then: only the browser knows which fields are untouched.
    modes = json.dumps([form.mode for form in forms])
    own = f"(...shared) => studio.former({modes}, shared)"
    read = demo.load(restore, kept, found, js=own, **AT_ONCE)
    ids = json.dumps([field.elem_id for field in fields])
    read.then(None, found, fields, js=_BACK.format(ids=ids), **AT_ONCE)
    for form, state in zip(forms, kept, strict=True):
        connect_changes(form, state)


def connect_changes(form: Form, kept: gr.BrowserState) -> None:
    """Store a tab's values in the browser when they change, and update the lines that follow.

    Gradio searches the page for each input of each event. So a change has no inputs, and shortly
    after the last change one event has them all (static/changes.js). A run triggers it too, because
    it may have loaded the tokenizer.
    """
    name = f"{form.mode}-changed"
    changed = gr.HTML(visible="hidden", js_on_load=theme.script("changes"), elem_id=name)
    changes = [field.change for field in [*form.settings, *form.copies]]
    gr.on(changes, None, js=f'() => studio.changed("{form.mode}")', **AT_ONCE)
    keep = _KEEP.format(mode=form.mode, names=json.dumps([*form.saved]), most=KEPT_TEXT)
    changed.input(None, form.settings, kept, js=keep, **AT_ONCE)
    followed = form.followed
    lines = form.lines

    def update_lines(*values: Any) -> Updates:
        held = dict(zip(followed, values, strict=True))
        return {line: say(held) for line, say in lines.items()}

    if followed:
        latest = {"trigger_mode": "always_last", **AT_ONCE}
        changed.input(update_lines, [*followed.values()], [*lines], **latest)


def restored(form: Form, stored: Any) -> Updates:
    """Return the updates that restore valid values, and texts as they were typed, valid or not."""
    stored = stored if isinstance(stored, Mapping) else {}
    stored = only(stored, form.fields)
    return {**form.show(_valid(form, stored)), **_as_typed(form, stored)}


def _valid(form: Form, stored: Mapping[str, Any]) -> dict[str, Any]:
    request = {name: form.to_request(name, value) for name, value in stored.items()}
    loras = request.get("options.loras")
    if isinstance(loras, list):
        # An uploaded LoRA may be gone by now: only those with a name come back.
        request["options.loras"] = list(filter(_has_name, loras))
    values = page_form.settings(form.mode, {"request": page_form.grouped(request)}).values
    plans = ("auto", *form.studio.status().memory_plans)
    if values.get("options.memory_plan", "auto") not in plans:
        del values["options.memory_plan"]
    return values


def _has_name(lora: Any) -> bool:
    return isinstance(lora, dict) and hub_id(str(lora["source"])) is not None


def _as_typed(form: Form, stored: Mapping[str, Any]) -> Updates:
    updates: Updates = {}
    for name, value in stored.items():
        component = form.fields[name]
        if name in PAGE_ONLY and PAGE_ONLY[name](value):
            updates[component] = gr.update(value=value)
        if _takes_any_text(component) and isinstance(value, str) and len(value) <= KEPT_TEXT:
            # Half a surrogate pair, which JSON may hold, could not be sent to the page.
            text = value.encode("utf-8", "ignore").decode("utf-8")
            updates[component] = gr.update(value=text)
    return updates


def _takes_any_text(component: Component) -> bool:
    return isinstance(component, gr.Textbox) or getattr(component, "allow_custom_value", False)
