"""First stage: what to look for.

Reads question, answer and options; writes up to eight cues, in alphabetical order, so
that equal sets of cues share their captions.
"""

from dataclasses import dataclass

from itg_data.annotate.desk import Bill, Desk
from itg_data.annotate.records import QaPair
from itg_data.annotate.requests import Request

MAX_CUES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class CuesAnswer:
    """What the annotator is asked to fill."""

    cues: tuple[str, ...]


async def find_cues(desk: Desk, pair: QaPair, bill: Bill) -> tuple[str, ...]:
    """Draws the cues of a QA pair.

    Raises:
        UnansweredError: There is no usable answer.
    """
    answer = await desk.ask(
        Request(stage="cues", inputs=describe_pair(pair), answer_type=CuesAnswer), bill
    )
    told = [" ".join(cue.split()) for cue in answer.cues]
    return tuple(sorted(dict.fromkeys(cue for cue in told[:MAX_CUES] if cue)))


def describe_pair(pair: QaPair) -> dict[str, object]:
    """Gives what every stage about a QA pair is told of it."""
    told: dict[str, object] = {"question": pair.question, "answer": pair.answer}
    if pair.options:
        told["options"] = pair.options
    return told
