"""The pipeline's VAE made faster without changing its results: idle units skipped, pieces, smaller tiles.

These functions replace methods of diffusers' modules (docs/architecture.md, "Reached into");
`models.build_pipeline` applies them. Shapes: n samples (48,000 a second), T latent frames (25 a
second), C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Before macOS 15.1 a convolution on Apple's GPU refuses longer outputs.
MPS_MOST_SAMPLES = 65_536
# How far a block's three residual units see to each side, in values at their own rate.
SEEN_BY_UNITS = 39
# The same of the outer convolution.
SEEN_BY_OUTER = 3
# Larger tensors do not fit a processor's caches, and Linux clears their memory for each operation.
PIECE_FLOATS = 2**20


def skip_idle_units(vae: Any) -> None:
    """Make residual units that add nothing return their input, which saves most of a small VAE's time."""
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit

    for unit in vae.modules():
        if not isinstance(unit, OobleckResidualUnit):
            continue
        adds = unit.conv2.weight_g.any() or unit.conv2.bias.any()
        if not adds:
            unit.forward = _unchanged


def _unchanged(hidden_state: torch.Tensor) -> torch.Tensor:
    return hidden_state


def use_pieces(vae: Any) -> None:
    """Make `vae` compute its widest layers, those at the full sample rate, piece by piece on a processor.

    Each piece sees as much of its neighbours as these layers reach, so the result differs from the
    stock VAE's only by rounding. Decoding is about twice as fast, and memory no longer grows with
    the tile. Channels that carry nothing are left out; to find them, call `skip_idle_units` first.
    """
    import torch

    encoder = vae.encoder
    first = encoder.block[0]
    head = torch.nn.Sequential(encoder.conv1, first)
    written = _gains(encoder.conv1)
    read = _gains(first.conv1).transpose(0, 1)
    live = _live_channels(first, written, read)
    encoder.forward = functools.partial(_encoded, encoder, _narrowed(head, HEAD, live))

    decoder = vae.decoder
    last = decoder.block[-1]
    tail = torch.nn.Sequential(last, decoder.snake1, decoder.conv2)
    written = _gains(last.conv_t1).transpose(0, 1)
    read = _gains(decoder.conv2).transpose(0, 1)
    live = _live_channels(last, written, read)
    decoder.forward = functools.partial(_decoded, decoder, _narrowed(tail, TAIL, live))


def use_stock_layers(vae: Any) -> None:
    """Undo `use_pieces`."""
    for part in (vae.encoder, vae.decoder):
        vars(part).pop("forward", None)


# The parameters of the layers at the full sample rate, and the dimension of each that counts
# channels.
HEAD = {
    "0.weight_g": 0,
    "0.weight_v": 0,
    "0.bias": 0,
    "1.snake1.alpha": 1,
    "1.snake1.beta": 1,
    "1.conv1.weight_v": 1,
}
TAIL = {
    "0.conv_t1.weight_v": 1,
    "0.conv_t1.bias": 0,
    "1.alpha": 1,
    "1.beta": 1,
    "2.weight_v": 1,
}


def _gains(layer: Any) -> torch.Tensor:
    """Return a weight-normed layer's weight, apart from the scale of its rows."""
    return layer.weight_v * layer.weight_g


def _live_channels(block: Any, written: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Return the channels that one layer writes or the other reads; all of them if a unit of `block` is not idle.

    `written` and `read` are the two layers' gains, with the channels first.
    """
    import torch

    units = (block.res_unit1, block.res_unit2, block.res_unit3)
    if not all(unit.forward is _unchanged for unit in units):
        return torch.arange(len(written))
    live = written.flatten(1).any(dim=1) | read.flatten(1).any(dim=1)
    return live.nonzero()[:, 0]


def _narrowed(
    layers: Any, dims: dict[str, int], live: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that computes `layers` with the `live` channels alone; `dims` is `HEAD` or `TAIL`."""
    import torch

    name, dim = next(iter(dims.items()))
    if len(live) == layers.get_parameter(name).shape[dim]:
        return layers

    def compute(x: torch.Tensor) -> torch.Tensor:
        channels = live.to(x.device)
        parameters = {
            name: layers.get_parameter(name).index_select(dim, channels)
            for name, dim in dims.items()
        }
        # oneDNN spends seconds planning each new length of a convolution with so few channels.
        enabled, *_ = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
        try:
            return torch.func.functional_call(layers, parameters, (x,))
        finally:
            torch.backends.mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)

    return compute


def _decoded(decoder: Any, tail: Callable, latents: torch.Tensor) -> torch.Tensor:
    """Return the samples [B, 2, n] of `latents` [B, C, T]; `tail` computes from the last block on."""
    x = decoder.conv1(latents)
    for block in decoder.block[:-1]:
        x = block(x)
    upsampling = decoder.block[-1].conv_t1.stride[0]
    return _in_pieces(tail, x, decoder.conv2.in_channels, up=upsampling, down=1)


def _encoded(encoder: Any, head: Callable, samples: torch.Tensor) -> torch.Tensor:
    """Return the latents' means and spreads [B, 2C, T] of `samples` [B, 2, n]; `head` computes the first block."""
    downsampling = encoder.block[0].conv1.stride[0]
    x = _in_pieces(head, samples, encoder.conv1.out_channels, up=1, down=downsampling)
    for block in encoder.block[1:]:
        x = block(x)
    return encoder.conv2(encoder.snake1(x))


def _in_pieces(
    compute: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    channels: int,
    up: int,
    down: int,
) -> torch.Tensor:
    """Return `compute` of `x` [B, C, n], piece by piece on a processor.

    `compute` is `channels` wide inside and turns every `down` values of `x` into `up` values.
    """
    import torch

    if x.device.type != "cpu":
        return compute(x)
    hop = max(up, down)
    frames = max(PIECE_FLOATS // (channels * hop), 1)
    seen = math.ceil((SEEN_BY_UNITS + SEEN_BY_OUTER) / hop) + 2
    length = math.ceil(x.shape[-1] / down)
    parts = []
    for start in range(0, length, frames):
        first = max(start - seen, 0)
        end = start + frames
        part = compute(x[..., first * down : (end + seen) * down])
        # The last piece keeps everything, including an incomplete frame.
        stop = None if end >= length else (end - first) * up
        parts.append(part[..., (start - first) * up : stop])
    return torch.cat(parts, dim=-1)


# --- tiles ----------------------------------------------------------------------------------------


def use_tiles(vae: Any, short: bool = False) -> None:
    """Make `vae` work tile by tile with no more overlap than its layers see.

    The stock VAE overlaps 64 frames of 512. `short` tiles are the longest whose convolutions
    Apple's GPU accepts before macOS 15.1.
    """
    vae.enable_tiling()
    hop = vae.hop_length
    overlap = seen_frames(vae.config.downsampling_ratios)
    if short:
        vae.tile_latent_min_length = max(MPS_MOST_SAMPLES // hop, 2 * overlap + 1)
        vae.tile_sample_min_length = vae.tile_latent_min_length * hop
    vae.tile_latent_overlap = overlap
    vae.tile_sample_overlap = overlap * hop


def has_short_tiles(vae: Any) -> bool:
    """Return whether Apple's GPU takes no longer tile of `vae`."""
    return vae.tile_sample_min_length <= MPS_MOST_SAMPLES


STOCK_OVERLAP = 64  # frames


def use_stock_tiles(vae: Any) -> None:
    """Undo `use_tiles`, but for tiles that are shorter."""
    vae.tile_latent_min_length = max(vae.tile_latent_min_length, 3 * STOCK_OVERLAP)
    vae.tile_latent_overlap = STOCK_OVERLAP
    vae.tile_sample_min_length = vae.tile_latent_min_length * vae.hop_length
    vae.tile_sample_overlap = STOCK_OVERLAP * vae.hop_length


def seen_frames(strides: Sequence[int]) -> int:
    """Return how many frames to each side a VAE's decoder sees, which sees more than its encoder."""
    rate = 1
    seen = float(SEEN_BY_OUTER)
    for stride in reversed(strides):
        seen += (1 + SEEN_BY_UNITS / stride) / rate
        rate *= stride
    return math.ceil(seen + SEEN_BY_OUTER / rate)
