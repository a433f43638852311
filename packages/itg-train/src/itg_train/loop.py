"""Training, readable from top to bottom: resume, step, save."""

import json
import math
import time
from typing import TextIO

from itg_data.progress import show_progress
from itg_model.model import FrameGroundingModel

from itg_train.config import OptimConfig, TrainConfig
from itg_train.dataset import Order, iterate_batches
from itg_train.engine import Engine, Processes, mean_over_processes, seed_everything, wait_for_all
from itg_train.loss import GroundingLoss, group_parameters
from itg_train.prepare import Prepared
from itg_train.rundir import RunDir, RunError


def train(
    config: TrainConfig, processes: Processes, prepared: Prepared, run_dir: RunDir
) -> FrameGroundingModel:
    """Trains from the start or from the newest state, and writes the checkpoint.

    Args:
        config: The run.
        processes: Who trains together; each calls this with its own.
        prepared: The data.
        run_dir: Where states, metrics and the checkpoint go.

    Returns:
        The trained grounder.
    """
    model, engine = build(config)
    first_step = engine.load_state(run_dir.state)
    if processes.is_first:
        run_dir.cut_metrics(first_step)
    order = Order(
        num_videos=len(prepared.train),
        videos_per_step=config.videos_per_step,
        rank=processes.rank,
        world_size=processes.world_size,
        seed=config.seed,
    )
    batches = iterate_batches(prepared.train, order, first_step, config.num_steps)
    progress = show_progress(
        "training", config.num_steps, unit="steps", quiet=not processes.is_first
    )
    with progress as advance, run_dir.metrics.open("a", encoding="utf-8") as metrics:
        # from here, not from when the batch is there: waiting for frames counts as well
        started_s = time.perf_counter()
        for batch in batches:
            step = batch.step
            lr_factor = scale_learning_rate(step, config.num_steps, config.optim)
            loss = mean_over_processes(engine.train_step(batch, lr_factor))
            if not math.isfinite(loss):
                raise RunError(f"loss is {loss} at step {step}; lower optim.lr")
            num_questions = prepared.train.count_questions(order.all_places(step))
            rate = num_questions / (time.perf_counter() - started_s)
            if processes.is_first:
                _write_line(metrics, step, loss, lr_factor * config.optim.lr, engine, rate)
            advance(step + 1, f"loss {loss:.4f}, {rate:.0f} samples/s")
            if (step + 1) % config.save_every == 0 or step + 1 == config.num_steps:
                engine.save_state(run_dir.state, step + 1)
            started_s = time.perf_counter()
    if processes.is_first:
        model.save_pretrained(run_dir.checkpoint)
        prepared.tokenizer.save_pretrained(run_dir.checkpoint)
    wait_for_all()
    return model


def build(config: TrainConfig) -> tuple[FrameGroundingModel, Engine]:
    """Builds the grounder from the seed, and the engine that trains it."""
    seed_everything(config.seed)
    model = FrameGroundingModel(config.model).train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    side_seed = config.seed if config.random_pooled_side else None
    module = GroundingLoss(model, config.train_tower, side_seed, config.frame_chunk)
    groups = group_parameters(model, config.optim)
    engine = Engine(module, groups, config.optim, config.engine, config.videos_per_step)
    return model, engine


def scale_learning_rate(step: int, num_steps: int, optim: OptimConfig) -> float:
    """The learning rate of a step as a share of its peak: a linear rise, then half a cosine.

    Args:
        step: 0..num_steps - 1.
        num_steps: Length of the run.
        optim: Warm-up and final share.
    """
    num_warmup = math.ceil(optim.warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return optim.final_lr_ratio + (1 - optim.final_lr_ratio) * cosine


def _write_line(
    metrics: TextIO, step: int, loss: float, lr: float, engine: Engine, rate: float
) -> None:
    line = {
        "step": step,
        "loss": loss,
        "lr": lr,
        "grad_norm": engine.grad_norm(),
        "samples_per_s": round(rate, 2),
    }
    metrics.write(json.dumps(line) + "\n")
    metrics.flush()
