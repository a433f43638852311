"""The pictures of one video that annotators are shown, from a single pass of the decoder.

A video is cut into clips of five seconds. Captions look at `per_clip` frames of a clip, spread over
it; localisation and the check look at one frame for every second. Both are taken when the decoder
passes the clip, as JPEG, into an unnamed file on disk: whoever comes later, in whatever order,
reads them there, and memory holds no more than the clip at hand. A frame costs 3 ms from 720p, so
captions make do with a second's frame where it lies within a quarter of a second. Nothing is
decoded that nobody asks for: a run that is resumed decodes what it still needs.

The frame of second `s` is the first one shown at or after `s`. (The reference takes every
`round(fps)`-th frame, which drifts by a second in 17 minutes at 29.97 frames a second, and much
more at odd rates.)
"""

import asyncio
import hashlib
import io
import math
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from itg_data.annotate.desk import UnansweredError
from itg_data.errors import VideoError
from itg_data.records import TIME_TOLERANCE_S
from itg_data.source import SourceFile
from itg_data.video import VideoReader, open_video

CLIP_S = 5
MAX_DURATION_S = 48 * 3600
"""What is longer is taken for a file whose times are wrong: one bad timestamp is enough."""
_JPEG_QUALITY = 85
_NEARBY_S = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureConfig:
    """Which frames are shown, and how large."""

    per_clip: int = 8
    """Frames of a clip that a caption is made from."""

    image_size: int = 448
    """Longer side of the pictures in pixels; smaller frames stay as they are."""

    def __post_init__(self) -> None:
        if self.per_clip < 1:
            raise ValueError(f"per_clip must be >= 1, got {self.per_clip}")
        if self.image_size < 16:
            raise ValueError(f"image_size must be >= 16, got {self.image_size}")


class Decoders:
    """The threads that decode, shared by all videos under way.

    Args:
        executor: Runs one decoder in each of its threads.
        num_decoders: How many videos are decoded at the same time.
        num_threads: Threads of one decoder; 0 for one per core.
    """

    def __init__(self, executor: Executor, num_decoders: int, num_threads: int = 1) -> None:
        self.executor = executor
        self.num_threads = num_threads
        self.places = asyncio.Semaphore(num_decoders)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Which source frames stand for clips and for seconds."""

    sha256: str
    start_s: float
    duration_s: float
    second_idx: npt.NDArray[np.int64]
    """[num_seconds] the frame of each second."""
    began_in: npt.NDArray[np.int64]
    """[num_seconds] the second in which that frame was first shown."""
    clip_idx: tuple[npt.NDArray[np.int64], ...]
    """For each clip, the frames that its caption is made from."""


class VideoPictures:
    """The pictures of one video. Get it from `open_pictures`, and close it.

    Attributes:
        start_s: When the first frame is shown, on the file's own clock; seconds count from here.
        duration_s: From there to the end of the last frame.
        num_clips: Clips of five seconds, the last one perhaps shorter.
        num_seconds: The last second may be shorter, too.
    """

    def __init__(
        self,
        reader: VideoReader,
        layout: _Layout,
        config: PictureConfig,
        decoders: Decoders,
        spool_dir: Path,
    ) -> None:
        self.start_s = layout.start_s
        self.duration_s = layout.duration_s
        self.num_clips = len(layout.clip_idx)
        self.num_seconds = len(layout.second_idx)
        self._path = reader.path
        self._reader: VideoReader | None = reader
        self._layout = layout
        self._config = config
        self._decoders = decoders
        self._spool = tempfile.TemporaryFile(dir=spool_dir)  # noqa: SIM115, closed by close
        self._place_of: dict[int, tuple[int, int]] = {}
        self._wanted: deque[int] = deque()
        self._taken: dict[int, asyncio.Future[None]] = {}
        self._pass: asyncio.Task[None] | None = None

    def of_clip(self, clip: int) -> "Pictures":
        """Gives the pictures that a clip's caption is made from."""
        return Pictures(self, self._layout.clip_idx[clip].tolist(), (clip,))

    def of_seconds(self, seconds: Sequence[int]) -> "Pictures":
        """Gives one picture for each second."""
        clips = dict.fromkeys(second // CLIP_S for second in seconds)
        return Pictures(self, self._layout.second_idx[list(seconds)].tolist(), tuple(clips))

    def source_idx_of(self, second: int) -> int:
        """Says which frame stands for a second."""
        return int(self._layout.second_idx[second])

    def add_beginnings(self, seconds: Sequence[int]) -> tuple[int, ...]:
        """Adds the seconds in which the frames of some seconds were first shown; ascending.

        Where a frame stays on screen, no frame begins in the seconds that it stays, and whoever
        looks for frames by their times finds none there.
        """
        began = self._layout.began_in[list(seconds)].tolist()
        return tuple(sorted({*seconds, *began}))

    def identify(self, source_idx: int) -> str:
        """Names a picture by all that decides its pixels."""
        size = self._config.image_size
        return f"{self._layout.sha256}/{source_idx}/{size}px/jpeg{_JPEG_QUALITY}"

    def has(self, source_idx: int) -> bool:
        """Whether a frame of a clip that was decoded is there; it is not where it was lost."""
        return source_idx in self._place_of

    def read(self, source_idx: int) -> bytes:
        """Reads the JPEG of a frame that is there."""
        place, size = self._place_of[source_idx]
        return os.pread(self._spool.fileno(), size, place)

    async def decode(self, clips: Sequence[int]) -> None:
        """Returns when the frames of clips were taken, or turned out to be lost."""
        loop = asyncio.get_running_loop()
        for clip in clips:
            if clip not in self._taken:
                self._taken[clip] = loop.create_future()
                self._wanted.append(clip)
        if self._wanted and (self._pass is None or self._pass.done()):
            self._pass = asyncio.create_task(self._decode_wanted())
        for clip in clips:
            # shielded: whoever gives up waiting must not take the frames from the others
            await asyncio.shield(self._taken[clip])

    async def close(self) -> None:
        """Stops decoding and lets go of the files."""
        self._wanted.clear()
        try:
            if self._pass is not None:
                await asyncio.wait([self._pass])
            for taken in self._taken.values():
                taken.cancel()
            await self._close_reader()
        finally:
            # also where a run that ends has no patience left for all that
            self._spool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _decode_wanted(self) -> None:
        """One pass over the clips that are wanted now, and those that come to be on the way."""
        loop = asyncio.get_running_loop()
        async with self._decoders.places:
            try:
                while self._wanted:
                    await loop.run_in_executor(self._decoders.executor, self._take_wanted, loop)
                    # clips may come to be wanted while the file is being closed: hence in the loop
                    if not self._wanted:
                        await self._close_reader()
            except Exception as error:
                self._wanted.clear()
                for taken in self._taken.values():
                    if not taken.done():
                        taken.set_exception(error)

    async def _close_reader(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._decoders.executor, reader.close)

    def _take_wanted(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a decoder's thread until nothing is wanted, without going back to the loop."""
        if self._reader is None:
            self._reader = _open(self._path, self._config, self._decoders.num_threads)
        while True:
            try:
                clip = self._wanted.popleft()
            except IndexError:
                return
            self._take(clip, self._reader)
            loop.call_soon_threadsafe(_resolve, self._taken[clip])

    def _take(self, clip: int, reader: VideoReader) -> None:
        seconds = self._layout.second_idx[clip * CLIP_S : (clip + 1) * CLIP_S]
        wanted = np.union1d(self._layout.clip_idx[clip], seconds)
        try:
            batch = reader.read(wanted)
        except VideoError:
            return  # none of them can be decoded: all are lost
        for source_idx, frame in zip(batch.source_idx.tolist(), batch.frames, strict=True):
            if source_idx not in self._place_of:
                jpeg = encode_jpeg(frame)
                place = self._spool.seek(0, os.SEEK_END)
                self._spool.write(jpeg)
                self._spool.flush()
                self._place_of[source_idx] = (place, len(jpeg))


class Pictures:
    """Some pictures of a video, to be fetched when they are needed.

    Attributes:
        names: What identifies each.
    """

    def __init__(self, video: VideoPictures, source_idx: list[int], clips: tuple[int, ...]) -> None:
        self.names = tuple(video.identify(idx) for idx in source_idx)
        self._video = video
        self._source_idx = source_idx
        self._clips = clips

    async def wait(self) -> None:
        """Has them decoded.

        Raises:
            LostPictureError: The file is damaged and one of them is lost.
        """
        await self._video.decode(self._clips)
        if not all(map(self._video.has, self._source_idx)):
            detail = f"frames of clip {self._clips[0]} or later are lost"
            raise LostPictureError("unreadable_video", detail)

    def read(self) -> list[bytes]:
        """Reads them as JPEG, in the order of time, once they were waited for."""
        return [self._video.read(idx) for idx in self._source_idx]


class LostPictureError(UnansweredError):
    """A picture is lost to damage in the file, so what needs it cannot be asked."""


async def open_pictures(
    path: Path, config: PictureConfig, decoders: Decoders, spool_dir: Path
) -> VideoPictures:
    """Opens a video for its pictures; nothing is decoded yet.

    Args:
        path: The file.
        config: Which frames, how large.
        decoders: Who decodes.
        spool_dir: Folder on a disk with room for the pictures, some 0.1 MB a second of video.

    Raises:
        VideoError: The file is no readable video.
    """

    def open_and_lay_out() -> tuple[VideoReader, _Layout]:
        sha256 = _hash_file(path)
        reader = _open(str(path), config, decoders.num_threads)
        try:
            require_credible_length(reader)
            return reader, _lay_out(reader, sha256, config.per_clip)
        except BaseException:
            reader.close()
            raise

    loop = asyncio.get_running_loop()
    reader, layout = await loop.run_in_executor(decoders.executor, open_and_lay_out)
    return VideoPictures(reader, layout, config, decoders, spool_dir)


def encode_jpeg(frame: npt.NDArray[np.uint8]) -> bytes:
    """Encodes a frame, [H, W, 3] RGB, the way annotators get it."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def count_clips(duration_s: float, clip_s: int = CLIP_S) -> int:
    """Counts the clips of a video."""
    return max(1, math.ceil(math.ceil(duration_s - TIME_TOLERANCE_S) / clip_s))


def require_credible_length(reader: VideoReader) -> None:
    """Refuses a video whose clips nobody could number.

    Raises:
        VideoError: Its frames say that it lasts for days.
    """
    if not reader.duration_s <= MAX_DURATION_S:
        raise VideoError(
            reader.path,
            f"its times say that its {reader.num_frames} frames last {reader.duration_s:.6g} s, "
            f"at most {MAX_DURATION_S} s are believed",
        )


def _lay_out(reader: VideoReader, sha256: str, per_clip: int) -> _Layout:
    times_s = reader.times_s(range(reader.num_frames))
    start_s = float(times_s[0])
    seconds = np.arange(max(1, math.ceil(reader.duration_s - TIME_TOLERANCE_S)), dtype=np.float64)
    clips: list[npt.NDArray[np.int64]] = []
    for clip in range(count_clips(reader.duration_s)):
        length_s = min(CLIP_S, reader.duration_s - clip * CLIP_S)
        spread_s = np.arange(per_clip, dtype=np.float64) * (length_s / per_clip)
        # what is taken for a second anyway will do for a time nearby
        near = np.abs(spread_s - np.round(spread_s)) <= _NEARBY_S
        near &= np.round(spread_s) < length_s
        wanted_s = clip * CLIP_S + np.where(near, np.round(spread_s), spread_s)
        clips.append(np.unique(_frames_at(times_s - start_s, wanted_s)))
    second_idx = _frames_at(times_s - start_s, seconds)
    began_s = np.minimum(times_s[second_idx] - start_s + TIME_TOLERANCE_S, seconds)
    return _Layout(
        sha256=sha256,
        start_s=start_s,
        duration_s=reader.duration_s,
        second_idx=second_idx,
        began_in=np.floor(began_s).astype(np.int64),
        clip_idx=tuple(clips),
    )


def _frames_at(
    times_s: npt.NDArray[np.float64], wanted_s: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Finds the first frame shown at or after each time; the last one where there is none.

    Where a frame stays for more than a second, the one after would come too late to stand for the
    second that it is wanted for: there it is the frame that is on screen.
    """
    after = np.searchsorted(times_s, wanted_s - TIME_TOLERANCE_S, side="left")
    after = np.minimum(after, len(times_s) - 1)
    late = (times_s[after] >= wanted_s + 1) & (after > 0)
    return np.where(late, after - 1, after).astype(np.int64)


def _open(path: str, config: PictureConfig, num_threads: int) -> VideoReader:
    return open_video(path, resize_to=config.image_size, num_threads=num_threads)


def _hash_file(path: Path) -> str:
    with SourceFile(path) as source, Path(source.url).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _resolve(taken: asyncio.Future[None]) -> None:
    if not taken.done():
        taken.set_result(None)
