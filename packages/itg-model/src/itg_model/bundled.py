"""`itg-tiny`, the model that comes along: the first command works without a download.

It knows drawn shapes and nothing of real videos. `tiny/README.md` is its card; the recipe itg-tiny
of itg-train makes it anew.
"""

from pathlib import Path

TINY = "itg-tiny"
"""Its name, wherever a checkpoint is asked for; a directory of that name goes before it."""

TINY_FOLDER = Path(__file__).parent / "tiny"

TINY_WARNING = (
    "itg-tiny scores: it knows the drawn shapes of scripted videos and nothing of real ones; for "
    "those pass --model with a trained checkpoint, such as nvidia/VideoITG-8B"
)
