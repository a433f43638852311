import itertools
import math

import numpy as np
import pytest
from itg_model import select_frames
from itg_model.policies.wavelets import (
    HIGH_PASS,
    LOW_PASS,
    coarsest_details,
    find_boundaries,
    find_peaks,
    share_out,
)

RNG = np.random.default_rng(0)


def test_the_filter_is_daubechies_with_four_vanishing_moments():
    # orthonormal to its own even shifts, in sum sqrt 2, and blind to cubic curves
    for shift in range(4):
        product = LOW_PASS[2 * shift :] @ LOW_PASS[: 8 - 2 * shift]
        assert product == pytest.approx(float(shift == 0), abs=1e-12)
    assert LOW_PASS.sum() == pytest.approx(math.sqrt(2))
    for power in range(4):
        assert HIGH_PASS @ np.arange(8.0) ** power == pytest.approx(0, abs=1e-9)
    # of the filters that do this, the one whose weight comes first
    assert np.abs(LOW_PASS[:4]).sum() > np.abs(LOW_PASS[4:]).sum()


def details_by_definition(signal, level):
    """Filtered with mirrored ends, every other sample kept; put back with zeros between."""
    lengths, approximation, details = [], signal, signal
    for _ in range(level):
        lengths.append(len(approximation))
        mirrored = np.pad(approximation, 7, mode="symmetric")
        details = np.convolve(mirrored, HIGH_PASS[::-1], mode="valid")[1::2]
        approximation = np.convolve(mirrored, LOW_PASS[::-1], mode="valid")[1::2]
    synthesis = HIGH_PASS
    for length in reversed(lengths):
        spread = np.zeros(2 * len(details))
        spread[::2] = details
        details = np.convolve(spread, synthesis)[6 : 6 + length]
        synthesis = LOW_PASS
    return details


@pytest.mark.parametrize("level", [1, 2, 3, 5])
def test_the_details_are_those_of_the_definition(level):
    for length in (1, 2, 7, 8, 9, 64, 101, 512):
        signal = RNG.random(length)
        wanted = details_by_definition(signal, level)
        assert coarsest_details(signal, level) == pytest.approx(wanted, abs=1e-12)


def test_the_details_keep_the_precision_of_the_signal():
    signal = RNG.random(100)
    single = coarsest_details(signal.astype(np.float32), 3)
    assert single.dtype == np.float32
    assert single == pytest.approx(coarsest_details(signal, 3), abs=1e-5)


def test_the_last_bits_are_those_of_pywavelets():
    # equal scores have no details but rounding; PyWavelets 1.9 and scipy 1.17 see peaks there
    scores = np.full(7, 0.3, dtype=np.float32)
    assert select_frames(scores, 4, "wfs-sb", parity=True).tolist() == [0, 3, 4, 6]


def test_the_details_of_a_cubic_curve_vanish_away_from_the_ends():
    time = np.linspace(-1, 1, 200)
    details = coarsest_details(time**3 - time + 0.5, 2)
    assert np.abs(details[30:-30]).max() < 1e-12
    assert np.abs(details).max() > 1e-3


def test_all_bands_together_are_the_signal():
    signal = RNG.random(120)
    # what is left without the first four bands is their approximation, smoother at each level
    left = [signal]
    for level in range(1, 5):
        left.append(left[-1] - coarsest_details(signal, level))
    roughness = [np.abs(np.diff(curve)).sum() for curve in left]
    assert roughness == sorted(roughness, reverse=True)
    assert roughness[-1] < roughness[0] / 5


def peaks_by_definition(signal, height, distance, prominence):
    peaks = []
    for i in range(1, len(signal) - 1):
        end = i
        while end + 1 < len(signal) and signal[end + 1] == signal[i]:
            end += 1
        rises = signal[i - 1] < signal[i]
        if rises and end + 1 < len(signal) and signal[end + 1] < signal[i]:
            peaks.append((i + end) // 2)
    peaks = [p for p in peaks if signal[p] >= height]
    kept: list[int] = []
    for p in sorted(peaks, key=lambda p: -signal[p]):
        if all(abs(p - q) >= distance for q in kept):
            kept.append(p)

    def lowest_on_the_way(p, step):
        lowest, i = signal[p], p
        while 0 <= i < len(signal) and signal[i] <= signal[p]:
            lowest, i = min(lowest, signal[i]), i + step
        return lowest

    return sorted(
        p
        for p in kept
        if signal[p] - max(lowest_on_the_way(p, -1), lowest_on_the_way(p, 1)) >= prominence
    )


def test_peaks_are_those_of_the_definition():
    for _ in range(200):
        signal = RNG.random(int(RNG.integers(1, 80)))
        limits = float(RNG.random()), int(RNG.integers(1, 12)), float(RNG.random() / 2)
        assert find_peaks(signal, *limits).tolist() == peaks_by_definition(signal, *limits)


def test_a_flat_top_is_one_peak_and_a_flat_end_is_none():
    assert find_peaks(np.array([0, 2, 2, 2, 0, 1, 1, 0, 3, 3]), 0, 1, 0).tolist() == [2, 5]
    assert find_peaks(np.zeros(9), 0, 1, 0).tolist() == []


def test_a_valley_makes_a_peak_prominent():
    signal = np.array([0.0, 5, 4, 4.5, 1, 3, 0])
    assert find_peaks(signal, 0, 1, 0.6).tolist() == [1, 5]
    assert find_peaks(signal, 0, 1, 0.5).tolist() == [1, 3, 5]
    assert find_peaks(signal, 4.6, 1, 0.5).tolist() == [1]
    assert find_peaks(signal, 0, 3, 0.5).tolist() == [1, 5]


def test_a_step_in_the_scores_is_a_boundary():
    scores = np.where(np.arange(200) < 120, 0.2, 0.9)
    assert np.abs(find_boundaries(scores) - 120).min() <= 8
    assert find_boundaries(np.array([0.1, 0.9])).tolist() == []


def test_shares_follow_a_softmax_and_remainders_the_largest_fraction():
    # e^0 : e^log 2 : e^log 5 is 1 : 2 : 5; of 10 frames 1.25, 2.5, 6.25
    assert share_out(np.log([1.0, 2.0, 5.0]), 10, parity=False) == [1, 3, 6]
    # three times 1/3: by default the earlier part, with the authors the last in numpy's order
    assert share_out(np.zeros(3), 4, parity=False) == [2, 1, 1]
    assert share_out(np.zeros(3), 4, parity=True)[np.argsort(np.zeros(3))[-1]] == 2


def wfs_by_definition(scores, k, lam=0.5, features=None):
    num_frames = len(scores)
    if num_frames < k:
        return list(range(num_frames))
    most = max(1, math.floor(math.log2(num_frames / 7))) if num_frames >= 7 else 1
    level = min(max(1, math.floor(math.log2(num_frames)) - 3), most)
    change = np.abs(details_by_definition(scores, level))
    peaks = peaks_by_definition(
        change,
        np.mean(change) + 0.5 * np.std(change),
        max(5, int(0.02 * num_frames)),
        0.05 * (change.max() - change.min()),
    )
    if not peaks:
        even = [int(i * (num_frames - 1) / max(1, k // 2 - 1)) for i in range(k // 2)]
        rest = [i for i in sorted(range(num_frames), key=lambda i: -scores[i]) if i not in even]
        return sorted(even + rest[: k - len(even)])
    edges = [0, *peaks, num_frames]
    parts = []
    for first, end in itertools.pairwise(edges):
        part = scores[first:end]
        worth = 0.4 * len(part) / num_frames + 0.2 * part.mean() + 0.3 * part.max()
        parts.append((worth + 0.1 * part.var() / scores.var(), first, end))
    if len(parts) > 3:
        worths = np.array([part[0] for part in parts])
        limit = max(0.05, worths.mean() - 1.2 * worths.std())
        parts = [part for part in parts if part[0] >= limit] or parts
    weights = [math.exp(part[0]) for part in parts]
    shares = [k * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    for i in sorted(range(len(parts)), key=lambda i: counts[i] - shares[i])[: k - sum(counts)]:
        counts[i] += 1

    def likeness(i, j):
        if features is None:
            return math.exp(-abs(i - j) / 10)
        lengths = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
        return features[i] @ features[j] / lengths if lengths else 0.0

    def gain(i, chosen):
        return lam * (2 * scores[i] - 1) - (1 - lam) * max(likeness(i, j) for j in chosen)

    chosen: list[int] = []
    for (_, first, end), count in zip(parts, counts, strict=True):
        inside = [first + int(scores[first:end].argmax())] if count else []
        while len(inside) < min(count, end - first):
            rest = [i for i in range(first, end) if i not in inside]
            inside.append(max(rest, key=lambda i: gain(i, inside)))
        chosen += inside
    while len(chosen) < k:
        rest = [i for i in range(num_frames) if i not in chosen]
        chosen.append(max(rest, key=lambda i: gain(i, chosen)))
    return sorted(chosen)


def hills(num_frames):
    time = np.arange(num_frames)
    centres, widths = RNG.integers(0, num_frames, 4), RNG.random(4) * num_frames / 9 + 1
    curves = [np.exp(-(((time - c) / w) ** 2)) for c, w in zip(centres, widths, strict=True)]
    return np.max(curves, axis=0) * 0.9 + 0.1 * RNG.random(num_frames)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("lam", [0.5, 0.8])
def test_wfs_sb_is_its_definition(parity, lam):
    for num_frames in (3, 9, 40, 60, 100, 120):
        for k in (1, 4, 8, 16):
            scores = hills(num_frames)
            wanted = wfs_by_definition(scores, k, lam)
            assert select_frames(scores, k, "wfs-sb", parity, mmr_lambda=lam).tolist() == wanted


def test_wfs_sb_goes_by_the_likeness_of_embeddings_where_there_are_some():
    differs = 0
    for _ in range(5):
        scores, features = hills(100), RNG.normal(size=(100, 6))
        features[7] = 0
        wanted = wfs_by_definition(scores, 8, features=features)
        chosen = select_frames(scores, 8, "wfs-sb", embeddings=features).tolist()
        assert chosen == wanted
        differs += chosen != select_frames(scores, 8, "wfs-sb").tolist()
    assert differs


def test_wfs_sb_without_peaks_takes_half_uniform_and_half_best():
    scores = np.array([0.2, 0.5, 0.3, 0.1, 0.4])
    assert len(find_boundaries(scores)) == 0
    # 0 and 4 are uniform, 1 and 2 the best of the others
    assert select_frames(scores, 4, "wfs-sb").tolist() == [0, 1, 2, 4]
    assert select_frames(scores, 1, "wfs-sb").tolist() == [1]


def test_wfs_sb_of_the_authors_takes_later_frames_of_equal_ones_and_falls_for_nan():
    equal = np.zeros(5)
    latest = [i for i in np.argsort(equal)[::-1].tolist() if i != 0]
    theirs = select_frames(equal, 3, "wfs-sb", parity=True).tolist()
    assert theirs == sorted([0, *latest[:2]]) != [0, 1, 2]
    assert select_frames(equal, 3, "wfs-sb").tolist() == [0, 1, 2]
    scores = hills(100)
    scores[40:44] = np.nan
    theirs = select_frames(scores, 8, "wfs-sb", parity=True)
    assert set(theirs) == {0, 33, 66, 99, 40, 41, 42, 43}
    assert not np.isnan(scores[select_frames(scores, 8, "wfs-sb")]).any()
