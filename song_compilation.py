"""The song model's layers compiled, on request (ACE_STUDIO_COMPILE).

With `1`, `torch.compile` does it in the background after a song (`Compiled`). A ZeroGPU worker does
not live long enough for that, so there the setting names a Hugging Face repository with packages
from `tools.compile_layers` (`Packages`). Both need a graph for each kind of layer (in windows or
not) and each number of rows and takes, which serves nearly all lengths. Songs neither wait for
compiling nor fail because of it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub

import agreement
from bootstrap import on_zerogpu
from events import first_line, is_out_of_memory
from song_attention import CachedCondition, Tables, compute_layer, condition_heads, tables_for

if TYPE_CHECKING:
    import torch

log = logging.getLogger("studio")

SETTING = "ACE_STUDIO_COMPILE"


def set_up(transformer: Any) -> None:
    """Prepare `transformer` as the setting asks; a failure is only logged."""
    asked = os.environ.get(SETTING, "").strip()
    if asked == "1" and on_zerogpu():
        log.warning(
            "%s=1 has no effect on ZeroGPU. Name a repository with compiled layers instead.",
            SETTING,
        )
    elif asked == "1":
        transformer.compiled = Compiled(transformer)
    elif "/" in asked and on_zerogpu():
        try:
            folder = huggingface_hub.snapshot_download(asked, allow_patterns="package/*")
            transformer.compiled = Packages(transformer, Path(folder, "package"))
        except Exception as error:
            log.warning("The compiled layers of %s are not used: %s", asked, first_line(error))
    elif "/" in asked:
        log.warning(
            "%s names compiled layers for ZeroGPU, which are not used here. Set it to 1.", SETTING
        )


def warm_up(transformer: Any) -> None:
    """Compile in the background what the songs so far could have used, if the setting asks for it."""
    compiled = getattr(transformer, "compiled", None)
    if isinstance(compiled, Compiled):
        compiled.warm_up()


class Compiled:
    """The layers of `transformer`, compiled by `torch.compile`, which takes a minute or more.

    They are used once they agree with plain ones. `compared` is told of each comparison: how far
    apart they were, and the seconds that it took, with compiling.
    """

    def __init__(self, transformer: Any):
        import torch

        # One graph per case (guided or not, one to four takes) and kind of layer.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        self._transformer = transformer
        self._layer = torch.compile(compute_layer, dynamic=True, fullgraph=True)
        self._lock = threading.Lock()
        self._wanted: set[tuple[int, int]] = set()
        # Whether each case (rows, takes) could be compiled; a failure is not retried.
        self._compiled: dict[tuple[int, int], bool] = {}
        self.compared: Callable[[float, float], None] = _ignored

    def pick(self, rows: int, tokens: int, takes: int) -> Callable[..., torch.Tensor]:
        """Return the function that computes a layer on `rows` rows, the first `takes` of them conditional."""
        if not _is_suitable(self._transformer, tokens):
            return compute_layer
        compiled = self._compiled.get((rows, takes))
        if compiled is None:
            self._wanted.add((rows, takes))
        if compiled:
            return self._layer
        return compute_layer

    def warm_up(self) -> threading.Thread | None:
        """Compile every case picked since the last call, in a thread; returns None if there is nothing to compile."""
        if not self._wanted or self._lock.locked():
            return None
        thread = threading.Thread(target=self._compile, name="compile", daemon=True)
        thread.start()
        return thread

    def _compile(self) -> None:
        with self._lock:
            while self._wanted:
                rows, takes = self._wanted.pop()
                self._compiled[rows, takes] = self._agrees(rows, takes)

    def _agrees(self, rows: int, takes: int) -> bool:
        """Compile a case, and return whether it could be and gives what plain layers give."""
        started = time.perf_counter()
        try:
            difference = difference_of(self._transformer, self._layer, rows, takes)
        except Exception as error:
            # No compiler, no memory, or the model has left the device.
            log.warning("The layers are not compiled: %s", first_line(error))
            return False
        self.compared(difference, time.perf_counter() - started)
        return difference <= agreement.bound(self._transformer.dtype)


def _ignored(difference: float, seconds: float) -> None:
    pass


class Packages:
    """Layers compiled ahead of time, one package in `folder` for all layers of a kind; each gets its own weights."""

    def __init__(self, transformer: Any, folder: Path):
        from spaces.zero.torch.aoti import LazyAOTIModel

        self._transformer = transformer
        self._models = {}
        for package in (folder / "submodules").iterdir():
            self._models[package.name] = LazyAOTIModel(package / "package.pt2")
        self._layers: dict[tuple[Any, str], Callable[..., Any]] = {}
        self._broken = False

    def pick(self, rows: int, tokens: int, takes: int) -> Callable[..., torch.Tensor]:
        """Return the function that computes a layer on `rows` rows, the first `takes` of them conditional."""
        names = {package_name(windowed, rows, takes) for windowed in kinds(self._transformer)}
        if self._broken or not names <= self._models.keys():
            return compute_layer
        if not _is_suitable(self._transformer, tokens):
            return compute_layer
        return self._compute

    def _compute(
        self,
        layer: Any,
        x: torch.Tensor,
        tables: Tables,
        temb: torch.Tensor,
        heads: Any,
        takes: int,
    ) -> Any:
        name = package_name(_is_windowed(layer), len(x), takes)
        if not self._broken:
            try:
                if (layer, name) not in self._layers:
                    # Not earlier: in a ZeroGPU worker the weights have only now arrived on the
                    # card.
                    weights = {f"layer.{key}": value for key, value in layer.state_dict().items()}
                    self._layers[layer, name] = self._models[name].with_weights(weights)
                compute = self._layers[layer, name]
                return compute(x, *tables.tensors, temb, *heads)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self._broken = True
                log.warning("The compiled layers cannot be used: %s", first_line(error))
        return compute_layer(layer, x, tables, temb, heads, takes)


def package_name(windowed: bool, rows: int, takes: int) -> str:
    kind = "windows" if windowed else "full"
    return f"{kind}-{rows}-{takes}"


def _is_suitable(transformer: Any, tokens: int) -> bool:
    """Tell whether the graph serves `tokens` tokens: several blocks and part of one.

    It serves no layer with hooks (a LoRA, weights cast on use), and no bounded view: they are not part
    of the graph.
    """
    if transformer.view is not None:
        return False
    window = transformer.config.sliding_window
    if tokens < 4 * window or tokens % window == 0:
        return False
    return not any(_has_hooks(layer) for layer in transformer.layers)


def _has_hooks(layer: Any) -> bool:
    """Tell whether a module inside `layer` has hooks or a replaced forward."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in layer.modules()
        if module is not layer
    )


def _is_windowed(layer: Any) -> bool:
    return layer.self_attn.sliding_window is not None


def kinds(transformer: Any) -> dict[bool, Any]:
    """Return a layer in windows (True) and one without (False)."""
    return {_is_windowed(layer): layer for layer in transformer.layers}


def difference_of(
    transformer: Any, compute: Callable[..., torch.Tensor], rows: int, takes: int
) -> float:
    """Return how far apart layers computed by `compute` and plain ones are, one of each kind; NaN if not finite."""
    import torch

    x, tables, temb, condition = sample(transformer, rows, takes)
    found = []
    with torch.no_grad():
        for layer in kinds(transformer).values():
            rest = (tables, temb, condition_heads(layer, condition), condition.takes)
            plain = compute_layer(layer, x.clone(), *rest)
            made = compute(layer, x.clone(), *rest)
            found.append(agreement.difference(made, plain))
    return agreement.largest(found)


def sample(
    transformer: Any, rows: int, takes: int
) -> tuple[torch.Tensor, Tables, torch.Tensor, CachedCondition]:
    """Return example inputs of a layer (noise): x, tables, temb and a condition, in the shapes of a typical song."""
    import torch

    config = transformer.config
    like = transformer.scale_shift_table
    x = torch.randn(rows, 5 * config.sliding_window + 1, config.hidden_size).to(like)
    temb = torch.randn(rows, 6, config.hidden_size).to(like)
    condition = CachedCondition(x[:1], x[:1, :1], takes, embedded=(x[:1, :100], x[:1, :1]))
    return x, tables_for(transformer, x), temb, condition
