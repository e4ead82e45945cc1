"""A folder as weights, the tiny language models, and a device, for tests that build models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import models
from model_weights import LYRICS_VARIABLE, PLANNER_VARIABLE, RANDOM_MODELS, Weights

if TYPE_CHECKING:
    import torch

PLANNER, SONGWRITER = RANDOM_MODELS[PLANNER_VARIABLE], RANDOM_MODELS[LYRICS_VARIABLE]
CPU = models.Device("cpu", "float32", "float32", "float32", "a test")


def weights_in(folder: Path) -> Weights:
    """Return the weights in `folder`, as if ACE_STUDIO_MODEL had named it."""
    return Weights(folder.name, folder, "variable", "", "xl", None, folder.name)


def round_weights(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give the weights of `module` the values that `dtype` can store, in their own dtype."""
    for stored in module.state_dict().values():
        stored.copy_(stored.to(dtype))
