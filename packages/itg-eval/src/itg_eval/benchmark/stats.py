"""Is the difference between two ways of answering the same questions more than chance?

Both see the same questions, so what counts are the questions on which they differ. Questions about
one video stand or fall together; the bootstrap draws whole videos, or it would call differences
certain that are not. McNemar's test takes questions for independent and is there because everyone
reports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np

NUM_RESAMPLES = 10_000
FEW_GROUPS = 10
"""With fewer groups than this the interval is too narrow to go by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much better the second way is than the first, in accuracy."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval, from a paired bootstrap over videos; None with fewer than two
    videos, which say nothing of how others differ."""
    high: float | None
    """Upper end; None likewise."""
    num_groups: int
    """How many videos there are."""
    num_gained: int
    """Questions that only the second way answers rightly."""
    num_lost: int
    """Questions that only the first way answers rightly."""
    p_value: float
    """McNemar's exact test, two-sided."""

    @property
    def verdict(self) -> Literal["gain", "loss", "unsure"]:
        """What is certain: the whole interval lies on one side of zero, and can be gone by."""
        if self.num_groups < FEW_GROUPS:
            return "unsure"
        if self.low is not None and self.low > 0:
            return "gain"
        return "loss" if self.high is not None and self.high < 0 else "unsure"


def compare(
    first: Sequence[bool], second: Sequence[bool], groups: Sequence[str], seed: int = 0
) -> Difference:
    """Compares two ways of answering the same questions.

    Args:
        first: [N] whether each question was answered rightly the first way; N >= 1.
        second: [N] the same, the second way.
        groups: [N] what stands or falls together, such as the question's video.
        seed: Of the bootstrap's draws.
    """
    if not len(first) == len(second) == len(groups) > 0:
        raise ValueError(
            "first, second and groups must be equally long and not empty, got lengths "
            f"{len(first)}, {len(second)} and {len(groups)}"
        )
    change = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    group = np.unique(groups, return_inverse=True)[1]
    num_groups = int(group.max()) + 1
    low, high = _bootstrap(change, group, seed) if num_groups > 1 else (None, None)
    num_gained, num_lost = int((change > 0).sum()), int((change < 0).sum())
    return Difference(
        mean=float(change.mean()),
        low=low,
        high=high,
        num_groups=num_groups,
        num_gained=num_gained,
        num_lost=num_lost,
        p_value=mcnemar_p_value(num_gained, num_lost),
    )


def mcnemar_p_value(num_gained: int, num_lost: int) -> float:
    """How likely so uneven a split, or a more uneven one, is if both directions are equally likely.

    Exact and two-sided: the binomial distribution, no approximation.
    """
    num_changed = num_gained + num_lost
    tail = sum(comb(num_changed, i) for i in range(min(num_gained, num_lost) + 1))
    # integers of any size divide exactly; floats of 2**n would overflow
    return min(1.0, 2 * tail / 2**num_changed)


def _bootstrap(
    change: np.ndarray[tuple[int], np.dtype[np.float64]],
    group: np.ndarray[tuple[int], np.dtype[np.int64]],
    seed: int,
) -> tuple[float, float]:
    sums, sizes = np.bincount(group, weights=change), np.bincount(group)
    rng = np.random.default_rng(seed)
    means = np.empty(NUM_RESAMPLES)
    for i in range(NUM_RESAMPLES):
        drawn = rng.integers(len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
