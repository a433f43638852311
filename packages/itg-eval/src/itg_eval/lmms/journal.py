"""Answers on disk as they come: a killed run goes on where it was.

lmms-eval calls a model once with all its questions and keeps nothing before that call returns. The
journal takes each answer as it comes, one JSON line in a file per process, and on the next start
all processes read all of them. An answer is known by everything it depends on. A line cut off by
the kill is dropped; its question is asked again. So is one whose request failed: lmms-eval's hosts
behind an API hand on a text of their own then, which is no answer of the model.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from itg_data.errors import ItgError


def is_failed(answer: str) -> bool:
    """Whether a text is what lmms-eval 0.7.3 puts in place of an answer it could not get.

    Such a text may come in a JSON list, as logged samples hold it.
    """
    return answer.lstrip('[" ').startswith("LMMS_EVAL_REQUEST_FAILED")


class Journal:
    """The answers of one host model to the documents of one selection.

    Args:
        folder: Where the files are; made if need be.
        rank: Number of this process, which writes a file of its own.
        identity: What all answers here depend on: host, its arguments, hash of the selection.
    """

    def __init__(self, folder: Path, rank: int, identity: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"answers-{rank:03d}.jsonl"
        self._identity = list(identity)
        self._answers = dict(_read(sorted(folder.glob("answers-*.jsonl"))))
        _end_last_line(self._path)

    def keys_of(self, questions: Iterable[Sequence[Any]]) -> list[str]:
        """Names each question by what its answer depends on; repeats are told apart."""
        seen: Counter[str] = Counter()
        keys: list[str] = []
        for question in questions:
            text = json.dumps([*self._identity, *question], sort_keys=True, default=str)
            seen[text] += 1
            keys.append(hashlib.sha256(f"{text}#{seen[text]}".encode()).hexdigest())
        return keys

    def find(self, key: str) -> str | None:
        """The answer to a question; None if it was not answered yet."""
        return self._answers.get(key)

    def add(self, key: str, answer: str) -> None:
        """Takes an answer, unless it stands for a request that failed.

        Raises:
            ItgError: It cannot be written.
        """
        if is_failed(answer):
            return
        self._answers[key] = answer
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}) + "\n")
        except OSError as error:  # of a full disk, which names no file
            raise ItgError(f"{self._path}: {error.strerror or error}") from None


def count_answers(folder: Path) -> int:
    """How many answers the files of a journal hold."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("answers-*.jsonl"))


def _read(paths: Sequence[Path]) -> Iterable[tuple[str, str]]:
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                key, answer = entry["key"], entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(key, str) and isinstance(answer, str) and not is_failed(answer):
                yield key, answer


def _end_last_line(path: Path) -> None:
    """Keeps the next line from being written onto one that was cut off."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
