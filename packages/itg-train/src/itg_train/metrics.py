"""What a run says of every step: a line in metrics.jsonl, TensorBoard, wandb where asked for."""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from itg_train.config import TrainConfig, to_plain
from itg_train.rundir import RunDir, RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One optimizer step, of all processes together."""

    step: int
    loss: float
    lr: float
    grad_norm: float | None
    """Before clipping; None where it is not known or not finite."""
    samples: int
    """Questions learnt from."""
    skipped: int
    """Videos that could not be decoded."""
    s_per_step: float
    samples_per_s: float
    tokens_per_s: float
    """Tokens through the trunk."""
    mfu: float | None
    """Share of the GPUs' bfloat16 peak that the model's own operations come to; see `flops`."""
    data_wait: float
    """Share of the step that the first process spent waiting for its batch."""
    peak_gib: float
    """Most memory so far: of the first GPU, or of the first process where there is none."""


class MetricsWriter:
    """Writes what happened; only the first process has one.

    Args:
        run_dir: Holds `metrics.jsonl` and `tensorboard/`.
        config: Names the wandb project, if any.
        first_step: Where this start begins; TensorBoard forgets what came after it before.
    """

    def __init__(self, run_dir: RunDir, config: TrainConfig, first_step: int) -> None:
        # a second of imports that other processes need not pay for
        from torch.utils.tensorboard import SummaryWriter

        run_dir.cut_metrics(first_step)
        self._lines = run_dir.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir.tensorboard), purge_step=first_step)
        self._wandb = _start_wandb(run_dir, config)

    def write(self, metrics: StepMetrics) -> None:
        """Says how a step went."""
        values = asdict(metrics)
        rounded = {k: round(values[k], 6) for k in _ROUNDED if values[k] is not None}
        self._write_line(values | rounded)
        self._send("train", metrics.step, values)

    def write_validation(self, step: int, measured: dict[str, float]) -> None:
        """Says how well the held-out split went after `step` steps."""
        self._write_line({"step": step - 1, "validation": measured})
        self._send("validation", step - 1, measured)

    def _write_line(self, values: dict[str, Any]) -> None:
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()

    def _send(self, chapter: str, step: int, values: dict[str, Any]) -> None:
        named = {
            f"{chapter}/{name}": value
            for name, value in values.items()
            if name != "step" and value is not None
        }
        for name, value in named.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(named, step=step)

    def close(self) -> None:
        """Ends all reports."""
        self._lines.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


_ROUNDED = ("s_per_step", "samples_per_s", "tokens_per_s", "mfu", "data_wait", "peak_gib")


@contextmanager
def open_metrics(
    run_dir: RunDir, config: TrainConfig, first_step: int, *, is_first: bool
) -> Iterator[MetricsWriter | None]:
    """Gives the first process its writer, and the others none."""
    if not is_first:
        yield None
        return
    writer = MetricsWriter(run_dir, config, first_step)
    try:
        yield writer
    finally:
        writer.close()


def check_wandb(config: TrainConfig) -> None:
    """Confirms that wandb is there if it is asked for.

    Raises:
        RunError: It is not installed.
    """
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise RunError(
            f"wandb_project is {config.wandb_project!r}, but wandb is not installed; "
            "`uv pip install wandb`, or leave it out: TensorBoard is always written"
        )


def _start_wandb(run_dir: RunDir, config: TrainConfig) -> Any:
    if config.wandb_project is None:
        return None
    # the same folder is the same run, also after a restart
    folder = run_dir.root.resolve()
    number = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return importlib.import_module("wandb").init(
        project=config.wandb_project,
        dir=str(folder),
        name=folder.name,
        id=f"{folder.name}-{number}",
        resume="allow",
        config=to_plain(config),
    )
