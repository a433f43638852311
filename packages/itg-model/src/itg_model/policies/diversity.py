"""MDP3: frames like the question and unlike each other, shared out over segments of the video.

By default the numbers are numpy's and float64, and all states of a segment go forward together:
O(k^2 T) in one segment, a fraction of a second for some hundred frames. In parity the authors'
arithmetic is followed operation by operation in torch, at the precision of the embeddings, which
takes as long as theirs: seconds.
"""

from typing import TYPE_CHECKING

import numpy as np

from itg_model.policies.registry import Array, Floats, Indices, Number, register

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = tuple(2.0**j for j in range(-3, 2))
LEAST = 1e-12
"""Stands for a determinant or a likeness of 0, whose logarithm would end all comparison."""


@register(
    "mdp3",
    summary="frames like the question and unlike each other (determinantal), segment by segment",
    source="https://github.com/AIDC-AI/Ovis",
    parameters=(
        Array(name="embeddings", shape=("T", "D"), required=True, doc="image embeddings, SigLIP's"),
        Array(name="query_embedding", shape=("D",), required=True, doc="text embedding, likewise"),
        Number(
            name="segment",
            default=-1,
            least=1,
            off=-1,
            whole=True,
            doc="frames of a segment; -1: all",
        ),
        Number(name="lambda_", default=0.2, least=1e-6, doc="the higher, the less the question"),
    ),
    looks_at_scores=False,
)
def _mdp3(
    scores: Floats,
    k: int,
    *,
    parity: bool,
    embeddings: Floats,
    query_embedding: Floats,
    segment: int,
    lambda_: float,
) -> Indices:
    """The Markov decision determinantal point process of MDP3 (arXiv 2501.02885), as in Ovis.

    With the kernel `K(x, y) = sum over j = -3..1 of exp(-|x - y|^2 / (2 * 2^j))`, the likeness
    `r_i = K(question, x_i)` and c the frame chosen last, a set S of frames is worth
    `F(S) = 2 / lambda_ * (sum of log r over S and c) + log det K of S and c`. Segment by segment,
    for every number n of frames chosen so far the best value and its frames are kept: from each
    such state S grows greedily inside the segment, and each of its first t frames, in any number,
    is worth `value + F`, or the value alone for t = 0, so that c counts once more where t > 0.
    The answer is the state n = k after the last segment. Ovis takes one segment of all frames;
    the paper 128 uniform frames in segments of 32.

    The scores say nothing but how many frames there are. The authors take embeddings as they come,
    which are of unit length there; fail when T is no multiple of the segment (here a `ValueError`
    in parity); and lose states to log 0 when frames are equal. By default embeddings are made unit
    vectors, the last segment may be shorter, and equal frames are worth little instead of nothing.
    """
    if query_embedding.shape[0] != embeddings.shape[1]:
        raise ValueError(
            f"policy mdp3: query_embedding must be as wide as embeddings, {embeddings.shape[1]}, "
            f"got {query_embedding.shape[0]}"
        )
    num_frames = len(embeddings)
    if num_frames <= k:
        return np.arange(num_frames)
    size = num_frames if segment < 0 else segment
    if parity:
        if num_frames % size:
            raise ValueError(
                f"policy mdp3: segment must divide the {num_frames} frames in parity, got {segment}"
            )
        return _choose_as_published(embeddings, query_embedding, k, size, lambda_)
    units, query = _to_units(embeddings), _to_units(query_embedding[None])
    log_likeness = np.log(np.maximum(_kernel(query, units)[0], LEAST)) * (2.0 / lambda_)
    states: list[tuple[float, list[int]] | None] = [(0.0, []), *[None] * k]
    for first in range(0, num_frames, size):
        part = np.arange(first, min(first + size, num_frames))
        states = _pass_segment(states, part, units, log_likeness)
    answer = states[k]
    assert answer is not None, "every state up to k is reached where there are k frames"
    return np.array(answer[1], dtype=np.int64)


def _to_units(rows: Floats) -> Floats:
    rows = rows.astype(np.float64)
    # by the greatest entry first: squares of huge or tiny numbers would not stay finite
    scale = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(scale == 0, 1, scale)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


def _kernel(left: Floats, right: Floats) -> Floats:
    left_squares, right_squares = (np.einsum("ij,ij->i", rows, rows) for rows in (left, right))
    squares = left_squares[:, None] + right_squares - 2 * left @ right.T
    return sum((np.exp(-np.maximum(squares, 0) / (2 * w)) for w in WIDTHS), np.zeros(()))


def _pass_segment(
    states: list[tuple[float, list[int]] | None],
    part: Indices,
    units: Floats,
    log_likeness: Floats,
) -> list[tuple[float, list[int]] | None]:
    """The best states after one segment more; of two worth the same, the first found stays."""
    k = len(states) - 1
    starts = [(n, *state) for n, state in enumerate(states) if state is not None]
    last = np.array([frames[-1] if frames else -1 for _, _, frames in starts])
    num_steps = min(len(part), k - starts[0][0])
    worth, picks = _grow(units, log_likeness, part, last, num_steps)
    best: list[tuple[float, list[int]] | None] = [None] * (k + 1)
    for row, (n, value, frames) in enumerate(starts):
        for t in range(min(num_steps, k - n) + 1):
            total = value + worth[row, t]
            known = best[n + t]
            if known is None or total > known[0]:
                best[n + t] = (total, frames + sorted(picks[row, :t].tolist()))
    return best


def _grow(
    units: Floats, log_likeness: Floats, part: Indices, last: Indices, num_steps: int
) -> tuple[Floats, Indices]:
    """Grows a set inside a segment greedily, from each of several last frames at once.

    A Cholesky factor of the growing kernel is kept for all candidates, so a step costs one row of
    the kernel and one product with the rows before.

    Args:
        units: [T, D]
        log_likeness: [T], its weight included.
        part: [M] the frames of the segment.
        last: [S] the frame before, or -1 where there is none.
        num_steps: N, at most M.

    Returns:
        [S, N + 1] worth of the first 0, 1, ... frames, and [S, N] the frames.
    """
    num_states, has_last, inside = len(last), last >= 0, units[part]
    rows = np.arange(num_states)
    factor = np.zeros((num_states, num_steps + 1, len(part)))
    left = np.full((num_states, len(part)), float(len(WIDTHS)))  # K(x, x) less what is explained
    worth = np.zeros((num_states, num_steps + 1))
    picks = np.zeros((num_states, num_steps), dtype=np.int64)
    before = _kernel(units[last], inside) / np.sqrt(len(WIDTHS))
    factor[:, 0] = np.where(has_last[:, None], before, 0.0)
    left -= factor[:, 0] ** 2
    base = np.where(has_last, log_likeness[last] + np.log(len(WIDTHS)), 0.0)
    is_open = np.ones_like(left, dtype=bool)
    # all rows at once where more are asked for than there are
    inner = _kernel(inside, inside) if len(part) <= num_states * num_steps else None
    for step in range(num_steps):
        gain = log_likeness[part] + np.log(np.maximum(left, LEAST))
        best = np.where(is_open, gain, -np.inf).argmax(axis=1)
        base = base + gain[rows, best]
        worth[:, step + 1] = base
        picks[:, step] = part[best]
        is_open[rows, best] = False
        known = factor[:, : step + 1]
        explained = (known[rows, :, best][:, None] @ known)[:, 0]
        row = _kernel(inside[best], inside) if inner is None else inner[best]
        scale = np.sqrt(np.maximum(left[rows, best], LEAST))
        factor[:, step + 1] = (row - explained) / scale[:, None]
        left -= factor[:, step + 1] ** 2
    return worth, picks


def _choose_as_published(
    embeddings: Floats, query_embedding: Floats, k: int, size: int, lambda_: float
) -> Indices:
    import torch

    images = torch.from_numpy(embeddings.copy())
    query = torch.from_numpy(query_embedding.astype(embeddings.dtype))[None]
    unreached = float(-0x7FFFFFFF)
    values: list[float | Tensor] = [0.0, *[unreached] * k]
    traces: list[list[int]] = [[] for _ in range(k + 1)]
    for first in range(0, len(images), size):
        part = images[first : first + size]
        inner = _torch_kernel(part, part)
        new_values: list[float | Tensor] = [0.0, *[unreached] * k]
        new_traces: list[list[int]] = [[] for _ in range(k + 1)]
        for n in range(min(k, first) + 1):
            given = torch.cat([query, images[traces[n][-1:]]])
            cross = _torch_kernel(given, torch.cat([given, part]))
            worth, picks = _torch_grow(cross, inner, min(k - n, size), lambda_)
            for t, value in enumerate(worth):
                total = values[n] + value
                if total > new_values[n + t]:
                    new_values[n + t] = total
                    new_traces[n + t] = traces[n] + sorted(first + i for i in picks[:t])
        values, traces = new_values, new_traces
    return np.array(traces[k], dtype=np.int64)


def _torch_kernel(left: "Tensor", right: "Tensor") -> "Tensor":
    import torch

    squares = ((left[:, None] - right[None]) ** 2).sum(2)
    return sum((torch.exp(-squares / (2 * width)) for width in WIDTHS), torch.zeros(()))


def _torch_grow(
    cross: "Tensor", inner: "Tensor", num_steps: int, lambda_: float
) -> tuple[list["float | Tensor"], list[int]]:
    """As `_grow` from one state, candidate by candidate: batched, the last bits would differ.

    Args:
        cross: [1 + C, 1 + C + M] kernel of the question and the C last frames with themselves and
            the segment.
        inner: [M, M] kernel of the segment.
        num_steps: N.
        lambda_: As in the policy.
    """
    import torch

    num_given = len(cross) - 1
    log_likeness = torch.log(cross[0, 1:])
    to_given = cross[1:, 1 + num_given :].T
    factor = torch.linalg.cholesky(cross[1:, 1 : 1 + num_given]) if num_given else None
    worth: list[float | Tensor] = [0.0]
    picks: list[int] = []
    for _ in range(num_steps):
        best, best_value, best_factor = -1, -np.inf, factor
        for i in range(len(inner)):
            if i in picks:
                continue
            places = [*range(num_given), *(j + num_given for j in picks), i + num_given]
            column = torch.cat([to_given[i], inner[i, [*picks, i]]])
            grown, log_det = _torch_append(factor, column)
            value = 1.0 / lambda_ * 2 * log_likeness[places].sum() + log_det
            if best < 0 or value > best_value:
                best, best_value, best_factor = i, value, grown
        worth.append(best_value)
        picks.append(best)
        factor = best_factor
    return worth, picks


def _torch_append(factor: "Tensor | None", column: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Adds a row to a Cholesky factor; gives it and the logarithm of its determinant."""
    import torch

    if factor is None:
        return torch.sqrt(column).reshape(1, 1), torch.log(column)[0]
    head = torch.linalg.solve_triangular(factor, column[:-1, None], upper=False)
    corner = torch.sqrt(torch.abs(column[-1] - head.T @ head))
    size = len(column)
    grown = torch.zeros((size, size), dtype=factor.dtype)
    grown[:-1, :-1] = factor
    grown[-1] = torch.cat([head.flatten(), corner.flatten()])
    return grown, 2 * torch.log(torch.diag(grown)).sum()
