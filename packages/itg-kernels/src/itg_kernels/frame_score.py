"""Triton: frame scores and their loss in one read of the hidden states; gradients take one more.

S rows, D width, F frames, B samples. With u = norm_weight * head_weight (float32) and, per row x,
r = (|x|^2 / D + eps)^-1/2 and p = x . u, a frame's logit is mean(r p) + bias: one pass over its
rows, no normalised copy. Backward, with a = grad_logit / tokens of the frame:

    dx = a r (u - (r^2 p / D) x)        du = sum over rows of a r x
    d norm_weight = head_weight du      d head_weight = norm_weight du

so forward leaves r / tokens ("scale"), r^2 p / D ("pull") and the frame of each row behind
(12 bytes a row) for `frame_score_backward`. Bytes for 2-byte hidden states: 2 S D forward, 4 S D
backward. Sums over programs are added up by one program in a fixed order; there is no float
atomic, so every run gives the same bits. Oracle: `reference.frame_scores`.

A work item is a slice of a frame. Frames are cut where they are long on average, so that 64 frames
of 256 tokens fill a GPU as 512 of 25 do; uncut frames need no second launch.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK_D = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardConfig:
    """How a forward launch is cut up; found by `benchmarks/tune.py`."""

    block_rows: int = 1
    max_block_d: int = MAX_BLOCK_D
    rows_per_item: int = 32
    num_warps: int = 4
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
def _save_text_rows(
    row_scale_ptr, row_pull_ptr, row_frame_ptr, first, last, BLOCK: tl.constexpr
):  # fmt: skip
    for base in range(first, last, BLOCK):
        row = base + tl.arange(0, BLOCK)
        tl.store(row_scale_ptr + row, tl.zeros([BLOCK], tl.float32), mask=row < last)
        tl.store(row_pull_ptr + row, tl.zeros([BLOCK], tl.float32), mask=row < last)
        tl.store(row_frame_ptr + row, tl.full([BLOCK], -1, tl.int32), mask=row < last)


@triton.jit(do_not_specialize=["num_rows", "num_frames", "num_slices"])
def _score_forward_kernel(
    hidden_ptr, residual_ptr, norm_weight_ptr, head_weight_ptr, head_bias_ptr, cu_frames_ptr,
    out_ptr, row_scale_ptr, row_pull_ptr, row_frame_ptr,
    num_rows, num_frames, num_slices, D, stride_h, stride_r, eps,
    CU_STRIDE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    WHOLE_FRAMES: tl.constexpr, WHOLE_ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
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

    d0 = tl.arange(0, BLOCK_D)
    if WHOLE_ROWS:
        u = load_u(norm_weight_ptr, head_weight_ptr, d0, d0 < D)
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
            tl.store(row_scale_ptr + row, rstd / num_tokens, mask=row_inside)
            tl.store(row_pull_ptr + row, rstd * rstd * proj / D, mask=row_inside)
            tl.store(row_frame_ptr + row, tl.zeros([BLOCK_R], tl.int32) + f, mask=row_inside)

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
            _save_text_rows(row_scale_ptr, row_pull_ptr, row_frame_ptr, text_start, start, 128)
            if f == num_frames - 1:
                last = tl.zeros_like(end) + num_rows
                _save_text_rows(row_scale_ptr, row_pull_ptr, row_frame_ptr, end, last, 128)


@triton.jit
def _load_logits(
    logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, f, inside, num_rows, num_slices,
    CU_STRIDE: tl.constexpr, WHOLE_FRAMES: tl.constexpr, BLOCK_SLICES: tl.constexpr,
):  # fmt: skip
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
    _load_logits(
        logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, f, f < num_frames, num_rows,
        num_slices, CU_STRIDE, False, BLOCK_SLICES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_frames", "num_slices", "num_samples"])
def _loss_kernel(
    logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, labels_ptr, cu_samples_ptr,
    loss_ptr, grad_logits_ptr,
    num_rows, num_frames, num_slices, num_samples, max_pos_weight, min_negatives,
    CU_STRIDE: tl.constexpr, WHOLE_FRAMES: tl.constexpr, HAS_SAMPLES: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_SLICES: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """One program per sample: count, weigh, then loss and gradient of its frames."""
    b = tl.program_id(0)
    if HAS_SAMPLES:
        first = tl.load(cu_samples_ptr + b).to(tl.int64)
        last = tl.load(cu_samples_ptr + b + 1).to(tl.int64)
        first = tl.minimum(tl.maximum(first, 0), num_frames)
        last = tl.minimum(tl.maximum(last, first), num_frames)
        num_filled = tl.zeros([BLOCK_B], tl.int32)
        for base in range(0, num_samples, BLOCK_B):
            i = base + tl.arange(0, BLOCK_B)
            low = tl.load(cu_samples_ptr + i, mask=i < num_samples, other=0)
            high = tl.load(cu_samples_ptr + i + 1, mask=i < num_samples, other=0)
            num_filled += (high > low).to(tl.int32)
        samples = tl.maximum(tl.sum(num_filled, axis=0), 1).to(tl.float32)
    else:
        first = tl.zeros([], tl.int64)
        last = first + num_frames
        samples = 1.0

    positives_F = tl.zeros([BLOCK_F], tl.float32)
    for base in range(first, last, BLOCK_F):
        f = base + tl.arange(0, BLOCK_F)
        positives_F += tl.load(labels_ptr + f, mask=f < last, other=0).to(tl.float32)
    positives = tl.sum(positives_F, axis=0)
    frames = (last - first).to(tl.float32)
    negatives = tl.maximum(frames - positives, min_negatives)
    weight = tl.minimum(tl.sqrt_rn(negatives / tl.maximum(positives, 1.0)), max_pos_weight)

    scale = 1.0 / (tl.maximum(frames, 1.0) * samples)
    loss_F = tl.zeros([BLOCK_F], tl.float32)
    for base in range(first, last, BLOCK_F):
        f = base + tl.arange(0, BLOCK_F)
        inside = f < last
        label = tl.load(labels_ptr + f, mask=inside, other=0).to(tl.float32)
        logit = _load_logits(
            logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, f, inside, num_rows,
            num_slices, CU_STRIDE, WHOLE_FRAMES, BLOCK_SLICES,
        )  # fmt: skip
        weight_F = 1.0 + (weight - 1.0) * label
        softplus = tl.maximum(-logit, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(logit)))
        loss_F += tl.where(inside, (1.0 - label) * logit + weight_F * softplus, 0.0)
        grad = weight_F / (1.0 + tl.exp(-logit)) - weight * label
        tl.store(grad_logits_ptr + f, grad * scale, mask=inside)
    tl.store(loss_ptr + b, tl.sum(loss_F, axis=0) * scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Launch:
    """What the kernels of one forward pass share."""

    num_frames: int
    num_slices: int
    cu_stride: int
    partial: Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


def count_frames(cu_frames: Tensor) -> int:
    """F of either form of `cu_frames`."""
    return cu_frames.shape[0] if cu_frames.dim() == 2 else cu_frames.shape[0] - 1


def _new_saved(hidden: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for scale, pull and frame of every row; none of it unless `save`."""
    num_rows = hidden.shape[0] if save else 0
    return (
        hidden.new_empty(num_rows, dtype=torch.float32),
        hidden.new_empty(num_rows, dtype=torch.float32),
        hidden.new_empty(num_rows, dtype=torch.int32),
    )


def _save_nothing(saved: tuple[Tensor, Tensor, Tensor]) -> None:
    row_scale, row_pull, row_frame = saved
    row_scale.zero_()
    row_pull.zero_()
    row_frame.fill_(-1)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [F] and, if `save`, what backward needs (else empty tensors)."""
    logits = hidden.new_empty(count_frames(cu_frames), dtype=torch.float32)
    saved = _new_saved(hidden, save)
    if logits.numel() == 0:
        _save_nothing(saved)
        return logits, *saved
    with on_device(hidden):
        launch = _sum_rows(
            hidden, residual, norm_weight, head_weight, head_bias, cu_frames, eps, save,
            logits, saved, config,
        )  # fmt: skip
        if launch.num_slices > 1:
            block_slices = triton.next_power_of_2(launch.num_slices)
            block_f = max(1, min(64, 1024 // block_slices))
            _finish_scores_kernel[(triton.cdiv(launch.num_frames, block_f),)](
                logits, launch.partial, head_bias, cu_frames, hidden.shape[0], launch.num_frames,
                launch.num_slices, launch.cu_stride, block_f, block_slices, num_warps=4,
            )  # fmt: skip
    return logits, *saved


def loss_forward(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    labels: Tensor,
    cu_samples: Tensor | None,
    max_pos_weight: float,
    min_negatives: int,
    eps: float,
    save: bool,
    config: ForwardConfig = FORWARD,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, logits [F], d loss / d logits [F], and what backward needs as in `score_forward`."""
    logits = hidden.new_empty(count_frames(cu_frames), dtype=torch.float32)
    grad_logits = torch.empty_like(logits)
    saved = _new_saved(hidden, save)
    if logits.numel() == 0:
        _save_nothing(saved)
        return hidden.new_zeros((), dtype=torch.float32), logits, grad_logits, *saved
    num_samples = 1 if cu_samples is None else cu_samples.shape[0] - 1
    losses = hidden.new_empty(num_samples, dtype=torch.float32)
    with on_device(hidden):
        launch = _sum_rows(
            hidden, residual, norm_weight, head_weight, head_bias, cu_frames, eps, save,
            logits, saved, config,
        )  # fmt: skip
        whole_frames = launch.num_slices == 1
        block_slices = triton.next_power_of_2(launch.num_slices)
        _loss_kernel[(num_samples,)](
            logits, launch.partial, head_bias, cu_frames, labels,
            labels if cu_samples is None else cu_samples, losses, grad_logits,
            hidden.shape[0], launch.num_frames, launch.num_slices, num_samples,
            float(max_pos_weight), float(min_negatives), launch.cu_stride, whole_frames,
            cu_samples is not None, max(1, min(1024, 4096 // block_slices)), block_slices, 128,
            num_warps=8,
        )  # fmt: skip
    return losses[0] if num_samples == 1 else losses.sum(), logits, grad_logits, *saved


def _sum_rows(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    eps: float,
    save: bool,
    logits: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    config: ForwardConfig,
) -> _Launch:
    """The one pass over the hidden states: logits if frames are whole, else their partial sums."""
    num_rows, width = hidden.shape
    num_frames = logits.numel()
    num_slices = max(1, triton.cdiv(num_rows, num_frames * config.rows_per_item))
    partial = logits if num_slices == 1 else logits.new_empty(num_frames * num_slices)
    launch = _Launch(
        num_frames=num_frames, num_slices=num_slices, cu_stride=cu_frames.dim(), partial=partial
    )
    block_d = min(config.max_block_d, triton.next_power_of_2(width))
    row_scale, row_pull, row_frame = saved
    _score_forward_kernel[(num_frames * num_slices,)](
        hidden, hidden if residual is None else residual, norm_weight, head_weight, head_bias,
        cu_frames, partial, row_scale, row_pull, row_frame,
        num_rows, num_frames, num_slices, width, hidden.stride(0),
        0 if residual is None else residual.stride(0), eps,
        launch.cu_stride, residual is not None, save, num_slices == 1, block_d >= width,
        config.block_rows, block_d, config.num_stages,
        num_warps=config.num_warps, maxnreg=config.max_registers,
    )  # fmt: skip
    return launch
