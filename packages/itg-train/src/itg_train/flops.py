"""Floating-point operations of a sample, counted from shapes: they balance processes, give MFU.

A multiplication with its addition counts two. Norms, activations and rotations are left out; they
cost memory traffic, not operations. Recomputed activations are not counted either: MFU is about
what the model asks for, not about what a run spends on it.
"""

from dataclasses import dataclass

from itg_model.config import FrameGroundingConfig

from itg_train.config import TrainableConfig

_PEAK_FLOPS = (
    # dense bfloat16 by the vendor's datasheet, operations per second
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
)


def peak_flops(gpu: str | None) -> float | None:
    """Dense bfloat16 operations per second of a GPU by its name; None where it is not known."""
    return next((peak for name, peak in _PEAK_FLOPS if gpu and name in gpu), None)


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """Operations of a forward pass through parts of the network.

    Args:
        config: The architecture.
        causal: Whether tokens attend only backwards, which halves attention.
    """

    config: FrameGroundingConfig
    causal: bool = False

    def trunk(self, num_tokens: int) -> float:
        """One sample of `num_tokens` in the trunk: linear in them, and quadratic in attention."""
        text = self.config.text
        head_dim = text.hidden_size // text.num_attention_heads
        weights = text.hidden_size * (
            2 * text.hidden_size
            + 2 * text.num_key_value_heads * head_dim
            + 3 * text.intermediate_size
        )
        attention = 4 * text.hidden_size * num_tokens**2 * (0.5 if self.causal else 1)
        return text.num_hidden_layers * (2 * weights * num_tokens + attention)

    def projector(self, num_tokens: int) -> float:
        """Image tokens through the projector."""
        width = self.config.text.hidden_size
        return 2 * num_tokens * (self.config.vision.hidden_size * width + width**2)

    def tower(self, num_frames: int) -> float:
        """Frames through the tower."""
        vision = self.config.vision
        width, num_patches = vision.hidden_size, vision.grid_side**2
        weights = width * (4 * width + 2 * vision.intermediate_size)
        block = 2 * weights * num_patches + 4 * width * num_patches**2
        embedding = 2 * width * vision.num_channels * vision.patch_size**2 * num_patches
        return num_frames * (self.config.num_vision_layers * block + embedding)


def training_factors(trainable: TrainableConfig) -> tuple[float, float]:
    """How often a training step spends the forward operations of trunk and tower.

    A part that learns costs three times its forward pass: once forward, once for the gradients of
    its inputs and once for those of its weights. Gradients of inputs are needed only where
    something before them learns.
    """
    before_trunk = trainable.projector or trainable.embeddings or trainable.tower
    through = before_trunk or trainable.trunk != "frozen"
    trunk = 1 + (1 if through else 0) + (1 if trainable.trunk == "full" else 0)
    return float(trunk), 3.0 if trainable.tower else 1.0
