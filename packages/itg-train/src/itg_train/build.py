"""The network of a run: drawn or loaded, frozen where it shall not learn, in its engine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._functorch.config
from itg_model.model import FrameGroundingModel

from itg_train.config import TrainConfig
from itg_train.engine import Engine, Processes, seed_everything
from itg_train.features import FeatureStore, fingerprint_tower
from itg_train.loss import GroundingLoss
from itg_train.parameters import choose_trainable, count_parameters, group_parameters
from itg_train.prepare import Prepared, attach_store
from itg_train.recompute import recompute
from itg_train.rundir import RunDir
from itg_train.start import load_start

logger = logging.getLogger(__name__)


def build(
    config: TrainConfig, processes: Processes, prepared: Prepared, run_dir: RunDir
) -> tuple[FrameGroundingModel, Engine]:
    """Builds the grounder and the engine that trains it, and gives the data its feature store."""
    seed_everything(config.seed)
    # in place and type: 7B parameters in float32 on the CPU would take a minute, and 30 GB each
    with processes.device, _default_dtype(getattr(torch, config.engine.dtype)):
        model = FrameGroundingModel(config.model).train()
    load_start(model, config.start)
    if config.data.features_dir is not None:
        store = FeatureStore(
            config.data.features_dir,
            prepared.train.root,
            fingerprint_tower(model.stacks("trained")[0]),
            config.data.sampling,
            pooled=not config.random_pooled_side,
        )
        attach_store(prepared, store)
    choose_trainable(model, config.trainable)
    recompute(model, config.engine, tower=config.trainable.tower)
    if config.engine.compile:
        compile_blocks(model)
    learning, total = count_parameters(model)
    if processes.is_first:
        logger.info("%.4g of %.4g million parameters learn", learning / 1e6, total / 1e6)
    groups = group_parameters(model, config.optim, config.engine.max_group_numel)
    module = GroundingLoss(model, config.frame_chunk)
    return model, Engine(module, groups, config.optim, config.engine, run_dir.state)


def compile_blocks(model: FrameGroundingModel) -> None:
    """Compiles what is elementwise around the matrix products; attention is fast as it is.

    Block by block and with symbolic lengths: one compilation serves all blocks and all lengths.
    """
    # of an MLP, the product of its two branches is a third of what would be kept and costs nothing
    # to compute again; the branches themselves fit the budget
    torch._functorch.config.activation_memory_budget = 0.7
    tower, trunk = model.stacks("trained")
    for layer in trunk.layers:
        for name in ("mlp", "input_layernorm", "post_attention_layernorm"):
            layer.get_submodule(name).compile(dynamic=True)
    for layer in tower.encoder.layers:
        layer.compile(dynamic=False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
