"""What the planner may write, token by token: the form of its thoughts, and which tokens of the vocabulary fit where.

A grammar is a Python generator. It yields `Forced` tokens, which are written as they are, or a `Choice`, for which it
is sent the token that was drawn; it returns what was written. Values are walked along prefix trees of the tokenizer's
own tokens for the whole line ("bpm: 120\\n"), so that merged digits, spaces and line ends come out as in training
(upstream constrained_logits_processor.py). The vocabulary is sorted once, when the planner is loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from limits import KEYS, LANGUAGES, LIMITS, TIME_SIGNATURES

if TYPE_CHECKING:
    import torch

FIELDS = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")
LARGEST_CODE = 63_999
"""The codebook has 8 * 8 * 8 * 5 * 5 * 5 entries; the tokenizer has slots beyond them that mean nothing."""
MAX_CAPTION_TOKENS = 512
AUDIO_CODE = re.compile(r"<\|audio_code_(\d+)\|>")

# How a byte-level vocabulary spells a space and a line end; its other characters below 0x120 are control characters.
SPACE, LINE_END = "Ġ", "Ċ"
CONTROL = re.compile("[\u0100-\u011f]")


@dataclass(frozen=True)
class Forced:
    """Tokens that stand here whatever the model thinks."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """The model draws one token among `ids`, an index tensor."""

    ids: torch.Tensor


class Unfit(ValueError):
    """The model or its tokenizer cannot plan; the message completes "it cannot be the planner: ..."."""


Grammar = Generator[Forced | Choice, int | None, Any]


class Vocabulary:
    """The tokens by their use, as index tensors on `device`; `rows` is how many the model has weights for."""

    def __init__(self, tokenizer: Any, rows: int, device: torch.device | str):
        import torch

        self.tokenizer = tokenizer
        self._device = device
        spelled = {token: number for token, number in tokenizer.get_vocab().items() if number < rows}
        self.think, self.think_end, self.end = (
            _required(spelled, token) for token in ("<think>", "</think>", "<|im_end|>")
        )
        codes = sorted(
            (int(found[1]), number)
            for token, number in spelled.items()
            if (found := AUDIO_CODE.fullmatch(token)) and int(found[1]) <= LARGEST_CODE
        )
        if not codes:
            raise Unfit("its tokenizer has no audio tokens (<|audio_code_0|> and so on)")
        self.codes = torch.tensor([code for code, _ in codes])
        """Which code each audio token stands for [N]; `code_ids` are their token ids."""
        self.code_ids = self.ids(number for _, number in codes)
        self.ends = {self.end, spelled.get("<|endoftext|>", self.end)}
        special = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        self._sort({t: n for t, n in spelled.items() if t not in special and not AUDIO_CODE.fullmatch(t)})

    def ids(self, numbers: Iterable[int]) -> torch.Tensor:
        """Return token ids as an index tensor."""
        import torch

        # Made here and moved: at import, ZeroGPU knows what goes to the card by its moves.
        return torch.tensor(list(numbers), dtype=torch.long).to(self._device)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of `text`."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`; what is no whole character (a byte of a cut one) is left out."""
        return self.tokenizer.decode(list(tokens)).replace("\ufffd", "")

    def _sort(self, plain: Mapping[str, int]) -> None:
        # Lyrics may break lines anywhere; a caption only at the end of a token, which the rule for the next line needs.
        text = {t: n for t, n in plain.items() if not CONTROL.search(t.replace(LINE_END, ""))}
        words = {t: n for t, n in text.items() if "`" not in t and LINE_END not in t}
        breaks = {t: n for t, n in text.items() if "`" not in t and t.find(LINE_END) == len(t) - 1}
        # A value begins with a space, which stands alone before a digit ("80s synthwave").
        opening = {t: n for t, n in words.items() if t[0] == SPACE and t[1:2] != SPACE}
        self.text = self.ids(sorted({*text.values(), *self.ends}))
        self.words = self.ids(sorted({*words.values(), *breaks.values()}))
        self.opening = self.ids(sorted(opening.values()))
        self.indents = sorted(n for t, n in words.items() if t.startswith(2 * SPACE) and t.strip(SPACE))
        self.space = plain.get(SPACE)
        self.breaks = frozenset(breaks.values())


class MetadataGrammar:
    """The planner's thoughts: `<think>`, one line a field in the order of the alphabet, `</think>`."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._names = {field: vocabulary.encode(f"{field}:") for field in FIELDS}
        self._line_end = vocabulary.encode("\n")
        bpm, duration = LIMITS["bpm"], LIMITS["duration"]
        values = {
            "bpm": range(int(bpm.low), int(bpm.high) + 1),
            "duration": range(int(duration.low), int(duration.high) + 1),
            "keyscale": KEYS,
            "language": LANGUAGES,
            "timesignature": TIME_SIGNATURES,
        }
        self._trees = {field: self._tree(field, [str(v) for v in allowed]) for field, allowed in values.items()}

    def thoughts(self, given: Mapping[str, str], caption: bool) -> Grammar:
        """Write the fields; those in `given` are forced. Without `caption` that field is left out. Returns a dict."""
        fields = [field for field in FIELDS if caption or field != "caption"]
        yield Forced((self.vocabulary.think, *self._line_end))
        found, begun = dict(given), False
        for number, field in enumerate(fields):
            yield Forced(self._names[field][1:] if begun else self._names[field])
            begun = False
            if field in given:
                yield Forced(self._value(field, given[field]))
            elif field == "caption":
                found[field], begun = yield from self._caption(self._names[fields[number + 1]][0])
            else:
                found[field] = yield from self._walk(self._trees[field])
        yield Forced((self.vocabulary.think_end,))
        return found

    def text(self, limit: int) -> Grammar:
        """Write free text of up to `limit` tokens, until the model ends it; audio codes are no text. Returns it."""
        written: list[int] = []
        choice = Choice(self.vocabulary.text)
        while len(written) < limit:
            token = yield choice
            if token in self.vocabulary.ends:
                break
            written.append(token)
        return self.vocabulary.decode(written)

    def _value(self, field: str, value: str) -> tuple[int, ...]:
        """Return the tokens that follow the field's name, line end included."""
        name = self._names[field]
        line = self.vocabulary.encode(f"{field}: {value}\n")
        if line[: len(name)] != name:
            raise Unfit("its tokenizer joins a field's name with its value")
        return line[len(name) :]

    def _tree(self, field: str, values: Iterable[str]) -> _Node:
        root = _Node()
        for value in values:
            node = root
            for token in self._value(field, value):
                node = node.children.setdefault(token, _Node())
            node.value = value
        return root

    def _walk(self, node: _Node) -> Grammar:
        while node.value is None:
            if node.choice is None:
                node.choice = Choice(self.vocabulary.ids(sorted(node.children)))
            token = yield node.choice
            node = node.children[token]
        return node.value

    def _caption(self, following: int) -> Grammar:
        """Write the caption; returns it and whether `following`, the next field's first token, is already written.

        A new line either goes on with it, indented by two spaces as YAML does, or begins the next field.
        """
        vocabulary, written = self.vocabulary, []
        words = Choice(vocabulary.words)
        indents = [*vocabulary.indents, *([] if vocabulary.space is None else [vocabulary.space])]
        new_line = Choice(vocabulary.ids(sorted({following, *indents})))
        opening = choice = Choice(vocabulary.opening)
        while len(written) < MAX_CAPTION_TOKENS:
            token = yield choice
            if choice is new_line and token == following:
                return tidy_caption(vocabulary.decode(written)), True
            written.append(token)
            if choice is new_line:
                # Qwen splits two spaces and a word into a space and a word with a space.
                choice = opening if token == vocabulary.space else words
            else:
                choice = new_line if token in vocabulary.breaks else words
        if written[-1] not in vocabulary.breaks:
            yield Forced(self._line_end)
        return tidy_caption(vocabulary.decode(written)), False


class _Node:
    """One step of a prefix tree; `value` is set where a whole value was read."""

    __slots__ = ("children", "choice", "value")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.choice: Choice | None = None
        self.value: str | None = None


def _required(spelled: Mapping[str, int], token: str) -> int:
    if token not in spelled:
        raise Unfit(f"its tokenizer has no {token}")
    return spelled[token]


def tidy_caption(written: str) -> str:
    """Return a caption as one line, without the folding and the quotes of YAML; a quote left open is dropped."""
    text = " ".join(written.split())
    if len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]:
        with contextlib.suppress(yaml.YAMLError):
            return " ".join(str(yaml.safe_load(text)).split())
    return text.lstrip("'\" ")
