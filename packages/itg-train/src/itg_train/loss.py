"""What is trained: the grounder with its loss, as one module, so that an engine can wrap it."""

import torch
from itg_kernels import frame_score_loss
from itg_model.devices import to_device
from itg_model.model import DEFAULT_FRAME_CHUNK, VIDEO_TOKEN_ID, FrameGroundingModel
from torch import Tensor, nn

from itg_train.dataset import VideoSample
from itg_train.encoding import FrozenTower, encode_samples
from itg_train.loader import Pass


class GroundingLoss(nn.Module):
    """The loss of a pass: videos, each with some of its questions.

    Per question it is the reference's loss with one sample per process: binary cross entropy over
    the frames, relevant frames weighted by min(5, sqrt(negatives / positives)). Unlike there, a
    question that the whole video answers still teaches (see `itg_kernels.frame_bce_loss`).

    Args:
        model: The grounder.
        frame_chunk: Frames that pass the tower at once.
        frozen: Does the tower's work where it does not learn.
    """

    def __init__(
        self,
        model: FrameGroundingModel,
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
        frozen: FrozenTower | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.frame_chunk = frame_chunk
        self.frozen = frozen

    def uneven_modules(self) -> list[nn.Module]:
        """All but the trunk's blocks: how often they are called depends on the batch."""
        model = self.model
        return [
            model.tower,
            model.projector,
            model.trunk.embed_tokens,
            model.trunk.norm,
            model.head,
        ]

    def forward(self, batch: Pass) -> Tensor:
        """The sum of the losses of all questions in the pass: a float32 scalar."""
        model = self.model
        learns = any(p.requires_grad for p in model.tower.parameters())
        samples = batch.samples or (self._nothing(),)
        features = encode_samples(
            model, samples, self.frame_chunk, learns=learns, frozen=self.frozen
        )
        input_ids = [ids for sample in samples for ids in sample.input_ids]
        labels = [label for sample in samples for label in sample.labels]
        hidden_SD, spans_F2 = model.contextualize(features, input_ids)
        ends = torch.tensor([0, *map(len, labels)]).cumsum(0)
        loss, _ = frame_score_loss(
            hidden_SD,
            model.trunk.norm.weight,
            model.head.weight,
            model.head.bias,
            spans_F2,
            to_device(torch.cat(labels), hidden_SD.device),
            cu_samples=to_device(ends, hidden_SD.device),
            eps=model.config.text.rms_norm_eps,
        )
        # an empty pass computes something all the same: other processes wait for its gradients
        return loss * batch.num_questions

    def _nothing(self) -> VideoSample:
        return make_nothing(self.model, torch.zeros(1))


def make_nothing(model: FrameGroundingModel, label: Tensor) -> VideoSample:
    """One black frame with an empty question, for a pass without samples."""
    vision = model.config.vision
    frames = torch.zeros((1, vision.image_size, vision.image_size, 3), dtype=torch.uint8)
    return VideoSample(
        video="",
        frames=frames,
        time_s=torch.zeros(1).double().numpy(),
        input_ids=(torch.tensor([VIDEO_TOKEN_ID, 0]),),
        labels=(label,),
        records=(),
        sides=(1,),
    )
