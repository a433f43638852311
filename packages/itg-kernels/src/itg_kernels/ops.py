"""The public operations: arguments checked, backend chosen.

The Triton backend runs through the operators of `custom_ops`, the torch backend is `reference`.

None of them reads a tensor's values on the host when the tensors lie on a GPU, so none waits for
the device. On the CPU, where looking is free, spans and lengths are checked as well.
"""

import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from itg_kernels import custom_ops, reference

Backend = Literal["auto", "torch", "triton"]

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The longest row that the spaced kernel holds, `topk.MAX_SPACED_T`, known without Triton.
_MAX_SPACED_T = 32768
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def resolve_backend(backend: Backend, device: torch.device | str) -> str:
    """The backend that a call with `backend` uses for tensors on `device`: "torch" or "triton".

    "auto" is "triton" on NVIDIA GPUs of compute capability 8.0 and above where Triton is
    installed, else "torch". What no kernel takes also makes "auto" choose "torch": float64,
    `min_gap` on more than 32768 frames, and scores or their loss under torch.func's transforms.

    Raises:
        ValueError: if the backend is unknown, or was asked for by name and cannot run there.
    """
    device = torch.device(device)
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'triton', got {backend!r}")
    if backend == "torch":
        return "torch"
    obstacle = _triton_obstacle(device)
    if backend == "triton" and obstacle:
        raise ValueError(f"backend 'triton' cannot run on {device}: {obstacle}")
    # The interpreter is for tests, which ask for it by name.
    if backend == "auto" and (obstacle or device.type == "cpu"):
        return "torch"
    return "triton"


def _triton_obstacle(device: torch.device) -> str | None:
    if not _HAS_TRITON:
        return "triton is not installed"
    if device.type == "cpu":
        return None if _INTERPRETED else "it needs a GPU, or TRITON_INTERPRET=1 for its interpreter"
    if device.type != "cuda" or torch.version.cuda is None:
        return "only NVIDIA GPUs are supported"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"compute capability {major}.{minor} is below 8.0"


def frame_score(
    hidden: Tensor,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> Tensor:
    """Logit of every frame: final RMSNorm, mean over the frame's tokens, linear head; in one read.

    Everything is accumulated in float32 (float64 for float64 input), whatever the dtype of
    `hidden`: two frames tie only if they are as good as equal. An empty frame's mean is 0, so its
    logit is the bias. Rows outside every frame are ignored and get a gradient of zero.

    Args:
        hidden: [S, D], the residual stream before the final norm; rows may be strided.
        norm_weight: [D].
        head_weight: [D] or [1, D].
        head_bias: [] or [1].
        cu_frames: int32 or int64; either [F+1], boundaries of frames that follow one another
            (text may come before the first and after the last), or [F, 2], half-open row spans,
            sorted and disjoint, with text anywhere between them.
        residual: [S, D], added to `hidden` before the norm.
        eps: The norm's epsilon.
        backend: See `resolve_backend`.

    Returns:
        float32 [F] (float64 for float64 input), differentiable in all tensors but `cu_frames`.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or, on the CPU, if a span lies
            outside the rows, is reversed, or overlaps the one before it.
    """
    _check_score_inputs(hidden, norm_weight, head_weight, head_bias, cu_frames, residual)
    if _resolve_for(backend, hidden, _score_obstacle(hidden)) == "torch":
        return reference.frame_scores(
            hidden, norm_weight, head_weight, head_bias, cu_frames, residual=residual, eps=eps
        )
    inputs = (hidden, residual, norm_weight, head_weight, head_bias, cu_frames)
    return custom_ops.frame_score(*inputs, float(eps), _needs_gradient(*inputs))


def frame_bce_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    cu_samples: Tensor | None = None,
    max_pos_weight: float = 5.0,
    min_negatives: int = 1,
) -> Tensor:
    """Binary cross entropy of frame logits, with relevant frames weighted up by their rarity.

    The weight of a relevant frame is sqrt(negatives / max(1, positives)), at most
    `max_pos_weight`. The reference implementation lets it fall to 0 where every frame is relevant:
    such a batch costs nothing and teaches nothing. Here negatives count as at least
    `min_negatives`; 0 gives the reference's behaviour back.

    Args:
        logits: [F].
        labels: [F], 1 for relevant and 0 for other frames; bool, integer or float.
        cu_samples: [B+1], boundaries of the samples in the frames, from 0 to F. Given, each sample
            has its own weight and its own mean, and the loss is the mean over the samples that
            have frames, as if each were a batch of its own. None: all frames are one sample.
        max_pos_weight: Upper bound of the weight.
        min_negatives: Lower bound of the number of negatives in the weight.

    Returns:
        float32 scalar (float64 for float64 logits); 0 for no frames at all.
    """
    _check_devices("logits", logits, labels=labels, cu_samples=cu_samples)
    _check_loss_inputs(logits.shape[0], labels, cu_samples)
    return reference.frame_bce_loss(
        logits,
        labels,
        cu_samples=cu_samples,
        max_pos_weight=max_pos_weight,
        min_negatives=min_negatives,
    )


def frame_score_loss(
    hidden: Tensor,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    labels: Tensor,
    *,
    cu_samples: Tensor | None = None,
    max_pos_weight: float = 5.0,
    min_negatives: int = 1,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`frame_score` and `frame_bce_loss` as one operation; arguments as there.

    Returns:
        The loss, a scalar, and the logits [F]; both differentiable.
    """
    _check_score_inputs(hidden, norm_weight, head_weight, head_bias, cu_frames, residual)
    num_frames = cu_frames.shape[0] - (1 if cu_frames.dim() == 1 else 0)
    _check_devices("hidden", hidden, labels=labels, cu_samples=cu_samples)
    _check_loss_inputs(num_frames, labels, cu_samples)
    if _resolve_for(backend, hidden, _score_obstacle(hidden)) == "triton":
        inputs = (hidden, residual, norm_weight, head_weight, head_bias, cu_frames)
        return custom_ops.frame_score_loss(
            *inputs, labels, cu_samples, max_pos_weight, min_negatives, float(eps),
            _needs_gradient(*inputs),
        )  # fmt: skip
    logits = reference.frame_scores(
        hidden, norm_weight, head_weight, head_bias, cu_frames, residual=residual, eps=eps
    )
    loss = reference.frame_bce_loss(
        logits,
        labels,
        cu_samples=cu_samples,
        max_pos_weight=max_pos_weight,
        min_negatives=min_negatives,
    )
    return loss, logits


def topk_chronological(
    scores: Tensor,
    k: int,
    *,
    valid: Tensor | None = None,
    lengths: Tensor | None = None,
    min_gap: float | None = None,
    times_s: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """The k best frames of every row, in time order; exact, and the same on every run.

    Ties go to the earlier frame; -0 and +0 are equal; a NaN score is taken only when nothing but
    NaN is left. Without `min_gap`, exactly min(k, valid frames) frames are chosen.

    Args:
        scores: [B, T] or [T], float32, float16 or bfloat16; float64 without `min_gap`, on torch.
        k: At least 1; may exceed T.
        valid: [B, T] or [T] bool; False marks frames that must not be chosen.
        lengths: [B] integers (or a scalar for 1-D scores); frames from there on must not be chosen,
            and a length beyond T or below 0 counts as T or 0. At most one of `valid` and `lengths`
            is given.
        min_gap: Take the best frame, drop all frames nearer to it than this, and go on; fewer than
            k frames may come back. Counted in frames, or in seconds where `times_s` is given.
        times_s: [B, T] or [T], the frames' times; compared in float64.
        backend: See `resolve_backend`.

    Returns:
        Indices int64 [B, k], ascending, padded with -1, and their number int64 [B]. 1-D scores
        give [k] and a scalar.

    Raises:
        ValueError: if an argument is out of range, or shapes, types or devices do not fit together.
    """
    _check_topk_inputs(scores, k, valid, lengths, min_gap, times_s)
    obstacle = "float64" if scores.dtype == torch.float64 else None
    if min_gap is not None and scores.shape[-1] > _MAX_SPACED_T:
        obstacle = f"min_gap on more than {_MAX_SPACED_T} frames"
    resolved = _resolve_for(backend, scores, obstacle)
    choose = _topk_triton if resolved == "triton" else _topk_torch
    rows = (scores if scores.dim() == 2 else scores[None]).detach()
    valid = None if valid is None else valid.reshape(rows.shape)
    lengths = None if lengths is None else lengths.reshape(-1)
    times = None if times_s is None else times_s.double().expand(rows.shape)
    indices, counts = choose(rows, k, valid, lengths, times, min_gap)
    return (indices, counts) if scores.dim() == 2 else (indices[0], counts[0])


def _topk_triton(
    rows: Tensor,
    k: int,
    valid: Tensor | None,
    lengths: Tensor | None,
    times: Tensor | None,
    min_gap: float | None,
) -> tuple[Tensor, Tensor]:
    if min_gap is None:
        return torch.ops.itg_kernels.topk_chronological(rows, k, valid, lengths)
    return torch.ops.itg_kernels.topk_spaced(rows, k, valid, lengths, times, min_gap)


def _topk_torch(
    rows: Tensor,
    k: int,
    valid: Tensor | None,
    lengths: Tensor | None,
    times: Tensor | None,
    min_gap: float | None,
) -> tuple[Tensor, Tensor]:
    index = torch.arange(rows.shape[1], device=rows.device)
    if lengths is not None:
        valid = index < lengths[:, None]
    elif valid is None:
        valid = torch.ones_like(rows, dtype=torch.bool)
    if min_gap is None:
        return reference.topk_chronological(rows, k, valid)
    times = index.expand(rows.shape) if times is None else times
    return reference.topk_spaced(rows, k, valid, times, min_gap)


def _score_obstacle(hidden: Tensor) -> str | None:
    if custom_ops.is_transformed():
        return "the transforms of torch.func"
    return "float64" if hidden.dtype == torch.float64 else None


def _resolve_for(backend: Backend, tensor: Tensor, obstacle: str | None) -> str:
    """`resolve_backend`, and what the kernels do not take goes to torch unless they were named."""
    resolved = resolve_backend(backend, tensor.device)
    if resolved == "triton" and obstacle:
        if backend == "triton":
            raise ValueError(f"backend 'triton' does not take {obstacle}; backend 'torch' does")
        return "torch"
    return resolved


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check_score_inputs(
    hidden: Tensor,
    norm_weight: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    cu_frames: Tensor,
    residual: Tensor | None,
) -> None:
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be floating point [S, D], got {_describe(hidden)}")
    width = hidden.shape[1]
    for name, weight in (("norm_weight", norm_weight), ("head_weight", head_weight)):
        if weight.numel() != width or weight.shape[-1] != width:
            raise ValueError(f"{name} must hold D={width} values, got {_describe(weight)}")
    if head_bias.numel() != 1:
        raise ValueError(f"head_bias must hold one value, got {_describe(head_bias)}")
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(
            f"residual must have hidden's shape {tuple(hidden.shape)}, got {_describe(residual)}"
        )
    is_spans = cu_frames.dim() == 2 and cu_frames.shape[1] == 2
    is_boundaries = cu_frames.dim() == 1 and cu_frames.shape[0] >= 1
    if cu_frames.dtype not in (torch.int32, torch.int64) or not (is_spans or is_boundaries):
        raise ValueError(
            f"cu_frames must be int32 or int64, [F+1] or [F, 2], got {_describe(cu_frames)}"
        )
    _check_devices(
        "hidden", hidden, norm_weight=norm_weight, head_weight=head_weight, head_bias=head_bias,
        cu_frames=cu_frames, residual=residual,
    )  # fmt: skip
    if _can_look_at(cu_frames):
        _check_spans(cu_frames, hidden.shape[0])


def _can_look_at(tensor: Tensor) -> bool:
    """Whether the values are there, without waiting for a device; a traced tensor has none."""
    return tensor.device.type == "cpu" and not custom_ops.is_watched(tensor)


def _check_spans(cu_frames: Tensor, num_rows: int) -> None:
    previous_end = 0
    starts, ends = reference.frame_spans(cu_frames)
    for frame, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if not previous_end <= start <= end <= num_rows:
            raise ValueError(
                f"cu_frames must hold sorted, disjoint spans in 0..{num_rows}: frame {frame} is "
                f"[{start}, {end}) after one that ends at {previous_end}"
            )
        previous_end = end


def _check_devices(name: str, first: Tensor, **others: Tensor | None) -> None:
    for other_name, other in others.items():
        if other is not None and other.device != first.device:
            raise ValueError(
                f"{other_name} must be on {first.device} as {name}, got {other.device}"
            )


def _check_loss_inputs(num_frames: int, labels: Tensor, cu_samples: Tensor | None) -> None:
    if labels.shape != (num_frames,):
        raise ValueError(f"labels must be [F={num_frames}], got {_describe(labels)}")
    if cu_samples is None:
        return
    if cu_samples.dim() != 1 or cu_samples.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_samples must be int32 or int64 [B+1], got {_describe(cu_samples)}")
    if _can_look_at(cu_samples):
        bounds = cu_samples.tolist()
        if not bounds or bounds[0] != 0 or bounds[-1] != num_frames or bounds != sorted(bounds):
            raise ValueError(f"cu_samples must ascend from 0 to F={num_frames}, got {bounds}")


def _check_topk_inputs(
    scores: Tensor,
    k: int,
    valid: Tensor | None,
    lengths: Tensor | None,
    min_gap: float | None,
    times_s: Tensor | None,
) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    if min_gap is None:
        dtypes = (*dtypes, torch.float64)
    if scores.dim() not in (1, 2) or scores.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"scores must be [T] or [B, T] in {names}, got {_describe(scores)}")
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if valid is not None and lengths is not None:
        raise ValueError("valid and lengths exclude each other, got both")
    if valid is not None and (valid.shape != scores.shape or valid.dtype != torch.bool):
        raise ValueError(f"valid must be bool {tuple(scores.shape)}, got {_describe(valid)}")
    if lengths is not None:
        _check_lengths(lengths, scores.shape[0] if scores.dim() == 2 else 1)
    if min_gap is not None and not min_gap >= 0:
        raise ValueError(f"min_gap must be >= 0, got {min_gap}")
    if times_s is not None:
        if min_gap is None:
            raise ValueError("times_s is the unit of min_gap, which is not given")
        if times_s.shape not in (scores.shape, scores.shape[-1:]):
            raise ValueError(
                f"times_s must be {tuple(scores.shape)} or [T={scores.shape[-1]}], "
                f"got {_describe(times_s)}"
            )
    _check_devices("scores", scores, valid=valid, lengths=lengths, times_s=times_s)


def _check_lengths(lengths: object, num_rows: int) -> None:
    if not isinstance(lengths, Tensor):
        raise ValueError(f"lengths must be a tensor of B={num_rows} integers, got {lengths!r}")
    if lengths.numel() != num_rows or lengths.dtype not in _INTEGERS:
        raise ValueError(f"lengths must hold B={num_rows} integers, got {_describe(lengths)}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
