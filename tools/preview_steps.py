"""One training step of each stage: the batch, the forward pass through the real classes, the loss.

A stage is built once a run and called with the number of the step. It draws only from generators made from that number,
so that equal numbers and weights give equal losses.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from torch import nn
from torch.nn import functional

import preview
from limits import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS
from tools import preview_data as data
from tools.preview_shape import silence_of

WINDOWS = (2048, 1024, 512, 256, 128)


@dataclass(frozen=True)
class Plan:
    """The sizes of a stage's steps: `batch` crops of `frames` latent frames (in "song" about `batch` frames in all).

    The pool begins with `start` pieces (0: full), holds `pool` of the lengths `seconds`, in turn, and takes on a fresh
    one every `fresh_every` steps. `rate` is the learning rate after `warmup` steps, `decay` that of the weights,
    `average` the share that the running mean keeps of itself.
    """

    batch: int
    frames: int
    pool: int
    seconds: tuple[float, ...]
    fresh_every: int
    rate: float
    warmup: int
    decay: float = 0.0
    average: float = 0.999
    start: int = 0


PLANS = {
    "full": {
        "vae": Plan(32, 32, 128, (12.0,), 4, 5e-4, 500),
        "codes": Plan(64, 250, 192, (20.0,), 8, 1e-3, 200),
        "song": Plan(48_000, 0, 192, (10.0, 15.0, 20.0, 30.0, 60.0, 60.0), 4, 6e-4, 500, 0.01, 0.9995, 48),
    },
    "small": {
        "vae": Plan(2, 16, 4, (4.0,), 8, 1e-3, 20, average=0.99),
        "codes": Plan(2, 50, 3, (4.0,), 8, 1e-3, 20, average=0.99),
        "song": Plan(200, 0, 3, (4.0,), 8, 1e-3, 20, average=0.99),
    },
}


class Stage:
    """What the stages share: parts, sizes, where they compute, and the pool."""

    def __init__(self, parts: dict[str, nn.Module], plan: Plan, seed: int, device: torch.device, half: bool):
        self.parts, self.plan, self.seed, self.device, self.half = parts, plan, seed, device, half
        self.pool = data.Pool(plan.pool, plan.fresh_every, self.make, plan.start)

    def make(self, number: int) -> Any:
        """Return what the pool keeps of piece `number`."""
        return data.make_piece(number, self.plan.seconds[number % len(self.plan.seconds)], self.device)

    def compiled(self) -> list[nn.Module]:
        """Return the modules worth compiling."""
        return []

    def loss(self, step: int) -> dict[str, torch.Tensor]:
        """Return the terms whose sum is the loss of a step, each a scalar with a gradient."""
        raise NotImplementedError

    def half_precision(self) -> contextlib.AbstractContextManager:
        """Compute in bfloat16 where that is wanted."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else contextlib.nullcontext()

    def noise(self, shape: tuple[int, ...], step: int) -> torch.Tensor:
        """Draw the step's noise on the CPU, from a generator of its own."""
        generator = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + step)
        return torch.randn(shape, generator=generator).to(self.device)


# --- stage 1 ------------------------------------------------------------------------------------------------------


class VaeStage(Stage):
    """Sound to latents and back."""

    name = "vae"

    def compiled(self) -> list[nn.Module]:
        """Return the VAE's two halves."""
        return [self.parts["vae"].encoder, self.parts["vae"].decoder]

    def loss(self, step: int) -> dict[str, torch.Tensor]:
        """Return the distance of the sound, the KL term and `spread`.

        KL is kept light. `spread` pulls the latents of a batch to mean 0 and variance 1 in each channel, because the
        flow starts from noise of that size and nothing between the VAE and the transformer scales them.
        """
        rng = data.draw(self.seed, self.name, step)
        crops = data.waveforms(self.pool.at(step), rng, self.plan.batch, self.plan.frames * data.HOP)
        vae = self.parts["vae"]
        with self.half_precision():
            mean, scale = vae.encoder(crops).float().chunk(2, dim=1)
            deviation = functional.softplus(scale) + 1e-4
            latents = mean + deviation * self.noise(tuple(mean.shape), step)
            made = vae.decoder(latents)
        made = made.float()
        kl = 0.5 * (mean.square() + deviation.square() - 2 * deviation.log() - 1).mean()
        centre, variance = mean.mean(dim=(0, 2)), mean.var(dim=(0, 2))
        return {
            "stft": spectral_distance(made, crops),
            "wave": 2.0 * (made - crops).abs().mean(),
            "kl": 1e-3 * kl,
            "spread": 0.02 * (centre.square() + (variance.clamp(min=1e-4).log()).square()).mean(),
        }


def spectral_distance(made: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the mean distance of two batches [B, 2, n] over spectra of five windows: left, right, middle and side.

    The distance of magnitudes relative to the true ones, plus that of their logarithms, which hears the quiet parts.
    """
    total = torch.zeros((), device=made.device)
    made, truth = (
        torch.cat([x, x.sum(1, keepdim=True) / 2, x.diff(dim=1) / 2], dim=1).flatten(0, 1) for x in (made, truth)
    )
    for window in WINDOWS:
        shape = torch.hann_window(window, device=made.device)
        made_spectrum, true_spectrum = (
            torch.stft(x, window, window // 4, window=shape, return_complex=True) for x in (made, truth)
        )
        # The gradient of a magnitude is undefined at zero.
        m, t = (torch.sqrt(s.real.square() + s.imag.square() + 1e-8) for s in (made_spectrum, true_spectrum))
        floor = 1e-3 * window**0.5
        total = total + (m - t).abs().mean() / (t.mean() + floor) + ((m + floor).log() - (t + floor).log()).abs().mean()
    return total / len(WINDOWS)


class LatentStage(Stage):
    """What the stages after the VAE share: their pool holds latents."""

    def make(self, number: int) -> Any:
        """Return the latents of piece `number`."""
        with self.half_precision():
            return data.encode_piece(self.parts["vae"], super().make(number))


# --- stage 2 ------------------------------------------------------------------------------------------------------


class CodesStage(LatentStage):
    """Latents to codes, five a second, and back."""

    name = "codes"

    def loss(self, step: int) -> dict[str, torch.Tensor]:
        """Return the distance between latents and what their codes bring back."""
        rng = data.draw(self.seed, self.name, step)
        latents = data.latent_crops(self.pool.at(step), rng, self.plan.batch, self.plan.frames)
        with self.half_precision():
            quantized = quantize(self.parts["audio_tokenizer"], latents)
            back = self.parts["audio_token_detokenizer"](quantized)
        back = back[:, : latents.shape[1]].float()
        return {
            "latents": functional.mse_loss(back, latents),
            "slope": 0.5 * functional.l1_loss(back.diff(dim=1), latents.diff(dim=1)),
        }


def quantize(tokenizer: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return what `tokenizer.tokenize` returns as quantized, with a gradient: [B, T / 5, D] of latents [B, T, C].

    The class rounds with `floor`, which has none; here the rounding is passed by (straight-through estimator, Bengio
    et al. 2013, arXiv:1308.3432). Raises ValueError for a number of frames that the tokenizer's window does not divide.
    """
    frames, window = latents.shape[1], tokenizer.pool_window_size
    if frames % window:
        raise ValueError(f"The frames of a crop must be a multiple of {window}, not {frames}.")
    pooled = tokenizer.attention_pooler(tokenizer.audio_acoustic_proj(latents.unflatten(1, (frames // window, window))))
    quantizer = tokenizer.quantizer
    levels = quantizer._levels.to(pooled.device).float()
    soft = 1 + 1 / (levels - 1)
    with torch.autocast(pooled.device.type, enabled=False):
        codes = functional.linear(pooled.float(), quantizer.project_in.weight, quantizer.project_in.bias)
        codes = torch.tanh(codes / soft) * soft
        codes = codes + (quantizer._quantize(codes) - codes).detach()
        return functional.linear(codes, quantizer.project_out.weight, quantizer.project_out.bias)


# --- stage 3 ------------------------------------------------------------------------------------------------------


class PaddingAware(AceStepAttnProcessor2_0):
    """Cross-attention that leaves out the padding of a batch of unequal prompts.

    The transformer's class attends to it, which one prompt alone, as in the studio, never has. `mask` [B, 1, 1, L] is
    shared by the layers and set before each forward pass.
    """

    def __init__(self, shared: dict[str, torch.Tensor | None]):
        super().__init__()
        self.shared = shared

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        """Attend, with the shared mask in cross-attention."""
        if attn.is_cross_attention:
            attention_mask = self.shared["mask"]
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


class SongStage(LatentStage):
    """Words, context and noise to music: flow matching on every task at once."""

    name = "song"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.tokenizer, self.words = preview.make_tokenizer(), data.lyric_words()
        self.silence = silence_of(self.parts["vae"])[0].to(self.device)
        self.shared: dict[str, torch.Tensor | None] = {"mask": None}
        for layer in self.parts["transformer"].layers:
            layer.cross_attn.set_processor(PaddingAware(self.shared))

    def compiled(self) -> list[nn.Module]:
        """Return the transformer's layers, one by one."""
        return list(self.parts["transformer"].layers)

    def loss(self, step: int) -> dict[str, torch.Tensor]:
        """Return the mean square error of the velocity, noise - latents, at times drawn a little towards the middle."""
        examples, rng = self.examples(step), data.draw(self.seed + 1, self.name, step)
        target, context = self._contexts(examples)
        noise = self.noise(tuple(target.shape), step)
        times = 1 / (1 + np.exp(-rng.normal(0.0, 1.2, len(examples))))
        t = torch.from_numpy(np.where(rng.random(len(examples)) < 0.3, rng.random(len(examples)), times)).to(noise)
        dropped = torch.from_numpy(rng.random(len(examples)) < data.NO_CONDITION).to(self.device)
        noisy = t[:, None, None] * noise + (1 - t[:, None, None]) * target
        with self.half_precision():
            states, mask = self.encode(examples)
            null = self.parts["condition_encoder"].null_condition_emb
            states = torch.where(dropped[:, None, None], null.to(states.dtype), states)
            # Every null token is the same, so that their number does not matter, but one must be there.
            bias = torch.zeros(mask.shape, device=self.device).masked_fill(~(mask | dropped[:, None]), -1e4)
            self.shared["mask"] = bias[:, None, None].to(torch.bfloat16 if self.half else torch.float32)
            velocity = self.parts["transformer"](
                hidden_states=noisy,
                timestep=t,
                timestep_r=t,
                encoder_hidden_states=states,
                context_latents=context,
                return_dict=False,
            )[0]
        return {"flow": functional.mse_loss(velocity.float(), noise - target)}

    def examples(self, step: int) -> list[data.Example]:
        """Return the examples of a step."""
        rng = data.draw(self.seed, self.name, step)
        return data.song_examples(self.pool.at(step), rng, self.plan.batch, self.silence, self.words)

    def encode(self, examples: list[data.Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the condition [B, L, D] of a batch and which of its tokens are real [B, L], as the pipeline does."""
        text_encoder = self.parts["text_encoder"]
        text, lyrics = (
            self.tokenizer(
                texts, padding="longest", truncation=True, max_length=length, pad_to_multiple_of=16, return_tensors="pt"
            ).to(self.device)
            for texts, length in (
                ([e.text for e in examples], MAX_TEXT_TOKENS),
                ([e.lyrics for e in examples], MAX_LYRIC_TOKENS),
            )
        )
        silent = self.silence.expand(data.REFERENCE_FRAMES, -1)
        return self.parts["condition_encoder"](
            text_hidden_states=text_encoder(input_ids=text.input_ids).last_hidden_state,
            text_attention_mask=text.attention_mask.bool(),
            lyric_hidden_states=text_encoder.get_input_embeddings()(lyrics.input_ids),
            lyric_attention_mask=lyrics.attention_mask.bool(),
            refer_audio_acoustic_hidden_states_packed=torch.stack(
                [silent if e.reference is None else e.reference for e in examples]
            ),
            refer_audio_order_mask=torch.arange(len(examples), device=self.device),
        )

    def _contexts(self, examples: list[data.Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the targets [B, T, C] and the contexts [B, T, 2C] of a batch."""
        target, source, mask = (
            torch.stack([getattr(example, name) for example in examples]) for name in ("target", "source", "mask")
        )
        covered = torch.tensor([example.covered for example in examples], device=self.device)
        if bool(covered.any()):
            tokenizer, back = self.parts["audio_tokenizer"], self.parts["audio_token_detokenizer"]
            with torch.no_grad():
                codes, _ = tokenizer.tokenize(source[covered], self.silence.expand(5, -1)[None])
                source[covered] = back(codes)[:, : source.shape[1]]
        return target, torch.cat([source, mask.expand_as(source)], dim=-1)


STAGE_CLASSES = {stage.name: stage for stage in (VaeStage, CodesStage, SongStage)}
