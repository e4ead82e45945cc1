"""Have the songwriter write a lyric for each held-out brief and measure them; --gate fails where they are not good.

It writes through `SmallSongwriter.write`, as the studio does, with the studio's usual options. Lyrics and their faults
are written to --out one by one, and a later run continues there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lyrics_small
import writers
from lyrics_form import (
    FEWEST_SYLLABLES,
    MOST_SYLLABLES,
    content_words,
    count_syllables,
    last_word,
    mentions,
    parse_structure,
    pronunciations,
    rhymes,
    words_of,
)
from lyrics_lines import LEARNT_RUN, LEAST_LEARNT
from lyrics_tags import parse_heading
from model_weights import Weights, find_songwriter
from params import parse_request
from training.songwriter import LYRICS, STATE, export, read_lyrics

BRIEFS = Path(__file__).with_name("briefs.txt")


@dataclass(frozen=True)
class Brief:
    """What is asked for; the n-th brief is written with seed n."""

    seed: int
    brief: str
    tone: str
    structure: str


def read_briefs(path: Path = BRIEFS) -> list[Brief]:
    rows = [line.split("|") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [Brief(seed, *row) for seed, row in enumerate(rows, 1)]


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A line of the table: how much of what was looked at is right, in [0, 1], and the least that is shipped."""

    name: str
    least: float
    right: Callable[[dict[str, Any]], Sequence[bool]]


def sections_of(text: str) -> list[tuple[str, list[str]]]:
    """Split lyrics into tags and their lines."""
    found: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        if parse_heading(line):
            found.append((line, []))
        elif line.strip() and found:
            found[-1][1].append(line)
    return found


def lines_of(row: dict[str, Any]) -> list[str]:
    return [line for _, lines in sections_of(row["text"]) for line in lines]


def tags_right(row: dict[str, Any]) -> list[bool]:
    wanted = [str(section.tag) for section in parse_structure(row["structure"])]
    return [[tag for tag, _ in sections_of(row["text"])] == wanted]


def lengths_right(row: dict[str, Any]) -> list[bool]:
    return [FEWEST_SYLLABLES <= count_syllables(line) <= MOST_SYLLABLES for line in lines_of(row)]


def couplets_right(row: dict[str, Any]) -> list[bool]:
    """Tell of each couplet whether it rhymes: the pairs of lines of a section, next to each other or crossed.

    Four lines have two couplets, as AABB or as ABAB, whichever rhymes more often. Sections that return count once.
    """
    found: list[bool] = []
    for lines in dict.fromkeys(tuple(lines) for _, lines in sections_of(row["text"])):
        ends = [last_word(line) for line in lines]
        for start in range(0, len(ends) - 1, 4):
            four = ends[start : start + 4]
            if len(four) < 4:
                found.append(rhymes(four[0], four[1]))
                continue
            beside = [rhymes(four[0], four[1]), rhymes(four[2], four[3])]
            crossed = [rhymes(four[0], four[2]), rhymes(four[1], four[3])]
            found += max(beside, crossed, key=sum)
    return found


def mentions_brief(row: dict[str, Any]) -> list[bool]:
    return [
        any(mentions(line, word) for line in lines_of(row) for word in content_words(row["brief"]))
    ]


def varied(row: dict[str, Any]) -> list[bool]:
    """Tell whether no line comes three times in a row."""
    lines = [line.lower() for line in lines_of(row)]
    threes = zip(lines, lines[1:], lines[2:], strict=False)
    return [not any(first == second == third for first, second, third in threes)]


def sound(row: dict[str, Any]) -> list[bool]:
    """Tell of each word whether it is one: in the dictionary, or in the brief."""
    brief = row["brief"].lower()
    return [
        word in pronunciations() or word.strip("'") in brief
        for line in lines_of(row)
        for word in words_of(line)
    ]


def ended(row: dict[str, Any]) -> list[bool]:
    return [row["end"] == "stop"]


def new_to(lyrics: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], list[bool]]:
    """Return a measure of each line: it shares no run of words, and is no line, of the training's lyrics."""
    lines = [
        words_of(line)
        for lyric in lyrics
        for line in lyric["text"].split("\n")
        if not line.startswith("[")
    ]
    known = {tuple(words) for words in lines if len(words) >= LEAST_LEARNT}
    known |= {run for words in lines for run in runs(words)}

    def right(row: dict[str, Any]) -> list[bool]:
        written = [words_of(line) for line in lines_of(row)]
        return [
            tuple(words) not in known and not known.intersection(runs(words)) for words in written
        ]

    return right


def runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    starts = range(len(words) - LEARNT_RUN + 1)
    return {tuple(words[start : start + LEARNT_RUN]) for start in starts}


def measures(lyrics: Sequence[dict[str, Any]]) -> list[Measure]:
    return [
        Measure("asked tags, in order", 0.98, tags_right),
        Measure("lines of 3 to 12 syllables", 0.95, lengths_right),
        Measure("couplets that rhyme", 0.60, couplets_right),
        Measure("a content word of the brief", 0.90, mentions_brief),
        Measure("lines not from the training", 1.00, new_to(lyrics)),
        Measure("real words", 0.99, sound),
        Measure("no line three times in a row", 1.00, varied),
        Measure("ends by itself", 1.00, ended),
    ]


def table(rows: Sequence[dict[str, Any]], lyrics: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """Return the table of all measures, and whether each one is good enough."""
    lines = ["| measure | wanted | found | of |", "|---|---|---|---|"]
    good = True
    for measure in measures(lyrics):
        judged = [right for row in rows for right in measure.right(row)]
        share = sum(judged) / len(judged) if judged else 0.0
        good &= share >= measure.least
        lines.append(f"| {measure.name} | {measure.least:.0%} | {share:.1%} | {len(judged):,} |")
    seconds = sorted(row["seconds"] for row in rows)
    lines.append(f"| seconds, median | | {seconds[len(seconds) // 2]:.1f} | {len(rows)} |")
    return "\n".join(lines), good


# --- writing ----------------------------------------------------------------------------------------------------------


def songwriter_in(state: Path | None) -> Weights:
    """Return the weights that the studio would use, or those of a training's state, unpacked beside it."""
    if state is None:
        return find_songwriter()
    import torch

    saved = torch.load(state / "state.pt")
    lora = state / "lora.safetensors"
    export(saved["mean"], lora)
    folder = lyrics_small.unpack(state / f"model-{saved['updates']}", lora)
    return Weights(folder.name, folder, "variable", "", "small", None, folder.name)


def write_all(weights: Weights, briefs: Sequence[Brief], out: Path) -> list[dict[str, Any]]:
    rows = (
        [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        if out.is_file()
        else []
    )
    songwriter = writers.load_songwriter(weights, None)
    for asked in briefs[len(rows) :]:
        began = time.monotonic()
        fields = {"brief": asked.brief, "tone": asked.tone, "structure": asked.structure}
        *_, draft = songwriter.write(parse_request("lyrics", fields), asked.seed)
        row = {
            "seed": asked.seed,
            **fields,
            "text": draft.text,
            "end": draft.end,
            "tokens": draft.tokens,
        }
        rows.append({**row, "seconds": round(time.monotonic() - began, 1)})
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trained", action="store_true", help="judge the training's state, not what is in assets/"
    )
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument("--out", type=Path, default=STATE / "evaluated.jsonl")
    parser.add_argument("--count", type=int, default=100, help="of briefs, from the first (100)")
    parser.add_argument(
        "--gate", action="store_true", help="exit with 1 unless every measure is good enough"
    )
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    weights = songwriter_in(asked.state if asked.trained else None)
    if weights.folder is None:
        sys.exit(weights.problem.text())
    rows = write_all(weights, read_briefs()[: asked.count], asked.out)
    text, good = table(rows, read_lyrics(LYRICS))
    print(text)
    if asked.gate and not good:
        sys.exit(1)
