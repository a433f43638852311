"""What the diversity rule compares frames by: vectors whose cosine says how alike two frames look.

The method uses CLIP. Any CLIP or SigLIP checkpoint in a folder serves (`itg_data.annotate.local`,
extra `itg-data[local]`). Without one there are `thumbnails`: they need no model, and they differ.
CLIP tells subjects apart and overlooks where they stand; a thumbnail tells layouts apart and
overlooks what they mean. So with thumbnails the rule keeps more frames of a moving camera and
fewer of subjects that change in place, and its two thresholds, found for CLIP, are only a start.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

Float32 = npt.NDArray[np.float32]

THUMBNAILS = "thumbnails"
NOTHING = "none"
"""Frames are not compared: every second of the candidates is kept."""
_GRID = (16, 12)


class FrameFeatures(Protocol):
    """Turns pictures into vectors.

    Attributes:
        name: Part of every annotation.
    """

    name: str

    def __call__(self, jpegs: Sequence[bytes]) -> Float32:
        """Encodes pictures, [N, D] float32, each row of length 1."""
        ...


class Thumbnails:
    """A grid of mean colours, centred on the picture's mean colour: cosine is correlation."""

    name = THUMBNAILS

    def __call__(self, jpegs: Sequence[bytes]) -> Float32:
        """Encodes pictures, [N, 576] float32, each row of length 1."""
        grids = [
            np.asarray(load_picture(jpeg).resize(_GRID, Image.Resampling.BOX)) for jpeg in jpegs
        ]
        stacked = np.stack(grids).reshape(len(jpegs), -1, 3).astype(np.float32)
        centred = stacked - stacked.mean(axis=1, keepdims=True)
        return to_unit_length(centred.reshape(len(jpegs), -1))


def load_picture(jpeg: bytes) -> Image.Image:
    """Decodes a picture that we encoded."""
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def to_unit_length(vectors: Float32) -> Float32:
    """Scales rows to length 1; a row of zeros, of a picture of one colour, stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-6)


def load_features(name: str, device: str = "auto") -> FrameFeatures | None:
    """Gives features by name: `thumbnails`, `none`, or the folder of a CLIP or SigLIP checkpoint.

    Raises:
        ItgError: The folder holds no such checkpoint, or the extra `itg-data[local]` is missing.
    """
    if name == NOTHING:
        return None
    if name == THUMBNAILS:
        return Thumbnails()
    from itg_data.annotate.local import ImageTower

    return ImageTower(Path(name), device)


def identify_features(name: str) -> tuple[Any, ...]:
    """Tells features apart, a checkpoint by its files as well: weights may change where they lie.

    A folder that is not there has no files; `load_features` says so.
    """
    folder = Path(name)
    if name in (NOTHING, THUMBNAILS) or not folder.is_dir():
        return (name,)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat()) for path in files]
    return (str(folder.resolve()), *((n, seen.st_size, seen.st_mtime_ns) for n, seen in stats))
