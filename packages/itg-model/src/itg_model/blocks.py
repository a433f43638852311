"""The two stacks of the network on the blocks of transformers: as trained, and with gradients.

`itg_model.fast` holds the same two rebuilt for inference; these are the obvious ones beside them.

Shapes: T frames, P patches or pooled tokens per frame, C tower width, S tokens of all samples,
D trunk width.
"""

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
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

from itg_model.packing import PACKED_NAMES, rows_by_length
from itg_model.pixels import as_pixels


class VisionTower(SiglipPreTrainedModel):
    """The blocks of a SigLIP vision transformer, without its final norm and pooling head."""

    config: SiglipVisionConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)  # pyright: ignore[reportArgumentType]
        self.post_init()

    def forward(self, pixels: Tensor, side: int) -> Tensor:
        """[T, 3, H, W] pixels, or uint8 frames -> [T, side * side, C] features, pooled."""
        embedded = self.embeddings(as_pixels(pixels))
        hidden = self.encoder(inputs_embeds=embedded).last_hidden_state
        return pool_features(hidden, side)

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
        rows = rows_by_length(sample_lengths) if self._attends_per_sample else None
        if rows is None:
            return self._run(embeds_SD, sample_lengths, is_causal)
        rows = rows.to(embeds_SD.device)
        # index_select, because the gradient of indexing sorts
        sorted_SD = embeds_SD.index_select(0, rows)
        hidden_SD = self._run(sorted_SD, sorted(sample_lengths), is_causal)
        return hidden_SD.index_select(0, rows.argsort())

    @property
    def _attends_per_sample(self) -> bool:
        return self.config._attn_implementation in PACKED_NAMES.values()

    def _run(self, embeds_SD: Tensor, sample_lengths: Sequence[int], is_causal: bool) -> Tensor:
        packing = self._describe_packing(sample_lengths, embeds_SD.device)
        rotary = self._rotary(sample_lengths, embeds_SD)
        hidden = embeds_SD[None]
        for layer in self.layers:
            # called one by one, the blocks do not read config.is_causal: say it to each
            hidden = layer(hidden, position_embeddings=rotary, is_causal=is_causal, **packing)
        return hidden[0]

    def _rotary(self, sample_lengths: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, S, head_dim] of the rotary positions, in the trunk's type."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        angles = rotary_angles(sample_lengths, head_dim, self.rope_theta, like.device)
        angles = torch.cat([angles, angles], dim=-1)[None]
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def _describe_packing(
        self, sample_lengths: Sequence[int], device: torch.device
    ) -> dict[str, Any]:
        """Tells the attention implementation, in its own words, where samples begin and end."""
        if self._attends_per_sample:
            return {"sample_lengths": list(sample_lengths)}
        if len(sample_lengths) == 1:
            return {}
        ends = torch.tensor([0, *itertools.accumulate(sample_lengths)], dtype=torch.int32)
        ends, longest = ends.to(device), max(sample_lengths)
        names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        return dict(zip(names, (ends, ends, longest, longest), strict=True))


def rotary_angles(
    sample_lengths: Sequence[int], head_dim: int, theta: float, device: torch.device
) -> Tensor:
    """Angles [S, head_dim / 2] of rotary positions, which restart with every sample.

    The frequencies are computed anew in float32 rather than kept in a buffer: casting a module to
    bfloat16, as DeepSpeed does, would round them and blur positions in the thousands.
    """
    steps = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    lengths = torch.tensor(sample_lengths)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    positions = (torch.arange(len(starts)) - starts).to(device)
    return positions.float()[:, None] / theta**steps


def pool_features(features_TPC: Tensor, side: int) -> Tensor:
    """Resizes each frame's token grid [T, P, C] to `side` x `side`, bilinear, not antialiased."""
    num_frames, num_patches, width = features_TPC.shape
    grid_side = int(num_patches**0.5)
    if side == grid_side:
        return features_TPC
    grid = features_TPC.view(num_frames, grid_side, grid_side, width).permute(0, 3, 1, 2)
    pooled = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return pooled.permute(0, 2, 3, 1).reshape(num_frames, side * side, width)
