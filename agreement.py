"""How near two ways of computing the same are, and how near they have to be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Relative to the length of the plain result. Where numbers are summed in another order, results
# differ by a few roundings; a key too many or too few in a window moves attention by 9 % and more.
BOUNDS = {"float64": 1e-3, "float32": 1e-3, "float16": 0.02, "bfloat16": 0.06}


def bound(dtype: torch.dtype) -> float:
    return BOUNDS[str(dtype).removeprefix("torch.")]


def difference(made: torch.Tensor, plain: torch.Tensor) -> float:
    """Return the length of `made` - `plain`, relative to that of `plain`; NaN if one of them is not finite."""
    made = made.cpu().double()
    plain = plain.cpu().double()
    error = float((made - plain).norm())
    length = float(plain.norm())
    if error == 0.0:
        return 0.0
    if not math.isfinite(error) or not math.isfinite(length):
        return math.nan
    return error / max(length, 1e-30)


def largest(differences: Iterable[float]) -> float:
    """Return the largest of some differences, NaN if any of them is."""
    found = list(differences)
    if any(math.isnan(each) for each in found):
        return math.nan
    return max(found)
