"""Everything a training run depends on: one frozen dataclass, written whole beside its results."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from itg_data.published import Labels
from itg_data.sampling import SamplingConfig
from itg_data.synthetic import SyntheticConfig
from itg_model.config import FrameGroundingConfig

SMALLEST_VOCABULARY = 257
"""Tokens of a tokenizer that has learnt nothing: one for each byte, and the end of text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is learnt from."""

    root: Path | None = None
    """Folder that the records' video paths are relative to; None writes the scripted set described
    by `synthetic`."""

    annotations: Path | None = None
    """The records: our JSONL, or a `.json` list, for grounding in the published form of
    `video_itg_data.json` and for a chat task in LLaVA's. None means `records.jsonl` in `root`."""

    labels: Labels = "frame_num"
    """Which field of the published form holds the labels; `clip_num_as_seconds` repeats the
    reference's reading, wrong for the published file."""

    num_heldout: int = 0
    """Videos to hold out, chosen by the hash of their path, of a set whose records name no
    split."""

    questions_per_group: int = 0
    """Questions of one video that are learnt in one step, sharing its decoding and its pass of the
    tower; 0 means all. The reference takes 1."""

    pad_token_id: int | None = None
    """Replaces the tokenizer's pad token, which is left out of questions. The reference sets 0,
    Qwen2's "!", and so never sees a lone exclamation mark; nor, once its checkpoint is loaded, any
    other, "?!" for one, which here is so in training as well. None leaves the tokenizer alone."""

    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The scripted set; not used where `root` is given."""

    cache_dir: Path = Path("runs/data")
    """Where scripted sets are kept, one folder per description, and what is known of videos."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Which frames of a video are looked at."""

    cache_mib: int = 1024
    """Memory for frames that are decoded and resized, in MiB; the rest is decoded anew."""

    features_dir: Path | None = None
    """Keeps the tower's features of every video here; later epochs and runs then neither decode
    nor run the tower. Unpooled where sides are drawn: 1.7 MB a frame at full size."""

    num_workers: int = 2
    """Videos that each process reads at once, ahead of their turn."""

    def __post_init__(self) -> None:
        for name in ("cache_mib", "num_heldout", "questions_per_group"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must be >= 0, got {getattr(self, name)}")
        if self.num_workers < 1:
            raise ValueError(f"data.num_workers must be >= 1, got {self.num_workers}")
        if self.annotations is not None and self.root is None:
            raise ValueError(
                f"data.annotations is {self.annotations}; pass data.root as well, the folder of "
                "the videos"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """The weights that training starts from; drawn from the seed where none are given."""

    checkpoint: Path | None = None
    """Directory of a grounder, a Video LLM or a Qwen2 language model, with its tokenizer. What it
    lacks of projector, scoring head and language head is drawn."""

    vision_checkpoint: Path | None = None
    """Directory of a SigLIP checkpoint, where `checkpoint` holds no tower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainableConfig:
    """Which parts learn."""

    trunk: Literal["full", "lora", "frozen"] = "full"
    """The language trunk: all of it, low-rank updates of its matrices, or nothing."""

    embeddings: bool = True
    """The trunk's token embeddings."""

    projector: bool = True
    """The layers between tower and trunk."""

    head: bool = True
    """The scoring head; in a chat task, the language head."""

    tower: bool = False
    """The vision tower; the reference's is always frozen."""

    lora_rank: int = 16
    """Rank of the updates where `trunk` is lora."""

    lora_alpha: int = 32
    """The updates are scaled by `lora_alpha / lora_rank`."""

    def __post_init__(self) -> None:
        for name in ("lora_rank", "lora_alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainable.{name} must be >= 1, got {getattr(self, name)}")
        frozen = self.trunk == "frozen"
        if frozen and not (self.embeddings or self.projector or self.head or self.tower):
            raise ValueError("trainable: nothing is left to learn")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW, warm-up, cosine."""

    lr: float
    """Peak learning rate of what has none of its own."""

    head_lr: float | None = None
    """Peak learning rate of the scoring head; None means `lr`."""

    projector_lr: float | None = None
    """Peak learning rate of the projector; None means `lr`."""

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
        for name in ("lr", "head_lr", "projector_lr"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise ValueError(f"optim.{name} must be > 0, got {rate}")
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

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What is divided among processes: nothing, the optimizer's state, the gradients as well, the
    parameters as well."""

    offload: Literal["nothing", "optimizer", "parameters"] = "nothing"
    """What lives in the CPU's memory: nothing, the optimizer's state (stages 1 to 3), or the
    parameters as well (stage 3)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters in the forward and backward pass."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""

    recompute: Literal["nothing", "elementwise", "everything"] = "nothing"
    """What the trunk's blocks compute again in the backward pass to save memory: nothing; what
    norms and activations make, at a percent of the time; or everything, at a third."""

    layers_recomputed: int = 0
    """With `recompute` elementwise, this many blocks recompute everything, for want of memory."""

    overlap_comm: bool = True
    """Exchanges gradients while others are still computed, where there are several processes. On
    a fast link it may gain nothing: DeepSpeed waits for the GPU at every bucket of them."""

    max_group_numel: int = 0
    """Splits optimizer groups above so many parameters: each costs a temporary copy in float32
    at every step, which 7B parameters at once don't leave one GPU room for. 0 never splits."""

    def __post_init__(self) -> None:
        for name in ("layers_recomputed", "max_group_numel"):
            if getattr(self, name) < 0:
                raise ValueError(f"engine.{name} must be >= 0, got {getattr(self, name)}")
        if self.offload != "nothing" and self.zero_stage == 0:
            raise ValueError("engine.offload needs engine.zero_stage 1, 2 or 3, got 0")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(
                f"engine.offload parameters needs engine.zero_stage 3, got {self.zero_stage}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole run."""

    run_dir: Path
    """Where everything that the run writes goes."""

    task: Literal["grounding", "chat"] = "grounding"
    """What is learnt: which frames answer a question, or, in the stages before, to talk about
    images and videos."""

    chat_template: Literal["plain", "chatml"] = "chatml"
    """How a chat task writes conversations out; see `itg_train.chat`."""

    model: FrameGroundingConfig
    """The architecture; a tokenizer made for the run learns at most `text.vocab_size` tokens."""

    start: StartConfig = field(default_factory=StartConfig)
    """The weights to start from."""

    data: DataConfig = field(default_factory=DataConfig)
    """What is learnt from."""

    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    """Which parts learn."""

    optim: OptimConfig
    """How the weights move."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    """How DeepSpeed runs."""

    num_steps: int
    """Optimizer steps."""

    groups_per_step: int = 1
    """Groups of questions (see `data.questions_per_group`) that a step learns from, in all
    processes together: what a step learns does not depend on how many there are."""

    tokens_per_pass: int = 16384
    """Most tokens that a process takes through the trunk at once; a step makes as many passes as
    its questions need. One longer question passes alone. With `engine.dtype` bfloat16 the
    gradients of a step's passes are added up in bfloat16: over 128 passes they err by about a
    percent, over fewer by less."""

    random_pooled_side: bool = False
    """Draws the side of the pooled grid anew per question and step, as the reference does."""

    frame_chunk: int = 32
    """Frames that pass the tower at once: more are faster and take more memory."""

    save_every: int = 500
    """Steps between states to resume from; the last step always leaves one."""

    validate_every: int = 0
    """Steps between measurements on the held-out split; 0 measures only at the end."""

    wandb_project: str | None = None
    """Reports to this Weights & Biases project as well, which must be installed."""

    seed: int = 0
    """Initial weights, order of the videos and drawn grids follow from it."""

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "groups_per_step",
            "tokens_per_pass",
            "frame_chunk",
            "save_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("seed", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.model.text.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"model.text.vocab_size must be >= {SMALLEST_VOCABULARY} (the bytes and the end of "
                f"text), got {self.model.text.vocab_size}"
            )
        if self.data.features_dir is not None and self.trainable.tower:
            raise ValueError(
                f"data.features_dir is {self.data.features_dir}, but trainable.tower changes the "
                "features at every step; leave out one of them"
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


def to_plain(value: Any) -> Any:
    """Turns a config into what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value) if isinstance(value, Path) else value
