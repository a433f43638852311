"""Small videos, encoded on the spot, every frame of which can be told from the others."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

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

RATE_HZ = 25
TICK = Fraction(1, 1000)


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
def plain_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 frames of H.264 with B-frames in closed groups of 12; read only."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    return _encode(path, options={"bf": "3", "g": "12"})


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
