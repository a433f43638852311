"""What the latency cases run on: the 7B shape with random weights, its rival, and real videos."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_model import FrameGrounder, FrameGroundingConfig, FrameGroundingModel
from itg_model.frames import Decode
from itg_model.model import Precision
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast, image_transforms
from transformers.image_utils import ChannelDimension, PILImageResampling

QUESTION = "x" * 59
"""With the newline and the video's place, 61 ids: the reference was measured with about as many."""

DATA_BENCHMARKS = Path(__file__).resolve().parents[2] / "itg-data" / "benchmarks"


def make_model(config: FrameGroundingConfig) -> FrameGroundingModel:
    """Random weights in bfloat16, drawn on the GPU; the blocks of transformers as yet."""
    with torch.device("meta"):
        model = FrameGroundingModel(config)
    model = model.to(torch.bfloat16).to_empty(device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1)
            elif parameter.ndim == 1:
                parameter.zero_()
            else:
                parameter.normal_(0, 0.02, generator=generator)
    tower: Any = model.tower
    tower.reset_position_ids(torch.device("cuda"))
    return model.eval()


def make_grounder(
    precision: Precision, decode: Decode = "auto", side: int | None = None
) -> FrameGrounder:
    """The whole of it, as `from_pretrained` would give it."""
    model = make_model(FrameGroundingConfig()).for_inference(precision=precision)
    return FrameGrounder(model, make_tokenizer(), "random-7b", decode=decode, max_pooled_side=side)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token to each byte."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {letter: i for i, letter in enumerate(["<pad>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def make_frames(num_frames: int, image_size: int) -> Tensor:
    """Noise in pinned memory, as a decoder's chunks come."""
    shape = (num_frames, image_size, image_size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8).pin_memory()


@contextmanager
def literal(model: FrameGroundingModel) -> Iterator[FrameGroundingModel]:
    """The reference's graph: 27 blocks, eager, every hidden state kept, torch's flash attention."""
    tower: Any = model.tower
    trunk: Any = model.trunk
    kept: list[Tensor] = []
    blocks: list[Any] = [*tower.encoder.layers, *trunk.layers]

    def keep(block: Any, _: object, output: Tensor) -> None:
        if block in (blocks[0], trunk.layers[0]):
            kept.clear()
        kept.append(output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            yield model
    finally:
        for hook in hooks:
            hook.remove()


def read_as_reference(video: Path, source_idx: Sequence[int]) -> tuple[Any, dict[str, float]]:
    """Frames as the reference reads them: decord's four threads, then each by itself in numpy.

    Returns:
        Normalised frames [T, 3, 384, 384] on the GPU in bfloat16, and seconds by stage.
    """
    from decord import VideoReader, cpu

    start = time.perf_counter()
    images = VideoReader(str(video), ctx=cpu(0), num_threads=4).get_batch(source_idx).asnumpy()
    decoded = time.perf_counter()
    pixels = torch.from_numpy(np.stack([preprocess(image) for image in images]))
    pixels = pixels.to("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
    done = time.perf_counter()
    return pixels, {"decode": decoded - start, "preprocess": done - decoded}


def preprocess(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One frame [H, W, 3] as SigLIP's image processor makes it: [3, 384, 384] from -1 to 1."""
    square = image_transforms.resize(
        image,
        (384, 384),
        resample=PILImageResampling.BICUBIC,
        input_data_format=ChannelDimension.LAST,
    )
    scaled = image_transforms.rescale(square, 1 / 255)
    half = [0.5] * 3
    normal = image_transforms.normalize(scaled, half, half, input_data_format=ChannelDimension.LAST)
    return image_transforms.to_channel_dimension_format(
        normal, ChannelDimension.FIRST, ChannelDimension.LAST
    )


def make_video(folder: Path, clip: Path | None, seconds: int = 120) -> Path:
    """720p H.264 at 30 Hz, a keyframe every 250 frames: the video that decoding is measured on."""
    sys.path.insert(0, str(DATA_BENCHMARKS))
    decode: Any = importlib.import_module("decode")
    clip = clip or decode.make_clip(folder / "clip.mp4")
    return decode.repeat_clip(clip, folder / f"{seconds}.mp4", seconds)


def write_heldout(folder: Path) -> Path:
    """Writes the first 40 videos that itg-tiny was held against; gives the file of questions."""
    config = SyntheticConfig(num_train=1, num_heldout=40, difficulty=1.0, num_place_questions=4)
    cores = len(os.sched_getaffinity(0))
    records = load_or_write_dataset(folder / "scripted", config, num_workers=cores)
    asked = [{"video": r.video, "question": r.question} for r in records if r.split == "heldout"]
    path = folder / "scripted" / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in asked))
    return path


def provenance() -> dict[str, Any]:
    """Where and with what a row was measured."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "git_sha": os.environ.get("ITG_GIT_SHA") or _git("rev-parse", "--short", "HEAD"),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return done.stdout.strip()
