"""Test rules of the workspace: offline, seeded, no silent skip of what was promised."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.util
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def pytest_configure() -> None:
    """Lets Ctrl-C interrupt, also in a job that a shell put into the background.

    There it is ignored, which every process inherits that a test starts and then interrupts.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that need what is not here; where the environment promises it, they fail.

    ITG_REQUIRE_GPU=1 promises GPUs, ITG_REQUIRE_BROWSER=1 a browser with its driver.
    """
    needed = {"gpu": 1, "multi_gpu": 2}
    num_gpus = max((n for mark, n in needed.items() if item.get_closest_marker(mark)), default=0)
    if num_gpus:
        import torch

        have = torch.cuda.device_count()
        if have < num_gpus:
            _skip_or_fail(f"needs {num_gpus} CUDA device(s), found {have}", "ITG_REQUIRE_GPU")
    if item.get_closest_marker("browser"):
        missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
        if missing:
            _skip_or_fail(f"needs {' and '.join(missing)}, not found", "ITG_REQUIRE_BROWSER")


def _skip_or_fail(message: str, promise: str) -> None:
    if os.environ.get(promise) == "1":
        pytest.fail(f"{message}, and {promise}=1", pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="module")
def load_script() -> Iterator[Callable[[Path], ModuleType]]:
    """Imports scripts that are no part of a package, such as benchmarks, with what lies beside."""
    with pytest.MonkeyPatch.context() as patch:

        def load(path: Path) -> ModuleType:
            patch.syspath_prepend(str(path.parent))
            spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)  # its dataclasses look themselves up
            spec.loader.exec_module(module)
            return module

        yield load


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
