"""A visitor's settings, kept in their browser for the next visit, and the reset to the defaults.

The server keeps nothing. What comes back with the next visit is untrusted: each value is validated like a request,
except for text boxes, whose text is restored as it was typed and judged at the click.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

import page_form
import theme
import tooltips
from backend import get_backend
from limits import KEPT_TEXT, TRACKS
from lora_sources import hub_id
from page_form import AT_ONCE, Form, Undo, Updates, html

STORAGE = "ace-music-studio"
# Fields of the page that no request has by these names.
OWN = {"track": lambda value: value in TRACKS, "part": lambda value: isinstance(value, bool)}
# A text that is far too long is not kept; the browser's storage has room for 5 MB in all.
_KEEP = """(...values) => studio.kept("{mode}", Object.fromEntries(
  {names}.map((name, i) => [name, values[i]]).filter(([, value]) => !(value?.length > {most}))
))"""
_BACK = "(found) => {ids}.map((id) => (studio.touched(id) ? undefined : found[id]))"


def foot(form: Form, cancel: str = tooltips.CANCEL) -> None:
    """Add the foot of a tab whose fields all exist: its keys, and the reset; `cancel` is what its second key does."""
    with gr.Row(elem_classes=["foot"]):
        html(theme.keys(tooltips.GO[form.mode], cancel))
        button = gr.Button(tooltips.RESET, size="sm", min_width=0, elem_id=f"{form.mode}-reset")
        undo = Undo(f"{form.mode}-reset")
    fields = form.saved
    defaults = {name: field.value for name, field in fields.items()}

    def reset(former: list[dict[str, Any]], *values: Any) -> Updates:
        return {**form.show(defaults), **undo.keep(former, dict(zip(fields, values, strict=True)))}

    button.click(reset, [undo.former, *fields.values()], [*fields.values(), *undo.outputs], **AT_ONCE)
    undo.connect(fields)


def connect_memory(demo: gr.Blocks, forms: list[Form]) -> None:
    # A key for each tab, so that one change writes one tab. The secret hides nothing: with a random one, which is
    # Gradio's default, every restart of the studio would lose the settings.
    kept = [gr.BrowserState({}, storage_key=f"{STORAGE}-{form.mode}", secret=STORAGE) for form in forms]
    found = gr.JSON({}, visible=False)
    fields = [field for form in forms for field in form.settings]

    def back(*stored: Any) -> dict[str, Any]:
        pairs = zip(forms, stored, strict=True)
        return {each.elem_id: update["value"] for form, one in pairs for each, update in put_back(form, one).items()}

    # The visitor may already be typing by then: only the browser knows which fields are untouched.
    looked = demo.load(back, kept, found, **AT_ONCE)
    looked.then(None, found, fields, js=_BACK.format(ids=json.dumps([field.elem_id for field in fields])), **AT_ONCE)
    for form, state in zip(forms, kept, strict=True):
        connect_changes(form, state)


def connect_changes(form: Form, kept: gr.BrowserState) -> None:
    """Store a tab's values in the browser when they change, and update the lines that depend on them.

    Gradio searches the page for each input of each event. So a change asks for none, and a moment after the last one
    everything is asked for once (static/changes.js), as it is after a run, which may have loaded the tokenizer.
    """
    changed = gr.HTML(visible="hidden", js_on_load=theme.script("changes"), elem_id=f"{form.mode}-changed")
    changes = [field.change for field in [*form.settings, *form.copies.values()]]
    gr.on(changes, None, js=f'() => studio.changed("{form.mode}")', **AT_ONCE)
    keep = _KEEP.format(mode=form.mode, names=json.dumps([*form.saved]), most=KEPT_TEXT)
    changed.input(None, form.settings, kept, js=keep, **AT_ONCE)
    followed = {name: form.followed(name) for name in form.fields if name in form.followed_names}

    def look(*values: Any) -> Updates:
        there = dict(zip(followed, values, strict=True))
        return {line: say(there) for line, say in form.followers.items()}

    if followed:
        changed.input(look, [*followed.values()], [*form.followers], trigger_mode="always_last", **AT_ONCE)


def put_back(form: Form, stored: Any) -> Updates:
    """Return the updates that restore what of `stored` the form allows, and what was typed, right or wrong."""
    stored = stored if isinstance(stored, Mapping) else {}
    stored = {name: value for name, value in stored.items() if name in form.fields}
    request = {name: form.parse(name, value) for name, value in stored.items()}
    if isinstance(loras := request.get("options.loras"), list):
        # An uploaded LoRA may be gone by now: only those with a name come back.
        request["options.loras"] = [each for each in loras if isinstance(each, dict) and hub_id(str(each["source"]))]
    values = page_form.settings(form.mode, {"request": page_form.grouped(request)}).values
    if values.get("options.memory_plan", "auto") not in ("auto", *get_backend().status().memory_plans):
        del values["options.memory_plan"]
    as_it_was = {name: value for name, value in stored.items() if name in OWN and OWN[name](value)}
    for name, text in stored.items():
        box = form.fields[name]
        takes_any_text = isinstance(box, gr.Textbox) or getattr(box, "allow_custom_value", False)
        if takes_any_text and isinstance(text, str) and len(text) <= KEPT_TEXT:
            # Half a surrogate pair, which JSON may hold, could not be sent to the page.
            as_it_was[name] = text.encode("utf-8", "ignore").decode("utf-8")
    return {**form.show(values), **{form.fields[name]: gr.update(value=value) for name, value in as_it_was.items()}}
