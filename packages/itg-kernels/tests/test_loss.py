import pytest
import torch
from itg_kernels import frame_bce_loss, frame_score_loss

# What the reference implementation computed for logits evenly spaced over -2..2, positives first.
REFERENCE_CASES = [
    {"pos": 0, "neg": 8, "loss": 0.8854159116744995},
    {"pos": 8, "neg": 0, "loss": 0.0},
    {"pos": 1, "neg": 100, "loss": 0.9525733590126038},
    {"pos": 2, "neg": 6, "loss": 1.6589964628219604},
]


def case(pos, neg):
    logits = torch.linspace(-2, 2, pos + neg)
    return logits, (torch.arange(pos + neg) < pos).long()


@pytest.mark.parametrize("numbers", REFERENCE_CASES, ids=lambda c: f"{c['pos']}-of-{c['neg']}")
def test_the_loss_is_the_reference_implementations(numbers):
    logits, labels = case(numbers["pos"], numbers["neg"])
    loss = frame_bce_loss(logits, labels, min_negatives=0)
    assert loss.item() == pytest.approx(numbers["loss"], abs=1e-6)


@pytest.mark.parametrize("numbers", REFERENCE_CASES, ids=lambda c: f"{c['pos']}-of-{c['neg']}")
def test_counting_at_least_one_negative_changes_only_the_all_positive_case(numbers):
    logits, labels = case(numbers["pos"], numbers["neg"])
    loss = frame_bce_loss(logits, labels)
    if numbers["neg"]:
        assert loss.item() == pytest.approx(numbers["loss"], abs=1e-6)
    else:
        assert loss.item() > 0.1


def test_an_all_positive_batch_pushes_its_logits_up():
    logits = torch.zeros(8, requires_grad=True)
    frame_bce_loss(logits, torch.ones(8)).backward()
    assert (logits.grad < 0).all()


def test_samples_are_weighted_and_averaged_as_batches_of_their_own():
    lengths = [3, 0, 9, 5]
    logits = torch.randn(17)
    labels = torch.rand(17) < 0.3
    cu_samples = torch.tensor([0, 3, 3, 12, 17])
    alone = [
        frame_bce_loss(z, y)
        for z, y in zip(logits.split(lengths), labels.split(lengths), strict=True)
        if len(z)
    ]
    together = frame_bce_loss(logits, labels, cu_samples=cu_samples)
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_no_frames_cost_nothing():
    assert frame_bce_loss(torch.zeros(0), torch.zeros(0)).item() == 0.0


def test_extreme_logits_stay_finite():
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4])
    loss = frame_bce_loss(logits, torch.tensor([0, 1, 1, 0]))
    assert loss.item() == pytest.approx(1e4 / 2, rel=1e-6)


@pytest.mark.parametrize("bounds", [[0, 3], [1, 4], [0, 3, 2, 4], []], ids=str)
def test_sample_boundaries_must_cover_the_frames(bounds):
    with pytest.raises(ValueError, match="cu_samples must ascend from 0 to F=4"):
        frame_bce_loss(
            torch.zeros(4), torch.zeros(4), cu_samples=torch.tensor(bounds, dtype=torch.int64)
        )


@pytest.mark.parametrize("name", ["labels", "cu_samples"])
def test_labels_and_samples_on_another_device_are_named(name):
    arguments = {"labels": torch.zeros(4), "cu_samples": torch.tensor([0, 4])}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} must be on cpu as logits, got meta"):
        frame_bce_loss(torch.zeros(4), **arguments)
    inputs = torch.zeros(4, 8), torch.ones(8), torch.ones(8), torch.zeros(()), torch.arange(5)
    with pytest.raises(ValueError, match=f"{name} must be on cpu as hidden, got meta"):
        frame_score_loss(*inputs, **arguments)
