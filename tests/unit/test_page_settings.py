"""Settings that come back from the browser: what fits is restored, what a stranger wrote there is not."""

from __future__ import annotations

from typing import Any

import pytest

import page_settings
from limits import KEPT_TEXT
from page_form import Form
from tests.unit.forms import build_forms


@pytest.fixture(scope="module")
def forms() -> dict[str, Form]:
    return build_forms()


def back(form: Form, stored: Any) -> dict[str, Any]:
    """Return what is put into the fields of a form."""
    names = {field: name for name, field in form.fields.items()}
    return {
        names[part]: update["value"]
        for part, update in page_settings.restored(form, stored).items()
    }


def test_the_defaults_come_back_as_they_are(forms: dict[str, Form]):
    for mode, form in forms.items():
        stored = {name: field.value for name, field in form.saved.items()}
        found = back(form, stored)
        assert {
            name: value
            for name, value in found.items()
            if (value or None) != (stored[name] or None)
        } == {}, mode
        assert stored.keys() - found.keys() <= {"track", "brief"}, (
            mode
        )  # they have no value that would be allowed


COMES_BACK = [
    (
        "generate",
        {
            "prompt": "brass <b>band</b>",
            "lyrics": "[Verse]\nla",
            "bpm": "90",
            "key": "F# minor",
            "takes": 2,
        },
    ),
    (
        "generate",
        {
            "options.steps": "",
            "options.fade_out": 2.5,
            "options.plan": False,
            "options.memory_plan": "swap",
        },
    ),
    # Fields that only the page has.
    (
        "edit",
        {
            "action": "layer",
            "track": "drums",
            "part": True,
            "tracks": ["bass", "synth"],
            "start": "1.5",
        },
    ),
    # What was typed, though it is wrong.
    (
        "generate",
        {
            "prompt": "x" * 2_001,
            "lyrics": "x" * 10_001,
            "bpm": "1.2.",
            "duration": "9",
            "seed": "-",
        },
    ),
    ("extend", {"before": "301", "after": "", "options.loudness": "-"}),
    (
        "edit",
        {"source_lyrics": "x" * 10_001, "start": "50", "end": "nan", "options.steps": "9" * 5_000},
    ),
    (
        "lyrics",
        {"tone": "x" * 201, "structure": "x" * 501, "options.max_tokens": "1e999", "seed": "2,5 "},
    ),
]


def test_what_was_chosen_or_typed_comes_back(forms: dict[str, Form]):
    for mode, stored in COMES_BACK:
        found = back(forms[mode], stored)
        assert {name: found.get(name) for name in stored} == stored, mode


STRANGE = [
    *(
        None,
        [],
        "text",
        7,
        {"prompt": ["a"]},
        {"prompt": None, "bpm": 1.5},
        {"lyrics": ["la"], "duration": True},
    ),
    *(
        {"bpm": {"a": 1}},
        {"takes": "2"},
        {"takes": 99},
        {"takes": True},
        {"options.loras": "x"},
        {"options.loras": 7},
    ),
    *(
        {"options.memory_plan": "fp8"},
        {"options.sampler": []},
        {"instrumental": 1},
        {"prompt": "x" * (KEPT_TEXT + 1)},
    ),
    *(
        {"source": "/etc/passwd"},
        {"reference": "/etc/passwd"},
        {"mode": "edit"},
        {"__class__": "x"},
        {"track": []},
    ),
    *(
        {"options": {"steps": 8}},
        {"options.unknown": 1},
        {"part": "yes"},
        {"key": "H major"},
        {"seed": 7.5},
    ),
]


def test_what_does_not_fit_is_left_out(forms: dict[str, Form]):
    for stored in STRANGE:
        for mode, form in forms.items():
            found = back(form, stored)
            assert not found.pop("options.loras", None), (mode, stored)
            assert {name: value for name, value in found.items() if value} == {}, (mode, stored)
    assert back(forms["generate"], {"prompt": "a \ud83d song"})["prompt"] == "a  song"


def test_loras_with_a_name_come_back(forms: dict[str, Form]):
    entry = {"name": "<i>x</i>", "facts": ["<script>"], "note": "x", "weight": 0.5}
    stored = [
        {**entry, "source": "org/repo:style.safetensors"},
        {**entry, "source": "/tmp/gradio/1/style.safetensors"},
    ]
    (kept,) = back(forms["generate"], {"options.loras": [*stored, "x", None, {"source": 3}]})[
        "options.loras"
    ]
    assert (kept["source"], kept["name"], kept["weight"]) == (
        *["org/repo:style.safetensors"] * 2,
        0.5,
    )
