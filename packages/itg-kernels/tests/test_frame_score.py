import pytest
import torch
from itg_kernels import (
    frame_bce_loss,
    frame_score,
    frame_score_loss,
    resolve_backend,
    topk_chronological,
)

EPS = 1e-6


def literal_logits(hidden, norm_weight, head_weight, head_bias, spans, residual=None, eps=EPS):
    """The network's own order of operations: norm, mean over the frame's tokens, linear."""
    x = hidden if residual is None else hidden + residual
    normed = norm_weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))
    means = [
        normed[start:end].mean(0) if end > start else torch.zeros_like(normed[0])
        for start, end in spans
    ]
    if not means:
        return x.new_zeros(0)
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
    return (values.double() - truth).abs().max().item() if truth.numel() else 0.0


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("width", [64, 80])
def test_logits_are_those_of_norm_then_mean_then_linear(name, width, target):
    num_rows, cu_frames = layout(name, target.device)
    inputs = make_inputs(num_rows, width, device=target.device)
    truth = literal_logits(*[t.double() for t in inputs], spans_of(cu_frames))
    logits = frame_score(*inputs, cu_frames, eps=EPS, backend=target.backend)
    assert logits.dtype == torch.float32
    assert logits.shape == (len(spans_of(cu_frames)),)
    assert worst(logits, truth) <= 2e-6


def test_small_rows_are_damped_by_a_large_epsilon_and_so_are_their_gradients(target):
    num_rows, cu_frames = layout("uniform", target.device)
    hidden, *weights = make_inputs(num_rows, 64, device=target.device)
    inputs = [hidden * 1e-3, *weights]
    leaves = [t.requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    logits = frame_score(*leaves, cu_frames, eps=1e-2, backend=target.backend)
    truth = literal_logits(*exact, spans_of(cu_frames), eps=1e-2)
    assert worst(logits, truth) <= 1e-7
    undamped = literal_logits(*exact, spans_of(cu_frames))
    assert (undamped - truth).abs().max() > 0.1
    grads = torch.autograd.grad(logits.sum(), leaves)
    wanted = torch.autograd.grad(truth.sum(), exact)
    for got, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["uniform", "packed-with-text-between"])
def test_logits_err_at_most_twice_as_much_as_torch(name, dtype, target):
    num_rows, cu_frames = layout(name, target.device, torch.int64)
    inputs = make_inputs(num_rows, 208, dtype, target.device)
    residual = torch.randn_like(inputs[0])
    doubles = [t.double() for t in inputs]
    truth = literal_logits(*doubles, spans_of(cu_frames), residual.double())
    by_torch = frame_score(*inputs, cu_frames, residual=residual, backend="torch")
    logits = frame_score(*inputs, cu_frames, residual=residual, backend=target.backend)
    assert worst(logits, truth) <= 2 * worst(by_torch, truth) + 1e-6
    # Sixteen-bit input costs nothing once it is there: the error stays that of float32 sums.
    assert worst(logits, truth) <= 4e-6


@pytest.mark.parametrize(
    ("dtype", "residual_dtype"),
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float16),
    ],
    ids=str,
)
def test_hidden_and_residual_get_their_gradients_in_their_own_precision(
    dtype, residual_dtype, target
):
    num_rows, cu_frames = layout("uniform", target.device)
    hidden, *weights = make_inputs(num_rows, 64, device=target.device)
    rows = [hidden.to(dtype), torch.randn_like(hidden).to(residual_dtype)]

    def run(backend, rows):
        leaves = [t.detach().clone().requires_grad_() for t in rows]
        logits = frame_score(leaves[0], *weights, cu_frames, residual=leaves[1], backend=backend)
        # As small as gradients are where nobody scales the loss: below what float16 holds.
        return torch.autograd.grad(logits.sum() * 1e-7, leaves)

    truths = run("torch", [t.double() for t in rows])
    for got, given, truth in zip(run(target.backend, rows), rows, truths, strict=True):
        assert got.dtype == given.dtype
        tolerance = {torch.float32: 1e-12, torch.bfloat16: 1e-9, torch.float16: 6e-8}[given.dtype]
        torch.testing.assert_close(got.double(), truth, atol=tolerance, rtol=0)


def gradients(score, inputs, residual, grad_logits):
    leaves = [t.detach().clone().requires_grad_() for t in (*inputs, residual)]
    logits = score(*leaves)
    return torch.autograd.grad(logits, leaves, grad_logits.to(logits.dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "no-frames"])
def test_gradients_err_at_most_twice_as_much_as_torch(name, dtype, target):
    num_rows, cu_frames = layout(name, target.device)
    inputs = make_inputs(num_rows, 96, dtype, target.device)
    residual = torch.randn_like(inputs[0])
    spans = spans_of(cu_frames)
    grad_logits = torch.randn(len(spans), device=target.device)

    def score(backend):
        return lambda h, n, w, b, r: frame_score(h, n, w, b, cu_frames, residual=r, backend=backend)

    truths = gradients(
        lambda h, n, w, b, r: literal_logits(h, n, w, b, spans, r),
        [t.double() for t in inputs], residual.double(), grad_logits,
    )  # fmt: skip
    by_torch = gradients(score("torch"), inputs, residual, grad_logits)
    got = gradients(score(target.backend), inputs, residual, grad_logits)
    # Triton's interpreter stores bfloat16 by truncation: off by up to a unit in the last place.
    truncation = 2**-7 if target.tiny and dtype == torch.bfloat16 else 0
    for values, reference_values, truth in zip(got, by_torch, truths, strict=True):
        assert values.dtype == dtype
        allowed = 2 * worst(reference_values, truth) + truncation * truth.abs().max().item()
        assert worst(values, truth) <= allowed + 1e-6


@pytest.mark.parametrize("eps", [EPS, 0.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["packed-with-text-between", "ragged-with-text-around"])
def test_text_rows_get_a_gradient_of_zero_even_where_they_are_not_finite(name, bad, eps, target):
    num_rows, cu_frames = layout(name, target.device)
    hidden, *weights = make_inputs(num_rows, 64, device=target.device)
    in_frame = torch.zeros(num_rows, dtype=torch.bool, device=target.device)
    for start, end in spans_of(cu_frames):
        in_frame[start:end] = True
    residual = torch.randn_like(hidden)
    hidden[~in_frame] = bad
    residual[~in_frame] = bad
    leaves = [t.requires_grad_() for t in (hidden, *weights)]
    residual.requires_grad_()
    logits = frame_score(*leaves, cu_frames, residual=residual, eps=eps, backend=target.backend)
    logits.sum().backward()
    for rows in (hidden, residual):
        assert (rows.grad[~in_frame] == 0).all()
        assert (rows.grad[in_frame] != 0).any(1).all()
    assert all(t.grad.isfinite().all() for t in (*leaves, residual))


def test_rows_beyond_every_frame_change_nothing_where_all_frames_are_empty(target):
    hidden, *weights = make_inputs(4, 64, device=target.device)
    leaves = [t.requires_grad_() for t in (hidden * torch.nan, *weights)]
    cu_frames = torch.tensor([2, 2, 2], device=target.device)
    logits = frame_score(*leaves, cu_frames, backend=target.backend)
    assert torch.equal(logits, weights[2].expand(2))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(logits.sum(), leaves))


@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_autocast_lowers_nothing(lowered, target):
    num_rows, cu_frames = layout("uniform", target.device)
    inputs = make_inputs(num_rows, 256, device=target.device)
    labels = torch.arange(6, device=target.device) % 2

    def run():
        leaves = [t.clone().requires_grad_() for t in inputs]
        loss, logits = frame_score_loss(*leaves, cu_frames, labels, backend=target.backend)
        return loss, logits, *torch.autograd.grad(loss, leaves)

    plain = run()
    with torch.autocast(target.device, dtype=lowered):
        under_autocast = run()
    assert all(torch.equal(a, b) for a, b in zip(under_autocast, plain, strict=True))


def test_no_frames_give_gradients_of_zero(target):
    num_rows, cu_frames = layout("no-frames", target.device)
    leaves = [t.requires_grad_() for t in make_inputs(num_rows, 64, device=target.device)]
    logits = frame_score(*leaves, cu_frames, backend=target.backend)
    logits.sum().backward()
    assert all((t.grad == 0).all() for t in leaves)


def test_rows_may_be_strided_and_weights_may_come_as_a_linear_layers(target):
    num_rows, cu_frames = layout("uniform", target.device)
    hidden, norm_weight, head_weight, head_bias = make_inputs(num_rows, 64, device=target.device)
    plain = frame_score(
        hidden, norm_weight, head_weight, head_bias, cu_frames, backend=target.backend
    )
    wide = torch.full((num_rows, 100), torch.nan, device=target.device)
    wide[:, 20:84] = hidden
    tall = hidden.t().contiguous().t()
    for view in (wide[:, 20:84], tall):
        assert not view.is_contiguous()
        strided = frame_score(
            view, norm_weight, head_weight[None], head_bias[None], cu_frames,
            backend=target.backend,
        )  # fmt: skip
        torch.testing.assert_close(strided, plain)


def test_two_runs_give_the_same_bits(target):
    num_rows, cu_frames = layout("ragged-with-text-around", target.device)
    inputs = make_inputs(num_rows, 80, torch.bfloat16, target.device)
    labels = torch.arange(len(spans_of(cu_frames)), device=target.device) % 2

    def run():
        leaves = [t.clone().requires_grad_() for t in inputs]
        loss, logits = frame_score_loss(*leaves, cu_frames, labels, backend=target.backend)
        return [loss, logits, *torch.autograd.grad(loss, leaves)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "name", ["uniform", "packed-with-text-between", "one-long-frame-among-short"]
)
def test_the_fused_loss_and_its_gradients_are_those_of_score_then_loss(name, per_sample, target):
    num_rows, cu_frames = layout(name, target.device)
    inputs = make_inputs(num_rows, 80, device=target.device)
    num_frames = len(spans_of(cu_frames))
    labels = (torch.arange(num_frames, device=target.device) % 3 == 0).to(torch.int64)
    cu_samples = None
    if per_sample:
        cu_samples = torch.tensor([0, 2, 2, num_frames], device=target.device, dtype=torch.int32)
    grad_logits = torch.randn(num_frames, device=target.device)

    def run(fused, backend, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        if fused:
            loss, logits = frame_score_loss(
                *leaves, cu_frames, labels, cu_samples=cu_samples, backend=backend
            )
        else:
            logits = frame_score(*leaves, cu_frames, backend=backend)
            loss = frame_bce_loss(logits, labels, cu_samples=cu_samples)
        loss_grads = torch.autograd.grad(loss, leaves, retain_graph=True)
        both = loss * 3 + (logits * grad_logits).sum()
        return loss, logits, *loss_grads, *torch.autograd.grad(both, leaves)

    truths = run(fused=False, backend="torch", dtype=torch.float64)
    got = run(fused=True, backend=target.backend, dtype=torch.float32)
    for values, truth in zip(got, truths, strict=True):
        torch.testing.assert_close(values.double(), truth, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("max_pos_weight", [5.0, 2.0])
def test_a_rare_frame_weighs_no_more_than_the_cap_in_the_fused_loss(max_pos_weight, target):
    # One relevant frame among 100 would weigh sqrt(99), nearly 10.
    inputs = make_inputs(100, 16, device=target.device)
    cu_frames = torch.arange(101, device=target.device)
    labels = (torch.arange(100, device=target.device) == 42).float()
    loss, logits = frame_score_loss(
        *inputs, cu_frames, labels, max_pos_weight=max_pos_weight, backend=target.backend
    )
    truth = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.double(),
        labels.double(),
        pos_weight=torch.tensor(max_pos_weight, dtype=torch.float64, device=target.device),
    )
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)


def test_an_all_positive_batch_learns_through_the_fused_loss(target):
    num_rows, cu_frames = layout("uniform", target.device)
    leaves = [t.requires_grad_() for t in make_inputs(num_rows, 64, device=target.device)]
    labels = torch.ones(6, dtype=torch.bool, device=target.device)
    loss, _ = frame_score_loss(*leaves, cu_frames, labels, backend=target.backend)
    loss.backward()
    assert leaves[3].grad.item() < 0
    muted, _ = frame_score_loss(*leaves, cu_frames, labels, min_negatives=0, backend=target.backend)
    assert muted.item() == 0.0


def test_a_view_that_is_not_aligned_gives_the_same_bits(triton_target):
    num_rows, cu_frames = layout("uniform", triton_target.device)
    inputs = make_inputs(num_rows, 64, torch.bfloat16, triton_target.device)

    def run(hidden):
        leaves = [t.detach().requires_grad_() for t in (hidden, *inputs[1:])]
        logits = frame_score(*leaves, cu_frames, backend=triton_target.backend)
        return logits, *torch.autograd.grad(logits.sum(), leaves)

    aligned = run(inputs[0])
    room = torch.zeros(num_rows * 64 + 1, dtype=torch.bfloat16, device=triton_target.device)
    shifted = room[1:].view(num_rows, 64).copy_(inputs[0])
    for got, expected in zip(run(shifted), aligned, strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(run(inputs[0]), aligned, strict=True):
        assert torch.equal(got, expected)


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


def test_auto_is_torch_on_a_cpu():
    assert resolve_backend("auto", "cpu") == "torch"
    assert resolve_backend("torch", "cpu") == "torch"


@pytest.mark.gpu
def test_auto_is_triton_on_a_gpu_unless_the_input_is_float64():
    assert resolve_backend("auto", "cuda") == "triton"
    num_rows, cu_frames = layout("uniform", "cuda")
    doubles = make_inputs(num_rows, 64, torch.float64, "cuda")
    assert frame_score(*doubles, cu_frames).dtype == torch.float64
    with pytest.raises(ValueError, match="backend 'triton' does not take float64"):
        frame_score(*doubles, cu_frames, backend="triton")


def test_triton_asked_for_by_name_never_becomes_torch(monkeypatch):
    monkeypatch.setattr("itg_kernels.ops._INTERPRETED", False)
    num_rows, cu_frames = layout("uniform", "cpu")
    with pytest.raises(ValueError, match="backend 'triton' cannot run on cpu: it needs a GPU"):
        frame_score(*make_inputs(num_rows, 64), cu_frames, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("num_rows", "cu_frames"),
    [
        (12950, boundaries([25] * 512)),
        (15700, boundaries([121] * 128, first=7)),
        (16500, boundaries([256] * 64)),
        (16384, boundaries([729] * 22, first=100)),
        (9000, boundaries([1] * 9000)),
        (9000, [0, 9000]),
        (32768, [[i * 100, i * 100 + i % 90] for i in range(327)]),
    ],
    ids=["512x25", "128x121", "64x256", "22x729", "9000x1", "1x9000", "packed-ragged"],
)
def test_real_sizes_err_at_most_twice_as_much_as_torch(num_rows, cu_frames):
    cu_frames = torch.tensor(cu_frames, dtype=torch.int32, device="cuda")
    inputs = make_inputs(num_rows, 3584, torch.bfloat16, "cuda")
    num_frames = len(spans_of(cu_frames))
    labels = (torch.arange(num_frames, device="cuda") % 7 == 0).float()

    def run(backend, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        loss, logits = frame_score_loss(*leaves, cu_frames, labels, backend=backend)
        return loss, logits, *torch.autograd.grad(loss, leaves)

    truths = run("torch", torch.float64)
    by_torch = run("torch", torch.bfloat16)
    got = run("triton", torch.bfloat16)
    for values, reference_values, truth in zip(got, by_torch, truths, strict=True):
        assert worst(values, truth) <= 2 * worst(reference_values, truth) + 1e-6


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31_are_right():
    stride, width, num_rows = 2**27, 256, 24
    wide = torch.empty_strided((num_rows, width), (stride, 1), dtype=torch.bfloat16, device="cuda")
    inputs = make_inputs(num_rows, width, torch.bfloat16, "cuda")
    wide.copy_(inputs[0])
    cu_frames = torch.tensor([3, 9, 24], device="cuda")
    far = [t.requires_grad_() for t in (wide, *inputs[1:])]
    near = [t.detach().clone().requires_grad_() for t in inputs]
    logits = frame_score(*far, cu_frames, backend="triton")
    expected = frame_score(*near, cu_frames, backend="triton")
    assert torch.equal(logits, expected)
    grads = torch.autograd.grad(logits.sum(), far)
    for got, wanted in zip(grads, torch.autograd.grad(expected.sum(), near), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_a_cuda_graph_of_scoring_and_selection_replays_on_new_values():
    cu_frames = torch.tensor(boundaries([25] * 40, first=3), device="cuda")
    inputs = make_inputs(1010, 512, torch.bfloat16, "cuda")

    def select():
        logits = frame_score(*inputs, cu_frames)
        return logits, *topk_chronological(logits, 8)

    select()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = select()
    inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    for got, expected in zip(captured, select(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    cu_frames = torch.tensor(boundaries([25] * 40), device="cuda", dtype=torch.int32)
    inputs = [t.requires_grad_() for t in make_inputs(1000, 512, torch.bfloat16, "cuda")]
    labels = torch.arange(40, device="cuda") % 2
    cu_samples = torch.tensor([0, 10, 40], device="cuda")
    for warm in (True, False):
        torch.cuda.set_sync_debug_mode("default" if warm else "error")
        try:
            loss, logits = frame_score_loss(*inputs, cu_frames, labels, cu_samples=cu_samples)
            loss.backward()
            topk_chronological(logits, 8)
            topk_chronological(logits, 8, min_gap=3)
        finally:
            torch.cuda.set_sync_debug_mode("default")


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
