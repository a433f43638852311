"""The one door to DeepSpeed: process groups, the engine, saving and loading its states.

DeepSpeed is the real engine on a CPU too, over gloo, and needs no compiler there: its shared-memory
collectives and its own AdamW, which it would build at first use, are switched off. It also logs to
stdout; here stdout is for results, so its warnings, and no more, go the way of all others.
"""

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from itg_data.errors import ItgError
from torch import Tensor, nn

from itg_train import states
from itg_train.config import EngineConfig, OptimConfig
from itg_train.launch import find_place
from itg_train.rundir import RunError

PATIENCE = timedelta(days=7)
"""How long processes wait while the first one works alone; NCCL would give up after minutes."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True in the process that writes files and talks."""
        return self.rank == 0


def join_processes(config: EngineConfig) -> Processes:
    """Joins the processes that a launcher started, or makes a group of one.

    Raises:
        RunError: A GPU was asked for by name and there is none, or there are more processes on
            this machine than GPUs.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise RunError("engine.device is cuda, but torch finds no GPU; take auto or cpu")
    on_gpu = has_gpu and config.device != "cpu"
    try:
        os.environ |= find_place(os.environ)
    except ValueError as error:
        raise RunError(str(error)) from None
    # DeepSpeed insists on it, and whoever starts a single process by hand leaves it out
    os.environ.setdefault("LOCAL_RANK", "0")
    _check_local_rank(on_gpu)
    # DeepSpeed looks for an accelerator when it is imported
    os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"
    deepspeed = _import_deepspeed()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if on_gpu else "gloo"
        if os.environ["WORLD_SIZE"] == "1":
            # port 0: any that is free, where another program could take one that was looked up
            store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    global _patient
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)


_patient: Any = None
"""Group of all processes that waits for days and works on the CPU."""


def _check_local_rank(on_gpu: bool) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise RunError(
            f"process {local_rank} of this machine has no GPU: torch finds "
            f"{torch.cuda.device_count()}; start as many processes as there are GPUs"
        )


logger = logging.getLogger(__name__)


def _import_deepspeed() -> Any:
    with warnings.catch_warnings():
        # its dependencies' deprecations are not the user's
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils import logger as its_logger

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    its_logger.setLevel(logging.WARNING)
    its_logger.handlers.clear()
    its_logger.propagate = True
    return deepspeed


def seed_everything(seed: int) -> None:
    """Seeds Python's and torch's generators of this process."""
    random.seed(seed)
    torch.manual_seed(seed)


class Engine:
    """A module being trained.

    Args:
        module: Its `forward` returns the loss. Its `uneven_modules` are those that processes call
            unequally often, or not at all though their parameters are used.
        groups: Optimizer groups as torch takes them, each with `lr`, the peak, and `weight_decay`.
        optim: The optimizer's other settings.
        config: Stage, type and device.
        directory: Where states are; `latest` in it names the newest.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        optim: OptimConfig,
        config: EngineConfig,
        directory: Path,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.directory = directory
        self.config = config
        self.peak_lrs = [float(group["lr"]) for group in groups]
        self._latest = states.read_latest(directory)
        self._reshards = bool(self._latest) and self._latest["world_size"] != dist.get_world_size()
        fused = _on_gpu(config) and config.offload == "nothing"
        optimizer = torch.optim.AdamW(groups, betas=(0.9, optim.beta2), fused=fused)
        self._engine, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_deepspeed_json(optim, config, load_universal=self._reshards),
        )
        if config.zero_stage == 3:
            _gather_as_a_whole(module, cast(Any, module).uneven_modules())

    @property
    def module(self) -> nn.Module:
        """The module as DeepSpeed holds it."""
        return self._engine.module

    def train_step(self, passes: Sequence[Any], factor: float, lr_factor: float) -> Tensor:
        """Forward and backward through every pass, then one update.

        Args:
            passes: What the module is called with, one after the other; as many in every process.
            factor: What each loss is multiplied with.
            lr_factor: Learning rates as a share of their peaks.

        Returns:
            The sum of this process's losses, multiplied.
        """
        losses: list[Tensor] = []
        for place, each in enumerate(passes):
            self._engine.set_gradient_accumulation_boundary(place == len(passes) - 1)
            loss = self._engine(each) * factor
            self._engine.backward(loss, scale_wrt_gas=False)
            losses.append(loss.detach())
        for group, peak in zip(self._engine.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * lr_factor
        self._engine.step()
        return torch.stack(losses).sum()

    def grad_norm(self) -> float | None:
        """Norm of the last step's gradients before clipping; None where DeepSpeed has not said."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gives every process all parameters in full, also where they are divided (stage 3)."""
        if self.config.zero_stage < 3:
            yield
            return
        with _import_deepspeed().zero.GatheredParameters(list(self.module.parameters())):
            yield

    def save_state(self, step: int) -> None:
        """Saves weights and optimizer after `step` steps, and drops states of long ago.

        The file `latest` names the state, in one move, after every process has written its part:
        a process killed in between leaves the one before in force.

        Raises:
            RunError: The weights are no longer numbers, or the disk is full or cannot be written
                to; the state before stays in force.
            OSError: What is left of such a state cannot be removed.
        """
        tag = f"step-{step}"
        # the next step's loss would end the run, and its start from this state as well, every time
        if not all(gather_from_all(_is_finite(self.module))):
            raise RunError(
                f"weights are not finite after step {step - 1}, so its state is not saved; lower "
                "optim.lr. The state before it is whole"
            )
        first_does(lambda: states.clear(self.directory, tag))
        try:
            self._engine.save_checkpoint(
                # `latest` not by DeepSpeed, which would leave it empty for a moment
                str(self.directory),
                tag=tag,
                client_state={"step": step},
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as an error of its zip writer
            raise RunError(
                f"{self.directory / tag}: the state of step {step} cannot be written "
                f"({str(error).splitlines()[0]}); is the disk full? The state before it is whole"
            ) from error
        if dist.get_rank() == 0:
            states.write_latest(self.directory, tag, step, dist.get_world_size())

    def load_state(self) -> int:
        """Restores the newest state and gives the number of steps done; 0 where there is none.

        Raises:
            RunError: The state cannot be loaded.
        """
        if not self._latest:
            return 0
        tag = self._latest["tag"]
        if self._reshards:
            first_does(lambda: states.make_universal(self.directory, tag))
            tag = states.universal(tag)
            states.take_padding_for_parts(self._engine.optimizer)
        path, _ = self._engine.load_checkpoint(
            str(self.directory), tag=tag, load_module_strict=False
        )
        if path is None:
            raise RunError(f"{self.directory / tag}: the state cannot be loaded")
        return int(self._latest["step"])


def _gather_as_a_whole(module: nn.Module, parts: Sequence[nn.Module]) -> None:
    """Lets stage 3 gather parts at the start of a module's forward pass, not at each call of them.

    Gathering needs all processes, so what they call unequally often would leave them waiting for
    one another; DeepSpeed also compares the order of calls among them.
    """
    zero = _import_deepspeed().zero
    for part in parts:
        for parameter in part.parameters():
            zero.register_external_parameter(module, parameter)
        for called in part.modules():
            called._forward_pre_hooks.clear()
            called._forward_hooks.clear()


def _is_finite(module: nn.Module) -> bool:
    """Whether all parameters that learn are numbers, of divided ones this process's part."""
    learning = (p for p in module.parameters() if p.requires_grad)
    # summed and not compared, which would take as much memory again
    sums = [getattr(p, "ds_tensor", p).detach().sum(dtype=torch.float32) for p in learning]
    return bool(torch.stack([x.cpu() for x in sums]).isfinite().all())


def mean_over_processes(value: Tensor) -> float:
    """Averages a scalar over all processes."""
    total = value.detach().float().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def gather_from_all(value: ResultT) -> list[ResultT]:
    """Every process's value, by rank; any Python object, waiting as long as it takes."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_patient)
    return values


def wait_for_all() -> None:
    """Returns when every process has come here, however long that takes."""
    dist.barrier(group=_patient)


def first_does(work: Callable[[], object]) -> None:
    """Does something in the first process while the others wait, however long it takes.

    Raises:
        ItgError: What the first process met; there alone, while the others end in silence.
        OSError: Likewise.
    """
    failure: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            work()
        except (ItgError, OSError) as error:
            failure = error
    failed = [failure is not None]
    dist.broadcast_object_list(failed, src=0, group=_patient)
    if failure is not None:
        raise failure
    if failed[0]:
        raise SystemExit(2)


def leave_processes() -> None:
    """Leaves the group; a process that ends without it warns."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _on_gpu(config: EngineConfig) -> bool:
    return torch.cuda.is_available() and config.device != "cpu"


def _overlaps(config: EngineConfig) -> bool:
    return config.overlap_comm and _on_gpu(config) and dist.get_world_size() > 1


def _deepspeed_json(
    optim: OptimConfig, config: EngineConfig, *, load_universal: bool
) -> dict[str, Any]:
    on_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": _overlaps(config),
        "contiguous_gradients": True,
    }
    if config.zero_stage == 3:
        # it looks ahead by the calls of steps before, which differ among processes here
        zero["stage3_prefetch_bucket_size"] = 0
    if config.offload != "nothing":
        zero["offload_optimizer"] = on_cpu
    if config.offload == "parameters":
        zero["offload_param"] = on_cpu
    return {
        # passes vary in size and number; the engine is told when the last one comes
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        # any torch optimizer may be divided or offloaded; DeepSpeed only vouches for its own,
        # which it would have to compile
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": load_universal},
        "steps_per_print": 10**9,
    }
