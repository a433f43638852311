"""The Triton kernels as PyTorch operators: schemas, shapes for tracing, gradients.

torch.compile and export see each as one opaque operator, so they need neither a graph break nor
Triton at tracing time; CUDA graphs can capture them. Triton itself is imported at the first call.
The CPU entry serves Triton's interpreter; `ops` lets nothing else reach it.

An operator costs the host more than its kernels cost the GPU. Where nobody watches, `frame_score`
and `frame_score_loss` therefore run what stands behind the operators without them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from itg_kernels.launch import stream_dtype

_DEVICES = ("cuda", "cpu")
_PLAIN = (Tensor, torch.nn.Parameter, type(None))

torch.library.define(
    "itg_kernels::frame_score",
    "(Tensor hidden, Tensor? residual, Tensor norm_weight, Tensor head_weight, Tensor head_bias,"
    " Tensor cu_frames, float eps, bool save) -> (Tensor, Tensor)",
)
torch.library.define(
    "itg_kernels::frame_score_loss",
    "(Tensor hidden, Tensor? residual, Tensor norm_weight, Tensor head_weight, Tensor head_bias,"
    " Tensor cu_frames, Tensor labels, Tensor? cu_samples, float max_pos_weight,"
    " int min_negatives, float eps, bool save)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "itg_kernels::frame_score_backward",
    "(Tensor grad_logits, Tensor? grad_scale, Tensor hidden, Tensor? residual, Tensor norm_weight,"
    " Tensor head_weight, Tensor head_bias, Tensor saved) -> (Tensor, Tensor, Tensor, Tensor)",
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


def _readable(hidden: Tensor, residual: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    """Rows may be strided, everything else must lie side by side; what does not is copied.

    Here and not in `ops`: whoever calls an operator directly gets no wrong numbers either.
    """
    return (
        hidden if hidden.stride(1) == 1 else hidden.contiguous(),
        residual if residual is None or residual.stride(1) == 1 else residual.contiguous(),
        *(None if other is None else other.contiguous() for other in others),
    )


def _frame_score(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.score_forward import score_forward

    return score_forward(*_readable(*args[:6]), *args[6:])


def _frame_score_loss(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.score_loss import loss_forward

    return loss_forward(*_readable(*args[:8]), *args[8:])


def _frame_score_backward(
    grad_logits: Tensor, grad_scale: Tensor | None, *saved: Any
) -> tuple[Tensor, ...]:
    from itg_kernels.score_backward import score_backward

    return score_backward(grad_logits.contiguous(), grad_scale, *_readable(*saved))


def _topk_chronological(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.topk import topk

    return topk(*args)


def _topk_spaced(*args: Any) -> tuple[Tensor, ...]:
    from itg_kernels.topk import topk_spaced

    return topk_spaced(*args)


for _name, _function in (
    ("frame_score", _frame_score),
    ("frame_score_loss", _frame_score_loss),
    ("frame_score_backward", _frame_score_backward),
    ("topk_chronological", _topk_chronological),
    ("topk_spaced", _topk_spaced),
):
    torch.library.impl(f"itg_kernels::{_name}", _DEVICES, _function)


def _fake_logits(hidden: Tensor, cu_frames: Tensor) -> Tensor:
    num_frames = cu_frames.shape[0] - (1 if cu_frames.dim() == 1 else 0)
    return hidden.new_empty(num_frames, dtype=torch.float32)


def _fake_saved(hidden: Tensor, save: bool) -> Tensor:
    return hidden.new_empty((3, hidden.shape[0] if save else 0), dtype=torch.int32)


@torch.library.register_fake("itg_kernels::frame_score")
def _(hidden, residual, norm_weight, head_weight, head_bias, cu_frames, eps, save):
    return _fake_logits(hidden, cu_frames), _fake_saved(hidden, save)


@torch.library.register_fake("itg_kernels::frame_score_loss")
def _(hidden, residual, norm_weight, head_weight, head_bias, cu_frames, labels, *args):
    logits = _fake_logits(hidden, cu_frames)
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, logits, torch.empty_like(logits), _fake_saved(hidden, args[-1])


@torch.library.register_fake("itg_kernels::frame_score_backward")
def _(grad_logits, grad_scale, hidden, residual, norm_weight, head_weight, head_bias, saved):
    return (
        hidden.new_empty(hidden.shape, dtype=stream_dtype(hidden, residual)),
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
    if not inputs[-1]:
        raise RuntimeError("frame_score was called without save=True, so it has no gradient")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[1])


def _score_gradients(ctx: Any, grad_logits: Tensor | None, *_: Any) -> tuple[Any, ...]:
    grads = _gradients(ctx.saved_tensors, grad_logits, None)
    return (*grads, None, None, None)


def _save_for_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    if not inputs[-1]:
        raise RuntimeError("frame_score_loss was called without save=True, so it has no gradient")
    ctx.set_materialize_grads(False)
    _loss, _logits, grad_logits, saved = output
    ctx.save_for_backward(*inputs[:5], saved, grad_logits)


def _loss_gradients(
    ctx: Any, grad_loss: Tensor | None, grad_logits: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    *saved, loss_grad_logits = ctx.saved_tensors
    if grad_logits is None and grad_loss is not None:
        grads = _gradients(saved, loss_grad_logits, grad_loss)
    elif grad_logits is not None and grad_loss is not None:
        grads = _gradients(saved, grad_logits + grad_loss * loss_grad_logits, None)
    else:
        grads = _gradients(saved, grad_logits, None)
    return (*grads, None, None, None, None, None, None, None)


def _gradients(
    saved: Sequence[Tensor | None], grad_logits: Tensor | None, grad_scale: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden, residual, norm weight, head weight and bias."""
    if grad_logits is None:
        return (None,) * 5
    # With create_graph=True, the operator is what remembers that it cannot go on.
    watched = torch.is_grad_enabled() or is_watched(grad_logits, grad_scale, *saved)
    backward = torch.ops.itg_kernels.frame_score_backward if watched else _frame_score_backward
    grad_hidden, *grad_weights = backward(grad_logits, grad_scale, *saved)
    hidden, residual, *_ = saved
    assert hidden is not None
    grad_residual = None if residual is None else grad_hidden.to(residual.dtype)
    return grad_hidden.to(hidden.dtype), grad_residual, *grad_weights


def _no_second_derivative(*_: Any) -> None:
    # Nor has the torch backend: PyTorch sums segments without one.
    raise RuntimeError("frame_score has no second derivative, on any backend")


torch.library.register_autograd("itg_kernels::frame_score_backward", _no_second_derivative)
torch.library.register_autograd(
    "itg_kernels::frame_score", _score_gradients, setup_context=_save_for_score
)
torch.library.register_autograd(
    "itg_kernels::frame_score_loss", _loss_gradients, setup_context=_save_for_loss
)


class _Score(torch.autograd.Function):
    """The operator `frame_score` and its gradient, less the operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _frame_score(*inputs)
        _save_for_score(ctx, inputs, output)
        return output[0]

    backward = staticmethod(_score_gradients)


class _Loss(torch.autograd.Function):
    """The operator `frame_score_loss` and its gradient, less the operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _frame_score_loss(*inputs)
        _save_for_loss(ctx, inputs, output)
        return output[0], output[1]

    backward = staticmethod(_loss_gradients)


def is_transformed() -> bool:
    """Whether torch.func transforms the call: it knows nothing of what stands behind operators."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_watched(*tensors: Tensor | None) -> bool:
    """Whether something traces, records or transforms the call, and so needs to see operators."""
    return (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or torch._C._are_functorch_transforms_active()
        or any(type(tensor) not in _PLAIN for tensor in tensors)
    )


def frame_score(*inputs: Any) -> Tensor:
    """Logits; `inputs` as the operator's."""
    if is_watched(*inputs[:6]):
        return torch.ops.itg_kernels.frame_score(*inputs)[0]
    return _Score.apply(*inputs) if inputs[-1] else _frame_score(*inputs)[0]


def frame_score_loss(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Loss and logits; `inputs` as the operator's."""
    if is_watched(*inputs[:8]):
        loss, logits, *_ = torch.ops.itg_kernels.frame_score_loss(*inputs)
        return loss, logits
    if inputs[-1]:
        return _Loss.apply(*inputs)
    loss, logits, *_ = _frame_score_loss(*inputs)
    return loss, logits
