"""The one door to DeepSpeed: process groups, the engine, and states to resume from.

DeepSpeed is the real engine on a CPU too, over gloo, and needs no compiler there: its shared-memory
collectives and its own AdamW, which it would build at first use, are switched off. It also logs to
stdout; here stdout is for results, so its warnings, and no more, go the way of all others.
"""

import logging
import os
import random
import shutil
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from itg_data.files import write_atomic
from torch import Tensor, nn

from itg_train.config import EngineConfig, OptimConfig
from itg_train.rundir import RunError

KEPT_STATES = 2
"""States kept in a run directory: the newest, and one more in case it was cut off half-way."""


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
    """Joins the processes that `torchrun` started, or makes a group of one.

    Raises:
        RunError: A GPU was asked for by name and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise RunError("engine.device is cuda, but torch finds no GPU; take auto or cpu")
    on_gpu = has_gpu and config.device != "cpu"
    if "RANK" not in os.environ:
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
    # DeepSpeed looks for an accelerator when it is imported
    os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"
    deepspeed = _import_deepspeed()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    return Processes(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _import_deepspeed() -> Any:
    with warnings.catch_warnings():
        # its dependencies' deprecations are not the user's
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils import logger

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel(logging.WARNING)
    logger.handlers.clear()
    logger.propagate = True
    return deepspeed


def seed_everything(seed: int) -> None:
    """Seeds Python's and torch's generators of this process."""
    random.seed(seed)
    torch.manual_seed(seed)


class Engine:
    """A module being trained.

    Args:
        module: Its `forward` returns the loss; on the CPU, in float32.
        groups: Optimizer groups as torch takes them, each with `lr`, the peak, and `weight_decay`.
        optim: The optimizer's other settings.
        config: Stage, type and device.
        videos_per_step: Per process; DeepSpeed wants to know the batch size.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        optim: OptimConfig,
        config: EngineConfig,
        videos_per_step: int,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.peak_lrs = [float(group["lr"]) for group in groups]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, optim.beta2))
        self._engine, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_deepspeed_json(optim, config, videos_per_step),
        )

    @property
    def module(self) -> nn.Module:
        """The module as DeepSpeed holds it."""
        return self._engine.module

    def train_step(self, batch: Any, lr_factor: float) -> Tensor:
        """One forward pass, one backward pass, one update; returns the loss of this process."""
        for group, peak in zip(self._engine.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * lr_factor
        loss = self._engine(batch)
        self._engine.backward(loss)
        self._engine.step()
        return loss.detach()

    def grad_norm(self) -> float | None:
        """Norm of the last step's gradients before clipping; None where DeepSpeed has not said."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save_state(self, directory: Path, step: int) -> None:
        """Saves weights and optimizer after `step` steps, and drops states of long ago.

        The file `latest` names the state, in one move, after every process has written its part:
        a process killed in between leaves the one before in force.
        """
        tag = f"step-{step}"
        self._engine.save_checkpoint(
            # not by DeepSpeed, which would leave `latest` empty for a moment
            str(directory),
            tag=tag,
            client_state={"step": step},
            save_latest=False,
        )
        if dist.get_rank() == 0:
            write_atomic(directory / "latest", tag)
            saved = sorted(directory.glob("step-*"), key=lambda path: int(path.name[5:]))
            for outdated in saved[:-KEPT_STATES]:
                shutil.rmtree(outdated)

    def load_state(self, directory: Path) -> int:
        """Restores the newest state and gives the number of steps done; 0 where there is none."""
        if not (directory / "latest").exists():
            return 0
        path, client_state = self._engine.load_checkpoint(str(directory))
        if path is None:
            raise RuntimeError(f"{directory}: the state named in `latest` cannot be loaded")
        return int(client_state["step"])


def mean_over_processes(value: Tensor) -> float:
    """Averages a scalar over all processes."""
    total = value.detach().float().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def wait_for_all() -> None:
    """Returns when every process has come here."""
    dist.barrier()


def leave_processes() -> None:
    """Leaves the group; a process that ends without it warns."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _deepspeed_json(optim: OptimConfig, config: EngineConfig, videos: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": videos,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "bf16": {"enabled": config.dtype == "bfloat16"},
        # any torch optimizer may be divided by ZeRO; DeepSpeed only vouches for its own
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
