"""Results of many questions, a JSON line each, in a file that an interrupted run continues.

Each line is written at once, so a killed process loses the question it was at. The next run reads
what is there, drops a line that was cut off and those that tell of a failure, and asks only the
rest. Under torchrun each process writes a file of its own and reads everyone's.
"""

import fcntl
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from itg_data.errors import RecordError
from itg_data.files import write_atomic
from itg_data.records import SCHEMA_VERSION, FrameSelection, from_json, to_json

from itg_model.many import FailedSelection

# How `Journal.write` begins every line.
_LINE_START = f'{{"schema_version": {SCHEMA_VERSION}, "video": "'.encode()


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work is this process's, as torchrun tells it."""

    rank: int = 0
    num_ranks: int = 1

    @classmethod
    def from_environment(cls) -> "Share":
        """Reads RANK and WORLD_SIZE.

        Raises:
            ValueError: They make no sense together, as what is left of another command may.
        """
        texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if all(text.isdecimal() for text in texts):
            rank, num_ranks = map(int, texts)
            if rank < num_ranks:
                return cls(rank, num_ranks)
        raise ValueError(
            "RANK and WORLD_SIZE in the environment must be numbers, RANK the smaller, got "
            f"RANK={texts[0]} and WORLD_SIZE={texts[1]}; torchrun sets both, unset them without it"
        )

    def path_of(self, path: Path) -> Path:
        """Where this process writes: the file itself, or one beside it per process."""
        if self.num_ranks == 1:
            return path
        return path.with_name(f"{path.stem}.rank{self.rank}{path.suffix}")


class Journal:
    """Writes results, and knows those of earlier runs.

    Args:
        path: The file; None writes to stdout, where nothing is known of earlier runs, nor is it
            where `path` is a pipe or a device.
        share: This process's part.
        fits: Refuses a result of another model or other options, by a ValueError that says which.

    Raises:
        ValueError: The file holds something else, another process writes to it, or there are
            several processes and `path` is no file, beside which they could write.
        OSError: It cannot be read, written or locked.
    """

    def __init__(
        self, path: Path | None, share: Share, fits: Callable[[FrameSelection], None]
    ) -> None:
        self.done: set[tuple[str, str]] = set()
        self._file: BinaryIO | None = None
        if path is None:
            return
        if path.exists() and not path.is_file():
            if share.num_ranks > 1:
                raise ValueError(f"{path}: is no file, beside which each process could write one")
            # to read what a pipe holds would wait for ever: this process holds its other end
            self._file = path.open("wb")
            return
        own = share.path_of(path)
        for other in sorted({path, *_find_ranks(path)} - {own}):
            if other.exists():
                self._read(other, fits)
        self._file = _lock(own)
        try:
            kept = self._read(own, fits)
            if len(kept) != own.stat().st_size:
                # the file that replaces it has no lock yet
                write_atomic(own, kept)
                self._file.close()
                self._file = _lock(own)
        except BaseException:
            self._file.close()
            raise

    def write(self, result: FrameSelection | FailedSelection) -> None:
        """Adds a result.

        Raises:
            OSError: It cannot be written; `filename` says where.
        """
        text = json.dumps(to_json(result), ensure_ascii=False, allow_nan=False) + "\n"
        # half a character, which a question may hold, stays the escape that JSON has for it
        line = text.encode("utf-8", "backslashreplace")
        if self._file is None:
            with naming("stdout"):
                sys.stdout.write(line.decode())
                sys.stdout.flush()
        else:
            with naming(self._file.name):
                self._file.write(line)
                self._file.flush()

    def close(self) -> None:
        """Closes the file; raises as `write` does."""
        if self._file is not None:
            with naming(self._file.name):
                self._file.close()

    def _read(self, path: Path, fits: Callable[[FrameSelection], None]) -> bytes:
        """Takes note of a file's results; returns the lines that are to stay."""
        *lines, tail = path.read_bytes().split(b"\n")
        if tail and not _is_cut_off(tail):
            lines.append(tail)
        kept: list[bytes] = []
        for number, line in enumerate(lines, start=1):
            try:
                selection = _parse(line)
                if selection is None:
                    continue
                fits(selection)
            except ValueError as error:
                raise ValueError(
                    f"{path}:{number}: {error}; name another file, or remove this one"
                ) from None
            self.done.add((selection.video, selection.question))
            kept.append(line + b"\n")
        return b"".join(kept)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Says in an error what could not be written: of a full disk the system tells no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or name
        raise


def _find_ranks(path: Path) -> list[Path]:
    """The files beside `path` that processes of torchrun wrote; see `Share.path_of`."""
    name = re.compile(rf"{re.escape(path.stem)}\.rank\d+{re.escape(path.suffix)}")
    return [other for other in path.parent.iterdir() if name.fullmatch(other.name)]


def _is_cut_off(line: bytes) -> bool:
    """Whether it is the beginning of a line of ours; what others began is not ours to drop."""
    if not (line.startswith(_LINE_START) or _LINE_START.startswith(line)):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _parse(line: bytes) -> FrameSelection | None:
    """Reads a whole line; None if it tells of a failure.

    Raises:
        ValueError: It is neither a selection nor a failure.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is no result") from None
    try:
        if isinstance(data, dict) and "error" in data:
            from_json(FailedSelection, data)
            return None
        return from_json(FrameSelection, data)
    except RecordError as error:
        raise ValueError(f"is no result ({error})") from None


def _lock(path: Path) -> BinaryIO:
    """Opens a file that no other process has, to write behind its end."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_at(path, file):
                return file
        except BlockingIOError:
            file.close()
            raise ValueError(f"{path}: another process writes to it") from None
        except OSError as error:
            file.close()
            error.filename = os.fspath(path)
            raise
        file.close()


def _is_still_at(path: Path, file: BinaryIO) -> bool:
    """Whether `path` leads to an open file: whoever had the lock before may have replaced it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
