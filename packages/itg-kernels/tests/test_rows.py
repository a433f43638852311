import pytest
import torch
import torch.nn.functional as F
from itg_kernels.rows import gelu_rows, norm_rows, quantise_rows, rotate_rows, silu_gate_rows

SHAPES = [(1, 16), (3, 80), (5, 1152), (2, 5000), (0, 32)]


def shapes(target):
    return [shape for shape in SHAPES if not (target.tiny and shape[1] > 1152)]


def close(got, wanted, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(got.double().cpu(), wanted.cpu(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("extra", ["", "pending", "after", "both"])
def test_a_norm_is_that_of_float64_and_the_stream_moves_on(dtype, layer, extra, target):
    for shape in shapes(target):
        hidden = torch.randn(shape, device=target.device, dtype=dtype) * 2 + 1
        weight, bias, after = torch.randn(3, shape[1], device=target.device, dtype=dtype)
        pending = torch.randn_like(hidden) if extra in ("pending", "both") else None
        after = after if extra in ("after", "both") else None
        stream = hidden if pending is None else hidden + pending
        if layer:
            args = stream.double(), (shape[1],), weight.double(), bias.double(), 1e-6
            wanted = F.layer_norm(*args)
        else:
            wanted = F.rms_norm(stream.double(), (shape[1],), weight.double(), 1e-6)
        moved = stream if after is None else stream + after
        normed = norm_rows(
            hidden,
            weight,
            bias if layer else None,
            pending=pending,
            add_after=after,
            backend=target.backend,
        )
        close(normed, wanted, dtype)
        close(hidden, moved.double(), dtype)


def test_strided_rows_of_a_norm_are_read_as_they_are(target):
    hidden = torch.randn(3, 24, device=target.device)
    rows = torch.randn(24, 4, device=target.device)
    weight, bias, after, _ = rows.T
    wanted = F.layer_norm(hidden.double(), (24,), weight.double(), bias.double(), 1e-6)
    moved = hidden + after
    normed = norm_rows(hidden, weight, bias, add_after=after, backend=target.backend)
    close(normed, wanted, torch.float32)
    close(hidden, moved.double(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_activations_are_those_of_float64(dtype, target):
    for rows, width in shapes(target):
        x = torch.randn(rows, 2 * width, device=target.device, dtype=dtype) * 3
        gate, up = x.double().chunk(2, dim=-1)
        close(silu_gate_rows(x, backend=target.backend), F.silu(gate) * up, dtype)
        wanted = F.gelu(x.double(), approximate="tanh")
        close(gelu_rows(x, backend=target.backend), wanted, dtype)


@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (5, 24), (32, 128)])
def test_rotary_positions_turn_pairs_in_the_plane(heads, dim, target):
    whole = torch.randn(4, heads + 2, dim, device=target.device)
    strided = whole[:, :heads]
    angles = torch.rand(4, dim // 2, device=target.device) * 6
    turned = rotate_rows(strided, angles.cos(), angles.sin(), backend=target.backend)
    left, right = strided.double().chunk(2, dim=-1)
    plane = torch.complex(left, right) * torch.polar(torch.ones_like(angles), angles).unsqueeze(
        1
    ).to(torch.complex128)
    close(turned, torch.cat([plane.real, plane.imag], dim=-1), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 16), (7, 1152), (3, 3584), (2, 18944)], ids=str)
@pytest.mark.parametrize("op", ["plain", "norm", "gate", "gelu"])
def test_eight_bit_rows_are_those_of_the_oracle(op, shape):
    rows, width = shape
    x = torch.randn(rows, width * (2 if op == "gate" else 1), device="cuda").bfloat16() * 5
    weight = torch.randn(width, device="cuda").bfloat16()
    run = {
        "plain": lambda b: quantise_rows(x, backend=b),
        "norm": lambda b: norm_rows(x.clone(), weight, fp8=True, backend=b),
        "gate": lambda b: silu_gate_rows(x, fp8=True, backend=b),
        "gelu": lambda b: gelu_rows(x, fp8=True, backend=b),
    }[op]
    (values, scales), (wanted, wanted_scales) = run("triton"), run("torch")
    torch.testing.assert_close(scales, wanted_scales, rtol=1e-4, atol=0)
    # a value on the border of two 8-bit numbers may fall to either side
    error = (values.float() * scales - wanted.float() * wanted_scales).abs()
    assert (error > 1e-3 * wanted_scales).float().mean() < 0.01
    assert (error <= wanted.float().abs() * wanted_scales * 0.13 + wanted_scales * 0.01).all()


def test_rounding_to_eight_bits_keeps_three_bits_of_every_row():
    x = torch.randn(6, 300) * torch.tensor([1e-3, 1, 50, 1e4, 1, 0])[:, None]
    values, scales = quantise_rows(x)
    back = values.float() * scales
    assert ((back - x).abs() <= x.abs() / 16 + x.abs().amax(1, keepdim=True) * 2e-3).all()
    assert values.float().abs().amax(1).tolist() == [448.0] * 5 + [0.0]


# Triton's interpreter computes with NumPy, which warns of what is asked for here.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 70, 79])
@pytest.mark.parametrize("op", ["plain", "norm", "layer norm", "gate", "gelu"])
def test_a_number_that_is_none_shows_in_the_scale_and_in_eight_bits(op, place, bad, target):
    # 80 columns are kept as 64 and 16: each part must tell
    x = torch.randn(3, 160 if op == "gate" else 80, device=target.device)
    x[1, place] = bad
    weight = torch.ones(80, device=target.device)
    run = {
        "plain": lambda rows, backend: quantise_rows(rows, backend=backend),
        "norm": lambda rows, backend: norm_rows(rows, weight, fp8=True, backend=backend),
        "layer norm": lambda rows, backend: norm_rows(
            rows, weight, weight, fp8=True, backend=backend
        ),
        "gate": lambda rows, backend: silu_gate_rows(rows, fp8=True, backend=backend),
        "gelu": lambda rows, backend: gelu_rows(rows, fp8=True, backend=backend),
    }[op]
    values, scales = run(x.clone(), target.backend)
    wanted, wanted_scales = run(x.clone(), "torch")
    assert scales.isfinite().flatten().tolist() == [True, False, True]
    assert torch.equal(scales.isnan(), wanted_scales.isnan())
    # Triton's interpreter knows no NaN in 8 bits.
    if not target.tiny:
        assert torch.equal(values.float().isnan(), wanted.float().isnan())
    assert (values.float() * scales)[1].isnan().any()


def test_arguments_that_do_not_fit_are_errors():
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"weight must be \[8\], got \[7\]"):
        norm_rows(x, torch.ones(7))
    with pytest.raises(ValueError, match=r"pending must be \[2, 8\], got \[1, 8\]"):
        norm_rows(x, torch.ones(8), pending=torch.zeros(1, 8))
    with pytest.raises(ValueError, match="two halves"):
        silu_gate_rows(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="side by side"):
        gelu_rows(x.t())
    with pytest.raises(ValueError, match=r"cos must be float32 \[2, 4\]"):
        rotate_rows(torch.zeros(2, 1, 8), torch.zeros(2, 3), torch.zeros(2, 4))
