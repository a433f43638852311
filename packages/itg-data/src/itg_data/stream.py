"""Frames in chunks, decoded ahead of the reader on several threads.

A video decodes independently from each of its entry packets, so threads take one stretch after
the other, each with a decoder of its own; FFmpeg and PIL let go of the interpreter lock while
they work. Every stretch goes through the same decoder as `VideoReader.read`, so the frames are
the same. Memory is bounded: a thread that is too far ahead waits for the reader.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from itg_data.errors import VideoError
from itg_data.exact import find_entries
from itg_data.fast import DecordError
from itg_data.probe import Int64Array, VideoProbe
from itg_data.resize import squash

Image = npt.NDArray[np.uint8]
ImageT = TypeVar("ImageT")
ImageT_co = TypeVar("ImageT_co", covariant=True)

# Frames that wait for the reader; room for more than 1000 squares of 384 x 384.
_MAX_WAITING_BYTES = 1 << 29
# Stretches a thread gets on average, so that none is left alone with a long one at the end.
_STRETCHES_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameBatch:
    """Frames in the order they were asked for; what the file could not give is named apart."""

    frames: npt.NDArray[np.uint8]
    """[N, H, W, 3] RGB."""
    source_idx: npt.NDArray[np.int64]
    """[N]"""
    time_s: npt.NDArray[np.float64]
    """[N] original presentation time of each frame."""
    missing_source_idx: npt.NDArray[np.int64]
    """[M] frames asked for but lost to damage, in the order asked."""
    source_height: int
    """Height of the video as shown, whatever the frames were resized to."""
    source_width: int


class Decoder(Protocol[ImageT_co]):
    """What gives the frames of one video; used by one thread at a time."""

    def read(self, wanted: Int64Array) -> Iterator[tuple[int, ImageT_co]]:
        """Yields source index and image of the wanted frames, ascending, without lost ones."""
        ...

    def close(self) -> None:
        """Frees the decoder."""
        ...


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


class ChunkStream(Generic[ImageT]):
    """Decodes wanted frames on threads and hands them out in chunks; what frames are is open."""

    def __init__(
        self,
        probe: VideoProbe,
        wanted: Int64Array,
        chunk_size: int,
        open_decoder: Callable[[int], Decoder[ImageT]],
        *,
        image_shape: tuple[int, ...],
        ordered: bool,
        num_workers: int,
    ) -> None:
        """Starts decoding.

        Args:
            probe: Of the video.
            wanted: [N] source indices, ascending and distinct.
            chunk_size: Frames in a chunk, >= 1.
            open_decoder: Makes a decoder that uses so many threads of its own.
            image_shape: Of one uint8 image.
            ordered: Whether chunks come in time order.
            num_workers: Threads that decode, >= 1.
        """
        self.probe = probe
        self.image_shape = image_shape
        self._wanted = wanted
        self._chunk_size = chunk_size
        self._num_lost = 0
        stretches = split_at_entries(probe, wanted, num_workers * _STRETCHES_PER_WORKER)
        room = max(2 * chunk_size, _MAX_WAITING_BYTES // math.prod(image_shape))
        self._exchange: _Exchange[ImageT] = _Exchange(stretches, len(wanted), room, ordered=ordered)
        threads_each = max(1, round(num_workers / max(1, len(stretches))))
        self._workers = [
            threading.Thread(
                target=_decode_stretches,
                args=(self._exchange, wanted, lambda: open_decoder(threads_each), probe.path),
                name=f"itg-decode-{i}",
                daemon=True,
            )
            for i in range(min(num_workers, len(stretches)))
        ]
        for worker in self._workers:
            worker.start()

    def take(
        self, at_most: int | None = None
    ) -> tuple[Int64Array, list[ImageT], Int64Array] | None:
        """Waits for a chunk: source indices, their images, and source indices of lost frames.

        Args:
            at_most: Frames in this chunk, where it shall be smaller than others; >= 1.

        Returns:
            The chunk; None behind the last, and once the stream is closed.

        Raises:
            VideoError: A thread failed, or not one frame of all could be decoded.
        """
        try:
            taken = self._exchange.take(min(at_most or self._chunk_size, self._chunk_size))
        except VideoError:
            self.close()
            raise
        if taken is None:
            self.close()
            return None
        images, lost = taken
        self._num_lost += len(lost)
        if self._num_lost == len(self._wanted):
            self.close()
            raise VideoError(
                self.probe.path, f"none of the {self._num_lost} frames asked for can be decoded"
            )
        return self._wanted[list(images)], list(images.values()), self._wanted[lost]

    def close(self) -> None:
        """Stops the threads and waits for them; iterating afterwards ends at once."""
        self._exchange.stop()
        for worker in self._workers:
            worker.join()

    def __del__(self) -> None:
        # given up without a word: the threads end by themselves
        if hasattr(self, "_exchange"):
            self._exchange.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class FrameStream(ChunkStream[Image]):
    """An iterator of chunks. Close it, or use it as a context manager, to stop early."""

    def __init__(
        self,
        probe: VideoProbe,
        wanted: Int64Array,
        chunk_size: int,
        open_decoder: Callable[[int, int | None], Decoder[Image]],
        *,
        whole_size: tuple[int, int],
        size: int | None,
        ordered: bool,
        num_workers: int,
    ) -> None:
        """Starts decoding, as `ChunkStream` does.

        Args:
            probe: Of the video.
            wanted: [N] source indices, ascending and distinct.
            chunk_size: Frames in a chunk, >= 1.
            open_decoder: Makes a decoder of so many threads that squashes to a size, or does not.
            whole_size: Height and width of frames that are not squashed.
            size: Side of the square to squash frames to, if any.
            ordered: Whether chunks come in time order.
            num_workers: Threads that decode, >= 1.
        """
        num_stretches = len(split_at_entries(probe, wanted, num_workers * _STRETCHES_PER_WORKER))
        # few keyframes keep few threads busy: then all squash what these decode
        squashes_late = size is not None and 2 * num_stretches <= num_workers
        self._squashers = ThreadPoolExecutor(num_workers) if squashes_late else None
        self._size = size
        self._shape = (*(whole_size if size is None else (size, size)), 3)
        self._frames_per_batch = chunk_size
        if squashes_late:
            # of large frames, a chunk at their own size would be too much
            few = _MAX_WAITING_BYTES // 2 // math.prod((*whole_size, 3))
            chunk_size = max(1, min(chunk_size, few))
        size_of_decoder = None if squashes_late else size
        super().__init__(
            probe,
            wanted,
            chunk_size,
            lambda num_threads: open_decoder(num_threads, size_of_decoder),
            image_shape=(*whole_size, 3) if squashes_late else self._shape,
            ordered=ordered,
            num_workers=num_workers,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> FrameBatch:
        images: list[Image] = []
        places: list[Int64Array] = []
        lost: list[Int64Array] = []
        num_left = self._frames_per_batch
        while num_left > 0 and (taken := self.take(num_left)) is not None:
            places.append(taken[0])
            images += self._squash_late(taken[1])
            lost.append(taken[2])
            num_left -= len(taken[0]) + len(taken[2])
        if not places:
            raise StopIteration
        source_idx = np.concatenate(places)
        # of several chunks that came as they were ready
        order = np.argsort(source_idx)
        source_idx = source_idx[order]
        images = [images[i] for i in order.tolist()]
        return FrameBatch(
            frames=np.stack(images) if images else np.empty((0, *self._shape), np.uint8),
            source_idx=source_idx,
            time_s=self.probe.times_s[source_idx],
            missing_source_idx=np.concatenate(lost),
            source_height=self.probe.height,
            source_width=self.probe.width,
        )

    def _squash_late(self, images: list[Image]) -> list[Image]:
        """Squashes what the decoders did not."""
        if self._squashers is None or self._size is None:
            return images
        return list(self._squashers.map(partial(squash, size=self._size), images))

    def close(self) -> None:
        """Stops the threads and waits for them; iterating afterwards ends at once."""
        super().close()
        if self._squashers is not None:
            self._squashers.shutdown()


class _Exchange(Generic[ImageT]):
    """Where threads leave frames and the reader takes them, both waiting for the other."""

    def __init__(
        self, stretches: list[range], num_frames: int, room: int, *, ordered: bool
    ) -> None:
        self._stretches = deque(stretches)
        self._num_frames = num_frames
        self._room = room
        self._ordered = ordered
        self._changed = threading.Condition()
        self._images: dict[int, ImageT] = {}
        self._lost: set[int] = set()
        self._num_taken = 0
        self._failure: VideoError | None = None
        self._stopped = False

    def next_stretch(self) -> range | None:
        """Hands out work: places among the wanted frames."""
        with self._changed:
            return None if self._stopped or not self._stretches else self._stretches.popleft()

    def put(self, place: int, image: ImageT) -> bool:
        """Leaves a frame, once there is room; False if nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(place))
            if not self._stopped:
                self._images[place] = image
                self._changed.notify_all()
            return not self._stopped

    def lose(self, places: set[int]) -> None:
        """Says that frames will never come."""
        if not places:
            return
        with self._changed:
            self._lost |= places
            self._changed.notify_all()

    def fail(self, failure: VideoError) -> None:
        """Makes the reader raise, and everybody else stop."""
        with self._changed:
            self._failure = self._failure or failure
            self._stopped = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Sends the threads home."""
        with self._changed:
            self._stopped = True
            self._images.clear()
            self._changed.notify_all()

    def take(self, chunk_size: int) -> tuple[dict[int, ImageT], list[int]] | None:
        """Waits for a chunk: images by place, ascending, and lost places; None at the end.

        Raises:
            VideoError: A thread failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._is_ready(chunk_size))
            if self._failure is not None:
                raise self._failure
            if self._stopped or self._num_taken == self._num_frames:
                return None
            if self._ordered:
                chunk = range(self._num_taken, self._num_taken + chunk_size)
                came = [place for place in chunk if place in self._images]
                lost = [place for place in chunk if place in self._lost]
            else:
                came, lost = sorted(self._images)[:chunk_size], sorted(self._lost)
            images = {place: self._images.pop(place) for place in came}
            self._lost.difference_update(lost)
            self._num_taken += len(came) + len(lost)
            self._changed.notify_all()
            return images, lost

    def _has_room(self, place: int) -> bool:
        # in time order, the frames that the reader waits for must always find room
        return (place - self._num_taken if self._ordered else len(self._images)) < self._room

    def _is_ready(self, chunk_size: int) -> bool:
        num_left = self._num_frames - self._num_taken
        if len(self._images) + len(self._lost) == num_left:
            return True
        if not self._ordered:
            return len(self._images) >= chunk_size
        chunk = range(self._num_taken, self._num_taken + min(chunk_size, num_left))
        return all(place in self._images or place in self._lost for place in chunk)


def _decode_stretches(
    exchange: _Exchange[ImageT],
    wanted: Int64Array,
    open_decoder: Callable[[], Decoder[ImageT]],
    path: str,
) -> None:
    """What a thread does: it decodes stretches until none is left."""
    decoder: Decoder[ImageT] | None = None
    try:
        while (stretch := exchange.next_stretch()) is not None:
            decoder = decoder or open_decoder()
            next_place = stretch.start
            for frame, image in decoder.read(wanted[stretch.start : stretch.stop]):
                place = int(np.searchsorted(wanted, frame))
                if place < next_place:
                    raise VideoError(path, f"frame {frame} was decoded after later ones")
                # what was passed over is lost; said before the wait for room, which the reader
                # makes only once it knows of what it waits for
                exchange.lose(set(range(next_place, place)))
                if not exchange.put(place, image):
                    return
                next_place = place + 1
            exchange.lose(set(range(next_place, stretch.stop)))
    except VideoError as error:
        exchange.fail(error)
    except DecordError as error:
        exchange.fail(VideoError(path, f"{error}; PyAV may read it"))
    except Exception as error:
        failure = VideoError(path, f"decoding failed ({type(error).__name__}: {error})")
        failure.__cause__ = error
        exchange.fail(failure)
    finally:
        if decoder is not None:
            decoder.close()


def split_at_entries(probe: VideoProbe, wanted: Int64Array, num_stretches: int) -> list[range]:
    """Splits wanted frames where decoding may start anew, into about so many stretches or fewer.

    Args:
        probe: Of the video.
        wanted: [N] source indices, ascending and distinct.
        num_stretches: At least 1.

    Returns:
        Places in `wanted`, in order; none is empty.
    """
    if len(wanted) == 0:
        return []
    if probe.index is None:
        return [range(len(wanted))]
    least = -(-len(wanted) // num_stretches)
    starts = [0]
    for start in (np.flatnonzero(np.diff(find_entries(probe.index, wanted))) + 1).tolist():
        if start - starts[-1] >= least:
            starts.append(start)
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(wanted)], strict=True)]
