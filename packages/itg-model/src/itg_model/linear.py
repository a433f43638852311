"""Linear layers for inference: in the model's own type, or in 8-bit floating point.

Both take what the passes of `itg_kernels.rows` write with their `fp8`, so that 8-bit inputs are
rounded where they are computed, and both can add their result to a residual stream.

8-bit means e4m3 with one scale for each row of the input and each row of the weight, found from
the largest value there, and accumulation in float32 (`torch._scaled_mm`). Values lose all but
three bits behind the point: scores move, which `precision="fp8"` accepts.
"""

import copy

import torch
import torch.nn.functional as F
from itg_kernels.rows import Rows, quantise_rows
from torch import Tensor, nn

Stream = tuple[Tensor, Tensor | None]
"""A residual stream [M, D], and what is still to be added to it."""


class Linear(nn.Module):
    """y = x W^T + b in the type of the weight.

    Args:
        weight: [N, K].
        bias: [N], or None.
    """

    fp8 = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Rows) -> Tensor:
        """[M, K] -> [M, N]."""
        assert isinstance(x, Tensor)
        return F.linear(x, self.weight, self.bias)

    def split(self, at: int) -> tuple["Linear", "Linear"]:
        """The layers that give the result's columns before `at` and from there on."""
        biases = (None, None) if self.bias is None else (self.bias[:at], self.bias[at:])
        return Linear(self.weight[:at], biases[0]), Linear(self.weight[at:], biases[1])

    def tanh_gelu(self, x: Tensor) -> Tensor:
        """The layer, then GELU in its tanh form, in one kernel where there is one."""
        # float32 is for exactness: the fused kernel's tanh is good to half precision only
        if x.is_cuda and x.dtype != torch.float32 and self.bias is not None:
            return torch.ops.aten._addmm_activation(self.bias, x, self.weight.t(), use_gelu=True)
        return F.gelu(self(x), approximate="tanh")

    @property
    def early_bias(self) -> Tensor | None:
        """What `add_to` leaves out: the caller adds it to the stream beforehand."""
        return self.bias

    def add_to(self, residual: Tensor, x: Rows) -> Stream:
        """Adds the result to the residual stream, inside the product."""
        assert isinstance(x, Tensor)
        return residual.addmm_(x, self.weight.t()), None


class Fp8Linear(nn.Module):
    """The same in 8-bit floating point.

    Args:
        weight: [N, K] in bfloat16; both sides multiples of 16.
        bias: [N], or None.

    Raises:
        ValueError: A side of the weight is no multiple of 16.
    """

    fp8 = True

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if any(side % 16 for side in weight.shape):
            raise ValueError(
                f"precision fp8 needs layers whose sides are multiples of 16, got {[*weight.shape]}"
            )
        values, scales = quantise_rows(weight.detach().contiguous())
        self.weight: Tensor
        self.scales: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", values, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Rows) -> Tensor:
        """[M, K] 8-bit values and [M, 1] scales -> [M, N] bfloat16."""
        values, scales = x
        return torch.ops.aten._scaled_mm(
            values,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scales.t(),
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def split(self, at: int) -> tuple["Fp8Linear", "Fp8Linear"]:
        """The layers that give the result's columns before `at` and from there on."""
        parts = copy.copy(self), copy.copy(self)
        for part, columns in zip(parts, (slice(at), slice(at, None)), strict=True):
            part._buffers = {k: None if b is None else b[columns] for k, b in self._buffers.items()}
        return parts

    early_bias = None
    """Nothing: the product adds its bias itself."""

    def add_to(self, residual: Tensor, x: Rows) -> Stream:
        """Leaves the result to whoever reads the stream next: the product cannot add to it."""
        return residual, self(x)


def check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Refuses 8-bit layers where they cannot run.

    Raises:
        ValueError: The device has no 8-bit units, or the model is not in bfloat16.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(
            "precision fp8 needs an NVIDIA GPU of compute capability 8.9 or above (Ada, Hopper), "
            f"but the device is {device}"
        )
    if dtype != torch.bfloat16:
        raise ValueError(f"precision fp8 needs dtype bfloat16, got {dtype}")
