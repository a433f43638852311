"""Which frames of a video the pages of its samples show: one a second, as labels are made.

A page of a long video would be too heavy with all of them, so they are thinned evenly; but what is
labelled and what the check refused is why somebody opens the page, and always on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from itg_data.errors import VideoError
from itg_data.records import label_frames, seconds_of
from itg_data.sets.folder import Sample
from itg_data.timeline import Thumbnails
from itg_data.video import VideoReader, open_video

MAX_EVEN_FRAMES = 512
"""Frames of a page that are spread over the video."""
_FRAMES_AT_ONCE = 32
"""512 frames of a large video at once would take gigabytes."""

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PagePictures:
    """The pictures of one page."""

    thumbnails: Thumbnails
    note: str
    """What the page does not show; empty where it shows every second."""


def take_pictures(path: Path, samples: Sequence[Sample]) -> list[PagePictures]:
    """Takes small pictures of a video in one pass, for a page of each sample about it.

    Raises:
        VideoError: The file cannot be read.
    """
    with open_video(path) as video:
        times_s = video.times_s(range(video.num_frames))
        every = first_of_seconds(times_s)
        even = thin(every, MAX_EVEN_FRAMES)
        wanted = [
            np.union1d(even, frames_to_show(sample, times_s, every)).tolist() for sample in samples
        ]
        pictures = _decode(video, np.unique(np.concatenate(wanted)))
    found = [pictures.only(of_page) for of_page in wanted]
    if not all(map(len, found)):
        raise VideoError(str(path), "all frames that a page would show are lost to damage")
    note = "" if len(even) == len(every) else _say_thinned(len(even), len(every))
    return [PagePictures(thumbnails=thumbnails, note=note) for thumbnails in found]


def first_of_seconds(times_s: Float64Array) -> Int64Array:
    """Finds the first frame of every second in which one begins; seconds count from the first.

    Args:
        times_s: [N] times of a video's frames, ascending.

    Returns:
        Source indices, ascending.
    """
    _, first = np.unique(seconds_of(times_s, float(times_s[0])), return_index=True)
    return first.astype(np.int64)


def thin(source_idx: Int64Array, at_most: int) -> Int64Array:
    """Leaves so many evenly, the first and the last among them."""
    if len(source_idx) <= at_most:
        return source_idx
    return source_idx[np.linspace(0, len(source_idx) - 1, at_most).round().astype(np.int64)]


def frames_to_show(sample: Sample, times_s: Float64Array, every: Int64Array) -> Int64Array:
    """Finds the frames that a sample's page must show: labelled seconds, and what the check saw.

    Args:
        sample: A record, with its annotation where there is one.
        times_s: [N] times of its video's frames.
        every: A frame of every second.
    """
    found = [every[label_frames(times_s[every], sample.record.spans)]]
    for span in sample.record.spans:
        inside = label_frames(times_s, [span]).nonzero()[0]
        if len(inside) and not label_frames(times_s[every], [span]).any():
            found.append(inside[:1])  # shorter than a second, and between two of them
    if sample.annotation is not None:
        checked = np.array([frame.source_idx for frame in sample.annotation.frames], dtype=np.int64)
        found.append(checked[(checked >= 0) & (checked < len(times_s))])
    return np.unique(np.concatenate(found))


def _decode(video: VideoReader, wanted: Int64Array) -> Thumbnails:
    pictures = Thumbnails()
    for first in range(0, len(wanted), _FRAMES_AT_ONCE):
        pictures.add(video.read(wanted[first : first + _FRAMES_AT_ONCE]))
    return pictures


def _say_thinned(num_even: int, num_seconds: int) -> str:
    return (
        f"Of the video's {num_seconds} seconds this page shows {num_even}, evenly spread, and all "
        "that are labelled or were refused by the check."
    )
