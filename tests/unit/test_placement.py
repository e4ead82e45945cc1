"""What lies on the device over a sequence of jobs never exceeds what the memory plan counted, on any device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import model_memory
import selfcheck
from estimate import planner_bytes, song_bytes
from events import StudioError
from model_memory import GB
from tests.ledger import Ledger, Part

LONG = {"duration": 240.0, "takes": 4}
UNPLANNED = {"options": {"plan": False}}
MORPH = {"action": "morph", "source_prompt": "loud drums"}


def song_after_song(ledger: Ledger) -> list[str]:
    return [job(ledger, "generate"), job(ledger, "generate"), job(ledger, "generate", **UNPLANNED)]


def after_cancel(ledger: Ledger) -> list[str]:
    # The first events are those of loading and planning; with the ninth the transformer has run.
    return [job(ledger, "generate", events=9), job(ledger, "generate")]


def after_an_error(ledger: Ledger) -> list[str]:
    return [job(ledger, "generate", fault=RuntimeError), job(ledger, "generate")]


def after_timed_lyrics(ledger: Ledger) -> list[str]:
    return [job(ledger, "align"), job(ledger, "generate")]


def after_words(ledger: Ledger) -> list[str]:
    found = []
    for mode in ("lyrics", "inspire", "describe"):
        found += [
            job(ledger, mode),
            job(ledger, "generate", **UNPLANNED),
            job(ledger, mode),
            job(ledger, "generate"),
        ]
    return found


def covers(ledger: Ledger) -> list[str]:
    edit = {"start": 0, "end": 0, **MORPH}
    return [
        job(ledger, "cover"),
        job(ledger, "generate"),
        job(ledger, "edit", **edit),
        job(ledger, "cover"),
    ]


def switches_of_plan(ledger: Ledger) -> list[str]:
    found = []
    plans = model_memory.plans_on(ledger.studio.models.device())
    for plan in (*plans, *reversed(plans)):
        for mode in ("generate", "cover"):
            found.append(job(ledger, mode, options={"memory_plan": plan}))
    return found


def longer_and_longer(ledger: Ledger) -> list[str]:
    return [
        job(ledger, "generate"),
        job(ledger, "generate", **LONG),
        job(ledger, "generate"),
        job(ledger, "lyrics"),
    ]


def with_loras(ledger: Ledger) -> list[str]:
    large = {"large": 400_000_000}
    return [
        job(ledger, "generate", loras=large),
        job(ledger, "generate", loras={"small": 50_000_000}),
        # They still act while words are written and while the next song is planned.
        job(ledger, "generate", loras=large),
        job(ledger, "lyrics"),
        job(ledger, "align"),
        job(ledger, "generate"),
        job(ledger, "cover"),
    ]


def out_of_memory(ledger: Ledger) -> list[str]:
    return [
        job(ledger, "generate", fault=torch.OutOfMemoryError),
        job(ledger, "generate"),
        job(ledger, "cover"),
    ]


SEQUENCES = (
    song_after_song,
    after_cancel,
    after_an_error,
    after_timed_lyrics,
    after_words,
    covers,
    switches_of_plan,
    longer_and_longer,
    with_loras,
    out_of_memory,
)
ROOT = Path(__file__).parents[2]
KINDS = tuple(model_memory.LADDERS)
WITHOUT_BFLOAT16 = ("cuda, float16", "mps, float32", "cpu, float32")


def job(ledger: Ledger, mode: str, **values) -> str:
    """Do a job; return what it left on the device in words, "" if it was never more than counted."""
    choice = ledger.run(mode, **values)
    assert choice.problem is None or choice.problem.code == "out_of_memory", choice.problem
    if ledger.used <= choice.need:
        return ""
    return f"{mode}, {choice.plan}: {ledger.used / GB:.2f} GB used, {choice.need / GB:.2f} counted"


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.__name__)
@pytest.mark.parametrize(
    "kind",
    [
        *KINDS,
        "cpu, widening",
        *(pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT_BFLOAT16),
    ],
)
def test_no_job_uses_more_than_was_counted(kind, sequence, tmp_path, monkeypatch):
    # Rooms around each plan's needs, so that every plan is chosen, with and without the planner beside the song model.
    for number, room in enumerate((6, 8, 10, 12, 14, 16, 18, 20, 24, 34, 48)):
        (tmp_path / str(number)).mkdir()
        ledger = Ledger(kind, room * GB, tmp_path / str(number), monkeypatch)
        assert [text for text in sequence(ledger) if text] == [], f"{room} GB"


@pytest.mark.parametrize(
    ("kind", "plan"), [(kind, plan) for kind in KINDS for plan in model_memory.LADDERS[kind]]
)
def test_a_forced_plan_uses_no_more_than_was_counted_either(kind, plan, tmp_path, monkeypatch):
    ledger = Ledger(kind, 1 * GB, tmp_path, monkeypatch)
    forced = {"options": {"memory_plan": plan}}
    done = [
        job(ledger, "generate", **forced),
        job(ledger, "cover", **forced),
        job(ledger, "generate", **forced),
    ]
    assert done == ["", "", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_the_self_check_keeps_to_the_plan_of_a_typical_song(kind, tmp_path, monkeypatch):
    """What it computes is left out here; where the models lie meanwhile is the studio's own doing."""
    ledger = Ledger(kind, None, tmp_path, monkeypatch)
    monkeypatch.setenv(selfcheck.SETTING, "on")
    monkeypatch.setattr(selfcheck, "file", lambda: tmp_path / selfcheck.FILE)
    monkeypatch.setattr(selfcheck, "_device_name", lambda kind: "a test")
    monkeypatch.setattr(selfcheck, "plan_checks", lambda *given: [])
    monkeypatch.setattr(Part, "vocabulary", SimpleNamespace(code_ids=None), raising=False)

    def stand_in(path: str, work: Any) -> Any:
        def compare() -> float:
            ledger.look(work(ledger.studio.placing.use.song))
            return 0.0

        return lambda *given: [selfcheck.Check(path, 0.0, compare, lambda: None)]

    monkeypatch.setattr(selfcheck, "song_checks", stand_in("windows", song_bytes))
    monkeypatch.setattr(selfcheck, "planner_checks", stand_in("joined", planner_bytes))
    found = {}
    for room in ROOMS:
        ledger.room = room * GB
        ledger.used = 0
        loaded = ledger.studio.models
        loaded.unload_pipeline()
        loaded.planner.unload()
        placing = ledger.studio.placing = model_memory.Placing(loaded)
        try:
            paths = [finding.path for finding in selfcheck.everything(loaded, placing)]
        except StudioError as error:
            assert (error.problem.code, ledger.used) == ("out_of_memory", 0)
            continue
        assert paths == ["windows", "joined"]
        assert 0 < ledger.used <= placing.choice.need, f"{room} GB"
        assert loaded.layout == model_memory.layout_of(kind, placing.plan)
        found[room] = placing.plan
        assert ledger.run("generate").plan == placing.plan
    assert set(found.values()) == set(model_memory.LADDERS[kind])


# --- the table of docs/performance.md --------------------------------------------------------------------------------

ROOMS = (6, 8, 10, 12, 16, 24, 48, 80)


def cells(kind: str, room: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the plan for a planned song of a minute, what was counted for it, and the most that it used after any
    sequence without forced plans."""
    used = 0
    for sequence in SEQUENCES:
        place = folder / f"{kind}-{room}-{sequence.__name__}"
        place.mkdir()
        ledger = Ledger(kind, room * GB, place, monkeypatch)
        if sequence in (switches_of_plan, with_loras, out_of_memory):
            continue
        sequence(ledger)
        choice = ledger.run("generate")
        if choice.problem:
            return "none | |"
        used = max(used, ledger.used)
    plan = f"{choice.plan}, planner beside" if choice.beside else choice.plan
    return f"{plan} | {choice.need / GB:.1f} | {used / GB:.1f}"


@pytest.mark.parametrize("kinds", [KINDS, pytest.param(WITHOUT_BFLOAT16, marks=pytest.mark.slow)])
def test_the_documented_tables_are_true(kinds, tmp_path, monkeypatch):
    rows = []
    for room in ROOMS:
        found = [cells(kind, room, tmp_path, monkeypatch) for kind in kinds]
        rows.append(f"| {room} | {' | '.join(found)} |")
    print("\n".join(["", *rows]))
    assert "\n".join(rows) in (ROOT / "docs" / "performance.md").read_text()


# --- several song models ---------------------------------------------------------------------------------------------


def waits(ledger: Ledger) -> str:
    """Return what lies on the device after a song, and what waits in the machine's memory, in GB."""
    on_device = sum(part.size for part in ledger.parts if part.place == ledger.device)
    return f"{on_device / GB:.1f} + {ledger.waiting() / GB:.1f}"


def test_other_models_stay_on_the_device_else_wait_in_the_machine_and_are_never_reloaded_in_silence(
    tmp_path, monkeypatch
):
    rows = []
    notes = []
    for room in (80, 24, 12):
        ledger = Ledger("cuda", room * GB, tmp_path / str(room), monkeypatch)
        cells = []
        for model in ("sft", "turbo", "base", "sft"):
            assert job(ledger, "generate", options={"model": model}) == ""
            cells.append(waits(ledger))
            notes.append(ledger.studio.placing.note)
        rows.append(f"| {room} | {ledger.studio.placing.plan} | {' | '.join(cells)} |")
    print("\n".join(["", *rows]))
    assert "\n".join(rows) in (ROOT / "docs" / "performance.md").read_text()
    assert not any(notes)
    # Without room in the machine's memory either, the song says so.
    ledger.machine = 0
    assert job(ledger, "generate", options={"model": "turbo"}) == ""
    assert "no room for 12, base beside turbo" in ledger.studio.placing.note


@pytest.mark.parametrize(("kind", "room"), [("cuda", 8), ("cuda", 24), ("mps", 34), ("cpu", 16)])
def test_switches_of_model_use_no_more_than_was_counted(kind, room, tmp_path, monkeypatch):
    ledger = Ledger(kind, room * GB, tmp_path / "here", monkeypatch)

    def song(model: str, **values: Any) -> str:
        options = {"model": model, **values.pop("options", {})}
        return job(ledger, "generate", options=options, **values)

    done = [
        song("sft", loras={"large": 400_000_000}),
        song("turbo"),
        # Stopped while the transformer is there.
        song("base", events=9),
        song("turbo", options={"memory_plan": "swap"}),
        job(ledger, "lyrics"),
        song("turbo", fault=torch.OutOfMemoryError),
        job(ledger, "cover"),
    ]
    assert done == [""] * len(done)


# --- after a lack of memory ------------------------------------------------------------------------------------------


def test_a_lower_plan_is_kept_while_memory_is_as_short_and_raised_when_it_is_back(
    tmp_path, monkeypatch
):
    ledger = Ledger("cuda", 16 * GB, tmp_path, monkeypatch)
    assert ledger.run("generate").plan == "swap"
    assert ledger.run("generate", fault=torch.OutOfMemoryError).plan == "offload"
    assert ledger.run("generate").plan == "offload"
    ledger.room = 24 * GB
    assert ledger.run("generate").plan == "swap"


def test_a_loaded_model_whose_folder_vanishes_goes_on_with_its_plan(tmp_path, monkeypatch):
    ledger = Ledger("cuda", 16 * GB, tmp_path / "here", monkeypatch)
    before = ledger.run("cover")
    song_model = ledger.studio.models.pipeline()
    (tmp_path / "here").rename(tmp_path / "away")
    assert ledger.run("cover") == before
    assert ledger.studio.models.pipeline() is song_model
