"""A host model's own arguments: which are secret, and which its answers depend on.

Secrets are written nowhere and stand on no command line: lmms-eval is handed them in its
environment, and tells its log and its results of the other arguments only.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, cast

from itg_data.errors import ItgError

from itg_eval.scorers import WEIGHED, fingerprint

SECRETS_VARIABLE = "ITG_SECRET_ARGS"
"""Environment variable with a JSON object of arguments that are added to the host's."""

HIDDEN = "***"
"""Stands for a secret in whatever is written."""

_SECRET = r"(?:\w*_)?(?:api_?key|token|secret|password)"
_WEIGHTS = re.compile(r"pretrained|model|peft|lora|adapter")
_HOST_WEIGHED = (*WEIGHED, ".bin", ".pt", ".pth", ".gguf", ".jinja")
_UNSEEN = ("batch_size", "max_batch_size", "device")
"""Arguments that change how answers are come by, but not the answers."""


def is_secret(name: str) -> bool:
    """Whether an argument of that name is nobody else's business."""
    return re.fullmatch(_SECRET, name, re.IGNORECASE) is not None


def redact(args: str) -> str:
    """Arguments as `key=value,...` with secrets hidden."""
    return re.sub(rf"(?i)(^|,)({_SECRET})=[^,]*", rf"\1\2={HIDDEN}", args)


def split_secrets(args: str) -> tuple[str, dict[str, str]]:
    """Parts arguments given as `key=value,...` into the others and the secret ones."""
    pairs = [arg.partition("=") for arg in filter(None, args.split(","))]
    others = ",".join("".join(pair) for pair in pairs if not is_secret(pair[0]))
    return others, {name: value for name, _, value in pairs if is_secret(name)}


def read_secrets() -> dict[str, Any]:
    """The secret arguments in this process's environment.

    Raises:
        ItgError: They are no JSON object.
    """
    try:
        secrets = json.loads(os.environ.get(SECRETS_VARIABLE) or "{}")
    except ValueError:
        secrets = None
    if not isinstance(secrets, dict):
        raise ItgError(f"{SECRETS_VARIABLE} must be a JSON object of the host's arguments")
    return cast("dict[str, Any]", secrets)


def fingerprint_weights(arguments: Mapping[str, Any]) -> str | None:
    """Tells weights in local folders from others that lay there before.

    Returns:
        None where no argument that names weights is a folder here.
    """
    prints = [
        f"{name}={found}"
        for name, value in sorted(arguments.items())
        if _WEIGHTS.match(name) and (found := fingerprint(str(value), _HOST_WEIGHED)) is not None
    ]
    return ",".join(prints) or None


def identify(arguments: Mapping[str, Any]) -> list[str]:
    """Says all of a host's arguments that its answers depend on, its weights' files included."""
    counted = sorted(
        (name, value)
        for name, value in arguments.items()
        if name not in _UNSEEN and not is_secret(name)
    )
    return [str(counted), str(fingerprint_weights(arguments))]
