"""LoRAs on the pipeline's transformer: exactly the job's LoRAs act, in their order.

Each adapted linear layer gets a forward hook that adds weight * alpha / r * B A x to its output.
The model's own weights and modules are not changed. So without hooks the model gives exactly its
own results, changing a LoRA's weight costs nothing, and model weights may be stored in another
dtype or on another device until they are used. A LoKr is applied by its two factors, kron(w1, w2)
x, without building the dense matrix.

Adapters belong to the transformer that they were loaded for and are freed with it. `reconcile` runs
inside the GPU entry point and depends only on the job's specs, so that a fresh worker and a warm
one make the same song.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from events import StudioError, is_out_of_memory
from lora_format import FIELD, Layer, Refusal, Widths, broken, naming_lora, read_layout
from lora_sources import LoraSpec, sha256_of
from record import LoraEntry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Change:
    """What a LoRA adds to one module: `scale` times the product of its `factors`, as in `lora_format.Layer`."""

    scale: float
    factors: tuple[tuple[torch.Tensor, ...], ...]
    # A DoRA's [out, 1] or [1, in]: the length of each changed row or column relative to its length
    # without DoRA, minus 1.
    stretch: torch.Tensor | None = None

    def added_to(self, module: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return what to add to the `output` [..., out] of `module` for its input x [..., in]."""
        from torch.nn.functional import linear

        if self.stretch is None:
            return self.scale * self._product(x)
        stretch = self.stretch.flatten().to(device=x.device, dtype=x.dtype)
        if self.stretch.shape[1] == 1:
            without_bias = output
            if module.bias is not None:
                without_bias = output - module.bias.to(x)
            return stretch * without_bias + (1 + stretch) * (self.scale * self._product(x))
        stretched = linear(stretch * x, module.weight.to(x))
        return stretched + self.scale * self._product((1 + stretch) * x)

    def stretched(self, weight: torch.Tensor, lengths: torch.Tensor) -> _Change:
        """Return this change as a DoRA that gives the rows or columns of the module's `weight` these `lengths`."""
        import torch

        delta = functools.reduce(torch.kron, map(_dense, self.factors))
        changed = weight.float() + self.scale * delta.to(weight.device)
        by_row = lengths.shape[1] == 1
        epsilon = torch.finfo(torch.float32).eps
        current = changed.norm(dim=1 if by_row else 0, keepdim=True) + epsilon
        stretch = lengths.float().to(current.device) / current - 1
        return replace(self, stretch=stretch.to(delta.device))

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.factors) == 1:
            return _chain(self.factors[0], x)
        w1, w2 = self.factors  # a LoKr: kron(w1, w2) x, without building the dense matrix
        y = _chain(w2, x.unflatten(-1, (w1[0].shape[1], w2[0].shape[1])))
        return _chain(w1, y.transpose(-1, -2)).transpose(-1, -2).flatten(-2)


Adapter = dict[str, _Change]
# For each transformer its loaded adapters, and the hooks that apply them.
_acting: weakref.WeakKeyDictionary[Any, tuple[dict[Any, Adapter], list[Any]]] = (
    weakref.WeakKeyDictionary()
)


def reconcile(pipe: Any, wanted: Sequence[LoraSpec]) -> list[LoraEntry]:
    """Make exactly `wanted` act on the pipeline, in this order; return an entry for the record for each.

    Loaded adapters are not read again, and a weight of 0 loads without acting. Raises StudioError
    with the field "options.loras" if a file changed or does not fit, or memory runs out; then the
    previous LoRAs still act.
    """
    transformer = pipe.transformer
    loaded, hooks = _acting.get(transformer, ({}, []))
    adapters: dict[Any, Adapter] = {}
    try:
        for spec in wanted:
            key = _key(spec)
            adapters[key] = adapters.get(key) or loaded.get(key) or _load(pipe, spec)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = "The LoRAs do not fit into memory next to the model."
        raise StudioError(
            "out_of_memory", message, FIELD, "Choose fewer or smaller ones."
        ) from None
    for hook in hooks:
        hook.remove()
    hooks = []
    for name, changes in _changes_of(wanted, adapters).items():
        hooks.append(transformer.get_submodule(name).register_forward_hook(_adding(changes)))
    _acting[transformer] = (adapters, hooks)
    return [_entry(spec, adapters[_key(spec)]) for spec in wanted]


def _changes_of(
    wanted: Sequence[LoraSpec], adapters: dict[Any, Adapter]
) -> dict[str, list[tuple[_Change, float]]]:
    """Return the changes and weights that act on each layer, in the order of the LoRAs."""
    changes: dict[str, list[tuple[_Change, float]]] = {}
    for spec in wanted:
        if not spec.weight:
            continue
        for module, change in adapters[_key(spec)].items():
            changes.setdefault(module, []).append((change, spec.weight))
    return changes


def _entry(spec: LoraSpec, adapter: Adapter) -> LoraEntry:
    return LoraEntry(
        name=spec.info.name,
        source=spec.source,
        revision=spec.revision,
        weight=spec.weight,
        sha256=spec.info.sha256,
        format=spec.info.format,
        ranks=list(spec.info.ranks),
        alphas=list(spec.info.alphas),
        modules=len(adapter),
    )


def widths_of_pipe(pipe: Any) -> Widths:
    import torch

    widths = {}
    for name, module in pipe.transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            widths[name] = (module.out_features, module.in_features)
    return widths


def _key(spec: LoraSpec) -> tuple[Any, ...]:
    return spec.info.sha256, spec.config


def _load(pipe: Any, spec: LoraSpec) -> Adapter:
    """Read an adapter onto the pipeline's device in the transformer's dtype, from exactly the file that was checked."""
    from safetensors import SafetensorError, safe_open

    with naming_lora(spec.info.name):
        if sha256_of(spec.path) != spec.info.sha256:
            raise Refusal("lora_changed", "has changed since it was chosen", "Add it again.")
        layout = read_layout(spec.path, widths_of_pipe(pipe), spec.config)
        try:
            with safe_open(spec.path, "pt", device="cpu") as file:
                adapter = {layer.module: _change(pipe, layer, file) for layer in layout.layers}
        except SafetensorError:
            raise broken("its tensors cannot be read") from None
        # A factor that is all zero changes nothing, such as B before training.
        if not any(_changes_something(change) for change in adapter.values()):
            raise Refusal(
                "lora_empty",
                "changes nothing: all its weights are zero",
                "It may never have been trained.",
            )
    return adapter


def _changes_something(change: _Change) -> bool:
    return all(bool(matrix.any()) for factor in change.factors for matrix in factor)


def _change(pipe: Any, layer: Layer, file: Any) -> _Change:
    def placed(key: str) -> torch.Tensor:
        # A copy, because the tensor is mapped from a file that may be deleted.
        tensor = _finite(file.get_tensor(key).to(dtype=pipe.transformer.dtype, copy=True))
        return tensor.to(pipe._execution_device)

    factors = tuple(tuple(placed(key) for key in factor) for factor in layer.factors)
    change = _Change(layer.scale, factors)
    if not layer.lengths:
        return change
    weight = pipe.transformer.get_submodule(layer.module).weight
    return change.stretched(weight, _finite(file.get_tensor(layer.lengths)))


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    if not bool(tensor.isfinite().all()):
        raise broken("some of its numbers are not finite")
    return tensor


def _adding(changes: Sequence[tuple[_Change, float]]) -> Any:
    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        added = (weight * change.added_to(module, inputs[0], output) for change, weight in changes)
        return output + sum(added)

    return add


def _dense(factor: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the product of matrices that are applied one after the other, in float32."""
    return functools.reduce(lambda first, then: then @ first, (matrix.float() for matrix in factor))


def _chain(matrices: Iterable[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply matrices [out, in] to x [..., in], one after the other, on the device of x and in its dtype."""
    from torch.nn.functional import linear

    for matrix in matrices:
        x = linear(x, matrix.to(device=x.device, dtype=x.dtype))
    return x
