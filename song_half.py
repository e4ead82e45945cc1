"""The song model in half precision, for cards that lack bfloat16: three measures that keep its numbers below 65,504.

XL's activations are too large for float16. What enters the residual stream is divided by 64, which
the norms behind it undo: their epsilon is divided by 64 squared. Queries are scaled in place of
scores, by their norm's weight. Both change nothing in float32 but rounding: 64 is a power of two.
The third measure is that the condition encoder, whose lyric encoder has the largest numbers of all,
goes on computing in float32; it runs once a song.

The transformer takes and gives float32 all the same. selfcheck.py decides on each card whether this is used,
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
    """Return whether the measures hold: an output with a bias would enter the stream undivided."""
    return not any(part.bias is not None for part in _entrances(transformer))


def divide(transformer: Any) -> None:
    """Take the measures, in whatever numbers `transformer` computes; `undo` takes them back."""
    hooks = [part.register_forward_pre_hook(_divided) for part in _entrances(transformer)]
    hooks.append(transformer.proj_in_conv.register_forward_hook(_divided_output))
    for norm in _stream_norms(transformer):
        norm.eps /= DIVISOR**2
    kept = []
    for attention in _attentions(transformer):
        kept.append((attention, attention.norm_q.weight.data, attention.scaling))
        attention.norm_q.weight.data = attention.norm_q.weight.data * attention.scaling
        attention.scaling = 1.0
    transformer.divided = (hooks, kept)


def undo(transformer: Any) -> None:
    hooks, kept = transformer.divided
    for hook in hooks:
        hook.remove()
    for norm in _stream_norms(transformer):
        norm.eps *= DIVISOR**2
    for attention, weight, scaling in kept:
        attention.norm_q.weight.data = weight
        attention.scaling = scaling
    del transformer.divided


def use(transformer: Any) -> None:
    """Compute in float16, with the measures, what was widened to float32; callers still give and get float32."""
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
    """Change what diffusers' hooks widen large layers to, and the dtype of what is small and has no hook."""
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
    found = [transformer.norm_out]
    for layer in transformer.layers:
        found += [layer.self_attn_norm, layer.cross_attn_norm, layer.mlp_norm]
    return found


def _attentions(transformer: Any) -> list[Any]:
    return [
        attention
        for layer in transformer.layers
        for attention in (layer.self_attn, layer.cross_attn)
    ]


def _divided(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0] / DIVISOR,)


def _divided_output(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output / DIVISOR
