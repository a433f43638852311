import heapq
import itertools
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from itg_data import probe
from itg_data.errors import VideoError
from itg_data.probe import Orientation
from itg_data.video import open_video
from itg_kernels.frames import nv12_to_rgb
from itg_model import nvdec, nvdec_sessions
from itg_model.frames import check_decode
from itg_model.nvdec import find_matrix, open_nvdec, turn
from itg_model.nvdec_sessions import sessions

B_FRAMES = {"bf": "3", "g": "12"}
BT709 = {**B_FRAMES, "x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
HEVC = {"x265-params": "log-level=none:pools=1:keyint=12:bframes=3"}

KINDS: dict[str, dict[str, Any]] = {
    "b-frames": {"options": B_FRAMES},
    "bt709": {"options": BT709, "colorspace": 1},
    "full-range": {"options": B_FRAMES, "pix_fmt": "yuvj420p"},
    "open-gop": {"options": OPEN_GOP},
    "hevc-open-gop": {"codec": "libx265", "options": HEVC},
}


def encode(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    colorspace: int | None = None,
    size: tuple[int, int] = (160, 256),
    seed: int = 0,
) -> Path:
    height, width = size
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = picture.repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for i in range(48):
            image = np.roll(picture, (3 * i, 5 * i), (0, 1))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("nvdec")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = encode(folder / f"{kind}.mp4", **KINDS[kind])
        return made[kind]

    return get


def gather(stream) -> tuple[np.ndarray, np.ndarray]:
    with stream:
        batches = list(stream)
    assert all(batch.missing_source_idx.size == 0 for batch in batches)
    frames = np.concatenate([np.asarray(torch.as_tensor(b.frames).cpu()) for b in batches])
    return frames, np.concatenate([b.source_idx for b in batches])


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", [range(48), range(0, 48, 7), [5, 6, 40], [47]])
@pytest.mark.parametrize("kind", KINDS)
def test_nvdec_shows_the_frames_of_the_cpu_bit_for_bit(kind, wanted, video_of):
    with open_nvdec(video_of(kind)) as gpu, open_video(video_of(kind)) as cpu:
        frames, source_idx = gather(gpu.stream(wanted, 10))
        np.testing.assert_array_equal(source_idx, wanted)
        np.testing.assert_array_equal(frames, cpu.read(wanted).frames)


@pytest.mark.gpu
def test_a_device_may_be_named_without_an_index(video_of):
    with open_nvdec(video_of("b-frames"), "cuda") as gpu:
        frames, source_idx = gather(gpu.stream(range(0, 48, 7), 5, size=98))
    np.testing.assert_array_equal(frames, squares_of_the_cpu(video_of("b-frames"), source_idx))


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [1, 3, 7])
def test_the_number_of_sessions_changes_nothing(num_workers, video_of):
    path = video_of("b-frames")
    with open_nvdec(path) as gpu, open_video(path) as cpu:
        stream = gpu.stream(range(48), 5, ordered=False, num_workers=num_workers)
        frames, source_idx = gather(stream)
        np.testing.assert_array_equal(frames, cpu.read(source_idx).frames)
        assert sorted(source_idx) == list(range(48))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_nvdec_squashes_as_pil_does_bit_for_bit(kind, video_of):
    path = video_of(kind)
    with open_nvdec(path) as gpu, open_video(path) as cpu:
        frames, _ = gather(gpu.stream(range(0, 48, 5), 4, size=98))
        expected, _ = gather(cpu.stream(range(0, 48, 5), 4, size=98))
    np.testing.assert_array_equal(frames, expected)


def read_squares(path: Path, wanted, **how) -> tuple[np.ndarray, np.ndarray]:
    with open_nvdec(path) as gpu:
        return gather(gpu.stream(wanted, 5, size=98, ordered=False, **how))


def squares_of_the_cpu(path: Path, source_idx) -> np.ndarray:
    with open_video(path) as cpu:
        order = np.argsort(source_idx)
        frames, _ = gather(cpu.stream(source_idx[order], 5, size=98))
        return frames[np.argsort(order)]


@pytest.fixture
def started(monkeypatch) -> list[Any]:
    """Sessions started in a test, which finds none waiting."""
    sessions.clear()
    started, start = [], nvdec.start_session
    monkeypatch.setattr(nvdec, "start_session", lambda kind: (started.append(kind), start(kind))[1])
    return started


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_next_video_takes_the_sessions_of_the_last(kind, tmp_path, started):
    paths = [encode(tmp_path / f"{i}.mp4", **KINDS[kind], seed=i) for i in range(3)]
    for path in paths:
        frames, source_idx = read_squares(path, range(48), num_workers=3)
        np.testing.assert_array_equal(frames, squares_of_the_cpu(path, source_idx))
    assert 1 <= len(started) <= 3


@pytest.mark.gpu
def test_videos_of_several_kinds_one_after_the_other_are_exact(video_of, tmp_path):
    other = encode(tmp_path / "other.mp4", options={**B_FRAMES, "refs": "8"}, seed=5)
    small = encode(tmp_path / "small.mp4", options=B_FRAMES, size=(96, 144), seed=6)
    paths = [*(video_of(kind) for kind in KINDS), other, small]
    for path in [*paths, *reversed(paths)]:
        frames, source_idx = read_squares(path, range(48))
        np.testing.assert_array_equal(frames, squares_of_the_cpu(path, source_idx))


@pytest.mark.gpu
def test_two_videos_at_once_do_not_meet(tmp_path):
    paths = [encode(tmp_path / f"{i}.mp4", options=B_FRAMES, seed=i) for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            read = list(pool.map(lambda path: read_squares(path, range(48)), paths))
            for path, (frames, source_idx) in zip(paths, read, strict=True):
                np.testing.assert_array_equal(frames, squares_of_the_cpu(path, source_idx))


@pytest.mark.gpu
@pytest.mark.parametrize("num_chunks", [0, 1, 3])
def test_a_video_closed_halfway_leaves_nothing_to_the_next(num_chunks, tmp_path, started):
    paths = [encode(tmp_path / f"{i}.mp4", options=OPEN_GOP, seed=i) for i in range(2)]
    for path in (paths[0], paths[1], paths[0]):
        with open_nvdec(path) as gpu:
            stream = gpu.stream(range(48), 3, size=98, ordered=False, num_workers=2)
            for _ in range(num_chunks):
                next(stream)
            stream.close()
        frames, source_idx = read_squares(paths[1], range(48), num_workers=2)
        np.testing.assert_array_equal(frames, squares_of_the_cpu(paths[1], source_idx))
    assert len(started) <= 2


@pytest.mark.gpu
def test_frames_wait_unharmed_while_the_gpu_is_busy(video_of):
    path = video_of("b-frames")
    busy = torch.ones(8192, 8192, device="cuda")
    with open_nvdec(path) as gpu, gpu.stream(range(48), 4, size=98, ordered=False) as stream:
        copies, source_idx = [], []
        for batch in stream:
            for _ in range(5):
                busy = busy @ busy * 1e-4
            # read by the caller's stream, which lags behind
            copies.append(batch.frames.clone())
            source_idx.append(batch.source_idx)
            del batch
    frames = torch.cat(copies).cpu().numpy()
    np.testing.assert_array_equal(frames, squares_of_the_cpu(path, np.concatenate(source_idx)))


@pytest.mark.gpu
def test_wrong_pixels_are_noticed(video_of, monkeypatch):
    monkeypatch.setattr(
        "itg_model.nvdec.find_matrix", lambda _: (16, 9539, 14686, 17305, -1747, -4366)
    )
    with (
        open_nvdec(video_of("b-frames")) as gpu,
        pytest.raises(VideoError, match=r"nvdec shows frame \d+ differently from the CPU"),
    ):
        list(gpu.stream([3, 20, 40], 3))


@pytest.mark.gpu
def test_nvdec_refuses_what_it_is_not_known_to_show_exactly(tmp_path):
    path = encode(tmp_path / "a.mp4", options=B_FRAMES, pix_fmt="yuv444p")
    with pytest.raises(VideoError, match="yuv444p"):
        open_nvdec(path)


def test_all_that_is_odd_about_a_file_is_told(tmp_path, on_cpu):
    path = encode(tmp_path / "a.avi", options=B_FRAMES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    reason = "has 1 damaged packets, is in a container without presentation times"
    with pytest.raises(VideoError, match=f"packets that name their frames, and this file {reason}"):
        open_nvdec(path, "cpu")


def copy_packets(source: Path, path: Path, first: int) -> Path:
    """Leaves out the packets before the first one named."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(old.demux(video=0)):
            if i >= first and packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_file_that_starts_amid_a_gop_is_refused(suffix, video_of, on_cpu, tmp_path):
    path = copy_packets(video_of("b-frames"), tmp_path / f"a{suffix}", first=5)
    with pytest.raises(VideoError, match="this file does not start with a clean keyframe"):
        open_nvdec(path, "cpu")
    # at a keyframe it may be cut
    path = copy_packets(video_of("b-frames"), tmp_path / f"b{suffix}", first=12)
    open_nvdec(path, "cpu").close()


def test_a_file_that_breaks_off_is_refused(video_of, on_cpu, monkeypatch):
    def break_off(container, *streams):
        yield from itertools.islice(read_packets(container, *streams), 30)
        raise av.error.InvalidDataError(1, "Invalid data found")

    read_packets = probe.read_packets
    monkeypatch.setattr(probe, "read_packets", break_off)
    with pytest.raises(VideoError, match="nvdec hides damage, and this file breaks off"):
        open_nvdec(video_of("b-frames"), "cpu")


@pytest.mark.parametrize("kind", ["open-gop", "hevc-open-gop"])
def test_an_open_gop_is_not_refused(kind, video_of, on_cpu):
    with open_nvdec(video_of(kind), "cpu") as gpu:
        assert any("open GOP" in oddity for oddity in gpu.probe.oddities)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("no such library\nat all"), "no such library"),
        (RuntimeError("no driver"), "no driver"),
        (ImportError(), "ImportError"),
    ],
)
def test_nvdec_that_is_not_there_is_one_clear_error(error, reason, tmp_path, monkeypatch):
    def refuse():
        raise error

    monkeypatch.setattr(nvdec_sessions, "nvc", refuse)
    message = re.escape(f"nvdec needs itg-model[nvdec] and an NVIDIA driver ({reason})")
    with pytest.raises(VideoError, match=f"a.mp4: {message}"):
        open_nvdec(tmp_path / "a.mp4")
    # once for all videos, before a model is loaded
    with pytest.raises(ValueError, match=f"decode {message}"):
        check_decode("nvdec", torch.device("cuda"))
    check_decode("pyav", torch.device("cuda"))


def test_the_library_of_nvdec_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(ValueError, match=r"decode nvdec needs itg-model\[nvdec\]"):
        check_decode("nvdec", torch.device("cuda"))


def test_cuda_without_an_index_is_the_callers_current_gpu(video_of, on_cpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for device, meant in (("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        with open_nvdec(video_of("b-frames"), device) as gpu:
            assert gpu._device == torch.device(meant)


def decode_nv12(path: Path) -> np.ndarray:
    """[N, 240, 256]: what NVDEC gives of a file of 160 x 256."""
    with av.open(str(path)) as container:
        planes = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
    chroma = planes[:, 160:].reshape(-1, 2, 80, 128).transpose(0, 2, 3, 1).reshape(-1, 80, 256)
    return np.concatenate([planes[:, :160], chroma], axis=1)


@pytest.mark.parametrize("kind", ["b-frames", "bt709", "full-range"])
def test_colours_are_converted_as_libswscale_does(kind, video_of):
    path = video_of(kind)
    with open_video(path) as reader:
        expected = reader.read(range(48)).frames
        matrix = find_matrix(reader.probe)
    rgb = nv12_to_rgb(torch.from_numpy(decode_nv12(path)), matrix)
    np.testing.assert_array_equal(rgb.numpy(), expected)


class CpuDecoder:
    """In NVDEC's place, so that a stream can be tested without a GPU."""

    lost: frozenset[int] = frozenset()
    wrong: frozenset[int] = frozenset()

    def __init__(self, cpu, device) -> None:
        self.planes = decode_nv12(Path(cpu.path))

    def read(self, wanted):
        for place in wanted.tolist():
            if place not in self.lost:
                yield place, torch.from_numpy(self.planes[place] + (place in self.wrong))

    def close(self) -> None:
        pass


@pytest.fixture
def on_cpu(monkeypatch) -> type[CpuDecoder]:
    class Decoder(CpuDecoder):
        pass

    monkeypatch.setattr(nvdec, "NvdecDecoder", Decoder)
    monkeypatch.setattr(nvdec, "explain_missing", lambda: None)
    return Decoder


@pytest.mark.parametrize("size", [None, 98])
@pytest.mark.parametrize("together", [1, 3, 100])
def test_a_stream_converts_its_frames_in_groups(size, together, video_of, on_cpu, monkeypatch):
    monkeypatch.setattr(nvdec, "_MAX_CONVERT_BYTES", together * 160 * 256 * 3)
    path, wanted = video_of("bt709"), range(0, 48, 2)
    with open_nvdec(path, "cpu") as gpu, open_video(path) as cpu:
        frames, source_idx = gather(gpu.stream(wanted, 10, size=size))
        expected, _ = gather(cpu.stream(wanted, 10, size=size))
    np.testing.assert_array_equal(source_idx, wanted)
    np.testing.assert_array_equal(frames, expected)


def test_lost_frames_are_named_unless_one_is_to_be_compared(video_of, on_cpu):
    with open_nvdec(video_of("b-frames"), "cpu") as gpu:
        on_cpu.lost = frozenset([5, 7])
        with gpu.stream(range(3, 9), 2, size=98) as stream:
            compared = stream._compared
            batches = list(stream)
        assert compared not in on_cpu.lost
        assert [len(batch.frames) for batch in batches] == [2, 1, 1]
        assert [batch.missing_source_idx.tolist() for batch in batches] == [[], [5], [7]]
        on_cpu.lost = frozenset([compared])
        with pytest.raises(VideoError, match=f"nvdec did not show frame {compared}"):
            list(gpu.stream(range(3, 9), 2))


def test_a_stream_that_shows_other_frames_ends_what_waits_for_the_next(
    video_of, on_cpu, monkeypatch
):
    cleared = []
    monkeypatch.setattr(sessions, "clear", lambda: cleared.append(True))
    with open_nvdec(video_of("b-frames"), "cpu") as gpu:
        on_cpu.wrong = frozenset(range(48))
        with pytest.raises(VideoError, match=r"nvdec shows frame \d+ differently from the CPU"):
            list(gpu.stream(range(8), 4))
    assert cleared


def test_a_stream_closed_at_once_is_done_with_the_file(video_of, on_cpu):
    with open_nvdec(video_of("b-frames"), "cpu") as gpu:
        stream = gpu.stream(range(48), 4)
        stream.close()
        assert stream._expected.done()
        assert list(stream) == []


class Planes(np.ndarray):
    """A frame as a session gives it."""

    pts: int

    def getPTS(self) -> int:
        return self.pts


class CpuSession:
    """In the place of an NVDEC session: a frame of some size to every packet, in order of time."""

    num_held = 4  # more than any frame here waits for

    def __init__(self, shape_at: Callable[[int], tuple[int, int]]) -> None:
        self.cuda_stream = SimpleNamespace(synchronize=lambda: None)
        self.distrusted = False
        self._shape_at = shape_at
        self._held: list[int] = []

    def decode(self, packet) -> list[Planes]:
        heapq.heappush(self._held, packet.pts)
        return [self._show()] if len(self._held) > self.num_held else []

    def flush(self) -> list[Planes]:
        return [self._show() for _ in range(len(self._held))]

    def _show(self) -> Planes:
        pts = heapq.heappop(self._held)
        frame = np.zeros(self._shape_at(pts), np.uint8).view(Planes)
        frame.pts = pts
        return frame

    def settle(self) -> bool:
        return False

    def end(self) -> None:
        pass

    def distrust(self) -> None:
        self.distrusted = True


def use_session(monkeypatch, session: CpuSession) -> None:
    monkeypatch.setattr(nvdec, "explain_missing", lambda: None)
    monkeypatch.setattr(nvdec, "start_session", lambda _: session)
    monkeypatch.setattr(nvdec.NvdecStream, "_compare", lambda *_: None)
    for name in ("set_device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize("chunk_size", [1, 5, 48])
def test_a_stream_that_changes_its_size_is_a_bad_video_and_not_squashed(
    chunk_size, video_of, monkeypatch
):
    path = video_of("b-frames")
    with open_video(path) as cpu:
        half = int(cpu.probe.index.frame_pts[24])
    session = CpuSession(lambda pts: (240, 256) if pts < half else (120, 128))
    use_session(monkeypatch, session)
    with (
        open_nvdec(path, "cpu") as gpu,
        gpu.stream(range(48), chunk_size, size=98, num_workers=1) as stream,
        pytest.raises(VideoError, match="changes its size, which nvdec does not follow"),
    ):
        list(stream)
    assert session.distrusted


def test_frames_of_one_size_are_read_to_the_end(video_of, monkeypatch):
    use_session(monkeypatch, session := CpuSession(lambda _: (240, 256)))
    with open_nvdec(video_of("b-frames"), "cpu") as gpu:
        frames, source_idx = gather(gpu.stream(range(48), 5, size=98, num_workers=1))
    assert frames.shape == (48, 98, 98, 3)
    np.testing.assert_array_equal(source_idx, range(48))
    assert not session.distrusted


def test_frames_that_come_out_of_order_are_no_silent_loss(video_of, monkeypatch):
    use_session(monkeypatch, session := CpuSession(lambda _: (240, 256)))
    session.num_held = 0
    with (
        open_nvdec(video_of("b-frames"), "cpu") as gpu,
        gpu.stream(range(48), 5, size=98, num_workers=1) as stream,
        pytest.raises(VideoError, match="was decoded after later ones"),
    ):
        list(stream)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_tensors_are_turned_as_arrays_are(transpose, flip_x, flip_y):
    orientation = Orientation(transpose=transpose, flip_x=flip_x, flip_y=flip_y)
    frame = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    turned = turn(torch.from_numpy(frame)[None], orientation)
    np.testing.assert_array_equal(turned[0].numpy(), orientation.apply(frame))
