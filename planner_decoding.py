"""How the planner writes: along a grammar of what fits where, and with seeds that mean the same on every device.

A grammar is a Python generator. It yields `Forced` tokens, which are written as they are, or a `Choice`, for which it
is sent the token that was drawn; it returns what was written. Values are walked along prefix trees of the tokenizer's
own tokens for the whole line ("bpm: 120\\n"), so that merged digits, spaces and line ends come out as in training
(upstream constrained_logits_processor.py). The vocabulary is sorted once, when the planner is loaded.

Every draw inverts a distribution's running sum at a number of the take's own CPU generator, in the order of the token
ids. Unlike `torch.multinomial` that gives the same token for the same seed on every device and in every batch, but for
the last bits of the model's own numbers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from events import StudioError
from limits import KEYS, LANGUAGES, LIMITS, TIME_SIGNATURES
from planner_layers import CachedLayers

if TYPE_CHECKING:
    import torch

# --- the grammar ---------------------------------------------------------------------------------------------------

FIELDS = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")
LARGEST_CODE = 63_999
"""The codebook has 8 * 8 * 8 * 5 * 5 * 5 entries; the tokenizer has slots beyond them that mean nothing."""
MAX_CAPTION_TOKENS = 512
# Codes that may be on their way to a device before it is waited for.
AHEAD = 8
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
        import torch

        # Made here and moved: at import, ZeroGPU knows what goes to the card by its moves.
        return torch.tensor(list(numbers), dtype=torch.long).to(self._device)

    def encode(self, text: str) -> tuple[int, ...]:
        return encode_marked(self.tokenizer, text)

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


# --- typed text ----------------------------------------------------------------------------------------------------

CUT = "\ue000"
"""A private character, at which text is cut before it becomes tokens, and which is dropped then."""


def typed(text: str, starts: Iterable[str] = "<") -> str:
    """Mark typed text so that "<|im_end|>" in it stays text; `starts` are what the tokenizer's own marks begin with."""
    marks = str.maketrans({start: f"{start}{CUT}" for start in starts})
    return text.replace(CUT, "").translate(marks)


def encode_marked(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the tokens of `text`, parts of which `typed` marked; the tokenizer adds none of its own."""
    parts = [part for part in text.split(CUT) if part]
    return tuple(token for part in parts for token in tokenizer(part, add_special_tokens=False).input_ids)


# --- drawing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: `temperature` 0 takes the likeliest; `top_p` 1 leaves all in."""

    temperature: float = 0.85
    top_p: float = 0.9

    def __call__(self, logits: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """Return one index [B] for each row of float32 `logits` [B, N] at `chance` [B, 1], which is in (0, 1]."""
        import torch

        if self.temperature <= 0:
            return logits.argmax(dim=-1)
        shares = torch.softmax(logits / self.temperature, dim=-1)
        if self.top_p < 1:
            ranked = _ranked(shares)
            cut = ranked.cumsum(dim=-1).sub_(ranked) >= self.top_p
            least = ranked.masked_fill_(cut, 2.0).amin(dim=-1, keepdim=True)
            shares.masked_fill_(shares < least, 0.0)
        reached = shares.cumsum(dim=-1)
        # The first index whose sum reaches the target has a share of its own, since the target is above zero.
        return (reached < chance * reached[:, -1:]).sum(dim=-1)


def _ranked(shares: torch.Tensor) -> torch.Tensor:
    """Return each row sorted, the largest first; on a CPU by NumPy, which is two to three times as fast."""
    import torch

    if shares.device.type == "cpu":
        return torch.from_numpy(np.sort(shares.numpy())).flip(-1)
    return shares.sort(dim=-1, descending=True).values


def chances(seeds: Sequence[int], count: int) -> torch.Tensor:
    """Return `count` numbers in (0, 1] for each seed, [len(seeds), count], drawn on the CPU."""
    import torch

    rows = [1.0 - torch.rand(count, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


class Decoder:
    """Rows of tokens that grow together; shorter prompts are padded on the left.

    `room` is how many tokens may follow the prompts. After each call the last hidden states [rows, size] are returned;
    what they mean as logits is up to the caller, who may need but few of the vocabulary's rows.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], room: int):
        import torch

        longest = max(map(len, prompts))
        length = longest + room
        if length > model.config.max_position_embeddings:
            raise StudioError(
                "plan_too_long",
                f"Text and plan need {length:,} tokens; this planner reads {model.config.max_position_embeddings:,}.",
                hint="Shorten the text or the song.",
            )
        padding = [longest - len(prompt) for prompt in prompts]
        self._layers = CachedLayers(model, padding, length)
        tokens = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        self.hidden = self.feed(torch.tensor(tokens, device=model.device))

    def feed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append `tokens` [rows, n]; returns the last hidden states [rows, size]."""
        return self._layers.read(tokens)


def write(model: Any, prompt: Sequence[int], grammar: Grammar, seed: int, draw: Draw, room: int) -> Iterator[Any]:
    """Let the model write after `prompt` what `grammar` allows; yields the count of tokens so far, then the result.

    `room` is the most tokens that the grammar can write. The result is yielded as a `Written`.
    """
    import torch

    head, luck = model.get_output_embeddings(), chances([seed], room).to(model.device)
    decoder, pending, count = Decoder(model, [prompt], room), [], 0
    hidden = decoder.hidden
    try:
        demand = next(grammar)
        while True:
            if isinstance(demand, Forced):
                pending += demand.tokens
                demand = next(grammar)
                continue
            if pending:
                hidden = decoder.feed(torch.tensor([pending], device=model.device))
                count += len(pending)
                yield count
            with torch.no_grad():
                logits = head(hidden).float().index_select(1, demand.ids)
                chosen = draw(logits, luck[:, count : count + 1])
                token = int(demand.ids[chosen])
            pending = [token]
            demand = grammar.send(token)
    except StopIteration as end:
        yield Written(end.value)


@dataclass(frozen=True)
class Written:
    value: Any


@dataclass(frozen=True)
class CodesJob:
    """What the codes of some takes are drawn from: token ids of the prompts, one seed a take, `count` codes each.

    `unconditional` is the prompt that `guidance` leads away from; 1 needs none.
    """

    conditional: Sequence[int]
    unconditional: Sequence[int]
    seeds: tuple[int, ...]
    count: int
    draw: Draw
    guidance: float = 2.0


class CodeWriter:
    """Draws the audio codes of all takes together: conditional rows first, unconditional ones after them.

    Guidance is `u + s * (c - u)` in float32 on the logits of the audio tokens. The end of the text has no column
    there: it is barred until the last code and certain after it (reference 3.3), so that it is never drawn.
    """

    def __init__(self, model: Any, code_ids: torch.Tensor, job: CodesJob):
        import torch

        self._job, self._takes = job, len(job.seeds)
        guided = job.guidance != 1
        prompts = [job.conditional] * self._takes + ([job.unconditional] * self._takes if guided else [])
        self._guided, self._code_ids = guided, code_ids
        self._weight, self._bias = _rows(model.get_output_embeddings(), code_ids)
        device = model.device
        self._chances = chances(job.seeds, job.count).to(device)
        self._drawn = torch.zeros((self._takes, job.count), dtype=torch.long, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros((len(prompts), 1), dtype=torch.long, device=device)
        self._decoder = Decoder(model, prompts, job.count)

    def run(self) -> Iterator[int]:
        """Draw code after code; yields how many each take has. Closing it stops before the next one."""
        self._pick(self._decoder.hidden)
        yield 1
        for number in range(1, self._job.count):
            self._pick(self._decoder.feed(self._tokens))
            if number % AHEAD == 0:
                _wait(self._tokens.device)
            yield number + 1

    def indices(self) -> torch.Tensor:
        """Return what was drawn as indices into the audio tokens, [takes, count], on the CPU."""
        return self._drawn.cpu()

    def _pick(self, hidden: torch.Tensor) -> None:
        """Draw one code a take from `hidden` [rows, size] and set it as the next token of both halves."""
        import torch

        with torch.no_grad():
            logits = torch.nn.functional.linear(hidden, self._weight, self._bias).float()
            if self._guided:
                wanted, plain = logits.chunk(2)
                logits = plain.lerp(wanted, self._job.guidance)
            drawn = self._job.draw(logits, self._chances.index_select(1, self._number))
            self._drawn.index_copy_(1, self._number, drawn[:, None])
            self._tokens.view(-1, self._takes).copy_(self._code_ids[drawn])
            self._number += 1


def _rows(head: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the rows `ids` of an output layer's weight and bias: a view where they follow one another."""
    first, last = int(ids[0]), int(ids[-1])
    together = last - first + 1 == len(ids) and bool((ids.diff() == 1).all())
    which = slice(first, last + 1) if together else ids
    return head.weight[which], None if head.bias is None else head.bias[which]


def _wait(device: torch.device) -> None:
    """Wait for the device, so that what was announced has been made and nothing more is on its way."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
