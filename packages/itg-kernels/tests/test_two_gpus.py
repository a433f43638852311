"""Triton launches on the current device, which need not be that of the tensors."""

import itertools

import pytest
import torch
from itg_kernels import frame_score, frame_score_loss, topk_chronological
from itg_kernels.frames import nv12_to_rgb, squash_frames
from itg_kernels.rows import gelu_rows, norm_rows, quantise_rows, rotate_rows, silu_gate_rows
from itg_kernels.training import rms_norm, rotate, silu_gate


def with_gradients(function, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    return *out, *torch.autograd.grad(out[0].sum(), leaves)


def score(backend, device):
    inputs = [torch.randn(shape, device=device) for shape in ((24, 64), (64,), (64,), ())]
    cu_frames = torch.arange(0, 25, 4, device=device)
    labels = torch.arange(6, device=device) % 2
    return (
        *with_gradients(lambda *t: frame_score(*t, cu_frames, backend=backend), *inputs),
        *with_gradients(
            lambda *t: frame_score_loss(*t, cu_frames, labels, backend=backend), *inputs
        ),
    )


def top_k(backend, device):
    scores = torch.randn(3, 40, device=device)
    lengths = torch.tensor([40, 7, 0], device=device)
    return (
        *topk_chronological(scores, 5, lengths=lengths, backend=backend),
        *topk_chronological(scores, 5, min_gap=3, backend=backend),
    )


def rows(backend, device):
    x = torch.randn(5, 96, device=device)
    heads, angles = torch.randn(5, 2, 16, device=device), torch.rand(5, 8, device=device)
    return (
        norm_rows(x.clone(), x[0].clone(), backend=backend),
        gelu_rows(x, backend=backend),
        silu_gate_rows(x, backend=backend),
        quantise_rows(x, backend=backend)[1],
        rotate_rows(heads, angles.cos(), angles.sin(), backend=backend),
    )


def training(backend, device):
    x, y, weight = (torch.randn(shape, device=device) for shape in ((5, 96), (5, 96), (96,)))
    heads, angles = torch.randn(5, 2, 16, device=device), torch.rand(5, 8, device=device)
    cos, sin = angles.cos(), angles.sin()
    return (
        *with_gradients(lambda *t: rms_norm(*t, backend=backend), x, weight),
        *with_gradients(lambda *t: silu_gate(*t, backend=backend), x, y),
        *with_gradients(lambda t: rotate(t, cos, sin, backend=backend), heads),
    )


def frames(backend, device):
    pixels = torch.randint(0, 256, (2, 30, 20, 3), dtype=torch.uint8, device=device)
    planes = torch.randint(0, 256, (2, 30, 20), dtype=torch.uint8, device=device)
    matrix = (16, 9535, 13074, 16525, -3203, -6660)
    return (
        squash_frames(pixels, 16, backend=backend),
        nv12_to_rgb(planes, matrix, backend=backend),
    )


def check(operations, device):
    """Triton twice, for the second call takes the launch that the first one kept; then torch."""
    results = []
    for backend in ("triton", "triton", "torch"):
        torch.manual_seed(0)
        results.append(operations(backend, device))
    for got, again, wanted in zip(*results, strict=True):
        assert got.device == again.device == wanted.device == torch.device(device)
        assert torch.equal(got, again)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.multi_gpu
@pytest.mark.parametrize("operations", [score, top_k, rows, training, frames])
def test_kernels_run_where_their_tensors_lie_whatever_gpu_is_current(operations):
    for current, device in itertools.permutations((0, 1)):
        with torch.cuda.device(current):
            check(operations, f"cuda:{device}")
            assert torch.cuda.current_device() == current
