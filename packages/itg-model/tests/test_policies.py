"""What holds of every policy; what each does is held to its definition in test_policies_*.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from itg_model import select_frames
from itg_model.policies import (
    check_policy,
    describe_policy,
    parse_policy_params,
    policy_info,
    policy_names,
    split_resolutions,
)

ALL = [
    *("aks", "bin-max", "bolt", "dig", "mdp3", "min-gap"),
    *("q-frame", "temporal-nms", "top-k", "uniform", "wfs-sb"),
]
BLIND = ("mdp3", "uniform")


def inputs_of(policy: str, num_frames: int) -> dict:
    """Arrays for a policy that needs some; near in time is near in all of them."""
    rng = np.random.default_rng(num_frames)
    times = np.arange(num_frames) * 0.5
    embeddings = np.stack([np.cos(times / 9), np.sin(times / 9), rng.random(num_frames)], axis=1)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return {
        "mdp3": {"embeddings": embeddings, "query_embedding": np.array([0.8, 0.0, 0.6])},
        "min-gap": {"times_s": times},
        "temporal-nms": {"windows": np.stack([times, times + rng.random(num_frames) * 9], axis=1)},
        "wfs-sb": {"embeddings": embeddings} if num_frames % 2 else {},
    }.get(policy, {})


def score_rows(num_frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(num_frames)
    random = rng.random(num_frames)
    time = np.arange(num_frames)
    return {
        "random": random,
        "tied": np.round(random, 1),
        "constant": np.full(num_frames, 0.3),
        "one peak": (time == num_frames // 3).astype(float),
        "logits": rng.normal(0, 30, num_frames),
        "waves": np.sin(time / 7) * np.exp(-time / (num_frames + 1)),
        "some NaN": np.where(random < 0.4, np.nan, random),
        "all NaN": np.full(num_frames, np.nan),
        "some -inf": np.where(random < 0.6, -np.inf, random),
        "infinite": np.where(random < 0.5, np.inf, -np.inf),
        "NaN and -inf": np.where(random < 0.5, np.nan, -np.inf),
        "huge": np.where(random < 0.5, 1.7e308, -1.7e308),
        "tiny": np.where(random < 0.5, 5e-324, 0.0),
        "float32": random.astype(np.float32),
        "whole": rng.integers(0, 3, num_frames),
    }


def test_the_registry_holds_every_policy_of_the_field():
    assert list(policy_names()) == sorted(ALL)
    for name in ALL:
        info = policy_info(name)
        assert info.summary
        assert "/" in info.source or "itg_kernels" in info.source
        assert all(parameter.doc for parameter in info.parameters)


def test_the_readme_names_every_policy_with_its_parameters():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    for name in ALL:
        row = next(line for line in rows if line.startswith(f"| `{name}` "))
        for parameter in policy_info(name).parameters:
            assert f"`{parameter.name}`" in row or f"`{parameter.name}=" in row


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("num_frames", [1, 2, 7, 33, 200])
def test_exactly_the_frames_asked_for_distinct_and_in_time_order(policy, num_frames):
    inputs = inputs_of(policy, num_frames)
    for kind, scores in score_rows(num_frames).items():
        for k in (1, 2, 3, 8, 32, 33, 600):
            chosen = select_frames(scores, k, policy, **inputs)
            wanted = min(k, num_frames)
            assert chosen.dtype == np.int64, (kind, k)
            assert len(chosen) == wanted, (kind, k)
            assert (np.diff(chosen) > 0).all(), (kind, k)
            assert chosen.min() >= 0, (kind, k)
            assert chosen.max() < num_frames, (kind, k)


@pytest.mark.parametrize("policy", ALL)
def test_long_videos_are_no_special_case(policy):
    scores = score_rows(4096)["tied"]
    inputs = inputs_of(policy, 4096) | ({"segment": 128} if policy == "mdp3" else {})
    for k in (1, 64):
        chosen = select_frames(scores, k, policy, **inputs)
        assert len(np.unique(chosen)) == k
        assert 0 <= chosen.min() <= chosen.max() < 4096


@pytest.mark.parametrize("policy", [name for name in ALL if name not in BLIND])
def test_a_frame_without_a_score_comes_after_all_others(policy):
    inputs = inputs_of(policy, 60)
    scores = np.random.default_rng(3).random(60)
    scores[::3] = np.nan
    scores[1::3] = -np.inf
    if policy == "dig":  # without a score means worth nothing there: frames lie between moments
        assert np.isin(2, select_frames(scores[:7], 3, policy, window=1))
        return
    for k in (5, 20):
        assert (select_frames(scores, k, policy, **inputs) % 3 == 2).all()
    chosen = select_frames(scores, 30, policy, **inputs)
    assert np.count_nonzero(chosen % 3 == 2) == 20
    assert np.count_nonzero(chosen % 3 == 1) == 10
    assert np.count_nonzero(select_frames(scores, 41, policy, **inputs) % 3 == 0) == 1


@pytest.mark.parametrize("policy", ["top-k", "min-gap", "bin-max", "aks", "bolt", "wfs-sb"])
def test_an_infinite_score_is_better_than_any_other(policy):
    for others in (np.full(9, 0.5), np.arange(9.0), np.full(9, -np.inf)):
        scores = np.concatenate([others, [np.inf]])
        assert 9 in select_frames(scores, 2, policy)
        if policy != "bolt":  # whose one frame is the middle of the mass
            assert select_frames(scores, 1, policy).tolist() == [9]


@pytest.mark.parametrize("policy", BLIND)
def test_policies_that_do_not_look_at_scores_say_so(policy):
    inputs = inputs_of(policy, 60)
    wanted = select_frames(np.zeros(60), 7, policy, **inputs).tolist()
    assert not policy_info(policy).looks_at_scores
    for scores in score_rows(60).values():
        assert select_frames(scores, 7, policy, **inputs).tolist() == wanted


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("parity", [False, True])
def test_the_same_call_gives_the_same_frames_and_changes_nothing(policy, parity):
    scores = score_rows(60)["random"]
    inputs = inputs_of(policy, 60)
    kept = {name: value.copy() for name, value in inputs.items()}
    scores.flags.writeable = False
    first = select_frames(scores, 8, policy, parity, **inputs)
    np.random.default_rng().random()
    assert select_frames(scores, 8, policy, parity, **inputs).tolist() == first.tolist()
    assert all((inputs[name] == value).all() for name, value in kept.items())


@pytest.mark.parametrize("policy", ALL)
def test_parity_bears_whatever_the_scores_are(policy):
    inputs = inputs_of(policy, 33)
    for scores in score_rows(33).values():
        assert select_frames(scores, 8, policy, parity=True, **inputs).dtype == np.int64


@pytest.mark.parametrize("policy", [name for name in ALL if name not in ("bolt", "q-frame")])
def test_parity_and_default_agree_where_the_authors_do_not_err(policy):
    # 128 distinct scores, k a multiple of 2**5, no moment at the end
    rng = np.random.default_rng(0)
    scores = rng.permutation(128) / 128
    scores[-9:] = 0.0
    inputs = inputs_of(policy, 128)
    if policy == "uniform":
        return  # ends or middles: a difference of taste, held in test_policies_ranking.py
    ours = select_frames(scores, 32, policy, **inputs)
    theirs = select_frames(scores, 32, policy, parity=True, **inputs)
    if policy == "dig":
        assert len(np.unique(theirs)) == 32
    if policy == "min-gap":
        assert set(theirs) <= set(ours)
    else:
        assert ours.tolist() == sorted(theirs.tolist())


def test_no_frames_give_no_choice():
    for policy in ("top-k", "aks", "bolt", "dig", "wfs-sb"):
        assert select_frames([], 3, policy).tolist() == []


@pytest.mark.parametrize(
    ("scores", "k", "policy", "message"),
    [
        ([1.0], 0, "top-k", "k must be >= 1, got 0"),
        ([1.0], 2.5, "top-k", "k must be a whole number, got 2.5"),
        ([1.0], 1, "best", r"policy must be one of aks, .*, wfs-sb, got 'best'"),
        ([[1.0]], 1, "top-k", r"scores must be \[T\], got shape \(1, 1\)"),
        (["a"], 1, "top-k", "scores must be numbers"),
    ],
)
def test_a_senseless_request_is_an_error_that_names_it(scores, k, policy, message):
    with pytest.raises(ValueError, match=message):
        select_frames(scores, k, policy)


@pytest.mark.parametrize(
    ("policy", "params", "message"),
    [
        ("top-k", {"temperature": 2}, "unknown parameter temperature=2; it takes none"),
        ("aks", {"T1": 2}, "unknown parameter T1=2; it takes t1, t2, depth, ratio"),
        ("aks", {"depth": 2.5}, r"depth must be a whole number in 0\.\.64, got 2.5"),
        ("aks", {"depth": True}, "depth must be a whole number"),
        ("aks", {"depth": -1}, "depth must be .*, got -1"),
        ("aks", {"ratio": 0}, "ratio must be a whole number >= 1, got 0"),
        ("aks", {"t1": "high"}, "t1 must be a number, got 'high'"),
        ("aks", {"t1": "0.5"}, "t1 must be a number, got '0.5'"),
        ("aks", {"t2": float("nan")}, "t2 must be a number, got nan"),
        ("aks", {"t2": float("-inf")}, "t2 must be a number, got -inf"),
        ("aks", {"t2": None}, "t2 must be a number, got None"),
        ("bolt", {"power": -0.5}, "power must be a number >= 0, or -1, got -0.5"),
        ("wfs-sb", {"mmr_lambda": 1.5}, r"mmr_lambda must be a number in 0\.\.1, got 1.5"),
        ("wfs-sb", {"embeddings": np.zeros((2, 4))}, r"\[T, D\] with T = 3, got shape \(2, 4\)"),
        ("mdp3", {"query_embedding": np.zeros(4)}, "embeddings is missing"),
        (
            "mdp3",
            {"embeddings": np.ones((3, 4)), "query_embedding": np.ones(5)},
            "query_embedding must be as wide as embeddings, 4, got 5",
        ),
        ("dig", {"boundaries": [0, 5, 9]}, r"boundaries must be \[T\+1\] with T = 3, got shape"),
        ("dig", {"boundaries": [0, 5, 4, 9]}, "boundaries must not descend, got 5 before 4"),
        ("dig", {"window": "2"}, "window must be a whole number >= 0, got '2'"),
        ("temporal-nms", {}, "windows is missing: start and end"),
        ("temporal-nms", {"windows": np.zeros((3, 3))}, r"windows must be \[T, 2\]"),
        (
            "temporal-nms",
            {"windows": [[0, 1], [5, 2], [0, 1]]},
            r"windows must start before they end, got \[5.0, 2.0\]",
        ),
        ("temporal-nms", {"windows": [[0, 1], [0, 1], [0, np.nan]]}, "must be finite, got nan"),
        ("temporal-nms", {"windows": "all"}, "windows must be an array of numbers, got 'all'"),
        ("q-frame", {"tau": 0}, "tau must be a number >= 1e-06, got 0"),
        ("q-frame", {"seed": 1.0}, "seed must be a whole number"),
        ("min-gap", {"min_gap_s": -1}, "min_gap_s must be a number >= 0, got -1"),
        ("min-gap", {"times_s": [0.0, 1.0]}, r"times_s must be \[T\] with T = 3"),
    ],
)
@pytest.mark.parametrize("parity", [False, True])
def test_a_senseless_parameter_is_an_error_with_policy_name_and_value(
    policy, params, message, parity
):
    with pytest.raises(ValueError, match=rf"policy {policy}: .*{message}"):
        select_frames([0.1, 0.5, 0.2], 2, policy, parity, **params)


def test_whole_numbers_of_any_library_are_whole_numbers():
    scores = score_rows(60)["random"]
    wanted = select_frames(scores, 8, "aks", depth=3, t1=1).tolist()
    params = {"depth": np.int32(3), "t1": np.float32(1)}
    assert select_frames(scores, np.int64(8), "aks", **params).tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
@pytest.mark.parametrize("parity", [False, True])
def test_tensors_of_any_type_are_read_as_the_arrays_they_are(dtype, parity):
    scores = (torch.arange(12) * 7 % 12).to(dtype)
    if dtype.is_floating_point:
        scores.requires_grad_()
    plain = [7 * i % 12 for i in range(12)]
    times_s = torch.arange(12, dtype=torch.bfloat16)
    got = select_frames(scores, 3, "min-gap", parity=parity, min_gap_s=2, times_s=times_s)
    wanted = select_frames(plain, 3, "min-gap", parity=parity, min_gap_s=2, times_s=range(12))
    assert got.tolist() == wanted.tolist()


def test_a_request_can_be_checked_before_there_are_scores():
    check_policy("aks", 8, {"t1": 0.2, "depth": 3})
    check_policy("temporal-nms", 8, {"windows": np.zeros((5, 2))})
    with pytest.raises(ValueError, match="policy aks: unknown parameter power=2"):
        check_policy("aks", 8, {"power": 2})
    with pytest.raises(ValueError, match="policy mdp3: embeddings is missing"):
        check_policy("mdp3", 8, {})
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        check_policy("aks", 0, {})


def test_records_name_the_policy_with_what_was_set():
    assert describe_policy("top-k", {}) == "top-k"
    assert describe_policy("aks", {"t1": 0.2, "depth": 3}) == "aks(depth=3, t1=0.2)"
    assert describe_policy("min-gap", {"times_s": [1, 2], "min_gap_s": 2.0}) == (
        "min-gap(min_gap_s=2)"
    )


@pytest.mark.parametrize(
    ("number", "spelt"),
    [
        (12345678, "12345678"),
        (10_000_000, "10000000"),
        (2**62 + 1, "4611686018427387905"),
        (0.1234567, "0.1234567"),
        (0.008, "0.008"),
    ],
)
def test_records_tell_every_number_from_its_neighbours(number, spelt):
    name = "seed" if isinstance(number, int) else "tau"
    assert describe_policy("q-frame", {name: number}) == f"q-frame({name}={spelt})"


def test_policies_other_than_top_k_do_not_wait_for_torch():
    code = (
        "import sys; from itg_model.policies import policy_names, select_frames\n"
        "for name in set(policy_names()) - {'top-k', 'mdp3', 'temporal-nms'}:\n"
        "    select_frames([0.1, 0.9, 0.3, 0.4], 2, name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_resolutions_fall_with_the_rank_in_the_draw():
    scores = np.random.default_rng(1).normal(size=100) * 20
    places, divisors = split_resolutions(scores, seed=4)
    assert (np.diff(places) > 0).all()
    assert [np.count_nonzero(divisors == d) for d in (2, 4, 8)] == [4, 8, 32]
    for count, largest in ((4, 2), (12, 4), (44, 8)):
        wanted = select_frames(scores, count, "q-frame", seed=4)
        assert places[divisors <= largest].tolist() == wanted.tolist()
    places, divisors = split_resolutions(scores[:6], seed=4)
    assert [np.count_nonzero(divisors == d) for d in (2, 4, 8)] == [4, 2, 0]
    with pytest.raises(ValueError, match=r"tiers must hold numbers >= 1, got \(0, 2\)"):
        split_resolutions(scores, ((0, 2),))


def test_numbers_of_a_policy_are_read_from_text():
    assert parse_policy_params("aks", ["depth=3", "t1=0.2"]) == {"depth": 3, "t1": 0.2}


@pytest.mark.parametrize("texts", [["depth"], ["deep=3"], ["depth=3", "depth=3"], ["depth=x"]])
def test_text_that_is_no_number_of_the_policy_is_refused(texts):
    with pytest.raises(ValueError, match="--policy-param: aks"):
        parse_policy_params("aks", texts)
