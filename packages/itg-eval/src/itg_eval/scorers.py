"""What may give frames their scores: anything that encodes a video once and then scores questions.

`itg_model.FrameGrounder` does, and so does `itg_eval.text_image.TextImageScorer` for CLIP and
SigLIP. A scorer is named by its checkpoint's content, not only by its path: a checkpoint that was
trained on in place gives other scores, and they must not be mixed.
"""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from itg_data.errors import ItgError
from itg_data.records import FrameScores
from itg_data.sampling import SamplingConfig
from itg_model.locate import TINY, TINY_FOLDER

if TYPE_CHECKING:
    from itg_model.grounder import EncodedVideo

ScorerKind = Literal["grounder", "text-image"]

WEIGHED = (".json", ".safetensors", ".txt", ".model")
"""Suffixes of the files that make a scorer's checkpoint."""

_BLOCK_BYTES, _BLOCKS = 1 << 16, 64


class Scorer(Protocol):
    """Scores the frames of a video for questions."""

    @property
    def name(self) -> str:
        """What records of scores call it."""
        ...

    @property
    def max_frames(self) -> int:
        """Frames looked at in a video unless the caller says otherwise."""
        ...

    def encode(self, video: str, sampling: SamplingConfig) -> "EncodedVideo":
        """Does all that does not depend on the question.

        Raises:
            VideoError: The file cannot be read as a video.
        """
        ...

    def score(self, video: "EncodedVideo", question: str) -> FrameScores:
        """Scores the frames for a question."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A scorer whose frames and questions lie in one space; some policies want to see them."""

    def embed_frames(self, video: "EncodedVideo") -> npt.NDArray[np.float32]:
        """The frames' embeddings, [T, D], of unit length."""
        ...

    def embed_question(self, question: str) -> npt.NDArray[np.float32]:
        """The question's embedding, [D], of unit length."""
        ...


def load_scorer(kind: ScorerKind, model: str, device: str, dtype: str) -> Scorer:
    """Loads a scorer.

    Args:
        kind: `grounder` for our checkpoints and the published one, `text-image` for CLIP, SigLIP
            and their like.
        model: Checkpoint directory, or for a grounder a hub id.
        device: As `FrameGrounder.from_pretrained` takes it.
        dtype: Likewise.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ValueError: `device` or `dtype` is unknown or not to be had here.
    """
    # imported here: both bring torch
    if kind == "grounder":
        from itg_model.grounder import FrameGrounder

        return FrameGrounder.from_pretrained(model, device, dtype)
    from itg_eval.text_image import TextImageScorer

    return TextImageScorer.from_pretrained(model, device, dtype)


def hash_file(path: str | Path) -> str:
    """The SHA-256 of a file, in hex.

    Raises:
        ItgError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ItgError(f"{path}: {error.strerror or error}") from None


def fingerprint(model: str, suffixes: Collection[str] = WEIGHED) -> str | None:
    """Tells the content of a checkpoint directory from others, in milliseconds a file.

    Names, sizes and 64 blocks spread over each file are hashed: training moves every weight.

    Args:
        model: The directory, or `itg-tiny`, which another itg-model may bring along otherwise.
        suffixes: Of the files that count.

    Returns:
        64 hex digits; None where `model` is no directory here but a hub id.
    """
    directory = Path(model)
    if not directory.is_dir():
        if model != TINY:
            return None
        directory = TINY_FOLDER
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in directory.iterdir() if p.suffix in suffixes and p.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in sorted({size * i // _BLOCKS for i in range(_BLOCKS)}):
                    file.seek(start)
                    digest.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise ItgError(f"{model}: {error.strerror or error}") from None
    return digest.hexdigest()


def pick_device(device: str) -> str:
    """Gives each process of a machine its own GPU where `auto` was asked for."""
    import torch

    local_rank = os.environ.get("LOCAL_RANK", "")
    if device == "auto" and local_rank.isdecimal() and torch.cuda.is_available():
        return f"cuda:{int(local_rank) % torch.cuda.device_count()}"
    return device
