"""What is trained: the grounder with its loss, as one module, so that an engine can wrap it."""

import random
from typing import Any

import torch
from itg_kernels import frame_bce_loss
from itg_model.model import DEFAULT_FRAME_CHUNK, FrameGroundingModel
from torch import Tensor, nn

from itg_train.config import OptimConfig
from itg_train.dataset import Batch, VideoSample


class GroundingLoss(nn.Module):
    """The loss of a batch of videos with all of their questions.

    Per question it is the reference's loss with one sample per process: binary cross entropy over
    the frames, relevant frames weighted by min(5, sqrt(negatives / positives)). The batch's loss
    is the mean over its questions, times its weight (see `Batch`). Unlike there, a question that
    the whole video answers still teaches (see `itg_kernels.frame_bce_loss`).

    Args:
        model: The grounder.
        train_tower: Whether gradients reach the vision tower.
        random_side_seed: Draws the pooled side anew per video from this seed; None keeps the
            largest.
        frame_chunk: Frames that pass the tower at once.
    """

    def __init__(
        self,
        model: FrameGroundingModel,
        train_tower: bool,
        random_side_seed: int | None,
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_tower = train_tower
        self.random_side_seed = random_side_seed
        self.frame_chunk = frame_chunk
        model.tower.requires_grad_(train_tower)

    def forward(self, batch: Batch) -> Tensor:
        """The batch's loss times its weight: a float32 scalar."""
        device, dtype = self.model.device, self.model.head.weight.dtype
        features, input_ids, labels = [], [], []
        for place, sample in enumerate(batch.samples):
            with torch.set_grad_enabled(self.train_tower and torch.is_grad_enabled()):
                pixels = sample.pixels.to(device, dtype)
                side = self._side(batch.step, place, sample)
                encoded = self.model.encode_frames(pixels, side, self.frame_chunk)
            features += [encoded] * len(sample.input_ids)
            input_ids += [ids.to(device) for ids in sample.input_ids]
            labels += [label.to(device) for label in sample.labels]
        logits = self.model.score_batch(features, input_ids)
        ends = torch.tensor([0, *map(len, labels)], device=device).cumsum(0)
        loss = frame_bce_loss(torch.cat(logits), torch.cat(labels), cu_samples=ends)
        return loss * batch.weight

    def _side(self, step: int, place: int, sample: VideoSample) -> int | None:
        if self.random_side_seed is None or not self.training:
            return None
        # from the step, not from a running generator: a resumed run draws what it would have
        rng = random.Random(f"{self.random_side_seed} {step} {place} {sample.video}")
        return self.model.config.draw_pooled_side(len(sample.pixels), rng)


def group_parameters(model: FrameGroundingModel, optim: OptimConfig) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into optimizer groups, by name and rank and nothing else.

    The head has a learning rate of its own; biases, norms and other vectors have no weight decay.
    (The reference finds its head by a substring that its projector's names contain as well.)
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "head" if name.startswith("head.") else "body"
            groups.setdefault((part, parameter.ndim >= 2), []).append(parameter)
    lrs = {"body": optim.lr, "head": optim.lr if optim.head_lr is None else optim.head_lr}
    return [
        {
            "params": parameters,
            "lr": lrs[part],
            "weight_decay": optim.weight_decay if decays else 0.0,
            "name": f"{part}-{'matrices' if decays else 'vectors'}",
        }
        for (part, decays), parameters in groups.items()
    ]
