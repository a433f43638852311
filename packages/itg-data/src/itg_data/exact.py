"""Exact frames through PyAV, from any file that FFmpeg can decode.

A frame is the one that decoding from the start of the file would show: decoding begins only at
packets that need nothing before them, goes on to the next wanted frame or jumps to a later such
packet, and tells frames apart by their presentation time. Where packets do not tell which frame
is which, the file is decoded from the start and frames are counted.

Decoders hide damage: they paint over what is lost, and go on predicting from the painted frame.
So a frame is given only once all that it may be predicted from has come out sound. At the first
sign of damage the frames not given yet are decoded again on one thread, where every error belongs
to one packet, and a frame counts as good only if no packet from its entry point
up to its own was damaged. (What a codec decodes without complaint, nobody can tell is wrong.)
"""

from collections.abc import Callable, Iterable, Iterator

import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from itg_data.probe import Int64Array, PacketIndex, VideoProbe
from itg_data.source import SourceFile, find_video_stream, read_packets

Image = npt.NDArray[np.uint8]

# libswscale widens its filters when it shrinks, so both are free of aliasing
_INTERPOLATION = "BILINEAR"
_BT601, _BT709 = 5, 1


class DamagedError(Exception):
    """Decoding met damage; how far it reaches must be found out packet by packet."""


class RgbConverter:
    """Turns decoded frames into RGB by their own colour matrix and range, resized and upright."""

    def __init__(self, probe: VideoProbe, height: int, width: int) -> None:
        self._orientation = probe.orientation
        self._height, self._width = (
            (width, height) if probe.orientation.transpose else (height, width)
        )
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Image:
        """Converts one frame to uint8 [H, W, 3]."""
        # PyAV looks at the frame's matrix and range only if told to convert between two
        rgb = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="rgb24",
            src_colorspace=frame.colorspace,
            dst_colorspace=_BT709 if frame.colorspace == _BT601 else _BT601,
            src_color_range=frame.color_range,
            interpolation=_INTERPOLATION,
        )
        return self._orientation.apply(np.asarray(rgb.to_ndarray(), dtype=np.uint8))


class _Run:
    """One uninterrupted stretch of decoding, from an entry packet onwards."""

    def __init__(self, source: SourceFile, index: PacketIndex | None, num_threads: int) -> None:
        self._container: InputContainer = source.open_container()
        self._stream: VideoStream = find_video_stream(self._container, source.path)
        context = self._stream.codec_context
        context.thread_count = num_threads
        # threads that share a frame's slices keep damage to themselves
        context.thread_type = "FRAME" if num_threads > 1 else "NONE"
        self._index = index
        self._packets = read_packets(self._container, self._stream)
        self._held: Packet | None = None
        self.next_packet = 0
        self.ended = False

    def close(self) -> None:
        self._container.close()

    def seek(self, entry: int) -> bool:
        """Goes to an entry packet; False if the container cannot get there, then start anew."""
        if self._index is None:
            return False
        try:
            self._container.seek(int(self._index.pts[entry]), stream=self._stream)
            self._packets = read_packets(self._container, self._stream)
            for packet in self._packets:
                if packet.size == 0 or packet.pts is None:
                    return False
                places = np.flatnonzero(self._index.pts == packet.pts)
                if len(places) == 0 or places[0] > entry:
                    return False
                if places[0] == entry:
                    self._held, self.next_packet, self.ended = packet, entry, False
                    return True
        except av.error.FFmpegError:
            return False
        return False

    def step(self) -> list[VideoFrame]:
        """Decodes one packet more; the last step empties the decoder.

        Raises:
            av.error.FFmpegError: The packet is damaged, or the file cannot be read on.
        """
        packet = self._held or next(self._packets, None)
        self._held = None
        if packet is None:
            self.ended = True
            return []
        if packet.size == 0:
            self.ended = True
        else:
            self.next_packet += 1
        return [f for f in packet.decode() if isinstance(f, VideoFrame)]

    def finish(self) -> list[VideoFrame]:
        """Takes out what the decoder still holds back."""
        self.ended = True
        return self._stream.codec_context.decode(None)


class ExactDecoder:
    """Reads frames of one video through PyAV; keeps its place between calls."""

    def __init__(
        self,
        source: SourceFile,
        probe: VideoProbe,
        height: int,
        width: int,
        num_threads: int,
        finish: Callable[[Image], Image],
    ) -> None:
        self._source = source
        self._probe = probe
        self._to_rgb = RgbConverter(probe, height, width)
        self._finish = finish
        # counting only works if every pass gives the same frames, damage or not
        self._num_threads = num_threads if probe.index is not None else 1
        self._run: _Run | None = None
        self._last_frame = -1
        self._damaged = False
        self._tainted = False

    def close(self) -> None:
        """Frees the decoder."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def read(self, wanted: Int64Array) -> Iterator[tuple[int, Image]]:
        """Decodes frames.

        Args:
            wanted: Source indices, ascending and distinct.

        Yields:
            Source index and image of each in that order, but for those lost to damage.
        """
        index = self._probe.index
        if index is None:
            yield from self._read_counting(wanted)
            return
        wanted = wanted[~_hang_on_lost_packets(index, wanted)]
        num_read = 0
        if not self._damaged:
            try:
                for frame_and_image in self._read_directly(wanted, index):
                    num_read += 1
                    yield frame_and_image
            except (DamagedError, av.error.FFmpegError):
                self._damaged = True
                self.close()
        yield from self._read_warily(wanted[num_read:], index)

    def _read_directly(self, wanted: Int64Array, index: PacketIndex) -> Iterator[tuple[int, Image]]:
        """The way through a sound file: forwards, with jumps over what nobody wants."""
        entry_of = find_entries(index, wanted)
        settled = _settled_frames(index)[wanted]
        missing = set(wanted.tolist())
        images: dict[int, Image] = {}
        for frame, entry, last in zip(
            wanted.tolist(), entry_of.tolist(), settled.tolist(), strict=True
        ):
            run = self._run
            if frame in missing and (
                run is None or run.ended or frame <= self._last_frame or entry > run.next_packet
            ):
                run = self._restart(entry)
            # beyond the frame itself, until all that it may be predicted from has come out too
            while run is not None and not run.ended and self._last_frame < last:
                for place, image in self._convert_sound(run.step(), missing, index):
                    images[place] = image
            if frame not in images:
                raise DamagedError
            yield frame, images.pop(frame)

    def _convert_sound(
        self, frames: Iterable[VideoFrame], missing: set[int], index: PacketIndex
    ) -> Iterator[tuple[int, Image]]:
        for frame in frames:
            if frame.is_corrupt:
                raise DamagedError
            place = find_frame(index, frame.pts)
            if place is None:
                continue
            self._last_frame = max(self._last_frame, place)
            if place in missing:
                missing.remove(place)
                yield place, self._convert(frame)

    def _convert(self, frame: VideoFrame) -> Image:
        return self._finish(self._to_rgb(frame))

    def _restart(self, entry: int) -> _Run:
        self._last_frame = -1
        if self._run is not None and entry > 0 and self._run.seek(entry):
            return self._run
        self.close()
        self._run = self._open_run(entry, self._num_threads)
        return self._run

    def _open_run(self, entry: int, num_threads: int) -> _Run:
        """Starts decoding at an entry, or at the file's start if there is no way to seek."""
        run = _Run(self._source, self._probe.index, num_threads)
        if entry > 0 and not run.seek(entry):
            run.close()
            run = _Run(self._source, self._probe.index, num_threads)
        return run

    def _read_warily(self, wanted: Int64Array, index: PacketIndex) -> Iterator[tuple[int, Image]]:
        """The way through a damaged file: stretch by stretch, each error booked on its packet."""
        entry_of = find_entries(index, wanted)
        for entry in np.unique(entry_of).tolist():
            frames = wanted[entry_of == entry]
            packets = index.frame_packet[frames] - entry
            damaged, images = self._decode_stretch(entry, int(packets.max()) + 1, frames, index)
            spoilt = np.logical_or.accumulate(damaged)[packets]
            for frame in frames[~spoilt].tolist():
                yield frame, images.pop(frame)

    def _decode_stretch(
        self, entry: int, num_packets: int, wanted: Int64Array, index: PacketIndex
    ) -> tuple[npt.NDArray[np.bool_], dict[int, Image]]:
        """Decodes packets from an entry on, on one thread; says which of them were damaged."""
        damaged = np.zeros(num_packets, dtype=bool)
        came_out = np.zeros(num_packets, dtype=bool)
        missing, images = set(wanted.tolist()), dict[int, Image]()
        run = self._open_run(entry, num_threads=1)
        try:
            while not run.ended:
                packet = run.next_packet - entry
                try:
                    frames = run.step() if packet < num_packets else run.finish()
                except av.error.FFmpegError:
                    if run.next_packet - entry == packet:
                        break  # not the packet was bad but the file: there is no more
                    if packet >= 0:
                        damaged[packet] = True
                    continue
                for frame in frames:
                    place = find_frame(index, frame.pts)
                    owner = -1 if place is None else int(index.frame_packet[place]) - entry
                    if place is None or not 0 <= owner < num_packets:
                        continue
                    came_out[owner] = True
                    damaged[owner] |= frame.is_corrupt
                    if place in missing:
                        missing.remove(place)
                        images[place] = self._convert(frame)
        finally:
            run.close()
        expected = index.frame_packet[index.frame_pts >= index.pts[entry]] - entry
        expected = expected[(expected >= 0) & (expected < num_packets)]
        damaged[expected] |= ~came_out[expected]
        return damaged, images

    def _read_counting(self, wanted: Int64Array) -> Iterator[tuple[int, Image]]:
        """The way where packets do not name frames: decode from the start and count."""
        if self._run is None or self._run.ended or wanted[0] <= self._last_frame:
            self._restart(entry=0)
            self._tainted = False
        missing = set(wanted.tolist())
        run = self._run
        while run is not None and not run.ended and self._last_frame < wanted[-1]:
            packet = run.next_packet
            try:
                frames = run.step()
            except av.error.FFmpegError:
                if run.next_packet == packet:
                    break
                self._tainted = True
                continue
            for frame in frames:
                self._last_frame += 1
                self._tainted = (self._tainted and not frame.key_frame) or frame.is_corrupt
                if self._last_frame in missing and not self._tainted:
                    yield self._last_frame, self._convert(frame)


def find_frame(index: PacketIndex, pts: int | None) -> int | None:
    """Finds the source index of the frame shown at `pts`, if there is one."""
    if pts is None:
        return None
    place = int(np.searchsorted(index.frame_pts, pts))
    found = place < len(index.frame_pts) and index.frame_pts[place] == pts
    return place if found else None


def find_entries(index: PacketIndex, frames: Int64Array) -> Int64Array:
    """Finds, for each frame, the last packet from which decoding may start to get it exactly."""
    before = np.searchsorted(index.entries, index.frame_packet[frames], side="right") - 1
    # a frame shown before its keyframe still hangs on the stretch before
    while (
        early := (index.pts[index.entries[before]] > index.frame_pts[frames]) & (before > 0)
    ).any():
        before[early] -= 1
    return index.entries[before]


def _hang_on_lost_packets(index: PacketIndex, frames: Int64Array) -> npt.NDArray[np.bool_]:
    """[N] whether a packet that a frame may be predicted from is known to be damaged or lost."""
    before_entry = np.searchsorted(index.damaged, find_entries(index, frames), side="left")
    up_to_frame = np.searchsorted(index.damaged, index.frame_packet[frames], side="right")
    return up_to_frame > before_entry


def _settled_frames(index: PacketIndex) -> Int64Array:
    """[N] the last frame shown among those decoded no later than the frame itself."""
    shown_at = np.full(len(index.pts), -1, dtype=np.int64)
    shown_at[index.frame_packet] = np.arange(len(index.frame_packet))
    return np.maximum.accumulate(shown_at)[index.frame_packet]
