"""The tiny language models: real classes, Qwen's templates, and the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import preview
import preview_writers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family, codes, kind", [("qwen2", 0, "Qwen2ForCausalLM"), ("qwen3", 64, "Qwen3ForCausalLM")])
def test_it_is_a_real_model_that_stays_small(family, codes, kind):
    folder = preview_writers.language_model_folder(family, codes)
    assert folder == preview_writers.expected_language_model_folder(family, codes)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == kind and model.config.vocab_size == len(tokenizer)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    ids = tokenizer("<think></think>", add_special_tokens=False).input_ids
    assert len(ids) == 2
    numbers = tokenizer.convert_tokens_to_ids([f"<|audio_code_{number}|>" for number in range(codes)])
    assert numbers == list(range(ids[1] + 1, ids[1] + 1 + codes))
    prompt = tokenizer("A song about rain", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt.input_ids.shape[1]


def test_equal_arguments_give_equal_bytes_and_leave_the_global_generator_alone(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (
        preview_writers.make_language_model(tmp_path / str(number), family="qwen3", audio_codes=8, seed=seed)
        for number, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(torch.get_rng_state(), state)
    manifests = [json.loads((folder / preview.MANIFEST).read_text()) for folder in (one, two, other)]
    assert manifests[0] == manifests[1]
    assert {name for name in manifests[0] if manifests[0][name] != manifests[2][name]} == {"model.safetensors"}


def render(family: str, *messages: tuple[str, str], **settings) -> str:
    """Return the messages (role, content) as the family's template renders them."""
    tokenizer = AutoTokenizer.from_pretrained(_folder(family))
    turns = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(turns, tokenize=False, **settings)


def _folder(family: str) -> Path:
    return preview_writers.language_model_folder(family, 64 if family == "qwen3" else 0)


def test_version_2_5_adds_its_system_prompt_where_there_is_none():
    start = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    turn = "<|im_start|>user\nHi<|im_end|>\n"
    assert render("qwen2", ("user", "Hi")) == start + turn
    asked = render("qwen2", ("system", "Be brief."), ("user", "Hi"), add_generation_prompt=True)
    assert asked == "<|im_start|>system\nBe brief.<|im_end|>\n" + turn + "<|im_start|>assistant\n"


def test_version_3_keeps_the_thoughts_of_the_last_answer_only():
    turn = "<|im_start|>user\nHi<|im_end|>\n"
    assert render("qwen3", ("user", "Hi"), add_generation_prompt=True) == turn + "<|im_start|>assistant\n"
    silent = render("qwen3", ("user", "Hi"), add_generation_prompt=True, enable_thinking=False)
    assert silent == turn + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    answer = ("assistant", "<think>\nhm\n</think>\n\nHello")
    said = "<|im_start|>assistant\n<think>\nhm\n</think>\n\nHello<|im_end|>\n"
    assert render("qwen3", ("user", "Hi"), answer) == turn + said
    later = turn + "<|im_start|>assistant\nHello<|im_end|>\n" + turn
    assert render("qwen3", ("user", "Hi"), answer, ("user", "Hi")) == later
    empty = render("qwen3", ("user", "Hi"), ("assistant", "<think>\n</think>"))
    assert empty == turn + "<|im_start|>assistant\n<think>\n\n</think>\n\n<|im_end|>\n"
