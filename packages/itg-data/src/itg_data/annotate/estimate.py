"""What a run would ask and cost, from the lengths of the videos alone.

Calls are counted exactly up to retrieval, as if no two pairs shared their cues. What the check
costs is not known before: two clips and four labels a question are the published set's medians.
Tokens are estimates: four characters of text each, a picture as many as it has patches of 28 x 28
pixels, which is how Qwen's vision models count.
"""

from dataclasses import asdict, dataclass
from typing import Any

from itg_data.annotate.config import RunConfig
from itg_data.annotate.frames import count_clips, require_credible_length
from itg_data.annotate.qa import QaFile
from itg_data.annotate.requests import STAGES, Stage, load_prompt
from itg_data.errors import VideoError
from itg_data.progress import Advance, show_progress
from itg_data.video import open_video

_CHARS_PER_TOKEN = 4
_PATCH_PX = 28
_COMPLETION_TOKENS: dict[Stage, int] = {
    "cues": 40,
    "caption": 120,
    "retrieve": 100,
    "classify": 15,
    "check": 20,
}
_CHECKED_FRAMES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run would ask, all of it, whatever its ledger may know already."""

    num_videos: int
    num_unreadable: int
    num_pairs: int
    num_clips: int
    num_calls: dict[Stage, int]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float

    def to_json(self) -> dict[str, Any]:
        """Gives the estimate as it is printed."""
        return {**asdict(self), "num_calls_total": sum(self.num_calls.values())}


def estimate(config: RunConfig) -> Estimate:
    """Looks at every video's length and adds up.

    Raises:
        RecordError: The file of QA pairs is not what it should be.
        InputError: There is no folder of videos.
    """
    qa = config.open_qa()
    with show_progress("looking at videos", qa.num_videos, unit="videos") as advance:
        return _add_up(config, qa, advance)


def _add_up(config: RunConfig, qa: QaFile, advance: Advance) -> Estimate:
    calls = dict.fromkeys(STAGES, 0)
    prompt_tokens = num_unreadable = num_clips = 0
    for number, job in enumerate(qa.read_jobs()):
        advance(number, f"{num_unreadable} unreadable" if num_unreadable else "")
        try:
            with open_video(
                config.videos / job.video, resize_to=config.pictures.image_size
            ) as video:
                require_credible_length(video)
                clips = count_clips(video.duration_s)
                scale = min(1.0, config.pictures.image_size / max(video.height, video.width))
                height, width = video.height * scale, video.width * scale
        except VideoError:
            num_unreadable += 1
            continue
        num_clips += clips
        picture = round(height / _PATCH_PX) * round(width / _PATCH_PX)
        for pair in job.pairs:
            text = (len(pair.question) + len(pair.answer)) // _CHARS_PER_TOKEN
            captions = clips * _COMPLETION_TOKENS["caption"]
            of_pair: dict[Stage, tuple[int, int]] = {
                "cues": (1, text),
                "caption": (clips, _COMPLETION_TOKENS["cues"] + config.pictures.per_clip * picture),
                "retrieve": (1, text + captions),
                "classify": (1, text),
                "check": (1, text + _CHECKED_FRAMES * picture),
            }
            for stage, (num_calls, tokens) in of_pair.items():
                calls[stage] += num_calls
                prompt = len(load_prompt(stage)) // _CHARS_PER_TOKEN
                prompt_tokens += num_calls * (prompt + tokens)
    advance(qa.num_videos, "")
    completion_tokens = sum(calls[stage] * _COMPLETION_TOKENS[stage] for stage in STAGES)
    return Estimate(
        num_videos=qa.num_videos,
        num_unreadable=num_unreadable,
        num_pairs=qa.num_pairs,
        num_clips=num_clips,
        num_calls=calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=config.prices.cost_usd(prompt_tokens, completion_tokens),
    )
