"""Values and gradients against float64, wherever the package runs."""

import pytest
import torch
import torch.nn.functional as F
from itg_kernels.training import rms_norm, rotate, silu_gate

SHAPES = [(1, 16), (3, 80), (700, 96), (5, 1152), (2, 5000), (0, 32)]
DTYPES = [torch.float32, torch.float16]


def shapes(target):
    return [shape for shape in SHAPES if not (target.tiny and shape[0] * shape[1] > 6000)]


def check(run, truth, inputs, dtype, target):
    """Compares a result and the gradients of all inputs with those of float64."""
    given = [x.to(target.device, dtype).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in given]
    got, wanted = run(*given), truth(*exact)
    assert got.dtype == dtype
    pull = torch.randn_like(got)
    got.backward(pull)
    wanted.backward(pull.double())
    pairs = [(got, wanted), *((x.grad, y.grad) for x, y in zip(given, exact, strict=True))]
    for found, expected in pairs:
        scale = expected.abs().max().item() if expected.numel() else 1.0
        tolerance = scale * (2e-6 if dtype == torch.float32 else 4e-3)
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_and_its_gradients_are_those_of_float64(dtype, target):
    for shape in shapes(target):
        check(
            lambda x, w: rms_norm(x, w, eps=1e-5, backend=target.backend),
            lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
            [torch.randn(shape) * 2 + 1, torch.rand(shape[1]) + 0.5],
            dtype,
            target,
        )


def test_a_strided_weight_and_strided_rows_are_read_as_they_are(target):
    check(
        lambda x, w: rms_norm(x.T, w[::2], eps=1e-5, backend=target.backend),
        lambda x, w: F.rms_norm(x.T, (24,), w[::2], 1e-5),
        [torch.randn(24, 5), torch.rand(48) + 0.5],
        torch.float32,
        target,
    )


def test_heads_of_an_odd_width_have_no_pairs_and_are_refused(target):
    heads, table = torch.zeros(4, 2, 7, device=target.device), torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"with an even d, got \[4, 2, 7\]"):
        rotate(heads, table.to(target.device), table.to(target.device), backend=target.backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gate_and_its_gradients_are_those_of_float64(dtype, target):
    for shape in shapes(target):
        check(
            lambda gate, up: silu_gate(gate, up, backend=target.backend),
            lambda gate, up: F.silu(gate) * up,
            [torch.randn(shape) * 4, torch.randn(shape)],
            dtype,
            target,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (5, 24), (28, 128)])
def test_rotation_turns_pairs_in_the_plane_and_gradients_back(heads, dim, dtype, target):
    angles = torch.rand(4, dim // 2, device=target.device) * 6
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex128)[:, None]

    def in_the_plane(x):
        plane = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat([plane.real, plane.imag], dim=-1)

    check(
        lambda x: rotate(x, angles.cos(), angles.sin(), backend=target.backend),
        in_the_plane,
        [torch.randn(4, heads, dim)],
        dtype,
        target,
    )


def test_strided_gradients_arrive_whole(target):
    x = torch.randn(6, 4, 8, device=target.device, requires_grad=True)
    angles = torch.rand(6, 4, device=target.device)
    turned = rotate(x, angles.cos(), angles.sin(), backend=target.backend)
    pull = torch.randn(4, 6, 8, device=target.device).transpose(0, 1)
    turned.backward(pull)
    back = rotate(pull.contiguous(), angles.cos(), -angles.sin(), backend=target.backend)
    torch.testing.assert_close(x.grad, back)


def test_a_frozen_weight_gets_no_gradient_and_the_rows_theirs(target):
    x = torch.randn(5, 32, device=target.device, requires_grad=True)
    weight = torch.rand(32, device=target.device)
    rms_norm(x, weight, backend=target.backend).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_gradients_are_the_same_every_time(triton_target):
    x = torch.randn(300, 64, device=triton_target.device, requires_grad=True)
    weight = torch.rand(64, device=triton_target.device, requires_grad=True)
    grads = []
    for _ in range(2):
        x.grad = weight.grad = None
        rms_norm(x, weight, backend="triton").square().sum().backward()
        grads.append((x.grad, weight.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weight \[D\], got \[2, 3\] and \[4\]"):
        rms_norm(torch.zeros(2, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="alike"):
        silu_gate(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"cos must be float32 \[2, 4\]"):
        rotate(torch.zeros(2, 1, 8), torch.zeros(2, 3), torch.zeros(2, 4))
