"""The transformer with attention in windows; what is constant over a run's steps is computed once.

Half of the layers see 128 tokens to each side. Instead of diffusers' dense mask, they work on
blocks of 128 queries and three blocks of keys, so memory and time grow linearly with the length.
Query heads that share a key head are folded into the query axis, so that every device has a fast
kernel (docs/decisions.md). A `CachedCondition` serves all steps of a run. Up to two windows (256
tokens, 20 s) there is nothing to gain, and the stock code runs unchanged.

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

# Maximum scores per call, by device, where the kernel stores all of them; longer queries are split.
MOST_SCORES = {"mps": 2**27}


@dataclass
class CachedCondition:
    """A condition for all steps of a run, passed instead of the encoder's states; new LoRAs need a new one."""

    states: torch.Tensor  # [1, C, E], what the first `takes` rows see
    null: torch.Tensor  # [1, 1, E], what the other, unconditional rows see
    takes: int
    # The first step fills in these three: `states` and `null` embedded, each layer's heads, tables.
    embedded: tuple[torch.Tensor, torch.Tensor] | None = None
    heads: dict[Any, Heads] = field(default_factory=dict)
    tables: Tables | None = None
    # The function that computes a layer, chosen at every step.
    compute: Callable[..., torch.Tensor] | None = None

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
    # The tables of the layers without windows, if the transformer's `view` bounds what they see.
    far: Any = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.cos, self.sin, self.first, self.inner, self.last


def use_windows(transformer: Any) -> None:
    """Make `transformer` compute in windows and accept a `CachedCondition`.

    Its `avoided` names what it computes the stock way nevertheless: "windows" (then nothing is
    cached either), "condition". If it is `half_precision`, it computes in float16, but takes and
    gives float32 (song_half.py). Its `view` is how many tokens to each side the other half of the
    layers see, None for all (song_clock.py); it counts in songs that are longer than two views.
    """
    transformer.__class__ = _transformer_class()
    for layer in transformer.layers:
        layer.__class__ = _layer_class()
    transformer.avoided = frozenset()
    transformer.half_precision = False
    transformer.view = None


@functools.cache
def _transformer_class() -> type:
    """Return the class of the transformer; it takes the stock arguments, so hooks keep working."""
    from diffusers import AceStepTransformer1DModel
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    class Transformer(AceStepTransformer1DModel):
        @property
        def dtype(self) -> torch.dtype:
            import torch

            if self.half_precision:
                return torch.float32
            return super().dtype

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
            inputs = (hidden_states, timestep, timestep_r, encoder_hidden_states, context_latents)
            if self.half_precision:
                inputs = tuple(_halved(each) for each in inputs)
            tokens = math.ceil(hidden_states.shape[1] / self.config.patch_size)
            windowed = tokens > 2 * self.config.sliding_window and not attention_kwargs
            if windowed and "windows" not in self.avoided:
                if "condition" in self.avoided:
                    inputs = _with_rows(inputs)
                sample = _forward(self, *inputs)
            else:
                rows = _with_rows(inputs)
                (sample,) = super().forward(
                    *rows, attention_kwargs=attention_kwargs, return_dict=False
                )
            if self.half_precision:
                sample = sample.float()
            if return_dict:
                return Transformer2DModelOutput(sample=sample)
            return (sample,)

    return Transformer


@functools.cache
def _layer_class() -> type:
    """Return the class of its layers, which takes the stock arguments too."""
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformerBlock

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

    return Layer


def _halved(value: Any) -> Any:
    """Return a tensor in float16; a cached condition is embedded in it later."""
    if isinstance(value, CachedCondition):
        return value
    return value.half()


def _with_rows(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the transformer's inputs with a cached condition as rows of states."""
    latents, timestep, timestep_r, condition, context = inputs
    if isinstance(condition, CachedCondition):
        condition = condition.rows(len(latents)).to(latents.dtype)
    return latents, timestep, timestep_r, condition, context


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
            condition.embedded = (
                embed(condition.states.to(x.dtype)),
                embed(condition.null.to(x.dtype)),
            )
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
    """Return the tables for `x` [R, L, E], with its device and dtype."""
    from diffusers.models.transformers.ace_step_transformer import _ace_step_rotary_freqs

    config = transformer.config
    length = x.shape[1]
    cos, sin = _ace_step_rotary_freqs(length, config.head_dim, config.rope_theta, x.device, x.dtype)
    rotary = (cos[:, None], sin[:, None])
    queries_per_key = config.num_attention_heads // config.num_key_value_heads
    far = None
    if transformer.view is not None and length > 2 * transformer.view:
        far = _with_masks(transformer.view, rotary, x, queries_per_key)
    return _with_masks(config.sliding_window, rotary, x, queries_per_key)._replace(far=far)


def _with_masks(
    window: int, rotary: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, queries_per_key: int
) -> Tables:
    """Return the tables of attention to the keys at most `window` tokens away, for `x` [R, L, E]."""
    import torch

    length = x.shape[1]
    last_start = _last_block_start(length, window)

    def mask(queries: range, keys: range) -> torch.Tensor:
        rows = torch.arange(queries.start, queries.stop, device=x.device)
        columns = torch.arange(keys.start, keys.stop, device=x.device)
        far = (rows[:, None] - columns).abs() > window
        zeros = torch.zeros_like(far, dtype=x.dtype)
        return zeros.masked_fill_(far, -math.inf).repeat(queries_per_key, 1)

    return Tables(
        window,
        *rotary,
        first=mask(range(window), range(2 * window)),
        inner=mask(range(window, 2 * window), range(3 * window)),
        last=mask(range(last_start, length), range(last_start - window, length)),
    )


def _last_block_start(length: int, window: int) -> int:
    """Return where the last block of queries starts: a whole window and what is left over."""
    return (length // window - 1) * window


def condition_heads(layer: Any, condition: CachedCondition) -> Heads:
    """Return the condition's keys and values [1, K, C, D] for a layer, and the attention [1, 1, E] to null tokens."""
    if layer not in condition.heads:
        assert condition.embedded is not None  # the transformer embeds it before its first layer
        states, null = condition.embedded
        attn = layer.cross_attn
        key = attn.to_k(states).unflatten(-1, (attn.kv_heads, -1))
        value = attn.to_v(states).unflatten(-1, (attn.kv_heads, -1))
        null_value = attn.to_v(null).unflatten(-1, (attn.kv_heads, -1))
        # Null tokens are all equal, and attention to equal tokens is their value, whatever the
        # query.
        per_query_head = null_value.repeat_interleave(attn.heads // attn.kv_heads, dim=2)
        condition.heads[layer] = (
            _normed(attn.norm_k, key).transpose(1, 2),
            value.transpose(1, 2),
            attn.to_out[0](per_query_head.flatten(2)),
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
    """Run a layer on `x` [R, L, E]; `condition` is the encoder's states, or `condition_heads` of a cached one."""
    from torch.nn.functional import silu

    modulation = (layer.scale_shift_table + temb).chunk(6, dim=1)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
    hidden = shift.addcmul(_normed(layer.self_attn_norm, x), 1 + scale)
    x = x.addcmul(_self(layer.self_attn, hidden, tables), gate)
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
    key, value, null_attention = heads
    takes = x[:count]
    query = attn.to_q(_normed(layer.cross_attn_norm, takes))
    query = query.unflatten(-1, (attn.kv_heads, -1, attn.head_dim))
    query = _normed(attn.norm_q, query).permute(0, 2, 3, 1, 4)
    keys = key.expand(count, -1, -1, -1)
    values = value.expand(count, -1, -1, -1)
    takes += attn.to_out[0](_full(query, keys, values, attn.scaling))
    x[count:] += null_attention
    return x


def _self(attn: Any, x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Return the self-attention [R, L, E] of `x`, in windows if the layer has one."""
    query = _normed(attn.norm_q, attn.to_q(x).unflatten(-1, (attn.heads, attn.head_dim)))
    key = _normed(attn.norm_k, attn.to_k(x).unflatten(-1, (attn.kv_heads, attn.head_dim)))
    query = _rotated(query, tables).unflatten(2, (attn.kv_heads, -1)).permute(0, 2, 3, 1, 4)
    key = _rotated(key, tables).transpose(1, 2)
    value = attn.to_v(x).unflatten(-1, (attn.kv_heads, attn.head_dim)).transpose(1, 2)
    if attn.sliding_window is not None:
        out = _windows(query, key, value, attn.scaling, tables)
    elif tables.far is not None:
        out = _windows(query, key, value, attn.scaling, tables.far)
    else:
        out = _full(query, key, value, attn.scaling)
    return attn.to_out[0](out)


def _full(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return attention [R, L, K*G*D] of `query` [R, K, G, L, D] to all of `key` and `value` [R, K, C, D]."""
    import torch

    rows, heads = query.shape[:2]
    most_scores = MOST_SCORES.get(query.device.type)
    if not most_scores:
        return _attend(query, key, value, scale)
    scores_per_query = rows * heads * query.shape[2] * key.shape[2]
    count = max(1, most_scores // scores_per_query)
    parts = [_attend(part, key, value, scale) for part in query.split(count, dim=3)]
    return torch.cat(parts, dim=1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, mask: Any = None
) -> torch.Tensor:
    """Return the attention of `query` [R, K, G, L, D] by one kernel, as [R, L, K*G*D]."""
    from torch.nn.functional import scaled_dot_product_attention

    queries = query.flatten(2, 3)
    if scale == query.shape[-1] ** -0.5:  # the usual one
        out = scaled_dot_product_attention(queries, key, value, attn_mask=mask)
    else:
        out = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scale)
    return out.unflatten(2, query.shape[2:4]).permute(0, 3, 1, 2, 4).flatten(2)


def _windows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, tables: Tables
) -> torch.Tensor:
    """Return attention [R, L, K*G*D] of `query` [R, K, G, L, D] to the keys up to a window away, in blocks."""
    import torch

    window = tables.window
    start = _last_block_start(query.shape[3], window)
    first = slice(2 * window)
    last = slice(start - window, None)
    first_query = query[..., :window, :]
    parts = [_attend(first_query, key[..., first, :], value[..., first, :], scale, tables.first)]
    if start > window:
        inner = query[..., window:start, :]
        blocks = inner.unflatten(3, (-1, window)).permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        near_keys = _blocks_around(key[..., : start + window, :], window)
        near_values = _blocks_around(value[..., : start + window, :], window)
        out = _attend(blocks, near_keys, near_values, scale, tables.inner)
        parts.append(out.view(len(inner), inner.shape[3], -1))
    last_query = query[..., start:, :]
    parts.append(_attend(last_query, key[..., last, :], value[..., last, :], scale, tables.last))
    return torch.cat(parts, dim=1)


def _blocks_around(heads: torch.Tensor, window: int) -> torch.Tensor:
    """Return for each inner block of `heads` [R, K, L, D] it and its neighbours, [R * blocks, K, 3 * window, D]."""
    return heads.unfold(2, 3 * window, window).permute(0, 2, 1, 4, 3).flatten(0, 1)


def _rotated(heads: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Apply the rotary embedding to `heads` [R, L, H, D]."""
    import torch

    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return torch.addcmul(heads * tables.cos, turned, tables.sin)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import rms_norm

    return rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
