"""Random models of the real classes for tests: python -m tools.random_models writes the two language models in assets/.

A song passes through a random checkpoint exactly as through the real model, but does not sound like music. It has about
one million parameters, takes seconds to make, and always has the same bytes.

The weights are uniform draws from a private generator, scaled so that signals keep their size from layer to layer; the
global random state is neither read nor written. Two values are measured on the fresh VAE: the gains that bring a
decoded random latent to -23 dBFS and an encoded tone to a spread of one, and the latent of silence. They are rounded,
so that the last bit of another processor's arithmetic does not change the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_hub import INDEX
from model_weights import (
    LYRICS_VARIABLE,
    OPTIONAL_PARTS,
    PLANNER_VARIABLE,
    RANDOM_MODELS,
)
from models import quiet_libraries
from training.small_models import (
    ATTENTION,
    SILENCE_FRAMES,
    THINK,
    Family,
    make_tokenizer,
    qwen_shape,
    text_config,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

DECODED_DBFS = -26.0
"""RMS of a decoded latent of unit variance."""

# As few as still differ from each other. Half of the time of all songs of the tests goes into the VAE, whose layers at
# 48 kHz are this wide.
LATENT_CHANNELS = 2
DECODER_CHANNELS = 2
DOWNSAMPLING = (2, 4, 4, 6, 10)
SIZE = 96
TEXT_SIZE = 48
PLANNER_CODES = 1_000


def make_checkpoint(folder: Path, *, xl: bool = False) -> Path:
    """Write a tiny ACE-Step checkpoint in diffusers layout into `folder` and return it.

    By default it has the shape of the 2B models, whose conditions are as wide as the transformer; with `xl` that of the
    XL models, whose conditions are narrower. Equal arguments give equal bytes.
    """
    import torch
    from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler

    quiet_libraries()
    generator = torch.Generator("cpu").manual_seed(0)
    tokenizer = make_tokenizer()
    with torch.no_grad():
        vae, silence = _vae(generator)
        parts = _parts(generator, len(tokenizer), xl)
    parts["condition_encoder"].silence_latent = silence.expand(
        1, SILENCE_FRAMES, LATENT_CHANNELS
    ).contiguous()
    parts |= {"vae": vae, "tokenizer": tokenizer}
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    AceStepPipeline(**parts, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
    return folder


def make_relative(folder: Path, of: Path, kind: Literal["turbo", "base"]) -> Path:
    """Write a checkpoint of another kind into `folder` and return it: `of` with a transformer of its own.

    As the official ones, turbo has no parts for audio codes. Unlike theirs, base has a VAE of its own.
    """
    import torch
    from diffusers import AceStepTransformer1DModel, AutoencoderOobleck

    shutil.copytree(of, folder)
    place = folder / "transformer"
    config = AceStepTransformer1DModel.load_config(place)
    config |= {"is_turbo": kind == "turbo", "model_version": kind}
    generator = torch.Generator("cpu").manual_seed(len(kind))
    with torch.no_grad():
        filled(lambda: AceStepTransformer1DModel.from_config(config), generator).save_pretrained(
            place
        )
        if kind == "base":
            vae = AutoencoderOobleck.from_pretrained(folder / "vae")
            vae.decoder.conv2.weight_g *= 0.5
            vae.save_pretrained(folder / "vae")
    if kind == "turbo":
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        for part in OPTIONAL_PARTS:
            index[part] = [None, None]
            shutil.rmtree(folder / part)
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def filled(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Build a model without drawing from the global generator, then fill it with values drawn from `generator`."""
    import torch

    with torch.device("meta"):
        model = build()
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(draw(model, name, parameter, generator))
    return model


# --- the parts ----------------------------------------------------------------------------------------------------


def _parts(generator: torch.Generator, vocabulary: int, xl: bool) -> dict[str, nn.Module]:
    """Build all models but the VAE."""
    from diffusers import AceStepTransformer1DModel
    from diffusers.pipelines import ace_step
    from transformers import Qwen3Model

    condition_size = 64 if xl else SIZE
    conditions = {
        "hidden_size": condition_size,
        "intermediate_size": 2 * condition_size,
        "text_hidden_dim": TEXT_SIZE,
        "timbre_hidden_dim": LATENT_CHANNELS,
        **ATTENTION,
        "head_dim": 16,
        "num_lyric_encoder_hidden_layers": 2,
        "num_timbre_encoder_hidden_layers": 2,
    }
    transformer = {
        "hidden_size": SIZE,
        "intermediate_size": 2 * SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64 if xl else 48,  # the XL models' queries are wider than their hidden states
        "in_channels": 3 * LATENT_CHANNELS,
        "audio_acoustic_hidden_dim": LATENT_CHANNELS,
        "encoder_hidden_size": condition_size,
        "is_turbo": False,
        "model_version": "sft",
    }
    codes = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "audio_acoustic_hidden_dim": LATENT_CHANNELS,
        "head_dim": 16,
    }
    builds = {
        "text_encoder": lambda: Qwen3Model(
            text_config(vocabulary, TEXT_SIZE, layers=2, head_dim=16)
        ),
        "condition_encoder": lambda: ace_step.AceStepConditionEncoder(**conditions),
        "transformer": lambda: AceStepTransformer1DModel(**transformer),
        "audio_tokenizer": lambda: ace_step.AceStepAudioTokenizer(fsq_dim=48, **codes, **ATTENTION),
        "audio_token_detokenizer": lambda: ace_step.AceStepAudioTokenDetokenizer(
            **codes, **ATTENTION
        ),
    }
    # Drawn in this order.
    return {name: filled(build, generator) for name, build in builds.items()}


def _vae(generator: torch.Generator) -> tuple[nn.Module, torch.Tensor]:
    """Build the VAE and the latent of silence [1, 1, channels]."""
    import torch
    from diffusers import AutoencoderOobleck

    shape = {
        # The encoder's last layer gives a mean and a spread for each channel.
        "encoder_hidden_size": 2 * LATENT_CHANNELS,
        "downsampling_ratios": list(DOWNSAMPLING),
        "channel_multiples": [1, 2, 2, 4, 4],
        "decoder_channels": DECODER_CHANNELS,
        "decoder_input_channels": LATENT_CHANNELS,
        "audio_channels": 2,
        "sampling_rate": 48_000,
    }
    vae = filled(lambda: AutoencoderOobleck(**shape), generator)
    # Kernels whose taps sum to zero block constants: a steady offset would count as sound but be inaudible.
    last = vae.decoder.conv2
    last.weight_v -= last.weight_v.mean(dim=2, keepdim=True)
    latent = _uniform((1, LATENT_CHANNELS, 128), 1.0, generator)
    last.weight_g *= _rounded(10 ** (DECODED_DBFS / 20) / vae.decode(latent).sample.std())

    mean, spread = vae.encoder.conv2.weight_g.chunk(2)
    noise = _uniform((1, 2, 96_000), 0.1, generator)
    encoded = vae.encode(noise).latent_dist.mean[..., 8:-8]
    mean *= _rounded(1.0 / encoded.std(dim=2).mean())
    # A trained VAE is nearly sure of its latents: softplus(-4) is a spread of 0.02.
    spread *= 0.1
    vae.encoder.conv2.bias[LATENT_CHANNELS:] = -4.0
    silence = vae.encode(torch.zeros(1, 2, 96_000)).latent_dist.mean[0, :, 25]
    return vae, torch.round(silence * 256).div(256).reshape(1, 1, LATENT_CHANNELS)


def _rounded(value: torch.Tensor) -> float:
    return float(f"{float(value):.2g}")


# --- weights ------------------------------------------------------------------------------------------------------


def draw(
    model: nn.Module, name: str, parameter: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw one parameter: unit gain for maps, ones for norms, and enough of the rest that every input matters."""
    import torch

    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    shape = tuple(parameter.shape)
    kind = type(owner).__name__
    if kind.endswith("RMSNorm"):
        # The norms of queries and keys set how sharply attention picks; flat attention would average a BPM away.
        return torch.full(
            shape, 2.0 if owner_name.endswith(("q_norm", "k_norm", "norm_q", "norm_k")) else 1.0
        )
    if leaf == "weight_g":
        # The norm of a weight-normalised kernel whose outputs are as large as its inputs. A plain convolution is normed
        # per output channel, a transposed one per input channel, of whose `kernel` taps only kernel / stride fall on
        # one output sample. The two branches of a residual unit add up; the second is kept small.
        if kind == "ConvTranspose1d":
            return torch.full(
                shape, (owner.out_channels * owner.stride[0] / owner.in_channels) ** 0.5
            )
        return torch.full(shape, 0.5 if owner.kernel_size == (1,) else 1.0)
    if leaf in ("alpha", "beta"):
        # Snake adds sin(e^alpha x)^2 / e^beta; a large beta keeps the VAE near linear, else its offset drowns the song.
        return _uniform(shape, 0.3, generator) + (1.0 if leaf == "beta" else 0.0)
    if leaf == "bias":
        spread = 0.02 if kind.startswith("Conv") else 0.1
    elif leaf == "scale_shift_table":
        spread = 0.3
    elif kind == "Embedding" or leaf in ("special_token", "special_tokens", "null_condition_emb"):
        spread = 1.0
    elif kind == "ConvTranspose1d":
        spread = (shape[0] * shape[2] / owner.stride[0]) ** -0.5
    else:
        spread = parameter[0].numel() ** -0.5
    return _uniform(shape, spread, generator)


def _uniform(shape: tuple[int, ...], spread: float, generator: torch.Generator) -> torch.Tensor:
    """Draw uniformly around zero with standard deviation `spread`: equal on every processor, unlike normal draws."""
    import torch

    edge = 3**0.5 * spread
    return torch.empty(shape).uniform_(-edge, edge, generator=generator)


# --- tiny language models -----------------------------------------------------------------------------------------
# Qwen's real classes, tokenizer rules and chat templates with seeded weights: "qwen2" stands in for the songwriter,
# "qwen3" with audio codes for the planner. They write nonsense, but every token takes the real path.


def make_language_model(folder: Path, *, family: Family, audio_codes: int = 0) -> Path:
    """Write a tiny causal language model with its tokenizer into `folder` and return it.

    Its tokens are those of a byte-level BPE, <|endoftext|>, <|im_start|>, <|im_end|>, then <think>, </think> and
    <|audio_code_0|> to <|audio_code_N-1|> for N = `audio_codes`. Equal arguments give equal bytes.
    """
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

    quiet_libraries()
    tokenizer = make_tokenizer(
        family, (*THINK, *(f"<|audio_code_{number}|>" for number in range(audio_codes)))
    )
    pad = tokenizer.pad_token_id
    eos = tokenizer.eos_token_id
    shape = qwen_shape(len(tokenizer), TEXT_SIZE, layers=2)
    # If input and output shared one matrix, a model without learnt layers would repeat its last token.
    shape |= {
        "bos_token_id": pad,
        "pad_token_id": None,
        "eos_token_id": eos,
        "tie_word_embeddings": False,
    }
    config = Qwen2Config(**shape) if family == "qwen2" else Qwen3Config(**shape, head_dim=16)
    with torch.no_grad():
        model = filled(
            lambda: AutoModelForCausalLM.from_config(config), torch.Generator("cpu").manual_seed(0)
        )
    # As with Qwen's own models, both ends stop a text.
    model.generation_config.update(eos_token_id=[eos, pad], pad_token_id=pad)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    make_language_model(RANDOM_MODELS[PLANNER_VARIABLE], family="qwen3", audio_codes=PLANNER_CODES)
    make_language_model(RANDOM_MODELS[LYRICS_VARIABLE], family="qwen2")


if __name__ == "__main__":
    main()
