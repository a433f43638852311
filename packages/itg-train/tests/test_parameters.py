import pytest
import torch
from itg_model.model import FrameGroundingModel
from itg_train.config import OptimConfig, TrainableConfig
from itg_train.loader import Pass
from itg_train.loss import GroundingLoss
from itg_train.parameters import choose_trainable, group_parameters, merged_state, part_of


@pytest.fixture
def module(tiny_model_config):
    torch.manual_seed(0)
    return GroundingLoss(FrameGroundingModel(tiny_model_config).train())


def test_every_trainable_parameter_is_in_one_group_with_its_own_rates(module):
    choose_trainable(module, TrainableConfig())
    optim = OptimConfig(lr=1e-5, head_lr=2e-4, projector_lr=3e-4, weight_decay=0.1)
    groups = group_parameters(module, optim)
    placed = {id(p): group for group in groups for p in group["params"]}
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(placed) == len(trainable)
    rates = {"head": 2e-4, "projector": 3e-4}
    for name, parameter in trainable.items():
        group = placed[id(parameter)]
        assert group["lr"] == rates.get(part_of(name), 1e-5), name
        assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0), name
    assert not any(name.startswith("model.tower.") for name in trainable)


def test_large_groups_are_split_and_no_parameter_is_lost(module):
    choose_trainable(module, TrainableConfig())
    optim = OptimConfig(lr=1e-5)
    largest = module.model.trunk.embed_tokens.weight.numel()
    split = group_parameters(module, optim, max_group_numel=largest)
    assert all(sum(p.numel() for p in group["params"]) <= largest for group in split)
    assert len(group_parameters(module, optim, max_group_numel=600)) > len(split)
    ids = [id(p) for group in split for p in group["params"]]
    whole = [id(p) for group in group_parameters(module, optim) for p in group["params"]]
    assert sorted(ids) == sorted(whole)


def test_head_only_leaves_all_else_as_it_is(module):
    choose_trainable(module, TrainableConfig(trunk="frozen", embeddings=False, projector=False))
    learning = {name for name, p in module.named_parameters() if p.requires_grad}
    assert learning == {"model.head.weight", "model.head.bias"}


def test_low_rank_updates_start_as_nothing_and_are_merged_under_the_plain_names(
    module, make_dataset, tiny_model_config
):
    batch = Pass(samples=(make_dataset().load(0),))
    plain = {name: tensor.clone() for name, tensor in merged_state(module).items()}
    before = module(batch)
    choose_trainable(module, TrainableConfig(trunk="lora", embeddings=False, lora_rank=2))
    torch.testing.assert_close(module(batch), before)
    module(batch).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    merged = merged_state(module)
    assert merged.keys() == plain.keys()
    name = "trunk.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged["trunk.embed_tokens.weight"], plain["trunk.embed_tokens.weight"])
    again = FrameGroundingModel(tiny_model_config).train()
    again.load_state_dict(merged)
    torch.testing.assert_close(GroundingLoss(again)(batch), module(batch))
    assert not torch.equal(merged[name], plain[name])
