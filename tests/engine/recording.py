"""Steps that are recorded and replayed on the processor as on CUDA."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """What a CUDA graph does: operations recorded once and repeated on the same tensors, with the same numbers."""

    def __init__(self, work):
        super().__init__()
        self._calls, self._done = [], True
        with self:
            work()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._calls.append((function, args, kwargs or {}, result))
        return result

    def __call__(self):
        # Recording on the processor has already done the work once.
        if self._done:
            self._done = False
            return
        for function, args, kwargs, recorded in self._calls:
            result = function(*args, **kwargs)
            for new, old in zip(tree_leaves(result), tree_leaves(recorded), strict=True):
                if new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():
                    old.copy_(new)
