"""Which attention kernel runs, and proof that it does.

On Hopper, cuDNN's kernel is 1.6 to 1.8 times as fast as the flash-attention 2 that torch carries.
torch takes it where it is allowed to, and says nothing where it is not: a system cuDNN found first
through LD_LIBRARY_PATH may be too old. So the order of preference is set here, and what torch
will run is asked for and reported.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

_PREFERRED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_HOPPER = (9, 0)
_MIN_CUDNN = 91500


@contextmanager
def preferring_fast_attention(device: torch.device) -> Iterator[None]:
    """Within, torch's attention prefers cuDNN's kernel on GPUs where that is the fastest."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _HOPPER:
        yield
        return
    with sdpa_kernel(_PREFERRED, set_priority=True):
        yield


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every row to every row; heads of keys and values may be fewer.

    Args:
        query: [B, H, L, d]; may be strided.
        key: [B, G, S, d], G dividing H.
        value: As `key`.

    Returns:
        [B, L, H * d].
    """
    grouped = query.shape[1] != key.shape[1]
    _warn_if_slow(query, key, value, grouped)
    out = F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


def chosen_kernel(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> SDPBackend:
    """What torch's attention would run on these."""
    return SDPBackend(torch.ops.aten._fused_sdp_choice(query, key, value, enable_gqa=grouped))


def _warn_if_slow(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> None:
    if not query.is_cuda or query.dtype == torch.float32:
        return
    if torch.cuda.get_device_capability(query.device) < _HOPPER:
        return
    chosen = chosen_kernel(query, key, value, grouped)
    if chosen != SDPBackend.CUDNN_ATTENTION:
        _warn_once(chosen.name, query.shape[-1])


@lru_cache
def _warn_once(chosen: str, head_dim: int) -> None:
    version = torch.backends.cudnn.version() or 0
    reason = f"cuDNN is {version} and must be {_MIN_CUDNN}; " if version < _MIN_CUDNN else ""
    logger.warning(
        "attention (heads of %d) runs as %s instead of cuDNN's kernel, which is up to 1.8 times as "
        "fast. %sLook whether LD_LIBRARY_PATH names an older cuDNN, or TORCH_CUDNN_SDPA_ENABLED "
        "and TORCH_CUDNN_SDPA_DEPRIORITIZED forbid it",
        head_dim,
        chosen,
        reason,
    )
