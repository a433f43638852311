"""Rows of a task's data that know which document they are.

A host model looks its documents up as `task_dict[task][split][doc_id]` and passes on the row alone.
"""

from typing import Any

from itg_eval.records import Key


class KeyedRow(dict[str, Any]):
    """A row and the document that it is."""

    def __init__(self, row: Any, key: Key) -> None:
        super().__init__(row)
        self.key = key


class KeyedTasks(dict[str, Any]):
    """What lmms-eval gives a model as `task_dict`: tasks, their splits, the rows of these."""

    def __getitem__(self, task: str) -> "_Splits":
        return _Splits(task, super().__getitem__(task))


class _Splits:
    def __init__(self, task: str, splits: Any) -> None:
        self._task, self._splits = task, splits

    def __getitem__(self, split: str) -> "_Rows":
        return _Rows(self._task, split, self._splits[split])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._splits, name)


class _Rows:
    def __init__(self, task: str, split: str, rows: Any) -> None:
        self._task, self._split, self._rows = task, split, rows

    def __getitem__(self, doc_id: int) -> KeyedRow:
        return KeyedRow(self._rows[doc_id], (self._task, self._split, int(doc_id)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)
