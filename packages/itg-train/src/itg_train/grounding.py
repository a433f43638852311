"""The grounding task: a question in, for every frame of its video whether it answers."""

import numpy as np
import numpy.typing as npt
import torch
from itg_data.records import GroundingRecord, label_frames
from itg_model.processing import encode_question
from torch import Tensor
from transformers import PreTrainedTokenizerBase


class GroundingTask:
    """Makes ids and labels of annotated questions.

    Args:
        tokenizer: Encodes the questions.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, record: GroundingRecord) -> Tensor:
        """[L] ids of the question, the video first."""
        return encode_question(record.question, self.tokenizer)

    def label(self, record: GroundingRecord, time_s: npt.NDArray[np.float64]) -> Tensor:
        """[T] float32, 1 for frames inside the record's spans."""
        return torch.from_numpy(label_frames(time_s, record.spans)).float()
