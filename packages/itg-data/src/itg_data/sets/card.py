"""The card of a set: a Markdown file, generated, that says what the set is and how it was made."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from itg_data.sets.statistics import SetStatistics

_DISTRIBUTIONS = {
    "questions_per_video": "questions per video",
    "duration_s": "length of a video, s",
    "clips": "chosen clips per question",
    "frames": "labelled frames per question",
    "labelled_s": "labelled time per question, s",
}

_FILES = """\
| file | holds |
|---|---|
| `annotations.jsonl` | each question with its labels and every step that led to them |
| `dropped.jsonl` | QA pairs that got no labels, each with its reason |
| `records.jsonl` | what `itg-train` reads: questions and the stretches that answer them |
| `annotations.parquet` | the annotations as a table |
| `video_itg_data.json` | the labels in the format of the published VideoITG set |

Second `s` of a video stands for the stretch from `s` to `s + 1`. Videos are not part of the set:
their paths are relative to the folder that was annotated, in `records.jsonl` to the link to it,
`videos`, beside the records."""


def write_card(statistics: SetStatistics) -> str:
    """Writes the card; it depends on what was counted and on this package's version alone."""
    figures = statistics.to_json()
    num_offered = statistics.num_samples + figures["num_dropped"]
    refused, checked = figures["num_refused_frames"], figures["num_checked_frames"]
    sections = [
        "# A set of questions about videos, with the moments that answer them",
        f"{statistics.num_samples} of {num_offered} QA pairs, about {figures['num_videos']} "
        f"videos. Made by `itg-data annotate` of itg-data {version('itg-data')}; this card was "
        "generated with it.",
        _FILES,
        "## Questions",
        _table(("type", "questions", "share"), _type_rows(statistics)),
        _table(("split", "questions"), figures["splits"].items()),
        "## Labels",
        _table(("", "n", "mean", "min", "p25", "median", "p75", "max"), _label_rows(figures)),
        f"The check refused {refused} of the {checked} frames that it was shown.",
        "## Dropped",
        _table(("reason", "QA pairs"), figures["dropped"].items())
        if figures["dropped"]
        else "None.",
        "## Made by",
        _table(("annotator", "questions"), figures["annotators"].items()),
        _table(
            ("stage", "SHA-256 of the prompt", "questions"),
            ((p["stage"], p["sha256"], p["num_samples"]) for p in figures["prompts"]),
        ),
        f"Tokens behind the questions that were kept, captions counted with each question that "
        f"used them: {figures['prompt_tokens']} read, {figures['completion_tokens']} written.",
    ]
    return "\n\n".join(sections) + "\n"


def _type_rows(statistics: SetStatistics) -> Iterable[Sequence[Any]]:
    for name, share in statistics.type_shares.items():
        yield name, statistics.types[name], f"{share:.1%}"


def _label_rows(figures: dict[str, Any]) -> Iterable[Sequence[Any]]:
    for name, title in _DISTRIBUTIONS.items():
        if figures[name] is not None:
            yield title, *(f"{value:g}" for value in figures[name].values())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """Keeps others' text, a model's name say, from being more than the text of a cell."""
    text = " ".join(str(value).split())
    return "".join(f"\\{char}" if char in r"\|`*_<>[]&" else char for char in text)
