"""Frames decoded by the GPU's own decoders, which stay on the GPU for the network.

A second way to what `itg_data.video` gives, chosen by name: several NVDEC sessions decode the
stretches between entry packets, fed with the file's packets, so frames are told apart by their
presentation times just as on the CPU. Colours follow libswscale's integer arithmetic to the bit,
and the squash is PIL's filter to the bit.

NVDEC says nothing of damage, so it is no replacement for the CPU. Refused is what is not known to
come out the same: other codecs than H.264 and HEVC with 8 bits 4:2:0, other colour matrices than
BT.601 and BT.709, interlaced frames, odd sizes, packets that do not name their frames, packets that
are known to be damaged, files that break off or do not start with a clean keyframe. Edit lists,
open GOPs and further streams are read. One frame of every stream is compared with the CPU's. It is
in this package because frames are torch tensors.

Needs the extra `itg-model[nvdec]`.
"""

import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import VideoError
from itg_data.exact import find_entries, find_frame
from itg_data.probe import Orientation, PacketIndex, VideoProbe
from itg_data.source import find_video_stream, read_annex_b
from itg_data.stream import ChunkStream
from itg_data.video import VideoReader, open_video
from itg_kernels.frames import nv12_to_rgb, squash_frames
from torch import Tensor

from itg_model.nvdec_sessions import (
    CODECS,
    DEFAULT_SESSIONS,
    SessionKind,
    explain_missing,
    sessions,
    start_session,
)
from itg_model.upload import GpuFrameBatch, SideStream

_PIX_FMTS = ("yuv420p", "yuvj420p")
# crv, cbu, cgu, cgv in 16.16, as libswscale names them; by FFmpeg's number of the matrix
_BT601 = (104597, 132201, 25675, 53279)
_BT709 = (117489, 138438, 13975, 34925)
_MATRICES = {1: _BT709, 2: _BT601, 5: _BT601, 6: _BT601}
# Reads the frame to compare with while NVDEC starts; ends with the interpreter.
_background = ThreadPoolExecutor(1, thread_name_prefix="itg-nvdec")

# Of RGB at the frames' own size, before the squash.
_MAX_CONVERT_BYTES = 256 * 1024**2


class NvdecReader:
    """An open video file, read by NVDEC. Use `open_nvdec`."""

    def __init__(self, cpu: VideoReader, device: torch.device) -> None:
        self.path = cpu.path
        self.probe = cpu.probe
        self.backend = "nvdec"
        self.num_frames = cpu.num_frames
        self.fps = cpu.fps
        self.height = cpu.height
        self.width = cpu.width
        self.duration_s = cpu.duration_s
        self._cpu = cpu
        self._device = device
        self._streams: weakref.WeakSet[NvdecStream] = weakref.WeakSet()

    def times_s(
        self, source_idx: Sequence[int] | npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float64]:
        """Returns the original presentation times of frames, [N] in seconds, without decoding."""
        return self._cpu.times_s(source_idx)

    def stream(
        self,
        source_idx: Sequence[int] | npt.NDArray[np.integer],
        chunk_size: int,
        *,
        size: int | None = None,
        ordered: bool = True,
        num_workers: int = 0,
    ) -> "NvdecStream":
        """Reads frames in chunks, as `VideoReader.stream` does; workers are NVDEC sessions."""
        wanted = self._cpu.check_stream(source_idx, chunk_size, size, num_workers)
        return NvdecStream(self._cpu, wanted, chunk_size, size, self._device, ordered, num_workers)

    def close(self) -> None:
        """Frees the file; close streams before."""
        self._cpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NvdecStream(ChunkStream[Tensor]):
    """An iterator of chunks on the GPU."""

    def __init__(
        self,
        cpu: VideoReader,
        wanted: npt.NDArray[np.int64],
        chunk_size: int,
        size: int | None,
        device: torch.device,
        ordered: bool,
        num_workers: int,
    ) -> None:
        self._size = size
        self._path = cpu.path
        probe = cpu.probe
        self._matrix = find_matrix(probe)
        self._compared = _cheapest_frame(probe, wanted)
        self._expected = _background.submit(cpu.read, [self._compared]) if len(wanted) else None
        height, width = probe.height, probe.width
        self._side = SideStream(device)
        self._convert_together = max(1, _MAX_CONVERT_BYTES // (height * width * 3))
        self._empty = torch.empty(
            (0, *((height, width) if size is None else (size, size)), 3),
            dtype=torch.uint8,
            device=device,
        )
        super().__init__(
            probe,
            wanted,
            chunk_size,
            lambda _: NvdecDecoder(cpu, device),
            image_shape=_planes_shape(probe),
            ordered=ordered,
            num_workers=num_workers or DEFAULT_SESSIONS,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GpuFrameBatch:
        chunk = self.take()
        if chunk is None:
            raise StopIteration
        source_idx, surfaces, lost = chunk
        if self._compared in source_idx:
            self._compare(surfaces[source_idx.tolist().index(self._compared)])
        if self._compared in lost:
            self._give_up(f"nvdec did not show frame {self._compared}")
        return GpuFrameBatch(
            frames=self._side.hand_over(self._convert(surfaces)),
            source_idx=source_idx,
            time_s=self.probe.times_s[source_idx],
            missing_source_idx=lost,
            source_height=self.probe.height,
            source_width=self.probe.width,
        )

    def _convert(self, surfaces: list[Tensor]) -> Tensor:
        """NV12 planes [H * 3 / 2, W] of frames to [N, S, S, 3]; on the stream beside."""
        groups = [
            surfaces[i : i + self._convert_together]
            for i in range(0, len(surfaces), self._convert_together)
        ]
        with self._side.queue():
            frames = [self._finish(torch.stack(group), self._size) for group in groups]
            if len(frames) != 1:
                frames = [torch.cat([self._empty, *frames])]
        # made on the sessions' streams, which would take the memory for their next frames
        self._side.borrow(surfaces)
        return frames[0]

    def _finish(self, nv12: Tensor, size: int | None) -> Tensor:
        rgb = turn(nv12_to_rgb(nv12, self._matrix), self.probe.orientation)
        return (rgb if size is None else squash_frames(rgb, size)).contiguous()

    def _compare(self, nv12: Tensor) -> None:
        """Holds a frame against the CPU's, which tells wrong colours, fields and crops."""
        assert self._expected is not None, "submitted with the first frame"
        with self._side.queue():
            shown = self._finish(nv12[None], size=None).cpu().numpy()
        if not np.array_equal(shown, self._expected.result().frames):
            self._give_up(f"nvdec shows frame {self._compared} differently from the CPU")

    def close(self) -> None:
        """Stops the threads and waits for them; iterating afterwards ends at once."""
        super().close()
        # read from the file that is closed next
        if self._expected is not None and not self._expected.cancel():
            wait([self._expected])

    def _give_up(self, reason: str) -> NoReturn:
        self.close()
        # whatever it was, no other video shall meet it
        sessions.clear()
        raise VideoError(self._path, reason)


class NvdecDecoder:
    """Reads NV12 frames of one video through an NVDEC session, used by one thread."""

    def __init__(self, cpu: VideoReader, device: torch.device) -> None:
        index = cpu.probe.index
        assert index is not None, "refused by open_nvdec"
        self._index: PacketIndex = index
        self._path = cpu.path
        self._planes_shape = _planes_shape(cpu.probe)
        torch.cuda.set_device(device)
        self._container = cpu.source.open_container()
        try:
            self._stream = find_video_stream(self._container, cpu.path)
            context = self._stream.codec_context
            self._kind = SessionKind(
                device=torch.cuda.current_device(),
                codec=cpu.probe.codec,
                height=context.height,
                width=context.width,
                parameter_sets=bytes(context.extradata or b""),
            )
            self._session = sessions.take(self._kind) or start_session(self._kind)
        except BaseException:
            self._container.close()
            raise

    def read(self, wanted: npt.NDArray[np.int64]) -> Iterator[tuple[int, Tensor]]:
        """Decodes frames.

        Args:
            wanted: Source indices, ascending and distinct.

        Yields:
            Source index of each, ascending as a session shows them, and its NV12 planes
            [H * 3 / 2, W].

        Raises:
            VideoError: A frame is of another size than the first.
        """
        entry_of = find_entries(self._index, wanted)
        for entry in np.unique(entry_of).tolist():
            missing = set(wanted[entry_of == entry].tolist())
            for packet in read_annex_b(self._container, self._stream, int(self._index.pts[entry])):
                yield from self._pick(self._session.decode(packet), missing)
                if not missing:
                    break
            yield from self._pick(self._session.flush(), missing)

    def _pick(self, frames: list[Any], missing: set[int]) -> Iterator[tuple[int, Tensor]]:
        """Copies the missing ones among a session's frames: it writes its next over them."""
        cuda_stream = self._session.cuda_stream
        for frame in frames:
            place = find_frame(self._index, frame.getPTS())
            if place in missing:
                missing.remove(place)
                with torch.cuda.stream(cuda_stream):
                    planes = torch.from_dlpack(frame).clone()
                cuda_stream.synchronize()
                if tuple(planes.shape) != self._planes_shape:
                    # who knows what it keeps of either size
                    self._session.distrust()
                    raise VideoError(self._path, "changes its size, which nvdec does not follow")
                yield place, planes

    def close(self) -> None:
        """Frees the file, and leaves the session to the next video."""
        sessions.give_back(self._kind, self._session)
        self._container.close()


def open_nvdec(path: str | os.PathLike[str], device: torch.device | str = "cuda:0") -> NvdecReader:
    """Opens a video for reading on the GPU.

    Raises:
        VideoError: The file cannot be read as a video, or not exactly by NVDEC, or there is none.
    """
    missing = explain_missing()
    if missing is not None:
        raise VideoError(os.fspath(path), missing)
    cpu = open_video(path)
    try:
        _refuse_what_is_odd(cpu)
        return NvdecReader(cpu, _with_index(torch.device(device)))
    except BaseException:
        cpu.close()
        raise


def _with_index(device: torch.device) -> torch.device:
    """Names the GPU that `cuda` means: other threads may mean another by it."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _refuse_what_is_odd(cpu: VideoReader) -> None:
    probe = cpu.probe
    oddities = ", ".join(probe.oddities)
    reason = None
    if probe.codec not in CODECS:
        reason = f"nvdec is not known to be exact on {probe.codec} video"
    elif probe.pix_fmt not in _PIX_FMTS:
        reason = f"nvdec is not known to be exact on {probe.pix_fmt} pixels"
    elif probe.color_matrix not in _MATRICES:
        reason = f"nvdec does not know the file's colour matrix ({probe.color_matrix})"
    elif probe.interlaced:
        reason = "nvdec does not show interlaced frames as they are"
    elif probe.height % 2 or probe.width % 2:
        reason = f"nvdec is not known to be exact on odd sizes ({probe.width}x{probe.height})"
    elif probe.index is None:
        reason = f"nvdec needs packets that name their frames, and this file {oddities}"
    elif len(probe.index.damaged) or any(o.startswith("breaks off") for o in probe.oddities):
        reason = f"nvdec hides damage, and this file {oddities}"
    elif "does not start with a clean keyframe" in probe.oddities:
        reason = f"nvdec hides that frames lack others, and this file {oddities}"
    if reason is not None:
        raise VideoError(cpu.path, reason)


def find_matrix(probe: VideoProbe) -> tuple[int, ...]:
    """Finds libswscale's numbers for a file's colours: offset of luma, then five coefficients."""
    crv, cbu, cgu, cgv = _MATRICES[probe.color_matrix]
    offset, cy = 16, (1 << 16) * 255 // 219
    if probe.full_range:
        offset, cy = 0, 1 << 16
        crv, cbu, cgu, cgv = (c * 224 // 255 for c in (crv, cbu, cgu, cgv))
    return (offset, *(_to_int16(c) for c in (cy, crv, cbu, -cgu, -cgv)))


def _to_int16(coefficient: int) -> int:
    """Turns 16.16 into 2.13, as libswscale rounds."""
    return (coefficient * 8192 + (1 << 15)) >> 16


def _planes_shape(probe: VideoProbe) -> tuple[int, int]:
    """Of the NV12 planes of a frame as it is coded, before it is turned."""
    height, width = probe.height, probe.width
    if probe.orientation.transpose:
        height, width = width, height
    return height * 3 // 2, width


def _cheapest_frame(probe: VideoProbe, wanted: npt.NDArray[np.int64]) -> int:
    """Picks the wanted frame that needs the fewest others decoded; -1 if none is wanted."""
    if probe.index is None or not len(wanted):
        return -1
    packets_before = probe.index.frame_packet[wanted] - find_entries(probe.index, wanted)
    return int(wanted[packets_before.argmin()])


def turn(frames: Tensor, orientation: Orientation) -> Tensor:
    """Turns and mirrors [N, H, W, 3] as the file asks for."""
    if orientation.transpose:
        frames = frames.transpose(1, 2)
    flips = [d for d, flip in ((2, orientation.flip_x), (1, orientation.flip_y)) if flip]
    return frames.flip(flips) if flips else frames
