"""How right the pipeline's labels are: precision and recall by question type and noise level.

Runs `itg-data annotate`'s own pipeline on scripted videos against the server that knows the script
(real HTTP, `itg_data.scripted_vlm`), at several levels of noise, and holds its labels against the
script. One row of `results/labels.jsonl` for each case and question type; `LABELS.md` is generated
from the rows of the last run.

    uv run --no-sync python packages/itg-data/benchmarks/labels.py [--videos 12]

Each second of a video is judged by the frame that is shown at it. Recall counts all questions that
were offered, those that the pipeline dropped included; precision those that it kept. A stretch is
recalled if one of its seconds is a label: where the diversity rule thins frames that look alike,
that is what it promises.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from unittest import mock

from itg_data.annotate.config import RunConfig
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.records import Annotation, QaPair
from itg_data.annotate.requests import Sampler
from itg_data.annotate.run import run
from itg_data.jsonl import read_jsonl
from itg_data.records import GroundingRecord, QuestionType, label_frames
from itg_data.scripted_vlm.cli import write_set
from itg_data.scripted_vlm.protocol import MODEL
from itg_data.scripted_vlm.server import Behaviour, ScriptedServer
from itg_data.scripted_vlm.sight import ScriptedSet
from itg_data.synthetic import SyntheticConfig

FOLDER = Path(__file__).parent
ROWS, TABLE = FOLDER / "results" / "labels.jsonl", FOLDER / "LABELS.md"
NOISE_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2)
FAULTY = Behaviour(refusals=0.03, malformed=0.1, rate_limits=0.1, server_errors=0.05, drops=0.05)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run of the pipeline."""

    name: str
    behaviour: Behaviour
    features: str = "none"
    checked: bool = True
    """Whether the last stage asks about each frame; if not, all that it was given are labels."""
    settled: bool = True
    """Whether retrieval may outvote a question's type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How right the labels of one type's questions are."""

    num_questions: int
    num_kept: int
    num_typed_right: int
    """Among those kept."""
    num_true: int
    """Seconds that hold an answer, of all questions."""
    num_labelled: int
    num_right: int
    num_stretches: int
    num_stretches_found: int

    @property
    def precision(self) -> float:
        """Share of the labelled seconds that hold the answer."""
        return self.num_right / max(1, self.num_labelled)

    @property
    def recall(self) -> float:
        """Share of the seconds that hold the answer that are labelled."""
        return self.num_right / max(1, self.num_true)

    @property
    def stretch_recall(self) -> float:
        """Share of the stretches that hold the answer that have a label."""
        return self.num_stretches_found / max(1, self.num_stretches)


def list_cases() -> Iterator[Case]:
    """The cases of the table: every level of noise with and without what guards against it."""
    for noise in NOISE_LEVELS:
        behaviour = Behaviour(noise=noise)
        name = f"noise {noise:g}"
        yield Case(name=f"{name}, neither", behaviour=behaviour, checked=False, settled=False)
        yield Case(name=f"{name}, checked", behaviour=behaviour, settled=False)
        yield Case(name=name, behaviour=behaviour)
    yield Case(name="faulty line", behaviour=FAULTY)
    yield Case(name="noise 0, thinned", behaviour=Behaviour(), features="thumbnails")
    yield Case(name="noise 0.1, thinned", behaviour=Behaviour(noise=0.1), features="thumbnails")


def annotate(case: Case, root: Path, scripted: ScriptedSet, out: Path) -> None:
    """Runs the pipeline on a scripted set; a second run in the same folder reuses its answers."""
    with ExitStack() as stack:
        base_url = stack.enter_context(ScriptedServer(scripted, case.behaviour).running())
        if not case.checked:
            stack.enter_context(mock.patch("itg_data.annotate.pipeline.check_frames", _pass_all))
        if not case.settled:
            stack.enter_context(mock.patch("itg_data.annotate.pipeline.settle_type", _as_it_is))
        run(
            RunConfig(
                videos=root / "videos",
                qa=root / "qa.jsonl",
                out=out,
                annotator=ServerConfig(base_url=base_url, api_key="none"),
                sampler=Sampler(model=MODEL),
                features=case.features,
            )
        )


async def _pass_all(desk: Any, video: Any, pair: QaPair, seconds: Sequence[int], bill: Any):
    return [True] * len(seconds)


def _as_it_is(question_type: QuestionType, clips: Any, num_clips: int) -> QuestionType:
    return question_type


def measure(root: Path, out: Path) -> dict[QuestionType, Score]:
    """Holds a run's annotations against the script, by the type that the script gave a question."""
    made = {a.id: a for a in read_jsonl(out / "annotations.jsonl", Annotation)}
    truth = list(read_jsonl(root / "records.jsonl", GroundingRecord))
    return {
        question_type: _score([r for r in truth if r.question_type == question_type], made)
        for question_type in get_args(QuestionType)
    }


def _score(truth: Sequence[GroundingRecord], made: dict[str, Annotation]) -> Score:
    kept = [record for record in truth if record.id in made]
    num_true = num_labelled = num_right = num_stretches = num_found = 0
    for record in truth:
        annotation = made.get(record.id)
        labels = set(annotation.label_s) if annotation else set[int]()
        length_s = int(record.spans[-1].end_s) + 1
        stretches = [
            {s for s in range(length_s) if label_frames([s], [span])[0]} for span in record.spans
        ]
        true = set[int]().union(*stretches)
        num_true += len(true)
        num_labelled += len(labels)
        num_right += len(labels & true)
        num_stretches += len(stretches)
        num_found += sum(bool(stretch & labels) for stretch in stretches)
    return Score(
        num_questions=len(truth),
        num_kept=len(kept),
        num_typed_right=sum(made[r.id].question_type == r.question_type for r in kept),
        num_true=num_true,
        num_labelled=num_labelled,
        num_right=num_right,
        num_stretches=num_stretches,
        num_stretches_found=num_found,
    )


def to_rows(case: Case, scores: dict[QuestionType, Score], about: dict[str, Any]) -> list[Any]:
    """One row for each question type."""
    return [
        {
            "case": case.name,
            "noise": case.behaviour.noise,
            "checked": case.checked,
            "settled": case.settled,
            "features": case.features,
            "question_type": question_type,
            **asdict(score),
            "precision": round(score.precision, 4),
            "recall": round(score.recall, 4),
            "stretch_recall": round(score.stretch_recall, 4),
            **about,
        }
        for question_type, score in scores.items()
    ]


def write_report(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the table of one run."""
    first = rows[0]
    lines = [
        "# How right the labels are",
        "",
        "Generated by `labels.py` from `results/labels.jsonl`: scripted videos, annotated with the "
        "server that knows the script, which errs in each judgement with the probability `noise`. "
        f"{first['num_videos']} videos, commit {first['git_sha']}, {first['utc']}.",
        "",
        "A cell holds precision / recall of the labelled seconds. Two things guard against "
        "errors: the last stage, which asks of each frame whether it shows the answer, and "
        "retrieval, which may outvote the type of a question. *Neither* and *checked* are without "
        "them, or with the first alone; the other rows are the pipeline as it is. *Thinned*: "
        "frames that look alike are left out by the diversity rule, on thumbnails, and the recall "
        "of stretches is in brackets, for that is what the rule promises. *Faulty line*: "
        f"{FAULTY.refusals:.0%} refusals, {FAULTY.malformed:.0%} malformed answers, "
        f"{FAULTY.rate_limits:.0%} rate limits, {FAULTY.server_errors:.0%} errors of the server, "
        f"{FAULTY.drops:.0%} dropped connections. Recall counts dropped questions as missed.",
        "",
        "| case | semantic | motion | semantic and motion | no clue | kept |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["case"] for row in rows):
        of_case = {row["question_type"]: row for row in rows if row["case"] == name}
        cells = [_cell(of_case[question_type]) for question_type in get_args(QuestionType)]
        kept = sum(row["num_kept"] for row in of_case.values())
        offered = sum(row["num_questions"] for row in of_case.values())
        lines.append(f"| {name} | {' | '.join(cells)} | {kept} of {offered} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    text = f"{row['precision']:.3f} / {row['recall']:.3f}"
    return text if row["features"] == "none" else f"{text} ({row['stretch_recall']:.3f})"


def main() -> None:
    """Measures all cases and writes rows and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=12, help="scripted videos, half held out")
    arguments = parser.parse_args()
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    about = {
        "num_videos": arguments.videos,
        "git_sha": subprocess.run(command, capture_output=True, text=True).stdout.strip(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "set"
        half = arguments.videos // 2
        write_set(root, SyntheticConfig(num_train=arguments.videos - half, num_heldout=half))
        scripted = ScriptedSet(root)
        for case in list_cases():
            # cases that differ after retrieval only share their answers
            out = Path(scratch) / f"noise-{case.behaviour.noise}-{case.behaviour.refusals}"
            annotate(case, root, scripted, out)
            of_case = to_rows(case, measure(root, out), about)
            rows += of_case
            cells = ", ".join(f"{row['question_type']} {_cell(row)}" for row in of_case)
            print(f"{case.name}: {cells}", flush=True)
    with ROWS.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    TABLE.write_text(write_report(rows))


if __name__ == "__main__":
    main()
