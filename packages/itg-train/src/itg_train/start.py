"""The weights that a run starts from: a grounder's, a Video LLM's, or a language model's."""

from itg_model import weights
from itg_model.model import FrameGroundingModel

from itg_train.config import StartConfig

DRAWN_IF_MISSING = ("projector.", "head.", "lm_head.")
"""What a language model or a Video LLM may lack, to be learnt from where it was drawn."""


def load_start(model: FrameGroundingModel, start: StartConfig) -> None:
    """Loads weights into a model, in its type; does nothing where none are given.

    Raises:
        CheckpointError: A file or a tensor is missing, misshapen or unreadable.
    """
    if start.checkpoint is None:
        return
    weight = model.head.weight
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    state = weights.read_weights(
        start.checkpoint,
        shapes,
        weight.dtype,
        weight.device,
        start.vision_checkpoint,
        may_lack=DRAWN_IF_MISSING,
    )
    model.load_state_dict(state, strict=False)
