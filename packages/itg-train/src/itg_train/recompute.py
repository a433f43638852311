"""What the trunk's blocks forget in the forward pass and compute again in the backward pass.

Of what a block of Qwen2-7B would keep for the backward pass, a third are inputs of matrix products
that come from norms and activations: cheap to compute again from what is kept anyway. The products
themselves and attention cost nearly all of a block's time, so their results are kept, unless memory
does not allow even that.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Forgetting:
    """Within, what `forget` computes is not kept for the backward pass, whoever wants to keep it.

    It is computed once more at its first use there, and let go of at the last. What it is computed
    from must not change in between.
    """

    def __init__(self) -> None:
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._forgotten: dict[int, _Forgotten] = {}
        # alive, so that no other tensor takes their places meanwhile
        self._alive: list[Tensor] = []

    def forget(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """`function(*args)`, a new tensor, which the backward pass makes for itself."""
        result = function(*args)
        self._alive.append(result)
        place = result.untyped_storage().data_ptr()
        self._forgotten[place] = _Forgotten(function, [x.detach() for x in args])
        return result

    def __enter__(self) -> "Forgetting":
        self._hooks.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._hooks.__exit__(*args)
        self._alive.clear()
        self._forgotten.clear()

    def _pack(self, tensor: Tensor) -> Any:
        forgotten = self._forgotten.get(tensor.untyped_storage().data_ptr())
        if forgotten is None or tensor.numel() == 0:
            return tensor
        forgotten.num_readers += 1
        return forgotten, tensor.size(), tensor.stride(), tensor.storage_offset()

    @staticmethod
    def _unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        forgotten, size, stride, offset = packed
        return forgotten.read().as_strided(size, stride, offset)


class _Forgotten:
    """How to make a tensor again, for as many readers as wanted to keep it."""

    def __init__(self, function: Callable[..., Tensor], args: list[Tensor]) -> None:
        self.function = function
        self.args = args
        self.num_readers = 0
        self._value: Tensor | None = None

    def read(self) -> Tensor:
        if self._value is None:
            with torch.no_grad():
                self._value = self.function(*self.args)
        value = self._value
        self.num_readers -= 1
        if self.num_readers == 0:
            self._value = None
        return value
