"""Audio to latents and back through the pipeline's VAE, tile by tile; a job can be stopped between tiles.

Shapes: n samples (48,000 a second), T latent frames (25 a second), C latent channels (64 in the
real model).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from events import Progress, Stage, first_line, is_out_of_memory

if TYPE_CHECKING:
    import torch

# The timbre encoder was trained on 10 s each from a reference's start, middle and end.
REFERENCE_SECONDS = 30
LEAST_SOURCE_FRAMES = 128  # upstream never shows the transformer less than 5.12 s of a source
REFUSING_DEVICE = "mps"

# Copies on the processor of VAEs whose device refused a tile, and the device's message.
_stand_ins: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


def silence(pipe: Any, frames: int) -> torch.Tensor:
    """Return the model's own silence [1, frames, C]; the model has never seen literal zeros, which drone."""
    latents = pipe.condition_encoder.silence_latent
    latents = latents.to(device=pipe._execution_device, dtype=pipe.transformer.dtype)
    copies = math.ceil(frames / latents.shape[1])
    return latents.repeat(1, copies, 1)[:, :frames]


def frames_for(pipe: Any, seconds: float) -> int:
    return math.ceil(seconds * pipe.latents_per_second)


def encode(pipe: Any, samples: np.ndarray, stage: Stage) -> Generator[Progress, None, torch.Tensor]:
    """Return the latents [1, T, C] of `samples` [2, n] (48 kHz), zero-padded; yields the progress of `stage`."""
    import torch

    size = pipe.vae.tile_sample_min_length
    overlap = pipe.vae.tile_sample_overlap
    padding = -samples.shape[-1] % int(pipe.sample_rate / pipe.latents_per_second)
    waveform = torch.nn.functional.pad(torch.from_numpy(samples), (0, padding))
    tiles = []
    for number, total, latents in _tiled(pipe, "encode", waveform[None], size, overlap):
        tiles.append(latents.transpose(1, 2).to(pipe._execution_device, pipe.transformer.dtype))
        yield Progress(stage, number, total)
    return torch.cat(tiles, dim=1)


def decode_latents(pipe: Any, latents: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, samples [2, n]) of `latents` [1, T, C], float32 on the CPU.

    Tiling changes the samples by up to 4e-7 and keeps memory from growing with the song.
    """
    size = pipe.vae.tile_latent_min_length
    overlap = pipe.vae.tile_latent_overlap
    for number, total, audio in _tiled(pipe, "decode", latents.transpose(1, 2), size, overlap):
        yield number, total, audio[0].float().cpu()


def _tiled(
    pipe: Any, method: str, x: torch.Tensor, size: int, overlap: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, result) of `x` [1, C, n], tile by tile, without their overlap."""
    length = x.shape[-1]
    step = size - 2 * overlap if length > size else length
    starts = range(0, length, step)
    for number, start in enumerate(starts, 1):
        end = min(start + step, length)
        first = max(start - overlap, 0)
        last = min(end + overlap, length)
        result = _compute(pipe, method, x[..., first:last])
        scale = result.shape[-1] / (last - first)
        kept = slice(round((start - first) * scale), round((end - first) * scale))
        yield number, len(starts), result[..., kept]


def refusal(pipe: Any) -> str:
    """Return the message with which Apple's GPU refused a tile, after which the VAE works on the processor; else ""."""
    return _stand_ins.get(pipe.vae, (None, ""))[1]


def _compute(pipe: Any, method: str, tile: torch.Tensor) -> torch.Tensor:
    """Return the VAE's `method` ("encode" or "decode") of a tile, on the processor if Apple's GPU refuses it."""
    import torch

    vae, _ = _stand_ins.get(pipe.vae, (pipe.vae, ""))
    if vae is pipe.vae:
        device = pipe._execution_device
    else:
        device = torch.device("cpu")
    try:
        with torch.no_grad():
            result = getattr(vae, method)(tile.to(device, vae.dtype))
        # `latent_dist.sample()` would draw from the global generator; a decoder's `sample` is its
        # output.
        if method == "encode":
            return result.latent_dist.mode()
        return result.sample
    except RuntimeError as error:
        if vae is not pipe.vae or device.type != REFUSING_DEVICE or is_out_of_memory(error):
            raise
        message = first_line(error)
    move_to_processor(vae, message)
    return _compute(pipe, method, tile)


def move_to_processor(vae: Any, message: str) -> None:
    """Have the processor work in place of `vae` from now on, because of the `message` of its device."""
    _stand_ins[vae] = (on_processor(vae), message)


def on_processor(vae: Any) -> Any:
    """Return a copy, because the pipeline asks its parts where it runs."""
    # torch cannot deep-copy weight-normed modules
    copy = type(vae).from_config(vae.config).to(vae.dtype).eval().requires_grad_(False)
    copy.load_state_dict({name: tensor.cpu() for name, tensor in vae.state_dict().items()})
    return copy


def long_enough(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return a source's latents [1, T, C], padded with the model's silence to at least 128 frames (upstream)."""
    import torch

    missing = LEAST_SOURCE_FRAMES - latents.shape[1]
    if missing > 0:
        return torch.cat([latents, silence(pipe, missing)], dim=1)
    return latents


def reference_latents(pipe: Any, samples: np.ndarray) -> Generator[Progress, None, torch.Tensor]:
    """Return timbre latents [1, 750, C] of a reference [2, n] at 48 kHz, repeated if it is shorter than 30 s."""
    ten_seconds = 10 * pipe.sample_rate
    least = REFERENCE_SECONDS * pipe.sample_rate
    if samples.shape[-1] < least:
        samples = np.tile(samples, (1, math.ceil(least / samples.shape[-1])))
    length = samples.shape[-1]
    # At fixed places, as in diffusers; upstream draws them at random.
    starts = (0, length // 3, length - ten_seconds)
    parts = [samples[:, start : start + ten_seconds] for start in starts]
    return (yield from encode(pipe, np.concatenate(parts, axis=1), "reading"))
