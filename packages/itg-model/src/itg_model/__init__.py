"""itg-model: the frame grounder, which picks the frames of a video that answer a question.

Names are imported on first use: importing the package costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itg_model.config import FrameGroundingConfig
    from itg_model.errors import CheckpointError
    from itg_model.grounder import EncodedVideo, FrameGrounder
    from itg_model.model import FrameGroundingModel
    from itg_model.policies import select_frames

_HOMES = {
    "CheckpointError": "itg_model.errors",
    "EncodedVideo": "itg_model.grounder",
    "FrameGrounder": "itg_model.grounder",
    "FrameGroundingConfig": "itg_model.config",
    "FrameGroundingModel": "itg_model.model",
    "select_frames": "itg_model.policies",
}

__all__ = [
    "CheckpointError",
    "EncodedVideo",
    "FrameGrounder",
    "FrameGroundingConfig",
    "FrameGroundingModel",
    "select_frames",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    # what nobody has used yet counts too: completion and help() go by this
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "importlib"})
