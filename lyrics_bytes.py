"""Products of a small language model in bytes, for a processor.

Where several versions of a line are continued token by token, a product takes about as long as its
weights take to come from memory, and in bytes they are a quarter of what they are in float32. Each
row of the weights has a scale of its own, and so has each call's input.

The largest value of an input decides its scale. So the beginning of a text is not read this way: the
values of its first token are some hundred times as large as those of all others.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

# How an input is stored: some processors add two products in 16 bits, which holds 7 bits of each
# input and not 8.
Range = Literal["whole", "reduced"]
LARGEST_WEIGHT = 127
LARGEST_INPUT = 255


class ByteProduct:
    """The product of inputs [rows, in] with some linear layers at once, as [rows, sum of their outs]."""

    def __init__(self, linears: list[Any], width: Range):
        import torch

        self.sizes = [linear.out_features for linear in linears]
        self._reduced = width == "reduced"
        biases = [linear.bias for linear in linears if linear.bias is not None]
        weights = torch.cat([linear.weight.detach().float() for linear in linears])
        self._packed = _packed(weights, torch.cat(biases) if biases else None)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.ops.quantized.linear_dynamic(states, self._packed, self._reduced)

    def parts(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the product with each layer, [rows, out]."""
        return self(states).split(self.sizes, dim=-1)


class ByteLayer:
    """A layer's products in bytes, with the interface of `lyrics_layers.PlainLayer`."""

    def __init__(self, layer: Any, width: Range):
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.query_key_value = ByteProduct(projections, width).parts
        self.mixed = ByteProduct([attention.o_proj], width)
        self._gate_up = ByteProduct([mlp.gate_proj, mlp.up_proj], width)
        self._down = ByteProduct([mlp.down_proj], width)
        self._activation = mlp.act_fn

    def feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate_up.parts(states)
        return self._down(self._activation(gate) * up)


class ByteModel:
    """The layers and the head of a causal language model of transformers, in bytes."""

    def __init__(self, model: Any, width: Range):
        self.layers = [ByteLayer(layer, width) for layer in model.model.layers]
        self.head = ByteProduct([model.lm_head], width)


def in_bytes(model: Any) -> ByteModel | None:
    """Return the layers of `model` in bytes, None where this processor's byte products are missing or wrong."""
    width = input_range()
    if width is None:
        return None
    return ByteModel(model, width)


@functools.cache
def input_range() -> Range | None:
    """Return how inputs must be stored for right products on this processor; None if none is right."""
    for width in ("whole", "reduced"):
        if _is_right(width):
            return width
    return None


def _is_right(width: Range) -> bool:
    """Whether the largest sum that there can be is right: one that overflows loses half of it or more."""
    import torch

    linear = torch.nn.Linear(64, 16, bias=False)
    torch.nn.init.constant_(linear.weight, LARGEST_WEIGHT)
    states = torch.full((6, 64), float(LARGEST_INPUT))
    try:
        product = ByteProduct([linear], width)(states)
    except (AttributeError, NotImplementedError, RuntimeError):
        # This torch has no byte products for this processor.
        return False
    right = 64.0 * LARGEST_WEIGHT * LARGEST_INPUT
    return bool(((product - right).abs() < right / 100).all())


def _packed(weights: torch.Tensor, bias: torch.Tensor | None) -> Any:
    import torch

    scales = weights.abs().amax(dim=1).clamp_min(1e-12) / LARGEST_WEIGHT
    zeros = torch.zeros(len(weights), dtype=torch.long)
    with warnings.catch_warnings():
        # Torch will replace these numbers one day; its version is pinned, and `in_bytes` can do without.
        warnings.simplefilter("ignore")
        stored = torch.quantize_per_channel(weights, scales.double(), zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(stored, bias)
