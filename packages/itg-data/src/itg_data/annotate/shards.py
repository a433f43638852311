"""Finished stretches of a run, on disk: what a run that is started again need not do anew.

    shards-0123abcd/
        000000.dropped.jsonl   the pairs of 32 videos that did not make it
        000000.videos.jsonl    the videos as they were: see `VideoStamp`
        000000.jsonl           the annotations; written last, it says that all three are whole

A shard holds the same stretch of pairs whoever finished first. It counts only as long as its videos
are the ones that it was made from: a film that was only half there, or that was replaced since, has
its shard made anew.
"""

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from itg_data.annotate.pipeline import Outcome, VideoJob
from itg_data.annotate.qa import QaFile
from itg_data.annotate.records import Annotation, DroppedSample, DropReason, VideoStamp
from itg_data.errors import ItgError
from itg_data.jsonl import read_jsonl, write_jsonl

VIDEOS_PER_SHARD = 32
_FOLDER = re.compile(r"shards-[0-9a-f]{8}")
_FILE = re.compile(r"\.?\d{6}(\.dropped|\.videos)?\.jsonl(\.[^.]+\.part\.jsonl)?")

RecordT = TypeVar("RecordT")


class ChangedVideoError(ItgError):
    """A video is no longer what it was when its questions were answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stretch:
    """Some videos of the file of QA pairs, and what became of them so far."""

    outcomes: dict[int, tuple[Outcome, ...]]
    stamps: dict[int, VideoStamp]


class Shards:
    """The shards of one run.

    Args:
        out: The set's folder.
        fingerprint: Of all that decides the set; runs that differ share no shard.
        qa: The pairs.
        videos: Folder of the videos.
        retried: Reasons for which a pair was dropped that are worth another try.
    """

    def __init__(
        self,
        out: Path,
        fingerprint: str,
        qa: QaFile,
        videos: Path,
        retried: Collection[DropReason] = (),
    ) -> None:
        self._folder = out / f"shards-{fingerprint[:8]}"
        self._qa = qa
        self._videos = videos
        self._retried = retried
        self._under_way: dict[int, _Stretch] = {}
        self._folder.mkdir(exist_ok=True)
        self._finished = frozenset(n for n in range(len(self)) if self._holds(n))
        for number in set(range(len(self))) - self._finished:
            # the file that says that a shard is whole must not outlive the others' being replaced
            self._path(number, ".jsonl").unlink(missing_ok=True)

    def __len__(self) -> int:
        return -(-self._qa.num_videos // VIDEOS_PER_SHARD)

    def read_finished(self) -> Iterator[Outcome]:
        """Reads what earlier starts of the run have finished."""
        for number in sorted(self._finished):
            yield from read_jsonl(self._path(number, ".jsonl"), Annotation)
            yield from read_jsonl(self._path(number, ".dropped.jsonl"), DroppedSample)

    def read_jobs(self) -> Iterator[tuple[int, VideoJob]]:
        """Yields the videos of unfinished shards, numbered as the file names them."""
        for shard in range(len(self)):
            if shard in self._finished:
                continue
            first = shard * VIDEOS_PER_SHARD
            stretch = self._under_way[shard] = _Stretch(outcomes={}, stamps={})
            jobs = self._qa.read_jobs(first, first + VIDEOS_PER_SHARD)
            for number, job in enumerate(jobs, start=first):
                # before it is opened: what is written to it after that makes the stamp a false one
                stretch.stamps[number] = VideoStamp.of(self._videos, job.video)
                yield number, job

    def put(self, number: int, outcomes: tuple[Outcome, ...]) -> None:
        """Takes a video's result; writes the shard that it was the last one of."""
        shard = number // VIDEOS_PER_SHARD
        stretch = self._under_way[shard]
        stretch.outcomes[number] = outcomes
        first = shard * VIDEOS_PER_SHARD
        if len(stretch.outcomes) < min(VIDEOS_PER_SHARD, self._qa.num_videos - first):
            return
        of_shard = [one for number in sorted(stretch.outcomes) for one in stretch.outcomes[number]]
        dropped = [outcome for outcome in of_shard if isinstance(outcome, DroppedSample)]
        made = [outcome for outcome in of_shard if isinstance(outcome, Annotation)]
        stamps = [stretch.stamps[number] for number in sorted(stretch.stamps)]
        write_jsonl(self._path(shard, ".dropped.jsonl"), dropped)
        write_jsonl(self._path(shard, ".videos.jsonl"), stamps)
        write_jsonl(self._path(shard, ".jsonl"), made)
        del self._under_way[shard]

    def join(self, out: Path) -> None:
        """Writes all that the shards hold into the set's own files.

        Raises:
            ChangedVideoError: A video changed while the run went on.
        """
        for stamp in self._read_all(".videos.jsonl", VideoStamp):
            if VideoStamp.of(self._videos, stamp.video) != stamp:
                raise ChangedVideoError(
                    f"{self._videos / stamp.video} changed while the run went on; start again: "
                    "what is no longer true of it is asked anew"
                )
        write_jsonl(out / "dropped.jsonl", self._read_all(".dropped.jsonl", DroppedSample))
        write_jsonl(out / "annotations.jsonl", self._read_all(".jsonl", Annotation))

    def _holds(self, number: int) -> bool:
        """Whether a shard is whole, its videos are as they were, and no pair wants another try."""
        if not self._path(number, ".jsonl").exists():
            return False
        dropped = read_jsonl(self._path(number, ".dropped.jsonl"), DroppedSample)
        if any(drop.reason in self._retried for drop in dropped):
            return False
        first = number * VIDEOS_PER_SHARD
        names = self._qa.list_videos(first, first + VIDEOS_PER_SHARD)
        stamps = list(read_jsonl(self._path(number, ".videos.jsonl"), VideoStamp))
        return stamps == [VideoStamp.of(self._videos, name) for name in names]

    def _read_all(self, suffix: str, record_type: type[RecordT]) -> Iterator[RecordT]:
        for number in range(len(self)):
            yield from read_jsonl(self._path(number, suffix), record_type)

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"{number:06d}{suffix}"


def remove_shards(out: Path) -> None:
    """Removes the shards of this run and of earlier ones, and no folder that anybody else made."""
    for folder in out.glob("shards-*"):
        if not _FOLDER.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        if all(_FILE.fullmatch(path.name) for path in folder.iterdir()):
            shutil.rmtree(folder)
