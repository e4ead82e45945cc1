"""Layers of a small language model that continues one text in several ways at once.

transformers' cache would copy the whole text for each continuation, and again for every token. Here
the text's keys and values are held once: each continuation attends to them and to its own few
tokens. The layers are those of Llama and Qwen2; a test compares the scores with transformers'.
All but the first text may be read and written with products in bytes (lyrics_bytes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from lyrics_bytes import ByteLayer, ByteModel

GROWTH = 256  # tokens by which the room for the text grows


class PlainLayer:
    """A layer's own products."""

    def __init__(self, layer: Any):
        self._attention = layer.self_attn
        self.mixed = layer.self_attn.o_proj
        self.feed_forward = layer.mlp

    def query_key_value(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        attention = self._attention
        return attention.q_proj(states), attention.k_proj(states), attention.v_proj(states)


class PlainModel:
    """The layers and the head of a causal language model of transformers, as they are."""

    def __init__(self, model: Any):
        self.layers = [PlainLayer(layer) for layer in model.model.layers]
        self.head = model.lm_head


class BranchingLayers:
    """Reads a text, then several continuations of it, one of which `keep` makes part of the text.

    `model` is a causal language model of transformers, on the CPU. `quick` has other products for
    all but the first text, which is always read with the model's own.
    """

    def __init__(self, model: Any, quick: ByteModel | None = None):
        self._body = model.model
        self._plain = PlainModel(model)
        self._quick = quick or self._plain
        config = model.config
        head_dim = getattr(config, "head_dim", None)
        self._size: int = head_dim or config.hidden_size // config.num_attention_heads
        self._groups = config.num_key_value_heads
        self.length = 0  # of the text, in tokens
        # Keys and values of the text, for each layer [2, groups, room, size].
        self._text: list[torch.Tensor] = [self._empty(GROWTH) for _ in self._body.layers]
        # The same of the continuations, [2, rows, groups, room, size].
        self._branch: list[torch.Tensor] = []
        self._written = 0  # tokens of each continuation

    def read(self, ids: list[int]) -> torch.Tensor:
        """Append `ids` to the text; return the scores of the token after them, [vocabulary]."""
        self.branch(1, len(ids))
        scores = self.step([ids])[0]
        self.keep(0, len(ids))
        return scores

    def branch(self, rows: int, room: int) -> None:
        """Begin `rows` continuations with room for `room` tokens each."""
        self._branch = [self._empty(room, rows) for _ in self._body.layers]
        self._written = 0

    def step(self, tokens: list[list[int]]) -> torch.Tensor:
        """Append `tokens` [rows, count] to the continuations; return the next tokens' scores, [rows, vocabulary]."""
        import torch

        products = self._quick if self.length else self._plain
        with torch.inference_mode():
            states = self._body.embed_tokens(torch.tensor(tokens))
            first = self.length + self._written
            positions = torch.arange(first, first + states.shape[1])[None]
            rotation = self._body.rotary_emb(states, positions)
            for number, layer in enumerate(self._body.layers):
                product = products.layers[number]
                normed = layer.input_layernorm(states)
                states = states + self._attend(number, product, normed, rotation)
                states = states + product.feed_forward(layer.post_attention_layernorm(states))
            self._written += states.shape[1]
            return products.head(self._body.norm(states[:, -1]))

    def keep(self, row: int, count: int) -> None:
        """Append the first `count` tokens of the continuation `row` to the text, and drop all continuations."""
        import torch

        with torch.inference_mode():
            for number, branch in enumerate(self._branch):
                text = self._text[number]
                if self.length + count > text.shape[2]:
                    larger = self._empty(self.length + count + GROWTH)
                    larger[:, :, : self.length] = text[:, :, : self.length]
                    self._text[number] = larger
                    text = larger
                text[:, :, self.length : self.length + count] = branch[:, row, :, :count]
        self.length += count
        self._branch = []

    def _empty(self, room: int, *rows: int) -> torch.Tensor:
        import torch

        return torch.empty(2, *rows, self._groups, room, self._size)

    def _attend(
        self, number: int, product: PlainLayer | ByteLayer, states: torch.Tensor, rotation: Any
    ) -> torch.Tensor:
        """Return the attention of `states` [rows, count, width] to the text and their continuations, in that shape."""
        import torch
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        rows, count, _ = states.shape
        query, key, value = map(self._by_head, product.query_key_value(states))
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        end = self._written + count
        branch = self._branch[number]
        branch[0, :, :, self._written : end] = key
        branch[1, :, :, self._written : end] = value
        keys, values = branch[:, :, :, :end]
        text_keys, text_values = self._text[number][:, :, : self.length]
        # [rows, groups, heads of a group * count, size]
        query = query.unflatten(1, (self._groups, -1)).flatten(2, 3) * self._size**-0.5
        # All rows attend to the same text, so they are one matrix for each group.
        to_text = _by_row(_by_group(query) @ text_keys.mT, rows)
        to_branch = query @ keys.mT
        later = torch.ones(count, end, dtype=torch.bool).triu(self._written + 1)
        to_branch = to_branch.unflatten(2, (-1, count)).masked_fill(later, float("-inf"))
        shares = torch.cat([to_text, to_branch.flatten(2, 3)], dim=-1).softmax(-1)
        text_shares, branch_shares = shares.split([self.length, end], dim=-1)
        from_text = _by_row(_by_group(text_shares) @ text_values, rows)
        mixed = from_text + branch_shares @ values
        mixed = mixed.unflatten(2, (-1, count)).flatten(1, 2).transpose(1, 2).flatten(2)
        return product.mixed(mixed)

    def _by_head(self, projected: torch.Tensor) -> torch.Tensor:
        """Return `projected` [rows, count, heads * size] as [rows, heads, count, size]."""
        return projected.unflatten(-1, (-1, self._size)).transpose(1, 2)


def _by_group(part: torch.Tensor) -> torch.Tensor:
    """Return `part` [rows, groups, queries, n] as [groups, rows * queries, n]."""
    return part.transpose(0, 1).flatten(1, 2)


def _by_row(part: torch.Tensor, rows: int) -> torch.Tensor:
    """Return `part` [groups, rows * queries, n] as [rows, groups, queries, n]."""
    return part.unflatten(1, (rows, -1)).transpose(0, 1)
