"""What the kernels share on the host: cheap launches, on the right device.

Triton's own launch looks at every argument to find the compiled kernel again: 10 to 30 microseconds
of Python where the kernel runs for 3. `launch` finds it by a key that the caller makes from the few
things that matter, and starts it directly.
"""

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_COMPILED: dict[tuple[Hashable, ...], Any] = {}
_HERE = nullcontext()


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    key: tuple[Hashable, ...] | None,
    args: tuple[Any, ...],
    constants: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    """Launches `kernel`, compiled before under the same `key` or now.

    Args:
        kernel: A Triton function whose constants come last among its arguments.
        grid: Programs.
        key: Tells apart what Triton would compile apart: device, types of all arguments, values of
            specialised integers, constants and options. Pointers under a key lie at multiples of
            16 bytes; None, where they may not, leaves the search to Triton.
        args: The kernel's arguments.
        constants: Its compile-time arguments.
        options: For the compiler and the launch.
    """
    compiled = None if key is None else _COMPILED.get(key)
    if compiled is not None:
        compiled[grid](*args, *constants)
        return
    compiled = kernel[grid](*args, *constants, **options)
    # The interpreter compiles nothing.
    if key is not None and compiled is not None:
        _COMPILED[key] = compiled


def are_aligned(*tensors: Tensor) -> bool:
    """Whether all lie at multiples of 16 bytes, as whatever torch allocates does."""
    return not any(tensor.data_ptr() % 16 for tensor in tensors)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device_of(tensor)


@lru_cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU; 2 of the interpreter."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def stream_dtype(hidden: Tensor, residual: Tensor | None) -> torch.dtype:
    """The type of the one gradient that serves both: the wider one's, or what holds either's."""
    if residual is None or residual.dtype == hidden.dtype:
        return hidden.dtype
    return torch.promote_types(hidden.dtype, residual.dtype)


def cdiv(a: int, b: int) -> int:
    """Ceiling of a / b."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
