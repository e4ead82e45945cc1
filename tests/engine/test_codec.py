"""The VAE's widest layers piece by piece: the stock VAE's answer, with less memory."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import AutoencoderOobleck

import codec
from tools import bench_loop

CHANNELS = 4


def vaes(strides):
    """Return the same VAE twice, as diffusers ships it and in pieces."""
    torch.manual_seed(0)
    shape = {
        "encoder_hidden_size": 2 * CHANNELS,
        "downsampling_ratios": strides,
        "channel_multiples": [2] * len(strides),
        "decoder_channels": 8,
        "decoder_input_channels": CHANNELS,
        "audio_channels": 2,
    }
    stock, ours = (AutoencoderOobleck(**shape).eval().requires_grad_(False) for _ in range(2))
    ours.load_state_dict(stock.state_dict())
    codec.use_pieces(ours)
    return stock, ours


def audio_of(vae, frames):
    torch.manual_seed(1)
    return 0.1 * torch.randn(1, 2, frames * vae.hop_length)


# The real VAE's outer stride, an odd one, and the built-in engine's; lengths that end within a piece and at its end.
@pytest.mark.parametrize("strides", [[2, 4, 6], [3, 4], [60, 8, 4]])
@pytest.mark.parametrize("frames", [1, 40, 64])
def test_pieces_give_what_the_whole_gives(strides, frames, monkeypatch):
    monkeypatch.setattr(codec, "PIECE_FLOATS", 8 * strides[0] * strides[1] * 16)
    stock, ours = vaes(strides)
    samples = audio_of(stock, frames)
    latents = stock.encode(samples).latent_dist.mode()
    assert torch.allclose(ours.encode(samples).latent_dist.mode(), latents, atol=1e-5)
    sound = stock.decode(latents).sample
    assert torch.allclose(ours.decode(latents).sample, sound, atol=1e-5)


def test_pieces_take_less_memory(monkeypatch):
    monkeypatch.setattr(codec, "PIECE_FLOATS", 2**16)
    stock, ours = vaes([60, 8, 4])
    samples = audio_of(stock, 40)
    latents = stock.encode(samples).latent_dist.mode()
    for method, given in (("encode", samples), ("decode", latents)):
        calls = [functools.partial(getattr(vae, method), given) for vae in (stock, ours)]
        whole, pieces = map(bench_loop.peak_bytes, calls)
        assert pieces < whole / 2
