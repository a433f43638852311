"""Inference between matrix products: norms, activations, rotary positions, rounding to 8 bits.

Each is one pass over memory on an NVIDIA GPU, and plain torch elsewhere. None has a gradient. What
feeds an 8-bit matrix product is rounded where it is computed (`fp8=True`): e4m3 with one scale a
row, so that the row's largest value becomes the largest number there is.

torch.compile can fuse the same lines; on an H200 its layer norm of 1152 columns takes twice as
long as these kernels, and every process pays seconds for compiling it.
"""

from typing import Any

import torch
from torch import Tensor

from itg_kernels import rows_reference
from itg_kernels.ops import Backend, resolve_backend

Rows = Tensor | tuple[Tensor, Tensor]
"""[M, D] in the input's type, or 8-bit values [M, D] and their float32 scales [M, 1]."""


def norm_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pending: Tensor | None = None,
    add_after: Tensor | None = None,
    eps: float = 1e-6,
    fp8: bool = False,
    backend: Backend = "auto",
) -> Rows:
    """Layer norm of every row where there is a bias, RMS norm where there is none.

    Args:
        hidden: [M, D] residual stream; changed in place as the next two say.
        weight: [D].
        bias: [D].
        pending: [M, D], added to the stream first.
        add_after: [D], added to the stream afterwards: the norm does not see it.
        eps: The norm's epsilon.
        fp8: Rounds the result to 8 bits.
        backend: See `resolve_backend`.
    """
    _check_rows("hidden", hidden)
    for name, row in (("weight", weight), ("bias", bias), ("add_after", add_after)):
        if row is not None and row.shape != hidden.shape[1:]:
            raise ValueError(f"{name} must be [{hidden.shape[1]}], got {list(row.shape)}")
    if pending is not None and pending.shape != hidden.shape:
        raise ValueError(f"pending must be {list(hidden.shape)}, got {list(pending.shape)}")
    if resolve_backend(backend, hidden.device) == "torch":
        normed = rows_reference.norm_rows(hidden, weight, bias, pending, add_after, eps)
        return _finish(normed, hidden.dtype, fp8)
    bias, pending, add_after = (
        None if each is None else each.contiguous() for each in (bias, pending, add_after)
    )
    out, scales = _empty(hidden, hidden.shape[1], fp8)
    _kernels().norm_rows(hidden, weight.contiguous(), bias, pending, add_after, eps, out, scales)
    return out if scales is None else (out, scales)


def silu_gate_rows(gate_up: Tensor, *, fp8: bool = False, backend: Backend = "auto") -> Rows:
    """silu(gate) * up, for rows [M, 2 D] that hold gate and up side by side."""
    _check_rows("gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must hold two halves a row, got {list(gate_up.shape)}")
    return _activate(gate_up, gate_up.shape[1] // 2, True, fp8, backend)


def gelu_rows(x: Tensor, *, fp8: bool = False, backend: Backend = "auto") -> Rows:
    """GELU in its tanh form, for rows [M, D]."""
    _check_rows("x", x)
    return _activate(x, x.shape[1], False, fp8, backend)


def quantise_rows(x: Tensor, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Rounds rows [M, D] to 8 bits: values, and the scales [M, 1] that give them back."""
    _check_rows("x", x)
    if resolve_backend(backend, x.device) == "torch":
        return rows_reference.quantise_rows(x)
    out = torch.empty(x.shape, dtype=rows_reference.FP8, device=x.device)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    _kernels().quantise_rows(x, False, False, out, scales)
    return out, scales


def rotate_rows(heads: Tensor, cos: Tensor, sin: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Rotary positions: turns the pair (i, i + d / 2) of each head by the row's i-th angle.

    Args:
        heads: [M, H, d]; rows may be strided, heads lie side by side.
        cos: [M, d / 2] float32.
        sin: [M, d / 2] float32.
        backend: See `resolve_backend`.

    Returns:
        [M, H, d], side by side.
    """
    check_turn(heads, cos, sin)
    head_dim = heads.shape[2]
    if resolve_backend(backend, heads.device) == "torch":
        return rows_reference.rotate_rows(heads, cos, sin).to(heads.dtype)
    if heads.stride(2) != 1 or heads.stride(1) != head_dim:
        heads = heads.contiguous()
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    _kernels().rotate_rows(heads, cos.contiguous(), sin.contiguous(), out)
    return out


def check_turn(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Checks that heads [M, H, d] have their angles.

    Raises:
        ValueError: A table is no float32 [M, d / 2], or d is odd.
    """
    num_rows, _, head_dim = heads.shape
    if head_dim % 2:
        raise ValueError(f"heads must be [M, H, d] with an even d, got {list(heads.shape)}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (num_rows, head_dim // 2) or table.dtype != torch.float32:
            raise ValueError(
                f"{name} must be float32 [{num_rows}, {head_dim // 2}], got "
                f"{table.dtype} {list(table.shape)}"
            )


def _activate(x: Tensor, width: int, gated: bool, fp8: bool, backend: Backend) -> Rows:
    if resolve_backend(backend, x.device) == "torch":
        return _finish(rows_reference.activate_rows(x, gated), x.dtype, fp8)
    out, scales = _empty(x, width, fp8)
    if scales is None:
        _kernels().activate_rows(x, gated, out)
        return out
    _kernels().quantise_rows(x, True, gated, out, scales)
    return out, scales


def _check_rows(name: str, x: Tensor) -> None:
    if x.dim() != 2 or not x.is_floating_point() or not x.is_contiguous():
        raise ValueError(f"{name} must be floating point [M, D], side by side, got {list(x.shape)}")


def _empty(like: Tensor, width: int, fp8: bool) -> tuple[Tensor, Tensor | None]:
    dtype = rows_reference.FP8 if fp8 else like.dtype
    out = torch.empty(len(like), width, dtype=dtype, device=like.device)
    if not fp8:
        return out, None
    return out, torch.empty(len(like), 1, dtype=torch.float32, device=like.device)


def _finish(rows: Tensor, dtype: torch.dtype, fp8: bool) -> Rows:
    return rows_reference.quantise_rows(rows) if fp8 else rows.to(dtype)


def _kernels() -> Any:
    # Triton itself is imported at the first call.
    from itg_kernels import row_kernels

    return row_kernels
