"""The song model in half precision, for cards that lack bfloat16: three measures that keep its numbers below 65,504.

XL's activations are too large for float16.

1. What enters the residual stream is divided by 64. The norms that read the stream undo that, once
   their epsilon is divided by 64 squared.
2. Attention scales its queries, through their norm's weight, in place of its scores.
3. The condition encoder, whose lyric encoder has the largest numbers of all, still computes in
   float32; it runs once a song.

In float32 the first changes nothing, because 64 is a power of two, and the second only rounding. The
transformer still takes and returns float32. selfcheck.py decides on each card whether this is used,
and a song that is not finite all the same is made again in float32 (`modes.run`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A power of two, so that dividing by it only changes exponents.
DIVISOR = 64


class NotFinite(Exception):
    """A song's latents are not finite in half precision."""


def check(transformer: Any, latents: torch.Tensor) -> None:
    """Raise NotFinite if `transformer` computes in half precision and its `latents` are not finite."""
    if transformer.half_precision and not bool(latents.isfinite().all()):
        raise NotFinite


def fits(transformer: Any) -> bool:
    """Tell whether the measures are enough: a layer's bias would enter the stream undivided."""
    return not any(part.bias is not None for part in _entrances(transformer))


def divide(transformer: Any) -> None:
    """Take the first two measures, in whatever numbers `transformer` computes; `undo` takes them back."""
    hooks = [part.register_forward_pre_hook(_divided) for part in _entrances(transformer)]
    hooks.append(transformer.proj_in_conv.register_forward_hook(_divided_output))
    for norm in _stream_norms(transformer):
        norm.eps /= DIVISOR**2
    originals = []
    for attention in _attentions(transformer):
        weight = attention.norm_q.weight.data
        originals.append((attention, weight, attention.scaling))
        attention.norm_q.weight.data = weight * attention.scaling
        attention.scaling = 1.0
    transformer.divided = (hooks, originals)


def undo(transformer: Any) -> None:
    """Take back what `divide` changed."""
    hooks, originals = transformer.divided
    for hook in hooks:
        hook.remove()
    for norm in _stream_norms(transformer):
        norm.eps *= DIVISOR**2
    for attention, weight, scaling in originals:
        attention.norm_q.weight.data = weight
        attention.scaling = scaling
    del transformer.divided


def use(transformer: Any) -> None:
    """Compute in float16, with the measures; callers still pass and get float32."""
    import torch

    _compute_in(transformer, torch.float16)
    divide(transformer)
    transformer.half_precision = True


def leave(transformer: Any) -> None:
    """Compute in float32 again."""
    import torch

    transformer.half_precision = False
    undo(transformer)
    _compute_in(transformer, torch.float32)


def _compute_in(transformer: Any, dtype: torch.dtype) -> None:
    """Change the dtype to which diffusers' hooks widen large layers, and that of small ones, which have no hook."""
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        casting = registry.get_hook("layerwise_casting") if registry else None
        if casting:
            casting.compute_dtype = dtype
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)


def _entrances(transformer: Any) -> list[Any]:
    """Return the layers whose results are added to the residual stream."""
    found = []
    for layer in transformer.layers:
        found += [layer.self_attn.to_out[0], layer.cross_attn.to_out[0], layer.mlp.down_proj]
    return found


def _stream_norms(transformer: Any) -> list[Any]:
    """Return the norms that read the residual stream."""
    found = [transformer.norm_out]
    for layer in transformer.layers:
        found += [layer.self_attn_norm, layer.cross_attn_norm, layer.mlp_norm]
    return found


def _attentions(transformer: Any) -> list[Any]:
    found = []
    for layer in transformer.layers:
        found += [layer.self_attn, layer.cross_attn]
    return found


def _divided(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0] / DIVISOR,)


def _divided_output(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output / DIVISOR
