"""An annotator that only repeats what another one said: the ledger of an earlier run as a cassette.

Every run records one, `ledger.sqlite` in its output folder. Replaying it makes the set again,
byte for byte, without a model; a request that the cassette lacks ends the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from itg_data.annotate.ledger import Ledger
from itg_data.annotate.requests import (
    AnnotatorError,
    Answer,
    Failure,
    NoAnswerError,
    Request,
    Sampler,
)

AnswerT = TypeVar("AnswerT")


class ReplayAnnotator:
    """Answers from a cassette.

    Args:
        path: The ledger of an earlier run.
        sampler: As in that run.

    Raises:
        LedgerError: The file is no ledger.
    """

    def __init__(self, path: Path, sampler: Sampler) -> None:
        self._cassette = Ledger(path, read_only=True)
        self._sampler = sampler

    async def ask(self, request: Request[AnswerT], pictures: Sequence[bytes]) -> Answer:
        """Looks the answer up; see `Annotator.ask`."""
        outcome = self._cassette.get(request.key(self._sampler))
        if outcome is None:
            raise AnnotatorError(
                f"{self._cassette.path} holds no answer to this {request.stage} request; videos, "
                "questions, prompts, model, seed, temperature and picture sizes must be as "
                f"recorded (it was recorded with {self._cassette.describe_models()})"
            )
        if isinstance(outcome, Failure):
            raise NoAnswerError(outcome)
        return outcome

    async def close(self) -> None:
        """Closes the cassette."""
        self._cassette.close()
