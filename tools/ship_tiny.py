"""Puts a finished run of the recipe itg-tiny into itg-model: weights, tokenizer, card.

    uv run itg-train itg-tiny
    uv run python tools/ship_tiny.py runs/itg-tiny

Weights become bfloat16, and the held-out split is measured anew with what they are then, so the
card speaks of what is shipped. What was shipped before is replaced at the end, by a whole folder.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import torch
from itg_data.errors import ItgError
from itg_data.progress import show_progress
from itg_model import weights
from itg_model.locate import TINY_FOLDER
from itg_model.model import FrameGroundingModel
from itg_model.processing import load_tokenizer
from itg_train.card import CARD, CURVE, write_card
from itg_train.cli import parse
from itg_train.config import TrainConfig
from itg_train.evaluate import QuestionResult, evaluate
from itg_train.prepare import Prepared, prepare
from itg_train.readers import Readers
from itg_train.recipes import to_options
from itg_train.rundir import RunDir

MAX_MB = 12.0
"""What the wheel may carry."""

SHIPPED = frozenset(
    {"config.json", weights.SINGLE_NAME, "tokenizer.json", "tokenizer_config.json", CARD, CURVE}
)
"""The files of a shipped folder; one that holds anything else is not replaced."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="the run's folder")
    parser.add_argument("--into", type=Path, default=TINY_FOLDER, help="where to put it")
    arguments = parser.parse_args(argv)
    try:
        ship(RunDir(arguments.run_dir), arguments.into)
    except (ItgError, OSError, ValueError) as error:
        print(f"ship_tiny: {error}", file=sys.stderr)
        return 2
    print(arguments.into / CARD)
    return 0


def ship(run_dir: RunDir, into: Path) -> None:
    """Writes the folder anew; until that is done, what it held stays.

    Raises:
        ItgError: The run has left no checkpoint, or its data are gone.
        ValueError: The weights are too large, or `into` holds something else.
    """
    check_target(into)
    described = json.loads(run_dir.config.read_text(encoding="utf-8"))
    options = to_options(described["recipe"], described["config"])
    recipe, config = parse([described["recipe"], *options])
    model = FrameGroundingModel.from_pretrained(run_dir.checkpoint, torch.bfloat16)
    size_mb = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    if size_mb > MAX_MB:
        raise ValueError(f"the weights take {size_mb:.1f} MB, more than {MAX_MB:g}")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{into.name}.", dir=into.parent) as beside:
        new = Path(beside) / "new"
        weights.write_checkpoint(new, config.model, model.state_dict(), published=True)
        load_tokenizer(run_dir.checkpoint).save_pretrained(new)
        with closing(Readers(os.cpu_count() or 1)) as readers:
            prepared = prepare_alone(config, readers)
            write_card(new, recipe, config, prepared, run_dir, measure(new, config, prepared))
        swap(new, into, Path(beside) / "old")


def check_target(into: Path) -> None:
    """Checks that nothing but what was shipped before would be replaced.

    Raises:
        ValueError: `into` is no folder, or one that holds something else.
    """
    if not into.exists():
        return
    if into.is_symlink() or not into.is_dir():
        raise ValueError(f"{into}: is no folder, name one")
    held = {path.name for path in into.iterdir()}
    if held - SHIPPED:
        names = ", ".join(sorted(held - SHIPPED)[:5])
        raise ValueError(f"{into}: holds {names}, no part of a checkpoint; name another folder")
    if held and "config.json" not in held:
        raise ValueError(f"{into}: holds no config.json, so no checkpoint; name another folder")


def swap(new: Path, into: Path, old: Path) -> None:
    """Puts the folder `new` at `into`, and what was there, if anything, at `old`."""
    if into.exists():
        into.rename(old)
    try:
        new.rename(into)
    except OSError:
        if old.exists():
            old.rename(into)
        raise


def prepare_alone(config: TrainConfig, readers: Readers) -> Prepared:
    """Gets the run's data once more, as a group of one process."""
    from itg_train import engine

    processes = engine.join_processes(config.engine)
    try:
        return prepare(config, processes, readers)
    finally:
        engine.leave_processes()


def measure(folder: Path, config: TrainConfig, prepared: Prepared) -> list[QuestionResult]:
    """Measures a checkpoint on the held-out split."""
    model = FrameGroundingModel.from_pretrained(folder)
    with show_progress("held-out split", len(prepared.heldout), unit="groups") as advance:
        return evaluate(model, prepared.heldout, config.seed, advance, config.frame_chunk)


if __name__ == "__main__":
    sys.exit(main())
