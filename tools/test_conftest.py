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

BROWSER_TEST = """\
import pytest

@pytest.mark.browser
def test_in_a_browser(): ...
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
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    multi_gpu\n    browser\n")
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


@pytest.mark.parametrize(("promised", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_a_browser_test_is_skipped_without_one_and_fails_if_it_was_promised(
    tmp_path, promised, outcome
):
    driver = tmp_path / "bin" / "chromedriver"
    driver.parent.mkdir()
    driver.touch(mode=0o755)
    environment = {"PATH": str(driver.parent), "ITG_REQUIRE_BROWSER": promised}
    done = run_pytest(tmp_path, BROWSER_TEST, **environment)
    assert outcome in done.stdout
    assert "needs chromium, not found" in done.stdout


def test_a_browser_test_runs_where_there_is_one(tmp_path):
    for name in ("chromium", "chromedriver"):
        (tmp_path / name).touch(mode=0o755)
    done = run_pytest(tmp_path, BROWSER_TEST, PATH=str(tmp_path), ITG_REQUIRE_BROWSER="1")
    assert "1 passed" in done.stdout


def test_every_test_starts_from_the_same_random_state(tmp_path):
    done = run_pytest(tmp_path, RNG_TEST)
    assert "2 passed" in done.stdout, done.stdout
