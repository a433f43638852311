"""Small videos, encoded on the spot, every frame of which can be told from the others."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

RATE_HZ = 25
TICK = Fraction(1, 1000)


def picture(frame: int, height: int, width: int) -> np.ndarray:
    """A moving pattern: no two frames of a video look alike."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([3 * x + 7 * frame, 5 * y + 11 * frame, 2 * (x + y) + 29 * frame], -1) % 256
    left = frame * 5 % (width - 16)
    image[8:24, left : left + 16] = [255, frame * 37 % 256, 0]
    return image.astype(np.uint8)


def _encode(
    path: Path,
    *,
    codec: str = "libx264",
    num_frames: int = 48,
    size: tuple[int, int] = (64, 96),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times_ms: list[int] | None = None,
    colorspace: int | None = None,
    color_range: int | None = None,
) -> Path:
    height, width = size
    with av.open(str(path), "w") as container:
        # x264 on several threads now and then writes a file that differs
        options = {"threads": "1", **(options or {})}
        stream = container.add_stream(codec, rate=RATE_HZ, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = TICK
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts = i if times_ms is None else times_ms[i]
            frame.time_base = Fraction(1, RATE_HZ) if times_ms is None else TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def encode_video() -> Callable[..., Path]:
    """Encodes a test video: `encode_video(path, codec=..., options=...)`."""
    return _encode


@pytest.fixture(scope="session")
def plain_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 frames of H.264 with B-frames in closed groups of 12; read only."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    return _encode(path, options={"bf": "3", "g": "12"})
