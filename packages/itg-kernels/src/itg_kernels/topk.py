"""Triton: exact top-k in time order, one launch, one program per row of scores.

Time order needs no sort: find the k-th largest key, then keep the frames above it, and the first
few equal to it, where they stand. The key is the score's bits, made monotone as a signed integer
(padding < NaN < -inf < ... < -0 = +0 < ... < +inf, as in `reference.sort_keys`); its k-th largest
value is found bit by bit, by counting, and the search ends as soon as exactly k keys lie at or
above it: after some 15 of 32 bits for scores that differ. Oracles: `reference.topk_chronological`
and `reference.topk_spaced`.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from itg_kernels.launch import on_device

MAX_BLOCK_T = 16384
MAX_SPACED_T = 32768

# -2**31 and one more, as in `reference`; Triton reads globals only as constexpr.
_INVALID_KEY = tl.constexpr(-2147483648)
_NAN_KEY = tl.constexpr(-2147483647)
_MINUS_ZERO = tl.constexpr(-2147483648)
_DEAD = tl.constexpr(-9223372036854775808)


@triton.jit
def _load_keys(
    scores_ptr, valid_ptr, t, length, stride_t, stride_vt, HAS_VALID: tl.constexpr
):  # fmt: skip
    inside = t < length
    t = t.to(tl.int64)
    if HAS_VALID:
        inside &= tl.load(valid_ptr + t * stride_vt, mask=inside, other=0) != 0
    score = tl.load(scores_ptr + t * stride_t, mask=inside, other=0.0).to(tl.float32)
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(bits == _MINUS_ZERO, 0, bits)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(score != score, _NAN_KEY, key)
    return tl.where(inside, key, _INVALID_KEY)


@triton.jit
def _row_length(lengths_ptr, row, num_frames, HAS_LENGTHS: tl.constexpr):
    length = num_frames
    if HAS_LENGTHS:
        # Held inside the row before it is narrowed: 2**32 is many frames, and not none.
        length = tl.load(lengths_ptr + row)
        length = tl.minimum(tl.maximum(length, 0), num_frames).to(tl.int32)
    return length


@triton.jit
def _pad(out_ptr, first, last, BLOCK: tl.constexpr):
    for base in range(first // BLOCK * BLOCK, last, BLOCK):
        i = base + tl.arange(0, BLOCK)
        tl.store(out_ptr + i, tl.full([BLOCK], -1, tl.int64), mask=(i >= first) & (i < last))


@triton.jit
def _threshold(key, need):
    """The largest value that at least `need` keys reach, or any that exactly `need` reach."""
    threshold = tl.full([], _INVALID_KEY, tl.int32)
    reached = tl.where(need == 0, 0, -1)
    bit = 31
    while (bit >= 0) & (reached != need):
        # In the biased order all bits of the threshold below `bit` are 0: xor sets this one.
        candidate = threshold ^ (tl.full([], 1, tl.int32) << bit)
        count = tl.sum((key >= candidate).to(tl.int32), axis=0)
        threshold = tl.where(count >= need, candidate, threshold)
        reached = tl.where(count >= need, count, reached)
        bit -= 1
    return threshold


@triton.jit(do_not_specialize=["num_frames", "k"])
def _topk_kernel(
    scores_ptr, valid_ptr, lengths_ptr, indices_ptr, counts_ptr, num_frames, k,
    stride_b, stride_t, stride_vb, stride_vt,
    HAS_VALID: tl.constexpr, HAS_LENGTHS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    length = _row_length(lengths_ptr, row, num_frames, HAS_LENGTHS)
    key = _load_keys(
        scores_ptr + row * stride_b, valid_ptr + row * stride_vb, t, length, stride_t, stride_vt,
        HAS_VALID,
    )  # fmt: skip
    need = length
    if HAS_VALID:
        need = tl.sum((key > _INVALID_KEY).to(tl.int32), axis=0)
    need = tl.minimum(need, k)
    threshold = _threshold(key, need)

    above = key > threshold
    equal = key == threshold
    # Both ranks in one scan: neither passes MAX_BLOCK_T, so half a word holds it.
    ranks = tl.cumsum(above.to(tl.int32) + (equal.to(tl.int32) << 16), axis=0)
    num_equal = need - tl.sum(above.to(tl.int32), axis=0)
    equal_rank = ranks >> 16
    take = above | (equal & (equal_rank <= num_equal))
    place = (ranks & 0xFFFF) + tl.minimum(equal_rank, num_equal) - 1
    out_ptr = indices_ptr + row * k
    tl.store(out_ptr + place, t.to(tl.int64), mask=take)
    _pad(out_ptr, need, k, 128)
    tl.store(counts_ptr + row, need.to(tl.int64))


@triton.jit(do_not_specialize=["num_frames", "k"])
def _topk_long_kernel(
    scores_ptr, valid_ptr, lengths_ptr, indices_ptr, counts_ptr, num_frames, k,
    stride_b, stride_t, stride_vb, stride_vt,
    HAS_VALID: tl.constexpr, HAS_LENGTHS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The same for rows that no block holds: every count reads the scores again, from cache."""
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * stride_b
    valid_ptr += row * stride_vb
    length = _row_length(lengths_ptr, row, num_frames, HAS_LENGTHS)
    need = length
    if HAS_VALID:
        valid_T = tl.zeros([BLOCK_T], tl.int32)
        for base in range(0, length, BLOCK_T):
            t = base + tl.arange(0, BLOCK_T)
            key = _load_keys(scores_ptr, valid_ptr, t, length, stride_t, stride_vt, HAS_VALID)
            valid_T += (key > _INVALID_KEY).to(tl.int32)
        need = tl.sum(valid_T, axis=0)
    need = tl.minimum(need, k)

    threshold = tl.full([], _INVALID_KEY, tl.int32)
    reached = tl.where(need == 0, 0, -1)
    bit = 31
    while (bit >= 0) & (reached != need):
        candidate = threshold ^ (tl.full([], 1, tl.int32) << bit)
        count_T = tl.zeros([BLOCK_T], tl.int32)
        for base in range(0, length, BLOCK_T):
            t = base + tl.arange(0, BLOCK_T)
            key = _load_keys(scores_ptr, valid_ptr, t, length, stride_t, stride_vt, HAS_VALID)
            count_T += (key >= candidate).to(tl.int32)
        count = tl.sum(count_T, axis=0)
        threshold = tl.where(count >= need, candidate, threshold)
        reached = tl.where(count >= need, count, reached)
        bit -= 1

    above_T = tl.zeros([BLOCK_T], tl.int32)
    for base in range(0, length, BLOCK_T):
        t = base + tl.arange(0, BLOCK_T)
        key = _load_keys(scores_ptr, valid_ptr, t, length, stride_t, stride_vt, HAS_VALID)
        above_T += (key > threshold).to(tl.int32)
    num_equal = need - tl.sum(above_T, axis=0)

    out_ptr = indices_ptr + row * k
    num_above_before = tl.zeros([], tl.int32)
    num_equal_before = tl.zeros([], tl.int32)
    for base in range(0, length, BLOCK_T):
        t = base + tl.arange(0, BLOCK_T)
        key = _load_keys(scores_ptr, valid_ptr, t, length, stride_t, stride_vt, HAS_VALID)
        above = key > threshold
        equal = key == threshold
        above_rank = num_above_before + tl.cumsum(above.to(tl.int32), axis=0)
        equal_rank = num_equal_before + tl.cumsum(equal.to(tl.int32), axis=0)
        take = above | (equal & (equal_rank <= num_equal))
        place = above_rank + tl.minimum(equal_rank, num_equal) - 1
        tl.store(out_ptr + place, t.to(tl.int64), mask=take)
        num_above_before += tl.sum(above.to(tl.int32), axis=0)
        num_equal_before += tl.sum(equal.to(tl.int32), axis=0)
    _pad(out_ptr, need, k, 1024)
    tl.store(counts_ptr + row, need.to(tl.int64))


@triton.jit(do_not_specialize=["num_frames", "k", "min_gap_bits"])
def _topk_spaced_kernel(
    scores_ptr, valid_ptr, lengths_ptr, times_ptr, indices_ptr, counts_ptr, num_frames, k,
    min_gap_bits, stride_b, stride_t, stride_vb, stride_vt, stride_sb, stride_st,
    HAS_VALID: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_TIMES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Takes the best frame, drops its surroundings, and goes on; at most k times."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    length = _row_length(lengths_ptr, row, num_frames, HAS_LENGTHS)
    key = _load_keys(
        scores_ptr + row * stride_b, valid_ptr + row * stride_vb, t, length, stride_t, stride_vt,
        HAS_VALID,
    )  # fmt: skip
    times_ptr += row * stride_sb
    if HAS_TIMES:
        time = tl.load(times_ptr + t.to(tl.int64) * stride_st, mask=t < num_frames, other=0.0)
    # Handed over as a float the gap would be rounded to float32.
    min_gap = tl.cast(min_gap_bits, tl.int64).to(tl.float64, bitcast=True)
    # One word orders by score and then by time, so that the maximum needs no rule for ties.
    order = (key.to(tl.int64) << 32) | (0x7FFFFFFF - t).to(tl.int64)
    order = tl.where(key > _INVALID_KEY, order, _DEAD)
    chosen = tl.zeros([BLOCK_T], tl.int32)
    count = tl.zeros([], tl.int32)
    best = tl.max(order, axis=0)
    while (count < k) & (best > _DEAD):
        pick = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
        chosen = tl.where(t == pick, 1, chosen)
        if HAS_TIMES:
            near = tl.abs(time - tl.load(times_ptr + pick.to(tl.int64) * stride_st)) < min_gap
        else:
            near = tl.abs(t - pick).to(tl.float64) < min_gap
        order = tl.where(near | (t == pick), _DEAD, order)
        best = tl.max(order, axis=0)
        count += 1
    out_ptr = indices_ptr + row * k
    tl.store(out_ptr + tl.cumsum(chosen, axis=0) - 1, t.to(tl.int64), mask=chosen > 0)
    _pad(out_ptr, count, k, 128)
    tl.store(counts_ptr + row, count.to(tl.int64))


def num_warps_for(block_t: int) -> int:
    """Four or more frames a thread: a count is a few adds and then a wait for the other warps."""
    return max(1, min(8, block_t // 128))


def _bits_of(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little", signed=True)


def topk(
    scores: Tensor,
    k: int,
    valid: Tensor | None,
    lengths: Tensor | None,
    *,
    num_warps: int | None = None,
    max_block_t: int = MAX_BLOCK_T,
) -> tuple[Tensor, Tensor]:
    """Indices int64 [B, k] and counts int64 [B]; as `ops.topk_chronological` without a gap."""
    num_rows, num_frames = scores.shape
    indices = scores.new_empty((num_rows, k), dtype=torch.int64)
    counts = scores.new_empty(num_rows, dtype=torch.int64)
    if num_rows == 0:
        return indices, counts
    block_t = min(max_block_t, triton.next_power_of_2(max(num_frames, 16)))
    kernel = _topk_kernel if block_t >= num_frames else _topk_long_kernel
    with on_device(scores):
        kernel[(num_rows,)](
            scores, scores if valid is None else valid.view(torch.uint8),
            scores if lengths is None else lengths.contiguous(), indices, counts, num_frames, k,
            *scores.stride(), *((0, 0) if valid is None else valid.stride()),
            valid is not None, lengths is not None, block_t,
            num_warps=num_warps or num_warps_for(block_t),
        )  # fmt: skip
    return indices, counts


def topk_spaced(
    scores: Tensor,
    k: int,
    valid: Tensor | None,
    lengths: Tensor | None,
    times: Tensor | None,
    min_gap: float,
    *,
    num_warps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `topk`, no two of the chosen frames nearer than `min_gap`; at most MAX_SPACED_T frames."""
    num_rows, num_frames = scores.shape
    indices = scores.new_empty((num_rows, k), dtype=torch.int64)
    counts = scores.new_empty(num_rows, dtype=torch.int64)
    if num_rows == 0:
        return indices, counts
    block_t = triton.next_power_of_2(max(num_frames, 16))
    with on_device(scores):
        _topk_spaced_kernel[(num_rows,)](
            scores, scores if valid is None else valid.view(torch.uint8),
            scores if lengths is None else lengths.contiguous(),
            scores if times is None else times,
            indices, counts, num_frames, k, _bits_of(min_gap),
            *scores.stride(), *((0, 0) if valid is None else valid.stride()),
            *((0, 0) if times is None else times.stride()),
            valid is not None, lengths is not None, times is not None, block_t,
            num_warps=num_warps or num_warps_for(block_t),
        )  # fmt: skip
    return indices, counts
