"""Triton: frames from a decoder to a square of RGB, in int32. Oracles: `frames_reference`.

Both kernels read and write bytes that lie side by side along the innermost axis. Neither is near
the GPU's limits where a network follows: at 720p a frame costs some 15 million products.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.frames_reference import PRECISION_BITS, filter_taps
from itg_kernels.launch import are_aligned, cdiv, launch, next_power_of_2, on_device

_PRECISION_BITS = tl.constexpr(PRECISION_BITS)
_HALF = tl.constexpr(1 << (PRECISION_BITS - 1))


@triton.jit(do_not_specialize=["M"])
def _resample_kernel(
    in_ptr, starts_ptr, weights_ptr, out_ptr, M, L, K, S, TAPS, num_blocks,
    BLOCK_M: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """[M, L, K] -> [M, S, K]: BLOCK_M rows share the weights of BLOCK_J of their S * K values."""
    program = tl.program_id(0)
    # int64 before any stride product: all frames together pass 2**31, one row does not
    m = (program // num_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = (program % num_blocks) * BLOCK_J + tl.arange(0, BLOCK_J)
    inside_j = j < S * K
    inside = (m < M)[:, None] & inside_j[None, :]
    s = j // K
    start = tl.load(starts_ptr + s, mask=inside_j, other=0)
    rows = in_ptr + m[:, None] * L * K
    at = start * K + j % K
    # int32 holds the sum of whatever order: see `filter_taps`
    acc = tl.full([BLOCK_M, BLOCK_J], _HALF, tl.int32)
    for tap in range(TAPS):
        weight = tl.load(weights_ptr + tap * S + s, mask=inside_j, other=0)
        there = inside & (start + tap < L)[None, :]
        pixel = tl.load(rows + (at + tap * K)[None, :], mask=there, other=0)
        acc += pixel.to(tl.int32) * weight[None, :]
    grey = tl.minimum(tl.maximum(acc >> _PRECISION_BITS, 0), 255)
    tl.store(out_ptr + m[:, None] * S * K + j[None, :], grey.to(tl.uint8), mask=inside)


@triton.jit
def _nv12_kernel(
    nv12_ptr, out_ptr, H, W, OFFSET, CY, CRV, CBU, CGU, CGV, num_blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """[N, H * 3 / 2, W] -> [N, H, W, 3]: a program makes BLOCK bytes of one frame's output."""
    program = tl.program_id(0)
    frame = (program // num_blocks).to(tl.int64)
    i = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = i < H * W * 3
    pixel = i // 3
    channel = i % 3
    y = pixel // W
    x = pixel % W
    planes = nv12_ptr + frame * (H * W + H * W // 2)
    chroma_at = H * W + (y // 2) * W + (x // 2) * 2
    luma = tl.load(planes + pixel, mask=inside, other=0).to(tl.int32)
    u = (tl.load(planes + chroma_at, mask=inside, other=128).to(tl.int32) - 128) * 8
    v = (tl.load(planes + chroma_at + 1, mask=inside, other=128).to(tl.int32) - 128) * 8
    red = (v * CRV) >> 16
    green = ((u * CGU) >> 16) + ((v * CGV) >> 16)
    blue = (u * CBU) >> 16
    colour = tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
    # a byte, by 8, by 16 bits: all products stay within 27 bits
    grey = (((luma - OFFSET) * 8 * CY) >> 16) + colour
    grey = tl.minimum(tl.maximum(grey, 0), 255)
    tl.store(out_ptr + frame * H * W * 3 + i, grey.to(tl.uint8), mask=inside)


def resample(frames: Tensor, size: int) -> Tensor:
    """`frames_reference.resample`."""
    frames = frames.contiguous()
    num_rows, length, inner = frames.shape
    starts, weights = _taps_on(length, size, frames.device)
    out = frames.new_empty((num_rows, size, inner))
    block_j = min(512, next_power_of_2(size * inner))
    # rows of a horizontal pass are many, and share weights; in a vertical one they are frames
    block_m = 4 if num_rows >= 4 else 1
    num_blocks = cdiv(size * inner, block_j)
    _launch(
        _resample_kernel,
        cdiv(num_rows, block_m) * num_blocks,
        (frames, starts, weights, out),
        (num_rows,),
        (length, inner, size, len(weights), num_blocks),
        (block_m, block_j),
    )
    return out


def nv12_to_rgb(nv12: Tensor, matrix: Sequence[int]) -> Tensor:
    """`frames_reference.nv12_to_rgb`, of planes that lie side by side."""
    num_frames, height, width = len(nv12), nv12.shape[1] * 2 // 3, nv12.shape[2]
    out = nv12.new_empty((num_frames, height, width, 3))
    block = min(1024, next_power_of_2(height * width * 3))
    num_blocks = cdiv(height * width * 3, block)
    numbers = (height, width, *matrix, num_blocks)
    _launch(_nv12_kernel, num_frames * num_blocks, (nv12, out), (), numbers, (block,))
    return out


def _taps_on(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    starts, weights = _copy_taps(length, size, device)
    if device.type == "cuda":
        # many streams may read a table that one of them made, and that the cache may drop
        stream = torch.cuda.current_stream(device)
        starts.record_stream(stream)
        weights.record_stream(stream)
    return starts, weights


@lru_cache(maxsize=64)
def _copy_taps(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # copies from pageable memory are waited for, so a table is there for every stream
    starts, weights = filter_taps(length, size)
    return starts.to(device), weights.to(device)


def _launch(
    kernel: object,
    num_programs: int,
    tensors: tuple[Tensor, ...],
    counts: tuple[int, ...],
    numbers: tuple[int, ...],
    constants: tuple[int, ...],
) -> None:
    """Launches; `counts` are the integers that Triton compiles nothing for."""
    if num_programs == 0:
        return
    args = (*tensors, *counts, *numbers)
    key = None
    if are_aligned(*tensors):
        key = (id(kernel), tensors[0].device, numbers, constants)
    with on_device(tensors[0]):
        launch(kernel, (num_programs, 1, 1), key, args, constants, {"num_warps": 4})
