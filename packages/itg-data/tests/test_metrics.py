import numpy as np
import pytest
from itg_data.metrics import average_precision, num_selected, recall


def brute_force_average_precision(scores, labels):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    found, precisions = 0, []
    for place, frame in enumerate(order, start=1):
        if labels[frame]:
            found += 1
            precisions.append(found / place)
    return sum(precisions) / len(precisions)


def test_average_precision_equals_its_definition_on_random_and_tied_scores():
    rng = np.random.default_rng(0)
    for num_frames in (1, 2, 17, 100):
        scores = rng.integers(0, 6, num_frames).astype(float)
        labels = rng.random(num_frames) < 0.3
        labels[rng.integers(num_frames)] = True
        expected = brute_force_average_precision(scores, labels)
        assert average_precision(scores, labels) == pytest.approx(expected)


def test_average_precision_is_one_exactly_when_relevant_frames_lead():
    assert average_precision([0.9, 0.1, 0.8], [True, False, True]) == 1
    assert average_precision([0.9, 0.85, 0.8], [True, False, True]) < 1


def test_nan_scores_rank_last():
    assert average_precision([np.nan, 0.1], [True, False]) == 0.5


def test_recall_counts_each_relevant_frame_once():
    assert recall([0, 0, 3], [True, True, False, False]) == 0.5
    assert recall([], [True]) == 0


@pytest.mark.parametrize("selected", [[-1], [4]])
def test_recall_refuses_indices_out_of_range(selected):
    with pytest.raises(ValueError, match="selected must be in"):
        recall(selected, [True, False, False, False])


def test_metrics_refuse_questions_without_relevant_frames():
    with pytest.raises(ValueError, match="relevant"):
        average_precision([0.1], [False])
    with pytest.raises(ValueError, match="relevant"):
        recall([0], [False])


@pytest.mark.parametrize(
    ("num_frames", "share", "expected"), [(48, 0.1, 5), (30, 0.1, 3), (1, 0.05, 1), (20, 0.05, 1)]
)
def test_a_share_of_the_frames_is_rounded_up_without_float_noise(num_frames, share, expected):
    assert num_selected(num_frames, share) == expected
