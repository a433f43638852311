"""The desk between the stages and the annotator: looks up, asks, keeps, checks, asks once more."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from itg_data.annotate.records import DropReason, TokenCount
from itg_data.annotate.requests import (
    Answer,
    Failure,
    NoAnswerError,
    Request,
    Sampler,
    Stage,
)
from itg_data.errors import ItgError, RecordError

AnswerT = TypeVar("AnswerT")

Jpeg = bytes

GRACE_S = 30.0
"""How long a run that ends waits for the answers to what it has already asked."""


class Pictures(Protocol):
    """A request's pictures, fetched only when they are really needed."""

    async def wait(self) -> None:
        """Returns when they can be read."""
        ...

    def read(self) -> Sequence[Jpeg]:
        """Reads them."""
        ...


class Annotator(Protocol):
    """The only door to a model."""

    async def ask(self, request: Request[AnswerT], pictures: Sequence[Jpeg]) -> Answer:
        """Gets one answer.

        Raises:
            AnnotatorError: There are no answers to be had, to this or any request.
            NoAnswerError: There is none to this request.
        """
        ...


class AnswerStore(Protocol):
    """Where answers are kept: `Ledger`, or a way to one on another machine."""

    async def claim(self, key: str) -> Answer | Failure | None:
        """See `Ledger.claim`."""
        ...

    async def store(self, key: str, stage: Stage, model: str, outcome: Answer | Failure) -> None:
        """See `Ledger.store`."""
        ...

    async def release(self, key: str) -> None:
        """See `Ledger.release`."""
        ...


class UnansweredError(Exception):
    """An annotator gave no usable answer; the QA pair that needed it is dropped.

    Attributes:
        reason: Why.
        detail: One line more.
    """

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DropReason = reason
        self.detail = detail


@dataclass(kw_only=True, slots=True)
class Tally:
    """What a run has asked so far."""

    num_asked: int = 0
    """Answers had from the annotator."""
    num_known: int = 0
    """Answers found in the ledger, and failures that are final."""
    num_mended: int = 0
    """Second tries among those asked."""
    prompt_tokens: int = 0
    """Of what was asked for, not of what was found."""
    completion_tokens: int = 0

    def set_to_sum(self, others: Iterable["Tally"]) -> None:
        """Makes this the sum of other tallies."""
        counts = [dataclasses.asdict(other) for other in others]
        for name in dataclasses.asdict(self):
            setattr(self, name, sum(count[name] for count in counts))


@dataclass(kw_only=True, slots=True)
class Bill:
    """What one QA pair's answers cost, whoever paid for them first."""

    answers: list[Answer] = field(default_factory=list[Answer])

    def to_token_count(self) -> TokenCount:
        """Sums up."""
        return TokenCount(
            num_calls=len(self.answers),
            prompt_tokens=sum(answer.prompt_tokens for answer in self.answers),
            completion_tokens=sum(answer.completion_tokens for answer in self.answers),
        )


class Desk:
    """Gets answers, each from the ledger if it is there.

    Args:
        annotator: Who is asked.
        store: Where answers are kept.
        sampler: How answers are drawn; part of every request's identity.
        concurrency: Requests under way at the same time, at most.

    Attributes:
        tally: What was asked so far.
    """

    def __init__(
        self, annotator: Annotator, store: AnswerStore, sampler: Sampler, concurrency: int
    ) -> None:
        self.tally = Tally()
        self.sampler = sampler
        self._annotator = annotator
        self._store = store
        self._places = asyncio.Semaphore(concurrency)
        self._given_up: ItgError | OSError | None = None

    async def ask(
        self,
        request: Request[AnswerT],
        bill: Bill,
        check: Callable[[AnswerT], None] | None = None,
        pictures: Pictures | None = None,
    ) -> AnswerT:
        """Gets an answer that holds, with one round to mend one that does not.

        Args:
            request: What is asked.
            bill: Where its cost is noted.
            check: Raises `RecordError` on an answer that the record's types cannot refuse.
            pictures: Gives the request's pictures.

        Raises:
            AnnotatorError: There are no answers to be had.
            UnansweredError: There is none to this request.
        """
        try:
            return await self._ask_once(request, bill, check, pictures)
        except RecordError as error:
            mended = request.mended(_one_line(error))
        self.tally.num_mended += 1
        try:
            return await self._ask_once(mended, bill, check, pictures)
        except RecordError as error:
            raise UnansweredError(
                "malformed_answer", f"{request.stage}: {_one_line(error)}"
            ) from None

    async def _ask_once(
        self,
        request: Request[AnswerT],
        bill: Bill,
        check: Callable[[AnswerT], None] | None,
        pictures: Pictures | None,
    ) -> AnswerT:
        answer = await self._look_up_or_ask(request, pictures)
        if isinstance(answer, Failure):
            raise UnansweredError(answer.reason, f"{request.stage}: {answer.detail}")
        bill.answers.append(answer)
        if answer.text is None:
            raise UnansweredError("refused", request.stage)
        said = request.parse(answer.text)
        if check is not None:
            check(said)
        return said

    async def _look_up_or_ask(
        self, request: Request[AnswerT], pictures: Pictures | None
    ) -> Answer | Failure:
        key = request.key(self.sampler)
        known = await self._store.claim(key)
        if known is not None:
            self.tally.num_known += 1
            return known
        try:
            # who waits for a decoder should not keep others from asking, nor who waits to ask keep
            # pictures in memory; a video that fails meanwhile is no fault of the annotator's
            if pictures is not None:
                await pictures.wait()
            return await self._ask_in_turn(key, request, pictures)
        except BaseException:
            await self._store.release(key)
            raise

    async def _ask_in_turn(
        self, key: str, request: Request[AnswerT], pictures: Pictures | None
    ) -> Answer | Failure:
        try:
            async with self._places:
                if self._given_up is not None:
                    raise self._given_up
                shown = pictures.read() if pictures is not None else ()
                return await to_the_end(self._ask_annotator(key, request, shown))
        except (ItgError, OSError) as error:
            # those who stand in line need not find out for themselves
            self._given_up = error
            raise

    async def _ask_annotator(
        self, key: str, request: Request[AnswerT], shown: Sequence[Jpeg]
    ) -> Answer | Failure:
        outcome: Answer | Failure
        try:
            outcome = await self._annotator.ask(request, shown)
            self.tally.num_asked += 1
        except NoAnswerError as error:
            outcome = error.failure
        self.tally.prompt_tokens += outcome.prompt_tokens
        self.tally.completion_tokens += outcome.completion_tokens
        await self._store.store(key, request.stage, self.sampler.model, outcome)
        return outcome


ResultT = TypeVar("ResultT")
FirstT = TypeVar("FirstT")
SecondT = TypeVar("SecondT")


async def all_of(work: Iterable[Awaitable[ResultT]]) -> list[ResultT]:
    """Does things side by side.

    If one has no answer, the others go on to their end before that is raised: what was asked is
    worth keeping. Any other error ends them all.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not isinstance(task.exception(), UnansweredError):
                    task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


async def to_the_end(work: Coroutine[Any, Any, ResultT], grace_s: float = GRACE_S) -> ResultT:
    """Awaits work that goes on to its end, or for `grace_s` more, when the caller is cancelled.

    What an annotator was asked is paid for: its answer is worth keeping although the run ends.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + grace_s
        while not task.done() and clock() < deadline_s:
            # one error may cancel this several times, on its way up through nested `all_of`
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=deadline_s - clock())
        task.cancel()  # does nothing to what came to its end
        await asyncio.gather(task, return_exceptions=True)
        raise


async def both(first: Awaitable[FirstT], second: Awaitable[SecondT]) -> tuple[FirstT, SecondT]:
    """Does two things side by side, as `all_of` does."""
    results = await all_of(cast("tuple[Awaitable[Any], ...]", (first, second)))
    return results[0], results[1]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
