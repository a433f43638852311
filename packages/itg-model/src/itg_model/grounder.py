"""From a video file and a question to the frames that answer it.

`FrameGrounder.select` is the whole way. Its halves are public because the costly one, decoding a
video and running the tower over it, does not depend on the question: `encode` once, then `score`
or `select` as many questions as there are.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from itg_data.records import FrameScores, FrameSelection, SelectedFrame
from itg_data.sampling import SamplingConfig
from transformers import PreTrainedTokenizerBase

from itg_model.config import TowerConfig
from itg_model.devices import resolve_device, resolve_dtype
from itg_model.errors import CheckpointError
from itg_model.frames import (
    Decode,
    EncodedVideo,
    Progress,
    SampledVideo,
    check_decode,
)
from itg_model.locate import find_checkpoint
from itg_model.many import Asked, FailedSelection, select_each
from itg_model.model import DEFAULT_FRAME_CHUNK, FrameGroundingModel, Precision, check_precision
from itg_model.policies import (
    check_policy,
    check_whole,
    describe_policy,
    order_by_score,
    policy_info,
    select_frames,
)
from itg_model.processing import encode_question, load_tokenizer
from itg_model.upload import OnFrames

__all__ = [
    "EncodedVideo",
    "FailedSelection",
    "FrameGrounder",
    "OnFrames",
    "Progress",
    "resolve_device",
    "resolve_dtype",
]

logger = logging.getLogger(__name__)

GPU_FRAME_CHUNK = 64
"""Frames that pass the tower at once on a GPU, unless the caller says otherwise."""


class FrameGrounder:
    """Picks the frames of a video that answer a question.

    Args:
        model: The network.
        tokenizer: Its tokenizer.
        name: What records of scores call the model.
        frame_chunk: Frames that pass the tower at once; 0 for what suits the device.
        decode: What decodes: `auto`, `pyav` or `decord` on the CPU, `nvdec` on the GPU.
        max_pooled_side: Gives each frame a smaller grid of tokens than the model would: faster,
            and an approximation.
    """

    def __init__(
        self,
        model: FrameGroundingModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        frame_chunk: int = 0,
        decode: Decode = "auto",
        max_pooled_side: int | None = None,
    ) -> None:
        vocab_size = model.config.text.vocab_size
        if len(tokenizer) > vocab_size:
            raise CheckpointError(
                f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {vocab_size}"
            )
        _check_passage(frame_chunk, decode, model.device, max_pooled_side)
        usual = GPU_FRAME_CHUNK if model.device.type == "cuda" else DEFAULT_FRAME_CHUNK
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.frame_chunk = frame_chunk or usual
        self.decode: Decode = decode
        self.max_pooled_side = max_pooled_side

    def __repr__(self) -> str:
        return f"FrameGrounder({self.name!r}, {self.model.device})"

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
        frame_chunk: int = 0,
        precision: Precision = "native",
        decode: Decode = "auto",
        max_pooled_side: int | None = None,
    ) -> "FrameGrounder":
        """Loads a checkpoint and its tokenizer.

        Args:
            path_or_hub_id: A directory; where none has that name, `itg-tiny`, the model that
                comes along, or `owner/name` on the Hugging Face hub.
            device: `auto` takes a GPU if there is one.
            dtype: `auto` takes bfloat16 on a GPU that has it, float16 on one that has not, and
                float32 on the CPU. Another than that is part of the model's name in records.
            vision_config: See `FrameGroundingModel.from_pretrained`.
            vision_checkpoint: See `FrameGroundingModel.from_pretrained`.
            attn_implementation: See `FrameGroundingModel`; `sdpa` is rebuilt for inference, the
                others run the blocks of transformers.
            frame_chunk: See the class.
            precision: See `FrameGroundingModel.for_inference`.
            decode: See the class.
            max_pooled_side: See the class.

        Raises:
            CheckpointError: The checkpoint cannot be found, read or used.
            ValueError: `device`, `dtype`, `precision` or `decode` is unknown or not to be had here,
                or `frame_chunk` or `max_pooled_side` is senseless.
        """
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        _check_passage(frame_chunk, decode, device, max_pooled_side)
        check_precision(precision, device, dtype)
        directory = find_checkpoint(path_or_hub_id)
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
        if attn_implementation == "sdpa" or precision != "native":
            model.for_inference(precision=precision)
        # what moves scores is part of the name, so that records of two kinds never mix
        marks = (
            (vision_checkpoint, vision_checkpoint is not None),
            (str(dtype).removeprefix("torch."), dtype != resolve_dtype("auto", device)),
            (attn_implementation, attn_implementation != "sdpa"),
            (precision, precision != "native"),
            (f"side{max_pooled_side}", max_pooled_side is not None),
        )
        name = "+".join(
            [str(path_or_hub_id), *(str(mark) for mark, is_unusual in marks if is_unusual)]
        )
        return cls(model, tokenizer, name, frame_chunk, decode, max_pooled_side)

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
                missing or senseless, the question is no text or blank, or a video that is encoded
                already comes with `on_frames`, with another `sampling`, or from another model.
        """
        # faults of the request first: a long video should not be decoded for nothing
        params = _check_choice(policy, top_k, policy_params)
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
        return self._choose(video, question, top_k, policy, params)

    def select_many(
        self,
        asked: Iterable[Asked],
        top_k: int = 32,
        sampling: SamplingConfig | None = None,
        policy: str = "top-k",
        policy_params: Mapping[str, Any] | None = None,
    ) -> Iterator[FrameSelection | FailedSelection]:
        """Chooses frames for many questions, decoding the next video while one is scored.

        A question or a video that fails gives a result that says so, and the rest goes on.
        Neighbours that name the same video share its decoding and its pass of the tower.

        Args:
            asked: Pairs of a video file and a question, or several questions; drawn as needed.
            top_k: As in `select`, like the rest.
            sampling: Which frames are looked at.
            policy: How frames are chosen.
            policy_params: The policy's own parameters.

        Returns:
            An iterator with one result to each question, in order.

        Raises:
            ValueError: As `select`, at once, where it does not depend on a video or a question; and
                when an entry of `asked` is drawn that is no such pair.
        """
        params = _check_choice(policy, top_k, policy_params)

        def choose(video: EncodedVideo, question: str) -> FrameSelection:
            return self._choose(video, question, top_k, policy, dict(params))

        return select_each(
            asked, lambda video: self.open(video, sampling), self.encode_opened, choose
        )

    def _choose(
        self, video: EncodedVideo, question: str, top_k: int, policy: str, params: dict[str, Any]
    ) -> FrameSelection:
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

        While one chunk is in the tower, the next are decoded; memory is bounded. Frames that the
        file does not give are left out and listed.

        Raises:
            VideoError: The file is no video that can be read, or gives none of the frames.
            CheckpointError: The model takes fewer frames than were sampled.
        """
        with self.open(video, sampling, on_frames) as opened:
            return self.encode_opened(opened, progress)

    def open(
        self,
        video: str | os.PathLike[str],
        sampling: SamplingConfig | None = None,
        on_frames: OnFrames | None = None,
    ) -> SampledVideo:
        """Starts to decode a video, for `encode_opened`; raises as `encode` does."""
        sampling = sampling or SamplingConfig(max_frames=self.max_frames)
        return SampledVideo(video, sampling, self.model, self.decode, self.frame_chunk, on_frames)

    @torch.inference_mode()
    def encode_opened(self, video: SampledVideo, progress: Progress | None = None) -> EncodedVideo:
        """The second half of `encode`."""
        # of the frames asked for: how many the file will give is not known yet
        side = self.model.pooled_side(len(video.wanted))
        side = min(side, self.max_pooled_side or side)
        return video.encode(self.model, self.name, side, progress)

    @torch.inference_mode()
    def score(self, video: EncodedVideo, question: str) -> FrameScores:
        """Scores the frames of an encoded video for a question.

        Raises:
            ValueError: The question is no text or blank, another model encoded the video, or it is
                on another device or of another type than the model.
            CheckpointError: The model gives scores that are no numbers.
        """
        self._check_encoded(video)
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

    def _check_encoded(self, video: EncodedVideo) -> None:
        """Refuses features that are not this model's, or not where it can read them."""
        if video.model != self.name:
            raise ValueError(
                f"{video.video}: encoded by {video.model}, not by {self.name}: each model scores "
                "its own features, encode it with this one too"
            )
        # the name does not tell: the usual type of a device is not part of it
        weight, features = self.model.head.weight, video.features
        if (features.device, features.dtype) != (weight.device, weight.dtype):
            raise ValueError(
                f"{video.video}: encoded in {features.dtype} on {features.device}, but the model "
                f"is in {weight.dtype} on {weight.device}; encode it with this model"
            )


def _check_passage(
    frame_chunk: int, decode: Decode, device: torch.device, max_pooled_side: int | None
) -> None:
    """Checks how frames are to pass; a model should not be loaded for a typo."""
    check_decode(decode, device)
    check_whole("frame_chunk", frame_chunk, 0)
    if max_pooled_side is not None:
        check_whole("max_pooled_side", max_pooled_side, 1)


def _check_choice(
    policy: str, top_k: int, policy_params: Mapping[str, Any] | None
) -> dict[str, Any]:
    params: dict[str, Any] = dict(policy_params or {})
    check_policy(policy, top_k, params)
    if "boundaries" in params:
        raise ValueError(
            f"policy {policy}: boundaries count the frames of the file, but here only sampled "
            "ones are chosen; pass the scores to itg_model.policies.select_frames"
        )
    return params
