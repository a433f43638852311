"""Fourth stage: what kind of seeing a question needs.

Reads question and answer; writes the question's type.
"""

from dataclasses import dataclass

from itg_data.annotate.cues import describe_pair
from itg_data.annotate.desk import Bill, Desk
from itg_data.annotate.localize import type_question
from itg_data.annotate.records import QaPair
from itg_data.annotate.requests import Request
from itg_data.records import QuestionType


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyAnswer:
    """What the annotator is asked to fill."""

    motion: bool
    existence: bool


async def classify_question(desk: Desk, pair: QaPair, bill: Bill) -> QuestionType:
    """Finds the type of a question.

    Raises:
        UnansweredError: There is no usable answer.
    """
    request = Request(stage="classify", inputs=describe_pair(pair), answer_type=ClassifyAnswer)
    answer = await desk.ask(request, bill)
    return type_question(motion=answer.motion, existence=answer.existence)
