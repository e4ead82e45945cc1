"""The preview engine that is trained: the sizes of its parts, built with the real classes, and how it is written out.

`FULL` is what a GPU trains: 2B-shaped (the conditions are as wide as the transformer), 32 latent channels, under 40 MB
in bfloat16. `SMALL` runs every line of the training on a CPU in seconds and sounds like nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import preview
from limits import SAMPLE_RATE

if TYPE_CHECKING:
    import torch
    from torch import nn

STAGES = {
    "vae": ("vae",),
    "codes": ("audio_tokenizer", "audio_token_detokenizer"),
    "song": ("text_encoder", "condition_encoder", "transformer"),
}
"""The stages of the training, in order, and the parts that each one trains."""

LARGEST_SHARD = "9MB"
SILENT_SECONDS = 2


@dataclass(frozen=True)
class Shape:
    """The sizes of the parts; `text` is the width of the text encoder, `hidden` that of the transformer."""

    latents: int = 32
    vae_multiples: tuple[int, ...] = (1, 1, 2, 4, 4)
    decoder_channels: int = 24
    text: int = 128
    text_layers: int = 3
    hidden: int = 256
    intermediate: int = 512
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    lyric_layers: int = 2
    timbre_layers: int = 1
    codes: int = 128


FULL = Shape()
SMALL = Shape(
    latents=8,
    vae_multiples=(1, 1, 2, 2, 4),
    decoder_channels=8,
    text=48,
    text_layers=1,
    hidden=64,
    intermediate=96,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    lyric_layers=1,
    timbre_layers=1,
    codes=48,
)
SHAPES = {"full": FULL, "small": SMALL}


def build_parts(shape: Shape, seed: int = 0) -> dict[str, nn.Module]:
    """Build the six trained parts with their classes' own starting weights, drawn from `seed`, float32 on the CPU.

    The transformer begins as one that says nothing: its last layer is zero.
    """
    import torch
    from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Model

    preview.quiet_libraries()
    attention = {
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
    }
    codes = {
        "hidden_size": shape.codes,
        "intermediate_size": 2 * shape.codes,
        "audio_acoustic_hidden_dim": shape.latents,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    text = preview.text_config(len(preview.make_tokenizer()), shape.text, shape.text_layers, head_dim=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "vae": AutoencoderOobleck(
                encoder_hidden_size=2 * shape.latents,  # its last layer gives a mean and a spread for each channel
                downsampling_ratios=list(preview.DOWNSAMPLING),
                channel_multiples=list(shape.vae_multiples),
                decoder_channels=shape.decoder_channels,
                decoder_input_channels=shape.latents,
                audio_channels=2,
                sampling_rate=SAMPLE_RATE,
            ),
            "audio_tokenizer": AceStepAudioTokenizer(fsq_dim=shape.codes, **codes),
            "audio_token_detokenizer": AceStepAudioTokenDetokenizer(**codes),
            "text_encoder": Qwen3Model(text),
            "condition_encoder": AceStepConditionEncoder(
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                text_hidden_dim=shape.text,
                timbre_hidden_dim=shape.latents,
                num_lyric_encoder_hidden_layers=shape.lyric_layers,
                num_timbre_encoder_hidden_layers=shape.timbre_layers,
                **attention,
            ),
            "transformer": AceStepTransformer1DModel(
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                in_channels=3 * shape.latents,
                audio_acoustic_hidden_dim=shape.latents,
                encoder_hidden_size=shape.hidden,
                is_turbo=False,
                model_version="sft",
                **attention,
            ),
        }
    torch.nn.init.zeros_(parts["transformer"].proj_out_conv.weight)
    torch.nn.init.zeros_(parts["transformer"].proj_out_conv.bias)
    return parts


def silence_of(vae: nn.Module) -> torch.Tensor:
    """Return the latent of silence [1, 1, channels]: the middle frame of what the VAE makes of zeros."""
    import torch

    device, dtype = vae.device, vae.dtype
    with torch.no_grad():
        encoded = vae.encode(
            torch.zeros(1, 2, SILENT_SECONDS * SAMPLE_RATE, device=device, dtype=dtype)
        ).latent_dist.mean
    return encoded[..., encoded.shape[-1] // 2].reshape(1, 1, -1).float()


def set_silence(condition_encoder: nn.Module, vae: nn.Module) -> None:
    """Give the condition encoder the VAE's silence [1, T, channels], as long as the real checkpoint's."""
    held = condition_encoder.silence_latent
    condition_encoder.silence_latent = silence_of(vae).to(held).expand(1, preview.SILENCE_FRAMES, -1).contiguous()


def export(parts: dict[str, nn.Module], folder: Path, card: str, facts: dict[str, Any]) -> Path:
    """Write a checkpoint in the real layout: bfloat16, safetensors in small shards, a card, and the list of hashes."""
    import torch
    from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler

    preview.quiet_libraries()
    set_silence(parts["condition_encoder"], parts["vae"])
    pipeline = AceStepPipeline(
        tokenizer=preview.make_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        # The plain `to`: that of the libraries warns of what it would do to parts that these are not.
        **{name: torch.nn.Module.to(part, "cpu", torch.bfloat16).eval() for name, part in parts.items()},
    )
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=LARGEST_SHARD)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    preview.write_manifest(folder)
    return folder


def facts_of(shape: Shape, parts: dict[str, nn.Module]) -> dict[str, Any]:
    """Return the sizes and the number of parameters of each part."""
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    return {"shape": asdict(shape), "parameters": counts}
