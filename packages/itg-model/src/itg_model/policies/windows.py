"""Policies that reason about stretches of time: DIG's windows, and non-maximum suppression.

Cost: DIG O(T) a pass; suppression O(T) for each window kept.
"""

import numpy as np

from itg_model.policies.ranking import fill_up
from itg_model.policies.registry import Array, Floats, Indices, Number, register


@register(
    "dig",
    summary="evenly over windows around the moments that matter",
    source="https://github.com/Jialuo-Li/DIG",
    parameters=(
        Array(
            name="boundaries",
            shape=("T+1",),
            ascending=True,
            doc="frame numbers between which the scored moments lie; without them, each scored "
            "frame is a moment",
        ),
        Number(name="window", default=2, least=0, whole=True, doc="boundaries taken on each side"),
    ),
    picks_scored_frames=False,
)
def _dig(
    scores: Floats, k: int, *, parity: bool, boundaries: Floats | None, window: int
) -> Indices:
    """The refinement step of DIG (arXiv 2512.04000), for questions about a moment.

    Each score is the reward of a moment, which lies between two boundaries, both frames of the
    video; the frames chosen are counted as these are. Rewards are brought to 0..100. Of those
    above 0, the moments kept are the fewer of two sets: what is left when the mean is subtracted
    until nothing more falls to 0, or what is above half the maximum. Around each, `window`
    boundaries on either side make an interval; k frames lie evenly over all intervals, ends
    included. With no moment kept, the interval is the whole video.

    The authors never use the last boundary, so the end of the video is cut off; repeat frames when
    the intervals hold fewer than k; and take the whole video when the rewards above 0 are all
    equal, for the mean leaves nothing of them. By default the last boundary is used, the windows
    widen until they hold min(k, frames of the video) frames, and an empty set does not win.
    """
    num_moments = len(scores)
    if boundaries is None:
        boundaries = np.minimum(np.arange(num_moments + 1), num_moments - 1)
    bounds = boundaries.astype(np.int64)
    kept = _keep_moments(scores.astype(np.float64), parity)
    if len(kept) == 0:
        firsts, ends = bounds[:1], bounds[-1:]
        return _spread(firsts, ends, k if parity else min(k, _measure(firsts, ends)))
    last = num_moments - 1 if parity else num_moments
    firsts, ends = _merge(
        bounds[np.maximum(0, kept - window)], bounds[np.minimum(last, kept + window)]
    )
    if not parity:
        k = min(k, int(bounds[-1] - bounds[0]) + 1)
        while _measure(firsts, ends) < k:
            window += 1
            firsts, ends = _merge(
                bounds[np.maximum(0, kept - window)], bounds[np.minimum(last, kept + window)]
            )
    return _spread(firsts, ends, k)


def _keep_moments(rewards: Floats, parity: bool) -> Indices:
    spread = rewards.max() - rewards.min()
    if spread == 0:
        return np.empty(0, dtype=np.int64)
    scaled = (rewards - rewards.min()) / (spread + 1e-8) * 100
    active = np.flatnonzero(scaled > 0)
    if len(active) < 2:
        return active
    above_means = scaled[active]
    num_zeros = -1
    while num_zeros != (num_zeros := np.count_nonzero(above_means == 0)):
        above_means = np.maximum(above_means - above_means.mean(), 0)
    by_means = active[above_means > 0]
    by_half = active[scaled[active] > 0.5 * scaled.max()]
    if len(by_means) > len(by_half) or (len(by_means) == 0 and not parity):
        return by_half
    return by_means


def _merge(firsts: Indices, ends: Indices) -> tuple[Indices, Indices]:
    """Joins intervals, both ends included, that share a frame; both ends must not descend."""
    apart = firsts[1:] > ends[:-1]
    return firsts[np.append(True, apart)], ends[np.append(apart, True)]


def _measure(firsts: Indices, ends: Indices) -> int:
    return int((ends - firsts + 1).sum())


def _spread(firsts: Indices, ends: Indices, k: int) -> Indices:
    totals = np.cumsum(ends - firsts + 1)
    places = np.linspace(0, totals[-1] - 1, k, dtype=np.int64)
    interval = np.searchsorted(totals, places, side="right")
    return ends[interval] + 1 - (totals[interval] - places)


@register(
    "temporal-nms",
    summary="the best windows that overlap little",
    source="https://github.com/jayleicn/moment_detr",
    parameters=(
        Array(name="windows", shape=("T", 2), required=True, doc="start and end of every window"),
        Number(name="iou", default=0.7, least=0.0, most=1.0, doc="overlap above which one goes"),
    ),
)
def _temporal_nms(scores: Floats, k: int, *, parity: bool, windows: Floats, iou: float) -> Indices:
    """Temporal non-maximum suppression of moment retrieval (Moment-DETR, UniVTG, lighthouse).

    What is scored and chosen are windows in time. The best is kept and those that overlap it by
    more than `iou` are dropped, and so on. The overlap is the common length over the length of
    the hull; for windows that touch this is the union, and for others the overlap is 0 either way.

    The authors give the windows best first, and fewer than k once the others are suppressed. By
    default those missing are the best of the suppressed. The threshold of 0.7 is that of UniVTG's
    runs.
    """
    starts, ends = windows.astype(np.float64).T
    if (starts > ends).any():
        i = int(np.flatnonzero(starts > ends)[0])
        raise ValueError(
            f"policy temporal-nms: windows must start before they end, got {windows[i].tolist()}"
        )
    # sorted as the authors: what it makes of NaN is part of their answer
    values = scores.tolist()
    alive = np.array(sorted(range(len(values)), key=values.__getitem__, reverse=True))
    kept: list[int] = []
    while len(alive) and len(kept) < k:
        best, alive = alive[0], alive[1:]
        common = np.minimum(ends[best], ends[alive]) - np.maximum(starts[best], starts[alive])
        hull = np.maximum(ends[best], ends[alive]) - np.minimum(starts[best], starts[alive])
        # below 0 where the windows are apart; two equal moments do not overlap, as the authors say
        overlap = common / np.where(hull == 0, 1, hull)
        alive = alive[overlap <= iou]
        kept.append(int(best))
    picks = np.array(kept, dtype=np.int64)
    return picks if parity else fill_up(picks, scores, k)
