"""The Triton kernels as PyTorch operators: schemas, shapes for tracing, gradients.

torch.compile and export see each as one opaque operator, so they need neither a graph break nor
Triton at tracing time; CUDA graphs can capture them. Triton itself is imported at the first call.
The CPU entry serves Triton's interpreter; `ops` lets nothing else reach it.
"""

from typing import Any

import torch
from torch import Tensor

_DEVICES = ("cuda", "cpu")

torch.library.define(
    "itg_kernels::frame_score",
    "(Tensor hidden, Tensor? residual, Tensor norm_weight, Tensor head_weight, Tensor head_bias,"
    " Tensor cu_frames, float eps, bool save) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "itg_kernels::frame_score_loss",
    "(Tensor hidden, Tensor? residual, Tensor norm_weight, Tensor head_weight, Tensor head_bias,"
    " Tensor cu_frames, Tensor labels, Tensor? cu_samples, float max_pos_weight,"
    " int min_negatives, float eps, bool save)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "itg_kernels::frame_score_backward",
    "(Tensor grad_logits, Tensor? grad_scale, Tensor hidden, Tensor? residual, Tensor norm_weight,"
    " Tensor head_weight, Tensor head_bias, Tensor row_scale, Tensor row_pull, Tensor row_frame)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "itg_kernels::topk_chronological",
    "(Tensor scores, SymInt k, Tensor? valid, Tensor? lengths) -> (Tensor, Tensor)",
)
torch.library.define(
    "itg_kernels::topk_spaced",
    "(Tensor scores, SymInt k, Tensor? valid, Tensor? lengths, Tensor? times, float min_gap)"
    " -> (Tensor, Tensor)",
)


@torch.library.impl("itg_kernels::frame_score", _DEVICES)
def _frame_score(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    eps: float,
    save: bool,
) -> tuple[Tensor, ...]:
    from itg_kernels.frame_score import score_forward

    return score_forward(
        hidden, residual, norm_weight, head_weight, head_bias, cu_frames, eps, save
    )


@torch.library.impl("itg_kernels::frame_score_loss", _DEVICES)
def _frame_score_loss(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.frame_score import loss_forward

    return loss_forward(*args)


@torch.library.impl("itg_kernels::frame_score_backward", _DEVICES)
def _frame_score_backward(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.frame_score_backward import score_backward

    return score_backward(*args)


@torch.library.impl("itg_kernels::topk_chronological", _DEVICES)
def _topk_chronological(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.topk import topk

    return topk(*args)


@torch.library.impl("itg_kernels::topk_spaced", _DEVICES)
def _topk_spaced(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.topk import topk_spaced

    return topk_spaced(*args)


def _fake_logits(hidden: Tensor, cu_frames: Tensor) -> Tensor:
    num_frames = cu_frames.shape[0] - (1 if cu_frames.dim() == 1 else 0)
    return hidden.new_empty(num_frames, dtype=torch.float32)


def _fake_saved(hidden: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = hidden.shape[0] if save else 0
    row_scale = hidden.new_empty(num_rows, dtype=torch.float32)
    return row_scale, torch.empty_like(row_scale), hidden.new_empty(num_rows, dtype=torch.int32)


@torch.library.register_fake("itg_kernels::frame_score")
def _(hidden, residual, norm_weight, head_weight, head_bias, cu_frames, eps, save):
    return _fake_logits(hidden, cu_frames), *_fake_saved(hidden, save)


@torch.library.register_fake("itg_kernels::frame_score_loss")
def _(hidden, residual, norm_weight, head_weight, head_bias, cu_frames, labels, *args):
    logits = _fake_logits(hidden, cu_frames)
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, logits, torch.empty_like(logits), *_fake_saved(hidden, args[-1])


@torch.library.register_fake("itg_kernels::frame_score_backward")
def _(grad_logits, grad_scale, hidden, residual, norm_weight, head_weight, head_bias, *saved):
    return (
        hidden.new_empty(hidden.shape),
        torch.empty_like(norm_weight),
        torch.empty_like(head_weight),
        torch.empty_like(head_bias),
    )


@torch.library.register_fake("itg_kernels::topk_chronological")
def _(scores, k, valid, lengths):
    return _fake_picks(scores, k)


@torch.library.register_fake("itg_kernels::topk_spaced")
def _(scores, k, valid, lengths, times, min_gap):
    return _fake_picks(scores, k)


def _fake_picks(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    num_rows = scores.shape[0]
    return (
        scores.new_empty((num_rows, k), dtype=torch.int64),
        scores.new_empty(num_rows, dtype=torch.int64),
    )


def _save_for_score(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, residual, norm_weight, head_weight, head_bias, _cu_frames, _eps, save = inputs
    if not save:
        raise RuntimeError("frame_score was called without save=True, so it has no gradient")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, residual, norm_weight, head_weight, head_bias, *output[1:])


def _score_gradients(ctx: Any, grad_logits: Tensor | None, *_: Any) -> tuple[Any, ...]:
    grads = _gradients(ctx.saved_tensors, grad_logits, None)
    return (*grads, None, None, None)


def _save_for_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, residual, norm_weight, head_weight, head_bias, *_, save = inputs
    if not save:
        raise RuntimeError("frame_score_loss was called without save=True, so it has no gradient")
    ctx.set_materialize_grads(False)
    _loss, _logits, *saved = output
    ctx.save_for_backward(hidden, residual, norm_weight, head_weight, head_bias, *saved)


def _loss_gradients(
    ctx: Any, grad_loss: Tensor | None, grad_logits: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    *inputs, loss_grad_logits, row_scale, row_pull, row_frame = ctx.saved_tensors
    saved = (*inputs, row_scale, row_pull, row_frame)
    if grad_logits is None and grad_loss is not None:
        grads = _gradients(saved, loss_grad_logits, grad_loss)
    elif grad_logits is not None and grad_loss is not None:
        grads = _gradients(saved, grad_logits + grad_loss * loss_grad_logits, None)
    else:
        grads = _gradients(saved, grad_logits, None)
    return (*grads, None, None, None, None, None, None, None)


def _gradients(
    saved: tuple[Tensor | None, ...], grad_logits: Tensor | None, grad_scale: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden, residual, norm weight, head weight and bias."""
    if grad_logits is None:
        return (None,) * 5
    residual = saved[1]
    grad_hidden, *grad_weights = torch.ops.itg_kernels.frame_score_backward(
        grad_logits.contiguous(), grad_scale, *saved
    )
    grad_residual = None if residual is None else grad_hidden.to(residual.dtype)
    return grad_hidden, grad_residual, *grad_weights


torch.library.register_autograd(
    "itg_kernels::frame_score", _score_gradients, setup_context=_save_for_score
)
torch.library.register_autograd(
    "itg_kernels::frame_score_loss", _loss_gradients, setup_context=_save_for_loss
)
