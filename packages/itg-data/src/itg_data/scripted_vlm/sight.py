"""Which frame of a scripted set a picture shows, and what the script has on screen there.

A picture is recognised by its pixels: pooled to a few cells, it is compared with every frame of
the set. The noise of the scripted videos differs from frame to frame, so even neighbours are told
apart, after JPEG and a change of size as well.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from itg_data.errors import VideoError
from itg_data.synthetic.dataset import iterate_videos, read_config, video_path
from itg_data.synthetic.script import Combination, Script, write_script
from itg_data.video import open_video

Float32 = npt.NDArray[np.float32]

_CELLS = (12, 16)
_NUM_NEAR = 64
_FARTHEST = 14.0
"""Grey levels, root mean square: what is farther from every frame is none of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """A recognised picture."""

    video: str
    time_s: float
    shows: tuple[Combination, ...]
    """What the script has on screen at that time."""


class ScriptedSet:
    """The frames and scripts of a set on disk.

    Args:
        root: Folder of a set that `itg_data.synthetic` wrote.

    Raises:
        RecordError: `root` holds no scripted set.
        VideoError: One of its videos cannot be read.
    """

    def __init__(self, root: Path) -> None:
        config = read_config(root)
        self._scripts: list[tuple[str, Script]] = []
        self._fps = config.fps
        prints: list[Float32] = []
        for split, number in iterate_videos(config):
            video = video_path(split, number)
            self._scripts.append((video, write_script(config, split, number)))
            with open_video(root / video) as reader:
                frames = reader.read(range(reader.num_frames)).frames
            if len(frames) != config.duration_s * config.fps:
                raise VideoError(video, f"is not as scripted: it has {len(frames)} frames")
            prints.append(np.stack([_print_of(Image.fromarray(frame)) for frame in frames]))
        self._frames_per_video = config.duration_s * config.fps
        self._prints = np.concatenate(prints) if prints else np.empty((0, *_CELLS, 3), np.float32)
        self._coarse = _pooled(self._prints)

    def __len__(self) -> int:
        return len(self._scripts)

    def recognise(self, image: bytes) -> Sighting | None:
        """Finds the frame that a picture shows; None where it is of no video of the set.

        Raises:
            ValueError: The bytes are no picture.
        """
        try:
            with Image.open(io.BytesIO(image)) as picture:
                seen = _print_of(picture)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"is no picture: {error}") from None
        if not self._scripts:
            return None
        # two steps, and no BLAS, whose threads would fight over the cores with those that ask
        near = _mean_square(self._coarse, _pooled(seen[None])).argsort()[:_NUM_NEAR]
        distances = _mean_square(self._prints[near], seen[None])
        if distances.min() > _FARTHEST**2:
            return None
        place = int(near[distances.argmin()])
        number, frame_idx = divmod(place, self._frames_per_video)
        video, script = self._scripts[number]
        time_s = frame_idx / self._fps
        shows = (e.shows for e in script.events if e.span.start_s <= time_s < e.span.end_s)
        return Sighting(video=video, time_s=time_s, shows=tuple(shows))


def _print_of(picture: Image.Image) -> Float32:
    """Mean colours of the picture's cells, [rows, columns, 3]."""
    small = picture.convert("RGB").resize(_CELLS[::-1], Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _pooled(prints: Float32) -> Float32:
    """Mean colours of 4 x 4 cells each; no two of them differ more than what they are of."""
    rows, columns = _CELLS[0] // 4, _CELLS[1] // 4
    return prints.reshape(-1, rows, 4, columns, 4, 3).mean(axis=(2, 4))


def _mean_square(some: Float32, one: Float32) -> Float32:
    return np.square(some - one).mean(axis=(1, 2, 3))
