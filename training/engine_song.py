"""The built-in engine's song model: words and context to latents, by flow matching, and the codes of its covers.

The parts are the real classes. Two helpers train beside them and are thrown away: the reader, which must find BPM, key,
metre, style, sections and instruments in what the cross-attention takes from the words, and the side task, which must
find the beat, the bar, the chords and who plays in the transformer's third layer. The first minutes train the words
alone. Then most examples are nearly pure noise, and the side task counts there: a plan has to come from the words.
Examples that can be heard through their noise teach a small transformer to finish any music and never how to begin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ace_step.modeling_ace_step import _pack_sequences
from torch import nn
from torch.nn import functional

import song_clock
from models import quiet_libraries
from training import engine_codes, engine_words
from training.engine_examples import (
    NOT_SAID,
    PIECES,
    QUESTIONS,
    REFERENCE_FRAMES,
    SOURCE_NOISE,
    Batch,
    Examples,
    Norm,
    Pieces,
    Supply,
    Tokens,
    Words,
)
from training.engine_latents import (
    BAR,
    BASS,
    BEAT,
    CHORDS,
    FEATURES,
    HITS,
    LATENTS,
    PITCH_CLASSES,
    PLAYERS,
    clock,
)
from training.engine_parts import (
    CONSTANT,
    HIDDEN,
    KEPT_TIME,
    build_codes,
    build_parts,
    mask_attention,
    projected,
    unrounded,
    velocity_of,
)
from training.small_models import SILENCE_FRAMES, make_tokenizer

PLANNED = 3
"""After this layer the song's plan stands."""
FIRST_SHARE = 0.3
"""The share of the flow's minutes that has short pieces and few tasks."""
NEARLY_NOISE = (0.9, 0.5)
"""The share of examples that are nearly pure noise, at the start and at the end."""
NO_CONDITION = 0.12
POOL_SHARES = [count / sum(PIECES.values()) for count in PIECES.values()]
CHANNELS = torch.ones(LATENTS)
"""What an error of each latent counts: styles are told apart by who plays, and by the drums."""
CHANNELS[HITS] = 2.0
CHANNELS[PLAYERS] = 4.0
CHANNELS /= CHANNELS.mean()


class Conditioner(nn.Module):
    """Words and references to the condition that the pipeline would make of them, in batches."""

    def __init__(self, parts: dict[str, nn.Module], silence: torch.Tensor):
        super().__init__()
        self.parts = parts
        self.register_buffer("silence", silence[None, :REFERENCE_FRAMES].clone())

    def forward(
        self,
        tokens: Tokens,
        references: torch.Tensor | None = None,
        which: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the condition [B, L, 256] and which of its tokens are real [B, L]."""
        encoder = self.parts["condition_encoder"]
        text_encoder = self.parts["text_encoder"]
        text = encoder.text_projector(text_encoder(input_ids=tokens.text).last_hidden_state)
        sung = encoder.lyric_encoder(
            inputs_embeds=text_encoder.get_input_embeddings()(tokens.lyrics),
            attention_mask=tokens.lyrics_mask,
        )
        timbre = self._timbre(references, which, len(tokens.text))
        timbre_mask = torch.ones(timbre.shape[:2], dtype=torch.bool, device=timbre.device)
        states, mask = _pack_sequences(sung, timbre, tokens.lyrics_mask, timbre_mask)
        return _pack_sequences(states, text, mask, tokens.text_mask)

    def _timbre(
        self, references: torch.Tensor | None, which: torch.Tensor | None, count: int
    ) -> torch.Tensor:
        """Return the timbre of each example's reference; silence, which most have, is encoded once."""
        heard = self.silence if references is None else torch.cat([self.silence, references])
        numbers = torch.arange(len(heard), device=heard.device)
        timbre, _ = self.parts["condition_encoder"].timbre_encoder(heard, numbers)
        timbre = timbre.reshape(len(heard), -1, HIDDEN)
        return timbre.expand(count, -1, -1) if which is None else timbre[which]


# --- what trains beside the parts ---------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads off what the transformer's first layers take from the words, with a classifier for each thing it says.

    The layers are asked as every frame asks them at first, by the constant alone: what is found here is what the song
    model begins with.
    """

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(HIDDEN, size) for name, size in QUESTIONS.items()}
        )

    def forward(
        self, transformer: nn.Module, states: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the sum of the cross-entropies and the share of right answers to each question, NaN where it has none.

        `wanted` [B, 13] are the answers.
        """
        asking = states.new_zeros(len(states), 1, HIDDEN)
        asking[..., 0] = CONSTANT
        states = transformer.condition_embedder(states)
        found = sum(
            layer.cross_attn(layer.cross_attn_norm(asking), encoder_hidden_states=states)
            for layer in transformer.layers[:PLANNED]
        )[:, 0]
        total = torch.zeros((), device=states.device)
        right = {}
        for (name, head), answer in zip(self.heads.items(), wanted.T, strict=True):
            answers = head(found).float()
            is_named = answer != NOT_SAID
            missed = functional.cross_entropy(
                answers, answer, ignore_index=NOT_SAID, reduction="sum"
            )
            total = total + missed / is_named.sum().clamp(min=1)
            right[name] = (answers.argmax(-1) == answer).sum() / is_named.sum()
        return total, right


class Side(nn.Module):
    """Reads the features of every frame off a layer of the transformer, which works on two frames at a time."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.a = nn.Linear(HIDDEN, HIDDEN)
        self.b = nn.Linear(HIDDEN, 2 * FEATURES)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = self.b(functional.silu(self.a(self.norm(states))))
        return out.unflatten(-1, (2, FEATURES)).flatten(1, 2)


# --- training -----------------------------------------------------------------------------------------------------


class CodesStage:
    """Latents to five codes a second that say what `engine_codes` reads off the score, and codes back to latents."""

    name = "codes"
    minutes = 15.0
    rate = 0.02
    adam_rate = 2e-3
    floor = 0.03
    clip = 1.0
    keep = 0.99
    newton_steps = 4
    inputs_first = False

    def __init__(
        self, device: torch.device, smoke: bool, saved: dict[str, Any] | None, folder: Path
    ):
        self.pieces = Pieces(folder, smoke)
        self.device = device
        self.batch = 4 if smoke else 40
        self.module = build_codes().to(device)
        if saved:
            self.module.load_state_dict(saved["live"])
        self.trained = dict(self.module.named_parameters())
        self.averaged = self.trained
        self.facts: dict[str, Any] = {}

    def is_matrix(self, name: str) -> bool:
        """Tell whether Muon trains a parameter of two dimensions."""
        return "project" not in name

    def loss(self, step: int, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return how far the codes are from the score's, and the square error of latents from either kind of code.

        The figures: how many digits of the codes are right, and what of each role the score's own codes miss.
        """
        rng = np.random.default_rng([6, step])
        crops = []
        asked = []
        for _ in range(self.batch):
            row = self.pieces.draw(rng, int(rng.choice(list(PIECES), p=POOL_SHARES)))
            start = int(rng.integers(0, len(row.latents) - 100))
            crops.append(self.pieces.norm.standard(row.latents[start : start + 100]))
            asked.append(engine_codes.digits_of(row.score, 100, start))
        truth = torch.stack(crops).to(self.device)
        wanted = torch.from_numpy(np.stack(asked)).to(self.device)
        tokenizer, back = self.module["audio_tokenizer"], self.module["audio_token_detokenizer"]
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(step))
        heard = truth + SOURCE_NOISE * rng.random() * noise.to(self.device)
        found = unrounded(tokenizer, heard)
        steps = (tokenizer.quantizer._levels.to(self.device) - 1) / 2
        # In levels, and not squared: between two answers it chooses the likelier one, and no third.
        distance = (found + 1) * steps - wanted
        labels = functional.smooth_l1_loss(distance, torch.zeros_like(distance), beta=0.5)
        exact = tokenizer.quantizer._quantize(found)
        own = projected(tokenizer, found + (exact - found).detach())
        half = self.batch // 2
        codes = torch.cat([projected(tokenizer, wanted[:half] / steps - 1), own[half:]])
        missed = (back(codes).float() - truth).square()
        figures = {"right": (distance.abs() < 0.5).float().mean(), "labels": labels}
        figures |= {"planned": missed[:half].mean(), "heard": missed[half:].mean()}
        figures |= {
            name: missed[:half, :, part].mean()
            for name, part in (("bass", BASS), ("chords", CHORDS), ("drums", HITS))
        }
        total = missed.mean() + labels
        return total, {name: value.detach() for name, value in figures.items()}

    def measure(self, mean: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return nothing: the log has the loss's figures."""
        return {}


class SongStage:
    """Words, context and noise to latents: flow matching on every task at once."""

    name = "song"
    minutes = 120.0
    rate = 0.02
    adam_rate = 2e-3
    floor = 0.03
    clip = 1.0
    keep = 0.998
    newton_steps = 4
    inputs_first = False
    WORDS_SHARE = 0.12
    """The share of the minutes that trains the words alone."""
    FRAMES: ClassVar[dict[str, int]] = {"cpu": 4500, "cuda": 64_000}
    PROMPTS: ClassVar[dict[str, int]] = {"cpu": 48, "cuda": 512}
    """How many frames of examples, or how many prompts, a batch has."""

    def __init__(
        self,
        device: torch.device,
        smoke: bool,
        saved: dict[str, Any] | None,
        folder: Path,
        workers: int = 0,
    ):
        quiet_libraries()
        self.device = device
        frames, prompts = (
            (250, 4) if smoke else (self.FRAMES[device.type], self.PROMPTS[device.type])
        )
        pieces = Pieces(folder, smoke, composed=workers > 0)
        self.examples = Examples(pieces, folder, frames, prompts)
        self.supply = Supply(self.examples, workers)
        layers = saved["layers"] if saved else 6
        self._build(layers)
        if saved:
            # A checkpoint has no helpers.
            self.module.load_state_dict(saved["live"], strict=not saved.get("begun"))
        self.facts = {"base": pieces.norm.silence(), "layers": layers}

    def _build(self, layers: int) -> None:
        parts = build_parts(layers)
        self.module = nn.ModuleDict({"parts": parts, "reader": Reader(), "side": Side()}).to(
            self.device
        )
        self.conditioner = Conditioner(dict(parts), self.examples.silence).to(self.device)
        self.shared: dict[str, torch.Tensor | None] = {"mask": None}
        mask_attention(parts["transformer"], self.shared)
        self.third: torch.Tensor | None = None
        parts["transformer"].layers[PLANNED - 1].register_forward_hook(
            lambda *call: setattr(self, "third", call[-1])
        )
        # The packing has tokens that no loss reaches.
        names = self.module.named_parameters()
        self.trained = {n: p for n, p in names if p.requires_grad and "special_token" not in n}
        self.averaged = dict(parts.named_parameters())

    def is_matrix(self, name: str) -> bool:
        """Tell whether Muon trains a parameter of two dimensions."""
        return name.startswith("parts.") and "embed_tokens" not in name and "time_embed" not in name

    def measure(self, mean: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return nothing: the log has the reader's and the side task's figures."""
        return {}

    def loss(self, step: int, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the words alone in the first minutes, later that of flow, side task and words."""
        if share < self.WORDS_SHARE:
            return self._words(self._batch(step, "words"))
        share = (share - self.WORDS_SHARE) / (1 - self.WORDS_SHARE)
        batch = self._batch(step, "first" if share < FIRST_SHARE else "all")
        flow, by_feature, read, right = self._flow(batch, step, share)
        beat = by_feature[slice(BEAT.start, BAR.stop)].mean()
        total = flow + 0.3 * by_feature.mean() + 0.02 * read + 2 * beat
        figures = {"flow": flow, "beat": by_feature[BEAT].mean(), "bar": by_feature[BAR].mean()}
        figures |= {"chroma": by_feature[PITCH_CLASSES].mean(), "read": read}
        return total, {name: value.detach() for name, value in figures.items()} | right

    def _batch(self, step: int, phase: str) -> Any:
        """Return the batch of a step on the training's device."""
        return on_device(self.supply.batch(step, phase), self.device)

    def _words(self, words: Words) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        states, mask = self.conditioner(words.tokens)
        # The words must be exact: in bfloat16 the reader learns neighbouring tempos slowly.
        with torch.autocast(self.device.type, enabled=False):
            self._hide(~mask)
            transformer = self.module["parts"]["transformer"]
            read, right = self.module["reader"](transformer, states.float(), words.answers)
        return read, {"read": read.detach(), **right}

    def _hide(self, padding: torch.Tensor) -> None:
        """Let the cross-attention skip `padding` [B, L] from here on."""
        autocast = torch.is_autocast_enabled(self.device.type)
        unseen = torch.zeros(padding.shape, device=self.device).masked_fill(padding, -1e4)
        self.shared["mask"] = unseen[:, None, None].to(
            torch.bfloat16 if autocast else torch.float32
        )

    def _flow(
        self, batch: Batch, step: int, share: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Return the error of the velocity, of each feature [37], of the words, and the reader's right answers.

        The features count in examples that are nearly pure noise, where they must be planned; later they can be heard.
        """
        device = self.device
        target, features = batch.target, batch.features
        count = len(target)
        context = context_of(batch)
        noise = noise_like(target, step)
        rng = np.random.default_rng([19, step])
        middle = 1 / (1 + np.exp(-rng.normal(0.3, 1.2, count)))
        early = 1 - 0.3 * rng.random(count) ** 3
        first, last = NEARLY_NOISE
        drawn = np.where(rng.random(count) < first + (last - first) * share, early, middle)
        times = torch.from_numpy(drawn).float().to(device)
        dropped = torch.from_numpy(rng.random(count) < NO_CONDITION).to(device)
        parts = self.module["parts"]
        states, mask = self.conditioner(batch.tokens, batch.references, batch.which)
        self._hide(~mask)
        read, right = self.module["reader"](parts["transformer"], states, batch.answers)
        null = parts["condition_encoder"].null_condition_emb.to(states.dtype)
        states = torch.where(dropped[:, None, None], null, states)
        self._hide(~(mask | dropped[:, None]))
        mixed = times[:, None, None] * noise + (1 - times[:, None, None]) * target
        velocity = velocity_of(parts["transformer"], mixed, times, states, context)
        assert self.third is not None
        read_features = self.module["side"](self.third)[:, : target.shape[1]].float()
        known = ~features.isnan() & ~dropped[:, None, None]
        missed = torch.where(
            known, (read_features - features.nan_to_num()).square(), torch.zeros((), device=device)
        )
        planned = times[:, None, None] ** 12
        by_feature = (missed * planned).sum((0, 1)) / (known * planned).sum((0, 1)).clamp(min=1e-3)
        error = (velocity - (noise - target)).square() * CHANNELS.to(device)
        return error.mean(), by_feature, read, right


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch, which may hold others, with its tensors on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return type(batch)(*(on_device(part, device) for part in batch))


def context_of(batch: Batch) -> torch.Tensor:
    """Return source and mask [B, T, 64] as the transformer reads them."""
    return torch.cat([batch.source, batch.mask.expand_as(batch.source)], dim=2)


def noise_like(latents: torch.Tensor, step: int) -> torch.Tensor:
    """Return the noise of a step, drawn where `latents` are."""
    generator = torch.Generator(latents.device).manual_seed(step)
    return torch.randn(latents.shape, generator=generator, device=latents.device)


# --- the checkpoint -----------------------------------------------------------------------------------------------


def states_of(pipe: AceStepPipeline, norm: Norm) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights and facts of a checkpoint's codes and song model, so that they can train on."""
    codes = {
        f"{name}.{key}": value
        for name in build_codes()
        for key, value in getattr(pipe, name).state_dict().items()
    }
    layers = len(pipe.transformer.layers)
    mean = {}
    for name, part in build_parts(layers).items():
        given = getattr(pipe, name).state_dict()
        mean |= {f"{name}.{key}": given[key] for key, _ in part.named_parameters()}
    live = {f"parts.{key}": value for key, value in mean.items()}
    return {"live": codes}, {
        "live": live,
        "mean": mean,
        "layers": layers,
        "base": norm.silence(),
    }


@torch.no_grad()
def trained_parts(song: dict[str, Any], codes: dict[str, Any]) -> dict[str, nn.Module]:
    """Return the parts with the running means of their weights, and the silence with its clock."""
    parts = build_parts(song["layers"])
    back = build_codes()
    live = {
        n.removeprefix("parts."): value
        for n, value in song["live"].items()
        if n.startswith("parts.")
    }
    parts.load_state_dict(parts.state_dict() | live | song["mean"])
    back.load_state_dict(codes["live"] | codes["mean"])
    silence = song["base"].cpu() + torch.from_numpy(clock(SILENCE_FRAMES))
    parts["condition_encoder"].silence_latent = silence[None].contiguous()
    return {**dict(parts), **dict(back)}


def write_checkpoint(parts: dict[str, nn.Module], folder: Path, card: str) -> None:
    """Write a checkpoint in the real layout: bfloat16, small shards, what it knows, a card."""
    quiet_libraries()
    pipeline = AceStepPipeline(
        tokenizer=make_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        # The plain `to`: that of the libraries warns of what it would do to parts that these are not.
        **{name: nn.Module.to(part, "cpu", torch.bfloat16).eval() for name, part in parts.items()},
    )
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="9MB")
    engine_words.write_words(folder)
    kept_time = {
        "restarts_after": [KEPT_TIME.shortest, KEPT_TIME.longest],
        "view": KEPT_TIME.view,
    }
    (folder / song_clock.FILE).write_text(json.dumps(kept_time, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def count_parameters(parts: dict[str, nn.Module]) -> dict[str, int]:
    """Return the number of parameters of each part."""
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in parts.items()
    }
