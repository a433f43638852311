# pyright: standard
# lmms_eval is not typed
"""The documents of a task, by lmms-eval's own definition of it: which videos, which questions.

A group stands for the tasks in it. One of them that cannot be used is left out and named; a task
that was itself asked for is an error.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from itg_data.errors import ItgError
from itg_model.questions import VIDEO_SUFFIXES

from itg_eval.lmms.tasks import explain_unjudged, facts_of
from itg_eval.records import Document, format_key

logger = logging.getLogger(__name__)


class UnfitError(ItgError):
    """A task whose documents are not one question about one video file each."""


def load_documents(
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    limit: int | None = None,
    *,
    judged: bool = False,
) -> list[Document]:
    """Lists the documents of tasks in lmms-eval's order.

    Args:
        tasks: Names of tasks or of groups of tasks.
        include_path: Folder with further tasks, as for lmms-eval's `--include_path`.
        limit: At most so many documents of each task, the first ones.
        judged: Whether only tasks will do whose right answers can be told from wrong ones.

    Raises:
        ItgError: A task is unknown, its data cannot be loaded, or one of its documents has no
            video file; the message names it. Or no task of a group can be used.
    """
    documents: list[Document] = []
    # lmms-eval and its tasks print and log to stdout, which is for results
    with redirect_stdout(sys.stderr):
        for task in _load_tasks(tasks, include_path):
            name = task.config.task
            try:
                if judged and facts_of(name) is None:
                    raise UnfitError(explain_unjudged(name))
                documents += list(_documents_of(task, limit))
            except UnfitError as error:
                if name in tasks:
                    raise
                logger.warning("left out: %s", error)
    if not documents:
        raise ItgError(f"{', '.join(tasks)}: no questions that can be used")
    return documents


def document_of(
    key: tuple[str, str, int], row: Mapping[str, Any], video: str, context: str = ""
) -> Document:
    """Makes the record of one row of a task's data.

    Raises:
        UnfitError: The row has no question.
    """
    task, split, doc_id = key
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UnfitError(f"{format_key(key)}: the row has no field 'question' with text")
    facts = facts_of(task)
    return Document(
        task=task,
        split=split,
        doc_id=doc_id,
        video=video,
        question=question,
        context=facts.context(row) if facts and facts.context else context,
        duration_group=facts.duration_group(row) if facts and facts.duration_group else None,
    )


def video_path(visual: Any) -> str | None:
    """The path in what a task calls a visual, if that is a whole video file; None for all else."""
    if isinstance(visual, Mapping):
        if visual.get("start_time") is not None or "video_start" in visual:
            return None
        visual = visual.get("url") or visual.get("path")
    if isinstance(visual, str) and visual.lower().endswith(VIDEO_SUFFIXES):
        return visual
    return None


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Names what a task's own code failed at; some tasks leave the whole program instead."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ItgError):
            raise
        raise ItgError(f"{what}: {type(error).__name__}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """What a retried call failed of, not that it was retried."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    return f"{type(inner).__name__}: {inner}" if inner else str(error)


def _load_tasks(tasks: Sequence[str], include_path: str | Path | None) -> list[Any]:
    from lmms_eval.tasks import TaskManager, get_task_dict

    included = None if include_path is None else str(include_path)
    manager = TaskManager("ERROR", include_path=included, include_defaults=False)
    if not included or set(tasks) - set(manager.all_tasks):
        manager = TaskManager("ERROR", include_path=included)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise ItgError(f"lmms-eval has no task {unknown[0]!r}; `lmms-eval --tasks list` names all")
    leaves: dict[str, Any] = {}
    for name in tasks:  # one by one: asked for together, they come in any order
        with naming(f"cannot load {name}"):
            leaves |= {leaf.config.task: leaf for leaf in _leaves(get_task_dict([name], manager))}
    return list(leaves.values())


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[Any]:
    for task in tasks.values():
        task = task[1] if isinstance(task, tuple) else task
        if isinstance(task, Mapping):
            yield from _leaves(task)
        elif task is not None:
            yield task


def _documents_of(task: Any, limit: int | None) -> Iterator[Document]:
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    rows = task.eval_docs
    for doc_id in range(len(rows) if limit is None else min(limit, len(rows))):
        key = (task.config.task, split, doc_id)
        row = rows[doc_id]
        with naming(format_key(key)):
            videos = [path for path in map(video_path, task.doc_to_visual(row)) if path]
            context = task.doc_to_text(row)
        if len(videos) != 1:
            raise UnfitError(f"{format_key(key)}: needs one video file, has {len(videos)}")
        yield document_of(key, row, videos[0], context if isinstance(context, str) else "")
