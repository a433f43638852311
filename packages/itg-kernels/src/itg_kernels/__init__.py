"""Frame scores, their loss, and exact top-k in time order, each as one call without a host sync."""

from itg_kernels.ops import (
    frame_bce_loss,
    frame_score,
    frame_score_loss,
    resolve_backend,
    topk_chronological,
)

__all__ = [
    "frame_bce_loss",
    "frame_score",
    "frame_score_loss",
    "resolve_backend",
    "topk_chronological",
]
