"""A set's figures as plots: type shares, clips and frames per question, durations."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # pyright: ignore[reportMissingTypeStubs]

from itg_data.files import replacing
from itg_data.sets.statistics import Distribution, SetStatistics

_BLUE, _INK, _LINE = "#2b5f8c", "#1c1b19", "#dedad1"
_MOST_BARS = 30


def draw_plots(statistics: SetStatistics, folder: Path) -> list[Path]:
    """Draws what the set knows; what it does not know is left out.

    Args:
        statistics: What was counted.
        folder: Made if it is not there.

    Returns:
        The PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    durations = Distribution()
    for duration_s in statistics.duration_of.values():
        durations.add(duration_s)
    shares = statistics.type_shares
    drawn = [_save(_bars(list(shares), list(shares.values())), folder / "types.png")]
    for numbers, label, name in (
        (statistics.clips, "chosen clips of a question", "clips.png"),
        (statistics.frames, "labelled frames of a question", "frames.png"),
        (statistics.labelled_s, "labelled seconds of a question", "labelled.png"),
        (durations, "length of a video in seconds", "durations.png"),
    ):
        if numbers.counts:
            drawn.append(_save(_histogram(numbers, label), folder / name))
    return drawn


def _bars(names: list[str], shares: list[float]) -> Figure:
    figure, axes = _empty("share of the questions in %")
    places = list(range(len(names)))
    bars = axes.barh(places, [100 * share for share in shares], color=_BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.1f", padding=4, color=_INK)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="x", color=_LINE)
    return figure


def _histogram(numbers: Distribution, label: str) -> Figure:
    figure, axes = _empty(label)
    values = sorted(numbers.counts)
    whole = all(value == round(value) for value in values)
    num_bins = min(_MOST_BARS, int(values[-1] - values[0]) + 1 if whole else _MOST_BARS)
    low, high = (values[0] - 0.5, values[-1] + 0.5) if whole else (values[0], values[-1] + 1e-6)
    weights = [numbers.counts[value] for value in values]
    axes.hist(values, bins=num_bins, range=(low, high), weights=weights, color=_BLUE, rwidth=0.9)
    axes.set_ylabel("count")
    axes.grid(axis="y", color=_LINE)
    return figure


def _empty(label: str) -> tuple[Figure, Any]:
    # a Figure of its own, not pyplot's: no window system, no state of the process
    figure = Figure(figsize=(6.4, 3.2), dpi=150, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_xlabel(label)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as part:
        figure.savefig(part)  # pyright: ignore[reportUnknownMemberType]
    return path
