import itertools

import pytest
from itg_train.config import OptimConfig
from itg_train.schedule import scale_learning_rate


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end():
    optim = OptimConfig(lr=1.0, warmup_ratio=0.1, final_lr_ratio=0.2)
    factors = [scale_learning_rate(step, 100, optim) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(0.2, abs=1e-3)


def test_a_run_without_warm_up_starts_at_the_peak():
    assert scale_learning_rate(0, 10, OptimConfig(lr=1.0, warmup_ratio=0)) == 1
