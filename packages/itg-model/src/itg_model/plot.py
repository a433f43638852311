"""A figure of one selection, for papers: the chosen frames above their scores over time.

Needs matplotlib, which nothing else here does: the extra `itg-model[plot]`. To look around in a
selection, `itg_model.report` is better.
"""

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from itg_data.files import replacing
from itg_data.records import FrameSelection, SelectedFrame, TimeSpan
from itg_data.timeline.page import show_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

MAX_PICTURES = 32
"""Frames shown; of more chosen ones, the best. All have their mark on the curve."""

_SUFFIXES = (".png", ".pdf", ".svg")
# the first comes with matplotlib
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Arial Unicode MS")
_WIDTH_INCHES = 10.0
_CURVE_INCHES = 2.65
_TITLE_INCHES = 0.3
_MOST_PER_ROW = 8


def check_plot(path: Path) -> None:
    """Finds out whether a figure can be written there, before anything costly is done for it.

    Raises:
        ValueError: matplotlib is not installed, or the name has no ending of a known format.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"a plot's name must end in {', '.join(_SUFFIXES)}, got {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("a plot needs matplotlib: pip install 'itg-model[plot]'")


def draw_selection(
    path: Path,
    selection: FrameSelection,
    frames: npt.NDArray[np.uint8],
    spans: Sequence[TimeSpan] = (),
) -> None:
    """Writes the figure.

    Args:
        path: Where to; the ending says in which format: .png, .pdf or .svg.
        selection: What to draw.
        frames: [k, H, W, 3] uint8, the chosen frames in time order.
        spans: Stretches known to be relevant, shaded.

    Raises:
        ValueError: See `check_plot`, or `frames` are not as many as were chosen.
        OSError: The file cannot be written.
    """
    check_plot(path)
    if len(frames) != len(selection.selected):
        raise ValueError(
            f"frames must be the {len(selection.selected)} chosen ones, got {len(frames)}"
        )
    from matplotlib.figure import Figure

    shown = [i for i, frame in enumerate(selection.selected) if frame.rank < MAX_PICTURES]
    num_rows = max(1, math.ceil(len(shown) / _MOST_PER_ROW))
    num_columns = max(1, math.ceil(len(shown) / num_rows))
    # a few pictures become no posters
    column_inches = min(_WIDTH_INCHES / num_columns, 2.0)
    row_inches = column_inches * frames.shape[1] / frames.shape[2] + _TITLE_INCHES
    heights = (num_rows * row_inches, _CURVE_INCHES)
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
    above, below = figure.subfigures(  # pyright: ignore[reportGeneralTypeIssues]
        2, 1, height_ratios=heights
    )
    chosen = [selection.selected[i] for i in shown]
    _draw_frames(above, chosen, frames[shown], (num_rows, num_columns))
    _draw_curve(below.subplots(), selection, spans)
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix.lower()[1:], dpi=200)


def _draw_frames(
    figure: "SubFigure",
    selected: Sequence[SelectedFrame],
    frames: npt.NDArray[np.uint8],
    grid: tuple[int, int],
) -> None:
    places = figure.subplots(*grid, squeeze=False).ravel()
    for axes in places:
        axes.set_axis_off()
    for axes, frame, chosen in zip(places, frames, selected, strict=False):
        axes.imshow(frame)
        axes.set_title(f"{chosen.time_s:.1f} s   {chosen.score:.2f}", fontsize=8)


def _draw_curve(axes: "Axes", selection: FrameSelection, spans: Sequence[TimeSpan]) -> None:
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
    title = textwrap.fill(show_controls(selection.question), 110, max_lines=3, placeholder=" ...")
    # a dollar sign would start a formula
    axes.set_title(title, fontsize=10, loc="left", parse_math=False, family=_fonts())
    axes.set_xlabel("time in s", fontsize=8)
    axes.set_ylabel("score", fontsize=8)
    top = min(1.0, 1.15 * max(selection.scores))
    axes.set_ylim(-0.03 * top, 1.03 * top)
    axes.margins(x=0.01)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    # below the curve, where it can hide nothing of it
    axes.legend(loc="upper right", bbox_to_anchor=(1, -0.12), ncols=3, frameon=False, fontsize=8)


def _fonts() -> list[str]:
    """What there is of fonts for the scripts of the world; a glyph comes from the first with it."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [name for name in _FONTS if name in installed]
