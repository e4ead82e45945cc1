"""How fast the planner draws audio codes: tokens a second, and the share of what the memory's bandwidth allows.

A step reads the layers' weights and the output rows of the audio codes once, however many takes are drawn together, so
that the bandwidth bounds the steps a second. It is measured in the same run by copying a large buffer. Called by
python -m tools.bench planner.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import models
import planner
import planner_decoding
from model_weights import PLANNER_VARIABLE, RANDOM, find_planner
from planner_decoding import CodeWriter, Draw
from tools.bench_rows import Row, timed

# Qwen3's configurations, and ACE-Step's vocabulary (rounded up as the checkpoints do).
SHAPES = {
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "1.7b": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}
VOCABULARY = 217_216
FIRST_CODE = 151_669
CODES = 64_000
PROMPT_TOKENS = 600
COPIES = 5


def bench(dimensions: str, seconds: list[float], runs: int) -> Iterator[Row]:
    """Yield rows of tokens a second on the random planner of the tests, or on `dimensions` with random weights.

    Stock is transformers' own forward over its growing cache, with the same sampling.
    """
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    model, codes = _random(dimensions, kind) if dimensions else _preview(kind)
    limit = copy_bandwidth(kind) / weights_read(model, len(codes))
    for length in seconds:
        for takes in (1, 4):
            pairs = []
            count = planner.codes_needed(length)
            for _ in range(runs + 1):
                with _stock():
                    theirs = steps_per_second(model, codes, count, takes)
                pairs.append((theirs, steps_per_second(model, codes, count, takes)))
            stock, studio = (
                takes * statistics.median(side) for side in zip(*pairs[1:], strict=True)
            )
            ratios = tuple(ours / theirs for theirs, ours in pairs[1:])
            more = {"of the bandwidth's limit": f"{studio / takes / limit:.1%}"}
            name = f"planner {dimensions or 'random'}, takes: {takes}"
            yield Row(name, length, studio, stock, ratios, "tokens/s", more)


def steps_per_second(model: Any, codes: Any, count: int, takes: int) -> float:
    """Return the steps of the codes phase with guidance, without its prompt, by the rows' clock."""
    prompt = list(range(PROMPT_TOKENS))
    steps = CodeWriter(
        model, codes, (prompt, prompt[: PROMPT_TOKENS // 2]), range(takes), count, Draw()
    ).run()
    next(steps)
    return (count - 1) / timed(lambda: deque(steps, 0))


class StockLayers:
    """What `planner_layers.CachedLayers` does, by transformers' own layers, masks and cache."""

    def __init__(self, model: Any, pads: Sequence[int], length: int):
        import torch
        from transformers import DynamicCache

        self._body = model.get_decoder()
        self._cache = DynamicCache(config=model.config)
        self.position = 0
        self._places = torch.arange(length, device=model.device)
        self._pads = torch.tensor(pads, device=model.device)[:, None]

    def read(self, tokens: Any) -> Any:
        """Read `tokens` [rows, n]; returns the last hidden states [rows, size]."""
        import torch

        begin = self.position
        self.position = self.position + tokens.shape[1]
        with torch.no_grad():
            states = self._body(
                input_ids=tokens,
                attention_mask=self._places[: self.position] >= self._pads,
                position_ids=(self._places[begin : self.position] - self._pads).clamp_min(0),
                past_key_values=self._cache,
                use_cache=True,
            )
        return states.last_hidden_state[:, -1]


@contextlib.contextmanager
def _stock() -> Iterator[None]:
    ours = planner_decoding.CachedLayers, planner_decoding.RECORDED
    planner_decoding.CachedLayers = StockLayers
    planner_decoding.RECORDED = set()
    try:
        yield
    finally:
        planner_decoding.CachedLayers, planner_decoding.RECORDED = ours


def weights_read(model: Any, codes: int) -> int:
    """Return the bytes of weights that a step reads: all layers, and the rows of the output layer for the codes."""
    body = model.get_decoder()
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    layers = sum(p.numel() * p.element_size() for p in body.parameters() if p is not embedding)
    return layers + codes * head.shape[1] * head.element_size()


def copy_bandwidth(kind: str) -> float:
    """Return bytes read and written a second by the best of some copies of a buffer far larger than any cache."""
    import torch

    size = 2**31 if kind == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=kind)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(COPIES):
        started = time.perf_counter()
        target.copy_(source)
        if kind == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size / (time.perf_counter() - started))
    return best


def _preview(kind: str) -> tuple[Any, Any]:
    device = models.Device(kind, "float32", "", "", "")
    os.environ[PLANNER_VARIABLE] = RANDOM
    loaded = planner.load_planner(find_planner(), device)
    return loaded.model, loaded.vocabulary.code_ids


def _random(dimensions: str, kind: str) -> tuple[Any, Any]:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=40_960,
        dtype="bfloat16" if kind == "cuda" else "float32",
        **SHAPES[dimensions],
    )
    config._attn_implementation = "sdpa"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if kind == "cuda" else torch.float32)
    try:
        with torch.device(kind):
            model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    return model, torch.arange(FIRST_CODE, FIRST_CODE + CODES, device=kind)
