"""The forms of the tabs, and settings from a record: the studio's own files and hostile ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

import page_edit
import page_fields
import page_form
import planner
import tooltips
from backend import Backend
from events import Problem
from model_weights import task_support
from params import CHOOSE_TRACK, REQUESTS, parse_request
from status import UNKNOWN, SongModelStatus
from tests.unit.forms import STATUS, build_forms
from tests.waiting import result_of

FULL = {
    **{
        "prompt": "brass band",
        "lyrics": "[Verse]\nla",
        "instrumental": True,
        "bpm": 90,
        "key": "F# minor",
    },
    **{"time_signature": "3", "language": "ja", "takes": 3, "quality": "best", "seed": 41},
}
OPTIONS = {
    **{
        "steps": 8,
        "guidance": 3.5,
        "shift": 2.5,
        "sampler": "sde",
        "cfg_start": 0.25,
        "cfg_end": 0.75,
    },
    **{
        "loudness": -14.0,
        "fade_out": 2.5,
        "format": "flac",
        "timbre_token": False,
        "memory_plan": "swap",
    },
    **{
        "variation": 0.3,
        "variation_seed": 11,
        "loras": [{"source": "org/jazz:a.safetensors", "weight": 0.5}],
    },
}
PLAN = {"plan": True, "plan_seed": 5, "plan_temperature": 0.5, "plan_cfg": 3.0, "rewrite": True}
PLAN |= {"exclude": "no brass", "plan_strength": 0.6}
OWN = {
    "generate": {"duration": 12.5, "options": PLAN},
    "cover": {
        "source": "a.wav",
        "strength": 0.3,
        "options": {"noise_strength": 0.2, "detail": "sound"},
    },
    "extend": {"source": "a.wav", "before": 2.5, "after": 0.0, "options": {"overlap": 1.0}},
    "edit": {
        "source": "a.wav",
        "action": "morph",
        "source_prompt": "b",
        "options": {"n_min": 0.6, "n_avg": 3},
    },
}


@pytest.fixture(scope="module")
def forms() -> dict[str, page_form.Form]:
    return build_forms()


def test_every_field_of_a_request_has_a_control(forms):
    assert list(forms) == [*OWN, "lyrics"]
    for mode, form in forms.items():
        fields = REQUESTS[mode].model_fields
        options = {f"options.{name}" for name in fields["options"].annotation.model_fields}
        own = {"edit": {"track", "part"}, "generate": {"words"}}.get(mode, set())
        assert set(form.fields) == set(fields) - {"options"} | options | own, mode


def test_a_turbo_checkpoint_has_its_own_defaults_and_no_guidance(forms):
    def shown(kind: str, name: str) -> dict[str, Any]:
        return forms["generate"].show_status(replace(UNKNOWN, kind=kind))[
            forms["generate"].fields[name]
        ]

    assert "draft 20, standard 50, best 80" in shown("sft", "options.steps")["info"]
    assert [shown("sft", f"options.{name}")["placeholder"] for name in ("guidance", "shift")] == [
        "7",
        "1",
    ]
    assert "Blank: 8." in shown("turbo", "options.steps")["info"]
    assert shown("turbo", "options.shift")["placeholder"] == "3"
    for name in ("options.guidance", "options.cfg_start", "options.cfg_end"):
        assert shown("sft", name)["interactive"] and not shown("turbo", name)["interactive"], name
        assert shown("turbo", name)["info"] == tooltips.TURBO_GUIDANCE, name


def song_model(name: str, state: Any = "ready") -> SongModelStatus:
    tasks = task_support(name)
    return SongModelStatus(name, name, f"org/{name}", state, name == "sft", 11.5, tasks)


def test_the_models_that_are_here_can_be_chosen_and_each_has_its_own_defaults(forms, monkeypatch):
    form = forms["generate"]
    here = (song_model("sft"), song_model("turbo", "loaded"), song_model("base", "missing"))
    status = replace(STATUS, song_models=here)
    monkeypatch.setattr(form.studio, "status", lambda: status)
    model = form.fields["options.model"]
    shown = form.show_status(status)[model]
    assert shown["choices"] == [("Best", ""), ("Fast", "turbo")] and shown["visible"]
    assert "8 steps" in shown["info"] and "Stems" not in shown["info"]
    alone = replace(status, song_models=here[:1])
    assert not form.show_status(alone)[model]["visible"]
    # One that can be downloaded can be chosen, says where to get it, and is refused in a sentence.
    get = replace(status, song_models=(*here[:2], replace(here[2], download_gb=8.3)))
    monkeypatch.setattr(form.studio, "status", lambda: get)
    assert form.show_status(get)[model]["choices"][-1] == ("Stems", "base")
    (follower,) = form.followers
    choose = follower.show
    assert "#studio-banner" in choose("base")[model]["info"]
    assert "#studio-banner" not in choose("turbo")[model]["info"]
    problem = Problem("weights_missing", "Not here.", "options.model", "Call hf.")
    said = form._sentence(problem, {"options.model": "base"})
    assert said.startswith("Stems is not here yet") and "top of the page" in said
    assert form._sentence(problem, {"options.model": "org/x"}) == problem.text()
    monkeypatch.setattr(form.studio, "status", lambda: status)
    # As a restored record names them: the studio's own, another, one that is not here.
    for name, value in {"sft": "", "org/turbo": "turbo", "base": "", "org/x": ""}.items():
        assert form.show({"options.model": name})[model]["value"] == value, name
    follow = follower.show
    assert follower.field is model
    guidance = form.fields["options.guidance"]
    assert not follow("turbo")[guidance]["interactive"] and follow("")[guidance]["interactive"]
    assert set(follow("")) == set(follower.outputs)


def test_a_record_of_another_model_says_what_changes_and_tracks_choose_stems():
    here = (song_model("sft"), song_model("turbo"), song_model("base", "missing"))
    status = replace(STATUS, model="org/sft", song_models=here)
    record = {**record_of("generate"), "model": {"id": "org/turbo"}}
    name = page_form.settings("generate", record).values["options.model"]
    assert name == "org/turbo" and page_fields.choice_of(name, status) == "turbo"
    said = {name: page_fields.another_model(name, status) for name in (name, "", "org/sft", "base")}
    assert "Model is set to Fast" in said[name] and not said[""] and not said["org/sft"]
    assert "base, which is not here" in said["base"]
    # Stems is not here, and actions with tracks stay with the studio's own.
    assert page_edit.model_for("layer", "", status) == ""
    status = replace(status, song_models=(*here[:2], song_model("base")))
    assert page_edit.model_for("layer", "", status) == "base"
    assert page_edit.model_for("layer", "turbo", status) == "turbo"
    assert page_edit.model_for("repaint", "base", status) == ""
    assert page_edit.tasks_here(status)["extract"] == "official"


def test_morph_is_off_on_fast_and_track_actions_offer_stems(forms, monkeypatch):
    form = forms["edit"]
    here = (song_model("sft"), song_model("turbo"), song_model("base", "missing"))
    status = replace(STATUS, song_models=here)
    monkeypatch.setattr(form.studio, "status", lambda: status)
    action = form.fields["action"]
    numbers = [form.fields[name] for name in page_edit.MORPH_NUMBERS]
    (follower,) = [each for each in form.followers if action in each.outputs]
    follow = follower.show
    assert follower.field is form.fields["options.model"]
    assert set(follow("")) == set(follower.outputs)
    assert ("Morph into something else", "morph") in follow("")[action]["choices"]
    assert all(follow("")[number]["interactive"] for number in numbers)
    fast = follow("turbo")
    assert ("Morph into something else (not with Fast)", "morph") in fast[action]["choices"]
    for number in numbers:
        assert not fast[number]["interactive"] and fast[number]["info"] == tooltips.MORPH_ON_FAST
    assert not page_edit.remarks(status, "")
    get = replace(status, song_models=(*here[:2], replace(here[2], download_gb=8.3)))
    assert page_edit.remarks(get, "") == dict.fromkeys(CHOOSE_TRACK, tooltips.STEMS_TO_GET)
    assert page_edit.remarks(get, "base") == {}


def test_tracks_are_made_by_the_model_that_the_page_shows(forms, monkeypatch):
    form = forms["edit"]
    status = replace(STATUS, song_models=(song_model("sft"), song_model("base")))
    monkeypatch.setattr(form.studio, "status", lambda: status)
    models = SimpleNamespace(weights="sft", find=lambda name: SimpleNamespace(folder=name))
    with_model = partial(Backend.with_model, SimpleNamespace(models=models))
    monkeypatch.setattr(form.studio, "with_model", with_model, raising=False)

    def model_of(**there: Any) -> str:
        values = {name: field.value for name, field in form.fields.items()}
        values |= {"source": "a.wav", "start": "1", "end": "2", "prompt": "a song", **there}
        return form.request(values.values()).options.model

    # The backend takes Stems for a track where no model is named.
    layer = {"action": "layer", "track": "drums"}
    assert model_of(**layer) == "sft"
    assert model_of(**layer, **{"options.model": "base"}) == "base"
    assert model_of(action="repaint") == ""


def test_an_unknown_field_is_not_taken_back_and_changes_nothing(forms):
    root = forms["generate"].fields["prompt"]
    while root.parent is not None:
        root = root.parent
    (take_back,) = [
        fn
        for fn in root.fns.values()
        for number, event in fn.targets
        if event == "input" and root.blocks[number].elem_id == "generate-also"
    ]

    def changed(name: str) -> list[Any]:
        updates = take_back.fn(SimpleNamespace(name=name))
        shown = result_of(root.postprocess_data(take_back, updates, None))
        outputs = zip(take_back.outputs, shown, strict=True)
        return [output for output, update in outputs if "value" in update]

    assert changed("__class__") == []
    assert changed("bpm") == [forms["generate"].fields["bpm"]]


def test_a_song_without_a_plan_has_no_options_for_it(forms):
    form = forms["generate"]
    values = {name: field.value for name, field in form.fields.items()}
    values |= {"prompt": "a song", "lyrics": "la", "options.plan_seed": "1.5"}
    values["options.rewrite"] = True
    assert list(form.problems([*values.values()])) == ["options.plan_seed"]
    made = form.request({**values, "options.plan": False}.values())
    assert made == parse_request(
        "generate",
        {"prompt": "a song", "lyrics": "la", "duration": None, "options": {"plan": False}},
    )


def asked(mode: str) -> Any:
    return parse_request(
        mode, {**FULL, **OWN[mode], "options": {**OPTIONS, **OWN[mode]["options"]}}
    )


def record_of(mode: str) -> dict[str, Any]:
    """Return the record in the file of the second of three takes."""
    kept = asked(mode).model_dump(mode="json", exclude={"mode", "source", "reference"})
    return {"mode": mode, "request": kept, "seeds": [41, 42, 43], "takes": [{"seed": 42}]}


@pytest.mark.parametrize("mode", OWN)
def test_the_record_of_a_file_fills_the_form_and_makes_its_take_again(forms, mode: str):
    form, found = forms[mode], page_form.settings(mode, record_of(mode))
    assert found.left_out == 0
    names = {field: name for name, field in form.fields.items()}
    shown = {names[field]: update["value"] for field, update in form.show(found.values).items()}
    values = {name: field.value for name, field in form.fields.items()} | shown
    again = form.request(
        {name: "a.wav" if name == "source" else value for name, value in values.items()}.values()
    )
    assert (again.seed, again.takes) == (42, 1)
    assert again.model_copy(update={"seed": 41, "takes": 3}) == asked(mode)


def test_another_tab_takes_the_settings_that_it_has():
    found = page_form.settings("extend", record_of("cover"))
    assert found.left_out == 3  # strength, detail and noise_strength
    assert found.values["prompt"] == "brass band" and found.values["options.steps"] == 8
    assert not {"strength", "options.noise_strength"} & found.values.keys()
    referring = record_of("generate") | {"audio": {"reference": {"name": "a.wav", "sha256": ""}}}
    assert page_form.settings("cover", referring).reference
    assert not page_form.settings("extend", referring).reference
    for record in (None, {"request": [1]}, record_of("edit")):
        assert set(page_form.song(record)) == set(page_form.SONG)
    words = {"prompt", "lyrics", "instrumental", "bpm", "key", "time_signature", "language"}
    assert (
        set(page_form.SONG) == words
    )  # and no seed: a take in another tab leaves the visitor's there


def test_a_take_keeps_its_second_seed_and_the_seed_of_its_plan():
    record = record_of("generate") | {
        "variation_seeds": [7, 8, 9],
        "plan": {"used": True, "seed": 41, "bpm": 90},
    }
    values = page_form.settings("generate", record).values
    assert [values[name] for name in ("seed", "options.variation_seed", "options.plan_seed")] == [
        42,
        8,
        41,
    ]
    assert "options.plan_seed" not in page_form.settings("cover", record).values
    for plan in (
        {"used": False, "reason": "x"},
        {"used": True, "seed": "<b>"},
        {"used": 1, "seed": 6},
        None,
        "x",
    ):
        assert (
            page_form.settings("generate", record | {"plan": plan}).values["options.plan_seed"] == 5
        ), plan


def test_bad_values_cost_only_themselves():
    for record in [None, [], {}, {"request": []}, {"request": {"options": [1]}}, {"takes": 1}]:
        assert page_form.settings("generate", record).values == {}
    bad = {
        **{
            "prompt": "x" * 3000,
            "lyrics": ["a"],
            "instrumental": "yes",
            "bpm": float("nan"),
            "key": "H",
            "seed": 1.5,
        },
        **{
            "language": "xx",
            "takes": 10**400,
            "duration": float("inf"),
            "__class__": 1,
            "source": "/etc/passwd",
        },
        "options": {
            "steps": True,
            "format": "exe",
            "shift": 2,
            "loudness": "<b>",
            "path": "/etc",
            "variation": -1,
        },
    }
    found = page_form.settings(
        "generate", {"request": bad | {"quality": "draft"}, "takes": [{"seed": "<i>"}]}
    )
    assert found.values == {"quality": "draft", "options.shift": 2.0}
    assert found.left_out == 16
    loras = [{"source": "upload"}, {"source": "a/b"}, {"source": "upload"}]
    found = page_form.settings("generate", {"request": {"options": {"loras": loras}}})
    assert (found.uploads, found.left_out) == (2, 0)
    for takes in (None, 1, [], [None], [{"seed": "<i>"}], [{"seed": 10**400}]):
        assert page_form.settings("generate", {"takes": takes, "seeds": 5}).values == {}
    for others in (None, 5, [], {}, ["<b>"], [10**400]):
        record = {"takes": [{"seed": 4}], "seeds": [4], "variation_seeds": others}
        assert page_form.settings("generate", record).values == {"takes": 1, "seed": 4}


def test_numbers_are_written_as_people_write_them():
    assert [page_form.as_text(value) for value in (None, 60.0, 12.345)] == ["", "60", "12.345"]


def test_a_plan_of_another_layout_is_remarked_on():
    def restored(plan: Any, mode: str = "generate") -> bool:
        record = {"request": {"prompt": "a song"}, "plan": plan}
        return page_form.settings(mode, record).old_plan

    assert restored({"used": True, "seed": 3})  # as records had it before layouts had names
    assert restored({"used": True, "seed": 3, "layout": "another"})
    assert not restored({"used": True, "seed": 3, "layout": planner.LAYOUT})
    assert not restored({"used": False, "reason": "It was off."})
    assert not restored({"used": True, "seed": 3}, "cover")
    sentence = tooltips.restored(2, 0, False, 0, old_plan=True)
    assert sentence == f"2 settings restored. {tooltips.OLD_PLAN}"
    assert tooltips.OLD_PLAN not in tooltips.restored(2, 0, False)


def test_the_length_in_all_is_said_to_a_tenth_of_a_second():
    # An MP3 is seldom as long as its song.
    said = tooltips.length_in_all(20.028979, 0, 40)
    assert said == "Total length 1:00 (20 s of source + 40 s = 60 s)."
    assert "12.5 s of source + 0.2 s = 12.7 s" in tooltips.length_in_all(12.46, 0, 0.2)
