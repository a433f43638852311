"""Which frames to keep, given a score for each: the policies of the field behind one call.

`select_frames` is the call; `policy_info` says what a policy takes and where it was published. A
policy lives in the chapter named after what it rests on: `ranking`, `cutting`, `wavelets`,
`windows`, `drawing`, `diversity`. Everything is numpy on one row of scores, at most milliseconds
for some thousand frames but where a chapter says otherwise; torch is imported for top-k, which is
itg-kernels' own, and to follow two authors bit by bit.
"""

from itg_model.policies import cutting, diversity, drawing, ranking, wavelets, windows
from itg_model.policies.drawing import split_resolutions
from itg_model.policies.ranking import order_by_score
from itg_model.policies.registry import (
    Policy,
    check_policy,
    check_whole,
    describe_policy,
    parse_policy_params,
    policy_info,
    policy_names,
)
from itg_model.policies.selection import select_frames

_CHAPTERS = (ranking, cutting, wavelets, windows, drawing, diversity)

__all__ = [
    "Policy",
    "check_policy",
    "check_whole",
    "describe_policy",
    "order_by_score",
    "parse_policy_params",
    "policy_info",
    "policy_names",
    "select_frames",
    "split_resolutions",
]
