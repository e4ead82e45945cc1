"""Layers compiled by torch on request: after a first song, at any length, with the plain code's result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import attention
import backend
import compilation
from tests.engine.songs import samples_of, song
from tests.waiting import until
from tools import bench_loop


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    made = bench_loop.build("small", 3)
    made.compiled = compilation.Compiled(made)
    return made


def differ(transformer, frames: int, takes: int = 1, guided: bool = True) -> float:
    """Return how far a step is from the stock transformer's."""
    inputs = bench_loop.inputs_of(transformer, frames, takes)
    ours = bench_loop.studio_step(transformer, inputs, guided)
    return float((ours - bench_loop.stock_step(transformer, inputs, guided)).abs().max())


def test_what_is_changed_by_hooks_is_not_compiled(transformer):
    compiled = transformer.compiled
    compiled._compiled[2, 1] = True
    assert compiled.pick(2, 513, 1) is compiled._layer
    hook = transformer.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert compiled.pick(2, 513, 1) is attention.compute_layer
    hook.remove()
    assert compiled.pick(2, 513, 1) is compiled._layer


def test_where_nothing_can_be_compiled_songs_go_on(transformer, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no C++ compiler was found\nand so on")

    compiled = transformer.compiled
    monkeypatch.setattr(compiled, "_layer", fail)
    assert differ(transformer, 1500) < 1e-5
    compiled.warm_up().join()
    assert "The layers are not compiled: no C++ compiler was found" in caplog.text
    assert differ(transformer, 1500) < 1e-5
    assert compiled.warm_up() is None


@pytest.mark.slow
def test_a_studio_that_is_asked_to_compiles_after_its_first_song_and_for_every_length(monkeypatch, tiny, output):
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
    assert compiled.pick(2, 513, 1) is not attention.compute_layer
    for rows, tokens, takes in ((2, 511, 1), (2, 640, 1), (4, 513, 2)):
        assert compiled.pick(rows, tokens, takes) is attention.compute_layer
    with torch._dynamo.config.patch(error_on_recompile=True):
        for frames in (1000, 1026, 1280, 1500, 1537, 3000):
            assert differ(transformer, frames) < 1e-5
