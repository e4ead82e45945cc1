"""How the planner writes: along a grammar, and with seeds that mean the same on every device.

A grammar is a Python generator. It yields either a tuple of tokens to write unchanged, or an index
tensor of tokens to choose from; for the latter it is sent the token that was drawn. It returns its
result. Values are walked along prefix trees of the tokenizer's own tokens for the whole line
("bpm: 120\\n"), so that merged digits, spaces and line ends come out as in training (upstream
constrained_logits_processor.py).

Every draw looks up a number from the take's own CPU generator in the running sum of the
probabilities, in the order of the token ids. Unlike `torch.multinomial`, that gives the same token
for the same seed on every device and in every batch, except where rounding decides.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from events import Progress, Stage, StudioError, first_line, is_out_of_memory
from limits import KEYS, LANGUAGES, LIMITS, TIME_SIGNATURES
from planner_layers import CachedLayers, PlainLayers, layers_of, stretch_end

if TYPE_CHECKING:
    import torch

log = logging.getLogger("studio")

FIELDS = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")
# the codebook has 8 * 8 * 8 * 5 * 5 * 5 entries; the tokenizer's slots beyond them mean nothing
LARGEST_CODE = 63_999
MAX_CAPTION_TOKENS = 512
# levels of each of the six numbers that a code stands for; the first number counts fastest
CODE_LEVELS = (8, 8, 8, 5, 5, 5)
AUDIO_CODE = re.compile(r"<\|audio_code_(\d+)\|>")

# A byte-level vocabulary's spelling of a space and a line end; its other characters below 0x120 are
# control characters.
SPACE = "Ġ"
LINE_END = "Ċ"
CONTROL = re.compile("[\u0100-\u011f]")


class Unfit(ValueError):
    """The model or its tokenizer cannot plan; the message completes "it cannot be the planner: ..."."""


# Yields tokens that are certain (answered with None) or a choice (answered with the drawn token).
Grammar = Generator["tuple[int, ...] | torch.Tensor", Any, Any]


class Vocabulary:
    """The tokens by their use, as index tensors on `device`; the model has weights for `rows` tokens."""

    def __init__(self, tokenizer: Any, rows: int, device: torch.device | str):
        import torch

        self.tokenizer = tokenizer
        self._device = device
        spelled: dict[str, int] = {}
        for token, number in tokenizer.get_vocab().items():
            if number < rows:
                spelled[token] = number
        for token in ("<think>", "</think>", "<|im_end|>"):
            if token not in spelled:
                raise Unfit(f"its tokenizer has no {token}")
        self.think = spelled["<think>"]
        self.think_end = spelled["</think>"]
        self.end = spelled["<|im_end|>"]
        self.ends = {self.end, spelled.get("<|endoftext|>", self.end)}
        codes, plain = self._sorted(spelled)
        # The code of each audio token [N], whose ids are in `code_ids`.
        self.codes = torch.tensor([code for code, _ in codes])
        self.code_ids = self.ids(number for _, number in codes)
        self._nearest = {code: code for code, _ in codes}
        self._find_text(plain)

    def _sorted(self, spelled: dict[str, int]) -> tuple[list[tuple[int, int]], dict[str, int]]:
        """Return audio codes with the ids of their tokens, in order, and the tokens that are text."""
        special = {*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens}
        codes: list[tuple[int, int]] = []
        plain: dict[str, int] = {}
        for token, number in spelled.items():
            audio_code = AUDIO_CODE.fullmatch(token)
            if audio_code is None:
                if token not in special:
                    plain[token] = number
            elif int(audio_code[1]) <= LARGEST_CODE:
                codes.append((int(audio_code[1]), number))
        return sorted(codes), plain

    def _find_text(self, plain: dict[str, int]) -> None:
        """Find what lyrics and captions may hold among the tokens that are text.

        Lyrics may break lines anywhere; a caption only at the end of a token, as `_caption` requires.
        """
        lyrics: set[int] = set()
        words: dict[str, int] = {}
        self.breaks: set[int] = set()
        for token, number in plain.items():
            if CONTROL.search(token.replace(LINE_END, "")):
                continue
            lyrics.add(number)
            if "`" in token:
                continue
            if LINE_END not in token:
                words[token] = number
            elif token.find(LINE_END) == len(token) - 1:
                self.breaks.add(number)
        self.text = self.ids(sorted(lyrics | self.ends))
        self.words = self.ids(sorted({*words.values(), *self.breaks}))
        # A value begins with a space, which is a token of its own before a digit ("80s synthwave").
        opening = [n for t, n in words.items() if t.startswith(SPACE) and t[1:2] != SPACE]
        self.opening = self.ids(sorted(opening))
        self.indents = [n for t, n in words.items() if t.startswith(2 * SPACE) and t.strip(SPACE)]
        self.spaces = [number for token, number in plain.items() if token == SPACE]  # none or one

    def ids(self, numbers: Iterable[int]) -> torch.Tensor:
        import torch

        # Created on the CPU, then moved: ZeroGPU learns from moves what goes to the card.
        return torch.tensor(list(numbers), dtype=torch.long).to(self._device)

    def encode(self, text: str) -> tuple[int, ...]:
        return encode_marked(self.tokenizer, text)

    def nearest(self, code: int) -> int:
        """Return `code`, or the nearest code that has a token: a small planner knows few."""
        if code not in self._nearest:
            self._nearest[code] = nearest_code(code, self.codes.tolist())
        return self._nearest[code]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens)).replace("\ufffd", "")  # no incomplete characters


def code_numbers(code: int) -> list[float]:
    """Return the six numbers in [0, 1] that a code stands for."""
    numbers = []
    for levels in CODE_LEVELS:
        code, step = divmod(code, levels)
        numbers.append(step / (levels - 1))
    return numbers


def nearest_code(code: int, known: Sequence[int]) -> int:
    """Return the one of the `known` codes whose six numbers are nearest to those of `code`."""
    wanted = code_numbers(code)

    def distance(other: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(wanted, code_numbers(other), strict=True))

    return min(known, key=distance)


class MetadataGrammar:
    """The planner's thoughts: `<think>`, one line per field in alphabetical order, `</think>`."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._names = {field: vocabulary.encode(f"{field}:") for field in FIELDS}
        self._line_end = vocabulary.encode("\n")
        tempos = range(int(LIMITS["bpm"].low), int(LIMITS["bpm"].high) + 1)
        self._trees = {
            "bpm": self._tree("bpm", map(str, tempos)),
            "keyscale": self._tree("keyscale", KEYS),
            "language": self._tree("language", LANGUAGES),
            "timesignature": self._tree("timesignature", TIME_SIGNATURES),
        }
        self._durations = functools.cache(self._tree_of_durations)

    def thoughts(
        self, given: Mapping[str, str], caption: bool, longest: float = LIMITS["duration"].high
    ) -> Grammar:
        """Write the fields, with the values in `given`; returns all values by field.

        The field "caption" is left out unless `caption`; `longest` bounds the duration in seconds.
        """
        fields = [field for field in FIELDS if caption or field != "caption"]
        yield (self.vocabulary.think, *self._line_end)
        values = dict(given)
        begun = False  # whether the caption has already written the field's first token
        for number, field in enumerate(fields):
            name = self._names[field]
            yield name[1:] if begun else name
            begun = False
            if field in given:
                yield self._value(field, given[field])
            elif field == "caption":
                following = self._names[fields[number + 1]]
                values[field], begun = yield from self._caption(following[0])
            elif field == "duration":
                values[field] = yield from self._choose(self._durations(int(longest)))
            else:
                values[field] = yield from self._choose(self._trees[field])
        yield (self.vocabulary.think_end,)
        return values

    def _choose(self, tree: dict) -> Grammar:
        """Write one of the values of a prefix tree, token by token; returns it."""
        node = tree
        while None not in node:
            token = yield self.vocabulary.ids(sorted(node))
            node = node[token]
        return node[None]

    def text(self, limit: int) -> Grammar:
        """Write lyrics of up to `limit` tokens; returns them."""
        written: list[int] = []
        while len(written) < limit:
            token = yield self.vocabulary.text
            if token in self.vocabulary.ends:
                break
            written.append(token)
        return self.vocabulary.decode(written)

    def _value(self, field: str, value: str) -> tuple[int, ...]:
        return self.vocabulary.encode(f"{field}: {value}\n")[len(self._names[field]) :]

    def _tree_of_durations(self, longest: int) -> dict:
        return self._tree("duration", map(str, range(int(LIMITS["duration"].low), longest + 1)))

    def _tree(self, field: str, values: Iterable[str]) -> dict:
        """Return the prefix tree of the values' tokens, in which the key None marks a whole value."""
        root: dict = {}
        for value in values:
            node = root
            for token in self._value(field, value):
                node = node.setdefault(token, {})
            node[None] = value
        return root

    def _caption(self, following: int) -> Grammar:
        """Write the caption; returns it and whether the next field's first token, `following`, was written too."""
        vocabulary = self.vocabulary
        written: list[int] = []
        # A new line either continues the caption, indented by two spaces as YAML does, or begins
        # the next field.
        new_line = vocabulary.ids(sorted({following, *vocabulary.spaces, *vocabulary.indents}))
        choice = vocabulary.opening
        while len(written) < MAX_CAPTION_TOKENS:
            token = yield choice
            if choice is new_line and token == following:
                return tidy_caption(vocabulary.decode(written)), True
            written.append(token)
            if choice is new_line and token in vocabulary.spaces:
                # Qwen splits two spaces and a word into a space and a word with a space.
                choice = vocabulary.opening
            else:
                choice = new_line if token in vocabulary.breaks else vocabulary.words
        if written[-1] not in vocabulary.breaks:
            yield self._line_end
        return tidy_caption(vocabulary.decode(written)), False


def tidy_caption(written: str) -> str:
    """Return a caption as one line, without the folding and the quotes of YAML; an unclosed quote is dropped."""
    text = " ".join(written.split())
    if len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]:
        with contextlib.suppress(yaml.YAMLError):
            return " ".join(str(yaml.safe_load(text)).split())
    return text.lstrip("'\" ")


# a private character at which text is cut, and which is dropped, before it becomes tokens
CUT = "\ue000"


def as_plain_text(text: str, starts: Iterable[str] = "<") -> str:
    """Mark a visitor's text so that "<|im_end|>" in it stays text; special tokens begin with `starts`."""
    marks = str.maketrans({start: f"{start}{CUT}" for start in starts})
    return text.replace(CUT, "").translate(marks)


def encode_marked(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the tokens of `text`, parts of which `as_plain_text` marked, without any that the tokenizer would add."""
    tokens: list[int] = []
    for part in text.split(CUT):
        if part:
            tokens += tokenizer(part, add_special_tokens=False).input_ids
    return tuple(tokens)


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: at a `temperature` (0 takes the likeliest), from the fewest that reach `top_p` together."""

    temperature: float = 0.85
    top_p: float = 0.9

    def __call__(self, logits: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """Return one index [B] per row of float32 `logits` [B, N] at `chance` [B, 1], which is in (0, 1]."""
        import torch

        if self.temperature <= 0:
            return logits.argmax(dim=-1)
        shares = torch.softmax(logits / self.temperature, dim=-1)
        if self.top_p < 1:
            ranked = self._likely(shares).sort(dim=-1, descending=True).values
            beyond = _running_sums(ranked).sub_(ranked) >= self.top_p
            # No share is 2: the minimum ignores the tokens beyond.
            smallest = ranked.masked_fill_(beyond, 2.0).amin(dim=-1, keepdim=True)
            shares.masked_fill_(shares < smallest, 0.0)
        sums = _running_sums(shares)
        # The target is above zero, so the first index whose sum reaches it has a share of its own.
        target = chance * sums[:, -1:]
        return (sums < target).sum(dim=-1)

    def _likely(self, shares: torch.Tensor) -> torch.Tensor:
        """Return `shares` [B, N], on a CPU without most that cannot be drawn: sorting all takes long there."""
        if shares.device.type != "cpu":
            return shares
        # The dropped probabilities add up to less than 1 - top_p.
        negligible = shares < (1 - self.top_p) / shares.shape[1]
        return shares[:, ~negligible.all(dim=0)]


def _running_sums(rows: torch.Tensor) -> torch.Tensor:
    """Return the running sums of `rows` [B, N]. CUDA's differ from run to run for a single row (pytorch #75240)."""
    two_or_more = rows.expand(max(len(rows), 2), -1)
    return two_or_more.cumsum(dim=-1)[: len(rows)]


def chances(seeds: Sequence[int], count: int) -> torch.Tensor:
    """Return `count` numbers in (0, 1] for each seed, [len(seeds), count], drawn on the CPU."""
    import torch

    rows = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        rows.append(1.0 - torch.rand(count, generator=generator))
    return torch.stack(rows)


def _read(
    model: Any, prompts: Sequence[Sequence[int]], room: int
) -> tuple[CachedLayers | PlainLayers, torch.Tensor]:
    """Read `prompts`, padded on the left; return the layers, with `room` for more tokens, and the last hidden states.

    Raises StudioError if prompts and room exceed the model's context.
    """
    import torch

    longest = max(map(len, prompts))
    context = model.config.max_position_embeddings
    if longest + room > context:
        raise StudioError(
            "plan_too_long",
            f"The text and the plan need {longest + room:,} tokens; this planner reads {context:,}.",
            hint="Shorten the text or the song.",
        )
    padding = [longest - len(prompt) for prompt in prompts]
    layers = layers_of(model, padding, longest + room)
    tokens = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    return layers, layers.read(torch.tensor(tokens, device=model.device))


def write(
    model: Any,
    prompt: Sequence[int],
    grammar: Grammar,
    stage: Stage,
    seed: int,
    draw: Draw,
    room: int,
) -> Generator[Progress, None, Any]:
    """Continue `prompt` along `grammar` with up to `room` tokens; returns the grammar's result."""
    import torch

    head = model.get_output_embeddings()
    random_numbers = chances([seed], room).to(model.device)
    layers, _ = _read(model, [prompt], room)
    pending: list[int] = []
    count = 0
    token = None
    try:
        while True:
            demand = grammar.send(token)
            token = None
            if isinstance(demand, tuple):
                pending += demand
                continue
            hidden = layers.read(torch.tensor([pending], device=model.device))
            count += len(pending)
            yield Progress(stage, count)
            with torch.no_grad():
                logits = head(hidden).float().index_select(1, demand)
                drawn = draw(logits, random_numbers[:, count : count + 1])
                token = int(demand[drawn])
            pending = [token]
    except StopIteration as end:
        return end.value


AHEAD = 8  # codes that may be queued on a device before the next wait for it
# Devices on which a step is recorded and replayed; a device where that fails is removed.
RECORDED = {"cuda"}


class CodeWriter:
    """Draws the audio codes of all takes in one batch: conditional rows first, then unconditional ones.

    Guidance is `u + s * (c - u)` in float32 on the logits of the audio tokens. The end of the text
    is not among them: it is barred until the last code and certain after it. `prompts` are the
    conditional and the unconditional one; without guidance (1) the second is left out. Where
    `allowed` [count, N] is given, only those codes can be drawn at each place. With `launches` the
    same steps are launched one by one where they would be recorded and replayed.
    """

    def __init__(
        self,
        model: Any,
        code_ids: torch.Tensor,
        prompts: tuple[Sequence[int], Sequence[int]],
        seeds: Sequence[int],
        count: int,
        draw: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        guidance: float = 2.0,
        launches: bool = False,
        allowed: torch.Tensor | None = None,
    ):
        import torch

        self._draw = draw
        self._launches = launches
        self._guidance = guidance
        self._takes = len(seeds)
        self._count = count
        conditional, unconditional = prompts
        rows = [conditional] * self._takes
        if guidance != 1:
            rows += [unconditional] * self._takes
        self._code_ids = code_ids
        device = model.device
        self._barred = None if allowed is None else ~allowed.to(device)
        self._weight, self._bias = _rows(model.get_output_embeddings(), code_ids)
        widener = getattr(model, "widener", None)
        self._linear = widener.linear if widener else torch.nn.functional.linear
        self._chances = chances(seeds, count).to(device)
        self._drawn = torch.zeros((self._takes, count), dtype=torch.long, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros((len(rows), 1), dtype=torch.long, device=device)
        self._layers, hidden = _read(model, rows, count)
        self._before_codes = self._layers.position - 1
        self._end = 0
        self._replay: Callable[[], None] | None = None
        self._pick(hidden)

    def run(self) -> Generator[Progress, None, torch.Tensor]:
        """Draw code after code; returns them as indices into the audio tokens, [takes, count], on the CPU."""
        yield Progress("planning", 1, self._count)
        for number in range(1, self._count):
            self._advance()
            if number % AHEAD == 0:
                # waits for the device: the reported codes exist, and few more are queued
                self._number.item()
            yield Progress("planning", number + 1, self._count)
        return self._drawn.cpu()

    def _advance(self) -> None:
        device = self._tokens.device.type
        if device in RECORDED and isinstance(self._layers, CachedLayers):
            try:
                self._advance_recorded(self._layers)
                return
            except Exception as error:
                self._replay = None
                if is_out_of_memory(error):
                    raise
                RECORDED.discard(device)
                log.warning(
                    "The planner takes plain steps, because recording failed: %s", first_line(error)
                )
        self._pick(self._layers.read(self._tokens))

    def _advance_recorded(self, layers: CachedLayers) -> None:
        """Advance with one graph per stretch of the cache: its first step warms up, its second is recorded."""
        end = stretch_end(layers.position)
        if self._launches:
            self._step(layers)
        elif end != self._end:
            self._end = end
            self._replay = None
            warm_up(lambda: self._step(layers))
        else:
            self._replay = self._replay or record(lambda: self._step(layers))
            self._replay()
        layers.position += 1

    def _step(self, layers: CachedLayers) -> None:
        # Positions are counted on the device: a replay would repeat a Python number.
        self._pick(layers.step(self._tokens, self._number + self._before_codes))

    def _pick(self, hidden: torch.Tensor) -> None:
        """Draw one code per take from `hidden` [rows, size]; it becomes the next token of both halves."""
        import torch

        with torch.no_grad():
            logits = self._linear(hidden, self._weight, self._bias).float()
            if self._guidance != 1:
                wanted, plain = logits.chunk(2)
                logits = plain.lerp(wanted, self._guidance)
            if self._barred is not None:
                barred = self._barred.index_select(0, self._number)
                logits = logits.masked_fill(barred, -torch.inf)
            drawn = self._draw(logits, self._chances.index_select(1, self._number))
            self._drawn.index_copy_(1, self._number, drawn[:, None])
            self._tokens.view(-1, self._takes).copy_(self._code_ids[drawn])
            self._number += 1


def warm_up(work: Callable[[], None]) -> None:
    """Run `work` on a stream of its own, which CUDA requires before `work` can be recorded."""
    import torch

    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            work()
    finally:
        torch.cuda.current_stream().wait_stream(side)


@functools.cache
def _side_stream() -> Any:
    """Return the one stream for warming up: cuBLAS keeps memory for every stream it has worked on."""
    import torch

    return torch.cuda.Stream()


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Record `work` as a CUDA graph, without running it; return the graph's replay."""
    import torch

    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    # The outer block goes back to this stream even if recording fails.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def _rows(head: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the rows `ids` of an output layer's weight and bias: a view if the rows are consecutive."""
    first = int(ids[0])
    last = int(ids[-1])
    consecutive = last - first + 1 == len(ids) and bool((ids.diff() == 1).all())
    rows = slice(first, last + 1) if consecutive else ids
    if head.bias is None:
        return head.weight[rows], None
    return head.weight[rows], head.bias[rows]
