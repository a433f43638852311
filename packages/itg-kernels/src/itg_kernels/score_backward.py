"""Triton: gradients of the frame scores in one read of the hidden states and one write.

With a = grad_logit / tokens of the frame, and r and p of every row as `score_forward` has them:

    dx = a r (u - (r^2 p / D) x)        du = sum over rows of a r x

No element of dx needs another one, so rows and columns are cut freely; du is summed in registers
over a program's rows, written once a program, and added up in a fixed order by a second, small
kernel, which also makes both weights' gradients from it.

All programs together walk from the first row to the last, so that what is read and written at one
time lies close together; each keeping to rows of its own took 1 us more of 82 on an H200.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.launch import (
    are_aligned,
    cdiv,
    launch,
    next_power_of_2,
    num_sms,
    on_device,
    stream_dtype,
)
from itg_kernels.score_forward import load_rows, load_saved, load_u


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BackwardConfig:
    """How a backward launch is cut up; found by `benchmarks/tune.py`. Compared by identity."""

    block_rows: int = 1
    max_block_d: int = 512
    programs_per_sm: int = 2
    num_warps: int = 1
    num_stages: int = 3
    max_registers: int | None = None
    finish_rows: int = 256
    finish_columns: int = 8
    finish_warps: int = 4


BACKWARD = BackwardConfig()


@triton.jit
def _load_coefficients(grad_logits_ptr, scale, saved_ptr, num_rows, row, row_inside):
    """Of rows: a r, r^2 p / D, and whether they lie in a frame at all."""
    row_scale, pull, f = load_saved(saved_ptr, num_rows, row, row_inside)
    in_frame = f >= 0
    grad = tl.load(grad_logits_ptr + f, mask=in_frame, other=0.0).to(tl.float32) * scale
    return grad * row_scale, pull, in_frame


@triton.jit(do_not_specialize=["num_rows", "num_steps", "rows_per_step"])
def _score_backward_kernel(
    grad_logits_ptr, grad_scale_ptr, hidden_ptr, residual_ptr, norm_weight_ptr, head_weight_ptr,
    saved_ptr, grad_hidden_ptr, grad_u_ptr,
    num_rows, num_steps, rows_per_step, D, stride_h, stride_r,
    HAS_RESIDUAL: tl.constexpr, HAS_SCALE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Program (i, j): its blocks of rows, columns of block j; its sum for du goes to row i."""
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_inside = d < D
    u = load_u(norm_weight_ptr, head_weight_ptr, d, d_inside)
    scale = 1.0
    if HAS_SCALE:
        scale = tl.load(grad_scale_ptr).to(tl.float32)
    grad_u = tl.zeros([BLOCK_D], tl.float32)
    first = chunk * BLOCK_R + tl.arange(0, BLOCK_R)
    for step in tl.range(0, num_steps, num_stages=NUM_STAGES):
        row = first + step * rows_per_step.to(tl.int64)
        row_inside = row < num_rows
        # Text rows are read too: waiting for their frame before the large load would cost more.
        x = load_rows(
            hidden_ptr, residual_ptr, row, row_inside, d, d_inside, stride_h, stride_r,
            HAS_RESIDUAL,
        )  # fmt: skip
        coefficient, pull, in_frame = _load_coefficients(
            grad_logits_ptr, scale, saved_ptr, num_rows, row, row_inside
        )
        # Rows of text may hold anything, NaN too.
        x = tl.where(in_frame[:, None], x, 0.0)
        grad_x = coefficient[:, None] * (u[None, :] - pull[:, None] * x)
        tl.store(
            grad_hidden_ptr + row[:, None] * D + d[None, :],
            grad_x.to(grad_hidden_ptr.dtype.element_ty),
            mask=row_inside[:, None] & d_inside[None, :],
        )
        grad_u += tl.sum(coefficient[:, None] * x, axis=0)
    tl.store(grad_u_ptr + chunk * D + d, grad_u, mask=d_inside)


@triton.jit(do_not_specialize=["num_chunks", "num_frames"])
def _finish_weights_kernel(
    grad_u_ptr, grad_logits_ptr, grad_scale_ptr, norm_weight_ptr, head_weight_ptr,
    grad_norm_weight_ptr, grad_head_weight_ptr, grad_bias_ptr, num_chunks, num_frames, D,
    HAS_SCALE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Adds the partial sums of du, a block of columns a program; the last program does the bias."""
    block = tl.program_id(0)
    if block < tl.num_programs(0) - 1:
        d = block * BLOCK_D + tl.arange(0, BLOCK_D)
        norm_weight = tl.load(norm_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        head_weight = tl.load(head_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        total_PD = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
        for base in range(0, num_chunks, BLOCK_P):
            i = base + tl.arange(0, BLOCK_P)
            total_PD += tl.load(
                grad_u_ptr + i[:, None] * D + d[None, :],
                mask=(i < num_chunks)[:, None] & (d < D)[None, :], other=0.0,
            )  # fmt: skip
        grad_u = tl.sum(total_PD, axis=0)
        grad_norm = (grad_u * head_weight).to(grad_norm_weight_ptr.dtype.element_ty)
        grad_head = (grad_u * norm_weight).to(grad_head_weight_ptr.dtype.element_ty)
        tl.store(grad_norm_weight_ptr + d, grad_norm, mask=d < D)
        tl.store(grad_head_weight_ptr + d, grad_head, mask=d < D)
    else:
        total_F = tl.zeros([BLOCK_F], tl.float32)
        for base in range(0, num_frames, BLOCK_F):
            f = base + tl.arange(0, BLOCK_F)
            total_F += tl.load(grad_logits_ptr + f, mask=f < num_frames, other=0.0).to(tl.float32)
        total = tl.sum(total_F, axis=0)
        if HAS_SCALE:
            total *= tl.load(grad_scale_ptr).to(tl.float32)
        tl.store(grad_bias_ptr, total.to(grad_bias_ptr.dtype.element_ty))


def score_backward(
    grad_logits: Tensor,
    grad_scale: Tensor | None,
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    saved: Tensor,
    config: BackwardConfig = BACKWARD,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden and residual, norm weight, head weight and bias.

    The first is in the type of the wider of the two: of a residual in float32 beside hidden states
    in float16, float16 would lose all that is small.

    `grad_scale`, a scalar, multiplies `grad_logits`: the gradient of a loss whose own gradient
    the forward pass has already left in `grad_logits`.
    """
    num_rows, width = hidden.shape
    device = hidden.device
    grad_type = stream_dtype(hidden, residual)
    grad_hidden = torch.empty((num_rows, width), dtype=grad_type, device=device)
    grad_norm_weight = torch.empty_like(norm_weight)
    grad_head_weight = torch.empty_like(head_weight)
    grad_bias = torch.empty_like(head_bias)
    num_blocks = cdiv(num_rows, config.block_rows)
    num_chunks = min(num_blocks, num_sms(device) * config.programs_per_sm)
    grad_u = torch.empty((num_chunks, width), dtype=torch.float32, device=device)
    block_d = min(config.max_block_d, next_power_of_2(width))
    has_scale = grad_scale is not None
    scale = grad_scale if has_scale else grad_logits
    other = hidden if residual is None else residual
    stride_h, stride_r = hidden.stride(0), other.stride(0)
    key = None
    if are_aligned(grad_logits, scale, hidden, other, norm_weight, head_weight, saved):
        key = (
            device, hidden.dtype, residual is None, other.dtype, norm_weight.dtype,
            head_weight.dtype, head_bias.dtype, width, stride_h, stride_r, has_scale, config,
            grad_logits.dtype, scale.dtype, num_rows >> 31,
        )  # fmt: skip
    with on_device(hidden):
        if num_chunks:
            launch(
                _score_backward_kernel,
                (num_chunks, cdiv(width, block_d), 1),
                None if key is None else ("backward", *key),
                (
                    grad_logits, scale, hidden, other, norm_weight, head_weight, saved,
                    grad_hidden, grad_u, num_rows, cdiv(num_blocks, num_chunks),
                    num_chunks * config.block_rows, width, stride_h, stride_r,
                ),
                (
                    residual is not None, has_scale, config.block_rows, block_d,
                    config.num_stages,
                ),
                {"num_warps": config.num_warps, "maxnreg": config.max_registers},
            )  # fmt: skip
        launch(
            _finish_weights_kernel,
            (cdiv(width, config.finish_columns) + 1, 1, 1),
            None if key is None else ("finish weights", *key),
            (
                grad_u, grad_logits, scale, norm_weight, head_weight, grad_norm_weight,
                grad_head_weight, grad_bias, num_chunks, grad_logits.shape[0], width,
            ),
            (has_scale, config.finish_rows, config.finish_columns, 1024),
            {"num_warps": config.finish_warps},
        )  # fmt: skip
    return grad_hidden, grad_norm_weight, grad_head_weight, grad_bias
