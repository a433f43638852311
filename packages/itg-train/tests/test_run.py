"""Whole runs in processes of their own, as users start them: killed, resumed, shared, resharded."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    "groups-per-step": 1,
    "engine.device": "cpu",
}


def start(
    home: Path,
    name: str,
    *changes: str,
    recipe: str = "scripted-small",
    launcher: Sequence[str] = (sys.executable, "-m"),
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen:
    """Starts a run in a bare environment: no compiler on the path, no cache but its own."""
    given = OPTIONS | {"run-dir": home / name, "data.cache-dir": home / "data"}
    flags = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    bare = {
        "PATH": str(Path(sys.executable).parent),
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(home / "extensions"),
    }
    return subprocess.Popen(
        [*launcher, "itg_train", recipe, *flags, *changes],
        env=bare | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        **options,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Returns once a running process has written a file."""
    deadline_s = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


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
    wait_for(latest, process)
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


def test_a_second_run_in_the_folder_of_one_at_work_is_refused_and_spoils_nothing(home):
    process = start(home, "taken", "--num-steps", "150")
    wait_for(home / "taken" / "state" / "latest", process)
    # long enough for the second to lose its patience: as if it trained for hours
    process.send_signal(signal.SIGSTOP)
    second = start(home, "taken", "--num-steps", "150")
    _, err = second.communicate(timeout=120)
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "another run is at work in this folder" in err.splitlines()[-1]
    finish(process)
    assert read_metrics(home / "taken", "step") == list(range(150))


def test_a_finished_run_started_again_shows_its_results_and_trains_no_more(uninterrupted, home):
    before = (uninterrupted[0] / "metrics.jsonl").read_bytes()
    assert finish(start(home, "whole")) == uninterrupted[1]
    assert (uninterrupted[0] / "metrics.jsonl").read_bytes() == before


PACKED = ("--groups-per-step", "2", "--data.questions-per-group", "3", "--random-pooled-side")


@pytest.fixture(scope="module")
def packed(home):
    finish(start(home, "packed", *PACKED))
    return read_metrics(home / "packed", "loss")


def test_two_processes_with_many_passes_killed_and_gone_on_with_by_one_learn_the_same(home, packed):
    changes = (*PACKED, "--tokens-per-pass", "150", "--engine.zero-stage", "2")
    pair = start(home, "pair", *changes, "--nproc", "2", start_new_session=True)
    latest = home / "pair" / "state" / "latest"
    wait_for(latest, pair)
    pair.send_signal(signal.SIGKILL)
    # its workers hold the pipes: they end with it, or this would wait for them
    pair.communicate(timeout=60)
    assert not (home / "pair" / "checkpoint").exists()
    assert json.loads(latest.read_text())["world_size"] == 2
    finish(start(home, "pair", *changes))
    assert read_metrics(home / "pair", "loss") == pytest.approx(packed, rel=1e-3)


def test_what_is_left_of_a_state_by_more_processes_is_no_part_of_that_of_fewer(home):
    changes = ("--num-steps", "4", "--groups-per-step", "2", "--save-every", "2")
    finish(start(home, "mixed", *changes, "--nproc", "2"))
    # as if it had been killed while its last state was written
    latest = home / "mixed" / "state" / "latest"
    latest.write_text(json.dumps({"tag": "step-2", "step": 2, "world_size": 2}))
    finish(start(home, "mixed", *changes))
    parts = [path.name for path in (home / "mixed" / "state" / "step-4").glob("*optim*")]
    assert len(parts) == 1, parts
    assert json.loads(latest.read_text())["world_size"] == 1


@pytest.mark.parametrize(
    ("otherwise", "world_size"),
    [
        (("--nproc", "2"), 2),
        (("--tokens-per-pass", "150", "--frame-chunk", "5", "--engine.recompute", "everything"), 1),
    ],
    ids=["more-processes", "less-memory"],
)
def test_a_run_that_goes_on_otherwise_learns_the_same(home, otherwise, world_size, request):
    name = request.node.callspec.id
    changes = ("--num-steps", "6", "--groups-per-step", "2", "--save-every", "3")
    finish(start(home, name, *changes))
    losses = read_metrics(home / name, "loss")
    latest = home / name / "state" / "latest"
    latest.write_text(json.dumps({"tag": "step-3", "step": 3, "world_size": 1}))
    finish(start(home, name, *changes, *otherwise))
    assert json.loads(latest.read_text())["world_size"] == world_size
    assert read_metrics(home / name, "loss") == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    "launcher",
    [
        ("torchrun", "--standalone", "--nproc-per-node", "2", "-m"),
        ("deepspeed", "--num_gpus", "2", "--module"),
    ],
    ids=lambda words: words[0],
)
def test_launchers_others_use_start_processes_that_learn_the_same(home, launcher):
    few = ("--num-steps", "4", "--groups-per-step", "2")
    program = Path(sys.executable).parent / launcher[0]
    finish(start(home, launcher[0], *few, launcher=(str(program), *launcher[1:])))
    alone = home / "alone"
    if not alone.exists():
        finish(start(home, alone.name, *few))
    losses = [read_metrics(folder, "loss") for folder in (home / launcher[0], alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    latest = json.loads((home / launcher[0] / "state" / "latest").read_text())
    assert latest["world_size"] == 2


def test_wandb_is_told_what_the_metrics_file_is_told(home):
    pytest.importorskip("wandb", reason="it is no dependency")
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "NETRC": os.devnull}
    few = ("--num-steps", "3", "--wandb-project", "grounders")
    finish(start(home, "reported", *few, environment=offline))
    (written,) = (home / "reported" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/samples_per_s" in written.read_bytes()


def test_parameters_divided_and_offloaded_learn_the_same(home, packed):
    changes = (*PACKED, "--engine.zero-stage", "3", "--engine.offload", "parameters")
    few = ("--num-steps", "6", "--optim.warmup-ratio", "0", "--optim.final-lr-ratio", "1")
    finish(start(home, "third", *changes, *few, "--nproc", "2"))
    finish(start(home, "first", *PACKED, *few))
    losses = [read_metrics(home / name, "loss") for name in ("third", "first")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    trained, expected = (load_weights(home / name) for name in ("third", "first"))
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        # softmax does not see a key's bias: its gradient is noise, which Adam blows up
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(trained[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_features_on_disk_give_the_losses_that_frames_give(home):
    frozen = (*PACKED, "--trainable.no-tower", "--num-steps", "6", "--data.cache-mib", "0")
    finish(start(home, "frames", *frozen))
    for name in ("fills", "reads"):
        finish(start(home, name, *frozen, "--data.features-dir", str(home / "features")))
    losses = [read_metrics(home / name, "loss") for name in ("frames", "fills", "reads")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    # one file per video, of both splits
    assert len(list((home / "features").glob("*.safetensors"))) == 5


def test_low_rank_updates_and_validation_and_bfloat16_run(home):
    changes = ("--engine.dtype", "bfloat16", "--trainable.trunk", "lora", "--trainable.no-tower")
    finish(start(home, "lora", *changes, "--num-steps", "4", "--validate-every", "2"))
    lines = (home / "lora" / "metrics.jsonl").read_text().splitlines()
    validated = [line["validation"] for line in map(json.loads, lines) if "validation" in line]
    assert len(validated) == 2
    assert all(0 <= each["average_precision"] <= 1 for each in validated)
    assert not any("lora" in name for name in load_weights(home / "lora"))
    assert list((home / "lora" / "tensorboard").glob("events.*"))


def test_a_full_disk_is_one_clear_line_and_what_was_saved_stays(home):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))

    # Python does not notice that a module it compiled did not fit
    uncompiled = {"PYTHONDONTWRITEBYTECODE": "1"}
    changes = ("--num-steps", "10")
    process = start(home, "full", *changes, environment=uncompiled, preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "cannot be written" in err.splitlines()[-1]
    assert not (home / "full" / "state" / "latest").exists()


@pytest.mark.parametrize("num_left", [0, 1])
def test_a_heldout_video_that_disappears_is_named_and_costs_no_results(home, num_left):
    changes = ("--data.synthetic.num-heldout", str(1 + num_left), "--num-steps", "60")
    changes += ("--data.cache-dir", str(home / f"thinned-{num_left}"))
    name = f"thinned-run-{num_left}"
    process = start(home, name, *changes)
    wait_for(home / name / "metrics.jsonl", process)
    (data,) = (home / f"thinned-{num_left}").glob("scripted-*")
    (data / "videos" / "heldout-00000.mp4").unlink()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "not shown: " in err
    assert str(home / name / "checkpoint") in out
    assert (home / name / "report.html").exists() == bool(num_left)


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_are_no_numbers_never_push_out_a_state_that_is(home, stage):
    changes = ("--save-every", "1", "--optim.lr", "3e37", "--optim.warmup-ratio", "0")
    changes += ("--engine.zero-stage", str(stage), "--optim.weight-decay", "0")
    process = start(home, f"diverged-{stage}", *changes)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "weights are not finite after step 0" in err.splitlines()[-1]
    assert not (home / f"diverged-{stage}" / "state" / "latest").exists()


def test_a_run_whose_videos_disappear_ends_in_one_line_and_goes_on_when_they_are_back(home):
    changes = ("--num-steps", "150", "--data.cache-mib", "0")
    changes += ("--data.cache-dir", str(home / "moved"))
    process = start(home, "lost", *changes)
    latest = home / "lost" / "state" / "latest"
    wait_for(latest, process)
    (data,) = (home / "moved").glob("scripted-*")
    data.rename(home / "away")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "are the data still there" in err.splitlines()[-1]
    step = json.loads(latest.read_text())["step"]
    assert step < 150
    (home / "away").rename(data)
    finish(start(home, "lost", *changes))
    assert all(num > 0 for num in read_metrics(home / "lost", "samples")[:step])
