"""Names that FFmpeg would take for something else, and files that are no videos."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from itg_data.errors import VideoError
from itg_data.video import open_video


@pytest.mark.parametrize(
    "name",
    [
        "with space.mp4",
        "new\nline.mp4",
        "-i.mp4",
        "%03d.mp4",
        "image%d.png",
        "*.mp4",
        "concat:a|b.mp4",
        "http:x.mp4",
        "pipe:0",
        "no-suffix",
        "quote'\".mp4",
        "ünïcödé.mp4",
        "wrong-suffix.txt",
        os.fsdecode(b"not-utf8-\xff.mp4"),
    ],
)
@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_a_file_name_is_only_a_name(name, backend, tmp_path, monkeypatch, truth_of):
    truth = truth_of("b-frames")
    monkeypatch.chdir(tmp_path)
    shutil.copy(truth.path, name)
    with open_video(name, backend=backend) as reader:
        assert reader.path == name
        truth.check(reader, [30, 2])


@pytest.mark.parametrize("name", ["concat:{}", "file:{}", "subfile,,start,0,end,0,,:{}"])
def test_an_address_is_no_file_name(name, plain_video):
    with pytest.raises(VideoError, match="no such file"):
        open_video(name.format(plain_video))


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_playlist_cannot_make_us_open_another_file(text, tmp_path, plain_video):
    shutil.copy(plain_video, tmp_path / "other.mp4")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(text.format("other.mp4"))
    with pytest.raises(VideoError, match="not a readable video"):
        open_video(playlist)


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make_bad(case: str, good: Path, front: Callable[[Path], bytes], path: Path) -> None:
    data = good.read_bytes()
    if case == "empty":
        path.touch()
    elif case == "text":
        path.write_text("This is not a video.\n" * 100)
    elif case == "zeros":
        path.write_bytes(bytes(10_000))
    elif case == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(10_000))
    elif case == "directory":
        path.mkdir()
    elif case == "pipe":
        os.mkfifo(path)
    elif case == "audio only":
        write_audio(path)
    elif case == "picture":
        with av.open(str(path), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
            image = np.zeros((16, 16, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    elif case == "cut, index lost":
        path.write_bytes(data[: len(data) // 2])
    elif case == "cut, no frame left":
        data = front(path)
        path.write_bytes(data[: data.index(b"mdat") + 4])
    elif case == "frames overwritten":
        at = data.index(b"mdat") + 4
        end = data.index(b"moov") - 4
        path.write_bytes(data[:at] + np.random.default_rng(0).bytes(end - at) + data[end:])
    else:
        assert case == "missing"


BAD = {
    "missing": "no such file",
    "empty": "is empty",
    "text": "not a readable video",
    "zeros": "not a readable video",
    "noise": "not a readable video",
    "directory": "is a directory",
    "pipe": "is not a regular file",
    "audio only": "no video stream",
    "picture": "not a readable video",
    "cut, index lost": "not a readable video",
    "cut, no frame left": "holds no video frames|not one frame can be decoded",
    "frames overwritten": "not one frame can be decoded",
}


@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_clear_error_at_once(
    case, backend, tmp_path, plain_video, with_index_in_front, capfd
):
    path = tmp_path / "bad.mp4"
    make_bad(case, plain_video, with_index_in_front, path)
    capfd.readouterr()
    started = time.monotonic()
    with pytest.raises(VideoError, match=BAD[case]) as caught:
        open_video(path, backend=backend)
    assert time.monotonic() - started < 2
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    assert "/proc/" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_may_not_be_read_is_an_error(tmp_path, plain_video):
    path = tmp_path / "secret.mp4"
    shutil.copy(plain_video, path)
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root may read everything
            os.seteuid(65534)
        with pytest.raises(VideoError, match="Permission denied"):
            open_video(path)
    finally:
        os.seteuid(user)


def test_a_name_with_a_null_byte_is_an_error():
    with pytest.raises(VideoError, match="null"):
        open_video("a\0b.mp4")


def test_cover_art_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        art = container.add_stream("mjpeg", rate=1)
        art.height, art.width, art.pix_fmt = 16, 16, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic.value
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux(art.encode(frame.reformat(format="yuvj420p")))
        container.mux(art.encode())
    with pytest.raises(VideoError, match="no video stream"):
        open_video(path)
