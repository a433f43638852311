"""Selected frames as image files, at the size the video has."""

from pathlib import Path
from typing import Literal

import numpy as np
from itg_data.files import replacing
from itg_data.records import FrameSelection
from itg_data.video import open_video
from PIL import Image

ImageFormat = Literal["jpg", "png"]

_READ_AT_ONCE = 8


def save_frames(
    selection: FrameSelection, directory: str | Path, image_format: ImageFormat = "jpg"
) -> list[Path]:
    """Writes the selected frames as `frame_<source_idx>_<time>s.<format>`, which sort by time.

    Args:
        selection: What to write; its `video` must still be there.
        directory: Is made if need be. Nothing outside it is touched.
        image_format: `jpg` (quality 95) or `png` (exact).

    Returns:
        The files, in time order.

    Raises:
        VideoError: The video cannot be read any more.
        OSError: A file cannot be written.
    """
    if image_format not in ("jpg", "png"):
        raise ValueError(f"image_format must be jpg or png, got {image_format!r}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    wanted = np.array([frame.source_idx for frame in selection.selected], dtype=np.int64)
    files: list[Path] = []
    with open_video(selection.video) as reader:
        for start in range(0, len(wanted), _READ_AT_ONCE):
            batch = reader.read(wanted[start : start + _READ_AT_ONCE])
            for frame, idx, time_s in zip(
                batch.frames, batch.source_idx, batch.time_s, strict=True
            ):
                path = directory / f"frame_{idx:08d}_{time_s:010.3f}s.{image_format}"
                _write_image(path, Image.fromarray(frame), image_format)
                files.append(path)
    return files


def _write_image(path: Path, image: Image.Image, image_format: ImageFormat) -> None:
    with replacing(path) as part:
        if image_format == "png":
            image.save(part, "PNG")
        else:
            image.save(part, "JPEG", quality=95, subsampling=0)
