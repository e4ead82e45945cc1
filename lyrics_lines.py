"""The built-in songwriter: a small model that writes a song line by line, in the form that was
asked for.

A small language model loses form and rhyme, so it does not choose them alone. Section tags are
written in the order that was asked for. Each line begins with the word that it will end with, as
the model was trained: that word is drawn from the model's own choice among words that rhyme.
Several versions of a line are written at once, and the best is kept: fluent, of a singable length,
about the brief, and not heard before. Sections that return bring their words back.

English only. `lyrics.py` has the larger songwriter; both are used alike.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import lyrics_small
from events import Draft, StudioError, first_line
from limits import LANGUAGES
from lyrics import TorchModel, Writer, prompt_ids
from lyrics import build_writer as build_large_writer
from lyrics_form import (
    COMMON,
    FEWEST_SYLLABLES,
    MOST_SYLLABLES,
    Section,
    content_words,
    count_syllables,
    last_word,
    mentions,
    parse_structure,
    pronunciations,
    rhyme_sound,
    stem,
    words_of,
)
from lyrics_layers import BranchingLayers
from model_weights import Weights
from params import LyricsRequest

if TYPE_CHECKING:
    import torch

VERSIONS = 6  # of a line, written at once
ENOUGH = 4  # finished versions to choose from
LONGEST_LINE = 18  # tokens
FEWEST_RHYMES = 6  # a line that another one answers ends with a word that so many others rhyme with
# Which earlier line of four each line rhymes with, None if it begins a rhyme.
SCHEMES = {
    "AABB": (None, 0, None, 2),
    "ABAB": (None, None, 0, 1),
}
TWO = (None, 0)
THREE = (None, 0, 0)
# Added to the scores of words of the brief that were not sung yet; as much again for each line
# while none was.
ABOUT_BONUS = 1.5
# Taken from the scores of words that were sung before, of pairs and of threes; a small model would
# repeat itself.
WORD_PENALTY = 0.9
PAIR_PENALTY = 1.2
THREE_PENALTY = 3.0
OPENING_PENALTY = 1.5  # of a word that began a line before
MOST_REPEATS = 3
REPEAT_COST = 1.5  # of a word that comes a second time in its line
# Words that leave a line unfinished.
UNFINISHED = (
    "a am an and are as at be been but by for from had has have his if in into is its my of on or our than the their "
    "to was were with your"
)
NO_ENDS = frozenset(UNFINISHED.split())


class Heard:
    """How often words, pairs of words and threes were sung, and which words began lines."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.openings: Counter[str] = Counter()
        self.pairs: dict[str, Counter[str]] = defaultdict(Counter)
        self.threes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def add(self, words: list[str]) -> None:
        self.words.update(words)
        self.openings.update(words[:1])
        for first, second in pairwise(words):
            self.pairs[first][second] += 1
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            self.threes[first, second][third] += 1

    def penalties(self, before: list[str]) -> dict[str, float]:
        """Return what to take from the scores of words that could follow the line's words `before`."""
        found: dict[str, float] = defaultdict(float)
        if not before:
            for word, count in self.openings.items():
                found[word] += OPENING_PENALTY * min(count, MOST_REPEATS)
            return found
        for word, count in self.pairs[before[-1]].items():
            found[word] += PAIR_PENALTY * min(count, MOST_REPEATS)
        for word in self.threes[before[-2], before[-1]] if len(before) > 1 else ():
            found[word] += THREE_PENALTY
        return found


@dataclass
class Song:
    """What is written so far: the text, its tokens, the words that ended lines, and the brief's words to come."""

    text: str = ""
    tokens: int = 0
    lines: list[str] = field(default_factory=list)
    ends: set[str] = field(default_factory=set)
    about: list[str] = field(default_factory=list)
    subjects: int = 0  # how many words the brief had to begin with
    returning: dict[str, list[str]] = field(default_factory=dict)
    heard: Heard = field(default_factory=Heard)

    @property
    def about_bonus(self) -> float:
        if len(self.about) < self.subjects:
            return ABOUT_BONUS
        return ABOUT_BONUS * (1 + len(self.lines))

    def add_tag(self, tag: str) -> None:
        self.text += f"\n\n{tag}" if self.text else tag

    def add_line(self, line: str) -> None:
        self.text += f"\n{line}"
        self.lines.append(line)
        self.heard.add(words_of(line))
        self.ends.add(last_word(line))
        self.about = [word for word in self.about if not mentions(line, word)]


@dataclass
class Version:
    """One version of a line being written: its end word, its tokens, their log probabilities, and its state."""

    end: str
    end_token: int
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    end_score: float = 0.0  # the log probability of the end word where it ended the line
    text: str = ""
    done: bool = False
    following: torch.Tensor | None = None  # the scores after its line end, once that was read


class LineWriter(Writer):
    """Writes like `lyrics.Writer`, with the same drafts; the model must be the built-in songwriter's."""

    model: TorchModel

    @functools.cached_property
    def words(self) -> Words:
        return Words(self.tokenizer)

    def write(self, request: LyricsRequest, seed: int) -> Generator[Draft]:
        if request.language not in ("en", "unknown"):
            raise StudioError(
                "unsupported",
                f"The built-in songwriter writes English only, not {LANGUAGES[request.language]}.",
                "language",
                "Choose English, or install the large songwriter.",
            )
        yield from Session(self, request, seed).run()


def build_writer(weights: Weights) -> LineWriter:
    """Load the built-in songwriter, which always runs on the CPU, and unpack it first if need be.

    Raises StudioError, and whatever a lack of memory raises.
    """
    try:
        lyrics_small.unpack(weights.there)
    except OSError as error:
        message = f"The built-in songwriter could not be unpacked into {weights.folder}: {first_line(error)}"
        raise StudioError(
            "weights_broken", message, hint="Make room for 300 MB there, then try again."
        ) from error
    plain = build_large_writer(weights, "cpu")
    return LineWriter(plain.weights, plain.tokenizer, plain.model)


class Session:
    """One request: the model's cache, the random numbers, and the song."""

    def __init__(self, writer: LineWriter, request: LyricsRequest, seed: int):
        import torch

        self.writer = writer
        self.request = request
        self.words = writer.words
        self.model = writer.model
        self.random = torch.Generator().manual_seed(seed)
        self.layers = BranchingLayers(writer.model.language_model)
        # of the token after all that was read, [vocabulary]
        self.scores: torch.Tensor | None = None
        about = content_words(request.brief)
        self.song = Song(about=about, subjects=len(about))
        self.scheme = list(SCHEMES)[int(torch.randint(len(SCHEMES), (1,), generator=self.random))]

    def run(self) -> Iterator[Draft]:
        prompt = lyrics_small.user_prompt(self.request.brief, self.request.tone)
        ids = prompt_ids(self.writer.tokenizer, lyrics_small.SYSTEM, prompt)
        self._check_room(len(ids))
        self._read(ids)
        yield self._draft()
        end: Literal["stop", "length"] = "stop"
        for number, section in enumerate(parse_structure(self.request.structure)):
            yield from self._section(section, number == 0)
            if self.song.tokens >= self.request.options.max_tokens:
                end = "length"
                break
        yield Draft(self.song.text.strip(), self.song.tokens, end)

    def _check_room(self, prompt: int) -> None:
        most = self.request.options.max_tokens
        if prompt + most > self.model.context:
            raise StudioError(
                "too_long",
                f"The built-in songwriter handles up to {self.model.context:,} tokens, but the brief takes "
                f"{prompt:,} and Max length asks for {most:,}.",
                hint="Shorten the brief or lower Max length.",
            )

    def _draft(self) -> Draft:
        return Draft(self.song.text.strip(), self.song.tokens)

    # --- sections ---------------------------------------------------------------------------------

    def _section(self, section: Section, first: bool) -> Iterator[Draft]:
        self.song.add_tag(str(section.tag))
        self._read_text(lyrics_small.section_start(str(section.tag), first=first))
        yield self._draft()
        before = None
        if section.returns_as:
            before = self.song.returning.get(section.returns_as)
        if before is not None:
            self._return(before)
            yield self._draft()
            return
        written: list[str] = []
        for partner in rhyme_scheme(section.lines, self.scheme):
            if self.song.tokens >= self.request.options.max_tokens:
                return
            line = yield from self._line(
                last_word(written[partner]) if partner is not None else "", written
            )
            self.song.add_line(line)
            written.append(line)
            yield self._draft()
        if section.returns_as:
            self.song.returning[section.returns_as] = written

    def _return(self, lines: list[str]) -> None:
        self._read_text(lyrics_small.AS_BEFORE)
        for line in lines:
            self.song.text += f"\n{line}"

    # --- lines ------------------------------------------------------------------------------------

    def _line(self, partner: str, section: list[str]) -> Generator[Draft, None, str]:
        """Write versions of a line side by side and keep the best; `partner` is the word to rhyme with, or ""."""
        versions = self._versions(partner)
        rows = Rows(self, versions)
        while rows.advance():
            yield self._draft()
        finished = [version for version in versions if version.done]
        best = max(finished, key=lambda version: self._quality(version, section))
        rows.keep(best)
        return tidy(best.text)

    def _versions(self, partner: str) -> list[Version]:
        """Choose the words that the versions end with: the likeliest to the model among those that fit."""
        import torch

        if partner:
            open_words = self.words.rhymes_of(partner)
        else:
            open_words = self.words.answerable
        fitting = [
            token for token in open_words if self.words.by_token[token] not in self.song.ends
        ]
        ids = torch.tensor(fitting or open_words)
        assert self.scores is not None  # the prompt was read
        scores = self.scores[ids].log_softmax(0)
        about = {stem(word) for word in self.song.about}
        bonus = [
            self.song.about_bonus if stem(self.words.by_token[token]) in about else 0.0
            for token in ids.tolist()
        ]
        scores = scores + torch.tensor(bonus)
        if self.request.options.temperature > 0:
            # The largest of scores with Gumbel noise are draws without replacement.
            noise = -(-torch.rand(len(scores), generator=self.random).clamp_min(1e-9).log()).log()
            ranked = scores / self.request.options.temperature + noise
        else:
            ranked = scores
        chosen = ids[ranked.topk(min(VERSIONS, len(ids))).indices].tolist()
        # A rhyme with few words gets several versions of each.
        chosen = (chosen * VERSIONS)[:VERSIONS]
        return [Version(self.words.by_token[token], token) for token in chosen]

    def _quality(self, version: Version, section: list[str]) -> float:
        """Return how good a version is: its mean log probability, less what it does wrong."""
        line = tidy(version.text)
        song = self.song
        count = count_syllables(line)
        quality = sum(version.scores) / max(len(version.scores), 1)
        # The end word was decided beforehand: where it does not follow from the line, the line
        # makes no sense.
        quality += min(version.end_score + 1.0, 0.0)
        if not FEWEST_SYLLABLES <= count <= MOST_SYLLABLES:
            quality -= 10
        if last_word(line) != version.end:
            quality -= 5
        usual = count_syllables(section[0]) if section else 8
        quality -= 0.12 * abs(count - usual)
        words = words_of(line)
        unknown = [
            word
            for word in words
            if word not in pronunciations() and word not in self.request.brief.lower()
        ]
        quality -= 2 * len(unknown)
        if line.lower() in (each.lower() for each in song.lines):
            quality -= 8
        quality -= 0.7 * len(shared_runs(words, song.lines))
        quality -= REPEAT_COST * repeats(words)
        if any(words_of(each)[:2] == words[:2] for each in section):
            quality -= 0.6
        quality += 0.4 * song.about_bonus * sum(mentions(line, word) for word in song.about[:3])
        return quality

    # --- the model --------------------------------------------------------------------------------

    def _read_text(self, text: str) -> None:
        ids = self.writer.tokenizer(text, add_special_tokens=False).input_ids
        self.song.tokens += len(ids)
        self._read(ids)

    def _read(self, ids: list[int]) -> None:
        self.scores = self.layers.read(ids)


class Rows:
    """Versions of a line in one batch, token by token after what the session has read."""

    def __init__(self, session: Session, versions: list[Version]):
        self.session = session
        self.versions = versions
        self.words = session.words
        session.layers.branch(len(versions), 2 + LONGEST_LINE)
        self._scores = session.layers.step(
            [[version.end_token, self.words.colon] for version in versions]
        )
        self._base = self._base_scores()
        self._steps = 0

    def advance(self) -> bool:
        """Write one token in every version; returns False once enough are finished."""

        for row, version in enumerate(self.versions):
            if not version.done:
                self._write(version, self._scores[row])
        self._steps += 1
        done = sum(version.done for version in self.versions)
        if done >= min(ENOUGH, len(self.versions)) or self._steps >= LONGEST_LINE:
            return False
        self._scores = self.session.layers.step([[version.tokens[-1]] for version in self.versions])
        for row, version in enumerate(self.versions):
            if version.done and version.following is None:
                version.following = self._scores[row]
        return True

    def keep(self, best: Version) -> None:
        """Make `best` part of what the session has read, with the line's end."""
        session = self.session
        line = [best.end_token, self.words.colon, *best.tokens]
        row = next(number for number, version in enumerate(self.versions) if version is best)
        session.song.tokens += len(line)
        if best.following is not None:
            session.layers.keep(row, len(line))
            session.scores = best.following
            return
        # Its line end came last of all and was not read yet.
        session.layers.keep(row, len(line) - 1)
        session._read(line[-1:])

    def _base_scores(self) -> torch.Tensor:
        """Return what is added to every token's score in this line: for the brief's words, against repetition."""
        import torch

        added = torch.zeros(len(self.words.allowed))
        song = self.session.song
        for word, count in song.heard.words.items():
            if word not in COMMON:
                for token in self.words.spellings(word):
                    added[token] -= WORD_PENALTY * min(count, MOST_REPEATS)
        for word in song.about:
            for token in self.words.spellings(word):
                added[token] += song.about_bonus
        return added

    def _write(self, version: Version, scores: torch.Tensor) -> None:

        words = self.words
        options = self.session.request.options
        logs = scores.log_softmax(0)
        ended = bool(version.tokens) and version.tokens[-1] == version.end_token
        closed = ended or (len(version.tokens) > 1 and version.tokens[-2] == version.end_token)
        syllables = count_syllables(version.text)
        room = MOST_SYLLABLES - syllables - count_syllables(version.end)
        if ended or closed:
            allowed = words.closings if ended else words.line_ends
            if syllables < FEWEST_SYLLABLES:
                allowed = words.allowed & ~words.line_ends
        elif room <= 1 or len(version.tokens) >= LONGEST_LINE - 2:
            # The line is full: it ends here.
            self._add(version, version.end_token, logs)
            return
        else:
            if version.tokens:
                allowed = words.allowed & ~words.line_ends
            else:
                allowed = words.openings
            allowed = allowed & (words.syllables <= room)
        ranked = (logs + self._base).masked_fill(~allowed, -math.inf)
        before = words_of(version.text)
        penalties = self.session.song.heard.penalties(before)
        for word in set(before) - COMMON:
            penalties[word] += REPEAT_COST
        for word, penalty in penalties.items():
            for token in words.spellings(word):
                ranked[token] -= penalty
        # The end word waits until the line is long enough.
        ranked[version.end_token] += 0.5 if syllables >= 4 else -2.0
        if options.temperature <= 0:
            token = int(ranked.argmax())
        else:
            token = self._draw(ranked / options.temperature, options.top_p)
        self._add(version, token, logs)

    def _draw(self, ranked: torch.Tensor, top_p: float) -> int:
        import torch

        shares, order = ranked.softmax(0).topk(200)
        kept = shares.cumsum(0) - shares < top_p
        reached = (shares * kept).cumsum(0)
        chance = torch.rand(1, generator=self.session.random) * reached[-1]
        return int(order[int((reached < chance).sum())])

    def _add(self, version: Version, token: int, logs: torch.Tensor) -> None:
        version.tokens.append(token)
        version.scores.append(float(logs[token]))
        if token == version.end_token:
            version.end_score = version.scores[-1]
        if token == self.words.line_end:
            version.done = True
        else:
            version.text = self.session.writer.tokenizer.decode(
                version.tokens, clean_up_tokenization_spaces=False
            )


class Words:
    """The tokenizer's tokens by their use in a line."""

    def __init__(self, tokenizer: Any):
        import torch

        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        size = len(tokenizer)
        space = "Ġ"
        self.line_end = vocabulary["Ċ"]
        self.colon = vocabulary[":"]
        sung = set(lyrics_small.WORDS.read_text(encoding="utf-8").split())
        # Whole words behind a space, such as " night", that may end a line.
        self.by_token: dict[int, str] = {}
        self.allowed = torch.zeros(size, dtype=torch.bool)
        self.openings = torch.zeros(size, dtype=torch.bool)
        for token, number in vocabulary.items():
            word = token.removeprefix(space)
            if word.isascii() and word.isalpha():
                self.allowed[number] = True
                self.openings[number] = token.startswith(space)
                fits = word in sung and word not in NO_ENDS
                if token.startswith(space) and fits and rhyme_sound(word):
                    self.by_token[number] = word
        for mark in (",", "'", "'s", "'t", "'m", "'re", "'ve", "'ll", "'d", "-", "?", "!"):
            if mark in vocabulary:
                self.allowed[vocabulary[mark]] = True
        self.allowed[self.line_end] = True
        self.syllables = torch.zeros(size, dtype=torch.long)
        for number in self.allowed.nonzero().flatten().tolist():
            self.syllables[number] = count_syllables(tokenizer.decode([number]))
        self.line_ends = torch.zeros(size, dtype=torch.bool)
        self.line_ends[self.line_end] = True
        self.closings = self.line_ends.clone()
        for mark in (",", "?", "!"):
            self.closings[vocabulary[mark]] = True
        self._by_sound: dict[tuple[str, ...], list[int]] = {}
        for number, word in sorted(self.by_token.items()):
            self._by_sound.setdefault(rhyme_sound(word), []).append(number)
        self.answerable = [
            number
            for many in self._by_sound.values()
            if len(many) >= FEWEST_RHYMES
            for number in many
        ]

    def rhymes_of(self, word: str) -> list[int]:
        """Return the words that rhyme with `word`; all that can be answered if there are none."""
        found = [
            number
            for number in self._by_sound.get(rhyme_sound(word), ())
            if self.by_token[number] != word
        ]
        return found or self.answerable

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one for each songwriter, which is never dropped
    def spellings(self, word: str) -> list[int]:
        """Return the first tokens of a word behind a space, in lower case and capitalised."""
        spelled = (
            self._tokenizer(f" {each}", add_special_tokens=False).input_ids
            for each in (word, word.title())
        )
        return [ids[0] for ids in spelled if ids]


# --- form -----------------------------------------------------------------------------------------


def rhyme_scheme(lines: int, scheme: str) -> list[int | None]:
    """Return for each of `lines` lines the earlier line that it rhymes with, None if it begins a rhyme."""
    if lines == 3:
        return list(THREE)
    found: list[int | None] = []
    while lines - len(found) >= 4:
        start = len(found)
        found += [None if place is None else start + place for place in SCHEMES[scheme]]
    start = len(found)
    rest = TWO[: lines - start] if lines - start < 3 else THREE
    return found + [None if place is None else start + place for place in rest]


def shared_runs(words: list[str], lines: list[str]) -> list[tuple[str, ...]]:
    """Return the runs of three words that an earlier line has as well."""
    earlier = {run for line in lines for run in runs(words_of(line))}
    return [run for run in runs(words) if run in earlier]


def repeats(words: list[str]) -> int:
    """Return how many words a line has that came before in it, those that say nothing by themselves left out."""
    telling = [word for word in words if word not in COMMON]
    return len(telling) - len(set(telling))


def runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + 3]) for start in range(len(words) - 2)]


def tidy(line: str) -> str:
    """Return a line with a capital first letter, without a comma at its end."""
    text = " ".join(line.split()).rstrip(",- ")
    return text[:1].upper() + text[1:]
