"""Q-Frame: draw frames by their scores without replacement, and give the first drawn more pixels.

Cost: one draw and one sort.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from itg_model.policies.registry import Floats, Indices, Number, register
from itg_model.policies.selection import select_frames

TIERS = ((4, 2), (8, 4), (32, 8))
"""Frames and the divisor of their sides, the best first: together as many tokens as 8 frames at
half side."""


@register(
    "q-frame",
    summary="draws frames at random, the better the likelier",
    source="https://github.com/xiaomi-research/q-frame",
    parameters=(
        Number(name="tau", default=0.8, least=1e-6, doc="temperature: the higher, the more even"),
        Number(name="seed", default=0, least=0, most=2**63 - 1, whole=True, doc="of the draw"),
    ),
)
def _q_frame(scores: Floats, k: int, *, parity: bool, tau: float, seed: int) -> Indices:
    """The ranking of Q-Frame (arXiv 2506.22139): the first k of the Gumbel-max trick.

    Adding Gumbel noise to `log softmax(scores / tau)` and taking the k greatest draws k frames
    without replacement from that softmax. Scores are expected at the scale of logits: the authors
    pass raw LongCLIP products, some 10 to 30. Scores whose spread is small against `tau`, such as
    probabilities at the default, are drawn almost evenly. For their three resolutions see
    `split_resolutions`.

    One seed gives one row of noise: whoever draws for many videos and counts the draws as
    independent gives each a seed of its own.

    The authors do not seed the noise and draw it with torch in float32, kept from log 0 by adding
    1e-10 twice; where the softmax underflows, order is arbitrary. In parity the noise is
    `torch.rand` after `torch.manual_seed(seed)` on the CPU. By default it comes from numpy, exact
    and in float64, and no softmax is needed, for a constant does not change an order.
    """
    if not parity:
        noise = np.random.default_rng(seed).gumbel(size=len(scores))
        return np.argsort(-((scores - scores.max()) / tau + noise), kind="stable")[:k]
    # imported here: only parity wants another library's random numbers
    import torch

    logits = torch.from_numpy(scores.copy())[None] / tau
    uniform = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed))
    noise = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    keys = torch.log(logits.softmax(dim=1)[0]) + noise
    return np.sort(np.argsort(-keys.numpy())[:k])


def split_resolutions(
    scores: npt.ArrayLike,
    tiers: tuple[tuple[int, int], ...] = TIERS,
    parity: bool = False,
    **params: Any,
) -> tuple[Indices, Indices]:
    """Chooses frames as Q-Frame does and says how small each is to be.

    Args:
        scores: As in `select_frames`.
        tiers: Number of frames and divisor of their sides, the frames drawn first in the first.
        parity: As in `select_frames`.
        **params: `tau` and `seed` of the policy.

    Returns:
        Places of the frames in time order, and the divisor of each.

    Raises:
        ValueError: As `select_frames`, or a tier holds no frames or a divisor below 1.
    """
    for count, divisor in tiers:
        if count < 1 or divisor < 1:
            raise ValueError(f"tiers must hold numbers >= 1, got {(count, divisor)}")
    divisor_of: dict[int, int] = {}
    total = 0
    for count, divisor in tiers:
        total += count
        # the first few of a draw do not depend on how many are asked for
        for place in select_frames(scores, total, "q-frame", parity, **params).tolist():
            divisor_of.setdefault(place, divisor)
    places = np.array(sorted(divisor_of), dtype=np.int64)
    return places, np.array([divisor_of[i] for i in places.tolist()], dtype=np.int64)
