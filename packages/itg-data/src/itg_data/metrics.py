"""How well scores find the relevant frames; training and evaluation both measure with these.

A ranking is judged by average precision, a selection by recall. Ties in scores are broken towards
the earlier frame, as selection breaks them, so a metric never flatters a model that scores all
frames alike.
"""

import math

import numpy as np
import numpy.typing as npt


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean, over the relevant frames, of the precision of the ranking down to that frame.

    Args:
        scores: [T] real; NaN ranks last.
        labels: [T] bool, True for relevant frames.

    Returns:
        0..1; 1 when every relevant frame is ranked above every other.

    Raises:
        ValueError: Shapes differ, or no frame is relevant.
    """
    values, relevant = _check(scores, labels)
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    hits = relevant[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def recall(selected: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of the relevant frames that a selection holds.

    Args:
        selected: [k] indices into `labels`; repeats count once.
        labels: [T] bool, True for relevant frames.

    Returns:
        0..1.

    Raises:
        ValueError: No frame is relevant, or an index is out of range.
    """
    relevant = np.asarray(labels, dtype=bool)
    indices = np.unique(np.asarray(selected, dtype=np.int64))
    if not relevant.any():
        raise ValueError("recall needs at least one relevant frame")
    if len(indices) and not (indices[0] >= 0 and indices[-1] < len(relevant)):
        raise ValueError(f"selected must be in 0..{len(relevant) - 1}, got {indices}")
    return float(relevant[indices].sum() / relevant.sum())


def num_selected(num_frames: int, share: float) -> int:
    """How many frames "the best 10 percent" are: rounded up, so never none.

    Args:
        num_frames: >= 1.
        share: In (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    # 0.1 * 30 is 3.0000000000000004 in floating point; that must not become 4
    return math.ceil(round(share * num_frames, 9))


def _check(
    scores: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    relevant = np.asarray(labels, dtype=bool)
    if values.ndim != 1 or values.shape != relevant.shape:
        raise ValueError(
            f"scores and labels must be [T] alike, got {values.shape} and {relevant.shape}"
        )
    if not relevant.any():
        raise ValueError("average precision needs at least one relevant frame")
    return values, relevant
