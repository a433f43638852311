"""A tiny scripted set and a tiny grounder, small enough for unit tests."""

from pathlib import Path

import pytest
from itg_data.records import GroundingRecord
from itg_data.sampling import SamplingConfig
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_model.config import FrameGroundingConfig, TextConfig, VisionConfig
from itg_train.dataset import VideoDataset
from itg_train.grounding import GroundingTask
from itg_train.index import index_videos
from itg_train.tokenizer import train_tokenizer

TINY_SET = SyntheticConfig(num_train=3, num_heldout=1, duration_s=12, fps=2, height=32, width=48)

TINY_MODEL = FrameGroundingConfig(
    vision=VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    ),
    text=TextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=300,
        initializer_range=0.1,
    ),
    vision_token_num=48,
    tokenizer_model_max_length=256,
)


@pytest.fixture(scope="session")
def scripted(tmp_path_factory) -> tuple[Path, list[GroundingRecord]]:
    root = tmp_path_factory.mktemp("data") / "scripted"
    return root, load_or_write_dataset(root, TINY_SET)


@pytest.fixture
def make_dataset(scripted, tmp_path):
    def make(
        cache_bytes: int = 2**30,
        root: Path | None = None,
        split: str = "train",
        questions_per_group: int = 0,
    ):
        records = [record for record in scripted[1] if record.split == split]
        task = GroundingTask(train_tokenizer([record.question for record in records], 300))
        size = TINY_MODEL.vision.image_size
        home = scripted[0] if root is None else root
        facts = index_videos(home, [record.video for record in records], tmp_path / "index", 2)
        return VideoDataset(
            records, home, facts, task, size, SamplingConfig(), cache_bytes, questions_per_group
        )

    return make


@pytest.fixture
def tiny_model_config() -> FrameGroundingConfig:
    return TINY_MODEL
