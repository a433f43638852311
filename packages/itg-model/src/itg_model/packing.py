"""Attention over packed samples: each attends to itself alone, whatever the implementation.

Importing this module registers, beside every implementation of transformers that knows no packing,
one that does.
"""

import itertools
from collections.abc import Callable, Sequence
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
    """Runs an attention function that knows no packing on [1, heads, S, dim], sample by sample.

    A mask of S x S would cost memory and the fast kernels. Neighbours of one length are a batch,
    so that a step of many short samples does not consist of starting kernels.
    """
    outputs, first_row = [], 0
    for length, alike in itertools.groupby(sample_lengths):
        num_samples = len(list(alike))
        end_row = first_row + num_samples * length
        batch = (
            x[0, :, first_row:end_row].unflatten(1, (num_samples, length)).transpose(0, 1)
            for x in (query, key, value)
        )
        attended, _ = attend(module, *batch, attention_mask, **kwargs)
        outputs.append(attended.flatten(0, 1)[None])
        first_row = end_row
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def rows_by_length(sample_lengths: Sequence[int]) -> Tensor | None:
    """The [S] rows of packed samples, those of one length as neighbours.

    None where no order makes fewer batches than there are as the samples lie.
    """
    if len(list(itertools.groupby(sample_lengths))) == len(set(sample_lengths)):
        return None
    rows = torch.arange(sum(sample_lengths)).split(list(sample_lengths))
    return torch.cat(sorted(rows, key=len))


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
