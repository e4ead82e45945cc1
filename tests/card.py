"""A pretend card: tensors that claim to be on another device and refuse to meet those of the processor.

The processor holds and computes their values. The rule is CUDA's: all operands of an operation are on one device,
except for copies and a number (no dimensions) from the processor. torch knows the device as "privateuseone".
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

KIND = "privateuseone:0"
CARD = torch.device(KIND)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnCard(torch.Tensor):
    """A tensor on the card; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CARD,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnCard({self.held!r})"

    def tolist(self) -> list:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        # Lets nn.Module exchange whole parameters, `held` included, instead of setting their data.
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> OnCard:
        return OnCard(inner["held"])

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        operands = [
            value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)
        ]
        here = [operand for operand in operands if isinstance(operand, OnCard)]
        away = [
            operand for operand in operands if not isinstance(operand, OnCard) and operand.dim()
        ]
        if here and away and function not in COPIES:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {function} got two devices."
            )
        place = kwargs.get("device")
        stays = place is None or torch.device(place).type == CARD.type
        if function is torch.ops.aten.copy_.default:
            stays = isinstance(args[0], OnCard)
        if place is not None:
            kwargs["device"] = torch.device("cpu")
        result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        known = {id(operand.held): operand for operand in here}
        return (
            tree_map(lambda value: known.get(id(value), _placed(value)), result)
            if stays
            else result
        )


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnCard) else value


def _placed(value: Any) -> Any:
    return (
        OnCard(value)
        if isinstance(value, torch.Tensor) and not isinstance(value, OnCard)
        else value
    )


def _copied(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _held(target).copy_(_held(source))
    return target


def _made(make: Any) -> Any:
    return lambda *sizes, dtype=None, **_: OnCard(make(*sizes, dtype=dtype))


# What torch needs of a device: a guard, a module of its own, and what it does below the dispatch to Python.
GUARD = backend_registration._DummyDeviceGuard()
torch._C._acc.register_python_privateuseone_device_guard(GUARD)
torch._register_device_module("privateuseone", backend_registration._DummyBackendModule())
LIBRARY = torch.library.Library("aten", "IMPL")
for _name, _function in {
    "_copy_from": _copied,
    "empty.memory_format": _made(torch.empty),
    "empty_strided": _made(torch.empty_strided),
    **dict.fromkeys(("arange", "arange.start", "arange.start_step"), _made(torch.arange)),
}.items():
    LIBRARY.impl(_name, _function, "PrivateUse1")
