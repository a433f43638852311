"""The paper's numbers, to stand beside ours: one data file, `published.json`, with its source.

The paper's MLVU is overall accuracy over a set that lmms-eval does not have under one name; its
number is shown beside `mlvu_dev`, which is nearest. Its Video-MME is given by duration only.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_NEAREST = {"mlvu_dev": "mlvu"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What was published about one host model, one task and one group of it."""

    host: str
    uniform: float
    """Accuracy in 0..1 with evenly spaced frames."""
    grounded: float
    """Accuracy in 0..1 with selected frames."""
    num_frames: int
    source: str


def find_published(checkpoint: str, task: str, group: str | None = None) -> Published | None:
    """Finds what was published for a host model; None if nothing was.

    Args:
        checkpoint: Name or path of the host's weights, such as `Qwen/Qwen3-VL-8B-Instruct`. Its
            last part must be one of those published, but for `-Instruct`: others that have such
            a name in theirs, thinking or pruned ones, are other models.
        task: Name of the task.
        group: Duration group; None for the whole task.
    """
    data = _load()
    name = _NEAREST.get(task, task) + (f"/{group}" if group else "")
    weights = checkpoint.lower().rstrip("/").rsplit("/", 1)[-1].removesuffix("-instruct")
    for host in data["hosts"]:
        numbers = host["accuracy_percent"].get(name)
        if numbers and weights in host["checkpoints"]:
            uniform, grounded = (percent / 100 for percent in numbers)
            return Published(
                host=host["host"],
                uniform=uniform,
                grounded=grounded,
                num_frames=data["num_frames"],
                source=f"{data['source']}, {data['url']}",
            )
    return None


@cache
def _load() -> dict[str, Any]:
    return json.loads(files("itg_eval.benchmark").joinpath("published.json").read_bytes())
