"""Outcomes become a table: accuracies side by side, how sure the difference is, what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from itg_eval.benchmark.answers import Answers
from itg_eval.benchmark.plan import ARMS, Host, Plan
from itg_eval.benchmark.published import Published, find_published
from itg_eval.benchmark.stats import Difference, compare
from itg_eval.records import Document

ALL_TASKS = "all tasks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One task, or one duration group of it."""

    task: str
    group: str | None
    """None for the whole task."""
    num_questions: int
    uniform: float
    """Accuracy in 0..1 with evenly spaced frames."""
    grounded: float
    """Accuracy in 0..1 with frames chosen by their scores."""
    difference: Difference
    published: Published | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HostTable:
    """All about one host model."""

    host: str
    args: str
    rows: tuple[Row, ...]
    num_repeated: int
    """Questions that an earlier task asks as well: left out of the row of all tasks."""
    seconds_per_question: Mapping[str, float | None]
    """By arm: reading the frames and answering, in one process; None where it was not measured."""
    num_without_selection: Mapping[str, int]
    """By arm: questions that were shown evenly spaced frames for want of a selection."""
    num_empty_answers: Mapping[str, int]
    """By arm: questions to which the host said no word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What a run came to."""

    made_by: str
    plan: Plan
    num_questions: int
    """Those asked."""
    num_left_out: int
    """Those not asked, for their videos cannot be read."""
    num_videos: int
    scoring_seconds_per_question: float | None
    """Decoding and scoring, the loading of the scorer included; None where it was not measured."""
    hosts: tuple[HostTable, ...]


def tabulate(
    host: Host,
    plan: Plan,
    documents: Sequence[Document],
    answers: Mapping[str, Answers],
    num_without_selection: Mapping[str, int],
) -> HostTable:
    """Holds one host's answers with evenly spaced frames against those with selected ones."""
    tasks = list(dict.fromkeys(document.task for document in documents))
    rows: list[Row] = []
    for task in tasks:
        of_task = [document for document in documents if document.task == task]
        groups = list(dict.fromkeys(document.duration_group for document in of_task))
        for group in [group for group in groups if group is not None]:
            members = [document for document in of_task if document.duration_group == group]
            rows.append(_compare(host, plan, task, group, members, answers))
        rows.append(_compare(host, plan, task, None, of_task, answers))
    pooled = _pool(documents)
    if len(tasks) > 1:
        rows.append(_compare(host, plan, ALL_TASKS, None, pooled, answers))
    return HostTable(
        host=host.label,
        args=host.public_args,
        rows=tuple(rows),
        num_repeated=len(documents) - len(pooled),
        seconds_per_question={arm: answers[arm].cost.seconds_per_question for arm in ARMS},
        num_without_selection=num_without_selection,
        num_empty_answers={
            arm: sum(outcome.is_empty for outcome in answers[arm].outcomes.values()) for arm in ARMS
        },
    )


def _pool(documents: Sequence[Document]) -> list[Document]:
    """All documents without those whose question about a video an earlier task asks as well.

    Within a task nothing is left out: it may ask one question with several choices of answers.
    """
    first_task: dict[tuple[str, str], str] = {}
    return [
        document
        for document in documents
        if first_task.setdefault((document.video, document.question_sha256), document.task)
        == document.task
    ]


def _compare(
    host: Host,
    plan: Plan,
    task: str,
    group: str | None,
    documents: Sequence[Document],
    answers: Mapping[str, Answers],
) -> Row:
    uniform, grounded = (
        [answers[arm].outcomes[document.key].is_correct for document in documents] for arm in ARMS
    )
    return Row(
        task=task,
        group=group,
        num_questions=len(documents),
        uniform=sum(uniform) / len(documents),
        grounded=sum(grounded) / len(documents),
        difference=compare(uniform, grounded, [document.video for document in documents]),
        published=_find_published(host, plan, task, group),
    )


def _find_published(host: Host, plan: Plan, task: str, group: str | None) -> Published | None:
    """The paper's numbers, only beside a run of as many frames and of all questions."""
    found = find_published(host.checkpoint, task, group)
    if found is None or plan.limit is not None or plan.top_k != found.num_frames:
        return None
    return found
