"""Linear layers that multiply in 8 bits (memory plan `fast8`), on NVIDIA cards with float8 arithmetic.

Weights are stored as float8 with one scale for each output row; activations are scaled token by token as they arrive.
Products are summed in 32 bits by torch's own `scaled_mm`. torchao would do the same, but diffusers imports it at every
start once it is installed.

On the built-in engine a product differs by 4 %, and a song's latents by 20 to 30 % (docs/performance.md).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# `scaled_mm` wants both dimensions of the weight in whole multiples of this.
MULTIPLE = 16


def is_supported() -> bool:
    """Return whether the NVIDIA card multiplies float8 numbers: Ada, Hopper, Blackwell and later."""
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


def use(layers: torch.nn.Module, device: str) -> None:
    """Turn the linear layers in `layers` into 8-bit ones on `device`, one by one, so that no more is needed there."""
    import torch

    for module in layers.modules():
        if type(module) is torch.nn.Linear and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
            _convert(module, device)


def _convert(linear: Any, device: str) -> None:
    weight = linear.weight.detach().to(device)
    del linear.weight
    codes, scale = _scaled(weight)
    linear.register_buffer("codes", codes)
    linear.register_buffer("scale", scale)
    linear.weight_dtype = weight.dtype
    linear.__class__ = _linear_class()


def _scaled(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rows` [N, K] in float8 and the factor of each row [N, 1], in float32."""
    import torch

    limit = torch.finfo(torch.float8_e4m3fn).max
    largest = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny)
    factor = (limit / largest).clamp_max(torch.finfo(rows.dtype).max).to(rows.dtype)
    # Rounding may exceed the largest float8, which would become NaN.
    codes = (rows * factor).clamp_(-limit, limit).to(torch.float8_e4m3fn)
    return codes, factor.float().reciprocal()


@functools.cache
def _linear_class() -> type:
    import torch
    from torch.nn.functional import ScalingType, scaled_mm

    class Float8Linear(torch.nn.Linear):
        """`codes` [out, in] float8 times `scale` [out, 1] is the weight."""

        @property
        def weight(self) -> torch.Tensor:
            """The weight in the numbers that it had, [out, in]: for a DoRA."""
            return (self.codes.float() * self.scale).to(self.weight_dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            codes, scale = _scaled(x.flatten(0, -2))
            by_row = ScalingType.RowWise
            # Kernels that scale by row write bfloat16 only.
            out = scaled_mm(codes, self.codes.t(), scale, by_row, self.scale.t(), by_row, output_dtype=torch.bfloat16)
            out = out.to(x.dtype).unflatten(0, x.shape[:-1])
            return out if self.bias is None else out + self.bias

    return Float8Linear
