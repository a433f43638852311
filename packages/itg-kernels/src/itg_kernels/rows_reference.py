"""The obvious version of `rows`: truth for the kernels' tests, and the CPU's path."""

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
_TINY = 1e-12


def norm_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pending: Tensor | None,
    add_after: Tensor | None,
    eps: float,
) -> Tensor:
    """Norm of hidden + pending in float32; hidden itself becomes hidden + pending + add_after."""
    if pending is not None:
        hidden += pending
    wide = hidden.float()
    if bias is None:
        normed = F.rms_norm(wide, weight.shape, weight.float(), eps)
    else:
        normed = F.layer_norm(wide, weight.shape, weight.float(), bias.float(), eps)
    if add_after is not None:
        hidden += add_after
    return normed


def activate_rows(x: Tensor, gated: bool) -> Tensor:
    """SiLU of the left half times the right half, or tanh GELU; in float32."""
    if not gated:
        return F.gelu(x.float(), approximate="tanh")
    gate, up = x.float().chunk(2, dim=-1)
    return F.silu(gate) * up


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit values and the scales [M, 1] that give the rows back."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=_TINY) / FP8_MAX
    return (wide / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


def rotate_rows(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pair (i, i + d / 2) of every head by the row's i-th angle; in float32."""
    left, right = heads.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
