"""Tokenizers and configurations of small models: the built-in ones, and the random ones of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from model_weights import ASSETS

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen3Config

WORDS = ASSETS / "words.txt"
VOCABULARY = 4_200
SILENCE_FRAMES = 15_000
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}

Family = Literal["qwen2", "qwen3"]
THINK = ("<think>", "</think>")

# Qwen's templates without what the studio never asks for: tools, chats without a system prompt, earlier answers.
# Version 3 sets the thoughts of an answer in two lines.
TEMPLATES: dict[Family, str] = {
    "qwen2": (
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "qwen3": (
        "{%- for message in messages %}{%- set content = message.content %}{%- if message.role == 'assistant' %}"
        "{%- set thoughts, _, answer = content.rpartition('</think>') %}"
        "{%- set thoughts = '<think>\\n' + thoughts.split('<think>')[-1].strip('\\n') + '\\n</think>' %}"
        "{%- set content = thoughts + '\\n\\n' + answer.lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
        "{%- endif %}{%- endif %}"
    ),
}


def make_tokenizer(family: Family | None = None, marks: tuple[str, ...] = ()) -> Qwen2Tokenizer:
    """Build a byte-level BPE tokenizer with Qwen's splitting rules.

    Without a `family` it ends every text with <|endoftext|>, as Qwen3-Embedding's does; with one it is a chat model's.
    `marks` are tokens that stand for themselves without being special, as <think> in Qwen3.
    """
    from tokenizers import AddedToken, processors
    from transformers import Qwen2Tokenizer

    end, turn, turn_end = SPECIAL_TOKENS
    tokenizer = Qwen2Tokenizer(
        unk_token=None, eos_token=end, pad_token=end
    ).train_new_from_iterator(
        _training_text(), VOCABULARY, new_special_tokens=[turn, turn_end], show_progress=False
    )
    tokenizer.model_max_length = 131_072
    if family:
        tokenizer.eos_token = turn_end
        tokenizer.chat_template = TEMPLATES[family]
    else:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}",
            pair=f"$A $B {end}",
            special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))],
        )
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return tokenizer


def _training_text() -> list[str]:
    """Return the words as prompts have them: mostly after a space, some at the start of a line, some capitalised.

    The list opens with the most important words, which weigh more. Like Qwen's, the tokenizer gets tokens for
    punctuation before a line's end.
    """
    text = [
        mark + line_end
        for mark in ("", ":", "]", ".", ",", ")", "!", "?")
        for line_end in ("\n\n", "\n")
    ] * 20
    for rank, word in enumerate(WORDS.read_text(encoding="utf-8").split()):
        weight = 2 if rank < 400 else 1
        text += [f" {word}"] * 3 * weight + [word, word[0].upper() + word[1:]] * weight
    return text


def qwen_shape(vocabulary: int, size: int, layers: int) -> dict[str, Any]:
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": layers,
    }
    return {
        **shape,
        **ATTENTION,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "dtype": "float32",
    }


def text_config(vocabulary: int, size: int, layers: int, head_dim: int) -> Qwen3Config:
    """Return the configuration of a small text encoder that otherwise equals Qwen3-Embedding."""
    from transformers import Qwen3Config

    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return Qwen3Config(
        **qwen_shape(vocabulary, size, layers), **ids, head_dim=head_dim, tie_word_embeddings=True
    )
