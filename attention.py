"""How the transformer attends: as diffusers ships it, or with key and value heads repeated where it passes a mask.

Every other layer of the transformer sees 128 tokens to each side and says so with a dense mask, while several query
heads share a key head. PyTorch's fast kernels refuse the two together: flash takes no mask, memory-efficient no shared
heads. What is left writes the whole matrix of scores. With the key heads repeated the result is the same and the
memory-efficient kernel takes it. Which is fastest on a card is measured with tools/bench_attention.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHOSEN = "stock"
"""What songs are made with: "stock", "repeat", or a backend of diffusers by its name."""


def use(transformer: Any, name: str) -> None:
    """Let `transformer` attend in the way called `name`; raises ValueError where diffusers knows no such backend."""
    processor = _repeating if name == "repeat" else _stock
    for layer in transformer.layers:
        layer.self_attn.set_processor(processor())
    if name not in ("stock", "repeat"):
        transformer.set_attention_backend(name)


def _stock() -> Any:
    from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0

    return AceStepAttnProcessor2_0()


def _repeating() -> Any:
    from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0

    class Repeating(AceStepAttnProcessor2_0):
        """The stock processor, which is shown an attention without shared heads wherever there is a mask."""

        def __call__(
            self,
            attn: Any,
            hidden_states: torch.Tensor,
            encoder_hidden_states: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        ) -> torch.Tensor:
            shown = _Unshared(attn) if attention_mask is not None and attn.heads != attn.kv_heads else attn
            return super().__call__(shown, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    return Repeating()


class _Unshared:
    """An attention whose key and value heads stand once for each query head; all else is the attention's own.

    Norm and rotary embedding act on each head by itself, so that repeated heads stay equal through both.
    """

    def __init__(self, attn: Any):
        self._attn, self.kv_heads = attn, attn.heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)

    def to_k(self, states: torch.Tensor) -> torch.Tensor:
        return self._repeated(self._attn.to_k(states))

    def to_v(self, states: torch.Tensor) -> torch.Tensor:
        return self._repeated(self._attn.to_v(states))

    def _repeated(self, heads: torch.Tensor) -> torch.Tensor:
        """Return [B, L, heads * d] for [B, L, shared heads * d]."""
        each = heads.unflatten(-1, (self._attn.kv_heads, self._attn.head_dim))
        return each.repeat_interleave(self._attn.heads // self._attn.kv_heads, dim=-2).flatten(-2)
