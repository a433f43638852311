"""A picture of one selection: scores over time, the relevant stretches, the chosen frames."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from itg_data.records import FrameSelection, TimeSpan
from matplotlib.figure import Figure


def draw_selection(
    path: Path,
    selection: FrameSelection,
    frames: npt.NDArray[np.uint8],
    spans: Sequence[TimeSpan] = (),
) -> None:
    """Writes the picture as PNG.

    Args:
        path: Where to.
        selection: What to draw.
        frames: [k, H, W, 3] uint8, the chosen frames in time order.
        spans: Stretches known to be relevant, shaded.
    """
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    thumbnails, curve = figure.subfigures(2, 1, height_ratios=(1, 1.7))
    for axes, frame, chosen in zip(
        np.atleast_1d(thumbnails.subplots(1, max(1, len(frames)))),
        frames,
        selection.selected,
        strict=True,
    ):
        axes.imshow(frame)
        axes.set_title(f"{chosen.time_s:.1f} s", fontsize=8)
        axes.set_axis_off()
    axes = curve.subplots()
    for i, span in enumerate(spans):
        label = "holds the answer" if i == 0 else None
        axes.axvspan(span.start_s, span.end_s, color="#f2c14e", alpha=0.35, lw=0, label=label)
    axes.plot(selection.times_s, selection.scores, color="#33658a", lw=1.4, label="score")
    axes.plot(
        [frame.time_s for frame in selection.selected],
        [frame.score for frame in selection.selected],
        "o",
        color="#d1495b",
        ms=6,
        label="chosen",
    )
    # a dollar sign would start a formula
    axes.set_title(selection.question.replace("$", r"\$"), fontsize=10)
    axes.set_xlabel("time in s")
    axes.set_ylabel("score")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path)
