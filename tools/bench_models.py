"""Parts of the models, the studio's way against the stock one. Called by python -m tools.bench loop, planner.

loop: a guided step of the song model. The transformer is the built-in engine's, or has random weights, so that no
download is needed, and the proportions of XL: half of the layers see 128 tokens to each side. Both sides compute the
same inputs in turn.

planner: how fast it draws audio codes, in tokens a second, and the share of what the memory's bandwidth allows. A
step reads the layers' weights and the output rows of the audio codes once, however many takes are drawn together, so
that the bandwidth bounds the steps a second. It is measured in the same run by copying a large buffer.
"""

from __future__ import annotations

import contextlib
import copy
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch

import estimate
import model_offload
import models
import planner
import planner_decoding
import song_attention
import song_compilation
from model_weights import BUILT_IN, MODEL_VARIABLE, PLANNER_VARIABLE, RANDOM, find_planner
from planner_decoding import CodeWriter, Draw
from tools.bench_rows import Row, timed

# --- the loop -------------------------------------------------------------------------------------

# Dimensions of the transformer: the real ones, ones that a processor can carry, and ones for tests.
TRANSFORMERS = {
    "xl": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "heads": (32, 8),
        "head_dim": 128,
        "encoder": 2048,
        "channels": 64,
    },
    "middle": {
        "hidden_size": 512,
        "intermediate_size": 1944,
        "heads": (8, 2),
        "head_dim": 64,
        "encoder": 512,
        "channels": 64,
    },
    "small": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "heads": (4, 2),
        "head_dim": 16,
        "encoder": 48,
        "channels": 8,
    },
}
LAYERS = {"xl": 32, "middle": 8, "small": 4}
PREVIEW = "preview"
CHOICES = (*TRANSFORMERS, PREVIEW)
CONDITION_TOKENS = 600
FRAMES_PER_SECOND = 25


@dataclass
class Inputs:
    """What the loop gives the transformer in a step, for each take, before the second half of guidance is added."""

    latents: torch.Tensor
    context: torch.Tensor
    condition: song_attention.CachedCondition


def loop_rows(
    shape: str,
    layers: int | None,
    seconds: list[float],
    runs: int,
    compiled: bool = False,
    in_float8: bool = False,
) -> Iterator[Row]:
    """Yield a row for each length: peaks above what was there before, the estimate, how far results differ.

    With `in_float8` the studio's layers multiply in 8 bits; with `compiled` they are compiled, which is not counted.
    On CUDA also the share of the card's arithmetic that the step uses, and the kernels that take longest.
    """
    device = _device()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    plain = build(shape, layers, device, dtype)
    transformer = plain
    if in_float8:
        transformer = copy.deepcopy(plain)
        model_offload.use_float8(transformer.layers, device)
    if compiled:
        transformer.compiled = song_compilation.Compiled(transformer)
    for length in seconds:
        inputs = inputs_of(transformer, round(length * FRAMES_PER_SECOND), 1)
        sides = {
            "stock": partial(stock_step, plain, inputs, True),
            "studio": partial(studio_step, transformer, inputs, True),
        }
        results = {side: step() for side, step in sides.items()}
        if compiled:
            thread = transformer.compiled.warm_up()
            if thread:
                thread.join()
                results["studio"] = studio_step(transformer, inputs, True)
        difference = (results["studio"] - results["stock"]).abs().max()
        far = float(difference / results["stock"].abs().max())
        row = Row.of_both(
            f"loop, {shape}, {len(plain.layers)} layers, a {'float8 ' * in_float8}{'compiled ' * compiled}step",
            length,
            *(partial(_whole, step, device) for step in sides.values()),
            runs,
            differ=f"{far:.0e}",
        )
        if device == "cuda":
            row.more.update(cuda_facts(sides["studio"], row.studio))
        inputs.condition = song_attention.CachedCondition(
            inputs.condition.states, inputs.condition.null, 1
        )
        row.more["peak MB"] = " / ".join(f"{peak_bytes(step) / 1e6:.0f}" for step in sides.values())
        row.more["expected MB"] = round(_expected_bytes(transformer, length, dtype) / 1e6)
        yield row


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def _expected_bytes(transformer: Any, seconds: float, dtype: torch.dtype) -> int:
    song = estimate.SongSize(
        seconds,
        config=transformer.config,
        number_bytes=dtype.itemsize,
        condition=CONDITION_TOKENS,
    )
    return estimate.song_bytes(song)


def cuda_facts(step: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Return how much of the card's arithmetic a step uses (MFU), and its five longest kernels.

    The card's arithmetic is what a large product of matrices reaches in the same run.
    """
    from torch.utils.flop_counter import FlopCounterMode

    side = 8192
    square = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    times = [timed(partial(_whole, partial(torch.mm, square, square), "cuda")) for _ in range(5)]
    with FlopCounterMode(display=False) as counter:
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        _whole(step, "cuda")
    longest = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)[:5]
    return {
        "MFU": f"{counter.get_total_flops() / seconds / (2 * side**3 / min(times)):.0%}",
        "kernels": ", ".join(
            f"{event.key[:60]} {event.self_device_time_total / 1e3:.1f} ms" for event in longest
        ),
    }


def build(
    shape: str, layers: int | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """Return a transformer in windows with random weights, made on the device itself."""
    from diffusers import AceStepTransformer1DModel

    if shape == PREVIEW:
        models.quiet_libraries()
        folder = BUILT_IN[MODEL_VARIABLE] / "transformer"
        transformer = AceStepTransformer1DModel.from_pretrained(folder, torch_dtype=dtype).to(
            device
        )
        song_attention.use_windows(transformer)
        return transformer.eval().requires_grad_(False)
    sizes = dict(TRANSFORMERS[shape])
    heads, key_heads = sizes.pop("heads")
    channels = sizes.pop("channels")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = AceStepTransformer1DModel(
                num_hidden_layers=layers or LAYERS[shape],
                num_attention_heads=heads,
                num_key_value_heads=key_heads,
                encoder_hidden_size=sizes.pop("encoder"),
                audio_acoustic_hidden_dim=channels,
                in_channels=3 * channels,
                **sizes,
            )
    finally:
        torch.set_default_dtype(before)
    song_attention.use_windows(transformer)
    return transformer.eval().requires_grad_(False)


def inputs_of(transformer: Any, frames: int, takes: int) -> Inputs:
    """Return random inputs; the takes share their condition."""
    config = transformer.config
    like = transformer.proj_out_conv.weight

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=like.device, dtype=like.dtype)

    states = noise(1, CONDITION_TOKENS, config.encoder_hidden_size)
    return Inputs(
        noise(takes, frames, config.audio_acoustic_hidden_dim),
        noise(takes, frames, 2 * config.audio_acoustic_hidden_dim),
        song_attention.CachedCondition(states, noise(1, 1, config.encoder_hidden_size), takes),
    )


@contextlib.contextmanager
def stock(transformer: Any) -> Iterator[None]:
    """Let `transformer` compute as diffusers ships it."""
    transformer.__class__ = type(transformer).__base__
    for layer in transformer.layers:
        layer.__class__ = type(layer).__base__
    try:
        yield
    finally:
        song_attention.use_windows(transformer)


@contextlib.contextmanager
def stock_vae(vae: Any) -> Iterator[None]:
    """Let `vae` compute as diffusers ships it, with the overlap of its tiles."""
    ours = {
        module: vars(module).pop("forward") for module in vae.modules() if "forward" in vars(module)
    }
    overlaps = vae.tile_latent_overlap, vae.tile_sample_overlap
    vae.tile_latent_overlap = 64
    vae.tile_sample_overlap = 2 * vae.config.sampling_rate
    try:
        yield
    finally:
        vae.tile_latent_overlap, vae.tile_sample_overlap = overlaps
        for module, forward in ours.items():
            module.forward = forward


def studio_step(transformer: Any, inputs: Inputs, guided: bool) -> torch.Tensor:
    """Return the velocities of a step of the studio's loop."""
    return call(transformer, inputs, inputs.condition, 1 + guided)


def stock_step(transformer: Any, inputs: Inputs, guided: bool) -> torch.Tensor:
    """Return the velocities of a step of the stock pipeline."""
    halves = 1 + guided
    with stock(transformer):
        return call(
            transformer, inputs, inputs.condition.rows(halves * len(inputs.latents)), halves
        )


def call(
    transformer: Any,
    inputs: Inputs,
    condition: torch.Tensor | song_attention.CachedCondition,
    halves: int,
) -> torch.Tensor:
    """Return what `transformer` makes of the inputs, once or twice, under `condition`."""
    latents = torch.cat([inputs.latents] * halves)
    time_ = torch.full((len(latents),), 0.5, device=latents.device, dtype=latents.dtype)
    with torch.no_grad():
        return transformer(
            hidden_states=latents,
            timestep=time_,
            timestep_r=time_,
            encoder_hidden_states=condition,
            context_latents=torch.cat([inputs.context] * halves),
            return_dict=False,
        )[0]


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes that torch held at once during `work`, above those held before it."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(changes, initial=0))


def _whole(step: Callable[[], Any], device: str) -> None:
    _wait(device)
    step()
    _wait(device)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


# --- the planner ----------------------------------------------------------------------------------

# Qwen3's configurations, and ACE-Step's vocabulary (rounded up as the checkpoints do).
PLANNERS = {
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


def planner_rows(dimensions: str, seconds: list[float], runs: int) -> Iterator[Row]:
    """Yield rows of tokens a second on the random planner of the tests, or on `dimensions` with random weights.

    Stock is transformers' own forward over its growing cache, with the same sampling.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    model, codes = _random_planner(dimensions, kind) if dimensions else _tests_planner(kind)
    limit = copy_bandwidth(kind) / weights_read(model, len(codes))
    for length in seconds:
        for takes in (1, 4):
            pairs = []
            count = planner.codes_needed(length)
            for _ in range(runs + 1):
                with _stock_planner():
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
        from transformers import DynamicCache

        self._body = model.get_decoder()
        self._cache = DynamicCache(config=model.config)
        self.position = 0
        self._places = torch.arange(length, device=model.device)
        self._pads = torch.tensor(pads, device=model.device)[:, None]

    def read(self, tokens: Any) -> Any:
        """Read `tokens` [rows, n]; returns the last hidden states [rows, size]."""
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
def _stock_planner() -> Iterator[None]:
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


def _tests_planner(kind: str) -> tuple[Any, Any]:
    device = models.Device(kind, *models.IN_FLOAT32, "")
    os.environ[PLANNER_VARIABLE] = RANDOM
    loaded = planner.load_planner(find_planner(), device)
    return loaded.model, loaded.vocabulary.code_ids


def _random_planner(dimensions: str, kind: str) -> tuple[Any, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=40_960,
        dtype="bfloat16" if kind == "cuda" else "float32",
        **PLANNERS[dimensions],
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
