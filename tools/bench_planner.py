"""How fast the planner draws audio codes: tokens a second, and the share of what the memory's bandwidth allows.

A step reads the layers' weights and the output rows of the audio codes once, however many takes are drawn together, so
that the bandwidth bounds the steps a second. It is measured in the same run by copying a large buffer. Called by
python -m tools.bench planner.
"""

from __future__ import annotations

import os
import time
from typing import Any

import models
import planner
from planner_decoding import CodesJob, CodeWriter, Draw
from weights import PLANNER_VARIABLE, PREVIEW, find_planner

# Qwen3's configurations, and ACE-Step's vocabulary (rounded up as the checkpoints do).
SHAPES = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
VOCABULARY, FIRST_CODE, CODES = 217_216, 151_669, 64_000
PROMPT_TOKENS = 600
COPIES = 5


def bench(dimensions: str, seconds: list[float], runs: int) -> None:
    """Print a row for each length: on the preview planner, or on `dimensions` with random weights (CUDA only)."""
    import torch

    cuda = torch.cuda.is_available()
    if dimensions and not cuda:
        raise SystemExit("--dimensions needs CUDA: random weights of that size say nothing about this processor.")
    device = models.Device("cuda" if cuda else "cpu", "bfloat16" if dimensions else "float32", "", "", "")
    model, codes = _random(dimensions) if dimensions else _preview(device)
    bandwidth = copy_bandwidth(device.kind)
    read = weights_read(model, len(codes))
    limit = bandwidth / read
    print(
        f"planner {dimensions or 'preview'}, {device.kind}, {device.dtype}; {read / 1e6:,.1f} MB of weights a step, "
        f"{bandwidth / 1e9:,.1f} GB/s: {limit:,.0f} steps/s at most"
    )
    print(f"{'seconds':>8}{'takes':>7}{'steps/s':>10}{'tokens/s':>10}{'of limit':>10}")
    for length in seconds:
        for takes in (1, 4):
            rate = steps_per_second(model, codes, planner.codes_needed(length), takes, runs)
            print(f"{length:>8g}{takes:>7}{rate:>10.1f}{rate * takes:>10.1f}{rate / limit:>10.1%}", flush=True)


def steps_per_second(model: Any, codes: Any, count: int, takes: int, runs: int) -> float:
    """Return the best of `runs` for the codes phase with guidance, without its prompt; one run before warms up."""
    prompt = list(range(PROMPT_TOKENS))
    job = CodesJob(prompt, prompt[: PROMPT_TOKENS // 2], tuple(range(takes)), count, Draw())
    rates = []
    for _ in range(runs + 1):
        steps = CodeWriter(model, codes, job).run()
        next(steps)
        started = time.perf_counter()
        made = sum(1 for _ in steps)
        rates.append(made / (time.perf_counter() - started))
    return max(rates[1:])


def weights_read(model: Any, codes: int) -> int:
    """Return the bytes of weights that a step reads: all layers, and the rows of the output layer for the codes."""
    body, head = model.get_decoder(), model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    layers = sum(p.numel() * p.element_size() for p in body.parameters() if p is not embedding)
    return layers + codes * head.shape[1] * head.element_size()


def copy_bandwidth(kind: str) -> float:
    """Return bytes read and written a second by the best of some copies of a buffer far larger than any cache."""
    import torch

    size = 2**31 if kind == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=kind)
    target, best = torch.empty_like(source), 0.0
    for _ in range(COPIES):
        started = time.perf_counter()
        target.copy_(source)
        if kind == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size / (time.perf_counter() - started))
    return best


def _preview(device: models.Device) -> tuple[Any, Any]:
    os.environ[PLANNER_VARIABLE] = PREVIEW
    loaded = planner.load_planner(find_planner(), device)
    return loaded.model, loaded.vocabulary.code_ids


def _random(dimensions: str) -> tuple[Any, Any]:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=40_960,
        dtype="bfloat16",
        **SHAPES[dimensions],
    )
    config._attn_implementation = "sdpa"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    return model, torch.arange(FIRST_CODE, FIRST_CODE + CODES, device="cuda")
