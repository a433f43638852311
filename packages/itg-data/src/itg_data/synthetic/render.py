"""Scripts drawn frame by frame and written as real H.264 files."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from itg_data.synthetic.script import (
    COLOURS,
    SHAPES,
    Event,
    Script,
    Split,
    SyntheticConfig,
    generator,
)

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def render(config: SyntheticConfig, split: Split, number: int, script: Script) -> Iterator[UInt8]:
    """Draws a script frame by frame.

    Yields:
        [H, W, 3] uint8 RGB, `duration_s * fps` of them.
    """
    rng = generator(config, split, number, stage=2)
    height, width = config.height, config.width
    grid_y, grid_x = np.meshgrid(
        np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing="ij"
    )
    sceneries = [_scenery(rng, script, grid_y, grid_x) for _ in script.cuts_s]
    # a bank of noise, rolled and mirrored per frame, costs a tenth of fresh noise
    noise = rng.normal(0, max(script.noise, 1e-6), (8, height, width, 3)).astype(np.int16)
    for frame_idx in range(script.duration_s * config.fps):
        time_s = frame_idx / config.fps
        scenery = sceneries[int(np.searchsorted(script.cuts_s, time_s, side="right")) - 1]
        canvas = scenery.copy()
        if int(time_s) in script.flashes_s:
            canvas += (245 - canvas) * 0.85
        for event in script.events:
            if event.span.start_s <= time_s < event.span.end_s:
                _draw_event(canvas, grid_y, grid_x, event, time_s)
        shift_y, shift_x = rng.integers(height), rng.integers(width)
        speckle = np.roll(noise[rng.integers(len(noise))], (shift_y, shift_x), axis=(0, 1))
        yield np.clip(canvas + speckle, 0, 255).astype(np.uint8)


def _scenery(rng: np.random.Generator, script: Script, grid_y: Float32, grid_x: Float32) -> Float32:
    """A grey gradient with grey shapes on it: [H, W, 3] float32."""
    height, width = grid_y.shape
    slope_y, slope_x = rng.uniform(-50, 50, 2)
    grey = rng.uniform(70, 150) + slope_y * grid_y / height + slope_x * grid_x / width
    canvas = np.repeat(grey[:, :, None].astype(np.float32), 3, axis=2)
    canvas += rng.uniform(-8, 8, 3).astype(np.float32)
    for _ in range(script.num_clutter):
        y, x = rng.uniform(0, (height, width)).tolist()
        shape = SHAPES[rng.integers(len(SHAPES))]
        inside = _inside(shape, grid_y - y, grid_x - x, rng.uniform(0.05, 0.12) * height)
        canvas[inside] = rng.uniform(50, 200)
    return canvas


def _draw_event(
    canvas: Float32, grid_y: Float32, grid_x: Float32, event: Event, time_s: float
) -> None:
    height, width = grid_y.shape
    progress = (time_s - event.span.start_s) / (event.span.end_s - event.span.start_s)
    x0, y0, x1, y1 = event.path
    x, y = (x0 + (x1 - x0) * progress) * width, (y0 + (y1 - y0) * progress) * height
    inside = _inside(event.shows.shape, grid_y - y, grid_x - x, event.radius * height)
    canvas[inside] = COLOURS[event.shows.colour]


def _inside(shape: str, dy: Float32, dx: Float32, radius: float) -> npt.NDArray[np.bool_]:
    if shape == "circle":
        return dy * dy + dx * dx <= radius * radius
    if shape == "square":
        return np.maximum(abs(dy), abs(dx)) <= 0.85 * radius
    if shape == "triangle":
        return (dy <= 0.8 * radius) & (2 * abs(dx) <= 0.9 * (dy + radius))
    thin, long = 0.35 * radius, radius
    return np.minimum(abs(dy), abs(dx)) <= np.where(np.maximum(abs(dy), abs(dx)) <= long, thin, -1)


def encode_mp4(path: Path, frames: Iterable[UInt8], fps: int) -> None:
    """Writes frames as H.264 in mp4, the same bytes for the same frames.

    Args:
        path: Where to; overwritten.
        frames: [H, W, 3] uint8 RGB each, H and W even and constant.
        fps: Frames per second.
    """
    options = {
        "crf": "24",
        "preset": "veryfast",
        # more threads, or the fast paths of one processor, now and then give other bytes
        "threads": "1",
        "x264-params": "cpu-independent=1",
    }
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(  # pyright: ignore[reportUnknownMemberType]
            "libx264", rate=Fraction(fps), options=options
        )
        stream.pix_fmt = "yuv420p"
        for image in frames:
            stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
