"""A tiny grounder, tiny dual encoders and a few short videos with questions about them."""

from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch
from itg_data.jsonl import write_jsonl
from itg_eval.records import Document
from itg_model import FrameGroundingModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

FPS = 4


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of under 300 tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["where is the red square and when does it move"] * 2, trainer)
    if "bos_token" in special:
        end = tokenizer.token_to_id("<|endoftext|>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def write_video(path: Path, seconds: int, seed: int) -> Path:
    """A light square that wanders over noise, 4 frames a second."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(seconds * FPS):
            image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
            image[i % 32 : i % 32 + 12, i % 40 : i % 40 + 16] = (250, 6 * i % 256, 99)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def grounder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of a tiny grounder with random weights."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("checkpoints") / "grounder"
    FrameGroundingModel(tiny.grounder_config(64, 256)).eval().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session", params=["clip", "siglip"])
def text_image_dir(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny CLIP or SigLIP with random weights, as a checkpoint directory."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 24,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "bos_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 8,
    }
    if request.param == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        model, processor = CLIPModel(config), CLIPImageProcessor(size=24, crop_size=24)
    else:
        config = SiglipConfig(text_config=text | {"projection_size": 16}, vision_config=vision)
        model = SiglipModel(config)
        processor = SiglipImageProcessor(size={"height": 24, "width": 24})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    directory = tmp_path_factory.mktemp("checkpoints") / request.param
    model.eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    make_tokenizer(bos_token="none").save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three short videos; read only."""
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{n}.mp4", 6 + n, n) for n in range(3)]


@pytest.fixture(scope="session")
def documents(videos: list[Path]) -> list[Document]:
    """Three questions about each video, those of a video apart from one another."""
    return [
        Document(
            task="toy",
            split="test",
            doc_id=number,
            video=str(videos[number % 3]),
            question=f"where is square {number}",
            context=f"where is square {number}\nA. here\nB. there",
        )
        for number in range(9)
    ]


@pytest.fixture
def documents_file(documents: list[Document], tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    write_jsonl(path, documents)
    return path
