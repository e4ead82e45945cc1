"""Audio to latents and back through the pipeline's VAE, tile by tile, so that a job can be stopped between two of them.

Shapes: n samples (48,000 a second), T latent frames (25 a second), C latent channels (64 in the real model).
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from events import first_line, is_out_of_memory

if TYPE_CHECKING:
    import torch

# The timbre encoder was trained on 30 s: 10 s from the front, the middle and the back of the reference.
REFERENCE_SECONDS = 30
# Upstream never shows the transformer less than 5.12 s of a source.
LEAST_SOURCE_FRAMES = 128
REFUSING_DEVICE = "mps"
# Before macOS 15.1 a convolution on Apple's GPU refuses outputs longer than this many samples.
MPS_MOST_SAMPLES = 65_536
# Frames that the VAE sees to each side of one.
SEEN_FRAMES = 9
# Samples that the layers at one rate see to each side of one: three residual units, and the VAE's outer convolution.
SEEN_SAMPLES = 39 + 3
# On a processor, tensors of more floats leave its caches, and Linux clears their memory anew for each operation.
PIECE_FLOATS = 2**20

# Copies on the processor of VAEs whose device refused a tile, and what it said.
_stand_ins: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


def silence(pipe: Any, frames: int) -> torch.Tensor:
    """Return the model's own silence [1, frames, C]; literal zeros are out of its distribution and drone."""
    latents = pipe.condition_encoder.silence_latent.to(device=pipe._execution_device, dtype=pipe.transformer.dtype)
    repeats = math.ceil(frames / latents.shape[1])
    return latents.repeat(1, repeats, 1)[:, :frames]


def frames_for(pipe: Any, seconds: float) -> int:
    """Return the latent frames that hold `seconds` of audio; the last one may reach past the end."""
    return math.ceil(seconds * pipe.latents_per_second)


def skip_idle_units(vae: Any) -> None:
    """Let the VAE's residual units that add nothing return what they get, which saves most of a small VAE's time."""
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit

    for unit in vae.modules():
        if isinstance(unit, OobleckResidualUnit) and not (unit.conv2.weight_g.any() or unit.conv2.bias.any()):
            unit.forward = _unchanged


def use_pieces(vae: Any) -> None:
    """Let `vae` compute its widest layers, those at the full sample rate, piece by piece on a processor.

    Each piece sees as much of its neighbours as these layers reach, so that the answer is the stock one's but for
    rounding. Decoding is about twice as fast, and memory no longer grows with the tile.
    """
    vae.decoder.forward = functools.partial(_decoded, vae.decoder)
    vae.encoder.forward = functools.partial(_encoded, vae.encoder)


def use_short_tiles(vae: Any) -> None:
    """Let `vae` work in the longest tiles of which no convolution is refused on Apple's GPU before macOS 15.1."""
    frames = MPS_MOST_SAMPLES // vae.hop_length
    vae.tile_latent_min_length, vae.tile_latent_overlap = frames, SEEN_FRAMES
    vae.tile_sample_min_length, vae.tile_sample_overlap = frames * vae.hop_length, SEEN_FRAMES * vae.hop_length


def _decoded(decoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the samples [B, 2, n] of `latents` [B, C, T]."""
    x = decoder.conv1(latents)
    for block in decoder.block[:-1]:
        x = block(x)
    block = decoder.block[-1]
    hop = block.conv_t1.stride[0]
    return _in_pieces(lambda part: decoder.conv2(decoder.snake1(block(part))), x, decoder.conv2.in_channels, hop, 1)


def _encoded(encoder: Any, samples: torch.Tensor) -> torch.Tensor:
    """Return the latents' means and spreads [B, 2C, T] of `samples` [B, 2, n]."""
    block = encoder.block[0]
    hop = block.conv1.stride[0]
    x = _in_pieces(lambda part: block(encoder.conv1(part)), samples, encoder.conv1.out_channels, 1, hop)
    for block in encoder.block[1:]:
        x = block(x)
    return encoder.conv2(encoder.snake1(x))


def _in_pieces(
    compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, channels: int, up: int, down: int
) -> torch.Tensor:
    """Return what `compute`, `channels` wide inside, makes of `x` [B, C, n]: `up` values for each `down` of it."""
    import torch

    if x.device.type != "cpu":
        return compute(x)
    hop = max(up, down)
    frames, seen = max(PIECE_FLOATS // (channels * hop), 1), math.ceil(SEEN_SAMPLES / hop) + 2
    parts, length = [], math.ceil(x.shape[-1] / down)
    for start in range(0, length, frames):
        first, end = max(start - seen, 0), start + frames
        made = compute(x[..., first * down : (end + seen) * down])
        parts.append(made[..., (start - first) * up : None if end >= length else (end - first) * up])
    return torch.cat(parts, dim=-1)


def _unchanged(hidden_state: torch.Tensor) -> torch.Tensor:
    return hidden_state


def refusal(pipe: Any) -> str:
    """Return what Apple's GPU said when it refused a tile, so that the VAE works on the processor now; else ""."""
    return _stand_ins.get(pipe.vae, (None, ""))[1]


def _compute(pipe: Any, method: str, tile: torch.Tensor) -> Any:
    """Return what the VAE's "encode" or "decode" makes of a tile, on the processor where Apple's GPU refuses it."""
    vae, _ = _stand_ins.get(pipe.vae, (pipe.vae, ""))
    place = pipe._execution_device if vae is pipe.vae else "cpu"
    try:
        return getattr(vae, method)(tile.to(place))
    except RuntimeError as error:
        if vae is not pipe.vae or place.type != REFUSING_DEVICE or is_out_of_memory(error):
            raise
        said = first_line(error)
    # A copy, because the pipeline asks its parts where it runs; torch cannot copy weights that are normed.
    copy = type(vae).from_config(vae.config).to(vae.dtype).eval().requires_grad_(False)
    copy.load_state_dict({name: tensor.cpu() for name, tensor in vae.state_dict().items()})
    _stand_ins[vae] = copy, said
    return _compute(pipe, method, tile)


def encode_samples(pipe: Any, samples: np.ndarray) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, latents [1, t, C]) of `samples` [2, n] (48 kHz); joined they cover n, padded with silence.

    Takes the mode of the posterior: `latent_dist.sample()` would draw from the global generator. Tiles as the VAE's
    own tiling does, but stops between two of them.
    """
    import torch

    vae = pipe.vae
    padding = -samples.shape[-1] % int(pipe.sample_rate / pipe.latents_per_second)
    waveform = torch.nn.functional.pad(torch.from_numpy(samples), (0, padding))
    tiles = _tiles(waveform.shape[-1], vae.tile_sample_min_length, vae.tile_sample_overlap)
    for number, (start, end, left, right) in enumerate(tiles, 1):
        with torch.no_grad():
            latents = _compute(pipe, "encode", waveform[None, :, start:end].to(vae.dtype)).latent_dist.mode()
        frames = latents.shape[-1]
        hop = (end - start) / frames
        latents = latents[:, :, round(left / hop) : frames - round(right / hop)]
        yield number, len(tiles), latents.transpose(1, 2).to(pipe._execution_device, pipe.transformer.dtype)


def join(latents: list[torch.Tensor]) -> torch.Tensor:
    """Return tiles [1, t, C] as one [1, T, C]."""
    import torch

    return torch.cat(latents, dim=1)


def long_enough(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return a source's latents [1, T, C] with the model's silence after them up to the least length (upstream)."""
    missing = LEAST_SOURCE_FRAMES - latents.shape[1]
    return join([latents, silence(pipe, missing)]) if missing > 0 else latents


def decode_latents(pipe: Any, latents: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, samples [2, n] float32 on the CPU) for `latents` [1, T, C]; joined they are the whole song.

    The tiles are those of the VAE's own tiling, which is exact to 4e-7 here, decoded one by one so that a cancelled
    song stops between two of them and memory does not grow with its length.
    """
    import torch

    vae = pipe.vae
    z = latents.transpose(1, 2).to(vae.dtype)
    tiles = _tiles(z.shape[-1], vae.tile_latent_min_length, vae.tile_latent_overlap)
    for number, (start, end, left, right) in enumerate(tiles, 1):
        with torch.no_grad():
            audio = _compute(pipe, "decode", z[:, :, start:end]).sample[0]
        hop = audio.shape[-1] / (end - start)
        audio = audio[:, round(left * hop) : audio.shape[-1] - round(right * hop)]
        yield number, len(tiles), audio.float().cpu()


def _tiles(length: int, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Return (start, end, left, right) windows over `length`, of which `left` and `right` are overlap to drop."""
    if length <= size:
        return [(0, length, 0, 0)]
    stride = size - 2 * overlap
    windows = []
    for core in range(0, length, stride):
        core_end = min(core + stride, length)
        start, end = max(0, core - overlap), min(length, core_end + overlap)
        windows.append((start, end, core - start, end - core_end))
    return windows


def reference_latents(pipe: Any, samples: np.ndarray) -> torch.Tensor:
    """Return timbre latents [1, 750, C] of a reference [2, n] at 48 kHz, repeated where it is shorter than 30 s.

    Three slices of 10 s, at the front, a third in and the back, at fixed places (diffusers; upstream draws them).
    """
    rate = pipe.sample_rate
    whole, slice_ = REFERENCE_SECONDS * rate, 10 * rate
    if samples.shape[-1] < whole:
        samples = np.tile(samples, (1, math.ceil(whole / samples.shape[-1])))
    length = samples.shape[-1]
    starts = (0, length // 3, length - slice_)
    samples = np.concatenate([samples[:, start : start + slice_] for start in starts], axis=1)
    return join([latents for _, _, latents in encode_samples(pipe, samples)])
