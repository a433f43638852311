"""Attention over packed samples: each attends to itself alone, whatever the implementation.

Importing this module registers, beside every implementation of transformers that knows no packing,
one that does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward


def _attend_per_sample(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    sample_lengths: list[int],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Runs an attention function that knows no packing on each sample of [1, heads, S, dim].

    A mask of S x S would cost memory and the fast kernels; samples are few and long.
    """
    per_sample = zip(*(x.split(sample_lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = [attend(module, q, k, v, attention_mask, **kwargs)[0] for q, k, v in per_sample]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


PACKED_NAMES = {name: f"itg_packed_{name}" for name in ("eager", "sdpa", "flex_attention")}

for _name, _packed in PACKED_NAMES.items():
    _attend = AttentionInterface().get_interface(_name, eager_attention_forward)
    AttentionInterface.register(_packed, partial(_attend_per_sample, _attend))


def packed_name(attn_implementation: str) -> str:
    """The trunk's attention: ours around an implementation that knows no packing, else itself."""
    if attn_implementation in PACKED_NAMES:
        return PACKED_NAMES[attn_implementation]
    if attn_implementation.startswith("flash_attention_"):
        return attn_implementation
    raise ValueError(
        f"attn_implementation must be one of {sorted(PACKED_NAMES)} or flash_attention_*, "
        f"got {attn_implementation!r}"
    )
