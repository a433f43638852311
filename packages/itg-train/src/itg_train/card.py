"""The card of a trained grounder: `README.md` and a curve beside its weights, made and not written.

What it was made from, how, what it reaches on held-out videos, and where it fails; every figure
comes from the run's own files.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from itg_data.files import replacing, write_atomic
from itg_data.records import GroundingRecord
from itg_data.synthetic import SyntheticConfig

from itg_train.config import DataConfig, TrainConfig, to_plain
from itg_train.dataset import VideoDataset
from itg_train.evaluate import QuestionResult, Summary, average, summarize
from itg_train.prepare import Prepared
from itg_train.recipes import to_options
from itg_train.rundir import RunDir

CARD = "README.md"
CURVE = "curve.png"

NUM_WORST = 8
"""Questions shown of those that it does worst on."""

_NUM_SMOOTHED = 50
"""Steps that a point of the curve of the loss is the mean of, at most."""

_PLACES = ("run-dir", "data.cache-dir")
"""Options that say where files lie, not what is made."""

_SHOWN = ("average_precision", "recall@10%")


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What a run's `metrics.jsonl` tells."""

    losses: list[float] = field(default_factory=list[float])
    """A value per step."""
    validations: list[tuple[int, dict[str, float]]] = field(
        default_factory=list[tuple[int, dict[str, float]]]
    )
    """Steps taken, and measures over all held-out questions."""
    num_questions: int = 0
    """Learnt from, again and again those of a video met again."""
    taken_s: float = 0.0


def read_history(path: Path) -> History:
    """Reads `metrics.jsonl`."""
    losses: list[float] = []
    validations: list[tuple[int, dict[str, float]]] = []
    num_questions, taken_s = 0, 0.0
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "validation" in values:
            validations.append((values["step"] + 1, values["validation"]))
        else:
            losses.append(values["loss"])
            num_questions += values["samples"]
            taken_s += values["s_per_step"]
    return History(
        losses=losses, validations=validations, num_questions=num_questions, taken_s=taken_s
    )


def write_card(
    folder: Path,
    recipe: str,
    config: TrainConfig,
    prepared: Prepared,
    run_dir: RunDir,
    results: Sequence[QuestionResult],
) -> None:
    """Writes the card.

    Args:
        folder: The checkpoint's directory.
        recipe: Name of the recipe that was run.
        config: The run.
        prepared: Its data.
        run_dir: Its metrics and its provenance.
        results: How the checkpoint does on the held-out questions.
    """
    history = read_history(run_dir.metrics)
    summary = summarize(results)
    _draw_curve(folder / CURVE, history, summary)
    origin = json.loads(run_dir.provenance.read_text(encoding="utf-8"))
    sections = (
        _introduce(folder, recipe, config.data, prepared),
        _describe_data(config.data, prepared),
        _describe_recipe(recipe, config, history, origin),
        "## Curve\n\n"
        f"![Loss over the steps, and quality on held-out videos]({CURVE})\n\n"
        f"The loss is the mean over up to {_NUM_SMOOTHED} steps.",
        _describe_results(summary),
        *([_describe_failures(results)] if results else []),
    )
    write_atomic(folder / CARD, "\n\n".join(sections) + "\n")


def _introduce(folder: Path, recipe: str, data: DataConfig, prepared: Prepared) -> str:
    size_mb = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    return (
        f"# {recipe}\n\n"
        "Scores the frames of a video against a question. "
        f"{_say_what_it_knows(data)} Weights: {size_mb:.2g} MB, safetensors.\n\n"
        "Asked in training, for example:\n\n"
        + "\n".join(f"- {_one_line(question)}" for question in _examples(prepared.train))
    )


def _say_what_it_knows(data: DataConfig) -> str:
    if data.root is None:
        return (
            "**It knows drawn videos only**: coloured circles, squares, triangles and crosses "
            "that stand still or move, one after another, before grey clutter; and English "
            "questions in the words below. It has never seen a photograph: what it says of a real "
            "video means nothing."
        )
    return f"It knows videos and questions like those of `{(data.annotations or data.root).name}`."


def _examples(dataset: VideoDataset) -> list[str]:
    found: dict[str, str] = {}
    for record in (record for group in dataset.groups for record in group.records):
        if isinstance(record, GroundingRecord):
            # alike but for what they name: one of each kind and beginning is enough
            beginning = " ".join(record.question.split()[:2])
            found.setdefault(f"{record.question_type} {beginning}", record.question)
        if len(found) == 8:
            break
    return list(found.values())


def _describe_data(data: DataConfig, prepared: Prepared) -> str:
    counts = [
        (name, len({group.video for group in split.groups}), _count_questions(split))
        for name, split in (("train", prepared.train), ("held out", prepared.heldout))
    ]
    rows = [f"| {name} | {videos} | {questions} |" for name, videos, questions in counts]
    table = "\n".join(["| split | videos | questions |", "|---|---|---|", *rows])
    if data.root is not None:
        return f"## Data\n\n{table}"
    return (
        f"## Data\n\n{table}\n\n"
        f"Scripted videos (`itg_data.synthetic`), {_describe_set(data.synthetic)}. Held-out videos "
        "show only combinations of colour, shape and motion that training never shows."
    )


def _describe_set(scripted: SyntheticConfig) -> str:
    return (
        f"H.264 files of {scripted.duration_s} s, {scripted.width} x {scripted.height} pixels, "
        f"{scripted.fps} frames a second, difficulty {scripted.difficulty:g} of 1, "
        f"{scripted.num_place_questions} questions about places a video, seed {scripted.seed}"
    )


def _count_questions(dataset: VideoDataset) -> int:
    return sum(len(group.records) for group in dataset.groups)


def _describe_recipe(
    recipe: str, config: TrainConfig, history: History, origin: dict[str, Any]
) -> str:
    vision, text, optim = config.model.vision, config.model.text, config.optim
    packages = ", ".join(
        f"{name} {origin['packages'][name]}" for name in ("itg-train", "torch", "deepspeed")
    )
    commit = (origin["git_sha"] or "unknown")[:12] + (
        " with changes" if origin["git_dirty"] else ""
    )
    command = ["itg-train", recipe, *to_options(recipe, to_plain(config), but=_PLACES)]
    return (
        "## Recipe\n\n"
        f"`{shlex.join(command)}` makes it again.\n\n"
        "| | |\n|---|---|\n"
        f"| tower | {vision.num_hidden_layers} layers, {vision.hidden_size} wide, frames of "
        f"{vision.image_size} x {vision.image_size} in patches of {vision.patch_size} |\n"
        f"| trunk | {text.num_hidden_layers} layers, {text.hidden_size} wide, at most "
        f"{config.model.vision_token_num} tokens of video |\n"
        f"| frames looked at | {config.data.sampling.rate_hz:g} a second, at most "
        f"{config.data.sampling.max_frames} |\n"
        f"| steps | {config.num_steps} of {config.groups_per_step} videos with their questions; "
        f"{history.num_questions} questions in all |\n"
        f"| AdamW | learning rate {optim.lr:g}, weight decay {optim.weight_decay:g}, gradients "
        f"of at most {optim.max_grad_norm:g} |\n"
        f"| took | {history.taken_s / 60:.0f} minutes on {origin['gpu'] or 'a CPU'} |\n"
        f"| commit | {commit} |\n"
        f"| with | {packages} |"
    )


def _describe_results(summary: Summary) -> str:
    if not summary:
        return (
            "## On held-out videos\n\nNothing was measured: no held-out question has a video that "
            "can be read and a frame that is relevant."
        )
    rows = [
        "| questions | n | average precision | by chance | recall of the best 10 % | evenly |",
        "|---|---|---|---|---|---|",
    ]
    for question_type in sorted(summary, key=lambda name: (name == "all", name)):
        of_type = summary[question_type]
        precision, found = (of_type["grounder"][name] for name in _SHOWN)
        rows.append(
            f"| {question_type} | {of_type['grounder']['num_questions']} | {precision:.3f} | "
            f"{of_type['random'][_SHOWN[0]]:.3f} | {found:.3f} | "
            f"{of_type['uniform'][_SHOWN[1]]:.3f} |"
        )
    table = "\n".join(rows)
    return (
        f"## On held-out videos\n\n{table}\n\n"
        "To a question of type no_clue the whole video is relevant: nothing can be gained there."
    )


def _describe_failures(results: Sequence[QuestionResult]) -> str:
    by_question: dict[str, list[QuestionResult]] = {}
    for result in results:
        by_question.setdefault(result.question, []).append(result)
    means = {
        question: [average([r.measures[m] for r in asked]) for m in ("grounder", "random")]
        for question, asked in by_question.items()
    }
    worst = sorted(means, key=lambda question: means[question][0]["average_precision"])
    rows = ["| question | n | average precision | by chance |", "|---|---|---|---|"]
    for question in worst[:NUM_WORST]:
        mine, chance = (of_method["average_precision"] for of_method in means[question])
        num_asked = means[question][0]["num_questions"]
        rows.append(f"| {_one_line(question)} | {num_asked} | {mine:.3f} | {chance:.3f} |")
    precisions, by_chance = (
        np.array([result.measures[method]["average_precision"] for result in results])
        for method in ("grounder", "random")
    )
    table = "\n".join(rows)
    return (
        f"## Where it fails\n\nOf {len(results)} held-out questions, "
        f"{np.mean(precisions < 0.5):.1%} have an average precision below 0.5, and "
        f"{np.mean(precisions < by_chance):.1%} one below chance. The worst, over the n videos in "
        f"which they are asked:\n\n{table}"
    )


def _one_line(text: str) -> str:
    """Text of others as a cell of a table, shown and not run."""
    words = " ".join(text.split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")[:200]


def _draw_curve(path: Path, history: History, summary: Summary) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    num_steps = len(history.losses)
    width = max(1, min(_NUM_SMOOTHED, num_steps // 20))
    num_whole = num_steps // width * width
    means = np.array(history.losses[:num_whole]).reshape(-1, width).mean(1)
    left.plot(width * (np.arange(len(means)) + 0.5), means, color="#33658a", lw=1.2)
    left.set(xlabel="step", ylabel="training loss", xlim=(0, num_steps))
    points = [*history.validations]
    if summary and (not points or points[-1][0] < num_steps):
        points.append((num_steps, {k: float(v) for k, v in summary["all"]["grounder"].items()}))
    for name, colour in zip(_SHOWN, ("#d1495b", "#33658a"), strict=True):
        steps, values = [step for step, _ in points], [measured[name] for _, measured in points]
        right.plot(steps, values, "o-", color=colour, lw=1.2, ms=4, label=name.replace("_", " "))
    right.set(xlabel="step", ylabel="on held-out videos", xlim=(0, None), ylim=(0, 1.03))
    right.legend(fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, format="png")
