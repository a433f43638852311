"""The network of a run: drawn or loaded, frozen where it shall not learn, in its engine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from itg_model.model import FrameGroundingModel
from torch import nn

from itg_train.chat_loss import ChatLoss
from itg_train.config import TrainConfig
from itg_train.encoding import FrozenTower
from itg_train.engine import Engine, Processes, seed_everything
from itg_train.features import FeatureStore, fingerprint_tower
from itg_train.fused import fuse_trunk
from itg_train.loss import GroundingLoss
from itg_train.parameters import (
    choose_trainable,
    count_parameters,
    group_parameters,
    merged_state,
)
from itg_train.prepare import Prepared, attach_store
from itg_train.rundir import RunDir
from itg_train.start import LossModule, load_start

logger = logging.getLogger(__name__)


def build(
    config: TrainConfig, processes: Processes, prepared: Prepared, run_dir: RunDir
) -> tuple[LossModule, Engine]:
    """Builds the network and the engine that trains it, and gives the data its feature store."""
    seed_everything(config.seed)
    # in place and type: 7B parameters in float32 on the CPU would take a minute, and 30 GB each
    module = make_module(config, processes.device)
    load_start(module, config.start)
    if config.data.features_dir is not None:
        store = FeatureStore(
            config.data.features_dir,
            prepared.train.root,
            fingerprint_tower(module.model.stacks("trained")[0]),
            config.data.sampling,
            pooled=not config.random_pooled_side,
        )
        attach_store(prepared, store)
    choose_trainable(module, config.trainable)
    fuse_trunk(module.model, config.engine)
    if config.trainable.tower and config.engine.recompute != "nothing":
        tower = module.model.stacks("trained")[0]
        tower.gradient_checkpointing_enable({"use_reentrant": False})
    learning, total = count_parameters(module)
    if processes.is_first:
        logger.info("%.4g of %.4g million parameters learn", learning / 1e6, total / 1e6)
    groups = group_parameters(module, config.optim, config.engine.max_group_numel)
    return module, Engine(module, groups, config.optim, config.engine, run_dir.state)


def make_module(config: TrainConfig, device: torch.device | str) -> LossModule:
    """The network with its loss, its weights drawn; on `meta` they are none."""
    with torch.device(device), _default_dtype(getattr(torch, config.engine.dtype)):
        model = FrameGroundingModel(config.model).train()
        # not where its parameters are divided among processes: it would hold them back
        rebuilds = not config.trainable.tower and config.engine.zero_stage < 3
        frozen = FrozenTower() if rebuilds else None
        if config.task == "grounding":
            return GroundingLoss(model, config.frame_chunk, frozen)
        text = config.model.text
        lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        nn.init.normal_(lm_head.weight, std=text.initializer_range)
        return ChatLoss(model, lm_head, config.frame_chunk, frozen)


def whole_module(config: TrainConfig, engine: Engine, module: LossModule) -> LossModule:
    """The network as one process can run it by itself: a copy, where its parts are divided."""
    if config.engine.zero_stage < 3:
        return module
    with engine.gathered():
        state = {name: tensor.clone() for name, tensor in merged_state(module).items()}
    whole = make_module(config, "meta")
    named = {k if k.startswith("lm_head.") else f"model.{k}": v for k, v in state.items()}
    whole.load_state_dict(named, assign=True)
    whole.model.stacks("loaded")[0].reset_position_ids(whole.model.device)
    return whole


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
