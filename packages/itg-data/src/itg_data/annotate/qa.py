"""The file of QA pairs: checked whole before anything is asked, then read video by video.

Memory holds the place of each pair and no text, so a file of millions of pairs will do.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from itg_data.annotate.pipeline import VideoJob
from itg_data.annotate.records import QaPair
from itg_data.errors import ItgError, RecordError
from itg_data.jsonl import read_jsonl_places, read_record_at


class ChangedQaError(ItgError):
    """The file of QA pairs is no longer the one that the run began with."""


class QaFile:
    """QA pairs by video, in the order in which the file first names each video.

    Args:
        path: JSONL of `QaPair`.

    Raises:
        RecordError: A line is no QA pair, or an id is there twice; the message names the line.
        ChangedQaError: Somebody wrote to it meanwhile.

    Attributes:
        num_pairs: In all.
        sha256: Of the file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            # a pipe, say, can't be read again
            raise RecordError(f"{path}: is no file")
        self.path = path
        self.num_pairs = 0
        self._places: dict[str, array[int]] = {}
        self._identity = _identify(path.stat()) if path.exists() else None
        seen: set[bytes] = set()
        for place, pair in read_jsonl_places(path, QaPair):
            self.num_pairs += 1
            digest = hashlib.blake2b(pair.id.encode(), digest_size=16).digest()
            if digest in seen:
                raise RecordError(f"{path}:{self.num_pairs}: id {pair.id!r} is there twice")
            seen.add(digest)
            self._places.setdefault(pair.video, array("Q")).append(place)
        self._videos = tuple(self._places)
        if not self.num_pairs:
            raise RecordError(f"{path}: holds no QA pair")
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self._require_unchanged(file)

    @property
    def num_videos(self) -> int:
        """How many videos the pairs are about."""
        return len(self._places)

    def list_videos(self, first: int = 0, last: int | None = None) -> tuple[str, ...]:
        """Names videos `first` to `last - 1`."""
        return self._videos[first:last]

    def read_jobs(self, first: int = 0, last: int | None = None) -> Iterator[VideoJob]:
        """Reads the pairs of videos `first` to `last - 1`, video by video.

        Raises:
            ChangedQaError: The file is not what it was; what lies at a pair's place is another.
        """
        videos = self.list_videos(first, last)
        with self.path.open("rb") as file:
            for video in videos:
                try:
                    pairs = [read_record_at(file, place, QaPair) for place in self._places[video]]
                finally:
                    self._require_unchanged(file)
                yield VideoJob(video=video, pairs=tuple(pairs))

    def _require_unchanged(self, file: BinaryIO) -> None:
        if _identify(os.fstat(file.fileno())) != self._identity:
            raise ChangedQaError(
                f"{self.path} changed while the run went on; start again to go on with it as it is "
                "now: what was answered is not asked again"
            ) from None


def _identify(seen: os.stat_result) -> tuple[int, ...]:
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns
