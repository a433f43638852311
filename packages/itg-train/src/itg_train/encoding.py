"""From samples' frames to what each of their questions sees of them."""

from collections.abc import Sequence

import torch
from itg_model.blocks import pool_features
from itg_model.fast import FastTower
from itg_model.model import FrameGroundingModel
from torch import Tensor

from itg_train.dataset import VideoSample
from itg_train.features import StoredFeatures


class FrozenTower:
    """A tower that does not learn, rebuilt for inference at its first use.

    The model keeps its own, which is what is saved.
    """

    def __init__(self) -> None:
        self._rebuilt: FastTower | None = None

    def of(self, model: FrameGroundingModel) -> FastTower:
        """The tower of `model`, always the same model, whose weights are final."""
        if self._rebuilt is None:
            self._rebuilt = FastTower(model.stacks("trained")[0], take=False)
        return self._rebuilt


def encode_samples(
    model: FrameGroundingModel,
    samples: Sequence[VideoSample],
    frame_chunk: int,
    *,
    learns: bool = False,
    frozen: FrozenTower | None = None,
) -> list[Tensor]:
    """Pools videos' features for each of their questions to its own side.

    The tower sees the frames of a video once, or not at all where they are features already; what
    it makes of them goes to the sample's store, if it has one.

    Args:
        model: The grounder.
        samples: Videos, with sides or without.
        frame_chunk: Frames that pass the tower at once.
        learns: Whether gradients reach the tower.
        frozen: Does the tower's work where it does not learn.

    Returns:
        Per question of the first sample, then of the second, and so on, [T, side * side, C].
    """
    sides = [_sides(model, sample) for sample in samples]
    seen: dict[int, Tensor] = {}
    if learns:
        seen = _see_together(model, samples, sides, frame_chunk)
    features: list[Tensor] = []
    for place, sample in enumerate(samples):
        of_sample = seen.get(place)
        if of_sample is None:
            of_sample = _see(model, sample, sides[place], frame_chunk, frozen)
        pooled = {side: _pool(model, of_sample, side) for side in set(sides[place])}
        features += [pooled[side] for side in sides[place]]
    return features


def _sides(model: FrameGroundingModel, sample: VideoSample) -> tuple[int, ...]:
    return sample.sides or (model.pooled_side(len(sample.frames)),) * len(sample.input_ids)


def _side_seen(model: FrameGroundingModel, sides: tuple[int, ...]) -> int:
    """The side that the tower's features are wanted at: of all patches, where questions differ."""
    return sides[0] if len(set(sides)) == 1 else model.config.vision.grid_side


def _see_together(
    model: FrameGroundingModel,
    samples: Sequence[VideoSample],
    sides: Sequence[tuple[int, ...]],
    frame_chunk: int,
) -> dict[int, Tensor]:
    """By place the features of videos that are pooled alike, in one pass of a tower that learns.

    Such towers are small, and videos one by one would leave a GPU waiting for launches.
    """
    together: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        if not sample.has_features:
            together.setdefault(_side_seen(model, sides[place]), []).append(place)
    seen: dict[int, Tensor] = {}
    for side, places in together.items():
        frames = [samples[place].frames.to(model.device, non_blocking=True) for place in places]
        encoded = model.encode_frames(torch.cat(frames), side, frame_chunk)
        seen |= zip(places, encoded.split([len(x) for x in frames]), strict=True)
    return seen


def _see(
    model: FrameGroundingModel,
    sample: VideoSample,
    sides: tuple[int, ...],
    frame_chunk: int,
    frozen: FrozenTower | None,
) -> Tensor:
    """What a tower that does not learn makes of a video, or made of it before."""
    if sample.has_features:
        weight = model.head.weight
        return sample.frames.to(weight.device, weight.dtype, non_blocking=True)
    keeps_whole = sample.store is not None and not sample.store.pooled
    side = model.config.vision.grid_side if keeps_whole else _side_seen(model, sides)
    with torch.no_grad():
        tower = None if frozen is None else frozen.of(model)
        seen = model.encode_frames(sample.frames, side, frame_chunk, tower)
    if sample.store is not None:
        stored = StoredFeatures(features=seen.cpu(), time_s=sample.time_s)
        sample.store.write_later(sample.video, stored)
    return seen


def _pool(model: FrameGroundingModel, seen: Tensor, side: int) -> Tensor:
    if seen.shape[1] == side**2:
        return seen
    if seen.shape[1] != model.config.vision.grid_side**2:
        raise ValueError(f"features of {seen.shape[1]} tokens a frame are pooled already")
    return pool_features(seen, side)
