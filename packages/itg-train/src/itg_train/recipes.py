"""Named runs: functions that return a whole config. A lasting variant is a recipe of its own."""

from collections.abc import Callable
from pathlib import Path

from itg_data.sampling import SamplingConfig
from itg_model.config import FrameGroundingConfig, TextConfig, VisionConfig

from itg_train.config import DataConfig, OptimConfig, TrainableConfig, TrainConfig


def scripted_small() -> TrainConfig:
    """A small grounder on scripted videos, from random weights: minutes on two CPU cores.

    There is nothing pretrained to start from, so the tower learns too, the trunk's weights are
    drawn wider than a 7B model's (0.02 leaves a width of 96 nearly silent), and the learning rate
    is that of a small network.
    """
    return TrainConfig(
        run_dir=Path("runs/scripted-small"),
        model=FrameGroundingConfig(
            vision=VisionConfig(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=48,
                patch_size=8,
            ),
            text=TextConfig(
                hidden_size=96,
                intermediate_size=192,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=512,
                rope_theta=1e4,
                initializer_range=0.1,
            ),
            vision_token_num=192,
            tokenizer_model_max_length=1024,
        ),
        data=DataConfig(sampling=SamplingConfig(max_frames=192)),
        optim=OptimConfig(
            lr=2e-3, final_lr_ratio=0.05, weight_decay=0.01, beta2=0.98, max_grad_norm=1.0
        ),
        num_steps=500,
        groups_per_step=2,
        trainable=TrainableConfig(tower=True),
        frame_chunk=64,
        save_every=200,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {"scripted-small": scripted_small}
"""What `itg-train NAME` can run; the first is what it runs without a name."""
