"""The learning rate over a run."""

import math

from itg_train.config import OptimConfig


def scale_learning_rate(step: int, num_steps: int, optim: OptimConfig) -> float:
    """The learning rate of a step as a share of its peak: a linear rise, then half a cosine.

    Args:
        step: 0..num_steps - 1.
        num_steps: Length of the run.
        optim: Warm-up and final share.
    """
    num_warmup = math.ceil(optim.warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return optim.final_lr_ratio + (1 - optim.final_lr_ratio) * cosine
