"""How a step went: its loss, and what it cost all processes together."""

import logging
import math
import resource
import time
from dataclasses import dataclass

import torch
from itg_model.model import VIDEO_TOKEN_ID
from torch import Tensor

from itg_train.config import TrainConfig
from itg_train.engine import Engine, Processes, gather_from_all, mean_over_processes
from itg_train.flops import ForwardFlops, peak_flops, training_factors
from itg_train.loader import StepBatch
from itg_train.metrics import StepMetrics
from itg_train.rundir import RunError
from itg_train.schedule import scale_learning_rate

logger = logging.getLogger(__name__)

MAX_BLIND_STEPS = 10
"""Steps in a row of whose videos not one can be read, after which the data must be gone."""

MAX_LOST_STEPS = 10
"""Steps in a row with gradients that are no numbers, after which no more will come of the run."""


@dataclass(frozen=True, slots=True)
class StepCount:
    """What a step holds, of one process or of all."""

    questions: int = 0
    tokens: int = 0
    """Through the trunk."""
    flops: float = 0.0
    """Of the model's own operations, gradients included."""
    skipped: tuple[str, ...] = ()
    """Videos that could not be decoded, each with its reason, once."""

    def __add__(self, other: "StepCount") -> "StepCount":
        return StepCount(
            self.questions + other.questions,
            self.tokens + other.tokens,
            self.flops + other.flops,
            tuple(dict.fromkeys(self.skipped + other.skipped)),
        )


def count_step(config: TrainConfig, batch: StepBatch, *, causal: bool = False) -> StepCount:
    """Counts what one process's batch holds."""
    forward = ForwardFlops(config.model, causal)
    trunk_factor, tower_factor = training_factors(config.trainable)
    num_tokens, flops = 0, 0.0
    for sample in (sample for each in batch.passes for sample in each.samples):
        num_frames = len(sample.frames)
        if num_frames and not sample.has_features:
            flops += tower_factor * forward.tower(num_frames)
        for ids, side in zip(sample.input_ids, sample.sides, strict=True):
            num_seen = num_frames * side**2
            length = num_seen + int((ids != VIDEO_TOKEN_ID).sum())
            # what is longer is cut
            length = min(length, config.model.tokenizer_model_max_length)
            num_tokens += length
            flops += trunk_factor * (forward.trunk(length) + forward.projector(num_seen))
    return StepCount(batch.num_questions, num_tokens, flops, batch.skipped)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: on a GPU, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's memory, or the machine's, was not enough."""
    # torch has no class of its own for the machine's
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


class StepTimer:
    """Takes steps and says how they went.

    Args:
        config: The run.
        processes: Who trains together.
        engine: What learns.
    """

    def __init__(self, config: TrainConfig, processes: Processes, engine: Engine) -> None:
        self.config = config
        self.processes = processes
        self.engine = engine
        gpu = torch.cuda.get_device_name() if processes.device.type == "cuda" else None
        self._peak_flops = peak_flops(gpu)
        self._num_blind = 0
        self._num_lost = 0
        self._started_s = time.perf_counter()

    def restart(self) -> None:
        """Begins a step: from here on its batch is waited for."""
        self._started_s = time.perf_counter()

    @property
    def is_blind(self) -> bool:
        """Whether none of the last step's videos could be read, in any process."""
        return self._num_blind > 0

    def take(self, batch: StepBatch) -> StepMetrics:
        """Learns from a batch; where no process has a question, the weights stay as they are.

        Raises:
            RunError: The loss or the gradients are no longer numbers, memory is full, or none of
                the last steps' videos could be read.
        """
        loaded_s = time.perf_counter()
        config, processes = self.config, self.processes
        mine = count_step(config, batch, causal=config.task == "chat")
        total = sum(gather_from_all(mine), StepCount())
        if processes.is_first:
            for video in total.skipped:
                logger.warning("step %d goes without a video: %s", batch.step, video)
        self._check_readable(total)
        lr_factor = scale_learning_rate(batch.step, config.num_steps, config.optim)
        # the mean over processes of their sums, so weighted, is the mean over all questions
        factor = processes.world_size / max(1, total.questions)
        loss, grad_norm = 0.0, None
        # all processes know the total, so all of them learn or none does
        if total.questions:
            loss = mean_over_processes(self._learn(batch, factor, lr_factor))
            grad_norm = self._finite_norm(batch.step)
        if not math.isfinite(loss):
            raise RunError(f"loss is {loss} at step {batch.step}; lower optim.lr")
        ended_s = time.perf_counter()
        taken_s = ended_s - self._started_s
        peak = self._peak_flops and self._peak_flops * processes.world_size
        return StepMetrics(
            step=batch.step,
            loss=loss,
            lr=lr_factor * config.optim.lr,
            grad_norm=grad_norm,
            samples=total.questions,
            skipped=len(total.skipped),
            s_per_step=taken_s,
            samples_per_s=total.questions / taken_s,
            tokens_per_s=total.tokens / taken_s,
            mfu=peak and total.flops / taken_s / peak,
            data_wait=(loaded_s - self._started_s) / taken_s,
            peak_gib=peak_memory_gib(processes.device),
        )

    def _check_readable(self, total: StepCount) -> None:
        self._num_blind = self._num_blind + 1 if total.skipped and not total.questions else 0
        if self._num_blind == MAX_BLIND_STEPS:
            raise RunError(
                f"none of the last {MAX_BLIND_STEPS} steps' videos can be read; are the data still "
                "there? The same command goes on from the last saved state"
            )

    def _finite_norm(self, step: int) -> float | None:
        """The norm of the gradients, if they are numbers: DeepSpeed leaves out a step without."""
        norm = self.engine.grad_norm()
        if norm is None or math.isfinite(norm):
            self._num_lost = 0
            return norm
        if self.processes.is_first:
            logger.warning("step %d: gradients are not finite; the weights stay as they are", step)
        # the same in all processes, so all of them end
        self._num_lost += 1
        if self._num_lost == MAX_LOST_STEPS:
            raise RunError(
                f"gradients of the last {MAX_LOST_STEPS} steps are not finite, so nothing is "
                "learnt; lower optim.lr, or set optim.max_grad_norm"
            )
        return None

    def _learn(self, batch: StepBatch, factor: float, lr_factor: float) -> Tensor:
        try:
            return self.engine.train_step(batch.passes, factor, lr_factor)
        except torch.OutOfMemoryError as error:
            engine = self.config.engine
            raise RunError(
                f"out of GPU memory at step {batch.step}, after "
                f"{peak_memory_gib(self.processes.device):.1f} GiB; go on with a lower "
                f"--tokens-per-pass (now {self.config.tokens_per_pass}) or --frame-chunk "
                f"({self.config.frame_chunk}) or more --engine.recompute ({engine.recompute}), or "
                f"begin in another --run-dir with a higher --engine.zero-stage "
                f"({engine.zero_stage}) or more --engine.offload ({engine.offload})"
            ) from error
