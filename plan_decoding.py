"""How the planner's tokens are drawn: a static key-value cache, guidance on the audio codes, seeds that mean the same.

Every draw inverts a distribution's running sum at a number of the take's own CPU generator, in the order of the token
ids. Unlike `torch.multinomial` that gives the same token for the same seed on every device and in every batch, but for
the last bits of the model's own numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from events import StudioError
from plan_grammar import Forced, Grammar

if TYPE_CHECKING:
    import torch

WARM_STEPS = 3
"""Steps before a CUDA graph is captured: the libraries set up their workspaces in them."""


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
            ranked = shares.sort(dim=-1, descending=True).values
            kept = ranked.cumsum(dim=-1) - ranked < self.top_p
            least = ranked.masked_fill(~kept, 2.0).amin(dim=-1, keepdim=True)
            shares = shares.masked_fill(shares < least, 0.0)
        reached = shares.cumsum(dim=-1)
        # The first index whose sum reaches the target has a share of its own, since the target is above zero.
        return (reached < chance * reached[:, -1:]).sum(dim=-1)


def chances(seeds: Sequence[int], count: int) -> torch.Tensor:
    """Return `count` numbers in (0, 1] for each seed, [len(seeds), count], drawn on the CPU."""
    import torch

    rows = [1.0 - torch.rand(count, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


class Decoder:
    """Rows of tokens that grow together over one static cache; shorter prompts are padded on the left.

    `room` is how many tokens may follow the prompts. After each call the last hidden states [rows, size] are returned;
    what they mean as logits is up to the caller, who may need but few of the vocabulary's rows.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], room: int):
        import torch
        from transformers import StaticCache

        longest = max(map(len, prompts))
        self._length = longest + room
        if self._length > model.config.max_position_embeddings:
            raise StudioError(
                "plan_too_long",
                f"Text and plan need {self._length:,} tokens; "
                f"this planner reads {model.config.max_position_embeddings:,}.",
                hint="Shorten the text or the song.",
            )
        self._body = model.get_decoder()
        device = model.device
        self._cache = StaticCache(config=model.config, max_cache_len=self._length)
        padding = [longest - len(prompt) for prompt in prompts]
        tokens = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        pads = torch.tensor(padding, device=device)[:, None]
        self._places = torch.arange(self._length, device=device)
        self._real = (self._places >= pads)[:, None, None, :]
        # The places that each row may look at; they open as they are written.
        self._open = torch.zeros_like(self._real)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._position = -pads
        self.hidden = self.feed(torch.tensor(tokens, device=device))

    def feed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append `tokens` [rows, n]; returns the last hidden states [rows, size]. One token reuses all buffers."""
        import torch

        count = tokens.shape[1]
        with torch.no_grad():
            if count == 1:
                mask, positions = self._open.index_fill_(3, self._place, True), self._position
            else:
                mask, positions = self._look_back(count), self._position + self._places[:count]
            states = self._body(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions.clamp_min(0) if count > 1 else positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
            self._place += count
            self._position += count
        return states[:, -1]

    def _look_back(self, count: int) -> torch.Tensor:
        """Open the next `count` places; returns what each of them sees, [rows, 1, count, length]."""
        written = self._place + self._places[:count]
        self._open.index_fill_(3, written, True).logical_and_(self._real)
        seen = self._open & (self._places <= written[:, None])
        # A padded place would see nothing, and what a softmax over nothing gives would spread through the cache.
        return seen | (self._places == written[:, None])


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
    """What a grammar returned."""

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

    def run(self, cuda_graph: bool = False) -> Iterator[int]:
        """Draw code after code; yields how many each take has. Closing it stops before the next one.

        `cuda_graph` replays one captured step instead of launching its kernels one by one, on CUDA.
        """
        import torch

        device, graph = self._tokens.device, None
        self._pick(self._decoder.hidden)
        yield 1
        for number in range(1, self._job.count):
            if cuda_graph and device.type == "cuda" and number == WARM_STEPS:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._step()
            if graph is None:
                self._step()
            else:
                graph.replay()
            _wait(device)
            yield number + 1

    def indices(self) -> torch.Tensor:
        """Return what was drawn as indices into the audio tokens, [takes, count], on the CPU."""
        return self._drawn.cpu()

    def _step(self) -> None:
        self._pick(self._decoder.feed(self._tokens))

    def _pick(self, hidden: torch.Tensor) -> None:
        """Draw one code a take from `hidden` [rows, size] and set it as the next token of both halves."""
        import torch

        with torch.no_grad():
            logits = torch.nn.functional.linear(hidden, self._weight, self._bias).float()
            if self._guided:
                wanted, plain = logits.chunk(2)
                logits = plain + self._job.guidance * (wanted - plain)
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
    """Wait for the device, so that a step that was announced has been made and nothing more is on its way."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
