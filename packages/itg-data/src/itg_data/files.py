"""Files that appear whole or not at all, even through a crash: a reader never meets half of one."""

import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME_PART_BYTES = 100


@contextmanager
def replacing(path: str | os.PathLike[str], *, follow_links: bool = False) -> Generator[Path]:
    """Gives a temporary file beside `path`; it replaces `path` when the block ends well.

    What is no file, such as a device or a pipe, cannot be replaced: it is sent the content when
    the block ends well.

    Args:
        path: The file; its folder must exist.
        follow_links: Whether a symbolic link at `path` is followed; if not, it is replaced itself.

    Raises:
        OSError: It cannot be written; `filename` is `path`, not that of the temporary file.

    Yields:
        Where to write; an empty file of the same suffix, with the mode that `path` will have.
    """
    target = Path(path)
    sends = _is_no_file(target, follow_links=follow_links)
    if follow_links and not sends:
        target = Path(os.path.realpath(target))
    folder = None if sends else target.parent
    prefix = f".{_cut(target.name)}."
    with _naming(path, prefix):
        yield from _replacing(target, folder, prefix)


def _replacing(target: Path, folder: Path | None, prefix: str) -> Generator[Path]:
    """Does what `replacing` says; without a folder of its own, the target is sent the content."""
    fd, name = tempfile.mkstemp(f".part{_cut(target.suffix)}", prefix, folder)
    part, mode = Path(name), _file_mode(target)
    try:
        os.fchmod(fd, mode)
        os.close(fd)
        yield part
        # once more: safetensors, for one, puts a file of its own there, for its owner alone
        part.chmod(mode)
        if folder is None:
            with part.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        _sync(part, os.O_RDONLY)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _cut(name: str) -> str:
    """Cuts a name where two such parts and a few characters between would be too long for one.

    File systems count bytes, 255 at most, and some refuse a part of a character.
    """
    return os.fsencode(name)[:_NAME_PART_BYTES].decode(errors="ignore")


@contextmanager
def _naming(path: str | os.PathLike[str], prefix: str) -> Generator[None]:
    """Names the file in an error that names none, a full disk's, or its temporary stand-in."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is None or (isinstance(named, str) and Path(named).name.startswith(prefix)):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file in full or not at all.

    Args:
        path: The file; its folder must exist. A symbolic link is followed, not replaced; a device
            or a pipe, `/dev/stdout` say, is sent the content.
        content: Text is written as UTF-8 with the newlines that it has.
    """
    with replacing(path, follow_links=True) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def _is_no_file(target: Path, *, follow_links: bool) -> bool:
    try:
        mode = target.stat(follow_symlinks=follow_links).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode))


def _file_mode(target: Path) -> int:
    """Keeps the mode of a file that is replaced; a new one gets what the umask leaves."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        mode = 0
    if stat.S_ISREG(mode):
        return stat.S_IMODE(mode) & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    """Makes the move itself survive a crash, where the file system can do so."""
    with suppress(OSError):
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
