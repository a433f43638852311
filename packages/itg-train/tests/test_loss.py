import dataclasses

import pytest
import torch
from itg_kernels import frame_bce_loss
from itg_model.model import FrameGroundingModel
from itg_train.config import TrainableConfig
from itg_train.encoding import FrozenTower
from itg_train.loader import Pass
from itg_train.loss import GroundingLoss
from itg_train.parameters import choose_trainable


@pytest.fixture
def module(tiny_model_config):
    torch.manual_seed(0)
    return GroundingLoss(FrameGroundingModel(tiny_model_config).train())


def with_all_frames_relevant(sample):
    return dataclasses.replace(
        sample,
        input_ids=sample.input_ids[:1],
        records=sample.records[:1],
        labels=(torch.ones_like(sample.labels[0]),),
    )


def test_the_loss_is_the_sum_of_its_questions_losses_each_at_its_own_side(module, make_dataset):
    dataset = make_dataset()
    samples = [
        dataclasses.replace(sample, sides=tuple(1 + i % 2 for i in range(len(sample.records))))
        for sample in (dataset.load(0), dataset.load(1))
    ]
    loss = module(Pass(samples=tuple(samples)))
    one_by_one = [
        frame_bce_loss(module.model([sample.frames], [ids], [side]).logits[0], label)
        for sample in samples
        for ids, label, side in zip(sample.input_ids, sample.labels, sample.sides, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(one_by_one).sum())


def test_features_of_the_tower_cost_what_frames_cost(module, make_dataset):
    sample = make_dataset().load(0)
    side = module.model.config.vision.grid_side
    features = module.model.encode_frames(sample.frames, side).detach()
    seen = dataclasses.replace(sample, frames=features)
    torch.testing.assert_close(module(Pass(samples=(seen,))), module(Pass(samples=(sample,))))


def test_an_empty_pass_costs_nothing_and_still_has_gradients_for_all(module):
    loss = module(Pass(samples=()))
    loss.backward()
    assert loss == 0
    grads = {name: p.grad for name, p in module.named_parameters()}
    assert all(grad is not None and not grad.any() for grad in grads.values())


def test_a_question_that_the_whole_video_answers_still_teaches(module, make_dataset):
    sample = with_all_frames_relevant(make_dataset().load(0))
    loss = module(Pass(samples=(sample,)))
    loss.backward()
    assert loss > 0
    assert module.model.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("sides", [(), (1, 2)], ids=["one side", "several sides"])
@pytest.mark.parametrize("learns", [True, False])
def test_the_tower_learns_only_where_it_should(module, make_dataset, learns, sides):
    choose_trainable(module, TrainableConfig(tower=learns))
    sample = make_dataset().load(0, [0, 1])
    module(Pass(samples=(dataclasses.replace(sample, sides=sides),))).backward()
    for name, parameter in module.named_parameters():
        expected = learns or not name.startswith("model.tower.")
        assert (parameter.grad is not None) == expected, name


def test_a_rebuilt_tower_sees_what_the_frozen_one_sees(module, make_dataset):
    batch = Pass(samples=(make_dataset().load(0), make_dataset().load(1)))
    choose_trainable(module, TrainableConfig())
    names = list(module.state_dict())
    plain = module(batch)
    module.frozen = FrozenTower()
    torch.testing.assert_close(module(batch), plain)
    assert list(module.state_dict()) == names
