import copy
import dataclasses

import pytest
import torch
from itg_kernels import frame_bce_loss
from itg_model.model import FrameGroundingModel
from itg_train.config import OptimConfig
from itg_train.dataset import Batch
from itg_train.loss import GroundingLoss, group_parameters


@pytest.fixture
def model(tiny_model_config):
    torch.manual_seed(0)
    return FrameGroundingModel(tiny_model_config).train()


def batch_of(*samples, weight=1.0):
    return Batch(step=0, samples=samples, weight=weight)


def with_all_frames_relevant(sample):
    first = sample.labels[0]
    return dataclasses.replace(
        sample,
        input_ids=sample.input_ids[:1],
        records=sample.records[:1],
        labels=(torch.ones_like(first),),
    )


def test_the_loss_is_the_mean_of_its_questions_losses(model, make_dataset):
    dataset = make_dataset()
    samples = [dataset.load(0), dataset.load(1)]
    loss = GroundingLoss(model, train_tower=True, random_side_seed=None)(batch_of(*samples))
    one_by_one = [
        frame_bce_loss(model([sample.pixels], [ids]).logits[0], label)
        for sample in samples
        for ids, label in zip(sample.input_ids, sample.labels, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(one_by_one).mean())


def test_a_question_that_the_whole_video_answers_still_teaches(model, make_dataset):
    sample = with_all_frames_relevant(make_dataset().load(0))
    loss = GroundingLoss(model, train_tower=True, random_side_seed=None)(batch_of(sample))
    loss.backward()
    assert loss > 0
    assert model.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("train_tower", [True, False])
def test_the_tower_learns_only_where_it_should(model, make_dataset, train_tower):
    module = GroundingLoss(model, train_tower=train_tower, random_side_seed=None)
    module(batch_of(make_dataset().load(0))).backward()
    tower = {name: p.grad for name, p in model.tower.named_parameters()}
    rest = {n: p.grad for n, p in model.named_parameters() if not n.startswith("tower.")}
    assert all((grad is not None) == train_tower for grad in tower.values())
    assert all(grad is not None for grad in rest.values())


def test_drawn_sides_depend_on_seed_step_and_video_and_not_on_what_came_before(model, make_dataset):
    dataset = make_dataset()

    def spy(seed, steps):
        module = GroundingLoss(copy.deepcopy(model), train_tower=True, random_side_seed=seed)
        return [module._side(step, 0, dataset.load(0)) for step in steps]

    seen = spy(0, range(20))
    assert spy(0, range(10, 20)) == seen[10:]
    assert spy(1, range(20)) != seen
    assert set(seen) == {1, 2}


def test_evaluation_keeps_the_largest_side(model, make_dataset):
    module = GroundingLoss(model, train_tower=True, random_side_seed=0).eval()
    assert {module._side(step, 0, make_dataset().load(0)) for step in range(20)} == {None}


def test_every_trainable_parameter_is_in_one_group_with_its_own_rates(model):
    model.tower.requires_grad_(False)
    groups = group_parameters(model, OptimConfig(lr=1e-5, head_lr=2e-4, weight_decay=0.1))
    placed = {id(p): group for group in groups for p in group["params"]}
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(placed) == len(trainable)
    for name, parameter in trainable.items():
        group = placed[id(parameter)]
        assert group["lr"] == (2e-4 if name in ("head.weight", "head.bias") else 1e-5), name
        assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0), name
