"""Last stage: does each kept frame show what the question is about?

Reads question, answer and the kept frames, eight to a request, so that a movement can be told from
the frames beside it; writes yes or no for each frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from itg_data.annotate.cues import describe_pair
from itg_data.annotate.desk import Bill, Desk, all_of
from itg_data.annotate.frames import VideoPictures
from itg_data.annotate.records import QaPair
from itg_data.annotate.requests import Request
from itg_data.errors import RecordError

FRAMES_PER_REQUEST = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckAnswer:
    """What the annotator is asked to fill."""

    relevant: tuple[bool, ...]


async def check_frames(
    desk: Desk, video: VideoPictures, pair: QaPair, seconds: Sequence[int], bill: Bill
) -> list[bool]:
    """Says for each second whether its frame is relevant.

    Raises:
        UnansweredError: There is no usable answer about some of them.
    """

    async def check_some(some: Sequence[int]) -> tuple[bool, ...]:
        def check(answer: CheckAnswer) -> None:
            if len(answer.relevant) != len(some):
                raise RecordError(
                    f"relevant must have {len(some)} entries, got {len(answer.relevant)}"
                )

        pictures = video.of_seconds(some)
        request = Request(
            stage="check",
            inputs=describe_pair(pair),
            pictures=pictures.names,
            answer_type=CheckAnswer,
        )
        return (await desk.ask(request, bill, check, pictures)).relevant

    starts = range(0, len(seconds), FRAMES_PER_REQUEST)
    verdicts = await all_of(
        check_some(seconds[start : start + FRAMES_PER_REQUEST]) for start in starts
    )
    return [verdict for some in verdicts for verdict in some]
