"""What `itg-data annotate` costs by itself: against a server that answers at once.

    uv run python packages/itg-data/benchmarks/annotate.py            both cases
    uv run python packages/itg-data/benchmarks/annotate.py --case decode-bound --rounds 3

`decode-bound`: 720p30 H.264 with a keyframe every 250 frames, clips of five seconds, 8 frames each
at 448 px. Rounds alternate between decoding and JPEG alone, on as many threads, and the whole
pipeline over HTTP; the server shares the cores. The ratio is that of a round's pair. Other load on
the machine is in the row; it hits both halves of a pair alike only on average, so the ratio of CPU
times is there as well. Each half warms up on one video: what it costs to start is not measured.
`many-records`: 100,000 QA pairs, answered in the process, for memory as the run goes on.
"""

import argparse
import asyncio
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from itg_data.annotate import config as annotate_config
from itg_data.annotate.frames import CLIP_S, PictureConfig, encode_jpeg
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.records import QaPair
from itg_data.annotate.requests import Answer, Request, Sampler
from itg_data.annotate.run import RunState, run
from itg_data.jsonl import write_jsonl
from itg_data.video import open_video

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
PICTURES = PictureConfig(per_clip=8, image_size=448)


def write_video(path: Path, duration_s: int, height: int, width: int, fps: int = 30) -> None:
    """Encodes a moving texture with a camera's noise; long groups of pictures."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 255, (height // 8 + 40, width // 8 + 40, 3), dtype=np.uint8)
    texture = tiles.repeat(8, axis=0).repeat(8, axis=1)
    grain = rng.integers(0, 12, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "g": "250", "crf": "23"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(duration_s * fps):
            y, x = i % 160, (2 * i) % 300
            image = texture[y : y + height, x : x + width] // 2 + np.roll(grain, 7 * i, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def copy_apart(source: Path, targets: Iterable[Path]) -> None:
    """Copies a video so that each copy is another file to the ledger: each ends with its number."""
    data = source.read_bytes()
    for number, target in enumerate(targets):
        target.write_bytes(data + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))


def decode_alone(videos: Sequence[Path]) -> dict[str, float]:
    """Decodes and encodes as JPEG the frames of every clip, and nothing else."""

    def decode(path: Path) -> int:
        with open_video(path, resize_to=PICTURES.image_size, num_threads=1) as video:
            num_clips = round(video.duration_s) // CLIP_S
            step = CLIP_S / PICTURES.per_clip
            for clip in range(num_clips):
                times = clip * CLIP_S + np.arange(PICTURES.per_clip) * step
                for frame in video.read(np.floor(times * video.fps).astype(np.int64)).frames:
                    encode_jpeg(frame)
        return num_clips

    with _measured() as cost, ThreadPoolExecutor(CORES) as pool:
        num_clips = sum(pool.map(decode, videos))
    return {"clips_per_s": num_clips / cost["wall_s"], "cpu_s_per_clip": cost["cpu_s"] / num_clips}


def annotate(videos: Sequence[Path], base_url: str, num_clips: int) -> dict[str, float]:
    """Runs the whole pipeline on videos, one QA pair each."""
    folder = videos[0].parent
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        pairs = (
            QaPair(id=path.name, video=path.name, question="Which way?", answer="Right.")
            for path in videos
        )
        write_jsonl(Path(work) / "qa.jsonl", pairs)
        config = annotate_config.RunConfig(
            videos=folder,
            qa=Path(work) / "qa.jsonl",
            out=Path(work) / "set",
            annotator=ServerConfig(base_url=base_url),
            sampler=Sampler(model="instant"),
            pictures=PICTURES,
            num_decoders=CORES,
        )
        with _measured() as cost:
            state = run(config)
    if state.dropped:
        raise RuntimeError(f"the pipeline dropped {dict(state.dropped)}")
    return {
        "clips_per_s": num_clips / cost["wall_s"],
        "cpu_s_per_clip": cost["cpu_s"] / num_clips,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_decode_bound(work: Path, num_rounds: int, num_videos: int) -> dict[str, Any]:
    """Alternates between both halves, each in a fresh process."""
    folder = work / "videos"
    folder.mkdir()
    duration_s = 60
    write_video(work / "one.mp4", duration_s, 720, 1280)
    copy_apart(work / "one.mp4", (folder / f"{n:03d}.mp4" for n in range(num_videos)))
    num_clips = num_videos * duration_s // CLIP_S
    halves: dict[str, list[dict[str, float]]] = {"alone": [], "pipeline": []}
    loads: list[float] = []
    with _instant_server() as base_url:
        for name in itertools.islice(itertools.cycle(halves), 2 * num_rounds):
            half = [sys.executable, __file__, "--half", name, "--folder", str(folder)]
            half += ["--base-url", base_url, "--num-clips", str(num_clips)]
            told = subprocess.run(half, check=True, capture_output=True, text=True).stdout
            halves[name].append(json.loads(told.splitlines()[-1]))
            loads.append(os.getloadavg()[0])
            print(name, halves[name][-1], f"load {loads[-1]:.1f}", file=sys.stderr)
    pairs = list(zip(halves["pipeline"], halves["alone"], strict=True))
    ratios = [whole["clips_per_s"] / alone["clips_per_s"] for whole, alone in pairs]
    cpu_ratios = [alone["cpu_s_per_clip"] / whole["cpu_s_per_clip"] for whole, alone in pairs]
    return {
        "case": "decode-bound",
        "clips_per_s": _median(whole["clips_per_s"] for whole, _ in pairs),
        "decode_only_clips_per_s": _median(alone["clips_per_s"] for _, alone in pairs),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio_median": _median(ratios),
        "cpu_s_per_clip": _median(whole["cpu_s_per_clip"] for whole, _ in pairs),
        "decode_only_cpu_s_per_clip": _median(alone["cpu_s_per_clip"] for _, alone in pairs),
        "cpu_ratio_median": _median(cpu_ratios),
        "peak_rss_mb": round(max(whole["peak_rss_mb"] for whole, _ in pairs)),
        "num_clips": num_clips,
        "load_average": [round(load, 1) for load in loads],
    }


class _AnswersHere:
    """An annotator without HTTP, for memory over more records than a shared machine can serve."""

    async def ask(self, request: Request[Any], pictures: Sequence[bytes]) -> Answer:
        answers: dict[str, Any] = {
            "cues": {"cues": ["a moving pattern"]},
            "caption": {"caption": "A pattern moves."},
            "retrieve": {"explanation": "The first clip shows it.", "clips": [0]},
            "classify": {"motion": True, "existence": False},
            "check": {"relevant": [True] * len(pictures)},
        }
        await asyncio.sleep(0)
        text = json.dumps(answers[request.stage])
        return Answer(text=text, prompt_tokens=1000, completion_tokens=30)

    async def close(self) -> None:
        pass


def run_many_records(work: Path, num_records: int) -> dict[str, Any]:
    """Annotates many QA pairs about short videos, watching memory."""
    folder = work / "short"
    folder.mkdir()
    write_video(work / "short.mp4", 2, 72, 128)
    per_video = 100
    names = [f"{number:05d}.mp4" for number in range(num_records // per_video)]
    copy_apart(work / "short.mp4", (folder / name for name in names))
    qa = work / "many.jsonl"
    write_jsonl(
        qa,
        (
            QaPair(
                id=f"{name}-{i}",
                video=name,
                question=f"Where does part {i} of {name} go, and "
                "what does it look like on its way?",
                answer="To the right.",
            )
            for name in names
            for i in range(per_video)
        ),
    )
    rss_mb_at: dict[int, int] = {}

    def watch(state: RunState) -> None:
        step = state.num_done // (num_records // 10) * (num_records // 10)
        rss_mb_at.setdefault(step, round(_rss_mb()))

    annotate_config.build_annotator = lambda *_: _AnswersHere()
    config = annotate_config.RunConfig(
        videos=folder,
        qa=qa,
        out=work / "many",
        annotator=ServerConfig(base_url="http://in.process"),
        sampler=Sampler(model="instant"),
        num_decoders=CORES,
    )
    with _measured() as cost:
        run(config, watch)
    return {
        "case": "many-records",
        "num_records": num_records,
        "records_per_s": round(num_records / cost["wall_s"], 1),
        "cpu_s_per_record": round(cost["cpu_s"] / num_records, 5),
        "rss_mb_at_records": rss_mb_at,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


@contextmanager
def _instant_server() -> Iterator[str]:
    command = [sys.executable, str(HERE / "instant_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@contextmanager
def _measured() -> Iterator[dict[str, float]]:
    cost: dict[str, float] = {}
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield cost
    cost["wall_s"], cost["cpu_s"] = time.perf_counter() - wall_s, time.process_time() - cpu_s


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _provenance() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return {
        "cores": CORES,
        "git_sha": git("rev-parse", "HEAD"),
        "dirty": bool(
            git("status", "--porcelain", "--untracked-files=no", "--", HERE.parent.as_posix())
        ),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Runs the cases and appends their rows to `results/annotate.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=["decode-bound", "many-records", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--half", choices=["alone", "pipeline"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--base-url", help=argparse.SUPPRESS)
    parser.add_argument("--num-clips", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.half:
        videos = sorted(told.folder.iterdir())
        if told.half == "alone":
            decode_alone(videos[:1])
            print(json.dumps(decode_alone(videos)))
        else:
            annotate(videos[:1], told.base_url, told.num_clips)
            print(json.dumps(annotate(videos, told.base_url, told.num_clips)))
        return
    results = HERE / "results" / "annotate.jsonl"
    for case in ("decode-bound", "many-records"):
        if told.case not in (case, "all"):
            continue
        with tempfile.TemporaryDirectory() as work:
            if case == "decode-bound":
                row = run_decode_bound(Path(work), told.rounds, told.videos)
            else:
                row = run_many_records(Path(work), told.records)
        row |= _provenance()
        print(json.dumps(row))
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
