"""Every answer that was ever had, in one SQLite file: what is in it is never asked again.

An answer is committed before anybody uses it, so a run that is killed has lost nothing but the
requests under way. The file is a cassette too: `--replay` answers from it, with no annotator. One
process writes it, from one thread; requests that are asked twice at the same time share one answer.

That a request failed is kept beside the answers, so that a replay makes the same set. What may
have passed is asked again by the next run that opens the ledger, and once only by this one.
"""

import asyncio
import os
import sqlite3
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from itg_data.annotate.records import PASSING_REASONS, DropReason
from itg_data.annotate.requests import Answer, Failure, Stage
from itg_data.errors import ItgError

_ANSWERS = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    stage TEXT NOT NULL,
    model TEXT NOT NULL,
    text TEXT,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID
"""
_FAILURES = """
CREATE TABLE IF NOT EXISTS failures (
    key TEXT PRIMARY KEY,
    stage TEXT NOT NULL,
    model TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
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
        retried: Failures of earlier runs that are asked again.

    Raises:
        LedgerError: The file is no ledger, or cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        retried: Collection[DropReason] = PASSING_REASONS,
    ) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._retried = retried
        self._failed_now: set[str] = set()
        self._under_way: dict[str, asyncio.Event] = {}
        with self._explained():
            address = f"{self.path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(address, uri=True, isolation_level=None)
            if not read_only:
                self._db.execute("PRAGMA journal_mode = WAL")
                # a crash of the machine may cost the last answers, a crash of the process none
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.execute(_ANSWERS)
                self._db.execute(_FAILURES)
            self._db.execute("SELECT key FROM answers LIMIT 1")
            # a cassette of itg-data 0.1 has none
            named = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'failures'")
            self._has_failures = named.fetchone() is not None

    def __len__(self) -> int:
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def get(self, key: str) -> Answer | Failure | None:
        """Looks up what became of a request; an answer counts for more than a failure before it."""
        with self._explained():
            row = self._db.execute(
                "SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?", (key,)
            ).fetchone()
            if row is not None:
                return Answer(text=row[0], prompt_tokens=row[1], completion_tokens=row[2])
            if not self._has_failures:
                return None
            row = self._db.execute(
                "SELECT reason, detail, prompt_tokens, completion_tokens FROM failures "
                "WHERE key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        return Failure(reason=row[0], detail=row[1], prompt_tokens=row[2], completion_tokens=row[3])

    async def claim(self, key: str) -> Answer | Failure | None:
        """Looks up what became of a request, waiting if somebody is asking it right now.

        Returns:
            The outcome; None if the caller is now the one to ask, and must `store` or `release`.
        """
        while (waiting := self._under_way.get(key)) is not None:
            await waiting.wait()
        outcome = self.get(key)
        if isinstance(outcome, Failure) and outcome.reason in self._retried:
            outcome = outcome if key in self._failed_now else None
        if outcome is None:
            self._under_way[key] = asyncio.Event()
        return outcome

    async def store(self, key: str, stage: Stage, model: str, outcome: Answer | Failure) -> None:
        """Keeps an outcome, on disk when this returns, and hands it to those who wait for it.

        Raises:
            LedgerError: It can't be kept; the claim is still the caller's.
        """
        tokens = outcome.prompt_tokens, outcome.completion_tokens
        with self._explained():
            if isinstance(outcome, Failure):
                row = key, stage, model, outcome.reason, outcome.detail, *tokens
                self._db.execute("INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?,?)", row)
                self._failed_now.add(key)
            else:
                row = key, stage, model, outcome.text, *tokens
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
