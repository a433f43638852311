"""The Video LLM that a grounder starts from, with its loss: tower, projector, trunk, words out.

It is the grounder's own network, attending backwards only, with a language head in the place of the
scoring head. So its checkpoint is one that a grounder starts from, and another stage as well.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from itg_model.model import DEFAULT_FRAME_CHUNK, FrameGroundingModel
from torch import Tensor, nn

from itg_train.chat import IGNORED
from itg_train.dataset import VideoSample
from itg_train.encoding import FrozenTower, encode_samples
from itg_train.loader import Pass
from itg_train.loss import make_nothing


class ChatLoss(nn.Module):
    """The loss of a pass of conversations: the mean cross entropy of each one's learnt tokens.

    Args:
        model: Tower, projector and trunk; its scoring head is carried along.
        lm_head: From hidden states to words.
        frame_chunk: Frames that pass the tower at once.
        frozen: Does the tower's work where it does not learn.
    """

    def __init__(
        self,
        model: FrameGroundingModel,
        lm_head: nn.Linear,
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
        frozen: FrozenTower | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.lm_head = lm_head
        self.frame_chunk = frame_chunk
        self.frozen = frozen

    def uneven_modules(self) -> list[nn.Module]:
        """All but the trunk's blocks: how often they are called depends on the batch."""
        model = self.model
        others = [model.tower, model.projector, model.head, self.lm_head]
        return [*others, model.trunk.embed_tokens, model.trunk.norm]

    def forward(self, batch: Pass) -> Tensor:
        """The sum of the losses of all conversations in the pass: a float32 scalar."""
        samples = batch.samples or (make_nothing(self.model, torch.tensor([IGNORED, 0])),)
        rows, targets = self._lay_out(samples)
        lengths = [len(embeds_LD) for embeds_LD in rows]
        trunk = self.model.trunk
        hidden_SD = trunk(torch.cat(rows), lengths, is_causal=True)
        losses = []
        for hidden_LD, target_L in zip(hidden_SD.split(lengths), targets, strict=True):
            # a position says the next token; most positions are not asked
            asked = (target_L[1:] != IGNORED).nonzero().flatten()
            logits = self.lm_head(trunk.norm(hidden_LD[asked]))
            total = F.cross_entropy(logits.float(), target_L[1:][asked], reduction="sum")
            # a conversation cut off before its first answer asks for nothing
            losses.append(total / max(1, len(asked)))
        # an empty pass computes something all the same: other processes wait for its gradients
        return torch.stack(losses).sum() * (1 if batch.samples else 0)

    def _lay_out(self, samples: Sequence[VideoSample]) -> tuple[list[Tensor], list[Tensor]]:
        """Per conversation its [L, D] embeddings and [L] targets, image tokens included."""
        features: list[Tensor | None] = []
        for sample in samples:
            features += self._see(sample)
        input_ids = [ids for sample in samples for ids in sample.input_ids]
        labels = [label.to(self.model.device) for sample in samples for label in sample.labels]
        rows, targets = [], []
        laid_out = self.model.embed_samples(features, input_ids)
        for (embeds_LD, first_row), seen, label in zip(laid_out, features, labels, strict=True):
            if seen is not None:
                unasked = label.new_full((seen.shape[0] * seen.shape[1],), IGNORED)
                label = torch.cat([label[:first_row], unasked, label[first_row + 1 :]])
            rows.append(embeds_LD)
            targets.append(label[: len(embeds_LD)])
        return rows, targets

    def _see(self, sample: VideoSample) -> Sequence[Tensor | None]:
        """Per conversation the image's or the video's features, if there is one."""
        if len(sample.frames) == 0:
            return [None] * len(sample.input_ids)
        learns = any(p.requires_grad for p in self.model.tower.parameters())
        return encode_samples(
            self.model, [sample], self.frame_chunk, learns=learns, frozen=self.frozen
        )
