"""The grounding task: a question in, for every frame of its video whether it answers."""

from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
from itg_data.records import GroundingRecord, label_frames
from itg_model.processing import encode_question
from torch import Tensor
from transformers import PreTrainedTokenizerBase

KEPT_QUESTIONS = 65536
"""Encoded questions that are kept: planning and loading encode each anew at every step."""


class GroundingTask:
    """Makes ids and labels of annotated questions.

    Args:
        tokenizer: Encodes the questions.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._encode = lru_cache(KEPT_QUESTIONS)(partial(encode_question, tokenizer=tokenizer))

    def encode(self, record: GroundingRecord) -> Tensor:
        """[L] ids of the question, the video first."""
        return self._encode(record.question)

    def label(self, record: GroundingRecord, time_s: npt.NDArray[np.float64]) -> Tensor:
        """[T] float32, 1 for frames inside the record's spans."""
        return torch.from_numpy(label_frames(time_s, record.spans)).float()
