"""Tower and trunk rebuilt for inference: the same function in fewer kernels and fewer bytes.

What `itg_model.blocks` computes, with these changes, all exact in real arithmetic: the projections
of query, key and value are one matrix product, and so are gate and up; the patches are a matrix
product instead of a convolution; residuals are added inside the product or in the pass that
normalises; the last block of the tower computes only the patches that the pooled grid looks at;
positions turn in float32. What lies between two products is one kernel of `itg_kernels.rows`.
Nothing is compiled for a length, so a new one costs nothing but cuDNN's plan for its attention.

The weights move here from the modules that they come from, which are of no use afterwards.

Shapes: T frames, P patches per frame, C tower width, S tokens of all samples, D trunk width.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from itg_kernels.rows import (
    Rows,
    gelu_rows,
    norm_rows,
    quantise_rows,
    rotate_rows,
    silu_gate_rows,
)
from torch import Tensor, nn
from transformers.activations import ACT2FN

from itg_model.attention import attend, preferring_fast_attention
from itg_model.blocks import Trunk, VisionTower, pool_features, rotary_angles
from itg_model.linear import Fp8Linear, Linear, Stream
from itg_model.pixels import as_pixels

MakeLinear = Callable[..., Linear | Fp8Linear]
_TANH_GELU = "gelu_pytorch_tanh"


class FastTower(nn.Module):
    """A `VisionTower` for inference; takes its weights away.

    Args:
        tower: The tower as loaded.
        fp8: Rounds weights and activations of the blocks to 8 bits.
        take: Takes the tower's blocks away; otherwise both live side by side and share what
            weights they can, and the tower must not change from then on.
    """

    def __init__(self, tower: VisionTower, *, fp8: bool = False, take: bool = True) -> None:
        super().__init__()
        config: Any = tower.config
        self.patch_size = config.patch_size
        self.grid_side = config.image_size // config.patch_size
        patches = tower.embeddings.patch_embedding
        weight = patches.weight.detach().flatten(1)
        # rows of whole 16 bytes, which matrix units need; the columns added meet zeros
        weight = F.pad(weight, (0, -weight.shape[1] % 8))
        self.patch_embedding = Linear(weight, patches.bias)
        self.position_embedding = tower.embeddings.position_embedding
        make = Fp8Linear if fp8 else Linear
        rebuild = partial(_TowerBlock, config=config, make=make)
        self._kept: dict[tuple[int, torch.device], Tensor | None] = {}
        layers = tower.encoder.layers if take else list(tower.encoder.layers)
        self.blocks = nn.ModuleList(_taken(layers, rebuild))

    @torch.no_grad()
    def forward(self, pixels: Tensor, side: int) -> Tensor:
        """Turns frames into features after the last block, pooled.

        Args:
            pixels: [T, 3, H, W] float, or [T, H, W, 3] uint8.
            side: Of the pooled grid.

        Returns:
            [T, side * side, C].
        """
        num_frames = len(pixels)
        kept = self._patches_read(side, pixels.device)
        stream: Stream = self._embed(as_pixels(pixels)), None
        with preferring_fast_attention(pixels.device):
            for i, block in enumerate(self.blocks, start=1):
                last = i == len(self.blocks)
                stream = block(stream, num_frames, kept if last else None)
        hidden = _settle(stream)
        hidden = hidden.view(num_frames, -1, hidden.shape[-1])
        if kept is not None:
            # the others have no weight in the pooled grid
            whole = hidden.new_zeros(num_frames, self.grid_side**2, hidden.shape[-1])
            hidden = whole.index_copy_(1, kept, hidden)
        return pool_features(hidden, side)

    def _patches_read(self, side: int, device: torch.device) -> Tensor | None:
        if (side, device) not in self._kept:
            kept = _patches_read(self.grid_side, side)
            self._kept[side, device] = None if kept is None else kept.to(device)
        return self._kept[side, device]

    def _embed(self, pixels: Tensor) -> Tensor:
        """[T, 3, H, W] -> [T * P, C]: the convolution, whose windows do not overlap."""
        patch, grid = self.patch_size, self.grid_side
        weight = self.patch_embedding.weight
        cut = pixels[..., : grid * patch, : grid * patch].to(weight.dtype)
        windows = cut.unflatten(-1, (grid, patch)).unflatten(-3, (grid, patch))
        windows = windows.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels) * grid * grid, -1)
        windows = F.pad(windows, (0, weight.shape[1] - windows.shape[1]))
        embedded = self.patch_embedding(windows).view(len(pixels), grid * grid, -1)
        return (embedded + self.position_embedding.weight).flatten(0, 1)


class _TowerBlock(nn.Module):
    def __init__(self, layer: Any, config: Any, make: MakeLinear) -> None:
        super().__init__()
        attn, mlp = layer.self_attn, layer.mlp
        self.num_heads = config.num_attention_heads
        self.eps = config.layer_norm_eps
        self.act_name = config.hidden_act
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2
        self.qkv = make(*_stacked(attn.q_proj, attn.k_proj, attn.v_proj))
        self.out = make(*_stacked(attn.out_proj))
        self.fc1 = make(*_stacked(mlp.fc1))
        self.fc2 = make(*_stacked(mlp.fc2))

    def forward(self, stream: Stream, num_frames: int, kept: Tensor | None) -> Stream:
        """One block; with `kept`, only these patches of each frame come out."""
        hidden, x = _normed(stream, self.norm1, self.eps, self.qkv, self.out)
        if kept is None:
            mixed = attend(*self._heads(self.qkv(x), num_frames))
        else:
            hidden = _keep(hidden, num_frames, kept)
            mixed = self._attend_kept(x, num_frames, kept)
        stream = self.out.add_to(hidden, _rounded(mixed.flatten(0, 1), self.out))
        hidden, x = _normed(stream, self.norm2, self.eps, self.fc1, self.fc2)
        return self.fc2.add_to(hidden, self._activated(x))

    def _heads(self, projected: Tensor, num_frames: int) -> Iterable[Tensor]:
        """[T * P, n * C] -> n tensors [T, heads, P, d]."""
        width = self.norm1.weight.shape[0]
        heads = (self.num_heads, width // self.num_heads)
        split = projected.view(num_frames, -1, projected.shape[-1] // width, *heads)
        return (x.transpose(1, 2) for x in split.unbind(2))

    def _attend_kept(self, x: Rows, num_frames: int, kept: Tensor) -> Tensor:
        """Attention of the kept patches to all."""
        query_layer, rest = self.qkv.split(self.norm1.weight.shape[0])
        if isinstance(x, Tensor):
            few: Rows = _keep(x, num_frames, kept)
        else:
            few = _keep(x[0], num_frames, kept), _keep(x[1], num_frames, kept)
        (query,) = self._heads(query_layer(few), num_frames)
        key, value = self._heads(rest(x), num_frames)
        return attend(query, key, value)

    def _activated(self, x: Rows) -> Rows:
        if self.act_name != _TANH_GELU:
            return _rounded(ACT2FN[self.act_name](self.fc1(x)), self.fc2)
        if isinstance(self.fc1, Linear) and isinstance(x, Tensor):
            return self.fc1.tanh_gelu(x)
        return gelu_rows(self.fc1(x), fp8=self.fc2.fp8)


class FastTrunk(nn.Module):
    """A `Trunk` for inference; takes its weights away.

    Args:
        trunk: The trunk as loaded.
        fp8: Rounds weights and activations of the blocks to 8 bits.
    """

    def __init__(self, trunk: Trunk, *, fp8: bool = False) -> None:
        super().__init__()
        config: Any = trunk.config
        self.embed_tokens = trunk.embed_tokens
        self.norm = trunk.norm
        self.rope_theta = trunk.rope_theta
        self.head_dim = config.hidden_size // config.num_attention_heads
        make = Fp8Linear if fp8 else Linear
        rebuild = partial(_TrunkBlock, config=config, make=make)
        self.blocks = nn.ModuleList(_taken(trunk.layers, rebuild))

    @torch.no_grad()
    def forward(self, embeds_SD: Tensor, sample_lengths: Sequence[int]) -> Tensor:
        """[S, D] embeddings of samples end to end -> [S, D] before the final norm."""
        device, lengths = embeds_SD.device, list(sample_lengths)
        angles = rotary_angles(lengths, self.head_dim, self.rope_theta, device)
        turn = angles.cos(), angles.sin()
        # a copy, because the blocks add to it in place
        stream: Stream = embeds_SD.clone(), None
        with preferring_fast_attention(device):
            for block in self.blocks:
                stream = block(stream, turn, lengths)
        return _settle(stream)


class _TrunkBlock(nn.Module):
    def __init__(self, layer: Any, config: Any, make: MakeLinear) -> None:
        super().__init__()
        attn, mlp = layer.self_attn, layer.mlp
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.act_name = config.hidden_act
        self.norm1, self.norm2 = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = make(*_stacked(attn.q_proj, attn.k_proj, attn.v_proj))
        self.out = make(*_stacked(attn.o_proj))
        self.gate_up = make(*_stacked(mlp.gate_proj, mlp.up_proj))
        self.down = make(*_stacked(mlp.down_proj))

    def forward(self, stream: Stream, turn: tuple[Tensor, Tensor], lengths: list[int]) -> Stream:
        hidden, x = _normed(stream, self.norm1, self.eps, self.qkv, self.out)
        mixed = self._attend(self.qkv(x), turn, lengths)
        stream = self.out.add_to(hidden, _rounded(mixed, self.out))
        hidden, x = _normed(stream, self.norm2, self.eps, self.gate_up, self.down)
        return self.down.add_to(hidden, self._gated(self.gate_up(x)))

    def _attend(self, qkv: Tensor, turn: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        """[S, (heads + 2 kv heads) * d] -> [S, D]; each sample attends to itself."""
        num_turned = self.num_heads + self.num_kv_heads
        heads_SHd = qkv.view(len(qkv), -1, self.head_dim)
        turned = rotate_rows(heads_SHd[:, :num_turned], *turn)
        query, key = turned.split([self.num_heads, self.num_kv_heads], dim=1)
        parts = (
            x.transpose(0, 1)[None].split(lengths, dim=2)
            for x in (query, key, heads_SHd[:, num_turned:])
        )
        mixed = [attend(*sample)[0] for sample in zip(*parts, strict=True)]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _gated(self, gate_up: Tensor) -> Rows:
        if self.act_name == "silu":
            return silu_gate_rows(gate_up, fp8=self.down.fp8)
        gate, up = gate_up.chunk(2, dim=-1)
        return _rounded(ACT2FN[self.act_name](gate) * up, self.down)


def _normed(
    stream: Stream,
    norm: Any,
    eps: float,
    reader: Linear | Fp8Linear,
    adder: Linear | Fp8Linear,
) -> tuple[Tensor, Rows]:
    """The stream, and its norm for the layer that reads it; `adder` adds to the stream next."""
    hidden, pending = stream
    bias = getattr(norm, "bias", None)
    normed = norm_rows(
        hidden,
        norm.weight,
        bias,
        pending=pending,
        add_after=adder.early_bias,
        eps=eps,
        fp8=reader.fp8,
    )
    return hidden, normed


def _rounded(x: Tensor, reader: Linear | Fp8Linear) -> Rows:
    return quantise_rows(x.contiguous()) if reader.fp8 else x


def _settle(stream: Stream) -> Tensor:
    hidden, pending = stream
    return hidden if pending is None else hidden + pending


def _taken(layers: Any, rebuild: Callable[[Any], nn.Module]) -> Iterable[nn.Module]:
    """Rebuilds the layers one by one, letting go of each: memory holds one layer twice."""
    while len(layers):
        layer = layers[0]
        del layers[0]
        yield rebuild(layer)


def _stacked(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of layers that share their input, as of one layer."""
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    if len(layers) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None


def _keep(rows: Tensor, num_frames: int, kept: Tensor) -> Tensor:
    """[T * P, n] -> [T * kept, n]."""
    return rows.view(num_frames, -1, rows.shape[-1]).index_select(1, kept).flatten(0, 1)


def _patches_read(grid_side: int, side: int) -> Tensor | None:
    """Which patches have weight in the pooled grid, ascending; None where it is all of them."""
    # resizing the unit vectors along one axis gives the weights of each place on it
    units = torch.eye(grid_side)[None]
    weights = F.interpolate(units, size=side, mode="linear", align_corners=False)[0]
    places = weights.any(dim=1).nonzero().flatten()
    if len(places) == grid_side:
        return None
    return (places[:, None] * grid_side + places).flatten()
