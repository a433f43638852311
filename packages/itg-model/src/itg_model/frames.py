"""The sampled frames of a video on their way from the file to the tower.

Opening a video starts its decoding, on threads of its own and with bounded memory, so a caller who
opens the next video while the GPU is busy with this one has its frames when they are wanted.
"""

import math
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import VideoError
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.stream import FrameBatch
from itg_data.video import VideoReader, open_video
from torch import Tensor

from itg_model.errors import CheckpointError
from itg_model.model import FrameGroundingModel
from itg_model.processing import squash_frames
from itg_model.upload import GpuFrameBatch, OnFrames, UploadStream, upload_chunk

if TYPE_CHECKING:
    from itg_data.video import VideoReader

    from itg_model.nvdec import NvdecReader

Decode = Literal["auto", "pyav", "decord", "nvdec"]
"""What decodes: one of `itg_data.video`'s backends on the CPU, or the GPU's own decoders."""

Progress = Callable[[int, int], None]
"""Told how many of how many frames are done."""

MAX_CHUNK_BYTES = 256 * 1024**2
"""Decoded frames held at once at their own size on the CPU; large frames come in fewer."""


# not compared field by field: arrays have no one answer to whether they are equal
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedVideo:
    """A video after the tower, ready for any number of questions; equal to itself alone."""

    video: str
    model: str
    """What encoded it, as records name it; another's features would give scores all the same."""
    sampling: str
    """The sampling rule, as `SamplingConfig.describe` writes it."""
    features: Tensor = field(repr=False)
    """[T, P, C] pooled features, on the model's device."""
    source_idx: npt.NDArray[np.int64]
    """[T] places of the frames in the file."""
    time_s: npt.NDArray[np.float64]
    """[T]"""
    missing_source_idx: npt.NDArray[np.int64]
    """Frames that were sampled but that the file did not give."""
    fps: float
    """Average frame rate of the file, in Hz."""


class SampledVideo:
    """A video whose sampled frames are being decoded. Close it, or use it as a context manager.

    Args:
        path: The file.
        sampling: Which frames are looked at.
        model: Says how many frames it takes, and where they go.
        decode: What decodes.
        frame_chunk: Frames in a chunk.
        on_frames: Shown the frames; they then come in time order and at their own size, which
            takes longer.

    Raises:
        VideoError: The file is no video that can be read, or not by `decode`.
        CheckpointError: The model takes fewer frames than were sampled.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sampling: SamplingConfig,
        model: FrameGroundingModel,
        decode: Decode,
        frame_chunk: int,
        on_frames: OnFrames | None = None,
    ) -> None:
        if on_frames is not None and decode == "nvdec":
            raise ValueError("decode nvdec leaves frames on the GPU, where on_frames has no use")
        self.video = os.fspath(path)
        self.sampling = sampling
        self._on_frames = on_frames
        self._device = model.device
        self._image_size = model.config.vision.image_size
        self._reader = _open(path, decode, self._device)
        try:
            self.wanted = sample_source_indices(self._reader.num_frames, self._reader.fps, sampling)
            most = model.config.vision_token_num
            if len(self.wanted) > most:
                raise CheckpointError(
                    f"the model takes {most} frames at most, but sampling gives "
                    f"{len(self.wanted)}; lower max_frames"
                )
            self._stream = self._start(frame_chunk)
        except BaseException:
            self._reader.close()
            raise

    def _start(self, frame_chunk: int):
        size, shape = self._image_size, (self._reader.height, self._reader.width, 3)
        if not isinstance(self._reader, VideoReader):
            return self._reader.stream(self.wanted, frame_chunk, size=size, ordered=False)
        if _squashes_frames(self._device):
            # a video decodes in many places at once, and a GPU should not wait for its start
            chunk, ordered = upload_chunk(shape, frame_chunk), self._on_frames is not None
            decoded = self._reader.stream(self.wanted, chunk, ordered=ordered)
            return UploadStream(decoded, size, frame_chunk, self._device, self._on_frames)
        # a CPU has enough to do, and gives the same bits every time where chunks are the same
        if self._on_frames is None:
            return self._reader.stream(self.wanted, frame_chunk, size=size)
        chunk = max(1, min(frame_chunk, MAX_CHUNK_BYTES // math.prod(shape)))
        return self._reader.stream(self.wanted, chunk)

    def encode(
        self, model: FrameGroundingModel, name: str, side: int, progress: Progress | None
    ) -> EncodedVideo:
        """Runs the tower of `model`, called `name`, over the frames as they come, pooled to `side`.

        Raises:
            VideoError: The file gives none of the frames, or decoding failed.
            ValueError: The frames were taken before, or let go.
        """
        features, source_idx, time_s, missing = [], [], [], []
        num_done = 0
        for batch, pixels in self._chunks():
            if len(pixels):
                features.append(model.encode_frames(pixels, side, len(pixels)))
            source_idx.append(batch.source_idx)
            time_s.append(batch.time_s)
            missing.append(batch.missing_source_idx)
            num_done += len(batch.source_idx) + len(batch.missing_source_idx)
            if progress:
                progress(num_done, len(self.wanted))
        if num_done == 0:
            raise ValueError(f"{self.video}: is closed or was encoded already; open it anew")
        if not features:
            raise VideoError(
                self.video, f"none of the {len(self.wanted)} sampled frames can be decoded"
            )
        places = np.concatenate(source_idx)
        order = np.argsort(places)
        return EncodedVideo(
            video=self.video,
            model=name,
            sampling=self.sampling.describe(),
            features=_reorder(torch.cat(features), order),
            source_idx=places[order],
            time_s=np.concatenate(time_s)[order],
            missing_source_idx=np.sort(np.concatenate(missing)),
            fps=self._reader.fps,
        )

    def _chunks(self) -> Generator[tuple[FrameBatch | GpuFrameBatch, Tensor], None, None]:
        """Yields chunks with their frames [T, S, S, 3] uint8."""
        for batch in self._stream:
            if isinstance(batch, GpuFrameBatch):
                yield batch, batch.frames
                continue
            frames = batch.frames
            if self._on_frames is not None and len(frames):
                self._on_frames(batch)
                frames = squash_frames(frames, self._image_size)
            yield batch, torch.from_numpy(frames)

    def close(self) -> None:
        """Ends decoding and closes the file."""
        with closing(self._reader):
            self._stream.close()

    def __enter__(self) -> "SampledVideo":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_decode(decode: Decode, device: torch.device) -> None:
    """Checks that `decode` can be had.

    Raises:
        ValueError: It is unknown, needs a GPU that the model does not run on, or the extra
            `itg-model[nvdec]` and a driver, which are not there.
    """
    if decode not in ("auto", "pyav", "decord", "nvdec"):
        raise ValueError(f"decode must be auto, pyav, decord or nvdec, got {decode!r}")
    if decode != "nvdec":
        return
    if device.type != "cuda":
        raise ValueError(f"decode nvdec needs the model on an NVIDIA GPU, but it is on {device}")
    from itg_model.nvdec_sessions import explain_missing

    if missing := explain_missing():
        raise ValueError(f"decode {missing}")


def _squashes_frames(device: torch.device) -> bool:
    """Whether frames go to a device at their own size."""
    return device.type == "cuda"


def _open(
    path: str | os.PathLike[str], decode: Decode, device: torch.device
) -> "VideoReader | NvdecReader":
    if decode != "nvdec":
        return open_video(path, backend=decode)
    # imported here: the decoders' library is an extra
    from itg_model.nvdec import open_nvdec

    return open_nvdec(path, device)


def _reorder(rows: Tensor, order: npt.NDArray[np.intp]) -> Tensor:
    if np.array_equal(order, np.arange(len(order))):
        return rows
    return rows[torch.from_numpy(order).to(rows.device)]
