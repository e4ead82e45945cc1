"""The studio proves itself on this machine: each fast or unusual path is compared with the plain one, once.

Nobody can try every card, driver and version. So the first time that a combination of them runs, and before a song or a
plan is made with it, each path is computed both ways, at the model's own shapes. What disagrees is switched off in this
process, and the status says so; what was found is remembered in a file of the cache folder, under a key of the
combination. The same comparisons time the machine, for estimate.py.

Each check takes the fewest layers that show a difference, one of each kind, and the lengths at which a path can go
wrong: attention over several blocks, music that is longer than a tile of the VAE, codes over the end of a recording.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import agreement
import bootstrap
import estimate
import gpu_zero
import model_memory
import model_offload
import models
import planner_decoding
import planner_layers
import song_attention
import song_codec
import song_compilation
import song_conditions
import song_half
import song_loop
import song_vae
from events import Progress, is_out_of_memory
from limits import STUDIO_VERSION
from model_weights import Weights
from record import library_versions

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger("studio")

SETTING = "ACE_STUDIO_SELFCHECK"
FILE = "selfcheck.json"
MOST_COMBINATIONS = 50  # that the file remembers

# The paths by their names in the report, in words.
WORDS = {
    "half": "half precision",
    "windows": "attention in windows",
    "condition": "the condition computed once a song",
    "compiled": "compiled layers",
    "tiles": "small overlaps between the VAE's tiles",
    "pieces": "the VAE's widest layers in pieces",
    "vae": "the VAE on Apple's GPU",
    "repeats": "sums in any order",
    "cancel": "memory that a cancelled song gives back",
    "joined": "the planner's joined weights",
    "planner": "the planner's own layers",
    "recorded": "the planner's recorded steps",
    "offload": "one part of a model at a time",
    "fp8": "weights in 8 bits",
    "fast8": "products in 8 bits",
}
# There is nothing to switch off: a disagreement is only reported.
REPORTED = ("cancel",)
# The real model's frames of a song, seconds of music and rows are those of a guided song.
ROWS = 2
CONDITION = 60  # tokens
PROMPT = 12  # tokens that the planner reads at once
# So many that recorded steps go on into the next stretch of the cache, for which they are recorded again.
LONG_PROMPT = planner_layers.STRETCH - 3
CODES = 8  # that are drawn recorded and not: four to the end of the stretch, and four beyond
BEYOND_TILE = 8  # frames by which music is longer than a tile of the VAE


@dataclass(frozen=True)
class Finding:
    """How far a path was from the plain one, and how far it may be.

    `difference` is None if the path failed, with an `error`, or gave no finite numbers.
    """

    path: str
    difference: float | None
    bound: float
    seconds: float
    error: str = ""

    @property
    def agrees(self) -> bool:
        return self.difference is not None and self.difference <= self.bound

    def line(self) -> str:
        verdict = "agrees" if self.agrees else "DISAGREES"
        if self.difference is None:
            figure = self.error or "no finite numbers"
        else:
            figure = f"{self.difference:.2g} apart, {self.bound:.2g} allowed"
        return f"{WORDS[self.path]}: {verdict} ({figure}; {self.seconds:.2f} s)"


@dataclass(frozen=True)
class Check:
    """`compare` returns how far the path is from the plain one; `switch_off` has the plain one used from now on.

    A path that is only used where it has agreed is begun by `use`.
    """

    path: str
    bound: float
    compare: Callable[[], float]
    switch_off: Callable[[], None]
    use: Callable[[], None] = lambda: None


def wanted() -> bool:
    return os.environ.get(SETTING, "").strip().lower() != "off"


# --- when a model is about to be used ---------------------------------------------------------------------------------


def song_model(loaded: models.Models, pipe: Any) -> Generator[Progress]:
    """Prove the paths of the song model, which is on its device, unless that is done.

    The built-in engine on a processor is the one that every developer's tests run: its first song
    need not wait for that.
    """
    if not wanted() or getattr(pipe.transformer, "proven", False):
        return
    kind = loaded.device().kind
    if loaded.current.is_built_in_engine and kind == "cpu":
        _follow_compiling(loaded, pipe.transformer)
        return
    yield from _prove_song(loaded, pipe)


def _prove_song(loaded: models.Models, pipe: Any) -> Generator[Progress]:
    kind = loaded.device().kind
    _follow_compiling(loaded, pipe.transformer)

    def times() -> dict[str, float]:
        return {
            "song_load_seconds": loaded.load_seconds,
            "cold_seconds": start_seconds(loaded),
            **_song_times(pipe, kind),
        }

    yield from _prove(loaded, "song", song_checks(pipe, kind), times)
    pipe.transformer.proven = True


def _follow_compiling(loaded: models.Models, transformer: Any) -> None:
    """Treat what is found about layers that are compiled after a song, and was found before, like any check."""
    compiled = getattr(transformer, "compiled", None)
    if not isinstance(compiled, song_compilation.Compiled):
        return
    facts = facts_of(loaded)
    check = _compiled_check(transformer)
    known = _findings_in(_read().get(_entry_name(facts, "song"), {})).get(check.path)
    if known and not known.agrees:
        _switch_off(loaded, check, known)
        return

    def compared(difference: float, seconds: float) -> None:
        figure = difference if math.isfinite(difference) else None
        finding = Finding(check.path, figure, check.bound, round(seconds, 3))
        _add(facts, "song", finding)
        if not finding.agrees:
            _switch_off(loaded, check, finding)

    compiled.compared = compared


def _compile_now(transformer: Any) -> Iterator[None]:
    """Compile what a guided song needs without waiting for one, if the setting asks for it."""
    compiled = getattr(transformer, "compiled", None)
    if isinstance(compiled, song_compilation.Compiled):
        compiled.pick(ROWS, _block_and_more(transformer), 1)
        thread = compiled.warm_up()
        if thread:
            thread.join()
    yield from ()


def planner(loaded: models.Models, plans: Any) -> Generator[Progress]:
    """Prove the paths of the planner `plans`, unless that is done."""
    if not wanted() or getattr(plans.model, "proven", False):
        return
    model = plans.model
    checks = planner_checks(model, plans.vocabulary.code_ids)

    def times() -> dict[str, float]:
        return {
            "planner_load_seconds": loaded.planner.load_seconds,
            "cold_seconds": start_seconds(loaded),
            **_planner_times(model),
        }

    yield from _prove(loaded, "planner", checks, times)
    model.proven = True


def plan(loaded: models.Models, name: str) -> Generator[Progress, None, bool]:
    """Prove what a memory plan does to weights; return whether it may be used."""
    if wanted() and name not in loaded.distrusted:
        device = loaded.device()
        config = {**estimate.XL, **estimate.transformer_config(loaded.current)}
        stored = _real_weights(loaded.current.folder) if name == "fp8" else []
        checks = plan_checks(device, name, config, stored)
        yield from _prove(loaded, f"plan {name}", checks, dict)
    return name not in loaded.distrusted


def distrust_half(loaded: models.Models) -> None:
    """Remember that half precision, which agreed, did not hold the numbers of a song."""
    _add(facts_of(loaded), "song", Finding("half", None, agreement.BOUNDS["float16"], 0.0))
    loaded.distrusted["half"] = WORDS["half"]


def due_seconds(loaded: models.Models) -> int:
    """Return the seconds that ZeroGPU has to be asked for beside those of the job, while nothing is remembered."""
    if not wanted() or _remembered_of(loaded):
        return 0
    return ZEROGPU_SECONDS


ZEROGPU_SECONDS = 15


def use_remembered(loaded: models.Models) -> None:
    """Let estimate.py use what a worker of ZeroGPU has measured."""
    if wanted():
        estimate.use_measured(_remembered_of(loaded))


def _prove(
    loaded: models.Models,
    part: str,
    checks: list[Check],
    times: Callable[[], Mapping[str, float]],
) -> Generator[Progress]:
    """Do the `checks` that are not remembered, and switch off what disagrees."""
    facts = facts_of(loaded)
    key = _entry_name(facts, part)
    entry = _read().get(key, {})
    known = _findings_in(entry)
    measured = entry.get("measured", {})
    todo = [check for check in checks if check.path not in known]
    for check in checks:
        if check.path not in known:
            yield Progress("checking", todo.index(check), len(todo))
            finding = _finding(check)
            if finding is None:  # no memory for it: nothing is known
                continue
            known[check.path] = finding
        if not known[check.path].agrees:
            _switch_off(loaded, check, known[check.path])
        else:
            check.use()
    if todo:
        with contextlib.suppress(Exception):
            measured = dict(times())
        _remember(key, facts, known, measured)
    estimate.use_measured(measured)


def _finding(check: Check) -> Finding | None:
    started = time.perf_counter()
    difference: float | None = None
    error_name = ""
    try:
        difference = check.compare()
    except Exception as error:
        if is_out_of_memory(error):
            return None
        error_name = type(error).__name__
        log.debug("the self-check of %s failed", check.path, exc_info=error)
    if difference is not None and not math.isfinite(difference):
        difference = None
    return Finding(
        check.path, difference, check.bound, round(time.perf_counter() - started, 3), error_name
    )


def _switch_off(loaded: models.Models, check: Check, finding: Finding) -> None:
    check.switch_off()
    if check.path not in loaded.distrusted:
        beginning = "Found" if check.path in REPORTED else "Switched off"
        log.warning("%s on this machine: %s", beginning, finding.line())
    loaded.distrusted[check.path] = WORDS[check.path]


def everything(loaded: models.Models, placing: model_memory.Placing) -> Iterator[Finding]:
    """Check again every path that these models can take; raises StudioError without a song model, or room for one.

    They lie where the memory plan of a typical song has them.
    """
    forget(loaded)
    device = loaded.device()
    for name in model_memory.plans_on(device):
        yield from _found_by(loaded, plan(loaded, name))
    placing.begin_typical()
    placing.for_song()
    # Without a name for the pipeline, which would keep it in memory while the planner is loaded.
    yield from _found_by(loaded, _prove_song(loaded, loaded.pipeline()))
    yield from _found_by(loaded, _compile_now(loaded.pipeline().transformer))
    if loaded.planner.weights.folder is not None:
        placing.for_planning()
        found = loaded.planner.get()
        yield from _found_by(loaded, planner(loaded, found))


def _found_by(loaded: models.Models, work: Iterator[Any]) -> list[Finding]:
    before = remembered(loaded)
    for _ in work:
        pass
    return [finding for finding in remembered(loaded) if finding not in before]


# --- the song model ---------------------------------------------------------------------------------------------------


def song_checks(pipe: Any, kind: str) -> list[Check]:
    """Return the checks of the song model on a device of this kind, in the order in which they run."""
    checks = [*_transformer_checks(pipe, kind), *_vae_checks(pipe, kind)]
    checks.append(Check("repeats", 0.0, lambda: _repeats(pipe), _sum_in_order))
    if kind != "cpu":
        checks.append(Check("cancel", CANCEL_BOUND, lambda: _cancel(pipe), lambda: None))
    return checks


def _transformer_checks(pipe: Any, kind: str) -> Iterator[Check]:
    transformer = pipe.transformer
    near = agreement.bound(transformer.dtype)
    if kind != "cpu" and _could_be_half(transformer):
        near = agreement.BOUNDS["float16"]
        use_half = partial(song_half.use, transformer)
        yield Check("half", near, lambda: _half(pipe), lambda: None, use_half)
    avoid_windows = partial(_avoid, transformer, "windows")
    yield Check("windows", near, lambda: _windows(pipe), avoid_windows)
    avoid_condition = partial(_avoid, transformer, "condition")
    yield Check("condition", near, lambda: _condition(pipe), avoid_condition)
    if _compiled_layer(transformer):
        yield _compiled_check(transformer)


def _vae_checks(pipe: Any, kind: str) -> Iterator[Check]:
    vae = pipe.vae
    near = agreement.bound(vae.dtype)
    if kind == "cpu":
        use_stock_layers = partial(song_vae.use_stock_layers, vae)
        yield Check("pieces", near, lambda: _pieces(pipe), use_stock_layers)
    use_stock_tiles = partial(song_vae.use_stock_tiles, vae)
    yield Check("tiles", near, lambda: _tiles(pipe), use_stock_tiles)
    if kind == song_codec.REFUSING_DEVICE:
        reason = "It disagreed with the processor."
        use_processor = partial(song_codec.move_to_processor, vae, reason)
        yield Check("vae", near, lambda: _vae(pipe), use_processor)


CANCEL_BOUND = 0.01  # of the transformer


@contextlib.contextmanager
def _few_layers(transformer: Any) -> Iterator[None]:
    """Let `transformer` consist of its first layers, one in windows and one without, if it has both."""
    layers = transformer.layers
    windowed = [layer.self_attn.sliding_window is not None for layer in layers]
    count = max(windowed.index(kind) for kind in set(windowed)) + 1
    transformer.layers = layers[:count]
    try:
        yield
    finally:
        transformer.layers = layers


def _noise(seed: int, *shape: int) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tokens(transformer: Any) -> int:
    """Return so many tokens that attention has a first block, one inside, and a last, longer one."""
    return 3 * transformer.config.sliding_window + 9


def _condition_of(transformer: Any, seed: int) -> song_attention.CachedCondition:
    """Return a random condition that the first row sees; the other one sees a null token."""
    width = transformer.config.encoder_hidden_size or transformer.config.hidden_size
    like = transformer.scale_shift_table
    states = _noise(seed, 1, CONDITION, width).to(like.device, transformer.dtype)
    null = _noise(seed + 1, 1, 1, width).to(like.device, transformer.dtype)
    return song_attention.CachedCondition(states, null, 1)


def _pass(
    pipe: Any,
    condition: song_attention.CachedCondition,
    avoid: frozenset[str],
    seed: int = 1,
    whole: bool = False,
) -> dict[str, torch.Tensor]:
    """Return what a forward pass of a guided song makes of noise, and its attention to itself and to the condition.

    It takes few layers, or the `whole` transformer.
    """
    import torch

    transformer = pipe.transformer
    config = transformer.config
    model_offload.bring(pipe, "transformer")
    place = transformer.scale_shift_table.device
    frames = _tokens(transformer) * config.patch_size
    channels = config.audio_acoustic_hidden_dim
    latents = _noise(seed, ROWS, frames, channels).to(place, transformer.dtype)
    context = _noise(seed + 1, ROWS, frames, config.in_channels - channels)
    times = torch.full((ROWS,), 0.5 + 0.1 * seed % 0.5, dtype=transformer.dtype, device=place)
    before = transformer.avoided
    transformer.avoided = before | avoid
    made: dict[str, torch.Tensor] = {}
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        if not whole:
            hooks.enter_context(_few_layers(transformer))
        layer = transformer.layers[0]
        for name, attention in (("self", layer.self_attn), ("cross", layer.cross_attn)):
            hooks.enter_context(attention.to_out[0].register_forward_hook(_keep(made, name)))
        try:
            made["velocity"] = transformer(
                hidden_states=latents,
                timestep=times,
                timestep_r=times,
                encoder_hidden_states=condition,
                context_latents=context.to(place, transformer.dtype),
                return_dict=False,
            )[0]
        finally:
            transformer.avoided = before
    made["cross"] = made["cross"][:1]  # rows that see the condition
    return made


def _keep(made: dict[str, torch.Tensor], name: str) -> Callable[[Any, Any, torch.Tensor], None]:
    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        made[name] = output.clone()

    return keep


def _largest_difference(made: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> float:
    return agreement.largest(agreement.difference(made[name], plain[name]) for name in plain)


def _could_be_half(transformer: Any) -> bool:
    """Return whether weights are stored in float16 and widened as they are used: the card has no bfloat16."""
    import torch

    stored = transformer.layers[0].mlp.down_proj.weight.dtype
    narrow = stored == torch.float16 and transformer.dtype == torch.float32
    return narrow and song_half.fits(transformer)


def _half(pipe: Any) -> float:
    """Compare a pass through all layers, whose numbers grow from one to the next."""
    condition = _condition_of(pipe.transformer, 3)
    plain = _pass(pipe, condition, frozenset({"condition"}), whole=True)
    song_half.use(pipe.transformer)
    try:
        made = _pass(pipe, condition, frozenset({"condition"}), whole=True)
    finally:
        song_half.leave(pipe.transformer)
    return agreement.difference(made["velocity"], plain["velocity"])


def _windows(pipe: Any) -> float:
    condition = _condition_of(pipe.transformer, 3)
    plain = _pass(pipe, condition, frozenset({"windows"}))
    return _largest_difference(_pass(pipe, condition, frozenset({"condition"})), plain)


def _condition(pipe: Any) -> float:
    """Compare two steps of two songs: what is kept must be of this song, and serve at every step."""
    found = []
    for seed in (3, 5):
        cached = _condition_of(pipe.transformer, seed)
        for step in (1, 2):
            made = _pass(pipe, cached, frozenset(), step)
            plain = _pass(
                pipe, _condition_of(pipe.transformer, seed), frozenset({"condition"}), step
            )
            found.append(_largest_difference(made, plain))
    return agreement.largest(found)


def _avoid(transformer: Any, path: str) -> None:
    transformer.avoided = transformer.avoided | {path}


def _compiled_layer(transformer: Any) -> Any:
    """Return the function that computes a layer compiled, None if there is none for a guided song."""
    compiled = getattr(transformer, "compiled", None)
    if compiled is None:
        return None
    picked = compiled.pick(ROWS, _block_and_more(transformer), 1)
    return None if picked is song_attention.compute_layer else picked


def _block_and_more(transformer: Any) -> int:
    """Return the fewest tokens for which layers are compiled."""
    return 4 * transformer.config.sliding_window + 1


def _compiled_check(transformer: Any) -> Check:
    near = agreement.bound(transformer.dtype)
    use_plain_layers = partial(_no_compiled, transformer)
    return Check("compiled", near, lambda: _compiled(transformer), use_plain_layers)


def _compiled(transformer: Any) -> float:
    return song_compilation.difference_of(transformer, _compiled_layer(transformer), ROWS, 1)


def _no_compiled(transformer: Any) -> None:
    transformer.compiled = None


# --- the VAE ----------------------------------------------------------------------------------------------------------


def _latents(pipe: Any, frames: int) -> torch.Tensor:
    return _noise(7, 1, frames, pipe.transformer.config.audio_acoustic_hidden_dim)


def _sound(pipe: Any, samples: int) -> np.ndarray:
    return (0.1 * _noise(8, 2, samples)).numpy()


def _decoded(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the samples of `latents`, in the tiles that songs use."""
    import torch

    parts = [samples for _, _, samples in song_codec.decode_latents(pipe, latents)]
    return torch.cat(parts, dim=-1)


def _encoded(pipe: Any, samples: np.ndarray) -> torch.Tensor:
    """Return the latents of `samples`, in the tiles that songs use."""
    work = song_codec.encode(pipe, samples, "reading")
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@contextlib.contextmanager
def _tiles_of_any_length(pipe: Any) -> Iterator[Any]:
    """Give what computes anything in one tile: `pipe`, or one on the processor where tiles have to be short."""
    vae = pipe.vae
    if song_vae.has_short_tiles(vae):
        vae = song_codec.on_processor(vae)
        pipe = SimpleNamespace(
            vae=vae,
            transformer=pipe.transformer,
            sample_rate=pipe.sample_rate,
            latents_per_second=pipe.latents_per_second,
            _execution_device=vae.device,
        )
    lengths = (vae.tile_latent_min_length, vae.tile_sample_min_length)
    vae.tile_latent_min_length = 10 * lengths[0]
    vae.tile_sample_min_length = 10 * lengths[1]
    try:
        yield pipe
    finally:
        vae.tile_latent_min_length, vae.tile_sample_min_length = lengths


def _tiles(pipe: Any) -> float:
    """Compare music that is a little longer than a tile, decoded and encoded in tiles, with the same in one."""
    vae = pipe.vae
    latents = _latents(pipe, vae.tile_latent_min_length + BEYOND_TILE)
    sound = _sound(pipe, vae.tile_sample_min_length + BEYOND_TILE * vae.hop_length)
    decoded = _decoded(pipe, latents)
    encoded = _encoded(pipe, sound)
    with _tiles_of_any_length(pipe) as whole:
        plain_decoded = _decoded(whole, latents)
        plain_encoded = _encoded(whole, sound)
    overlap = song_vae.seen_frames(vae.config.downsampling_ratios)
    of_samples = _largest_part(decoded, plain_decoded, overlap * vae.hop_length)
    of_latents = _largest_part(encoded.mT, plain_encoded.mT, overlap)
    return agreement.largest([of_samples, of_latents])


def _largest_part(made: torch.Tensor, plain: torch.Tensor, length: int) -> float:
    """Return the largest difference of parts of that length, because a seam touches no more."""
    parts = zip(made.split(length, dim=-1), plain.split(length, dim=-1), strict=True)
    return agreement.largest(agreement.difference(*each) for each in parts)


def _pieces(pipe: Any) -> float:
    import torch

    latents = _latents(pipe, 2 * pipe.vae.tile_latent_overlap + 8).transpose(1, 2)
    decoder = pipe.vae.decoder
    latents = latents.to(pipe.vae.dtype)
    with torch.no_grad():
        return agreement.difference(decoder(latents), type(decoder).forward(decoder, latents))


PART = 16  # frames


def _vae(pipe: Any) -> float:
    """Compare the beginning, the middle and the end of a whole tile with these parts alone, from the processor."""
    import torch

    vae = pipe.vae
    frames = vae.tile_latent_min_length
    overlap = song_vae.seen_frames(vae.config.downsampling_ratios)
    latents = _latents(pipe, frames)
    made = _decoded(pipe, latents)
    copy = song_codec.on_processor(vae)
    found = []
    for start in (0, (frames - PART) // 2, frames - PART):
        first = max(start - overlap, 0)
        seen = latents[:, first : start + PART + overlap].transpose(1, 2)
        with torch.no_grad():
            plain = copy.decode(seen.to(copy.dtype)).sample[0].float()
        inside = (start - first) * vae.hop_length
        samples = PART * vae.hop_length
        place = start * vae.hop_length
        found.append(
            agreement.difference(
                made[:, place : place + samples], plain[:, inside : inside + samples]
            )
        )
    return agreement.largest(found)


# --- the same again ---------------------------------------------------------------------------------------------------


def _repeats(pipe: Any) -> float:
    """Compute the same twice: a seed has to mean the same song. Where it does not, sums in a fixed order may help."""
    first = _pass(pipe, _condition_of(pipe.transformer, 3), frozenset())
    second = _pass(pipe, _condition_of(pipe.transformer, 3), frozenset())
    latents = _latents(pipe, 16)
    sound = _decoded(pipe, latents)
    same_sound = _decoded(pipe, latents)
    return agreement.largest(
        [_largest_difference(second, first), agreement.difference(same_sound, sound)]
    )


def _sum_in_order() -> None:
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def _cancel(pipe: Any) -> float:
    """Return what a song keeps that is cancelled after a step, as a share of the transformer's bytes.

    Parts that are offloaded are away before and after: which one worked last says nothing.
    """
    before = _kept(pipe)
    _cancelled_song(pipe)
    size = sum(parameter.nbytes for parameter in pipe.transformer.parameters())
    return max(_kept(pipe) - before, 0) / size


def _kept(pipe: Any) -> int:
    model_offload.bring(pipe, "")
    models.free_memory()
    return _allocated(pipe)


def _cancelled_song(pipe: Any) -> None:
    transformer = pipe.transformer
    frames = _tokens(transformer) * transformer.config.patch_size
    condition = _condition_of(transformer, 3)
    generators = song_loop.generators_for((1,))
    run = song_loop.Denoising(
        condition=song_conditions.Condition(
            condition.states, song_conditions.silent_context(pipe, frames)
        ),
        start=song_loop.draw_noise(
            generators, frames, transformer.config.audio_acoustic_hidden_dim
        ),
        generators=generators,
        sigmas=song_loop.schedule(2, 1.0),
        guidance=7.0,
    )
    for _ in song_loop.denoise(pipe, run):
        break


def _allocated(pipe: Any) -> int:
    """Return the bytes of tensors on the device."""
    import torch

    if pipe._execution_device.type == "mps":
        return torch.mps.current_allocated_memory()
    return torch.cuda.memory_allocated()


# --- memory plans -----------------------------------------------------------------------------------------------------


def plan_checks(
    device: models.Device,
    name: str,
    config: Mapping[str, Any],
    stored: Sequence[torch.Tensor] = (),
) -> list[Check]:
    """Return what proves a plan, on layers of the shapes of `config` with random weights.

    Storing weights in 8 bits is compared for the `stored` ones of the model, if there are any.
    """
    import torch

    dtype = getattr(torch, device.dtype)
    compare = {
        "offload": lambda: _offload(device.kind, config, dtype),
        "fp8": lambda: _stored8(device.kind, config, dtype, stored),
        "fast8": lambda: _computed8(device.kind, config, dtype),
    }.get(name)
    if compare is None:
        return []
    return [Check(name, plan_bound(name), compare, lambda: None)]


def plan_bound(name: str) -> float:
    """Return how far a product may be from that of the layer without the plan, 0 if it is the same computation.

    A number in 8 bits has three bits after the leading one: neighbours are 1/8 apart, and rounding
    is off by at most half of that, by 2.6 % in the root mean square. Rows are scaled, so numbers that
    are rounded coarser are 2^-15 of their row's largest and less, and weigh nothing. `fp8` rounds the
    weights alone, `fast8` both factors, which has half of its error to spare.
    """
    import torch

    rounding = torch.finfo(torch.float8_e4m3fn).eps / 2
    bounds = {"fp8": rounding, "fast8": 1.5 * 2**0.5 * rounding}
    return bounds.get(name, 0.0)


def _real_weights(folder: Path | None) -> list[torch.Tensor]:
    """Return a few of the transformer's weights: two of its first layer, and two of its last.

    There are none of files that cannot be read, which loading reports.
    """
    from safetensors import SafetensorError

    try:
        return _read_weights(folder)
    except (OSError, SafetensorError):
        return []


def _read_weights(folder: Path | None) -> list[torch.Tensor]:
    from safetensors import safe_open

    places: dict[str, Path] = {}
    if folder is not None:
        for path in sorted((folder / "transformer").glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                places |= dict.fromkeys(file.keys(), path)
    numbers = sorted({int(name.split(".")[1]) for name in places if name.startswith("layers.")})
    found = []
    for number in {*numbers[:1], *numbers[-1:]}:
        for part in ("self_attn.to_q", "mlp.down_proj"):
            name = f"layers.{number}.{part}.weight"
            if name in places:
                with safe_open(places[name], "pt") as file:
                    found.append(file.get_tensor(name))
    return found


class Sample(NamedTuple):
    """A layer alone, and what it is asked [1, tokens, in]."""

    layer: Any
    x: torch.Tensor


def _random_layer(kind: str, config: Mapping[str, Any], dtype: torch.dtype) -> Sample:
    """Return a layer of a block's feed-forward part."""
    shape = (config["intermediate_size"], config["hidden_size"])
    weight = _noise(1, *shape) * config["hidden_size"] ** -0.5
    return _layer_of(weight, kind, dtype)


def _layer_of(weight: torch.Tensor, kind: str, dtype: torch.dtype) -> Sample:
    import torch

    rows, columns = weight.shape
    layer = torch.nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight.to(kind, dtype), requires_grad=False)
    return Sample(layer, _noise(2, 1, 32, columns).to(kind, dtype))


def _offload(kind: str, config: Mapping[str, Any], dtype: torch.dtype) -> float:
    import torch

    sample = _random_layer(kind, config, dtype)
    other = _random_layer(kind, config, dtype)
    with torch.no_grad():
        plain = sample.layer(sample.x)
        parts = SimpleNamespace(components={"one": sample.layer, "other": other.layer})
        model_offload.Offload(parts, kind)
        made = []
        for _ in range(2):
            made.append(sample.layer(sample.x))
            other.layer(other.x)
    return agreement.largest(agreement.difference(each, plain) for each in made)


def _stored8(
    kind: str, config: Mapping[str, Any], dtype: torch.dtype, weights: Sequence[torch.Tensor]
) -> float:
    """Compare each layer with the one whose weights are not stored in 8 bits."""
    import torch

    samples = [_layer_of(weight, kind, dtype) for weight in weights]
    if not samples:
        samples = [_random_layer(kind, config, dtype)]
    found = []
    with torch.no_grad():
        for sample in samples:
            plain = sample.layer(sample.x)
            model_offload.store_in_8_bits(torch.nn.ModuleList([sample.layer]), dtype)
            found.append(agreement.difference(sample.layer(sample.x), plain))
    return agreement.largest(found)


def _computed8(kind: str, config: Mapping[str, Any], dtype: torch.dtype) -> float:
    import torch

    sample = _random_layer(kind, config, dtype)
    with torch.no_grad():
        plain = sample.layer(sample.x)
        model_offload.use_float8(torch.nn.ModuleList([sample.layer]), kind)
        return agreement.difference(sample.layer(sample.x), plain)


# --- the planner ------------------------------------------------------------------------------------------------------


def planner_checks(model: Any, code_ids: torch.Tensor) -> list[Check]:
    near = agreement.bound(model.get_decoder().norm.weight.dtype)
    checks = [
        Check("joined", near, lambda: _joined(model), lambda: _plain_planner(model)),
        Check("planner", near, lambda: _planner(model), lambda: _plain_planner(model)),
    ]
    if model.device.type in planner_decoding.RECORDED:
        checks.append(
            Check(
                "recorded",
                near,
                lambda: _recorded(model, code_ids),
                lambda: planner_decoding.RECORDED.discard(model.device.type),
            )
        )
    return checks


def _plain_planner(model: Any) -> None:
    model.plain_layers = True


def _joined(model: Any) -> float:
    """Compare products with the joined weights of a layer with those of each weight alone."""
    import torch

    layer = model.get_decoder().layers[0]
    dtype = model.get_decoder().norm.weight.dtype
    attention = layer.self_attn
    found = []
    for parts in (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (layer.mlp.gate_proj, layer.mlp.up_proj),
    ):
        weights = [part.weight.detach().to(dtype, copy=True) for part in parts]
        x = _noise(1, PROMPT, weights[0].shape[1]).to(weights[0])
        joined = planner_layers.joined(*parts).to(dtype)
        with torch.no_grad():
            together = (x @ joined.T).split([len(weight) for weight in weights], dim=-1)
            for made, weight in zip(together, weights, strict=True):
                found.append(agreement.difference(made, x @ weight.T))
    return agreement.largest(found)


def _planner(model: Any) -> float:
    """Compare what both read at once and token by token, the second row padded.

    Where steps are recorded, those are compared as well, over the end of a stretch of the cache.
    """
    found = _steps(model, PROMPT, 2, recordable=False)
    if model.device.type in planner_decoding.RECORDED:
        found += _steps(model, LONG_PROMPT, CODES - 1, recordable=True)
    return agreement.largest(found)


def _steps(model: Any, prompt: int, count: int, recordable: bool) -> list[float]:
    """Compare what our layers and those of transformers give for a prompt of that length and each token after it."""
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 500, (ROWS, prompt + count), generator=generator).to(model.device)
    pads = [0, prompt // 2]
    ours = planner_layers.CachedLayers(model, pads, prompt + count)
    plain = planner_layers.PlainLayers(model, pads)
    found = [agreement.difference(ours.read(tokens[:, :prompt]), plain.read(tokens[:, :prompt]))]
    for token in tokens[:, prompt:].split(1, dim=1):
        if recordable:
            made = ours.step(token, torch.tensor([ours.position], device=model.device))
            ours.position += 1
        else:
            made = ours.read(token)
        found.append(agreement.difference(made, plain.read(token)))
    return found


class _Drawer:
    """Draws codes by chance alone, so that rounding changes none, and keeps the logits [codes, takes, N]."""

    def __init__(self, count: int):
        self._count = count
        self.logits: Any = None

    def __call__(self, logits: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """Return one index for each row of `logits`; it can be recorded from the second call on."""
        import torch

        if self.logits is None:
            self.logits = torch.zeros((self._count, *logits.shape), device=logits.device)
            self._number = torch.zeros(1, dtype=torch.long, device=logits.device)
        self.logits.index_copy_(0, self._number, logits[None])
        self._number += 1
        last = logits.shape[1] - 1
        return (chance[:, 0] * last).long()


def _recorded(model: Any, code_ids: torch.Tensor) -> float:
    """Compare steps that are replayed with the same steps, launched one by one, over the end of a recording."""
    replayed = _logits(model, code_ids, launches=False)
    launched = _logits(model, code_ids, launches=True)
    return agreement.largest(map(agreement.difference, replayed, launched))


def _logits(model: Any, code_ids: torch.Tensor, launches: bool) -> torch.Tensor:
    import torch

    tokens = torch.randint(5, 500, (LONG_PROMPT,), generator=torch.Generator().manual_seed(1))
    prompts = (tokens.tolist(), [5, 6])
    drawer = _Drawer(CODES)
    writer = planner_decoding.CodeWriter(
        model, code_ids, prompts, (1,), CODES, drawer, launches=launches
    )
    for _ in writer.run():
        pass
    return drawer.logits


# --- how long things take ---------------------------------------------------------------------------------------------


def _seconds_of(kind: str, work: Callable[[], Any]) -> float:
    """Return the shorter of two times of `work` on the device."""
    import torch

    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        elif kind == "mps":
            torch.mps.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def _song_times(pipe: Any, kind: str) -> dict[str, float]:
    """Return what estimate.py counts with; it counts in the work of the XL models."""
    transformer = pipe.transformer
    if transformer.config.hidden_size != estimate.XL["hidden_size"] or kind == "cpu":
        return {}
    condition = _condition_of(transformer, 3)
    step = _seconds_of(kind, lambda: _pass(pipe, condition, frozenset()))
    with _few_layers(transformer):
        few = len(transformer.layers)
    share = few / len(transformer.layers)
    length = _tokens(transformer) / estimate.TOKENS_PER_SECOND
    return {
        "tflop_per_second": ROWS * estimate.forward_tflop(length) / (step / share),
        **_coding_times(pipe, kind),
    }


# Of encoding, s: less is lost in the noise of a clock.
LEAST_START = 0.005


def _coding_times(pipe: Any, kind: str) -> dict[str, float]:
    """Return the seconds of decoding by the minute, and of encoding at a start and by the minute.

    A take is decoded in whole tiles; a source may be much shorter than a tile.
    """
    vae = pipe.vae
    frames = vae.tile_latent_min_length
    latents = _latents(pipe, frames)
    decoding = _seconds_of(kind, lambda: _decoded(pipe, latents))
    longer = _sound(pipe, vae.tile_sample_min_length)
    shorter = longer[:, : longer.shape[1] // 3 // vae.hop_length * vae.hop_length]
    seconds_longer = _seconds_of(kind, lambda: _encoded(pipe, longer))
    seconds_shorter = _seconds_of(kind, lambda: _encoded(pipe, shorter))
    seconds = (seconds_longer - seconds_shorter) / (longer.shape[1] - shorter.shape[1])
    start = seconds_shorter - seconds * shorter.shape[1]
    return {
        "decode_per_minute": decoding / frames * pipe.latents_per_second * 60,
        "encode_seconds": max(start, LEAST_START),
        "encode_per_minute": seconds * pipe.sample_rate * 60,
    }


def start_seconds(loaded: models.Models) -> float:
    """Return how long the models that are loaded took to load, on ZeroGPU how long its worker took to start."""
    if bootstrap.on_zerogpu():
        return gpu_zero.start_seconds()
    return loaded.load_seconds + loaded.planner.load_seconds


def _planner_times(model: Any) -> dict[str, float]:
    import torch

    layers = planner_layers.layers_of(model, [0, 0], PROMPT + 16)
    token = torch.full((2, 1), 5, device=model.device)
    layers.read(token)
    return {
        "plan_tokens_per_second": 1 / _seconds_of(model.device.type, lambda: layers.read(token))
    }


# --- what is remembered -----------------------------------------------------------------------------------------------


def facts_of(loaded: models.Models) -> dict[str, str]:
    """Return the combination that was checked: no name of a person or a machine, no path."""
    device = loaded.device()
    layout = loaded.layout
    plan_of = ["parts"] if layout.in_parts else []
    plan_of += [layout.eight_bits] if layout.eight_bits else []
    versions = library_versions()
    return {
        "studio": STUDIO_VERSION,
        "system": f"{platform.system()} {platform.machine()} {platform.mac_ver()[0]}".strip(),
        "device": f"{device.kind} {_device_name(device.kind)}",
        "driver": _driver(device.kind),
        "numbers": f"{device.dtype}, stored in {device.storage_dtype}, VAE in {device.vae_dtype}",
        "layout": " ".join(plan_of) or "whole",
        "model": _name_of(loaded.current),
        "planner": _name_of(loaded.planner.weights),
        **{name: version for name, version in versions.items() if name in LIBRARIES},
    }


def _name_of(weights: Weights) -> str:
    """Return the name and version of a model, of one in a folder what tells its files from others."""
    name = weights.model_id
    if not re.fullmatch(r"[\w.-]+/[\w./-]+|preview|random", name):
        name = "a folder"
    version = weights.revision
    if not version and weights.folder and weights.source != "preview":
        version = _fingerprint(weights.folder)
    return f"{name} {version}".strip()


SAMPLE = 1 << 16


def _fingerprint(folder: Path) -> str:
    """Return a hash of the sizes of the weights in `folder`, and of each file's beginning, middle and end.

    Training changes all weights, so these tell one checkpoint from another without reading it all.
    """
    digest = hashlib.sha256()
    with contextlib.suppress(OSError):
        for path in sorted(folder.rglob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder)} {size}\n".encode())
            with path.open("rb") as file:
                for start in (0, size // 2, max(size - SAMPLE, 0)):
                    file.seek(start)
                    digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:12]


LIBRARIES = ("python", "torch", "diffusers", "transformers")


def _device_name(kind: str) -> str:
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name(0)
    if kind == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return ""


def _driver(kind: str) -> str:
    import torch

    if kind != "cuda":
        return ""
    version = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
        version = found[0] if found else ""
    return f"{version} CUDA {torch.version.cuda}".strip()


def _key(facts: Mapping[str, str]) -> str:
    """Return a key of the combination; the layout is none of it, since it changes from song to song."""
    lasting = {name: value for name, value in facts.items() if name != "layout"}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]


def _entry_name(facts: Mapping[str, str], part: str) -> str:
    """Return the name of what is remembered of a part; that of the song model holds for a layout."""
    if part == "song":
        part = f"song {facts['layout']}"
    return f"{_key(facts)} {part}"


def file() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "ace-studio", FILE)


def _read() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _findings_in(entry: Any) -> dict[str, Finding]:
    """Return the findings that are remembered; what cannot be read is checked again."""
    found = {}
    with contextlib.suppress(TypeError, AttributeError, KeyError):
        for facts in entry["findings"]:
            finding = Finding(**facts)
            if finding.path in WORDS:
                found[finding.path] = finding
    return found


# Layers are compiled, and compared, while a job goes on.
_writing = threading.RLock()


def _add(facts: Mapping[str, str], part: str, finding: Finding) -> None:
    """Add a finding to what is remembered of a part; one that agrees does not replace one that did not."""
    key = _entry_name(facts, part)
    with _writing:
        entry = _read().get(key, {})
        before = _findings_in(entry).get(finding.path)
        if before is None or before.agrees:
            _remember(key, facts, {finding.path: finding}, entry.get("measured", {}))


def _remember(
    key: str, facts: Mapping[str, str], found: Mapping[str, Finding], measured: Mapping[str, float]
) -> None:
    """Write what was found, beside what was before.

    A folder that cannot be written to means that it is checked again at the next start.
    """
    with _writing:
        entries = _read()
        known = {**_findings_in(entries.pop(key, {})), **found}
        entries[key] = {
            "facts": dict(facts),
            "findings": [asdict(each) for each in known.values()],
            "measured": dict(measured),
        }
        _write(dict(list(entries.items())[-MOST_COMBINATIONS:]))


def _write(entries: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        place = file()
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        aside.replace(place)


def _remembered_of(loaded: models.Models) -> dict[str, float]:
    """Return what was measured with these models, on whatever card; the main process of ZeroGPU has none."""
    wanted_model = _name_of(loaded.current)
    found: dict[str, float] = {}
    for entry in _read().values():
        with contextlib.suppress(TypeError, AttributeError, KeyError):
            if entry["facts"]["model"] == wanted_model:
                found |= entry["measured"]
    return found


def forget(loaded: models.Models) -> None:
    """Forget what is remembered of this combination, under any layout."""
    key = _key(facts_of(loaded))
    with _writing:
        kept = {name: entry for name, entry in _read().items() if not name.startswith(f"{key} ")}
        _write(kept)


def summary(loaded: models.Models) -> str:
    """Return what is switched off here and what is only reported, in sentences; "" if nothing is."""
    return sentences_on(loaded.distrusted)


def sentences_on(paths: Collection[str]) -> str:
    """Return sentences on the paths that disagreed; "" if none did."""
    off = [WORDS[path] for path in paths if path not in REPORTED]
    sentences = []
    if off:
        sentences.append(
            f"Switched off on this machine, where it gave other results: {', '.join(off)}."
        )
    if "cancel" in paths:
        sentences.append("A cancelled song does not give all of its memory back on this machine.")
    return " ".join(sentences)


def remembered(loaded: models.Models) -> list[Finding]:
    """Return what is remembered of this combination, of every part; of several layouts what disagreed under one."""
    key = _key(facts_of(loaded))
    found: dict[str, Finding] = {}
    for name, entry in _read().items():
        if name.startswith(f"{key} "):
            for path, finding in _findings_in(entry).items():
                if path not in found or found[path].agrees:
                    found[path] = finding
    return list(found.values())


def _measured(loaded: models.Models) -> dict[str, float]:
    """Return what was measured of this combination; untrusted, like all that the file holds."""
    key = _key(facts_of(loaded))
    found: dict[str, float] = {}
    for name, entry in _read().items():
        with contextlib.suppress(TypeError, AttributeError, KeyError, ValueError):
            if name.startswith(f"{key} "):
                found |= {each: float(value) for each, value in entry["measured"].items()}
    return found


def report(loaded: models.Models) -> str:
    """Return what a person can paste into an issue: versions, device, figures; no names, paths or prompts."""
    lines = [f"{name}: {value}" for name, value in facts_of(loaded).items() if value]
    lines += [f"- {finding.line()}" for finding in remembered(loaded)]
    lines += [f"- measured: {name} {value:.4g}" for name, value in _measured(loaded).items()]
    return "\n".join(lines)
