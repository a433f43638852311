"""Files that several processes fill, each its own, so that a killed run loses nothing it had.

A process appends one line a record and waits until the disk has it. Killed in the middle of a
line, it cuts the torn line off when it comes back. What lies in the folder counts whoever wrote
it, so a run may go on with another number of processes. Merging copies lines; of those that were
read, nothing is held in memory but where they lie.
"""

import fcntl
import logging
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from itg_data.errors import ItgError, RecordError, to_one_line
from itg_data.jsonl import format_record, parse_record

logger = logging.getLogger(__name__)

RecordT = TypeVar("RecordT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The place of a record's line."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """Gives the line as it is written, newline included."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class ShardWriter:
    """The shard of one process, open for appending; a second process is kept out.

    Args:
        folder: Where the shards lie; must exist.
        stem: What the shards hold; the first part of their names.
        rank: Number of the process.
        world_size: How many processes there are.
        fresh: Empties the shard instead of going on with it.

    Raises:
        ItgError: Another process has it open.
    """

    def __init__(
        self, folder: Path, stem: str, rank: int, world_size: int, *, fresh: bool = False
    ) -> None:
        self._path = path = folder / f"{stem}.rank{rank}of{world_size}.jsonl"
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ItgError(f"{path}: another process is writing it; wait for it to end") from None
        self._file.truncate(0 if fresh else _end_of_last_line(path))

    def append(self, record: Any) -> None:
        """Writes a record and waits until it is safe.

        Raises:
            RecordError: It holds what JSON cannot.
            ItgError: It cannot be written.
        """
        try:
            self._file.write(format_record(record))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:  # of a full disk, which names no file
            raise ItgError(f"{self._path}: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # after a failed write it fails once more
        with nullcontext() if error is None else suppress(OSError):
            self._file.close()


def read_shards(
    folder: Path, stem: str, record_type: type[RecordT], world_size: int | None = None
) -> Iterator[tuple[RecordT, Line]]:
    """Reads the records of all shards, each with the place of its line.

    A last line without an end may still be being written, and is passed over. A line that is
    damaged otherwise is named in the log and passed over: what it held is made again.

    Args:
        folder: Where the shards lie.
        stem: What the shards hold.
        record_type: Class of the records.
        world_size: Reads only the shards of runs of so many processes.
    """
    ranks = r"\d+" if world_size is None else str(world_size)
    name = re.compile(rf"{re.escape(stem)}\.rank\d+of{ranks}\.jsonl")
    for path in sorted(p for p in folder.iterdir() if name.fullmatch(p.name)):
        start = 0
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    break
                try:
                    record = parse_record(text, record_type)
                except RecordError as error:
                    said = to_one_line(f"{path}:{number}: {error}")
                    logger.warning("%s; it is made again", said)
                else:
                    yield record, Line(path=path, start=start, size=len(text))
                start += len(text)


@contextmanager
def merging(folder: Path) -> Generator[None]:
    """Keeps other processes from merging at the same time: the last to merge has seen all."""
    with (folder / "merge.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_of_last_line(path: Path) -> int:
    """The length of the file without a torn last line."""
    block_size = 1 << 16
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block_size)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
