"""Train the built-in songwriter's LoRA on the lyrics in training/lyrics: run it again to continue.

SmolLM2 135M Instruct learns to write songs line by line, each line behind the word that it ends with:

    [Verse 1]
     sill: Flour on the window sill
     ring: Kettle on the ring

so that it can choose a rhyme before it writes the line (lyrics_lines.py). The lower layers stay as they are:
what they make of each lyric is computed once.

The state (weights, Adam, running mean of the weights, log) is written every 90 s, and lyrics that were added are learnt
from the next pass on. --assets writes the running mean of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lyrics_small
from lyrics_form import last_word, words_of
from lyrics_lines import line_hashes

LYRICS = Path(__file__).with_name("lyrics")
STATE = Path("~/.cache/ace-studio-training/songwriter").expanduser()
FIRST_LAYER = 12  # the layers below stay as they are
RANK = 12
PARTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
BATCH = 4  # lyrics an update
RATE = 1.5e-3
WARM_UP = 10  # updates
MEAN_DECAY = 0.98  # of the running mean of the weights
HELD_OUT_EVERY = 20  # every twentieth lyric measures and is not learnt
SAVE_SECONDS = 90


@dataclass(frozen=True)
class Lesson:
    """The tokens of a chat with a lyric, and which of them are learnt."""

    tokens: tuple[int, ...]
    learnt: tuple[bool, ...]


def read_lyrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lyrics in the files of `folder`; a line that is still being written is left out."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def lesson(tokenizer: Any, lyric: dict[str, Any], chance: random.Random) -> Lesson:
    from lyrics import prompt_ids

    tones = [lyric["tone"], f"{lyric['tone']}, {lyric['style']}", lyric["style"], ""]
    asked = lyrics_small.user_prompt(lyric["brief"], chance.choice(tones))
    tokens = list(prompt_ids(tokenizer, lyrics_small.SYSTEM, asked))
    learnt = [False] * len(tokens)
    for text, new in pieces(lyric["text"]):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        tokens += ids
        learnt += [new] * len(ids)
    tokens.append(tokenizer.eos_token_id)
    learnt.append(True)
    return Lesson(tuple(tokens), tuple(learnt))


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Split a lyric into tags and marked lines, with whether each is to be learnt: tags and lines that return are not.

    Of a section whose lines all return only the mark for that is left.
    """
    seen: set[str] = set()
    for number, block in enumerate(text.strip().split("\n\n")):
        tag, *lines = [line.strip() for line in block.strip().split("\n")]
        sung = [line for line in lines if last_word(line)]
        yield lyrics_small.section_start(tag, first=number == 0), False
        if sung and seen.issuperset(sung):
            yield lyrics_small.AS_BEFORE, False
            continue
        for line in sung:
            yield lyrics_small.marked(line), line not in seen
            seen.add(line)


# --- the model --------------------------------------------------------------------------------------------------------


class Student:
    """The frozen model with trainable pairs of matrices: `down` [rank, inputs] and `up` [outputs, rank]."""

    def __init__(self, folder: Path, dtype: Any):
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        self.model = model.eval().requires_grad_(False)
        self.body = self.model.model
        self.pairs: dict[str, torch.nn.Parameter] = {}
        generator = torch.Generator().manual_seed(0)
        for number in range(FIRST_LAYER, len(self.body.layers)):
            for part in PARTS:
                self._attach(f"layers.{number}.{part}", generator)

    def _attach(self, name: str, generator: Any) -> None:
        import torch

        linear = self.body.get_submodule(name)
        outputs, inputs = linear.weight.shape
        down = torch.nn.Parameter(torch.randn(RANK, inputs, generator=generator) * inputs**-0.5)
        up = torch.nn.Parameter(torch.zeros(outputs, RANK))
        self.pairs[f"{name}.down"] = down
        self.pairs[f"{name}.up"] = up

        def add(module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
            states = arguments[0]
            change = states @ down.to(states.dtype).T @ up.to(states.dtype).T
            return output + lyrics_small.LORA_SCALE * change

        linear.register_forward_hook(add)

    def lower(self, tokens: tuple[int, ...]) -> Any:
        """Return what the frozen layers make of `tokens`: [1, length, size]."""
        import torch

        with torch.no_grad():
            states = self.body.embed_tokens(torch.tensor([tokens]))
            return self._through(states, 0, FIRST_LAYER)

    def loss(self, lower: Any, lesson: Lesson) -> Any:
        """Return the mean cross-entropy of the learnt tokens, in nats."""
        import torch

        states = self.body.norm(self._through(lower, FIRST_LAYER, len(self.body.layers)))
        learnt = torch.tensor(lesson.learnt[1:])
        logits = self.model.lm_head(states[0, :-1][learnt]).float()
        return torch.nn.functional.cross_entropy(logits, torch.tensor(lesson.tokens[1:])[learnt])

    def _through(self, states: Any, first: int, last: int) -> Any:
        import torch

        places = torch.arange(states.shape[1])[None]
        rotation = self.body.rotary_emb(states, places)
        for layer in self.body.layers[first:last]:
            states = layer(
                states, position_ids=places, position_embeddings=rotation, attention_mask=None
            )
        return states


# --- training ---------------------------------------------------------------------------------------------------------


class Training:
    """The optimizer and everything that a later run needs to continue; `queue` has the ids left in this pass."""

    def __init__(self, student: Student, tokenizer: Any, state: Path, lyrics: Path):
        import torch

        self.student = student
        self.tokenizer = tokenizer
        self.state = state
        self.lyrics = lyrics
        self.adam = torch.optim.AdamW(
            student.pairs.values(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.mean = {name: pair.detach().clone() for name, pair in student.pairs.items()}
        self.updates = 0
        self.passes = 0
        self.seconds = 0.0
        self.queue: list[str] = []
        (state / "lower").mkdir(parents=True, exist_ok=True)
        self._resume()

    def _resume(self) -> None:
        import torch

        path = self.state / "state.pt"
        if not path.is_file():
            return
        saved = torch.load(path)
        for name, pair in self.student.pairs.items():
            pair.data.copy_(saved["pairs"][name])
        self.adam.load_state_dict(saved["adam"])
        self.mean = saved["mean"]
        self.queue = saved["queue"]
        self.updates = saved["updates"]
        self.passes = saved["passes"]
        self.seconds = saved["seconds"]

    def save(self) -> None:
        import torch

        pairs = {name: pair.detach() for name, pair in self.student.pairs.items()}
        saved = {
            "pairs": pairs,
            "adam": self.adam.state_dict(),
            "mean": self.mean,
            "queue": self.queue,
        }
        saved |= {"updates": self.updates, "passes": self.passes, "seconds": self.seconds}
        torch.save(saved, self.state / "state.pt.new")
        os.replace(self.state / "state.pt.new", self.state / "state.pt")

    def run(self, passes: int, minutes: float) -> None:
        """Train until `passes` are done or `minutes` (0: any number) have gone by, and save now and then."""
        began = time.monotonic()
        saved = began
        while self.passes < passes:
            ended = self.step()
            now = time.monotonic()
            spent = minutes and now - began > 60 * minutes
            if ended or spent or now - saved > SAVE_SECONDS:
                self.save()
                saved = now
            if spent:
                return

    def step(self) -> bool:
        """Learn a batch; returns whether it ended a pass, which is measured and logged."""
        began = time.monotonic()
        known = {lyric["id"]: lyric for lyric in read_lyrics(self.lyrics)}
        if not self.queue:
            self.queue = [name for name in known if not is_held_out(name)]
            random.Random(self.passes).shuffle(self.queue)
        batch = self.queue[:BATCH]
        self.queue = self.queue[BATCH:]
        loss = self._update([known[name] for name in batch])
        row = {"update": self.updates, "pass": self.passes, "lyrics": len(known), "loss": loss}
        if not self.queue:
            self.passes += 1
            row["held_out"] = self._measure(
                [lyric for name, lyric in known.items() if is_held_out(name)]
            )
        self.seconds += time.monotonic() - began
        row["minutes"] = self.seconds / 60
        with (self.state / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(row, flush=True)
        return not self.queue

    def _update(self, batch: list[dict[str, Any]]) -> float:
        """Return the batch's mean loss in nats a token."""
        import torch

        total = 0.0
        for lyric in batch:
            loss = self.student.loss(*self._prepared(lyric))
            (loss / len(batch)).backward()
            total += float(loss.detach())
        for group in self.adam.param_groups:
            group["lr"] = RATE * min(1.0, (self.updates + 1) / WARM_UP)
        torch.nn.utils.clip_grad_norm_(list(self.student.pairs.values()), 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.updates += 1
        # The mean of a short training must not hold on to where it began.
        decay = min(MEAN_DECAY, self.updates / (self.updates + 5))
        for name, pair in self.student.pairs.items():
            self.mean[name].lerp_(pair.detach(), 1 - decay)
        return total / len(batch)

    def _prepared(self, lyric: dict[str, Any]) -> tuple[Any, Lesson]:
        """Return a lyric as the frozen layers leave it, computed once, and its lesson."""
        import torch

        made = lesson(self.tokenizer, lyric, random.Random(lyric["id"]))
        digest = hashlib.sha256(repr(made.tokens).encode()).hexdigest()[:24]
        path = self.state / "lower" / f"{digest}.pt"
        if path.is_file():
            return torch.load(path), made
        lower = self.student.lower(made.tokens)
        torch.save(lower, path)
        return lower, made

    def _measure(self, lyrics: list[dict[str, Any]]) -> float:
        """Return the mean loss on `lyrics` in nats a token, nan without any."""
        import torch

        with torch.no_grad():
            losses = [float(self.student.loss(*self._prepared(lyric))) for lyric in lyrics]
        return sum(losses) / len(losses) if losses else float("nan")


def is_held_out(name: str) -> bool:
    return int(name) % HELD_OUT_EVERY == 0


def write_words(lyrics: list[dict[str, Any]], path: Path) -> None:
    """Write the words of the lyrics, the most frequent first."""
    lines = [
        line for lyric in lyrics for line in lyric["text"].split("\n") if not line.startswith("[")
    ]
    counts = Counter(
        word for line in lines for word in words_of(line) if word.isalpha() and len(word) > 1
    )
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    path.write_text("\n".join(ranked) + "\n", encoding="utf-8")


def write_learnt(lyrics: list[dict[str, Any]], path: Path) -> None:
    """Write the hashes of all lines, those of held-out lyrics too."""
    hashes: set[int] = set()
    for lyric in lyrics:
        for line in lyric["text"].split("\n"):
            if not line.startswith("["):
                hashes |= line_hashes(words_of(line))
    path.write_bytes(struct.pack(f"<{len(hashes)}I", *sorted(hashes)))


def export(mean: dict[str, Any], path: Path) -> None:
    """Write the LoRA as the songwriter reads it."""
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: pair.to(torch.bfloat16).contiguous() for name, pair in sorted(mean.items())}, path
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument("--lyrics", type=Path, default=LYRICS)
    parser.add_argument("--passes", type=int, default=6, help="passes over the lyrics in all (6)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: do not")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="compute in bfloat16: faster where the processor can",
    )
    parser.add_argument(
        "--assets", action="store_true", help="only write assets/songwriter from the state"
    )
    asked = parser.parse_args()
    run(asked)


def run(asked: argparse.Namespace) -> None:
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = lyrics_small.unpack(asked.state / "base", None)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    student = Student(folder, torch.bfloat16 if asked.bfloat16 else torch.float32)
    training = Training(student, tokenizer, asked.state, asked.lyrics)
    if asked.assets:
        export(training.mean, lyrics_small.LORA)
        write_words(read_lyrics(asked.lyrics), lyrics_small.WORDS)
        write_learnt(read_lyrics(asked.lyrics), lyrics_small.LEARNT)
        return
    training.run(asked.passes, asked.minutes)
