import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GPU_TEST = """\
import pytest

@pytest.mark.gpu
def test_on_a_gpu(): ...
"""

RNG_TEST = """\
import random
import numpy as np

def test_first():
    assert (random.random(), np.random.random()) == (0.8444218515250481, 0.5488135039273248)

def test_second():
    assert (random.random(), np.random.random()) == (0.8444218515250481, 0.5488135039273248)
"""

# Stands for the real one, which takes seconds to import and has the GPUs of this machine.
TORCH = """\
class cuda:
    @staticmethod
    def device_count(): return {num_gpus}

def get_rng_state(): ...
def set_rng_state(state): ...
def manual_seed(seed): ...
"""


def run_pytest(folder, test, *, num_gpus=0, **environment):
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    multi_gpu\n")
    (folder / "test_it.py").write_text(test)
    (folder / "torch.py").write_text(TORCH.format(num_gpus=num_gpus))
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "ITG_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    return subprocess.run(
        command, cwd=folder, env=keep | environment, capture_output=True, text=True, check=False
    )


def test_a_gpu_test_is_skipped_where_there_is_none(tmp_path):
    done = run_pytest(tmp_path, GPU_TEST)
    assert done.returncode == 0
    assert "needs 1 CUDA device(s), found 0" in done.stdout


def test_a_gpu_test_fails_where_one_was_promised(tmp_path):
    done = run_pytest(tmp_path, GPU_TEST, ITG_REQUIRE_GPU="1")
    assert done.returncode == 1
    assert "needs 1 CUDA device(s), found 0, and ITG_REQUIRE_GPU=1" in done.stdout


@pytest.mark.parametrize(("mark", "outcome"), [("gpu", "1 passed"), ("multi_gpu", "1 skipped")])
def test_one_gpu_is_enough_for_gpu_and_not_for_multi_gpu(tmp_path, mark, outcome):
    done = run_pytest(tmp_path, GPU_TEST.replace("mark.gpu", f"mark.{mark}"), num_gpus=1)
    assert outcome in done.stdout


def test_every_test_starts_from_the_same_random_state(tmp_path):
    done = run_pytest(tmp_path, RNG_TEST)
    assert "2 passed" in done.stdout, done.stdout
