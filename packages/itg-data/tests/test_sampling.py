import json
import random
from pathlib import Path

import numpy as np
import pytest
from itg_data.sampling import SamplingConfig, sample_source_indices

# What the reference's two samplers return, recorded by running them.
CASES = json.loads((Path(__file__).parent / "data" / "sampling_cases.json").read_text())
RULES = {"train": "infer_train", "lmms-eval": "lmms_eval"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['total']}@{c['fps']}")
def test_both_rules_give_what_the_reference_gives(case, rule):
    config = SamplingConfig(
        rate_hz=case["target_fps"],
        max_frames=case["num"],
        rule=rule,
    )
    sampled = sample_source_indices(case["total"], case["fps"], config)
    assert sampled.tolist() == case[RULES[rule]]


def draw_requests(count: int) -> list[tuple[int, float, SamplingConfig]]:
    rng = random.Random(0)
    return [
        (
            rng.choice([1, 2, 7, 100, 512, 513, rng.randrange(1, 200_000)]),
            rng.choice([0.1, 0.4, 0.5, 1.0, 14.99, 23.976, 29.97, 30.0, 120.0]),
            SamplingConfig(
                rate_hz=rng.choice([0.25, 1.0, 2.0, 50.0]),
                max_frames=rng.choice([1, 2, 31, 512]),
                rule=rng.choice(["train", "lmms-eval"]),
            ),
        )
        for _ in range(count)
    ]


def test_any_request_gives_distinct_frames_of_the_video_in_order_within_the_cap():
    for num_frames, fps, config in draw_requests(500):
        sampled = sample_source_indices(num_frames, fps, config)
        assert sampled.dtype == np.int64
        assert 1 <= len(sampled) <= config.max_frames
        assert sampled[0] >= 0
        assert sampled[-1] < num_frames
        assert (np.diff(sampled) > 0).all()


def test_below_the_cap_both_rules_take_every_nth_frame_from_the_first_on():
    for rule in RULES:
        config = SamplingConfig(rate_hz=2.0, max_frames=512, rule=rule)
        np.testing.assert_array_equal(
            sample_source_indices(100, 25.0, config), np.arange(0, 100, 12)
        )


def test_above_the_cap_train_keeps_the_end_and_lmms_eval_the_start():
    train = sample_source_indices(10_000, 25.0, SamplingConfig(max_frames=16, rule="train"))
    bench = sample_source_indices(10_000, 25.0, SamplingConfig(max_frames=16, rule="lmms-eval"))
    assert len(train) == len(bench) == 16
    assert train[-1] == 9975
    assert bench[0] == 0
    assert train[0] > 0
    assert bench[-1] < 9975


def test_a_frame_rate_below_the_sampling_rate_takes_every_frame():
    for rule in RULES:
        sampled = sample_source_indices(5, 0.4, SamplingConfig(rule=rule))
        assert sampled.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_hz", 0.0),
        ("rate_hz", -1.0),
        ("rate_hz", float("nan")),
        ("rate_hz", float("inf")),
        ("max_frames", 0),
        ("rule", "uniform"),
    ],
)
def test_a_bad_setting_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"sampling.{field}"):
        SamplingConfig(**{field: value})


@pytest.mark.parametrize(
    ("num_frames", "fps", "name"),
    [(0, 25.0, "num_frames"), (10, 0.0, "fps"), (10, float("nan"), "fps")],
)
def test_a_video_without_frames_or_rate_cannot_be_sampled(num_frames, fps, name):
    with pytest.raises(ValueError, match=name):
        sample_source_indices(num_frames, fps, SamplingConfig())


def test_the_rule_has_a_name_of_one_word():
    config = SamplingConfig(rate_hz=0.5, max_frames=64, rule="lmms-eval")
    assert config.describe() == "lmms-eval-0.5hz-max64"


@pytest.mark.parametrize("rate_hz", [1e-3, 1e-20, 1e-308])
def test_a_rate_too_low_for_a_second_frame_gives_the_first(rate_hz):
    assert sample_source_indices(100, 30.0, SamplingConfig(rate_hz=rate_hz)).tolist() == [0]
    assert sample_source_indices(1, 1e308, SamplingConfig(rate_hz=rate_hz)).tolist() == [0]


def test_what_is_sampled_does_not_grow_with_the_time_between_frames():
    # a file whose last frame is shown four billion seconds after the others
    assert sample_source_indices(26, 6.25e-9, SamplingConfig()).tolist() == list(range(26))
