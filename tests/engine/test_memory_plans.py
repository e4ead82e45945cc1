"""Memory plans on the tiny checkpoint: the same song with less in memory, and one plan lower when memory runs out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import audio
import backend
import checkpoints
import export
import memory
import models
import modes
from events import Done, Failed, Progress
from jobs import Job
from modes import Outcome
from params import parse_request
from tests.program import ROOT
from tests.weights import CPU, weights_in


@pytest.fixture
def card(monkeypatch):
    """Let the processor stand in for a card, so that parts take turns on it."""
    monkeypatch.setitem(memory.LADDERS, "cpu", memory.LADDERS["cuda"])


def song(pipe, folder, mode="generate", **values):
    """Run a song and return its samples."""
    values = {"prompt": "calm piano", "duration": 10, **values}
    if mode != "generate":
        values.pop("duration")
        source = folder / "source.wav"
        wave = 0.3 * np.sin(np.arange(480_000) * 0.03, dtype=np.float32)
        export.write_wav(source, np.stack([wave, wave]))
        values["source"] = str(source)
    request = parse_request(mode, {**values, "options": {"steps": 2, **values.pop("options", {})}})
    job = Job(request, (7,), (8,), str(folder), {"source": values["source"]} if "source" in values else {})
    *_, outcome = modes.run(pipe, job, True)
    assert isinstance(outcome, Outcome)
    (take,) = outcome.takes
    assert take.problem is None, take.problem
    return audio.read_wav(take.file)


@pytest.fixture
def watched(tiny, card):
    """A pipeline whose parts take turns, and the parts that computed while another one had the turn."""
    pipe = models.build_pipeline(weights_in(tiny), CPU, "offload")
    turns, wrong = pipe.transformer._hf_hook, []

    def look(name):
        def hook(*_):
            if turns.inside != name:
                wrong.append((name, turns.inside))

        return hook

    for name, part in pipe.components.items():
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(look(name))
    return pipe, wrong


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("generate", {}),
        pytest.param("cover", {}, marks=pytest.mark.slow),
        pytest.param("extend", {"after": 5}, marks=pytest.mark.slow),
        pytest.param("edit", {"action": "repaint", "start": 2, "end": 5}, marks=pytest.mark.slow),
        pytest.param("edit", {"action": "morph", "source_prompt": "loud drums"}, marks=pytest.mark.slow),
    ],
    ids=["generate", "cover", "extend", "repaint", "morph"],
)
def test_parts_that_take_turns_make_the_same_song_in_every_mode(watched, pipe, tmp_path, mode, values):
    taking_turns, wrong = watched
    made = song(taking_turns, tmp_path, mode, **values)
    assert wrong == []
    assert np.array_equal(made, song(pipe, tmp_path, mode, **values))


def test_one_part_at_a_time_is_on_the_device(tiny, card):
    pipe = models.build_pipeline(weights_in(tiny), CPU, "offload")
    moves = []
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            part.to = lambda place, name=name: moves.append((name, "away" if place == "cpu" else "in"))
    turns = pipe.transformer._hf_hook
    for name in ("text_encoder", "transformer", "transformer", "vae"):
        turns.enter(name)
    assert moves == [
        ("text_encoder", "in"),
        ("text_encoder", "away"),
        ("transformer", "in"),
        ("transformer", "away"),
        ("vae", "in"),
    ]
    assert pipe._execution_device == torch.device("cpu")


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_eight_bits_halve_the_transformer_and_make_nearly_the_same_song(tiny, pipe, tmp_path, storage):
    device = models.Device("cpu", "float32", storage, "float32", "a test")
    small = models.build_pipeline(weights_in(tiny), device, "fp8")
    layer = small.transformer.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert small.transformer.dtype == torch.float32
    assert small.transformer.scale_shift_table.dtype == torch.float32
    made, exact = song(small, tmp_path), song(pipe, tmp_path)
    assert not np.array_equal(made, exact)
    # Of a random checkpoint no more can be said than that it follows the exact one.
    assert np.corrcoef(made.ravel(), exact.ravel())[0, 1] > 0.9


def test_sizes_are_those_of_the_files(tiny):
    sizes = models.sizes_of(weights_in(tiny), models.Device("cuda", "bfloat16", "bfloat16", "bfloat16", ""))
    files = sum(path.stat().st_size for path in tiny.rglob("*.safetensors"))
    assert sizes.pipeline == files > sizes.transformer > 0
    doubled = models.sizes_of(weights_in(tiny), CPU)
    assert doubled.pipeline == 2 * files


def test_the_preview_needs_next_to_nothing():
    weights = checkpoints.find_weights()
    assert weights.engine == "preview"
    sizes = models.sizes_of(weights, CPU)
    song = models.song_of(weights, CPU, 600, 4, True)
    assert memory.choose("cpu", 6 * memory.GB, sizes, song).plan == "resident"


def test_the_room_for_models_is_what_is_free_and_what_we_have(monkeypatch):
    import psutil

    assert models.room_for_models("cpu") > psutil.Process().memory_info().rss
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert models.room_for_models("cuda") is None


def test_the_way_to_attend_is_the_chosen_one(pipe):
    assert type(pipe.transformer.layers[0].self_attn.processor).__name__ == "AceStepAttnProcessor2_0"


# --- through the studio -------------------------------------------------------------------------------------------


@pytest.fixture
def studio(monkeypatch, tmp_path, card):
    """A fresh studio on a device that is a card to the memory plan; `room` sets its bytes."""
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "songs"))
    monkeypatch.setenv("ACE_STUDIO_PLANNER", "preview")
    monkeypatch.setenv("ACE_STUDIO_LYRICS", "preview")
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    return studio


def ask(studio, mode="generate", **values):
    if mode == "generate":
        options = {"steps": 2, "plan": False, **values.pop("options", {})}
        values = {"prompt": "calm piano", "duration": 10, "seed": 7, **values, "options": options}
    return list(studio.stream(parse_request(mode, values)))


def runs_out(monkeypatch, *plans):
    """Let building the pipeline by one of `plans` fail as on a card that is too small; returns the plans tried."""
    tried, build = [], models.build_pipeline

    def built(weights, device, plan="resident"):
        tried.append(plan)
        pipe = build(weights, device, plan)
        if plan in plans:

            def full(*_):
                raise torch.OutOfMemoryError("CUDA out of memory")

            pipe.transformer.register_forward_pre_hook(full)
        return pipe

    monkeypatch.setattr(models, "build_pipeline", built)
    return tried


def test_the_plan_in_force_stands_in_status_capabilities_and_record(studio):
    assert studio.status()["memory_plan"] == ""
    assert studio.capabilities()["memory_plan"] == "everything resident"
    done = ask(studio, options={"memory_plan": "offload"})[-1]
    assert isinstance(done, Done), done
    assert done.record["memory_plan"] == "offload"
    assert studio.status()["memory_plan"] == memory.TEXTS["offload"]


@pytest.mark.slow
def test_a_forced_plan_changes_what_lies_in_memory_and_not_the_song(studio):
    ask(studio)
    assert not hasattr(studio.pipeline().transformer, "_hf_hook")
    whole = ask(studio)[-1]
    parts = ask(studio, options={"memory_plan": "offload"})[-1]
    assert studio.pipeline().transformer._hf_hook.inside == "vae"
    assert np.array_equal(audio.decode(whole.files[0]), audio.decode(parts.files[0]))
    ask(studio, options={"memory_plan": "fp8"})
    assert studio.pipeline().transformer.layers[0].mlp.up_proj.weight.dtype == torch.float8_e4m3fn
    ask(studio)
    assert not hasattr(studio.pipeline().transformer, "_hf_hook")


@pytest.mark.slow
def test_after_a_lack_of_memory_the_song_is_made_one_plan_lower_and_that_is_said(studio, monkeypatch):
    monkeypatch.setattr(models, "room_for_models", lambda kind: None)
    # Everything resident fails by itself, as does one model at a time, which has the same pipeline.
    runs_out(monkeypatch, "swap", "resident")
    *progress, failed = ask(studio)
    assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    *progress, done = ask(studio)
    assert isinstance(done, Done), done
    assert done.record["memory_plan"] == "offload"
    note = memory.fallback_note("swap", "offload")
    assert note in done.record["notes"]
    assert note in [event.note for event in progress if isinstance(event, Progress)]
    again = ask(studio)[-1]
    assert again.record["memory_plan"] == "offload" and again.record["notes"] == []


@pytest.mark.slow
def test_it_is_tried_once_more_and_not_again(studio, monkeypatch):
    tried = runs_out(monkeypatch, "resident", "swap", "offload", "fp8")
    failed = ask(studio, options={"memory_plan": "offload"})[-1]
    assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    assert tried == ["offload", "fp8"]


def test_what_does_not_fit_is_refused_before_anything_is_loaded(studio, monkeypatch):
    monkeypatch.setattr(models, "room_for_models", lambda kind: 1_000_000)
    failed = ask(studio)[-1]
    assert isinstance(failed, Failed) and failed.problem.code == "out_of_memory"
    assert "0.0 GB are free" in failed.problem.message
    assert not studio.loaded


def test_one_model_at_a_time_is_loaded(studio):
    ask(studio, "lyrics", brief="rain", options={"max_tokens": 16})
    assert studio.lyrics.loaded
    done = ask(studio, options={"memory_plan": "swap", "plan": True})[-1]
    assert isinstance(done, Done), done
    assert done.record["plan"]["used"]
    assert (studio.loaded, studio.planner.loaded, studio.lyrics.loaded) == (True, False, False)
    done = ask(studio, "lyrics", brief="rain", options={"max_tokens": 16})[-1]
    assert done.record["memory_plan"] == "resident"


def test_a_plan_that_the_device_does_not_know_is_a_sentence_at_its_field(studio, monkeypatch):
    monkeypatch.setitem(memory.LADDERS, "cpu", ("resident", "swap", "fp8"))
    failed = ask(studio, options={"memory_plan": "offload"})[-1]
    assert failed.problem.field == "options.memory_plan"


PEAK = r"""
import re, sys
from pathlib import Path
from bootstrap import bootstrap
bootstrap()
import backend, events, params
options = {"steps": 2, "plan": False}
request = {"prompt": "x", "duration": float(sys.argv[1]), "seed": 7, "options": options}
*_, last = backend.get_backend().stream(params.parse_request("generate", request))
assert isinstance(last, events.Done), last
# Not ru_maxrss, which starts at what the process that started this one held.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is there on Linux only")
@pytest.mark.parametrize(("seconds", "most_mb"), [(240, 2_400), pytest.param(600, 3_400, marks=pytest.mark.long)])
def test_long_songs_run_in_bounded_memory(seconds, most_mb):
    command = [sys.executable, "-c", PEAK, str(seconds)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak = int(result.stdout.split()[-1])
    print(f"{seconds} s: {peak:,} MB")
    assert peak < most_mb
