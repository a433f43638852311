import numpy as np
import pytest
from itg_data.annotate.localize import (
    CHANGED_COSINE,
    SAME_COSINE,
    find_candidates,
    pick_diverse,
    type_question,
)


def at_angles(*degrees: float) -> np.ndarray:
    """Unit vectors: frames whose likeness is the cosine of the angle between them."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def diverse_by_the_book(features: np.ndarray) -> tuple[int, ...]:
    """The rule once more, in the words of its description."""
    n, keep, i = len(features), [0], 1
    while i < n:
        if features[i] @ features[i - 1] < 0.90:
            keep.append(i)
            j = i + 1
            while j < n and features[i] @ features[j] >= 0.97:
                j += 1
            if j == n:
                break
            i = j
        i += 1
    if n - 1 not in keep and features[n - 1] @ features[keep[-1]] < 0.90:
        keep.append(n - 1)
    return tuple(keep)


@pytest.mark.parametrize(
    ("degrees", "kept"),
    [
        ([0], (0,)),
        ([0, 0, 0, 0], (0,)),
        ([0, 90], (0, 1)),
        # 20 degrees are alike enough (0.94) not to be new, step after step ...
        ([0, 20], (0,)),
        # ... but the last frame is compared with the last one kept
        ([0, 20, 40], (0, 2)),
        # after a new frame, those that look the same are passed over, and so is the next
        ([0, 90, 92, 180, 0], (0, 1, 4)),
        ([0, 90, 92, 180, 180, 0], (0, 1, 5)),
        # nothing after the new frame differs from it: the walk ends
        ([0, 90, 91, 92, 91], (0, 1)),
    ],
)
def test_frames_that_look_new_are_kept(degrees, kept):
    assert pick_diverse(at_angles(*degrees)) == kept


def test_the_thresholds_are_the_methods():
    assert (CHANGED_COSINE, SAME_COSINE) == (0.90, 0.97)


@pytest.mark.parametrize("seed", range(20))
def test_random_walks_are_thinned_by_the_book(seed):
    rng = np.random.default_rng(seed)
    steps = rng.choice([0, 2, 10, 16, 24, 30, 90], size=rng.integers(1, 60))
    features = at_angles(*np.cumsum(steps * rng.choice([-1, 1], len(steps))))
    kept = pick_diverse(features)
    assert kept == diverse_by_the_book(features)


@pytest.mark.parametrize(
    ("motion", "existence", "expected"),
    [
        (False, False, "semantic"),
        (True, False, "semantic_motion"),
        (True, True, "motion"),
        (False, True, "no_clue"),
    ],
)
def test_two_flags_name_four_types(motion, existence, expected):
    assert type_question(motion=motion, existence=existence) == expected


@pytest.mark.parametrize(
    ("question_type", "clips", "expected"),
    [
        ("semantic", (0, 2), (0, 1, 2, 3, 4, 10, 11)),
        ("semantic_motion", (1,), (5, 6, 7, 8, 9)),
        ("semantic", (), ()),
        ("semantic_motion", (), ()),
        ("motion", (2,), (10, 11)),
        ("motion", (), tuple(range(12))),
        ("no_clue", (1,), tuple(range(12))),
        ("no_clue", (), tuple(range(12))),
    ],
)
def test_candidates_are_the_seconds_of_the_clips_that_the_video_has(question_type, clips, expected):
    assert find_candidates(question_type, clips, num_seconds=12) == expected
