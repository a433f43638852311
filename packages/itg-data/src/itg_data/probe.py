"""What a video file holds, learnt by reading its packets without decoding them.

Headers lie about frame counts, and decord, fast as it is, returns wrong frames from some files
without a word. The packets tell: how many frames are shown, when, and from which of them decoding
may start without looking back. From that follows how a file can be read exactly, and whether
decord can be trusted with it. Cost: one read of the file, no decoding but the first frame.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from itg_data.errors import VideoError
from itg_data.source import SourceFile, explain, find_video_stream, read_packets
from itg_data.times import complete_times, decode_times

Int64Array = npt.NDArray[np.int64]

# Elsewhere (AVI, MPEG program streams, raw streams) packets carry no presentation time of
# their own, or not all of them, and what FFmpeg makes up need not be what its decoder says.
_TIMED_FORMATS = frozenset({"mov", "matroska", "mpegts", "flv", "nut", "ivf"})
# A keyframe of these needs nothing before it. H.264 and HEVC are told by their NAL units.
_CLEAN_KEYFRAME_CODECS = frozenset(
    {"vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "ffv1", "mjpeg", "prores", "dnxhd"}
)

_FULL_RANGE = 2

# Between Matroska's packets lie a few bytes, at most a cluster's header; damage skips far more.
_LARGEST_BLOCK_HEADER = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """How decoded pixels are turned and mirrored to be shown: transpose first, then the flips."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def is_rotation(self) -> bool:
        """Whether it is one of the four rotations, without mirroring."""
        return (self.transpose + self.flip_x + self.flip_y) % 2 == 0

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turns an [H, W, 3] image; returns a view."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class PacketIndex:
    """Which packet holds which frame. P packets in decoding order, N frames in showing order."""

    pts: Int64Array
    """[P] presentation time of each packet in units of the stream's time base; distinct."""
    entries: Int64Array
    """[E] packets at which decoding may start: what is shown after them never looks back."""
    frame_pts: Int64Array
    """[N] presentation time of each frame, ascending."""
    frame_packet: Int64Array
    """[N] the packet of each frame."""
    damaged: Int64Array
    """[D] packets known to be damaged, or lost behind, without decoding; ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoProbe:
    """All that is known of a video before its frames are asked for."""

    path: str
    format: str
    codec: str
    pix_fmt: str
    color_matrix: int
    """FFmpeg's number: 1 for BT.709, 5 or 6 for BT.601, 2 if the file does not say."""
    full_range: bool
    """Whether luma takes all 256 levels instead of 16 to 235."""
    interlaced: bool
    fps: float
    duration_s: float
    height: int
    """As shown, after turning."""
    width: int
    orientation: Orientation
    index: PacketIndex | None
    """None if the packets do not tell which frame is which; then only decoding does."""
    times_s: npt.NDArray[np.float64]
    """[N] original presentation time of every frame, strictly ascending."""
    oddities: tuple[str, ...]
    """What sets the file apart from the plain case, for `decord_refusal` and for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What the container says; the rate and the counts in it are claims."""

    format: str
    codec: str
    num_video_streams: int
    time_base: Fraction
    rate: float


@dataclass(kw_only=True, slots=True)
class _Packets:
    """What the demux pass saw, in decoding order."""

    pts: list[int | None] = field(default_factory=list[int | None])
    keyframe: list[bool] = field(default_factory=list[bool])
    entry: list[bool] = field(default_factory=list[bool])
    """Keyframes from which decoding may start."""
    shown: list[bool] = field(default_factory=list[bool])
    last_duration: int = 0
    num_hidden: int = 0
    """Packets whose frame, by the codec's own rule (VP8, VP9), is decoded but not shown."""
    corrupt: list[int] = field(default_factory=list[int])
    """Packets that the demuxer marks as damaged."""
    after_gap: list[int] = field(default_factory=list[int])
    """Packets before which bytes of the file belong to no packet at all."""
    error: str | None = None
    """Why the file could not be read on, if it could not."""


def probe_video(source: SourceFile) -> VideoProbe:
    """Reads a file's packets and first frame.

    Raises:
        VideoError: The file is no video or not one frame of it can be decoded.
    """
    with closing(source.open_container()) as container:
        stream = find_video_stream(container, source.path)
        header = _Header(
            format=container.format.name.split(",")[0],
            codec=_codec_name(stream),
            num_video_streams=len(container.streams.video),
            time_base=stream.time_base or Fraction(1, 90_000),
            rate=float(stream.average_rate or stream.guessed_rate or 0),
        )
        packets = _demux(container, stream, header.codec)
    if not any(packets.shown):
        reason = packets.error or "the file may be cut off"
        raise VideoError(source.path, f"holds no video frames ({reason})")
    first = _first_frame(source)
    index, oddities = _build_index(packets, header)
    if index is not None:
        ticks = header.time_base
        # in floating point: integers would wrap around where a file claims absurd times
        claimed_s = (index.frame_pts * float(ticks.numerator) / ticks.denominator).tolist()
    else:
        claimed_s = decode_times(source)
    times_s, odd_times = complete_times(claimed_s, 1 / (header.rate or 1.0), source.path)
    orientation = _orientation(first)
    height, width = first.height, first.width
    if orientation.transpose:
        height, width = width, height
    fps, duration_s = _rate(times_s, header, packets)
    return VideoProbe(
        path=source.path,
        format=header.format,
        codec=header.codec,
        pix_fmt=first.format.name,
        color_matrix=first.colorspace,
        full_range=first.color_range == _FULL_RANGE or first.format.name.startswith("yuvj"),
        interlaced=first.interlaced_frame,
        fps=fps,
        duration_s=duration_s,
        height=height,
        width=width,
        orientation=orientation,
        index=index,
        times_s=times_s,
        oddities=(*oddities, *odd_times),
    )


def _codec_name(stream: VideoStream) -> str:
    return {"libdav1d": "av1", "libvpx-vp9": "vp9"}.get(
        stream.codec_context.name, stream.codec_context.name
    )


def _demux(container: InputContainer, stream: VideoStream, codec: str) -> _Packets:
    extradata = stream.codec_context.extradata or b""
    seen = _Packets()
    end_of_last: int | None = None
    try:
        for packet in read_packets(container):
            if packet.size == 0:
                continue
            skipped = packet.pos - end_of_last if packet.pos and end_of_last else 0
            end_of_last = packet.pos + packet.size if packet.pos else None
            if packet.stream_index != stream.index:
                continue
            is_hidden = _is_hidden(packet, codec)
            if packet.is_corrupt:
                seen.corrupt.append(len(seen.pts))
            if skipped > _LARGEST_BLOCK_HEADER:
                seen.after_gap.append(len(seen.pts))
            seen.pts.append(packet.pts)
            seen.keyframe.append(packet.is_keyframe)
            seen.entry.append(packet.is_keyframe and _is_entry(packet, codec, extradata))
            seen.shown.append(not (packet.is_discard or is_hidden))
            seen.last_duration = packet.duration or 0
            seen.num_hidden += is_hidden
    except av.error.FFmpegError as failure:
        seen.error = explain(failure)
    return seen


def _is_hidden(packet: Packet, codec: str) -> bool:
    """Whether the codec's own header says that the packet's frame is not to be shown."""
    if codec not in ("vp8", "vp9"):
        return False
    data = memoryview(packet)
    if codec == "vp8":
        return not data[0] & 0x10
    if data[-1] & 0xE0 == 0xC0:  # a superframe ends with one that is shown
        return False
    # frame marker (2 bits), profile (2, and 1 reserved if 3), show existing, frame type, show
    last = 0 if data[0] & 0x30 == 0x30 else 1
    return not (data[0] >> last & 1 or data[0] >> (last + 2) & 1)


def _is_entry(packet: Packet, codec: str, extradata: bytes) -> bool:
    """Whether decoding from this keyframe gives every frame shown at or after it exactly."""
    if codec in _CLEAN_KEYFRAME_CODECS:
        return True
    if codec == "h264":
        # only IDR pictures: an I picture with a recovery point may need time to recover
        return any(unit[0] & 0x1F == 5 for unit in _nal_units(bytes(packet), extradata, 4))
    if codec == "hevc":
        return any(
            16 <= unit[0] >> 1 & 0x3F <= 21 for unit in _nal_units(bytes(packet), extradata, 21)
        )
    return False


def _nal_units(data: bytes, extradata: bytes, size_field: int) -> Iterator[bytes]:
    """Yields the first byte of each NAL unit, whether length-prefixed (mp4) or with start codes."""
    if extradata[:1] == b"\x01" and len(extradata) > size_field:
        width = (extradata[size_field] & 3) + 1
        at = 0
        while at + width < len(data):
            yield data[at + width : at + width + 1]
            at += width + int.from_bytes(data[at : at + width], "big")
        return
    at = data.find(b"\x00\x00\x01")
    while 0 <= at < len(data) - 3:
        yield data[at + 3 : at + 4]
        at = data.find(b"\x00\x00\x01", at + 3)


def _build_index(packets: _Packets, header: _Header) -> tuple[PacketIndex | None, list[str]]:
    """Finds the frames among the packets and what is odd about them."""
    oddities: list[str] = []
    known = [t for t in packets.pts if t is not None]
    shown = np.array(packets.shown, dtype=bool)
    if header.num_video_streams > 1:
        oddities.append(f"has {header.num_video_streams} video streams")
    if packets.error:
        oddities.append(f"breaks off ({packets.error})")
    if packets.corrupt:
        oddities.append(f"has {len(packets.corrupt)} damaged packets")
    if packets.num_hidden:
        oddities.append(f"has {packets.num_hidden} hidden frames in packets of their own")
    if len(known) < len(packets.pts):
        oddities.append("has packets without a timestamp")
    elif len(set(known)) < len(known):
        oddities.append("has packets with equal timestamps")
    if header.format not in _TIMED_FORMATS:
        oddities.append(f"is in a container without presentation times ({header.format})")
    if len(set(known)) < len(packets.pts) or header.format not in _TIMED_FORMATS:
        return None, oddities
    pts = np.array(known, dtype=np.int64)
    discarded = int((~shown).sum()) - packets.num_hidden
    if discarded or pts.min() < 0:
        oddities.append(f"has an edit list ({discarded} frames not shown)")
    entries = np.flatnonzero(np.array(packets.entry, dtype=bool))
    if not packets.entry[0]:
        oddities.append("does not start with a clean keyframe")
        entries = np.concatenate([np.zeros(1, dtype=np.int64), entries])
    if sum(packets.keyframe) != sum(packets.entry):
        oddities.append("has keyframes that need frames before them (open GOP or intra refresh)")
    elif _has_leading_pictures(pts, entries):
        oddities.append("has frames shown before the keyframe that they follow (open GOP)")
    holes = _find_holes(pts, packets.after_gap) if header.format == "matroska" else []
    if holes:
        oddities.append(f"has lost packets in {len(holes)} places")
    frame_packet = np.flatnonzero(shown)
    frame_packet = frame_packet[np.argsort(pts[frame_packet], kind="stable")]
    index = PacketIndex(
        pts=pts,
        entries=entries.astype(np.int64),
        frame_pts=pts[frame_packet],
        frame_packet=frame_packet.astype(np.int64),
        # the packet before a hole may hold bytes from behind it
        damaged=np.array(sorted({*packets.corrupt, *(at - 1 for at in holes)}), dtype=np.int64),
    )
    return index, oddities


def _find_holes(pts: Int64Array, after_gap: list[int]) -> list[int]:
    """Finds where a damaged Matroska file was read on further behind, which FFmpeg does in silence.

    Bytes that belong to no packet may be a sound file's own affair, such as tags or transparency;
    where time jumps as well, packets are lost.
    """
    usual_step = float(np.median(np.diff(np.sort(pts)))) if len(pts) > 1 else 0.0
    return [at for at in after_gap if at and pts[at] - pts[:at].max() > 1.5 * usual_step]


def _has_leading_pictures(pts: Int64Array, entries: Int64Array) -> bool:
    lowest_from_here = np.minimum.accumulate(pts[::-1])[::-1]
    return bool((lowest_from_here[entries] < pts[entries]).any())


def _first_frame(source: SourceFile) -> VideoFrame:
    """Decodes the first frame that can be decoded; its size and orientation are the video's."""
    failure: str | None = None
    with closing(source.open_container()) as container:
        stream = find_video_stream(container, source.path)
        try:
            for packet in read_packets(container, stream):
                try:
                    for frame in packet.decode():
                        if isinstance(frame, VideoFrame):
                            return frame
                except av.error.FFmpegError as error:
                    failure = failure or explain(error)
        except av.error.FFmpegError as error:
            failure = failure or explain(error)
    raise VideoError(source.path, f"not one frame can be decoded ({failure or 'no data'})")


def _orientation(frame: VideoFrame) -> Orientation:
    """Reads the display matrix, which PyAV does not apply; other angles than 90s are ignored."""
    # PyAV's type stub calls this a dictionary; it is a list of blobs
    for data in cast(Iterable[SideData], frame.side_data):
        if data.type is SideDataType.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
            # x' = a x + c y, y' = b x + d y
            if abs(b) > abs(a) and abs(c) > abs(d):
                return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)
            return Orientation(flip_x=a < 0, flip_y=d < 0)
    return Orientation()


def _rate(
    times_s: npt.NDArray[np.float64], header: _Header, packets: _Packets
) -> tuple[float, float]:
    """Average frames per second and duration; the header's rate only where the frames agree."""
    claimed = header.rate
    num_frames = len(times_s)
    span_s = float(times_s.max() - times_s.min())
    if span_s > 0:
        measured = (num_frames - 1) / span_s
        fps = claimed if abs(claimed - measured) <= 0.05 * measured else measured
    else:
        fps = claimed or 1.0
    tail_s = packets.last_duration * float(header.time_base) or 1 / fps
    return fps, span_s + tail_s
