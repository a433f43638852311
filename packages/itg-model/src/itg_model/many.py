"""Many questions about many videos, as a pipeline of bounded memory.

While the GPU scores the questions of one video, the next one is decoded; only these two are held.
A video is decoded and passes the tower once for all questions that follow one another about it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import torch
from itg_data.errors import ItgError
from itg_data.records import FrameSelection

from itg_model.frames import EncodedVideo, SampledVideo

Asked = tuple[str | os.PathLike[str], str | Sequence[str]]
"""A video file, and a question about it or several."""

_Open = Callable[[str], SampledVideo]
_FAILURES = (ItgError, OSError, ValueError, MemoryError, torch.OutOfMemoryError)
"""What one video or question can do wrong; anything else is a bug and ends the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedSelection:
    """A question that got no frames, and why."""

    video: str
    question: str
    error: str


def select_each(
    asked: Iterable[Asked],
    open_video: _Open,
    encode: Callable[[SampledVideo], EncodedVideo],
    choose: Callable[[EncodedVideo, str], FrameSelection],
) -> Iterator[FrameSelection | FailedSelection]:
    """See `FrameGrounder.select_many`, whose steps these are."""
    with ThreadPoolExecutor(1, "itg-open") as opener:
        ahead = _Ahead(_group(asked), open_video, opener)
        try:
            ahead.start_next()
            while (current := ahead.take()) is not None:
                yield from _select_in(*current, ahead.start_next, encode, choose)
        finally:
            ahead.close()


class _Ahead:
    """Opens one video ahead, on a thread of its own: a look at a long file's packets takes time."""

    def __init__(
        self,
        groups: Iterator[tuple[str, list[str]]],
        open_video: _Open,
        opener: ThreadPoolExecutor,
    ) -> None:
        self._groups = groups
        self._open_video = open_video
        self._opener = opener
        self._next: tuple[str, list[str], Future[SampledVideo]] | None = None

    def start_next(self) -> None:
        """Starts on the next video, unless that was done."""
        group = None if self._next else next(self._groups, None)
        if group is not None:
            self._next = (*group, self._opener.submit(self._open_video, group[0]))

    def take(self) -> tuple[str, list[str], Future[SampledVideo]] | None:
        """The video started on, with its questions."""
        taken, self._next = self._next, None
        return taken

    def close(self) -> None:
        """Lets go of a video that nobody will look at."""
        if self._next is not None:
            _close_once_open(self._next[2])


def _select_in(
    video: str,
    questions: list[str],
    opening: Future[SampledVideo],
    start_next: Callable[[], None],
    encode: Callable[[SampledVideo], EncodedVideo],
    choose: Callable[[EncodedVideo, str], FrameSelection],
) -> Iterator[FrameSelection | FailedSelection]:
    try:
        with _wait_for(opening) as opened:
            encoded = encode(opened)
    except _FAILURES as error:
        start_next()
        for question in questions:
            yield FailedSelection(video=video, question=question, error=_describe(error))
        return
    start_next()
    for question in questions:
        try:
            result = choose(encoded, question)
        except _FAILURES as error:
            result = FailedSelection(video=video, question=question, error=_describe(error))
        yield result


def _wait_for(opening: Future[SampledVideo]) -> SampledVideo:
    try:
        return opening.result()
    except BaseException:
        # an interrupt may come before the video is open
        _close_once_open(opening)
        raise


def _close_once_open(opening: Future[SampledVideo]) -> None:
    """Closes a video that nobody will look at, now or as soon as it is there; does not wait."""

    def close(done: Future[SampledVideo]) -> None:
        if done.exception() is None:
            done.result().close()

    opening.add_done_callback(close)


def _group(asked: Iterable[Asked]) -> Iterator[tuple[str, list[str]]]:
    """Video and questions, neighbours about the same video together; drawn as needed."""
    pairs = (pair for entry in asked for pair in _split(entry))
    for video, group in groupby(pairs, key=lambda pair: pair[0]):
        yield video, [question for _, question in group]


def _split(entry: Asked) -> Iterator[tuple[str, str]]:
    if isinstance(entry, tuple | list) and len(entry) == 2:
        video, questions = entry
        if isinstance(questions, str):
            questions = [questions]
        # a name alone would be taken apart into letters, and bytes into numbers
        if (
            isinstance(video, str | os.PathLike)
            and isinstance(questions, Iterable)
            and not isinstance(questions, bytes)
        ):
            for question in questions:
                yield os.fspath(video), question
            return
    raise ValueError(
        f"asked must hold pairs of a video and a question, or questions, got {entry!r:.80}"
    )


def _describe(error: BaseException) -> str:
    return " ".join(str(error).split()) or repr(error)
