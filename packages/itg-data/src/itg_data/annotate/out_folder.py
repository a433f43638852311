"""The folder that a run writes to: whose it is, who writes there now, and what was left lying.

A run replaces files by name, so it must be sure that they are its own: a folder that holds anybody
else's is refused before anything is written to it.
"""

import fcntl
import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from itg_data.annotate.records import VIDEO_FOLDER
from itg_data.errors import InputError, ItgError
from itg_data.sets.folder import SetFolder

CONFIG = "config.json"
_OF_A_CONFIG = {"fingerprint", "annotator", "sampler"}
_OF_A_CARD = "Made by `itg-data annotate` of itg-data "


class RunError(ItgError):
    """A run cannot begin or go on; the message says why and what to do."""


def require_own(out: Path) -> None:
    """Sees to it that nothing of anybody else's would be replaced.

    Raises:
        InputError: The folder holds a file by one of our names that no run wrote.
    """
    folder = SetFolder(out)
    config = out / CONFIG
    if os.path.lexists(config) and not _is_own_config(config):
        raise InputError(f"{config} is not of an annotate run and is not replaced: {_ELSEWHERE}")
    if os.path.lexists(folder.card) and not _is_own_card(folder.card):
        raise InputError(
            f"{folder.card} is not the card of an annotate run and is not replaced: {_ELSEWHERE}"
        )
    if not config.exists():
        made = folder.annotations, folder.dropped, folder.records, folder.parquet, folder.published
        for path in made:
            if os.path.lexists(path):
                raise InputError(
                    f"{path} is there without the {CONFIG} of an annotate run: {_ELSEWHERE}"
                )


_ELSEWHERE = "name another --out, or move it away"


def _is_own_config(path: Path) -> bool:
    try:
        described: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(described, dict) and cast("dict[str, Any]", described).keys() >= _OF_A_CONFIG


def _is_own_card(path: Path) -> bool:
    try:
        return _OF_A_CARD in path.read_text("utf-8", "replace")
    except OSError:
        return False


@contextmanager
def locked(out: Path) -> Generator[None]:
    """Keeps a second run out; the system lets go of the lock if this one is killed."""
    fd = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out}: another run is writing here; wait for it or stop it") from None
        yield
    finally:
        os.close(fd)


def remove_leftovers(out: Path) -> None:
    """Removes what `itg_data.files.replacing` left of our files when a run was killed.

    Only under the lock: a run that goes on has such files, too.
    """
    folder = SetFolder(out)
    made = folder.annotations, folder.dropped, folder.records, folder.parquet, folder.published
    names = "|".join(re.escape(path.name) for path in (*made, folder.card, out / CONFIG))
    leftover = re.compile(rf"\.({names})\.[^.]+\.part\.[a-z]+")
    for path in out.iterdir():
        if leftover.fullmatch(path.name):
            with suppress(FileNotFoundError):
                path.unlink()


def link_videos(out: Path, videos: Path) -> None:
    """Makes the videos' paths in the records hold, seen from the set.

    Raises:
        RunError: Something else has that name, or a link that no run made.
    """
    link, videos = out / VIDEO_FOLDER, videos.resolve()
    if link.is_symlink() and link.resolve() != videos and (out / CONFIG).exists():
        link.unlink()
    if not os.path.lexists(link):
        link.symlink_to(videos, target_is_directory=True)
    if link.resolve() != videos:
        raise RunError(f"{link} is in the way: it is not {videos}; name another --out")
