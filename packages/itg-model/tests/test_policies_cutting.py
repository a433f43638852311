import itertools

import numpy as np
import pytest
from itg_model import select_frames

RNG = np.random.default_rng(0)


def best_of(scores, frames, count):
    return sorted(frames, key=lambda i: (-scores[i], i))[:count]


def aks_parts_by_definition(scores, frames, k, t1, t2, depth, level=0):
    """[(frames, level)] of the parts that are not cut."""
    if frames:
        part = np.array([scores[i] for i in frames])
        best = np.array([scores[i] for i in best_of(scores, frames, k)])
        if best.mean() - part.mean() > t1 and part.std() > t2:
            return [(frames, level)]
    if level == depth:
        return [(frames, level)]
    half = len(frames) // 2
    return [
        part
        for piece in (frames[:half], frames[half:])
        for part in aks_parts_by_definition(scores, piece, k, t1, t2, depth, level + 1)
    ]


def aks_by_definition(scores, k, t1=0.8, t2=-100.0, depth=5, ratio=1):
    frames = [i * ratio for i in range(len(scores) // ratio)]
    if len(frames) < k:
        return frames
    seen = scores[frames]
    scaled = dict(zip(frames, (seen - seen.min()) / (seen.max() - seen.min()), strict=True))
    chosen = []
    for part, level in aks_parts_by_definition(scaled, frames, k, t1, t2, depth):
        chosen += best_of(scaled, part, int(k / 2**level))
    return sorted(chosen)


@pytest.mark.parametrize(
    "params",
    [{}, {"t1": 0.2, "depth": 3}, {"t1": 0.2, "t2": 0.28, "depth": 4}, {"t1": 0.1, "ratio": 3}],
    ids=str,
)
def test_aks_in_parity_is_its_definition(params):
    for num_frames in (7, 12, 33, 64, 200):
        for k in (1, 8, 16, 32, 48):
            peaks = RNG.random(num_frames) ** RNG.choice([1, 8])
            wanted = aks_by_definition(peaks, k, **params)
            assert select_frames(peaks, k, "aks", parity=True, **params).tolist() == wanted


def test_aks_by_hand():
    # whole: best 4 have mean .9, all .5625: .3375 above, no more than .4, so it is cut.
    # left half: best 4 are all of it, gap 0, cut again; 1 frame from each quarter
    scores = [0.0, 1.0, 0.5, 0.25, 0.25, 0.75, 1.0, 0.75]
    params = {"t1": 0.4, "depth": 2}
    assert select_frames(scores, 4, "aks", parity=True, **params).tolist() == [1, 2, 5, 6]
    # gap .3125 > .3: the whole stands and gives its best four
    params["t1"] = 0.3
    assert select_frames(scores, 4, "aks", parity=True, **params).tolist() == [1, 5, 6, 7]


def test_aks_of_the_authors_gives_no_frame_below_32_but_by_default_all():
    scores = RNG.random(256)
    for k in (8, 16, 31):
        assert len(select_frames(scores, k, "aks", parity=True)) == 0
        assert len(select_frames(scores, k, "aks")) == k
    assert len(select_frames(scores, 48, "aks", parity=True)) == 32
    assert len(select_frames(scores, 100, "aks", parity=True)) == 96


def test_aks_by_default_gives_what_rounding_took_to_the_parts_whose_next_frame_is_best():
    # two parts, k = 3: one frame each is sure, the third goes to the better second best
    scores = [0.9, 0.2, 0.1, 0.0, 0.8, 0.7, 0.6, 0.3]
    params = {"t1": 5.0, "depth": 1}
    assert select_frames(scores, 3, "aks", parity=True, **params).tolist() == [0, 4]
    assert select_frames(scores, 3, "aks", **params).tolist() == [0, 4, 5]
    # k = 5 of four parts: one each is sure; of all second bests, 1 is the best
    parts = [0.9, 0.8, 0.7, 0.1, 0.0, 0.0, 0.5, 0.4, 0.0, 0.3, 0.2, 0.0]
    params = {"t1": 5.0, "depth": 2}
    assert select_frames(parts, 5, "aks", **params).tolist() == [0, 1, 3, 6, 9]
    # k = 6: not 2 as well, though it is better than 7, for its part has had one more
    assert select_frames(parts, 6, "aks", **params).tolist() == [0, 1, 3, 6, 7, 9]
    params = {"t1": 5.0, "depth": 1}
    # k = 1: a half frame each
    assert select_frames(scores, 1, "aks", **params).tolist() == [0]


def test_aks_by_default_keeps_what_its_authors_choose():
    for k, params in itertools.product((8, 20, 48), ({}, {"t1": 0.2, "depth": 3})):
        scores = RNG.random(100)
        theirs = select_frames(scores, k, "aks", parity=True, **params)
        assert set(theirs) <= set(select_frames(scores, k, "aks", **params))


def test_aks_of_equal_scores_spreads_out():
    chosen = select_frames(np.ones(64), 8, "aks", depth=3)
    assert chosen.tolist() == [0, 8, 16, 24, 32, 40, 48, 56]


def bolt_by_definition(scores, k, power=None):
    mass = [(s - min(scores)) / (max(scores) - min(scores)) for s in scores]
    if power is not None:
        mass = [m**power for m in mass]
    total = sum(mass)
    cumulated = list(itertools.accumulate(m / total for m in mass))
    asked = [1 / k + i * (1 - 2 / k) / (k - 1) for i in range(k)] if k > 1 else [1.0]
    return [sum(c < u for c in cumulated) for u in asked]


@pytest.mark.parametrize("power", [None, 2.5, 3.0])
def test_bolt_in_parity_is_its_definition(power):
    params = {} if power is None else {"power": power}
    for num_frames in (2, 5, 33, 200):
        for k in (2, 3, 8, 32):
            scores = RNG.random(num_frames)
            wanted = bolt_by_definition(scores.tolist(), k, power)
            chosen = select_frames(scores, k, "bolt", parity=True, **params)
            assert chosen.tolist() == wanted


def test_bolt_by_hand():
    # masses 0 .25 .5 1 .25, sum 2; cumulated 0 .125 .375 .875 1; quantiles 1/4 1/2 3/4
    scores = [1.0, 2.0, 3.0, 5.0, 2.0]
    assert select_frames(scores, 4, "bolt", parity=True).tolist() == [2, 3, 3, 3]
    # a quantile that a sum meets exactly falls to its frame
    assert select_frames([0.0, 1.0, 1.0], 2, "bolt", parity=True).tolist() == [1, 1]
    # quantiles 1/8 3/8 5/8 7/8, of which 7/8 is reached by frame 3: 1 2 3 3, and the best left is 4
    assert select_frames(scores, 4, "bolt").tolist() == [1, 2, 3, 4]


def test_bolt_of_the_authors_repeats_frames_and_may_leave_the_video():
    peak = np.array([0.0, 0.0, 1.0, 0.0, 0.1])
    assert select_frames(peak, 4, "bolt", parity=True).tolist() == [2, 2, 2, 2]
    assert select_frames(peak, 4, "bolt").tolist() == [0, 1, 2, 4]
    two = select_frames(RNG.random(50), 2, "bolt", parity=True)
    assert two[0] == two[1]
    assert select_frames(np.full(5, 0.3), 3, "bolt", parity=True).tolist() == [0, 0, 0]
    tenths = np.arange(1, 21) / 10
    outside = [n for n in range(2, 20) if select_frames(tenths[:n], 1, "bolt", True).max() >= n]
    assert outside


def test_bolt_of_equal_scores_is_uniform():
    wanted = select_frames(np.zeros(30), 7, "uniform").tolist()
    assert select_frames(np.full(30, 0.3), 7, "bolt").tolist() == wanted


def test_parity_keeps_the_precision_of_the_scores():
    found = 0
    for seed in range(200):
        scores = np.random.default_rng(seed).random(4096).astype(np.float32)
        coarse = select_frames(scores, 64, "bolt", parity=True)
        exact = select_frames(scores.astype(np.float64), 64, "bolt", parity=True)
        found += coarse.tolist() != exact.tolist()
        mass = scores - scores.min()
        mass /= mass.max()
        cumulated = np.cumsum(mass / mass.sum())
        assert cumulated.dtype == np.float32
        asked = np.linspace(1 / 64, 1 - 1 / 64, 64)
        assert coarse.tolist() == [int((cumulated < u).sum()) for u in asked]
        if found:
            break
    assert found
