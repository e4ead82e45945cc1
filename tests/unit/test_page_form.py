"""Settings from a record: what a studio's own file gives back, and what a hostile one gets."""

from __future__ import annotations

from typing import Any

import pytest

import page_form
from params import SONG_REQUESTS, parse_request

FULL = {
    "prompt": "brass band",
    "lyrics": "[Verse]\nla",
    "instrumental": True,
    "bpm": 90,
    "key": "F# minor",
    "time_signature": "3",
    "language": "ja",
    "takes": 3,
    "quality": "best",
    "seed": 41,
    "options": {"steps": 8, "guidance": 3.5, "loudness": -14.0, "format": "flac", "timbre_token": False},
}
OWN = {
    "generate": {
        "duration": 12.5,
        "options": {"plan": False, "plan_seed": 5, "plan_temperature": 0.5, "plan_cfg": 3.0, "rewrite": True},
    },
    "cover": {"source": "a.wav", "strength": 0.3, "options": {"noise_strength": 0.2}},
    "extend": {"source": "a.wav", "before": 2.5, "after": 0.0, "options": {"overlap": 1.0}},
    "edit": {"source": "a.wav", "action": "morph", "source_prompt": "b", "options": {"n_min": 0.6, "n_avg": 3}},
}


def asked(mode: str) -> Any:
    """Return a request of this mode with other values than the defaults."""
    own = OWN[mode]
    return parse_request(mode, {**FULL, **own, "options": {**FULL["options"], **own.get("options", {})}})


def record_of(mode: str) -> dict[str, Any]:
    """Return the record that a file of this mode carries, for the second of three takes."""
    kept = asked(mode).model_dump(mode="json", exclude={"mode", "source", "reference"})
    return {"mode": mode, "request": kept, "seeds": [41, 42, 43], "takes": [{"seed": 42}]}


def as_request(mode: str, values: dict[str, Any]) -> Any:
    """Build the request of a form that holds these values."""
    read: dict[str, Any] = {"source": "a.wav", "options": {}} if mode != "generate" else {"options": {}}
    for name, value in values.items():
        group, _, key = name.rpartition(".")
        (read[group] if group else read)[key] = value
    if mode == "edit":
        of_others = {"repaint_mode", "repaint_strength", "mix"}
        read["options"] = {name: value for name, value in read["options"].items() if name not in of_others}
    return parse_request(mode, read)


@pytest.mark.parametrize("mode", SONG_REQUESTS)
def test_a_files_own_record_makes_its_take_again(mode: str):
    found = page_form.settings(mode, record_of(mode))
    assert found.left_out == 0
    again = as_request(mode, found.values)
    assert (again.seed, again.takes) == (42, 1)
    assert again.model_copy(update={"seed": 41, "takes": 3}) == asked(mode)


def test_another_tab_takes_what_it_knows():
    found = page_form.settings("extend", record_of("cover"))
    assert found.left_out == 2  # strength and noise_strength
    assert found.values["prompt"] == "brass band" and found.values["options.steps"] == 8
    assert not {"strength", "options.noise_strength"} & found.values.keys()


def test_a_varied_take_keeps_its_second_seed():
    record = record_of("generate") | {"variation_seeds": [7, 8, 9]}
    assert page_form.settings("generate", record).values["options.variation_seed"] == 8


def test_a_planned_take_keeps_the_seed_of_its_plan():
    record = record_of("generate") | {"plan": {"used": True, "seed": 41, "bpm": 90}}
    found = page_form.settings("generate", record)
    assert (found.values["seed"], found.values["options.plan_seed"]) == (42, 41)
    assert "options.plan_seed" not in page_form.settings("cover", record).values
    for plan in ({"used": False, "reason": "x"}, {"used": True, "seed": "<b>"}, {"used": 1, "seed": 6}, None, "x"):
        found = page_form.settings("generate", record | {"plan": plan})
        assert (found.values["seed"], found.values["options.plan_seed"]) == (42, 5), plan


def test_a_reference_is_said_to_be_missing_where_there_is_a_field_for_it():
    record = record_of("generate") | {"audio": {"reference": {"name": "a.wav", "sha256": ""}}}
    assert page_form.settings("cover", record).reference
    assert not page_form.settings("extend", record).reference


def test_a_record_without_settings_gives_none():
    for record in [None, [], {}, {"request": []}, {"request": {"options": [1]}}, {"takes": 1}]:
        assert page_form.settings("generate", record).values == {}


def test_bad_values_cost_only_themselves():
    bad = {
        **{"prompt": "x" * 3000, "lyrics": ["a"], "instrumental": "yes", "bpm": float("nan"), "key": "H", "seed": 1.5},
        **{"language": "xx", "takes": 10**400, "duration": float("inf"), "__class__": 1, "source": "/etc/passwd"},
        "options": {"steps": True, "format": "exe", "shift": 2, "loudness": "<b>", "path": "/etc", "variation": -1},
    }
    found = page_form.settings("generate", {"request": bad | {"quality": "draft"}, "takes": [{"seed": "<i>"}]})
    assert found.values == {"quality": "draft", "options.shift": 2.0}
    assert found.left_out == 16


def test_seeds_that_are_none_are_left_out():
    for takes in (None, 1, [], [None], [{"seed": "<i>"}], [{"seed": 10**400}]):
        assert page_form.settings("generate", {"takes": takes, "seeds": 5}).values == {}
    for others in (None, 5, [], ["<b>"], [10**400]):
        record = {"takes": [{"seed": 4}], "seeds": [4], "variation_seeds": others}
        assert page_form.settings("generate", record).values == {"takes": 1, "seed": 4}


def test_a_song_of_any_record_has_all_of_its_fields():
    for record in (None, {"request": [1]}, record_of("edit")):
        assert set(page_form.song(record)) == set(page_form.SONG)


def test_numbers_are_written_as_people_write_them():
    assert [page_form.as_text(value) for value in (None, 60.0, 12.345)] == ["", "60", "12.345"]
