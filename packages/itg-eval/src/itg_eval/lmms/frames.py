"""The selected frames of a document as pictures: exactly those, decoded by source index."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from itg_data.errors import VideoError
from itg_data.video import open_video
from itg_model.policies import select_frames
from PIL import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """The frames that a host model is shown, in time order."""

    images: list[Image.Image]
    times_s: tuple[float, ...]
    """When each is shown in the video it comes from."""


def read_frames(video: str, source_idx: Sequence[int]) -> Frames:
    """Reads frames by their place in the file, in ascending order.

    Raises:
        VideoError: The file lacks one of them, or cannot be read.
    """
    with open_video(video) as reader:
        if source_idx[-1] >= reader.num_frames:
            raise VideoError(
                video,
                f"frame {source_idx[-1]} is selected, but the file has {reader.num_frames}: was "
                "the selection made from another file?",
            )
        batch = reader.read(source_idx)
    if len(batch.missing_source_idx):
        raise VideoError(video, f"frame {batch.missing_source_idx[0]} cannot be decoded")
    images = [Image.fromarray(frame) for frame in batch.frames]
    return Frames(images=images, times_s=tuple(batch.time_s.tolist()))


def uniform_source_idx(video: str, top_k: int) -> list[int]:
    """The middles of `top_k` equal parts of a video, or all its frames if they are fewer.

    Raises:
        VideoError: The file cannot be read as a video.
    """
    with open_video(video) as reader:
        num_frames = reader.num_frames
    return select_frames(np.zeros(num_frames), top_k, policy="uniform").tolist()
