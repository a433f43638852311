import os
import stat
import threading

import pytest
from itg_data import files
from itg_data.errors import ItgError, in_one_line
from itg_data.files import replacing, write_atomic


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_litter(failing, tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_an_error_names_the_file_and_not_its_stand_in(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as full:
        write_atomic(path, "new")
    assert full.value.filename == str(path)
    missing = tmp_path / "no" / "file.txt"
    with pytest.raises(FileNotFoundError) as none:
        write_atomic(missing, "new")
    assert none.value.filename == str(missing)
    other = tmp_path / "other"
    with pytest.raises(FileNotFoundError) as elsewhere, replacing(path):
        other.read_text()
    assert elsewhere.value.filename == str(other)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "a\nb"),
            "a\\nb: No such file or directory",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("all is lost"), "all is lost"),
        (ItgError("line\none \udcff"), "line\\none \\udcff"),
    ],
)
def test_an_error_is_said_in_one_line(error, line):
    assert in_one_line(error) == line


def test_the_new_file_is_on_disk_before_it_takes_the_old_one_s_place(tmp_path, monkeypatch):
    calls = []
    path = tmp_path / "file.txt"
    fsync, replace = os.fsync, files.Path.replace

    def note_fsync(fd):
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def note_replace(source, target):
        assert source.parent == target.parent
        calls.append("replace")
        return replace(source, target)

    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.Path, "replace", note_replace)
    write_atomic(path, b"\x00new")
    assert calls == ["file", "replace", "folder"]
    assert path.read_bytes() == b"\x00new"


def test_a_replaced_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    old.chmod(0o640)
    umask = os.umask(0o027)
    try:
        write_atomic(old, "text")
        write_atomic(new, "text")
    finally:
        os.umask(umask)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (old, new)] == [0o640, 0o640]


def test_a_file_that_a_writer_put_there_itself_gets_the_mode_all_the_same(tmp_path):
    path = tmp_path / "weights"
    with replacing(path) as part:
        part.unlink()
        part.touch(mode=0o600)
    write_atomic(tmp_path / "other", "")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_is_written_through(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_link_that_must_not_be_followed_is_replaced_itself(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as part:
        part.write_text("new")
    assert not link.is_symlink()
    assert (link.read_text(), target.read_text()) == ("new", "old")


def test_a_block_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with replacing(path) as part:
            part.write_text("ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def write_by_block(path, content):
    with replacing(path) as part:
        part.write_text(content)


@pytest.mark.parametrize("write", [write_atomic, write_by_block])
def test_a_pipe_is_sent_the_content_and_stays_a_pipe(write, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(pipe, "content")
    reader.join(timeout=10)
    assert got == ["content"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


@pytest.mark.parametrize(
    "name",
    [
        "\u8996" * 80 + ".json",
        "\u8996" * 85,
        "a" * 250 + ".json",
        "a." + "b" * 253,
        "." + "\u8996" * 84,
        "\udcff" * 255,
    ],
    ids=["short suffix", "no suffix", "ASCII", "long suffix", "hidden", "no text"],
)
def test_every_name_that_a_file_can_have_can_be_written(name, tmp_path):
    path = tmp_path / name
    path.write_text("old")
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == [name]


def test_the_stand_in_of_a_file_has_its_suffix(tmp_path):
    with replacing(tmp_path / ("\u8996" * 80 + ".json")) as part:
        assert part.suffix == ".json"
