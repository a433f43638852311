"""Triton: the weighted loss of frame scores, and its gradient, from the sums of `score_forward`.

One small kernel after the pass over the hidden states: the loss needs every frame of a sample.
Oracle: `reference.frame_bce_loss`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.launch import are_aligned, launch, on_device
from itg_kernels.score_forward import (
    FORWARD,
    ForwardConfig,
    count_frames,
    load_logits,
    new_saved,
    save_text_only,
    sum_rows,
)


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
        logit = load_logits(
            logits_ptr, partial_ptr, head_bias_ptr, cu_frames_ptr, f, inside, num_rows,
            num_slices, CU_STRIDE, WHOLE_FRAMES, BLOCK_SLICES,
        )  # fmt: skip
        weight_F = 1.0 + (weight - 1.0) * label
        softplus = tl.maximum(-logit, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(logit)))
        loss_F += tl.where(inside, (1.0 - label) * logit + weight_F * softplus, 0.0)
        grad = weight_F / (1.0 + tl.exp(-logit)) - weight * label
        tl.store(grad_logits_ptr + f, grad * scale, mask=inside)
    tl.store(loss_ptr + b, tl.sum(loss_F, axis=0) * scale)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, logits [F], d loss / d logits [F], and what backward needs as in `score_forward`."""
    num_frames = count_frames(cu_frames)
    logits = torch.empty(num_frames, dtype=torch.float32, device=hidden.device)
    grad_logits = torch.empty_like(logits)
    saved = new_saved(hidden, save)
    if num_frames == 0:
        save_text_only(saved)
        return logits.new_zeros(()), logits, grad_logits, saved
    num_samples = 1 if cu_samples is None else cu_samples.shape[0] - 1
    losses = logits.new_empty(num_samples if num_samples != 1 else ())
    samples = labels if cu_samples is None else cu_samples
    with on_device(hidden):
        sums = sum_rows(
            hidden, residual, norm_weight, head_weight, head_bias, cu_frames, eps, save,
            logits, saved, config,
        )  # fmt: skip
        key = None
        if sums.key is not None and are_aligned(labels, samples):
            key = ("loss", cu_samples is None, labels.dtype, samples.dtype, *sums.key)
        launch(
            _loss_kernel,
            (num_samples, 1, 1),
            key,
            (
                logits, sums.partial, head_bias, cu_frames, labels, samples, losses, grad_logits,
                hidden.shape[0], num_frames, sums.num_slices, num_samples,
                float(max_pos_weight), float(min_negatives),
            ),
            (
                sums.cu_stride, sums.num_slices == 1, cu_samples is not None,
                max(1, min(1024, 4096 // sums.block_slices)), sums.block_slices, 128,
            ),
            {"num_warps": 8},
        )  # fmt: skip
    return losses if num_samples == 1 else losses.sum(), logits, grad_logits, saved
