"""From a sample's frames to what each of its questions sees of them."""

import torch
from itg_model.blocks import pool_features
from itg_model.model import FrameGroundingModel
from torch import Tensor

from itg_train.dataset import VideoSample
from itg_train.features import StoredFeatures


def encode_sample(
    model: FrameGroundingModel, sample: VideoSample, frame_chunk: int, *, learns: bool = False
) -> list[Tensor]:
    """Pools a video's features for each question to its own side.

    The tower sees the frames once, or not at all where they are features already; what it makes of
    them goes to the sample's store, if it has one.

    Args:
        model: The grounder.
        sample: A video, with sides or without.
        frame_chunk: Frames that pass the tower at once.
        learns: Whether gradients reach the tower.

    Returns:
        Per question [T, side * side, C].
    """
    num_frames = len(sample.frames)
    sides = sample.sides or (model.pooled_side(num_frames),) * len(sample.input_ids)
    if sample.has_features:
        weight = model.head.weight
        seen = sample.frames.to(weight.device, weight.dtype, non_blocking=True)
    else:
        whole = len(set(sides)) > 1 or (sample.store is not None and not sample.store.pooled)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            side = model.config.vision.grid_side if whole else sides[0]
            seen = model.encode_frames(sample.frames, side, frame_chunk)
        if sample.store is not None:
            stored = StoredFeatures(features=seen.detach().cpu(), time_s=sample.time_s)
            sample.store.write_later(sample.video, stored)
    pooled = {side: _pool(model, seen, side) for side in set(sides)}
    return [pooled[side] for side in sides]


def _pool(model: FrameGroundingModel, seen: Tensor, side: int) -> Tensor:
    if seen.shape[1] == side**2:
        return seen
    if seen.shape[1] != model.config.vision.grid_side**2:
        raise ValueError(f"features of {seen.shape[1]} tokens a frame are pooled already")
    return pool_features(seen, side)
