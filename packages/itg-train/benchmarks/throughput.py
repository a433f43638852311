"""How fast the 7B grounder trains on this machine: one row per case, appended to a JSONL file.

The network has random weights, which cost the same as trained ones; frames are random and lie
decoded in memory, or their features lie in a `FeatureStore` on disk. All else is what a run does:
the planner, the loader, the passes, DeepSpeed's step, the timer whose rows metrics.jsonl holds.

    python throughput.py --case forward-backward --frames 512 --out results/h200.jsonl
    torchrun --nproc-per-node 2 throughput.py --case step --features --out results/h200.jsonl

A seed is taken whose drawn sides come within two percent of the mean number of tokens that the
draw has in the long run: a handful of steps must not be flattered by short samples.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from itg_model.config import FrameGroundingConfig
from itg_model.model import VIDEO_TOKEN_ID
from itg_train import attention, engine
from itg_train.build import build, make_module
from itg_train.config import EngineConfig, TrainConfig
from itg_train.dataset import Group, VideoSample
from itg_train.engine import Processes
from itg_train.features import FeatureStore, StoredFeatures, fingerprint_tower
from itg_train.flops import peak_flops
from itg_train.fused import fuse_trunk
from itg_train.loader import Pass, Planner, StepBatch, iterate_steps
from itg_train.loop import make_planner
from itg_train.measure import StepTimer, count_step, peak_memory_gib
from itg_train.metrics import StepMetrics
from itg_train.parameters import choose_trainable
from itg_train.prepare import Prepared
from itg_train.recipes import scripted_small, videoitg_7b
from itg_train.rundir import RunDir


@dataclass(frozen=True)
class RandomQuestion:
    """A question that is nothing but its length."""

    id: str
    num_tokens: int


class RandomTask:
    """Random ids; every tenth frame is relevant."""

    def encode(self, record: RandomQuestion) -> torch.Tensor:
        """The video, and one word again and again."""
        return torch.tensor([VIDEO_TOKEN_ID] + [7] * record.num_tokens)

    def label(self, record: RandomQuestion, time_s: np.ndarray) -> torch.Tensor:
        """[T]."""
        return (torch.arange(len(time_s)) % 10 == 0).float()


class RandomVideos:
    """Videos of random frames with random questions, in the manner of `VideoDataset`."""

    def __init__(self, args: argparse.Namespace, model: FrameGroundingConfig) -> None:
        rng = np.random.default_rng(args.seed)
        self.task = RandomTask()
        self.store: FeatureStore | None = None
        shape = (args.frames, model.vision.image_size, model.vision.image_size, 3)
        self.pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.time_s = np.arange(args.frames, dtype=np.float64)
        self.groups = [self._group(args, rng, place) for place in range(args.videos)]

    def _group(self, args: argparse.Namespace, rng: np.random.Generator, place: int) -> Group:
        lengths = rng.integers(args.question_tokens[0], args.question_tokens[1] + 1, args.questions)
        questions = tuple(RandomQuestion(f"{place}-{i}", int(n)) for i, n in enumerate(lengths))
        return Group(video=f"{place}.mp4", num_frames=args.frames, records=cast(Any, questions))

    def __len__(self) -> int:
        return len(self.groups)

    def load(self, place: int, questions: Sequence[int]) -> VideoSample:
        """Frames from memory, or features from the store."""
        group = self.groups[place]
        records = tuple(group.records[i] for i in questions)
        stored = self.store.read(group.video) if self.store else None
        return VideoSample(
            video=group.video,
            frames=stored.features if stored else self.pixels,
            time_s=self.time_s,
            input_ids=tuple(self.task.encode(cast(Any, record)) for record in records),
            labels=tuple(self.task.label(cast(Any, record), self.time_s) for record in records),
            records=records,
        )


def make_config(args: argparse.Namespace) -> TrainConfig:
    """The recipe, with what the arguments change."""
    recipe = videoitg_7b()
    tiny = args.shape == "tiny"
    return replace(
        recipe,
        run_dir=args.scratch / "run",
        model=scripted_small().model if tiny else recipe.model,
        data=replace(
            recipe.data,
            sampling=replace(recipe.data.sampling, max_frames=128 if tiny else 1024),
            num_workers=args.workers,
        ),
        engine=EngineConfig(
            dtype="bfloat16",
            zero_stage=args.zero_stage,
            recompute=args.recompute,
            layers_recomputed=args.layers_recomputed,
            overlap_comm=not args.no_overlap_comm,
            max_group_numel=0 if tiny else args.max_group_numel,
        ),
        num_steps=args.warm_up + args.steps,
        groups_per_step=args.groups_per_step,
        tokens_per_pass=args.tokens_per_pass,
        seed=args.seed,
    )


def pick_seed(config: TrainConfig, videos: RandomVideos, args: argparse.Namespace) -> int:
    """The first seed whose measured steps hold about as many tokens as steps do in the long run."""
    model = config.model
    budget_side = int((model.vision_token_num / args.frames) ** 0.5)
    sides = [min(side, model.pooled_side(args.frames)) for side in range(1, budget_side + 1)]
    expected = args.frames * statistics.fmean(side**2 for side in sides)
    for seed in range(args.seed, args.seed + 1000):
        planner = planner_of(replace(config, seed=seed), videos, 1)
        steps = [planner.plan(step) for step in range(args.warm_up, config.num_steps)]
        drawn = [s for step in steps for p in step for each in p for i in each for s in i.sides]
        if abs(args.frames * statistics.fmean(s**2 for s in drawn) / expected - 1) < 0.02:
            return seed
    raise SystemExit("no seed draws typical sides; take more steps")


def planner_of(config: TrainConfig, videos: RandomVideos, num_processes: int) -> Planner:
    """What a run's planner would say of these videos."""
    prepared = Prepared(
        train=cast(Any, videos), heldout=cast(Any, videos), tokenizer=cast(Any, None)
    )
    return make_planner(config, num_processes, prepared)


def fill_store(
    videos: RandomVideos, config: TrainConfig, args: argparse.Namespace, fingerprint: str
) -> None:
    """Puts random features of every video on disk, for one process to write and all to read."""
    root = args.scratch / "videos"
    root.mkdir(parents=True, exist_ok=True)
    for group in videos.groups:
        (root / group.video).touch()
    store = FeatureStore(
        args.scratch / "features", root, fingerprint, config.data.sampling, pooled=False
    )
    vision = config.model.vision
    shape = (args.frames, vision.grid_side**2, vision.hidden_size)
    features = torch.randn(shape, dtype=torch.bfloat16)
    engine.first_does(
        lambda: [
            store.write(group.video, StoredFeatures(features=features, time_s=videos.time_s))
            for group in videos.groups
        ]
    )
    videos.store = store


def run_steps(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Whole steps with the optimizer."""
    config = make_config(args)
    videos = RandomVideos(args, config.model)
    config = replace(config, seed=pick_seed(config, videos, args))
    prepared = Prepared(
        train=cast(Any, videos), heldout=cast(Any, videos), tokenizer=cast(Any, None)
    )
    module, trained = build(config, processes, prepared, RunDir(config.run_dir))
    if args.features:
        fill_store(videos, config, args, fingerprint_tower(module.model.tower))
    planner = planner_of(config, videos, processes.world_size)
    on_gpu = processes.device.type == "cuda"
    batches = iterate_steps(planner, processes.rank, 0, config.num_steps, args.workers, pin=on_gpu)
    timer = StepTimer(config, processes, trained)
    taken: list[StepMetrics] = []
    for batch in batches:
        if args.profile and processes.is_first and batch.step == config.num_steps - 1:
            # the last step is slower for it, and is left out
            profile_to(args.profile, lambda batch=batch: timer.take(batch))
            break
        taken.append(timer.take(batch))
        if processes.is_first:
            print(taken[-1], flush=True)
        timer.restart()
    measured = taken[args.warm_up :]
    seconds = sum(step.s_per_step for step in measured)
    samples = sum(step.samples for step in measured)
    mfu = [step.mfu for step in measured if step.mfu is not None]
    weights = [step.s_per_step for step in measured]
    return {
        "s_per_step": seconds / len(measured),
        "samples_per_s": samples / seconds,
        "samples_per_s_per_gpu": samples / seconds / processes.world_size,
        "tokens_per_sample": sum(s.tokens_per_s * s.s_per_step for s in measured) / samples,
        "mfu": float(np.average(mfu, weights=weights)) if mfu else None,
        "data_wait": float(np.average([s.data_wait for s in measured], weights=weights)),
        "peak_gib": max(step.peak_gib for step in measured),
        "seed": config.seed,
    }


def run_forward_backward(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """One sample at the largest side, forward and backward, without an optimizer."""
    config = make_config(args)
    videos = RandomVideos(args, config.model)
    module = make_module(config, processes.device)
    choose_trainable(module, config.trainable)
    fuse_trunk(module.model, config.engine)
    side = config.model.pooled_side(args.frames)
    sample = replace(videos.load(0, [0]), sides=(side,))
    frames = sample.frames.to(processes.device)
    if args.features:
        frames = torch.randn(
            args.frames, config.model.vision.grid_side**2, config.model.vision.hidden_size
        )
        frames = frames.to(processes.device, torch.bfloat16)
    warm_up = args.warm_up
    seconds = []
    for turn in range(warm_up + args.steps):
        more = 10 * turn if args.new_lengths else 0
        ids = torch.cat([sample.input_ids[0], torch.full((more,), 7)])
        batch = Pass(samples=(replace(sample, frames=frames, input_ids=(ids,)),))
        module.zero_grad()
        synchronize(processes)
        started_s = time.perf_counter()
        module(batch).backward()
        synchronize(processes)
        seconds.append(time.perf_counter() - started_s)
    took_s = statistics.median(seconds[warm_up:])
    if args.profile:
        profile_to(args.profile, lambda: module(batch).backward())
    count = count_step(config, StepBatch(step=0, passes=(batch,), skipped=()))
    peak = peak_flops(gpu_name())
    return {
        "s_per_step": took_s,
        "samples_per_s": 1 / took_s,
        "samples_per_s_per_gpu": 1 / took_s,
        "tokens_per_sample": count.tokens,
        "mfu": peak and count.flops / took_s / peak,
        "data_wait": 0.0,
        "peak_gib": peak_memory_gib(processes.device),
        "seed": args.seed,
    }


def profile_to(path: Path, work: Callable[[], object]) -> None:
    """Writes down which kernels `work` spends its time in."""
    with torch.profiler.profile() as profile:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    table = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=40)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table)


def synchronize(processes: Processes) -> None:
    """Waits for the GPU, if there is one."""
    if processes.device.type == "cuda":
        torch.cuda.synchronize()


def gpu_name() -> str | None:
    """As the driver says it."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def git_sha() -> str | None:
    """The commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def case_name(args: argparse.Namespace) -> str:
    """What tables call the case."""
    features = "-features" if args.features else ""
    return f"{args.case}{features}{'-new-lengths' if args.new_lengths else ''}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["forward-backward", "step"], required=True)
    parser.add_argument("--name", help="name of the row; by default made of the case")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path("runs/throughput"))
    parser.add_argument("--shape", choices=["7b", "tiny"], default="7b", help="tiny: to try it")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--questions", type=int, default=1, help="of a video in one step")
    parser.add_argument("--question-tokens", type=int, nargs=2, default=[20, 150])
    parser.add_argument("--new-lengths", action="store_true", help="no length comes twice")
    parser.add_argument("--features", action="store_true", help="the tower's work is done")
    parser.add_argument("--groups-per-step", type=int, default=16)
    parser.add_argument("--tokens-per-pass", type=int, default=15360)
    parser.add_argument("--recompute", default="everything")
    parser.add_argument("--layers-recomputed", type=int, default=0)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--max-group-numel", type=int, default=300_000_000)
    parser.add_argument("--no-overlap-comm", action="store_true")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=Path, help="table of kernels, of a pass or the last step")
    parser.add_argument("--git-sha", default=git_sha())
    return parser.parse_args()


def main() -> None:
    """Measures one case and adds its row."""
    args = parse()
    processes = engine.join_processes(EngineConfig())
    measure = {"step": run_steps, "forward-backward": run_forward_backward}[args.case]
    found = measure(args, processes)
    row = {
        "case": args.name or case_name(args),
        "gpus": processes.world_size,
        "frames": args.frames,
        "questions_per_video": args.questions,
        "question_tokens": args.question_tokens,
        **found,
        **{k: getattr(args, k) for k in ("groups_per_step", "tokens_per_pass", "recompute")},
        **{k: getattr(args, k) for k in ("layers_recomputed", "zero_stage", "shape")},
        "overlap_comm": not args.no_overlap_comm,
        "attention": attention.preferred(),
        "gpu": gpu_name(),
        "torch": torch.__version__,
        "git_sha": args.git_sha,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if processes.is_first:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row))
    engine.wait_for_all()
    engine.leave_processes()


if __name__ == "__main__":
    main()
