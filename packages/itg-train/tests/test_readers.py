import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from itg_data.errors import ItgError, VideoError
from itg_data.resize import squash
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.video import VideoReader, open_video
from itg_train import readers
from itg_train.index import look_at
from itg_train.readers import Readers
from itg_train.squares import read_squares
from PIL import Image

SAMPLING = SamplingConfig(max_frames=5)


@pytest.fixture
def video(scripted):
    root, records = scripted
    return root / records[0].video


def test_readers_give_what_is_read_in_this_process(video):
    wanted = read_squares(video, SAMPLING, 32)
    with closing(Readers(2)) as pool, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: pool.read(video, SAMPLING, 32), range(6)))
    for squares in found:
        assert np.array_equal(squares.frames, wanted.frames)
        assert np.array_equal(squares.time_s, wanted.time_s)
        assert squares.num_missing == wanted.num_missing == 0


def test_frames_are_squashed_as_they_come_to_what_they_are_as_a_whole(video, monkeypatch):
    with open_video(video) as reader:
        wanted = reader.read(sample_source_indices(reader.num_frames, reader.fps, SAMPLING))
    stream, asked = VideoReader.stream, []

    def watch(self, source_idx, chunk_size, **options):
        asked.append((chunk_size, options["size"]))
        return stream(self, source_idx, chunk_size, **options)

    monkeypatch.setattr(VideoReader, "stream", watch)
    # which would hold all of them at their full size
    monkeypatch.setattr(VideoReader, "read", None)
    monkeypatch.setattr("itg_train.squares.CHUNK_FRAMES", 2)
    found = read_squares(video, SAMPLING, 24)
    assert asked == [(2, 24)]
    assert np.array_equal(found.frames, [squash(frame, 24) for frame in wanted.frames])
    assert np.array_equal(found.time_s, wanted.time_s)
    assert found.num_missing == 0


def test_an_image_is_a_video_of_one_frame(tmp_path):
    Image.new("RGB", (40, 20), (200, 10, 10)).save(tmp_path / "a.png")
    with closing(Readers(1)) as pool:
        squares = pool.read(tmp_path / "a.png", SAMPLING, 8)
    assert squares.frames.shape == (1, 8, 8, 3)
    assert (squares.frames == (200, 10, 10)).all()


def test_what_cannot_be_read_is_named_and_the_reader_goes_on(video, tmp_path):
    broken = tmp_path / os.fsdecode(b"n\xf6\n{}.mp4")
    broken.write_bytes(b"no video")
    with closing(Readers(1)) as pool:
        with pytest.raises(VideoError) as error:
            pool.read(broken, SAMPLING, 32)
        assert error.value.path == str(broken)
        assert len(pool.read(video, SAMPLING, 32).frames) == 5


def test_a_file_that_kills_its_reader_costs_that_file_alone(video, monkeypatch):
    ask = readers._ask

    def die(reader, *args):
        reader.send_signal(signal.SIGSEGV)
        reader.wait()
        return ask(reader, *args)

    with closing(Readers(1)) as pool:
        pool.read(video, SAMPLING, 32)
        monkeypatch.setattr(readers, "_ask", die)
        with pytest.raises(VideoError, match=r"its reader died with exit status -11"):
            pool.read(video, SAMPLING, 32)
        monkeypatch.setattr(readers, "_ask", ask)
        assert len(pool.read(video, SAMPLING, 32).frames) == 5


def test_a_reader_that_dies_while_it_is_idle_costs_no_file(video):
    with closing(Readers(1)) as pool:
        pool.read(video, SAMPLING, 32)
        reader = pool._idle.queue[0]
        reader.kill()
        os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOWAIT)
        assert len(pool.read(video, SAMPLING, 32).frames) == 5


def test_an_answer_that_is_not_taken_is_no_other_files(tmp_path, monkeypatch):
    for name, colour in (("a.png", (200, 10, 10)), ("b.png", (10, 200, 10))):
        Image.new("RGB", (40, 20), colour).save(tmp_path / name)

    def run_out(*_):
        raise MemoryError

    # more than a pipe holds
    size = 512
    receive = readers._receive
    with closing(Readers(1)) as pool:
        monkeypatch.setattr(readers, "_receive", run_out)
        with pytest.raises(MemoryError):
            pool.read(tmp_path / "a.png", SAMPLING, size)
        monkeypatch.setattr(readers, "_receive", receive)
        assert (pool.read(tmp_path / "b.png", SAMPLING, size).frames == (10, 200, 10)).all()
        monkeypatch.setattr(readers, "_receive", run_out)
        with pytest.raises(MemoryError):
            pool.read(tmp_path / "a.png", SAMPLING, size)


def test_readers_look_as_this_process_does(scripted, tmp_path):
    root, records = scripted
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with closing(Readers(1)) as pool:
        for place, video in ((root, records[0].video), (tmp_path, "broken.mp4")):
            assert pool.look(place, video) == look_at(place, video)


def test_a_users_module_does_not_stand_in_for_a_librarys(video, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with closing(Readers(1)) as pool:
        assert len(pool.read(video, SAMPLING, 32).frames) == 5


def test_closed_readers_say_so():
    pool = Readers(1)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.read("a.mp4", SAMPLING, 32)


def test_closing_sends_away_who_waits(video, monkeypatch):
    ask, asked, goes_on = readers._ask, threading.Event(), threading.Event()

    def wait(*args):
        asked.set()
        assert goes_on.wait(30)
        return ask(*args)

    monkeypatch.setattr(readers, "_ask", wait)
    pool = Readers(1)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(pool.read, video, SAMPLING, 32)
        assert asked.wait(30)
        second = threads.submit(pool.read, video, SAMPLING, 32)
        time.sleep(0.2)
        closing = threads.submit(pool.close)
        time.sleep(0.2)
        goes_on.set()
        assert len(first.result().frames) == 5
        with pytest.raises(RuntimeError, match="closed"):
            second.result()
        closing.result()


def test_what_a_library_prints_is_no_answer(video, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from PIL import Image\n"
        "quiet = Image.Image.resize\n"
        "Image.Image.resize = lambda *args: os.write(1, b'resizing\\n') and quiet(*args)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with closing(Readers(1)) as pool:
        assert len(pool.read(video, SAMPLING, 32).frames) == 5


def test_a_terminals_interrupt_is_not_for_readers(video):
    with closing(Readers(1)) as pool:
        pool.read(video, SAMPLING, 32)
        assert os.getpgid(pool._idle.queue[0].pid) != os.getpgrp()


@pytest.mark.parametrize("video", ["a\0b.png", "a\0b.mp4"])
def test_a_path_that_no_file_can_have_is_named(tmp_path, video):
    assert look_at(tmp_path, video).reason == "embedded null byte"


def test_readers_that_cannot_start_are_no_fault_of_a_file(video, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with closing(Readers(1)) as pool, pytest.raises(ItgError) as caught:
        pool.read(video, SAMPLING, 32)
    assert not isinstance(caught.value, VideoError)
    assert "no process that reads videos can be started" in str(caught.value)
    assert "exit status 7" in str(caught.value)


def test_what_a_library_prints_while_it_is_imported_is_no_answer(video, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with closing(Readers(1)) as pool:
        assert len(pool.read(video, SAMPLING, 32).frames) == 5


@pytest.mark.parametrize("video", ["pipe.png", "pipe.mp4"])
def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path, video):
    os.mkfifo(tmp_path / video)
    with closing(Readers(1)) as pool:
        assert pool.look(tmp_path, video).reason == "is not a regular file"
        with pytest.raises(VideoError, match="is not a regular file"):
            pool.read(tmp_path / video, SAMPLING, 32)


HOSTILE = [
    (NotImplementedError("no such\ncodec"), "NotImplementedError: no such"),
    (MemoryError(), "MemoryError"),
    (SyntaxError("broken PNG file"), "SyntaxError: broken PNG file"),
]


@pytest.mark.parametrize(("error", "reason"), HOSTILE, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_whatever_a_decoder_raises_is_the_files_reason(
    tmp_path, video, monkeypatch, name, error, reason
):
    def fail(*_, **__):
        raise error

    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    monkeypatch.setattr("itg_train.squares.Image.open", fail)
    for module in ("squares", "index"):
        monkeypatch.setattr(f"itg_train.{module}.open_video", fail)
    assert look_at(tmp_path, name).reason == reason
    request = {"path": str(tmp_path / name), "sampling": {}, "size": 8}
    assert readers._answer(request) == ({"path": str(tmp_path / name), "reason": reason}, b"")
