"""Test rules of the workspace: offline, seeded, no silent skip where a GPU is promised."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips GPU tests on machines without one; where ITG_REQUIRE_GPU=1 promises one, they fail."""
    needed = {"gpu": 1, "multi_gpu": 2}
    need = max((n for mark, n in needed.items() if item.get_closest_marker(mark)), default=0)
    if not need:
        return
    import torch

    have = torch.cuda.device_count()
    if have >= need:
        return
    message = f"needs {need} CUDA device(s), found {have}"
    if os.environ.get("ITG_REQUIRE_GPU") == "1":
        pytest.fail(f"{message}, and ITG_REQUIRE_GPU=1", pytrace=False)
    pytest.skip(message)


@pytest.fixture(autouse=True)
def _seeded_rng() -> Iterator[None]:
    """Every test starts from the same random state and leaves the caller's as it was."""
    # Looked up, not imported: a test of the light base should not pay for torch.
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state() if torch else None
    random.seed(0)
    np.random.seed(0)
    if torch:
        torch.manual_seed(0)
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    if torch:
        torch.set_rng_state(torch_state)
