"""Layers compiled on request, in the background or ahead of time: at any length, with the plain code's result."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import backend
import song_attention
import song_compilation
from tests.engine.songs import samples_of, song
from tests.program import ROOT
from tests.waiting import until
from tools import bench_models


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    made = bench_models.build("small", 3)
    made.compiled = song_compilation.Compiled(made)
    return made


SETTINGS = [
    ("1", True, "has no effect on ZeroGPU"),
    ("someone/layers", False, "names compiled layers for ZeroGPU"),
    ("someone/layers", True, "compiled layers of someone/layers are not used"),
]


@pytest.mark.parametrize(("asked", "on_zerogpu", "said"), SETTINGS)
def test_an_unusable_setting_is_a_warning_and_changes_nothing(
    monkeypatch, caplog, asked, on_zerogpu, said
):
    made = bench_models.build("small", 1)
    monkeypatch.setenv("ACE_STUDIO_COMPILE", asked)
    monkeypatch.setattr(song_compilation, "on_zerogpu", lambda: on_zerogpu)
    song_compilation.set_up(made)
    assert said in caplog.text and not hasattr(made, "compiled")


AHEAD = r"""
import logging, sys
from pathlib import Path
from tests.engine.zerogpu_studio import patch_torch
patch_torch()
import huggingface_hub, spaces, torch
import song_attention, song_compilation
from tools import bench_models, compile_layers

folder = Path(sys.argv[1])
torch.manual_seed(0)
made = bench_models.build("small", 4)
compile_layers.write(made, folder, (1,))
huggingface_hub.snapshot_download = lambda repo_id, **_: folder
song_compilation.on_zerogpu = lambda: True
song_compilation.set_up(made)

def differ(frames, takes=1, guided=True):
    inputs = bench_models.inputs_of(made, frames, takes)
    stock = bench_models.stock_step(made, inputs, guided)
    return float((bench_models.studio_step(made, inputs, guided) - stock).abs().max())

# Every layer has weights of its own; in turn, at three lengths, guided and not.
for _ in range(2):
    for frames in (1026, 1500, 3000):
        assert differ(frames) < 1e-5 and differ(frames, guided=False) < 1e-5
assert len(made.compiled._layers) == 2 * len(made.layers)
# More takes than were compiled, short songs and LoRAs get the plain code.
for rows, tokens, takes in ((4, 750, 2), (2, 511, 1), (2, 640, 1)):
    assert made.compiled.pick(rows, tokens, takes) is song_attention.compute_layer
with made.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None):
    assert made.compiled.pick(2, 750, 1) is song_attention.compute_layer
# A package that is damaged costs no song.
for package in folder.rglob("*.pt2"):
    package.write_bytes(b"no package")
song_compilation.set_up(made)
assert differ(1500) < 1e-5 and made.compiled._broken
print("all equal")
"""


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_packages_compiled_ahead_of_time_compute_every_layer_with_its_own_weights(tmp_path):
    """In a process of its own, which makes `spaces` believe that torch is built for CUDA."""
    command = [sys.executable, "-c", AHEAD, str(tmp_path)]
    environ = {**os.environ, "ACE_STUDIO_COMPILE": "someone/layers"}
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["all equal"], result.stderr[-3000:]
    assert "The compiled layers cannot be used" in result.stderr


def differ(transformer, frames: int) -> float:
    """Return how far a guided step is from the stock transformer's."""
    inputs = bench_models.inputs_of(transformer, frames, 1)
    sides = (
        side(transformer, inputs, True)
        for side in (bench_models.studio_step, bench_models.stock_step)
    )
    return float(torch.sub(*sides).abs().max())


def test_what_is_changed_by_hooks_is_not_compiled(transformer):
    compiled = transformer.compiled
    compiled._compiled[2, 1] = True
    assert compiled.pick(2, 513, 1) is compiled._layer
    with transformer.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None):
        assert compiled.pick(2, 513, 1) is song_attention.compute_layer
    assert compiled.pick(2, 513, 1) is compiled._layer


def test_songs_do_not_need_a_compiler(transformer, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no C++ compiler was found\nand so on")

    compiled = transformer.compiled
    monkeypatch.setattr(compiled, "_layer", fail)
    assert differ(transformer, 1500) < 1e-5
    compiled.warm_up().join()
    assert "The layers are not compiled: no C++ compiler was found" in caplog.text
    assert differ(transformer, 1500) < 1e-5
    assert compiled.warm_up() is None


@pytest.mark.matrix
def test_a_studio_compiles_after_its_first_song_and_for_every_length(monkeypatch, tiny, output):
    monkeypatch.setenv("ACE_STUDIO_MODEL", str(tiny))
    songs = []
    for asked in ("", "1"):
        monkeypatch.setenv("ACE_STUDIO_COMPILE", asked)
        studio = backend.Backend()
        monkeypatch.setattr(backend, "_backend", studio)
        songs.append(song(studio, duration=45))
    transformer = studio.models.pipeline().transformer
    compiled = transformer.compiled
    until(lambda: compiled._compiled, 240)
    songs.append(song(studio, duration=45))
    plain, first, later = (samples_of(each)[0] for each in songs)
    assert np.array_equal(plain, first) and np.allclose(plain, later, atol=1e-3)
    # Shorter songs, whole blocks, and more takes are not what it was compiled for.
    assert compiled.pick(2, 513, 1) is not song_attention.compute_layer
    for rows, tokens, takes in ((2, 511, 1), (2, 640, 1), (4, 513, 2)):
        assert compiled.pick(rows, tokens, takes) is song_attention.compute_layer
    with torch._dynamo.config.patch(error_on_recompile=True):
        for frames in (1000, 1026, 1280, 1500, 1537, 3000):
            assert differ(transformer, frames) < 1e-5
