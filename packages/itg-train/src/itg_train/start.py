"""The weights that a run starts from: a grounder's, a Video LLM's, or a language model's."""

import torch
from itg_model import weights
from itg_model.errors import CheckpointError

from itg_train.chat_loss import ChatLoss
from itg_train.config import StartConfig
from itg_train.loss import GroundingLoss

LossModule = GroundingLoss | ChatLoss

DRAWN_IF_MISSING = ("projector.", "head.", "lm_head.")
"""What a language model or a Video LLM may lack, to be learnt from where it was drawn."""


def check_start(start: StartConfig) -> None:
    """Finds a misspelt checkpoint before videos are written and looked at for it.

    Raises:
        CheckpointError: A directory is not there.
    """
    for name in ("checkpoint", "vision_checkpoint"):
        directory = getattr(start, name)
        if directory is not None and not directory.is_dir():
            raise CheckpointError(f"start.{name} {directory}: no such directory")


def load_start(module: LossModule, start: StartConfig) -> None:
    """Loads weights into a network, in its type; does nothing where none are given.

    A language head that a checkpoint lacks is that of a model that shares it with its embeddings.

    Raises:
        CheckpointError: A file or a tensor is missing, misshapen or unreadable.
    """
    if start.checkpoint is None:
        return
    weight = module.model.head.weight
    parameters = {name.removeprefix("model."): p for name, p in module.named_parameters()}
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    state = weights.read_weights(
        start.checkpoint,
        shapes,
        weight.dtype,
        weight.device,
        start.vision_checkpoint,
        may_lack=DRAWN_IF_MISSING,
    )
    if "lm_head.weight" in shapes:
        state.setdefault("lm_head.weight", state["trunk.embed_tokens.weight"])
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
