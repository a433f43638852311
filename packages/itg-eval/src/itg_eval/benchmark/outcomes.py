"""Right or wrong per document: what lmms-eval leaves behind, read strictly.

lmms-eval catches its own errors, prints them and ends with exit status 0, and it writes its files
in pieces. So nothing is believed before every document that was asked is there once, answered by
our wrapper. A request that failed comes with a text in place of an answer, and some tasks read an
option's letter out of that: it counts as not answered.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itg_data.errors import ItgError

from itg_eval.lmms.journal import is_failed
from itg_eval.lmms.tasks import read_correctness
from itg_eval.records import Document, Key, format_key

WRAPPER = "itg_eval.lmms.wrapper."


class RequestsFailedError(ItgError):
    """A host behind an API gave no answer to some questions; asked again, it may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Whether a document was answered rightly."""

    task: str
    split: str
    doc_id: int
    answer: str
    """What the host model said."""
    is_correct: bool

    @property
    def key(self) -> Key:
        """Task, split and number of the document."""
        return self.task, self.split, self.doc_id

    @property
    def is_empty(self) -> bool:
        """Whether the host said no word, of which lmms-eval may have made a list."""
        return not re.search(r"\w", self.answer.replace("\\n", ""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What answering cost the first process, and with which frames it was done."""

    frames_sha: str
    """Hash of the selection."""

    seconds: float
    """Frames read and questions answered."""
    num_questions: int
    host_sha256: str | None = None
    """Fingerprints of the host's weights; None where they are in no local folder."""

    @property
    def seconds_per_question(self) -> float | None:
        """None where no question was asked that had not been answered before."""
        return self.seconds / self.num_questions if self.num_questions else None


def read_outcomes(
    folder: Path, documents: Iterable[Document], frames_sha: str
) -> tuple[list[Outcome], Cost]:
    """Reads what lmms-eval wrote into a folder.

    Args:
        folder: Its `--output_path`.
        documents: What it was asked.
        frames_sha: Hash of the selection that it was given.

    Returns:
        An outcome per document, in their order, and the cost.

    Raises:
        RequestsFailedError: Requests failed.
        ItgError: There are no results, not those of our wrapper, or not of all documents.
    """
    results = sorted(folder.rglob("*_results.json"))
    if not results:
        raise ItgError(f"{folder}: lmms-eval left no results")
    newest = results[-1]  # their names begin with the time
    summary = _parse(newest, newest.read_text(encoding="utf-8"))
    backend = str(summary.get("config", {}).get("model_backend", ""))
    if not backend.startswith(WRAPPER):
        raise ItgError(
            f"{newest}: answered by {backend or 'nobody'}, not through itg-eval's wrapper"
        )
    stem = newest.name.removesuffix("_results.json")
    samples: dict[str, dict[int, dict[str, Any]]] = {}
    found: list[Outcome] = []
    for document in documents:
        task = document.task
        if task not in samples:
            path = newest.with_name(f"{stem}_samples_{task}.jsonl")
            samples[task] = _read_samples(path)
        sample = samples[task].get(document.doc_id)
        if sample is None:
            raise ItgError(f"{folder}: document {document.doc_id} of {task} was not answered")
        found.append(
            Outcome(
                task=task,
                split=document.split,
                doc_id=document.doc_id,
                answer=_read_answer(sample),
                is_correct=read_correctness(task, sample),
            )
        )
    refuse_failed(found)
    return found, _read_cost(summary, frames_sha)


def refuse_failed(outcomes: Iterable[Outcome]) -> None:
    """Lets no request that failed pass for an answer.

    Raises:
        RequestsFailedError: There is one; the message says how many, and why the first one did.
    """
    failed = [outcome for outcome in outcomes if is_failed(outcome.answer)]
    if failed:
        where = format_key(failed[0].key)
        raise RequestsFailedError(
            f"{len(failed)} requests failed, the first is {where}: {failed[0].answer:.300}; see to "
            "that and run the same again, what was answered is kept"
        )


def _read_cost(summary: dict[str, Any], frames_sha: str) -> Cost:
    """What the wrapper logged, once for all its questions; with all answers resumed it did not."""
    throughput: dict[str, Any] = summary.get("throughput") or {}
    return Cost(
        frames_sha=frames_sha,
        seconds=float(throughput.get("avg_itg_seconds", 0.0)),
        num_questions=round(float(throughput.get("avg_itg_questions", 0.0))),
    )


def _read_answer(sample: dict[str, Any]) -> str:
    """What the task judged; but where the request failed, the text that says so."""
    raw = _to_text(sample.get("resps"))
    return raw if is_failed(raw) else _to_text(sample.get("filtered_resps"))


def _to_text(answer: Any) -> str:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    # what is no character must not keep the file from being written
    return text.encode("utf-8", "replace").decode()


def _read_samples(path: Path) -> dict[int, dict[str, Any]]:
    """By the document's number."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ItgError(f"{path}: {error.strerror or error}") from None
    samples: dict[int, dict[str, Any]] = {}
    for line in filter(None, lines):
        sample = _parse(path, line)
        doc_id = sample.get("doc_id")
        if not isinstance(doc_id, int):
            continue
        if doc_id in samples:
            raise ItgError(f"{path}: document {doc_id} is there twice, which counts is not known")
        samples[doc_id] = sample
    return samples


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ItgError(f"{path}: is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ItgError(f"{path}: holds no JSON object")
    return parsed  # pyright: ignore[reportUnknownVariableType]
