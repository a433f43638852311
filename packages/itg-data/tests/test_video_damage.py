"""Partly broken files: the good frames, and the names of the others."""

import contextlib
import shutil
import time

import numpy as np
import pytest
from itg_data.errors import VideoError
from itg_data.video import open_video


@pytest.mark.parametrize("kind", ["b-frames", "hevc", "open-gop", "mpeg4", "av1"])
def test_a_damaged_packet_costs_only_frames_that_may_depend_on_it(kind, tmp_path, truth_of, damage):
    truth = truth_of(kind)
    path = tmp_path / truth.path.name
    shutil.copy(truth.path, path)
    lost = damage(path, packet=14, keep=0)
    with open_video(path) as reader:
        batch = reader.read(range(48))
    assert lost in batch.missing_source_idx
    np.testing.assert_array_equal(batch.frames, truth.frames[batch.source_idx])
    assert sorted([*batch.source_idx, *batch.missing_source_idx]) == list(range(48))
    assert set(range(8)) <= set(batch.source_idx.tolist())
    if kind in ("b-frames", "hevc"):
        assert set(range(24, 48)) <= set(batch.source_idx.tolist())


def test_damage_is_seen_from_any_frame_that_depends_on_it(tmp_path, truth_of, damage):
    truth = truth_of("b-frames")
    path = tmp_path / "damaged.mp4"
    shutil.copy(truth.path, path)
    # a P picture, painted over by the decoder and shown only after the B pictures that need it
    damage(path, packet=13)
    with open_video(path, num_threads=1) as reader:
        missing = set(reader.read(range(48)).missing_source_idx.tolist())
    for frame in range(10, 26):
        with open_video(path, num_threads=1) as reader:
            if frame in missing:
                with pytest.raises(VideoError, match="none of the 1 frames"):
                    reader.read([frame])
            else:
                truth.check(reader, [frame])


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_lost_slice_is_seen_however_many_threads_decode(
    num_threads, tmp_path, encode_video, packet_places
):
    path = encode_video(tmp_path / "a.mkv", codec="mpeg2video", options={"g": "12"})
    with open_video(path) as reader:
        truth = reader.read(range(48)).frames
    data = bytearray(path.read_bytes())
    at = data.index(b"\0\0\1\1", packet_places(path)[0][1])
    data[at : at + 4] = b"\xff" * 4
    path.write_bytes(data)
    with open_video(path, num_threads=num_threads) as reader:
        batch = reader.read(range(48))
    assert set(range(12)) >= set(batch.missing_source_idx.tolist()) >= {0}
    np.testing.assert_array_equal(batch.frames, truth[batch.source_idx])


def test_decord_says_that_it_met_damage(tmp_path, truth_of, damage):
    path = tmp_path / "damaged.mp4"
    shutil.copy(truth_of("b-frames").path, path)
    damage(path, packet=30)
    with (
        open_video(path, backend="decord") as reader,
        pytest.raises(VideoError, match="decord"),
    ):
        reader.read(range(48))


@pytest.mark.parametrize("kind", ["variable-rate-mkv", "vp9", "av1-mkv", "mpeg2-ts"])
def test_a_file_cut_at_its_end_gives_the_frames_that_are_left(kind, tmp_path, truth_of):
    truth = truth_of(kind)
    path = tmp_path / truth.path.name
    data = truth.path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with open_video(path) as reader:
        assert 20 < reader.num_frames < 48
        batch = reader.read(range(reader.num_frames))
        assert len(batch.frames) > 20
        np.testing.assert_array_equal(batch.frames, truth.frames[batch.source_idx])


@pytest.mark.parametrize("kind", ["variable-rate-mkv", "vp9", "av1-mkv"])
def test_frames_behind_lost_packets_are_missing_until_the_next_keyframe(
    kind, tmp_path, truth_of, packet_places
):
    # no decoder of these complains: the packets are gone, and the next is predicted from others
    truth = truth_of(kind)
    path = tmp_path / truth.path.name
    data = bytearray(truth.path.read_bytes())
    _, at, size = packet_places(truth.path)[14]
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    with open_video(path) as reader:
        assert reader.num_frames < 48
        assert any("lost packets" in oddity for oddity in reader.probe.oddities)
        batch = reader.read(range(reader.num_frames))
        assert batch.missing_source_idx.size > 0
        shown_at = np.searchsorted(truth.time_s + 1e-6, batch.time_s)
        np.testing.assert_array_equal(batch.frames, truth.frames[shown_at])
        assert {*range(9), *range(36, 48)} <= set(shown_at.tolist())


def test_an_mp4_cut_behind_its_index_gives_the_frames_that_are_left(
    tmp_path, with_index_in_front, decode_sequentially
):
    path = tmp_path / "cut.mp4"
    data = with_index_in_front(path)
    frames, _ = decode_sequentially(path.with_name("front.mp4"))
    path.write_bytes(data[: len(data) * 2 // 3])
    with open_video(path) as reader:
        assert 10 < reader.num_frames < 48
        batch = reader.read(range(reader.num_frames))
        np.testing.assert_array_equal(batch.frames, frames[batch.source_idx])


def test_damage_anywhere_never_hangs_or_crashes(tmp_path, truth_of):
    rng = np.random.default_rng(0)
    for kind in ("b-frames", "hevc", "vp9", "mpeg2-ts", "h264-avi"):
        good = truth_of(kind).path.read_bytes()
        for _ in range(6):
            data = bytearray(good)
            at = int(rng.integers(0, len(data) - 200))
            data[at : at + 200] = rng.bytes(200)
            path = tmp_path / "damaged.bin"
            path.write_bytes(data)
            started = time.monotonic()
            # an error is as good as frames, if it is ours
            with contextlib.suppress(VideoError), open_video(path) as reader:
                batch = reader.read(range(reader.num_frames))
                assert len(batch.frames) + len(batch.missing_source_idx) == reader.num_frames
            assert time.monotonic() - started < 5
