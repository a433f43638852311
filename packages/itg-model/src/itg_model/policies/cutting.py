"""Policies that read the scores as a mass over time: AKS cuts it in halves, BOLT draws from it.

Cost: AKS sorts every segment of every depth, O(depth * T log T); BOLT is one cumulative sum.
"""

import heapq
import math
from collections import deque

import numpy as np

from itg_model.policies.ranking import fill_up, order_by_score
from itg_model.policies.registry import Floats, Indices, Number, register

Segment = tuple[int, int, int]
"""First frame, end, and how many cuts lie above it."""


@register(
    "aks",
    summary="halves the video until a part has frames that stand out, and takes each part's best",
    source="https://github.com/ncTimTang/AKS",
    parameters=(
        Number(name="t1", default=0.8, doc="how far the best k must be above the mean of a part"),
        Number(name="t2", default=-100.0, doc="least standard deviation of a part; off if < 0"),
        Number(name="depth", default=5, least=0, most=64, whole=True, doc="cuts one on the other"),
        Number(name="ratio", default=1, least=1, whole=True, doc="take every ratio-th frame"),
    ),
)
def _aks(
    scores: Floats, k: int, *, parity: bool, t1: float, t2: float, depth: int, ratio: int
) -> Indices:
    """Adaptive Keyframe Sampling (arXiv 2502.21271).

    Scores are brought to 0..1. A part of the video stands where the mean of its k best is more
    than `t1` above its mean and its deviation above `t2`; else it is cut in two, `depth` times at
    most. A part under d cuts gives its `k / 2**d` best frames, rounded down. The test compares
    with all k at every depth, so a part of k frames or fewer never stands; that is kept.

    The authors thus give fewer than k frames wherever k is not a multiple of 2**d (none at all for
    k < 32 at depth 5) or a part is short; and divide 0 by 0 when all scores are equal. By default
    what rounding took away goes to the parts whose next frame is best, at most one each, and what
    short parts cannot give to the best frames of the video; equal scores stay equal. In the
    authors' VideoMME settings t1 is 0.8 and depth 5, in LongVideoBench's 0.2 and 3.
    """
    places = np.arange(0, len(scores), ratio)
    if parity:
        places = places[: len(scores) // ratio]
    row = scores[places]
    if len(row) < k:
        return places if parity else fill_up(places, scores, k)
    spread = row.max() - row.min()
    row = row - row.min()
    row = row / spread if parity or spread > 0 else row
    segments = _cut(row, k, t1, t2, depth)
    if parity:
        return places[_take_rounded_down(row, k, segments)]
    return fill_up(places[_take_all(row, k, segments)], scores, k)


def _cut(row: Floats, k: int, t1: float, t2: float, depth: int) -> list[Segment]:
    queue: deque[Segment] = deque([(0, len(row), 0)])
    done: list[Segment] = []
    while queue:
        first, end, level = queue.popleft()
        if level == depth or _stands(row[first:end], k, t1, t2):
            done.append((first, end, level))
        else:
            middle = first + (end - first) // 2
            queue += [(first, middle, level + 1), (middle, end, level + 1)]
    return done


def _stands(part: Floats, k: int, t1: float, t2: float) -> bool:
    if len(part) == 0:
        return False
    # the best first: in this order the authors add them up
    best = np.sort(part)[::-1][:k]
    return bool(best.mean() - part.mean() > t1 and part.std() > t2)


def _take_rounded_down(row: Floats, k: int, segments: list[Segment]) -> Indices:
    taken: list[int] = []
    for first, end, level in segments:
        part = row[first:end]
        # heapq as the authors: what it makes of NaN is part of their answer
        best = heapq.nlargest(k // 2**level, range(len(part)), key=part.__getitem__)
        taken += [first + i for i in best]
    return np.array(sorted(taken), dtype=np.int64)


def _take_all(row: Floats, k: int, segments: list[Segment]) -> Indices:
    sure: list[int] = []
    next_best: list[int] = []
    for first, end, level in segments:
        share = k / 2**level
        order = (first + order_by_score(row[first:end])).tolist()
        sure += order[: math.floor(share)]
        next_best += order[math.floor(share) : math.ceil(share)]
    waiting = np.array(sorted(next_best), dtype=np.int64)
    waiting = waiting[order_by_score(row[waiting])][: k - len(sure)]
    return np.concatenate([np.array(sure, dtype=np.int64), waiting])


@register(
    "bolt",
    summary="evenly over the mass of the scores, not over time",
    source="https://github.com/sming256/BOLT",
    parameters=(
        Number(name="power", default=-1.0, least=0.0, off=-1.0, doc="sharpens the scores"),
    ),
)
def _bolt(scores: Floats, k: int, *, parity: bool, power: float) -> Indices:
    """Inverse transform sampling of BOLT (arXiv 2503.21483).

    Scores are brought to 0..1 and raised to `power` (3 in the authors' runs of Video-MME and MLVU,
    2.5 of LongVideoBench); k quantiles of their cumulative sum give the frames.

    The authors' quantiles run from 1/k to 1 - 1/k: for k = 2 both are the middle, for k = 1 it is
    the end, where rounding can point behind the last frame. A peak is taken many times over, and
    equal scores give frame 0 k times. By default the quantiles are the middles of k equal parts,
    repeats give way to the best frames not chosen yet, and equal scores have equal mass.
    """
    mass = scores - scores.min()
    if not parity and mass.max() == 0:
        mass = np.ones_like(mass)
    mass = mass / mass.max()
    if power != -1:
        mass = mass**power
    cumulated = np.cumsum(mass / mass.sum())
    if parity:
        return np.searchsorted(cumulated, np.linspace(1 / k, 1 - 1 / k, k))
    picks = np.searchsorted(cumulated, (np.arange(k) + 0.5) / k)
    return fill_up(picks, scores, k)
