"""Train the built-in planner on the band's scores: run it again to continue; --export writes assets/planner.

A small Qwen3 in the planner's own layout reads a caption and the lyrics' section tags, and writes metadata and the
built-in engine's codes, five a second. The prompts are those that `planner.py` makes. Four tasks share the model:

| task | reads | writes |
|---|---|---|
| generate | caption, lyrics | thoughts (now and then with a caption), codes |
| inspire | a few words, whether it is instrumental | thoughts with a caption, tags |
| polish | caption, lyrics | the same as thoughts with another caption, tags |
| describe | codes | thoughts with a caption, tags |

Codes to write are read off the score (`engine_codes.py`), and of them the 4,096 that the scores need most; any other
is replaced by the one that means most nearly the same. Codes to describe are what the engine's audio tokenizer hears in
the same piece; with another tokenizer the pieces are heard again, and the training goes on.

While it is trained, a code's embedding is a sum of the embeddings of what its digits say, and a small part of its own:
some two hundred vectors learn what 4,096 would have to. An export writes the sums, and so an ordinary Qwen3.

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
import sys
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
from torch import nn
from torch.nn import functional

import planner
import planner_codes
import planner_sketch
from limits import INSTRUMENTAL
from model_weights import BUILT_IN, MODEL_VARIABLE, PLANNER_VARIABLE
from models import quiet_libraries
from params import parse_request
from planner_decoding import encode_marked, nearest_code
from song_words import first_named, known_words
from training import engine_codes
from training.band_score import compose
from training.engine_latents import (
    FRAME_TICKS,
    FRAMES_PER_SECOND,
    events_of,
    latents_of,
    lyric_words,
)
from training.engine_train import Optimizer
from training.engine_words import words_of_the_engine, write_words
from training.small_models import THINK, make_tokenizer

STATE = Path("~/.cache/ace-studio-training/planner").expanduser()
FIRST_SEED = 30_000_000
HELD_OUT_SEED = 40_000_000
SHARD = 400  # pieces that are made at once
SECONDS = (10, 20, 20, 30, 30, 45, 60, 60, 90, 120, 180)
CODES = 4_096
SIZE = 160
LAYERS = 6
HEADS = 5
GROUPS = 1
HEAD_SIZE = 32
INNER = 480
TASKS = {"generate": 0.55, "unguided": 0.09, "inspire": 0.12, "polish": 0.12, "describe": 0.12}
BATCH_TOKENS = 3_000  # tokens of an update, padding included
WARM_UP = 100
FALLING = 1_000
"""From this update on the rates fall with the root of the updates."""
MEAN_DECAY = 0.998
MISHEARD = 0.5
"""How many lessons have codes that lead astray, up to all of them: tempo and key have to come from the words."""
SAVE_SECONDS = 90
MEASURE_UPDATES = 250
MEASURED = 24  # held-out pieces
STYLE_SHARDS = 5  # whose pieces show what each style plays
DRAFTS = 6  # of them, for which codes are drawn
DRAFTED = 30  # seconds of each


@dataclass(frozen=True)
class Piece:
    """What the planner learns from a score; `lyrics` are its tags or [Instrumental].

    `codes`, five a second, say what the score does; `heard` is what the engine's tokenizer makes of its latents.
    """

    captions: tuple[str, ...]
    lyrics: str
    bpm: int
    key: str
    beats: int
    seconds: int
    codes: tuple[int, ...]
    heard: tuple[int, ...]


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
        digits = engine_codes.digits_of(score, seconds * FRAMES_PER_SECOND)
        return Piece(
            score.captions,
            score.lyrics,
            score.bpm,
            score.key,
            score.beats,
            seconds,
            tuple(planner_codes.codes_of(digits).tolist()),
            tuple(indices[0, :, 0].tolist()),
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
        path = self._folder / f"scores-{number}.pkl"
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


class Embedding(nn.Module):
    """The planner's token embeddings while it is trained: text's own, and sums of parts for the codes.

    The codes' tokens are the last ones and stand in the order of `codes`.
    """

    def __init__(self, tokens: int, codes: Sequence[int]):
        super().__init__()
        parts, count = engine_codes.parts_of(np.array(codes))
        self.register_buffer("which", torch.from_numpy(parts), persistent=False)
        self.text = nn.Parameter(torch.randn(tokens - len(codes), SIZE) * 0.02)
        self.parts = nn.Parameter(torch.randn(count, SIZE) * 0.02)
        self.own = nn.Parameter(torch.zeros(len(codes), SIZE))

    def codes(self) -> torch.Tensor:
        """Return the embedding [C, SIZE] of every code."""
        return functional.embedding_bag(self.which, self.parts, mode="sum") + self.own

    def table(self) -> torch.Tensor:
        """Return the embeddings of all tokens."""
        return torch.cat([self.text, self.codes()])


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
        self.first_code = min(found.values())
        self._ids = found
        self._alike = {code: code for code in found}
        self._end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._nearest = functools.cache(
            lambda code: code if code in found else nearest_code(code, self.known)
        )

    def lesson(self, piece: Piece, task: str, chance: random.Random) -> Lesson:
        caption, other = chance.sample(piece.captions, 2)
        lyrics = with_words(piece.lyrics, chance)
        if task == "generate":
            # A request that keeps its prompt has no caption in its thoughts.
            thoughts = self._thoughts(piece, other if chance.random() < 0.25 else "", chance)
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
            words = "".join(f"<|audio_code_{self._nearest(code)}|>" for code in piece.heard)
        prompt = planner.chat(self._tokenizer, task, words)
        written = piece.lyrics if task != "polish" else lyrics
        return self._joined(
            (prompt, 0), (self._thoughts(piece, other, chance), 1), (f"# Lyric\n{written}", 1)
        )

    def _thoughts(self, piece: Piece, caption: str, chance: random.Random) -> str:
        values = {
            "bpm": piece.bpm,
            "caption": caption,
            "duration": piece.seconds,
            "keyscale": piece.key,
            "language": "en" if chance.random() < 0.5 else "",
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
                ids = [self._ids[code] for code in self.alike(part)]
            tokens += ids
            learnt += [kind] * len(ids)
        # After the last code the studio ends the text itself.
        return Lesson((*tokens, self._end), (*learnt, int(parts[-1][1] == 1)))

    def alike(self, codes: Sequence[int]) -> list[int]:
        """Return codes as far as they are known, in place of any other one that means nearly the same."""
        new = sorted({code for code in codes if code not in self._alike})
        if new:
            found = planner_codes.likest(np.array(new), np.array(self.known))
            self._alike |= dict(zip(new, found.tolist(), strict=True))
        return [self._alike[code] for code in codes]


CODE = r"<\|audio_code_(\d+)\|>"


def song_request(caption: str, lyrics: str) -> Any:
    return parse_request("generate", {"prompt": caption, **words_of(lyrics)})


def words_of(lyrics: str) -> dict[str, Any]:
    """Return a request's fields for some lyrics."""
    return {"instrumental": True} if lyrics == INSTRUMENTAL else {"lyrics": lyrics}


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

    rate = 0.02
    adam_rate = 2e-3
    newton_steps = 4
    inputs_first = False

    def __init__(self, state: Path, tokenizing: Tokenizing):
        self.state = state
        self.pieces = Pieces(state / tokenizing.digest, tokenizing)
        self.tokenizer = build_tokenizer(frequent_codes(self.pieces.shard(0)))
        self.teacher = Teacher(self.tokenizer)
        self.model = build_model(self.tokenizer)
        self.embedding = Embedding(len(self.tokenizer), self.teacher.known)
        inner = self.model.model
        self.trained = {f"model.{n}": p for n, p in inner.named_parameters() if "embed" not in n}
        self.trained |= {f"embedding.{n}": p for n, p in self.embedding.named_parameters()}
        self.optimizer = Optimizer(self)
        self.mean = {name: value.detach().clone() for name, value in self.trained.items()}
        self.updates = 0
        self.seconds = 0.0
        self.path = state / "state.pt"
        self._resume()

    def is_matrix(self, name: str) -> bool:
        """Tell whether Muon trains a parameter of two dimensions."""
        return not name.startswith("embedding.")

    def _resume(self) -> None:
        if not self.path.is_file():
            return
        saved = torch.load(self.path)
        self._put(saved["live"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.mean = saved["mean"]
        self.updates = saved["updates"]
        self.seconds = saved["seconds"]

    @torch.no_grad()
    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        for name, value in self.trained.items():
            value.copy_(weights[name])

    def save(self) -> None:
        saved = {
            "live": {name: value.detach() for name, value in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
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
        losses = self._losses(self._batch(), misheard=torch.Generator().manual_seed(self.updates))
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
        risen = min(1.0, (self.updates + 1) / WARM_UP)
        self.optimizer.step(risen * min(1.0, (FALLING / (self.updates + 1)) ** 0.5))
        self.optimizer.zero_grad()
        self.updates += 1
        decay = min(MEAN_DECAY, self.updates / (self.updates + 20))
        live = [value.detach() for value in self.trained.values()]
        torch._foreach_lerp_(list(self.mean.values()), live, 1 - decay)
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

    def _losses(
        self,
        lessons: list[Lesson],
        by_digit: bool = False,
        misheard: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the mean cross-entropies of text and of codes, as far as there are any, in nats a token."""
        longest = max(len(each.tokens) for each in lessons)
        tokens = torch.zeros(len(lessons), longest, dtype=torch.long)
        learnt = torch.zeros(len(lessons), longest, dtype=torch.long)
        for row, each in enumerate(lessons):
            tokens[row, : len(each.tokens)] = torch.tensor(each.tokens)
            learnt[row, : len(each.learnt)] = torch.tensor(each.learnt)
        # Padding follows each text, and attention looks back: it needs no mask.
        table = self.embedding.table()
        heard = tokens[:, :-1]
        if misheard is not None:
            heard = self._misheard(heard, learnt[:, :-1] == 2, misheard)
        states = self.model.model(
            inputs_embeds=functional.embedding(heard, table), use_cache=False
        ).last_hidden_state
        first = self.teacher.first_code
        losses = {}
        # The studio draws text and codes apart, so neither has to outweigh the other.
        for kind, name, rows, before in (
            (1, "text", table[:first], 0),
            (2, "codes", table[first:], first),
        ):
            chosen = learnt[:, 1:] == kind
            if chosen.any():
                scores = states[chosen] @ rows.T
                wanted = tokens[:, 1:][chosen] - before
                losses[name] = functional.cross_entropy(scores, wanted)
                if by_digit and name == "codes":
                    losses |= self._by_digit(scores, wanted)
        return losses

    def _misheard(
        self, tokens: torch.Tensor, codes: torch.Tensor, chance: torch.Generator
    ) -> torch.Tensor:
        """Return `tokens` [B, n] with random codes in the place of some of their `codes`, in a share of the rows."""
        rows = torch.rand(len(tokens), 1, generator=chance) < MISHEARD
        shares = rows * torch.rand(len(tokens), 1, generator=chance)
        wrong = codes & (torch.rand(tokens.shape, generator=chance) < shares)
        last = self.teacher.first_code + len(self.teacher.known)
        others = torch.randint(self.teacher.first_code, last, tokens.shape, generator=chance)
        return torch.where(wrong, others, tokens)

    def _by_digit(self, scores: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the cross-entropy of each thing that codes say, from the scores [N, C] of all codes."""
        digits = planner_codes.digits_in(np.array(self.teacher.known))
        columns = {name: digits[:, place] for place, name in enumerate(engine_codes.NAMES)}
        columns["chord"] = planner_codes.chord_in(digits)
        shares = scores.softmax(dim=-1)
        losses = {}
        for name, column in columns.items():
            values = torch.from_numpy(column)
            groups = functional.one_hot(values, 25).float()
            right = (shares @ groups).gather(1, values[wanted][:, None])
            losses[name] = -right.clamp(min=1e-9).log().mean()
        return losses

    def measure(self) -> dict[str, float]:
        """Return the losses on held-out pieces, and what drafts are like, with the running mean of the weights."""
        live = {name: value.detach().clone() for name, value in self.trained.items()}
        self._put(self.mean)
        with torch.no_grad():
            lessons = [
                self.teacher.lesson(piece, "generate", random.Random(0))
                for piece in self.pieces.shard(-1)
            ]
            losses = [self._losses([each], by_digit=True) for each in lessons]
        self._put(live)
        return {
            f"held_out_{name}": sum(float(each[name]) for each in losses) / len(losses)
            for name in losses[0]
        }

    def drafts(self, count: int) -> dict[str, float]:
        """Return how well the codes that the studio would draw for held-out prompts keep tempo, bar and key."""
        model = self.exportable()
        words = known_words(words_of_the_engine())
        writer = planner.Planner(model, self.tokenizer, "drafts", words)
        found = []
        for piece in self.pieces.shard(-1)[:count]:
            fields = {"duration": DRAFTED, "bpm": piece.bpm, "key": piece.key}
            fields |= {"time_signature": str(piece.beats), "prompt": piece.captions[0]}
            fields |= words_of(piece.lyrics)
            *_, plan = planner.plan(writer, parse_request("generate", fields), (piece.bpm,))
            codes = np.array(plan.codes[0])
            found.append(engine_codes.drafted(codes, piece.bpm, piece.beats, piece.key))
            found[-1]["different"] = len(set(plan.codes[0]))
            found[-1]["stuck"] = float(plan.stuck[0] is not None)
        return {
            f"draft_{name}": float(np.mean([each[name] for each in found])) for name in found[0]
        }

    def _log(self, row: dict[str, float]) -> None:
        row = {"update": self.updates, "minutes": round(self.seconds / 60, 2), **row}
        if self.updates % MEASURE_UPDATES == 0:
            row |= self.measure() | self.drafts(DRAFTS)
        with (self.state / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(row, flush=True)

    def exportable(self) -> Any:
        """Return the planner with the running mean of the weights, as the ordinary model that the studio runs."""
        live = {name: value.detach().clone() for name, value in self.trained.items()}
        self._put(self.mean)
        model = build_model(self.tokenizer)
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(self.embedding.table())
        self._put(live)
        return model.eval().requires_grad_(False)

    def export(self, folder: Path) -> None:
        """Write the planner as transformers reads it, in bfloat16.

        Raises ValueError where the engine's codes mean something else than those that it writes.
        """
        shares = [
            engine_codes.agreement(np.array(piece.heard), np.array(piece.codes))
            for piece in self.pieces.shard(-1)
        ]
        if np.mean(shares) < engine_codes.UNDERSTOOD:
            raise ValueError(
                "The engine's audio codes do not mean what this planner writes: train its codes and song model first."
            )
        self.exportable().to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_words(folder)
        planner_sketch.write_styles(self.styles(), folder)

    def styles(self) -> planner_sketch.Styles:
        """Return what the engine's tokenizer hears in pieces of each style."""
        known = known_words(words_of_the_engine())
        names = tuple(known.style_metres)
        played = np.zeros((len(names), planner_sketch.PLAYED), np.int32)
        tempos = np.zeros((len(names), planner_sketch.TEMPO_BINS), np.int32)
        for number in range(STYLE_SHARDS):
            for piece in self.pieces.shard(number):
                named = [first_named(caption, known.style_names) for caption in piece.captions]
                style = next((names.index(name) for name in named if name), None)
                if style is not None:
                    played[style] += planner_sketch.played(piece.heard)
                    tempos[style, planner_sketch.tempo_bin(piece.bpm)] += 1
        return planner_sketch.Styles(names, played, tempos)


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
        "--export",
        type=Path,
        nargs="?",
        const=BUILT_IN[PLANNER_VARIABLE],
        help="only write the trained planner, into this folder (assets/planner)",
    )
    asked = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    norm = asked.norm or STATE.with_name("engine") / "norm.pt"
    training = Training(asked.state, Tokenizing(asked.engine, norm))
    if asked.export:
        try:
            training.export(asked.export)
        except ValueError as error:
            sys.exit(str(error))
    else:
        training.run(asked.updates, asked.minutes)
