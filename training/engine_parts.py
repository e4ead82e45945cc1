"""The parts of the built-in engine's song model: the real classes, small, and how they are called in training."""

from __future__ import annotations

import functools

import torch
from diffusers import AceStepTransformer1DModel
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from diffusers.pipelines.ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from torch import nn
from torch.nn import functional
from transformers import Qwen3Model

from song_clock import Clock
from training.engine_latents import FRAMES_PER_SECOND, LATENTS
from training.small_models import make_tokenizer, text_config

HIDDEN = 256
TEXT = 128
CODES = 96
CONSTANT = 4.0
PATCH = 2
"""How many frames a token of the transformer has."""
KEPT_TIME = Clock(shortest=12, longest=20, view=10)
"""After how many seconds the clock starts again in songs longer than that, and how far attention reaches in them."""


def build_parts(layers: int = 6, inner: int = 384, condition_inner: int = 256) -> nn.ModuleDict:
    """Return text encoder, condition encoder and transformer, which begins as one that says nothing."""
    attention = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_theta": 2000.0,
    }
    parts = {
        "text_encoder": Qwen3Model(text_config(len(make_tokenizer()), TEXT, 2, head_dim=32)),
        "condition_encoder": AceStepConditionEncoder(
            hidden_size=HIDDEN,
            intermediate_size=condition_inner,
            text_hidden_dim=TEXT,
            timbre_hidden_dim=LATENTS,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            **attention,
        ),
        "transformer": AceStepTransformer1DModel(
            hidden_size=HIDDEN,
            intermediate_size=inner,
            num_hidden_layers=layers,
            in_channels=3 * LATENTS,
            audio_acoustic_hidden_dim=LATENTS,
            encoder_hidden_size=HIDDEN,
            is_turbo=False,
            model_version="preview",
            layer_types=["full_attention", "sliding_attention"] * (layers // 2),
            sliding_window=32,
            **attention,
        ),
    }
    nn.init.normal_(parts["text_encoder"].embed_tokens.weight, std=0.5)
    _calm(parts["transformer"])
    return nn.ModuleDict(parts)


@torch.no_grad()
def _calm(transformer: nn.Module) -> None:
    """Start with small branches, open gates, no output and no effect of the time.

    The first of the hidden numbers is a constant, from which the cross-attention can ask the same of every frame.
    """
    nn.init.zeros_(transformer.proj_in_conv.weight[0])
    nn.init.constant_(transformer.proj_in_conv.bias[:1], CONSTANT)
    nn.init.zeros_(transformer.proj_out_conv.weight)
    nn.init.zeros_(transformer.proj_out_conv.bias)
    for layer in transformer.layers:
        for last in (layer.self_attn.to_out[0], layer.cross_attn.to_out[0], layer.mlp.down_proj):
            nn.init.normal_(last.weight, std=0.3 * last.weight.shape[1] ** -0.5)
        layer.cross_attn.to_q.weight[:, 1:] *= 0.1
        layer.scale_shift_table.zero_()
        layer.scale_shift_table[:, (2, 5)] = 1.0
    for embedding in (transformer.time_embed, transformer.time_embed_r):
        nn.init.zeros_(embedding.time_proj.weight)
        nn.init.zeros_(embedding.time_proj.bias)
    nn.init.zeros_(transformer.time_embed_r.linear_2.weight)


def build_codes() -> nn.ModuleDict:
    """Return the audio tokenizer and detokenizer: latents to five codes a second and back."""
    sizes = {
        "hidden_size": CODES,
        "intermediate_size": 2 * CODES,
        "audio_acoustic_hidden_dim": LATENTS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    tokenizer = AceStepAudioTokenizer(fsq_dim=CODES, **sizes)
    back = AceStepAudioTokenDetokenizer(**sizes)
    return nn.ModuleDict({"audio_tokenizer": tokenizer, "audio_token_detokenizer": back})


def quantize(tokenizer: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return what `tokenizer.tokenize` returns as quantized [B, T / 5, D], with a gradient.

    The class rounds, which has none; here the rounding is passed by (Bengio et al. 2013, arXiv:1308.3432). T must be a
    multiple of 5.
    """
    codes = unrounded(tokenizer, latents)
    with torch.autocast(codes.device.type, enabled=False):
        return projected(tokenizer, codes + (tokenizer.quantizer._quantize(codes) - codes).detach())


def projected(tokenizer: nn.Module, numbers: torch.Tensor) -> torch.Tensor:
    """Return codes, as the six numbers [..., 6] between -1 and 1 that they stand for, as the detokenizer reads them."""
    out = tokenizer.quantizer.project_out
    return functional.linear(numbers, out.weight, out.bias)


def unrounded(tokenizer: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return the six numbers [B, T / 5, 6] of each code before they are rounded to their levels."""
    windows = latents.unflatten(1, (-1, tokenizer.pool_window_size))
    pooled = tokenizer.attention_pooler(tokenizer.audio_acoustic_proj(windows))
    quantizer = tokenizer.quantizer
    levels = quantizer._levels.to(pooled.device).float()
    soft = 1 + 1 / (levels - 1)
    with torch.autocast(pooled.device.type, enabled=False):
        codes = functional.linear(
            pooled.float(), quantizer.project_in.weight, quantizer.project_in.bias
        )
        return torch.tanh(codes / soft) * soft


class Masked(AceStepAttnProcessor2_0):
    """Attention as the studio has it, for a batch of unequal prompts.

    Cross-attention skips their padding: `shared["mask"]` [B, 1, 1, L] is set before each forward pass. In songs whose
    clock starts again, layers without windows see no farther than `KEPT_TIME` says (song_attention.py).
    """

    VIEW = round(KEPT_TIME.view * FRAMES_PER_SECOND / PATCH)

    def __init__(self, shared: dict[str, torch.Tensor | None]):
        super().__init__()
        self.shared = shared

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        image_rotary_emb=None,
    ):
        if attn.is_cross_attention:
            attention_mask = self.shared["mask"]
        elif attention_mask is None and hidden_states.shape[1] > 2 * self.VIEW:
            attention_mask = _near(hidden_states.shape[1], self.VIEW, attn.to_q.weight.device)
        return super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        )


@functools.lru_cache(maxsize=4)
def _near(length: int, view: int, device: torch.device) -> torch.Tensor:
    """Return a mask [1, 1, L, L] that is true for the keys at most `view` tokens away."""
    places = torch.arange(length, device=device)
    return ((places[:, None] - places).abs() <= view)[None, None]


def mask_attention(transformer: nn.Module, shared: dict[str, torch.Tensor | None]) -> None:
    """Let the attention of `transformer` be `Masked`; `shared` holds the mask."""
    for layer in transformer.layers:
        layer.self_attn.set_processor(Masked(shared))
        layer.cross_attn.set_processor(Masked(shared))


def velocity_of(
    transformer: nn.Module,
    latents: torch.Tensor,
    times: torch.Tensor,
    states: torch.Tensor,
    context: torch.Tensor,
) -> torch.Tensor:
    """Return the velocity [B, T, C] of noisy `latents` at `times` [B], in float32."""
    return transformer(
        hidden_states=latents,
        timestep=times,
        timestep_r=times,
        encoder_hidden_states=states,
        context_latents=context,
        return_dict=False,
    )[0].float()
