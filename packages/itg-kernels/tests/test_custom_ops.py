"""What PyTorch sees of the kernels: operators, traces, graphs, gradients of gradients."""

import itg_kernels
import pytest
import torch
from itg_kernels import frame_score, frame_score_loss, topk_chronological
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

EPS = 1e-6
UNIFORM = (24, [0, 4, 8, 12, 16, 20, 24])
PACKED = (40, [[1, 4], [4, 9], [15, 16], [16, 16], [20, 37]])


def make_inputs(num_rows, device):
    inputs = (
        torch.randn(num_rows, 64) * 3,
        1 + torch.randn(64) * 0.2,
        torch.randn(64) / 8,
        torch.tensor(-0.3),
    )
    return [t.to(device) for t in inputs]


def test_the_operators_keep_pytorchs_rules_for_operators(triton_target):
    num_rows, cu_frames = PACKED[0], torch.tensor(PACKED[1], device=triton_target.device)
    leaves = [t.requires_grad_() for t in make_inputs(num_rows, triton_target.device)]
    hidden, *weights = leaves
    residual = torch.randn_like(hidden).requires_grad_()
    labels = torch.tensor([1, 0, 0, 1, 0], device=triton_target.device)
    ops = torch.ops.itg_kernels
    torch.library.opcheck(
        ops.frame_score.default, (hidden, residual, *weights, cu_frames, EPS, True)
    )
    mixed = hidden.detach().half().requires_grad_()
    torch.library.opcheck(
        ops.frame_score.default, (mixed, residual, *weights, cu_frames, EPS, True)
    )
    torch.library.opcheck(
        ops.frame_score_loss.default,
        (hidden, None, *weights, cu_frames, labels, None, 5.0, 1, EPS, True),
    )
    scores = torch.randn(2, 9, device=triton_target.device)
    torch.library.opcheck(ops.topk_chronological.default, (scores, 3, None, None))
    torch.library.opcheck(ops.topk_spaced.default, (scores, 3, None, None, None, 2.0))


def spread(tensor):
    """The same values with others between them: an operator's caller need not tidy up."""
    return torch.stack([tensor, torch.full_like(tensor, 7)], -1)[..., 0]


def test_the_operators_read_strided_arguments_as_they_are(triton_target):
    num_rows, cu_frames = UNIFORM[0], torch.tensor(UNIFORM[1], device=triton_target.device)
    inputs = make_inputs(num_rows, triton_target.device)
    labels = torch.tensor([1, 0, 0, 1, 0, 1], device=triton_target.device)
    cu_samples = torch.tensor([0, 2, 6], device=triton_target.device)
    ops = torch.ops.itg_kernels

    def run(lay):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        hidden, norm_weight, head_weight, head_bias = [lay(t) for t in leaves]
        weights = (norm_weight, head_weight, head_bias)
        rest = (lay(cu_frames), lay(labels), lay(cu_samples), 5.0, 1, EPS, True)
        logits = ops.frame_score(hidden, lay(hidden), *weights, lay(cu_frames), EPS, True)[0]
        loss = ops.frame_score_loss(hidden, lay(hidden), *weights, *rest)[0]
        grads = torch.autograd.grad(loss + logits.square().sum(), leaves)
        return logits, loss, *grads

    for got, expected in zip(run(spread), run(lambda t: t), strict=True):
        assert torch.equal(got, expected)
    scores = torch.randn(3, 9, device=triton_target.device)
    lengths = torch.tensor([9, 2, 5], device=triton_target.device)
    for arguments in ((), (None, 2.0)):
        choose = ops.topk_spaced if arguments else ops.topk_chronological
        got = choose(scores, 4, None, spread(lengths), *arguments)
        for values, expected in zip(got, choose(scores, 4, None, lengths, *arguments), strict=True):
            assert torch.equal(values, expected)


def test_scoring_loss_and_selection_compile_into_one_graph(target):
    num_rows, cu_frames = PACKED[0], torch.tensor(PACKED[1], device=target.device)
    leaves = [t.requires_grad_() for t in make_inputs(num_rows, target.device)]
    labels = torch.tensor([1, 0, 0, 1, 0], device=target.device)

    def step(*inputs):
        loss, logits = frame_score_loss(*inputs, cu_frames, labels, backend=target.backend)
        again = frame_score(*inputs, cu_frames, backend=target.backend)
        picks, _ = topk_chronological(again, 2, min_gap=2, backend=target.backend)
        return loss, logits, again, picks

    eager = step(*leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    for got, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, expected)
    for got, expected in zip(
        torch.autograd.grad(compiled[0], leaves), torch.autograd.grad(eager[0], leaves), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_a_tracer_sees_operators_and_not_the_kernels_behind_them(triton_target):
    num_rows, cu_frames = UNIFORM[0], torch.tensor(UNIFORM[1], device=triton_target.device)
    inputs = make_inputs(num_rows, triton_target.device)
    labels = torch.arange(6, device=triton_target.device) % 2

    def step(*inputs):
        loss, _ = frame_score_loss(*inputs, cu_frames, labels, backend=triton_target.backend)
        logits = frame_score(*inputs, cu_frames, backend=triton_target.backend)
        return loss, logits

    traced = make_fx(step)(*inputs)
    targets = [node.target for node in traced.graph.nodes]
    ops = torch.ops.itg_kernels
    assert {ops.frame_score.default, ops.frame_score_loss.default} <= set(targets)
    for got, expected in zip(traced(*inputs), step(*inputs), strict=True):
        assert torch.equal(got, expected)


def test_fake_tensors_need_no_kernel(triton_target):
    with FakeTensorMode():
        inputs = make_inputs(12, triton_target.device)
        leaves = [t.requires_grad_() for t in inputs]
        cu_frames = torch.empty(4, dtype=torch.int32, device=triton_target.device)
        ops = torch.ops.itg_kernels
        logits = ops.frame_score(leaves[0], None, *leaves[1:], cu_frames, EPS, True)[0]
        grads = torch.autograd.grad(logits.sum(), leaves)
    assert logits.shape == (3,)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]


def test_public_functions_take_fake_tensors_whose_values_nobody_can_look_at(target):
    with FakeTensorMode():
        inputs = make_inputs(24, target.device)
        cu_frames = torch.tensor(UNIFORM[1], device=target.device)
        labels = torch.ones(6, device=target.device)
        cu_samples = torch.tensor([0, 2, 6], device=target.device)
        logits = frame_score(*inputs, cu_frames, backend=target.backend)
        loss, again = frame_score_loss(
            *inputs, cu_frames, labels, cu_samples=cu_samples, backend=target.backend
        )
    assert logits.shape == again.shape == (6,)
    assert loss.shape == ()


# PyTorch's own words on vmap over its sum of segments.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("with_loss", [False, True])
def test_transforms_of_torch_func_are_torchs_and_triton_asked_for_by_name_refuses(
    with_loss, target
):
    hidden, *weights = make_inputs(24, target.device)
    cu_frames = torch.tensor(UNIFORM[1], device=target.device)
    labels = torch.arange(6, device=target.device) % 2

    def score(hidden, backend):
        if with_loss:
            return frame_score_loss(hidden, *weights, cu_frames, labels, backend=backend)[0]
        return frame_score(hidden, *weights, cu_frames, backend=backend).sum()

    leaf = hidden.clone().requires_grad_()
    (expected,) = torch.autograd.grad(score(leaf, "torch"), leaf)
    for backend in ("auto", "torch"):
        got = torch.func.grad(score)(hidden, backend)
        torch.testing.assert_close(got, expected)
    batch = torch.stack([hidden, hidden * 2])
    got = torch.func.vmap(lambda h: score(h, "auto"))(batch)
    torch.testing.assert_close(got, torch.stack([score(h, "torch") for h in batch]))
    if target.backend == "triton":
        message = "backend 'triton' does not take the transforms of torch.func; backend 'torch'"
        with pytest.raises(ValueError, match=message):
            torch.func.grad(score)(hidden, "triton")
        with pytest.raises(ValueError, match=message):
            torch.func.vmap(lambda h: score(h, "triton"))(batch)


def test_a_graph_can_be_walked_twice_but_not_differentiated_twice(target):
    num_rows, cu_frames = UNIFORM[0], torch.tensor(UNIFORM[1], device=target.device)
    leaves = [t.requires_grad_() for t in make_inputs(num_rows, target.device)]
    logits = frame_score(*leaves, cu_frames, backend=target.backend)
    first = torch.autograd.grad(logits.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(logits.sum(), leaves, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    refused = {
        "triton": "frame_score has no second derivative, on any backend",
        "torch": "derivative for aten::_segment_reduce_backward is not implemented",
    }
    with pytest.raises(RuntimeError, match=refused[target.backend]):
        second[0].sum().backward()


def test_the_packages_names_are_functions_after_the_kernels_modules_were_imported(triton_target):
    num_rows, cu_frames = UNIFORM[0], torch.tensor(UNIFORM[1], device=triton_target.device)
    inputs = make_inputs(num_rows, triton_target.device)
    labels = torch.arange(6, device=triton_target.device) % 2
    for _ in range(2):
        itg_kernels.frame_score(*inputs, cu_frames, backend=triton_target.backend)
        itg_kernels.frame_score_loss(*inputs, cu_frames, labels, backend=triton_target.backend)
        itg_kernels.topk_chronological(labels.float(), 2, backend=triton_target.backend)
