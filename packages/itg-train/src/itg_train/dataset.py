"""Annotated videos as training samples: decoded, or taken from memory or from disk.

The unit is a group: questions about one video that are learnt together. The video's frames are
decoded and pass the tower once, and all of its questions share them.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from itg_data.sampling import SamplingConfig, sample_source_indices
from torch import Tensor

from itg_train.features import FeatureStore
from itg_train.index import VideoFacts
from itg_train.readers import ReadSquares
from itg_train.sources import Record
from itg_train.squares import read_squares

logger = logging.getLogger(__name__)


NAMED_QUESTIONS = 10
"""Questions without a relevant frame that are named; many would drown all else."""


class Task(Protocol):
    """What is to be learnt from a record."""

    def encode(self, record: Any) -> Tensor:
        """The record's [L] token ids, with `VIDEO_TOKEN_ID` where its video goes."""
        ...

    def label(self, record: Any, time_s: npt.NDArray[np.float64]) -> Tensor:
        """What the network should say, given the times of the video's frames."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Questions about one video that are learnt together."""

    video: str
    """Path relative to the set's root; empty where there is nothing to see."""
    num_frames: int
    """Frames that are sampled of the video."""
    records: tuple[Record, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSample:
    """A video's sampled frames with some of its questions. T frames, Q questions."""

    video: str
    frames: Tensor
    """[T, S, S, 3] uint8 RGB, or [T, P, C] features of the tower."""
    time_s: npt.NDArray[np.float64]
    """[T]."""
    input_ids: tuple[Tensor, ...]
    """Q of [L] int64."""
    labels: tuple[Tensor, ...]
    """Q; for grounding [T] float32, 1 for relevant frames; for chat [L] ids to learn."""
    records: tuple[Record, ...]
    """Q, in the order of the data set."""
    sides: tuple[int, ...] = ()
    """Q sides that the frames are pooled to; none means the largest that fits."""
    store: FeatureStore | None = None
    """Where the features of these pixels should be kept; None keeps them nowhere."""

    @property
    def has_features(self) -> bool:
        """Whether the frames have passed the tower already."""
        return self.frames.ndim == 3

    @property
    def num_bytes(self) -> int:
        """Memory that the frames take."""
        return self.frames.numel() * self.frames.element_size()


class VideoDataset:
    """The videos of one split, read on demand and kept as far as memory allows.

    Args:
        records: Annotated questions; those of a video are grouped.
        root: Folder that the records' video paths are relative to.
        facts: What is known of each video; those with a reason are dropped by name.
        task: Makes ids and labels of a record.
        image_size: Side of the frames that the tower takes, in pixels.
        sampling: Which frames of a video are looked at.
        cache_bytes: Memory for decoded frames; the videos used longest ago go first.
        questions_per_group: See `DataConfig`.
        store: Features of videos met before.
        read_squares: Reads a file.
    """

    def __init__(
        self,
        records: Sequence[Record],
        root: Path,
        facts: dict[str, VideoFacts],
        task: Task,
        image_size: int,
        sampling: SamplingConfig,
        cache_bytes: int,
        questions_per_group: int = 0,
        store: FeatureStore | None = None,
        read_squares: ReadSquares = read_squares,
    ) -> None:
        self._read_squares = read_squares
        self.root = root
        self.task = task
        self.image_size = image_size
        self.sampling = sampling
        self.cache_bytes = cache_bytes
        self.store = store
        self.dropped: dict[str, str] = {}
        self.groups = self._group(records, facts, questions_per_group)
        self._cache: OrderedDict[str, VideoSample] = OrderedDict()
        self._cached_bytes = 0
        self._lock = Lock()
        self._unanswered: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self.groups)

    def _group(
        self, records: Sequence[Record], facts: dict[str, VideoFacts], size: int
    ) -> list[Group]:
        by_video: dict[str, list[Record]] = {}
        for place, record in enumerate(records):
            # what has no video is a group of its own; ids may repeat
            by_video.setdefault(record.video or f"\0{place}", []).append(record)
        groups: list[Group] = []
        for of_video in by_video.values():
            video, num_frames = of_video[0].video, 0
            if video:
                reason = facts[video].reason
                if reason is not None:
                    self.dropped[video] = reason
                    continue
                num_frames = len(self._sampled(facts[video].num_frames, facts[video].fps))
            step = size or len(of_video)
            groups += [
                Group(video=video, num_frames=num_frames, records=tuple(of_video[i : i + step]))
                for i in range(0, len(of_video), step)
            ]
        return groups

    def _sampled(self, num_frames: int, fps: float) -> npt.NDArray[np.int64]:
        return sample_source_indices(num_frames, fps, self.sampling)

    def load(self, place: int, questions: Sequence[int] | None = None) -> VideoSample:
        """Reads the video of the group at a place, with all of its questions or some.

        Args:
            place: Which group.
            questions: Places of questions in the group; None takes all.

        Raises:
            VideoError: The file cannot be decoded.
        """
        group = self.groups[place]
        chosen = range(len(group.records)) if questions is None else questions
        records = tuple(group.records[i] for i in chosen)
        seen = self._load_frames(group.video)
        labels = tuple(self.task.label(record, seen.time_s) for record in records)
        for record, label in zip(records, labels, strict=True):
            if not label.any():
                self._name_unanswered(record)
        return replace(
            seen,
            input_ids=tuple(self.task.encode(record) for record in records),
            labels=labels,
            records=records,
        )

    def _name_unanswered(self, record: Record) -> None:
        """A question teaches that no frame is relevant, which its annotator did not mean."""
        key = (record.video, record.id)
        with self._lock:
            if key in self._unanswered or len(self._unanswered) > NAMED_QUESTIONS:
                return
            self._unanswered.add(key)
            is_named = len(self._unanswered) <= NAMED_QUESTIONS
        if is_named:
            logger.warning(
                "%s: no sampled frame is relevant to record %s; do its labels lie beyond the end?",
                *key,
            )
        else:
            logger.warning("there are more questions without a relevant frame")

    def _load_frames(self, video: str) -> VideoSample:
        with self._lock:
            sample = self._cache.get(video)
            if sample is not None:
                self._cache.move_to_end(video)
        if sample is None:
            sample = self._read(video)
            self._keep(sample)
        return sample

    def _keep(self, sample: VideoSample) -> None:
        # pixels whose features will be stored would hide these, and pass the tower again
        if sample.store is not None:
            return
        with self._lock:
            if sample.num_bytes > self.cache_bytes or sample.video in self._cache:
                return
            self._cache[sample.video] = sample
            self._cached_bytes += sample.num_bytes
            while self._cached_bytes > self.cache_bytes:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.num_bytes

    def _read(self, video: str) -> VideoSample:
        stored = self.store.read(video) if self.store and video else None
        if stored is not None:
            frames, time_s = stored.features, stored.time_s
        elif video:
            squares = self._read_squares(self.root / video, self.sampling, self.image_size)
            if squares.num_missing:
                logger.warning("%s: %d frames missing", video, squares.num_missing)
            frames, time_s = torch.from_numpy(squares.frames), squares.time_s
        else:
            frames = torch.empty(0, self.image_size, self.image_size, 3, dtype=torch.uint8)
            time_s = np.empty(0)
        return VideoSample(
            video=video,
            frames=frames,
            time_s=time_s,
            input_ids=(),
            labels=(),
            records=(),
            store=self.store if video and stored is None else None,
        )
