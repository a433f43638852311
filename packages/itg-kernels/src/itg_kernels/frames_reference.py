"""The obvious version of `frames`: truth for the kernels' tests, and the path without them.

The arithmetic of the filter is that of Pillow's `Resample.c`, operation by operation.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

PRECISION_BITS = 32 - 8 - 2
"""Of a filter's integer weights: 8 bits are the pixel's, 2 are room for sums beyond 1."""

_SUPPORT = 2.0
_A = -0.5


@lru_cache(maxsize=64)
def filter_taps(length: int, size: int) -> tuple[Tensor, Tensor]:
    """PIL's bicubic filter that makes `size` pixels out of `length`.

    Returns:
        On the CPU: first source pixel of every output pixel, int32 [size], and its weights, int32
        [taps, size], 1 being 2^PRECISION_BITS; a weight whose source pixel does not exist is 0.
    """
    scale = length / size
    widened = max(scale, 1.0)
    support = _SUPPORT * widened
    centers = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) * scale
    # .int() cuts towards zero, as C does
    starts = (centers - support + 0.5).int().clamp(min=0)
    ends = (centers + support + 0.5).int().clamp(max=length)
    taps = torch.arange(math.ceil(support) * 2 + 1, device="cpu")[:, None]
    distances = (taps + starts - centers + 0.5) * (1.0 / widened)
    weights = _bicubic(distances).where(taps < ends - starts, 0)
    # summed one tap after the other: another order would round in another way
    weights /= weights.cumsum(0)[-1]
    rounded = weights * (1 << PRECISION_BITS)
    fixed = (rounded + torch.where(rounded < 0, -0.5, 0.5)).int()
    # Sums of up to 255 times these start at half of 1 and stay in int32, whatever their order: the
    # weights of either sign add up to less than 2, which is asserted for every filter made.
    room = 2**31 - (1 << (PRECISION_BITS - 1))
    one_sign = torch.maximum(fixed.clamp(min=0).sum(0), fixed.clamp(max=0).sum(0).neg())
    assert 255 * int(one_sign.max()) < room, (length, size)
    return starts, fixed


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return near.where(x < 1, far.where(x < 2, 0))


def resample(frames: Tensor, size: int) -> Tensor:
    """One pass of the filter: [M, L, K] uint8 -> [M, size, K] uint8."""
    starts, weights = (t.to(frames.device) for t in filter_taps(frames.shape[1], size))
    sums = torch.full(
        (len(frames), size, frames.shape[2]),
        1 << (PRECISION_BITS - 1),
        dtype=torch.int32,
        device=frames.device,
    )
    for tap, row in enumerate(weights):
        # weights of pixels that do not exist are 0
        source = (starts + tap).clamp(max=frames.shape[1] - 1)
        sums += frames[:, source].int() * row[:, None]
    return (sums >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


def nv12_to_rgb(nv12: Tensor, matrix: Sequence[int]) -> Tensor:
    """[N, H * 3 / 2, W] -> [N, H, W, 3], in int32."""
    offset, cy, crv, cbu, cgu, cgv = matrix
    height = nv12.shape[1] * 2 // 3
    luma = ((nv12[:, :height].int() - offset) * 8 * cy) >> 16
    chroma = (nv12[:, height:].int() - 128) * 8
    u, v = chroma[..., 0::2], chroma[..., 1::2]
    parts = torch.stack([v * crv >> 16, (u * cgu >> 16) + (v * cgv >> 16), u * cbu >> 16], -1)
    parts = parts.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return (luma[..., None] + parts).clamp_(0, 255).to(torch.uint8)
