"""Pixels and questions turned into what the network takes, exactly as the reference does.

Frames are squashed to a square as `itg_data.resize` does it, on several threads; frames that are
that square already, as a reader's `stream` gives them, stay as they are. The rest is
`itg_model.pixels`.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from itg_data.resize import squash
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from itg_model.errors import CheckpointError
from itg_model.model import VIDEO_TOKEN_ID
from itg_model.pixels import scale_frames


def preprocess_frames(
    frames: npt.NDArray[np.uint8], image_size: int, num_threads: int | None = None
) -> Tensor:
    """Squashes frames to a square and scales them to -1..1.

    Args:
        frames: [T, H, W, 3] uint8 RGB.
        image_size: Side S of the square, in pixels.
        num_threads: Frames resized at once; None takes one thread per core, 8 at most.

    Returns:
        [T, 3, S, S] float32.

    Raises:
        ValueError: `frames` has another shape or type.
    """
    squares = squash_frames(frames, image_size, num_threads)
    return scale_frames(torch.from_numpy(squares)).contiguous()


def squash_frames(
    frames: npt.NDArray[np.uint8], image_size: int, num_threads: int | None = None
) -> npt.NDArray[np.uint8]:
    """The first half of `preprocess_frames`: [T, H, W, 3] -> [T, S, S, 3] uint8."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be [T, H, W, 3] uint8, got {frames.shape} {frames.dtype}")
    squares = np.empty((len(frames), image_size, image_size, 3), dtype=np.uint8)

    def prepare(i: int) -> None:
        squares[i] = squash(frames[i], image_size)

    with ThreadPoolExecutor(num_threads or min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(prepare, range(len(frames))))
    return squares


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer beside a checkpoint, from local files alone and running none of them.

    Raises:
        CheckpointError: The directory holds no tokenizer that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(
            str(directory),
            local_files_only=True,
            trust_remote_code=False,
            # else transformers reads config.json and warns that it does not know the model
            config=PreTrainedConfig(),
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(f"{directory}: no tokenizer could be loaded: {reason}") from None


def encode_question(
    question: str, tokenizer: PreTrainedTokenizerBase, *, drop_pad_tokens: bool = True
) -> Tensor:
    """Builds the prompt "<image>" + question + newline as token ids.

    The video stands first and once. A question that itself contains "<image>" is text like any
    other: it cannot ask for a second video, which the reference would let it do.

    Args:
        question: Any text that is not blank.
        tokenizer: The checkpoint's.
        drop_pad_tokens: Leaves out ids equal to the tokenizer's pad id, as the reference does.
            The published tokenizer's may be the id of "!", so that lone exclamation marks vanish;
            the network was trained without them.

    Returns:
        [L] int64, `VIDEO_TOKEN_ID` first.

    Raises:
        ValueError: The question is no text, blank, or not valid Unicode.
    """
    if not isinstance(question, str):
        raise ValueError(f"question must be text, got {question!r:.80}")
    if not question.strip():
        raise ValueError(f"question must not be blank, got {question!r}")
    # a shell's stray byte arrives as half a character, which no tokenizer takes
    if any("\ud800" <= character <= "\udfff" for character in question):
        raise ValueError(f"question must be valid Unicode, got {question!r}")
    ids = tokenizer.encode(question + "\n", add_special_tokens=True)
    if drop_pad_tokens:
        ids = [i for i in ids if i != tokenizer.pad_token_id]
    return torch.tensor([VIDEO_TOKEN_ID, *ids], dtype=torch.int64)
