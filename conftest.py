"""Test rules for the whole workspace: offline, seeded, and no silent skip where a GPU is promised."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random
from collections.abc import Iterator

import numpy as np
import pytest


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips GPU tests on machines without one, unless ITG_REQUIRE_GPU=1 promises one."""
    needed = {"gpu": 1, "multi_gpu": 2}
    for item in items:
        need = max((n for mark, n in needed.items() if item.get_closest_marker(mark)), default=0)
        if need and _num_gpus() < need and os.environ.get("ITG_REQUIRE_GPU") != "1":
            item.add_marker(pytest.mark.skip(reason=f"needs {need} CUDA device(s)"))


@pytest.fixture(autouse=True)
def _seeded_rng() -> Iterator[None]:
    """Every test starts from the same random state and leaves the caller's as it was."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global generator
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
