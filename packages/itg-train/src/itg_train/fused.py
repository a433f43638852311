"""The trunk as it trains: the function of `itg_model.blocks.Trunk` in fewer passes over memory.

Its blocks hold the modules of transformers' blocks under their own names, so that checkpoints,
optimizer groups and low-rank updates find them; what lies between two matrix products is one
kernel of `itg_kernels.training`, and attention that of `itg_train.attention`.

Shapes: S tokens of all samples, D trunk width, d width of a head.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from itg_kernels.training import rms_norm, rotate, silu_gate
from itg_model.blocks import Trunk, rotary_angles
from itg_model.model import FrameGroundingModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN

from itg_train.attention import Attend, PackedAttention
from itg_train.config import EngineConfig
from itg_train.recompute import Forgetting

Turn = tuple[Tensor, Tensor]
"""Cosines and sines [S, d / 2] of the rotary positions."""


def fuse_trunk(model: FrameGroundingModel, config: EngineConfig) -> None:
    """Replaces a model's trunk by one that trains fast; names and values of parameters stay.

    Args:
        model: The grounder, as built.
        config: Says what blocks compute again in the backward pass.
    """
    trunk = model.stacks("trained")[1]
    num_blocks = len(trunk.layers)
    num_whole = config.layers_recomputed if config.recompute == "elementwise" else num_blocks
    whole = [config.recompute != "nothing" and i < num_whole for i in range(num_blocks)]
    fused: Any = FusedTrunk(trunk, whole, forgets=config.recompute == "elementwise")
    model.trunk = fused


class FusedTrunk(nn.Module):
    """A `Trunk` for training.

    Args:
        trunk: Whose modules it holds.
        whole: Per block whether the backward pass computes all of it again.
        forgets: Whether the other blocks do so with what is cheap.
    """

    def __init__(self, trunk: Trunk, whole: Sequence[bool], *, forgets: bool) -> None:
        super().__init__()
        self.config: Any = trunk.config
        self.rope_theta = trunk.rope_theta
        self.embed_tokens = trunk.embed_tokens
        self.layers = nn.ModuleList(_Block(layer, trunk.config) for layer in trunk.layers)
        self.norm = trunk.norm
        self._whole = list(whole)
        self._forgets = forgets
        self.head_dim = self.config.hidden_size // self.config.num_attention_heads
        self._attention = PackedAttention(self.head_dim)

    def forward(
        self, embeds_SD: Tensor, sample_lengths: Sequence[int], is_causal: bool = False
    ) -> Tensor:
        """As `Trunk.forward`."""
        lengths, device = list(sample_lengths), embeds_SD.device
        angles = rotary_angles(lengths, self.head_dim, self.rope_theta, device)
        turn = angles.cos(), angles.sin()
        attend = self._attention.choose(lengths, embeds_SD, is_causal=is_causal)
        hidden: Any = embeds_SD
        for block, whole in zip(self.layers, self._whole, strict=True):
            if whole and torch.is_grad_enabled():
                again = partial(block, turn=turn, attend=attend, forgets=False)
                # nothing in a block is drawn, so there is no generator to restore
                hidden = checkpoint(again, hidden, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = block(hidden, turn=turn, attend=attend, forgets=self._forgets)
        return hidden


class _Block(nn.Module):
    """A decoder layer of Qwen2."""

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__()
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        self.input_layernorm = _Norm(layer.input_layernorm)
        self.post_attention_layernorm = _Norm(layer.post_attention_layernorm)
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.act_name = config.hidden_act

    def forward(self, hidden_SD: Tensor, *, turn: Turn, attend: Attend, forgets: bool) -> Tensor:
        with Forgetting() if forgets and torch.is_grad_enabled() else _Keeping() as memory:
            x = memory.forget(self.input_layernorm, hidden_SD)
            hidden_SD = hidden_SD + self.self_attn.o_proj(self._attend(x, turn, attend))
            x = memory.forget(self.post_attention_layernorm, hidden_SD)
            gate, up = self.mlp.gate_proj(x), self.mlp.up_proj(x)
            return hidden_SD + self.mlp.down_proj(memory.forget(self._gated, gate, up))

    def _attend(self, x_SD: Tensor, turn: Turn, attend: Attend) -> Tensor:
        attn, heads = self.self_attn, (-1, self.head_dim)
        query, key, value = (
            project(x_SD).unflatten(-1, heads)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        return attend(rotate(query, *turn), rotate(key, *turn), value)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.act_name == "silu":
            return silu_gate(gate, up)
        return ACT2FN[self.act_name](gate) * up


class _Keeping:
    """In the place of `Forgetting`: what is wanted is kept."""

    def __enter__(self) -> "_Keeping":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def forget(self, function: Any, *args: Tensor) -> Tensor:
        return function(*args)


class _Norm(nn.Module):
    """An RMS norm, called as a module because stage 3 gathers parameters where modules are."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)
