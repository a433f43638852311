"""A scripted set on disk: videos, records and the config that made them.

Everything is drawn from (seed, split, video number), so a set is the same however many processes
write it.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.records import GroundingRecord
from itg_data.synthetic.questions import ask_questions
from itg_data.synthetic.render import encode_mp4, render
from itg_data.synthetic.script import GENERATOR_VERSION, Split, SyntheticConfig, write_script


def load_or_write_dataset(
    root: Path,
    config: SyntheticConfig,
    *,
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[GroundingRecord]:
    """Gives the scripted set in `root`, writing it first unless it is already there.

    The set appears whole or not at all: it is made in a temporary folder beside `root` and renamed.

    Args:
        root: The set's folder: `records.jsonl`, `config.json` and `videos/`.
        config: What the set must be.
        num_workers: Processes that render; the result does not depend on it.
        progress: Called with (videos done, videos in all).

    Raises:
        FileExistsError: `root` exists and is not a scripted set made from this config.
    """
    described: dict[str, object] = {"generator": GENERATOR_VERSION, **asdict(config)}
    if root.exists():
        if not _describes(root, described):
            raise FileExistsError(
                f"{root} is there but is not the scripted set asked for; remove it or name another"
            )
        return list(read_jsonl(root / "records.jsonl", GroundingRecord))
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    staging = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        with _locked(staging):
            records = _write_videos(staging, config, num_workers, progress)
            write_jsonl(staging / "records.jsonl", records)
            (staging / "config.json").write_text(json.dumps(described, indent=2) + "\n")
            staging.chmod(0o755)
            try:
                staging.rename(root)
            except OSError:
                # another process was writing the same set and was first: one is as good as the
                # other
                if not _describes(root, described):
                    raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return records


def read_config(root: Path) -> SyntheticConfig:
    """Reads what a scripted set on disk was made from.

    Raises:
        RecordError: `root` holds no scripted set, or one of another generator.
    """
    try:
        described = json.loads((root / "config.json").read_text())
        generator = described.pop("generator")
        if generator == GENERATOR_VERSION:
            return SyntheticConfig(**described)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise RecordError(f"{root} holds no scripted set: {error}") from None
    raise RecordError(f"{root} was made by {generator!r}, this is {GENERATOR_VERSION!r}")


def video_path(split: Split, number: int) -> str:
    """Names a video's file relative to the set's root."""
    return f"videos/{split}-{number:05d}.mp4"


def iterate_videos(config: SyntheticConfig) -> Iterator[tuple[Split, int]]:
    """Yields split and number of every video of a set, in the order of its records."""
    sizes: dict[Split, int] = {"train": config.num_train, "heldout": config.num_heldout}
    for split, size in sizes.items():
        for number in range(size):
            yield split, number


def _remove_leftovers(root: Path) -> None:
    """Removes what a writer of this set left that was killed; a living one holds a lock on it."""
    for leftover in root.parent.glob(f".{root.name}-*"):
        with suppress(OSError), _locked(leftover):
            shutil.rmtree(leftover)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Holds a folder's lock, which a process loses when it ends, however it ends.

    Raises:
        OSError: Another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _describes(root: Path, described: dict[str, object]) -> bool:
    try:
        return json.loads((root / "config.json").read_text()) == described
    except (OSError, ValueError):
        return False


def _write_videos(
    root: Path,
    config: SyntheticConfig,
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[GroundingRecord]:
    (root / "videos").mkdir()
    jobs = list(iterate_videos(config))
    records: list[GroundingRecord] = []
    # spawn: the caller may have threads and a GPU, neither of which survives a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_end_with_parent) as pool:
        try:
            # the workers inherit the mask: Ctrl-C is for the caller, who then stops them
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                made = [pool.submit(_write_video, root, config, *job) for job in jobs]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for done, of_video in enumerate(made, start=1):
                records += of_video.result()
                if progress:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return records


def _end_with_parent() -> None:
    """Ends a worker when its parent is gone, killed perhaps; by itself it would wait for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write_video(
    root: Path, config: SyntheticConfig, split: Split, number: int
) -> list[GroundingRecord]:
    video = video_path(split, number)
    script = write_script(config, split, number)
    encode_mp4(root / video, render(config, split, number, script), config.fps)
    return ask_questions(config, split, number, script, video)
