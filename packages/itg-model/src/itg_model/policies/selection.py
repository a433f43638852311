"""The one call: checks what is asked, tidies what the policies should not have to see.

In its default form a policy may count on finite float64 scores and on k frames being there. That
is arranged here once: frames without a score, or with a score of -inf, are taken away first and
come back only when nothing else is left, so no policy can put them before a valid frame.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from itg_model.policies.ranking import fill_up
from itg_model.policies.registry import (
    Array,
    Floats,
    Indices,
    Policy,
    check_whole,
    policy_info,
    to_array,
)

MOST = 1e100
"""Greater scores are scaled down to it."""


def select_frames(
    scores: npt.ArrayLike, k: int, policy: str = "top-k", parity: bool = False, **params: Any
) -> Indices:
    """Chooses the frames to keep.

    Args:
        scores: [T] of the frames in time order, in any unit, as a list, an array or a tensor;
            higher is better. NaN marks a frame that could not be scored, -inf one that should not
            be chosen; both are taken only when no others are left, NaN last.
        k: Frames to choose, >= 1; all T where there are fewer.
        policy: One of `policy_names()`.
        parity: Follow the policy's authors to the letter, their faults included: the scores keep
            their precision, and there may be fewer than k frames, repeated ones, or one that does
            not exist. NaN and infinities do what they do in the authors' programs.
        **params: The policy's own parameters; see `policy_info(policy).parameters`.

    Returns:
        [min(k, T)] int64 distinct places among the scored frames, ascending; the same on every
        call. For `dig`, frames of the video as `boundaries` counts them. In parity whatever the
        authors return, in their order.

    Raises:
        ValueError: Unknown policy, `k` below 1, scores that are not one row of numbers, or a
            parameter that is unknown, missing or senseless.
    """
    chosen_policy = policy_info(policy)
    k = check_whole("k", k, 1)
    row = _as_row(scores)
    values = chosen_policy.parse(params, len(row))
    if len(row) == 0:
        return np.empty(0, dtype=np.int64)
    if parity:
        # the authors divide by zero and take logarithms of it; what comes of that is the point
        with np.errstate(all="ignore"):
            return chosen_policy.choose(row, k, parity=True, **values).astype(np.int64)
    return np.sort(_choose_exactly(chosen_policy, row.astype(np.float64), k, values))


def _as_row(scores: npt.ArrayLike) -> Floats:
    row = to_array(scores)
    if row.dtype.kind != "f":
        try:
            row = row.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"scores must be numbers, got an array of {row.dtype}") from None
    if row.ndim != 1:
        raise ValueError(f"scores must be [T], got shape {row.shape}")
    return row


def _choose_exactly(policy: Policy, row: Floats, k: int, values: dict[str, Any]) -> Indices:
    if not policy.looks_at_scores:
        return policy.choose(row, min(k, len(row)), parity=False, **values)
    # NaN is not greater than anything
    usable = row > -np.inf
    if not policy.picks_scored_frames:
        tidy = np.zeros_like(row)
        if usable.any():
            tidy[usable] = _bound(row[usable])
            tidy[~usable] = tidy[usable].min()
        return policy.choose(tidy, k, parity=False, **values)
    places = np.flatnonzero(usable)
    if len(places) == 0:
        return fill_up(places, row, k)
    for parameter in policy.parameters:
        value = values[parameter.name]
        if isinstance(parameter, Array) and parameter.per_score and value is not None:
            values[parameter.name] = value[places]
    kept = policy.choose(_bound(row[places]), min(k, len(places)), parity=False, **values)
    return fill_up(places[kept], row, k)


def _bound(row: Floats) -> Floats:
    """Brings scores above -inf into a range where differences and squares are finite, in order."""
    finite = row[np.isfinite(row)]
    if len(finite) == 0:
        return np.zeros_like(row)
    greatest = np.abs(finite).max()
    if greatest > MOST:
        row, finite = row / greatest * MOST, finite / greatest * MOST
    above = finite.max() + ((finite.max() - finite.min()) or 1.0)
    return np.minimum(row, above)
