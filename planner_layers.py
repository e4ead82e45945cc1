"""The planner's layers (Qwen3) over a static key-value cache, in as few operations as possible.

Launching an operation costs more than its arithmetic: transformers launches about sixty per layer
and step, this file about twenty. Query heads that share a key are folded into one product, and the
cache is transposed, so that products run along the positions.

Shapes: R rows, n tokens read at once, H query heads, K key heads, D their size, L layers.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STRETCH = 256  # cache positions that one recorded step covers


def fits(model: Any) -> bool:
    """Tell whether this file computes what the model's own layers do."""
    config = model.config
    return (
        config.model_type == "qwen3"
        and config.hidden_act == "silu"
        and set(config.layer_types) == {"full_attention"}
        and not config.attention_bias
    )


def join_weights(model: Any) -> None:
    """Join the weights that multiply the same input in each layer; the parameters become views of the joined ones."""
    for layer in model.get_decoder().layers:
        joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        joined(layer.mlp.gate_proj, layer.mlp.up_proj)


def stretch_end(position: int) -> int:
    """Return where the stretch of cache positions that holds `position` ends."""
    return (position // STRETCH + 1) * STRETCH


def layers_of(model: Any, pads: Sequence[int], length: int) -> CachedLayers | PlainLayers:
    """Return layers for R rows of up to `length` tokens; `pads` [R] counts the padding on the left.

    A model with the attribute `plain_layers` gets those of transformers.
    """
    if getattr(model, "plain_layers", False):
        return PlainLayers(model, pads)
    return CachedLayers(model, pads, length)


class PlainLayers:
    """The layers of transformers, for a machine on which `CachedLayers` disagree with them."""

    def __init__(self, model: Any, pads: Sequence[int]):
        import torch
        from transformers import DynamicCache

        self._body = model.get_decoder()
        self._pads = torch.tensor(pads, device=model.device)[:, None]
        self._cache = DynamicCache(config=model.config)
        # transformers renames it, architecture by architecture
        names = inspect.signature(type(self._body).forward).parameters
        self._name = "cache" if "cache" in names else "past_key_values"
        self.position = 0

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append `tokens` [R, n]; returns the last hidden states [R, size]."""
        import torch

        begin = self.position
        self.position = begin + tokens.shape[1]
        places = torch.arange(self.position, device=tokens.device)
        with torch.no_grad():
            found = self._body(
                input_ids=tokens,
                attention_mask=(places >= self._pads).long(),
                position_ids=(places[begin:] - self._pads).clamp_min(0),
                use_cache=True,
                **{self._name: self._cache},
            )
        return found.last_hidden_state[:, -1]


class CachedLayers:
    """A model's layers with a cache for R rows of up to `length` tokens.

    `pads` [R] counts each row's padding on the left. The parameters must not require gradients.
    """

    def __init__(self, model: Any, pads: Sequence[int], length: int):
        import torch

        body = model.get_decoder()
        config = model.config
        device = model.device
        self._heads = config.num_attention_heads
        self._groups = config.num_key_value_heads
        self._size = config.head_dim
        # Where weights are stored in fewer bits than are computed with, each is widened for its use.
        self._wide = getattr(model, "widener", _unchanged)
        dtype = body.norm.weight.dtype
        length = stretch_end(length - 1)
        shape = (config.num_hidden_layers, len(pads), self._groups, self._size, length)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        self._embedding = body.embed_tokens.weight
        self._norm = _Norm(body.norm)
        self._layers = [_weights(layer) for layer in body.layers]
        self._unit = _Norm(body.layers[0].self_attn.q_norm)
        # The norms' weights are folded into the rotary tables: [2, L, 1, H + K, D] for the cosine
        # and the sine.
        by_layer = []
        for layer in body.layers:
            queries = layer.self_attn.q_norm.weight.expand(self._heads, -1)
            keys = layer.self_attn.k_norm.weight.expand(self._groups, -1)
            by_layer.append(torch.cat([queries, keys]))
        norms = torch.stack(by_layer)[:, None]
        half = self._size // 2
        self._norms = torch.stack([norms, norms.roll(half, dims=-1)]) * self._unit.gain
        self._positions = torch.arange(length, device=device)
        cosines, sines = body.rotary_emb(self._keys, self._positions[None])
        # rotate_half negates the second half of a vector, which meets the first half of the sines.
        sines = torch.cat([-sines[0, :, :half], sines[0, :, half:]], dim=-1)
        self._rotary = torch.stack([cosines[0], sines])
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
        end = begin + tokens.shape[1]
        self.position = end
        # `_single` in half precision needs CUDA's float32 output; elsewhere use `_attention`.
        single = tokens.shape[1] == 1 and self._keys.dtype == torch.float32
        mask = self._mask[..., :end] if single else None
        with torch.no_grad():
            return self._forward(tokens, self._positions[begin:end], end, mask)

    def step(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Read one token [R, 1] at `position` [1]; returns the hidden states [R, size].

        The caller advances the attribute `position`.
        """
        import torch

        # No Python number changes within a stretch, so the call can be recorded and replayed.
        end = stretch_end(self.position)
        with torch.no_grad():
            future = self._positions[:end] > position
            mask = self._mask[..., :end].masked_fill(future, -math.inf)
            return self._forward(tokens, position, end, mask)

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, end: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Read `tokens` [R, n] at `positions` [n], attending to the cache up to `end`.

        A `mask` [R * K, 1, end] is for a single token only. Returns the last hidden states [R, size].
        """
        import torch
        from torch.nn.functional import silu

        rows = tokens.shape[0]
        heads = self._heads
        x = self._embedding[tokens.flatten()].to(self._keys.dtype)
        # Split by layer all at once, for fewer operations.
        all_keys = self._keys.unbind()
        all_values = self._values.unbind()
        seen_keys = self._keys[..., :end].flatten(1, 2).unbind()
        seen_values = self._values[..., :end].flatten(1, 2).unbind()
        for layer, (cos, sin) in enumerate(self._rotations(positions)):
            before_attention, qkv, out, before_mlp, gate_up, down = self._layers[layer]
            # All heads are normed: leaving out the values would take a copy of the others.
            mixed = torch.mm(before_attention(x), self._wide(qkv)).unflatten(-1, (-1, self._size))
            both = self._unit.unit(mixed)[:, : cos.shape[1]]
            both = torch.addcmul(both * cos, both.roll(self._size // 2, dims=-1), sin)
            new_keys = _by_head(both[:, heads:], rows)
            new_values = _by_head(mixed[:, cos.shape[1] :], rows)
            all_keys[layer].index_copy_(3, positions, new_keys)
            all_values[layer].index_copy_(3, positions, new_values)
            query = both[:, :heads]
            if mask is None:
                attended = self._attention(query, seen_keys[layer], seen_values[layer], positions)
            else:
                attended = self._single(query, seen_keys[layer], seen_values[layer], mask)
            x.addmm_(attended, self._wide(out))
            gate, up = torch.mm(before_mlp(x), self._wide(gate_up)).chunk(2, dim=-1)
            x.addmm_(silu(gate).mul_(up), self._wide(down))
        return self._norm(x.view(rows, -1, x.shape[-1])[:, -1])

    def _rotations(self, place: torch.Tensor) -> Iterator[Sequence[torch.Tensor]]:
        """Return each layer's cosine and sine at the positions `place` [n], both [R * n, H + K, D]."""
        positions = (place - self._pads).clamp_min_(0).flatten()
        rotary = self._rotary.index_select(1, positions)[:, :, None]
        if len(place) == 1:
            cos, sin = (self._norms * rotary[:, None]).unbind()
            return zip(cos.unbind(), sin.unbind(), strict=True)
        # For long prompts, the tables of all layers at once would need too much memory.
        return ((norms * rotary).unbind() for norms in self._norms.unbind(1))

    def _single(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention [R, H * D] of single tokens [R, H, D] to `keys` and `values` [R * K, D, positions]."""
        import torch

        folded = query.reshape(len(keys), -1, self._size)
        scale = self._size**-0.5
        if keys.dtype == torch.float32:
            scores = torch.baddbmm(mask, folded, keys, alpha=scale)
        else:
            scores = torch.baddbmm(mask, folded, keys, alpha=scale, out_dtype=torch.float32)
        shares = scores.softmax(dim=-1).to(keys.dtype)
        return torch.bmm(shares, values.transpose(1, 2)).view(len(query), -1)

    def _attention(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention [R * n, H * D] of `query` [R * n, H, D] at the positions `place` [n]."""
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
        keys = keys.mT.contiguous().unflatten(0, (rows, -1))
        values = values.mT.contiguous().unflatten(0, (rows, -1))
        out = scaled_dot_product_attention(
            query.flatten(2, 3), keys, values, attn_mask=mask.repeat(1, 1, group, 1)
        )
        return out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1)


def _unchanged(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _weights(layer: Any) -> tuple[Any, ...]:
    """Return a layer's norms and weights in the order of their use, transposed for products from the right."""
    attention = layer.self_attn
    mlp = layer.mlp
    qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj).T
    first = _Norm(layer.input_layernorm)
    second = _Norm(layer.post_attention_layernorm)
    gate_up = joined(mlp.gate_proj, mlp.up_proj).T
    return first, qkv, attention.o_proj.weight.T, second, gate_up, mlp.down_proj.weight.T


class _Norm:
    """RMS norm. On a CPU torch's own takes nine operations; this one takes four."""

    def __init__(self, norm: Any):
        import torch

        self._shape = norm.weight.shape
        self._epsilon = norm.variance_epsilon
        size = len(norm.weight)
        self._by_hand = norm.weight.device.type == "cpu" and norm.weight.dtype == torch.float32
        # By hand, `unit` returns vectors of length 1.
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
        """Return `x` normed but neither weighted nor multiplied by `gain`."""
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


def joined(*linears: Any) -> torch.Tensor:
    """Return the weights of `linears` as one tensor and make them views of it, unless they already are."""
    import torch

    weights = [linear.weight for linear in linears]
    first = weights[0].data
    sizes = [len(weight) for weight in weights]
    with contextlib.suppress(RuntimeError):  # raised if the storage ends before the last one would
        together = first.as_strided((sum(sizes), first.shape[1]), first.stride())
        parts = zip(weights, together.split(sizes), strict=True)
        if all(weight.data.is_set_to(part) for weight, part in parts):
            return together
    together = torch.cat([weight.data for weight in weights])
    for weight, part in zip(weights, together.split(sizes), strict=True):
        weight.data = part
    return together
