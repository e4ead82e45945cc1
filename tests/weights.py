"""A folder as weights, the tiny language models, and a device, for tests that build models themselves."""

from __future__ import annotations

from pathlib import Path

import models
from model_weights import LYRICS_VARIABLE, PLANNER_VARIABLE, RANDOM_MODELS, Weights

PLANNER, SONGWRITER = RANDOM_MODELS[PLANNER_VARIABLE], RANDOM_MODELS[LYRICS_VARIABLE]
CPU = models.Device("cpu", "float32", "float32", "float32", "a test")


def weights_in(folder: Path) -> Weights:
    """Return the weights in `folder`, as if ACE_STUDIO_MODEL had named it."""
    return Weights(folder.name, folder, "variable", "", "xl", None, folder.name)
