import pytest
import torch
from itg_kernels import frame_score, frame_score_loss, resolve_backend

EPS = 1e-6


def literal_logits(hidden, norm_weight, head_weight, head_bias, spans, residual=None):
    """The network's own order of operations: norm, mean over the frame's tokens, linear."""
    x = hidden if residual is None else hidden + residual
    normed = norm_weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS))
    means = [
        normed[start:end].mean(0) if end > start else torch.zeros_like(normed[0])
        for start, end in spans
    ]
    return torch.stack(means) @ head_weight.reshape(-1) + head_bias.reshape(())


def make_inputs(num_rows, width, dtype=torch.float32, device="cpu"):
    hidden = torch.randn(num_rows, width) * 3
    norm_weight = 1 + torch.randn(width) * 0.2
    head_weight = torch.randn(width) / width**0.5
    head_bias = torch.tensor(-0.3)
    return [t.to(device, dtype) for t in (hidden, norm_weight, head_weight, head_bias)]


def boundaries(lengths, first=0):
    return [first + sum(lengths[:i]) for i in range(len(lengths) + 1)]


def spans_of(cu_frames):
    pairs = cu_frames if cu_frames.dim() == 2 else torch.stack([cu_frames[:-1], cu_frames[1:]], 1)
    return pairs.tolist()


LAYOUTS = {
    "uniform": (24, boundaries([4] * 6)),
    "ragged-with-text-around": (31, boundaries([1, 7, 3, 1, 9, 2], first=3)),
    "one-frame": (9, [2, 7]),
    "one-token": (1, [0, 1]),
    "an-empty-frame": (12, boundaries([3, 0, 5, 0])),
    "packed-with-text-between": (40, [[1, 4], [4, 9], [15, 16], [16, 16], [20, 37]]),
    "no-frames": (5, [3]),
    "one-long-frame-among-short": (90, boundaries([1, 1, 80, 1, 1], first=2)),
}


def layout(name, device, dtype=torch.int32):
    num_rows, cu_frames = LAYOUTS[name]
    return num_rows, torch.tensor(cu_frames, dtype=dtype, device=device)


def worst(values, truth):
    assert values.isfinite().all()
    return (values.double().cpu() - truth.cpu()).abs().max().item() if truth.numel() else 0.0


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("width", [64, 80])
def test_logits_are_those_of_norm_then_mean_then_linear(name, width, target):
    num_rows, cu_frames = layout(name, target.device)
    inputs = make_inputs(num_rows, width, device=target.device)
    truth = (
        literal_logits(*[t.double() for t in inputs], spans_of(cu_frames))
        if num_rows and len(spans_of(cu_frames))
        else torch.zeros(0)
    )
    logits = frame_score(*inputs, cu_frames, eps=EPS, backend=target.backend)
    assert logits.dtype == torch.float32
    assert logits.shape == (len(spans_of(cu_frames)),)
    assert worst(logits, truth) <= 2e-6


def test_gradients_agree_with_finite_differences():
    num_rows, cu_frames = layout("packed-with-text-between", "cpu", torch.int64)
    inputs = [t.requires_grad_() for t in make_inputs(num_rows, 6, torch.float64)]
    residual = torch.randn(num_rows, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: frame_score(*t[:4], cu_frames, residual=t[4]), (*inputs, residual)
    )


def test_gradients_of_the_fused_loss_agree_with_finite_differences():
    num_rows, cu_frames = layout("ragged-with-text-around", "cpu", torch.int64)
    inputs = [t.requires_grad_() for t in make_inputs(num_rows, 6, torch.float64)]
    labels = torch.tensor([1, 0, 0, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda *t: frame_score_loss(*t, cu_frames, labels), inputs)


def test_the_backend_chosen_on_a_cpu_is_torch():
    assert resolve_backend("auto", "cpu") == "torch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(5)}, r"hidden must be floating point \[S, D\], got float32 \[5\]"),
        ({"norm_weight": torch.zeros(3)}, r"norm_weight must hold D=4 values"),
        ({"head_weight": torch.zeros(4, 1)}, r"head_weight must hold D=4 values"),
        ({"head_bias": torch.zeros(2)}, "head_bias must hold one value"),
        ({"cu_frames": torch.zeros(3)}, "cu_frames must be int32 or int64"),
        ({"cu_frames": torch.tensor([0, 9])}, r"frame 0 is \[0, 9\)"),
        ({"cu_frames": torch.tensor([[0, 3], [2, 4]])}, r"frame 1 is \[2, 4\) after one that"),
        ({"residual": torch.zeros(4, 4)}, "residual must have hidden's shape"),
        ({"backend": "cuda"}, "backend must be 'auto', 'torch' or 'triton', got 'cuda'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named_with_their_values(change, message):
    arguments = {
        "hidden": torch.zeros(5, 4),
        "norm_weight": torch.zeros(4),
        "head_weight": torch.zeros(4),
        "head_bias": torch.zeros(()),
        "cu_frames": torch.tensor([0, 2, 5]),
    }
    with pytest.raises(ValueError, match=message):
        frame_score(**(arguments | change))
