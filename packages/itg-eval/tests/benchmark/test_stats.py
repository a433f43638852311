import numpy as np
import pytest
from itg_eval.benchmark.stats import compare, mcnemar_p_value
from scipy.stats import binomtest


@pytest.mark.parametrize(
    ("gained", "lost"), [(1, 0), (5, 5), (9, 2), (0, 12), (400, 310), (900, 2)]
)
def test_mcnemars_p_value_is_the_exact_binomial_one(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue
    assert mcnemar_p_value(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_two_ways_that_agree_everywhere_do_not_differ():
    difference = compare([True, False] * 5, [True, False] * 5, list("aabbccddee"))
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.p_value == 1


def test_the_interval_is_that_of_the_mean_of_paired_differences():
    rng = np.random.default_rng(0)
    first = rng.random(900) < 0.5
    second = np.where(rng.random(900) < 0.2, ~first, first)
    difference = compare(first.tolist(), second.tolist(), [str(i) for i in range(900)])
    change = second.astype(float) - first
    half = 1.96 * change.std() / 30
    assert difference.mean == pytest.approx(change.mean())
    assert difference.low == pytest.approx(change.mean() - half, abs=0.004)
    assert difference.high == pytest.approx(change.mean() + half, abs=0.004)
    # unpaired, as if the two had been asked different questions, it would be twice as wide
    assert difference.high - difference.low < 0.7 * 2 * 1.96 * np.sqrt(0.5 / 900)


def test_questions_about_one_video_do_not_count_as_independent():
    first, second = [False] * 40, [True] * 20 + [False] * 20
    alone = compare(first, second, [str(i) for i in range(40)])
    of_four_videos = compare(first, second, [str(i // 10) for i in range(40)])
    assert of_four_videos.low < alone.low - 0.1
    assert of_four_videos.high > alone.high + 0.1


def test_the_same_answers_give_the_same_interval_and_another_seed_nearly_so():
    first, second = [False] * 30, [True] * 10 + [False] * 20
    groups = [str(i) for i in range(30)]
    assert compare(first, second, groups) == compare(first, second, groups)
    other = compare(first, second, groups, seed=1)
    assert other.low == pytest.approx(compare(first, second, groups).low, abs=0.02)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="got lengths 1, 2 and 1"):
        compare([True], [True, False], ["a"])
    with pytest.raises(ValueError, match="not empty"):
        compare([], [], [])
