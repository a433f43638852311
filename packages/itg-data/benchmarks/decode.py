"""Measures how long it takes from a closed video file to squashed frames; a JSON row for each way.

    uv run python packages/itg-data/benchmarks/decode.py --out packages/itg-data/benchmarks/results

The video is made on the spot: 720p H.264 at 30 Hz and 3 Mbit/s, a keyframe every 250 frames. Each
way starts with opening the file and ends with the last of the frames, squashed to 384 x 384. The
reference's way is decord with four threads, whole frames, then PIL on one thread. Ways that ran
before others leave the file in the page cache, so every way finds it there.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro
from itg_data.resize import squash
from itg_data.stream import count_cores
from itg_data.video import open_video
from PIL import Image

SIZE = 384
RATE_HZ = 30
GOP = 250
# Two groups of pictures are encoded; longer videos repeat them.
CLIP_FRAMES = 500

Row = dict[str, Any]
Way = Callable[[Path, int], tuple[float, int]]
"""Takes a video and a number of frames; returns when the first chunk was there, and the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """So many frames, evenly spaced, of a video of so many seconds."""

    frames: int
    video_s: int

    @property
    def name(self) -> str:
        """What tables and rows call it."""
        return f"{self.frames} of {self.video_s} s"


CASES = [
    Case(frames=512, video_s=120),
    Case(frames=64, video_s=120),
    Case(frames=512, video_s=600),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Measure decoding; the table is for people, the rows are for the record."""

    out: Path | None = None
    """Folder for the rows, one file per machine; nothing is written without it."""

    cases: tuple[str, ...] = tuple(case.name for case in CASES)
    """Cases to measure."""

    ways: tuple[str, ...] = ()
    """Parts of the names of the ways to measure; all if empty."""

    yardsticks: bool = True
    """Measure decord's ways too, which the ratios are taken against; they are slow."""

    repeats: int = 3
    """Times each of our own ways is measured; the median counts. decord is measured once."""

    nvdec: bool = False
    """Measure NVDEC as well; needs a GPU and itg-model[nvdec]."""

    clip: Path | None = None
    """A clip of 500 frames made before, instead of making one."""

    def run(self) -> int:
        """Makes the videos, measures and prints."""
        if self.nvdec:
            import torch

            torch.ones(1, device="cuda")  # starting CUDA is no part of decoding
        with tempfile.TemporaryDirectory() as folder:
            clip = self.clip or make_clip(Path(folder) / "clip.mp4")
            rows: list[Row] = []
            for case in CASES:
                if case.name in self.cases:
                    video = repeat_clip(clip, Path(folder) / f"{case.video_s}.mp4", case.video_s)
                    rows += self._measure(case, video)
        print(format_table(rows))
        return 0

    def _measure(self, case: Case, video: Path) -> list[Row]:
        rows: list[Row] = []
        for name, way in find_ways(self.nvdec).items():
            asked_for = not self.ways or any(part in name for part in self.ways)
            if not (self.yardsticks if name in YARDSTICKS else asked_for):
                continue
            repeats = 1 if name.startswith("decord") else self.repeats
            seconds, first_s = measure(way, video, case.frames, repeats)
            print(f"{case.name}, {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
            rows.append(
                {"case": case.name, **describe(name), "seconds": seconds, "first_chunk_s": first_s}
            )
        in_run = {row["way"]: row["seconds"] for row in rows}
        for row in rows:
            for ratio, yardstick in zip(("vs_decord_16", "vs_reference"), YARDSTICKS, strict=True):
                known = in_run.get(yardstick)
                row[ratio] = None if known is None else round(known / row["seconds"], 2)
            row |= provenance()
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / f"{provenance()['machine']}.jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        return rows


YARDSTICKS = ("decord, 16 threads, whole frames", "decord, 4 threads, then PIL (the reference)")


def find_ways(nvdec: bool) -> dict[str, Way]:
    """Every way from a file to frames, the yardsticks first."""
    ways: dict[str, Way] = {
        YARDSTICKS[0]: functools.partial(read_by_decord, num_threads=16, resize=None),
        YARDSTICKS[1]: functools.partial(read_by_decord, num_threads=4, resize=squash),
    }
    for workers in sorted({1, 4, count_cores()}):
        ways[f"pyav, {workers} workers"] = functools.partial(
            stream, backend="pyav", num_workers=workers, ordered=False
        )
    cores = count_cores()
    ways[f"pyav, {cores} workers, in time order"] = functools.partial(
        stream, backend="pyav", num_workers=cores, ordered=True
    )
    ways[f"decord, {cores} workers"] = functools.partial(
        stream, backend="decord", num_workers=cores, ordered=False
    )
    if nvdec:
        for workers in (1, 7):
            ways[f"nvdec, {workers} workers"] = functools.partial(stream_nvdec, num_workers=workers)
    return ways


def read_by_decord(
    video: Path, frames: int, num_threads: int, resize: Callable[..., Any] | None
) -> tuple[float, int]:
    """Reads all frames at once through decord alone, then resizes them one after the other."""
    import decord

    reader = decord.VideoReader(str(video), num_threads=num_threads)
    batch = reader.get_batch(places(len(reader), frames)).asnumpy()
    if resize is not None:
        batch = [resize(image, SIZE) for image in batch]
    return time.perf_counter(), len(batch)


def stream(
    video: Path, frames: int, backend: Any, num_workers: int, ordered: bool
) -> tuple[float, int]:
    """Streams frames through itg_data."""
    with open_video(video, backend=backend) as reader:
        chunks = reader.stream(
            places(reader.num_frames, frames),
            32,
            size=SIZE,
            ordered=ordered,
            num_workers=num_workers,
        )
        return count_frames(chunks)


def stream_nvdec(video: Path, frames: int, num_workers: int) -> tuple[float, int]:
    """Streams frames through the GPU's decoders; they end up on the GPU."""
    import torch
    from itg_model.nvdec import open_nvdec

    with open_nvdec(video) as reader:
        wanted = places(reader.num_frames, frames)
        chunks = reader.stream(wanted, 32, size=SIZE, ordered=False, num_workers=num_workers)
        counted = count_frames(chunks)
        torch.cuda.synchronize()
        return counted


def count_frames(chunks: Iterator[Any]) -> tuple[float, int]:
    """Goes through all chunks; says when the first was there."""
    first, count = 0.0, 0
    for chunk in chunks:
        first = first or time.perf_counter()
        count += len(chunk.frames)
    return first, count


def places(num_frames: int, wanted: int) -> list[int]:
    """Chooses frames evenly spaced over a video."""
    return np.linspace(0, num_frames - 1, wanted).round().astype(int).tolist()


def measure(way: Way, video: Path, frames: int, repeats: int) -> tuple[float, float]:
    """Takes the median of the seconds until all frames and until the first chunk were there."""
    seconds: list[float] = []
    first_s: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        first, count = way(video, frames)
        seconds.append(time.perf_counter() - started)
        first_s.append(first - started)
        if count != frames:
            raise RuntimeError(f"{count} frames came of {frames}")
    return round(float(np.median(seconds)), 3), round(float(np.median(first_s)), 3)


def describe(way: str) -> Row:
    """What a row says about its way."""
    parts = way.split(", ")
    resize = {"decord, 16 threads, whole frames": "none"}.get(
        way, "PIL bicubic, on the GPU" if parts[0] == "nvdec" else "PIL bicubic"
    )
    return {
        "way": way,
        "backend": parts[0],
        "workers": int(parts[1].split()[0]),
        "resize": resize,
    }


@functools.cache
def provenance() -> Row:
    """What every row says about where it comes from."""
    gpu = shell("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "none"
    cores = count_cores()
    sha = os.environ.get("ITG_GIT_SHA") or shell("git", "rev-parse", "HEAD")
    return {
        "cpu": cpu_name(),
        "cpu_count": cores,
        "gpu": gpu,
        "machine": f"{gpu}-{cores}-cores".lower().replace(" ", "-"),
        "git_sha": sha,
        "versions": {name: importlib.metadata.version(name) for name in ("av", "decord", "pillow")},
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor's model, as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def shell(*command: str) -> str:
    """The output of a command, empty if there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def format_table(rows: list[Row]) -> str:
    """For people; the package's README holds what this says of the committed rows."""
    lines = [
        "| frames | way | s | s to the first chunk | decord, 16 threads / it | reference / it |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [row["vs_decord_16"] or "", row["vs_reference"] or ""]
        cells = [row["case"], row["way"], row["seconds"], row["first_chunk_s"], *ratios]
        written = [f"{cell:.2f}" if isinstance(cell, float) else cell for cell in cells]
        lines.append(f"| {' | '.join(written)} |".replace("  ", " "))
    return "\n".join(lines)


def make_clip(path: Path) -> Path:
    """Encodes a picture that pans, grain on it and squares that move over it."""
    rng = np.random.default_rng(0)
    height, width = 720, 1280
    blurred = Image.fromarray(rng.integers(0, 256, (270, 480, 3), dtype=np.uint8))
    scene = np.asarray(blurred.resize((3 * width, 2 * height), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 3, (4, height, width, 1)).astype(np.float32)
    keyframes = {"g": str(GOP), "keyint_min": str(GOP), "x264-params": "scenecut=0"}
    with av.open(str(path), "w") as container:
        encoder = container.add_stream("libx264", rate=RATE_HZ, options=keyframes)
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.bit_rate = 3_000_000
        for i in range(CLIP_FRAMES):
            left = int((np.sin(i / 60) + 1) * width * 0.9)
            top = int((np.cos(i / 75) + 1) * height * 0.45)
            image = scene[top : top + height, left : left + width] * np.float32(0.7) + 30
            image += grain[i % 4]
            for k in range(6):
                x = int((np.sin(i / (20 + 7 * k) + k) + 1) / 2 * (width - 160))
                y = int((np.cos(i / (25 + 5 * k) + k) + 1) / 2 * (height - 160))
                image[y : y + 160, x : x + 160] = (40 * k, 255 - 40 * k, 128)
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE_HZ)
            container.mux(encoder.encode(frame))
        container.mux(encoder.encode())
    return path


def repeat_clip(clip: Path, path: Path, seconds: int) -> Path:
    """Writes the clip over and over, without encoding it again."""
    if path.exists():
        return path
    num_frames = seconds * RATE_HZ
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        tick = packets[0].duration
        for start in range(0, num_frames, CLIP_FRAMES):
            source.seek(0)
            for packet in source.demux(video=0):
                if not packet.size or start + packet.pts // tick >= num_frames:
                    continue
                packet.pts += start * tick
                packet.dts += start * tick
                packet.stream = stream
                target.mux(packet)
    return path


if __name__ == "__main__":
    sys.exit(tyro.cli(Benchmark).run())
