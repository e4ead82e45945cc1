"""The planner's prompts, rendered by the tokenizer's own chat template.

Instructions and layout are upstream's (LLMHandler; the reference's section 3.2 gives them exactly). Typed text is
marked so that it stays text: `Planner.encode` reads the marked prompt, `readable` shows it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from limits import INSTRUMENTAL

if TYPE_CHECKING:
    from planner import Brief

NO_INPUT = "NO USER INPUT"
INSTRUCTIONS = {
    "generate": "Generate audio semantic tokens based on the given conditions:",
    "understand": "Understand the given musical conditions and describe the audio semantics accordingly:",
    "inspire": "Expand the user's input into a more detailed and specific musical description:",
    "format": "Format the user's input into a more detailed and specific musical description:",
}
# Typed text is cut at this private character, which is dropped again, so that "<|im_end|>" in it stays text.
CUT = "\ue000"


def generate_prompt(tokenizer: Any, brief: Brief) -> str:
    """Return the prompt of phase 1, after which the model thinks."""
    return _render(tokenizer, "generate", _song_words(brief))


def codes_prompt(tokenizer: Any, brief: Brief, found: Mapping[str, str], open_turn: bool = False) -> str:
    """Return the prompt of phase 2, after which the codes come; without `found` the unconditional one."""
    prompt = _render(tokenizer, "generate", _song_words(brief), thoughts(found))
    prompt += "" if prompt.endswith("\n") else "\n"
    return prompt.removesuffix("<|im_end|>\n") if open_turn else prompt


def inspire_prompt(tokenizer: Any, idea: str, instrumental: bool) -> str:
    """Return the prompt of `inspire`."""
    words = typed(idea.strip()) or NO_INPUT
    return _render(tokenizer, "inspire", f"{words}\n\ninstrumental: {str(instrumental).lower()}")


def polish_prompt(tokenizer: Any, brief: Brief) -> str:
    """Return the prompt of `polish`."""
    caption, lyrics = typed(brief.prompt.strip()) or NO_INPUT, typed(brief.lyrics.strip()) or INSTRUMENTAL
    return _render(tokenizer, "format", f"# Caption\n{caption}\n\n# Lyric\n{lyrics}")


def describe_prompt(tokenizer: Any, codes: str) -> str:
    """Return the prompt of `describe`; the codes are tokens here, not text."""
    return _render(tokenizer, "understand", codes or NO_INPUT)


def readable(prompt: str) -> str:
    """Return a prompt without the marks that `typed` left in it."""
    return prompt.replace(CUT, "")


def typed(text: str) -> str:
    """Mark typed text so that no part of it becomes a control token: all of those begin with "<"."""
    return text.replace(CUT, "").replace("<", f"<{CUT}")


def thoughts(found: Mapping[str, str]) -> str:
    """Return metadata as the model was trained to think it: sorted YAML, numbers as numbers, open fields left out."""
    values = {name: int(value) if value.isdigit() else value for name, value in found.items() if value}
    lines = yaml.dump(values, allow_unicode=True, sort_keys=True).strip() + "\n" if values else ""
    return f"<think>\n{typed(lines)}</think>"


def _song_words(brief: Brief) -> str:
    return f"# Caption\n{typed(brief.prompt)}\n\n# Lyric\n{typed(brief.lyrics)}\n"


def _render(tokenizer: Any, task: str, words: str, answer: str = "") -> str:
    messages = [
        {"role": "system", "content": f"# Instruction\n{INSTRUCTIONS[task]}\n\n"},
        {"role": "user", "content": words},
    ]
    if answer:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer)
