"""Frame-level measures of a whole file of scores, averaged by kind of question, as a table."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from itg_data.errors import RecordError
from itg_model.policies import select_frames

from itg_eval.grounding import Measures, measure_scores, measure_selection, recall_at_iou
from itg_eval.labels import Label, Labels
from itg_eval.records import DocumentScores, Key, Selections, format_key

ALL = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameReport:
    """The means, and what went into them."""

    means: dict[str, dict[str, dict[str, float | int]]]
    """Kind of question (and `all`) -> method -> measure -> mean over questions, and
    `num_questions`."""
    num_unlabelled: int
    """Documents with scores and no label; they are left out."""
    num_unscored: int
    """Labels without scores; they are left out."""
    num_unseen: int
    """Questions of whose spans no sampled frame lies inside: without average precision and
    recall."""


def report_frames(
    scores: Iterable[DocumentScores],
    labels: Labels,
    ks: Sequence[int],
    selections: Selections | None = None,
) -> FrameReport:
    """Measures scores, uniform frames and, if given, a selection.

    Args:
        scores: Of any documents.
        labels: Of any of them.
        ks: Numbers of frames for recall.
        selections: Made from these scores.

    Raises:
        RecordError: No document has a label, or one is there twice; or a selection is missing, of
            another question, or holds frames that were not scored.
    """
    values: dict[tuple[str, str], list[Measures]] = {}
    num_labelled = num_unseen = 0
    seen: set[Key] = set()
    met: set[tuple[str, PurePath]] = set()
    for of_document in scores:
        if of_document.key in seen:
            raise RecordError(f"{format_key(of_document.key)} is there twice")
        seen.add(of_document.key)
        label = labels.find(of_document)
        if label is None:
            continue
        num_labelled += 1
        # questions of two tasks may meet in one label
        met.add((label.question_sha256, label.video))
        for method, measures in _measure(of_document, label, ks, selections):
            num_unseen += method == "scores" and "average_precision" not in measures
            for group in dict.fromkeys((ALL, label.group)):
                values.setdefault((group, method), []).append(measures)
    if not num_labelled:
        raise RecordError(
            f"none of the {len(seen)} documents with scores has a label: the questions, or the "
            "names of the videos, differ"
        )
    means: dict[str, dict[str, dict[str, float | int]]] = {}
    for (group, method), rows in sorted(values.items()):
        means.setdefault(group, {})[method] = _average(rows)
    return FrameReport(
        means=means,
        num_unlabelled=len(seen) - num_labelled,
        num_unscored=len(labels) - len(met),
        num_unseen=num_unseen,
    )


def format_table(means: dict[str, dict[str, dict[str, float | int]]]) -> str:
    """Lays the means out for a terminal, `all` last."""
    measures = list(
        dict.fromkeys(name for of_group in means.values() for m in of_group.values() for name in m)
    )
    measures.remove("num_questions")
    groups = sorted(means, key=lambda group: (group == ALL, group))
    rows = [["questions", "n", "frames", *measures]]
    for group in groups:
        for method, of_method in means[group].items():
            cells = [f"{of_method[m]:.3f}" if m in of_method else "-" for m in measures]
            rows.append([group, str(of_method["num_questions"]), method, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_text = (True, False, True, *[False] * len(measures))
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in rows
    )


def _measure(
    scores: DocumentScores, label: Label, ks: Sequence[int], selections: Selections | None
) -> Iterator[tuple[str, Measures]]:
    scored = scores.scored
    yield "scores", measure_scores(scored, label.spans, ks)
    uniform: Measures = {}
    for k in ks:
        chosen = select_frames(scored.scores, k, "uniform")
        uniform |= measure_selection(scored, chosen, label.spans, k)
    yield "uniform", uniform
    if selections is None:
        return
    selection = selections.get(scores.key)
    if selection is None or selection.question_sha256 != scores.question_sha256:
        raise RecordError(f"{format_key(scores.key)} has no selection of this question")
    if not set(selection.source_idx) <= set(scored.source_idx):
        raise RecordError(f"{format_key(scores.key)}: frames were chosen that were not scored")
    places = np.searchsorted(scored.source_idx, selection.source_idx).astype(np.int64)
    yield selection.policy, measure_selection(scored, places, label.spans, selection.top_k)


def _average(rows: Sequence[Measures]) -> dict[str, float | int]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    means: dict[str, float | int] = {
        name: float(np.mean([row[name] for row in rows if name in row])) for name in names
    }
    if "span_iou" in names:
        means["rec@iou"] = recall_at_iou([row["span_iou"] for row in rows])
    return means | {"num_questions": len(rows)}
