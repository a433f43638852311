"""Frames by index: exact, upright, resized, whatever the file holds."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from itg_data.errors import VideoError
from itg_data.video import VideoReader, open_video


def assert_exact(reader: VideoReader, truth) -> None:
    """Holds every frame against the truth: in order, backwards, at random, sparse, repeated."""
    num_frames = len(truth.frames)
    assert reader.num_frames == num_frames
    assert (reader.height, reader.width) == truth.frames.shape[1:3]
    np.testing.assert_allclose(reader.times_s(range(num_frames)), truth.time_s, atol=1e-6)
    truth.check(reader, list(range(num_frames)))
    truth.check(reader, list(range(num_frames))[::-1])
    rng = np.random.default_rng(0)
    for _ in range(8):
        truth.check(reader, rng.integers(0, num_frames, 6).tolist())
    for stride in (5, 13):
        truth.check(reader, list(range(0, num_frames, stride)))
    for single in rng.permutation(num_frames)[:8].tolist():
        truth.check(reader, [single])


def test_frames_are_what_sequential_decoding_shows(truth):
    with open_video(truth.path) as reader:
        assert reader.backend == "pyav"
        assert_exact(reader, truth)


def test_decord_is_exact_or_refused_with_a_reason(truth):
    if truth.decord_is_exact:
        with open_video(truth.path, backend="decord") as reader:
            assert reader.backend == "decord"
            assert_exact(reader, truth)
    else:
        with pytest.raises(VideoError, match="decord"):
            open_video(truth.path, backend="decord")


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["b-frames", "open-gop", "hevc", "vp9", "av1"])
def test_the_number_of_threads_changes_nothing(kind, num_threads, truth_of):
    truth = truth_of(kind)
    with open_video(truth.path, num_threads=num_threads) as reader:
        for wanted in ([40, 3, 17], list(range(20, 48)), [0]):
            truth.check(reader, wanted)


@pytest.mark.parametrize(
    "kind", ["open-gop", "hevc-open-gop", "intra-refresh", "mpeg4", "h264-avi", "mpeg2-ts"]
)
def test_decord_alone_returns_wrong_frames_from_files_that_the_probe_keeps_from_it(kind, truth_of):
    # why the guard exists; the day this fails, decord may be allowed more
    import decord

    truth = truth_of(kind)
    reader = decord.VideoReader(str(truth.path), num_threads=1)
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(12):
        wanted = rng.integers(0, len(truth.frames), 6)
        frames = reader.get_batch(wanted).asnumpy()
        wrong += int((frames != truth.frames[wanted]).any())
    assert wrong > 0


def test_decord_alone_miscounts_a_file_with_an_edit_list(truth_of):
    import decord

    truth = truth_of("edit-list")
    assert len(truth.frames) == 28
    assert len(decord.VideoReader(str(truth.path), num_threads=1)) != len(truth.frames)


def test_a_file_with_an_edit_list_shows_what_the_uncut_file_shows(truth_of):
    uncut = truth_of("b-frames").frames
    with open_video(truth_of("edit-list").path) as reader:
        np.testing.assert_array_equal(reader.read(range(28)).frames, uncut[20:])
        assert reader.times_s([0])[0] == 0.0


def test_variable_frame_rate_keeps_its_original_times(truth_of, uneven_ms):
    with open_video(truth_of("variable-rate-mkv").path) as reader:
        np.testing.assert_allclose(reader.times_s(range(48)), np.array(uneven_ms) / 1000, atol=1e-9)
        mean_gap_s = (uneven_ms[-1] - uneven_ms[0]) / 1000 / 47
        assert reader.fps == pytest.approx(1 / mean_gap_s, rel=0.05)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_colours_follow_the_matrix_that_the_file_names(backend, tmp_path, encode_video):
    tags = {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}
    path = encode_video(
        tmp_path / "bt709.mp4", options=tags, colorspace=1, pix_fmt="yuv444p", num_frames=1
    )
    with av.open(str(path)) as container:
        yuv = next(container.decode(video=0)).to_ndarray(format="yuv444p").astype(np.float64)
    y, u, v = (yuv[0] - 16) / 219, (yuv[1] - 128) / 224, (yuv[2] - 128) / 224
    red = (y + 1.5748 * v) * 255
    green = (y - 0.1873 * u - 0.4681 * v) * 255
    expected = np.clip(np.stack([red, green], -1), 0, 255)
    with open_video(path, backend=backend) as reader:
        error = np.abs(reader.read([0]).frames[0, :, :, :2] - expected)
    # BT.601 coefficients would be off by six on average
    assert error.mean() < 2


@pytest.mark.parametrize("size", [(32, 64), (33, 17), (100, 200)])
@pytest.mark.parametrize("kind", ["b-frames", "odd-size", "10-bit"])
def test_both_backends_resize_to_the_same_pixels(kind, size, truth_of):
    path = truth_of(kind).path
    batches = []
    for backend in ("decord", "pyav"):
        with open_video(path, backend=backend, resize_to=size) as reader:
            assert reader.backend == backend
            batches.append(reader.read([3, 30]).frames)
    assert batches[0].shape == (2, *size, 3)
    np.testing.assert_array_equal(*batches)


def test_decord_says_where_it_cannot_resize(plain_video):
    # decord 0.6 trips over its own row padding when asked for 48 columns
    with (
        open_video(plain_video, backend="decord", resize_to=(32, 48)) as reader,
        pytest.raises(VideoError, match="decord failed"),
    ):
        reader.read([3, 30])


def test_shrinking_is_filtered_against_aliasing(tmp_path, encode_video):
    path = tmp_path / "stripes.mp4"
    stripes = np.zeros((64, 96, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stripes, format="rgb24")))
        container.mux(stream.encode())
    with open_video(path, resize_to=(16, 24)) as reader:
        frame = reader.read([0]).frames[0].astype(int)
    assert np.abs(frame[:, 2:-2] - 127.5).max() < 20


@pytest.mark.parametrize("kind", ["rotated-90", "rotated-180", "rotated-270", "mirrored"])
def test_a_turned_video_is_resized_as_shown(kind, truth_of):
    truth = truth_of(kind)
    with open_video(truth.path, resize_to=(20, 50)) as reader:
        frame = reader.read([7]).frames[0].astype(int)
    plain = truth_of("b-frames")
    swapped = truth.frames.shape[1:3] != plain.frames.shape[1:3]
    with open_video(plain.path, resize_to=(50, 20) if swapped else (20, 50)) as reader:
        expected = truth.turn(reader.read([7]).frames)[0].astype(int)
    assert frame.shape == (20, 50, 3)
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_indices_may_repeat_and_come_in_any_order(backend, truth_of):
    truth = truth_of("b-frames")
    with open_video(truth.path, backend=backend) as reader:
        truth.check(reader, [5, 5, 40, 0, 5, 39])


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("wanted", [[-1], [48], [0, 1000], [0.5], [[1, 2]]])
def test_an_index_that_names_no_frame_is_refused(backend, wanted, plain_video):
    with open_video(plain_video, backend=backend) as reader:
        with pytest.raises(ValueError, match="source_idx"):
            reader.read(wanted)
        with pytest.raises(ValueError, match="source_idx"):
            reader.times_s(wanted)


def test_reading_no_frames_gives_an_empty_batch(plain_video):
    with open_video(plain_video, resize_to=(8, 9)) as reader:
        assert reader.read([]).frames.shape == (0, 8, 9, 3)


@pytest.mark.parametrize(
    "arguments",
    [{"backend": "gpu"}, {"num_threads": -1}, {"resize_to": (0, 5)}, {"resize_to": (5, -5)}],
)
def test_arguments_out_of_range_are_refused(arguments, plain_video):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        open_video(plain_video, **arguments)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_reading_after_close_is_an_error(backend, plain_video):
    reader = open_video(plain_video, backend=backend)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read([0])


def test_opening_many_times_leaves_no_file_open(plain_video):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for backend in ("decord", "pyav"):
        for _ in range(5):
            with open_video(plain_video, backend=backend) as reader:
                reader.read([11])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_an_open_reader_lets_the_interpreter_end(plain_video):
    script = (
        "import sys; from itg_data.video import open_video\n"
        "reader = open_video(sys.argv[1], backend='decord'); reader.read([40]); print('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(plain_video)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")
