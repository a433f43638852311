import numpy as np
import pytest
import torch
from itg_kernels import topk_chronological
from itg_model import select_frames
from itg_model.policies import policy_names


@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 100, 512])
@pytest.mark.parametrize("k", [1, 2, 7, 32, 600])
def test_every_policy_gives_exactly_the_frames_asked_for(policy, parity, num_frames, k):
    scores = np.round(np.random.default_rng(num_frames).random(num_frames), 1)
    chosen = select_frames(scores, k, policy, parity)
    assert chosen.dtype == np.int64
    assert len(chosen) == min(k, num_frames)
    assert (np.diff(chosen) > 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < num_frames


@pytest.mark.parametrize("k", [1, 3, 20])
def test_top_k_agrees_with_the_kernel(k):
    scores = np.round(np.random.default_rng(k).normal(size=50), 1)
    scores[::7] = np.nan
    wanted, _ = topk_chronological(torch.tensor(scores, dtype=torch.float32), k)
    assert select_frames(scores, k).tolist() == wanted.tolist()


def test_top_k_breaks_ties_towards_the_earlier_frame():
    assert select_frames([1, 2, 2, 2, 1], 2).tolist() == [1, 2]
    assert select_frames([0.0, -0.0, 0.0], 2).tolist() == [0, 1]


def test_top_k_takes_nan_only_when_nothing_else_is_left():
    scores = [np.nan, -np.inf, np.nan, np.inf]
    assert select_frames(scores, 2).tolist() == [1, 3]
    assert select_frames(scores, 3).tolist() == [0, 1, 3]


def test_uniform_takes_the_middles_of_equal_parts_or_in_parity_the_ends():
    assert select_frames(np.zeros(10), 1, "uniform").tolist() == [5]
    assert select_frames(np.zeros(12), 3, "uniform").tolist() == [2, 6, 10]
    assert select_frames(np.zeros(12), 3, "uniform", parity=True).tolist() == [0, 5, 11]


def test_no_frames_give_no_choice():
    assert select_frames([], 3).tolist() == []


@pytest.mark.parametrize(
    ("scores", "k", "policy", "message"),
    [
        ([1.0], 0, "top-k", "k must be >= 1, got 0"),
        ([1.0], 1, "best", "policy must be one of top-k, uniform, got 'best'"),
        ([[1.0]], 1, "top-k", r"scores must be \[T\], got shape \(1, 1\)"),
    ],
)
def test_a_senseless_request_is_an_error_that_names_it(scores, k, policy, message):
    with pytest.raises(ValueError, match=message):
        select_frames(scores, k, policy)


def test_a_parameter_that_a_policy_does_not_have_is_an_error():
    with pytest.raises(TypeError, match="temperature"):
        select_frames([1.0, 2.0], 1, "top-k", temperature=2)
