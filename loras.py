"""LoRAs on the pipeline's transformer: exactly the wanted ones act, in the wanted order, and what acts is what loaded.

Each adapted linear layer gets a forward hook that adds weight * alpha / r * B A x to what the layer returns. The
model's own weights and modules are never touched: without hooks the model is bit for bit what it was, a change of
weight costs nothing, and weights that lie in another dtype or on another device until they are used work as before. A
LoKr is applied by its two factors, kron(w1, w2) x, without building the dense matrix.

The adapters belong to the transformer that they were loaded for and go with it. `reconcile` runs inside the GPU entry
point and reads nothing but the specs of the job, so that a fresh worker and a warm one make the same song.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from events import StudioError
from lora_format import FIELD, Layer, Refusal, Widths, about, broken, read_layout, sha256_of
from lora_sources import LoraSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Change:
    """What one layer of a LoRA adds to a module: `scale` times the product of its matrices.

    A LoRA has `first` (A, B). A LoKr has kron(w1, w2): `first` are w2's matrices, `second` w1's, each one matrix or the
    two whose product it is, in the order in which they are applied. `stretch` [out, 1] or [1, in] is a DoRA's: by how
    much, less 1, each row or column of the module's weight with the change in it is multiplied.
    """

    scale: float
    first: tuple[torch.Tensor, ...]
    second: tuple[torch.Tensor, ...] = ()
    stretch: torch.Tensor | None = None

    def of(self, module: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return what is added to the `output` [..., out] of `module` for its input x [..., in]."""
        from torch.nn.functional import linear

        if self.stretch is None:
            return self.scale * self._product(x)
        stretch = self.stretch.flatten().to(device=x.device, dtype=x.dtype)
        if self.stretch.shape[1] == 1:
            bare = output if module.bias is None else output - module.bias.to(x)
            return stretch * bare + (1 + stretch) * (self.scale * self._product(x))
        return linear(stretch * x, module.weight.to(x)) + self.scale * self._product((1 + stretch) * x)

    def stretched(self, weight: torch.Tensor, lengths: torch.Tensor) -> _Change:
        """Return this change as a DoRA whose rows or columns are `lengths` long with the module's `weight`."""
        import torch

        delta = _matrix(self.first)
        if self.second:
            delta = torch.kron(_matrix(self.second), delta)
        whole = weight.float() + self.scale * delta.to(weight.device)
        length = whole.norm(dim=1 if lengths.shape[1] == 1 else 0, keepdim=True) + torch.finfo(torch.float32).eps
        return replace(self, stretch=(lengths.float().to(length.device) / length - 1).to(self.first[0].device))

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if not self.second:
            return _chain(self.first, x)
        y = x.unflatten(-1, (self.second[0].shape[1], self.first[0].shape[1]))
        y = _chain(self.second, _chain(self.first, y).transpose(-1, -2))
        return y.transpose(-1, -2).flatten(-2)


Adapter = dict[str, _Change]


class _State:
    """What is loaded for one transformer: the specs in their order, their adapters, the hooks that make them act."""

    def __init__(self):
        self.specs: tuple[LoraSpec, ...] = ()
        self.adapters: dict[Any, Adapter] = {}
        self.hooks: list[Any] = []


_states: weakref.WeakKeyDictionary[Any, _State] = weakref.WeakKeyDictionary()


def reconcile(pipe: Any, wanted: Sequence[LoraSpec]) -> list[dict[str, Any]]:
    """Make exactly `wanted` act on the pipeline, in this order; returns `facts` of it for the record.

    What is loaded already is not read again, and a weight of 0 loads without acting. All or nothing: after an error the
    former set acts as before.

    Raises:
        StudioError: with the field "options.loras", where a file changed, does not fit, or memory does not suffice.
    """
    import torch

    transformer, wanted = pipe.transformer, tuple(wanted)
    state = _states.setdefault(transformer, _State())
    adapters: dict[Any, Adapter] = {}
    try:
        for spec in wanted:
            key = _key(spec)
            adapters[key] = adapters.get(key) or state.adapters.get(key) or _load(pipe, spec)
    except (torch.OutOfMemoryError, MemoryError):
        raise StudioError(
            "out_of_memory",
            "The LoRAs do not fit into memory beside the model.",
            FIELD,
            "Choose fewer of them, or smaller ones.",
        ) from None
    hooks = _hook(transformer, [(adapters[_key(spec)], spec.weight) for spec in wanted if spec.weight])
    for hook in state.hooks:
        hook.remove()
    state.specs, state.adapters, state.hooks = wanted, adapters, hooks
    return facts(pipe)


def active(pipe: Any) -> tuple[LoraSpec, ...]:
    state = _states.get(pipe.transformer)
    return state.specs if state else ()


def facts(pipe: Any) -> list[dict[str, Any]]:
    """Return for the record what is loaded: its source, hash, weight, rank and alpha, and how many modules matched."""
    return [
        {
            "name": spec.name,
            "source": spec.source,
            "revision": spec.revision,
            "sha256": spec.info.sha256,
            "weight": spec.weight,
            "format": spec.info.format,
            "ranks": list(spec.info.ranks),
            "alphas": list(spec.info.alphas),
            "modules": len(_states[pipe.transformer].adapters[_key(spec)]),
        }
        for spec in active(pipe)
    ]


def widths_of_pipe(pipe: Any) -> Widths:
    """Return the linear layers of the pipeline's transformer, as `widths_of` does from the files."""
    import torch

    modules = pipe.transformer.named_modules()
    return {name: (m.out_features, m.in_features) for name, m in modules if isinstance(m, torch.nn.Linear)}


# --- loading ------------------------------------------------------------------------------------------------------


def _key(spec: LoraSpec) -> tuple[Any, ...]:
    """What makes two adapters the same: the bytes of the file and the settings beside it."""
    return spec.info.sha256, spec.config


def _load(pipe: Any, spec: LoraSpec) -> Adapter:
    """Read an adapter onto the pipeline's device in the transformer's dtype, from the very file that was checked."""
    from safetensors import SafetensorError, safe_open

    with about(spec.name):
        if sha256_of(spec.path) != spec.info.sha256:
            raise Refusal("lora_changed", "is not the file any more that was chosen", "Add it again.")
        layout = read_layout(spec.path, widths_of_pipe(pipe), spec.config)
        try:
            with safe_open(spec.path, "pt", device="cpu") as file:
                adapter = {layer.module: _change(pipe, layer, file) for layer in layout.layers}
        except SafetensorError:
            raise broken("its tensors cannot be read") from None
        if not any(_acts(change) for change in adapter.values()):
            raise Refusal("lora_empty", "changes nothing: all its weights are zero", "It may never have been trained.")
    return adapter


def _change(pipe: Any, layer: Layer, file: Any) -> _Change:
    tensors = {role: _placed(pipe, file.get_tensor(key)) for role, key in layer.tensors if role != "dora_scale"}
    change = _plain_change(layer, tensors)
    lengths = dict(layer.tensors).get("dora_scale")
    if lengths is None:
        return change
    weight = pipe.transformer.get_submodule(layer.module).weight
    return change.stretched(weight, _finite(file.get_tensor(lengths)))


def _plain_change(layer: Layer, tensors: dict[str, torch.Tensor]) -> _Change:
    if layer.kind == "lora":
        return _Change(layer.scale, (tensors["down"], tensors["up"]))
    w1, w2 = (
        (tensors[name],) if name in tensors else (tensors[f"{name}_b"], tensors[f"{name}_a"])
        for name in ("lokr_w1", "lokr_w2")
    )
    return _Change(layer.scale, w2, w1)


def _placed(pipe: Any, tensor: torch.Tensor) -> torch.Tensor:
    # A copy, because what was read is mapped from a file that may go away.
    return _finite(tensor.to(dtype=pipe.transformer.dtype, copy=True)).to(pipe._execution_device)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    if not bool(tensor.isfinite().all()):
        raise broken("some of its numbers are not finite")
    return tensor


def _acts(change: _Change) -> bool:
    """Tell whether no factor is all zero, as B is before training."""
    return all(bool(matrix.any()) for matrix in (*change.first, *change.second))


# --- acting -------------------------------------------------------------------------------------------------------


def _hook(transformer: Any, adapters: Iterable[tuple[Adapter, float]]) -> list[Any]:
    """Add the adapters with their weights to the transformer's layers; returns what removes them again."""
    changes: dict[str, list[tuple[_Change, float]]] = {}
    for adapter, weight in adapters:
        for module, change in adapter.items():
            changes.setdefault(module, []).append((change, weight))
    modules = {name: transformer.get_submodule(name) for name in changes}
    return [modules[name].register_forward_hook(_adding(found)) for name, found in changes.items()]


def _adding(changes: Sequence[tuple[_Change, float]]) -> Any:
    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + sum(weight * change.of(module, inputs[0], output) for change, weight in changes)

    return add


def _matrix(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the product of matrices [out, in], which are applied one after the other, in 32 bits."""
    first, *others = (matrix.float() for matrix in matrices)
    for other in others:
        first = other @ first
    return first


def _chain(matrices: Iterable[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply matrices [out, in] to x [..., in], one after the other, where x is and in its dtype."""
    from torch.nn.functional import linear

    for matrix in matrices:
        x = linear(x, matrix.to(device=x.device, dtype=x.dtype))
    return x
