"""Measures the way from a video file to the chosen frames, in whole and in parts; a row each.

    cd packages/itg-model/benchmarks; uv run python latency.py --out results

7B shape with random weights, a question of 60 tokens; seconds are medians. The reference's figures
were measured on the same kind of machine before this code existed (LOG.md names the run); `literal`
is its graph, run here and now. A case that fails is named and does not stop the others.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro
from itg_data.sampling import SamplingConfig
from itg_kernels.frames import nv12_to_rgb, squash_frames
from itg_model import FrameGrounder, FrameGroundingConfig
from itg_model.many import FailedSelection
from itg_model.model import Precision
from itg_model.nvdec_sessions import sessions
from itg_model.questions import read_questions
from itg_model.upload import UploadStream
from setting import (
    QUESTION,
    literal,
    make_frames,
    make_grounder,
    make_model,
    make_tokenizer,
    make_video,
    provenance,
    read_as_reference,
    write_heldout,
)

Row = dict[str, Any]
Questions = list[tuple[Path, str]]
REFERENCE_NETWORK_S = {32: 0.759, 64: 0.894, 128: 1.004, 256: 1.414, 512: 1.649}
"""The reference's network alone, by frames."""
REFERENCE_COLD_S = {512: 18.7}
"""The same with its decoding (5.4 s) and preprocessing (16 times 0.729 s for 32 frames), of a 720p
video of two minutes."""
NETWORK_CHUNK = 128
"""Frames in the tower at once where all are there; where they come, smaller chunks wait less."""
NUM_VIDEOS, NUM_QUESTIONS = 30, 3
NEW_LENGTHS = count(30)
"""Tokens of questions that no case has asked yet: a plan that cuDNN made once serves ever after."""
SMALL_PRECISIONS: tuple[tuple[Any, Precision], ...] = (
    ("float32", "native"),
    ("bfloat16", "native"),
    ("bfloat16", "fp8"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Measure latency; the table is for people, the rows are for the record."""

    out: Path | None = None
    """Folder for the rows; nothing is written without it."""

    cases: tuple[str, ...] = (
        *("literal", "native", "fp8", "cold", "nvdec"),
        *("frames", "sides", "small", "many", "many-nvdec"),
    )
    """Groups of cases to measure."""

    clip: Path | None = None
    """A clip for the video, made before by itg-data's benchmark, instead of making one."""

    small: str = "itg-tiny"
    """A trained checkpoint, for the overlap of its choices in other precisions."""

    small_questions: Path | None = None
    """Questions about videos beside the file, for the same, instead of writing scripted videos."""

    repeats: int = 5
    """Times each case is measured; the median counts."""

    def run(self) -> int:
        """Measures, writes rows as they come, and prints the table."""
        rows: list[Row] = []
        for name in self.cases:
            try:
                for row in GROUPS[name](self):
                    rows.append(row | provenance())
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                    self._write(rows[-1])
            except Exception:  # the table shows what there is
                print(f"{name} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            gc.collect()
            torch.cuda.empty_cache()
        print_table(rows)
        return 0

    def _write(self, row: Row) -> None:
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        name = "-".join(row["gpu"].lower().split())
        with (self.out / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def measure(action: Callable[[], object], repeats: int) -> float:
    """Median seconds of an action that ends with its result on the host, after one to warm up."""
    action()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def make_row(case: str, frames: int, precision: str, seconds: float, **more: Any) -> Row:
    """A row with the fields that every row has; None where a field says nothing.

    Whoever times something resets the peak of memory before; where `seconds` is 0, nothing is.
    """
    usual = {"decode": None, "stages": {}, "reference_seconds": None}
    row = {"case": case, "frames": frames, "precision": precision, "seconds": round(seconds, 4)}
    peak_gib = round(torch.cuda.max_memory_allocated() / 2**30, 2) if seconds else None
    return row | usual | {"peak_gib": peak_gib} | more


def measure_literal(bench: Benchmark) -> Iterator[Row]:
    """The reference's graph on this machine, T=512; and a file read in the reference's way."""
    model = make_model(FrameGroundingConfig(select_layer=-1))
    frames, ids = make_frames(512, 384), question_ids()
    torch.cuda.reset_peak_memory_stats()
    with literal(model), torch.inference_mode():
        side = model.pooled_side(512)
        run = lambda: model.score(model.encode_frames(frames, side, 384), ids).cpu()  # noqa: E731
        network = measure(run, 2)
    yield make_row("literal", 512, "native", network, reference_seconds=REFERENCE_NETWORK_S[512])
    with tempfile.TemporaryDirectory() as folder:
        video = make_video(Path(folder), bench.clip)
        _, stages = read_as_reference(video, np.linspace(0, 3599, 512).astype(int).tolist())
    stages |= {"network": network}
    common = {
        "decode": "decord",
        "stages": {name: round(seconds, 4) for name, seconds in stages.items()},
        "reference_seconds": REFERENCE_COLD_S[512],
    }
    yield make_row("literal, cold", 512, "native", sum(stages.values()), **common)


def measure_network(bench: Benchmark, precision: Precision) -> Iterator[Row]:
    """Frames in memory to scores, and the next question about the same frames."""
    grounder = make_grounder(precision)
    for frames in (512, 1024, 64, 20):
        yield from measure_frames(bench, grounder, precision, frames)
    if precision == "fp8":
        yield measure_overlap(grounder)


@torch.inference_mode()
def measure_frames(
    bench: Benchmark, grounder: FrameGrounder, precision: Precision, frames: int
) -> Iterator[Row]:
    """The cases of one number of frames."""
    model, pixels, ids = grounder.model, make_frames(frames, 384), question_ids()
    side = model.pooled_side(frames)
    encode = lambda: model.encode_frames(pixels, side, NETWORK_CHUNK)  # noqa: E731
    tower = measure(encode, bench.repeats)
    features = encode()
    torch.cuda.reset_peak_memory_stats()
    trunk = measure(lambda: model.score(features, ids).cpu(), bench.repeats)
    cold = REFERENCE_COLD_S.get(frames)
    yield make_row("next question", frames, precision, trunk, reference_seconds=cold)
    torch.cuda.reset_peak_memory_stats()
    seconds = measure(lambda: model.score(encode(), ids).cpu(), bench.repeats)
    stages = {"tower": round(tower, 4), "trunk": round(trunk, 4)}
    common = {"stages": stages, "reference_seconds": REFERENCE_NETWORK_S.get(frames)}
    yield make_row("network", frames, precision, seconds, **common)
    torch.cuda.reset_peak_memory_stats()
    fresh = []
    for length in islice(NEW_LENGTHS, 3):
        start = time.perf_counter()
        model.score(features, question_ids(length)).cpu()
        fresh.append(time.perf_counter() - start)
    case = "next question, new length"
    yield make_row(case, frames, precision, statistics.median(fresh), reference_seconds=cold)


def measure_overlap(fp8: FrameGrounder) -> Row:
    """How many of the best 32 of 512 frames stay with 8 bits and random weights."""
    frames, ids = make_frames(512, 384), question_ids()
    with torch.inference_mode():
        rounded = fp8.model.score(fp8.model.encode_frames(frames, frame_chunk=64), ids).cpu()
        native = make_grounder("native").model
        exact = native.score(native.encode_frames(frames, frame_chunk=64), ids).cpu()
    same = len(set(rounded.topk(32).indices.tolist()) & set(exact.topk(32).indices.tolist()))
    return make_row("overlap, random weights", 512, "fp8", 0.0, overlap=same / 32, top_k=32)


def measure_cold(bench: Benchmark, decode: Any = "auto") -> Iterator[Row]:
    """A file to the chosen frames, the video not seen before."""
    for precision in ("native",) if decode == "auto" else ("native", "fp8"):
        grounder = make_grounder(precision, decode)
        with tempfile.TemporaryDirectory() as folder:
            video = make_video(Path(folder), bench.clip)
            for frames in (512, 64):
                yield time_cold(bench, grounder, video, frames, precision)
                if decode == "nvdec":
                    yield time_cold(bench, grounder, video, frames, precision, new_sessions=True)
        del grounder
        gc.collect()
        torch.cuda.empty_cache()


def time_cold(
    bench: Benchmark,
    grounder: FrameGrounder,
    video: Path,
    frames: int,
    precision: Precision,
    *,
    new_sessions: bool = False,
) -> Row:
    """A file to so many frames; with NVDEC by the last video's sessions, or as a process begins."""
    sampling = SamplingConfig(rate_hz=frames / 110, max_frames=frames)
    assert grounder.select(video, QUESTION, sampling=sampling).num_sampled == frames

    def select() -> None:
        if new_sessions:
            sessions.clear()
        grounder.select(video, QUESTION, sampling=sampling)

    stages = time_stages(grounder, video, sampling)
    torch.cuda.reset_peak_memory_stats()
    seconds = measure(select, bench.repeats)
    case = "cold, new sessions" if new_sessions else "cold"
    reference = REFERENCE_COLD_S.get(frames)
    common = {"decode": grounder.decode, "stages": stages, "reference_seconds": reference}
    return make_row(case, frames, precision, seconds, **common)


def time_stages(grounder: FrameGrounder, video: Path, sampling: SamplingConfig) -> dict[str, float]:
    """Decoding alone, and what is left after the last frame."""
    first, decode = time_decoding(grounder, video, sampling)
    decoded = time.perf_counter()
    encoded = grounder.encode(video, sampling)
    torch.cuda.synchronize()
    done = time.perf_counter()
    grounder.score(encoded, QUESTION)
    scored = time.perf_counter()
    parts = {
        "first chunk": first,
        "decode alone": decode,
        "decode and tower": done - decoded,
        "trunk": scored - done,
    }
    return {name: round(seconds, 4) for name, seconds in parts.items()}


def time_decoding(
    grounder: FrameGrounder, video: Path, sampling: SamplingConfig
) -> tuple[float, float]:
    """Seconds to the first and to the last chunk of squares on the GPU, with nothing else to do."""
    start, times = time.perf_counter(), []
    with grounder.open(video, sampling) as opened, closing(opened._chunks()) as chunks:
        for _ in chunks:
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return times[0], time.perf_counter() - start


def measure_frames_ways(bench: Benchmark) -> Iterator[Row]:
    """512 frames of 720p to squares: from a decoder on the CPU, from the GPU, and from NVDEC."""
    whole = torch.randint(0, 256, (64, 720, 1280, 3), dtype=torch.uint8, device="cuda")
    nv12 = torch.randint(0, 256, (64, 1080, 1280), dtype=torch.uint8, device="cuda")
    matrix = (16, 9539, 14686, 17463, -1747, -4366)
    images = list(whole[:16].cpu().numpy())
    ways: dict[str, Callable[[], object]] = {
        "squash": lambda: [squash_frames(whole, 384) for _ in range(8)],
        "colours and squash": lambda: [
            squash_frames(nv12_to_rgb(nv12, matrix), 384) for _ in range(8)
        ],
        "upload and squash": lambda: upload(Decoded(images, 512)),
    }
    for case, run in ways.items():
        torch.cuda.reset_peak_memory_stats()
        seconds = measure(run, bench.repeats)
        yield make_row(case, 512, "native", seconds, frames_per_s=round(512 / seconds))


class Decoded:
    """A stream whose frames of 720p are there already."""

    image_shape = (720, 1280, 3)

    def __init__(self, images: list[Any], num_frames: int) -> None:
        self.images, self.num_left = images, num_frames
        self.probe = SimpleNamespace(times_s=np.zeros(num_frames), height=720, width=1280)

    def take(self, at_most: int) -> tuple[Any, list[Any], Any] | None:
        """Up to so many frames, the same ones in turn."""
        count = min(at_most, self.num_left)
        self.num_left -= count
        images = [self.images[i % len(self.images)] for i in range(count)]
        return (np.arange(count), images, np.arange(0)) if count else None

    def close(self) -> None:
        """Nothing to close."""


def upload(decoded: Any) -> None:
    """All frames of a stream to the GPU, as the tower gets them."""
    with closing(UploadStream(decoded, 384, 64, torch.device("cuda:0"))) as chunks:
        assert sum(len(batch.frames) for batch in chunks) == 512


def measure_many(bench: Benchmark, decode: Any = "auto") -> Iterator[Row]:
    """Videos with questions, pipelined; memory after each video."""
    grounder = make_grounder("native", decode)
    sampling = SamplingConfig(rate_hz=512 / 110, max_frames=512)
    with tempfile.TemporaryDirectory() as folder:
        video = make_video(Path(folder), bench.clip)
        videos = [Path(folder) / f"v{i}.mp4" for i in range(NUM_VIDEOS)]
        for link in videos:
            link.symlink_to(video)
        questions = [QUESTION, QUESTION[:50], QUESTION[:40]]
        # one before the clock starts: cuDNN's plans for these lengths
        list(grounder.select_many([(video, questions)], sampling=sampling))
        torch.cuda.reset_peak_memory_stats()
        start, memory = time.perf_counter(), []
        asked = [(link, questions) for link in videos]
        for i, result in enumerate(grounder.select_many(asked, sampling=sampling)):
            assert getattr(result, "num_sampled", 0) == 512, result
            if i % NUM_QUESTIONS == NUM_QUESTIONS - 1:
                memory.append(memory_gib())
        seconds = (time.perf_counter() - start) / (NUM_VIDEOS * NUM_QUESTIONS)
    common = {"decode": decode, "reference_seconds": REFERENCE_COLD_S[512], "memory_gib": memory}
    yield make_row("30 videos x 3, a question", 512, "native", seconds, **common)


def memory_gib() -> list[float]:
    """Of the GPU as allocated, and of the process."""
    status = Path("/proc/self/status").read_text()
    resident_kib = int(status.split("VmRSS:")[1].split()[0])
    return [round(torch.cuda.memory_allocated() / 2**30, 3), round(resident_kib / 2**20, 3)]


@torch.inference_mode()
def measure_sides(bench: Benchmark) -> Iterator[Row]:
    """Smaller grids of tokens, an approximation: seconds, and how many of the best 32 stay."""
    model, pixels, ids = make_grounder("native").model, make_frames(512, 384), question_ids()
    best: set[int] = set()
    for side in (5, 4, 3, 2):
        features = model.encode_frames(pixels, side, 64)
        top = set(model.score(features, ids).topk(32).indices.tolist())
        best = best or top
        torch.cuda.reset_peak_memory_stats()
        seconds = measure(lambda: model.score(features, ids).cpu(), bench.repeats)  # noqa: B023
        overlap = {"overlap": len(top & best) / 32, "top_k": 32}
        yield make_row(f"next question, side {side}", 512, "native", seconds, **overlap)


def measure_small(bench: Benchmark) -> Iterator[Row]:
    """How many of the best frames a trained small model keeps with fewer bits."""
    # as the model was trained, 8 of 48 frames; and 32 of the most of which it sees 2 x 2 tokens
    with tempfile.TemporaryDirectory() as folder:
        questions = bench.small_questions or write_heldout(Path(folder))
        asked = read_questions(questions, None)
        for rate_hz, num_frames, top_k in ((1, 48, 8), (2.5, 120, 32)):
            sampling = SamplingConfig(rate_hz=rate_hz, max_frames=num_frames)
            yield from compare_precisions(bench.small, asked, top_k, sampling)


def compare_precisions(
    checkpoint: str, asked: Questions, top_k: int, sampling: SamplingConfig
) -> Iterator[Row]:
    """bfloat16 beside float32, and 8 bits beside bfloat16."""
    exact, half, eighth = (
        choose_small(checkpoint, dtype, precision, asked, top_k, sampling)
        for dtype, precision in SMALL_PRECISIONS
    )
    pairs = (("native", "float32", half, exact), ("fp8", "bfloat16", eighth, half))
    for precision, against, found, wanted in pairs:
        overlaps = [len(a & b) / top_k for a, b in zip(found, wanted, strict=True)]
        common = {"overlap": statistics.mean(overlaps), "lowest_overlap": min(overlaps)}
        common |= {"top_k": top_k, "num_questions": len(overlaps)}
        case = f"overlap with {against}, itg-tiny"
        yield make_row(case, sampling.max_frames, precision, 0.0, **common)


def choose_small(
    checkpoint: str,
    dtype: str,
    precision: Precision,
    asked: Questions,
    top_k: int,
    sampling: SamplingConfig,
) -> list[set[int]]:
    """The frames chosen for each question."""
    grounder = FrameGrounder.from_pretrained(checkpoint, "cuda", dtype, precision=precision)
    chosen: list[set[int]] = []
    for result in grounder.select_many(asked, top_k, sampling):
        if isinstance(result, FailedSelection):
            raise ValueError(f"{result.video}: {result.error}")
        chosen.append({frame.source_idx for frame in result.selected})
    return chosen


def question_ids(length: int = 60) -> torch.Tensor:
    """Ids of a question of so many tokens."""
    from itg_model.processing import encode_question

    return encode_question(QUESTION[: length - 1], make_tokenizer())


GROUPS: dict[str, Callable[[Benchmark], Iterator[Row]]] = {
    "literal": measure_literal,
    "native": lambda bench: measure_network(bench, "native"),
    "fp8": lambda bench: measure_network(bench, "fp8"),
    "cold": measure_cold,
    "nvdec": lambda bench: measure_cold(bench, "nvdec"),
    "many": measure_many,
    "many-nvdec": lambda bench: measure_many(bench, "nvdec"),
    "sides": measure_sides,
    "frames": measure_frames_ways,
    "small": measure_small,
}


def print_table(rows: list[Row]) -> None:
    """For people; the stages in brackets."""
    print(f"{'case':<32}{'T':>5} {'':<7}{'decode':<7}{'s':>8}{'reference':>11}{'GiB':>7}")
    for row in rows:
        stages = " ".join(f"{name} {seconds}" for name, seconds in row["stages"].items())
        more = f" overlap {row['overlap']:.2f}" if "overlap" in row else ""
        more += f" {row['frames_per_s']} frames/s" if "frames_per_s" in row else ""
        peak = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        print(
            f"{row['case']:<32}{row['frames']:>5} {row['precision']:<7}{row['decode'] or '-':<7}"
            f"{row['seconds']:>8.3f}{row['reference_seconds'] or '-':>11}{peak:>7}  {stages}{more}"
        )


if __name__ == "__main__":
    sys.exit(tyro.cli(Benchmark).run())
