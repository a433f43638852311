"""One set of tests, run wherever the package runs; uninitialised memory reads as NaN meanwhile.

Without a GPU the tests meet the torch path; with `TRITON_INTERPRET=1` in the environment, the
Triton kernels in Triton's interpreter; on a GPU (marker `gpu`), both on the device.
"""

import os

# cuBLAS asks for this before it calls itself deterministic, and warnings are errors here.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Target:
    """A backend on a device; `tiny` where time forbids large shapes."""

    backend: str
    device: str

    @property
    def tiny(self) -> bool:
        return self.backend == "triton" and self.device == "cpu"


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_ON_CPU = Target("triton" if INTERPRETED else "torch", "cpu")
_TARGETS = [
    pytest.param(_ON_CPU, id=f"{_ON_CPU.backend}-cpu"),
    *(
        pytest.param(Target(backend, "cuda"), id=f"{backend}-cuda", marks=pytest.mark.gpu)
        for backend in ("torch", "triton")
        if not INTERPRETED
    ),
]


def pytest_configure(config: pytest.Config) -> None:
    if INTERPRETED:
        # Triton's interpreter hands one-element arrays to range(); NumPy before 2.4 only warns.
        config.addinivalue_line(
            "filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
        )


@pytest.fixture(params=_TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


@pytest.fixture(params=[param for param in _TARGETS if param.values[0].backend == "triton"])
def triton_target(request: pytest.FixtureRequest) -> Target:
    """For what only the kernels promise."""
    return request.param


@pytest.fixture(autouse=True)
def _poisoned_empty() -> Iterator[None]:
    fill = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill
