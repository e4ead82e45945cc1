"""What the configuration of a checkpoint may say, so that a wrong number is a sentence and not a
silent song.

The rules are those of the classes: AceStepPipeline's parts in diffusers (0.42), and language models
in transformers. They are applied to the names that a configuration has; what it leaves out is the
class's default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Whole numbers from 1 up, wherever they stand.
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
# What may be null: a default of the classes in diffusers, and in transformers also what an
# architecture lacks.
NULL = ("encoder_hidden_size", "fsq_input_levels", "layer_types")
NULL_IN_TRANSFORMERS = ("sliding_window", "head_dim", "num_key_value_heads")
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def config_flaw(config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a part's configuration, such as "num_hidden_layers is -1, not ...", or None."""
    of_diffusers = "_class_name" in config
    may_be_null = NULL if of_diffusers else NULL + NULL_IN_TRANSFORMERS
    for name, value in config.items():
        if value is None and name in may_be_null:
            continue
        wanted = _wanted(name, value)
        if wanted:
            return f"{name} is {json.dumps(value)[:40]}, not {wanted}"
    return _heads_flaw(config) or (_layer_types_flaw(config) if of_diffusers else None)


def layers_flaw(config: Mapping[str, Any], tensors: Iterable[str]) -> str | None:
    """Return why the number of layers is not that of the weights: fewer would be left out without a word."""
    numbers = [int(found[1]) for name in tensors for found in LAYER.finditer(name)]
    wanted = config.get("num_hidden_layers")
    if not numbers or wanted is None or max(numbers) + 1 == wanted:
        return None
    return f"num_hidden_layers is {wanted}, but the weights have {max(numbers) + 1} layers"


def _wanted(name: str, value: Any) -> str:
    """Return what the value of `name` should be, "" if it is that."""
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
        is_list = isinstance(value, list) and value and all(_is_count(each) for each in value)
        if is_list:
            return ""
        return "a list of whole numbers from 1 up"
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _heads_flaw(config: Mapping[str, Any]) -> str | None:
    heads = config.get("num_attention_heads")
    shared = config.get("num_key_value_heads")
    if heads and shared and heads % shared:
        return f"num_attention_heads is {heads}, not a multiple of num_key_value_heads ({shared})"
    return None


def _layer_types_flaw(config: Mapping[str, Any]) -> str | None:
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or not all(each in LAYER_TYPES for each in types):
        return f"layer_types may only name {' and '.join(LAYER_TYPES)}"
    layers = config.get("num_hidden_layers", len(types))
    if len(types) != layers:
        return f"layer_types has {len(types)} entries, not num_hidden_layers ({layers})"
    return None
