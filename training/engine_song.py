"""The built-in engine's song model: words and context to latents, by flow matching, and the codes of its covers.

The parts are the real classes. Two helpers train beside them and are thrown away: the reader, which must find BPM, key,
metre, style, sections and instruments in what the cross-attention takes from the words, and the side task, which must
find the beat, the bar, the chords and who plays in the transformer's third layer. The first minutes train the words
alone. Then most examples are nearly pure noise, and the side task counts there: a plan has to come from the words.
Examples that can be heard through their noise teach a small transformer to finish any music and never how to begin.
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AceStepPipeline, AceStepTransformer1DModel, FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from diffusers.pipelines.ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from diffusers.pipelines.ace_step.modeling_ace_step import _pack_sequences
from torch import nn
from torch.nn import functional
from transformers import Qwen3Model

import modes
import planner_codes
import song_clock
import song_codec
from limits import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS
from models import quiet_libraries
from training import engine_codes, engine_words
from training.band_score import INSTRUMENTS, KITS, NOTE_NAMES, ROLES, Score, compose, parse_key
from training.band_sounds import STEMS
from training.band_styles import STYLES
from training.engine_latents import (
    BAR,
    BASS,
    BEAT,
    CHORDS,
    FEATURES,
    FRAME_TICKS,
    FRAMES_PER_SECOND,
    HITS,
    LATENTS,
    PITCH_CLASSES,
    PLAYERS,
    SECTIONS,
    clock,
    events_of,
    features_of,
    latents_of,
    track_of,
    words_for,
)
from training.small_models import SILENCE_FRAMES, make_tokenizer, text_config

HIDDEN = 256
TEXT = 128
CODES = 96
CONSTANT = 4.0
PLANNED = 3
"""After this layer the song's plan stands."""
REFERENCE_FRAMES = song_codec.REFERENCE_SECONDS * FRAMES_PER_SECOND
FIRST_TRAINING_SEED = 20_000_000
PIECES = {10: 500, 20: 1400, 30: 700, 60: 400, 120: 250, 180: 100}
"""How many pieces of how many seconds the codes and the song model learn from."""
LENGTHS = (0.1, 0.55, 0.35, 0.0, 0.0, 0.0)
FIRST_LENGTHS = (0.6, 0.4, 0.0, 0.0, 0.0, 0.0)
FIRST_SHARE = 0.3
"""The share of the flow's minutes that has short pieces and few tasks."""
NEARLY_NOISE = (0.9, 0.5)
"""The share of examples that are nearly pure noise, at the start and at the end."""
LONGER = {
    10: (20,),
    20: (30, 60, 120, 180),
    30: (60, 120, 180),
    60: (60, 120, 180),
    120: (120, 180),
    180: (180,),
}
"""Out of pieces of how many seconds an example is cut."""
TASKS = {
    "text2music": 0.38,
    "repaint": 0.24,
    "cover": 0.25,
    "lego": 0.07,
    "extract": 0.04,
    "complete": 0.02,
}
FIRST_TASKS = {"text2music": 0.85, "repaint": 0.15}
NO_CONDITION = 0.12
WITH_REFERENCE = 0.12
PLANNED_SHARE = 0.6
"""How many covers follow the codes that their score would have, as planned songs do, if the tokenizer knows them."""
WHOLE = {"cover": 0.6}
"""How many examples of a task are whole pieces with their endings, as planned songs are."""
FROM_BEGINNING = {"repaint": 0.9}
"""How many examples of a task that are cut out of a longer piece are its beginning."""
OUT_OF_TIME = 0.5
"""How many other parts of a task have a clock that starts with them, as a visitor's own music has: it tells no beat."""
SOURCE_NOISE = 0.3
"""Spread of the noise on some sources at most: the studio's come from the encoder, which misses a little."""
KEPT_TIME = {"restarts_after": [12, 20], "view": 10}
"""Seconds: after how many the clock starts again in long songs, and how far attention reaches (song_clock.py)."""
CHANNELS = torch.ones(LATENTS)
"""What an error of each latent counts: styles are told apart by who plays, and by the drums."""
CHANNELS[HITS] = 2.0
CHANNELS[PLAYERS] = 4.0
CHANNELS /= CHANNELS.mean()


# --- pieces -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A piece: its seconds, its score, its latents [T, 32] and its features [T, 37], both float16."""

    seconds: int
    score: Score
    latents: np.ndarray
    features: np.ndarray


def make_pool(folder: Path, smoke: bool) -> list[Row]:
    """Return the pieces; they take minutes to compose and are kept in `folder`."""
    path = folder / "pool.pkl"
    if path.exists():
        held = [Row(*row) for row in pickle.loads(path.read_bytes())]
        if held[0].score.harmony:
            return held
    rows: list[tuple] = []  # plain tuples, which a file can hold whatever becomes of `Row`
    for seconds, count in PIECES.items():
        frames = seconds * FRAMES_PER_SECOND
        for _ in range(2 if smoke else count):
            score = compose(FIRST_TRAINING_SEED + len(rows), seconds=float(seconds))
            latents = latents_of(events_of(score), frames * FRAME_TICKS).astype(np.float16)
            features = features_of(score, frames).astype(np.float16)
            rows.append((seconds, score, latents, features))
    path.write_bytes(pickle.dumps(rows))
    return [Row(*row) for row in rows]


def latent_norm(folder: Path, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and spread [32] of the latents, which `folder` keeps: every later stage rests on them."""
    path = folder / "norm.pt"
    if not path.exists():
        sample = torch.cat([torch.from_numpy(row.latents[::5].astype(np.float32)) for row in rows])
        torch.save({"mu": sample.mean(0), "sd": sample.std(0).clamp(min=0.05)}, path)
    held = torch.load(path)
    return held["mu"], held["sd"]


# --- parts --------------------------------------------------------------------------------------------------------


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


class PaddingAware(AceStepAttnProcessor2_0):
    """Cross-attention that skips the padding of unequal prompts; a single prompt, as in the studio, has none.

    `shared["mask"]` [B, 1, 1, L] is set before each forward pass.
    """

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
        return super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        )


class Conditioner(nn.Module):
    """Words and references to the condition that the pipeline would make of them, in batches."""

    def __init__(self, parts: dict[str, nn.Module], silence: torch.Tensor):
        super().__init__()
        self.parts = parts
        self.tokenizer = make_tokenizer()
        self.register_buffer("silence", silence)

    def forward(
        self,
        texts: list[str],
        lyrics: list[str],
        references: list[torch.Tensor | None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the condition [B, L, 256] and which of its tokens are real [B, L]."""
        encoder = self.parts["condition_encoder"]
        text_encoder = self.parts["text_encoder"]
        words = self._tokens(texts, MAX_TEXT_TOKENS)
        sung = self._tokens(lyrics, MAX_LYRIC_TOKENS)
        text = encoder.text_projector(text_encoder(input_ids=words.input_ids).last_hidden_state)
        sung_states = encoder.lyric_encoder(
            inputs_embeds=text_encoder.get_input_embeddings()(sung.input_ids),
            attention_mask=sung.attention_mask.bool(),
        )
        timbre = self._timbre(references or [None] * len(texts))
        timbre_mask = torch.ones(timbre.shape[:2], dtype=torch.bool, device=timbre.device)
        states, mask = _pack_sequences(sung_states, timbre, sung.attention_mask.bool(), timbre_mask)
        return _pack_sequences(states, text, mask, words.attention_mask.bool())

    def _tokens(self, texts: list[str], longest: int) -> Any:
        tokens = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=longest, return_tensors="pt"
        )
        return tokens.to(self.silence.device)

    def _timbre(self, references: list[torch.Tensor | None]) -> torch.Tensor:
        """Return the timbre of each reference; silence, which most have, is encoded once."""
        given = [reference[None] for reference in references if reference is not None]
        packed = torch.cat([self.silence[:, :REFERENCE_FRAMES], *given])
        timbre, _ = self.parts["condition_encoder"].timbre_encoder(
            packed, torch.arange(len(packed)).to(packed.device)
        )
        places = []
        used = 0
        for reference in references:
            used += reference is not None
            places.append(0 if reference is None else used)
        return timbre.reshape(len(packed), -1, HIDDEN)[torch.tensor(places, device=packed.device)]


# --- what trains beside the parts ---------------------------------------------------------------------------------


# How many classes each of the reader's questions has.
QUESTIONS = {
    "bpm": 121,
    "coarse": 10,
    "fine": 13,
    "key": 12,
    "minor": 2,
    "beats": 2,
    "style": len(STYLES),
    "first": 5,
    "last": 5,
    "bass": 4,
    "chords": 6,
    "lead": 6,
    "kit": 3,
}


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
        self, transformer: nn.Module, states: torch.Tensor, wanted: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the sum of the cross-entropies and the share of right answers to each question."""
        asking = states.new_zeros(len(states), 1, HIDDEN)
        asking[..., 0] = CONSTANT
        states = transformer.condition_embedder(states)
        found = sum(
            layer.cross_attn(layer.cross_attn_norm(asking), encoder_hidden_states=states)
            for layer in transformer.layers[:PLANNED]
        )[:, 0]
        total = torch.zeros((), device=states.device)
        right = {}
        for name, head in self.heads.items():
            is_named = wanted[name] >= 0
            if bool(is_named.any()):
                answers = head(found).float()
                total = total + functional.cross_entropy(answers, wanted[name])
                right[name] = float((answers.argmax(-1) == wanted[name])[is_named].float().mean())
        return total, right


def answers_to(score: Score, details: dict[str, Any]) -> dict[str, int]:
    """Return the class of each of the reader's questions, -100 for what the words leave out."""
    out = dict.fromkeys(QUESTIONS, -100)
    if details["bpm"] is not None:
        coarse = min(max(round((details["bpm"] - 66) / 12), 0), 9)
        out |= {
            "bpm": details["bpm"] - 60,
            "coarse": coarse,
            "fine": details["bpm"] - (66 + 12 * coarse) + 6,
        }
    if details["key"] is not None:
        tonic, scale = parse_key(details["key"])
        out |= {"key": tonic, "minor": int(scale == "minor")}
    if details["beats"] is not None:
        out["beats"] = details["beats"] - 3
    if "[" in score.lyrics and score.lyrics.strip() != "[Instrumental]":
        out |= {
            "first": SECTIONS.index(score.form[0].name),
            "last": SECTIONS.index(score.form[-1].name),
        }
    out |= {role: INSTRUMENTS[role].index(score.instruments[role]) for role in ROLES}
    return out | {"style": list(STYLES).index(score.style), "kit": KITS.index(score.kit)}


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
        self.rows = make_pool(folder, smoke)
        self.device = device
        self.batch = 4 if smoke else 40
        self.centre, self.spread = latent_norm(folder, self.rows)
        self.module = build_codes().to(device)
        if saved:
            self.module.load_state_dict(saved["live"])
        self.trained = dict(self.module.named_parameters())
        self.averaged = self.trained
        self.facts: dict[str, Any] = {}

    def is_matrix(self, name: str) -> bool:
        """Tell whether Muon trains a parameter of two dimensions."""
        return "project" not in name

    def loss(self, step: int, share: float) -> tuple[torch.Tensor, dict[str, float]]:
        """Return how far the codes are from the score's, and the square error of latents from either kind of code.

        The figures: how many digits of the codes are right, and what of each role the score's own codes miss.
        """
        rng = np.random.default_rng([6, step])
        crops = []
        asked = []
        for _ in range(self.batch):
            row = self.rows[int(rng.integers(len(self.rows)))]
            start = int(rng.integers(0, len(row.latents) - 100))
            crops.append(torch.from_numpy(row.latents[start : start + 100].astype(np.float32)))
            asked.append(engine_codes.digits_of(row.score, 100, start))
        truth = ((torch.stack(crops) - self.centre) / self.spread).to(self.device)
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
        return total, {name: float(value.detach()) for name, value in figures.items()}

    def measure(self, mean: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return nothing: the log has the loss's figures."""
        return {}


class Example(NamedTuple):
    """One row of a batch; target, source and mask as the studio's tasks have them, features NaN where unknown."""

    task: str
    target: torch.Tensor
    source: torch.Tensor
    mask: torch.Tensor
    features: torch.Tensor
    text: str
    lyrics: str
    answers: dict[str, int]
    reference: torch.Tensor | None


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

    def __init__(
        self, device: torch.device, smoke: bool, saved: dict[str, Any] | None, folder: Path
    ):
        quiet_libraries()
        self.device = device
        self.frames = 250 if smoke else 4500
        self.prompts = 4 if smoke else 48
        rows = make_pool(folder, smoke)
        self.centre, self.spread = latent_norm(folder, rows)
        self.pool: dict[int, list] = {}
        for row in rows:
            self.pool.setdefault(row.seconds, []).append(row)
        parts = [row.features[::7] for pieces in self.pool.values() for row in pieces[:200]]
        sample = torch.from_numpy(np.concatenate(parts).astype(np.float32))
        self.usual = sample.mean(0)
        self.unusual = sample.std(0).clamp(min=0.05)
        layers = saved["layers"] if saved else 6
        self._build(layers, folder)
        self.planned_share = PLANNED_SHARE if self._codes_are_scores() else 0.0
        if saved:
            # A checkpoint has no helpers.
            self.module.load_state_dict(saved["live"], strict=not saved.get("begun"))
        self.facts = {"base": self.base, "layers": layers}

    def _standard(self, latents: np.ndarray) -> torch.Tensor:
        return (torch.from_numpy(latents.astype(np.float32)) - self.centre) / self.spread

    def _build(self, layers: int, folder: Path) -> None:
        self.base = silent_latent(self.centre, self.spread)
        self.silence = self.base + torch.from_numpy(clock(max(PIECES) * FRAMES_PER_SECOND))
        parts = build_parts(layers)
        self.module = nn.ModuleDict({"parts": parts, "reader": Reader(), "side": Side()}).to(
            self.device
        )
        self.conditioner = Conditioner(dict(parts), self.silence[None]).to(self.device)
        codes = torch.load(folder / "codes.pt", weights_only=False)
        self.codes = build_codes().requires_grad_(False)
        self.codes.load_state_dict(codes.get("live", codes))
        self.codes.load_state_dict(codes.get("mean", codes), strict=False)
        self.shared: dict[str, torch.Tensor | None] = {"mask": None}
        for layer in parts["transformer"].layers:
            layer.cross_attn.set_processor(PaddingAware(self.shared))
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

    def loss(self, step: int, share: float) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of the words alone in the first minutes, later that of flow, side task and words."""
        if share < self.WORDS_SHARE:
            return self._words(step)
        share = (share - self.WORDS_SHARE) / (1 - self.WORDS_SHARE)
        rng = np.random.default_rng([13, step])
        lengths, tasks = (FIRST_LENGTHS, FIRST_TASKS) if share < FIRST_SHARE else (LENGTHS, TASKS)
        seconds = int(rng.choice(list(self.pool), p=lengths))
        count = max(1, self.frames // (seconds * FRAMES_PER_SECOND))
        batch = [
            self.example(rng, seconds, str(rng.choice(list(tasks), p=list(tasks.values()))))
            for _ in range(count)
        ]
        flow, by_feature, read, right = self._flow(batch, rng, step, share)
        beat = by_feature[slice(BEAT.start, BAR.stop)].mean()
        total = flow + 0.3 * by_feature.mean() + 0.02 * read + 2 * beat
        figures = {"flow": flow, "beat": by_feature[BEAT].mean(), "bar": by_feature[BAR].mean()}
        figures |= {"chroma": by_feature[PITCH_CLASSES].mean(), "read": read}
        return total, {name: float(value.detach()) for name, value in figures.items()} | right

    def _words(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([11, step])
        batch = []
        pieces = self.pool[20]
        for _ in range(self.prompts):
            score = pieces[int(rng.integers(len(pieces)))].score
            instead = {
                "bpm": int(rng.integers(60, 181)),
                "beats": int(rng.integers(3, 5)),
                "key": f"{rng.choice(NOTE_NAMES[int(rng.integers(12))])} {rng.choice(('major', 'minor'))}",
            }
            text, lyrics, details = words_for(score, rng, modes.TEXT2MUSIC, 20.0, **instead)
            batch.append((text, lyrics, answers_to(score, details)))
        texts, lyrics, answers = zip(*batch, strict=True)
        states, mask = self.conditioner(list(texts), list(lyrics))
        # The words must be exact: in bfloat16 the reader learns neighbouring tempos slowly.
        with torch.autocast(self.device.type, enabled=False):
            self._hide(~mask)
            transformer = self.module["parts"]["transformer"]
            read, right = self.module["reader"](transformer, states.float(), self._answers(answers))
        return read, {"read": float(read.detach()), **right}

    def _hide(self, padding: torch.Tensor) -> None:
        """Let the cross-attention skip `padding` [B, L] from here on."""
        autocast = torch.is_autocast_enabled(self.device.type)
        unseen = torch.zeros(padding.shape, device=self.device).masked_fill(padding, -1e4)
        self.shared["mask"] = unseen[:, None, None].to(
            torch.bfloat16 if autocast else torch.float32
        )

    def _answers(self, answers: tuple[dict[str, int], ...]) -> dict[str, torch.Tensor]:
        return {
            name: torch.tensor([each[name] for each in answers], device=self.device)
            for name in QUESTIONS
        }

    def example(self, rng: np.random.Generator, seconds: int, task: str) -> Example:
        """Draw a piece of `seconds`, or part of a longer one, and what one of the studio's tasks makes of it."""
        frames = seconds * FRAMES_PER_SECOND
        length = seconds
        if task != "text2music" and rng.random() >= WHOLE.get(task, 0.0):
            length = int(rng.choice(LONGER[seconds]))
        row = self.pool[length][int(rng.integers(len(self.pool[length])))]
        start = 0
        if length > seconds and rng.random() >= FROM_BEGINNING.get(task, 0.4):
            start = int(rng.integers(0, length * FRAMES_PER_SECOND - frames + 1))
        here = slice(start, start + frames)
        score = row.score
        target = self._standard(row.latents[here])
        features = (
            torch.from_numpy(row.features[here].astype(np.float32)) - self.usual
        ) / self.unusual
        silence = self.silence[here]
        if start and rng.random() < OUT_OF_TIME:
            silence = self.silence[:frames]
            features = torch.full_like(features, float("nan"))
        target, source, mask, instruction = self._context(rng, task, score, target, here, silence)
        if task != "text2music" and rng.random() < 0.5:
            source = source + SOURCE_NOISE * rng.random() * torch.from_numpy(
                rng.standard_normal(source.shape, np.float32)
            )
        text, lyrics, details = words_for(score, rng, instruction, float(seconds))
        reference = None
        if rng.random() < WITH_REFERENCE:
            reference = target.repeat(math.ceil(REFERENCE_FRAMES / frames), 1)[
                :REFERENCE_FRAMES
            ].to(self.device)
        return Example(
            task,
            target,
            source,
            mask,
            features,
            text,
            lyrics,
            answers_to(score, details),
            reference,
        )

    def _context(
        self,
        rng: np.random.Generator,
        task: str,
        score: Score,
        target: torch.Tensor,
        here: slice,
        silence: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
        """Return target, source, mask and instruction of a task."""
        everywhere = torch.ones(len(target), 1)
        if task == "text2music":
            return target, silence, everywhere, modes.TEXT2MUSIC
        if task == "repaint":
            mask = _new_region(rng, len(target))
            return target, torch.where(mask > 0, silence, target), mask, modes.REPAINT
        if task == "cover":
            planned = rng.random() < self.planned_share
            source = self._from_codes(target, score, here.start if planned else None)
            return target, source, everywhere, modes.COVER

        def stems(names: list[str]) -> torch.Tensor:
            ticks = round(score.seconds * FRAMES_PER_SECOND) * FRAME_TICKS
            return self._standard(latents_of(events_of(score, names), ticks))[here]

        if task == "complete":
            missing = [str(stem) for stem in rng.permutation(STEMS)[: int(rng.integers(1, 4))]]
            tracks = " | ".join(
                dict.fromkeys(track_of(stem, score.instruments) for stem in missing)
            )
            source = stems([stem for stem in STEMS if stem not in missing])
            return target, source, everywhere, modes.COMPLETE.format(tracks)
        stem = str(rng.choice(STEMS))
        track = track_of(stem, score.instruments)
        if task == "lego":
            return (
                stems([stem]),
                stems([s for s in STEMS if s != stem]),
                everywhere,
                modes.LAYER.format(track),
            )
        return stems([stem]), target, everywhere, modes.EXTRACT.format(track)

    @torch.no_grad()
    def _codes_are_scores(self) -> bool:
        """Tell whether the tokenizer finds the score's codes: older ones have codes of their own."""
        shares = []
        for row in self.pool[10][:20]:
            _, codes = self.codes["audio_tokenizer"].tokenize(self._standard(row.latents)[None])
            wanted = planner_codes.codes_of(engine_codes.digits_of(row.score, len(row.latents)))
            shares.append(engine_codes.agreement(codes[0, :, 0].numpy(), wanted))
        return float(np.mean(shares)) >= engine_codes.UNDERSTOOD

    @torch.no_grad()
    def _from_codes(self, target: torch.Tensor, score: Score, start: int | None) -> torch.Tensor:
        """Return latents [T, 32] from the codes of `target`, or from those of its score from the frame `start` on."""
        tokenizer = self.codes["audio_tokenizer"]
        if start is None:
            codes, _ = tokenizer.tokenize(target[None])
        else:
            planned = planner_codes.codes_of(engine_codes.digits_of(score, len(target), start))
            codes = tokenizer.quantizer.get_output_from_indices(torch.from_numpy(planned)[None])
        return self.codes["audio_token_detokenizer"](codes)[0, : len(target)]

    def _flow(
        self, batch: list[Example], rng: np.random.Generator, step: int, share: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, float]]:
        """Return the error of the velocity, of each feature [37], of the words, and the reader's right answers.

        The features count in examples that are nearly pure noise, where they must be planned; later they can be heard.
        """
        device = self.device
        target, source, features = (
            torch.stack([getattr(row, name) for row in batch]).to(device)
            for name in ("target", "source", "features")
        )
        context = torch.cat(
            [source, torch.stack([row.mask for row in batch]).to(device).expand_as(source)], dim=2
        )
        noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(step)).to(device)
        middle = 1 / (1 + np.exp(-rng.normal(0.3, 1.2, len(batch))))
        early = 1 - 0.3 * rng.random(len(batch)) ** 3
        first, last = NEARLY_NOISE
        times = np.where(rng.random(len(batch)) < first + (last - first) * share, early, middle)
        times = torch.from_numpy(times).float().to(device)
        dropped = torch.from_numpy(rng.random(len(batch)) < NO_CONDITION).to(device)
        parts = self.module["parts"]
        references = [row.reference for row in batch]
        states, mask = self.conditioner(
            [row.text for row in batch], [row.lyrics for row in batch], references
        )
        self._hide(~mask)
        read, right = self.module["reader"](
            parts["transformer"], states, self._answers(tuple(row.answers for row in batch))
        )
        null = parts["condition_encoder"].null_condition_emb.to(states.dtype)
        states = torch.where(dropped[:, None, None], null, states)
        self._hide(~(mask | dropped[:, None]))
        mixed = times[:, None, None] * noise + (1 - times[:, None, None]) * target
        velocity = velocity_of(parts["transformer"], mixed, times, states, context)
        read_features = self.module["side"](self.third)[:, : target.shape[1]].float()
        known = ~features.isnan() & ~dropped[:, None, None]
        missed = torch.where(
            known, (read_features - features.nan_to_num()).square(), torch.zeros((), device=device)
        )
        planned = times[:, None, None] ** 12
        by_feature = (missed * planned).sum((0, 1)) / (known * planned).sum((0, 1)).clamp(min=1e-3)
        error = (velocity - (noise - target)).square() * CHANNELS.to(device)
        return error.mean(), by_feature, read, right


def _new_region(rng: np.random.Generator, frames: int) -> torch.Tensor:
    """Return a mask [frames, 1] that is 1 in a middle, at the end (extend) or at the start."""
    length = int(frames * rng.uniform(0.15, 0.7))
    where = rng.random()
    start = 0
    if where < 0.35:
        start = int(rng.integers(frames - length + 1))
    elif where < 0.9:
        start = frames - length
    mask = torch.zeros(frames, 1)
    mask[start : start + length] = 1
    return mask


def silent_latent(centre: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Return the standardised latent [32] in which nothing sounds and nobody knows who plays."""
    out = -centre / spread
    out[PLAYERS] = 0
    return out


# --- the checkpoint -----------------------------------------------------------------------------------------------


def states_of(
    pipe: AceStepPipeline, centre: torch.Tensor, spread: torch.Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
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
        "base": silent_latent(centre, spread),
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
    (folder / song_clock.FILE).write_text(json.dumps(KEPT_TIME, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def count_parameters(parts: dict[str, nn.Module]) -> dict[str, int]:
    """Return the number of parameters of each part."""
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in parts.items()
    }
