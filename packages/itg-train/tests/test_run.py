"""Whole runs in processes of their own, as users start them: resuming, killing, two processes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from itg_data.timeline.page import record_in
from itg_model.grounder import FrameGrounder
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

NUM_STEPS = 40

OPTIONS = {
    "data.synthetic.num-train": 4,
    "data.synthetic.num-heldout": 1,
    "data.synthetic.duration-s": 12,
    "data.synthetic.fps": 2,
    "data.synthetic.height": 32,
    "data.synthetic.width": 48,
    "model.vision.hidden-size": 16,
    "model.vision.image-size": 32,
    "model.vision.num-hidden-layers": 2,
    "model.text.hidden-size": 16,
    "model.text.num-hidden-layers": 1,
    "model.text.vocab-size": 300,
    "model.vision-token-num": 48,
    "data.sampling.max-frames": 48,
    "num-steps": NUM_STEPS,
    "save-every": 10,
    "videos-per-step": 1,
    "engine.device": "cpu",
}


def start(home: Path, name: str, *changes: str, launcher=("-m", "itg_train")) -> subprocess.Popen:
    """Starts a run in a bare environment: no compiler on the path, no cache but its own."""
    options = OPTIONS | {"run-dir": home / name, "data.cache-dir": home / "data"}
    flags = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(home / "extensions"),
    }
    return subprocess.Popen(
        [sys.executable, *launcher, *flags, *changes],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def load_weights(run_dir: Path):
    return load_file(run_dir / "checkpoint" / "model.safetensors")


def read_metrics(run_dir: Path, field: str) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[field] for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(home):
    return home / "whole", finish(start(home, "whole"))


def test_a_run_leaves_a_checkpoint_that_selects_frames(uninterrupted):
    run_dir, out = uninterrupted
    assert read_metrics(run_dir, "step") == list(range(NUM_STEPS))
    grounder = FrameGrounder.from_pretrained(run_dir / "checkpoint", device="cpu")
    selection = json.loads((run_dir / "selection.json").read_text())
    again = grounder.select(run_dir.parent / selection["video"], selection["question"], top_k=2)
    assert [f.source_idx for f in again.selected] == [
        frame["source_idx"] for frame in selection["selected"]
    ]
    assert str(run_dir / "checkpoint") in out
    assert json.loads((run_dir / "heldout.json").read_text())["all"]["uniform"]
    assert (run_dir / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert record_in((run_dir / "report.html").read_text()) == selection


def test_results_go_to_stdout_and_the_talk_to_stderr(uninterrupted):
    assert uninterrupted[1].startswith("Held-out videos")


def test_nothing_is_compiled(uninterrupted, home):
    assert not (home / "extensions").exists()


def test_a_run_killed_half_way_ends_as_if_it_had_not_been(uninterrupted, home):
    process = start(home, "killed")
    latest = home / "killed" / "state" / "latest"
    deadline_s = time.monotonic() + 60
    while not latest.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (home / "killed" / "checkpoint").exists()
    finish(start(home, "killed"))
    assert read_metrics(home / "killed", "loss") == read_metrics(uninterrupted[0], "loss")
    trained, expected = (load_weights(d) for d in (home / "killed", uninterrupted[0]))
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(trained[name], tensor), name


def test_a_finished_run_started_again_shows_its_results_and_trains_no_more(uninterrupted, home):
    before = (uninterrupted[0] / "metrics.jsonl").read_bytes()
    assert finish(start(home, "whole")) == uninterrupted[1]
    assert (uninterrupted[0] / "metrics.jsonl").read_bytes() == before


def test_two_processes_learn_what_one_learns_from_as_many_videos(home):
    # a single process keeps all of the optimizer's state, two divide it and the gradients
    finish(start(home, "one", "--videos-per-step", "2"))
    zero = ("--engine.zero-stage", "2")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    pair = start(home, "two", *zero, launcher=(*launcher, "-m", "itg_train"))
    assert finish(pair).count("Held-out videos") == 1
    losses = [read_metrics(home / name, "loss") for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_bfloat16_and_drawn_sides_and_recomputation_run(home):
    changes = ("--engine.dtype", "bfloat16", "--random-pooled-side", "--gradient-checkpointing")
    finish(start(home, "mixed", *changes))
    assert all(0 < loss < 10 for loss in read_metrics(home / "mixed", "loss"))
