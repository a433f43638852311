"""Where a checkpoint lies: in a directory, on the Hugging Face hub, or in this package.

`itg-tiny` comes along, so that the first command works without a download. It knows drawn shapes
and nothing of real videos: `tiny/README.md` is its card, and itg-train's recipe of that name makes
it anew.
"""

import re
from pathlib import Path

from itg_model.errors import CheckpointError

TINY = "itg-tiny"
"""Its name, wherever a checkpoint is asked for; a directory of that name goes before it."""

_HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"

TINY_FOLDER = Path(__file__).parent / "tiny"

TINY_WARNING = (
    "itg-tiny scores: it knows the drawn shapes of scripted videos and nothing of real ones; for "
    "those pass --model with a trained checkpoint, such as nvidia/VideoITG-8B"
)


def check_name(path_or_hub_id: str | Path) -> None:
    """Finds out whether a checkpoint may be there, without asking the hub for it.

    Raises:
        CheckpointError: It can be nowhere, or the directory holds none.
    """
    path, name = Path(path_or_hub_id), str(path_or_hub_id)
    if path.is_dir():
        _check_is_checkpoint(path)
    elif path.exists() or not (name == TINY or re.fullmatch(_HUB_ID, name)):
        what = "is no directory" if path.exists() else "no such directory"
        raise CheckpointError(
            f"{name}: {what}; name a checkpoint's, {TINY}, or owner/name on the hub"
        )


def _check_is_checkpoint(directory: Path) -> None:
    inside = directory / "checkpoint"
    if (inside / "config.json").is_file():
        raise CheckpointError(f"{directory}: is a run's folder; its checkpoint is {inside}")
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory}: holds no config.json; a checkpoint is a directory with config.json, "
            "*.safetensors and a tokenizer"
        )


def find_checkpoint(path_or_hub_id: str | Path) -> Path:
    """The directory itself, the model that comes along, or the hub's copy once it is here.

    Raises:
        CheckpointError: There is none, or it can't be fetched.
    """
    check_name(path_or_hub_id)
    path, name = Path(path_or_hub_id), str(path_or_hub_id)
    if path.is_dir():
        return path
    if name == TINY:
        return TINY_FOLDER
    # imported here: a local checkpoint needs no hub
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such directory, and not to be had from the hub: {reason}"
        ) from None
