"""Checks of a checkpoint's configuration, so that a wrong number becomes a sentence instead of a silent song.

The rules are those of the classes: AceStepPipeline's parts in diffusers (0.42), and language models
in transformers. They apply to the names that a configuration has; for others the class's default
is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Names whose values are whole numbers from 1 up.
COUNT = re.compile(
    r"num_\w*(hidden_layers|heads|quantizers)|num_train_timesteps|(text_|timbre_|encoder_)?hidden_(size|dim)|"
    r"intermediate_size|head_dim|in_channels|audio_acoustic_hidden_dim|patch_size|sliding_window|pool_window_size|"
    r"fsq_dim|vocab_size|max_position_embeddings|audio_channels|decoder_channels|decoder_input_channels|sampling_rate"
)
LARGEST = 10_000_000
# Numbers above 0.
POSITIVE = ("rope_theta", "rms_norm_eps", "shift")
# Lists of whole numbers from 1 up.
LISTS = ("downsampling_ratios", "channel_multiples", "fsq_input_levels")
LAYER_TYPES = ("full_attention", "sliding_attention")
# Names that may be null: the default of a class in diffusers, or in transformers also something
# that an architecture lacks.
NULL = ("encoder_hidden_size", "fsq_input_levels", "layer_types")
NULL_IN_TRANSFORMERS = ("sliding_window", "head_dim", "num_key_value_heads")
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def config_flaw(config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a part's configuration, such as "num_hidden_layers is -1, not ...", or None."""
    is_of_diffusers = "_class_name" in config
    may_be_null = NULL if is_of_diffusers else NULL + NULL_IN_TRANSFORMERS
    for name, value in config.items():
        if value is None and name in may_be_null:
            continue
        wanted = _wanted(name, value)
        if wanted:
            return f"{name} is {json.dumps(value)[:40]}, not {wanted}"
    flaw = _heads_flaw(config)
    if flaw is None and is_of_diffusers:
        flaw = _layer_types_flaw(config)
    return flaw


def layers_flaw(config: Mapping[str, Any], tensors: Iterable[str]) -> str | None:
    """Return what is wrong with the number of layers, or None: further layers of the weights would be ignored."""
    count = 0
    for name in tensors:
        for match in LAYER.finditer(name):
            count = max(count, int(match[1]) + 1)
    wanted = config.get("num_hidden_layers")
    if not count or wanted is None or count == wanted:
        return None
    return f"num_hidden_layers is {wanted}, but the weights have {count} layers"


def _wanted(name: str, value: Any) -> str:
    """Return what the value of `name` should be, "" if it is right."""
    if COUNT.fullmatch(name):
        if _is_count(value):
            return ""
        return "a whole number from 1 up"
    if name in POSITIVE:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 < value < float("inf"):
            return ""
        return "a number above 0"
    if name in LISTS:
        if isinstance(value, list) and value and all(_is_count(item) for item in value):
            return ""
        return "a list of whole numbers from 1 up"
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _heads_flaw(config: Mapping[str, Any]) -> str | None:
    heads = config.get("num_attention_heads")
    key_heads = config.get("num_key_value_heads")
    if heads and key_heads and heads % key_heads:
        return (
            f"num_attention_heads is {heads}, not a multiple of num_key_value_heads ({key_heads})"
        )
    return None


def _layer_types_flaw(config: Mapping[str, Any]) -> str | None:
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or not all(kind in LAYER_TYPES for kind in types):
        return f"layer_types may only name {' and '.join(LAYER_TYPES)}"
    layers = config.get("num_hidden_layers", len(types))
    if len(types) != layers:
        return f"layer_types has {len(types)} entries, not num_hidden_layers ({layers})"
    return None
