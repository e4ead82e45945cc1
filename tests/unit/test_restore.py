"""Settings from a record: what a studio's own file gives back, and what a hostile one gets."""

from __future__ import annotations

import random
from typing import Any

import pytest

import restore
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


def record_of(mode: str) -> dict[str, Any]:
    """Return the record that a file of this mode carries, for the second of three takes."""
    own = OWN[mode]
    request = parse_request(mode, {**FULL, **own, "options": {**FULL["options"], **own.get("options", {})}})
    kept = request.model_dump(mode="json", exclude={"mode", "source", "reference"})
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
    found = restore.settings(mode, record_of(mode))
    assert found.left_out == 0
    again = as_request(mode, found.values)
    assert (again.seed, again.takes) == (42, 1)
    own = OWN[mode]
    asked = parse_request(mode, {**FULL, **own, "options": {**FULL["options"], **own.get("options", {})}})
    assert again.model_copy(update={"seed": 41, "takes": 3}).model_dump() == asked.model_dump()


def test_another_tab_takes_what_it_knows():
    found = restore.settings("extend", record_of("cover"))
    assert found.left_out == 2  # strength and noise_strength
    assert found.values["prompt"] == "brass band" and found.values["options.steps"] == 8
    assert not {"strength", "options.noise_strength"} & found.values.keys()


def test_a_varied_take_keeps_its_second_seed():
    record = record_of("generate") | {"variation_seeds": [7, 8, 9]}
    assert restore.settings("generate", record).values["options.variation_seed"] == 8


def test_a_planned_take_keeps_the_seed_of_its_plan():
    record = record_of("generate") | {"plan": {"used": True, "seed": 41, "bpm": 90}}
    found = restore.settings("generate", record)
    assert (found.values["seed"], found.values["options.plan_seed"]) == (42, 41)
    assert "options.plan_seed" not in restore.settings("cover", record).values
    for plan in ({"used": False, "reason": "x"}, {"used": True, "seed": "<b>"}, {"used": 1, "seed": 6}, None, "x"):
        found = restore.settings("generate", record | {"plan": plan})
        assert (found.values["seed"], found.values["options.plan_seed"]) == (42, 5), plan


def test_a_reference_is_said_to_be_missing_where_there_is_a_field_for_it():
    record = record_of("generate") | {"audio": {"reference": {"name": "a.wav", "sha256": ""}}}
    assert restore.settings("cover", record).reference
    assert not restore.settings("extend", record).reference


@pytest.mark.parametrize("record", [None, [], "x", 5, {}, {"request": []}, {"request": {"options": [1]}}, {"takes": 1}])
def test_a_record_without_settings_gives_none(record: Any):
    assert restore.settings("generate", record).values == {}


def test_bad_values_cost_only_themselves():
    bad = {
        **{"prompt": "x" * 3000, "lyrics": ["a"], "instrumental": "yes", "bpm": float("nan"), "key": "H", "seed": 1.5},
        **{"language": "xx", "takes": 10**400, "duration": float("inf"), "__class__": 1, "source": "/etc/passwd"},
        "options": {"steps": True, "format": "exe", "shift": 2, "loudness": "<b>", "path": "/etc", "variation": -1},
    }
    found = restore.settings("generate", {"request": bad | {"quality": "draft"}, "takes": [{"seed": "<i>"}]})
    assert found.values == {"quality": "draft", "options.shift": 2.0}
    assert found.left_out == 16


def test_markup_stays_plain_text():
    words = "<img src=x onerror=alert(1)>"
    found = restore.settings("edit", {"request": {"prompt": words, "source_prompt": words + "\x00"}})
    assert found.values == {"prompt": words, "source_prompt": words}


HOSTILE = [
    None,
    True,
    -1,
    0,
    0.5,
    10**400,
    -(10**400),
    float("nan"),
    float("inf"),
    "",
    "<b>",
    "x" * 12_000,
    "\ud800",
    "4",
]
HOSTILE += [[], {}, [[]], ["vocals"], ["vocals", 1], {"path": "/etc/passwd"}, [{"seed": 3}], "layer", "4/4"]


@pytest.mark.parametrize("mode", SONG_REQUESTS)
def test_any_record_gives_values_that_the_form_may_hold(mode: str):
    draw = random.Random(mode)
    fields = SONG_REQUESTS[mode].model_fields
    names = [*fields, *fields["options"].annotation.model_fields, "options", "x", ""]

    def thing(depth: int = 0) -> Any:
        if depth < 3 and draw.random() < 0.3:
            return {draw.choice(names): thing(depth + 1) for _ in range(5)}
        return draw.choice(HOSTILE)

    for _ in range(60):
        parts = ("request", "takes", "seeds", "variation_seeds", "audio")
        record = {part: thing() for part in parts}
        record["request"] = {name: thing(2) for name in draw.sample(names, 8)} | {
            "options": {n: thing() for n in names}
        }
        found = restore.settings(mode, record)
        for place, value in found.values.items():
            again = restore.settings(mode, {"request": nested(place, value)})
            assert again.values == {place: value} and again.left_out == 0
        assert set(restore.song(record)) == set(restore.SONG)


def nested(place: str, value: Any) -> dict[str, Any]:
    """Return the request that has one value at `place`."""
    group, _, key = place.rpartition(".")
    return {group: {key: value}} if group else {key: value}


@pytest.mark.parametrize(("value", "text"), [(None, ""), (60.0, "60"), (4294967295, "4294967295"), (12.345, "12.345")])
def test_numbers_are_written_as_people_write_them(value: Any, text: str):
    assert restore.as_text(value) == text
