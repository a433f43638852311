"""WFS-SB: cut the video where the scores change, share the frames out, diversify in each part.

The change of the scores is read off one band of a Daubechies-4 wavelet transform. The transform
and the search for peaks are a few lines each and stand here, so that nothing heavier than numpy is
needed; they give the numbers of PyWavelets 1.8 (`wavedec`, `waverec`, mode `symmetric`) and of
scipy (`find_peaks`). Cost: O(T) for each frame chosen.
"""

import math
from itertools import pairwise

import numpy as np

from itg_model.policies.ranking import order_by_score
from itg_model.policies.registry import Array, Floats, Indices, Number, register

# Daubechies' filter with four vanishing moments; its mirror image, every other sign turned, is
# the filter of the details
LOW_PASS = np.array(
    [
        0.2303778133088965,
        0.7148465705529157,
        0.6308807679298589,
        -0.027983769416859854,
        -0.18703481171909309,
        0.030841381835560764,
        0.0328830116668852,
        -0.010597401785069032,
    ]
)
HIGH_PASS = LOW_PASS[::-1] * np.tile([1.0, -1.0], 4) * -1.0
TAPS = len(LOW_PASS)

# the command line's defaults, with which the published numbers were made; the class has others
DURATION_WEIGHT, MEAN_WEIGHT, MAX_WEIGHT, VARIANCE_WEIGHT = 0.4, 0.2, 0.3, 0.1
STRICTNESS = 1.2
LEAST_IMPORTANCE = 0.05


@register(
    "wfs-sb",
    summary="cuts the video where the scores change, and picks good, unlike frames in each part",
    source="https://github.com/MAC-AutoML/WFS-SB",
    parameters=(
        Number(
            name="mmr_lambda",
            default=0.5,
            least=0.0,
            most=1.0,
            doc="weight of the score against likeness to the frames already chosen",
        ),
        Array(
            name="embeddings",
            shape=("T", "D"),
            doc="features of the frames; without them, near in time counts as alike",
        ),
    ),
)
def _wfs_sb(
    scores: Floats, k: int, *, parity: bool, mmr_lambda: float, embeddings: Floats | None
) -> Indices:
    """Wavelet-based frame selection by semantic boundaries; scores are expected in 0..1.

    Peaks of the coarsest details of the scores' wavelet transform cut the video in parts. A part's
    importance is made of its length, mean, best and variance; where there are more than three
    parts, the poor ones are dropped. A softmax over it shares out the k frames, what rounding
    leaves to the largest remainders. In a part the best frame comes first, the others by
    `mmr_lambda * (2 score - 1) - (1 - mmr_lambda) * likeness`, the likeness being the cosine to
    the nearest chosen frame or, without embeddings, `exp(-distance / 10 frames)`. Then the number
    is made k: by the same rule over the whole video, or by dropping the lowest scores. Without any
    peak, half the frames are uniform and half the best of the others.

    The authors always give min(k, T) distinct frames too; but NaN makes them fall back on uniform
    frames and on those that are NaN, and ties go to the later frame in that fallback. By default
    they go to the earlier one.
    """
    num_frames = len(scores)
    if num_frames <= k:
        return np.arange(num_frames)
    peaks = find_boundaries(scores)
    if len(peaks) == 0:
        return _half_uniform(scores, k, parity)
    edges = [0, *peaks.tolist(), num_frames]
    parts = list(pairwise(edges))
    importance = np.array([_weigh(scores, first, end) for first, end in parts])
    if len(parts) > 3:
        kept = importance >= max(
            LEAST_IMPORTANCE, importance.mean() - STRICTNESS * importance.std()
        )
        if kept.any():
            parts = [part for part, keep in zip(parts, kept, strict=True) if keep]
            importance = importance[kept]
    worth = 2.0 * scores - 1.0
    likeness = _Likeness(num_frames, embeddings)
    chosen: list[int] = []
    for (first, end), count in zip(parts, share_out(importance, k, parity), strict=True):
        if count > 0:
            seed = first + int(worth[first:end].argmax())
            chosen += likeness.extend([seed], count, worth, mmr_lambda, first, end)
    if len(chosen) > k:
        chosen = sorted(sorted(chosen), key=lambda i: worth[i], reverse=True)[:k]
    return np.array(sorted(likeness.extend(chosen, k, worth, mmr_lambda, 0, num_frames)))


def _half_uniform(scores: Floats, k: int, parity: bool) -> Indices:
    even = np.linspace(0, len(scores) - 1, k // 2, dtype=np.int64)
    best = _descending(scores, parity)
    best = best[~np.isin(best, even)][: k - len(even)]
    return np.sort(np.concatenate([even, best]))


def _descending(values: Floats, parity: bool) -> Indices:
    # the authors turn an ascending, unstable order round: ties come as they come
    return np.argsort(values)[::-1] if parity else order_by_score(values)


def _weigh(scores: Floats, first: int, end: int) -> float:
    part = scores[first:end]
    return (
        DURATION_WEIGHT * ((end - first) / len(scores))
        + MEAN_WEIGHT * float(part.mean())
        + MAX_WEIGHT * float(part.max())
        + VARIANCE_WEIGHT * (float(part.var()) / (float(scores.var()) + 1e-8))
    )


def share_out(importance: Floats, k: int, parity: bool) -> list[int]:
    """Shares out k frames in proportion to a softmax; remainders go to the largest fractions."""
    weights = np.exp(importance - importance.max())
    shares = weights / weights.sum() * k
    counts = np.floor(shares).astype(int)
    for i in _descending(shares - counts, parity)[: max(0, k - int(counts.sum()))]:
        counts[i] += 1
    return counts.tolist()


class _Likeness:
    """How alike two frames are: by their embeddings, or by how near they lie in time."""

    def __init__(self, num_frames: int, embeddings: Floats | None) -> None:
        self.fade = np.exp(-np.arange(num_frames) / 10.0)
        self.units = None
        if embeddings is not None:
            lengths = np.sqrt((embeddings**2).sum(axis=1, keepdims=True))
            self.units = embeddings / np.where(lengths == 0, 1, lengths)

    def to_frame(self, i: int) -> Floats:
        """[T] likeness of every frame to frame i."""
        if self.units is not None:
            return self.units @ self.units[i]
        return self.fade[np.abs(np.arange(len(self.fade)) - i)]

    def extend(
        self, chosen: list[int], count: int, worth: Floats, weight: float, first: int, end: int
    ) -> list[int]:
        """Adds frames of `first..end` by maximal marginal relevance until there are `count`."""
        chosen = list(chosen)
        is_open = np.zeros(len(worth), dtype=bool)
        is_open[first:end] = True
        is_open[chosen] = False
        nearest = np.full(len(worth), -1.0)
        for i in chosen:
            nearest = np.maximum(nearest, self.to_frame(i))
        while len(chosen) < count and is_open.any():
            gain = weight * worth - ((1.0 - weight) * nearest).astype(worth.dtype)
            best = int(np.where(is_open, gain, -np.inf).argmax())
            nearest = np.maximum(nearest, self.to_frame(best))
            chosen.append(best)
            is_open[best] = False
        return chosen


def find_boundaries(scores: Floats) -> Indices:
    """Finds where the scores change: peaks in the coarsest details of their transform."""
    num_frames = len(scores)
    # never more than PyWavelets recommends, floor(log2(T / 7)), which the authors clip it to
    level = max(1, math.floor(math.log2(num_frames)) - 3)
    change = np.abs(coarsest_details(scores, level))
    return find_peaks(
        change,
        height=change.mean() + 0.5 * change.std(),
        distance=max(5, int(num_frames * 0.02)),
        prominence=0.05 * (change.max() - change.min()),
    )


def coarsest_details(signal: Floats, level: int) -> Floats:
    """[T] what the details of the given level, the coarsest taken, add to the signal."""
    approximation = signal.astype(np.float32 if signal.dtype == np.float32 else np.float64)
    details, lengths = approximation, []
    for _ in range(level):
        lengths.append(len(approximation))
        details = _analyse(approximation, HIGH_PASS)
        approximation = _analyse(approximation, LOW_PASS)
    band = _synthesize(details, HIGH_PASS)[: lengths[-1]]
    for length in lengths[-2::-1]:
        band = _synthesize(band, LOW_PASS)[:length]
    return band


def _analyse(signal: Floats, synthesis: Floats) -> Floats:
    """[T] -> [(T + 7) // 2], filtered and every other one kept; mirrored beyond the ends."""
    filter_back = synthesis[::-1].astype(signal.dtype)
    ends = 2 * np.arange((len(signal) + TAPS - 1) // 2) + 1
    beyond = ends - len(signal)
    out = np.zeros(len(ends), dtype=signal.dtype)
    for step in range(TAPS):
        # PyWavelets adds up what lies beyond the end from the end outwards; where scores are equal
        # and the sum should be 0, the order makes the last bits, and those the peaks
        tap = np.where(step <= beyond, beyond - step, step)
        place = (ends - tap) % (2 * len(signal))
        out += filter_back[tap] * signal[np.minimum(place, 2 * len(signal) - 1 - place)]
    return out


def _synthesize(band: Floats, synthesis: Floats) -> Floats:
    """[C] -> [2 C - 6], the transpose of `_analyse` where the filter lies inside."""
    filter_to = synthesis.astype(band.dtype)
    half = TAPS // 2
    inner = len(band) - half + 1
    out = np.zeros((inner, 2), dtype=band.dtype)
    for tap in range(half):
        out += (
            band[half - 1 - tap : half - 1 - tap + inner, None] * filter_to[2 * tap : 2 * tap + 2]
        )
    return out.ravel()


def find_peaks(signal: Floats, height: float, distance: int, prominence: float) -> Indices:
    """Finds the local maxima that are high, far apart and prominent, in this order.

    Args:
        signal: [T].
        height: Least value of a peak. A flat top counts once, in its middle (the left of two).
        distance: Least distance of two peaks; the higher one stays.
        prominence: How far a peak must stand above the higher of the lowest points that separate
            it from higher ground, or from the end, on either side.

    Returns:
        [P] places, ascending.
    """
    runs = np.flatnonzero(np.diff(signal, prepend=np.nan) != 0)
    tops = signal[runs]
    is_top = np.zeros(len(runs), dtype=bool)
    is_top[1:-1] = (tops[1:-1] > tops[:-2]) & (tops[1:-1] > tops[2:])
    peaks = ((runs + np.append(runs[1:], len(signal)) - 1) // 2)[is_top]
    peaks = peaks[signal[peaks] >= height]
    stays = np.ones(len(peaks), dtype=bool)
    for i in np.argsort(signal[peaks])[::-1]:
        if stays[i]:
            stays &= (np.abs(peaks - peaks[i]) >= distance) | (peaks == peaks[i])
    kept = [p for p in peaks[stays].tolist() if _prominence(signal, p) >= prominence]
    return np.array(kept, dtype=np.int64)


def _prominence(signal: Floats, peak: int) -> float:
    higher = np.flatnonzero(signal > signal[peak])
    place = int(np.searchsorted(higher, peak))
    left = int(higher[place - 1]) + 1 if place > 0 else 0
    right = int(higher[place]) if place < len(higher) else len(signal)
    return signal[peak] - max(signal[left : peak + 1].min(), signal[peak:right].min())
