"""Triton: the passes of `training`, each with its gradient. M rows of D columns, N numbers in all.

With r = (|x|^2 / D + eps)^-1/2 of a row x, and g the gradient of its norm:

    dx = r (w g - r^2 (w g . x) / D x)        dw = sum over rows of r g x

A program takes every so many rows of the norm's backward pass and keeps its sum for dw in
registers; the sums are added up afterwards, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.launch import cdiv, next_power_of_2, num_sms
from itg_kernels.row_kernels import launch_rows, norm_rows, rotate_rows, sigmoid

_PROGRAMS_PER_SM = 4
_BLOCK_N = 4096


@triton.jit
def _norm_backward_kernel(
    x_ptr, weight_ptr, grad_ptr, grad_x_ptr, grad_weight_ptr,
    M, D, rows_per_step, num_steps, eps,
    WEIGHT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    d_inside = d < D
    weight = tl.load(weight_ptr + d, mask=d_inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK_D], tl.float32)
    for step in tl.range(0, num_steps):
        row = program + step * rows_per_step
        inside = d_inside & (row < M)
        at = row * D + d
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        pulled = weight * grad
        along = tl.sum(pulled * x, axis=0) / D
        grad_x = scale * (pulled - scale * scale * along * x)
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        if WEIGHT:
            grad_weight += scale * grad * x
    if WEIGHT:
        tl.store(grad_weight_ptr + program * D + d, grad_weight, mask=d_inside)


@triton.jit
def _gate_kernel(gate_ptr, up_ptr, out_ptr, N, BLOCK_N: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    gate = tl.load(gate_ptr + n, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + n, mask=inside, other=0.0).to(tl.float32)
    y = gate * sigmoid(gate) * up
    tl.store(out_ptr + n, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gate_backward_kernel(
    gate_ptr, up_ptr, grad_ptr, grad_gate_ptr, grad_up_ptr, N, BLOCK_N: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    gate = tl.load(gate_ptr + n, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + n, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + n, mask=inside, other=0.0).to(tl.float32)
    share = sigmoid(gate)
    grad_up = grad * gate * share
    grad_gate = grad * up * share * (1 + gate * (1 - share))
    dtype = grad_gate_ptr.dtype.element_ty
    tl.store(grad_gate_ptr + n, grad_gate.to(dtype), mask=inside)
    tl.store(grad_up_ptr + n, grad_up.to(dtype), mask=inside)


def norm_forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rows [M, D], each normed."""
    out = torch.empty_like(x)
    norm_rows(x, weight, None, None, None, eps, out, None)
    return out


def norm_backward(
    x: Tensor, weight: Tensor, grad: Tensor, eps: float, wants_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the rows, and of the weight where it is wanted."""
    num_rows, width = x.shape
    num_programs = max(1, min(num_rows, _PROGRAMS_PER_SM * num_sms(x.device)))
    grad_x = torch.empty_like(x)
    sums = x.new_zeros((num_programs if wants_weight else 0, width), dtype=torch.float32)
    block = next_power_of_2(width)
    launch_rows(
        _norm_backward_kernel,
        (num_programs if num_rows else 0, 1, 1),
        (x, weight, grad, grad_x, sums),
        (num_rows, width, num_programs, cdiv(num_rows, num_programs), eps),
        (wants_weight, block),
        max(1, min(16, block // 512)),
    )
    return grad_x, sums.sum(0).to(weight.dtype) if wants_weight else None


def gate_forward(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    out = torch.empty_like(gate)
    _launch_flat(_gate_kernel, gate, up, out)
    return out


def gate_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    _launch_flat(_gate_backward_kernel, gate, up, grad, grad_gate, grad_up)
    return grad_gate, grad_up


def turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [M, H, d], turned; the gradient is the same with -sin."""
    _, _, head_dim = heads.shape
    if heads.stride(2) != 1 or heads.stride(1) != head_dim:
        heads = heads.contiguous()
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    rotate_rows(heads, cos.contiguous(), sin.contiguous(), out)
    return out


def _launch_flat(kernel: object, *tensors: Tensor) -> None:
    size = tensors[0].numel()
    grid = (cdiv(size, _BLOCK_N), 1, 1)
    launch_rows(kernel, grid, tensors, (size,), (_BLOCK_N,), 8)
