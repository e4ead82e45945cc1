"""The state of the training in files small enough to carry: at most 16 MiB each and 64 MiB together.

A full float32 state (weights, their running mean, two moments) would be 16 bytes a parameter. Here a parameter of the
stage in training takes five: the running mean in bfloat16, the live weight as its distance from that mean in 8 bits,
the first moment in 8 bits, the root of the second in 8 bits, rounded up so that no step grows; a scale a row each.
Parts that are not in training are kept as the running mean alone. Small tensors stay float32. Writing rounds the state,
so the training reads back what it wrote and goes on from that: a run that was stopped there and one that was not have
the same numbers.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

LARGEST_FILE = 15 * 2**20
SMALL_TENSOR = 4_096
PREFIX = "state-"


@dataclass
class Progress:
    """How far the training is: steps, seconds and the last loss of each stage, the shape's name, the seed."""

    shape: str
    seed: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)


class Average:
    """The running mean of the parameters of some parts (EMA), float32 beside them."""

    def __init__(self, parts: dict[str, nn.Module], decay: float = 0.999):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in named(parts).items()}

    @torch.no_grad()
    def update(self, parts: dict[str, nn.Module], step: int) -> None:
        """Move towards the parameters; quicker in the first steps, when they are still far from anything.

        The share is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.
        """
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        live = named(parts)
        torch._foreach_lerp_(list(self.values.values()), [live[name].detach() for name in self.values], share)

    @torch.no_grad()
    def copy_to(self, parts: dict[str, nn.Module]) -> None:
        """Put the mean in the place of the live parameters."""
        for name, parameter in named(parts).items():
            parameter.copy_(self.values[name])


def named(parts: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return every parameter as "part/name", in a fixed order."""
    return {f"{part}/{name}": value for part, model in parts.items() for name, value in model.named_parameters()}


def write(
    folder: Path,
    progress: Progress,
    finished: dict[str, nn.Module],
    parts: dict[str, nn.Module],
    average: Average,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the state: `finished` parts hold their means already, `parts` are in training.

    It is written beside `folder` and renamed at the end, so that a run which breaks off leaves the former state.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in named(finished).items():
        tensors[f"mean/{name}"] = _rounded(parameter)
    for name, parameter in named(parts).items():
        mean = _rounded(average.values[name])
        tensors[f"mean/{name}"] = mean
        _pack(tensors, f"off/{name}", parameter.detach() - mean.float())
        moments = optimizer.state.get(parameter)
        if moments:
            _pack(tensors, f"first/{name}", moments["exp_avg"])
            _pack(tensors, f"second/{name}", moments["exp_avg_sq"].sqrt(), upwards=True)
            tensors[f"count/{name}"] = moments["step"].reshape(1).float()
    aside = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    shards = _shards({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    told = {"progress": json.dumps(vars(progress)), "shards": str(len(shards))}
    for number, shard in enumerate(shards, 1):
        save_file(shard, aside / f"{PREFIX}{number}.safetensors", metadata=told)
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_progress(folder: Path) -> Progress | None:
    """Return how far the training in `folder` is; None where there is none. Raises ValueError for a broken state."""
    files = sorted(folder.glob(f"{PREFIX}*.safetensors"))
    if not files:
        return None
    told = []
    for path in files:
        with safe_open(path, "pt") as shard:
            told.append(shard.metadata())
    if any(each != told[0] for each in told) or len(files) != int(told[0]["shards"]):
        raise ValueError(f"The state in {folder} is not whole: {len(files)} files that do not belong together.")
    return Progress(**json.loads(told[0]["progress"]))


@torch.no_grad()
def read(
    folder: Path,
    finished: dict[str, nn.Module],
    parts: dict[str, nn.Module],
    average: Average,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Put the state into the parts; what the files do not hold stays as it is (a stage that has not begun)."""
    tensors = {}
    for path in sorted(folder.glob(f"{PREFIX}*.safetensors")):
        with safe_open(path, "pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (no mapping)
    for name, parameter in named(finished).items():
        if f"mean/{name}" in tensors:
            parameter.copy_(tensors[f"mean/{name}"])
    for name, parameter in named(parts).items():
        if f"mean/{name}" not in tensors:
            continue
        mean = tensors[f"mean/{name}"].to(parameter.device).float()
        average.values[name].copy_(mean)
        off = _unpack(tensors, f"off/{name}", parameter)
        parameter.copy_(mean if off is None else mean + off)
        first, second = (_unpack(tensors, f"{kind}/{name}", parameter) for kind in ("first", "second"))
        if optimizer is not None and first is not None:
            # A fused optimizer counts its steps where the parameter is.
            count = tensors[f"count/{name}"][0].to(parameter.device)
            optimizer.state[parameter] = {"step": count, "exp_avg": first, "exp_avg_sq": second.square()}


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.float() if _is_small(tensor) else tensor.to(torch.bfloat16)


def _is_small(tensor: torch.Tensor) -> bool:
    return tensor.ndim < 2 or tensor.numel() < SMALL_TENSOR


def _pack(tensors: dict[str, torch.Tensor], name: str, value: torch.Tensor, upwards: bool = False) -> None:
    """Add a tensor in 8 bits with a scale a row; `upwards` is for values over zero that must not get smaller."""
    if _is_small(value):
        tensors[name] = value.float()
        return
    rows = value.float().flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True) / (255 if upwards else 127)
    # A subnormal scale would turn small values into infinities.
    scaled = rows / scale.clamp(min=1e-30)
    # What was rounded up before stays, though its root and square were rounded in between.
    packed = (
        (scaled - 1e-3).ceil().clamp(0, 255).to(torch.uint8)
        if upwards
        else scaled.round().clamp(-127, 127).to(torch.int8)
    )
    tensors[name], tensors[f"{name}:scale"] = packed, scale


def _unpack(tensors: dict[str, Any], name: str, like: torch.Tensor) -> torch.Tensor | None:
    if name not in tensors:
        return None
    value = tensors[name].to(like.device).float()
    if f"{name}:scale" in tensors:
        value = value * tensors[f"{name}:scale"].to(like.device)
    return value.reshape(like.shape)


def _shards(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Spread the tensors over as few files as hold them, in a fixed order."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name in sorted(tensors):
        bytes_ = tensors[name].numel() * tensors[name].element_size()
        if shards[-1] and size + bytes_ > LARGEST_FILE:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += bytes_
    return shards
