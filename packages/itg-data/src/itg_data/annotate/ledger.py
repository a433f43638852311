"""Every answer that was ever had, in one SQLite file: what is in it is never asked again.

An answer is committed before anybody uses it, so a run that is killed has lost nothing but the
requests under way. The file is a cassette too: `--replay` answers from it, with no annotator. One
process writes it, from one thread; requests that are asked twice at the same time share one answer.
"""

import asyncio
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from itg_data.annotate.requests import Answer, Stage
from itg_data.errors import ItgError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    stage TEXT NOT NULL,
    model TEXT NOT NULL,
    text TEXT,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID
"""


class LedgerError(ItgError):
    """The ledger cannot be read or written; the message names the file and the reason."""


class Ledger:
    """The answers of a run, on disk.

    Args:
        path: The file; made if it is not there, unless `read_only`.
        read_only: Only look up; storing is an error.

    Raises:
        LedgerError: The file is no ledger, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._under_way: dict[str, asyncio.Event] = {}
        with self._explained():
            address = f"{self.path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(address, uri=True, isolation_level=None)
            if not read_only:
                self._db.execute("PRAGMA journal_mode = WAL")
                # a crash of the machine may cost the last answers, a crash of the process none
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.execute(_SCHEMA)
            self._db.execute("SELECT key FROM answers LIMIT 1")

    def __len__(self) -> int:
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def get(self, key: str) -> Answer | None:
        """Looks an answer up."""
        with self._explained():
            row = self._db.execute(
                "SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        return Answer(text=row[0], prompt_tokens=row[1], completion_tokens=row[2])

    async def claim(self, key: str) -> Answer | None:
        """Looks an answer up, waiting for it if somebody is asking for it right now.

        Returns:
            The answer; None if the caller is now the one to ask, and must `store` or `release`.
        """
        while (waiting := self._under_way.get(key)) is not None:
            await waiting.wait()
        answer = self.get(key)
        if answer is None:
            self._under_way[key] = asyncio.Event()
        return answer

    async def store(self, key: str, stage: Stage, model: str, answer: Answer) -> None:
        """Keeps an answer, on disk when this returns, and hands it to those who wait for it.

        Raises:
            LedgerError: It can't be kept; the claim is still the caller's.
        """
        row = key, stage, model, answer.text, answer.prompt_tokens, answer.completion_tokens
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
        await self.release(key)

    async def release(self, key: str) -> None:
        """Gives a claim back; the next who waits for the answer will ask."""
        if (waiting := self._under_way.pop(key, None)) is not None:
            waiting.set()

    def describe_models(self) -> str:
        """Names the models whose answers are here."""
        with self._explained():
            rows = self._db.execute("SELECT DISTINCT model FROM answers ORDER BY model").fetchall()
        return ", ".join(row[0] for row in rows) or "none"

    def close(self) -> None:
        """Folds the write-ahead log into the file, which can then be read in a read-only folder."""
        # fails beside another connection, and on a full disk: then the log stays, with all it holds
        with suppress(sqlite3.Error):
            if not self._read_only:
                self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: {error}") from None
