"""Frames squashed to the square that a vision tower looks at.

The reference resizes with PIL's bicubic filter, which antialiases and rounds to uint8 in its own
way; torch's filters and libswscale's differ. PIL lets go of the interpreter lock, so threads that
decode can resize as well.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image


def keep(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Leaves a frame as it is."""
    return frame


def squash(frame: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resizes a frame to a square exactly as the reference does; the aspect is not kept.

    Args:
        frame: [H, W, 3] RGB.
        size: Side of the square in pixels.

    Returns:
        [size, size, 3] RGB.
    """
    image = Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
