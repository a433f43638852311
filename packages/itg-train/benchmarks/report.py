"""Writes REPORT.md from the rows under results/; nobody types a number.

uv run --package itg-train python packages/itg-train/benchmarks/report.py
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]

DEFAULTS = {"attention": "torch"}
"""What rows were measured with that are older than the field."""
KEY = (
    "gpu",
    "case",
    "frames",
    "gpus",
    "questions_per_video",
    "groups_per_step",
    "layers_recomputed",
    "attention",
)
MEANING = {
    "forward-backward": "one question at the largest pooled side, no optimizer",
    "forward-backward-features": "the same, what the frozen tower makes of the video being given",
    "forward-backward-features-new-lengths": "the same, no length of question met before",
    "step": "a whole step by ZeRO-1 with drawn sides, frames decoded in memory",
    "step-features": "the same, what the frozen tower makes of the videos read from disk",
}
REFERENCE = {
    ("forward-backward", 512): "3.23 s",
    ("step", 120): "0.60 samples/s a GPU, one question a GPU and step",
}
"""Of the reference's own code on the same kind of machine, measured before this code existed."""
MIN_LINEAR, MAX_DATA_WAIT = 0.90, 0.03


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A figure to be reached by the best row of those that it is about."""

    what: str
    about: Callable[[Row], bool]
    figure: str
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    def verdict(self, rows: list[Row]) -> str:
        """A line of the table."""
        found = [row for row in rows if self.about(row)]
        bound = f"at least {self.at_least}" if self.at_most is None else f"at most {self.at_most}"
        line = f"| {self.what} | {bound} {self.unit} |"
        if not found:
            return f"{line} - | not measured |"
        if self.at_most is None:
            best = max(found, key=lambda row: row[self.figure])
            is_met = best[self.figure] >= self.at_least
        else:
            best = min(found, key=lambda row: row[self.figure])
            is_met = best[self.figure] <= self.at_most
        measured = f"{best[self.figure]:.3f} at {best['git_sha'][:7]}"
        return f"{line} {measured} | {'met' if is_met else 'missed'} |"


AIMS = [
    Aim(
        what="forward and backward, 512 frames",
        about=lambda row: row["case"] == "forward-backward" and row["frames"] == 512,
        figure="s_per_step",
        unit="s",
        at_most=1.9,
    ),
    Aim(
        what="the same with features",
        about=lambda row: row["case"] == "forward-backward-features" and row["frames"] == 512,
        figure="s_per_step",
        unit="s",
        at_most=1.2,
    ),
    Aim(
        what="step, a question a video, two GPUs",
        about=lambda row: (row["case"], row["gpus"], row["questions_per_video"]) == ("step", 2, 1),
        figure="samples_per_s_per_gpu",
        unit="samples/s a GPU",
        at_least=1.4,
    ),
    Aim(
        what="step, questions grouped or features kept",
        about=lambda row: (
            row["case"] == "step-features"
            or (row["case"] == "step" and row["questions_per_video"] > 1)
        ),
        figure="samples_per_s_per_gpu",
        unit="samples/s a GPU",
        at_least=1.8,
    ),
    Aim(
        what="MFU of a pass, one GPU",
        about=lambda row: row["case"].startswith("forward-backward") and row["gpus"] == 1,
        figure="mfu",
        unit="of 989 TFLOP/s",
        at_least=0.40,
    ),
    Aim(
        what="MFU of a step, one GPU",
        about=lambda row: row["case"].startswith("step") and row["gpus"] == 1,
        figure="mfu",
        unit="of 989 TFLOP/s",
        at_least=0.40,
    ),
    Aim(
        what="MFU of a step, four GPUs",
        about=lambda row: row["case"].startswith("step") and row["gpus"] == 4,
        figure="mfu",
        unit="of 989 TFLOP/s",
        at_least=0.45,
    ),
]


def main(argv: list[str] | None = None) -> int:
    """Writes REPORT.md beside the results, or into the folder given."""
    arguments = sys.argv[1:] if argv is None else argv
    folder = Path(arguments[0]) if arguments else HERE
    rows = read_rows(folder / "results")
    if not rows:
        print("No rows under results/.", file=sys.stderr)
        return 1
    (folder / "REPORT.md").write_text(report(newest(rows)))
    return 0


def read_rows(folder: Path) -> list[Row]:
    """All that were ever kept."""
    return [
        DEFAULTS | json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each measurement, by case and then by size."""
    last: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row["utc"]):
        last[tuple(row[name] for name in KEY)] = row
    return [last[key] for key in sorted(last)]


def report(rows: list[Row]) -> str:
    """REPORT.md as a string."""
    lines = [
        "# How fast the 7B grounder trains",
        "",
        "Generated by `report.py` from `results/*.jsonl`; do not edit. 7B shape, random weights",
        "and frames. MFU counts the model's own operations, three times the trunk's forward pass",
        "and once the frozen tower's, against the card's bfloat16 peak; what is computed again",
        "does not count. The reference takes a step of its optimizer for each question of a GPU,",
        "with flash-attn 2 and all blocks computed again; a step here shares one among several.",
        "*again*: of 28 blocks, those that keep nothing for the backward pass.",
    ]
    for gpu in dict.fromkeys(row["gpu"] for row in rows):
        here = [row for row in rows if row["gpu"] == gpu]
        lines += ["", f"## {gpu}", "", "### Aims", "", *aims(here)]
        for case, meaning in MEANING.items():
            if of_case := [row for row in here if row["case"] == case]:
                lines += ["", f"### {case}: {meaning}", "", *table(of_case)]
        lines += notes(here)
    return "\n".join(lines) + "\n"


def aims(rows: list[Row]) -> list[str]:
    """What was to be reached, and the best that was measured."""
    lines = ["| what | aim | measured | |", "|---|---|---|---|"]
    lines += [aim.verdict(rows) for aim in AIMS]
    wait = max(row["data_wait"] for row in rows if row["case"].startswith("step"))
    said = "met" if wait < MAX_DATA_WAIT else "missed"
    lines.append(
        f"| waiting for data, any step | under {MAX_DATA_WAIT:.0%} | {wait:.2%} | {said} |"
    )
    for num_gpus, share in linear(rows):
        said = "met" if share >= MIN_LINEAR else "missed"
        aim = f"at least {MIN_LINEAR:.0%} of linear"
        lines.append(f"| step, {num_gpus} GPUs against one | {aim} | {share:.1%} | {said} |")
    return lines


def linear(rows: list[Row]) -> Iterable[tuple[int, float]]:
    """Of several GPUs' samples a second, the share of that many times one GPU's.

    Only of rows that differ in nothing else: as many groups a GPU, as many blocks recomputed.
    """

    def settings(row: Row) -> tuple[Any, ...]:
        same = ("case", "frames", "questions_per_video", "layers_recomputed", "attention")
        return *(row[name] for name in same), row["groups_per_step"] / row["gpus"]

    alone = {settings(row): row for row in rows if row["gpus"] == 1}
    for row in rows:
        if row["gpus"] > 1 and (one := alone.get(settings(row))):
            yield row["gpus"], row["samples_per_s_per_gpu"] / one["samples_per_s_per_gpu"]


def table(rows: list[Row]) -> list[str]:
    """One line to each row of a case, the reference's first."""
    setting = "GPUs | frames | questions a video | videos a step | again | attention"
    figures = "tokens a question | s | samples/s a GPU | MFU | peak GiB | commit | day"
    lines = [f"| {setting} | {figures} |", "|---" * 13 + "|"]
    for frames in dict.fromkeys(row["frames"] for row in rows):
        if known := REFERENCE.get((rows[0]["case"], frames)):
            lines.append(f"| | {frames} | the reference: {known} |" + " |" * 10)
    for row in rows:
        is_step = row["case"].startswith("step")
        cells = (
            row["gpus"],
            row["frames"],
            row["questions_per_video"] if is_step else "",
            row["groups_per_step"] if is_step else "",
            row["layers_recomputed"],
            row["attention"],
            f"{row['tokens_per_sample']:.0f}",
            f"{row['s_per_step']:.3f}",
            f"{row['samples_per_s_per_gpu']:.3f}",
            f"{row['mfu']:.1%}",
            "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}",
            row["git_sha"][:7],
            row["utc"][:10],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def notes(rows: list[Row]) -> list[str]:
    """What is to be known of single rows."""
    noted = [row for row in rows if "note" in row]
    said = [
        f"- {row['case']}, {row['gpus']} GPUs, {row['attention']}, at {row['git_sha'][:7]}: "
        f"{row['note']}"
        for row in noted
    ]
    return ["", "### Notes", "", *said] if said else []


if __name__ == "__main__":
    sys.exit(main())
