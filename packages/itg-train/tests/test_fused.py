"""The trunk that trains against the obvious one, whose parameters it has."""

import copy
import dataclasses
import sys

import pytest
import torch
from itg_model.model import FrameGroundingModel
from itg_train import attention
from itg_train.attention import LONG, PackedAttention, preferred
from itg_train.config import EngineConfig, TrainableConfig
from itg_train.fused import fuse_trunk
from itg_train.loader import Pass
from itg_train.loss import GroundingLoss
from itg_train.parameters import choose_trainable
from itg_train.recompute import Forgetting
from itg_train.rundir import RunError
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LENGTHS = [5, 1, 9]


@pytest.fixture
def config(tiny_model_config):
    text = dataclasses.replace(
        tiny_model_config.text, num_hidden_layers=2, hidden_size=32, num_attention_heads=4
    )
    return dataclasses.replace(tiny_model_config, text=text)


def build(config, device="cpu", dtype=torch.float32):
    torch.manual_seed(0)
    model = FrameGroundingModel(config).to(device, dtype).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def step(trunk, x, is_causal=False, lengths=LENGTHS):
    """Outputs, and the gradients of the input and of every parameter, for the same pull."""
    trunk.zero_grad()
    x = x.detach().requires_grad_()
    out = trunk(x, lengths, is_causal=is_causal)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(pull.to(out.device, out.dtype))
    named = {n: p.grad.clone() for n, p in trunk.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad} | named


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("recompute", ["nothing", "elementwise", "everything"])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_it_is_the_obvious_trunk_under_the_same_names(config, recompute, is_causal, activation):
    text = dataclasses.replace(config.text, hidden_act=activation)
    model = build(dataclasses.replace(config, text=text))
    names = list(model.state_dict())
    x = torch.randn(sum(LENGTHS), 32)
    wanted = step(model.trunk, x, is_causal)
    fuse_trunk(model, EngineConfig(recompute=recompute))
    assert list(model.state_dict()) == names
    found = step(model.trunk, x, is_causal)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [([5, 9, 5, 3, 9, 5], [(1, 3), (3, 5), (2, 9)]), ([4, 4, 6], [(2, 4), (1, 6)])],
    ids=["mixed", "in order"],
)
def test_samples_of_one_length_share_a_call_of_attention(config, monkeypatch, lengths, batches):
    model = build(config)
    x = torch.randn(sum(lengths), 32)
    wanted = step(model.trunk, x, lengths=lengths)
    fuse_trunk(model, EngineConfig())
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []

    def watch(query, *args, **kwargs):
        calls.append((len(query), query.shape[2]))
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    found = step(model.trunk, x, lengths=lengths)
    assert calls == batches * 2
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("what", "layers"), [("elementwise", 0), ("elementwise", 1), ("everything", 0)]
)
def test_recomputation_changes_memory_and_nothing_else(config, what, layers):
    kept, results = [], []
    for engine in (EngineConfig(), EngineConfig(recompute=what, layers_recomputed=layers)):
        model = build(config)
        fuse_trunk(model, engine)
        x = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(2))
        kept.append(count_kept(model.trunk, x))
        results.append(step(model.trunk, x))
    assert kept[1] < kept[0]
    for name, tensor in results[0].items():
        assert torch.equal(results[1][name], tensor), name


class Made(TorchDispatchMode):
    """Watches the memory of every tensor that is made within."""

    def __init__(self):
        super().__init__()
        self._storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self._storages[StorageWeakRef(storage)] = storage.nbytes()
        return made

    def num_bytes_alive(self):
        return sum(size for storage, size in self._storages.items() if not storage.expired())


def count_kept(trunk, x):
    """Bytes that live on after a forward pass for the sake of its backward pass."""
    x = x.detach().requires_grad_()
    with Made() as made:
        out = trunk(x, LENGTHS)
    num_bytes = made.num_bytes_alive()
    # only now may its graph go
    del out
    assert made.num_bytes_alive() < num_bytes
    return num_bytes


def test_what_is_forgotten_is_made_once_for_all_who_want_it():
    made = []

    def double(x):
        made.append(1)
        return x * 2

    x, weight = torch.randn(3, 4), torch.randn(4, 4, requires_grad=True)
    other = torch.randn(4, 4, requires_grad=True)
    with Forgetting() as memory:
        y = memory.forget(double, x)
        total = (y @ weight).sum() + (y.view(3, 4) @ other).sum()
    assert len(made) == 1
    total.backward()
    assert len(made) == 2
    for parameter in (weight, other):
        torch.testing.assert_close(parameter.grad, (x * 2).T @ torch.ones(3, 4))


def test_low_rank_updates_learn_within_it(config, make_dataset):
    config = dataclasses.replace(config, vision_token_num=48)
    sample = make_dataset().load(0)
    grads = []
    for fused in (False, True):
        module = GroundingLoss(build(config))
        torch.manual_seed(3)
        choose_trainable(module, TrainableConfig(trunk="lora", embeddings=False, lora_rank=2))
        if fused:
            fuse_trunk(module.model, EngineConfig(recompute="elementwise"))
        module(Pass(samples=(sample,))).backward()
        grads.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert any(".lora_" in name for name in grads[0])
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.gpu
# flash attention 4 uses names that its compiler deprecates; torch finds no context in a new
# thread before its first matrix product there
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
@pytest.mark.filterwarnings("ignore:Argument:UserWarning")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kernel", ["flash", "flash 4", "cudnn", "efficient"])
@pytest.mark.parametrize("recompute", ["nothing", "elementwise", "everything"])
def test_on_a_gpu_it_errs_no_more_than_the_obvious_trunk(
    config, recompute, kernel, is_causal, monkeypatch
):
    if kernel == "flash 4" and preferred() != "flash-attn-4":
        pytest.skip("flash-attn-4 is not installed")
    monkeypatch.setattr("itg_train.attention._has_flash4", lambda: kernel == "flash 4")
    text = dataclasses.replace(
        config.text, hidden_size=256, intermediate_size=512, num_key_value_heads=2
    )
    config = dataclasses.replace(config, text=text)
    # cuDNN's are not for short samples
    lengths = [300, 90, 257, 300, 8] if kernel in ("cudnn", "flash 4") else LENGTHS
    x = torch.randn(sum(lengths), 256)
    exact = step(build(config).double().trunk, x.double(), is_causal, lengths)
    dtype = torch.float32 if kernel == "efficient" else torch.bfloat16
    plain = build(config, "cuda", dtype)
    fused = copy.deepcopy(plain)
    fuse_trunk(fused, EngineConfig(recompute=recompute))
    if kernel == "cudnn":
        fused.trunk._attention._planned = {300, 257}
    x = x.to("cuda", dtype)
    found, usual = (step(m.trunk, x, is_causal, lengths) for m in (fused, plain))
    for name, truth in exact.items():
        errors = [
            ((y[name].double().cpu() - truth).norm() / truth.norm()).item() for y in (found, usual)
        ]
        slack = 1e-5 if dtype == torch.float32 else 2e-3
        assert errors[0] <= 1.5 * errors[1] + slack, (name, errors)


def test_samples_that_are_long_get_a_plan_and_no_more_than_fit(monkeypatch):
    packed = PackedAttention(64)
    assert packed._plan([LONG, 300, LONG + 1]) == [True, False, True]
    monkeypatch.setattr("itg_train.attention.MAX_PLANS", 3)
    assert packed._plan([LONG + 2, LONG + 3, LONG]) == [True, False, True]


def test_what_a_length_gets_does_not_depend_on_what_came_before():
    fresh, used = PackedAttention(64), PackedAttention(64)
    for length in (300, 300, 300, 300, 300, LONG + 7):
        used._plan([length])
    assert fresh._plan([300, LONG]) == used._plan([300, LONG])


@pytest.mark.gpu
def test_heads_that_no_packed_kernel_takes_go_the_plain_way():
    like = torch.zeros(1, device="cuda", dtype=torch.bfloat16)
    heads = torch.randn(3, 64, 2, 20, device="cuda")
    assert PackedAttention(20).choose([64], like)(*heads).shape == (64, 40)


class OlderModule:
    """What flash-attn 2 installs by that name, beside a compiler that moved on."""

    @property
    def flash_attn_varlen_func(self):
        raise AttributeError("module 'cutlass.cute.core' has no attribute 'ThrMma'")


@pytest.mark.parametrize("module", [None, OlderModule()], ids=["absent", "of flash-attn 2"])
def test_a_flash_attention_4_that_cannot_be_imported_is_said_in_one_line(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    with pytest.raises(RunError, match="install flash-attn-4 last") as caught:
        attention._load_flash4()
    assert "\n" not in str(caught.value)
