"""Which parameters learn and how fast, by name and nothing else; and low-rank updates, in and out.

The reference finds its head by a substring that its projector's names contain as well, so that both
get the head's learning rate. Here a parameter belongs to the part that its name begins with; the
recipe says what the reference's rates come to.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from itg_train.config import OptimConfig, TrainableConfig

Part = Literal["tower", "projector", "embeddings", "trunk", "head"]

_PARTS: tuple[tuple[str, Part], ...] = (
    ("tower.", "tower"),
    ("projector.", "projector"),
    ("trunk.embed_tokens.", "embeddings"),
    ("trunk.", "trunk"),
    ("head.", "head"),
    ("lm_head.", "head"),
)

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def part_of(name: str) -> Part:
    """The part of the network that a parameter of a module with its loss belongs to."""
    plain = name.removeprefix("model.")
    return next(part for prefix, part in _PARTS if plain.startswith(prefix))


def choose_trainable(module: nn.Module, trainable: TrainableConfig) -> None:
    """Freezes what shall not learn, and adds low-rank updates where they shall.

    Args:
        module: The grounder or the Video LLM with its loss: the network is its `model`.
        trainable: What learns.
    """
    if trainable.trunk == "lora":
        lora = LoraConfig(
            r=trainable.lora_rank,
            lora_alpha=trainable.lora_alpha,
            target_modules=list(LORA_TARGETS),
        )
        inject_adapter_in_model(lora, cast(Any, module.model).trunk)
    learns = {
        "tower": trainable.tower,
        "projector": trainable.projector,
        "embeddings": trainable.embeddings,
        "trunk": trainable.trunk == "full",
        "head": trainable.head,
    }
    has_words = "lm_head.weight" in dict(module.named_parameters())
    for name, parameter in module.named_parameters():
        is_update = ".lora_" in name
        idle = has_words and name.startswith("model.head.")
        parameter.requires_grad_(is_update or (learns[part_of(name)] and not idle))


def group_parameters(
    module: nn.Module, optim: OptimConfig, max_group_numel: int = 0
) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into optimizer groups.

    Head and projector have learning rates of their own; biases, norms and other vectors have no
    weight decay.

    Args:
        module: Frozen where it shall not learn.
        optim: The rates.
        max_group_numel: Splits larger groups; see `EngineConfig`.
    """
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), parameter.ndim >= 2), []).append(parameter)
    lrs = {"head": optim.head_lr or optim.lr, "projector": optim.projector_lr or optim.lr}
    return [
        {
            "params": some,
            "lr": lrs.get(part, optim.lr),
            "weight_decay": optim.weight_decay if decays else 0.0,
            "name": f"{part}-{'matrices' if decays else 'vectors'}",
        }
        for (part, decays), parameters in groups.items()
        for some in _split(parameters, max_group_numel or math.inf)
    ]


def _split(parameters: list[nn.Parameter], max_numel: float) -> Iterator[list[nn.Parameter]]:
    some: list[nn.Parameter] = []
    for parameter in parameters:
        if some and sum(p.numel() for p in some) + parameter.numel() > max_numel:
            yield some
            some = []
        some.append(parameter)
    yield some


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The network's weights under their plain names, low-rank updates added to what they update."""
    merged = {
        f"{name}.weight": _merge(layer)
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }
    return {name.removeprefix("model."): tensor for name, tensor in (state | merged).items()}


def _merge(layer: LoraLayer) -> Tensor:
    base = cast(nn.Linear, layer.get_base_layer()).weight
    (adapter,) = layer.active_adapters
    delta = cast(Any, layer).get_delta_weight(adapter)
    return (base.float() + delta.float()).to(base.dtype)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters learn, and how many there are."""
    sizes = [(p.numel() if p.requires_grad else 0, p.numel()) for p in model.parameters()]
    return sum(learning for learning, _ in sizes), sum(total for _, total in sizes)
