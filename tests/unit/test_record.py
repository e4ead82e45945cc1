"""What a record holds, what docs/api.md says of it, and what is read from one that comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest

import record
from record import Ran, SongRecord, Stored, TakeEntry
from tests.program import ROOT

MODEL = record.ModelEntry(id="org/model", revision="", engine="xl")
RAN = Ran(
    seconds={"steps": 1.5},
    sampling=record.SamplingEntry(
        steps=2, guidance=7.0, shift=1.0, sampler="ode", timbre_token=True, turbo=False
    ),
    instructions=record.Instructions(
        instruction="Make:", prompt_used="a song", prompt_dropped="", lyric_tokens=3
    ),
    model=MODEL,
    device="cpu",
    dtype="float32",
    versions={"python": "3.11"},
    memory_plan="resident",
)
SONG = {
    "mode": "generate",
    "request": {"prompt": "a song"},
    "audio": {},
    "seeds": (7,),
    "variation_seeds": (),
}


def rows(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the rows of the table in docs/api.md for a type of record.py, parts of a field below it."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is NotRequired:
            hint = get_args(hint)[0]
        assert get_origin(hint) is Annotated, f"{kind.__name__}.{name} has no text"
        value, text = get_args(hint)
        parts = [value, *get_args(value)]
        inner = next((part for part in parts if is_typeddict(part)), None)
        listed = "[]" if get_origin(value) is list and inner else ""
        if get_origin(value) is dict and inner:
            listed = ".*"
        yield f"| `{prefix}{name}{listed}` | {text} |"
        if inner:
            yield from rows(inner, f"{prefix}{name}{listed}.")


def test_the_documents_name_every_field():
    table = "| field | what it says |\n|---|---|\n" + "\n".join(rows(SongRecord)) + "\n"
    assert table in (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), (
        f"docs/api.md needs this table:\n\n{table}"
    )


def test_a_record_has_exactly_the_fields_of_its_type():
    made = record.song_record(RAN, **SONG, notes=["a note"])
    # Those who keep the best songs say which they passed over.
    every = set(get_type_hints(SongRecord)) - {"passed_over"}
    assert set(made) == every - {"length", "details", "switch_step", "gpu"}
    assert json.loads(json.dumps(made)) == made
    gpu = record.GpuEntry(estimated=60, asked=120, tries=2)
    length = record.LengthEntry(seconds=153.0, source="planner")
    details = {"bpm": record.DetailEntry(value=90, source="prompt")}
    ran = replace(RAN, length=length, details=details, switch_step=3, gpu=gpu)
    full = record.song_record(ran, **SONG, notes=())
    assert set(full) == every
    assert (full["switch_step"], full["gpu"]["tries"]) == (3, 2)
    words = record.words_record(
        RAN, mode="lyrics", request={"brief": "rain"}, seed=7, result={"text": "la", "tokens": 1}
    )
    assert (words["text"], words["worker"], words["memory_plan"]) == ("la", record.HERE, "resident")
    assert set(words) <= set(get_type_hints(record.WordsRecord))


def test_everything_that_ran_is_in_the_record():
    """But what its checkpoint was trained for, from which a note follows."""
    spread = {"instructions": "instruction", "kind": None}
    for each in fields(Ran):
        name = spread.get(each.name, each.name)
        assert name is None or name in get_type_hints(SongRecord), each.name


@pytest.mark.parametrize(
    "kind", [SongRecord, record.WordsRecord, TakeEntry, record.PlanEntry, record.UploadEntry]
)
def test_no_client_takes_a_part_of_it_for_a_file(kind: Any):
    assert not {"path", "url", "meta"} & set(get_type_hints(kind))


def test_a_record_that_comes_back_is_read_as_far_as_it_has_the_form_of_one():
    stored = Stored.from_record(
        {
            "mode": "cover",
            "request": {"key": "C major", "options": {"steps": 3}},
            "plan": {"used": True, "key": "Eb minor", "seed": 5},
            "seeds": [6, 7],
            "variation_seeds": [16, 17],
            "takes": [{"seed": 7}],
        }
    )
    assert (stored.mode, stored.options, stored.seed, stored.variation_seed) == (
        "cover",
        {"steps": 3},
        7,
        17,
    )
    assert (stored.is_planned, stored.key) == (True, "Eb minor")
    assert Stored.from_record({"request": {"key": "C major"}, "plan": None}).key == "C major"


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {"request": [], "plan": 5, "takes": {}, "seeds": 7, "variation_seeds": None, "audio": "x"},
        {
            "request": {"key": 7, "options": "x"},
            "plan": {"used": "yes", "key": []},
            "takes": [7, 8],
            "seeds": [1],
        },
        {"takes": ["none"], "seeds": [], "variation_seeds": [1]},
    ],
)
def test_a_record_of_any_other_form_is_empty(value: Any):
    stored = Stored.from_record(value)
    assert (stored.seed, stored.variation_seed, stored.is_planned, stored.key) == (
        None,
        None,
        False,
        "",
    )
    assert dict(stored.options) == dict(stored.audio) == {}
