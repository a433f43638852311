"""Grey levels as the network sees them, rounded as the reference rounds; only 256 can occur."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# x / 255 in float64, then float32, then (x - 0.5) / 0.5 in float32
_GREY_LEVELS = (np.arange(256) * (1 / 255)).astype(np.float32)
NORMALISED = (_GREY_LEVELS - np.float32(0.5)) / np.float32(0.5)
"""[256] float32 in -1..1."""


def scale_frames(frames: Tensor) -> Tensor:
    """[T, H, W, 3] uint8 -> [T, 3, H, W] float32 in -1..1, on the frames' device."""
    return _table(frames.device)[frames.int()].permute(0, 3, 1, 2)


def as_pixels(frames: Tensor) -> Tensor:
    """Scales uint8 frames; floats are pixels already."""
    return scale_frames(frames) if frames.dtype == torch.uint8 else frames


@lru_cache
def _table(device: torch.device) -> Tensor:
    return torch.from_numpy(NORMALISED).to(device)
