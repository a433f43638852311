"""Progress on stderr: a bar where there is a terminal, a line now and then where there is none.

The bar is rich's, which is imported once there is a terminal: the light base does without.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int, str], None]
"""Takes how much is done in all, and what to say beside it."""


@contextmanager
def show_progress(task: str, total: int, *, unit: str, quiet: bool = False) -> Generator[Advance]:
    """Shows how far a task is and how long it will still take.

    Nothing is shown before the first report: a task that finds its work done stays silent.

    Args:
        task: What is going on.
        total: How much there is to do.
        unit: What is counted.
        quiet: Shows nothing, for all processes but the first.
    """
    if quiet:
        yield lambda done, note: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            task_id = bar.add_task(task, total=total, note="", visible=False)
            yield lambda done, note: bar.update(task_id, completed=done, note=note, visible=True)
    else:
        yield _lines(task, total, unit)


@contextmanager
def tell_progress(prefix: str = "") -> Generator[None]:
    """Writes the lines to stderr, for commands that set up no logging of their own."""
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),  # a file may be called [bold]
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _lines(task: str, total: int, unit: str) -> Advance:
    started_s = last_s = time.monotonic()
    first_done: int | None = None

    def advance(done: int, note: str) -> None:
        nonlocal last_s, first_done
        now_s = time.monotonic()
        first_done = done if first_done is None else first_done
        if done < total and now_s - last_s < SECONDS_BETWEEN_LINES:
            return
        last_s = now_s
        rate = (done - first_done) / max(now_s - started_s, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        logger.info("%s: %d of %d %s%s%s", task, done, total, unit, note and f", {note}", left)

    return advance
