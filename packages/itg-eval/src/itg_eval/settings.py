"""What decides the scores of a folder, and who may write into it.

A folder holds scores of one setting. While a process scores there it holds a lock on the settings,
shared with others of the same ones; whoever comes with other settings finds it held, or scores
already there, and is refused. Only a folder in which nobody scores and nothing is scored, perhaps
because the checkpoint was misspelt, may change its settings.
"""

import dataclasses
import fcntl
import hashlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from itg_data.errors import ItgError, RecordError
from itg_data.files import write_atomic
from itg_data.jsonl import format_record, parse_record
from itg_data.sampling import SamplingConfig, SamplingRule

from itg_eval.records import Document
from itg_eval.scorers import ScorerKind

Asked = Literal["context", "question"]
"""What the scorer reads: the benchmark's whole prompt, as in the reference, or the question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What decides the scores; a folder holds those of one setting."""

    scorer: ScorerKind
    model: str
    model_sha256: str | None
    """Fingerprint of the checkpoint's files; None for a hub id."""
    dtype: str
    asked: Asked
    rate_hz: float
    max_frames: int | None
    """None for what the scorer looks at by default."""
    sampling_rule: SamplingRule
    embeddings: bool
    """Whether the frames' embeddings are kept."""

    @property
    def sha256(self) -> str:
        """Hash of what scores depend on; where a checkpoint's files are known, not of its path."""
        known = self if self.model_sha256 is None else dataclasses.replace(self, model="")
        return hashlib.sha256(format_record(known)).hexdigest()

    def to_sampling(self, max_frames: int) -> SamplingConfig:
        """The sampling rule; `max_frames` is the scorer's default."""
        return SamplingConfig(
            rate_hz=self.rate_hz,
            max_frames=max_frames if self.max_frames is None else self.max_frames,
            rule=self.sampling_rule,
        )

    def text_of(self, document: Document) -> str:
        """What the scorer is asked about a document."""
        return (document.context if self.asked == "context" else "") or document.question


@contextmanager
def claiming(folder: Path, settings: Settings) -> Generator[None]:
    """Makes a folder of scores one of these settings, or checks that it is, until the block ends.

    Args:
        folder: The folder; must exist, and so must `shards` in it.
        settings: What decides the scores.

    Raises:
        ItgError: The folder holds scores of other settings, or another process is about to.
    """
    path = folder / "settings.json"
    with (folder / "shards" / "settings.lock").open("w") as lock:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _has_scores(folder):
                write_atomic(path, format_record(settings))
        # another process may have come in between: only now can the settings change no more
        fcntl.flock(lock, fcntl.LOCK_SH)
        _check(path, settings)
        yield


def _check(path: Path, settings: Settings) -> None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ItgError(f"{path}: is missing, but there are scores; remove the folder") from None
    except OSError as error:
        raise ItgError(f"{path}: {error.strerror or error}") from None
    try:
        there = parse_record(content, Settings)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    if there.sha256 == settings.sha256:
        return
    if settings.model_sha256 is not None and there.model_sha256 == settings.model_sha256:
        # the same checkpoint by another path
        there = dataclasses.replace(there, model=settings.model)
    for field in dataclasses.fields(settings):
        old, new = getattr(there, field.name), getattr(settings, field.name)
        if old != new:
            does = "holds" if _has_scores(path.parent) else "another process is making"
            raise ItgError(
                f"{path.parent}: {does} scores with {field.name} {old!r}, not {new!r}; name "
                "another output folder, or remove this one"
            )


def _has_scores(folder: Path) -> bool:
    return any(shard.stat().st_size for shard in folder.glob("shards/scores.*"))
