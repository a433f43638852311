"""Tiny random models in the formats that are published, and scripted videos, for tests.

They are right in form and know nothing; what they are for is that commands and examples run.
"""

from pathlib import Path

import torch
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_model import FrameGroundingModel
from itg_model.config import FrameGroundingConfig, TextConfig, VisionConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = """\
{% for message in messages %}{% for part in message.content %}\
{% if part.type == 'text' %}{{ part.text }}\
{% elif part.type == 'video' %}<|video_pad|>\
{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endfor %}"""


def write_videos(root: Path) -> list[Path]:
    """Writes two scripted videos of 24 seconds; returns their paths."""
    config = SyntheticConfig(num_train=2, num_heldout=0, height=96, width=128, duration_s=24)
    records = load_or_write_dataset(root, config)
    return sorted({root / record.video for record in records})


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer with one token a byte."""
    tokens = ["<|endoftext|>", *VISION_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(VISION_TOKENS),
    )


def grounder_config(num_tokens: int, max_length: int) -> FrameGroundingConfig:
    """Makes the architecture of a grounder with a grid of 3 x 3 patches.

    Args:
        num_tokens: Room for image tokens, and so for frames.
        max_length: Room for all tokens.
    """
    text = TextConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        # large weights: with small ones every logit would lie near the bias
        initializer_range=0.3,
    )
    vision = VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
    )
    return FrameGroundingConfig(
        text=text,
        vision=vision,
        vision_token_num=num_tokens,
        tokenizer_model_max_length=max_length,
    )


def write_grounder(directory: Path) -> Path:
    """Writes a frame grounder for at most 512 frames."""
    torch.manual_seed(0)
    FrameGroundingModel(grounder_config(512, 640)).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def write_video_llm(directory: Path) -> Path:
    """Writes a Qwen3-VL of two layers."""
    tokenizer = make_tokenizer()
    vocabulary = tokenizer.get_vocab()
    start, end, image, video = (vocabulary[token] for token in VISION_TOKENS)
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(directory)
    images = Qwen2VLImageProcessor(patch_size=16)
    processor = Qwen3VLProcessor(
        images, tokenizer, Qwen3VLVideoProcessor(), chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(directory)
    return directory


def write_clip(directory: Path) -> Path:
    """Writes a CLIP of one layer."""
    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**small, "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0},
        vision_config={**small, "image_size": 24, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(directory)
    images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24)
    CLIPProcessor(images, make_tokenizer()).save_pretrained(directory)
    return directory
