"""Small pictures of a video's frames, gathered while it is decoded, packed into sheets of WebP.

However many frames come, the pictures take some 90 MB at most while they are gathered: when they
get too many, all shrink. However hard they are to compress, the sheets keep to their budget: the
quality sinks first, then the size. 512 frames of 16:9 come out at 320 x 180.
"""

import io
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from itg_data.video import FrameBatch

MAX_FRAME_PIXELS = 480 * 270
MAX_PIXELS = 30_000_000

_SHRINK = 2 / 3
_QUALITIES = (85, 75, 65, 55, 45, 35, 25)
_SHEET_COLUMNS = 8
_FRAMES_PER_SHEET = _SHEET_COLUMNS * 8
_NUM_SAMPLED = 32
# a sheet of WebP has at most 16383 pixels a side
_MAX_SIDE = 16383 // _SHEET_COLUMNS


class Thumbnails:
    """Small pictures of frames, in the order in which the frames were added.

    `add` is made to be handed to whoever decodes: `grounder.encode(video, on_frames=pictures.add)`.

    Args:
        max_frame_pixels: Pixels of one picture; smaller frames stay as they are.
        max_pixels: Pixels of all of them. With too many frames for it, all pictures shrink.

    Attributes:
        source_idx: Places of the frames in the file.
        time_s: Their times.
    """

    def __init__(
        self, max_frame_pixels: int = MAX_FRAME_PIXELS, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.source_idx: list[int] = []
        self.time_s: list[float] = []
        self._max_frame_pixels = max_frame_pixels
        self._max_pixels = max_pixels
        self._images: list[Image.Image] = []
        self._size = (0, 0)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every picture, in pixels; (0, 0) while there is none."""
        return self._size

    def add(self, batch: FrameBatch) -> None:
        """Keeps small pictures of decoded frames of one video, and nothing else of them."""
        if len(batch.frames) == 0:
            return
        if not self._images:
            height, width = batch.frames.shape[1:3]
            by_area = self._max_frame_pixels / (height * width)
            by_side = (_MAX_SIDE / max(height, width)) ** 2
            self._size = _shrunk((width, height), min(by_area, by_side))
        self._images += _resize_all([Image.fromarray(frame) for frame in batch.frames], self._size)
        self.source_idx += batch.source_idx.tolist()
        self.time_s += batch.time_s.tolist()
        while len(self) * math.prod(self._size) > self._max_pixels and max(self._size) > 1:
            self._size = _shrunk(self._size, _SHRINK**2)
            self._images = _resize_all(self._images, self._size)

    def pick(self, source_idx: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Gives the pictures of some frames as [N, H, W, 3].

        Raises:
            ValueError: A frame was never added.
        """
        place_of = {idx: place for place, idx in enumerate(self.source_idx)}
        if unknown := sorted(set(source_idx) - place_of.keys()):
            raise ValueError(f"source_idx must be of frames that were added, got {unknown[0]}")
        pictures = [np.asarray(self._images[place_of[idx]]) for idx in source_idx]
        width, height = self._size
        return np.stack(pictures) if pictures else np.empty((0, height, width, 3), dtype=np.uint8)

    def only(self, source_idx: Iterable[int]) -> "Thumbnails":
        """Gives the pictures of some frames, those that were added, without copying them."""
        wanted = set(source_idx)
        some = Thumbnails(self._max_frame_pixels, self._max_pixels)
        some._size = self._size
        for place, idx in enumerate(self.source_idx):
            if idx in wanted:
                some.source_idx.append(idx)
                some.time_s.append(self.time_s[place])
                some._images.append(self._images[place])
        return some

    def to_sheets(self, max_bytes: int) -> "Sheets":
        """Packs the pictures into sheets that together take `max_bytes` at most.

        Raises:
            ValueError: There is no picture, or not even pictures of one pixel would fit.
        """
        if not self._images:
            raise ValueError("sheets need at least one picture, got none")
        images, size = self._images, self._size
        while (webp := _encode_within(images, size, max_bytes)) is None:
            if max(size) == 1:
                raise ValueError(f"max_bytes is too small for {len(images)} pictures: {max_bytes}")
            size = _shrunk(size, _SHRINK**2)
            images = _resize_all(images, size)
        return Sheets(webp=webp, width=size[0], height=size[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheets:
    """Pictures of one size, row by row on sheets; every sheet but the last is full."""

    webp: tuple[bytes, ...]
    width: int
    """Of one picture, in pixels."""
    height: int
    columns: int = _SHEET_COLUMNS
    """Pictures side by side, on every sheet."""
    frames_per_sheet: int = _FRAMES_PER_SHEET


def _shrunk(size: tuple[int, int], area_ratio: float) -> tuple[int, int]:
    """Scales a size down to some part of its area, keeping its shape as far as pixels allow."""
    scale = math.sqrt(min(1.0, area_ratio))
    width, height = size
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        # a copy: a batch's memory should not live on because of one of its frames
        return image.copy()
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _resize_all(images: Sequence[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    # threads: pillow lets go of the interpreter lock
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_resize, images, [size] * len(images)))


def _encode_within(
    images: Sequence[Image.Image], size: tuple[int, int], max_bytes: int
) -> tuple[bytes, ...] | None:
    """Encodes as well as `max_bytes` allow; None where they allow no quality worth looking at."""
    sheets = _lay_out(images, size)
    # a few pictures tell which qualities are worth the time that all of them take
    sample = images[:: math.ceil(len(images) / _NUM_SAMPLED)]
    (sample_sheet,) = _lay_out(sample, size)
    for quality in _QUALITIES:
        if len(_encode(sample_sheet, quality)) * len(images) / len(sample) > max_bytes:
            continue
        with ThreadPoolExecutor() as pool:
            webp = tuple(pool.map(_encode, sheets, [quality] * len(sheets)))
        if sum(map(len, webp)) <= max_bytes:
            return webp
    return None


def _lay_out(images: Sequence[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    width, height = size
    sheets: list[Image.Image] = []
    for start in range(0, len(images), _FRAMES_PER_SHEET):
        some = images[start : start + _FRAMES_PER_SHEET]
        num_rows = math.ceil(len(some) / _SHEET_COLUMNS)
        sheet = Image.new("RGB", (_SHEET_COLUMNS * width, num_rows * height))
        for place, image in enumerate(some):
            row, column = divmod(place, _SHEET_COLUMNS)
            sheet.paste(image, (column * width, row * height))
        sheets.append(sheet)
    return sheets


def _encode(sheet: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()
