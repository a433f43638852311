"""One video with its QA pairs, from first cue to last check.

The stages of a pair follow one another; pairs of a video, and videos, run side by side. They meet
in three places only: the pictures of a video are decoded once for all of its pairs, the ledger
answers what was asked before, and the desk limits what is asked at the same time.

    QA pair -> cues -> captions of all clips -> retrieval -+
       |                                                   +-> localisation -> check -> annotation
       +------> question type -----------------------------+
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from itg_data.annotate.caption import describe_clips
from itg_data.annotate.check import check_frames
from itg_data.annotate.classify import classify_question
from itg_data.annotate.cues import find_cues
from itg_data.annotate.desk import Bill, Desk, UnansweredError, all_of, both
from itg_data.annotate.features import NOTHING, FrameFeatures
from itg_data.annotate.frames import (
    CLIP_S,
    Decoders,
    LostPictureError,
    PictureConfig,
    VideoPictures,
    open_pictures,
)
from itg_data.annotate.localize import (
    find_candidates,
    pick_diverse,
    settle_type,
    wants_diversity,
)
from itg_data.annotate.quality import find_faults, require_candidates, require_labels
from itg_data.annotate.records import (
    Annotation,
    DroppedSample,
    LabelledFrame,
    PromptHash,
    QaPair,
)
from itg_data.annotate.requests import STAGES, prompt_sha256
from itg_data.annotate.retrieve import RetrieveAnswer, choose_clips
from itg_data.errors import RecordError, VideoError
from itg_data.records import QuestionType

_FEATURES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoJob:
    """A video and what is asked about it."""

    video: str
    """Path relative to the folder of videos."""
    pairs: tuple[QaPair, ...]


Outcome = Annotation | DroppedSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """What annotating needs: whom to ask, who decodes, what frames are compared by."""

    videos: Path
    """Folder of the videos."""
    spool: Path
    """Folder for pictures of the videos under way."""
    desk: Desk
    decoders: Decoders
    pictures: PictureConfig
    features: FrameFeatures | None
    """None keeps every candidate."""


async def annotate_video(job: VideoJob, shop: Workshop) -> tuple[Outcome, ...]:
    """Annotates the QA pairs of a video, in their order.

    Raises:
        AnnotatorError: There are no answers to be had.
        OSError: There is no room on the disk.
    """
    faults = find_faults(job.pairs)
    sound = [pair for pair in job.pairs if pair.id not in faults]
    done: dict[str, Outcome] = {
        pair.id: _drop(pair, faults[pair.id]) for pair in job.pairs if pair.id in faults
    }
    try:
        async with await open_pictures(
            shop.videos / job.video, shop.pictures, shop.decoders, shop.spool
        ) as video:
            for outcome in await all_of(_annotate_pair(pair, video, shop) for pair in sound):
                done[outcome.id] = outcome
    except VideoError as error:
        lost = UnansweredError("unreadable_video", error.reason)
        done |= {pair.id: _drop(pair, lost) for pair in sound}
    return tuple(done[pair.id] for pair in job.pairs)


async def _annotate_pair(pair: QaPair, video: VideoPictures, shop: Workshop) -> Outcome:
    try:
        return await _label_pair(pair, video, shop)
    except UnansweredError as error:
        return _drop(pair, error)


async def _label_pair(pair: QaPair, video: VideoPictures, shop: Workshop) -> Annotation:
    bill, desk = Bill(), shop.desk

    async def find_clips() -> tuple[tuple[str, ...], tuple[str, ...], RetrieveAnswer]:
        cues = await find_cues(desk, pair, bill)
        captions = await describe_clips(desk, video, cues, bill)
        return cues, captions, await choose_clips(desk, pair, captions, bill)

    (cues, captions, chosen), question_type = await both(
        find_clips(), classify_question(desk, pair, bill)
    )
    question_type = settle_type(question_type, chosen.clips, len(captions))
    candidates = find_candidates(question_type, chosen.clips, video.num_seconds)
    require_candidates(candidates)
    candidates = video.add_beginnings(candidates)
    kept = await _keep(question_type, candidates, video, shop)
    frames = await _check(question_type, kept, video, pair, bill, desk)
    require_labels(frames)
    asked = [stage for stage in STAGES if stage != "check" or question_type != "no_clue"]
    annotation = Annotation(
        id=pair.id,
        video=pair.video,
        question=pair.question,
        answer=pair.answer,
        options=pair.options,
        split=pair.split,
        start_s=video.start_s,
        duration_s=video.duration_s,
        clip_s=CLIP_S,
        cues=cues,
        captions=captions,
        explanation=chosen.explanation,
        clips=chosen.clips,
        question_type=question_type,
        candidate_s=candidates,
        frames=frames,
        model=desk.sampler.model,
        seed=desk.sampler.seed,
        temperature=desk.sampler.temperature,
        features=shop.features.name if shop.features else NOTHING,
        prompts=tuple(PromptHash(stage=stage, sha256=prompt_sha256(stage)) for stage in asked),
        tokens=bill.to_token_count(),
    )
    _require_record(annotation)
    return annotation


def _require_record(annotation: Annotation) -> None:
    """Finds out now, not when the whole set is put together, that a record can be made of it.

    All that may be in the way is the video's own clock: its labels may lie before time zero.
    """
    try:
        annotation.to_grounding()
    except RecordError as error:
        detail = f"starts at {annotation.start_s:.6g} s on its own clock: {error}"
        raise UnansweredError("unreadable_video", detail) from None


async def _keep(
    question_type: QuestionType, candidates: Sequence[int], video: VideoPictures, shop: Workshop
) -> tuple[int, ...]:
    """Thins the candidates where they look alike; seconds without a picture are left out."""
    if not wants_diversity(question_type):
        return tuple(candidates)
    readable = await _readable(candidates, video)
    compare = shop.features
    if compare is None:
        return tuple(readable)

    def encode() -> npt.NDArray[np.float32]:
        some = (
            readable[i : i + _FEATURES_AT_ONCE] for i in range(0, len(readable), _FEATURES_AT_ONCE)
        )
        return np.concatenate([compare(video.of_seconds(s).read()) for s in some])

    features = await asyncio.get_running_loop().run_in_executor(shop.decoders.executor, encode)
    return tuple(readable[place] for place in pick_diverse(features))


async def _readable(seconds: Sequence[int], video: VideoPictures) -> list[int]:
    await video.decode(sorted({second // CLIP_S for second in seconds}))
    readable = [s for s in seconds if video.has(video.source_idx_of(s))]
    if not readable:
        raise UnansweredError("unreadable_video", f"all {len(seconds)} candidate frames are lost")
    return readable


async def _check(
    question_type: QuestionType,
    kept: Sequence[int],
    video: VideoPictures,
    pair: QaPair,
    bill: Bill,
    desk: Desk,
) -> tuple[LabelledFrame, ...]:
    """Has each frame checked; in a no-clue question there is nothing to look for in one."""
    verdicts: Sequence[bool | None] = [None] * len(kept)
    if question_type != "no_clue":
        try:
            verdicts = await check_frames(desk, video, pair, kept, bill)
        except LostPictureError:
            kept = await _readable(kept, video)
            verdicts = await check_frames(desk, video, pair, kept, bill)
    return tuple(
        LabelledFrame(second=second, source_idx=video.source_idx_of(second), relevant=verdict)
        for second, verdict in zip(kept, verdicts, strict=True)
    )


def _drop(pair: QaPair, error: UnansweredError) -> DroppedSample:
    return DroppedSample(
        id=pair.id,
        video=pair.video,
        question=pair.question,
        reason=error.reason,
        detail=error.detail,
    )
