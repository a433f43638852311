"""From a video file and a question to the frames that answer it.

`FrameGrounder.select` is the whole way. Its halves are public because the costly one, decoding a
video and running the tower over it, does not depend on the question: `encode` once, then `score`
or `select` as many questions as there are.
"""

import logging
import os
import re
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import VideoError
from itg_data.records import FrameScores, FrameSelection, SelectedFrame
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.video import FrameBatch, VideoReader, open_video
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from itg_model.config import TowerConfig
from itg_model.errors import CheckpointError
from itg_model.model import DEFAULT_FRAME_CHUNK, FrameGroundingModel
from itg_model.policies import (
    check_policy,
    describe_policy,
    order_by_score,
    policy_info,
    select_frames,
)
from itg_model.processing import encode_question, load_tokenizer, preprocess_frames

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told how many of how many frames are done."""

OnFrames = Callable[[FrameBatch], None]
"""Shown the sampled frames as decoded, at their own size, chunk by chunk in time order; must not
keep them."""

MAX_CHUNK_BYTES = 256 * 1024**2
"""Decoded frames held at once, apart from the chunk read ahead; large frames come in fewer."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedVideo:
    """A video after the tower, ready for any number of questions."""

    video: str
    sampling: str
    """The sampling rule, as `SamplingConfig.describe` writes it."""
    features: Tensor = field(repr=False)
    """[T, P, C] pooled features, on the model's device."""
    source_idx: npt.NDArray[np.int64]
    """[T] places of the frames in the file."""
    time_s: npt.NDArray[np.float64]
    """[T]"""
    missing_source_idx: npt.NDArray[np.int64]
    """Frames that were sampled but that the file did not give."""
    fps: float
    """Average frame rate of the file, in Hz."""


class FrameGrounder:
    """Picks the frames of a video that answer a question.

    Args:
        model: The network.
        tokenizer: Its tokenizer.
        name: What records of scores call the model.
        frame_chunk: Frames that pass the tower at once.
    """

    def __init__(
        self,
        model: FrameGroundingModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
    ) -> None:
        vocab_size = model.config.text.vocab_size
        if len(tokenizer) > vocab_size:
            raise CheckpointError(
                f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {vocab_size}"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.frame_chunk = frame_chunk

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        vision_config: TowerConfig | None = None,
        vision_checkpoint: str | Path | None = None,
        attn_implementation: str = "sdpa",
        frame_chunk: int = DEFAULT_FRAME_CHUNK,
    ) -> "FrameGrounder":
        """Loads a checkpoint and its tokenizer.

        Args:
            path_or_hub_id: A directory, or `owner/name` on the Hugging Face hub where no such
                directory exists.
            device: `auto` takes a GPU if there is one.
            dtype: `auto` takes bfloat16 on a GPU that has it, float16 on one that has not, and
                float32 on the CPU.
            vision_config: See `FrameGroundingModel.from_pretrained`.
            vision_checkpoint: See `FrameGroundingModel.from_pretrained`.
            attn_implementation: See `FrameGroundingModel`.
            frame_chunk: Frames that pass the tower at once.

        Raises:
            CheckpointError: The checkpoint cannot be found, read or used.
            ValueError: `device` or `dtype` is unknown or not to be had here.
        """
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        directory = _find_checkpoint(path_or_hub_id)
        # the tokenizer first: it is small, and its absence should not cost a long load
        tokenizer = load_tokenizer(directory)
        model = FrameGroundingModel.from_pretrained(
            directory,
            dtype,
            vision_config,
            attn_implementation,
            vision_checkpoint=vision_checkpoint,
            device=device,
        )
        return cls(model, tokenizer, str(path_or_hub_id), frame_chunk)

    @property
    def max_frames(self) -> int:
        """Frames looked at in a video unless the caller says otherwise: 512, or all it takes."""
        return min(SamplingConfig().max_frames, self.model.config.vision_token_num)

    def select(
        self,
        video: str | os.PathLike[str] | EncodedVideo,
        question: str,
        top_k: int = 32,
        sampling: SamplingConfig | None = None,
        policy: str = "top-k",
        progress: Progress | None = None,
        on_frames: OnFrames | None = None,
        policy_params: Mapping[str, Any] | None = None,
    ) -> FrameSelection:
        """Chooses the frames of a video that answer a question.

        Args:
            video: A file, or a video from `encode`.
            question: Any text that is not blank.
            top_k: Frames to choose; all sampled frames where there are fewer.
            sampling: Which frames are looked at; by default 1 per second and `max_frames` at most.
            policy: One of `itg_model.policies.policy_names()`.
            progress: Called as frames are encoded.
            on_frames: Called with the decoded frames, as `itg_data.timeline.Thumbnails.add` is.
            policy_params: The policy's own parameters by name; see
                `itg_model.policies.policy_info`. The frames' times are passed where a policy
                takes them.

        Returns:
            Exactly `min(top_k, num_sampled)` distinct frames in time order, and all scores.

        Raises:
            VideoError: The file is no video that can be read; the message says why.
            ValueError: `top_k` is below 1, `policy` is unknown, one of its parameters is unknown,
                missing or senseless, the question is blank, or `on_frames` is given for a video
                that is encoded already.
        """
        # faults of the request first: a long video should not be decoded for nothing
        params: dict[str, Any] = dict(policy_params or {})
        check_policy(policy, top_k, params)
        if "boundaries" in params:
            raise ValueError(
                f"policy {policy}: boundaries count the frames of the file, but here only sampled "
                "ones are chosen; pass the scores to itg_model.policies.select_frames"
            )
        encode_question(question, self.tokenizer)
        if not isinstance(video, EncodedVideo):
            video = self.encode(video, sampling, progress, on_frames)
        elif on_frames is not None:
            raise ValueError("on_frames sees frames while they are encoded: pass it to encode()")
        elif sampling is not None and sampling.describe() != video.sampling:
            raise ValueError(
                f"sampling is {sampling.describe()}, but the video was encoded with "
                f"{video.sampling}"
            )
        scored = self.score(video, question)
        scores = np.array(scored.scores)
        if "times_s" in policy_info(policy).arrays:
            params.setdefault("times_s", scored.time_s)
        chosen = select_frames(scores, top_k, policy, **params)
        rank_of = {int(i): rank for rank, i in enumerate(chosen[order_by_score(scores[chosen])])}
        return FrameSelection(
            video=scored.video,
            question=question,
            model=self.name,
            sampling=scored.sampling,
            policy=describe_policy(policy, params),
            num_sampled=len(scores),
            selected=tuple(
                SelectedFrame(
                    source_idx=scored.source_idx[i],
                    time_s=scored.time_s[i],
                    score=scored.scores[i],
                    rank=rank_of[i],
                )
                for i in chosen.tolist()
            ),
            scores=scored.scores,
            times_s=scored.time_s,
            missing_source_idx=tuple(video.missing_source_idx.tolist()),
        )

    @torch.inference_mode()
    def encode(
        self,
        video: str | os.PathLike[str],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        on_frames: OnFrames | None = None,
    ) -> EncodedVideo:
        """Decodes the sampled frames of a video and runs the tower over them, chunk by chunk.

        While one chunk is in the tower, the next is decoded; no more than these two are held.
        Frames that the file does not give are left out and listed.

        Raises:
            VideoError: The file is no video that can be read, or gives none of the frames.
            CheckpointError: The model takes fewer frames than were sampled.
        """
        sampling = sampling or SamplingConfig(max_frames=self.max_frames)
        with open_video(video) as reader:
            wanted = sample_source_indices(reader.num_frames, reader.fps, sampling)
            most = self.model.config.vision_token_num
            if len(wanted) > most:
                raise CheckpointError(
                    f"{self.name}: takes {most} frames at most, but sampling gives {len(wanted)}; "
                    "lower max_frames"
                )
            # of the frames asked for: how many the file will give is not known yet
            side = self.model.pooled_side(len(wanted))
            features, source_idx, time_s, missing = [], [], [], []
            num_done = 0
            # closed before the reader is, whatever happens: its thread may be decoding
            with closing(self._read_chunks(reader, wanted)) as chunks:
                for batch, pixels in chunks:
                    if len(pixels):
                        if on_frames:
                            on_frames(batch)
                        features.append(self.model.encode_frames(pixels, side, self.frame_chunk))
                    source_idx.append(batch.source_idx)
                    time_s.append(batch.time_s)
                    missing.append(batch.missing_source_idx)
                    num_done += len(batch.source_idx) + len(batch.missing_source_idx)
                    if progress:
                        progress(num_done, len(wanted))
        if not features:
            raise VideoError(str(video), f"none of the {len(wanted)} sampled frames can be decoded")
        return EncodedVideo(
            video=os.fspath(video),
            sampling=sampling.describe(),
            features=torch.cat(features),
            source_idx=np.concatenate(source_idx),
            time_s=np.concatenate(time_s),
            missing_source_idx=np.concatenate(missing),
            fps=reader.fps,
        )

    @torch.inference_mode()
    def score(self, video: EncodedVideo, question: str) -> FrameScores:
        """Scores the frames of an encoded video for a question.

        Raises:
            ValueError: The question is blank.
            CheckpointError: The model gives scores that are no numbers.
        """
        ids = encode_question(question, self.tokenizer)
        room = self.model.config.tokenizer_model_max_length - video.features[..., 0].numel()
        if len(ids) - 1 > room:
            logger.warning("question cut from %d to %d tokens to fit", len(ids) - 1, room)
        logits = self.model.score(video.features, ids)
        # float64 keeps apart what a float32 sigmoid would round to 1
        scores = logits.double().sigmoid().cpu().numpy()
        if not np.isfinite(scores).all():
            raise CheckpointError(
                f"{self.name}: {int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not "
                f"numbers in {logits.dtype}; try dtype float32"
            )
        return FrameScores(
            video=video.video,
            question=question,
            model=self.name,
            sampling=video.sampling,
            source_idx=tuple(video.source_idx.tolist()),
            time_s=tuple(video.time_s.tolist()),
            scores=tuple(scores.tolist()),
        )

    def _read_chunks(
        self, reader: VideoReader, wanted: npt.NDArray[np.int64]
    ) -> Generator[tuple[FrameBatch, Tensor], None, None]:
        """Yields the frames in chunks, squashed to the tower's size, one chunk read ahead."""
        frame_bytes = reader.height * reader.width * 3
        size = max(1, min(self.frame_chunk, MAX_CHUNK_BYTES // frame_bytes))
        image_size = self.model.config.vision.image_size

        def read(chunk: npt.NDArray[np.int64]) -> tuple[FrameBatch, Tensor]:
            batch = _read_what_there_is(reader, chunk)
            return batch, preprocess_frames(batch.frames, image_size)

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(read, wanted[:size])
            for start in range(size, len(wanted), size):
                current, ahead = ahead, pool.submit(read, wanted[start : start + size])
                yield current.result()
            yield ahead.result()


def resolve_device(device: str | torch.device) -> torch.device:
    """Turns `auto` into a device and checks that a named one exists.

    Raises:
        ValueError: No such device, here or at all.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device} was asked for, but there are {torch.cuda.device_count()} GPUs"
        )
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Turns `auto` or a name into a type of parameters.

    Raises:
        ValueError: No such type.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(_DTYPES)}, got {dtype!r}")
    return _DTYPES[dtype]


def _read_what_there_is(reader: VideoReader, chunk: npt.NDArray[np.int64]) -> FrameBatch:
    try:
        return reader.read(chunk)
    except VideoError as error:
        # the reader gives up where a whole chunk is lost; others may still be whole
        logger.info("frames %d to %d are missing: %s", chunk[0], chunk[-1], error.reason)
        return FrameBatch(
            frames=np.empty((0, 1, 1, 3), dtype=np.uint8),
            source_idx=chunk[:0],
            time_s=np.empty(0),
            missing_source_idx=chunk,
            source_height=reader.height,
            source_width=reader.width,
        )


def _find_checkpoint(path_or_hub_id: str | Path) -> Path:
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise CheckpointError(f"{name}: not a directory")
    # imported here: a local checkpoint needs no hub
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such directory, and not to be had from the hub: {reason}"
        ) from None
