import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from itg_data.errors import VideoError
from itg_data.exact import ExactDecoder
from itg_data.resize import squash
from itg_data.sampling import SamplingConfig
from itg_data.stream import ChunkStream
from itg_data.video import VideoReader, open_video
from itg_model import FrameGrounder, upload
from itg_model import frames as frames_module
from itg_model.upload import UploadStream, upload_chunk

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda:0"), marks=pytest.mark.gpu)]
SAMPLING = SamplingConfig(rate_hz=4)


@pytest.fixture
def reader(video):
    with open_video(video) as reader:
        yield reader


@pytest.fixture
def small_uploads(monkeypatch):
    """Three frames of the video go together."""
    monkeypatch.setattr(upload, "_MAX_UPLOAD_BYTES", 3 * 64 * 48 * 3)


def start(reader, chunk_size, device, *, ordered=True, **more):
    chunk = upload_chunk((reader.height, reader.width, 3), chunk_size)
    decoded = reader.stream(range(reader.num_frames), chunk, ordered=ordered, num_workers=2)
    return UploadStream(decoded, 32, chunk_size, device, **more)


def gather(stream):
    try:
        return list(stream)
    finally:
        stream.close()


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 40, 64])
def test_every_frame_comes_once_as_pil_squashes_it(
    chunk_size, ordered, device, reader, small_uploads
):
    batches = gather(start(reader, chunk_size, device, ordered=ordered))
    sizes = [len(batch.frames) for batch in batches]
    assert sum(sizes) == 40
    assert sizes[:-1] == [chunk_size] * (len(sizes) - 1)
    places = np.concatenate([batch.source_idx for batch in batches])
    assert sorted(places) == list(range(40))
    assert not ordered or (np.diff(places) > 0).all()
    whole = reader.read(places)
    expected = [squash(frame, 32) for frame in whole.frames]
    np.testing.assert_array_equal(torch.cat([b.frames for b in batches]).cpu(), expected)
    np.testing.assert_array_equal(np.concatenate([b.time_s for b in batches]), whole.time_s)
    assert {batch.frames.device for batch in batches} == {device}


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_who_wants_to_see_frames_is_shown_them_whole_and_in_order(device, reader, small_uploads):
    seen = []

    def show(batch):
        seen.append((batch.source_idx.tolist(), batch.frames.copy(), batch.time_s))

    batches = gather(start(reader, 7, device, on_frames=show))
    assert [place for idx, _, _ in seen for place in idx] == list(range(40))
    assert max(len(idx) for idx, _, _ in seen) == 3
    whole = reader.read(range(40))
    np.testing.assert_array_equal(np.concatenate([frames for _, frames, _ in seen]), whole.frames)
    np.testing.assert_array_equal(np.concatenate([times for _, _, times in seen]), whole.time_s)
    assert sum(len(batch.frames) for batch in batches) == 40


def test_frames_are_uploaded_before_anybody_asks(reader, monkeypatch):
    taken, take = [], ChunkStream.take
    monkeypatch.setattr(ChunkStream, "take", lambda *a: (taken.append(a), take(*a))[1])
    stream = start(reader, 4, CPU)
    for ahead in stream._ahead:
        ahead.result(timeout=20)
    assert len(taken) >= 10
    assert sum(len(batch.frames) for batch in gather(stream)) == 40


def test_what_waits_is_bounded(reader, monkeypatch):
    monkeypatch.setattr(upload, "_MAX_WAITING_BYTES", 3 * 4 * 32 * 32 * 3)
    stream = start(reader, 4, CPU)
    for ahead in stream._ahead:
        ahead.result(timeout=20)
    assert [len(ahead.result().frames) for ahead in stream._ahead] == [4, 4, 4]
    assert sum(len(batch.frames) for batch in gather(stream)) == 40


def test_a_frame_larger_than_the_bound_goes_alone(monkeypatch):
    assert upload_chunk((4320, 7680, 3), 64) == 1
    assert upload_chunk((720, 1280, 3), 64) == 18
    assert upload_chunk((48, 64, 3), 64) == 64


def test_lost_frames_are_named_and_the_others_come(reader, monkeypatch):
    take = ChunkStream.take

    def lose_odd(stream, at_most):
        taken = take(stream, at_most)
        if taken is None:
            return None
        places, images, _ = taken
        kept = [i for i, place in enumerate(places) if place % 2 == 0]
        return places[kept], [images[i] for i in kept], places[places % 2 == 1]

    monkeypatch.setattr(ChunkStream, "take", lose_odd)
    batches = gather(start(reader, 6, CPU))
    assert [len(batch.frames) for batch in batches] == [6, 6, 6, 2]
    lost = np.concatenate([batch.missing_source_idx for batch in batches])
    np.testing.assert_array_equal(lost, range(1, 40, 2))


def test_a_chunk_may_name_lost_frames_alone(reader, monkeypatch):
    take = ChunkStream.take

    def lose_all(stream, at_most):
        taken = take(stream, at_most)
        return taken and (taken[0][:0], [], taken[0])

    monkeypatch.setattr(ChunkStream, "take", lose_all)
    (batch,) = gather(start(reader, 6, CPU))
    assert batch.frames.shape == (0, 32, 32, 3)
    np.testing.assert_array_equal(batch.missing_source_idx, range(40))


def test_a_failure_reaches_the_caller_and_nothing_is_left_running(reader, monkeypatch):
    def fail(*_):
        raise VideoError("a.mp4", "is torn")

    monkeypatch.setattr(ChunkStream, "take", fail)
    stream = start(reader, 6, CPU)
    with pytest.raises(VideoError, match="is torn"):
        next(stream)
    stream.close()
    assert not any(thread.is_alive() for thread in stream._uploader._threads)


def test_a_closed_stream_ends_at_once(reader):
    stream = start(reader, 4, CPU)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert not any(thread.is_alive() for thread in stream._uploader._threads)


def test_squashing_elsewhere_gives_the_same_features(tiny_model, tokenizer, video, monkeypatch):
    grounder = FrameGrounder(tiny_model, tokenizer, "tiny", frame_chunk=4)
    usual = grounder.encode(video, SAMPLING)
    monkeypatch.setattr(frames_module, "_squashes_frames", lambda _: True)
    shown = []
    for on_frames in (None, lambda batch: shown.extend(batch.source_idx)):
        uploaded = grounder.encode(video, SAMPLING, on_frames=on_frames)
        np.testing.assert_array_equal(uploaded.source_idx, usual.source_idx)
        # not to the bit: frames come as they are ready, and a product's last bits go by its rows
        torch.testing.assert_close(uploaded.features, usual.features)
    assert shown == usual.source_idx.tolist()


def write_fading(path: Path) -> Path:
    """48 frames of few colours, each another, with a keyframe every fourth."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"g": "4", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(48):
            image = np.full((48, 64, 3), (5 * i, 250 - 5 * i, 60), dtype=np.uint8)
            image[:, i : i + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_frames_that_come_out_of_order_are_put_in_order(
    tiny_model, tokenizer, tmp_path, monkeypatch
):
    path = write_fading(tmp_path / "fading.mp4")
    grounder = FrameGrounder(tiny_model, tokenizer, "tiny", frame_chunk=4)
    wanted = grounder.encode(path, SAMPLING)
    later_came, came = threading.Event(), []
    read, stream = ExactDecoder.read, VideoReader.stream
    encode_frames = tiny_model.encode_frames

    def read_the_start_last(decoder, source_idx):
        if 0 in source_idx:
            assert later_came.wait(timeout=600)
        yield from read(decoder, source_idx)

    def note(pixels, *args):
        later_came.set()
        return encode_frames(pixels, *args)

    def stream_with_four(reader, *args, **options):
        return stream(reader, *args, **options, num_workers=4)

    monkeypatch.setattr(ExactDecoder, "read", read_the_start_last)
    monkeypatch.setattr(VideoReader, "stream", stream_with_four)
    monkeypatch.setattr(frames_module, "_squashes_frames", lambda _: True)
    monkeypatch.setattr(tiny_model, "encode_frames", note)
    with grounder.open(path, SAMPLING) as opened:
        chunks = opened._chunks
        monkeypatch.setattr(
            opened, "_chunks", lambda: (came.extend(c[0].source_idx) or c for c in chunks())
        )
        encoded = grounder.encode_opened(opened)
    assert came != sorted(came)
    np.testing.assert_array_equal(encoded.source_idx, range(48))
    np.testing.assert_array_equal(encoded.time_s, wanted.time_s)
    torch.testing.assert_close(encoded.features, wanted.features)
    # frames in another order would be told by their features
    assert (wanted.features.diff(dim=0).abs().amax((1, 2)) > 1e-3).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(720, 1280), (2160, 3840)], ids=str)
def test_the_tower_on_a_gpu_is_given_pils_squares(shape, tiny_model, tokenizer, tmp_path):
    path = write_noise(tmp_path / "noise.mp4", *shape)
    grounder = FrameGrounder(tiny_model.cuda(), tokenizer, "tiny", frame_chunk=5)
    given = []
    encode_frames = grounder.model.encode_frames

    def look(pixels, *args):
        given.append(pixels.cpu())
        return encode_frames(pixels, *args)

    grounder.model.encode_frames = look
    with grounder.open(path, SamplingConfig(rate_hz=25)) as opened:
        places = [batch.source_idx for batch, _ in opened._chunks()]
    with grounder.open(path, SamplingConfig(rate_hz=25)) as opened:
        grounder.encode_opened(opened)
    with open_video(path) as reader:
        size = grounder.model.config.vision.image_size
        expected = [squash(frame, size) for frame in reader.read(np.concatenate(places)).frames]
    squares = sorted(frame.numpy().tobytes() for frame in torch.cat(given))
    assert squares == sorted(frame.tobytes() for frame in expected)
    assert [len(pixels) for pixels in given] == [5, 5, 2]


def write_noise(path: Path, height: int, width: int) -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(12):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path
