import numpy as np
import pytest
from itg_data.records import FrameScores, TimeSpan
from itg_eval.grounding import (
    IOU_THRESHOLDS,
    clue_recall,
    measure_scores,
    measure_selection,
    predict_spans,
    recall_at_iou,
    span_iou,
)


def span(start_s, end_s) -> TimeSpan:
    return TimeSpan(start_s=start_s, end_s=end_s)


def scored(values, step_s=1.0) -> FrameScores:
    return FrameScores(
        video="v.mp4",
        question="q",
        model="m",
        sampling="s",
        source_idx=tuple(range(len(values))),
        time_s=tuple(step_s * i for i in range(len(values))),
        scores=tuple(map(float, values)),
    )


@pytest.mark.parametrize(
    ("predicted", "labelled", "iou"),
    [
        ([(0, 10)], [(0, 10)], 1.0),
        ([(0, 10)], [(10, 20)], 0.0),
        ([(0, 10)], [(5, 15)], 5 / 15),
        ([(0, 4), (8, 12)], [(2, 10)], 4 / 12),
        ([(0, 6), (4, 10)], [(0, 10)], 1.0),  # what overlaps counts once
        ([(6, 8), (0, 2)], [(0, 2), (6, 8)], 1.0),  # in any order
        ([], [(0, 1)], 0.0),
        ([], [], 0.0),
    ],
)
def test_iou_is_common_time_over_time_in_either(predicted, labelled, iou):
    sides = [[span(*pair) for pair in side] for side in (predicted, labelled)]
    assert span_iou(*sides) == pytest.approx(iou)
    assert span_iou(*sides[::-1]) == pytest.approx(iou)


def test_iou_agrees_with_counting_instants():
    rng = np.random.default_rng(0)
    instants = np.arange(0, 50, 0.01) + 0.005
    for _ in range(50):
        sides = []
        for _ in range(2):
            edges = rng.integers(0, 50, (rng.integers(1, 6), 2))
            sides.append([span(float(min(e)), float(max(e)) + 1) for e in edges.tolist()])
        left, right = (
            np.any([(instants >= s.start_s) & (instants < s.end_s) for s in side], axis=0)
            for side in sides
        )
        expected = (left & right).sum() / (left | right).sum()
        assert span_iou(*sides) == pytest.approx(expected, abs=1e-3)


def test_recall_at_iou_is_averaged_over_the_thresholds_of_cg_bench():
    assert IOU_THRESHOLDS == (0.1, 0.2, 0.3, 0.4, 0.5)
    # above 0.1 and 0.2; above all; above none; at a threshold is not above it
    assert recall_at_iou([0.25]) == pytest.approx(2 / 5)
    assert recall_at_iou([0.9, 0.0]) == pytest.approx(1 / 2)
    assert recall_at_iou([0.5]) == pytest.approx(4 / 5)


def test_clue_recall_is_the_share_of_spans_that_are_hit():
    spans = [span(0, 2), span(5, 6), span(8, 10)]
    assert clue_recall([0.5, 1.0, 9.0], spans) == pytest.approx(2 / 3)
    assert clue_recall([2.0, 6.0], spans) == 0  # half-open
    assert clue_recall([], spans) == 0


def test_frames_above_half_way_join_to_spans_on_the_labels_own_grid():
    assert predict_spans(scored([0, 0.1, 0.9, 1, 0.2, 0.8])) == [span(2, 4), span(5, 6)]
    assert predict_spans(scored([0, 1, 0], step_s=0.5)) == [span(0.5, 1)]
    assert predict_spans(scored([-3, -1, -2.5])) == [span(1, 2)]
    assert predict_spans(scored([0.3, 0.3])) == [span(0, 2)]
    assert predict_spans(scored([0.3])) == [span(0, 1)]


def test_at_most_five_spans_are_predicted_the_best():
    values = [9, 0, 5, 0, 6, 0, 7, 0, 5, 0, 8, 0, 5]
    starts = [int(s.start_s) for s in predict_spans(scored(values))]
    assert starts == [0, 2, 4, 6, 10]


def test_perfect_scores_measure_one_and_reversed_ones_little():
    labels = [span(2, 4), span(7, 8)]
    truth = [0, 0, 1, 1, 0, 0, 0, 1, 0, 0]
    perfect = measure_scores(scored(truth), labels, [3])
    assert perfect == {
        "average_precision": 1.0,
        "span_iou": 1.0,
        "recall@3": 1.0,
        "clue_recall@3": 1.0,
    }
    worst = measure_scores(scored([1 - t for t in truth]), labels, [3])
    assert worst["span_iou"] == worst["recall@3"] == worst["clue_recall@3"] == 0
    assert worst["average_precision"] < 0.3


def test_a_span_between_the_sampled_frames_has_no_recall():
    measures = measure_scores(scored([0, 1, 0]), [span(1.2, 1.6)], [2])
    assert set(measures) == {"span_iou", "clue_recall@2"}
    assert measures["span_iou"] == pytest.approx(0.4)


def test_recall_is_of_frames_and_clue_recall_of_spans():
    labels = [span(0, 4), span(8, 9)]
    measures = measure_selection(scored([0] * 10), np.array([0, 1, 8]), labels, 3)
    assert measures == {"recall@3": 3 / 5, "clue_recall@3": 1.0}
