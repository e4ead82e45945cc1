"""How the built-in engine keeps time in songs that are longer than those it learnt from.

The latent of its silence carries a clock: the position in seconds, as circles at many tempos
(training/engine_latents.py). It learnt to find the beat in the first half minute of that clock, with
the whole of a short piece in view. So in longer songs the clock starts again with a bar, every 12 to
20 s, and attention reaches 10 s to each side. Without these two, songs lost their beat after half a
minute (docs/preview-engine.md).

Only a checkpoint with a file about its clock has one; nothing changes for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import song_codec
from model_weights import read_json

if TYPE_CHECKING:
    import torch

FILE = "clock.json"
USUAL_BEATS = 4  # of a bar


@dataclass(frozen=True)
class Clock:
    """How long the clock runs before it starts again, and how far attention sees to each side, in seconds."""

    shortest: float
    longest: float
    view: float


def set_up(pipe: Any, folder: Path) -> None:
    """Let `pipe` keep time as the checkpoint in `folder` needs it; its `clock` is None if it needs nothing."""
    values = read_json(folder / FILE)
    pipe.clock = None
    if values is None:
        return
    shortest, longest = values["restarts_after"]
    pipe.clock = Clock(shortest, longest, values["view"])
    tokens = pipe.clock.view * pipe.latents_per_second / pipe.transformer.config.patch_size
    pipe.transformer.view = round(tokens)


def silence(pipe: Any, frames: int, request: Any) -> torch.Tensor:
    """Return the model's silence [1, frames, C] for the song of `request`, whose tempo and metre the clock needs."""
    clock = getattr(pipe, "clock", None)
    if clock is None or frames <= round(clock.longest * pipe.latents_per_second):
        return song_codec.silence(pipe, frames)
    beats = int(request.time_signature or USUAL_BEATS)
    period = period_frames(clock, request.bpm, beats, pipe.latents_per_second)
    repeats = -(-frames // period)
    return song_codec.silence(pipe, period).repeat(1, repeats, 1)[:, :frames]


def period_frames(clock: Clock, bpm: int | None, beats: int, frames_per_second: float) -> int:
    """Return after how many frames the clock starts again: the even number that is nearest to whole bars.

    Even and odd frames have circles of different speeds. Without a tempo it is the longest time.
    """
    longest = clock.longest * frames_per_second
    if not bpm:
        return 2 * int(longest / 2)
    bar = beats * 60 / bpm * frames_per_second
    fewest = max(1, round(clock.shortest * frames_per_second / bar))
    most = max(fewest, int(longest / bar))
    bars = min(
        range(fewest, most + 1), key=lambda count: abs(count * bar / 2 - round(count * bar / 2))
    )
    return 2 * round(bars * bar / 2)
