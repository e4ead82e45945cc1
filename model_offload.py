"""A pipeline in less memory: one part at a time on the device, weights stored in fewer bits, products in 8 bits."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import AceStepPipeline


class Offload:
    """Keeps one part of all pipelines on the device while the others wait in the machine's memory.

    A part is moved in when it, or a direct child of it, is called. accelerate's hooks miss the
    children that the loop calls directly. Code that uses weights without calling a module, such as
    the reading of audio codes, must call `bring`; diffusers' group offloading would miss that as
    well. The pipeline still reports the true device.
    """

    def __init__(self, pipe: Any, device: str):
        import torch

        self.execution_device = torch.device(device)
        self.on_device = ""  # the name of the part that is there
        # A part goes with the last pipeline that has it.
        self._parts: weakref.WeakValueDictionary[str, torch.nn.Module] = (
            weakref.WeakValueDictionary()
        )
        self.take(pipe)

    def take(self, pipe: Any) -> None:
        """Take the parts of a pipeline, some of which may be here already, since another one has them, too."""
        import torch

        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and getattr(part, "_hf_hook", None) is not self:
                self._take(name, part)

    def _take(self, name: str, part: Any) -> None:
        """Move a part off the device, and have it brought back whenever something of it is called."""
        number = 2
        while name in self._parts:  # of another pipeline
            name = f"{name.partition(' ')[0]} {number}"
            number += 1
        if name == self.on_device:  # one that is gone had this name
            self.on_device = ""
        self._parts[name] = part
        part.to("cpu")
        part.offloaded_as = name
        part._hf_hook = self  # diffusers looks here for the device
        called = [part, *part.children()]
        if hasattr(part, "get_input_embeddings"):
            called.append(part.get_input_embeddings())
        for module in called:
            module.register_forward_pre_hook(lambda *_: self.bring(name))

    def bring(self, name: str) -> None:
        """Move the part `name` onto the device, and the one that is there off it; "" moves only off."""
        if name == self.on_device:
            return
        former = self._parts.get(self.on_device)
        if former is not None:
            former.to("cpu")
        self.on_device = ""
        if not name:
            return
        try:
            self._parts[name].to(self.execution_device)
        except Exception:
            self._parts[name].to("cpu")  # a move that runs out of memory has moved some of it
            raise
        self.on_device = name


def bring(pipe: AceStepPipeline, name: str) -> None:
    """Move the part `name` of `pipe` onto the device and the others off it ("": all), if parts are offloaded."""
    offload = offload_of(pipe)
    if offload:
        offload.bring(getattr(pipe, name).offloaded_as if name else "")


def offload_of(pipe: AceStepPipeline) -> Offload | None:
    """Return what keeps the parts of `pipe` apart, None if they all lie on the device."""
    return getattr(pipe.transformer, "_hf_hook", None)


def cast_on_use(
    part: Any, storage: torch.dtype, compute: torch.dtype, skipped: Collection[str] = ()
) -> None:
    """Store the large layers of the module `part` in `storage` and cast each to `compute` while it
    works.

    Everything else (norms, learnt tokens, the silence latent) is small and stays in `compute`.
    Layers whose names are `skipped` stay as they are.
    """
    import torch
    from diffusers.hooks import apply_layerwise_casting

    patterns = tuple(f"^{re.escape(name)}$" for name in skipped)
    apply_layerwise_casting(part, storage, compute, skip_modules_pattern=patterns)
    large = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.ConvTranspose1d, torch.nn.Embedding)
    for module in part.modules():
        if isinstance(module, large):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(compute)
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, key, buffer.to(compute))


# --- weights that are widened as they are used ----------------------------------------------------

# The most numbers of a weight that are widened at once: as many as the largest layer has, but fewer
# than the table of a large vocabulary.
MOST_WIDENED = 70_000_000


class Widener:
    """Widens one weight at a time, always into the same memory.

    New memory for each would cost several times as much as the widening.
    """

    def __init__(self, numbers: int):
        import torch

        self._memory = torch.empty(numbers)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight`, a matrix or the transpose of one, in float32; it holds until the next call."""
        if not weight.is_contiguous():
            return self(weight.T).T
        return self._memory[: weight.numel()].view(weight.shape).copy_(weight)

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the linear layer of `x` [..., in] by `weight` [out, in], which is widened in parts if it is large."""
        import torch
        from torch.nn.functional import linear

        rows = max(len(self._memory) // weight.shape[1], 1)
        if bias is not None:
            bias = bias.float()
        results = []
        for first in range(0, len(weight), rows):
            places = slice(first, first + rows)
            part_bias = None if bias is None else bias[places]
            results.append(linear(x, self(weight[places]), part_bias))
        if len(results) == 1:
            return results[0]
        return torch.cat(results, dim=-1)


def widen_on_use(model: torch.nn.Module, narrow_rows: int = 0) -> None:
    """Make a language model with narrow weights compute in float32, bit for bit as if its weights
    were wide.

    Inputs of up to `narrow_rows` rows are multiplied in the narrow numbers, which is faster where
    widening all weights takes longer than the products. Unlike `cast_on_use`, nothing is written
    back. What is not a linear layer or an embedding is small, and becomes float32. The model's
    `widener` is for code that uses its weights without calling its modules.
    """
    import torch

    linear, embedding = _wide_classes()
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    largest = max(layer.weight.numel() for layer in layers)
    model.widener = Widener(min(largest, MOST_WIDENED))
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = linear
            module.narrow_rows = narrow_rows
            module.widener = model.widener
        elif type(module) is torch.nn.Embedding:
            module.__class__ = embedding
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


@functools.cache
def _wide_classes() -> tuple[type, type]:
    import torch

    class WideLinear(torch.nn.Linear):
        """A linear layer whose narrow weight is widened while it works, unless there are few rows."""

        narrow_rows: int
        widener: Widener

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x[..., 0].numel() <= self.narrow_rows:
                return super().forward(x.to(self.weight.dtype)).to(x.dtype)
            return self.widener.linear(x, self.weight, self.bias)

    class WideEmbedding(torch.nn.Embedding):
        """An embedding whose rows are widened once they are chosen."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).float()

    return WideLinear, WideEmbedding


# --- weights stored in 8 bits ---------------------------------------------------------------------

# A float8 number has three bits after the leading one from 2^-6 to 448 and loses them below that, where
# most weights of a layer are. So each row of a weight is stored with a scale of its own, which takes
# its largest number close to 448. Scales are powers of two: multiplying by one rounds nothing.
MOST_EXPONENT = 100  # of a scale; float32 has room for the row's numbers and the scale


def store_in_8_bits(part: torch.nn.Module, compute: torch.dtype) -> None:
    """Store the linear layers of the module `part` in 8 bits, and widen each to `compute` while it works.

    Everything else (two convolutions, norms, learnt tokens) is small and becomes `compute`.
    """
    import torch

    for module in part.modules():
        if type(module) is torch.nn.Linear:
            _store(module, compute)
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(compute)
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, key, buffer.to(compute))


def _store(linear: torch.nn.Linear, compute: torch.dtype) -> None:
    codes, scale = _by_powers_of_two(linear.weight.detach())
    _replace_weight(linear, codes, scale.to(compute), compute)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data.to(compute)
    linear.__class__ = _stored8_class()


def _replace_weight(
    linear: torch.nn.Linear, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> None:
    """Put `codes` and `scale` in the place of the weight; as parameters, because they are weights to whoever counts."""
    import torch

    del linear.weight
    linear.codes = torch.nn.Parameter(codes, requires_grad=False)
    linear.scale = torch.nn.Parameter(scale, requires_grad=False)
    linear.weight_dtype = dtype


def _by_powers_of_two(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rows` [N, K] in float8, and in float32 the power of two that each row is to be multiplied with [N, 1]."""
    import torch

    rows = rows.float()
    limit = torch.finfo(torch.float8_e4m3fn).max  # 448 is 0.875 times 2^9
    part, exponent = torch.frexp(rows.abs().amax(dim=1, keepdim=True))
    larger = torch.where(part > limit / 2**9, 8, 9) - exponent
    larger = larger.clamp(-MOST_EXPONENT, MOST_EXPONENT)
    codes = torch.ldexp(rows, larger).clamp_(-limit, limit).to(torch.float8_e4m3fn)
    return codes, torch.ldexp(torch.ones_like(part), -larger)


@functools.cache
def _stored8_class() -> type:
    import torch
    from torch.nn.functional import linear

    class Stored8Linear(torch.nn.Linear):
        """A linear layer whose weight is `codes` [out, in] float8 times `scale` [out, 1], a power of two."""

        @property
        def weight(self) -> torch.Tensor:
            return self.codes.to(self.weight_dtype).mul_(self.scale)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return linear(x, self.weight, self.bias)

    return Stored8Linear


# --- products in 8 bits ---------------------------------------------------------------------------

# Weights are stored as float8 with one scale per output row; activations are scaled token by token
# as they arrive, and torch's `scaled_mm` sums products in 32 bits. torchao does the same, but once
# it is installed, diffusers imports it at every start. A product differs by 4 %, a song's latents
# by 20 to 30 % (docs/performance.md).
MULTIPLE = 16  # `scaled_mm` needs both dimensions of the weight to be multiples of this


def float8_is_supported() -> bool:
    """Return whether the NVIDIA card multiplies float8 numbers: Ada, Hopper, Blackwell and later."""
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


def use_float8(layers: torch.nn.Module, device: str) -> None:
    """Turn the linear layers in `layers` into 8-bit ones on `device`, one by one to need little memory there."""
    import torch

    for linear in layers.modules():
        if type(linear) is not torch.nn.Linear:
            continue
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            continue
        weight = linear.weight.detach().to(device)
        codes, scale = _scaled(weight)
        _replace_weight(linear, codes, scale, weight.dtype)
        linear.__class__ = _float8_class()


def _scaled(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rows` [N, K] in float8, and in float32 what each row is to be multiplied with [N, 1]."""
    import torch

    limit = torch.finfo(torch.float8_e4m3fn).max
    smallest = torch.finfo(torch.float32).tiny  # in place of 0, by which nothing can be divided
    largest = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(smallest)
    factor = (limit / largest).clamp_max(torch.finfo(rows.dtype).max).to(rows.dtype)
    # rounding may exceed the limit, giving NaN
    codes = (rows * factor).clamp_(-limit, limit).to(torch.float8_e4m3fn)
    return codes, factor.float().reciprocal()


@functools.cache
def _float8_class() -> type:
    import torch
    from torch.nn.functional import ScalingType, scaled_mm

    class Float8Linear(torch.nn.Linear):
        """A linear layer whose weight is `codes` [out, in] float8 times `scale` [out, 1]."""

        @property
        def weight(self) -> torch.Tensor:
            # read by a DoRA, which needs the norms of the rows
            return (self.codes.float() * self.scale).to(self.weight_dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            codes, scale = _scaled(x.flatten(0, -2))
            by_row = ScalingType.RowWise  # kernels that scale by row write bfloat16 only
            out = scaled_mm(
                codes,
                self.codes.t(),
                scale,
                by_row,
                self.scale.t(),
                by_row,
                output_dtype=torch.bfloat16,
            )
            out = out.to(x.dtype).unflatten(0, x.shape[:-1])
            if self.bias is None:
                return out
            return out + self.bias

    return Float8Linear
