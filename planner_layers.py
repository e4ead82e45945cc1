"""The planner's layers (Qwen3) over a static key-value cache, in as few operations as their
arithmetic needs.

Calls cost more than products: transformers makes about sixty per layer and step, this file about
twenty. Query heads that share a key are folded into one product, and the cache is transposed, so
that products run along the positions.

Shapes: R rows, n tokens read at once, H query heads, K key heads, D their size, L layers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STRETCH = 256  # positions of the cache for which one recorded step serves


def fits(model: Any) -> bool:
    config = model.config
    return (
        config.model_type == "qwen3"
        and config.hidden_act == "silu"
        and set(config.layer_types) == {"full_attention"}
        and not config.attention_bias
    )


def join_weights(model: Any) -> None:
    """Join the weights that each layer multiplies with the same input; the parameters become views of the result."""
    for layer in model.get_decoder().layers:
        _joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        _joined(layer.mlp.gate_proj, layer.mlp.up_proj)


def stretch_end(position: int) -> int:
    return (position // STRETCH + 1) * STRETCH


class CachedLayers:
    """A model's layers, cached for R rows of up to `length` tokens; `pads` [R] counts the padding
    on the left.

    The model's parameters must not require gradients. Weights that are narrower than its norms are
    widened as they are used.
    """

    def __init__(self, model: Any, pads: Sequence[int], length: int):
        import torch

        body = model.get_decoder()
        config = model.config
        device = model.device
        self._heads = config.num_attention_heads
        self._groups = config.num_key_value_heads
        self._size = config.head_dim
        length = stretch_end(length - 1)
        shape = (config.num_hidden_layers, len(pads), self._groups, self._size, length)
        self._dtype = body.norm.weight.dtype
        self._keys, self._values = (
            torch.zeros(shape, device=device, dtype=self._dtype) for _ in range(2)
        )
        self._embedding = body.embed_tokens.weight
        self._norm = _Norm(body.norm)
        self._layers = [_weights(layer) for layer in body.layers]
        self._unit = _Norm(body.layers[0].self_attn.q_norm)
        # The norms' weights are part of the rotary tables: [2, L, 1, H + K, D] for the cosine and
        # the sine.
        pairs = (
            (layer.self_attn.q_norm.weight, layer.self_attn.k_norm.weight) for layer in body.layers
        )
        norms = [
            torch.cat([q.expand(self._heads, -1), k.expand(self._groups, -1)]) for q, k in pairs
        ]
        norms = torch.stack(norms)[:, None]
        self._norms = torch.stack([norms, norms.roll(self._size // 2, dims=-1)]) * self._unit.gain
        self._positions = torch.arange(length, device=device)
        cos, sin = (table[0] for table in body.rotary_emb(self._keys, self._positions[None]))
        # the first half changes sign
        sin = torch.cat([-sin[:, : self._size // 2], sin[:, self._size // 2 :]], dim=-1)
        self._rotary = torch.stack([cos, sin])
        self._pads = torch.tensor(pads, device=device)[:, None]
        padding = self._positions < self._pads
        self._real = ~padding[:, None, None]
        mask = torch.zeros(padding.shape, device=device).masked_fill_(padding, -math.inf)
        self._mask = mask.repeat_interleave(self._groups, dim=0)[:, None]
        self.position = 0  # the number of tokens read so far

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append `tokens` [R, n]; returns the last hidden states [R, size]."""
        import torch

        begin = self.position
        self.position = self.position + tokens.shape[1]
        # In half precision the products of a single token need a card that returns them in float32.
        alone = tokens.shape[1] == 1 and self._keys.dtype == torch.float32
        mask = self._mask[..., : self.position] if alone else None
        with torch.no_grad():
            return self._forward(
                tokens, self._positions[begin : self.position], self.position, mask
            )

    def step(self, tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Read one token [R, 1] at `place` [1]; returns the hidden states [R, size]. The caller counts `position`."""
        import torch

        # No Python number changes within a stretch, so the call can be recorded and replayed.
        end = stretch_end(self.position)
        with torch.no_grad():
            mask = self._mask[..., :end].masked_fill(self._positions[:end] > place, -math.inf)
            return self._forward(tokens, place, end, mask)

    def _forward(
        self, tokens: torch.Tensor, place: torch.Tensor, end: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Read `tokens` at the positions `place` [n]; a `mask` [R * K, 1, end] is for a single token only."""
        import torch
        from torch.nn.functional import silu

        rows = tokens.shape[0]
        heads = self._heads
        wide = self._dtype
        x = self._embedding[tokens.flatten()].to(wide)
        seen = zip(
            *(cache[..., :end].flatten(1, 2).unbind() for cache in (self._keys, self._values)),
            strict=True,
        )
        caches = zip(self._keys.unbind(), self._values.unbind(), seen, strict=True)
        for weights, (keys, values, (cached_keys, cached_values)), (cos, sin) in zip(
            self._layers, caches, self._turns(place), strict=True
        ):
            before_attention, qkv, out, before_mlp, gate_up, down = weights
            # All heads are normed: leaving out the values would take a copy of the others.
            mixed = torch.mm(before_attention(x), qkv.to(wide)).unflatten(-1, (-1, self._size))
            both = self._unit.unit(mixed)[:, : cos.shape[1]]
            both = torch.addcmul(both * cos, both.roll(self._size // 2, dims=-1), sin)
            keys.index_copy_(3, place, _by_head(both[:, heads:], rows))
            values.index_copy_(3, place, _by_head(mixed[:, cos.shape[1] :], rows))
            attend, how = (self._attention, place) if mask is None else (self._single, mask)
            x.addmm_(attend(both[:, :heads], cached_keys, cached_values, how), out.to(wide))
            gate, up = torch.mm(before_mlp(x), gate_up.to(wide)).chunk(2, dim=-1)
            x.addmm_(silu(gate).mul_(up), down.to(wide))
        return self._norm(x.view(rows, -1, x.shape[-1])[:, -1])

    def _turns(self, place: torch.Tensor) -> Iterator[Sequence[torch.Tensor]]:
        """Return each layer's cosine and sine, both [R * n, H + K, D]."""
        positions = (place - self._pads).clamp_min_(0).flatten()
        rotary = self._rotary.index_select(1, positions)[:, :, None]
        if len(place) == 1:
            cos, sin = (self._norms * rotary[:, None]).unbind()
            return zip(cos.unbind(), sin.unbind(), strict=True)
        # For long prompts, all layers at once would need too much memory.
        return ((norms * rotary).unbind() for norms in self._norms.unbind(1))

    def _single(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention [R, H * D] of single tokens [R, H, D] to `keys` and `values` [R * K, D, positions]."""
        import torch

        folded = query.reshape(len(keys), -1, self._size)
        if keys.dtype == torch.float32:
            in_float = {}
        else:
            in_float = {"out_dtype": torch.float32}
        scores = torch.baddbmm(mask, folded, keys, alpha=self._size**-0.5, **in_float)
        return torch.bmm(scores.softmax(dim=-1).to(keys.dtype), values.transpose(1, 2)).view(
            len(query), -1
        )

    def _attention(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention [R * n, H * D] of `query` [R * n, H, D]."""
        from torch.nn.functional import scaled_dot_product_attention

        rows = len(self._pads)
        group = self._heads // self._groups
        query = (
            query.unflatten(0, (rows, -1))
            .unflatten(2, (self._groups, group))
            .permute(0, 2, 3, 1, 4)
        )
        seen = self._positions[: keys.shape[-1]]
        new = place[:, None]
        # A padded position sees itself: a softmax over nothing gives NaN, which would spread.
        mask = (self._real[..., : len(seen)] & (seen <= new)) | (seen == new)
        keys, values = (part.mT.contiguous().unflatten(0, (rows, -1)) for part in (keys, values))
        out = scaled_dot_product_attention(
            query.flatten(2, 3), keys, values, attn_mask=mask.repeat(1, 1, group, 1)
        )
        return out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1)


def _weights(layer: Any) -> tuple[Any, ...]:
    """Return a layer's norms and weights in the order of their use, transposed for products from the right."""
    attention = layer.self_attn
    mlp = layer.mlp
    qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj).T
    first = _Norm(layer.input_layernorm)
    second = _Norm(layer.post_attention_layernorm)
    gate_up = _joined(mlp.gate_proj, mlp.up_proj).T
    return first, qkv, attention.o_proj.weight.T, second, gate_up, mlp.down_proj.weight.T


class _Norm:
    """RMS norm. On a CPU torch splits its own into nine operations; this one takes four."""

    def __init__(self, norm: Any):
        import torch

        self._shape = norm.weight.shape
        self._epsilon = norm.variance_epsilon
        size = len(norm.weight)
        self._by_hand = norm.weight.device.type == "cpu" and norm.weight.dtype == torch.float32
        # by hand, `unit` returns vectors of length 1
        self.gain = math.sqrt(size) if self._by_hand else 1.0
        if self._by_hand:
            self._weight = norm.weight * self.gain
        else:
            self._weight = norm.weight
        self._least = torch.tensor(math.sqrt(self._epsilon * size))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._by_hand:
            return self.unit(x).mul_(self._weight)
        return self._stock(x, self._weight)

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        if self._by_hand:
            return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self._least)
        return self._stock(x, None)

    def _stock(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        from torch.nn.functional import rms_norm

        return rms_norm(x, self._shape, weight, self._epsilon)


def _by_head(part: torch.Tensor, rows: int) -> torch.Tensor:
    """Return keys or values [R * n, K, D] as the cache holds them, [R, K, D, n]."""
    if len(part) == rows:
        return part[..., None]
    return part.unflatten(0, (rows, -1)).permute(0, 2, 3, 1)


def _joined(*linears: Any) -> torch.Tensor:
    """Return the weights of `linears` as one tensor, of which they become views unless they already are."""
    import torch

    weights = [linear.weight for linear in linears]
    first = weights[0].data
    sizes = [len(weight) for weight in weights]
    with contextlib.suppress(RuntimeError):  # raised if the storage ends before the last one would
        whole = first.as_strided((sum(sizes), first.shape[1]), first.stride())
        if all(
            weight.data.is_set_to(part)
            for weight, part in zip(weights, whole.split(sizes), strict=True)
        ):
            return whole
    whole = torch.cat([weight.data for weight in weights])
    for weight, part in zip(weights, whole.split(sizes), strict=True):
        weight.data = part
    return whole
