"""Frames through decord, for files that it is known to read exactly.

Alone, decord 0.6 returns wrong frames without a word: after a seek in open-GOP H.264 and HEVC,
MPEG-4 with B-frames, intra refresh, AVI and MPEG streams; everywhere in files with an edit list;
and painted-over ones where data is damaged. So it only gets files whose packets rule the former
out (`decord_refusal`), its own count and times of frames must agree with ours, and its FFmpeg is
listened to: an error in its log, or word of concealment, and the frames are not trusted.

On 16 cores `itg_data.exact` was faster in every case measured (the README has figures), so this is
only taken by name.
"""

import atexit
import ctypes
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from itg_data.probe import Int64Array, Orientation, VideoProbe
from itg_data.source import SourceFile

Image = npt.NDArray[np.uint8]

_FORMATS = frozenset({"mov", "matroska"})
# HEVC too is exact while it is sound, but this FFmpeg's decoder passes over damage in it that
# PyAV's sees.
_CODECS = frozenset({"h264", "vp8", "vp9", "mjpeg"})
_PIX_FMTS = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv420p10le"}
)
_AV_LOG_QUIET, _AV_LOG_ERROR, _AV_LOG_INFO = -8, 16, 32
_TIME_TOLERANCE_S = 2e-3
_SINGLE_PRECISION = 1e-6
_BATCH = 16


def _decord() -> Any:
    """The untyped package itself, imported on first use: it loads 25 MB of libraries."""
    return importlib.import_module("decord")


class DecordError(Exception):
    """decord failed or cannot be trusted with this file; the message says why."""


class _DecordReader(Protocol):
    """The part of decord's untyped reader that is used."""

    def __len__(self) -> int: ...
    def get_batch(self, indices: list[int]) -> Any: ...
    def get_frame_timestamp(self, idx: list[int]) -> Any: ...


def decord_refusal(probe: VideoProbe, *, resizes: bool) -> str | None:
    """Says why decord must not read a file, or None if it may."""
    if probe.format not in _FORMATS:
        return f"decord is not known to be exact on {probe.format} files"
    if probe.codec not in _CODECS:
        return f"decord is not known to be exact on {probe.codec} video"
    if probe.pix_fmt not in _PIX_FMTS:
        return f"decord is not known to be exact on {probe.pix_fmt} pixels"
    if probe.oddities:
        return f"decord reads some files wrong, and this one {probe.oddities[0]}"
    if probe.orientation != Orientation():
        if not probe.orientation.is_rotation or probe.format != "mov":
            return "decord does not turn or mirror this file's frames as it asks for"
        if resizes:
            return "decord resizes rotated video in another order"
    return None


class DecordDecoder:
    """Reads frames of one video through decord, and notices when it had to make something up."""

    def __init__(
        self,
        source: SourceFile,
        probe: VideoProbe,
        height: int,
        width: int,
        num_threads: int,
        finish: Callable[[Image], Image],
    ) -> None:
        """Opens the file.

        Raises:
            DecordError: decord cannot open it or sees other frames than `probe`.
        """
        decord = _decord()
        resizes = (height, width) != (probe.height, probe.width)
        size = {"height": height, "width": width} if resizes else {}
        self._shape = (height, width, 3)
        self._finish = finish
        self._watch = _ErrorWatch.shared()
        self._watch.listen(self)
        try:
            # 0 threads, decord's default, breaks VP9
            self._reader = cast(
                _DecordReader,
                decord.VideoReader(source.url, num_threads=max(1, num_threads), **size),
            )
            self._compare(probe)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            self.close()
            raise DecordError(f"decord cannot open it ({_first_line(error)})") from None
        except BaseException:
            self.close()
            raise

    def _compare(self, probe: VideoProbe) -> None:
        num_frames = len(self._reader)
        if num_frames != len(probe.times_s):
            raise DecordError(f"decord counts {num_frames} frames of {len(probe.times_s)}")
        stamps = np.asarray(self._reader.get_frame_timestamp(list(range(num_frames))))[:, 0]
        # decord may count from the first frame
        drift = (stamps - stamps[0]) - (probe.times_s - probe.times_s[0])
        if (np.abs(drift) > _TIME_TOLERANCE_S + _SINGLE_PRECISION * stamps).any():
            raise DecordError("decord shows its frames at other times")

    def read(self, wanted: Int64Array) -> Iterator[tuple[int, Image]]:
        """Decodes frames.

        Args:
            wanted: Source indices, ascending and distinct.

        Yields:
            Source index and image [H, W, 3] of each in that order.

        Raises:
            DecordError: decord failed, or its FFmpeg reported an error on the way.
        """
        for start in range(0, len(wanted), _BATCH):
            frames = wanted[start : start + _BATCH].tolist()
            yield from zip(frames, map(self._finish, self._read_batch(frames)), strict=True)

    def _read_batch(self, frames: list[int]) -> Image:
        decord = _decord()
        heard_before = self._watch.num_errors
        try:
            batch = np.asarray(self._reader.get_batch(frames).asnumpy(), dtype=np.uint8)
        except (decord.DECORDError, RuntimeError) as error:
            raise DecordError(f"decord failed ({_first_line(error)})") from None
        if self._watch.num_errors != heard_before:
            raise DecordError("decord met damage and would paint over it")
        if batch.shape != (len(frames), *self._shape):
            raise DecordError(f"decord returned frames of shape {batch.shape[1:]}")
        return batch

    def close(self) -> None:
        """Frees decord's decoder."""
        self._reader = cast(_DecordReader, None)
        self._watch.stop_listening(self)


class _ErrorWatch:
    """Counts the errors that the FFmpeg inside decord logs, which decord itself passes over.

    decord brings libraries of its own, so the hook sees nothing of PyAV's FFmpeg. Errors cannot
    be told apart by reader: with several readers at work, one's damage makes the others distrust
    their frames too, which costs time and nothing else. The hook is only set while a reader is
    open, and readers left open are closed before the interpreter ends: a thread of decord's that
    then waits for the interpreter would wait for ever.
    """

    _instance: "_ErrorWatch | None" = None

    def __init__(self) -> None:
        decord = _decord()
        folder = Path(decord.__file__).parent.with_name("decord.libs")
        libraries = sorted(folder.glob("libavutil-*.so*"))
        if len(libraries) != 1:
            raise DecordError("this build of decord cannot be watched for damage")
        self._library = ctypes.CDLL(str(libraries[0].resolve()))
        self._lock = threading.Lock()
        self._listeners: weakref.WeakSet[DecordDecoder] = weakref.WeakSet()
        self.num_errors = 0
        signature = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
        )
        self._hook = signature(self._on_message)
        decord.logging.set_level(_AV_LOG_QUIET)
        atexit.register(self._close_all)

    @classmethod
    def shared(cls) -> "_ErrorWatch":
        """The one watch of the process.

        Raises:
            DecordError: decord was built in a way that cannot be watched.
        """
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def _on_message(self, _context: int, level: int, text: int, _values: int) -> None:
        # that it paints over lost blocks is mere information to FFmpeg
        conceals = level <= _AV_LOG_INFO and ctypes.string_at(text).startswith(b"concealing")
        if level <= _AV_LOG_ERROR or conceals:
            self.num_errors += 1

    def listen(self, reader: DecordDecoder) -> None:
        with self._lock:
            self._listeners.add(reader)
            self._library.av_log_set_callback(self._hook)

    def stop_listening(self, reader: DecordDecoder) -> None:
        with self._lock:
            self._listeners.discard(reader)
            if not self._listeners:
                self._unhook()

    def _close_all(self) -> None:
        for reader in list(self._listeners):
            reader.close()
        self._unhook()

    def _unhook(self) -> None:
        self._library.av_log_set_callback(self._library.av_log_default_callback)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].rpartition("] ")[2][:120] if lines else type(error).__name__
