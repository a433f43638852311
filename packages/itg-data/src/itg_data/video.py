"""Frames of a video by source index: exact, upright, with their original times.

Two backends read the same frames. PyAV (`itg_data.exact`) reads every file that FFmpeg can decode.
decord reads those where a look at the packets shows that it gives what plain decoding from the
start would give (`itg_data.fast`), and raises on others. Colours follow the file's own matrix and
range, rotation metadata is applied, and nothing is interpolated in time. A reader is not for
sharing between threads, though its streams decode on several.
"""

import os
import weakref
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from itg_data.errors import VideoError
from itg_data.exact import ExactDecoder
from itg_data.fast import DecordDecoder, DecordError, decord_refusal
from itg_data.probe import VideoProbe, probe_video
from itg_data.resize import keep, squash
from itg_data.source import SourceFile
from itg_data.stream import Decoder, FrameBatch, FrameStream, Image, count_cores

__all__ = ["Backend", "FrameBatch", "FrameStream", "VideoReader", "open_video"]

Backend = Literal["auto", "decord", "pyav"]

_MAX_THREADS = 8


class VideoReader:
    """An open video file. Use `open_video`, and close it or use it as a context manager.

    Attributes:
        path: The file as the caller named it.
        source: The open file.
        probe: All that its packets tell.
        backend: `decord` or `pyav`: what reads the frames.
        num_frames: Frames that the file shows, counted, not believed.
        fps: Average frame rate in Hz.
        height: Of the frames as shown, after rotation and before `resize_to`.
        width: Of the frames as shown, after rotation and before `resize_to`.
        duration_s: From the first frame's appearance to the last one's end.
    """

    def __init__(
        self,
        source: SourceFile,
        probe: VideoProbe,
        backend: Literal["decord", "pyav"],
        frame_size: tuple[int, int],
        num_threads: int,
    ) -> None:
        self.path = source.path
        self.probe = probe
        self.backend = backend
        self.num_frames = len(probe.times_s)
        self.fps = probe.fps
        self.height = probe.height
        self.width = probe.width
        self.duration_s = probe.duration_s
        self.source = source
        self._frame_size = frame_size
        self._decoder = self._open_decoder(num_threads)
        self._streams: weakref.WeakSet[FrameStream] = weakref.WeakSet()
        self._closed = False

    def read(self, source_idx: Sequence[int] | npt.NDArray[np.integer]) -> FrameBatch:
        """Reads frames by their place in the video.

        Args:
            source_idx: [N] places in `0..num_frames - 1`, in any order, repeats allowed.

        Returns:
            The frames in that order, without those lost to damage.

        Raises:
            ValueError: A place is out of range or no integer, or the reader is closed.
            VideoError: Not one of the frames asked for can be decoded.
        """
        asked = self._check(source_idx)
        wanted, row_of_asked = np.unique(asked, return_inverse=True)
        images = np.empty((len(wanted), *self._frame_size, 3), dtype=np.uint8)
        found = np.zeros(len(wanted), dtype=bool)
        try:
            for frame, image in self._decoder.read(wanted) if len(wanted) else ():
                row = np.searchsorted(wanted, frame)
                images[row], found[row] = image, True
        except DecordError as error:
            raise VideoError(self.path, f"{error}; PyAV may read it") from None
        if len(asked) and not found.any():
            raise VideoError(self.path, f"none of the {len(asked)} frames asked for can be decoded")
        here = found[row_of_asked]
        if not (here.all() and np.array_equal(asked, wanted)):
            images = images[row_of_asked[here]]
        return FrameBatch(
            frames=images,
            source_idx=asked[here],
            time_s=self.probe.times_s[asked[here]],
            missing_source_idx=asked[~here],
            source_height=self.height,
            source_width=self.width,
        )

    def stream(
        self,
        source_idx: Sequence[int] | npt.NDArray[np.integer],
        chunk_size: int,
        *,
        size: int | None = None,
        ordered: bool = True,
        num_workers: int = 0,
    ) -> FrameStream:
        """Reads frames in chunks, decoding ahead of the caller on several threads.

        Args:
            source_idx: [N] places in `0..num_frames - 1`, ascending and distinct.
            chunk_size: Frames in a chunk, lost ones included; the last may be shorter.
            size: Side of the square that frames are squashed to (`itg_data.resize`); None keeps
                them as they are.
            ordered: False yields frames as they come, ascending within a chunk. The first come
                much sooner then, because the video is decoded in many places at once.
            num_workers: Threads; 0 for one per core that the process may use.

        Returns:
            An iterator that gives every frame asked for once, as a frame or among the missing. A
            chunk may hold no frame but name missing ones; if not one frame of all can be decoded,
            a `VideoError` ends it. Close it to stop early.

        Raises:
            ValueError: An argument is out of range, or the reader is closed.
        """
        wanted = self.check_stream(source_idx, chunk_size, size, num_workers)
        stream = FrameStream(
            self.probe,
            wanted,
            chunk_size,
            self._open_decoder,
            whole_size=self._frame_size,
            size=size,
            ordered=ordered,
            num_workers=num_workers or count_cores(),
        )
        self._streams.add(stream)
        return stream

    def check_stream(
        self,
        source_idx: Sequence[int] | npt.NDArray[np.integer],
        chunk_size: int,
        size: int | None,
        num_workers: int,
    ) -> npt.NDArray[np.int64]:
        """Checks the arguments of `stream` and returns the source indices as an array.

        Raises:
            ValueError: An argument is out of range, or the reader is closed.
        """
        wanted = self._check(source_idx)
        if (np.diff(wanted) <= 0).any():
            raise ValueError("source_idx must be ascending and distinct to be streamed")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, got {num_workers}")
        if size is not None and size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        if size is not None and self._frame_size != (self.height, self.width):
            raise ValueError(f"size must be None after resize_to {self._frame_size}, got {size}")
        return wanted

    def _open_decoder(self, num_threads: int, size: int | None = None) -> Decoder[Image]:
        finish = keep if size is None else partial(squash, size=size)
        kind = DecordDecoder if self.backend == "decord" else ExactDecoder
        return kind(self.source, self.probe, *self._frame_size, num_threads, finish)

    def times_s(
        self, source_idx: Sequence[int] | npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float64]:
        """Returns the original presentation times of frames, [N] in seconds, without decoding."""
        return self.probe.times_s[self._check(source_idx)]

    def close(self) -> None:
        """Stops streams and frees the file; reading afterwards is a `ValueError`."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        self._decoder.close()
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, source_idx: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        if self._closed:
            raise ValueError(f"the reader of {self.path} is closed")
        asked = np.asarray(source_idx)
        if asked.ndim != 1 or (asked.size and asked.dtype.kind not in "iu"):
            raise ValueError(
                f"source_idx must be a flat list of integers, got {asked.dtype} of shape "
                f"{asked.shape}"
            )
        outside = asked[(asked < 0) | (asked >= self.num_frames)]
        if outside.size:
            raise ValueError(
                f"source_idx must be in 0..{self.num_frames - 1} ({self.path}), got {outside[0]}"
            )
        return asked.astype(np.int64)


def open_video(
    path: str | os.PathLike[str],
    *,
    backend: Backend = "auto",
    resize_to: tuple[int, int] | int | None = None,
    num_threads: int = 0,
) -> VideoReader:
    """Opens a video for reading frames by index.

    Args:
        path: A local file. The name is never interpreted: not as an address, not as a pattern.
        backend: `auto` is PyAV, which reads every file exactly; `decord` refuses those that it
            would get wrong.
        resize_to: (height, width) of the frames as shown, or the length of their longer side,
            which keeps their shape and never enlarges; the decoder's scaler resizes, filtered
            against aliasing. None keeps the native size.
        num_threads: Decoding threads; 0 for one per core that the process may use, at most 8.

    Raises:
        VideoError: The file cannot be read as a video, or `backend="decord"` would get it wrong.
        ValueError: An argument is out of range.
    """
    if backend not in ("auto", "decord", "pyav"):
        raise ValueError(f"backend must be auto, decord or pyav, got {backend!r}")
    if num_threads < 0:
        raise ValueError(f"num_threads must be >= 0, got {num_threads}")
    if resize_to is not None and np.min(resize_to) < 1:
        raise ValueError(
            f"resize_to must be (height, width) or a length, all >= 1, got {resize_to}"
        )
    source = SourceFile(path)
    try:
        probe = probe_video(source)
        size = _frame_size(probe, resize_to)
        resizes = size != (probe.height, probe.width)
        if backend == "decord" and (refusal := decord_refusal(probe, resizes=resizes)):
            raise VideoError(source.path, refusal)
        return VideoReader(
            source,
            probe,
            "decord" if backend == "decord" else "pyav",
            size,
            num_threads or min(count_cores(), _MAX_THREADS),
        )
    except DecordError as error:
        source.close()
        raise VideoError(source.path, str(error)) from None
    except BaseException:
        source.close()
        raise


def _frame_size(probe: VideoProbe, resize_to: tuple[int, int] | int | None) -> tuple[int, int]:
    if isinstance(resize_to, tuple):
        return resize_to
    shown = probe.height, probe.width
    scale = 1.0 if resize_to is None else min(1.0, resize_to / max(shown))
    return max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale))
