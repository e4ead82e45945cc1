"""The planner's layers (Qwen3) over a memory of what they read, with as few calls as their arithmetic needs.

One token a step is little work, so that the calls around it cost more than the products: transformers makes about sixty
for a layer, this file about twenty. The heads that share a key are folded into the query's places, so that keys and
values are not repeated, and only the places that were written are looked at.

Shapes: R rows, n tokens read at once, K key heads, G query heads a key head, D their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def fits(model: Any) -> bool:
    """Tell whether `model` is built of the layers that this file computes."""
    config = model.config
    return (
        config.model_type == "qwen3" and config.hidden_act == "silu" and set(config.layer_types) == {"full_attention"}
    )


class Memory:
    """What a model's layers remember of `rows` of tokens, up to `length` each; `pads` [R] come before the first."""

    def __init__(self, model: Any, pads: Sequence[int], length: int):
        import torch

        self._body, config = model.get_decoder(), model.config
        self._heads, self._size = (config.num_key_value_heads, config.num_attention_heads), config.head_dim
        shape = (config.num_hidden_layers, len(pads), self._heads[0], length, self._size)
        self._keys, self._values = (torch.zeros(shape, device=model.device, dtype=model.dtype) for _ in range(2))
        self._places = torch.arange(length, device=model.device)
        self._pads = torch.tensor(pads, device=model.device)[:, None]
        self._cos, sin = (table[0] for table in self._body.rotary_emb(self._keys, self._places[None]))
        # The turned half is the second one with its sign changed; the sign stands in the table.
        self._sin = torch.cat([-sin[:, : self._size // 2], sin[:, self._size // 2 :]], dim=-1)
        # Padding can be looked at by nobody; without any, no mask is needed for a single token.
        self._real = (self._places >= self._pads)[:, None, None] if any(pads) else None
        self._norms = [
            torch.cat([norm.weight.expand(heads, -1) for norm, heads in zip(norms, self._heads[::-1], strict=True)])
            for norms in ((layer.self_attn.q_norm, layer.self_attn.k_norm) for layer in self._body.layers)
        ]
        self._read = 0

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read `tokens` [R, n] after those before; returns the last hidden states [R, size]."""
        import torch

        span = slice(self._read, self._read + tokens.shape[1])
        self._read = span.stop
        with torch.no_grad():
            mask = self._mask(span)
            positions = (self._places[span] - self._pads).clamp_min_(0)
            cos, sin = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
            x = self._body.embed_tokens(tokens)
            for index, layer in enumerate(self._body.layers):
                x = x + self._attention(index, layer, x, cos, sin, span, mask)
                hidden = _normed(layer.post_attention_layernorm, x)
                wide = torch.nn.functional.silu(layer.mlp.gate_proj(hidden)).mul_(layer.mlp.up_proj(hidden))
                x = x + layer.mlp.down_proj(wide)
            return _normed(self._body.norm, x[:, -1])

    def _mask(self, span: slice) -> torch.Tensor | None:
        """Return which places each of the tokens of `span` sees, [R, 1, G * n or 1, places], None for all."""
        real = None if self._real is None else self._real[..., : span.stop]
        if span.stop - span.start == 1:
            return real
        places, written = self._places[: span.stop], self._places[span, None]
        seen = places <= written if real is None else real & (places <= written)
        # A padded place would see nothing, and what a softmax over nothing gives would spread.
        seen = (seen | (places == written)).expand(len(self._pads), 1, -1, -1)
        return seen.repeat(1, 1, self._heads[1] // self._heads[0], 1)

    def _attention(
        self,
        index: int,
        layer: Any,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        span: slice,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        import torch
        from torch.nn.functional import rms_norm, scaled_dot_product_attention

        attn, (shared, heads) = layer.self_attn, self._heads
        hidden = _normed(layer.input_layernorm, x)
        both = torch.cat([attn.q_proj(hidden), attn.k_proj(hidden)], dim=-1).unflatten(-1, (-1, self._size))
        both = rms_norm(both, (self._size,), None, attn.q_norm.variance_epsilon).mul_(self._norms[index])
        both = torch.addcmul(both * cos, both.roll(self._size // 2, dims=-1), sin)
        keys, values = self._keys[index], self._values[index]
        keys[:, :, span] = both[:, :, heads:].transpose(1, 2)
        values[:, :, span] = attn.v_proj(hidden).unflatten(-1, (shared, -1)).transpose(1, 2)
        query = both[:, :, :heads].unflatten(2, (shared, -1)).permute(0, 2, 3, 1, 4)
        folded, seen = query.flatten(2, 3), slice(span.stop)
        out = scaled_dot_product_attention(folded, keys[:, :, seen], values[:, :, seen], attn_mask=mask)
        return attn.o_proj(out.unflatten(2, query.shape[2:4]).permute(0, 3, 1, 2, 4).flatten(2))


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import rms_norm

    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
