"""What a visitor chose, kept in the visitor's own browser for the next visit, and the way back to the defaults.

The browser writes the values of a tab's settings, without files, into its own storage after every change; the server
keeps nothing. What comes back with the next visit is untrusted: each value passes the check of a request's own, but for
what is typed into a box, where anything can be typed and is judged at the click.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

import page_form
import theme
import tooltips
from backend import get_backend
from limits import KEPT_TEXT, TRACKS
from lora_sources import hub_id
from page_form import AT_ONCE, Form, Undo, Updates, connect_undo, html, undo_button

STORAGE = "ace-music-studio"
# Fields of the page that no request has by these names.
OWN = {"track": lambda value: value in TRACKS, "part": lambda value: isinstance(value, bool)}
# A text that is far too long is not kept; the browser's storage has room for 5 MB in all.
_KEEP = """(...values) => studio.kept("{mode}", Object.fromEntries(
  {names}.map((name, i) => [name, values[i]]).filter(([, value]) => !(value?.length > {most}))
))"""
_BACK = "(found) => {ids}.map((id) => (studio.touched(id) ? undefined : found[id]))"


def foot(form: Form, cancel: str = tooltips.CANCEL) -> None:
    """Add what stands below a tab's fields: the keys, the way back to the defaults and back again.

    `cancel` is what the tab's second button says.
    """
    with gr.Row(elem_classes=["foot"]):
        html(theme.keys(tooltips.GO[form.mode], cancel))
        reset = gr.Button(tooltips.RESET, size="sm", min_width=0, elem_id=f"{form.mode}-reset")
        undo = undo_button(f"{form.mode}-reset")
    form.later.append(lambda: connect_reset(form, reset, undo))


def connect_reset(form: Form, button: gr.Button, undo: Undo) -> None:
    """Let the button put the defaults in, but for files, and Undo bring back what they replaced."""
    fields = {name: field for name, field in form.fields.items() if not isinstance(field, gr.Audio)}
    defaults = {name: field.value for name, field in fields.items()}

    def reset(former: list[dict[str, Any]], *values: Any) -> Updates:
        return {**form.show(defaults), **undo.keep(former, dict(zip(fields, values, strict=True)))}

    button.click(reset, [undo.former, *fields.values()], [*fields.values(), *undo.outputs], **AT_ONCE)
    connect_undo(undo, fields)


def connect_memory(demo: gr.Blocks, forms: list[Form]) -> None:
    """Keep each tab's settings in the browser, and put them back when the page is opened again."""
    # A key of its own for each tab, so that one change writes one tab. The secret hides nothing from anybody: with a
    # random one, as Gradio has it, every restart of the studio would lose what is kept.
    kept = [gr.BrowserState({}, storage_key=f"{STORAGE}-{form.mode}", secret=STORAGE) for form in forms]

    found = gr.JSON({}, visible=False)
    fields = [field for form in forms for field in form.settings]

    def back(*stored: Any) -> dict[str, Any]:
        pairs = zip(forms, stored, strict=True)
        return {each.elem_id: update["value"] for form, one in pairs for each, update in put_back(form, one).items()}

    # The visitor may be typing by the time they are back: the browser alone knows which fields are untouched.
    looked = demo.load(back, kept, found, **AT_ONCE)
    looked.then(None, found, fields, js=_BACK.format(ids=json.dumps([field.elem_id for field in fields])), **AT_ONCE)
    for form, state in zip(forms, kept, strict=True):
        connect_changes(form, state)


def connect_changes(form: Form, kept: gr.BrowserState) -> None:
    """Let what depends on a tab's values follow them: what the browser keeps, and the lines that the server writes.

    Gradio searches the page for each input of each event. So a change asks for none, and a moment after the last one
    everything is asked for once (static/changes.js), as it is after a run, which may have loaded the tokenizer.
    """
    changed = gr.HTML(visible="hidden", js_on_load=theme.script("changes"), elem_id=f"{form.mode}-changed")
    changes = [field.change for field in [*form.settings, *form.copies.values()]]
    gr.on(changes, None, js=f'() => studio.changed("{form.mode}")', **AT_ONCE)
    names = [name for name, field in form.fields.items() if not isinstance(field, gr.Audio)]
    keep = _KEEP.format(mode=form.mode, names=json.dumps(names), most=KEPT_TEXT)
    changed.input(None, form.settings, kept, js=keep, **AT_ONCE)
    followed = {name: form.followed(name) for each in form.followers for name in each.names}

    def look(*values: Any) -> Updates:
        there = dict(zip(followed, values, strict=True))
        return {each.line: each.say({name: there[name] for name in each.names}) for each in form.followers}

    if followed:
        lines = [each.line for each in form.followers]
        changed.input(look, [*followed.values()], lines, trigger_mode="always_last", **AT_ONCE)


def put_back(form: Form, stored: Any) -> Updates:
    """Return the updates that put back what of `stored` the form allows, and what was typed, right or wrong."""
    values = checked(form, stored)
    as_it_was = {**typed(form, stored), **{name: value for name, value in values.items() if name in OWN}}
    return {**form.show(values), **{form.fields[name]: gr.update(value=value) for name, value in as_it_was.items()}}


def typed(form: Form, stored: Any) -> dict[str, str]:
    """Return the texts of `stored` for the boxes of a form, whatever they say; validation speaks at the next click."""
    if not isinstance(stored, Mapping):
        return {}
    texts = {name: text for name, text in stored.items() if _takes_any_text(form.fields.get(name))}
    return {
        # Half a character, as JSON may have it, could not be sent to the page.
        name: text.encode("utf-8", "ignore").decode("utf-8")
        for name, text in texts.items()
        if isinstance(text, str) and len(text) <= KEPT_TEXT
    }


def checked(form: Form, stored: Any) -> dict[str, Any]:
    """Return the values of `stored` that pass the checks of the form's request, each by itself."""
    if not isinstance(stored, Mapping):
        return {}
    known = {name: value for name, value in stored.items() if name in form.fields}
    own = {name: value for name, value in known.items() if name in OWN and OWN[name](value)}
    request: dict[str, Any] = {"options": {}}
    for name, value in known.items():
        group, _, key = name.rpartition(".")
        (request[group] if group else request)[key] = form.parse(name, value)
    values = page_form.settings(form.mode, {"request": {**request, **_named(request)}}).values
    plans = ("auto", *get_backend().status()["memory_plans"])
    if values.get("options.memory_plan", "auto") not in plans:
        del values["options.memory_plan"]
    return {**values, **own}


def _takes_any_text(field: Component | None) -> bool:
    return isinstance(field, gr.Textbox) or bool(getattr(field, "allow_custom_value", False))


def _named(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with those LoRAs alone that have a name: an uploaded file may be gone by now."""
    chosen = request["options"].get("loras")
    kept = [
        {name: each[name] for name in ("source", "weight") if name in each}
        for each in (chosen if isinstance(chosen, list) else [])
        if isinstance(each, Mapping) and isinstance(source := each.get("source"), str) and hub_id(source)
    ]
    return {"options": {**request["options"], "loras": kept}}
