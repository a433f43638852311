"""The obvious version of every operation: truth for the kernels' tests, and the CPU's path.

Shapes: S rows of hidden states, D width, F frames, B samples or rows of scores, T frames of one
video. Everything accumulates in float32, or in float64 when the input is float64, so that the
same lines serve as gradcheck's subject.

The order of operations in `frame_scores` is not that of the network (norm, mean, linear) but its
rewriting: with u = norm_weight * head_weight, a row contributes s = (x . u) / rms(x) and a frame's
logit is the mean of its rows' s plus the bias. In real arithmetic the two are equal, and the
rewriting never writes a normalised copy of the hidden states.
"""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything narrower is accumulated in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def frame_spans(cu_frames: Tensor) -> tuple[Tensor, Tensor]:
    """First row and end row of every frame, from either form of `cu_frames`."""
    if cu_frames.dim() == 2:
        return cu_frames[:, 0], cu_frames[:, 1]
    return cu_frames[:-1], cu_frames[1:]


def row_sums(hidden: Tensor, residual: Tensor | None, u: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Per row x: x itself widened, 1 / rms(x), and x . u."""
    dtype = accumulation_dtype(hidden.dtype)
    x = hidden.to(dtype)
    if residual is not None:
        x = x + residual.to(dtype)
    # Not x @ u, which autocast would round to 16 bits.
    return x, torch.rsqrt(x.square().mean(-1) + eps), (x * u).sum(-1)


def _without_text(rows: Tensor, boundaries: Tensor) -> Tensor:
    """Rows outside every frame as ones: what they hold meets a gradient of 0, and NaN has no zero.

    Not as zeros, for without an epsilon those have no norm either.

    Args:
        rows: [S, D].
        boundaries: [2 F], first and end row of one frame after the other, ascending.
    """
    row = torch.arange(rows.shape[0], device=rows.device)
    in_frame = torch.searchsorted(boundaries, row, right=True) % 2 == 1
    return torch.where(in_frame[:, None], rows, 1)


def frame_scores(
    hidden: Tensor,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Logit of every frame; an empty frame's mean is 0, so its logit is the bias.

    Args and result as in `itg_kernels.frame_score`.
    """
    dtype = accumulation_dtype(hidden.dtype)
    u = norm_weight.to(dtype) * head_weight.reshape(-1).to(dtype)
    starts, ends = frame_spans(cu_frames)
    boundaries = torch.stack([starts, ends], dim=1).reshape(-1).long()
    hidden = _without_text(hidden, boundaries)
    residual = None if residual is None else _without_text(residual, boundaries)
    _, rstd, proj = row_sums(hidden, residual, u, eps)
    # Every span and every gap is one segment; segment_reduce sums each in order, also on GPUs,
    # where index_add would race.
    if boundaries.numel() == 0:
        # Empty, but still a function of its inputs, so that backward gives zeros and not None.
        return (rstd * proj)[:0] + head_bias.to(dtype).reshape(1)[:0]
    sums = torch.segment_reduce(rstd * proj, "sum", offsets=boundaries, axis=0, initial=0.0)[::2]
    return sums / (ends - starts).clamp(min=1) + head_bias.to(dtype).reshape(())


def positive_weights(
    labels: Tensor, cu_samples: Tensor, *, max_pos_weight: float, min_negatives: int
) -> Tensor:
    """Weight [B] of the positive frames of each sample: sqrt(negatives / positives), capped."""
    labels = labels.to(accumulation_dtype(labels.dtype))
    bounds = cu_samples.long()
    positives = torch.segment_reduce(labels, "sum", offsets=bounds, axis=0, initial=0.0)
    negatives = (cu_samples[1:] - cu_samples[:-1]) - positives
    ratio = negatives.clamp(min=min_negatives) / positives.clamp(min=1)
    return ratio.sqrt().clamp(max=max_pos_weight)


def frame_bce_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    cu_samples: Tensor | None = None,
    max_pos_weight: float = 5.0,
    min_negatives: int = 1,
) -> Tensor:
    """Weighted BCE with logits, averaged over frames and then over the samples that have any.

    Args and result as in `itg_kernels.frame_bce_loss`.
    """
    logits = logits.to(accumulation_dtype(logits.dtype))
    labels = labels.to(logits.dtype)
    if cu_samples is None:
        cu_samples = torch.arange(2, device=logits.device) * logits.shape[0]
    num_frames = cu_samples[1:] - cu_samples[:-1]
    weights = positive_weights(
        labels, cu_samples, max_pos_weight=max_pos_weight, min_negatives=min_negatives
    )
    weight = torch.repeat_interleave(weights, num_frames, output_size=logits.shape[0])
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=weight, reduction="none"
    )
    sums = torch.segment_reduce(losses, "sum", offsets=cu_samples.long(), axis=0, initial=0.0)
    num_samples = (num_frames > 0).sum().clamp(min=1)
    return (sums / num_frames.clamp(min=1)).sum() / num_samples


def sort_keys(scores: Tensor, valid: Tensor) -> Tensor:
    """Keys in the order of selection: padding < NaN < -inf < ... < -0 = +0 < ... < +inf.

    int32; int64 for float64 scores.
    """
    if scores.dtype != torch.float64:
        scores = scores.float()
    key_type = torch.int64 if scores.dtype == torch.float64 else torch.int32
    range_of = torch.iinfo(key_type)
    bits = torch.where(scores == 0, 0.0, scores).view(key_type)
    keys = torch.where(bits < 0, bits ^ range_of.max, bits)
    keys = torch.where(scores.isnan(), range_of.min + 1, keys)
    return torch.where(valid, keys, range_of.min)


def topk_chronological(scores: Tensor, k: int, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [B, k] of the k best valid scores of each row in time order, and their counts [B]."""
    num_frames = scores.shape[1]
    counts = valid.sum(1).clamp(max=k)
    order = sort_keys(scores, valid).sort(dim=1, descending=True, stable=True).indices[:, :k]
    ranks = torch.arange(order.shape[1], device=scores.device)
    chosen = torch.where(ranks < counts[:, None], order, num_frames).sort(dim=1).values
    return _pad(chosen, k, num_frames), counts


def topk_spaced(
    scores: Tensor, k: int, valid: Tensor, times: Tensor, min_gap: float
) -> tuple[Tensor, Tensor]:
    """As `topk_chronological`, best score first, dropping whatever lies within `min_gap` of a pick.

    `times` [B, T] and `min_gap` share a unit: seconds, or frames where times are frame numbers.
    """
    num_frames = scores.shape[1]
    index = torch.arange(num_frames, device=scores.device)
    times = times.double()
    # One int64 orders by score and then by time, so that argmax needs no rule for ties.
    keys = sort_keys(scores, valid).long() * 2**32 + (2**32 - 1 - index)
    chosen = torch.zeros_like(valid)
    alive = valid
    for _ in range(min(k, num_frames)):
        pick = torch.where(alive, keys, torch.iinfo(torch.int64).min).argmax(1, keepdim=True)
        found = alive.any(1, keepdim=True)
        chosen = chosen | ((index == pick) & found)
        near = (times - times.gather(1, pick)).abs() < min_gap
        alive = alive & ~(near | (index == pick))
    picks = torch.where(chosen, index, num_frames).sort(dim=1).values[:, :k]
    return _pad(picks, k, num_frames), chosen.sum(1)


def _pad(indices: Tensor, k: int, num_frames: int) -> Tensor:
    indices = torch.where(indices < num_frames, indices, -1)
    return torch.nn.functional.pad(indices, (0, k - indices.shape[1]), value=-1)
