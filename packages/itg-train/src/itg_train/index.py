"""What is known of each video before it is decoded: how many frames it has, or why it has none.

Packing needs the number of frames of every video in advance, and a video that cannot be opened
should be named at the start, not in the middle of the night. Looking at a file costs milliseconds,
which tens of thousands of files turn into minutes, so the answers are kept on disk. An answer holds
for a file of the same size and time of change.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from itg_data.errors import RecordError, VideoError
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.progress import show_progress
from itg_data.video import open_video

from itg_train.squares import describe_failure, is_image, open_image

logger = logging.getLogger(__name__)

SAVE_EVERY = 2000
"""Videos between two savings of the index: what a killed run looks at again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """One file: its frames and rate, or the reason why there are none."""

    video: str
    size_bytes: int
    modified_ns: int
    num_frames: int
    fps: float
    reason: str | None = None


Look = Callable[[Path, str], VideoFacts]


def index_videos(
    root: Path, videos: Sequence[str], cache_dir: Path, num_workers: int, look: Look | None = None
) -> dict[str, VideoFacts]:
    """Looks at every video, or recalls what was found before.

    Args:
        root: Folder that the paths are relative to.
        videos: Paths, videos or images; repeats count once.
        cache_dir: Where the index is kept, one file per root.
        num_workers: Files looked at at once.
        look: Looks at a file, perhaps in another process; `look_at` where it is None.

    Returns:
        Path -> facts, for every path asked for.
    """
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    path = cache_dir / f"index-{name}.jsonl"
    known = {facts.video: facts for facts in _read_index(path)}
    wanted = list(dict.fromkeys(videos))
    fresh = [video for video in wanted if not _is_current(root, known.get(video))]
    if fresh:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with (
            show_progress("looking at videos", len(fresh), unit="videos") as advance,
            ThreadPoolExecutor(num_workers) as pool,
        ):
            found = pool.map(lambda video: _survive(look or look_at, root, video), fresh)
            for done, facts in enumerate(found, start=1):
                known[facts.video] = facts
                advance(done, "")
                if done % SAVE_EVERY == 0:
                    write_jsonl(path, known.values())
        write_jsonl(path, known.values())
    return {video: known[video] for video in wanted}


def _read_index(path: Path) -> Iterable[VideoFacts]:
    if not path.exists():
        return []
    try:
        return list(read_jsonl(path, VideoFacts))
    except RecordError as error:
        logger.warning("looking at all videos again: %s", error)
        return []


def _is_current(root: Path, facts: VideoFacts | None) -> bool:
    # what could not be read is looked at again: the file may have been mended
    if facts is None or facts.reason is not None:
        return False
    return (facts.size_bytes, facts.modified_ns) == _stamp(root / facts.video)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _survive(look: Look, root: Path, video: str) -> VideoFacts:
    """A file that another process died of is one that cannot be read."""
    try:
        return look(root, video)
    except VideoError as error:
        return _note(video, _stamp(root / video), reason=error.reason)


def look_at(root: Path, video: str) -> VideoFacts:
    """Looks at one file below `root`; what is wrong with it is one of its facts."""
    path = root / video
    # before the look: a file that changes meanwhile is looked at again
    stamp = _stamp(path)
    num_frames, fps, reason = 0, 0.0, None
    try:
        if is_image(video):
            with open_image(path) as image:
                image.verify()
            num_frames, fps = 1, 1.0
        else:
            with open_video(path) as reader:
                num_frames, fps = reader.num_frames, reader.fps
    except VideoError as error:
        reason = error.reason
    except Exception as error:
        # what a file does to a decoder is no reason to end the run
        reason = describe_failure(error)
    return _note(video, stamp, num_frames, fps, reason)


def _note(
    video: str,
    stamp: tuple[int, int],
    num_frames: int = 0,
    fps: float = 0.0,
    reason: str | None = None,
) -> VideoFacts:
    size_bytes, modified_ns = stamp
    return VideoFacts(
        video=video,
        size_bytes=size_bytes,
        modified_ns=modified_ns,
        num_frames=num_frames,
        fps=fps,
        reason=reason,
    )
