import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from itg_model import FrameGroundingModel
from itg_model.config import FrameGroundingConfig, TextConfig, VisionConfig
from safetensors.torch import load_file
from torch import Tensor

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


@pytest.fixture
def tiny_config() -> FrameGroundingConfig:
    """A grid of 3 x 3 patches and room for 64 image tokens."""
    return FrameGroundingConfig(
        text=TextConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=300,
            # large weights: with small ones every logit would lie near the bias
            initializer_range=0.3,
        ),
        vision=VisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=24,
            patch_size=8,
        ),
        vision_token_num=64,
        tokenizer_model_max_length=96,
    )


@pytest.fixture
def tiny_model(tiny_config: FrameGroundingConfig) -> FrameGroundingModel:
    torch.manual_seed(0)
    return FrameGroundingModel(tiny_config).eval()
