"""Training, readable from top to bottom: resume, step, measure, save, export."""

from itg_data.progress import show_progress
from itg_model import weights

from itg_train.build import build, whole_module
from itg_train.chat_loss import ChatLoss
from itg_train.config import TrainConfig
from itg_train.engine import Engine, Processes, gather_from_all, wait_for_all
from itg_train.evaluate import QuestionResult, evaluate, evaluate_chat, summarize
from itg_train.loader import Planner, iterate_steps
from itg_train.measure import StepTimer
from itg_train.metrics import open_metrics
from itg_train.order import Order
from itg_train.parameters import merged_state
from itg_train.prepare import Prepared
from itg_train.rundir import RunDir
from itg_train.start import LossModule


def train(
    config: TrainConfig, processes: Processes, prepared: Prepared, run_dir: RunDir
) -> list[QuestionResult]:
    """Trains from the start or from the newest state, writes the checkpoint and measures it.

    Args:
        config: The run.
        processes: Who trains together; each calls this with its own.
        prepared: The data.
        run_dir: Where states, metrics and the checkpoint go.

    Returns:
        How each question of the held-out split went.

    Raises:
        RunError: The loss is no longer a number, memory or disk is full, or the data are gone.
    """
    module, engine = build(config, processes, prepared, run_dir)
    first_step = engine.load_state()
    planner = make_planner(config, processes.world_size, prepared)
    batches = iterate_steps(
        planner,
        processes.rank,
        first_step,
        config.num_steps,
        config.data.num_workers,
        pin=processes.device.type == "cuda",
    )
    timer = StepTimer(config, processes, engine)
    progress = show_progress(
        "training", config.num_steps, unit="steps", quiet=not processes.is_first
    )
    writing = open_metrics(run_dir, config, first_step, is_first=processes.is_first)
    with progress as advance, writing as writer:
        for batch in batches:
            metrics = timer.take(batch)
            if writer:
                writer.write(metrics)
            done = batch.step + 1
            advance(done, f"loss {metrics.loss:.4f}, {metrics.samples_per_s:.3g} samples/s")
            if config.validate_every and done % config.validate_every == 0:
                measured = measure_heldout(config, processes, engine, module, prepared)
                if writer and measured:
                    overall = summarize(measured)["all"]
                    writer.write_validation(done, next(iter(overall.values())))
            # a state behind steps that saw nothing would only push out a better one
            is_due = done % config.save_every == 0 and not timer.is_blind
            if is_due or done == config.num_steps:
                engine.save_state(done)
            # from here, not from when the batch is there: waiting for frames counts as well
            timer.restart()
    if prepared.train.store is not None:
        prepared.train.store.finish()
    export(config, processes, engine, module, prepared, run_dir)
    return measure_heldout(config, processes, engine, module, prepared)


def make_planner(config: TrainConfig, num_processes: int, prepared: Prepared) -> Planner:
    """Says what each step holds and who learns which part of it."""
    return Planner(
        dataset=prepared.train,
        order=Order(
            num_groups=len(prepared.train),
            groups_per_step=config.groups_per_step,
            seed=config.seed,
        ),
        model=config.model,
        num_processes=num_processes,
        tokens_per_pass=config.tokens_per_pass,
        side_seed=config.seed if config.random_pooled_side else None,
        causal=config.task == "chat",
    )


def measure_heldout(
    config: TrainConfig,
    processes: Processes,
    engine: Engine,
    module: LossModule,
    prepared: Prepared,
) -> list[QuestionResult]:
    """Measures the held-out split, shared among the processes; empty where there is none."""
    places = range(processes.rank, len(prepared.heldout), processes.world_size)
    showing = show_progress(
        "held-out split", len(places), unit="videos", quiet=not processes.is_first
    )
    whole = whole_module(config, engine, module)
    with showing as advance:
        if isinstance(whole, ChatLoss):
            results = evaluate_chat(whole, prepared.heldout, advance, places)
        else:
            results = evaluate(
                whole.model, prepared.heldout, config.seed, advance, config.frame_chunk, places
            )
    return [result for part in gather_from_all(results) for result in part]


def export(
    config: TrainConfig,
    processes: Processes,
    engine: Engine,
    module: LossModule,
    prepared: Prepared,
    run_dir: RunDir,
) -> None:
    """Writes the network in the published form, which the reference's loader reads as well."""
    with engine.gathered():
        if processes.is_first:
            state = merged_state(module)
            weights.write_checkpoint(run_dir.checkpoint, config.model, state, published=True)
            prepared.tokenizer.save_pretrained(run_dir.checkpoint)
    wait_for_all()
