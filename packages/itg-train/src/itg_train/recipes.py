"""Named runs: functions that return a whole config. A lasting variant is a recipe of its own."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from itg_data.sampling import SamplingConfig
from itg_data.synthetic import SyntheticConfig
from itg_model.config import FrameGroundingConfig, TextConfig, VisionConfig

from itg_train.config import (
    DataConfig,
    EngineConfig,
    OptimConfig,
    TrainableConfig,
    TrainConfig,
    to_plain,
)


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
        trainable=TrainableConfig(tower=True),
        optim=OptimConfig(
            lr=2e-3, final_lr_ratio=0.05, weight_decay=0.01, beta2=0.98, max_grad_norm=1.0
        ),
        num_steps=500,
        groups_per_step=2,
        frame_chunk=64,
        save_every=200,
    )


def itg_tiny() -> TrainConfig:
    """The small grounder that itg-model brings along: scripted videos at their hardest setting.

    6000 videos with noise, clutter and flashes; 66,000 questions, asked four times, among them some
    about places, without which it does not come to see motion. Some seven minutes on a GPU with 16
    cores with the writing and reading of the videos, four of them training, which is what the card
    counts; on two CPU cores hours, even with 4 videos a step.

    Network and data follow from what has to be seen. A frame of 48 s of video is pooled to 3 x 3,
    so that every patch of its 6 x 6 counts (2 x 2 would read four), and one of 120 s to 2 x 2. All
    frames stay in memory, 2 GB, as a video is met four times.
    """
    base = scripted_small()
    network = replace(
        base.model,
        vision=replace(
            base.model.vision, hidden_size=128, intermediate_size=256, num_hidden_layers=4
        ),
        text=replace(
            base.model.text,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_key_value_heads=4,
            initializer_range=0.09,
        ),
        vision_token_num=480,
    )
    hardest = SyntheticConfig(
        num_train=6000, num_heldout=100, difficulty=1.0, num_place_questions=4
    )
    return replace(
        base,
        run_dir=Path("runs/itg-tiny"),
        model=network,
        data=DataConfig(
            synthetic=hardest,
            sampling=SamplingConfig(max_frames=480),
            cache_mib=4096,
            num_workers=15,
        ),
        optim=replace(base.optim, lr=1e-3),
        num_steps=1500,
        groups_per_step=16,
        tokens_per_pass=131072,
        validate_every=500,
        save_every=500,
    )


def videoitg_7b() -> TrainConfig:
    """The reference's grounding stage: 7B parameters, one epoch of its 474k questions.

    What it needs: `--data.root` (the folder of the videos), `--data.annotations
    video_itg_data.json`, and `--start.checkpoint` (the Video LLM to start from). As there, each
    question is decoded by itself, a step learns from 128 of them, nothing is clipped, and the
    pooled side is drawn. Its learning rate of the head reaches the projector as well, because it
    finds the head by a substring; that is said here in so many words. Labels are `frame_num`, which
    its code would not read from the published file. The rate warms up from 1/n of its peak, not
    from 0, so that no step is lost.
    """
    return TrainConfig(
        run_dir=Path("runs/videoitg-7b"),
        model=FrameGroundingConfig(),
        data=DataConfig(
            sampling=SamplingConfig(max_frames=1024),
            questions_per_group=1,
            pad_token_id=0,
            num_workers=6,
        ),
        optim=OptimConfig(lr=2e-5, head_lr=2e-4, projector_lr=2e-4, warmup_ratio=0.05),
        engine=EngineConfig(dtype="bfloat16", recompute="everything"),
        num_steps=3706,
        groups_per_step=128,
        tokens_per_pass=20480,
        random_pooled_side=True,
        frame_chunk=128,
        save_every=500,
    )


def videoitg_7b_grouped() -> TrainConfig:
    """As videoitg-7b, with up to 8 questions of a video in a step and less recomputation.

    A video is decoded and passes the tower once for all of them: a step learns from at most 128
    questions about 16 videos, where the reference's are about 128. 5300 steps are about an epoch.
    """
    base = videoitg_7b()
    return replace(
        base,
        run_dir=Path("runs/videoitg-7b-grouped"),
        data=replace(base.data, questions_per_group=8, num_heldout=256),
        engine=replace(base.engine, recompute="elementwise"),
        num_steps=5300,
        groups_per_step=16,
        validate_every=500,
    )


def videoitg_7b_lora() -> TrainConfig:
    """As videoitg-7b-grouped, with low-rank updates of the trunk: fits one GPU of 80 GB."""
    base = videoitg_7b_grouped()
    return replace(
        base,
        run_dir=Path("runs/videoitg-7b-lora"),
        trainable=TrainableConfig(trunk="lora", embeddings=False),
        optim=replace(base.optim, lr=2e-4),
    )


def videoitg_7b_head() -> TrainConfig:
    """As videoitg-7b-grouped, with nothing but the scoring head learning: a baseline."""
    base = videoitg_7b_grouped()
    return replace(
        base,
        run_dir=Path("runs/videoitg-7b-head"),
        trainable=TrainableConfig(trunk="frozen", embeddings=False, projector=False),
        engine=replace(base.engine, recompute="nothing"),
        optim=replace(base.optim, head_lr=1e-3),
    )


def videoitg_7b_one_gpu() -> TrainConfig:
    """As videoitg-7b-grouped, arranged so that one GPU of 141 GB holds all of it."""
    base = videoitg_7b_grouped()
    return replace(
        base,
        run_dir=Path("runs/videoitg-7b-one-gpu"),
        engine=replace(base.engine, recompute="everything", max_group_numel=300_000_000),
        tokens_per_pass=17408,
    )


def projector_pretrain_7b() -> TrainConfig:
    """The first stage: a projector between SigLIP and Qwen2-7B-Instruct learns to caption images.

    `--start.checkpoint` Qwen2-7B-Instruct, `--start.vision-checkpoint` SigLIP-so400m, and LLaVA's
    558k captions as `--data.annotations`, their images below `--data.root`.
    """
    base = videoitg_7b()
    return replace(
        base,
        run_dir=Path("runs/projector-pretrain-7b"),
        task="chat",
        chat_template="plain",
        model=FrameGroundingConfig(
            vision_token_num=12480, vision_min_num=4, tokenizer_model_max_length=16384
        ),
        data=replace(base.data, sampling=SamplingConfig(max_frames=64)),
        trainable=TrainableConfig(trunk="frozen", embeddings=False, head=False),
        optim=OptimConfig(lr=1e-3, warmup_ratio=0.03),
        num_steps=2180,
        groups_per_step=256,
        tokens_per_pass=16384,
    )


def image_sft_7b() -> TrainConfig:
    """The second stage: trunk and projector learn to talk about images, in ChatML.

    `--start.checkpoint` the first stage's, and LLaVA-OneVision's conversations; images and videos
    may be mixed. One epoch, as there, is `--num-steps` conversations / 128.
    """
    base = projector_pretrain_7b()
    return replace(
        base,
        run_dir=Path("runs/image-sft-7b"),
        chat_template="chatml",
        trainable=TrainableConfig(),
        optim=OptimConfig(lr=2e-5, warmup_ratio=0.03),
        num_steps=10000,
        groups_per_step=128,
    )


def video_sft_7b() -> TrainConfig:
    """The third stage: the same about videos of up to 256 frames; a grounder starts from it.

    `--start.checkpoint` the second stage's, and LLaVA-Video's conversations. One epoch, as there,
    is `--num-steps` conversations / 128.
    """
    base = image_sft_7b()
    return replace(
        base,
        run_dir=Path("runs/video-sft-7b"),
        data=replace(base.data, sampling=SamplingConfig(max_frames=256)),
        engine=replace(base.engine, zero_stage=2),
        num_steps=10000,
    )


def _named(*recipes: Callable[[], TrainConfig]) -> dict[str, Callable[[], TrainConfig]]:
    return {recipe.__name__.replace("_", "-"): recipe for recipe in recipes}


RECIPES: dict[str, Callable[[], TrainConfig]] = _named(
    scripted_small,
    itg_tiny,
    videoitg_7b,
    videoitg_7b_grouped,
    videoitg_7b_lora,
    videoitg_7b_head,
    videoitg_7b_one_gpu,
    projector_pretrain_7b,
    image_sft_7b,
    video_sft_7b,
)
"""What `itg-train NAME` can run; the first is what it runs without a name."""


def to_options(recipe: str, config: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """What has to be said after a recipe's name to get a config.

    Args:
        recipe: The name.
        config: The whole config, as `to_plain` gives it.
        but: Names of options, without their dashes, that are left out.
    """
    usual = dict(_flatten(to_plain(RECIPES[recipe]())))
    options: list[str] = []
    for name, value in _flatten(config):
        if name in but or value == usual[name]:
            continue
        if isinstance(value, bool):
            part, _, last = name.rpartition(".")
            options.append(f"--{part}{'.' * bool(part)}{'' if value else 'no-'}{last}")
        else:
            options += [f"--{name}", str(value)]
    return options


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, Mapping):
            yield from _flatten(cast("Mapping[str, Any]", value), f"{name}.")
        else:
            yield name, value
