# pyright: standard
# lmms_eval is not typed
"""True times for the Qwen-VL family, which is told when each frame of a video was shown.

Given a list of pictures, `qwen_vl_utils` invents times of two frames a second, and lmms-eval's
messages have no field for better ones. So the list carries its times, and `process_vision_info`,
as lmms-eval's Qwen modules call it, is wrapped to hand them on. Qwen3-VL then prints the mean time
of each pair of frames, which it sees as one; Qwen2.5-VL knows only a constant rate and is given the
mean one.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from itg_eval.lmms.frames import Frames

_TICKS_HZ = 1000
"""Times are told as frame numbers at this rate: exact to the millisecond, whatever the file's."""


class TimedImages(list[Any]):
    """Pictures of a video, in time order, that know when each is shown."""

    def __init__(self, frames: Frames) -> None:
        super().__init__(frames.images)
        self.times_s = frames.times_s


def tell_true_times(host: type) -> None:
    """Wraps `process_vision_info` wherever a host model's classes call it, once."""
    for owner in host.__mro__:
        module = sys.modules[owner.__module__]
        process = getattr(module, "process_vision_info", None)
        if process is not None and not getattr(process, "tells_true_times", False):
            setattr(module, "process_vision_info", _telling_true_times(process))  # noqa: B010


def _telling_true_times(process: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(process)
    def process_vision_info(conversations: Any, *args: Any, **kwargs: Any) -> Any:
        processed = process(conversations, *args, **kwargs)
        videos = processed[1]
        if videos is not None and kwargs.get("return_video_metadata"):
            shown = [item["video"] for item in _items(conversations) if "video" in item]
            for i, source in enumerate(shown):
                if isinstance(source, TimedImages):
                    pixels, metadata = videos[i]
                    videos[i] = pixels, {**metadata, **_describe(source.times_s, len(pixels))}
        return processed

    setattr(process_vision_info, "tells_true_times", True)  # noqa: B010
    return process_vision_info


def _items(conversations: Any) -> list[dict[str, Any]]:
    """All pieces of a conversation or a batch of them, in the order they are processed."""
    batch = [conversations] if isinstance(conversations[0], dict) else conversations
    contents = [message["content"] for messages in batch for message in messages]
    return [item for content in contents if isinstance(content, list) for item in content]


def _describe(times_s: tuple[float, ...], num_frames: int) -> dict[str, Any]:
    """The metadata of a video whose frame numbers are its times in ticks.

    `num_frames` may be one more than there are times: an odd list is filled up with its last
    picture. The total is such that frames over total is the mean rate.
    """
    padded = [*times_s, *[times_s[-1]] * (num_frames - len(times_s))]
    ticks = [round(time_s * _TICKS_HZ) for time_s in padded]
    span = max(ticks[-1] - ticks[0], 1)
    return {
        "fps": _TICKS_HZ,
        "frames_indices": ticks,
        "total_num_frames": round(span * num_frames / max(len(times_s) - 1, 1)),
    }
