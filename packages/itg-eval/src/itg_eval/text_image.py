"""Scores by the likeness of a frame and the question, for CLIP, SigLIP and their like.

What AKS, BOLT, MDP3 and others rest on: frames and text are embedded by a dual encoder, and a
frame's score is the cosine of the two. The frames' embeddings are kept, so a further question
costs one pass of the text tower, and policies that compare frames have what they need.
"""

# transformers' automatic classes give what the checkpoint names
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import VideoError
from itg_data.records import FrameScores
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.video import FrameBatch, VideoReader, open_video
from itg_model.devices import resolve_device, resolve_dtype
from itg_model.errors import CheckpointError
from itg_model.frames import MAX_CHUNK_BYTES, EncodedVideo
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

FRAME_CHUNK = 64
"""Frames that pass the tower at once."""


class TextImageScorer:
    """A dual encoder of transformers as a scorer.

    Args:
        model: With `get_image_features` and `get_text_features`.
        image_processor: Its image processor.
        tokenizer: Its tokenizer, a fast one.
        name: What records of scores call the model.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, name: str) -> None:
        self.model = model.eval()
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.name = name

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, device: str = "auto", dtype: str = "auto"
    ) -> "TextImageScorer":
        """Loads a checkpoint directory: config, safetensors, image processor and tokenizer.

        Raises:
            CheckpointError: Something of it is missing, broken, or no dual encoder.
            ValueError: `device` or `dtype` is unknown or not to be had here.
        """
        on = resolve_device(device)
        of_type = resolve_dtype(dtype, on)
        if not Path(directory).is_dir():
            raise CheckpointError(f"{directory}: no such directory")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, **local)
            image_processor = AutoImageProcessor.from_pretrained(directory, **local)
            model, loading = AutoModel.from_pretrained(
                directory, dtype=of_type, use_safetensors=True, output_loading_info=True, **local
            )
        # RuntimeError: a tensor of another shape
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise CheckpointError(f"{directory}: cannot be loaded: {reason}") from None
        # transformers draws what is not there at random, at each start anew
        for what in ("missing_keys", "mismatched_keys"):
            if found := sorted(map(str, loading[what])):
                raise CheckpointError(
                    f"{directory}: {len(found)} {what.replace('_', ' ')}, such as {found[0]}: its "
                    "weights are not whole; fetch or save the checkpoint again"
                )
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            kind = model.config.model_type
            raise CheckpointError(f"{directory}: a {kind} model embeds no text and images alike")
        return cls(model.to(on), image_processor, tokenizer, str(directory))

    @property
    def max_frames(self) -> int:
        """Frames looked at in a video unless the caller says otherwise."""
        return SamplingConfig().max_frames

    @torch.inference_mode()
    def encode(self, video: str, sampling: SamplingConfig) -> EncodedVideo:
        """Embeds the sampled frames of a video, chunk by chunk.

        Returns:
            Features [T, 1, D] of unit length; frames that the file does not give are left out and
            listed.

        Raises:
            VideoError: The file is no video that can be read, or gives none of the frames.
        """
        features: list[Tensor] = []
        source_idx: list[npt.NDArray[np.int64]] = []
        time_s: list[npt.NDArray[np.float64]] = []
        with open_video(video) as reader:
            wanted = sample_source_indices(reader.num_frames, reader.fps, sampling)
            for batch in _read_chunks(reader, wanted):
                features.append(self._embed_images(batch.frames))
                source_idx.append(batch.source_idx)
                time_s.append(batch.time_s)
        if not features:
            raise VideoError(video, f"none of the {len(wanted)} sampled frames can be decoded")
        given = np.concatenate(source_idx)
        return EncodedVideo(
            video=video,
            model=self.name,
            sampling=sampling.describe(),
            features=torch.cat(features)[:, None],
            source_idx=given,
            time_s=np.concatenate(time_s),
            missing_source_idx=np.setdiff1d(wanted, given),
            fps=reader.fps,
        )

    def score(self, video: EncodedVideo, question: str) -> FrameScores:
        """Gives each frame the cosine of its embedding and the question's.

        Raises:
            CheckpointError: The model gives embeddings that are no numbers.
        """
        cosines = self.embed_frames(video) @ self.embed_question(question)
        if not np.isfinite(cosines).all():
            raise CheckpointError(
                f"{self.name}: {int((~np.isfinite(cosines)).sum())} of {len(cosines)} scores are "
                "not numbers; try dtype float32"
            )
        return FrameScores(
            video=video.video,
            question=question,
            model=self.name,
            sampling=video.sampling,
            source_idx=tuple(video.source_idx.tolist()),
            time_s=tuple(video.time_s.tolist()),
            scores=tuple(cosines.astype(np.float64).tolist()),
        )

    def embed_frames(self, video: EncodedVideo) -> npt.NDArray[np.float32]:
        """The frames' embeddings, [T, D], of unit length."""
        return video.features[:, 0].float().cpu().numpy()

    @torch.inference_mode()
    def embed_question(self, question: str) -> npt.NDArray[np.float32]:
        """The question's embedding, [D], of unit length.

        A text longer than the tower takes is cut into as many pieces as needed, and their
        embeddings are averaged, as MDP3 does; nothing of the question is dropped.
        """
        tokens = self.tokenizer(
            question,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_overflowing_tokens=True,
            return_tensors="pt",
        )
        inputs = {"input_ids": tokens["input_ids"]}
        # SigLIP was trained to read the padding
        if not self.model.config.model_type.startswith("siglip"):
            inputs["attention_mask"] = tokens["attention_mask"]
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        pieces = _to_units(self.model.get_text_features(**inputs).pooler_output)
        return _to_units(pieces.mean(dim=0)).cpu().numpy()

    def _embed_images(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        images = [Image.fromarray(frame) for frame in frames]
        inputs = cast("dict[str, Tensor]", self.image_processor(images=images, return_tensors="pt"))
        dtype, device = self.model.dtype, self.model.device
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        return _to_units(self.model.get_image_features(**moved).pooler_output)


def _to_units(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def _read_chunks(reader: VideoReader, wanted: npt.NDArray[np.int64]) -> Iterator[FrameBatch]:
    frame_bytes = reader.height * reader.width * 3
    size = max(1, min(FRAME_CHUNK, MAX_CHUNK_BYTES // frame_bytes))
    for start in range(0, len(wanted), size):
        try:
            yield reader.read(wanted[start : start + size])
        except VideoError:
            # a whole chunk is lost; others may still be whole
            continue
