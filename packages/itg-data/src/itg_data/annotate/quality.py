"""What may not enter the pipeline, and what may not leave it. Each drop has a reason.

The other reasons arise in the stages: an answer that is refused, malformed twice or rejected, a
video that gives no frames.
"""

from collections.abc import Sequence

from itg_data.annotate.desk import UnansweredError
from itg_data.annotate.records import LabelledFrame, QaPair

MAX_QUESTION_CHARS = 4000
"""Of question, answer and options together."""


def find_faults(pairs: Sequence[QaPair]) -> dict[str, UnansweredError]:
    """Looks at all QA pairs of one video before anything is asked: faults by id.

    A question that was asked of the video before, but for spaces and case, is a duplicate.
    """
    faults: dict[str, UnansweredError] = {}
    first_with: dict[str, str] = {}
    for pair in pairs:
        num_chars = len(pair.question) + len(pair.answer) + sum(map(len, pair.options))
        first = first_with.setdefault(" ".join(pair.question.split()).casefold(), pair.id)
        if num_chars > MAX_QUESTION_CHARS:
            detail = f"{num_chars} characters, at most {MAX_QUESTION_CHARS}"
            faults[pair.id] = UnansweredError("question_too_long", detail)
        elif first != pair.id:
            faults[pair.id] = UnansweredError("duplicate_question", f"as {first}")
    return faults


def require_candidates(candidates: Sequence[int]) -> None:
    """Drops a question that no clip answers.

    Raises:
        UnansweredError: There is no candidate.
    """
    if not candidates:
        raise UnansweredError("no_clip", "retrieval chose none, and the question needs some")


def require_labels(frames: Sequence[LabelledFrame]) -> None:
    """Drops a question of which no frame passed the check.

    Raises:
        UnansweredError: There is no label.
    """
    if all(frame.relevant is False for frame in frames):
        raise UnansweredError("no_frame_confirmed", f"the check refused all {len(frames)} frames")
