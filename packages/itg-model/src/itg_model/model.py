"""The whole network: frames and a question in, one logit per frame out.

    frames -> SigLIP tower -> pooled to s x s -> projector --+
                                                             |-> Qwen2 trunk -> frame means -> head
    question ids -> embeddings ------------------------------+

The trunk attends in both directions. Frames pass the tower in chunks and are pooled at once, so
memory holds one chunk at full resolution and one hidden state, never all of them. The samples of
a batch are laid end to end in one row of tokens: nothing is padded, and each attends to itself
alone, so a batch gives what its samples give one by one.

Shapes: T frames, P patches or pooled tokens per frame, C tower width, L tokens of one sample,
S tokens of all samples, D trunk width.

Source: behaviour of NVlabs/VideoITG at fab8b54, on the blocks of transformers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from itg_kernels import frame_score
from torch import Tensor, nn
from transformers import Qwen2Config, SiglipVisionConfig
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
)
from transformers.models.siglip.modeling_siglip import (
    SiglipEncoder,
    SiglipPreTrainedModel,
    SiglipVisionEmbeddings,
)

from itg_model import weights
from itg_model.attention import PACKED_NAMES, packed_name
from itg_model.config import FrameGroundingConfig, TowerConfig, read_config

VIDEO_TOKEN_ID = -200
"""Stands in `input_ids` where the video's tokens go."""

DEFAULT_FRAME_CHUNK = 32
"""Frames that pass the tower at once, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class GroundingOutput:
    """The network's answer to a batch."""

    logits: list[Tensor]
    """Per sample: [T] float32; the sigmoid of a logit is the frame's score."""


class FrameGroundingModel(nn.Module):
    """Scores the frames of videos against questions.

    Args:
        config: The architecture.
        attn_implementation: `sdpa`, `eager`, `flex_attention` or one of the `flash_attention_*`.
    """

    def __init__(self, config: FrameGroundingConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.tower = VisionTower(config.to_vision_config(attn_implementation))
        width = config.text.hidden_size
        self.projector = nn.Sequential(
            nn.Linear(config.vision.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.trunk = Trunk(config.to_text_config(packed_name(attn_implementation)))
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=config.text.initializer_range)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        vision_config: TowerConfig | None = None,
        attn_implementation: str = "sdpa",
        *,
        vision_checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> "FrameGroundingModel":
        """Loads a checkpoint directory, ours or a published one; the model is in eval mode.

        Args:
            path: Directory with `config.json` and safetensors.
            dtype: Type of the parameters; each tensor is cast as it is read.
            vision_config: The tower of a published checkpoint whose tower's name is unknown.
            attn_implementation: See the class.
            vision_checkpoint: Directory of a SigLIP checkpoint, for one that lacks its tower.
            device: Where the parameters go.

        Raises:
            CheckpointError: Something is missing, misshapen or unexpected; the message names it.
        """
        config = read_config(Path(path), vision_config)
        with torch.device("meta"):
            model = cls(config, attn_implementation)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        tower = None if vision_checkpoint is None else Path(vision_checkpoint)
        state = weights.read_weights(Path(path), shapes, dtype, torch.device(device), tower)
        model.load_state_dict(state, assign=True)
        model.tower.reset_position_ids(torch.device(device))
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` and safetensors in our own form, over a checkpoint before."""
        weights.write_checkpoint(Path(directory), self.config, self.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.weight.device

    def pooled_side(self, num_frames: int) -> int:
        """Side of the grid that each of `num_frames` frames is pooled to."""
        return self.config.pooled_side(num_frames)

    def gradient_checkpointing_enable(self) -> None:
        """Recomputes the blocks of tower and trunk in the backward pass (in train mode)."""
        self.tower.gradient_checkpointing_enable({"use_reentrant": False})
        self.trunk.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(
        self,
        pixel_values: Sequence[Tensor],
        input_ids: Sequence[Tensor],
        pooled_sides: Sequence[int] | None = None,
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
    ) -> GroundingOutput:
        """Scores a batch of videos, each against its own question.

        Args:
            pixel_values: Per sample [T, 3, H, W] float in -1..1, on any device.
            input_ids: Per sample [L] integer token ids with one `VIDEO_TOKEN_ID`.
            pooled_sides: Per sample the side to pool to, instead of the largest that fits.
            frame_chunk: Frames that pass the tower at once; changes memory, not results.

        Raises:
            ValueError: As `encode_frames` and `score_batch`.
        """
        sides = [None] * len(pixel_values) if pooled_sides is None else pooled_sides
        if not len(pixel_values) == len(input_ids) == len(sides):
            raise ValueError(
                "pixel_values, input_ids and pooled_sides must be equally long, "
                f"got {len(pixel_values)}, {len(input_ids)} and {len(sides)}"
            )
        features = [
            self.encode_frames(x, side, frame_chunk)
            for x, side in zip(pixel_values, sides, strict=True)
        ]
        return GroundingOutput(logits=self.score_batch(features, input_ids))

    def encode_frames(
        self,
        pixels: Tensor,
        side: int | None = None,
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
    ) -> Tensor:
        """Turns frames into pooled features, which no question changes.

        Args:
            pixels: [T, 3, H, W] float in -1..1, on any device.
            side: Side of the pooled grid; None takes the largest that fits T frames. A caller
                that hands a video over in parts must give the whole video's.
            frame_chunk: Frames that pass the tower at once.

        Returns:
            [T, side * side, C] in the tower's type, tokens row by row.

        Raises:
            ValueError: Wrong shape, no frames, too many, or `side` out of range.
        """
        vision = self.config.vision
        wanted = (vision.num_channels, vision.image_size, vision.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != wanted or len(pixels) == 0:
            raise ValueError(
                f"pixel_values must be [T, {', '.join(map(str, wanted))}] per video with T >= 1, "
                f"got {list(pixels.shape)}"
            )
        if not pixels.is_floating_point():
            raise ValueError(f"pixel_values must be float in -1..1, got {pixels.dtype}")
        side = self.pooled_side(len(pixels)) if side is None else side
        if not 1 <= side <= vision.grid_side:
            raise ValueError(f"pooled side must be in 1..{vision.grid_side}, got {side}")
        if frame_chunk < 1:
            raise ValueError(f"frame_chunk must be >= 1, got {frame_chunk}")
        chunks = pixels.split(frame_chunk)
        return torch.cat([pool_features(self.tower(c.to(self.device)), side) for c in chunks])

    def score(self, features: Tensor, input_ids: Tensor) -> Tensor:
        """Scores the frames of one encoded video against a question; see `score_batch`."""
        return self.score_batch([features], [input_ids])[0]

    def score_batch(self, features: Sequence[Tensor], input_ids: Sequence[Tensor]) -> list[Tensor]:
        """Scores encoded videos, each against its own question, in one pass of the trunk.

        Args:
            features: Per sample [T, P, C] from `encode_frames`.
            input_ids: Per sample [L] token ids with one `VIDEO_TOKEN_ID`.

        Raises:
            ValueError: A prompt has no `VIDEO_TOKEN_ID` or several, or the image tokens alone
                do not fit `config.tokenizer_model_max_length`.
        """
        if not features:
            return []
        hidden_SD, spans_F2 = self.contextualize(features, input_ids)
        logits = frame_score(
            hidden_SD,
            self.trunk.norm.weight,
            self.head.weight,
            self.head.bias,
            spans_F2,
            eps=self.config.text.rms_norm_eps,
        )
        return list(logits.split([len(item) for item in features]))

    def contextualize(
        self, features: Sequence[Tensor], input_ids: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Runs samples through the trunk in one pass; see `score_batch`.

        Returns:
            [S, D] hidden states before the final norm, and the [F, 2] rows of every frame.
        """
        rows, lengths, spans = [], [], []
        for item, ids in zip(features, input_ids, strict=True):
            embeds_LD, first_row = self.embed_sample(item, ids)
            num_frames, tokens_per_frame = item.shape[:2]
            start = sum(lengths) + first_row
            starts = start + tokens_per_frame * torch.arange(num_frames)
            spans.append(torch.stack([starts, starts + tokens_per_frame], dim=1))
            rows.append(embeds_LD)
            lengths.append(len(embeds_LD))
        hidden_SD = self.trunk(torch.cat(rows), lengths)
        return hidden_SD, torch.cat(spans).to(hidden_SD.device)

    def embed_sample(self, features: Tensor, input_ids: Tensor) -> tuple[Tensor, int]:
        """Lays out one sample: text, then the video's tokens in its place, then text.

        Returns:
            [L, D] embeddings, and the row of the first image token.
        """
        if features.ndim != 3 or features.numel() == 0:
            raise ValueError(f"features must be [T, P, C] and not empty, got {features.shape}")
        if input_ids.ndim != 1:
            raise ValueError(f"input_ids must be [L] per sample, got {list(input_ids.shape)}")
        places = (input_ids == VIDEO_TOKEN_ID).nonzero().flatten().tolist()
        if len(places) != 1:
            raise ValueError(
                f"input_ids must hold {VIDEO_TOKEN_ID} (<image>) exactly once per sample, "
                f"got it {len(places)} times"
            )
        first_row, num_image_rows = places[0], features.shape[0] * features.shape[1]
        room = self.config.tokenizer_model_max_length - first_row - num_image_rows
        if room < 0:
            raise ValueError(
                f"{num_image_rows} image tokens after {first_row} of text pass "
                f"tokenizer_model_max_length ({self.config.tokenizer_model_max_length}); "
                "image tokens are never cut"
            )
        ids = input_ids.to(self.device)
        image_RD = self.projector(features).flatten(0, 1)
        before = self.trunk.embed_tokens(ids[:first_row])
        after = self.trunk.embed_tokens(ids[first_row + 1 :][:room])
        return torch.cat([before, image_RD, after]), first_row


class VisionTower(SiglipPreTrainedModel):
    """The blocks of a SigLIP vision transformer, without its final norm and pooling head."""

    config: SiglipVisionConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)  # pyright: ignore[reportArgumentType]
        self.post_init()

    def forward(self, pixels: Tensor) -> Tensor:
        """[T, 3, H, W] pixels -> [T, P, C] patch features after the last block built."""
        return self.encoder(inputs_embeds=self.embeddings(pixels)).last_hidden_state

    def reset_position_ids(self, device: torch.device) -> None:
        """Restores the one buffer that no checkpoint holds, after building on `meta`."""
        num_positions = self.embeddings.num_positions
        positions = torch.arange(num_positions, device=device)[None]
        self.embeddings.register_buffer("position_ids", positions, persistent=False)


class Trunk(Qwen2PreTrainedModel):
    """Qwen2's blocks over packed samples, each attending to itself in both directions.

    The final norm is a parameter here and is applied by `frame_score`, in one pass with the mean
    over a frame's tokens and the head.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen2DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rope_theta: float = cast("dict[str, Any]", config.rope_parameters)["rope_theta"]
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self, embeds_SD: Tensor, sample_lengths: Sequence[int], is_causal: bool = False
    ) -> Tensor:
        """Runs all blocks.

        Args:
            embeds_SD: [S, D] embeddings of all samples, end to end.
            sample_lengths: Tokens of each sample; they sum to S.
            is_causal: Attends only backwards, as the language model does that a grounder starts
                from; not with eager attention, which would need a mask.

        Returns:
            [S, D] hidden states before the final norm.
        """
        packing = self._describe_packing(sample_lengths, embeds_SD.device)
        rotary = self._rotary(sample_lengths, embeds_SD)
        hidden = embeds_SD[None]
        for layer in self.layers:
            # called one by one, the blocks do not read config.is_causal: say it to each
            hidden = layer(hidden, position_embeddings=rotary, is_causal=is_causal, **packing)
        return hidden[0]

    def _rotary(self, sample_lengths: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, S, head_dim] of rotary positions, which restart per sample.

        The frequencies are computed anew in float32 rather than kept in a buffer: casting the
        module to bfloat16, as DeepSpeed does, would round them and blur positions in the thousands.
        """
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        steps = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim
        positions = torch.cat([torch.arange(n, device=like.device) for n in sample_lengths])
        angles = positions.float()[:, None] / self.rope_theta**steps
        angles = torch.cat([angles, angles], dim=-1)[None]
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def _describe_packing(
        self, sample_lengths: Sequence[int], device: torch.device
    ) -> dict[str, Any]:
        """Tells the attention implementation, in its own words, where samples begin and end."""
        if self.config._attn_implementation in PACKED_NAMES.values():
            return {"sample_lengths": list(sample_lengths)}
        if len(sample_lengths) == 1:
            return {}
        ends = torch.tensor([0, *itertools.accumulate(sample_lengths)], dtype=torch.int32)
        ends, longest = ends.to(device), max(sample_lengths)
        names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        return dict(zip(names, (ends, ends, longest, longest), strict=True))


def pool_features(features_TPC: Tensor, side: int) -> Tensor:
    """Resizes each frame's token grid to `side` x `side`, bilinear and not antialiased."""
    num_frames, num_patches, width = features_TPC.shape
    grid_side = int(num_patches**0.5)
    if side == grid_side:
        return features_TPC
    grid = features_TPC.view(num_frames, grid_side, grid_side, width).permute(0, 3, 1, 2)
    pooled = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return pooled.permute(0, 2, 3, 1).reshape(num_frames, side * side, width)
