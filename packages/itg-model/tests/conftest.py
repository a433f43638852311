import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny
import torch
from itg_model import FrameGroundingModel
from itg_model.config import FrameGroundingConfig
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PARITY = Path(__file__).parent / "data" / "parity"


@pytest.fixture(autouse=True)
def _seeded_torch() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def parity_tensors() -> dict[str, Tensor]:
    return load_file(PARITY / "reference.safetensors")


@pytest.fixture(scope="session")
def parity_facts() -> dict[str, Any]:
    return json.loads((PARITY / "reference.json").read_text())


@pytest.fixture(scope="session")
def parity_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published form of the tiny reference model, as a checkpoint directory."""
    directory = tmp_path_factory.mktemp("published")
    (directory / "config.json").write_bytes((PARITY / "tiny_config.json").read_bytes())
    (directory / "model.safetensors").write_bytes((PARITY / "tiny_model.safetensors").read_bytes())
    return directory


@pytest.fixture(scope="session")
def siglip_config() -> dict[str, Any]:
    return json.loads((PARITY / "siglip_config.json").read_text())


@pytest.fixture
def parity_model(parity_dir: Path, siglip_config: dict[str, Any]) -> FrameGroundingModel:
    return FrameGroundingModel.from_pretrained(parity_dir, vision_config=siglip_config)


@pytest.fixture(scope="session")
def tiny_config() -> FrameGroundingConfig:
    return tiny.grounder_config(64, 96)


@pytest.fixture
def tiny_model(tiny_config: FrameGroundingConfig) -> FrameGroundingModel:
    torch.manual_seed(0)
    return FrameGroundingModel(tiny_config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of under 300 tokens whose pad token, as the published one's, is "!"."""
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="!"
    )


@pytest.fixture
def checkpoint_dir(
    tiny_model: FrameGroundingModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Path:
    """A whole checkpoint: config, weights and tokenizer."""
    directory = tmp_path / "checkpoint"
    tiny_model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds at 4 Hz, 64 x 48: a light square that wanders over noise."""
    path = tmp_path_factory.mktemp("videos") / "square.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(40):
            image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
            image[i % 32 : i % 32 + 12, i : i + 16] = (250, 6 * i, 255 - 6 * i)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path
