"""Which frames to keep, given a score for each: one function per policy, one registry.

Every policy gives exactly `min(k, T)` distinct frames in time order. With `parity=True` a policy
does what its published form does, where that differs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


Policy = Callable[..., Indices]
"""Called with [T] float64 scores, k in 1..T, `parity=` and its own parameters by name; gives k
distinct places in any order."""

_POLICIES: dict[str, Policy] = {}


def _register(name: str) -> Callable[[Policy], Policy]:
    def add(policy: Policy) -> Policy:
        _POLICIES[name] = policy
        return policy

    return add


def policy_names() -> tuple[str, ...]:
    """Names of all policies, sorted."""
    return tuple(sorted(_POLICIES))


def select_frames(
    scores: npt.ArrayLike, k: int, policy: str = "top-k", parity: bool = False, **params: Any
) -> Indices:
    """Chooses the frames to keep.

    Args:
        scores: [T] of the frames in time order, in any unit; higher is better.
        k: Frames to choose, >= 1; all T where there are fewer.
        policy: One of `policy_names()`.
        parity: Follow the published form of the policy to the letter.
        **params: The policy's own parameters.

    Returns:
        [min(k, T)] int64 distinct places among the frames, ascending.

    Raises:
        ValueError: Unknown policy, `k` below 1, or scores that are not one row.
    """
    row = np.asarray(scores, dtype=np.float64)
    if row.ndim != 1:
        raise ValueError(f"scores must be [T], got shape {row.shape}")
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(policy_names())}, got {policy!r}")
    if len(row) == 0:
        return np.empty(0, dtype=np.int64)
    return np.sort(_POLICIES[policy](row, min(k, len(row)), parity=parity, **params))


def order_by_score(scores: npt.NDArray[np.float64]) -> Indices:
    """Sorts frames by score, the best first; ties go to the earlier frame, NaN comes last."""
    is_nan = np.isnan(scores)
    return np.lexsort((np.where(is_nan, 0.0, -scores), is_nan)).astype(np.int64)


@_register("top-k")
def _top_k(scores: npt.NDArray[np.float64], k: int, *, parity: bool) -> Indices:
    """The k best; the published form has no rule for ties, so parity changes nothing."""
    return order_by_score(scores)[:k]


@_register("uniform")
def _uniform(scores: npt.NDArray[np.float64], k: int, *, parity: bool) -> Indices:
    """Evenly over time, whatever the scores: the middles of k equal parts.

    The form common in the field puts the ends of the range first and asks for frame 0 when k is 1.
    """
    if parity:
        return np.linspace(0, len(scores) - 1, k).astype(np.int64)
    return (np.arange(k) * 2 + 1) * len(scores) // (2 * k)
