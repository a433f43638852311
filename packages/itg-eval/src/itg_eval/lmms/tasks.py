"""What we know of single tasks beyond lmms-eval's own definitions: groups, and right from wrong.

lmms-eval hands results on as whatever a task's `process_results` returns; here is, task by task,
how to read right or wrong out of that, and what the benchmark calls the length of a video. Where a
task's videos lie and how its prompt reads is the task's own affair and asked of the task itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from itg_data.errors import ItgError

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """How to read one task, or one family of tasks."""

    metric: str
    """Name under which a logged sample holds what `is_correct` reads."""
    is_correct: Callable[[Any], bool]
    duration_group: Callable[[Row], str] | None = None
    """The benchmark's own word for how long a row's video is."""
    context: Callable[[Row], str] | None = None
    """What a scorer is asked instead of the whole prompt."""


def _is_one(value: Any) -> bool:
    """Right or wrong, and nothing between or beside: NaN would be true."""
    if value not in (0, 1):
        raise ValueError(f"must be 0 or 1, got {value!r:.80}")
    return bool(value)


def _has_full_score(result: Row) -> bool:
    return _is_one(result["score"])


def _names_the_answer(result: Row) -> bool:
    return result["pred_answer"] == result["answer"]


_VIDEOMME = TaskFacts(
    metric="videomme_perception_score",
    is_correct=_has_full_score,
    duration_group=lambda row: row["duration"],
)
_MLVU = TaskFacts(metric="mlvu_percetion_score", is_correct=_names_the_answer)
_LONGVIDEOBENCH = TaskFacts(
    metric="lvb_acc",
    is_correct=lambda result: result["parsed_pred"] == result["answer"],
    duration_group=lambda row: f"{row['duration_group']} s",
)
_CGBENCH = TaskFacts(metric="cgbench_accuracy", is_correct=_has_full_score)
_EGOSCHEMA = TaskFacts(
    metric="score",
    is_correct=lambda result: str(result["pred"]) == str(result["ground_truth"]),
)

TASKS: dict[str, TaskFacts] = {
    "itg_scripted": TaskFacts(
        metric="itg_scripted_acc",
        is_correct=_is_one,
        duration_group=lambda row: row["duration_group"],
        # the small grounder has learnt from bare questions
        context=lambda row: row["question"],
    ),
    "videomme": _VIDEOMME,
    "videomme_long": _VIDEOMME,
    "mlvu_dev": _MLVU,
    "mlvu_test": _MLVU,
    "longvideobench_val_v": _LONGVIDEOBENCH,
    "cgbench": _CGBENCH,
    "egoschema_subset": _EGOSCHEMA,
    "nextqa_mc_test": TaskFacts(metric="exact_match", is_correct=_is_one),
}
"""By a task's name. Others of a like name are other tasks: open questions, other metrics."""

_MVBENCH = TaskFacts(metric="mvbench_accuracy", is_correct=_has_full_score)
"""Of all its parts, which are alike."""

ANSWERS_WITHHELD = {
    "egoschema": "its answers are not public: run egoschema_subset, or send lmms-eval's own "
    "submission to the benchmark's server",
    "longvideobench_test_v": "its answers are not public: run longvideobench_val_v",
}


def facts_of(task: str) -> TaskFacts | None:
    """Finds what is known of a task; None if nothing is."""
    if task in ANSWERS_WITHHELD:
        return None
    return _MVBENCH if task.startswith("mvbench_") else TASKS.get(task)


def explain_unjudged(task: str) -> str:
    """Says why right and wrong answers to a task cannot be told apart, and what to do."""
    reason = ANSWERS_WITHHELD.get(task, f"add it to {__name__}.TASKS")
    return f"{task}: no way is known to tell a right answer from a wrong one; {reason}"


def read_correctness(task: str, sample: Row) -> bool:
    """Says whether a logged sample was answered rightly.

    Args:
        task: Name of the task, as lmms-eval knows it.
        sample: A line of lmms-eval's `*_samples_<task>.jsonl`.

    Raises:
        ItgError: The task is unknown here, or its samples are not what they were in lmms-eval
            0.7.3.
    """
    facts = facts_of(task)
    if facts is None:
        raise ItgError(explain_unjudged(task))
    try:
        return facts.is_correct(sample[facts.metric])
    except (KeyError, TypeError, ValueError) as error:
        raise ItgError(
            f"{task}: document {sample.get('doc_id')} has no readable {facts.metric!r}: "
            f"{type(error).__name__} {error}"
        ) from None
