"""From clips to seconds: which frames may be labels, by what kind of seeing the question needs.

Reads the chosen clips, the question's type and features of the frames; writes the candidate
seconds and those that are kept.

| type | candidates | kept |
|---|---|---|
| `semantic` | the chosen clips | frames that look new, by the diversity rule |
| `semantic_motion` | the chosen clips | every second |
| `motion` | the chosen clips; the whole video if there are none | every second |
| `no_clue` | the whole video | frames that look new |

Where a frame stays on screen for longer than a second, the second in which it was first shown is a
candidate along with those in which it stays: training finds frames by when they are first shown.

Whether nothing in particular must be seen is asked of a model that has not seen the video.
Retrieval, which has read its captions, outvotes it where it found some clips and passed over most:
a question that is taken for a no-clue one by mistake would label the whole video, unchecked.

Source: the type rules and the diversity rule of VideoITG's data set, reimplemented from a
description; there retrieval had to find no clip at all for a question to be without clues.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from itg_data.annotate.frames import CLIP_S
from itg_data.records import QuestionType

CHANGED_COSINE = 0.90
"""A frame less like its predecessor than this is new."""
SAME_COSINE = 0.97
"""Frames at least as like a kept one as this are passed over."""


def type_question(*, motion: bool, existence: bool) -> QuestionType:
    """Names the type that the two flags of the method stand for.

    Args:
        motion: The answer hangs on movement.
        existence: Nothing in particular must be found.
    """
    if existence:
        return "motion" if motion else "no_clue"
    return "semantic_motion" if motion else "semantic"


def settle_type(question_type: QuestionType, clips: Sequence[int], num_clips: int) -> QuestionType:
    """Takes a no-clue question for a semantic one if retrieval chose some clips, but few.

    Args:
        question_type: By the words of question and answer.
        clips: What retrieval chose.
        num_clips: That it chose from.
    """
    few = 0 < len(clips) < num_clips / 2
    return "semantic" if question_type == "no_clue" and few else question_type


def find_candidates(
    question_type: QuestionType, clips: Sequence[int], num_seconds: int
) -> tuple[int, ...]:
    """Lists the seconds that may be labels, ascending; empty if the question must be dropped."""
    if question_type == "no_clue" or (question_type == "motion" and not clips):
        return tuple(range(num_seconds))
    return tuple(
        second
        for clip in clips
        for second in range(clip * CLIP_S, (clip + 1) * CLIP_S)
        if second < num_seconds
    )


def wants_diversity(question_type: QuestionType) -> bool:
    """Whether frames that look alike are thinned; movement needs every second."""
    return question_type in ("semantic", "no_clue")


def pick_diverse(features: npt.NDArray[np.floating]) -> tuple[int, ...]:
    """Picks the frames that look new.

    The first is kept. After that, a frame is kept if it changed from the one before; then all that
    still look the same are passed over, and so is the first that does not: it is what the next
    one is compared with. The last frame is kept too if it differs from the last one kept.

    Args:
        features: [N, D] float, rows of length 1, N >= 1.

    Returns:
        Places of the kept frames, ascending; 0 is always among them.
    """
    num_frames = len(features)

    def alike(a: int, b: int) -> float:
        return float(features[a] @ features[b])

    kept = [0]
    i = 1
    while i < num_frames:
        if alike(i, i - 1) < CHANGED_COSINE:
            kept.append(i)
            others = (j for j in range(i + 1, num_frames) if alike(i, j) < SAME_COSINE)
            first_other = next(others, None)
            if first_other is None:
                break
            i = first_other
        i += 1
    last = num_frames - 1
    if kept[-1] != last and alike(last, kept[-1]) < CHANGED_COSINE:
        kept.append(last)
    return tuple(kept)
