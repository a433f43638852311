"""Second stage: what can be seen, clip by clip, in view of the cues.

Reads the cues and the pictures of every clip; writes one caption for each clip. The question itself
is not told, so pairs with the same cues share their captions. A clip whose pictures are lost to
damage, or that the annotator would not describe, gets an empty caption and can't be retrieved; if
that happens to more than a fifth of a video, its question is dropped.
"""

from dataclasses import dataclass

from itg_data.annotate.desk import Bill, Desk, UnansweredError, all_of
from itg_data.annotate.frames import VideoPictures
from itg_data.annotate.requests import Request

_MAX_GAPS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionAnswer:
    """What the annotator is asked to fill."""

    caption: str


async def describe_clips(
    desk: Desk, video: VideoPictures, cues: tuple[str, ...], bill: Bill
) -> tuple[str, ...]:
    """Describes every clip of a video, clip 0 first.

    Raises:
        UnansweredError: Too many clips have no caption; for the reason that the first one lacks it.
    """
    failures: list[UnansweredError] = []

    async def describe(clip: int) -> str:
        pictures = video.of_clip(clip)
        request = Request(
            stage="caption",
            inputs={"cues": cues},
            pictures=pictures.names,
            answer_type=CaptionAnswer,
        )
        try:
            answer = await desk.ask(request, bill, pictures=pictures)
        except UnansweredError as error:
            failures.append(error)
        else:
            return " ".join(answer.caption.split())
        return ""

    captions = await all_of(map(describe, range(video.num_clips)))
    if len(failures) > _MAX_GAPS * video.num_clips:
        raise failures[0]
    return tuple(captions)
