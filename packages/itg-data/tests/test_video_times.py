"""When frames are shown, in files of every kind, also those that say it wrongly or not at all."""

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from itg_data.errors import VideoError
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.times import complete_times
from itg_data.video import open_video

MPEG2 = {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}}


def steps_s(path: Path) -> np.ndarray:
    with open_video(path) as video:
        return np.diff(video.times_s(range(video.num_frames)))


def test_times_of_every_kind_of_file_ascend_strictly(truth):
    assert (steps_s(truth.path) > 0).all()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("h264.avi", {"options": {"bf": "3", "g": "12"}}),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
        ("mpeg2.mpg", MPEG2),
        ("mpeg2.vob", MPEG2),
        ("raw.h264", {"options": {"bf": "3", "g": "12"}}),
        ("raw.m2v", MPEG2),
    ],
)
def test_frames_that_packets_do_not_name_are_shown_at_even_times(name, how, tmp_path, encode_video):
    path = encode_video(tmp_path / name, **how)
    np.testing.assert_allclose(steps_s(path), 0.04, atol=1e-6)
    with open_video(path) as video:
        assert video.num_frames == 48
        assert video.duration_s == pytest.approx(48 / 25)


def test_what_is_odd_about_times_is_named(tmp_path, encode_video):
    for name, how, oddity in (
        ("a.avi", {"options": {"bf": "3", "g": "12"}}, "times out of order"),
        ("a.mpg", MPEG2, "1 frames with the time of the one before"),
    ):
        with open_video(encode_video(tmp_path / name, **how)) as video:
            assert any(oddity in said for said in video.probe.oddities)


def test_frames_whose_times_are_missing_lead_up_to_those_with_one(tmp_path, encode_video):
    source = encode_video(tmp_path / "source.mp4", options={"bf": "0", "g": "12"})
    path = tmp_path / "a.mkv"
    # Matroska has no room for times below zero and writes them as none at all
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                early = int(Fraction(13, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - early, packet.dts - early
                packet.stream = stream
                new.mux(packet)
    with open_video(path) as video:
        np.testing.assert_allclose(video.times_s(range(48)), (np.arange(48) - 13) / 25, atol=1e-6)
        assert "has 13 frames without a time of their own" in video.probe.oddities


@pytest.mark.parametrize(
    ("claimed_s", "times_s"),
    [
        ([0.5, 0.7, 0.8], [0.5, 0.7, 0.8]),
        ([0.5, 0.8, 0.7, 0.9], [0.5, 0.7, 0.8, 0.9]),
        ([0.5, 0.5, 0.9], [0.5, 0.7, 0.9]),
        ([0.5, 0.9, 0.9, 0.9], [0.5, 0.9, 1.0, 1.1]),
        ([None, 0.5, None, 0.9, None], [0.4, 0.5, 0.7, 0.9, 1.0]),
        ([0.5, 0.5, None, 0.8], [0.5, 0.6, 0.7, 0.8]),
        ([None, None, None], [0.0, 0.1, 0.2]),
        ([None], [0.0]),
        ([7.0], [7.0]),
    ],
)
def test_times_are_completed_to_ascend(claimed_s, times_s):
    completed, oddities = complete_times(claimed_s, 0.1, "a.avi")
    np.testing.assert_allclose(completed, times_s, atol=1e-12)
    assert (oddities == []) == (claimed_s == times_s)


def test_times_that_floating_point_cannot_tell_apart_are_an_error():
    with pytest.raises(VideoError, match=r"^a.mkv: its timestamps are too large"):
        complete_times([1e300, 1e300], 0.04, "a.mkv")


def test_a_frame_shown_after_a_century_costs_no_more_than_another(tmp_path, encode_video):
    times_ms = [*range(0, 1000, 40), 4_000_000_000_000]
    how = {"num_frames": len(times_ms), "times_ms": times_ms, "options": {"bf": "0"}}
    path = encode_video(tmp_path / "gap.mkv", **how)
    tracemalloc.start()
    try:
        with open_video(path) as video:
            wanted = sample_source_indices(video.num_frames, video.fps, SamplingConfig())
            batch = video.read(wanted)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert batch.time_s[-1] == 4e9
    assert len(batch.frames) == len(times_ms)
