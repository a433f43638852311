"""Frames in the form that a host model takes: in place of a task's visuals, or in its messages."""

import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from itg_eval.lmms.clip import write_clip
from itg_eval.lmms.forms import Form
from itg_eval.lmms.frames import Frames
from itg_eval.lmms.qwen import TimedImages


class Show:
    """Turns frames into what a host model takes.

    Args:
        form: Which form.
        with_times: Whether pictures come with the times at which they are shown.
        num_clips: How many clips may lie on disk at once; the oldest goes first. A host that reads
            ahead must not read further ahead than that.
    """

    def __init__(self, form: Form, *, with_times: bool, num_clips: int) -> None:
        self.form = form
        self.with_times = with_times
        self._num_clips = num_clips
        self._clips: deque[Path] = deque()
        self._num_written = 0
        self._folder: Path | None = None

    def to_visuals(self, frames: Frames) -> list[Any]:
        """What a simple model gets from `doc_to_visual`: pictures, or the path of a clip."""
        return [str(self._write(frames))] if self.form == "clip" else list(frames.images)

    def to_contents(self, frames: Frames) -> list[dict[str, Any]]:
        """What stands in a chat model's message where the video was."""
        if self.form == "clip":
            return [{"type": "video", "url": str(self._write(frames))}]
        if self.form == "video_list":
            return [{"type": "video", "url": TimedImages(frames)}]
        contents: list[dict[str, Any]] = []
        for image, time_s in zip(frames.images, frames.times_s, strict=True):
            if self.with_times:
                contents.append({"type": "text", "text": f"<{time_s:.1f} seconds>"})
            contents.append({"type": "image", "url": image})
        return contents

    def to_text(self, times_s: Iterable[float]) -> str:
        """What a simple model, which takes its pictures apart from the text, is told of times."""
        if self.form != "images" or not self.with_times:
            return ""
        listed = ", ".join(f"{time_s:.1f}" for time_s in times_s)
        return f"The pictures are frames of one video, shown at these seconds: {listed}.\n"

    def _write(self, frames: Frames) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="itg-clips-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{self._num_written}.mp4"
        self._num_written += 1
        write_clip(path, frames)
        self._clips.append(path)
        if len(self._clips) > self._num_clips:
            self._clips.popleft().unlink(missing_ok=True)
        return path
