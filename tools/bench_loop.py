"""A guided step of the song model: the studio's against the stock one. Called by python -m tools.bench loop.

The transformer has random weights, so that no download is needed, and the proportions of XL: half of the layers see 128
tokens to each side. Both sides compute the same inputs in turn. Printed are the ratio of their seconds with its spread
over the runs, the peak of memory above what was there before, what memory.py expects, and how far the results differ.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

import attention
import memory

# Dimensions of the transformer: the real ones, ones that a processor can carry, and ones for tests.
SHAPES = {
    "xl": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "heads": (32, 8),
        "head_dim": 128,
        "encoder": 2048,
        "channels": 64,
    },
    "middle": {
        "hidden_size": 512,
        "intermediate_size": 1944,
        "heads": (8, 2),
        "head_dim": 64,
        "encoder": 512,
        "channels": 64,
    },
    "small": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "heads": (4, 2),
        "head_dim": 16,
        "encoder": 48,
        "channels": 8,
    },
}
LAYERS = {"xl": 32, "middle": 8, "small": 4}
CONDITION_TOKENS, FRAMES_PER_SECOND = 600, 25


@dataclass
class Inputs:
    """What the loop gives the transformer in a step, for each take, before the second half of guidance is added."""

    latents: torch.Tensor
    context: torch.Tensor
    condition: attention.CachedCondition


def bench(shape: str, layers: int | None, seconds: list[float], runs: int) -> None:
    """Print a row for each length."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    transformer = build(shape, layers, device, dtype)
    name = torch.cuda.get_device_name(0) if device == "cuda" else device
    print(f"{name}, torch {torch.__version__}, {dtype}, {shape}, {len(transformer.layers)} layers, one guided step")
    print(
        f"{'seconds':>8}{'stock':>9}{'studio':>9}{'ratio':>8}{'spread':>14}"
        f"{'stock MB':>10}{'studio MB':>11}{'expected':>10}{'differ':>9}",
        flush=True,
    )
    for length in seconds:
        inputs = inputs_of(transformer, round(length * FRAMES_PER_SECOND), 1)
        sides = {"stock": lambda given=inputs: stock_step(transformer, given, True)}
        sides["studio"] = lambda given=inputs: studio_step(transformer, given, True)
        results = {side: step() for side, step in sides.items()}
        far = float((results["studio"] - results["stock"]).abs().max() / results["stock"].abs().max())
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(runs):
            for side, step in sides.items():
                times[side].append(_timed(step, device))
        inputs.condition = attention.CachedCondition(inputs.condition.states, inputs.condition.null, 1)
        peaks = {side: peak_bytes(step) / 1e6 for side, step in sides.items()}
        song = memory.Song(
            length, shape=memory.shape_of(transformer.config), wide=dtype == torch.float32, condition=CONDITION_TOKENS
        )
        expected = memory.song_bytes(song)
        ratios = [studio / stock for stock, studio in zip(*times.values(), strict=True)]
        stock, studio = (statistics.median(times[side]) for side in sides)
        print(
            f"{length:>8g}{stock:>8.2f}s{studio:>8.2f}s{statistics.median(ratios):>8.3f}"
            f"{f'{min(ratios):.3f}-{max(ratios):.3f}':>14}{peaks['stock']:>10.0f}{peaks['studio']:>11.0f}"
            f"{expected / 1e6:>10.0f}{far:>9.0e}",
            flush=True,
        )


def build(shape: str, layers: int | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Return a transformer in windows with random weights, made on the device itself."""
    from diffusers import AceStepTransformer1DModel

    sizes = dict(SHAPES[shape])
    (heads, key_heads), channels = sizes.pop("heads"), sizes.pop("channels")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = AceStepTransformer1DModel(
                num_hidden_layers=layers or LAYERS[shape],
                num_attention_heads=heads,
                num_key_value_heads=key_heads,
                encoder_hidden_size=sizes.pop("encoder"),
                audio_acoustic_hidden_dim=channels,
                in_channels=3 * channels,
                **sizes,
            )
    finally:
        torch.set_default_dtype(before)
    attention.use_windows(transformer)
    return transformer.eval().requires_grad_(False)


def inputs_of(transformer: Any, frames: int, takes: int) -> Inputs:
    """Return random inputs; the takes share their condition."""
    config, like = transformer.config, transformer.proj_out_conv.weight

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=like.device, dtype=like.dtype)

    states = noise(1, CONDITION_TOKENS, config.encoder_hidden_size)
    return Inputs(
        noise(takes, frames, config.audio_acoustic_hidden_dim),
        noise(takes, frames, 2 * config.audio_acoustic_hidden_dim),
        attention.CachedCondition(states, noise(1, 1, config.encoder_hidden_size), takes),
    )


@contextlib.contextmanager
def stock(transformer: Any) -> Iterator[None]:
    """Let `transformer` compute as diffusers ships it."""
    transformer.__class__ = type(transformer).__base__
    for layer in transformer.layers:
        layer.__class__ = type(layer).__base__
    try:
        yield
    finally:
        attention.use_windows(transformer)


def studio_step(transformer: Any, inputs: Inputs, guided: bool) -> torch.Tensor:
    """Return the velocities of a step of the studio's loop."""
    return call(transformer, inputs, inputs.condition, 1 + guided)


def stock_step(transformer: Any, inputs: Inputs, guided: bool) -> torch.Tensor:
    """Return the velocities of a step of the stock pipeline."""
    halves = 1 + guided
    with stock(transformer):
        return call(transformer, inputs, inputs.condition.rows(halves * len(inputs.latents)), halves)


def call(
    transformer: Any, inputs: Inputs, condition: torch.Tensor | attention.CachedCondition, halves: int
) -> torch.Tensor:
    """Return what `transformer` makes of the inputs, once or twice, under `condition`."""
    latents = torch.cat([inputs.latents] * halves)
    time_ = torch.full((len(latents),), 0.5, device=latents.device, dtype=latents.dtype)
    with torch.no_grad():
        return transformer(
            hidden_states=latents,
            timestep=time_,
            timestep_r=time_,
            encoder_hidden_states=condition,
            context_latents=torch.cat([inputs.context] * halves),
            return_dict=False,
        )[0]


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes that torch held at once during `work`, above those held before it."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(changes, initial=0))


def _timed(step: Callable[[], Any], device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
