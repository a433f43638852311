"""The architecture of the frame grounder: everything needed to build it, nothing about running it.

Two JSON forms are read: our own (`model_type` `itg_frame_grounder`, with a `format_version`) and
that of the published VideoITG checkpoints (`model_type` `eagle_QwenG`), where the vision tower is
known by name only. The towers in `KNOWN_TOWERS` need no hub.
"""

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from itg_model.errors import CheckpointError

MODEL_TYPE = "itg_frame_grounder"
PUBLISHED_MODEL_TYPE = "eagle_QwenG"
FORMAT_VERSION = 1

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """A SigLIP vision transformer. The defaults are `google/siglip-so400m-patch14-384`."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    """Blocks of the published tower; `FrameGroundingConfig.select_layer` says how many are run."""
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 384
    """Side of the square input in pixels."""
    patch_size: int = 14
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_positive(self, "vision")
        _check_heads(self.hidden_size, self.num_attention_heads, "vision")
        if self.patch_size > self.image_size:
            raise ValueError(
                f"vision.patch_size must be in 1..image_size ({self.image_size}), "
                f"got {self.patch_size}"
            )

    @property
    def grid_side(self) -> int:
        """Patches along one side of a frame; a last partial patch is left out."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """A Qwen2 trunk. The defaults are Qwen2-7B."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    vocab_size: int = 152064
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    initializer_range: float = 0.02
    """Standard deviation of freshly drawn weights, the scoring head's included."""

    def __post_init__(self) -> None:
        _check_positive(self, "text")
        _check_heads(self.hidden_size, self.num_attention_heads, "text")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text.num_key_value_heads must divide num_attention_heads "
                f"({self.num_attention_heads}), got {self.num_key_value_heads}"
            )
        if self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"text.hidden_size / num_attention_heads must be even for rotary positions, "
                f"got {self.hidden_size} / {self.num_attention_heads}"
            )


TowerConfig = VisionConfig | Mapping[str, Any] | PreTrainedConfig
"""The tower of a published checkpoint, as a caller may give it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameGroundingConfig:
    """The whole grounder. The defaults are VideoITG-8B."""

    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    """The language trunk."""

    vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    """The vision tower."""

    select_layer: int = -2
    """Which of the tower's hidden states is read, counted as Python does: -1 follows the last
    block, -2 the one before. Later blocks are neither built nor loaded."""

    vision_token_num: int = 16384
    """Image tokens of one video at most; more frames share them with a smaller grid each."""

    vision_min_num: int = 1
    """Smallest side of a frame's grid that training may draw."""

    tokenizer_model_max_length: int = 20480
    """Longest merged sequence; text is cut from the right to fit, image tokens never are."""

    def __post_init__(self) -> None:
        _check_positive(self, "config", skip=("select_layer",))
        if not 1 <= self.num_vision_layers <= self.vision.num_hidden_layers:
            raise ValueError(
                f"config.select_layer must leave 1..{self.vision.num_hidden_layers} blocks of "
                f"the tower to run, got {self.select_layer}"
            )

    @property
    def num_vision_layers(self) -> int:
        """Blocks of the tower that are run."""
        if self.select_layer < 0:
            return self.vision.num_hidden_layers + 1 + self.select_layer
        return self.select_layer

    def pooled_side(self, num_frames: int) -> int:
        """Side of the token grid that each of `num_frames` frames of a video gets.

        Raises:
            ValueError: No frames, or more than there are tokens.
        """
        if not 1 <= num_frames <= self.vision_token_num:
            raise ValueError(
                f"num_frames must be in 1..vision_token_num ({self.vision_token_num}), "
                f"got {num_frames}"
            )
        # the reference's float square root: at the published sizes it equals the exact one
        return min(int((self.vision_token_num / num_frames) ** 0.5), self.vision.grid_side)

    def draw_pooled_side(self, num_frames: int, rng: random.Random) -> int:
        """Draws a side for training as the reference does, so that few tokens are met as well.

        Raises:
            ValueError: As `pooled_side`.
        """
        largest = self.pooled_side(num_frames)
        budget_side = int((self.vision_token_num / num_frames) ** 0.5)
        # drawn before the grid caps it: short videos mostly keep their whole grid
        return min(rng.randint(min(self.vision_min_num, budget_side), budget_side), largest)

    def to_text_config(self, attn_implementation: str) -> Qwen2Config:
        """Builds transformers' config of the trunk: full attention in both directions."""
        fields = dataclasses.asdict(self.text)
        rope_theta = fields.pop("rope_theta")
        fields |= {
            "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
            "is_causal": False,
            "use_cache": False,
            "attn_implementation": attn_implementation,
        }
        return Qwen2Config(**fields)

    def to_vision_config(self, attn_implementation: str) -> SiglipVisionConfig:
        """Builds transformers' config of the part of the tower that is run."""
        fields = dataclasses.asdict(self.vision)
        fields |= {
            "num_hidden_layers": self.num_vision_layers,
            "attn_implementation": attn_implementation,
        }
        return SiglipVisionConfig(**fields)

    def to_json(self) -> dict[str, Any]:
        """Turns the config into the JSON object that `config.json` holds."""
        head = {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION}
        return head | dataclasses.asdict(self)

    def to_published_json(self, dtype: object) -> dict[str, Any]:
        """Turns the config into the `config.json` of a published checkpoint.

        Args:
            dtype: Type of the weights beside it, such as `torch.bfloat16`.
        """
        named = next((name for name, tower in KNOWN_TOWERS.items() if tower == self.vision), None)
        return {
            "architectures": ["EagleQwenG"],
            "model_type": PUBLISHED_MODEL_TYPE,
            "torch_dtype": str(dtype).removeprefix("torch."),
            **dataclasses.asdict(self.text),
            **{name: only[0] for name, only in _PUBLISHED_FIXED.items()},
            **_PUBLISHED_UNUSED,
            "mm_vision_tower": named,
            # a tower without a name cannot be fetched; ours reads what it is here
            **({} if named else {"vision_config": dataclasses.asdict(self.vision)}),
            "mm_hidden_size": self.vision.hidden_size,
            "mm_vision_select_layer": self.select_layer,
            "vision_token_num": self.vision_token_num,
            "vision_min_num": self.vision_min_num,
            "tokenizer_model_max_length": self.tokenizer_model_max_length,
            "max_position_embeddings": max(32768, self.tokenizer_model_max_length),
        }

    @classmethod
    def from_json(
        cls,
        data: Mapping[str, Any],
        vision_config: "TowerConfig | None" = None,
    ) -> "FrameGroundingConfig":
        """Builds a config from `config.json`, ours or the published one.

        Args:
            data: The decoded JSON object.
            vision_config: The tower of a published checkpoint whose tower is not in
                `KNOWN_TOWERS`, as our dataclass or SigLIP's config.

        Raises:
            CheckpointError: The object is of another model or version, has a field that we do not
                know (own form), or asks for what this network does not do (published form).
        """
        model_type = data.get("model_type")
        try:
            # the reference writes the class's name or the instance's: they differ in one letter
            if str(model_type).lower() == PUBLISHED_MODEL_TYPE.lower():
                return _from_published(data, vision_config)
            if model_type == MODEL_TYPE:
                if vision_config is not None:
                    raise ValueError("vision_config is given, but config.json holds the tower's")
                return _from_own(data)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json: {error}") from None
        raise CheckpointError(
            f"config.json: model_type must be {MODEL_TYPE!r} or {PUBLISHED_MODEL_TYPE!r}, "
            f"got {model_type!r}"
        )


def read_config(
    directory: Path,
    vision_config: TowerConfig | None = None,
) -> FrameGroundingConfig:
    """Reads `config.json` of a checkpoint directory; see `FrameGroundingConfig.from_json`.

    Raises:
        CheckpointError: The file is missing, is not JSON, or does not hold.
    """
    path = directory / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; a checkpoint is a directory with "
            "config.json and *.safetensors"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(data).__name__}")
    try:
        return FrameGroundingConfig.from_json(data, vision_config)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


def _from_own(data: Mapping[str, Any]) -> FrameGroundingConfig:
    fields = {k: v for k, v in data.items() if k not in ("model_type", "format_version")}
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version must be {FORMAT_VERSION}, got {version!r}")
    for name, section in (("text", TextConfig), ("vision", VisionConfig)):
        if not isinstance(fields.get(name), Mapping):
            raise ValueError(f"{name} must be an object, got {fields.get(name)!r:.80}")
        fields[name] = _build_whole(section, fields[name], f"{name}.")
    return _build_whole(FrameGroundingConfig, fields, "")


def _build_whole(section: type[ConfigT], fields: Mapping[str, Any], prefix: str) -> ConfigT:
    for field in dataclasses.fields(cast(Any, section)):
        if field.name not in fields:
            raise ValueError(f"missing field {prefix}{field.name}")
    return _build(section, fields, prefix)


def _from_published(
    data: Mapping[str, Any],
    vision_config: TowerConfig | None,
) -> FrameGroundingConfig:
    for name, only in _PUBLISHED_FIXED.items():
        if data.get(name, only[0]) not in only:
            raise ValueError(f"{name} must be {only[0]!r}, got {data[name]!r}")
    rope = data.get("rope_parameters") or {}
    rope_theta = data.get("rope_theta", rope.get("rope_theta"))
    text = {f.name: data[f.name] for f in dataclasses.fields(TextConfig) if f.name in data}
    if rope_theta is not None:
        text["rope_theta"] = rope_theta
    missing = sorted({f.name for f in dataclasses.fields(TextConfig)} - set(text) - _OPTIONAL_TEXT)
    if missing:
        raise ValueError(f"missing field {missing[0]}")
    for name in ("vision_token_num", "tokenizer_model_max_length"):
        if name not in data:
            raise ValueError(f"missing field {name}")
    vision = _published_tower(data, vision_config)
    if data.get("mm_hidden_size", vision.hidden_size) != vision.hidden_size:
        raise ValueError(
            f"mm_hidden_size is {data['mm_hidden_size']}, but the vision tower's hidden_size "
            f"is {vision.hidden_size}"
        )
    return FrameGroundingConfig(
        text=_build(TextConfig, text, ""),
        vision=vision,
        select_layer=data.get("mm_vision_select_layer", -2),
        vision_token_num=data["vision_token_num"],
        vision_min_num=data.get("vision_min_num", 1),
        tokenizer_model_max_length=data["tokenizer_model_max_length"],
    )


# Options of the reference that its released checkpoints do not use; the first value is also
# what a missing field means. Its 2x2 merge would show as a misshapen projector.
_PUBLISHED_FIXED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("seq_mlp",),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "mm_use_4_vision_tokens": (False,),
    "mm_use_im_start_end": (False,),
    "use_sliding_window": (False, None),
    "rope_scaling": (None,),
}
# What the reference's loader wants to find, and what no frame's score depends on.
_PUBLISHED_UNUSED: dict[str, Any] = {
    "use_mm_proj": True,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "square",
    "tokenizer_padding_side": "right",
    "tie_word_embeddings": False,
    "use_cache": False,
}
_OPTIONAL_TEXT = {"hidden_act", "initializer_range", "rope_theta", "rms_norm_eps"}


def _published_tower(data: Mapping[str, Any], given: TowerConfig | None) -> VisionConfig:
    given = given if given is not None else data.get("vision_config")
    if isinstance(given, VisionConfig):
        return given
    if given is not None:
        if not isinstance(given, PreTrainedConfig):
            # a whole SigLIP config.json holds the tower's part under its own key; fields that it
            # leaves out have SigLIP's defaults, not ours
            given = SiglipVisionConfig(**given.get("vision_config", given))
        fields = given.to_dict()
        return VisionConfig(**{f.name: fields[f.name] for f in dataclasses.fields(VisionConfig)})
    name = data.get("mm_vision_tower")
    if name in KNOWN_TOWERS:
        return KNOWN_TOWERS[name]
    raise ValueError(
        f"mm_vision_tower {name!r} is not one of {sorted(KNOWN_TOWERS)}; "
        "pass vision_config= with the tower's SigLIP config"
    )


def _build(section: type[ConfigT], fields: Mapping[str, Any], prefix: str) -> ConfigT:
    """Builds a config dataclass from JSON, checking names and types of its fields."""
    known = {f.name: f.type for f in dataclasses.fields(cast(Any, section))}
    for name, value in fields.items():
        if name not in known:
            raise ValueError(f"unknown field {prefix}{name}")
        hint = known[name]
        accepted = (int, float) if hint is float else hint
        if isinstance(hint, type) and (
            not isinstance(value, cast(Any, accepted)) or isinstance(value, bool)
        ):
            raise ValueError(f"{prefix}{name} must be {hint.__name__}, got {value!r:.80}")
    return section(**fields)


def _check_positive(section: Any, prefix: str, skip: tuple[str, ...] = ()) -> None:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.name not in skip and isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{prefix}.{field.name} must be > 0, got {value}")


def _check_heads(hidden_size: int, num_heads: int, prefix: str) -> None:
    if hidden_size % num_heads:
        raise ValueError(
            f"{prefix}.num_attention_heads must divide hidden_size ({hidden_size}), got {num_heads}"
        )


KNOWN_TOWERS = {"google/siglip-so400m-patch14-384": VisionConfig()}
"""Towers that published checkpoints name, so that their configs need not be fetched."""
