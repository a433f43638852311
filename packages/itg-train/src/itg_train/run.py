"""One run from its config to its results; started again, it goes on where it was."""

import logging
from contextlib import ExitStack

from itg_train import engine
from itg_train.config import TrainConfig
from itg_train.loop import train
from itg_train.measure import is_out_of_memory
from itg_train.metrics import check_wandb
from itg_train.prepare import describe_data, prepare
from itg_train.readers import Readers
from itg_train.rundir import RunDir, RunError
from itg_train.showcase import show_results
from itg_train.squares import describe_failure
from itg_train.start import check_start

logger = logging.getLogger(__name__)


def run(recipe: str, config: TrainConfig) -> str:
    """Trains, measures and selects.

    Args:
        recipe: Name of the recipe that the config came from; goes into the run's folder.
        config: The run.

    Returns:
        What to tell the user, from the first process; nothing from the others.

    Raises:
        RunError: The run's folder is another run's, or one is at work in it, or there is nothing to
            learn from, or memory is full.
    """
    check_wandb(config)
    check_start(config.start)
    processes = engine.join_processes(config.engine)
    readers = Readers(config.data.num_workers)
    run_dir, holding = RunDir(config.run_dir), ExitStack()

    def take_folder() -> None:
        run_dir.check(recipe, config)
        holding.enter_context(run_dir.held())

    try:
        engine.first_does(take_folder)
        prepared = prepare(config, processes, readers)
        data = describe_data(prepared.train, prepared.heldout)
        # only now: a run that finds no data should not bar the folder to the corrected command
        engine.first_does(lambda: run_dir.claim(recipe, config, data))
        results = train(config, processes, prepared, run_dir)
        text = ""
        if processes.is_first:
            text = show_results(recipe, config, processes, prepared, run_dir, results)
        engine.wait_for_all()
    except (MemoryError, RuntimeError) as error:
        # a step too large for a GPU has said more, and is none of these
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory ({describe_failure(error)}); lower "
            f"--frame-chunk (now {config.frame_chunk}), --data.cache-mib ({config.data.cache_mib}) "
            f"or --data.num-workers ({config.data.num_workers}), or take more processes"
        ) from error
    finally:
        holding.close()
        readers.close()
        engine.leave_processes()
    return text
