"""Layers of a small language model that continues one text in several ways at once.

transformers' cache would copy the whole text for each continuation, and again for every token. Here
the text's keys and values are held once: each continuation attends to them and to its own few
tokens. The layers are those of Llama and Qwen2; a test holds the scores to those of transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOM = 256  # tokens by which the room for the text grows


class BranchingLayers:
    """Reads a text, and then `rows` continuations of it, one of which `keep` makes part of the
    text.

    `model` is a causal language model of transformers, on the CPU.
    """

    def __init__(self, model: Any):
        self._body = model.model
        self._head = model.lm_head
        config = model.config
        self._size = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self._groups = config.num_key_value_heads
        self.length = 0  # of the text, in tokens
        # Of each layer, [2, groups, room, size]: keys and values.
        self._text: list[torch.Tensor] = [self._empty(ROOM) for _ in self._body.layers]
        self._branch: list[torch.Tensor] = []
        self._written = 0  # tokens of each continuation

    def read(self, ids: list[int]) -> torch.Tensor:
        """Append `ids` to the text; return the scores of the token after them, [vocabulary]."""
        self.branch(1, len(ids))
        scores = self.step([ids])[0]
        self.keep(0, len(ids))
        return scores

    def branch(self, rows: int, most: int) -> None:
        """Begin `rows` continuations of at most `most` tokens."""
        self._branch = [self._empty(most, rows) for _ in self._body.layers]
        self._written = 0

    def step(self, tokens: list[list[int]]) -> torch.Tensor:
        """Append equally many tokens to each continuation; return the scores of the next ones, [rows, vocabulary]."""
        import torch

        with torch.inference_mode():
            states = self._body.embed_tokens(torch.tensor(tokens))
            first = self.length + self._written
            places = torch.arange(first, first + states.shape[1])[None]
            rotation = self._body.rotary_emb(states, places)
            for number, layer in enumerate(self._body.layers):
                states = states + self._attend(
                    number, layer.self_attn, layer.input_layernorm(states), rotation
                )
                states = states + layer.mlp(layer.post_attention_layernorm(states))
            self._written += states.shape[1]
            return self._head(self._body.norm(states[:, -1]))

    def keep(self, row: int, count: int) -> None:
        """Make the first `count` tokens of a continuation part of the text, and drop the others."""
        import torch

        with torch.inference_mode():
            for number, branch in enumerate(self._branch):
                text = self._text[number]
                if self.length + count > text.shape[2]:
                    larger = self._empty(self.length + count + ROOM)
                    larger[:, :, : self.length] = text[:, :, : self.length]
                    self._text[number] = text = larger
                text[:, :, self.length : self.length + count] = branch[:, row, :, :count]
        self.length += count
        self._branch = []

    def _empty(self, room: int, *rows: int) -> torch.Tensor:
        import torch

        return torch.empty(2, *rows, self._groups, room, self._size)

    def _attend(
        self, number: int, attention: Any, states: torch.Tensor, rotation: Any
    ) -> torch.Tensor:
        """Return the attention of `states` [rows, count, width] to the text and to their own continuation."""
        import torch
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        rows, count, _ = states.shape
        query, key, value = (
            project(states).unflatten(-1, (-1, self._size)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        end = self._written + count
        branch = self._branch[number]
        branch[0, :, :, self._written : end] = key
        branch[1, :, :, self._written : end] = value
        keys, values = branch[:, :, :, :end]
        text_keys, text_values = self._text[number][:, :, : self.length]
        # [rows, groups, heads of a group * count, size]
        query = query.unflatten(1, (self._groups, -1)).flatten(2, 3) * self._size**-0.5
        shape = query.shape
        # All rows look at the same text, so they are one matrix for each group.
        together = query.transpose(0, 1).flatten(1, 2)
        to_text = (together @ text_keys.mT).unflatten(1, (rows, shape[2])).transpose(0, 1)
        to_branch = query @ keys.mT
        later = torch.ones(count, end, dtype=torch.bool).triu(self._written + 1)
        to_branch = (
            to_branch.unflatten(2, (-1, count)).masked_fill(later, float("-inf")).flatten(2, 3)
        )
        shares = torch.cat([to_text, to_branch], dim=-1).softmax(-1)
        of_text, of_branch = shares.split([self.length, end], dim=-1)
        from_text = (
            (of_text.transpose(0, 1).flatten(1, 2) @ text_values)
            .unflatten(1, (rows, shape[2]))
            .transpose(0, 1)
        )
        found = from_text + of_branch @ values
        found = found.unflatten(2, (-1, count)).flatten(1, 2).transpose(1, 2).flatten(2)
        return attention.o_proj(found)
