"""The one way into a video file: checked by the operating system first, then shown to FFmpeg.

FFmpeg takes names for more than files: `concat:a|b` joins, `http:` fetches, `%03d` walks a
sequence, and a text file may turn out to be a playlist that opens others. So a path is opened
here, once, and FFmpeg only ever sees `/proc/self/fd/N`: a name without meaning, for a regular
file that exists and may be read. Playlists and image sequences are refused by a list of the
container formats that hold their video themselves. (Linux only, like the rest of the workspace.)
"""

import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import av
import av.error
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from itg_data.errors import VideoError

_SELF_CONTAINED_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,nut,mxf,h264,hevc,m4v,mpegvideo,obu,"
    "rm,dv,yuv4mpegpipe,wtv,swf,vc1,apng,mp3,wav,flac,aac,aiff,w64,amr"
)
_READ_TIMEOUT_S = 60.0


class SourceFile:
    """A regular, readable, non-empty file, held open so that every decoder sees the same one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = _open_regular(self.path)

    @property
    def url(self) -> str:
        """The name under which FFmpeg opens the file, free of characters that mean anything."""
        return f"/proc/self/fd/{self._fd}"

    def open_container(self) -> InputContainer:
        """Opens the file with PyAV.

        Raises:
            VideoError: It is no video, or one too broken to be opened.
        """
        options = {
            "format_whitelist": _SELF_CONTAINED_FORMATS,
            "protocol_whitelist": "file",
        }
        try:
            return av.open(
                self.url,
                "r",
                container_options=options,
                metadata_errors="replace",
                timeout=_READ_TIMEOUT_S,
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(self.path, f"not a readable video ({explain(error)})") from None

    def close(self) -> None:
        """Lets go of the file; decoders opened from it must be closed before."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def explain(error: BaseException) -> str:
    """Puts an FFmpeg error into one line without the name that FFmpeg knew the file by."""
    if isinstance(error, av.error.FFmpegError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def find_video_stream(container: InputContainer, path: str) -> VideoStream:
    """Picks the stream that players show; cover art does not count as video."""
    moving = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not moving:
        raise VideoError(path, "has no video stream")
    best = container.streams.best("video")
    stream = next((s for s in moving if best is not None and s.index == best.index), moving[0])
    if getattr(stream, "codec_context", None) is None:
        raise VideoError(path, "its video is in a codec that FFmpeg cannot decode")
    return stream


def read_packets(container: InputContainer, *streams: VideoStream) -> Iterator[Packet]:
    """Yields the packets of streams, or of all, then an empty one each to empty the decoders.

    Raises:
        av.error.FFmpegError: The file cannot be read on.
    """
    while True:
        try:
            yield from container.demux(*streams)
        except IndexError:
            # PyAV stumbles over streams that damage makes FFmpeg see halfway through a file;
            # the packet is lost, and was of none that we know
            continue
        return


def read_annex_b(
    container: InputContainer, stream: VideoStream, first_pts: int
) -> Iterator[Packet]:
    """Yields packets from a time on with start codes and parameter sets, as hardware takes them.

    Args:
        container: Read from wherever it stands.
        stream: H.264 or HEVC.
        first_pts: Of the packet to begin with, in the stream's ticks.

    Raises:
        av.error.FFmpegError: The file cannot be read on, or holds no such packet.
    """
    annex_b = BitStreamFilterContext(f"{stream.codec_context.name}_mp4toannexb", stream)
    container.seek(first_pts, stream=stream)
    started = False
    for packet in read_packets(container, stream):
        started |= packet.pts == first_pts
        if started and packet.size:
            yield from annex_b.filter(packet)
    if not started:
        raise av.error.EOFError(errno.EIO, f"no packet at {first_pts}")


def _open_regular(path: str) -> int:
    """Opens a regular, non-empty file for reading; a pipe or a device cannot make it wait."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = {errno.ENOENT: "no such file"}.get(error.errno or 0, error.strerror or str(error))
        raise VideoError(path, reason) from None
    except ValueError as error:
        raise VideoError(path, str(error)) from None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size > 0:
        return fd
    os.close(fd)
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(path, "is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, "is not a regular file")
    raise VideoError(path, "is empty")
