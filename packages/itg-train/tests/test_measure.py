from dataclasses import replace

import pytest
import torch
from itg_train import measure
from itg_train.engine import Processes
from itg_train.loader import Pass, StepBatch
from itg_train.measure import MAX_BLIND_STEPS, MAX_LOST_STEPS, StepTimer, count_step
from itg_train.recipes import RECIPES
from itg_train.rundir import RunError


class CountedEngine:
    """Counts the updates of its weights."""

    def __init__(self):
        self.num_steps = 0
        self.norm = 1.0

    def train_step(self, passes, factor, lr_factor):
        self.num_steps += 1
        return torch.tensor(0.5)

    def grad_norm(self):
        return self.norm


@pytest.fixture
def make_timer(monkeypatch):
    def make(*others):
        """A timer of the first process, with what the others have of every step."""
        monkeypatch.setattr(measure, "gather_from_all", lambda mine: [mine, *others])
        monkeypatch.setattr(measure, "mean_over_processes", float)
        config = RECIPES["scripted-small"]()
        processes = Processes(rank=0, world_size=1 + len(others), device=torch.device("cpu"))
        return StepTimer(config, processes, CountedEngine())

    return make


@pytest.fixture
def learnt(make_dataset):
    sample = make_dataset().load(0)
    sample = replace(sample, sides=(1,) * len(sample.records))
    return StepBatch(step=0, passes=(Pass(samples=(sample,)),), skipped=())


BLIND = StepBatch(step=0, passes=(Pass(samples=()),), skipped=("a.mp4: no such file",))


def test_a_step_without_a_question_does_not_move_the_weights(make_timer, learnt):
    timer = make_timer()
    metrics = timer.take(BLIND)
    assert timer.engine.num_steps == 0
    assert (metrics.samples, metrics.skipped, metrics.grad_norm) == (0, 1, None)
    timer.take(learnt)
    assert timer.engine.num_steps == 1


def test_a_process_without_a_question_learns_with_the_others(make_timer, learnt):
    timer = make_timer(measure.count_step(make_timer().config, learnt))
    for _ in range(MAX_BLIND_STEPS + 1):
        timer.take(BLIND)
    assert timer.engine.num_steps == MAX_BLIND_STEPS + 1


def test_a_run_whose_data_are_gone_ends_in_one_line_before_it_learns_nothing(make_timer, learnt):
    timer = make_timer()
    for _ in range(MAX_BLIND_STEPS - 1):
        timer.take(BLIND)
    # one video that can be read, and all is well
    timer.take(learnt)
    for _ in range(MAX_BLIND_STEPS - 1):
        timer.take(BLIND)
    with pytest.raises(RunError, match="are the data still there") as caught:
        timer.take(BLIND)
    assert "\n" not in str(caught.value)


def test_videos_that_any_process_skips_are_named_once_by_the_first(make_timer, caplog):
    of_others = measure.StepCount(skipped=("b.mp4: is empty", "a.mp4: no such file"))
    metrics = make_timer(of_others).take(BLIND)
    assert metrics.skipped == 2
    assert sorted(caplog.messages) == [
        "step 0 goes without a video: a.mp4: no such file",
        "step 0 goes without a video: b.mp4: is empty",
    ]
    caplog.clear()
    timer = make_timer(of_others)
    timer.processes = replace(timer.processes, rank=1)
    timer.take(BLIND)
    assert caplog.messages == []


def test_steps_that_deepspeed_leaves_out_are_named_and_end_a_run_that_learns_no_more(
    make_timer, learnt, caplog
):
    timer = make_timer()
    for norm, expected in [(float("inf"), None), (float("nan"), None), (2.0, 2.0)]:
        timer.engine.norm = norm
        assert timer.take(learnt).grad_norm == expected
    assert caplog.text.count("step 0: gradients are not finite; the weights stay") == 2
    timer.engine.norm = float("inf")
    for _ in range(MAX_LOST_STEPS - 1):
        timer.take(learnt)
    with pytest.raises(RunError, match=r"nothing is learnt; lower optim\.lr"):
        timer.take(learnt)


def test_a_question_that_is_cut_counts_as_many_tokens_as_the_network_gets(make_timer, learnt):
    config = make_timer().config
    (sample,) = learnt.passes[0].samples
    endless = torch.cat([sample.input_ids[0], torch.zeros(5000, dtype=torch.int64)])
    sample = replace(sample, input_ids=(endless,), sides=(1,), records=sample.records[:1])
    counted = count_step(config, replace(learnt, passes=(Pass(samples=(sample,)),)))
    assert counted.tokens == config.model.tokenizer_model_max_length
