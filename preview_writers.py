"""Tiny language models for the writers: Qwen's real classes, tokenizer rules and chat templates, with seeded weights.

A "qwen2" one stands in for Qwen 2.5 7B Instruct, which writes lyrics; a "qwen3" one with audio codes for the planner's
5 Hz model. What they write is nonsense, but every token of it takes the real path. Kept and made like `preview.py`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import preview

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Family = Literal["qwen2", "qwen3"]
SIZE = 48
CONTEXT = 32_768
THINK = ("<think>", "</think>")
DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

# Qwen's templates without their branches for tools. Version 2.5 puts in a system prompt where the first message is
# none; version 3 does not, takes the thoughts out of earlier answers and sets those of the last one in two lines.
TEMPLATES: dict[Family, str] = {
    "qwen2": (
        "{%- if messages[0]['role'] != 'system' %}"
        "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}"
        "{%- endif %}"
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "qwen3": (
        "{%- set found = namespace(question=messages|length - 1) %}"
        "{%- for message in messages %}"
        "{%- if message.role == 'user' %}{%- set found.question = loop.index0 %}{%- endif %}"
        "{%- endfor %}"
        "{%- for message in messages %}"
        "{%- set content = message.content %}"
        "{%- if message.role == 'assistant' %}"
        "{%- set thoughts = '' %}"
        "{%- if '</think>' in content %}"
        "{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}"
        "{%- endif %}"
        "{%- if loop.index0 > found.question and (loop.last or thoughts) %}"
        "{%- set content = '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') %}"
        "{%- endif %}"
        "{%- endif %}"
        "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        "{{- '<|im_start|>assistant\\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\\n\\n</think>\\n\\n' }}"
        "{%- endif %}"
        "{%- endif %}"
    ),
}


def language_model_folder(family: Family, audio_codes: int = 0) -> Path:
    """Return the folder of a tiny language model, made once in the cache by the rules of `preview.py`."""
    return preview.kept_folder(
        _name(family, audio_codes),
        lambda folder: make_language_model(folder, family=family, audio_codes=audio_codes),
        (Path(__file__),),
    )


def expected_language_model_folder(family: Family, audio_codes: int = 0) -> Path:
    """Return where `language_model_folder` will be, without making anything."""
    return preview.expected_folder(_name(family, audio_codes), (Path(__file__),))


def make_language_model(folder: Path, *, family: Family, audio_codes: int = 0, seed: int = 0) -> Path:
    """Write a tiny causal language model with its tokenizer into `folder` and return it.

    Its tokens are those of a byte-level BPE, <|endoftext|>, <|im_start|>, <|im_end|> and, after them, <think>, </think>
    and <|audio_code_0|> to <|audio_code_N-1|> for N = `audio_codes`. Equal arguments give equal bytes.
    """
    import torch
    from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM

    preview.quiet_libraries()
    folder = Path(folder)
    end, _, turn_end = preview.SPECIAL_TOKENS
    tokenizer = preview.make_tokenizer(
        (*THINK, *(f"<|audio_code_{number}|>" for number in range(audio_codes))),
        closed=False,
        eos_token=turn_end,
        chat_template=TEMPLATES[family],
    )
    pad, eos = tokenizer.convert_tokens_to_ids([end, turn_end])
    config = _config(family, vocab_size=len(tokenizer), bos_token_id=pad, pad_token_id=None, eos_token_id=eos)
    build = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}[family]
    with torch.no_grad():
        model = preview.filled(lambda: build(config), torch.Generator("cpu").manual_seed(seed))
    # What Qwen ships: both ends stop a text, and sampling has settings of its own.
    model.generation_config.update(eos_token_id=[eos, pad], pad_token_id=pad, do_sample=True, top_k=20)
    own = {"qwen2": (0.7, 0.8, 1.05), "qwen3": (0.6, 0.95, 1.0)}[family]
    model.generation_config.update(**dict(zip(("temperature", "top_p", "repetition_penalty"), own, strict=True)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preview.write_manifest(folder)
    return folder


def _name(family: Family, audio_codes: int) -> str:
    return f"preview-{family}-{audio_codes}"


def _config(family: Family, **ids: Any) -> PretrainedConfig:
    from transformers import Qwen2Config, Qwen3Config

    shape = {
        "hidden_size": SIZE,
        "intermediate_size": 2 * SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 1_000_000.0,
        # With one matrix for both ends a model without learnt layers would repeat its last token.
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    if family == "qwen2":
        return Qwen2Config(**shape, **ids)
    return Qwen3Config(**shape, head_dim=16, **ids)
