"""A run's states on disk: DeepSpeed's own files, one folder a state, and which of them counts.

Every process writes its share. The file `latest` names the newest state that is whole. To go on
with another number of processes a state is first turned, once, into DeepSpeed's universal form,
which any number can read.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from itg_data.files import write_atomic

from itg_train.rundir import RunError

logger = logging.getLogger(__name__)

KEPT_STATES = 2
"""States kept in a run directory: the newest, and one more in case it was cut off half-way."""


def read_latest(directory: Path) -> dict[str, Any]:
    """The newest whole state: its `tag`, `step` and `world_size`; empty where there is none.

    Raises:
        RunError: The file cannot be read, or the state that it names is not there.
    """
    path = directory / "latest"
    if not path.exists():
        return {}
    try:
        latest = json.loads(path.read_text(encoding="utf-8"))
        step, world_size = int(latest["step"]), int(latest["world_size"])
        tag = Path(str(latest.get("tag", f"step-{step}"))).name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read: {error!r}") from None
    if not (directory / tag).is_dir():
        raise RunError(f"{path}: names the state {tag}, which is not there")
    return {"tag": tag, "step": step, "world_size": world_size}


def write_latest(directory: Path, tag: str, step: int, world_size: int) -> None:
    """Makes a state the one that counts, in one move, and drops states of long ago."""
    latest = {"tag": tag, "step": step, "world_size": world_size}
    write_atomic(directory / "latest", json.dumps(latest) + "\n")
    saved = sorted(directory.glob("step-*"), key=_step_of)
    for outdated in saved[:-KEPT_STATES]:
        shutil.rmtree(outdated)


def clear(directory: Path, tag: str) -> None:
    """Removes what a killed process left of a state: other processes' parts would stay in it.

    `latest` names an earlier one.
    """
    for leftover in (directory / tag, directory / universal(tag)):
        if leftover.exists():
            shutil.rmtree(leftover)


def universal(tag: str) -> str:
    """The name of a state's universal form."""
    return f"{tag}-universal"


def make_universal(directory: Path, tag: str) -> None:
    """Converts a state with DeepSpeed's own program, in a process of its own, unless it is done.

    Raises:
        RunError: It cannot be converted.
    """
    target = directory / universal(tag)
    if target.exists():
        return
    staging = directory / f".{tag}-universal"
    shutil.rmtree(staging, ignore_errors=True)
    logger.info("converting the state %s for another number of processes", directory / tag)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(directory / tag), "--output_folder", str(staging)]
    command += ["--inject_missing_state"]
    # its own processes must not take themselves for a part of this group
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RunError(f"{directory / tag}: cannot be converted for other processes: {reason}")
    staging.rename(target)


def take_padding_for_parts(optimizer: Any) -> None:
    """Lets a universal state be loaded where a group of parameters is smaller than the processes.

    The last of them then hold nothing but padding of such a group, a head's bias for one, and
    DeepSpeed 0.19 asks for the first of their parts all the same.
    """
    load = getattr(optimizer, "load_hp_checkpoint_state_from_checkpoint_dir", None)
    # stage 3 loads otherwise
    if load is None or not hasattr(optimizer, "bit16_groups"):
        return

    def load_with_padding(lp_groups_name: str, directory: str) -> None:
        padding: Any = _Padding()
        groups = getattr(optimizer, lp_groups_name)
        lacking = [group for group in groups if all(p._hp_mapping is None for p in group)]
        optimizer.param_names[padding] = "padding"
        for group in lacking:
            group.append(padding)
        try:
            load(lp_groups_name, directory)
        finally:
            del optimizer.param_names[padding]
            for group in lacking:
                group.pop()

    optimizer.load_hp_checkpoint_state_from_checkpoint_dir = load_with_padding


class _Padding:
    """In the place of a parameter of which a process would hold a part: it has nothing to load."""

    def __init__(self) -> None:
        self._hp_mapping = self

    def get_optim_state_keys(self) -> tuple[str, ...]:
        return ()

    def load_hp_checkpoint_state(self, *_: Any, **__: Any) -> None:
        return None


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-").removesuffix("-universal"))
