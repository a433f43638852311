"""Policies that go by the order of the frames alone: uniform, top-k, min-gap, bin-max.

Also what all chapters share: the order of scores and the filling of what a policy leaves open.
Cost: one sort; min-gap adds a binary search a frame.
"""

import bisect
from itertools import pairwise

import numpy as np

from itg_model.policies.registry import Array, Floats, Indices, Number, register


def order_by_score(scores: Floats) -> Indices:
    """Sorts frames by score, the best first; ties go to the earlier frame, NaN comes last."""
    # numpy sorts NaN behind everything, infinity included
    return np.argsort(-scores, kind="stable").astype(np.int64)


def fill_up(chosen: Indices, scores: Floats, k: int) -> Indices:
    """Drops repeats among the chosen frames and adds the best others until there are min(k, T)."""
    distinct = np.unique(chosen).astype(np.int64)
    is_open = np.ones(len(scores), dtype=bool)
    is_open[distinct] = False
    order = order_by_score(scores)
    return np.concatenate([distinct, order[is_open[order]][: max(0, k - len(distinct))]])


@register(
    "uniform",
    summary="evenly over time, whatever the scores",
    source="https://github.com/Jialuo-Li/DIG",
    looks_at_scores=False,
)
def _uniform(scores: Floats, k: int, *, parity: bool) -> Indices:
    """The middles of k equal parts; NaN is as good as any score, for none is looked at.

    The form common in the field (FRAG, DIG, Q-Frame) puts the first and the last frame in, asks
    for frame 0 when k is 1, and repeats frames when there are fewer than k.
    """
    if parity:
        return np.linspace(0, len(scores) - 1, k, dtype=np.int64)
    return (np.arange(k) * 2 + 1) * len(scores) // (2 * k)


@register(
    "top-k",
    summary="the k best frames",
    source="https://github.com/NVlabs/VideoITG",
)
def _top_k(scores: Floats, k: int, *, parity: bool) -> Indices:
    """The reference sorts its scores, best first, and its readers put the first k in time order.

    Its sort takes NaN for the greatest value, so that a frame whose score failed comes first; and
    it has no rule for ties. Here, in parity too, they go to the earlier frame.
    """
    if parity:
        order = order_by_score(scores)
        failed = np.isnan(scores[order])
        return np.sort(np.concatenate([order[failed], order[~failed]])[:k])
    # here, for the other policies do without torch
    import torch
    from itg_kernels import topk_chronological

    indices, _ = topk_chronological(torch.from_numpy(np.ascontiguousarray(scores)), k)
    return indices.numpy()


@register(
    "min-gap",
    summary="the best frames that keep a distance in time",
    source="itg_kernels.topk_chronological",
    parameters=(
        Number(name="min_gap_s", default=2.0, least=0.0, doc="least distance of two frames, in s"),
        Array(name="times_s", shape=("T",), doc="time of every frame; without it 0, 1, 2, ..."),
    ),
)
def _min_gap(
    scores: Floats, k: int, *, parity: bool, min_gap_s: float, times_s: Floats | None
) -> Indices:
    """Takes the best frame, drops all that lie nearer to it than the gap, and goes on.

    No one's publication, but the plain diversity rule, scored like top-k. Its literal form
    (parity) may end with fewer than k frames, as `itg_kernels.topk_chronological` does. By default
    the gap then gives way: it is halved, and the greedy walk goes on among the frames left over,
    until there are k.
    """
    times = np.arange(float(len(scores))) if times_s is None else times_s.astype(np.float64)
    clock: list[float] = times.tolist()
    order = order_by_score(scores).tolist()
    gap, taken = min_gap_s, list[float]()
    chosen = _walk(order, clock, gap, k, taken)
    if not parity:
        steps = np.diff(np.unique(times))
        smallest = steps.min() if len(steps) else np.inf
        while len(chosen) < k and gap > smallest:
            gap /= 2
            left = [i for i in order if i not in chosen]
            chosen |= _walk(left, clock, gap, k - len(chosen), taken)
    picks = np.array(sorted(chosen), dtype=np.int64)
    return picks if parity else fill_up(picks, scores, k)


def _walk(
    order: list[int], clock: list[float], gap: float, most: int, taken: list[float]
) -> set[int]:
    """The first `most` of `order` that keep the gap to all before; their times go into `taken`."""
    chosen: set[int] = set()
    for i in order:
        if len(chosen) == most:
            break
        place = bisect.bisect(taken, clock[i])
        neighbours = taken[max(0, place - 1) : place + 1]
        if all(abs(clock[i] - time) >= gap for time in neighbours):
            taken.insert(place, clock[i])
            chosen.add(i)
    return chosen


@register(
    "bin-max",
    summary="the best frame of each of k equal stretches of time",
    source="https://github.com/Hui-design/TSPO",
)
def _bin_max(scores: Floats, k: int, *, parity: bool) -> Indices:
    """TSPO's choice for Video-MME (arXiv 2508.04369).

    Centres lie at `round(i * (T - 1) / (k - 1))`, a half going to the even number; each frame
    belongs to the nearest centre, the lower of two; the best frame of each bin is kept, the
    earlier of two. One bin holds everything. Always min(k, T) distinct frames, so the default
    differs only where NaN is, which the authors' argmax prefers.
    """
    num_frames = len(scores)
    num_bins = min(k, num_frames)
    # multiplied in this order: the authors round the multiples of a rounded step
    step = (num_frames - 1) / max(1, num_bins - 1)
    centres = [round(i * step) for i in range(num_bins)]
    starts = [0, *((a + b) // 2 + 1 for a, b in pairwise(centres))]
    ends = [*starts[1:], num_frames]
    best = [a + int(scores[a:b].argmax()) for a, b in zip(starts, ends, strict=True)]
    return np.array(best, dtype=np.int64)
