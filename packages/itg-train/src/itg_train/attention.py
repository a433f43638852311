"""Attention over samples that lie end to end, each attending to itself, by the kernel that pays.

On Hopper cuDNN's kernels are 1.6 times as fast as flash attention 2, but they want a plan for every
new length, some 0.1 s with both directions, where all of a pass's attention takes 0.2 s. Lengths of
real samples hardly recur: those go through torch's flash attention 2 in one call, which knows
where samples end. A length that does recur gets its plan.

Shapes: S tokens of all samples, H heads of queries, G of keys and values, d their width.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""[S, H, d] queries, [S, G, d] keys and values -> [S, H * d]."""

RECURRING = 3
"""Passes that held a length before it gets cuDNN's plan."""

_AMPERE, _HOPPER = (8, 0), (9, 0)
# cuDNN gives no gradients of wider heads, refuses a length of 1, and gains nothing on short ones
_CUDNN_HEAD_DIM, _CUDNN_LENGTH = 128, 256


class PackedAttention:
    """Chooses attention for passes; remembers the lengths that it has seen.

    Args:
        head_dim: Width of a head; the packed kernels take multiples of 8.
    """

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim
        self._seen: Counter[int] = Counter()

    def choose(self, lengths: Sequence[int], like: Tensor, *, is_causal: bool = False) -> Attend:
        """Attention for samples of these lengths.

        Args:
            lengths: Tokens of each sample; they sum to S.
            like: Has the device and type of what comes.
            is_causal: Attends only backwards.
        """
        if like.device.type != "cuda" or self.head_dim % 8:
            return _each(lengths, like.device, is_causal)
        capability = torch.cuda.get_device_capability(like.device)
        if capability < _AMPERE:
            return _each(lengths, like.device, is_causal)
        if like.dtype == torch.float32:
            return _efficient(lengths, like.device, is_causal)
        self._seen.update(set(lengths))
        recur = all(self._seen[length] > RECURRING for length in lengths)
        fits = self.head_dim <= _CUDNN_HEAD_DIM and min(lengths) >= _CUDNN_LENGTH
        if recur and fits and capability >= _HOPPER:
            return _by_cudnn(_each(lengths, like.device, is_causal))
        return _flash(lengths, like.device, is_causal)


def _each(lengths: Sequence[int], device: torch.device, is_causal: bool) -> Attend:
    """Samples of one length as a batch, by whatever torch takes."""
    lengths, order = list(lengths), None
    if len(set(lengths)) < len(list(itertools.groupby(lengths))):
        rows = torch.arange(sum(lengths)).split(lengths)
        order = torch.cat(sorted(rows, key=len)).to(device)
        lengths = sorted(lengths)
    batches = [(len(list(alike)), length) for length, alike in itertools.groupby(lengths)]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        inputs = (query, key, value)
        if order is not None:
            # index_select, because the gradient of indexing sorts
            inputs = tuple(x.index_select(0, order) for x in inputs)
        parts = (x.split([n * length for n, length in batches]) for x in inputs)
        mixed: list[Tensor] = []
        for batch, of_batch in zip(batches, zip(*parts, strict=True), strict=True):
            heads = (x.unflatten(0, batch).transpose(1, 2) for x in of_batch)
            out = F.scaled_dot_product_attention(*heads, is_causal=is_causal, enable_gqa=grouped)
            mixed.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
        whole = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        return whole if order is None else whole.index_select(0, order.argsort())

    return attend


def _by_cudnn(attend: Attend) -> Attend:
    def attend_by_cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # by name: where it cannot run, torch says so instead of taking another
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return attend(query, key, value)

    return attend_by_cudnn


def _flash(lengths: Sequence[int], device: torch.device, is_causal: bool) -> Attend:
    ends, longest = _ends(lengths, device), max(lengths)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # torch's public varlen_attn takes no fewer heads of keys than of queries yet
        mixed = torch.ops.aten._flash_attention_forward(
            *(query, key, value, ends, ends, longest, longest),
            dropout_p=0.0,
            is_causal=is_causal,
            return_debug_mask=False,
        )[0]
        return mixed.flatten(1)

    return attend


def _efficient(lengths: Sequence[int], device: torch.device, is_causal: bool) -> Attend:
    """The same in float32, which flash attention does not know."""
    ends, longest = _ends(lengths, device), max(lengths)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        num_sharing = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(num_sharing, dim=1) for x in (key, value))
        mixed = torch.ops.aten._efficient_attention_forward(
            *(query[None], key[None], value[None], None, ends, ends, longest, longest),
            dropout_p=0.0,
            custom_mask_type=int(is_causal),
            compute_log_sumexp=True,
        )[0]
        return mixed[0].flatten(1)

    return attend


def _ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return ends.pin_memory().to(device, non_blocking=True)
