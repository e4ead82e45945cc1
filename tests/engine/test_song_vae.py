"""The VAE in pieces, with its live channels alone and in tight tiles: the stock VAE's answer, with less work."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import AutoencoderOobleck

import song_vae
from tools import bench_models

CHANNELS = 4
# Sound and latents of up to 1: float32 rounds convolutions of two lengths apart by 4e-7 (measured with SSE, AVX2 and
# AVX-512), and a piece that lacks a neighbour's sample differs by more than 1e-3.
TOLERANCE = 1e-5


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
    song_vae.use_pieces(ours)
    return stock, ours


def audio_of(vae, frames):
    torch.manual_seed(1)
    return 0.1 * torch.randn(1, 2, frames * vae.hop_length)


# The real VAE's outer stride, an odd one, and the built-in engine's; lengths that end within a piece and at its end.
@pytest.mark.parametrize("strides", [[2, 4, 6], [3, 4], [60, 8, 4]])
@pytest.mark.parametrize("frames", [1, pytest.param(40, marks=pytest.mark.numbers), 64])
def test_pieces_give_what_the_whole_gives(strides, frames, monkeypatch):
    monkeypatch.setattr(song_vae, "PIECE_FLOATS", 8 * strides[0] * strides[1] * 16)
    stock, ours = vaes(strides)
    samples = audio_of(stock, frames)
    latents = stock.encode(samples).latent_dist.mode()
    assert torch.allclose(ours.encode(samples).latent_dist.mode(), latents, atol=TOLERANCE)
    sound = stock.decode(latents).sample
    assert torch.allclose(ours.decode(latents).sample, sound, atol=TOLERANCE)


def test_pieces_take_less_memory(monkeypatch):
    monkeypatch.setattr(song_vae, "PIECE_FLOATS", 2**16)
    stock, ours = vaes([60, 8, 4])
    samples = audio_of(stock, 40)
    latents = stock.encode(samples).latent_dist.mode()
    for method, given in (("encode", samples), ("decode", latents)):
        calls = [functools.partial(getattr(vae, method), given) for vae in (stock, ours)]
        whole, pieces = map(bench_models.peak_bytes, calls)
        assert pieces < whole / 2


@pytest.mark.numbers
def test_channels_that_carry_nothing_are_left_out(monkeypatch):
    monkeypatch.setattr(song_vae, "PIECE_FLOATS", 8 * 60 * 16)
    stock, ours = vaes([60, 8, 4])
    stock.decoder.conv2.weight_v[:, 3:] = 0.0
    stock.decoder.block[-1].conv_t1.weight_v[:, 3:] = 0.0
    stock.encoder.conv1.weight_g[5:] = 0.0
    stock.encoder.block[0].conv1.weight_v[:, 5:] = 0.0
    for block in (stock.decoder.block[-1], stock.encoder.block[0]):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.conv2.weight_g.zero_()
            unit.conv2.bias.zero_()
    ours.load_state_dict(stock.state_dict())
    song_vae.skip_idle_units(ours)
    song_vae.use_pieces(ours)
    seen = []
    for layer in (ours.decoder.snake1, ours.encoder.block[0].snake1):
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape[1]))
    lengths = []
    ours.decoder.block[-1].conv_t1.register_forward_hook(
        lambda layer, inputs, _: lengths.append(inputs[0].shape[2])
    )
    samples = audio_of(stock, 40)
    latents = stock.encode(samples).latent_dist.mode()
    assert torch.allclose(ours.encode(samples).latent_dist.mode(), latents, atol=TOLERANCE)
    assert torch.allclose(ours.decode(latents).sample, stock.decode(latents).sample, atol=TOLERANCE)
    assert set(seen) == {5, 3}
    assert max(lengths) == 16 + 2 * 3  # pieces are no longer for that


# Stride by stride as the real VAE, as the built-in one, and as small as it gets.
@pytest.mark.parametrize(
    "strides",
    [
        pytest.param([2, 4, 4, 6, 10], marks=pytest.mark.numbers),
        *(pytest.param(strides, marks=pytest.mark.slow) for strides in ([60, 8, 4], [3, 4])),
    ],
)
def test_tiles_overlap_as_far_as_the_vae_sees(strides):
    vae, _ = vaes(strides)
    frames, hop = song_vae.seen_frames(strides), vae.hop_length
    latents = torch.randn(1, CHANNELS, 3 * frames, requires_grad=True)
    sound = vae.decode(latents).sample
    with torch.no_grad():
        part = vae.decode(latents[..., : 2 * frames]).sample[..., : frames * hop]
    assert torch.allclose(part, sound[..., : frames * hop], atol=TOLERANCE)
    sound[..., : frames * hop].sum().backward()
    reached = latents.grad.abs().sum(dim=(0, 1)).nonzero().max() + 1
    assert reached in (2 * frames - 1, 2 * frames)  # no tile computes more than it needs
    samples = audio_of(vae, 3 * frames)
    whole, part = (
        vae.encode(each).latent_dist.mode() for each in (samples, samples[..., : 2 * frames * hop])
    )
    assert torch.allclose(part[..., :frames], whole[..., :frames], atol=TOLERANCE)
