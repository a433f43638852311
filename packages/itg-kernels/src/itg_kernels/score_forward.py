"""Triton: frame scores in one read of the hidden states; their gradients take one more.

S rows, D width, F frames, B samples. With u = norm_weight * head_weight (float32) and, per row x,
r = (|x|^2 / D + eps)^-1/2 and p = x . u, a frame's logit is mean(r p) + bias: one pass over its
rows, no normalised copy. Backward, with a = grad_logit / tokens of the frame:

    dx = a r (u - (r^2 p / D) x)        du = sum over rows of a r x
    d norm_weight = head_weight du      d head_weight = norm_weight du

so forward leaves r / tokens ("scale"), r^2 p / D ("pull") and the frame of each row behind for
`score_backward`: `saved`, int32 [3, S], the first two as bits of float32, the frame of text
-1. Bytes for 2-byte hidden states: 2 S D forward, 4 S D backward. Sums over programs are added up
by one program in a fixed order; there is no float atomic, so every run gives the same bits.
Oracle: `reference.frame_scores`.

A work item is a slice of a frame. Frames are cut where they are long on average, so that 64 frames
of 256 tokens fill a GPU as 512 of 25 do; uncut frames need no second launch.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.launch import are_aligned, cdiv, launch, next_power_of_2, on_device

MAX_BLOCK_D = 8192


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ForwardConfig:
    """How a forward launch is cut up; found by `benchmarks/tune.py`. Compared by identity."""

    block_rows: int = 1
    max_block_d: int = MAX_BLOCK_D
    rows_per_item: int = 32
    num_warps: int = 2
    num_stages: int = 4
    max_registers: int | None = None


FORWARD = ForwardConfig()


@triton.jit
def load_rows(
    hidden_ptr, residual_ptr, row, row_inside, d, d_inside, stride_h, stride_r,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Rows of the residual stream, widened; zero outside."""
    inside = row_inside[:, None] & d_inside[None, :]
    x = tl.load(
        hidden_ptr + row[:, None] * stride_h + d[None, :],
        mask=inside, other=0.0, eviction_policy="evict_first",
    ).to(tl.float32)  # fmt: skip
    if HAS_RESIDUAL:
        x += tl.load(
            residual_ptr + row[:, None] * stride_r + d[None, :],
            mask=inside, other=0.0, eviction_policy="evict_first",
        ).to(tl.float32)  # fmt: skip
    return x  # [rows, d] float32


@triton.jit
def load_u(norm_weight_ptr, head_weight_ptr, d, d_inside):
    """The norm's weight times the head's."""
    norm_weight = tl.load(norm_weight_ptr + d, mask=d_inside, other=0.0).to(tl.float32)
    head_weight = tl.load(head_weight_ptr + d, mask=d_inside, other=0.0).to(tl.float32)
    return norm_weight * head_weight


@triton.jit
def _load_span(cu_frames_ptr, f, num_rows, CU_STRIDE: tl.constexpr):
    # Held inside the rows: the values cannot be checked on the host without waiting for the device.
    start = tl.load(cu_frames_ptr + f * CU_STRIDE).to(tl.int64)
    end = tl.load(cu_frames_ptr + f * CU_STRIDE + 1).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), num_rows)
    return start, tl.minimum(tl.maximum(end, start), num_rows)


@triton.jit
def _save_rows(saved_ptr, num_rows, row, inside, scale, pull, frame):
    num_rows = num_rows.to(tl.int64)
    # One buffer is one allocation.
    tl.store(saved_ptr + row, scale.to(tl.int32, bitcast=True), mask=inside)
    tl.store(saved_ptr + num_rows + row, pull.to(tl.int32, bitcast=True), mask=inside)
    tl.store(saved_ptr + 2 * num_rows + row, frame, mask=inside)


@triton.jit
def load_saved(saved_ptr, num_rows, row, inside):
    """Scale, pull and frame of rows; the frame is -1 in text and outside."""
    num_rows = num_rows.to(tl.int64)
    scale = tl.load(saved_ptr + row, mask=inside, other=0).to(tl.float32, bitcast=True)
    pull = tl.load(saved_ptr + num_rows + row, mask=inside, other=0).to(tl.float32, bitcast=True)
    return scale, pull, tl.load(saved_ptr + 2 * num_rows + row, mask=inside, other=-1)


@triton.jit
def _save_text_rows(saved_ptr, num_rows, first, last, BLOCK: tl.constexpr):
    for base in range(first, last, BLOCK):
        row = base + tl.arange(0, BLOCK)
        zeros = tl.zeros([BLOCK], tl.float32)
        frame = tl.full([BLOCK], -1, tl.int32)
        _save_rows(saved_ptr, num_rows, row, row < last, zeros, zeros, frame)


@triton.jit(do_not_specialize=["num_rows", "num_frames", "num_slices"])
def _score_forward_kernel(
    hidden_ptr, residual_ptr, norm_weight_ptr, head_weight_ptr, head_bias_ptr, cu_frames_ptr,
    out_ptr, saved_ptr, num_rows, num_frames, num_slices, D, stride_h, stride_r, eps,
    CU_STRIDE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    WHOLE_FRAMES: tl.constexpr, WHOLE_ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    d0 = tl.arange(0, BLOCK_D)
    # First of all, so that no load waits for the frame's span to come.
    if WHOLE_ROWS:
        u = load_u(norm_weight_ptr, head_weight_ptr, d0, d0 < D)
    item = tl.program_id(0)
    f = (item // num_slices).to(tl.int64)
    start, end = _load_span(cu_frames_ptr, f, num_rows, CU_STRIDE)
    num_tokens = tl.maximum(end - start, 1).to(tl.float32)
    if WHOLE_FRAMES:
        first = start
        last = end
    else:
        slice_rows = tl.cdiv(tl.cdiv(end - start, num_slices), BLOCK_R) * BLOCK_R
        first = start + (item % num_slices) * slice_rows
        last = tl.minimum(first + slice_rows, end)

    total = tl.zeros([BLOCK_R], tl.float32)
    for base in tl.range(first, last, BLOCK_R, num_stages=NUM_STAGES):
        row = base + tl.arange(0, BLOCK_R)
        row_inside = row < last
        if WHOLE_ROWS:
            x = load_rows(
                hidden_ptr, residual_ptr, row, row_inside, d0, d0 < D, stride_h, stride_r,
                HAS_RESIDUAL,
            )  # fmt: skip
            squares = tl.sum(x * x, axis=1)
            proj = tl.sum(x * u[None, :], axis=1)
        else:
            squares_RD = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
            proj_RD = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
            for offset in range(0, D, BLOCK_D):
                d = offset + d0
                u = load_u(norm_weight_ptr, head_weight_ptr, d, d < D)
                x = load_rows(
                    hidden_ptr, residual_ptr, row, row_inside, d, d < D, stride_h, stride_r,
                    HAS_RESIDUAL,
                )  # fmt: skip
                squares_RD += x * x
                proj_RD += x * u[None, :]
            squares = tl.sum(squares_RD, axis=1)
            proj = tl.sum(proj_RD, axis=1)
        rstd = tl.rsqrt(squares / D + eps)
        # Rows past the end read as zero, so their proj is zero too.
        total += rstd * proj
        if SAVE:
            frame = tl.zeros([BLOCK_R], tl.int32) + f.to(tl.int32)
            _save_rows(
                saved_ptr, num_rows, row, row_inside, rstd / num_tokens, rstd * rstd * proj / D,
                frame,
            )  # fmt: skip

    if WHOLE_FRAMES:
        bias = tl.load(head_bias_ptr).to(tl.float32)
        tl.store(out_ptr + f, tl.sum(total, axis=0) / num_tokens + bias)
    else:
        tl.store(out_ptr + item, tl.sum(total, axis=0))
    if SAVE:  # noqa: SIM102 - one is settled when the kernel is compiled, the other when it runs
        if item % num_slices == 0:
            text_start = tl.zeros_like(start)
            if f > 0:
                text_start = _load_span(cu_frames_ptr, f - 1, num_rows, CU_STRIDE)[1]
            _save_text_rows(saved_ptr, num_rows, text_start, start, 128)
            if f == num_frames - 1:
                last = tl.zeros_like(end) + num_rows
                _save_text_rows(saved_ptr, num_rows, end, last, 128)


@triton.jit
def load_logits(
    logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, f, inside, num_rows, num_slices,
    CU_STRIDE: tl.constexpr, WHOLE_FRAMES: tl.constexpr, BLOCK_SLICES: tl.constexpr,
):  # fmt: skip
    """Logits of frames; made of their slices' sums, and written down, where frames were cut."""
    if WHOLE_FRAMES:
        logits = tl.load(logits_ptr + f, mask=inside, other=0.0)
    else:
        i = tl.arange(0, BLOCK_SLICES)
        partial = tl.load(
            partial_ptr + f[:, None] * num_slices + i[None, :],
            mask=inside[:, None] & (i[None, :] < num_slices), other=0.0,
        )  # fmt: skip
        start = tl.load(cu_frames_ptr + f * CU_STRIDE, mask=inside, other=0).to(tl.int64)
        end = tl.load(cu_frames_ptr + f * CU_STRIDE + 1, mask=inside, other=0).to(tl.int64)
        start = tl.minimum(tl.maximum(start, 0), num_rows)
        num_tokens = tl.maximum(tl.minimum(end, num_rows) - start, 1).to(tl.float32)
        bias = tl.load(head_bias_ptr).to(tl.float32)
        logits = tl.sum(partial, axis=1) / num_tokens + bias
        tl.store(logits_ptr + f, logits, mask=inside)
    return logits


@triton.jit(do_not_specialize=["num_rows", "num_frames", "num_slices"])
def _finish_scores_kernel(
    logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, num_rows, num_frames, num_slices,
    CU_STRIDE: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_SLICES: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    load_logits(
        logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, f, f < num_frames, num_rows,
        num_slices, CU_STRIDE, False, BLOCK_SLICES,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSums:
    """What the pass over the rows leaves for the kernel that makes logits of its partial sums."""

    partial: Tensor
    num_slices: int
    cu_stride: int
    block_slices: int
    key: tuple[Hashable, ...] | None
    """Of its launch, and the beginning of the next one's."""


def count_frames(cu_frames: Tensor) -> int:
    """F of either form of `cu_frames`."""
    return cu_frames.shape[0] if cu_frames.dim() == 2 else cu_frames.shape[0] - 1


def new_saved(hidden: Tensor, save: bool) -> Tensor:
    """Room for `saved`; no rows unless `save`."""
    num_rows = hidden.shape[0] if save else 0
    return torch.empty((3, num_rows), dtype=torch.int32, device=hidden.device)


def save_text_only(saved: Tensor) -> None:
    """`saved` of rows that lie in no frame."""
    saved[:2] = 0
    saved[2] = -1


def score_forward(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    eps: float,
    save: bool,
    config: ForwardConfig = FORWARD,
) -> tuple[Tensor, Tensor]:
    """Logits [F] and, if `save`, what backward needs (else an empty tensor)."""
    num_frames = count_frames(cu_frames)
    logits = torch.empty(num_frames, dtype=torch.float32, device=hidden.device)
    saved = new_saved(hidden, save)
    if num_frames == 0:
        save_text_only(saved)
        return logits, saved
    with on_device(hidden):
        sums = sum_rows(
            hidden, residual, norm_weight, head_weight, head_bias, cu_frames, eps, save,
            logits, saved, config,
        )  # fmt: skip
        if sums.num_slices > 1:
            block_f = max(1, min(64, 1024 // sums.block_slices))
            launch(
                _finish_scores_kernel,
                (cdiv(num_frames, block_f), 1, 1),
                None if sums.key is None else ("finish scores", *sums.key),
                (
                    logits, sums.partial, head_bias, cu_frames, hidden.shape[0], num_frames,
                    sums.num_slices,
                ),
                (sums.cu_stride, block_f, sums.block_slices),
                {"num_warps": 4},
            )  # fmt: skip
    return logits, saved


def sum_rows(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    eps: float,
    save: bool,
    logits: Tensor,
    saved: Tensor,
    config: ForwardConfig,
) -> RowSums:
    """The one pass over the hidden states: logits if frames are whole, else their partial sums."""
    num_rows, width = hidden.shape
    num_frames = logits.shape[0]
    num_slices = max(1, cdiv(num_rows, num_frames * config.rows_per_item))
    partial = logits if num_slices == 1 else logits.new_empty(num_frames * num_slices)
    block_d = min(config.max_block_d, next_power_of_2(width))
    block_slices = next_power_of_2(num_slices)
    other = hidden if residual is None else residual
    stride_h, stride_r = hidden.stride(0), other.stride(0)
    key = None
    if are_aligned(hidden, other, norm_weight, head_weight, head_bias, cu_frames):
        key = (
            hidden.device, hidden.dtype, residual is None, other.dtype, norm_weight.dtype,
            head_weight.dtype, head_bias.dtype, cu_frames.dtype, cu_frames.dim(), width,
            stride_h, stride_r, num_rows >> 31, save, block_slices, config,
        )  # fmt: skip
    launch(
        _score_forward_kernel,
        (num_frames * num_slices, 1, 1),
        key,
        (
            hidden, other, norm_weight, head_weight, head_bias, cu_frames, partial, saved,
            num_rows, num_frames, num_slices, width, stride_h, stride_r, eps,
        ),
        (
            cu_frames.dim(), residual is not None, save, num_slices == 1, block_d >= width,
            config.block_rows, block_d, config.num_stages,
        ),
        {"num_warps": config.num_warps, "maxnreg": config.max_registers},
    )  # fmt: skip
    return RowSums(
        partial=partial, num_slices=num_slices, cu_stride=cu_frames.dim(),
        block_slices=block_slices, key=key,
    )  # fmt: skip
