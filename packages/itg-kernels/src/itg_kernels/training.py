"""Training between matrix products: RMS norm, the gated activation and rotary positions, both ways.

Each is one pass over memory on an NVIDIA GPU in either direction, and plain torch elsewhere. What
`itg_kernels.rows` does for inference, these do with gradients; they keep their inputs for the
backward pass and nothing else. Gradients do not depend on the order in which programs run.

Source: written for this package; the same fusions are known from Liger-Kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from itg_kernels.ops import Backend, resolve_backend
from itg_kernels.rows import check_turn
from itg_kernels.rows_reference import rotate_rows


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: Backend = "auto") -> Tensor:
    """RMS norm of rows [M, D] with a weight [D], computed in float32.

    Raises:
        ValueError: Shapes do not fit, or `backend` cannot run here.
    """
    if x.dim() != 2 or weight.shape != x.shape[1:]:
        raise ValueError(
            f"x must be [M, D] and weight [D], got {list(x.shape)} and {list(weight.shape)}"
        )
    if _runs_on_torch(x, backend):
        wide = F.rms_norm(_widen(x), weight.shape, _widen(weight), eps)
        return wide.to(x.dtype)
    return _RmsNorm.apply(x, weight, eps)


def silu_gate(gate: Tensor, up: Tensor, *, backend: Backend = "auto") -> Tensor:
    """silu(gate) * up of two tensors of one shape and type, computed in float32.

    Raises:
        ValueError: Shapes or types differ, or `backend` cannot run here.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            "gate and up must be alike, got "
            f"{gate.dtype} {list(gate.shape)} and {up.dtype} {list(up.shape)}"
        )
    if _runs_on_torch(gate, backend):
        return (F.silu(_widen(gate)) * _widen(up)).to(gate.dtype)
    return _SiluGate.apply(gate, up)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Rotary positions: turns the pair (i, i + d / 2) of each head by the row's i-th angle.

    Args:
        heads: [M, H, d].
        cos: [M, d / 2] float32.
        sin: [M, d / 2] float32.
        backend: See `resolve_backend`.

    Raises:
        ValueError: Shapes do not fit, or `backend` cannot run here.
    """
    check_turn(heads, cos, sin)
    if _runs_on_torch(heads, backend):
        return rotate_rows(heads, cos, sin).to(heads.dtype)
    return _Rotate.apply(heads, cos, sin)


def _runs_on_torch(x: Tensor, backend: Backend) -> bool:
    if backend == "auto" and x.dtype == torch.float64:
        return True
    return resolve_backend(backend, x.device) == "torch"


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _kernels().norm_forward(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        wants_weight = ctx.needs_input_grad[1]
        return *_kernels().norm_backward(
            x, weight, grads[0].contiguous(), ctx.eps, wants_weight
        ), None


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return _kernels().gate_forward(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        return _kernels().gate_backward(gate, up, grads[0].contiguous())


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _kernels().turn(heads, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _kernels().turn(grads[0], cos, -sin), None, None


def _kernels() -> Any:
    # Triton itself is imported at the first call.
    from itg_kernels import training_kernels

    return training_kernels
