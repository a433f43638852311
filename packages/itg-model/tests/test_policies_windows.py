import numpy as np
import pytest
from itg_model import select_frames

RNG = np.random.default_rng(0)


def dig_by_definition(rewards, k, boundaries, window=2):
    m = len(rewards)
    low, high = min(rewards), max(rewards)
    scaled = [0.0 if high == low else 100 * (r - low) / (high - low + 1e-8) for r in rewards]
    active = [i for i in range(m) if scaled[i] > 0]
    kept = active
    if len(active) > 1:
        values = [scaled[i] for i in active]
        lowered, zeros = values, -1
        while zeros != sum(v == 0 for v in lowered):
            zeros = sum(v == 0 for v in lowered)
            mean = float(np.mean(lowered))
            lowered = [max(v - mean, 0.0) for v in lowered]
        by_mean = [i for i, v in zip(active, lowered, strict=True) if v > 0]
        by_half = [i for i, v in zip(active, values, strict=True) if v > max(values) / 2]
        kept = by_mean if len(by_mean) <= len(by_half) else by_half
    frames: set[int] = set()
    for i in kept:
        first, last = boundaries[max(0, i - window)], boundaries[min(m - 1, i + window)]
        frames |= set(range(first, last + 1))
    if not kept:
        frames = set(range(boundaries[0], boundaries[-1] + 1))
    ordered = sorted(frames)
    return [ordered[int(place)] for place in np.linspace(0, len(ordered) - 1, k)]


@pytest.mark.parametrize("window", [0, 1, 2, 5])
def test_dig_in_parity_is_its_definition(window):
    for num_moments in (1, 2, 3, 10, 40):
        for kind in ("random", "coarse", "rare"):
            rewards = RNG.random(num_moments)
            if kind == "coarse":
                rewards = np.round(rewards, 1)
            elif kind == "rare":
                rewards = np.where(rewards > 0.8, rewards, 0.0)
            boundaries = np.cumsum(RNG.integers(1, 30, num_moments + 1)).tolist()
            params = {"boundaries": boundaries, "window": window}
            for k in (1, 4, 32):
                chosen = select_frames(rewards, k, "dig", parity=True, **params).tolist()
                assert chosen == dig_by_definition(rewards.tolist(), k, boundaries, window)


def test_dig_by_hand():
    boundaries = [0, 10, 20, 30, 40, 50, 60]
    params = {"boundaries": boundaries, "window": 1}
    # only moment 2 is worth anything: frames 10..30, both included
    rewards = [0, 0, 1, 0, 0, 0]
    assert select_frames(rewards, 3, "dig", parity=True, **params).tolist() == [10, 20, 30]
    assert select_frames(rewards, 3, "dig", **params).tolist() == [10, 20, 30]
    # scaled 0 100 0 0 50 80: mean of the active 77, left 23 and 3, less their mean 14, so moment 1;
    # half the maximum leaves 1 and 5; the fewer win
    rewards = [0, 10, 0, 0, 5, 8]
    assert select_frames(rewards, 3, "dig", parity=True, **params).tolist() == [0, 10, 20]


def test_dig_takes_what_is_above_half_the_maximum_where_that_is_less():
    # means: 10 of 24, then 4 left with 79.., 27, 26, 25 and nothing more falls to 0
    rewards = np.concatenate([np.zeros(5), [100, 45, 44, 43], np.ones(20), np.zeros(5)])
    params = {"boundaries": np.arange(35), "window": 0}
    assert set(select_frames(rewards, 4, "dig", parity=True, **params)) == {5}
    rewards[6] = 51
    assert set(select_frames(rewards, 4, "dig", parity=True, **params)) == {5, 6}


def test_dig_takes_a_moment_without_a_score_for_the_worst():
    rewards = [-5.0, -5.0, -5.0, -1.0, -5.0, np.nan, -5.0, -np.inf]
    assert select_frames(rewards, 1, "dig", window=0).tolist() == [3]


def test_dig_of_the_authors_cuts_off_the_end_of_the_video():
    params = {"boundaries": [0, 10, 20, 30], "window": 2}
    assert select_frames([0, 0, 1], 5, "dig", parity=True, **params).max() == 20
    assert select_frames([0, 0, 1], 5, "dig", **params).max() == 30


def test_dig_of_the_authors_repeats_frames_of_short_intervals_but_by_default_windows_widen():
    params = {"boundaries": [0, 2, 4, 6, 8, 10], "window": 0}
    rewards = [0, 0, 1, 0, 0]
    assert select_frames(rewards, 3, "dig", parity=True, **params).tolist() == [4, 4, 4]
    assert select_frames(rewards, 3, "dig", **params).tolist() == [2, 4, 6]
    assert select_frames(rewards, 5, "dig", **params).tolist() == [2, 3, 4, 5, 6]
    assert select_frames(rewards, 6, "dig", **params).tolist() == [0, 1, 3, 4, 6, 8]
    assert select_frames(rewards, 99, "dig", **params).tolist() == list(range(11))


def test_dig_of_the_authors_forgets_rewards_that_are_equal():
    params = {"boundaries": list(range(0, 110, 10)), "window": 1}
    rewards = [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert select_frames(rewards, 2, "dig", parity=True, **params).tolist() == [0, 100]
    assert select_frames(rewards, 2, "dig", **params).tolist() == [0, 30]


def test_dig_without_boundaries_takes_each_frame_for_a_moment():
    rewards = np.zeros(20)
    rewards[9] = 1.0
    assert select_frames(rewards, 5, "dig").tolist() == [7, 8, 9, 10, 11]
    assert select_frames(rewards, 5, "dig", parity=True).tolist() == [7, 8, 9, 10, 11]


def nms_by_definition(scores, windows, iou, most):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept: list[int] = []
    for i in order:
        overlaps = []
        for j in kept:
            common = min(windows[i][1], windows[j][1]) - max(windows[i][0], windows[j][0])
            hull = max(windows[i][1], windows[j][1]) - min(windows[i][0], windows[j][0])
            overlaps.append(max(0.0, common) / hull if hull else 0.0)
        if all(overlap <= iou for overlap in overlaps):
            kept.append(i)
    return kept[:most]


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 1.0])
def test_temporal_nms_in_parity_keeps_the_best_of_what_overlaps_best_first(iou):
    for num_windows in (1, 2, 10, 60):
        starts = np.round(RNG.random(num_windows) * 50)
        windows = np.stack([starts, starts + np.round(RNG.random(num_windows) * 20)], axis=1)
        scores = np.round(RNG.random(num_windows), 1)
        for k in (1, 5, 100):
            chosen = select_frames(scores, k, "temporal-nms", True, windows=windows, iou=iou)
            assert chosen.tolist() == nms_by_definition(scores, windows, iou, k)


def test_temporal_nms_by_hand():
    windows = [[0, 10], [5, 15], [20, 30], [21, 30]]
    scores = [0.5, 0.9, 0.1, 0.4]
    params = {"windows": windows, "iou": 0.5}
    # 5 of 15 in common with the first, which is no more than half; 9 of 10 with the last
    assert select_frames(scores, 4, "temporal-nms", parity=True, **params).tolist() == [1, 0, 3]
    assert select_frames(scores, 3, "temporal-nms", **params).tolist() == [0, 1, 3]
    assert select_frames(scores, 4, "temporal-nms", **params).tolist() == [0, 1, 2, 3]
    # moments without length do not overlap even themselves
    moments = {"windows": [[3, 3], [3, 3], [4, 4]], "iou": 0.0}
    assert len(select_frames([1, 2, 3], 3, "temporal-nms", parity=True, **moments)) == 3
    # exactly at the threshold stays
    params["iou"] = 1 / 3
    assert 0 in select_frames(scores, 4, "temporal-nms", parity=True, **params)
    params["iou"] = 0.33
    assert 0 not in select_frames(scores, 4, "temporal-nms", parity=True, **params)
