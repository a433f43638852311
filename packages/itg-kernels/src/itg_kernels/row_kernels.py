"""Triton: what lies between the matrix products of a transformer, one read and one write each.

One program per row (per row and block of columns where no row-wide value is needed), float32
inside. With FP8 a row's result is divided by a scale that brings its largest value to the largest
8-bit number, and the scales are stored beside it. Oracles: `rows_reference`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.launch import are_aligned, cdiv, launch, next_power_of_2, on_device

_FP8_MAX = tl.constexpr(448.0)
_TINY = tl.constexpr(1e-12)

_LONG_ROW = 8192
"""Rows up to here go in blocks of 1024 columns, which leave few lanes idle; longer ones in 4096."""


@triton.jit
def _larger(a, b):
    """NaN where either is. Triton's own maximum takes the other one: NaN would become a number."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _peak_of(y):
    return tl.reduce(tl.abs(y), 0, _larger)


@triton.jit
def _scale_of(peak):
    return _larger(peak, _TINY) / _FP8_MAX


@triton.jit
def _store(out_ptr, at, y, scale, inside, FP8: tl.constexpr):
    if FP8:
        y = _larger(y * (1 / scale), -_FP8_MAX)
        y = tl.minimum(y, _FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_kernel(
    hidden_ptr, pending_ptr, weight_ptr, bias_ptr, after_ptr, out_ptr, scale_ptr, D, eps,
    PENDING: tl.constexpr, LAYER: tl.constexpr, AFTER: tl.constexpr, FP8: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    at = row * D + d
    x = tl.load(hidden_ptr + at, mask=inside, other=0.0)
    if PENDING:
        total = x.to(tl.float32) + tl.load(pending_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # rounded as the stream holds it
        x = total.to(hidden_ptr.dtype.element_ty)
    wide = x.to(tl.float32)
    if AFTER:
        after = tl.load(after_ptr + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden_ptr + at, (wide + after).to(hidden_ptr.dtype.element_ty), mask=inside)
    elif PENDING:
        tl.store(hidden_ptr + at, x, mask=inside)
    if LAYER:
        wide = tl.where(inside, wide - tl.sum(wide, axis=0) / D, 0.0)
    y = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    y *= tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    if LAYER:
        y += tl.load(bias_ptr + d, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0
    if FP8:
        scale = _scale_of(_peak_of(y))
        tl.store(scale_ptr + row, scale)
    _store(out_ptr, at, y, scale, inside, FP8)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    # below -80 the exponential leaves float32, and the result is as good as 0
    return 1 / (1 + tl.exp(-tl.maximum(x, -80.0)))


@triton.jit
def _activated(x_ptr, at, gate_at, inside, GATED: tl.constexpr):
    """silu(gate) * up, or GELU in its tanh form, written as x * sigmoid(...) alike."""
    x = tl.load(x_ptr + gate_at, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        return x * sigmoid(x) * tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # 0.5 (1 + tanh(u)) = sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3)
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def _act_kernel(
    x_ptr, out_ptr, D, GATED: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < D
    gate_at = row * (2 * D if GATED else D) + d
    y = _activated(x_ptr, gate_at + D, gate_at, inside, GATED)
    tl.store(out_ptr + row * D + d, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _row_part(x_ptr, start, d, D, inside, ACT: tl.constexpr, GATED: tl.constexpr):
    if ACT:
        return _activated(x_ptr, start + D + d, start + d, inside, GATED)
    return tl.load(x_ptr + start + d, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _act_fp8_kernel(
    x_ptr, out_ptr, scale_ptr, D, ACT: tl.constexpr, GATED: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """A row stays in registers, in two parts: of 4304 columns, one of 4096 and one of 256."""
    row = tl.program_id(0).to(tl.int64)
    start = row * (2 * D if GATED else D)
    d = tl.arange(0, MAIN)
    rest_d = MAIN + tl.arange(0, REST)
    inside, rest_inside = d < D, rest_d < D
    y = _row_part(x_ptr, start, d, D, inside, ACT, GATED)
    rest = _row_part(x_ptr, start, rest_d, D, rest_inside, ACT, GATED)
    scale = _scale_of(_larger(_peak_of(y), _peak_of(rest)))
    tl.store(scale_ptr + row, scale)
    _store(out_ptr, row * D + d, y, scale, inside, True)
    _store(out_ptr, row * D + rest_d, rest, scale, rest_inside, True)


@triton.jit
def _rotate_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr, H, HALF, stride_x,
    BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H)[:, None]
    i = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (h < H) & (i < HALF)
    cos = tl.load(cos_ptr + row * HALF + i, mask=i < HALF, other=0.0)
    sin = tl.load(sin_ptr + row * HALF + i, mask=i < HALF, other=0.0)
    left_at = h * 2 * HALF + i
    left = tl.load(x_ptr + row * stride_x + left_at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(x_ptr + row * stride_x + left_at + HALF, mask=inside, other=0.0).to(tl.float32)
    out_ptr += row * H * 2 * HALF
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + left_at, (left * cos - right * sin).to(dtype), mask=inside)
    tl.store(out_ptr + left_at + HALF, (right * cos + left * sin).to(dtype), mask=inside)


def norm_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pending: Tensor | None,
    add_after: Tensor | None,
    eps: float,
    out: Tensor,
    scales: Tensor | None,
) -> None:
    """`rows.norm_rows` into `out`, and `scales` where that is 8-bit."""
    num_rows, width = hidden.shape
    block = next_power_of_2(width)
    flags = (pending is not None, bias is not None, add_after is not None, scales is not None)
    launch_rows(
        _norm_kernel,
        (num_rows, 1, 1),
        (hidden, pending, weight, bias, add_after, out, scales),
        (width, eps),
        (*flags, block),
        max(1, min(16, block // 1024)),
    )


def activate_rows(x: Tensor, gated: bool, out: Tensor) -> None:
    """SiLU of the left half times the right half, or tanh GELU, into `out`."""
    num_rows, width = out.shape
    block, num_warps = _blocks(width)
    grid = (num_rows, cdiv(width, block), 1)
    launch_rows(_act_kernel, grid, (x, out), (width,), (gated, block), num_warps)


def quantise_rows(x: Tensor, act: bool, gated: bool, out: Tensor, scales: Tensor) -> None:
    """The same, or nothing before, in 8 bits."""
    num_rows, width = out.shape
    # the largest power of two that fits, and what is left; where nothing is, masked columns
    main = max(1, next_power_of_2(width + 1) // 2)
    rest = next_power_of_2(max(16, width - main))
    launch_rows(
        _act_fp8_kernel,
        (num_rows, 1, 1),
        (x, out, scales),
        (width,),
        (act, gated, main, rest),
        max(1, min(16, main // 1024)),
    )


def _blocks(width: int) -> tuple[int, int]:
    """Columns at once, and warps, as measured for 4304 and 18944 columns."""
    block = min(1024 if width <= _LONG_ROW else 4096, next_power_of_2(width))
    return block, max(1, min(16, block // 256 if width > _LONG_ROW else block // 512))


def rotate_rows(heads: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """`rows.rotate_rows` into `out`."""
    num_rows, num_heads, head_dim = heads.shape
    half = head_dim // 2
    blocks = (next_power_of_2(num_heads), next_power_of_2(half))
    launch_rows(
        _rotate_kernel,
        (num_rows, 1, 1),
        (heads, cos, sin, out),
        (num_heads, half, heads.stride(0)),
        blocks,
        4,
    )


def launch_rows(
    kernel: object,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    constants: tuple[object, ...],
    num_warps: int,
) -> None:
    """Launches a kernel of rows on the device of its tensors; does nothing where there are none.

    Args:
        kernel: Takes `tensors`, `numbers` and `constants`, in this order.
        grid: Programs.
        tensors: None where the kernel looks at nothing.
        numbers: Specialised on, each.
        constants: Known when it is compiled.
        num_warps: Of a program.
    """
    if grid[0] == 0:
        return
    given = [tensor for tensor in tensors if tensor is not None]
    # any pointer serves where none is looked at
    args = tuple(given[0] if tensor is None else tensor for tensor in tensors)
    types = tuple(tensor.dtype for tensor in args)
    key = None
    if are_aligned(*args):
        key = (id(kernel), given[0].device, types, numbers, constants)
    with on_device(given[0]), torch.no_grad():
        launch(kernel, grid, key, (*args, *numbers), constants, {"num_warps": num_warps})
