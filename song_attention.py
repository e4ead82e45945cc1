"""The transformer with windowed attention, and with everything that is constant over a run's steps
computed once.

Half of the layers see 128 tokens to each side. Instead of diffusers' dense mask, they work on
blocks of 128 queries and three blocks of keys, so memory and time grow linearly with the length.
Query heads that share a key head are folded into the query axis, so that every device has a fast
kernel (docs/decisions.md). A `CachedCondition` serves all steps of a run. Up to two windows (256
tokens, 20 s) there is nothing to gain, and the stock code runs, bit for bit.

Shapes: R rows (takes, twice with guidance), L tokens (12.5 a second), K key heads, G query heads
per key head, D head size, C condition tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# most scores at a time where a kernel may materialise them all: queries are split
MOST_SCORES = {"mps": 2**27}


@dataclass
class CachedCondition:
    """A condition for all steps of a run, in place of the encoder's states; new LoRAs need a new one."""

    states: torch.Tensor  # [1, C, E], what the first `takes` rows see
    null: torch.Tensor  # [1, 1, E], what the other, unconditional rows see
    takes: int
    embedded: tuple[torch.Tensor, torch.Tensor] | None = (
        None  # this, `heads` and `tables` are filled in by the first step
    )
    heads: dict[Any, Heads] = field(default_factory=dict)
    tables: Tables | None = None
    compute: Callable[..., torch.Tensor] | None = None  # chosen at every step

    def rows(self, count: int) -> torch.Tensor:
        """Return the states of `count` rows [count, C, E], in the stock code's form."""
        import torch

        states = self.states.expand(self.takes, -1, -1)
        if count == self.takes:
            return states
        return torch.cat([states, self.null.expand_as(states)])


class Tables(NamedTuple):
    """Tensors that depend only on the length: rotary `cos` and `sin` [L, 1, D], masks [G * queries, keys]."""

    window: int
    cos: torch.Tensor
    sin: torch.Tensor
    first: torch.Tensor
    inner: torch.Tensor
    last: torch.Tensor


def use_windows(transformer: Any) -> None:
    """Make `transformer` compute in windows and accept a `CachedCondition`."""
    transformer.__class__, layer = _classes()
    for each in transformer.layers:
        each.__class__ = layer


@functools.cache
def _classes() -> tuple[type, type]:
    """Return the transformer's class and its layers', called like the stock ones: hooks on them keep working."""
    from diffusers import AceStepTransformer1DModel
    from diffusers.models.modeling_outputs import Transformer2DModelOutput
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformerBlock

    class Transformer(AceStepTransformer1DModel):
        def forward(
            self,
            hidden_states: torch.Tensor,
            timestep: torch.Tensor,
            timestep_r: torch.Tensor,
            encoder_hidden_states: torch.Tensor | CachedCondition,
            context_latents: torch.Tensor,
            attention_kwargs: dict | None = None,
            return_dict: bool = True,
        ) -> Any:
            inputs = hidden_states, timestep, timestep_r, encoder_hidden_states, context_latents
            tokens = math.ceil(hidden_states.shape[1] / self.config.patch_size)
            if tokens > 2 * self.config.sliding_window and not attention_kwargs:
                sample = _forward(self, *inputs)
                if return_dict:
                    return Transformer2DModelOutput(sample=sample)
                return (sample,)
            if isinstance(encoder_hidden_states, CachedCondition):
                inputs = (
                    *inputs[:3],
                    encoder_hidden_states.rows(len(hidden_states)),
                    context_latents,
                )
            return super().forward(
                *inputs, attention_kwargs=attention_kwargs, return_dict=return_dict
            )

    class Layer(AceStepTransformerBlock):
        def forward(
            self,
            hidden_states: torch.Tensor,
            position_embeddings: Any,
            temb: torch.Tensor,
            **rest: Any,
        ):
            if not isinstance(position_embeddings, Tables):
                return super().forward(hidden_states, position_embeddings, temb, **rest)
            inputs = (self, hidden_states, position_embeddings, temb)
            condition = rest["encoder_hidden_states"]
            if isinstance(condition, CachedCondition):
                compute = condition.compute or compute_layer
                return compute(*inputs, condition_heads(self, condition), condition.takes)
            return compute_layer(*inputs, condition)

    return Transformer, Layer


def _forward(
    transformer: Any,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    timestep_r: torch.Tensor,
    condition: torch.Tensor | CachedCondition,
    context: torch.Tensor,
) -> torch.Tensor:
    """Return the velocity [R, T, C] as the stock code does, for more than two windows."""
    import torch

    temb_t, modulation_t = transformer.time_embed(timestep)
    temb_r, modulation_r = transformer.time_embed_r(timestep - timestep_r)
    temb = temb_t + temb_r
    modulation = modulation_t + modulation_r
    frames = latents.shape[1]
    patch = transformer.config.patch_size
    x = torch.cat([context, latents], dim=-1)
    if frames % patch:
        x = torch.nn.functional.pad(x, (0, 0, 0, -frames % patch))
    # Otherwise the convolution's transposed layout persists through all layers and slows them down.
    x = transformer.proj_in_conv(x.transpose(1, 2)).transpose(1, 2).contiguous()
    if isinstance(condition, CachedCondition):
        if condition.embedded is None:
            embed = transformer.condition_embedder
            condition.embedded = embed(condition.states), embed(condition.null)
            condition.tables = tables_for(transformer, x)
        tables = condition.tables
        compiled = getattr(transformer, "compiled", None)
        condition.compute = compute_layer
        if compiled:
            condition.compute = compiled.pick(*x.shape[:2], condition.takes)
    else:
        condition = transformer.condition_embedder(condition)
        tables = tables_for(transformer, x)
    for layer in transformer.layers:
        x = layer(
            hidden_states=x,
            position_embeddings=tables,
            temb=modulation,
            encoder_hidden_states=condition,
        )
    shift, scale = (transformer.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    x = shift.addcmul(_normed(transformer.norm_out, x), 1 + scale)
    return transformer.proj_out_conv(x.transpose(1, 2)).transpose(1, 2)[:, :frames]


def tables_for(transformer: Any, x: torch.Tensor) -> Tables:
    import torch
    from diffusers.models.transformers.ace_step_transformer import _ace_step_rotary_freqs

    config = transformer.config
    length = x.shape[1]
    cos, sin = _ace_step_rotary_freqs(length, config.head_dim, config.rope_theta, x.device, x.dtype)
    window = config.sliding_window
    shared = config.num_attention_heads // config.num_key_value_heads
    start = (length // window - 1) * window

    def mask(queries: range, keys: range) -> torch.Tensor:
        rows, columns = (
            torch.arange(each.start, each.stop, device=x.device) for each in (queries, keys)
        )
        near = (rows[:, None] - columns).abs() <= window
        return (
            torch.zeros_like(near, dtype=x.dtype).masked_fill_(~near, -math.inf).repeat(shared, 1)
        )

    return Tables(
        window,
        cos[:, None],
        sin[:, None],
        first=mask(range(window), range(2 * window)),
        inner=mask(range(window, 2 * window), range(3 * window)),
        last=mask(range(start, length), range(start - window, length)),
    )


def condition_heads(layer: Any, condition: CachedCondition) -> Heads:
    """Return the condition's keys and values [1, K, C, D] for a layer, and the attention [1, 1, E] to null tokens."""
    if layer not in condition.heads:
        assert condition.embedded is not None  # the transformer embeds it before its first layer
        attn = layer.cross_attn
        (states, null) = condition.embedded
        key, value, answer = (
            project(each).unflatten(-1, (attn.kv_heads, -1))
            for project, each in ((attn.to_k, states), (attn.to_v, states), (attn.to_v, null))
        )
        # Null tokens are all equal, and attention to equal tokens is their value, whatever the
        # query.
        answer = attn.to_out[0](
            answer.repeat_interleave(attn.heads // attn.kv_heads, dim=2).flatten(2)
        )
        condition.heads[layer] = (
            _normed(attn.norm_k, key).transpose(1, 2),
            value.transpose(1, 2),
            answer,
        )
    return condition.heads[layer]


def compute_layer(
    layer: Any,
    x: torch.Tensor,
    tables: Tables,
    temb: torch.Tensor,
    condition: torch.Tensor | Heads,
    takes: int = 0,
) -> torch.Tensor:
    """Run a layer on `x` [R, L, E]; `condition` holds the encoder's states, or `condition_heads` of a cached one."""
    from torch.nn.functional import silu

    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (layer.scale_shift_table + temb).chunk(
        6, dim=1
    )
    x = x.addcmul(
        _self(layer.self_attn, shift.addcmul(_normed(layer.self_attn_norm, x), 1 + scale), tables),
        gate,
    )
    if isinstance(condition, tuple):
        x = _cross(layer, x, condition, takes)
    else:
        x = x + layer.cross_attn(
            hidden_states=layer.cross_attn_norm(x), encoder_hidden_states=condition
        )
    hidden = mlp_shift.addcmul(_normed(layer.mlp_norm, x), 1 + mlp_scale)
    wide = silu(layer.mlp.gate_proj(hidden), inplace=True).mul_(layer.mlp.up_proj(hidden))
    return x.addcmul(layer.mlp.down_proj(wide), mlp_gate)


def _cross(layer: Any, x: torch.Tensor, heads: Heads, count: int) -> torch.Tensor:
    """Add cross-attention to `x` [R, L, E] in place: `count` takes see the condition, the others a null token."""
    attn = layer.cross_attn
    (key, value, answer) = heads
    takes = x[:count]
    query = attn.to_q(_normed(layer.cross_attn_norm, takes)).unflatten(
        -1, (attn.kv_heads, -1, attn.head_dim)
    )
    query = _normed(attn.norm_q, query).permute(0, 2, 3, 1, 4)
    takes += attn.to_out[0](
        _full(query, key.expand(count, -1, -1, -1), value.expand(count, -1, -1, -1))
    )
    x[count:] += answer
    return x


def _self(attn: Any, x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Return the self-attention [R, L, E] of `x`, in windows if the layer has one."""
    query = _normed(attn.norm_q, attn.to_q(x).unflatten(-1, (attn.heads, attn.head_dim)))
    key = _normed(attn.norm_k, attn.to_k(x).unflatten(-1, (attn.kv_heads, attn.head_dim)))
    query = _rotated(query, tables).unflatten(2, (attn.kv_heads, -1)).permute(0, 2, 3, 1, 4)
    key = _rotated(key, tables).transpose(1, 2)
    value = attn.to_v(x).unflatten(-1, (attn.kv_heads, attn.head_dim)).transpose(1, 2)
    if attn.sliding_window is None:
        out = _full(query, key, value)
    else:
        out = _windows(query, key, value, tables)
    return attn.to_out[0](out)


def _full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return attention [R, L, K*G*D] of `query` [R, K, G, L, D] to all of `key` and `value` [R, K, C, D]."""
    import torch

    rows, heads = query.shape[:2]
    most = MOST_SCORES.get(query.device.type)
    if not most:
        return _attend(query, key, value)
    part = max(1, most // (rows * heads * query.shape[2] * key.shape[2]))
    return torch.cat([_attend(some, key, value) for some in query.split(part, dim=3)], dim=1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any = None
) -> torch.Tensor:
    """Return what one kernel makes of `query` [R, K, G, L, D], as [R, L, K*G*D]."""
    from torch.nn.functional import scaled_dot_product_attention

    out = scaled_dot_product_attention(query.flatten(2, 3), key, value, attn_mask=mask)
    return out.unflatten(2, query.shape[2:4]).permute(0, 3, 1, 2, 4).flatten(2)


def _windows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tables: Tables
) -> torch.Tensor:
    """Return attention [R, L, K*G*D] of `query` [R, K, G, L, D] to the keys up to a window away, in blocks."""
    import torch

    window = tables.window
    length = query.shape[3]
    start = (length // window - 1) * window
    first = slice(2 * window)
    last = slice(start - window, None)
    parts = [
        _attend(query[..., :window, :], key[..., first, :], value[..., first, :], tables.first)
    ]
    if start > window:
        near_keys, near_values = (
            each[..., : start + window, :]
            .unfold(2, 3 * window, window)
            .permute(0, 2, 1, 4, 3)
            .flatten(0, 1)
            for each in (key, value)
        )
        inner = query[..., window:start, :]
        blocks = inner.unflatten(3, (-1, window)).permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        parts.append(
            _attend(blocks, near_keys, near_values, tables.inner).view(
                len(inner), inner.shape[3], -1
            )
        )
    parts.append(
        _attend(query[..., start:, :], key[..., last, :], value[..., last, :], tables.last)
    )
    return torch.cat(parts, dim=1)


def _rotated(heads: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Apply the rotary embedding to `heads` [R, L, H, D]."""
    import torch

    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * tables.cos, torch.cat([-second, first], dim=-1), tables.sin)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import rms_norm

    return rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
