"""A set's figures as a table for a terminal."""

from collections.abc import Iterator
from typing import Any

from itg_data.errors import to_one_line
from itg_data.sets.statistics import SetStatistics

_DISTRIBUTIONS = {
    "duration_s": "length of a video (s)",
    "questions_per_video": "questions per video",
    "clips": "chosen clips",
    "frames": "labelled frames",
    "spans": "labelled stretches",
    "labelled_s": "labelled time (s)",
}
_BAR_WIDTH = 24


def write_table(statistics: SetStatistics) -> str:
    """Writes counts first, then shares of the types, then what is distributed."""
    return "\n".join(_lines(statistics))


def _lines(statistics: SetStatistics) -> Iterator[str]:
    figures = statistics.to_json()
    yield f"questions {figures['num_samples']:>12}"
    yield f"videos    {figures['num_videos']:>12}"
    yield f"dropped   {figures['num_dropped']:>12}"
    for reason, count in figures["dropped"].items():
        yield f"  {reason:<20}{count:>8}"
    yield ""
    for name, share in statistics.type_shares.items():
        bar = "#" * round(share * _BAR_WIDTH)
        yield f"{name:<16}{statistics.types[name]:>8} {share:>7.1%}  {bar}".rstrip()
    for name, count in figures["splits"].items():
        yield f"split {to_one_line(name):<10}{count:>8}"
    yield ""
    yield f"{'':<24}" + "".join(f"{n:>9}" for n in ("mean", "min", "p25", "median", "p75", "max"))
    for name, title in _DISTRIBUTIONS.items():
        if (of_name := figures[name]) is not None:
            yield f"{title:<24}" + _row(of_name)
    for name, of_type in figures["labelled_share"].items():
        yield f"{'labelled, ' + name:<24}" + _row(of_type)


def _row(summary: dict[str, Any]) -> str:
    return "".join(f"{value:>9.4g}" for name, value in summary.items() if name != "n")
