"""Train the built-in planner on the band's scores: run it again to continue; --export writes assets/planner.

A small Qwen3 in the planner's own layout reads a caption and the lyrics' section tags, and writes metadata and the
built-in engine's codes, five a second. The prompts are those that `planner.py` makes. Four tasks share the model:

| task | reads | writes |
|---|---|---|
| generate | caption, lyrics | thoughts (now and then with a caption), codes |
| inspire | a few words, whether it is instrumental | thoughts with a caption, tags |
| polish | caption, lyrics | the same as thoughts with another caption, tags |
| describe | codes | thoughts with a caption, tags |

Codes are those of the engine's audio tokenizer, and of them the 4,096 that the scores need most; any other is replaced
by the nearest. With another tokenizer the command begins again by itself.

The state (pieces, weights, Adam, running mean, log) lies in a folder outside the repository and is saved every 90 s.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import pickle
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers.pipelines.ace_step import AceStepAudioTokenizer
from torch.nn import functional

import planner
from limits import INSTRUMENTAL
from model_weights import BUILT_IN, MODEL_VARIABLE, PLANNER_VARIABLE
from models import quiet_libraries
from params import parse_request
from planner_decoding import encode_marked, nearest_code
from training.band_score import compose
from training.engine_latents import (
    FRAME_TICKS,
    FRAMES_PER_SECOND,
    events_of,
    latents_of,
    lyric_words,
)
from training.small_models import THINK, make_tokenizer

STATE = Path("~/.cache/ace-studio-training/planner").expanduser()
FIRST_SEED = 30_000_000
HELD_OUT_SEED = 40_000_000
SHARD = 400  # pieces that are made at once
SECONDS = (10, 20, 30, 45, 60, 60, 90, 120, 150, 180)
CODES = 4_096
SIZE = 160
LAYERS = 6
HEADS = 5
GROUPS = 1
HEAD_SIZE = 32
INNER = 480
TASKS = {"generate": 0.55, "unguided": 0.09, "inspire": 0.12, "polish": 0.12, "describe": 0.12}
BATCH_TOKENS = 3_000  # tokens of an update, padding included
RATE = 1.5e-3
WARM_UP = 200
MEAN_DECAY = 0.999
SAVE_SECONDS = 90
MEASURED = 24  # held-out pieces


@dataclass(frozen=True)
class Piece:
    """What the planner learns from a score; `lyrics` are its tags or [Instrumental], `codes` five a second."""

    captions: tuple[str, ...]
    lyrics: str
    bpm: int
    key: str
    beats: int
    seconds: int
    codes: tuple[int, ...]


# --- pieces -----------------------------------------------------------------------------------------------------------


class Tokenizing:
    """The built-in engine's audio tokenizer, on latents that are read off scores."""

    def __init__(self, engine: Path, norm: Path):
        self.tokenizer = AceStepAudioTokenizer.from_pretrained(
            engine, subfolder="audio_tokenizer"
        ).eval()
        found = torch.load(norm)
        self.centre = found["mu"].reshape(1, -1)
        self.spread = found["sd"].reshape(1, -1)
        weights = (engine / "audio_tokenizer" / "diffusion_pytorch_model.safetensors").read_bytes()
        self.digest = hashlib.sha256(weights).hexdigest()[:16]

    def piece(self, seed: int) -> Piece:
        seconds = int(np.random.default_rng(seed).choice(SECONDS))
        score = compose(seed, seconds=float(seconds))
        latents = latents_of(events_of(score), seconds * FRAMES_PER_SECOND * FRAME_TICKS)
        clean = ((torch.from_numpy(latents) - self.centre) / self.spread)[None]
        with torch.no_grad():
            # Its length is a multiple of the pooling window, so nothing is padded with this silence.
            _, indices = self.tokenizer.tokenize(clean, torch.zeros_like(clean))
        codes = tuple(indices[0, :, 0].tolist())
        return Piece(
            score.captions, score.lyrics, score.bpm, score.key, score.beats, seconds, codes
        )


class Pieces:
    """Pieces in files of `SHARD`, made when they are first asked for."""

    def __init__(self, folder: Path, tokenizing: Tokenizing):
        self._folder = folder
        self._tokenizing = tokenizing
        folder.mkdir(parents=True, exist_ok=True)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - lives as long as the training
    def shard(self, number: int) -> list[Piece]:
        first = HELD_OUT_SEED if number < 0 else FIRST_SEED + SHARD * number
        path = self._folder / f"pieces-{number}.pkl"
        if path.is_file():
            return [Piece(**fields) for fields in pickle.loads(path.read_bytes())]
        pieces = [
            self._tokenizing.piece(first + place)
            for place in range(MEASURED if number < 0 else SHARD)
        ]
        aside = path.with_suffix(".new")
        aside.write_bytes(pickle.dumps([vars(piece) for piece in pieces]))
        os.replace(aside, path)
        return pieces


# --- the model --------------------------------------------------------------------------------------------------------


def frequent_codes(pieces: Sequence[Piece]) -> list[int]:
    counts = Counter(code for piece in pieces for code in piece.codes)
    return sorted(code for code, _ in counts.most_common(CODES))


def build_tokenizer(codes: Sequence[int]) -> Any:
    return make_tokenizer("qwen3", (*THINK, *(f"<|audio_code_{code}|>" for code in codes)))


def build_model(tokenizer: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=SIZE,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=8_192,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id,
        pad_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.update(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    return model


# --- lessons ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """Tokens, and of each whether it is learnt: 0 no, 1 text, 2 a code."""

    tokens: tuple[int, ...]
    learnt: tuple[int, ...]


class Teacher:
    """Turns pieces into lessons with the prompts of `planner.py`."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        spelled = tokenizer.get_vocab()
        found = {}
        for token, number in spelled.items():
            code = re.fullmatch(CODE, token)
            if code:
                found[int(code[1])] = number
        self.known = sorted(found)
        self._ids = found
        self._end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._nearest = functools.cache(
            lambda code: code if code in found else nearest_code(code, self.known)
        )

    def lesson(self, piece: Piece, task: str, chance: random.Random) -> Lesson:
        caption, other = chance.sample(piece.captions, 2)
        lyrics = with_words(piece.lyrics, chance)
        if task == "generate":
            # A request that keeps its prompt has no caption in its thoughts.
            thoughts = self._thoughts(piece, other if chance.random() < 0.25 else "")
            prompt = planner.song_prompt(self._tokenizer, song_request(caption, lyrics))
            return self._joined((prompt, 0), (thoughts, 1), (piece.codes, 2))
        if task == "unguided":
            return self._joined((planner.unguided_prompt(self._tokenizer), 0), (piece.codes, 2))
        if task == "inspire":
            instrumental = str(lyrics == INSTRUMENTAL).lower()
            words = f"{caption}\n\ninstrumental: {instrumental}"
        elif task == "polish":
            words = f"# Caption\n{caption}\n\n# Lyric\n{lyrics}"
        else:
            words = "".join(f"<|audio_code_{self._nearest(code)}|>" for code in piece.codes)
        prompt = planner.chat(self._tokenizer, task, words)
        written = piece.lyrics if task != "polish" else lyrics
        return self._joined(
            (prompt, 0), (self._thoughts(piece, other), 1), (f"# Lyric\n{written}", 1)
        )

    def _thoughts(self, piece: Piece, caption: str) -> str:
        values = {
            "bpm": piece.bpm,
            "caption": caption,
            "duration": piece.seconds,
            "keyscale": piece.key,
            "language": "en",
            "timesignature": piece.beats,
        }
        written = yaml.dump(
            {name: value for name, value in values.items() if value}, allow_unicode=True
        ).strip()
        return f"<think>\n{written}\n</think>\n\n"

    def _joined(self, *parts: tuple[str | tuple[int, ...], int]) -> Lesson:
        tokens: list[int] = []
        learnt: list[int] = []
        for part, kind in parts:
            if isinstance(part, str):
                ids = list(encode_marked(self._tokenizer, part))
            else:
                ids = [self._ids[self._nearest(code)] for code in part]
            tokens += ids
            learnt += [kind] * len(ids)
        kind = parts[-1][1]
        return Lesson((*tokens, self._end), (*learnt, kind))


CODE = r"<\|audio_code_(\d+)\|>"


def song_request(caption: str, lyrics: str) -> Any:
    fields = {"prompt": caption}
    fields |= {"instrumental": True} if lyrics == INSTRUMENTAL else {"lyrics": lyrics}
    return parse_request("generate", fields)


def with_words(lyrics: str, chance: random.Random) -> str:
    """Put words that mean nothing under the tags of some lyrics, as sung songs have them."""
    if lyrics == INSTRUMENTAL or chance.random() < 0.5:
        return lyrics
    blocks = []
    for block in lyrics.split("\n\n"):
        tag = block.split("\n")[0]
        lines = [
            " ".join(chance.choices(lyric_words(), k=chance.randint(3, 7)))
            for _ in range(chance.randint(1, 4))
        ]
        blocks.append("\n".join([tag, *lines]))
    return "\n\n".join(blocks)


# --- training ---------------------------------------------------------------------------------------------------------


class Training:
    """The model, its optimizer, and everything that a later run needs to continue."""

    def __init__(self, state: Path, tokenizing: Tokenizing):
        self.state = state
        self.pieces = Pieces(state / tokenizing.digest, tokenizing)
        self.tokenizer = build_tokenizer(frequent_codes(self.pieces.shard(0)))
        self.teacher = Teacher(self.tokenizer)
        self.model = build_model(self.tokenizer)
        decayed = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        rest = [parameter for parameter in self.model.parameters() if parameter.dim() < 2]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
        self.mean = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.updates = 0
        self.seconds = 0.0
        self.path = state / tokenizing.digest / "state.pt"
        self._resume()

    def _resume(self) -> None:
        if not self.path.is_file():
            return
        saved = torch.load(self.path)
        self.model.load_state_dict(saved["model"])
        self.adam.load_state_dict(saved["adam"])
        self.mean = saved["mean"]
        self.updates = saved["updates"]
        self.seconds = saved["seconds"]

    def save(self) -> None:
        saved = {
            "model": self.model.state_dict(),
            "adam": self.adam.state_dict(),
            "mean": self.mean,
        }
        saved |= {"updates": self.updates, "seconds": self.seconds}
        aside = self.path.with_suffix(".new")
        torch.save(saved, aside)
        os.replace(aside, self.path)

    def run(self, updates: int, minutes: float) -> None:
        began = time.monotonic()
        saved = began
        while self.updates < updates:
            self._step()
            now = time.monotonic()
            spent = minutes and now - began > 60 * minutes
            if spent or now - saved > SAVE_SECONDS or self.updates == updates:
                self.save()
                saved = now
            if spent:
                return

    def _step(self) -> None:
        began = time.process_time()
        losses = self._losses(self._batch())
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = RATE * min(1.0, (self.updates + 1) / WARM_UP)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.updates += 1
        decay = min(MEAN_DECAY, self.updates / (self.updates + 50))
        for name, value in self.model.named_parameters():
            self.mean[name].lerp_(value.detach(), 1 - decay)
        self.seconds += time.process_time() - began
        if self.updates % 20 == 0:
            self._log({name: float(loss.detach()) for name, loss in losses.items()})

    def _batch(self) -> list[Lesson]:
        """Return lessons of one task on pieces of about one length; a new shard opens every 500 updates."""
        chance = random.Random(self.updates)
        task = chance.choices(list(TASKS), list(TASKS.values()))[0]
        shard = self.pieces.shard(chance.randrange(self.updates // 500 + 1))
        first = chance.choice(shard)
        alike = [piece for piece in shard if piece.seconds == first.seconds]
        lessons: list[Lesson] = []
        while len(lessons) < 16 and sum(len(each.tokens) for each in lessons) < BATCH_TOKENS:
            lessons.append(self.teacher.lesson(chance.choice(alike), task, chance))
        return lessons

    def _losses(self, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
        """Return the mean cross-entropies of text and of codes, as far as there are any, in nats a token."""
        longest = max(len(each.tokens) for each in lessons)
        tokens = torch.zeros(len(lessons), longest, dtype=torch.long)
        learnt = torch.zeros(len(lessons), longest, dtype=torch.long)
        for row, each in enumerate(lessons):
            tokens[row, : len(each.tokens)] = torch.tensor(each.tokens)
            learnt[row, : len(each.learnt)] = torch.tensor(each.learnt)
        # Padding follows each text, and attention looks back: it needs no mask.
        states = self.model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        losses = {}
        for kind, name in ((1, "text"), (2, "codes")):
            chosen = learnt[:, 1:] == kind
            if chosen.any():
                scores = self.model.lm_head(states[chosen])
                losses[name] = functional.cross_entropy(scores, tokens[:, 1:][chosen])
        return losses

    def measure(self) -> dict[str, float]:
        """Return the losses on held-out pieces with the running mean of the weights."""
        live = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.model.load_state_dict(self.mean, strict=False)
        with torch.no_grad():
            lessons = [
                self.teacher.lesson(piece, "generate", random.Random(0))
                for piece in self.pieces.shard(-1)
            ]
            losses = [self._losses([each]) for each in lessons]
        self.model.load_state_dict(live, strict=False)
        return {
            f"held_out_{name}": sum(float(each[name]) for each in losses) / len(losses)
            for name in losses[0]
        }

    def _log(self, row: dict[str, float]) -> None:
        row = {"update": self.updates, "minutes": round(self.seconds / 60, 2), **row}
        if self.updates % 500 == 0:
            row |= self.measure()
        with (self.state / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(row, flush=True)

    def export(self, folder: Path) -> None:
        """Write the planner as transformers reads it, with the running mean of the weights, in bfloat16."""
        self.model.load_state_dict(self.mean, strict=False)
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument(
        "--engine",
        type=Path,
        default=BUILT_IN[MODEL_VARIABLE],
        help="whose audio tokenizer is used",
    )
    parser.add_argument(
        "--norm", type=Path, help="the engine training's norm.pt, how its latents are scaled"
    )
    parser.add_argument("--updates", type=int, default=20_000, help="in all (20,000)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: do not")
    parser.add_argument(
        "--export", action="store_true", help="only write the trained planner into assets/planner"
    )
    asked = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    norm = asked.norm or STATE.with_name("engine") / "norm.pt"
    training = Training(asked.state, Tokenizing(asked.engine, norm))
    if asked.export:
        training.export(BUILT_IN[PLANNER_VARIABLE])
    else:
        training.run(asked.updates, asked.minutes)
