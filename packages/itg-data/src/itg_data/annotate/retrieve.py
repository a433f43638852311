"""Third stage: which clips hold the answer.

Reads question, answer and the captions of all clips; writes the chosen clips and the reasoning.
"""

from dataclasses import dataclass

from itg_data.annotate.cues import describe_pair
from itg_data.annotate.desk import Bill, Desk
from itg_data.annotate.records import QaPair
from itg_data.annotate.requests import Request
from itg_data.errors import RecordError


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieveAnswer:
    """What the annotator is asked to fill."""

    explanation: str
    clips: tuple[int, ...]


async def choose_clips(
    desk: Desk, pair: QaPair, captions: tuple[str, ...], bill: Bill
) -> RetrieveAnswer:
    """Chooses clips by their captions; none where none helps. They come back in order.

    Raises:
        UnansweredError: There is no usable answer.
    """

    def check(answer: RetrieveAnswer) -> None:
        for clip in answer.clips:
            if not 0 <= clip < len(captions):
                raise RecordError(f"clips must be in 0..{len(captions) - 1}, got {clip}")
            if not captions[clip]:
                raise RecordError(f"clip {clip} has no description and must not be chosen")

    request = Request(
        stage="retrieve",
        inputs={**describe_pair(pair), "captions": captions},
        answer_type=RetrieveAnswer,
    )
    answer = await desk.ask(request, bill, check)
    return RetrieveAnswer(
        explanation=answer.explanation.strip(), clips=tuple(sorted(set(answer.clips)))
    )
