"""Audio to latents and back through the pipeline's VAE, tile by tile, so that a job can be stopped between two of them.

Shapes: n samples (48,000 a second), T latent frames (25 a second), C latent channels (64 in the real model).
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from events import Progress, first_line, is_out_of_memory

if TYPE_CHECKING:
    import torch

REFERENCE_SECONDS = 30  # the timbre encoder was trained on 10 s each from a reference's front, middle and back
LEAST_SOURCE_FRAMES = 128  # upstream never shows the transformer less than 5.12 s of a source
REFUSING_DEVICE = "mps"
MPS_MOST_SAMPLES = 65_536  # before macOS 15.1 a convolution on Apple's GPU refuses longer outputs
# How far a block's three residual units and the outer convolution see to each side, in values at their own rate.
SEEN_BY_UNITS, SEEN_BY_OUTER = 39, 3
PIECE_FLOATS = 2**20  # larger tensors leave a processor's caches, and Linux clears their memory for each operation

# Copies on the processor of VAEs whose device refused a tile, and the device's message.
_stand_ins: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


def silence(pipe: Any, frames: int) -> torch.Tensor:
    """Return the model's own silence [1, frames, C]; literal zeros are out of its distribution and drone."""
    latents = pipe.condition_encoder.silence_latent.to(device=pipe._execution_device, dtype=pipe.transformer.dtype)
    return latents.repeat(1, math.ceil(frames / latents.shape[1]), 1)[:, :frames]


def frames_for(pipe: Any, seconds: float) -> int:
    return math.ceil(seconds * pipe.latents_per_second)


def skip_idle_units(vae: Any) -> None:
    """Make residual units that add nothing return their input, which saves most of a small VAE's time."""
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit

    for unit in vae.modules():
        if isinstance(unit, OobleckResidualUnit) and not (unit.conv2.weight_g.any() or unit.conv2.bias.any()):
            unit.forward = _unchanged


def _unchanged(hidden_state: torch.Tensor) -> torch.Tensor:
    return hidden_state


def use_pieces(vae: Any) -> None:
    """Make `vae` compute its widest layers, those at the full sample rate, piece by piece on a processor.

    Each piece sees as much of its neighbours as these layers reach, so the result differs from the stock VAE's only by
    rounding. Decoding is about twice as fast, and memory no longer grows with the tile. Channels that carry nothing are
    left out, which `skip_idle_units` must come before.
    """
    import torch

    encoder, decoder = vae.encoder, vae.decoder
    first, last = encoder.block[0], decoder.block[-1]
    head = torch.nn.Sequential(encoder.conv1, first)
    tail = torch.nn.Sequential(last, decoder.snake1, decoder.conv2)
    live = _live_channels(first, _gains(encoder.conv1), _gains(first.conv1).transpose(0, 1))
    encoder.forward = functools.partial(_encoded, encoder, _narrowed(head, HEAD, live))
    live = _live_channels(last, _gains(last.conv_t1).transpose(0, 1), _gains(decoder.conv2).transpose(0, 1))
    decoder.forward = functools.partial(_decoded, decoder, _narrowed(tail, TAIL, live))


# The parameters of the layers at the full sample rate, and in which of their dimensions the channels lie.
HEAD = {
    **{"0.weight_g": 0, "0.weight_v": 0, "0.bias": 0},
    **{"1.snake1.alpha": 1, "1.snake1.beta": 1, "1.conv1.weight_v": 1},
}
TAIL = {"0.conv_t1.weight_v": 1, "0.conv_t1.bias": 0, "1.alpha": 1, "1.beta": 1, "2.weight_v": 1}


def _gains(layer: Any) -> torch.Tensor:
    """Return a weight-normed layer's weight, apart from the scale of its rows."""
    return layer.weight_v * layer.weight_g


def _live_channels(block: Any, made: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Return the channels that one layer makes or the other reads; all of them if `block` has a working unit."""
    import torch

    if not all(unit.forward is _unchanged for unit in (block.res_unit1, block.res_unit2, block.res_unit3)):
        return torch.arange(len(made))
    return (made.flatten(1).any(dim=1) | read.flatten(1).any(dim=1)).nonzero()[:, 0]


def _narrowed(layers: Any, dims: dict[str, int], live: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    name, dim = next(iter(dims.items()))
    if len(live) == layers.get_parameter(name).shape[dim]:
        return layers

    def compute(x: torch.Tensor) -> torch.Tensor:
        channels = live.to(x.device)
        chosen = {name: layers.get_parameter(name).index_select(dim, channels) for name, dim in dims.items()}
        # oneDNN would think for seconds about each new length of a convolution with so few channels.
        enabled, *_ = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
        try:
            return torch.func.functional_call(layers, chosen, (x,))
        finally:
            torch.backends.mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)

    return compute


def _decoded(decoder: Any, tail: Callable, latents: torch.Tensor) -> torch.Tensor:
    """Return the samples [B, 2, n] of `latents` [B, C, T]; `tail` computes from the last block on."""
    x = decoder.conv1(latents)
    for block in decoder.block[:-1]:
        x = block(x)
    return _in_pieces(tail, x, decoder.conv2.in_channels, decoder.block[-1].conv_t1.stride[0], 1)


def _encoded(encoder: Any, head: Callable, samples: torch.Tensor) -> torch.Tensor:
    """Return the latents' means and spreads [B, 2C, T] of `samples` [B, 2, n]; `head` computes the first block."""
    x = _in_pieces(head, samples, encoder.conv1.out_channels, 1, encoder.block[0].conv1.stride[0])
    for block in encoder.block[1:]:
        x = block(x)
    return encoder.conv2(encoder.snake1(x))


def _in_pieces(
    compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, channels: int, up: int, down: int
) -> torch.Tensor:
    """Return `compute` of `x` [B, C, n], `channels` wide inside, which makes `up` values of each `down` of `x`."""
    import torch

    if x.device.type != "cpu":
        return compute(x)
    hop = max(up, down)
    frames, seen = max(PIECE_FLOATS // (channels * hop), 1), math.ceil((SEEN_BY_UNITS + SEEN_BY_OUTER) / hop) + 2
    parts, length = [], math.ceil(x.shape[-1] / down)
    for start in range(0, length, frames):
        first, end = max(start - seen, 0), start + frames
        made = compute(x[..., first * down : (end + seen) * down])
        parts.append(made[..., (start - first) * up : None if end >= length else (end - first) * up])
    return torch.cat(parts, dim=-1)


def use_tiles(vae: Any, short: bool = False) -> None:
    """Make `vae` work tile by tile with no more overlap than its layers see: the stock VAE's is 64 frames of 512.

    `short` tiles are the longest whose convolutions Apple's GPU accepts before macOS 15.1.
    """
    vae.enable_tiling()
    hop, overlap = vae.hop_length, seen_frames(vae.config.downsampling_ratios)
    if short:
        vae.tile_latent_min_length = max(MPS_MOST_SAMPLES // hop, 2 * overlap + 1)
        vae.tile_sample_min_length = vae.tile_latent_min_length * hop
    vae.tile_latent_overlap, vae.tile_sample_overlap = overlap, overlap * hop


def seen_frames(strides: Sequence[int]) -> int:
    """Return how many frames to each side a VAE sees of one: in its decoder, which sees more than its encoder."""
    rate, seen = 1, SEEN_BY_OUTER
    for stride in reversed(strides):
        seen += (1 + SEEN_BY_UNITS / stride) / rate
        rate *= stride
    return math.ceil(seen + SEEN_BY_OUTER / rate)


def encode(pipe: Any, samples: np.ndarray, stage: str) -> Generator[Progress, None, torch.Tensor]:
    """Return the latents [1, T, C] of `samples` [2, n] (48 kHz), zero-padded; yields the progress of `stage`."""
    import torch

    tiles, size, overlap = [], pipe.vae.tile_sample_min_length, pipe.vae.tile_sample_overlap
    padding = -samples.shape[-1] % int(pipe.sample_rate / pipe.latents_per_second)
    waveform = torch.nn.functional.pad(torch.from_numpy(samples), (0, padding))
    for number, total, latents in _tiled(pipe, "encode", waveform[None], size, overlap):
        tiles.append(latents.transpose(1, 2).to(pipe._execution_device, pipe.transformer.dtype))
        yield Progress(stage, number, total)
    return torch.cat(tiles, dim=1)


def decode_latents(pipe: Any, latents: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, samples [2, n]) of `latents` [1, T, C], float32 on the CPU.

    Tiles change the samples by up to 4e-7, and keep memory from growing with the song.
    """
    size, overlap = pipe.vae.tile_latent_min_length, pipe.vae.tile_latent_overlap
    for number, total, audio in _tiled(pipe, "decode", latents.transpose(1, 2), size, overlap):
        yield number, total, audio[0].float().cpu()


def _tiled(pipe: Any, method: str, x: torch.Tensor, size: int, overlap: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, result) of `x` [1, C, n], tile by tile, without their overlap."""
    length = x.shape[-1]
    step = size - 2 * overlap if length > size else length
    starts = range(0, length, step)
    for number, start in enumerate(starts, 1):
        end = min(start + step, length)
        first, last = max(start - overlap, 0), min(end + overlap, length)
        made = _compute(pipe, method, x[..., first:last])
        scale = made.shape[-1] / (last - first)
        yield number, len(starts), made[..., round((start - first) * scale) : round((end - first) * scale)]


def refusal(pipe: Any) -> str:
    """Return the message with which Apple's GPU refused a tile, so that the VAE works on the processor now; else ""."""
    return _stand_ins.get(pipe.vae, (None, ""))[1]


def _compute(pipe: Any, method: str, tile: torch.Tensor) -> torch.Tensor:
    """Return the VAE's `method` ("encode" or "decode") of a tile, on the processor where Apple's GPU refuses it."""
    import torch

    vae, _ = _stand_ins.get(pipe.vae, (pipe.vae, ""))
    place = pipe._execution_device if vae is pipe.vae else "cpu"
    try:
        with torch.no_grad():
            made = getattr(vae, method)(tile.to(place, vae.dtype))
        # `latent_dist.sample()` would draw from the global generator; a decoder's `sample` is its output.
        return made.latent_dist.mode() if method == "encode" else made.sample
    except RuntimeError as error:
        if vae is not pipe.vae or place.type != REFUSING_DEVICE or is_out_of_memory(error):
            raise
        said = first_line(error)
    # A copy, because the pipeline asks its parts where it runs; torch cannot deep-copy weight-normed modules.
    copy = type(vae).from_config(vae.config).to(vae.dtype).eval().requires_grad_(False)
    copy.load_state_dict({name: tensor.cpu() for name, tensor in vae.state_dict().items()})
    _stand_ins[vae] = copy, said
    return _compute(pipe, method, tile)


def long_enough(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return a source's latents [1, T, C], followed by the model's silence up to the least length (upstream)."""
    import torch

    missing = LEAST_SOURCE_FRAMES - latents.shape[1]
    return torch.cat([latents, silence(pipe, missing)], dim=1) if missing > 0 else latents


def reference_latents(pipe: Any, samples: np.ndarray) -> Generator[Progress, None, torch.Tensor]:
    """Return timbre latents [1, 750, C] of a reference [2, n] at 48 kHz, repeated if it is shorter than 30 s."""
    part, whole = 10 * pipe.sample_rate, REFERENCE_SECONDS * pipe.sample_rate
    if samples.shape[-1] < whole:
        samples = np.tile(samples, (1, math.ceil(whole / samples.shape[-1])))
    length = samples.shape[-1]
    # At fixed places, as in diffusers; upstream draws them at random.
    slices = [samples[:, start : start + part] for start in (0, length // 3, length - part)]
    return (yield from encode(pipe, np.concatenate(slices, axis=1), "reading"))
