"""What the model that knows the script answers, stage by stage, and how it errs.

Each judgement (is this thing there? does this clip help? is this a question about movement? does
this picture show it?) is wrong with probability `noise`. What is drawn follows from the seed and
the request, so the same request gets the same answer, as from a model at temperature zero.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from itg_data.scripted_vlm.sight import Sighting
from itg_data.synthetic.questions import VERBS
from itg_data.synthetic.script import COLOURS, COMBINATIONS, SHAPES, Combination

Stage = Literal["cues", "caption", "retrieve", "classify", "check"]

_OBJECT = rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b"
_VERB = rf"\b({'|'.join(VERBS.values())})\b"
_MOTION_OF = {verb: motion for motion, verb in VERBS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a request tells: the fields that its stage has, the others empty."""

    question: str = ""
    answer: str = ""
    cues: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    sightings: tuple[Sighting | None, ...] = ()
    """One for each picture; None for one of no scripted video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a question asks for; None where anything will do."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None

    @property
    def whole_video(self) -> bool:
        """Nothing in particular is asked for."""
        return self.colour is None and self.motion is None

    def fits(self, shows: Combination) -> bool:
        """Says whether an object that does something is what is asked for."""
        asked = ((self.colour, shows.colour), (self.shape, shows.shape))
        return all(mine in (None, theirs) for mine, theirs in (*asked, (self.motion, shows.motion)))


def read_wanted(text: str) -> Wanted:
    """Finds object and movement in a question; the first of each counts."""
    thing, verb = re.search(_OBJECT, text.lower()), re.search(_VERB, text.lower())
    return Wanted(
        colour=thing[1] if thing else None,
        shape=thing[2] if thing else None,
        motion=_MOTION_OF[verb[1]] if verb else None,
    )


def read_caption(text: str) -> list[Combination]:
    """Finds what a caption says is there."""
    found = re.findall(f"{_OBJECT} {_VERB}", text.lower())
    return [Combination(colour=c, shape=s, motion=_MOTION_OF[verb]) for c, s, verb in found]


class Judge:
    """Judges rightly but for a part of the time.

    Args:
        noise: Probability of a wrong judgement.
        rng: Draws which.
    """

    def __init__(self, noise: float, rng: np.random.Generator) -> None:
        self.noise = noise
        self.rng = rng

    def says(self, truth: bool) -> bool:
        """Gives the truth, or now and then its opposite."""
        return truth != self.errs()

    def errs(self) -> bool:
        """Draws whether this judgement is wrong."""
        return bool(self.rng.random() < self.noise)

    def confuse(self, shows: Combination) -> Combination:
        """Mistakes an object for one that differs in a single attribute."""
        near = [other for other in COMBINATIONS if other.num_differences(shows) == 1]
        return near[self.rng.integers(len(near))]


def answer(stage: Stage, inputs: Inputs, judge: Judge) -> dict[str, Any]:
    """Answers a request of one stage."""
    return _ANSWERS[stage](inputs, judge)


def _cues(inputs: Inputs, judge: Judge) -> dict[str, Any]:
    wanted = read_wanted(inputs.question)
    cues = [f"{wanted.colour} {wanted.shape}"] if wanted.colour else []
    cues += [VERBS[wanted.motion]] if wanted.motion else []
    return {"cues": ["scenery" if judge.errs() else cue for cue in cues]}


def _caption(inputs: Inputs, judge: Judge) -> dict[str, Any]:
    seen = [combination for sight in inputs.sightings if sight for combination in sight.shows]
    told: list[Combination] = []
    for shows in dict.fromkeys(seen):
        if not judge.errs():
            told.append(shows)
        elif judge.rng.random() < 0.5:
            told.append(judge.confuse(shows))
    if judge.errs():
        told.append(_imagined(inputs.cues, judge))
    if not told:
        return {"caption": "Grey scenery; nothing coloured is to be seen."}
    return {"caption": " ".join(f"A {_words(shows)}." for shows in dict.fromkeys(told))}


def _imagined(cues: Sequence[str], judge: Judge) -> Combination:
    """Sees what it was told to look for, as models do."""
    wanted = read_wanted(" ".join(cues))
    drawn = COMBINATIONS[judge.rng.integers(len(COMBINATIONS))]
    if wanted.colour and wanted.shape:
        drawn = replace(drawn, colour=wanted.colour, shape=wanted.shape)
    return replace(drawn, motion=wanted.motion) if wanted.motion else drawn


def _retrieve(inputs: Inputs, judge: Judge) -> dict[str, Any]:
    wanted = read_wanted(inputs.question)
    clips: list[int] = []
    reasons: list[str] = []
    for number, caption in enumerate(inputs.captions):
        fitting = [] if wanted.whole_video else list(filter(wanted.fits, read_caption(caption)))
        # an empty caption is of a clip that could not be read
        if judge.says(bool(fitting) or (wanted.whole_video and bool(caption))):
            clips.append(number)
            seen = fitting[0] if fitting else None
            what = f"a {seen.colour} {seen.shape} that {VERBS[seen.motion]}" if seen else "a part"
            reasons.append(f"clip {number} shows {what}")
    explanation = "; ".join(reasons) if reasons else "no clip shows what is asked for"
    return {"explanation": f"{explanation}.", "clips": clips}


def _classify(inputs: Inputs, judge: Judge) -> dict[str, Any]:
    wanted = read_wanted(inputs.question)
    return {
        "motion": judge.says(wanted.motion is not None),
        # no thing in particular is asked for: with motion, it is the movement that is
        "existence": judge.says(wanted.colour is None),
    }


def _check(inputs: Inputs, judge: Judge) -> dict[str, Any]:
    wanted = read_wanted(inputs.question)
    return {
        "relevant": [
            judge.says(sight is not None and (wanted.whole_video or _any_fits(wanted, sight)))
            for sight in inputs.sightings
        ]
    }


def _any_fits(wanted: Wanted, sight: Sighting) -> bool:
    return any(map(wanted.fits, sight.shows))


def _words(shows: Combination) -> str:
    return f"{shows.colour} {shows.shape} {VERBS[shows.motion]}"


_ANSWERS: dict[Stage, Callable[[Inputs, Judge], dict[str, Any]]] = {
    "cues": _cues,
    "caption": _caption,
    "retrieve": _retrieve,
    "classify": _classify,
    "check": _check,
}
STAGES = tuple(_ANSWERS)
