"""Everything a training run depends on: one frozen dataclass, written whole beside its results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from itg_data.sampling import SamplingConfig
from itg_data.synthetic import SyntheticConfig
from itg_model.config import FrameGroundingConfig

SMALLEST_VOCABULARY = 257
"""Tokens of a tokenizer that has learnt nothing: one for each byte, and the end of text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is learnt from."""

    root: Path | None = None
    """Folder with `records.jsonl` (splits `train` and `heldout`) and the videos that it names;
    None writes the scripted set described by `synthetic`."""

    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The scripted set; not used where `root` is given."""

    cache_dir: Path = Path("runs/data")
    """Where scripted sets are kept, one folder per description."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Which frames of a video are looked at."""

    cache_mib: int = 1024
    """Memory for frames that are decoded and resized, in MiB; the rest is decoded anew."""

    def __post_init__(self) -> None:
        if self.cache_mib < 0:
            raise ValueError(f"data.cache_mib must be >= 0, got {self.cache_mib}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW, warm-up, cosine."""

    lr: float
    """Peak learning rate of everything but the head."""

    head_lr: float | None = None
    """Peak learning rate of the scoring head; None means `lr`."""

    warmup_ratio: float = 0.05
    """Share of the steps over which the learning rate rises from zero."""

    final_lr_ratio: float = 0.0
    """Learning rate at the end, as a share of the peak."""

    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; biases and norms have none."""

    beta2: float = 0.999
    """Decay of the second moment; the first moment's is 0.9."""

    max_grad_norm: float = 0.0
    """Gradients are scaled down to this norm; 0 leaves them alone, as the reference does."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or (self.head_lr is not None and not self.head_lr > 0):
            raise ValueError(f"optim.lr and head_lr must be > 0, got {self.lr} and {self.head_lr}")
        for name in ("warmup_ratio", "final_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must be in 0..1, got {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"optim.beta2 must be in [0, 1), got {self.beta2}")
        if self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ValueError(
                "optim.weight_decay and max_grad_norm must be >= 0, "
                f"got {self.weight_decay} and {self.max_grad_norm}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How DeepSpeed runs; its JSON is derived from this."""

    zero_stage: Literal[0, 1, 2] = 1
    """What is divided among processes: nothing, the optimizer's state, the gradients as well."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters in the forward and backward pass."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole run."""

    run_dir: Path
    """Where everything that the run writes goes."""

    model: FrameGroundingConfig
    """The architecture; the tokenizer learns at most `text.vocab_size` tokens."""

    data: DataConfig = field(default_factory=DataConfig)
    """What is learnt from."""

    optim: OptimConfig
    """How the weights move."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """How DeepSpeed runs."""

    num_steps: int
    """Optimizer steps."""

    videos_per_step: int = 1
    """Videos per process and step; all questions of a video share one pass of the tower."""

    random_pooled_side: bool = False
    """Draws the side of the pooled grid anew per video and step, as the reference does."""

    train_tower: bool = False
    """Lets the vision tower learn; the reference's is always frozen."""

    frame_chunk: int = 32
    """Frames that pass the tower at once: more are faster and take more memory."""

    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: less memory, a third more time."""

    save_every: int = 500
    """Steps between states to resume from; the last step always leaves one."""

    seed: int = 0
    """Initial weights, order of the videos and drawn grids follow from it."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "videos_per_step", "frame_chunk", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if self.model.text.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"model.text.vocab_size must be >= {SMALLEST_VOCABULARY} (the bytes and the end of "
                f"text), got {self.model.text.vocab_size}"
            )
        # else the first long video would stop the run
        num_tokens = self.model.vision_token_num
        if self.data.sampling.max_frames > num_tokens:
            raise ValueError(
                "data.sampling.max_frames must be <= model.vision_token_num "
                f"({num_tokens}), got {self.data.sampling.max_frames}"
            )
        if num_tokens >= self.model.tokenizer_model_max_length:
            raise ValueError(
                "model.vision_token_num must be < model.tokenizer_model_max_length "
                f"({self.model.tokenizer_model_max_length}), got {num_tokens}"
            )
