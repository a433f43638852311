"""Scripts: what a scripted video shows, drawn from a seed, before a pixel is rendered.

A script is a sequence of events: one object (colour, shape) that stays or moves for a few seconds.
For each target there are confusers that differ from it in a single attribute, the scenery is cut at
other times than the events, and single seconds flash white so that brightness says nothing.

The held-out split is compositional: of the 6 x 4 x 5 colour-shape-motion combinations, 48 occur in
held-out videos only and 72 in training videos only, chosen so that every pair of attributes occurs
in both. A model that remembers combinations fails there; one that learnt the attributes does not.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np

from itg_data.records import TimeSpan

GENERATOR_VERSION = "itg_data.synthetic/2"
"""Part of every record and of the cache key; raised whenever the same seed gives other videos."""

Split = Literal["train", "heldout"]

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "magenta": (210, 50, 200),
    "cyan": (40, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACE_MARGIN = 1 / 8
"""How far off the middle a thing is "in the left part", in 0..1 of width or height."""
MOTIONS = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """How many scripted videos are made, and how hard they are."""

    num_train: int = 240
    """Training videos."""

    num_heldout: int = 40
    """Held-out videos; their colour-shape-motion combinations never occur in training."""

    seed: int = 0
    """Everything drawn follows from it."""

    difficulty: float = 0.5
    """0..1: noise, clutter, flashes, and how small the objects are."""

    duration_s: int = 48
    """Length of each video."""

    fps: int = 4
    """Frames per second of the files."""

    height: int = 96
    """Frame height in pixels, even."""

    width: int = 128
    """Frame width in pixels, even."""

    num_place_questions: int = 0
    """0..4 questions per video about where something is. A network that starts from random weights
    learns from them to see positions; without them it does not come to see motion."""

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_heldout) < 0:
            raise ValueError(
                f"synthetic.num_train and num_heldout must be >= 0, got {self.num_train} "
                f"and {self.num_heldout}"
            )
        if self.seed < 0:
            raise ValueError(f"synthetic.seed must be >= 0, got {self.seed}")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"synthetic.difficulty must be in 0..1, got {self.difficulty}")
        if self.duration_s < 12:
            raise ValueError(f"synthetic.duration_s must be >= 12, got {self.duration_s}")
        if self.fps < 1:
            raise ValueError(f"synthetic.fps must be >= 1, got {self.fps}")
        if not 0 <= self.num_place_questions <= 4:
            raise ValueError(
                f"synthetic.num_place_questions must be in 0..4, got {self.num_place_questions}"
            )
        if self.height < 32 or self.width < 32 or self.height % 2 or self.width % 2:
            raise ValueError(
                f"synthetic.height and width must be even and >= 32, got {self.height} "
                f"and {self.width}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """What an event shows."""

    colour: str
    shape: str
    motion: str

    @property
    def split(self) -> Split:
        """The only split in which this combination occurs."""
        code = (
            list(COLOURS).index(self.colour)
            + 2 * SHAPES.index(self.shape)
            + list(MOTIONS).index(self.motion)
        )
        return "heldout" if code % 5 < 2 else "train"

    def num_differences(self, other: "Combination") -> int:
        """Counts the attributes in which two combinations differ, 0..3."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return sum(mine != theirs for mine, theirs in pairs)


COMBINATIONS = tuple(
    Combination(colour=colour, shape=shape, motion=motion)
    for colour in COLOURS
    for shape in SHAPES
    for motion in MOTIONS
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One object on screen for a while."""

    shows: Combination
    span: TimeSpan
    path: tuple[float, float, float, float]
    """x and y of the centre at the start, then at the end, in 0..1 of width and height."""
    radius: float
    """Half of the object's size, in 0..1 of the height."""

    def time_beyond(self, axis: Literal[0, 1], sign: Literal[-1, 1]) -> TimeSpan | None:
        """When the centre is more than `PLACE_MARGIN` off the middle, on one side of it.

        Args:
            axis: 0 for left and right, 1 for up and down.
            sign: Which side: -1 is left or up.
        """
        start, end = (sign * (self.path[axis + i] - 0.5) - PLACE_MARGIN for i in (0, 2))
        if max(start, end) <= 0:
            return None
        if min(start, end) > 0:
            return self.span
        # the centre moves evenly, so it crosses the border once
        duration_s = self.span.end_s - self.span.start_s
        crossing_s = self.span.start_s + start / (start - end) * duration_s
        if start > 0:
            return TimeSpan(start_s=self.span.start_s, end_s=crossing_s)
        return TimeSpan(start_s=crossing_s, end_s=self.span.end_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """Everything that a video shows, before it is rendered."""

    duration_s: int
    events: tuple[Event, ...]
    cuts_s: tuple[float, ...]
    """Times at which the scenery changes; the first is 0."""
    flashes_s: tuple[int, ...]
    """Seconds during which the scenery is nearly white."""
    noise: float
    """Standard deviation of the pixel noise, in grey levels."""
    num_clutter: int
    """Grey shapes standing in each scenery."""


def write_script(config: SyntheticConfig, split: Split, number: int) -> Script:
    """Draws the script of one video.

    Args:
        config: Size, seed and difficulty of the set.
        split: Which combinations may occur.
        number: The video's number within its split, >= 0.
    """
    rng = generator(config, split, number, stage=0)
    allowed = [c for c in COMBINATIONS if c.split == split]
    spans = list(_event_spans(rng, config.duration_s))
    shown = _cast(rng, allowed, len(spans))
    events = tuple(
        Event(
            shows=combination,
            span=span,
            path=_path(rng, combination.motion),
            radius=float(rng.uniform(0.24, 0.30) - 0.08 * config.difficulty),
        )
        for span, combination in zip(spans, shown, strict=True)
    )
    num_cuts = int(rng.integers(2, 6))
    num_flashes = round(config.duration_s / 12 * config.difficulty)
    return Script(
        duration_s=config.duration_s,
        events=events,
        cuts_s=(0.0, *sorted(rng.uniform(1, config.duration_s - 1, num_cuts).tolist())),
        flashes_s=tuple(sorted(rng.choice(config.duration_s, num_flashes, replace=False).tolist())),
        noise=24.0 * config.difficulty,
        num_clutter=round(6 * config.difficulty),
    )


def generator(
    config: SyntheticConfig, split: Split, number: int, stage: int
) -> np.random.Generator:
    """Gives the random numbers of one stage (0 script, 1 questions, 2 pixels) of one video."""
    return np.random.default_rng([config.seed, get_args(Split).index(split), number, stage])


def _event_spans(rng: np.random.Generator, duration_s: int) -> Iterator[TimeSpan]:
    """Fills a video with spans of 3 to 5 s and gaps of up to 2 s; borders lie between seconds."""
    start_s = float(rng.uniform(0.2, 1.5))
    while start_s + 3 < duration_s:
        end_s = min(start_s + float(rng.uniform(3, 5)), duration_s - 0.1)
        yield TimeSpan(start_s=round(start_s, 3), end_s=round(end_s, 3))
        start_s = end_s + float(rng.uniform(0.2, 2))


def _cast(
    rng: np.random.Generator, allowed: list[Combination], num_events: int
) -> list[Combination]:
    """Casts the events: two targets, confusers one attribute away from them, and bystanders."""
    picks = rng.choice(len(allowed), 2, replace=False)
    cast: list[Combination] = [allowed[i] for i in picks]
    for target in tuple(cast):
        near = [c for c in allowed if c.num_differences(target) == 1]
        chosen = rng.choice(len(near), min(2, len(near)), replace=False)
        cast += [near[i] for i in chosen]
    while len(cast) < num_events:
        cast.append(allowed[rng.integers(len(allowed))])
    cast = cast[:num_events]
    return [cast[i] for i in rng.permutation(len(cast))]


def _path(rng: np.random.Generator, motion: str) -> tuple[float, float, float, float]:
    dx, dy = MOTIONS[motion]
    x, y = (float(v) for v in rng.uniform(0.25, 0.75, 2))
    reach = 0.33
    x0, x1 = (0.5 - dx * reach, 0.5 + dx * reach) if dx else (x, x)
    y0, y1 = (0.5 - dy * reach, 0.5 + dy * reach) if dy else (y, y)
    return x0, y0, x1, y1
