"""Annotated videos as training samples, in an order that depends on the seed and the step alone.

The unit is the video, not the question: its frames are decoded and pass the tower once, and all of
its questions share them. Which videos a step takes is a pure function of (seed, step, rank), so a
run that resumes at a step continues exactly where it left off and nothing of the order is saved.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import VideoError
from itg_data.records import GroundingRecord, label_frames
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.video import open_video
from itg_model.processing import encode_question, preprocess_frames
from torch import Tensor
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSample:
    """A video's sampled frames with all of its questions. T frames, Q questions."""

    video: str
    pixels: Tensor
    """[T, 3, S, S] float32 in -1..1."""
    time_s: npt.NDArray[np.float64]
    """[T]."""
    input_ids: tuple[Tensor, ...]
    """Q of [L] int64."""
    labels: tuple[Tensor, ...]
    """Q of [T] float32, 1 for relevant frames."""
    records: tuple[GroundingRecord, ...]
    """Q, in the order of the data set."""

    @property
    def num_bytes(self) -> int:
        """Memory that the pixels take."""
        return self.pixels.numel() * self.pixels.element_size()


class VideoDataset:
    """The videos of one split, decoded on demand and kept as far as memory allows.

    Args:
        records: Annotated questions; those of a video are grouped.
        root: Folder that the records' video paths are relative to.
        tokenizer: Encodes the questions.
        image_size: Side of the frames that the tower takes, in pixels.
        sampling: Which frames of a video are looked at.
        cache_bytes: Memory for decoded frames; the videos used longest ago go first.
    """

    def __init__(
        self,
        records: Sequence[GroundingRecord],
        root: Path,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int,
        sampling: SamplingConfig,
        cache_bytes: int,
    ) -> None:
        self.root = root
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.sampling = sampling
        self.cache_bytes = cache_bytes
        self.by_video: dict[str, list[GroundingRecord]] = {}
        for record in records:
            self.by_video.setdefault(record.video, []).append(record)
        self.videos = list(self.by_video)
        self._cache: OrderedDict[str, VideoSample] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.videos)

    def drop_unreadable(self) -> dict[str, str]:
        """Opens every video once and drops those that cannot be: path to reason, also logged."""
        dropped: dict[str, str] = {}
        for video in self.videos:
            try:
                open_video(self.root / video).close()
            except VideoError as error:
                dropped[video] = error.reason
                logger.warning("dropped with its %d questions: %s", self._num_asked(video), error)
        self.videos = [video for video in self.videos if video not in dropped]
        return dropped

    def _num_asked(self, video: str) -> int:
        return len(self.by_video[video])

    def load(self, place: int) -> VideoSample:
        """Decodes the video at a place, or takes it from memory.

        Raises:
            VideoError: The file cannot be decoded.
        """
        video = self.videos[place]
        sample = self._cache.get(video)
        if sample is None:
            sample = self._decode(video)
            self._keep(sample)
        return sample

    def _keep(self, sample: VideoSample) -> None:
        if sample.num_bytes > self.cache_bytes or sample.video in self._cache:
            return
        self._cache[sample.video] = sample
        self._cached_bytes += sample.num_bytes
        while self._cached_bytes > self.cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.num_bytes

    def _decode(self, video: str) -> VideoSample:
        records = tuple(self.by_video[video])
        with open_video(self.root / video) as reader:
            indices = sample_source_indices(reader.num_frames, reader.fps, self.sampling)
            batch = reader.read(indices)
        if len(batch.missing_source_idx):
            logger.warning("%s: %d frames missing", video, len(batch.missing_source_idx))
        if len(batch.frames) == 0:
            raise VideoError(video, "none of the sampled frames could be decoded")
        labels = (label_frames(batch.time_s, record.spans) for record in records)
        return VideoSample(
            video=video,
            pixels=preprocess_frames(batch.frames, self.image_size),
            time_s=batch.time_s,
            input_ids=tuple(encode_question(r.question, self.tokenizer) for r in records),
            labels=tuple(torch.from_numpy(label).float() for label in labels),
            records=records,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Which videos each step of each process takes."""

    num_videos: int
    videos_per_step: int
    """Per process."""
    rank: int = 0
    world_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_videos < 1:
            raise ValueError("there is no video to train on: num_videos must be >= 1, got 0")

    def places(self, step: int) -> list[int]:
        """Places of this process's videos in step `step`, counted from 0.

        The processes of a step take consecutive videos of one endless sequence: a permutation of
        all videos per epoch, one epoch after the other.
        """
        first = (step * self.world_size + self.rank) * self.videos_per_step
        return [self._place(i) for i in range(first, first + self.videos_per_step)]

    def _place(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_videos)
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.num_videos)
        return int(shuffled[offset])


def iterate_batches(
    dataset: VideoDataset, order: Order, first_step: int, num_steps: int, num_ahead: int = 2
) -> Iterator[list[VideoSample]]:
    """Yields the batches of steps `first_step` to `num_steps - 1`, decoding ahead on a thread.

    Raises:
        VideoError: A video of the batch cannot be decoded.
    """
    steps = iter(range(first_step, num_steps))
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: list[Future[list[VideoSample]]] = []

        def submit() -> None:
            step = next(steps, None)
            if step is not None:
                places = order.places(step)
                pending.append(pool.submit(lambda: [dataset.load(place) for place in places]))

        for _ in range(num_ahead):
            submit()
        while pending:
            batch = pending.pop(0).result()
            submit()
            yield batch
