"""Settings that come back from the browser: what fits is put back, what a stranger wrote there is not."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

import page_settings
import page_tabs
from limits import KEPT_TEXT
from page_form import Form
from page_tabs import lyrics_tab

STATUS = {"memory_plans": ("resident", "swap"), "planner": {"state": "ready", "problem": None}}


class Backend:
    """Says what the form asks about."""

    def status(self) -> dict[str, Any]:
        """Return the facts that decide what is offered."""
        return STATUS


@pytest.fixture(scope="module")
def forms() -> dict[str, Form]:
    """Return the forms of all tabs."""
    with gr.Blocks():
        built = [
            tab().form
            for tab in (page_tabs.generate_tab, page_tabs.cover_tab, page_tabs.extend_tab, page_tabs.edit_tab)
        ]
        built.append(lyrics_tab()[0])
    return {form.mode: form for form in built}


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the settings come back on a backend that knows two memory plans."""
    import page_panels

    for module in (page_settings, page_panels):
        monkeypatch.setattr(module, "get_backend", Backend)


def values_of(form: Form, updates: dict[Any, Any]) -> dict[str, Any]:
    """Return what updates put into the fields of a form."""
    names = {field: name for name, field in form.fields.items()}
    return {names[part]: update["value"] for part, update in updates.items()}


@pytest.mark.parametrize("mode", ["generate", "cover", "extend", "edit", "lyrics"])
def test_the_defaults_come_back_as_they_are(forms: dict[str, Form], mode: str):
    form = forms[mode]
    stored = {name: field.value for name, field in form.fields.items() if not isinstance(field, gr.Audio)}
    back = values_of(form, page_settings.put_back(form, stored))
    assert {name: value for name, value in back.items() if (value or None) != (stored[name] or None)} == {}
    assert stored.keys() - back.keys() <= {"track", "brief"}  # which have no value that would be allowed


def test_what_was_chosen_comes_back(forms: dict[str, Form]):
    stored = {
        **{"prompt": "brass <b>band</b>", "lyrics": "[Verse]\nla", "bpm": "90", "key": "F# minor", "takes": 2},
        **{"options.steps": "", "options.fade_out": 2.5, "options.plan": False, "options.memory_plan": "swap"},
    }
    back = values_of(forms["generate"], page_settings.put_back(forms["generate"], stored))
    assert {name: back[name] for name in stored} == stored


def test_the_fields_that_only_the_page_has_come_back(forms: dict[str, Form]):
    stored = {"action": "layer", "track": "drums", "part": True, "tracks": ["bass", "synth"], "start": "1.5"}
    back = values_of(forms["edit"], page_settings.put_back(forms["edit"], stored))
    assert {name: back[name] for name in stored} == stored


def test_what_does_not_fit_is_left_out(forms: dict[str, Form]):
    for stored in [
        *(None, [], "text", 7, {"prompt": ["a"]}, {"prompt": "x" * 2_001}, {"prompt": None, "bpm": "fast"}),
        *({"bpm": {"a": 1}}, {"bpm": "1e999"}, {"takes": "2"}, {"takes": 99}, {"takes": True}, {"key": "H major"}),
        *({"options.steps": "100000"}, {"options.memory_plan": "fp8"}, {"options.sampler": []}, {"instrumental": 1}),
        *({"source": "/etc/passwd"}, {"reference": "/etc/passwd"}, {"mode": "edit"}, {"__class__": "x"}, {"track": []}),
        *({"options": {"steps": 8}}, {"options.unknown": 1}, {"part": "yes"}, {"options.loras": "x"}),
    ]:
        for form in forms.values():
            values = page_settings.checked(form, stored)
            assert set(values) - {"options.loras"} <= {"prompt", "bpm"}
            assert values.get("prompt", "") == "" and values.get("bpm") is None
            assert not values.get("options.loras")
            page_settings.put_back(form, stored)


def test_what_was_typed_comes_back_as_it_was_though_it_is_wrong(forms: dict[str, Form]):
    for mode, stored in [
        ("generate", {"prompt": "x" * 2_001, "lyrics": "x" * 10_001, "bpm": "1.2.", "duration": "9", "seed": "-"}),
        ("extend", {"before": "301", "after": "", "options.loudness": "-"}),
        ("edit", {"source_lyrics": "x" * 10_001, "start": "50", "end": "nan", "options.steps": "9" * 5_000}),
        ("lyrics", {"tone": "x" * 201, "structure": "x" * 501, "options.max_tokens": "1e999", "seed": "2,5 "}),
    ]:
        back = values_of(forms[mode], page_settings.put_back(forms[mode], stored))
        assert {name: back[name] for name in stored} == stored


def test_what_is_no_text_or_far_too_long_is_not_put_into_a_box(forms: dict[str, Form]):
    stored = {"prompt": "x" * (KEPT_TEXT + 1), "lyrics": ["la"], "bpm": {"a": 1}, "seed": 7.5, "duration": True}
    assert values_of(forms["generate"], page_settings.put_back(forms["generate"], stored)) == {"options.loras": []}
    back = values_of(forms["generate"], page_settings.put_back(forms["generate"], {"prompt": "a \ud83d song"}))
    assert back["prompt"] == "a  song"


def test_of_loras_those_with_a_name_come_back(forms: dict[str, Form]):
    entry = {"name": "<i>x</i>", "facts": ["<script>"], "note": "x", "weight": 0.5}
    stored = [{**entry, "source": "org/repo:style.safetensors"}, {**entry, "source": "/tmp/gradio/1/style.safetensors"}]
    values = page_settings.checked(forms["generate"], {"options.loras": [*stored, "x", None, {"source": 3}]})
    assert values["options.loras"] == [{"source": "org/repo:style.safetensors", "weight": 0.5}]
