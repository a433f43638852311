"""Choose frames by a policy of your own, from the grounder's scores.

    python examples/own_policy.py video.mp4 "Who wins?" CHECKPOINT --before-s 1 --after-s 2

This one shows what leads up to the best moments and what follows: around each of the best frames
it takes those that lie within some seconds, until there is no room for more.
"""

import argparse

import numpy as np
from itg_model import FrameGrounder
from itg_model.policies import order_by_score


def around_the_best(
    scores: np.ndarray, times_s: np.ndarray, k: int, before_s: float, after_s: float
) -> list[int]:
    """Gives at most k places among the sampled frames, in time order; scores, times_s: [T]."""
    chosen: set[int] = set()
    for best in order_by_score(scores):
        since_s = times_s - times_s[best]
        near = np.flatnonzero((since_s >= -before_s) & (since_s <= after_s))
        if len(chosen | set(near)) > k:
            break
        chosen |= set(near)
    return sorted(chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("checkpoint")
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--before-s", type=float, default=1)
    parser.add_argument("--after-s", type=float, default=2)
    args = parser.parse_args()
    grounder = FrameGrounder.from_pretrained(args.checkpoint)
    scored = grounder.score(grounder.encode(args.video), args.question)
    scores, times_s = np.array(scored.scores), np.array(scored.time_s)
    for i in around_the_best(scores, times_s, args.top_k, args.before_s, args.after_s):
        print(f"frame {scored.source_idx[i]}  {times_s[i]:.2f} s  {scores[i]:.3f}")
