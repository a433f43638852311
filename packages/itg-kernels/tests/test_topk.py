import math

import pytest
import torch
from itg_kernels import topk_chronological


def sort_truth(row, k):
    """By sorting (score, earlier first) in Python; NaN after everything, None is padding."""
    order = sorted(
        (i for i, s in enumerate(row) if s is not None),
        key=lambda i: (math.isnan(row[i]), 0 if math.isnan(row[i]) else -row[i], i),
    )
    return sorted(order[:k])


def greedy_truth(row, k, times, min_gap):
    order = sorted(
        (i for i, s in enumerate(row) if s is not None),
        key=lambda i: (math.isnan(row[i]), 0 if math.isnan(row[i]) else -row[i], i),
    )
    taken = []
    for i in order:
        if len(taken) < k and all(abs(times[i] - times[j]) >= min_gap for j in taken):
            taken.append(i)
    return sorted(taken)


def rows_of(kind, num_rows, num_frames):
    normal = torch.randn(num_rows, num_frames)
    coin = torch.rand(num_rows, num_frames)
    return {
        "normal": normal,
        "all-equal": torch.full_like(normal, 1.5),
        "quantised": normal.round(),
        "same-leading-bits": 1 + coin.mul(2**10).round() * 2**-23,
        "half-minus-inf": torch.where(coin < 0.5, -torch.inf, normal),
        "nan": torch.where(coin < 0.3, torch.nan, normal),
        "only-nan-and-minus-inf": torch.where(coin < 0.5, torch.nan, -torch.inf),
        "signed-zeros": torch.where(coin < 0.5, -0.0, 0.0),
        "infinities": torch.where(
            coin < 0.3, torch.inf, torch.where(coin < 0.6, -torch.inf, normal)
        ),
        "negative-nan": torch.where(coin < 0.3, -torch.tensor(torch.nan), normal),
        "denormal": normal * 1e-41,
    }[kind]


KINDS = [
    "normal",
    "all-equal",
    "quantised",
    "same-leading-bits",
    "half-minus-inf",
    "nan",
    "only-nan-and-minus-inf",
    "signed-zeros",
    "infinities",
    "negative-nan",
    "denormal",
]
SIZES = [(1, 1, 1), (3, 17, 5), (2, 64, 64), (2, 40, 63), (1, 100, 1)]


def check(indices, counts, expected, k):
    assert indices.dtype == torch.int64
    assert counts.dtype == torch.int64
    assert counts.tolist() == [len(row) for row in expected]
    assert indices.tolist() == [row + [-1] * (k - len(row)) for row in expected]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "B{}-T{}-k{}".format(*s))
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_k_come_back_in_time_order_with_ties_to_the_earlier(kind, size, target):
    num_rows, num_frames, k = size
    scores = rows_of(kind, num_rows, num_frames)
    expected = [sort_truth(row, k) for row in scores.tolist()]
    got = topk_chronological(scores.to(target.device), k, backend=target.backend)
    check(*got, expected, k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_with_their_many_ties_are_exact(dtype, target):
    scores = torch.randn(2, 60).to(dtype)
    expected = [sort_truth(row, 20) for row in scores.tolist()]
    check(*topk_chronological(scores.to(target.device), 20, backend=target.backend), expected, 20)


def test_lengths_keep_padding_out_and_short_rows_are_padded_with_minus_one(target):
    scores = torch.randn(4, 20)
    lengths = torch.tensor([20, 7, 1, 0])
    expected = [
        sort_truth(row[:n], 9) for row, n in zip(scores.tolist(), lengths.tolist(), strict=True)
    ]
    got = topk_chronological(
        scores.to(target.device), 9, lengths=lengths.to(target.device), backend=target.backend
    )
    check(*got, expected, 9)


@pytest.mark.parametrize("min_gap", [None, 2])
def test_lengths_beyond_the_frames_take_them_all_and_below_none_take_nothing(min_gap, target):
    scores = torch.randn(6, 20)
    lengths = torch.tensor([20, 21, 2**32, 2**63 - 1, -1, -(2**32) + 5], device=target.device)
    expected = [greedy_truth(row, 30, range(20), min_gap or 0) for row in scores[:4].tolist()]
    got = topk_chronological(
        scores.to(target.device), 30, lengths=lengths, min_gap=min_gap, backend=target.backend
    )
    check(*got, [*expected, [], []], 30)


@pytest.mark.parametrize("min_gap", [None, 2])
@pytest.mark.parametrize("layout", ["column", "expanded"])
def test_lengths_that_do_not_lie_side_by_side_are_read_as_they_are(layout, min_gap, target):
    scores = torch.randn(3, 20)
    lengths = torch.tensor([[9, 20], [8, 3], [7, 0]])[:, 1]
    if layout == "expanded":
        lengths = torch.tensor(4).expand(3)
    assert not lengths.is_contiguous()
    expected = [
        greedy_truth(row[:n], 9, range(20), min_gap or 0)
        for row, n in zip(scores.tolist(), lengths.tolist(), strict=True)
    ]
    scores, lengths = scores.to(target.device), lengths.to(target.device)
    got = topk_chronological(scores, 9, lengths=lengths, min_gap=min_gap, backend=target.backend)
    check(*got, expected, 9)


def test_a_mask_keeps_frames_out_even_where_they_score_best(target):
    scores = torch.randn(3, 30)
    valid = torch.rand(3, 30) < 0.4
    scores[~valid] = torch.inf
    expected = [
        sort_truth([s if v else None for s, v in zip(row, mask, strict=True)], 10)
        for row, mask in zip(scores.tolist(), valid.tolist(), strict=True)
    ]
    got = topk_chronological(
        scores.to(target.device), 10, valid=valid.to(target.device), backend=target.backend
    )
    check(*got, expected, 10)


def test_k_beyond_the_frames_takes_them_all(target):
    indices, counts = topk_chronological(
        torch.randn(5).to(target.device), 8, backend=target.backend
    )
    assert indices.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert counts.item() == 5
    assert counts.dim() == 0


@pytest.mark.parametrize("shape", [(0, 8), (2, 0)], ids=str)
def test_nothing_to_choose_from_gives_no_indices(shape, target):
    indices, counts = topk_chronological(
        torch.zeros(shape, device=target.device), 3, backend=target.backend
    )
    assert indices.tolist() == [[-1, -1, -1]] * shape[0]
    assert counts.tolist() == [0] * shape[0]


@pytest.mark.parametrize("kind", ["normal", "quantised", "nan", "half-minus-inf"])
@pytest.mark.parametrize("min_gap", [0, 1, 2, 7])
def test_min_gap_is_greedy_suppression_by_frame_distance(kind, min_gap, target):
    scores = rows_of(kind, 3, 40)
    expected = [greedy_truth(row, 8, range(40), min_gap) for row in scores.tolist()]
    got = topk_chronological(scores.to(target.device), 8, min_gap=min_gap, backend=target.backend)
    check(*got, expected, 8)


def test_min_gap_counts_seconds_where_times_are_given(target):
    scores = torch.randn(3, 40).round()
    times = torch.rand(3, 40, dtype=torch.float64).cumsum(1)
    lengths = torch.tensor([40, 11, 0])
    expected = [
        greedy_truth(row[:n], 6, t, 1.7)
        for row, t, n in zip(scores.tolist(), times.tolist(), lengths.tolist(), strict=True)
    ]
    got = topk_chronological(
        scores.to(target.device),
        6,
        lengths=lengths.to(target.device),
        min_gap=1.7,
        times_s=times.to(target.device),
        backend=target.backend,
    )
    check(*got, expected, 6)


@pytest.mark.parametrize("kind", ["normal", "quantised", "nan"])
def test_rows_longer_than_a_block_are_exact_too(kind, triton_target):
    from itg_kernels.topk import topk

    scores = rows_of(kind, 2, 150)
    expected = [sort_truth(row, 40) for row in scores.tolist()]
    for beyond in (None, torch.tensor([150, 2**40], device=triton_target.device)):
        got = topk(scores.to(triton_target.device), 40, None, beyond, max_block_t=64)
        check(*got, expected, 40)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("num_rows", "num_frames", "k"),
    [
        (64, 512, 32),
        (256, 4096, 64),
        (3, 1000, 128),
        (3, 4096, 4096),
        (2, 20000, 300),
        (1, 300000, 9),
    ],
    ids=str,
)
def test_real_sizes_are_exact(kind, num_rows, num_frames, k):
    scores = rows_of(kind, num_rows, num_frames).cuda()
    lengths = torch.randint(0, num_frames + 1, (num_rows,), device="cuda")
    for options in ({}, {"lengths": lengths}):
        got = topk_chronological(scores, k, backend="triton", **options)
        expected = topk_chronological(scores, k, backend="torch", **options)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    if num_frames <= 4096:
        got = topk_chronological(scores, 32, min_gap=5, backend="triton")
        expected = topk_chronological(scores, 32, min_gap=5, backend="torch")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_strided_scores_and_times_are_read_where_they_lie(target):
    scores = torch.randn(30, 3).round().to(target.device)
    times = torch.rand(30, 3, dtype=torch.float64).cumsum(0).to(target.device)
    got = topk_chronological(scores.t(), 7, min_gap=1.0, times_s=times.t(), backend=target.backend)
    expected = [
        greedy_truth(row, 7, t, 1.0)
        for row, t in zip(scores.t().tolist(), times.t().tolist(), strict=True)
    ]
    check(*got, expected, 7)
    plain = topk_chronological(scores.t(), 7, backend=target.backend)
    check(*plain, [sort_truth(row, 7) for row in scores.t().tolist()], 7)


def test_times_further_apart_than_two_to_the_31_are_read_where_they_lie(target, tmp_path):
    num_frames, stride = 2049, 2**20
    size = num_frames * stride
    if target.device == "cpu":
        # A file full of holes takes memory and disk only where it is written.
        room = torch.from_file(str(tmp_path / "times"), True, size, dtype=torch.float64)
    elif torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 17 GB of a GPU's memory")
    else:
        room = torch.zeros(size, dtype=torch.float64, device=target.device)
    times = room[::stride]
    times.copy_(torch.arange(num_frames))
    scores = torch.zeros(num_frames)
    scores[[7, 2046, 2047, 2048]] = torch.tensor([3.0, 4.0, 5.0, 6.0])
    indices, _ = topk_chronological(
        scores.to(target.device), 3, min_gap=2, times_s=times, backend=target.backend
    )
    assert indices.tolist() == [7, 2046, 2048]


def test_a_gap_is_compared_in_float64(target):
    # The float32 neighbour of 0.1 lies above it: rounded, the gap would drop the second frame.
    times = torch.tensor([0.0, 0.1], dtype=torch.float64, device=target.device)
    scores = torch.zeros(2, device=target.device)
    _, count = topk_chronological(scores, 2, min_gap=0.1, times_s=times, backend=target.backend)
    assert count.item() == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"scores": torch.zeros(4, dtype=torch.int64)}, "scores must be .* got int64"),
        (
            {"scores": torch.zeros(4, dtype=torch.float64), "min_gap": 1.0},
            "scores must be .* got float64",
        ),
        ({"lengths": torch.zeros(3).int()}, r"lengths must hold B=1 integers, got int32 \[3\]"),
        ({"lengths": torch.tensor(2.5)}, r"lengths must hold B=1 integers, got float32 \[\]"),
        ({"lengths": torch.tensor(True)}, "lengths must hold B=1 integers, got bool"),
        ({"lengths": 3}, "lengths must be a tensor of B=1 integers, got 3"),
        (
            {"lengths": torch.tensor(3, device="meta")},
            "lengths must be on cpu as scores, got meta",
        ),
        (
            {"valid": torch.ones(4, dtype=torch.bool, device="meta")},
            "valid must be on cpu as scores, got meta",
        ),
        (
            {"min_gap": 1.0, "times_s": torch.zeros(4, device="meta")},
            "times_s must be on cpu as scores, got meta",
        ),
        ({"valid": torch.zeros(4)}, "valid must be bool"),
        ({"min_gap": -1.0}, "min_gap must be >= 0, got -1.0"),
        ({"min_gap": math.nan}, "min_gap must be >= 0, got nan"),
        ({"times_s": torch.zeros(4)}, "times_s is the unit of min_gap"),
        ({"min_gap": 1.0, "times_s": torch.zeros(5)}, "times_s must be"),
    ],
    ids=str,
)
def test_bad_arguments_are_named_with_their_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        topk_chronological(**({"scores": torch.zeros(4), "k": 2} | arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_float64_scores_are_chosen_by_all_of_their_bits(kind):
    scores = rows_of(kind, 3, 50).double()
    scores += torch.arange(50).double() * 1e-12  # rounded away in float32
    for k in (1, 7, 50):
        indices, counts = topk_chronological(scores, k)
        assert counts.tolist() == [k] * 3
        for row, picks in zip(scores.tolist(), indices.tolist(), strict=True):
            assert picks == sort_truth(row, k)


def test_float64_scores_are_not_for_the_kernel():
    with pytest.raises(ValueError, match="triton"):
        topk_chronological(torch.zeros(4, dtype=torch.float64), 2, backend="triton")
