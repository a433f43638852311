"""Triton: gradients of the frame scores in one read of the hidden states and one write.

With a = grad_logit / tokens of the frame, and r and p of every row as `frame_score` has them:

    dx = a r (u - (r^2 p / D) x)        du = sum over rows of a r x

No element of dx needs another one, so rows and columns are cut freely; du is summed in registers
over a program's rows, written once a program, and added up in a fixed order by a second, small
kernel, which also makes both weights' gradients from it.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.frame_score import load_rows, load_u, on_device


@dataclass(frozen=True, kw_only=True, slots=True)
class BackwardConfig:
    """How a backward launch is cut up; found by `benchmarks/tune.py`."""

    block_rows: int = 2
    max_block_d: int = 512
    programs_per_sm: int = 2
    num_warps: int = 2
    num_stages: int = 2
    max_registers: int | None = None
    finish_columns: int = 8


BACKWARD = BackwardConfig()


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def _score_backward_kernel(
    grad_logits_ptr, grad_scale_ptr, hidden_ptr, residual_ptr, norm_weight_ptr, head_weight_ptr,
    row_scale_ptr, row_pull_ptr, row_frame_ptr, grad_hidden_ptr, grad_u_ptr,
    num_rows, rows_per_program, D, stride_h, stride_r,
    HAS_RESIDUAL: tl.constexpr, HAS_SCALE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Program (i, j): rows of chunk i, columns of block j; its sum for du goes to row i."""
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_inside = d < D
    u = load_u(norm_weight_ptr, head_weight_ptr, d, d_inside)
    scale = 1.0
    if HAS_SCALE:
        scale = tl.load(grad_scale_ptr).to(tl.float32)
    grad_u = tl.zeros([BLOCK_D], tl.float32)
    first = chunk * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    for base in tl.range(first, last, BLOCK_R, num_stages=NUM_STAGES):
        row = base + tl.arange(0, BLOCK_R)
        row_inside = row < last
        # Text rows are read too: waiting for row_frame before the large load would cost more.
        x = load_rows(
            hidden_ptr, residual_ptr, row, row_inside, d, d_inside, stride_h, stride_r,
            HAS_RESIDUAL,
        )  # fmt: skip
        f = tl.load(row_frame_ptr + row, mask=row_inside, other=-1).to(tl.int64)
        in_frame = f >= 0
        grad = tl.load(grad_logits_ptr + f, mask=in_frame, other=0.0).to(tl.float32) * scale
        coefficient = grad * tl.load(row_scale_ptr + row, mask=in_frame, other=0.0)
        pull = tl.load(row_pull_ptr + row, mask=in_frame, other=0.0)
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
        total_PD = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
        for base in range(0, num_chunks, BLOCK_P):
            i = base + tl.arange(0, BLOCK_P)
            total_PD += tl.load(
                grad_u_ptr + i[:, None] * D + d[None, :],
                mask=(i < num_chunks)[:, None] & (d < D)[None, :], other=0.0,
            )  # fmt: skip
        grad_u = tl.sum(total_PD, axis=0)
        norm_weight = tl.load(norm_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        head_weight = tl.load(head_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
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


@lru_cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def score_backward(
    grad_logits: Tensor,
    grad_scale: Tensor | None,
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    row_scale: Tensor,
    row_pull: Tensor,
    row_frame: Tensor,
    config: BackwardConfig = BACKWARD,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden (and residual), norm weight, head weight and bias.

    `grad_scale`, a scalar, multiplies `grad_logits`: the gradient of a loss whose own gradient
    the forward pass has already left in `grad_logits`.
    """
    num_rows, width = hidden.shape
    grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    grad_norm_weight = torch.empty_like(norm_weight)
    grad_head_weight = torch.empty_like(head_weight)
    grad_bias = torch.empty_like(head_bias)
    num_programs = max(1, _num_sms(hidden.device) * config.programs_per_sm)
    per_program = triton.cdiv(triton.cdiv(max(num_rows, 1), num_programs), config.block_rows)
    per_program *= config.block_rows
    num_chunks = triton.cdiv(num_rows, per_program)
    grad_u = hidden.new_empty((num_chunks, width), dtype=torch.float32)
    block_d = min(config.max_block_d, triton.next_power_of_2(width))
    scale = grad_logits if grad_scale is None else grad_scale
    with on_device(hidden):
        if num_chunks:
            _score_backward_kernel[(num_chunks, triton.cdiv(width, block_d))](
                grad_logits, scale, hidden, hidden if residual is None else residual,
                norm_weight, head_weight, row_scale, row_pull, row_frame, grad_hidden, grad_u,
                num_rows, per_program, width, hidden.stride(0),
                0 if residual is None else residual.stride(0),
                residual is not None, grad_scale is not None, config.block_rows, block_d,
                config.num_stages,
                num_warps=config.num_warps, maxnreg=config.max_registers,
            )  # fmt: skip
        _finish_weights_kernel[(triton.cdiv(width, config.finish_columns) + 1,)](
            grad_u, grad_logits, scale, norm_weight, head_weight,
            grad_norm_weight, grad_head_weight, grad_bias, num_chunks, grad_logits.numel(),
            width, grad_scale is not None, 64, config.finish_columns, 1024, num_warps=4,
        )  # fmt: skip
    return grad_hidden, grad_norm_weight, grad_head_weight, grad_bias
