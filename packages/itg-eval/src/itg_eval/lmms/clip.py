"""Selected frames as a video file, for host models that take a path and sample it themselves.

Each frame stands there three times: then the common ways of taking K frames of a file (evenly with
both ends, rounded, the middles of K parts) all give each of the K selected frames once. Once or
twice is not enough, one frame is lost to rounding. The file is H.264 without loss but for the
colour conversion (4:4:4, quantizer 0) and without prediction between frames, so any decoder reads
any of them exactly. Its times are its own: a host that prints times prints those of the clip.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from itg_eval.lmms.frames import Frames

REPEATS = 3


def write_clip(path: Path, frames: Frames) -> None:
    """Writes the frames of a document as an mp4 of one frame a second, each `REPEATS` times."""
    options = {"preset": "ultrafast", "qp": "0", "g": "1", "bf": "0", "threads": "1"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(1), options=options)  # pyright: ignore[reportUnknownMemberType]
        stream.width, stream.height = frames.images[0].size
        stream.pix_fmt = "yuv444p"
        for image in frames.images:
            picture = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            for _ in range(REPEATS):
                container.mux(stream.encode(picture.reformat(format="yuv444p")))
        container.mux(stream.encode(None))
