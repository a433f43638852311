"""Frames of a video by source index: exact, upright, with their original times.

Two backends read the same frames. decord is used where a look at the file's packets shows that
it gives what plain decoding from the start would give (`itg_data.fast`); PyAV reads everything
else (`itg_data.exact`). An explicit choice is never replaced: decord on a file it gets wrong
raises. Colours follow the file's own matrix and range, rotation metadata is applied, and nothing
is interpolated in time. A reader is not for sharing between threads.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from itg_data.errors import VideoError
from itg_data.exact import ExactDecoder
from itg_data.fast import DecordDecoder, DecordError, decord_refusal
from itg_data.probe import VideoProbe, probe_video
from itg_data.source import SourceFile

Backend = Literal["auto", "decord", "pyav"]

logger = logging.getLogger(__name__)

_MAX_THREADS = 8


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


class VideoReader:
    """An open video file. Use `open_video`, and close it or use it as a context manager.

    Attributes:
        path: The file as the caller named it.
        backend: `decord` or `pyav`: what reads the frames.
        backend_reason: Why that one.
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
        decoder: ExactDecoder | DecordDecoder,
        backend_reason: str,
        frame_size: tuple[int, int],
        exact: Callable[[], ExactDecoder] | None = None,
    ) -> None:
        self.path = source.path
        self.probe = probe
        self.backend: Literal["decord", "pyav"] = (
            "decord" if isinstance(decoder, DecordDecoder) else "pyav"
        )
        self.backend_reason = backend_reason
        self.num_frames = len(probe.times_s)
        self.fps = probe.fps
        self.height = probe.height
        self.width = probe.width
        self.duration_s = probe.duration_s
        self._source = source
        self._decoder: ExactDecoder | DecordDecoder = decoder
        self._frame_size = frame_size
        self._exact = exact
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
        images, found = self._decode(wanted)
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
        )

    def _decode(
        self, wanted: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Decodes frames, [N, H, W, 3] in ascending order, and says which rows of it hold one."""
        if len(wanted) == 0:
            return np.empty((0, *self._frame_size, 3), dtype=np.uint8), np.empty(0, dtype=bool)
        if isinstance(self._decoder, DecordDecoder):
            try:
                return self._decoder.read(wanted), np.ones(len(wanted), dtype=bool)
            except DecordError as error:
                if self._exact is None:
                    raise VideoError(self.path, f"{error}; PyAV may read it") from None
                logger.info("%s: %s; reading on with PyAV", self.path, error)
                self._decoder.close()
                self._decoder = self._exact()
                self.backend, self.backend_reason = "pyav", str(error)
        shelf = self._decoder.read(wanted)
        return shelf.images, shelf.filled

    def times_s(
        self, source_idx: Sequence[int] | npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float64]:
        """Returns the original presentation times of frames, [N] in seconds, without decoding."""
        return self.probe.times_s[self._check(source_idx)]

    def close(self) -> None:
        """Frees the decoder and the file; reading afterwards is a `ValueError`."""
        self._closed = True
        self._decoder.close()
        self._source.close()

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
        backend: `auto` takes decord where it is known to be exact, PyAV elsewhere.
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
        height, width = _frame_size(probe, resize_to)
        resizes = (height, width) != (probe.height, probe.width)
        threads = num_threads or min(len(os.sched_getaffinity(0)), _MAX_THREADS)

        def exact() -> ExactDecoder:
            return ExactDecoder(source, probe, height, width, threads)

        if backend == "pyav":
            return VideoReader(source, probe, exact(), "asked for", (height, width))
        refusal = decord_refusal(probe, resizes=resizes)
        if refusal is None:
            try:
                fast = DecordDecoder(source, probe, height, width, threads)
            except DecordError as error:
                refusal = str(error)
            else:
                reason = "asked for" if backend == "decord" else "a plain file"
                fallback = exact if backend == "auto" else None
                return VideoReader(source, probe, fast, reason, (height, width), fallback)
        if backend == "decord":
            raise VideoError(source.path, refusal)
        return VideoReader(source, probe, exact(), refusal, (height, width))
    except BaseException:
        source.close()
        raise


def _frame_size(probe: VideoProbe, resize_to: tuple[int, int] | int | None) -> tuple[int, int]:
    if isinstance(resize_to, tuple):
        return resize_to
    shown = probe.height, probe.width
    scale = 1.0 if resize_to is None else min(1.0, resize_to / max(shown))
    return max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale))
