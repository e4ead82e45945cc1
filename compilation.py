"""The song model's layers compiled by `torch.compile`, on request (ACE_STUDIO_COMPILE=1), in the background."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attention import CachedCondition, Tables, compute_layer, condition_heads, tables_for
from bootstrap import on_zerogpu

if TYPE_CHECKING:
    import torch

log = logging.getLogger("studio")

SETTING = "ACE_STUDIO_COMPILE"


def set_up(transformer: Any) -> None:
    """Prepare `transformer` for compiling if the setting asks for it."""
    # A ZeroGPU worker does not live long enough.
    if os.environ.get(SETTING) == "1" and not on_zerogpu():
        transformer.compiled = Compiled(transformer)


def warm_up(transformer: Any) -> None:
    """Compile in the background what the songs so far could have used, if compiling is set up."""
    if compiled := getattr(transformer, "compiled", None):
        compiled.warm_up()


class Compiled:
    """The layers of `transformer` as `torch.compile` makes them.

    One graph for the layers in windows and one for the others serve most lengths. Compiling takes a minute or more, and
    no song waits for it: `pick` returns the plain code until `warm_up`, called after a song, has compiled that case.
    """

    def __init__(self, transformer: Any):
        import torch

        # A graph for each pair of rows and takes (guided or not, one to four takes), in two kinds of layers.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        self._transformer = transformer
        self._layer = torch.compile(compute_layer, dynamic=True, fullgraph=True)
        self._lock = threading.Lock()
        self._wanted: set[tuple[int, int]] = set()
        # Whether compiling succeeded; a failure is not retried.
        self._compiled: dict[tuple[int, int], bool] = {}

    def pick(self, rows: int, tokens: int, takes: int) -> Callable[..., torch.Tensor]:
        """Return what computes a layer for `rows` rows of `tokens` tokens, the first `takes` of them conditional."""
        if not _is_suitable(self._transformer, tokens):
            return compute_layer
        if (worked := self._compiled.get((rows, takes))) is None:
            self._wanted.add((rows, takes))
        return self._layer if worked else compute_layer

    def warm_up(self) -> threading.Thread | None:
        """Compile every case picked since the last call, in a thread; returns None if there is nothing to compile."""
        if not self._wanted or self._lock.locked():
            return None
        thread = threading.Thread(target=self._compile, name="compile", daemon=True)
        thread.start()
        return thread

    def _compile(self) -> None:
        import torch

        with self._lock:
            while self._wanted:
                case = self._wanted.pop()
                worked = False
                try:
                    x, tables, temb, condition = _sample(self._transformer, *case)
                    with torch.no_grad():
                        for layer in _kinds(self._transformer).values():
                            self._layer(layer, x, tables, temb, condition_heads(layer, condition), condition.takes)
                    worked = True
                except Exception as error:
                    # No compiler, no memory, or the model has left the device: songs use the plain code.
                    log.warning("The layers are not compiled: %s", str(error).partition("\n")[0])
                self._compiled[case] = worked


def _is_suitable(transformer: Any, tokens: int) -> bool:
    """Return whether one graph for most lengths serves `tokens` tokens.

    It does not serve few blocks or whole blocks only, and a hook (a LoRA, weights cast on use) is not part of it.
    """
    window = transformer.config.sliding_window
    return tokens >= 4 * window and tokens % window != 0 and not _is_hooked(transformer)


def _is_hooked(transformer: Any) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for layer in transformer.layers
        for module in layer.modules()
        if module is not layer
    )


def _kinds(transformer: Any) -> dict[bool, Any]:
    """Return a layer of each kind: True for those in windows."""
    return {layer.self_attn.sliding_window is not None: layer for layer in transformer.layers}


def _sample(transformer: Any, rows: int, takes: int) -> tuple[torch.Tensor, Tables, torch.Tensor, CachedCondition]:
    """Return noise in the shapes of a song: what `compute_layer` takes, for lengths that are no special case."""
    import torch

    config, like = transformer.config, transformer.scale_shift_table
    x = torch.randn(rows, 5 * config.sliding_window + 1, config.hidden_size).to(like)
    temb = torch.randn(rows, 6, config.hidden_size).to(like)
    condition = CachedCondition(x[:1], x[:1, :1], takes, embedded=(x[:1, :100], x[:1, :1]))
    return x, tables_for(transformer, x), temb, condition
