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

    What was asked of the video before, but for spaces and case, is a duplicate: the question with
    its options and its answer, for "Which is true?" may be asked many times.
    """
    faults: dict[str, UnansweredError] = {}
    first_with: dict[tuple[str, ...], str] = {}
    for pair in pairs:
        texts = pair.question, pair.answer, *pair.options
        num_chars = sum(map(len, texts))
        if num_chars > MAX_QUESTION_CHARS:
            detail = f"{num_chars} characters, at most {MAX_QUESTION_CHARS}"
            faults[pair.id] = UnansweredError("question_too_long", detail)
            continue
        first = first_with.setdefault(tuple(map(_plain, texts)), pair.id)
        if first != pair.id:
            faults[pair.id] = UnansweredError("duplicate_question", f"as {first}")
    return faults


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


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
