import gc
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from itg_data.errors import VideoError
from itg_data.exact import ExactDecoder
from itg_data.resize import squash
from itg_data.stream import FrameBatch, split_at_entries
from itg_data.video import open_video
from PIL import Image


def gather(stream) -> FrameBatch:
    """All chunks as one batch, in time order."""
    with stream:
        batches = list(stream)
    source_idx = np.concatenate([b.source_idx for b in batches])
    order = np.argsort(source_idx)
    return FrameBatch(
        frames=np.concatenate([b.frames for b in batches])[order],
        source_idx=source_idx[order],
        time_s=np.concatenate([b.time_s for b in batches])[order],
        missing_source_idx=np.sort(np.concatenate([b.missing_source_idx for b in batches])),
        source_height=batches[0].source_height,
        source_width=batches[0].source_width,
    )


def assert_equal(streamed: FrameBatch, read: FrameBatch) -> None:
    np.testing.assert_array_equal(streamed.source_idx, read.source_idx)
    np.testing.assert_array_equal(streamed.missing_source_idx, read.missing_source_idx)
    np.testing.assert_array_equal(streamed.frames, read.frames)
    np.testing.assert_array_equal(streamed.time_s, read.time_s)


def decode_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("itg-decode")]


@pytest.mark.parametrize(("num_workers", "ordered"), [(1, True), (2, False), (4, True)])
def test_a_stream_shows_what_sequential_decoding_shows(truth, num_workers, ordered):
    num_frames = len(truth.frames)
    for wanted in (range(num_frames), range(0, num_frames, 7), [num_frames - 1]):
        with open_video(truth.path) as reader:
            stream = reader.stream(wanted, 5, num_workers=num_workers, ordered=ordered)
            batch = gather(stream)
        np.testing.assert_array_equal(batch.source_idx, wanted)
        np.testing.assert_array_equal(batch.frames, truth.frames[list(wanted)])
        np.testing.assert_allclose(batch.time_s, truth.time_s[list(wanted)], atol=1e-6)
        assert (batch.source_height, batch.source_width) == truth.frames.shape[1:3]


@pytest.mark.parametrize("kind", ["b-frames", "vp9", "rotated-90"])
def test_decord_streams_the_same_frames(kind, truth_of):
    truth = truth_of(kind)
    with open_video(truth.path, backend="decord") as reader:
        batch = gather(reader.stream(range(48), 7, num_workers=3))
    np.testing.assert_array_equal(batch.frames, truth.frames)


def test_chunks_in_time_order_are_as_long_as_asked(plain_video):
    with open_video(plain_video) as reader:
        chunks = [batch.source_idx.tolist() for batch in reader.stream(range(48), 20)]
    assert chunks == [list(range(20)), list(range(20, 40)), list(range(40, 48))]


@pytest.mark.parametrize(("num_workers", "ordered"), [(1, True), (2, False), (4, True)])
@pytest.mark.parametrize("kind", ["b-frames", "hevc", "open-gop", "mpeg4", "av1", "h264-avi"])
def test_damage_costs_a_stream_what_it_costs_a_read(
    kind, num_workers, ordered, tmp_path, truth_of, damage
):
    truth = truth_of(kind)
    path = tmp_path / truth.path.name
    shutil.copy(truth.path, path)
    damage(path, packet=14, keep=0)
    with open_video(path, num_threads=1) as reader:
        read = reader.read(range(reader.num_frames))
        for wanted in (range(reader.num_frames), range(0, reader.num_frames, 5)):
            stream = reader.stream(wanted, 5, num_workers=num_workers, ordered=ordered)
            batch = gather(stream)
            assert len(batch.source_idx) + len(batch.missing_source_idx) == len(wanted)
            lost = set(read.missing_source_idx.tolist())
            assert set(batch.missing_source_idx.tolist()) == lost & set(wanted)
            kept = np.searchsorted(read.source_idx, batch.source_idx)
            np.testing.assert_array_equal(batch.frames, read.frames[kept])


@pytest.mark.parametrize("kind", ["variable-rate-mkv", "vp9", "mpeg2-ts", "av1-mkv"])
def test_a_cut_file_streams_what_it_reads(kind, tmp_path, truth_of):
    path = tmp_path / truth_of(kind).path.name
    data = truth_of(kind).path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with open_video(path) as reader:
        every = range(reader.num_frames)
        assert_equal(gather(reader.stream(every, 6, num_workers=3)), reader.read(every))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("packet", [0, 1, 30])
def test_frames_lost_within_a_stretch_longer_than_the_room_do_not_stop_a_stream(
    packet, ordered, num_workers, tmp_path, plain_video, damage, monkeypatch
):
    monkeypatch.setattr("itg_data.stream._MAX_WAITING_BYTES", 0)
    monkeypatch.setattr("itg_data.stream._STRETCHES_PER_WORKER", 1)
    path = tmp_path / "damaged.mp4"
    shutil.copy(plain_video, path)
    damage(path, packet, keep=0)
    with open_video(path, num_threads=1) as reader:
        read = reader.read(range(48))
        assert read.missing_source_idx.size
        stream = reader.stream(range(48), 2, ordered=ordered, num_workers=num_workers)
        # where the threads wait for each other, the stream ends short instead of never
        alarm = threading.Timer(30, stream.close)
        alarm.start()
        batch = gather(stream)
        alarm.cancel()
    assert_equal(batch, read)


def test_a_chunk_that_is_lost_as_a_whole_only_names_its_frames(tmp_path, plain_video, damage):
    path = tmp_path / "damaged.mp4"
    shutil.copy(plain_video, path)
    damage(path, packet=12, keep=0)
    with open_video(path) as reader:
        batches = list(reader.stream(range(48), 4, size=8, num_workers=2))
    assert batches[4].missing_source_idx.tolist() == [16, 17, 18, 19]
    assert batches[4].frames.shape == (0, 8, 8, 3)
    assert sum(len(b.frames) + len(b.missing_source_idx) for b in batches) == 48


def test_a_stream_of_nothing_but_lost_frames_is_an_error(tmp_path, plain_video, damage):
    path = tmp_path / "damaged.mp4"
    shutil.copy(plain_video, path)
    damage(path, packet=12, keep=0)
    with (
        open_video(path) as reader,
        pytest.raises(VideoError, match="none of the 6 frames"),
    ):
        list(reader.stream(range(14, 20), 3, num_workers=2))
    assert not decode_threads()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_chunk_may_be_asked_for_smaller_but_never_larger(ordered, truth_of):
    path = truth_of("b-frames").path
    with open_video(path) as reader, reader.stream(range(48), 8, ordered=ordered) as stream:
        asked = [3, 100, None, 1]
        chunks = [stream.take(at_most) for at_most in asked]
    assert [len(images) for _, images, _ in chunks] == [3, 8, 8, 1]


@pytest.mark.parametrize("kind", ["b-frames", "odd-size", "rotated-90"])
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_squashed_frames_are_pils_bicubic_to_the_bit(kind, backend, truth_of):
    truth = truth_of(kind)
    with open_video(truth.path, backend=backend) as reader:
        batch = gather(reader.stream(range(0, 48, 5), 4, size=24, num_workers=2))
    images = [Image.fromarray(frame) for frame in truth.frames[::5]]
    expected = [np.asarray(i.resize((24, 24), Image.Resampling.BICUBIC)) for i in images]
    np.testing.assert_array_equal(batch.frames, expected)
    assert batch.source_height == truth.frames.shape[1]


def test_where_few_threads_can_decode_all_of_them_squash(tmp_path, encode_video, monkeypatch):
    path = encode_video(tmp_path / "a.mp4", options={"g": "48", "sc_threshold": "0"})
    threads = set()

    def squash_and_tell(frame, size):
        threads.add(threading.get_ident())
        time.sleep(0.01)
        return squash(frame, size)

    monkeypatch.setattr("itg_data.stream.squash", squash_and_tell)
    with open_video(path) as reader:
        batch = gather(reader.stream(range(48), 12, size=24, num_workers=4))
        whole = reader.read(range(48)).frames
    np.testing.assert_array_equal(batch.frames, [squash(frame, 24) for frame in whole])
    assert len(threads) > 1


@pytest.mark.parametrize("ordered", [True, False])
def test_large_frames_that_are_squashed_late_do_not_pile_up(
    ordered, tmp_path, encode_video, monkeypatch
):
    path = encode_video(tmp_path / "a.mp4", options={"g": "48", "sc_threshold": "0"})
    read, num_decoded, num_squashed, most_held = ExactDecoder.read, [], [], []

    def counted(self, wanted):
        for frame in read(self, wanted):
            num_decoded.append(frame[0])
            most_held.append(len(num_decoded) - len(num_squashed))
            yield frame

    def counted_squash(frame, size):
        # time enough for the thread that decodes to run away
        time.sleep(0.01)
        num_squashed.append(size)
        return squash(frame, size)

    with open_video(path) as reader:
        whole = reader.read(range(48)).frames
        monkeypatch.setattr(ExactDecoder, "read", counted)
        monkeypatch.setattr("itg_data.stream.squash", counted_squash)
        monkeypatch.setattr("itg_data.stream._MAX_WAITING_BYTES", 4 * whole[0].nbytes)
        batches = list(reader.stream(range(48), 20, size=24, num_workers=2, ordered=ordered))
    assert [len(batch.frames) for batch in batches] == [20, 20, 8]
    assert [i for batch in batches for i in batch.source_idx] == list(range(48))
    frames = np.concatenate([batch.frames for batch in batches])
    np.testing.assert_array_equal(frames, [squash(frame, 24) for frame in whole])
    # two being squashed, four that wait, and one in the thread's hands
    assert max(most_held) <= 2 + 4 + 1


def test_a_frame_of_the_right_size_is_not_changed_by_the_squash():
    frame = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(squash(frame, 24), frame)


@pytest.mark.parametrize("ordered", [True, False])
def test_threads_do_not_run_away_from_a_slow_reader(ordered, plain_video, monkeypatch):
    monkeypatch.setattr("itg_data.stream._MAX_WAITING_BYTES", 0)
    read, num_decoded = ExactDecoder.read, []

    def counted(self, wanted):
        for frame in read(self, wanted):
            num_decoded.append(frame[0])
            yield frame

    monkeypatch.setattr(ExactDecoder, "read", counted)
    with open_video(plain_video) as reader:
        stream = reader.stream(range(48), 3, num_workers=2, ordered=ordered)
        next(stream)
        time.sleep(0.3)
        # a chunk that was taken, two that wait, and one frame in each thread's hands
        assert len(num_decoded) <= 3 + 6 + 2
        assert len(list(stream)) == 15
    assert len(num_decoded) == 48


@pytest.mark.parametrize("how", ["stream", "reader", "forgotten"])
def test_no_thread_outlives_a_stream(how, plain_video, monkeypatch):
    monkeypatch.setattr("itg_data.stream._MAX_WAITING_BYTES", 0)
    with open_video(plain_video) as reader:
        stream = reader.stream(range(48), 2, num_workers=4)
        next(stream)
        assert decode_threads()
        if how == "stream":
            stream.close()
            assert list(stream) == []
        elif how == "reader":
            reader.close()
            assert list(stream) == []
        else:
            threads = decode_threads()
            del stream
            gc.collect()
            for thread in threads:
                thread.join(5)
        assert not decode_threads()


def test_two_streams_and_a_read_of_one_reader_do_not_meet(plain_video, truth_of):
    truth = truth_of("b-frames")
    with open_video(truth.path) as reader:
        one, two = reader.stream(range(48), 4), reader.stream(range(1, 48, 2), 3, size=16)
        for first, second in zip(one, two, strict=False):
            np.testing.assert_array_equal(first.frames, truth.frames[first.source_idx])
            assert second.frames.shape[1:] == (16, 16, 3)
            truth.check(reader, [int(second.source_idx[0])])


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError()])
def test_a_crash_in_a_thread_is_one_clear_error(error, plain_video, monkeypatch):
    def crash(self, wanted):
        raise error
        yield

    monkeypatch.setattr(ExactDecoder, "read", crash)
    with open_video(plain_video) as reader:
        stream = reader.stream(range(48), 4, num_workers=3)
        with pytest.raises(VideoError, match=f"decoding failed .{type(error).__name__}") as caught:
            list(stream)
    assert caught.value.__cause__ is error
    assert caught.value.path == str(plain_video)
    assert not decode_threads()


def test_a_reader_that_is_never_closed_lets_the_interpreter_end(plain_video):
    script = (
        "import sys; from itg_data import stream; from itg_data.video import open_video\n"
        "stream._MAX_WAITING_BYTES = 0; reader = open_video(sys.argv[1])\n"
        "chunks = reader.stream(range(48), 2, num_workers=4); next(chunks); print('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(plain_video)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"source_idx": [3, 2]}, "ascending"),
        ({"source_idx": [2, 2]}, "ascending"),
        ({"source_idx": [48]}, "source_idx"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"size": 0}, "size"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(arguments, match, plain_video):
    with open_video(plain_video) as reader, pytest.raises(ValueError, match=match):
        reader.stream(**{"source_idx": [1, 2], "chunk_size": 1, **arguments})


def test_frames_are_not_resized_twice(plain_video):
    with open_video(plain_video, resize_to=(20, 30)) as reader:
        assert next(reader.stream([5], 1)).frames.shape == (1, 20, 30, 3)
        with pytest.raises(ValueError, match="size must be None after resize_to"):
            reader.stream([5], 1, size=10)


def test_a_closed_reader_does_not_stream(plain_video):
    reader = open_video(plain_video)
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.stream([0], 1)


def test_streaming_no_frames_ends_at_once(plain_video):
    with open_video(plain_video) as reader:
        assert list(reader.stream([], 4)) == []


def test_stretches_begin_where_decoding_may(tmp_path, encode_video):
    every_12 = {"bf": "0", "g": "12", "sc_threshold": "0"}
    with open_video(encode_video(tmp_path / "a.mp4", options=every_12)) as reader:
        probe, every = reader.probe, np.arange(48)
    quarters = [range(12), range(12, 24), range(24, 36), range(36, 48)]
    assert split_at_entries(probe, every, 100) == quarters
    assert split_at_entries(probe, every, 2) == [range(24), range(24, 48)]
    assert split_at_entries(probe, every, 1) == [range(48)]
    assert split_at_entries(probe, np.array([1, 2, 40]), 9) == [range(2), range(2, 3)]
