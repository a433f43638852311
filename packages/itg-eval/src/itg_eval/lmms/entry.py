# pyright: standard
# lmms_eval is not typed
"""What lmms-eval finds of this package through its entry point group `lmms_eval.models`.

lmms-eval calls `manifests` while it is being imported, in every program that uses it, so this file
imports next to nothing. It adds two ids, `itg` and `itg_reader`. Only when the variable
`ITG_SHADOW` names a built-in id is that one replaced, so that `--model qwen3_vl` keeps the prompts
that tasks hold ready for it and yet is shown our frames.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

SHADOW_VARIABLE = "ITG_SHADOW"


def manifests() -> "list[ModelManifest]":
    """Names our models to lmms-eval.

    Raises:
        ValueError: `ITG_SHADOW` names no built-in model; lmms-eval logs it and goes on without us.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    found = [
        ModelManifest(
            "itg",
            simple_class_path=f"{__package__}.wrapper.SimpleITG",
            chat_class_path=f"{__package__}.wrapper.ITG",
        ),
        ModelManifest(
            "itg_reader",
            simple_class_path=f"{__package__}.reader.SimpleReader",
            chat_class_path=f"{__package__}.reader.Reader",
        ),
    ]
    shadowed = os.environ.get(SHADOW_VARIABLE)
    if shadowed:
        builtin = {manifest.model_id: manifest for manifest in builtin_manifests()}
        if shadowed not in builtin:
            raise ValueError(
                f"{SHADOW_VARIABLE} must be a model id of lmms-eval, got {shadowed!r:.80}"
            )
        classes = builtin[shadowed]
        wrapper = f"{__package__}.wrapper"
        found.append(
            ModelManifest(
                shadowed,
                simple_class_path=classes.simple_class_path and f"{wrapper}.SimpleShadow",
                chat_class_path=classes.chat_class_path and f"{wrapper}.Shadow",
            )
        )
    return found


def builtin_manifests() -> "list[ModelManifest]":
    """What lmms-eval itself has, whatever was put before it."""
    from lmms_eval import models

    return models._build_builtin_manifests()


def is_builtin(model_id: str) -> bool:
    """Whether lmms-eval itself has a model of that id."""
    return any(manifest.model_id == model_id for manifest in builtin_manifests())


def is_simple_model(model_id: str) -> bool:
    """Whether lmms-eval asks a model, its own or a plugin's, as a simple one: it has no chat class.

    Raises:
        ValueError: There is no model of that id; the message lists those there are.
    """
    from lmms_eval.models import MODEL_REGISTRY_V2

    return MODEL_REGISTRY_V2.resolve(model_id).model_type == "simple"
