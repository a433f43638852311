"""How well scores and selections find the frames that matter; needs no lmms-eval.

Per question, and then averaged over questions:

- `average_precision` of the ranking of all frames, and `recall@k` of the k frames chosen
  (`itg_data.metrics`).
- `clue_recall@k`: the share of the labelled spans in which at least one chosen frame lies. A
  question about two moments needs a frame of each.
- `span_iou`, whose mean CG-Bench calls mIoU: seconds that the predicted and the labelled spans
  have in common, over seconds in either.
- `rec@iou`: the share of questions whose IoU is above a threshold, averaged over CG-Bench's
  thresholds 0.1, 0.2, 0.3, 0.4 and 0.5.

CG-Bench's further measures, acc@IoU and CRR, join these to right and wrong answers and belong to
the answers' report. Its models name up to five spans in words; a frame scorer's spans are the
stretches of frames whose scores reach half way from the least to the greatest, the five with the
best frames.

Source: CG-Bench (arXiv 2412.12075); what counts as overlap, and the thresholds, as its authors'
evaluation has them in VLMEvalKit (vlmeval/dataset/utils/cgbench.py). `clue_recall` and the way
from scores to spans are ours.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from itg_data.metrics import average_precision, recall
from itg_data.records import FrameScores, TimeSpan, label_frames
from itg_model.policies import select_frames

IOU_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
MAX_SPANS = 5

Measures = dict[str, float]


def span_iou(predicted: Sequence[TimeSpan], labelled: Sequence[TimeSpan]) -> float:
    """Time in both, over time in either; spans of one side that overlap count once.

    Returns:
        0..1; 0 where both are empty.
    """
    left, right = _union(predicted), _union(labelled)
    common = sum(
        max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s)) for a in left for b in right
    )
    either = _length(left) + _length(right) - common
    return common / either if either > 0 else 0.0


def recall_at_iou(ious: Sequence[float]) -> float:
    """CG-Bench's rec@IoU: the share of questions above a threshold, averaged over thresholds."""
    return float(np.mean([[iou > threshold for threshold in IOU_THRESHOLDS] for iou in ious]))


def clue_recall(times_s: npt.ArrayLike, labelled: Sequence[TimeSpan]) -> float:
    """Share of the labelled spans that hold at least one of the times."""
    return float(np.mean([label_frames(times_s, [span]).any() for span in labelled]))


def predict_spans(scored: FrameScores) -> list[TimeSpan]:
    """Joins the frames of high scores to spans, in time order; at most `MAX_SPANS`, the best.

    A frame stands for the time from itself to the next, as labels are given to frames. High is
    half way from the least score to the greatest; where all are alike, every frame is.
    """
    scores, starts_s = np.array(scored.scores), np.array(scored.time_s)
    ends_s = np.append(starts_s[1:], starts_s[-1] + _usual_step(starts_s))
    is_high = scores >= (scores.min() + scores.max()) / 2
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_high, [False]]).astype(np.int8)))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    # stable: of runs that are equally good, the earlier
    best = sorted(runs, key=lambda run: -scores[run[0] : run[1]].max())[:MAX_SPANS]
    return [
        TimeSpan(start_s=max(0.0, float(starts_s[first])), end_s=float(ends_s[end - 1]))
        for first, end in sorted(best)
        if ends_s[end - 1] > max(0.0, starts_s[first])
    ]


def measure_scores(
    scored: FrameScores, labelled: Sequence[TimeSpan], ks: Sequence[int]
) -> Measures:
    """Measures a ranking, and its k best frames; without recall where no frame is relevant.

    Frames too few and far between may all miss a short span: then no ranking of them could find
    it, and average precision and recall have no value.
    """
    relevant = label_frames(scored.time_s, labelled)
    measures: Measures = {}
    if relevant.any():
        measures["average_precision"] = average_precision(scored.scores, relevant)
    measures["span_iou"] = span_iou(predict_spans(scored), labelled)
    for k in ks:
        chosen = select_frames(scored.scores, k, "top-k")
        measures |= measure_selection(scored, chosen, labelled, k)
    return measures


def measure_selection(
    scored: FrameScores, chosen: npt.NDArray[np.int64], labelled: Sequence[TimeSpan], k: int
) -> Measures:
    """Measures frames chosen among those scored, [k'] places in `scored`."""
    times_s = np.array(scored.time_s)
    relevant = label_frames(times_s, labelled)
    measures: Measures = {}
    if relevant.any():
        measures[f"recall@{k}"] = recall(chosen, relevant)
    measures[f"clue_recall@{k}"] = clue_recall(times_s[chosen], labelled)
    return measures


def _union(spans: Sequence[TimeSpan]) -> list[TimeSpan]:
    joined: list[TimeSpan] = []
    for span in sorted(spans, key=lambda span: span.start_s):
        if joined and span.start_s <= joined[-1].end_s:
            last = joined.pop()
            span = TimeSpan(start_s=last.start_s, end_s=max(last.end_s, span.end_s))
        joined.append(span)
    return joined


def _length(spans: Sequence[TimeSpan]) -> float:
    return sum(span.end_s - span.start_s for span in spans)


def _usual_step(times_s: npt.NDArray[np.float64]) -> float:
    """How long the last frame stands: as long as most; a second where it is the only one."""
    return float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0
