"""Where documents come from: a file of them, a labelled data set, or a task of lmms-eval."""

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl
from itg_data.records import GroundingRecord

from itg_eval.records import Document, by_key, name_file

RECORDS_TASK = "records"
"""Task of documents that were made from labelled records."""


def read_documents(path: str | Path) -> list[Document]:
    """Reads a file of documents.

    Raises:
        RecordError: A line is no document, one is there twice, or there is none.
    """
    return _check(path, read_jsonl(path, Document))


def read_records(path: str | Path, split: str | None = None) -> list[Document]:
    """Makes a document of every labelled record, or every one of a split.

    Its number is the line's, from 0.

    Raises:
        RecordError: A line is no record, or there is none.
    """
    root = Path(path).parent
    return _check(
        path,
        (
            Document(
                task=RECORDS_TASK,
                split=record.split or "all",
                doc_id=number,
                video=str(root / record.video),
                question=record.question,
            )
            for number, record in enumerate(read_jsonl(path, GroundingRecord))
            if split in (None, record.split)
        ),
    )


def load_task(
    tasks: Sequence[str], include_path: Path | None, limit: int | None, *, judged: bool = False
) -> list[Document]:
    """Loads the documents of tasks by lmms-eval's own definitions.

    Args:
        tasks: Names of tasks or groups.
        include_path: Folder of further task definitions.
        limit: Documents of each task at most.
        judged: Whether right and wrong must be told apart for the tasks.
    """
    # imported here: lmms-eval takes many seconds, and is not needed for files
    loader = importlib.import_module("itg_eval.lmms.documents")
    return loader.load_documents(tasks, include_path, limit, judged=judged)


def group_by_video(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Gathers the questions about each video, videos in the order in which they come first."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.video, []).append(document)
    return groups


def _check(path: str | Path, documents: Iterable[Document]) -> list[Document]:
    try:
        found = list(by_key(documents).values())
    except RecordError as error:
        raise name_file(path, error) from None
    if not found:
        raise RecordError(f"{path}: holds no questions, or none of the split asked for")
    return found
