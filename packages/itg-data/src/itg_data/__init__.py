"""itg-data: records, the sampling rule and the decoder that all itg packages share."""

from itg_data.errors import ItgError, RecordError, VideoError
from itg_data.records import FrameScores, FrameSelection, GroundingRecord, TimeSpan

__all__ = [
    "FrameScores",
    "FrameSelection",
    "GroundingRecord",
    "ItgError",
    "RecordError",
    "TimeSpan",
    "VideoError",
]
