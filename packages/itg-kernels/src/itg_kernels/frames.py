"""Decoded frames turned into what a tower looks at, on the GPU, to the bit as the CPU's libraries.

`squash_frames` is PIL's bicubic filter and `nv12_to_rgb` libswscale's colours. Both compute in
integers, so a GPU gives the same bits: a Triton kernel on NVIDIA GPUs, plain torch elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from itg_kernels import frames_reference
from itg_kernels.ops import Backend, resolve_backend

# Places within a frame are int32, and a kernel's last block reaches some way beyond them.
_MAX_VALUES = 2**31 - 2**12


def squash_frames(frames: Tensor, size: int, *, backend: Backend = "auto") -> Tensor:
    """Resizes frames to a square as PIL does with its bicubic filter; the aspect is not kept.

    The horizontal pass comes first, whatever the shape. Pillow from 12.3 on puts the vertical one
    first for frames more than 100 times as tall as wide that are to be lower, and as each pass
    rounds, it then gives other bits; before, it gave these.

    The first call with a new height or width waits for the device, to which it brings a table.

    Args:
        frames: [N, H, W, 3] uint8, strided in any way.
        size: Side of the square in pixels.
        backend: See `resolve_backend`.

    Returns:
        [N, size, size, 3] uint8; `frames` itself where it has that shape.

    Raises:
        ValueError: Shape, type or size is not as above, or a frame has some 2^31 values or more.
    """
    if frames.dim() != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be [N, H, W, 3] uint8, got {_describe(frames)}")
    num_frames, height, width, _ = frames.shape
    if size < 1 or min(height, width) < 1:
        raise ValueError(f"size, height and width must be >= 1, got {size}, {height} and {width}")
    if 3 * max(height, size) * max(width, size) > _MAX_VALUES:
        raise ValueError(f"a frame must hold at most {_MAX_VALUES} values, got {height} x {width}")
    resolved = resolve_backend(backend, frames.device)
    if (height, width) == (size, size):
        return frames
    if num_frames == 0:
        return frames.new_empty((0, size, size, 3))
    resample = frames_reference.resample if resolved == "torch" else _kernels().resample
    # the order matters because each pass rounds; a pass that keeps the length is none
    rows = frames.reshape(num_frames * height, width, 3)
    if width != size:
        rows = resample(rows, size)
    columns = rows.reshape(num_frames, height, size * 3)
    if height != size:
        columns = resample(columns, size)
    return columns.view(num_frames, size, size, 3)


def nv12_to_rgb(nv12: Tensor, matrix: Sequence[int], *, backend: Backend = "auto") -> Tensor:
    """Converts colours as libswscale does: chroma repeated, each product cut to an integer.

    Args:
        nv12: [N, H * 3 / 2, W] uint8 with even H and W, the rows of luma before those of
            interleaved chroma.
        matrix: Offset of luma, then coefficients in 2.13, which fit 16 bits: of luma, of V in red,
            of U in blue, and of U and of V in green.
        backend: See `resolve_backend`.

    Returns:
        [N, H, W, 3] uint8.

    Raises:
        ValueError: Shape, type or matrix is not as above.
    """
    if nv12.dim() != 3 or nv12.dtype != torch.uint8 or nv12.shape[1] % 3 or nv12.shape[2] % 2:
        raise ValueError(f"nv12 must be [N, H * 3 / 2, W] uint8, got {_describe(nv12)}")
    if len(matrix) != 6 or not all(-(2**15) <= number < 2**15 for number in matrix):
        raise ValueError(f"matrix must be six integers of 16 bits, got {list(matrix)}")
    if 2 * nv12.shape[1] * nv12.shape[2] > _MAX_VALUES:
        raise ValueError(f"a frame must hold at most {_MAX_VALUES} values, got {_describe(nv12)}")
    if resolve_backend(backend, nv12.device) == "torch":
        return frames_reference.nv12_to_rgb(nv12, matrix)
    return _kernels().nv12_to_rgb(nv12.contiguous(), matrix)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _kernels() -> Any:
    # Triton itself is imported at the first call.
    from itg_kernels import frame_kernels

    return frame_kernels
