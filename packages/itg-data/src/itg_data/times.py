"""When each frame of a video is shown, where only decoding tells, and that times always ascend.

Frames come out of a decoder in the order in which they are shown, so whatever a file says of their
times, those ascend: everybody who looks frames up by time relies on it. What a file says may be
another matter. AVI names the times of packets, which B-frames permute; a program stream may give
two frames one time, and a damaged file none at all.
"""

from collections.abc import Sequence
from contextlib import closing

import av.error
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from itg_data.errors import VideoError
from itg_data.source import SourceFile, find_video_stream, read_packets

Float64Array = npt.NDArray[np.float64]


def decode_times(source: SourceFile) -> list[float | None]:
    """Decodes a whole video to learn what it says of when each of its frames is shown."""
    times_s: list[float | None] = []
    with closing(source.open_container()) as container:
        stream = find_video_stream(container, source.path)
        # one thread, as where the frames are read: damage must cost the same frames every time
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        try:
            for packet in read_packets(container, stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    continue
                times_s.extend(f.time for f in frames if isinstance(f, VideoFrame))
        except av.error.FFmpegError:
            pass
    return times_s


def complete_times(
    claimed_s: Sequence[float | None], step_s: float, path: str
) -> tuple[Float64Array, list[str]]:
    """Makes strictly ascending times of what a file claims; claims that ascend stay as they are.

    Claims out of order are sorted, frames without one are spread evenly between their neighbours,
    and frames that share one over the time until the next.

    Args:
        claimed_s: [N] of each frame, N >= 1, in the order in which they are shown; None if unknown.
        step_s: Usual time between frames, for those before the first claim and after the last.
        path: The file as the caller named it.

    Returns:
        [N] times in seconds, and what was odd about the claims.

    Raises:
        VideoError: The claims are too large to be told apart.
    """
    known = np.array(
        [i for i, time_s in enumerate(claimed_s) if time_s is not None], dtype=np.int64
    )
    if len(known) == 0:
        known, claims = np.zeros(1, dtype=np.int64), np.zeros(1)
    else:
        claims = np.array([t for t in claimed_s if t is not None], dtype=np.float64)
    oddities: list[str] = []
    if num_unknown := sum(time_s is None for time_s in claimed_s):
        oddities.append(f"has {num_unknown} frames without a time of their own")
    if (np.diff(claims) < 0).any():
        oddities.append("has frames with times out of order")
        claims = np.sort(claims)
    if num_equal := int((np.diff(claims) == 0).sum()):
        oddities.append(f"has {num_equal} frames with the time of the one before")
        known, claims = _first_of_equal(known, claims)
    times_s = _interpolate(len(claimed_s), known, claims, step_s)
    if (np.diff(times_s) <= 0).any():
        raise VideoError(path, "its timestamps are too large to tell its frames apart")
    return times_s, oddities


def _first_of_equal(
    places: npt.NDArray[np.int64], times_s: Float64Array
) -> tuple[npt.NDArray[np.int64], Float64Array]:
    is_first = np.diff(times_s, prepend=-np.inf) > 0
    return places[is_first], times_s[is_first]


def _interpolate(
    num_frames: int, known: npt.NDArray[np.int64], times_s: Float64Array, step_s: float
) -> Float64Array:
    """Keeps the times of known frames and puts the others evenly between and beside them."""
    places = np.arange(num_frames)
    filled = np.interp(places, known, times_s)
    filled[known] = times_s
    # beyond the last known frame they go on, and before the first they lead up to it
    before, after = places < known[0], places > known[-1]
    filled[before] = times_s[0] - (known[0] - places[before]) * step_s
    filled[after] = times_s[-1] + (places[after] - known[-1]) * step_s
    return filled
