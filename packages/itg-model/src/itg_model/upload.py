"""Frames on their way to a GPU: uploaded as decoded, squashed there, gathered for the tower.

Threads that decode have enough to do without resizing: PIL's filter takes longer than a frame's
colours. A GPU gives the same bits (`itg_kernels.frames`) in next to no time, and takes frames in
pinned memory while it computes. All of it runs beside the tower, on a stream of its own.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from itg_data.stream import FrameBatch, FrameStream, Image
from itg_kernels.frames import squash_frames
from torch import Tensor

OnFrames = Callable[[FrameBatch], None]
"""Shown the sampled frames as decoded, at their own size, chunk by chunk in time order; must not
keep them."""

_MAX_UPLOAD_BYTES = 48 * 1024**2
# Squares that wait for the tower; more than 1000 of 384 x 384.
_MAX_WAITING_BYTES = 512 * 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuFrameBatch:
    """A `FrameBatch` whose frames are on the GPU."""

    frames: Tensor
    """[N, H, W, 3] uint8 RGB."""
    source_idx: npt.NDArray[np.int64]
    time_s: npt.NDArray[np.float64]
    missing_source_idx: npt.NDArray[np.int64]
    source_height: int
    source_width: int


class SideStream:
    """A CUDA stream of high priority beside the caller's; on the CPU, nothing.

    What is small does not wait there behind the large kernels of a network.
    """

    def __init__(self, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device, priority=-1) if is_gpu else None

    def queue(self) -> AbstractContextManager[object]:
        """What is launched in this context runs here."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        """Keeps other streams from using tensors' memory anew before they are read here."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(self._stream)

    def hand_over(self, tensor: Tensor) -> Tensor:
        """Lets the caller's stream use a tensor made here, once it is made."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            tensor.record_stream(current)
        return tensor


class UploadStream:
    """An iterator of chunks on the GPU, squashed to a square as PIL does it. Close it.

    Frames are uploaded as they are decoded, on a thread and with bounded memory, whether the caller
    asks for them yet or not. Only a caller who wants to see them makes them wait.

    Args:
        decoded: Frames at their own size, in chunks of `upload_chunk`; closed with this stream.
        size: Side of the square in pixels.
        chunk_size: Frames in a chunk; there may be fewer in the last one, and others missing.
        device: Where chunks go; the CPU will do.
        on_frames: Shown the frames before they are squashed, on the caller's thread.
    """

    def __init__(
        self,
        decoded: FrameStream,
        size: int,
        chunk_size: int,
        device: torch.device,
        on_frames: OnFrames | None = None,
    ) -> None:
        self._decoded = decoded
        self._size = size
        self._chunk_size = chunk_size
        self._device = device
        self._on_frames = on_frames
        self._side = SideStream(device)
        self._host_shape = (upload_chunk(decoded.image_shape, chunk_size), *decoded.image_shape)
        self._closed = False
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="itg-upload")
        num_ahead = max(2, _MAX_WAITING_BYTES // (chunk_size * size * size * 3))
        self._ahead = deque[Future[GpuFrameBatch | None]]()
        for _ in range(num_ahead if on_frames is None else 0):
            self._ahead.append(self._uploader.submit(self._gather))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GpuFrameBatch:
        if self._closed:
            raise StopIteration
        if self._on_frames is not None:
            batch = self._gather()
        else:
            batch = self._ahead.popleft().result()
            self._ahead.append(self._uploader.submit(self._gather))
        if batch is None:
            raise StopIteration
        self._side.hand_over(batch.frames)
        return batch

    def _gather(self) -> GpuFrameBatch | None:
        """Uploads a chunk; None behind the last."""
        squares, places, lost = [], [], []
        num_frames = 0
        while num_frames < self._chunk_size:
            taken = self._decoded.take(min(self._host_shape[0], self._chunk_size - num_frames))
            if taken is None:
                break
            source_idx, images, missing = taken
            if images:
                squares.append(self._upload(images, source_idx, missing))
            places.append(source_idx)
            lost.append(missing)
            num_frames += len(images)
        if not places:
            return None
        probe = self._decoded.probe
        source_idx = np.concatenate(places)
        return GpuFrameBatch(
            frames=self._join(squares),
            source_idx=source_idx,
            time_s=probe.times_s[source_idx],
            missing_source_idx=np.concatenate(lost),
            source_height=probe.height,
            source_width=probe.width,
        )

    def _upload(
        self,
        images: list[Image],
        source_idx: npt.NDArray[np.int64],
        missing: npt.NDArray[np.int64],
    ) -> Tensor:
        # always of one size: torch then gives a buffer of before whose copy is done, not a new one
        is_gpu = self._device.type == "cuda"
        host = torch.empty(self._host_shape, dtype=torch.uint8, pin_memory=is_gpu)[: len(images)]
        whole = np.stack(images, out=host.numpy())
        if self._on_frames is not None:
            probe = self._decoded.probe
            batch = FrameBatch(
                frames=whole,
                source_idx=source_idx,
                time_s=probe.times_s[source_idx],
                missing_source_idx=missing,
                source_height=probe.height,
                source_width=probe.width,
            )
            self._on_frames(batch)
        with self._side.queue():
            return squash_frames(host.to(self._device, non_blocking=True), self._size)

    def _join(self, squares: list[Tensor]) -> Tensor:
        if not squares:
            shape = (0, self._size, self._size, 3)
            return torch.empty(shape, dtype=torch.uint8, device=self._device)
        with self._side.queue():
            return torch.cat(squares) if len(squares) > 1 else squares[0]

    def close(self) -> None:
        """Stops decoding and uploading, and waits for both; iterating afterwards ends at once."""
        self._closed = True
        self._decoded.close()
        self._uploader.shutdown(cancel_futures=True)


def upload_chunk(image_shape: tuple[int, ...], chunk_size: int) -> int:
    """How many frames of a shape go to the GPU at once: as many as are small together."""
    return max(1, min(chunk_size, _MAX_UPLOAD_BYTES // math.prod(image_shape)))
