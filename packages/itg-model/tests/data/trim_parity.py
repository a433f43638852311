"""Trims the parity reference to what the tests read: `python trim_parity.py WHOLE.safetensors`.

Pixels are kept for one case, where the preprocessing is held against them; the others' follow
from their frames. Masks and token types go too: nothing here is padded.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

KEPT_PIXELS = "single_T5.pixel_values.0"
DROPPED = ("pixel_values", "merged_attention_mask")


def main() -> None:
    whole = load_file(sys.argv[1])
    kept = {k: v for k, v in whole.items() if k == KEPT_PIXELS or k.split(".")[1] not in DROPPED}
    save_file(kept, Path(__file__).parent / "parity" / "reference.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
