"""The frozen tower's features on disk: one safetensors file per video, written whole or not at all.

A file's name is a hash of all that its content follows from: the tower's weights, the sampling
rule, the side of the pooled grid, and the video: its path within the set, its size, and the bytes
it begins and ends with, where containers say where each frame lies. So another tower, another rule
or a video encoded anew does not meet old features; a copy of the set elsewhere does, whatever the
times of its files; and many processes may share one folder. What is not told apart is a file with
as many bytes that differ in the middle alone.
"""

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from itg_data.files import replacing
from itg_data.sampling import SamplingConfig
from itg_model.blocks import VisionTower
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

END_BYTES = 2**16
"""Bytes at either end of a file that tell it from one of the same size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFeatures:
    """What the tower made of a video's sampled frames."""

    features: Tensor
    """[T, P, C], on the CPU."""
    time_s: npt.NDArray[np.float64]
    """[T] times of the frames."""


class FeatureStore:
    """Features by video.

    Args:
        directory: Where the files lie; made if need be.
        root: Folder that the videos' paths are relative to.
        tower_sha256: See `fingerprint_tower`.
        sampling: Which frames of a video are looked at.
        pooled: Whether the features are pooled to the largest side that fits, which is all that
            a run without drawn sides needs.
    """

    def __init__(
        self,
        directory: Path,
        root: Path,
        tower_sha256: str,
        sampling: SamplingConfig,
        *,
        pooled: bool,
    ) -> None:
        self.directory = directory
        self.root = root
        self.pooled = pooled
        self._common = [tower_sha256, sampling.describe(), "pooled" if pooled else "unpooled"]
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def path(self, video: str) -> Path:
        """Where a video's features lie, whether or not they are there.

        Raises:
            OSError: The video cannot be read.
        """
        described = json.dumps([*self._common, video, *_tell_apart(self.root / video)])
        return self.directory / f"{hashlib.sha256(described.encode()).hexdigest()}.safetensors"

    def read(self, video: str) -> StoredFeatures | None:
        """The features of a video; None where there are none or the file cannot be read."""
        try:
            with safe_open(self.path(video), framework="pt") as file:
                return StoredFeatures(
                    features=file.get_tensor("features"),
                    time_s=file.get_tensor("time_s").numpy(),
                )
        except (OSError, SafetensorError):
            return None

    def write_later(self, video: str, stored: StoredFeatures) -> None:
        """Keeps the features of a video while others are computed.

        Raises:
            OSError: The ones before could not be written.
        """
        self.finish()
        self._writing = self._writer.submit(self.write, video, stored)

    def finish(self) -> None:
        """Waits for what is still being written.

        Raises:
            OSError: It could not be written.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def write(self, video: str, stored: StoredFeatures) -> None:
        """Keeps the features of a video.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        tensors = {
            "features": stored.features.detach().contiguous(),
            "time_s": torch.from_numpy(stored.time_s),
        }
        with replacing(self.path(video)) as part:
            try:
                save_file(tensors, part, {"video": video})
            except SafetensorError as error:
                raise OSError(f"{self.directory}: features cannot be written: {error}") from None


def _tell_apart(path: Path) -> tuple[int, str]:
    """The size of a file, and a hash of both its ends: the whole would take as long as decoding."""
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256()
        for place in (0, max(0, size_bytes - END_BYTES)):
            file.seek(place)
            digest.update(file.read(END_BYTES))
    return size_bytes, digest.hexdigest()


def fingerprint_tower(tower: VisionTower) -> str:
    """A hash of the tower's weights and of what they are applied to."""
    digest = hashlib.sha256()
    for name, parameter in sorted(tower.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
