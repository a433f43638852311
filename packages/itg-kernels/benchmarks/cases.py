"""What is measured: shapes met in real use, and who competes on them.

Shapes: S rows of hidden states, D = 3584 (the 7B model), F frames; B rows of T scores, k picks. A
competitor is a function of the same inputs with the same meaning; where its package is missing it
is reported as absent.
"""

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from itg_kernels import frame_score, frame_score_loss, topk_chronological
from torch import Tensor

WIDTH = 3584
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ScoreCase:
    """Frames over rows: `tokens` each where uniform, else the spans of a packed batch."""

    name: str
    num_rows: int
    num_frames: int
    tokens: int | None = None
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def shape(self) -> str:
        """As rows name it."""
        return f"{self.num_rows}x{WIDTH}/F{self.num_frames}"

    def cu_frames(self, device: str) -> Tensor:
        """Boundaries where frames follow one another, else spans."""
        if self.tokens is None:
            return torch.tensor(self.spans, dtype=torch.int32, device=device)
        steps = torch.arange(self.num_frames + 1, dtype=torch.int32, device=device)
        return steps * self.tokens


@dataclass(frozen=True, kw_only=True)
class TopkCase:
    """A batch of score rows and how many frames to take of each."""

    num_rows: int
    num_frames: int
    k: int

    @property
    def shape(self) -> str:
        """As rows name it."""
        return f"{self.num_rows}x{self.num_frames}/k{self.k}"


def _uniform(num_frames: int, tokens: int) -> ScoreCase:
    return ScoreCase(
        name=f"T{num_frames}", num_rows=num_frames * tokens, num_frames=num_frames, tokens=tokens
    )


def _packed(num_rows: int) -> ScoreCase:
    """Training samples of 30 to 180 frames, pooled sides drawn at random, questions between."""
    rng = random.Random(0)
    spans: list[tuple[int, int]] = []
    row = 0
    while True:
        frames, tokens = rng.randint(30, 180), rng.randint(1, 11) ** 2
        if row + frames * tokens + 60 > num_rows:
            break
        for _ in range(frames):
            spans.append((row, row + tokens))
            row += tokens
        row += 60
    return ScoreCase(name="packed", num_rows=num_rows, num_frames=len(spans), spans=tuple(spans))


SCORE_CASES = [
    _uniform(512, 25),
    _uniform(64, 256),
    _uniform(128, 121),
    _uniform(256, 64),
    _uniform(1024, 16),
    _packed(32768),
]
TOPK_CASES = [
    TopkCase(num_rows=1, num_frames=512, k=32),
    TopkCase(num_rows=256, num_frames=4096, k=64),
    *(
        TopkCase(num_rows=num_rows, num_frames=num_frames, k=k)
        for num_rows in (1, 3, 64, 2700)
        for num_frames in (64, 512, 1024, 4096)
        for k in (8, 32, 128)
        if k <= num_frames and (num_rows, num_frames, k) != (1, 512, 32)
    ),
]

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""hidden, norm weight, head weight [1, D], head bias [1], cu_frames"""

Make = Callable[[], Callable[..., Any]]
"""Makes a provider; may fail, and the failure is reported in its rows' place."""


def score_inputs(case: ScoreCase, device: str, dtype: torch.dtype) -> Inputs:
    """Random hidden states and weights of a trained model's sizes."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.float32, generator=generator)

    return (
        (normal(case.num_rows, WIDTH) * 3).to(dtype),
        (1 + normal(WIDTH) * 0.2).to(dtype),
        (normal(1, WIDTH) * WIDTH**-0.5).to(dtype),
        normal(1).to(dtype),
        case.cu_frames(device),
    )


def _frame_means(rows: Tensor, case: ScoreCase, cu_frames: Tensor) -> Tensor:
    if case.tokens is not None:
        return rows.view(case.num_frames, case.tokens, *rows.shape[1:]).mean(1)
    offsets = cu_frames.reshape(-1).long()
    return torch.segment_reduce(rows, "mean", offsets=offsets, axis=0)[::2]


def _literal(case: ScoreCase, norm: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The network's own order: a normalised copy of the rows, means of it, the linear head."""

    def score(hidden, norm_weight, head_weight, head_bias, cu_frames):
        means = _frame_means(norm(hidden, norm_weight), case, cu_frames)
        return torch.nn.functional.linear(means, head_weight, head_bias)[:, 0]

    return score


def _rms_norm(hidden: Tensor, norm_weight: Tensor) -> Tensor:
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return norm_weight * normed.to(hidden.dtype)


def _rewritten(case: ScoreCase) -> Callable[..., Tensor]:
    """The algebra of the kernel, for torch.compile to make what it can of it."""

    def score(hidden, norm_weight, head_weight, head_bias, cu_frames):
        u = norm_weight.float() * head_weight[0].float()
        wide = hidden.float()
        rows = (wide * u).sum(-1) * torch.rsqrt(wide.square().mean(-1) + EPS)
        return _frame_means(rows, case, cu_frames) + head_bias.float()

    return score


def _liger(case: ScoreCase) -> Callable[..., Tensor]:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def norm(hidden, weight):
        # Not in place: the benchmark's inputs are read again.
        return LigerRMSNormFunction.apply(hidden, weight, EPS, 0.0, "llama", False)

    return _literal(case, norm)


COMPILED_CASES = ("T512", "T64", "packed")
"""torch.compile takes seconds a shape: it competes on these."""


def score_providers(case: ScoreCase) -> dict[str, Make]:
    """Who scores frames."""
    return {
        "itg-triton": lambda: lambda *inputs: frame_score(*inputs, eps=EPS, backend="triton"),
        "torch-compile-rewritten": lambda: _compiled(_rewritten(case)),
        "torch-compile-literal": lambda: _compiled(_literal(case, _rms_norm)),
        "torch-eager": lambda: _literal(case, _rms_norm),
        "itg-torch": lambda: lambda *inputs: frame_score(*inputs, eps=EPS, backend="torch"),
        "liger": lambda: _liger(case),
    }


def loss_providers(case: ScoreCase, labels: Tensor) -> dict[str, Make]:
    """Who computes the weighted loss from hidden states."""

    def with_loss(make_score: Make):
        def make():
            score = make_score()

            def loss(*inputs):
                positives = labels.sum()
                ratio = (labels.numel() - positives).clamp(min=1) / positives.clamp(min=1)
                return torch.nn.functional.binary_cross_entropy_with_logits(
                    score(*inputs).float(), labels, pos_weight=ratio.sqrt().clamp(max=5.0)
                )

            return loss

        return make

    def fused(backend):
        return lambda: (
            lambda *inputs: frame_score_loss(*inputs, labels, eps=EPS, backend=backend)[0]
        )

    return {
        "itg-triton": fused("triton"),
        "torch-compile-rewritten": lambda: _compiled(with_loss(lambda: _rewritten(case))()),
        "torch-compile-literal": lambda: _compiled(with_loss(lambda: _literal(case, _rms_norm))()),
        "torch-eager": with_loss(lambda: _literal(case, _rms_norm)),
        "liger": with_loss(lambda: _liger(case)),
    }


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def topk_providers(k: int) -> dict[str, Make]:
    """Who picks frames; only itg's promise an order among ties."""

    def torch_topk(scores: Tensor) -> Tensor:
        return scores.topk(k, dim=1).indices.sort(dim=1).values

    def flashinfer():
        module = importlib.import_module("flashinfer")
        return lambda scores: module.top_k(scores, k, deterministic=True)[1].sort(dim=1).values

    return {
        "itg-triton": lambda: lambda scores: topk_chronological(scores, k, backend="triton"),
        "torch-topk-sort": lambda: torch_topk,
        "torch-compile": lambda: _compiled(torch_topk),
        "itg-torch": lambda: lambda scores: topk_chronological(scores, k, backend="torch"),
        "flashinfer-deterministic": flashinfer,
    }
