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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from itg_kernels import frame_score
from torch import Tensor, nn

from itg_model import weights
from itg_model.blocks import Trunk, VisionTower
from itg_model.config import FrameGroundingConfig, TowerConfig, read_config
from itg_model.devices import to_device
from itg_model.fast import FastTower, FastTrunk
from itg_model.linear import check_fp8
from itg_model.packing import packed_name

VIDEO_TOKEN_ID = -200
"""Stands in `input_ids` where the video's tokens go."""

DEFAULT_FRAME_CHUNK = 32
"""Frames that pass the tower at once, unless the caller says otherwise."""

Precision = Literal["native", "fp8"]
"""Of matrix products at inference: the parameters' own type, or 8-bit floating point."""


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
        self.tower: VisionTower | FastTower = VisionTower(
            config.to_vision_config(attn_implementation)
        )
        width = config.text.hidden_size
        self.projector = nn.Sequential(
            nn.Linear(config.vision.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.trunk: Trunk | FastTrunk = Trunk(
            config.to_text_config(packed_name(attn_implementation))
        )
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
        model.stacks("loaded")[0].reset_position_ids(torch.device(device))
        return model.eval()

    def for_inference(self, *, precision: Precision = "native") -> "FrameGroundingModel":
        """Rebuilds tower and trunk for speed, in place; the model cannot be trained or saved then.

        Args:
            precision: `native` gives the same logits but for rounding; `fp8` rounds weights and
                activations to 8 bits: about a third faster, half the memory, and scores move.

        Returns:
            The model itself, in eval mode.

        Raises:
            ValueError: `precision` is unknown or cannot run here, the attention is not `sdpa`, or
                the model was rebuilt before.
        """
        check_precision(precision, self.device, self.head.weight.dtype)
        tower, trunk = self.stacks("rebuilt")
        if tower.config._attn_implementation != "sdpa":
            raise ValueError(
                "for_inference() has its own attention and needs attn_implementation sdpa, "
                f"got {tower.config._attn_implementation!r}"
            )
        fp8 = precision == "fp8"
        self.tower = FastTower(tower, fp8=fp8)
        self.trunk = FastTrunk(trunk, fp8=fp8)
        return self.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` and safetensors in our own form, over a checkpoint before."""
        self.stacks("saved")
        weights.write_checkpoint(Path(directory), self.config, self.state_dict())

    def stacks(self, wish: str) -> tuple[VisionTower, Trunk]:
        """Tower and trunk as loaded, which alone can be `wish`ed so."""
        if isinstance(self.tower, FastTower) or isinstance(self.trunk, FastTrunk):
            raise ValueError(f"a model after for_inference() cannot be {wish}; load it anew")
        return self.tower, self.trunk

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.weight.device

    def pooled_side(self, num_frames: int) -> int:
        """Side of the grid that each of `num_frames` frames is pooled to."""
        return self.config.pooled_side(num_frames)

    def gradient_checkpointing_enable(self) -> None:
        """Recomputes the blocks of tower and trunk in the backward pass (in train mode)."""
        for stack in self.stacks("trained"):
            stack.gradient_checkpointing_enable({"use_reentrant": False})

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
        tower: FastTower | None = None,
    ) -> Tensor:
        """Turns frames into pooled features, which no question changes.

        Args:
            pixels: [T, 3, H, W] float in -1..1, or [T, H, W, 3] uint8 RGB, on any device; uint8
                travels to the model's device as it is and is scaled there, bit for bit as
                `preprocess_frames` does it.
            side: Side of the pooled grid; None takes the largest that fits T frames. A caller
                that hands a video over in parts must give the whole video's.
            frame_chunk: Frames that pass the tower at once.
            tower: The model's own tower rebuilt, to do the work in its place.

        Returns:
            [T, side * side, C] in the tower's type, tokens row by row.

        Raises:
            ValueError: Wrong shape, no frames, too many, or `side` out of range.
        """
        self._check_pixels(pixels)
        side = self.pooled_side(len(pixels)) if side is None else side
        grid_side = self.config.vision.grid_side
        if not 1 <= side <= grid_side:
            raise ValueError(f"pooled side must be in 1..{grid_side}, got {side}")
        if frame_chunk < 1:
            raise ValueError(f"frame_chunk must be >= 1, got {frame_chunk}")
        features = []
        encode = tower or self.tower
        for chunk in pixels.split(frame_chunk):
            features.append(encode(chunk.to(self.device, non_blocking=True), side))
        return torch.cat(features)

    def _check_pixels(self, pixels: Tensor) -> None:
        vision = self.config.vision
        size = (vision.image_size, vision.image_size)
        squares = (*size, 3) if pixels.dtype == torch.uint8 else (vision.num_channels, *size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != squares or len(pixels) == 0:
            raise ValueError(
                f"pixel_values must be [T, {', '.join(map(str, squares))}] per video with T >= 1, "
                f"got {list(pixels.shape)}"
            )
        if not pixels.is_floating_point() and pixels.dtype != torch.uint8:
            raise ValueError(f"pixel_values must be float in -1..1 or uint8, got {pixels.dtype}")

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
        for item, (embeds_LD, first_row) in zip(
            features, self.embed_samples(features, input_ids), strict=True
        ):
            num_frames, tokens_per_frame = item.shape[:2]
            start = sum(lengths) + first_row
            starts = start + tokens_per_frame * torch.arange(num_frames)
            spans.append(torch.stack([starts, starts + tokens_per_frame], dim=1))
            rows.append(embeds_LD)
            lengths.append(len(embeds_LD))
        hidden_SD = self.trunk(torch.cat(rows), lengths)
        return hidden_SD, to_device(torch.cat(spans), hidden_SD.device)

    def embed_samples(
        self, features: Sequence[Tensor | None], input_ids: Sequence[Tensor]
    ) -> list[tuple[Tensor, int]]:
        """Lays out samples: text, then the video's tokens in its place, then text.

        All text is embedded in one call, because an embedding's gradient is as large as its table,
        and a video is projected once for all of its questions.

        Args:
            features: Per sample [T, P, C], or None where it is text alone.
            input_ids: As for `score_batch`.

        Returns:
            Per sample its [L, D] embeddings, and the row of the first image token.
        """
        texts = [
            self._texts_around(item, ids) for item, ids in zip(features, input_ids, strict=True)
        ]
        parts = [part for text in texts for part in text]
        ids = to_device(torch.cat(parts), self.device)
        embedded = iter(self.trunk.embed_tokens(ids).split([len(part) for part in parts]))
        projected = self._project(features)
        laid_out = []
        for item, (first, _) in zip(features, texts, strict=True):
            before, after = next(embedded), next(embedded)
            image_RD = [] if item is None else [projected[id(item)]]
            laid_out.append((torch.cat([before, *image_RD, after]), len(first)))
        return laid_out

    def _project(self, features: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """By the identity of each tensor its [T * P, D] image tokens."""
        distinct = {id(item): item.flatten(0, 1) for item in features if item is not None}
        if not distinct:
            return {}
        rows = self.projector(torch.cat(list(distinct.values())))
        return dict(zip(distinct, rows.split([len(x) for x in distinct.values()]), strict=True))

    def _texts_around(self, features: Tensor | None, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids before and after the video's place, cut to what fits."""
        if input_ids.ndim != 1:
            raise ValueError(f"input_ids must be [L] per sample, got {list(input_ids.shape)}")
        longest = self.config.tokenizer_model_max_length
        if features is None:
            return input_ids[input_ids != VIDEO_TOKEN_ID][:longest], input_ids[:0]
        if features.ndim != 3 or features.numel() == 0:
            raise ValueError(f"features must be [T, P, C] and not empty, got {features.shape}")
        places = (input_ids == VIDEO_TOKEN_ID).nonzero().flatten().tolist()
        if len(places) != 1:
            raise ValueError(
                f"input_ids must hold {VIDEO_TOKEN_ID} (<image>) exactly once per sample, "
                f"got it {len(places)} times"
            )
        first_row, num_image_rows = places[0], features.shape[0] * features.shape[1]
        room = longest - first_row - num_image_rows
        if room < 0:
            raise ValueError(
                f"{num_image_rows} image tokens after {first_row} of text pass "
                f"tokenizer_model_max_length ({longest}); image tokens are never cut"
            )
        return input_ids[:first_row], input_ids[first_row + 1 :][:room]


def check_precision(precision: Precision, device: torch.device, dtype: torch.dtype) -> None:
    """Checks that matrix products of a model on `device` and of `dtype` can have a precision.

    Raises:
        ValueError: `precision` is unknown or cannot run there.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
    if precision == "fp8":
        check_fp8(device, dtype)
