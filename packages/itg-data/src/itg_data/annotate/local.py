"""Models that run right here, through transformers: an annotator, and features for frames.

The only file of itg-data that imports torch; it needs the extra `itg-data[local]`. Weights are
read from folders in safetensors, and no code that a checkpoint brings along is run.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from itg_data.annotate.features import Float32, load_picture, to_unit_length
from itg_data.annotate.requests import (
    AnnotatorError,
    Answer,
    MissingExtraError,
    Request,
    Sampler,
)

try:
    import torch
    import transformers
except ImportError as error:
    raise MissingExtraError(
        "local models need torch: pip install 'itg-data[local]'", name=error.name
    ) from None

AnswerT = TypeVar("AnswerT")

_BATCH_SIZE = 32


class LocalAnnotator:
    """Asks an image-text-to-text model in this process, one request at a time.

    Args:
        folder: Checkpoint with its processor and chat template.
        sampler: How answers are drawn.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        AnnotatorError: The folder holds no such checkpoint.
    """

    def __init__(self, folder: Path, sampler: Sampler, device: str = "auto") -> None:
        processor, model = _load(folder, transformers.AutoModelForImageTextToText)
        self._processor = processor
        self._device = _device(device)
        self._model = model.to(self._device)
        self._sampler = sampler
        self._turn = asyncio.Lock()

    async def ask(self, request: Request[AnswerT], pictures: Sequence[bytes]) -> Answer:
        """Gets one answer; see `Annotator.ask`."""
        async with self._turn:
            return await asyncio.to_thread(self._generate, request, pictures)

    async def close(self) -> None:
        """Has nothing to close."""

    def _generate(self, request: Request[AnswerT], pictures: Sequence[bytes]) -> Answer:
        images = [{"type": "image", "image": load_picture(jpeg)} for jpeg in pictures]
        text = {"type": "text", "text": request.to_user_message()}
        system = [{"type": "text", "text": request.to_system_message()}]
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": [text, *images]},
        ]
        inputs: Any = self._processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._device, self._model.dtype)
        num_prompt_tokens = int(inputs["input_ids"].shape[1])
        # the same answer whatever was asked before
        seed = int(request.key(self._sampler)[:15], 16)
        hot = self._sampler.temperature > 0
        drawn = {"do_sample": True, "temperature": self._sampler.temperature} if hot else {}
        rng: Any = torch.random
        with rng.fork_rng(), torch.inference_mode():
            rng.manual_seed(seed)
            tokens = self._model.generate(
                **inputs, **(drawn or {"do_sample": False}), max_new_tokens=self._sampler.max_tokens
            )[0, num_prompt_tokens:]
        return Answer(
            text=self._processor.decode(tokens, skip_special_tokens=True),
            prompt_tokens=num_prompt_tokens,
            completion_tokens=len(tokens),
        )


class ImageTower:
    """Features from the vision tower of a CLIP or SigLIP checkpoint.

    CLIP gives its class token after the last layer, before normalisation and projection, as the
    reference takes it. SigLIP has no class token and gives its attention-pooled vector.

    Args:
        folder: The checkpoint.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        AnnotatorError: The folder holds no such checkpoint.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        processor, model = _load(folder, transformers.AutoModel, images_only=True)
        if not hasattr(model, "vision_model"):
            raise AnnotatorError(f"{folder}: features must be of CLIP or SigLIP, got {type(model)}")
        self.name = folder.resolve().name
        self._processor = processor
        self._device = _device(device)
        self._tower = model.vision_model.to(self._device)
        self._has_class_token = hasattr(model.vision_model.embeddings, "class_embedding")

    def __call__(self, jpegs: Sequence[bytes]) -> Float32:
        """Encodes pictures, [N, D] float32, each row of length 1."""
        rows = [
            self._encode(jpegs[start : start + _BATCH_SIZE])
            for start in range(0, len(jpegs), _BATCH_SIZE)
        ]
        return to_unit_length(np.concatenate(rows))

    def _encode(self, jpegs: Sequence[bytes]) -> Float32:
        pixels = self._processor(images=[load_picture(j) for j in jpegs], return_tensors="pt")
        with torch.inference_mode():
            out = self._tower(pixels["pixel_values"].to(self._device, self._tower.dtype))
        features = out.last_hidden_state[:, 0] if self._has_class_token else out.pooler_output
        return cast(Float32, features.float().cpu().numpy())


def _load(folder: Path, model_type: Any, *, images_only: bool = False) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise AnnotatorError(f"{folder} is no checkpoint: it has no config.json")
    kind: Any = transformers.AutoImageProcessor if images_only else transformers.AutoProcessor
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = kind.from_pretrained(folder, **safe)
        model = model_type.from_pretrained(folder, use_safetensors=True, **safe)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AnnotatorError(f"{folder} cannot be loaded: {reason}") from None
    return processor, model.eval()


def _device(name: str) -> "torch.device":
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
