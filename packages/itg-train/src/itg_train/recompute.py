"""What the trunk's blocks forget in the forward pass and compute again in the backward pass.

Of what a block of Qwen2-7B would keep for the backward pass, some 60 percent are results of norms,
rotations and activations: cheap to compute again. The products of matrices and attention cost
nearly all of its time, so they are kept, unless memory does not allow even that.
"""

from functools import partial
from typing import Any

import torch
from itg_model.model import FrameGroundingModel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from itg_train.config import EngineConfig

_aten = torch.ops.aten
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._flash_attention_forward.default,
        _aten._cudnn_attention_forward.default,
    }
)


def recompute(model: FrameGroundingModel, config: EngineConfig, *, tower: bool) -> None:
    """Arranges for blocks to recompute what the config says, in train mode.

    Args:
        model: The grounder.
        config: What is recomputed.
        tower: Whether the tower learns, so that it keeps anything at all.
    """
    if config.recompute == "nothing":
        return
    everything = partial(checkpoint, use_reentrant=False)
    elementwise = partial(everything, context_fn=_keep_products)
    vision, trunk = model.stacks("trained")
    blocks: list[Any] = list(trunk.layers)
    num_whole = config.layers_recomputed if config.recompute == "elementwise" else len(blocks)
    for place, block in enumerate(blocks):
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = everything if place < num_whole else elementwise
    if tower:
        vision.gradient_checkpointing_enable({"use_reentrant": False})


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(_decide)


def _decide(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
