"""A video's sampled frames, or an image, as the squares that a tower takes; without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from itg_data.errors import VideoError
from itg_data.resize import squash
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.source import SourceFile
from itg_data.stream import count_cores
from itg_data.video import open_video
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})

CHUNK_FRAMES = 32
"""Frames that are taken from the decoder at once."""

MAX_THREADS = 8
"""Threads that read one file at most; more files are read at once as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Squares:
    """What was read of a file. T frames, squares of S pixels."""

    frames: npt.NDArray[np.uint8]
    """[T, S, S, 3] RGB."""
    time_s: npt.NDArray[np.float64]
    """[T]"""
    num_missing: int
    """Sampled frames that the file did not give."""


def is_image(path: str) -> bool:
    """Whether a path names a still image, by its suffix."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def read_squares(path: Path, sampling: SamplingConfig, size: int) -> Squares:
    """Reads the sampled frames of a video, or an image as a video of one frame.

    Raises:
        VideoError: The file cannot be decoded.
    """
    if is_image(path.name):
        image = _read_image(path)
        return Squares(frames=squash(image, size)[None], time_s=np.zeros(1), num_missing=0)
    with open_video(path) as reader:
        wanted = sample_source_indices(reader.num_frames, reader.fps, sampling)
        # squashed as they come: 300 frames of 1080p at once would be 1.9 GB in every reader
        num_threads = min(count_cores(), MAX_THREADS)
        batches = list(reader.stream(wanted, CHUNK_FRAMES, size=size, num_workers=num_threads))
    return Squares(
        frames=np.concatenate([batch.frames for batch in batches]),
        time_s=np.concatenate([batch.time_s for batch in batches]),
        num_missing=sum(len(batch.missing_source_idx) for batch in batches),
    )


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Opens an image; whatever is wrong with it, found here or within, is a `VideoError`.

    A decoder of PIL's may raise anything at all of a broken or hostile file.
    """
    with SourceFile(path) as source:
        try:
            with Image.open(source.url) as image:
                yield image
        except UnidentifiedImageError:
            raise VideoError(str(path), "not a readable image") from None
        except Exception as error:
            raise VideoError(str(path), describe_failure(error)) from None


def describe_failure(error: Exception) -> str:
    """One line of what a decoder failed with, which is not always made for people."""
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _read_image(path: Path) -> npt.NDArray[np.uint8]:
    with open_image(path) as image:
        return np.asarray(image.convert("RGB"))
