"""The Video LLM that a grounder starts from, with its loss: tower, projector, trunk, words out.

It is the grounder's own network, attending backwards only, with a language head in the place of the
scoring head. So its checkpoint is one that a grounder starts from, and another stage as well.
"""

import torch
import torch.nn.functional as F
from itg_model.model import DEFAULT_FRAME_CHUNK, VIDEO_TOKEN_ID, FrameGroundingModel
from torch import Tensor, nn

from itg_train.chat import IGNORED
from itg_train.dataset import VideoSample
from itg_train.encoding import encode_sample
from itg_train.loader import Pass
from itg_train.loss import make_nothing


class ChatLoss(nn.Module):
    """The loss of a pass of conversations: the mean cross entropy of each one's learnt tokens.

    Args:
        model: Tower, projector and trunk; its scoring head is carried along.
        lm_head: From hidden states to words.
        frame_chunk: Frames that pass the tower at once.
    """

    def __init__(
        self,
        model: FrameGroundingModel,
        lm_head: nn.Linear,
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
    ) -> None:
        super().__init__()
        self.model = model
        self.lm_head = lm_head
        self.frame_chunk = frame_chunk

    def uneven_modules(self) -> list[nn.Module]:
        """All but the trunk's blocks: how often they are called depends on the batch."""
        model = self.model
        others = [model.tower, model.projector, model.head, self.lm_head]
        return [*others, model.trunk.embed_tokens, model.trunk.norm]

    def forward(self, batch: Pass) -> Tensor:
        """The sum of the losses of all conversations in the pass: a float32 scalar."""
        samples = batch.samples or (make_nothing(self.model, torch.tensor([IGNORED, 0])),)
        rows, lengths, targets = [], [], []
        for sample in samples:
            for embeds_LD, target_L in self._lay_out(sample):
                rows.append(embeds_LD)
                lengths.append(len(embeds_LD))
                targets.append(target_L)
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

    def _lay_out(self, sample: VideoSample) -> list[tuple[Tensor, Tensor]]:
        """Per conversation its [L, D] embeddings and [L] targets, image tokens included."""
        learns = any(p.requires_grad for p in self.model.tower.parameters())
        device = self.model.device
        features = None
        if len(sample.frames) > 0:
            features = encode_sample(self.model, sample, self.frame_chunk, learns=learns)
        laid_out = []
        for place, (ids, labels) in enumerate(zip(sample.input_ids, sample.labels, strict=True)):
            targets = labels.to(device)
            if features is None:
                kept = ids[ids != VIDEO_TOKEN_ID].to(device)
                laid_out.append((self.model.trunk.embed_tokens(kept), targets))
                continue
            embeds_LD, first_row = self.model.embed_sample(features[place], ids)
            num_seen = features[place].shape[0] * features[place].shape[1]
            seen = targets.new_full((num_seen,), IGNORED)
            whole = torch.cat([targets[:first_row], seen, targets[first_row + 1 :]])
            laid_out.append((embeds_LD, whole[: len(embeds_LD)]))
        return laid_out
