"""Which frames of a video are looked at: the one definition of "frame 120".

The reference has two samplers. Both first take every `round(fps / rate)`-th frame; where that is
more than the cap they thin the candidates in different ways. `train` (its trainer and its demo)
keeps the last candidate and may skip frame 0; `lmms-eval` (its benchmark) keeps frame 0 and may
miss the end. They agree wherever the cap does not bite. A selection is only comparable with
another if both used the same rule, so the rule is part of every record of scores.

Source: behaviour of NVlabs/VideoITG at fab8b54 (infer.py, lmms_eval/models/videoitg.py),
reimplemented; unlike its benchmark sampler, a low frame rate cannot give a stride of zero.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

SamplingRule = Literal["train", "lmms-eval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How many frames of a video are looked at, and which."""

    rate_hz: float = 1.0
    """Frames taken per second of video, before the cap."""

    max_frames: int = 512
    """Upper bound per video; longer videos are thinned evenly over their whole length."""

    rule: SamplingRule = "train"
    """Which of the reference's samplers thins a long video: train or lmms-eval."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ValueError(f"sampling.rate_hz must be finite and > 0, got {self.rate_hz}")
        if self.max_frames < 1:
            raise ValueError(f"sampling.max_frames must be >= 1, got {self.max_frames}")
        if self.rule not in ("train", "lmms-eval"):
            raise ValueError(f"sampling.rule must be train or lmms-eval, got {self.rule!r}")

    def describe(self) -> str:
        """Names the rule in one word, such as `train-1hz-max512`; part of record keys."""
        return f"{self.rule}-{self.rate_hz:g}hz-max{self.max_frames}"


def sample_source_indices(
    num_frames: int, fps: float, config: SamplingConfig
) -> npt.NDArray[np.int64]:
    """Chooses the source frames of a video that are looked at.

    Args:
        num_frames: Frames in the file, >= 1.
        fps: Average frame rate of the file in Hz, > 0.
        config: Rate, cap and rule.

    Returns:
        [T] int64 source indices, ascending and distinct, 1 <= T <= `config.max_frames`.

    Raises:
        ValueError: `num_frames` or `fps` is out of range.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be >= 1, got {num_frames}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be finite and > 0, got {fps}")
    # beyond the last frame every stride is alike, and it may be too large for an integer
    stride = max(1, round(min(fps / config.rate_hz, num_frames)))
    candidates = np.arange(0, num_frames, stride, dtype=np.int64)
    if len(candidates) <= config.max_frames:
        return candidates
    # Python's float arithmetic and half-to-even rounding, in the reference's order of operations
    scale = len(candidates) / config.max_frames
    if config.rule == "train":
        picks = [round((i + 1) * scale - 1) for i in range(config.max_frames)]
    else:
        picks = [int(i * scale) for i in range(config.max_frames)]
    return candidates[picks]
