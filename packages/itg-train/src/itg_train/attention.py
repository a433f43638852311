"""Attention over samples that lie end to end, each attending to itself, by the kernel that pays.

On Hopper that is flash attention 4 where it is installed: it takes all samples of a pass in one
call, whatever their lengths, and is compiled once, in some ten seconds. Without it cuDNN's kernels
are 1.6 times as fast as flash attention 2, but want a plan for every new length: 0.1 s of the
processor with both directions. Behind a long sample that is hidden, as long as nothing in a pass
waits for the device; behind a short one it is not, and there torch's flash attention 2 takes all
short samples in one call.

Shapes: S tokens of all samples, H heads of queries, G of keys and values, d their width.
"""

import importlib
import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from itg_model.devices import to_device
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from itg_train.rundir import RunError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""[S, H, d] queries, [S, G, d] keys and values -> [S, H * d]."""

LONG = 4096
"""Tokens of a sample whose attention pays for cuDNN's plan."""

MAX_PLANS = 4096
"""Lengths with a plan: each stays in the processor's memory."""

_AMPERE, _HOPPER = (8, 0), (9, 0)
# cuDNN gives no gradients of wider heads
_CUDNN_HEAD_DIM = 128


class PackedAttention:
    """Chooses attention for passes.

    By length alone, so that a resumed run chooses what it would have, until `MAX_PLANS` is reached.

    Args:
        head_dim: Width of a head; the packed kernels take multiples of 8.
    """

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim
        self._planned: set[int] = set()

    def choose(self, lengths: Sequence[int], like: Tensor, *, is_causal: bool = False) -> Attend:
        """Attention for samples of these lengths.

        Args:
            lengths: Tokens of each sample; they sum to S.
            like: Has the device and type of what comes.
            is_causal: Attends only backwards.
        """
        device = like.device
        if device.type != "cuda" or self.head_dim % 8:
            return _each(lengths, device, is_causal)
        capability = torch.cuda.get_device_capability(device)
        if capability < _AMPERE:
            return _each(lengths, device, is_causal)
        if like.dtype == torch.float32:
            return _efficient(lengths, device, is_causal)
        if capability == _HOPPER and _has_flash4():
            return _flash4(lengths, device, is_causal)
        if capability < _HOPPER or self.head_dim > _CUDNN_HEAD_DIM:
            return _flash(lengths, device, is_causal)
        return _by_cudnn_or_flash(lengths, self._plan(lengths), device, is_causal)

    def _plan(self, lengths: Sequence[int]) -> list[bool]:
        """Which samples cuDNN takes."""
        for length in lengths:
            if length >= LONG and len(self._planned) < MAX_PLANS:
                self._planned.add(length)
        return [length in self._planned for length in lengths]


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


def _by_cudnn_or_flash(
    lengths: Sequence[int], by_cudnn: Sequence[bool], device: torch.device, is_causal: bool
) -> Attend:
    """The samples that are marked one by one by cuDNN, the others together."""
    lengths = list(lengths)
    others = [n for n, marked in zip(lengths, by_cudnn, strict=True) if not marked]
    flash = _flash(others, device, is_causal) if others else None
    if flash is not None and len(others) == len(lengths):
        return flash

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        samples = list(zip(*(x.split(lengths) for x in (query, key, value)), strict=True))
        rest = [sample for sample, marked in zip(samples, by_cudnn, strict=True) if not marked]
        flashed = iter(())
        if flash is not None:
            together = flash(*(torch.cat(parts) for parts in zip(*rest, strict=True)))
            flashed = iter(together.split(others))
        rows = [
            _cudnn(sample, is_causal) if marked else next(flashed)
            for sample, marked in zip(samples, by_cudnn, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    return attend


def _cudnn(sample: tuple[Tensor, ...], is_causal: bool) -> Tensor:
    """[L, H, d] and twice [L, G, d] -> [L, H * d]."""
    grouped = sample[0].shape[1] != sample[1].shape[1]
    query, key, value = (x.transpose(0, 1)[None] for x in sample)
    # by name: where it cannot run, torch says so instead of taking another
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, enable_gqa=grouped
        )
    return out[0].transpose(0, 1).flatten(1)


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


def preferred() -> str:
    """Whose kernels Hopper gets: `flash-attn-4` where it is installed, else `torch`, as above."""
    return "flash-attn-4" if _has_flash4() else "torch"


@cache
def _has_flash4() -> bool:
    # not by its module: flash attention 2 brings an older flash_attn.cute, without what it needs
    try:
        version("flash-attn-4")
    except PackageNotFoundError:
        return False
    return True


@cache
def _load_flash4() -> Any:
    # its compiler warns of what it leaves out of its own signatures
    warnings.filterwarnings("ignore", category=UserWarning, module="cutlass")
    try:
        return importlib.import_module("flash_attn.cute").flash_attn_varlen_func
    # the older one of flash-attn 2 looks for names that today's compiler does not have
    except (ImportError, AttributeError) as error:
        raise RunError(
            f"flash-attn-4 is installed, but cannot be imported: {error}. flash-attn 2 has files "
            "of the same names: where both are wanted, install flash-attn-4 last; or uninstall it"
        ) from None


def _flash4(lengths: Sequence[int], device: torch.device, is_causal: bool) -> Attend:
    ends, longest, flash_attn_varlen_func = _ends(lengths, device), max(lengths), _load_flash4()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed, _ = flash_attn_varlen_func(
            *(query, key, value),
            cu_seqlens_q=ends,
            cu_seqlens_k=ends,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=is_causal,
        )
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
    return to_device(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), device)
