import numpy as np
import pytest
import torch
from itg_kernels import topk_chronological
from itg_model import select_frames
from itg_model.policies import order_by_score

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_top_k_agrees_with_the_kernel(k):
    scores = np.round(np.random.default_rng(k).normal(size=50), 1)
    scores[::7] = np.nan
    wanted, _ = topk_chronological(torch.tensor(scores, dtype=torch.float32), k)
    assert select_frames(scores, k).tolist() == wanted.tolist()


def test_top_k_breaks_ties_towards_the_earlier_frame():
    assert select_frames([1, 2, 2, 2, 1], 2).tolist() == [1, 2]
    assert select_frames([0.0, -0.0, 0.0], 2).tolist() == [0, 1]
    assert select_frames([1, 2, 2, 2, 1], 2, parity=True).tolist() == [1, 2]


def test_top_k_takes_nan_only_when_nothing_else_is_left_but_the_reference_takes_it_first():
    scores = [np.nan, -np.inf, np.nan, np.inf]
    assert select_frames(scores, 2).tolist() == [1, 3]
    assert select_frames(scores, 3).tolist() == [0, 1, 3]
    assert select_frames(scores, 2, parity=True).tolist() == [0, 2]
    theirs = torch.tensor(scores).sort(descending=True).indices[:3].sort().values
    assert select_frames(scores, 3, parity=True).tolist() == theirs.tolist() == [0, 2, 3]


def test_the_order_of_scores_is_best_first():
    assert order_by_score(np.array([0.2, np.nan, 0.5, 0.2])).tolist() == [2, 0, 3, 1]


def test_uniform_takes_the_middles_of_equal_parts_or_in_parity_the_ends():
    assert select_frames(np.zeros(10), 1, "uniform").tolist() == [5]
    assert select_frames(np.zeros(12), 3, "uniform").tolist() == [2, 6, 10]
    assert select_frames(np.zeros(12), 3, "uniform", parity=True).tolist() == [0, 5, 11]


def test_uniform_in_parity_repeats_frames_of_short_videos_and_takes_frame_0_for_one():
    assert select_frames(np.zeros(3), 5, "uniform", parity=True).tolist() == [0, 0, 1, 1, 2]
    assert select_frames(np.zeros(3), 5, "uniform").tolist() == [0, 1, 2]
    assert select_frames(np.zeros(9), 1, "uniform", parity=True).tolist() == [0]


def spaced_by_definition(scores, k, gap, times):
    chosen: list[int] = []
    while len(chosen) < k:
        far = [
            i for i in range(len(scores)) if all(abs(times[i] - times[j]) >= gap for j in chosen)
        ]
        far = [i for i in far if i not in chosen]
        if not far:
            break
        chosen.append(max(far, key=lambda i: (scores[i], -i)))
    return sorted(chosen)


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0, 7.3])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_min_gap_in_parity_is_the_greedy_walk_and_agrees_with_the_kernel(gap, k):
    for _ in range(10):
        scores = np.round(RNG.random(40), 1)
        times = np.cumsum(RNG.random(40))
        chosen = select_frames(scores, k, "min-gap", True, min_gap_s=gap, times_s=times).tolist()
        assert chosen == spaced_by_definition(scores, k, gap, times)
        kernel, count = topk_chronological(
            torch.tensor(scores, dtype=torch.float32), k, min_gap=gap, times_s=torch.tensor(times)
        )
        assert chosen == kernel[:count].tolist()


def test_min_gap_by_default_halves_the_gap_until_there_are_k_frames():
    scores = [0.9, 0.8, 0.1, 0.2, 0.3, 0.7, 0.6, 0.0, 0.0]
    params = {"min_gap_s": 4.0}
    assert select_frames(scores, 3, "min-gap", parity=True, **params).tolist() == [0, 5]
    assert select_frames(scores, 2, "min-gap", **params).tolist() == [0, 5]
    # with a gap of 2: 3 before 2, 7 is as near as 2 to nothing
    assert select_frames(scores, 3, "min-gap", **params).tolist() == [0, 3, 5]
    assert select_frames(scores, 4, "min-gap", **params).tolist() == [0, 3, 5, 7]
    assert select_frames(scores, 5, "min-gap", **params).tolist() == [0, 1, 3, 5, 7]


def test_min_gap_counts_in_seconds_where_times_are_given():
    scores = [0.9, 0.8, 0.7, 0.6]
    assert select_frames(scores, 2, "min-gap").tolist() == [0, 2]
    assert select_frames(scores, 2, "min-gap", times_s=[0, 2, 4, 6]).tolist() == [0, 1]
    assert select_frames(scores, 2, "min-gap", times_s=[0, 0.5, 1, 2]).tolist() == [0, 3]


def test_min_gap_by_default_halves_the_gap_and_no_more():
    params = {"min_gap_s": 4.0, "times_s": [0.0, 1.5, 2.5]}
    assert select_frames([0.9, 0.8, 0.7], 2, "min-gap", **params).tolist() == [0, 2]
    # frames of other times come before the second of two of the same time
    params = {"min_gap_s": 1.5, "times_s": [0, 0, 1, 5]}
    assert select_frames([0.9, 0.8, 0.1, 0.0], 3, "min-gap", **params).tolist() == [0, 2, 3]


def test_min_gap_has_room_for_frames_of_the_same_time():
    assert select_frames([1, 2, 3, 4], 3, "min-gap", times_s=[5, 5, 5, 5]).tolist() == [1, 2, 3]


def binned_by_definition(scores, k):
    last = len(scores) - 1
    k = min(k, len(scores))
    centres = [last] if k == 1 else [round(i * (last / (k - 1))) for i in range(k)]
    bins: dict[int, list[int]] = {}
    for i in range(len(scores)):
        bins.setdefault(min(range(k), key=lambda b: (abs(i - centres[b]), b)), []).append(i)
    return [max(frames, key=lambda i: (scores[i], -i)) for _, frames in sorted(bins.items())]


def test_bin_max_takes_the_best_frame_around_each_centre():
    for num_frames in (1, 2, 5, 16, 31, 100):
        for k in (1, 2, 3, 8, 30, 64):
            scores = np.round(RNG.random(num_frames), 1)
            wanted = binned_by_definition(scores, k)
            assert select_frames(scores, k, "bin-max").tolist() == wanted
            assert select_frames(scores, k, "bin-max", parity=True).tolist() == wanted


def test_bin_max_by_hand():
    # centres 0, 2 (2.5 goes to the even number), 5; frame 1 is as near to 0 as to 2
    assert select_frames([0, 9, 0, 1, 8, 7], 3, "bin-max").tolist() == [1, 3, 4]


def test_bin_max_in_parity_prefers_nan():
    scores = [0.5, np.nan, 0.9, 0.1]
    assert select_frames(scores, 1, "bin-max", parity=True).tolist() == [1]
    assert select_frames(scores, 1, "bin-max").tolist() == [2]
