"""Small videos of every kind, encoded on the spot, every frame of which can be told apart."""

import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from itg_data.annotate.records import (
    Annotation,
    DroppedSample,
    LabelledFrame,
    PromptHash,
    TokenCount,
)
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.records import GroundingRecord
from itg_data.sets.derive import write_derived
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_data.video import VideoReader

RATE_HZ = 25
TICK = Fraction(1, 1000)

B_FRAMES = {"bf": "3", "g": "12"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
HEVC = "log-level=none:pools=1:keyint=12:bframes=3"
FAST_VPX = {"cpu-used": "8", "deadline": "realtime", "g": "12"}
FAST_AOM = {"cpu-used": "8", "usage": "realtime", "g": "12"}
UNEVEN_MS = np.cumsum(np.random.default_rng(0).integers(20, 90, 48)).tolist()
QUARTER = 1 << 16

# name -> file suffix, whether decord may read it, how to encode it
KINDS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "b-frames": ("mp4", True, {"options": B_FRAMES}),
    "open-gop": ("mp4", False, {"options": OPEN_GOP}),
    "open-gop-mkv": ("mkv", False, {"options": OPEN_GOP}),
    "intra-refresh": ("mp4", False, {"options": {"x264-params": "intra-refresh=1:keyint=12"}}),
    "variable-rate": ("mp4", True, {"options": B_FRAMES, "times_ms": UNEVEN_MS}),
    "variable-rate-mkv": ("mkv", True, {"options": B_FRAMES, "times_ms": UNEVEN_MS}),
    "hevc": ("mp4", False, {"codec": "libx265", "options": {"x265-params": HEVC + ":open-gop=0"}}),
    "hevc-open-gop": ("mp4", False, {"codec": "libx265", "options": {"x265-params": HEVC}}),
    "vp8": ("webm", True, {"codec": "libvpx", "options": FAST_VPX}),
    "vp9": ("webm", True, {"codec": "libvpx-vp9", "options": FAST_VPX}),
    "vp9-odd": ("webm", True, {"codec": "libvpx-vp9", "options": FAST_VPX, "size": (67, 97)}),
    "av1": ("mp4", False, {"codec": "libaom-av1", "options": FAST_AOM}),
    "av1-mkv": ("mkv", False, {"codec": "libaom-av1", "options": FAST_AOM}),
    "10-bit": ("mp4", True, {"pix_fmt": "yuv420p10le", "options": B_FRAMES}),
    "odd-size": ("mp4", True, {"pix_fmt": "yuv444p", "size": (67, 97), "options": B_FRAMES}),
    "full-range": ("mp4", True, {"pix_fmt": "yuvj420p", "options": B_FRAMES}),
    "interlaced": ("mp4", True, {"options": {**B_FRAMES, "x264-params": "interlaced=1"}}),
    "mpeg4": ("mp4", False, {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
    "mpeg2-ts": ("ts", False, {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}}),
    "h264-ts": ("ts", False, {"options": B_FRAMES}),
    "h264-avi": ("avi", False, {"options": B_FRAMES}),
    "mjpeg-avi": ("avi", False, {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "one-frame": ("mp4", True, {"num_frames": 1}),
}
# display matrices (a, b, c, d) as 1, 0, -1, and what they mean in numpy
ROTATIONS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray], bool]] = {
    "rotated-90": ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2)), True),
    "rotated-180": ((-1, 0, 0, -1), lambda f: np.rot90(f, 2, (1, 2)), True),
    "rotated-270": ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2)), True),
    "mirrored": ((-1, 0, 0, 1), lambda f: f[:, :, ::-1], False),
}
ALL_KINDS = [*KINDS, *ROTATIONS, "edit-list"]


def picture(frame: int, height: int, width: int) -> np.ndarray:
    """A moving pattern: no two frames of a video look alike."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([3 * x + 7 * frame, 5 * y + 11 * frame, 2 * (x + y) + 29 * frame], -1) % 256
    left = frame * 5 % (width - 16)
    image[8:24, left : left + 16] = [255, frame * 37 % 256, 0]
    return image.astype(np.uint8)


def _encode(
    path: Path,
    *,
    codec: str = "libx264",
    num_frames: int = 48,
    size: tuple[int, int] = (64, 96),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times_ms: list[int] | None = None,
    colorspace: int | None = None,
    color_range: int | None = None,
) -> Path:
    height, width = size
    with av.open(str(path), "w") as container:
        # x264 on several threads now and then writes a file that differs
        options = {"threads": "1", **(options or {})}
        stream = container.add_stream(codec, rate=RATE_HZ, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = TICK
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts = i if times_ms is None else times_ms[i]
            frame.time_base = Fraction(1, RATE_HZ) if times_ms is None else TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def encode_video() -> Callable[..., Path]:
    """Encodes a test video: `encode_video(path, codec=..., options=...)`."""
    return _encode


@pytest.fixture(scope="session")
def uneven_ms() -> list[int]:
    """When the frames of the videos of variable rate are shown."""
    return UNEVEN_MS


@pytest.fixture(scope="session")
def plain_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 frames of H.264 with B-frames in closed groups of 12; read only."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    return _encode(path, options={"bf": "3", "g": "12"})


class Truth(NamedTuple):
    """A file and what plain decoding from its start shows."""

    kind: str
    path: Path
    frames: np.ndarray
    time_s: np.ndarray
    decord_is_exact: bool
    turn: Callable[[np.ndarray], np.ndarray] = lambda frames: frames

    def check(self, reader: VideoReader, wanted: list[int]) -> None:
        """Holds what a reader gives against the truth."""
        batch = reader.read(wanted)
        assert batch.missing_source_idx.size == 0
        np.testing.assert_array_equal(batch.source_idx, wanted)
        np.testing.assert_array_equal(batch.frames, self.frames[wanted])
        np.testing.assert_allclose(batch.time_s, self.time_s[wanted], atol=1e-6)


def _decode_sequentially(path: Path) -> tuple[np.ndarray, np.ndarray]:
    frames, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            times.append(frame.time)
    # AVI names the times of packets in the order of decoding; frames are shown in theirs
    return np.stack(frames), np.sort(np.array(times, dtype=np.float64))


def _write_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value * QUARTER for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def _cut_without_decoding(source: Path, target: Path, first_shown: int) -> None:
    """Cuts as `ffmpeg -ss -c copy` does: from the keyframe before, hidden by an edit list."""
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [p for p in old.demux(video=0) if p.size]
        tick = packets[0].duration
        start = max(
            i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= first_shown * tick
        )
        for packet in packets[start:]:
            packet.pts -= first_shown * tick
            packet.dts -= first_shown * tick
            packet.stream = stream
            new.mux(packet)


@pytest.fixture(scope="session")
def truth_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Truth]:
    """Makes each kind of video once."""
    folder = tmp_path_factory.mktemp("kinds")
    made: dict[str, Truth] = {}

    def make(kind: str) -> Truth:
        if kind in KINDS:
            suffix, decord_is_exact, how = KINDS[kind]
            path = _encode(folder / f"{kind}.{suffix}", **how)
            return Truth(kind, path, *_decode_sequentially(path), decord_is_exact)
        plain = get("b-frames").path
        path = folder / f"{kind}.mp4"
        if kind == "edit-list":
            _cut_without_decoding(plain, path, first_shown=20)
            return Truth(kind, path, *_decode_sequentially(path), False)
        shutil.copy(plain, path)
        matrix, turn, decord_is_exact = ROTATIONS[kind]
        _write_display_matrix(path, matrix)
        frames, times = _decode_sequentially(path)
        return Truth(kind, path, turn(frames), times, decord_is_exact, turn)

    def get(kind: str) -> Truth:
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return get


@pytest.fixture(scope="session", params=ALL_KINDS)
def truth(request: pytest.FixtureRequest, truth_of: Callable[[str], Truth]) -> Truth:
    """Each kind of video in turn."""
    return truth_of(request.param)


@pytest.fixture(scope="session")
def decode_sequentially() -> Callable[[Path], tuple[np.ndarray, np.ndarray]]:
    """Frames and times as plain decoding from the start gives them."""
    return _decode_sequentially


@pytest.fixture(scope="session")
def with_index_in_front() -> Callable[[Path], bytes]:
    """Makes an mp4 whose index comes before its frames, as files for streaming have it."""

    def make(path: Path) -> bytes:
        source = _encode(path.with_name("source.mp4"), options=B_FRAMES)
        front = path.with_name("front.mp4")
        options = {"movflags": "faststart"}
        with av.open(str(source)) as old, av.open(str(front), "w", options=options) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
        return front.read_bytes()

    return make


@pytest.fixture(scope="session")
def damage() -> Callable[..., int]:
    """Overwrites one packet behind its first bytes: `damage(path, packet)` returns its frame."""

    def overwrite(path: Path, packet: int, keep: int = 12) -> int:
        frame, at, size = _packet_places(path)[packet]
        data = bytearray(path.read_bytes())
        data[at + keep : at + size] = b"\xff" * (size - keep)
        path.write_bytes(data)
        return frame

    return overwrite


@pytest.fixture(scope="session")
def packet_places() -> Callable[[Path], list[tuple[int, int, int]]]:
    """(source index, byte offset, size) of every packet, in decoding order."""
    return _packet_places


def _packet_places(path: Path) -> list[tuple[int, int, int]]:
    with av.open(str(path)) as container:
        packets = [(p.pts, p.pos, p.size) for p in container.demux(video=0) if p.size]
    order = {pts: i for i, pts in enumerate(sorted(pts for pts, _, _ in packets))}
    return [(order[pts], at, size) for pts, at, size in packets]


SCRIPTED = SyntheticConfig(num_train=2, num_heldout=1, duration_s=18)


@pytest.fixture(scope="session")
def scripted_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scripted set of three videos of 18 s; read only."""
    root = tmp_path_factory.mktemp("scripted") / "set"
    load_or_write_dataset(root, SCRIPTED)
    return root


def annotate_truly(record: GroundingRecord, **change: Any) -> Annotation:
    """What a pipeline without a fault would say of a scripted question."""
    seconds = range(SCRIPTED.duration_s)
    true = {s for s in seconds if any(p.start_s <= s < p.end_s for p in record.spans)}
    clips = () if record.question_type == "no_clue" else tuple(sorted({s // 5 for s in true}))
    candidates = tuple(s for s in seconds if s // 5 in clips or not clips)
    frames = [
        LabelledFrame(second=s, source_idx=s * SCRIPTED.fps, relevant=s in true if clips else None)
        for s in candidates
    ]
    fields: dict[str, Any] = {
        "id": record.id,
        "video": record.video.removeprefix("videos/"),
        "question": record.question,
        "answer": record.answer,
        "split": record.split,
        "duration_s": float(SCRIPTED.duration_s),
        "clip_s": 5,
        "cues": ("red circle",),
        "captions": tuple(f"What clip {clip} shows." for clip in range(4)),
        "explanation": f"Clips {clips} show it.",
        "clips": clips,
        "question_type": record.question_type,
        "candidate_s": candidates,
        "frames": tuple(frames),
        "model": "script",
        "seed": 0,
        "temperature": 0.0,
        "features": "none",
        "prompts": (PromptHash(stage="caption", sha256="0" * 64),),
        "tokens": TokenCount(num_calls=3, prompt_tokens=100, completion_tokens=10),
    }
    return Annotation(**(fields | change))


@pytest.fixture
def annotated_set(scripted_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a set: `annotated_set(changes={3: {"question": "..."}})`."""

    def make(changes: dict[int, dict[str, Any]] | None = None, videos: Path | None = None) -> Path:
        records = read_jsonl(scripted_root / "records.jsonl", GroundingRecord)
        root = tmp_path / "annotated"
        root.mkdir()
        (root / "videos").symlink_to(videos or scripted_root / "videos")
        write_jsonl(
            root / "annotations.jsonl",
            (
                annotate_truly(record, **(changes or {}).get(place, {}))
                for place, record in enumerate(records)
            ),
        )
        dropped = DroppedSample(
            id="d", video="x.mp4", question="Why?", reason="no_clip", detail="none chosen"
        )
        write_jsonl(root / "dropped.jsonl", [dropped])
        write_derived(root)
        return root

    return make
