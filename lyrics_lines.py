"""The built-in songwriter: a small model that writes a song line by line, in the requested form.

A small language model loses form and rhyme, so it does not choose them alone. Section tags are
written in the requested order. Each line begins with the word that it will end with, as the model
was trained: that word is drawn from the model's own choice among words that rhyme. Several versions
of a line are written at once, and the best is kept: fluent, of a singable length, about the brief,
and new. Sections that return repeat their words.

Single lines can be written again, after the lines before them and with the rhymes around them.

English only. `lyrics.py` has the larger songwriter, with the same interface.
"""

from __future__ import annotations

import functools
import math
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import lyrics_small
from events import Draft, StudioError, first_line
from limits import LANGUAGES
from lyrics import Songwriter, TorchModel, prompt_ids
from lyrics import load_songwriter as load_large_songwriter
from lyrics_bytes import ByteModel, in_bytes
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
    rhymes,
    stem,
    words_of,
)
from lyrics_layers import BranchingLayers
from lyrics_letters import written_language
from lyrics_passage import is_sung, shorter
from lyrics_tags import heading_of
from model_weights import Weights
from params import LyricsRequest, RewriteRequest

if TYPE_CHECKING:
    import torch

VERSIONS = 6  # of a line, written at once
ENOUGH_VERSIONS = 4  # finished ones to choose from
# Of a line that is written again: there are few of these, and good short ones are rare.
VERSIONS_REWRITTEN = 16
LONGEST_LINE = 18  # tokens
FEWEST_RHYMES = 6  # how many words must rhyme with the end of a line that a later line answers
# Which earlier line of four each line rhymes with, None if it begins a rhyme.
SCHEMES = {
    "AABB": (None, 0, None, 2),
    "ABAB": (None, None, 0, 1),
}
TWO_LINES = (None, 0)
THREE_LINES = (None, 0, 0)
# Added to the scores of the brief's words that were not sung yet; while none was sung, it grows by
# this much with each line.
SUBJECT_BONUS = 1.5
# Subtracted from the scores of words, pairs and triples of words that were sung before: a small
# model would repeat itself.
WORD_PENALTY = 0.9
PAIR_PENALTY = 1.2
TRIPLE_PENALTY = 3.0
OPENING_PENALTY = 1.5  # for a word that began an earlier line
MOST_REPEATS = 3  # more repetitions do not add to a penalty
REPEAT_PENALTY = 1.5  # for a word that comes a second time in its line
# In a line written again, whose few words leave no room for either, besides REPEAT_PENALTY:
SAME_WORD_PENALTY = 2.0  # for a word that comes a second time, however common
EMPTY_PENALTY = 2.0  # for having no word that says something new
# Words that leave a line unfinished.
UNFINISHED = (
    "a am an and are as at be been but by for from had has have his if in into is its my of on or our than the their "
    "to was were with your"
)
NO_ENDS = frozenset(UNFINISHED.split())
USUAL_SYLLABLES = 8  # of a section's first line
LINES_READ = 32  # of those before a passage that is rewritten
LEARNT_RUN = 6  # words in a row that only a line of the training's lyrics would have
LEAST_LEARNT = 4  # words of a whole line: shorter ones are anyone's


class SungWords:
    """How often words, pairs and triples of words were sung, and which words began lines."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.openings: Counter[str] = Counter()
        self.pairs: dict[str, Counter[str]] = defaultdict(Counter)
        self.triples: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def add(self, words: list[str]) -> None:
        self.words.update(words)
        self.openings.update(words[:1])
        for first, second in pairwise(words):
            self.pairs[first][second] += 1
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            self.triples[first, second][third] += 1

    def penalties(self, before: list[str]) -> dict[str, float]:
        """Return what to subtract from the scores of words that could follow the line's words `before`."""
        penalties: dict[str, float] = defaultdict(float)
        if not before:
            for word, count in self.openings.items():
                penalties[word] += OPENING_PENALTY * min(count, MOST_REPEATS)
            return penalties
        for word, count in self.pairs[before[-1]].items():
            penalties[word] += PAIR_PENALTY * min(count, MOST_REPEATS)
        if len(before) > 1:
            for word in self.triples[before[-2], before[-1]]:
                penalties[word] += TRIPLE_PENALTY
        return penalties


@dataclass
class WrittenLyrics:
    """The lyrics so far: their text, how many tokens that took, the sung lines, and the words that ended them."""

    text: str = ""
    tokens: int = 0
    lines: list[str] = field(default_factory=list)
    ends: set[str] = field(default_factory=set)
    subjects: list[str] = field(default_factory=list)  # the brief's words that were not sung yet
    subject_count: int = 0  # how many words the brief had to begin with
    # The lines of sections that return, by `Section.returns_as`.
    returning: dict[str, list[str]] = field(default_factory=dict)
    sung: SungWords = field(default_factory=SungWords)

    @property
    def subject_bonus(self) -> float:
        if len(self.subjects) < self.subject_count:
            return SUBJECT_BONUS
        return SUBJECT_BONUS * (1 + len(self.lines))

    def add_tag(self, tag: str) -> None:
        self.text += f"\n\n{tag}" if self.text else tag

    def add_line(self, line: str) -> None:
        self.text += f"\n{line}"
        self.lines.append(line)
        self.sung.add(words_of(line))
        self.ends.add(last_word(line))
        self.subjects = [word for word in self.subjects if not mentions(line, word)]


@dataclass
class Version:
    """One version of a line being written: its end word, its tokens, and their log probabilities."""

    end: str
    end_token: int
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    end_score: float = 0.0  # the log probability of the end word where it ended the line
    text: str = ""
    done: bool = False
    # The scores [vocabulary] after its line end, once the model has read that.
    following: torch.Tensor | None = None


class SmallSongwriter(Songwriter):
    """Writes like `lyrics.Songwriter`, with the same drafts; the model must be the built-in songwriter's."""

    model: TorchModel

    @functools.cached_property
    def words(self) -> Words:
        return Words(self.tokenizer)

    @functools.cached_property
    def in_bytes(self) -> ByteModel | None:
        return in_bytes(self.model.language_model)

    def write(self, request: LyricsRequest, seed: int) -> Generator[Draft]:
        _check_english(request.language)
        yield from Session(self, request, seed).run()

    def rewrite(self, request: RewriteRequest, seed: int) -> Generator[Draft]:
        _check_english(request.language)
        _check_english(written_language(request.lyrics))
        yield from Rewriting(self, request, seed).run()


def _check_english(language: str) -> None:
    if language in ("en", "unknown"):
        return
    raise StudioError(
        "unsupported",
        f"The built-in songwriter writes English only, not {LANGUAGES[language]}.",
        "language",
        "Choose English, or install the large songwriter.",
    )


def load_songwriter(weights: Weights) -> SmallSongwriter:
    """Load the built-in songwriter, which always runs on the CPU; unpack it first if necessary.

    Raises StudioError; errors of too little memory pass through.
    """
    try:
        lyrics_small.unpack(weights.local_folder)
    except OSError as error:
        message = f"The built-in songwriter could not be unpacked into {weights.folder}: {first_line(error)}"
        raise StudioError(
            "weights_broken", message, hint="Make room for 300 MB there, then try again."
        ) from error
    large = load_large_songwriter(weights, "cpu")
    return SmallSongwriter(large.weights, large.tokenizer, large.model)


@dataclass(frozen=True)
class LineForm:
    """The form of a line: the word that it rhymes with, "" for none, and its syllables."""

    rhyme: str = ""
    usual: int = USUAL_SYLLABLES
    most: int = MOST_SYLLABLES
    # From so many syllables on, the word that ends the line is likelier to come.
    end_from: int = 4

    @property
    def fewest(self) -> int:
        return min(FEWEST_SYLLABLES, self.most)


class Lines:
    """One request: the model's cache, the random numbers, and the lyrics so far."""

    versions = VERSIONS
    enough_versions = ENOUGH_VERSIONS

    def __init__(
        self, songwriter: SmallSongwriter, request: LyricsRequest | RewriteRequest, seed: int
    ):
        import torch

        self.songwriter = songwriter
        self.options = request.options
        self.known_words = request.brief.lower()  # even if the dictionary lacks them
        self.words = songwriter.words
        self.model = songwriter.model
        self.random = torch.Generator().manual_seed(seed)
        self.layers = BranchingLayers(songwriter.model.language_model, songwriter.in_bytes)
        # The scores [vocabulary] of the token after everything read so far.
        self.scores: torch.Tensor | None = None
        self.song = WrittenLyrics()

    def _draft(self) -> Draft:
        return Draft(self.song.text.strip(), self.song.tokens)

    # --- lines ------------------------------------------------------------------------------------

    def _line(self, form: LineForm, section: list[str]) -> Generator[Draft, None, str]:
        """Write versions of a line side by side and keep the best; `section` has the lines above it."""
        versions = self._versions(form)
        rows = Rows(self, versions, form)
        while rows.advance():
            yield self._draft()
        finished = [version for version in versions if version.done]
        best = max(finished, key=lambda version: self._quality(version, form, section))
        rows.keep(best)
        return tidy(best.text)

    def _versions(self, form: LineForm) -> list[Version]:
        """Choose the words that the versions end with: those that the model finds likeliest among those that fit."""
        import torch

        by_token = self.words.by_token
        if form.rhyme:
            candidates = self.words.rhymes_of(form.rhyme)
        else:
            candidates = self.words.answerable
        unused = [token for token in candidates if by_token[token] not in self.song.ends]
        ids = torch.tensor(unused or candidates)
        assert self.scores is not None  # the prompt was read
        scores = self.scores[ids].log_softmax(0)
        subjects = {stem(word) for word in self.song.subjects}
        is_subject = torch.tensor([stem(by_token[token]) in subjects for token in ids.tolist()])
        scores = scores + self.song.subject_bonus * is_subject
        temperature = self.options.temperature
        if temperature > 0:
            # The largest scores after adding Gumbel noise are a draw without replacement.
            uniform = torch.rand(len(scores), generator=self.random).clamp_min(1e-9)
            gumbel = -(-uniform.log()).log()
            scores = scores / temperature + gumbel
        chosen = ids[scores.topk(min(self.versions, len(ids))).indices].tolist()
        # A rhyme with few words gets several versions of each.
        chosen = (chosen * self.versions)[: self.versions]
        return [Version(by_token[token], token) for token in chosen]

    def _quality(self, version: Version, form: LineForm, section: list[str]) -> float:
        """Return how good a version is: its mean log probability minus its faults."""
        line = tidy(version.text)
        song = self.song
        count = count_syllables(line)
        quality = sum(version.scores) / max(len(version.scores), 1)
        # The end word was decided beforehand: a line that does not lead to it makes no sense.
        quality += min(version.end_score + 1.0, 0.0)
        if not form.fewest <= count <= form.most:
            quality -= 10
        if last_word(line) != version.end:
            quality -= 5
        quality -= 0.12 * abs(count - form.usual)
        words = words_of(line)
        quality -= 2 * sum(self._is_unknown(word) for word in words)
        if line.lower() in {sung.lower() for sung in song.lines}:
            quality -= 8
        if line_hashes(words) & learnt_hashes():
            quality -= 20
        quality -= 0.7 * len(shared_triples(words, song.lines))
        quality -= REPEAT_PENALTY * repeats(words)
        if any(words_of(above)[:2] == words[:2] for above in section):
            quality -= 0.6
        mentioned = sum(mentions(line, word) for word in song.subjects[:3])
        quality += 0.4 * song.subject_bonus * mentioned
        return quality

    def _is_unknown(self, word: str) -> bool:
        return word not in pronunciations() and word not in self.known_words

    # --- the model --------------------------------------------------------------------------------

    def _read_text(self, text: str) -> None:
        ids = self.songwriter.tokenizer(text, add_special_tokens=False).input_ids
        self.song.tokens += len(ids)
        self._read(ids)

    def _read(self, ids: list[int]) -> None:
        self.scores = self.layers.read(ids)


class Session(Lines):
    """A request for a song's lyrics."""

    def __init__(self, songwriter: SmallSongwriter, request: LyricsRequest, seed: int):
        import torch

        super().__init__(songwriter, request, seed)
        self.request = request
        self.song.subjects = content_words(request.brief)
        self.song.subject_count = len(self.song.subjects)
        choice = int(torch.randint(len(SCHEMES), (1,), generator=self.random))
        self.scheme = list(SCHEMES)[choice]

    def run(self) -> Iterator[Draft]:
        prompt = lyrics_small.user_prompt(self.request.brief, self.request.tone)
        ids = prompt_ids(self.songwriter.tokenizer, lyrics_small.SYSTEM, prompt)
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

    def _check_room(self, prompt_tokens: int) -> None:
        max_tokens = self.request.options.max_tokens
        if prompt_tokens + max_tokens > self.model.context:
            raise StudioError(
                "too_long",
                f"The built-in songwriter handles up to {self.model.context:,} tokens, but the brief takes "
                f"{prompt_tokens:,} and Max length asks for {max_tokens:,}.",
                hint="Shorten the brief or lower Max length.",
            )

    # --- sections ---------------------------------------------------------------------------------

    def _section(self, section: Section, first: bool) -> Iterator[Draft]:
        self.song.add_tag(str(section.tag))
        self._read_text(lyrics_small.section_start(str(section.tag), first=first))
        yield self._draft()
        earlier_lines = None
        if section.returns_as:
            earlier_lines = self.song.returning.get(section.returns_as)
        if earlier_lines is not None:
            self._return(earlier_lines)
            yield self._draft()
            return
        written: list[str] = []
        for answered in rhyme_scheme(section.lines, self.scheme):
            if self.song.tokens >= self.request.options.max_tokens:
                return
            rhyme = "" if answered is None else last_word(written[answered])
            usual = count_syllables(written[0]) if written else USUAL_SYLLABLES
            line = yield from self._line(LineForm(rhyme, usual), written)
            self.song.add_line(line)
            written.append(line)
            yield self._draft()
        if section.returns_as:
            self.song.returning[section.returns_as] = written

    def _return(self, lines: list[str]) -> None:
        self._read_text(lyrics_small.AS_BEFORE)
        for line in lines:
            self.song.text += f"\n{line}"


class Rewriting(Lines):
    """A request to write some lines of lyrics again."""

    versions = VERSIONS_REWRITTEN
    enough_versions = 3 * VERSIONS_REWRITTEN // 4

    def __init__(self, songwriter: SmallSongwriter, request: RewriteRequest, seed: int):
        super().__init__(songwriter, request, seed)
        self.request = request
        self.passage = request.passage
        self.known_words += " " + request.lyrics.lower()
        self.new: dict[int, str] = {}  # the new lines, by their places
        self.replaced = ""  # the line that the one being written takes the place of
        # All lines of the passage, whose versions must differ from every one of them.
        self.song.lines += self.passage.lines

    def run(self) -> Iterator[Draft]:
        self._read_lyrics()
        yield self._draft()
        section: list[str] = []
        for place in range(self.request.lines[0] - 1, self.request.lines[1]):
            heading = heading_of(self.passage.all_lines[place].strip())
            if heading:
                self._read_text(lyrics_small.section_start(str(heading), first=False))
                section = []
            if place in self.passage.places:
                self.new[place] = yield from self._rewritten(place, section)
                section.append(self.new[place])
            yield self._draft()
        yield Draft(self._draft().text, self.song.tokens, "stop")

    def _draft(self) -> Draft:
        return Draft(self.passage.with_lines(list(self.new.values())), self.song.tokens)

    def _read_lyrics(self) -> None:
        """Read the request and the lines before the passage, as the model was trained to write them."""
        request = self.request
        about = request.brief or ", ".join(content_words(" ".join(self.passage.lines)))
        prompt = lyrics_small.user_prompt(about or self.passage.lines[0], request.tone)
        ids = prompt_ids(self.songwriter.tokenizer, lyrics_small.SYSTEM, prompt)
        text = ""
        before = self.passage.all_lines[: request.lines[0] - 1]
        for line in before[-LINES_READ:]:
            heading = heading_of(line.strip())
            if heading:
                text += lyrics_small.section_start(str(heading), first=not text)
            elif is_sung(line):
                text += lyrics_small.marked(line.strip())
                self.song.add_line(line.strip())
        ids += self.songwriter.tokenizer(text, add_special_tokens=False).input_ids
        self._read(ids)

    def _rewritten(self, place: int, section: list[str]) -> Generator[Draft, None, str]:
        old = self.passage.all_lines[place].strip()
        song = self.song
        self.replaced = old
        # What the old line was about is sung again, in a line that ends otherwise.
        song.subjects = content_words(old)
        song.subject_count = len(song.subjects) + 1
        song.ends.add(last_word(old))
        line = yield from self._line(self._form(place, count_syllables(old)), section)
        song.add_line(line)
        return line

    def _quality(self, version: Version, form: LineForm, section: list[str]) -> float:
        quality = super()._quality(version, form, section)
        return quality - emptiness(tidy(version.text), self.replaced)

    def _form(self, place: int, syllables: int) -> LineForm:
        """Return the form of the line at `place`, whose former version has so many syllables."""
        if self.request.task == "shorter":
            usual = shorter(syllables)
            most = max(syllables - 1, 1)
        else:
            usual = max(syllables, FEWEST_SYLLABLES)
            most = usual + 2
        usual = min(usual, MOST_SYLLABLES)
        most = min(most, MOST_SYLLABLES)
        return LineForm(self._rhyme(place), usual, most, end_from=max(usual - 4, 1))

    def _rhyme(self, place: int) -> str:
        """Return the word that the line at `place` is to rhyme with, "" for none."""
        lines = self.passage.all_lines
        before = self.passage.section_lines(place, -1)
        after = self.passage.section_lines(place, 1)
        fixed = [*before, *(each for each in after if each not in self.passage.places)]
        end = last_word(lines[place])
        for each in fixed:
            if rhymes(last_word(lines[each]), end):
                return self._end_at(each)
        if self.request.task != "rhyme":
            return ""
        # Couplets: the second line answers the first.
        if len(before) % 2:
            return self._end_at(before[0])
        if after:
            return self._end_at(after[0]) if after[0] in fixed else ""
        return self._end_at(before[0]) if before else ""

    def _end_at(self, place: int) -> str:
        return last_word(self.new.get(place, self.passage.all_lines[place]))


class Rows:
    """Versions of a line in one batch, which continue what the session has read token by token."""

    def __init__(self, session: Lines, versions: list[Version], form: LineForm):
        self.session = session
        self.versions = versions
        self.form = form
        self.words = session.words
        session.layers.branch(len(versions), 2 + LONGEST_LINE)
        self._scores = session.layers.step(
            [[version.end_token, self.words.colon] for version in versions]
        )
        self._adjustments = self._line_adjustments()
        self._steps = 0

    def advance(self) -> bool:
        """Write one token in every version; returns False once enough are finished."""
        for row, version in enumerate(self.versions):
            if not version.done:
                self._write(version, self._scores[row])
        self._steps += 1
        done = sum(version.done for version in self.versions)
        if (
            done >= min(self.session.enough_versions, len(self.versions))
            or self._steps >= LONGEST_LINE
        ):
            return False
        self._scores = self.session.layers.step([[version.tokens[-1]] for version in self.versions])
        for row, version in enumerate(self.versions):
            if version.done and version.following is None:
                version.following = self._scores[row]
        return True

    def keep(self, best: Version) -> None:
        """Make `best` part of what the session has read, including its line end."""
        session = self.session
        line = [best.end_token, self.words.colon, *best.tokens]
        row = next(number for number, version in enumerate(self.versions) if version is best)
        session.song.tokens += len(line)
        if best.following is not None:
            session.layers.keep(row, len(line))
            session.scores = best.following
            return
        # The line end came in the last step, so the model has not read it yet.
        session.layers.keep(row, len(line) - 1)
        session._read(line[-1:])

    def _line_adjustments(self) -> torch.Tensor:
        """Return what every token's score changes by in this line, [vocabulary].

        It raises the brief's words and lowers words that were sung before.
        """
        import torch

        adjustments = torch.zeros(len(self.words.allowed))
        song = self.session.song
        for word, count in song.sung.words.items():
            if word not in COMMON:
                for token in self.words.spellings(word):
                    adjustments[token] -= WORD_PENALTY * min(count, MOST_REPEATS)
        for word in song.subjects:
            for token in self.words.spellings(word):
                adjustments[token] += song.subject_bonus
        return adjustments

    def _write(self, version: Version, scores: torch.Tensor) -> None:
        """Draw the version's next token from its `scores` [vocabulary]."""
        words = self.words
        options = self.session.options
        log_probabilities = scores.log_softmax(0)
        syllables = count_syllables(version.text)
        room = self.form.most - syllables - count_syllables(version.end)
        end_is_near = version.end_token in version.tokens[-2:]
        line_is_full = room <= 1 or len(version.tokens) >= LONGEST_LINE - 2
        if line_is_full and not end_is_near:
            self._add(version, version.end_token, log_probabilities)
            return
        allowed = self._allowed(version, syllables, room)
        ranked = (log_probabilities + self._adjustments).masked_fill(~allowed, -math.inf)
        before = words_of(version.text)
        penalties = self.session.song.sung.penalties(before)
        for word in set(before) - COMMON:
            penalties[word] += REPEAT_PENALTY
        for word, penalty in penalties.items():
            for token in words.spellings(word):
                ranked[token] -= penalty
        # The end word waits until the line is long enough.
        ranked[version.end_token] += 0.5 if syllables >= self.form.end_from else -2.0
        if options.temperature <= 0:
            token = int(ranked.argmax())
        else:
            token = self._draw(ranked / options.temperature, options.top_p)
        self._add(version, token, log_probabilities)

    def _allowed(self, version: Version, syllables: int, room: int) -> torch.Tensor:
        """Return a mask [vocabulary] of the tokens that may come next.

        The line has `syllables` so far, and `room` for so many before its end word.
        """
        words = self.words
        if version.end_token not in version.tokens[-2:]:
            if version.tokens:
                allowed = words.allowed & ~words.line_ends
            else:
                allowed = words.openings
            return allowed & (words.syllables <= room)
        if syllables < self.form.fewest:
            return words.allowed & ~words.line_ends
        if version.tokens[-1] == version.end_token:
            return words.closings
        return words.line_ends

    def _draw(self, ranked: torch.Tensor, top_p: float) -> int:
        """Draw one of the fewest tokens whose probabilities add up to `top_p`."""
        import torch

        shares, order = ranked.softmax(0).topk(200)
        kept = shares.cumsum(0) - shares < top_p
        sums = (shares * kept).cumsum(0)
        target = torch.rand(1, generator=self.session.random) * sums[-1]
        return int(order[int((sums < target).sum())])

    def _add(self, version: Version, token: int, log_probabilities: torch.Tensor) -> None:
        version.tokens.append(token)
        version.scores.append(float(log_probabilities[token]))
        if token == version.end_token:
            version.end_score = version.scores[-1]
        if token == self.words.line_end:
            version.done = True
        else:
            version.text = self.session.songwriter.tokenizer.decode(
                version.tokens, clean_up_tokenization_spaces=False
            )


class Words:
    """The tokenizer's tokens by their use in a line; masks are [vocabulary]."""

    def __init__(self, tokenizer: Any):
        import torch

        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        size = len(tokenizer)
        space = "Ġ"
        self.line_end = vocabulary["Ċ"]
        self.colon = vocabulary[":"]
        ends = set(lyrics_small.WORDS.read_text(encoding="utf-8").split()) - NO_ENDS
        # Whole words after a space, such as " night", that may end a line.
        self.by_token: dict[int, str] = {}
        self.allowed = torch.zeros(size, dtype=torch.bool)
        self.openings = torch.zeros(size, dtype=torch.bool)
        for token, number in vocabulary.items():
            word = token.removeprefix(space)
            if word.isascii() and word.isalpha():
                self.allowed[number] = True
                self.openings[number] = token.startswith(space)
                if token.startswith(space) and word in ends and rhyme_sound(word):
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
        self.answerable: list[int] = []
        for rhyming in self._by_sound.values():
            if len(rhyming) >= FEWEST_RHYMES:
                self.answerable += rhyming

    def rhymes_of(self, word: str) -> list[int]:
        """Return the tokens of words that rhyme with `word`; if there are none, all that can be answered."""
        same_sound = self._by_sound.get(rhyme_sound(word), ())
        rhymes = [number for number in same_sound if self.by_token[number] != word]
        return rhymes or self.answerable

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one for each songwriter, which is never dropped
    def spellings(self, word: str) -> list[int]:
        """Return the first token of a word after a space, in lower case and capitalised."""
        first_tokens = []
        for spelling in (word, word.title()):
            ids = self._tokenizer(f" {spelling}", add_special_tokens=False).input_ids
            first_tokens += ids[:1]
        return first_tokens


# --- form -----------------------------------------------------------------------------------------


def rhyme_scheme(lines: int, scheme: str) -> list[int | None]:
    """Return for each of `lines` lines the earlier line that it rhymes with, None if it begins a rhyme."""
    found: list[int | None] = []
    while len(found) < lines:
        start = len(found)
        rest = lines - start
        group: tuple[int | None, ...]
        if rest >= 4:
            group = SCHEMES[scheme]
        elif rest == 3:
            group = THREE_LINES
        else:
            group = TWO_LINES[:rest]
        found += [None if place is None else start + place for place in group]
    return found


def shared_triples(words: list[str], lines: list[str]) -> list[tuple[str, ...]]:
    """Return the triples of successive words that one of the earlier `lines` has too."""
    earlier: set[tuple[str, ...]] = set()
    for line in lines:
        earlier.update(triples(words_of(line)))
    return [triple for triple in triples(words) if triple in earlier]


def line_hashes(words: list[str]) -> set[int]:
    """Return the hashes of a line's runs of `LEARNT_RUN` words, and of the whole line unless it is short."""
    runs = [
        " ".join(words[start : start + LEARNT_RUN]) for start in range(len(words) - LEARNT_RUN + 1)
    ]
    if len(words) >= LEAST_LEARNT:
        runs.append("the line " + " ".join(words))
    return {zlib.crc32(run.encode()) for run in runs}


@functools.cache
def learnt_hashes() -> frozenset[int]:
    """Return the hashes of the lines that the songwriter was trained on."""
    return frozenset(
        number for (number,) in struct.iter_unpack("<I", lyrics_small.LEARNT.read_bytes())
    )


def repeats(words: list[str]) -> int:
    """Return how many words of a line came before in it, not counting common words."""
    telling = [word for word in words if word not in COMMON]
    return len(telling) - len(set(telling))


def emptiness(line: str, replaced: str) -> float:
    """Return what a line costs that repeats its own words, or says nothing that the line it replaces lacks."""
    words = words_of(line)
    cost = SAME_WORD_PENALTY * (len(words) - len(set(words)))
    if not says_something_new(line, replaced):
        cost += EMPTY_PENALTY
    return cost


def says_something_new(line: str, replaced: str) -> bool:
    """Tell whether a line has a word that says something and that the line it replaces lacks."""
    return any(not mentions(replaced, word) for word in content_words(line))


def triples(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + 3]) for start in range(len(words) - 2)]


def tidy(line: str) -> str:
    """Return a line with a capital first letter, without a comma at its end."""
    text = " ".join(line.split()).rstrip(",- ")
    return text[:1].upper() + text[1:]
